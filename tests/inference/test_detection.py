"""Each thing found is told with its place in the patient, its size and its probability."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from dicomai.imaging.volume import SourceVolume
from dicomai.inference.pipeline import analyse
from dicomai.models.runtimes.torch_runtime import LoadedModel

Teller = Callable[[str], LoadedModel]
Body = Callable[..., SourceVolume]
Ball = Callable[..., npt.NDArray[np.bool_]]

NODULES = [((31.2, -12.7, 8.4), 9.0, 300.0), ((-25.6, 14.3, -20.1), 6.0, 60.0)]
"""Centre, radius, value."""
DETECT = """
[[output]]
kind = "detection"
label = "Nodule"
finding = { value = "27925004", scheme = "SCT", meaning = "Nodule" }
category = { value = "49755003", scheme = "SCT", meaning = "Morphologically Abnormal Structure" }
site = { value = "39607008", scheme = "SCT", meaning = "Lung" }
[measure]
detection = ["volume", "diameter", "longest_diameter", "mean"]
"""


def silent(stage: str, fraction: float) -> None:
    del stage, fraction


@pytest.fixture
def source(make_body: Body, in_ball: Ball) -> SourceVolume:
    def values(lps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        out = np.full(lps.shape[:-1], -800.0)
        for centre, radius, value in NODULES:
            out[in_ball(lps, centre, radius)] = value
        return out

    return make_body(values, spacing_kji=(1.5, 1.0, 1.0), extent_mm=84)


@pytest.fixture
def manifest(volume_manifest: str) -> str:
    return volume_manifest.replace("[4.0, 4.0, 4.0]", "[1.5, 1.5, 1.5]").replace(
        "[-2000.0, -380.0]", "[-370.0, 2000.0]"
    )


def test_a_nodule_lies_where_it_was_put(
    teller: Teller, source: SourceVolume, manifest: str
) -> None:
    found = analyse(teller(manifest + DETECT), source, (), silent)
    assert [each.label for each in found.detections] == ["Nodule 1", "Nodule 2"]
    assert len({each.tracking_id for each in found.detections}) == 2
    for each, (centre, radius, value) in zip(found.detections, NODULES, strict=True):
        assert np.linalg.norm(np.array(each.region.centre_lps_mm) - centre) < 0.2
        assert each.region.diameter_mm == pytest.approx(2 * radius, rel=0.04)
        volume, diameter, longest, mean = each.measurements
        assert volume.value == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.1)
        assert diameter.value == each.region.diameter_mm
        assert diameter.value <= longest.value < 2 * radius + 2
        assert mean.value == pytest.approx(value, rel=0.2)
        assert each.mask.sum() * source.grid.voxel_mm3 / 1000 == pytest.approx(volume.value)
        assert each.finding.meaning == "Nodule"
    sure, unsure = (each.probability for each in found.detections)
    assert 0.5 < unsure <= sure <= 1


def test_windows_find_the_same_as_the_whole(
    teller: Teller, source: SourceVolume, manifest: str
) -> None:
    whole = analyse(teller(manifest + DETECT), source, (), silent).detections
    windows = manifest.replace(
        'inferer = "whole"',
        'inferer = "sliding_window"\nwindow_kji = [24, 24, 24]\nbatch = 3\n'
        "only_where = { between = [-900, -700], fraction = 0.05 }",
    )
    parts = analyse(teller(windows + DETECT), source, (), silent).detections
    assert [each.region for each in parts] == [each.region for each in whole]


def test_small_and_surplus_findings_are_left_out(
    teller: Teller, source: SourceVolume, manifest: str
) -> None:
    few = analyse(
        teller(f"{manifest}\n[postprocess]\nmax_findings = 1\n{DETECT}"), source, (), silent
    )
    assert len(few.detections) == 1
    assert few.warnings == ("Nodule: 2 were found; the 1 most probable are told.",)
    large = DETECT.replace("[measure]", "min_diameter_mm = 15\nmask = false\n[measure]")
    (only,) = analyse(teller(manifest + large), source, (), silent).detections
    assert only.region.diameter_mm > 15
    assert only.mask is None


def test_the_mean_probability_is_below_the_largest(
    teller: Teller, source: SourceVolume, manifest: str
) -> None:
    mean = DETECT.replace("[measure]", 'score = "mean"\n[measure]')
    highest = analyse(teller(manifest + DETECT), source, (), silent).detections
    average = analyse(teller(manifest + mean), source, (), silent).detections
    assert all(a.probability < h.probability for a, h in zip(average, highest, strict=True))


def test_a_healthy_lung_has_no_findings(teller: Teller, make_body: Body, manifest: str) -> None:
    source = make_body(lambda lps: np.full(lps.shape[:-1], -800.0))
    found = analyse(teller(manifest + DETECT), source, (), silent)
    assert found.nothing_found
    assert found.detections == ()
