"""The project's own packages on patients that training never saw, through the whole engine."""

from __future__ import annotations

import numpy as np
import pytest

from dicomai.findings import Sphere
from dicomai.imaging.image import image_of
from dicomai.imaging.series import read_series
from dicomai.imaging.volume import volume_of
from dicomai.inference.inputs import inputs_of
from dicomai.inference.pipeline import analyse
from dicomai.models.package import load as load_package
from dicomai.models.registry import BUILTIN
from dicomai.models.runtimes.torch_runtime import LoadedModel, load
from dicomai.phantom import (
    ChestPhantom,
    WrittenCt,
    chest_exposure,
    chest_scan,
    write_ct,
    write_xray,
)

# None of these seeds is used in training or for the figures of a card.
SEEDS = (3_000_000_000_001, 3_000_000_000_002)
DIAMETERS_MM = ((9.0, 20.0), (12.0,))


@pytest.fixture(scope="module", params=(0, 1))
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WrittenCt:
    """A CT of an unseen patient, as files."""
    number = int(request.param)
    phantom = ChestPhantom(SEEDS[number], nodule_diameters_mm=DIAMETERS_MM[number])
    scan = chest_scan(phantom, matrix=256, slice_spacing_mm=2.5, from_head=number == 1)
    return write_ct(tmp_path_factory.mktemp("study"), 1, phantom=phantom, scan=scan)


def model(name: str) -> LoadedModel:
    return load(load_package(BUILTIN / name), "cpu")


def quiet(stage: str, fraction: float) -> None: ...


@pytest.mark.slow
def test_lungs_have_the_right_volume_and_place(study: WrittenCt) -> None:
    (series,) = read_series(study.files)
    source = volume_of(series.datasets)
    findings = analyse(model("chest-ct-lungs"), source, inputs_of(source.headers), quiet)
    truth = study.phantom.truth(source.grid.index_to_lps, source.grid.shape_kji)
    assert [each.label for each in findings.segments] == ["Right lung", "Left lung"]
    for segment, mask in zip(findings.segments, (truth.right_lung, truth.left_lung), strict=True):
        side = segment.label.split()[0].lower()
        volume_ml = segment.mask.sum() * source.grid.voxel_mm3 / 1000
        assert volume_ml == pytest.approx(study.phantom.lung_volume_ml[side], rel=0.03)
        overlap = 2 * (segment.mask & mask).sum() / (segment.mask.sum() + mask.sum())
        assert overlap >= 0.95


@pytest.mark.slow
def test_every_nodule_is_found_where_it_is(study: WrittenCt) -> None:
    (series,) = read_series(study.files)
    source = volume_of(series.datasets)
    findings = analyse(model("chest-ct-nodules"), source, inputs_of(source.headers), quiet)
    centres = np.array(
        [
            each.region.centre_lps_mm
            for each in findings.detections
            if isinstance(each.region, Sphere)
        ]
    ).reshape(-1, 3)
    claimed = np.zeros(len(centres), dtype=bool)
    for nodule in study.phantom.nodules:
        away = np.linalg.norm(centres - nodule.centre_lps_mm, axis=1)
        assert away.min() <= 3.0, f"{nodule.diameter_mm:.0f} mm"
        claimed |= away <= nodule.diameter_mm / 2
    assert (~claimed).sum() <= 1


@pytest.mark.slow
def test_an_x_ray_with_a_nodule_is_told_from_the_same_without(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    loaded = model("chest-xray-nodule")
    bare = ChestPhantom(SEEDS[0], nodule_diameters_mm=())
    present = []
    for phantom in (bare, bare.with_nodules([26.0], 7)):
        exposure = chest_exposure(phantom, rows=320)
        folder = tmp_path_factory.mktemp("xray")
        written = write_xray(folder, phantom=phantom, exposure=exposure)
        (series,) = read_series([written.file])
        source = image_of(series.datasets[0])
        findings = analyse(loaded, source, inputs_of(source.headers), quiet)
        present += [each.present for each in findings.classifications]
    assert present == [False, True]
