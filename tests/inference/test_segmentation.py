"""Masks come back to where the anatomy lies, and left is the patient's left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dicomai.errors import ConfigError
from dicomai.findings import Mask
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.measure import centre_lps_mm
from dicomai.inference.pipeline import analyse
from dicomai.models.runtimes.torch_runtime import LoadedModel

Teller = Callable[[str], LoadedModel]
Body = Callable[..., SourceVolume]
Ball = Callable[..., npt.NDArray[np.bool_]]

SIDES = """
[postprocess]
split_sides = true
min_volume_ml = 0.2
[[output]]
kind = "segment"
label = "Left lung"
laterality = "left"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "39607008", scheme = "SCT", meaning = "Lung" }
[[output]]
kind = "segment"
label = "Right lung"
laterality = "right"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "39607008", scheme = "SCT", meaning = "Lung" }
[measure]
segment = ["volume", "mean", "longest_diameter"]
"""
ONE = """
[[output]]
kind = "segment"
label = "Air"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "39607008", scheme = "SCT", meaning = "Lung" }
"""
LEFT, RIGHT = (38.0, 5.0, 10.0), (-36.0, 5.0, 0.0)
LEFT_RADIUS, RIGHT_RADIUS = 22.0, 28.0

# rows and columns of: axial, prone feet first, sagittal, coronal, axial seen from the head
PLANES = [
    ((1, 0, 0), (0, 1, 0)),
    ((-1, 0, 0), (0, 1, 0)),
    ((0, 1, 0), (0, 0, -1)),
    ((1, 0, 0), (0, 0, -1)),
    ((-1, 0, 0), (0, -1, 0)),
]


def silent(stage: str, fraction: float) -> None:
    del stage, fraction


def ball_ml(radius: float) -> float:
    return 4 / 3 * np.pi * radius**3 / 1000


def dice(one: Mask, other: Mask) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def lungs(in_ball: Ball) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    def values(lps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        inside = in_ball(lps, LEFT, LEFT_RADIUS) | in_ball(lps, RIGHT, RIGHT_RADIUS)
        return np.where(inside, -800.0, 40.0)

    return values


@pytest.mark.parametrize(("row", "column"), PLANES)
def test_each_side_is_the_patients_own_in_every_plane(
    teller: Teller,
    make_body: Body,
    in_ball: Ball,
    volume_manifest: str,
    row: tuple[float, float, float],
    column: tuple[float, float, float],
) -> None:
    source = make_body(lungs(in_ball), row=row, column=column)
    found = analyse(teller(volume_manifest + SIDES), source, (), silent)
    left, right = found.segments
    assert (left.laterality.meaning, right.laterality.meaning) == ("Left", "Right")
    lps = source.grid.lps_mm(np.moveaxis(np.indices(source.grid.shape_kji), 0, -1))
    assert dice(left.mask, in_ball(lps, LEFT, LEFT_RADIUS)) > 0.97
    assert dice(right.mask, in_ball(lps, RIGHT, RIGHT_RADIUS)) > 0.97
    for segment, radius, place in ((left, LEFT_RADIUS, LEFT), (right, RIGHT_RADIUS, RIGHT)):
        volume, mean, longest = segment.measurements
        assert volume.value == pytest.approx(ball_ml(radius), rel=0.03)
        assert volume.unit.value == "mL"
        assert mean.value == pytest.approx(-800, abs=25)
        assert mean.unit.value == "[hnsf'U]"
        assert longest.value == pytest.approx(2 * radius, rel=0.05)
        cut = tuple(slice(0, size) for size in source.grid.shape_kji)
        centre = centre_lps_mm(segment.mask, cut, source.grid)
        assert np.linalg.norm(np.array(centre) - place) < 0.3
    assert not found.nothing_found
    assert found.stages_s.keys() == {"preprocess", "infer", "postprocess", "measure"}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spacing=st.tuples(*[st.floats(1.5, 4.0)] * 3),
)
def test_a_ball_stays_in_its_place_however_the_series_lies(
    teller: Teller,
    make_body: Body,
    in_ball: Ball,
    volume_manifest: str,
    seed: int,
    spacing: tuple[float, float, float],
) -> None:
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    source = make_body(
        lambda lps: np.where(in_ball(lps, (20, -10, 5), 18.0), -800.0, 40.0),
        row=tuple(turn[:, 0]),
        column=tuple(turn[:, 1]),
        spacing_kji=spacing,
        extent_mm=110.0,
    )
    (segment,) = analyse(teller(volume_manifest + ONE), source, (), silent).segments
    cut = tuple(slice(0, size) for size in source.grid.shape_kji)
    centre = centre_lps_mm(segment.mask, cut, source.grid)
    assert np.linalg.norm(np.array(centre) - (20, -10, 5)) < 0.6
    lps = source.grid.lps_mm(np.moveaxis(np.indices(source.grid.shape_kji), 0, -1))
    assert dice(segment.mask, in_ball(lps, (20, -10, 5), 18.0)) > 0.94


def test_lungs_that_touch_are_parted_with_a_warning(
    teller: Teller, make_body: Body, in_ball: Ball, volume_manifest: str
) -> None:
    def joined(lps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        bridge = (np.abs(lps[..., 0]) < 40) & (np.linalg.norm(lps[..., 1:], axis=-1) < 7)
        return np.where(bridge, -800.0, lungs(in_ball)(lps))

    found = analyse(teller(volume_manifest + SIDES), make_body(joined), (), silent)
    left, right = (segment.measurements[0].value for segment in found.segments)
    assert left == pytest.approx(ball_ml(LEFT_RADIUS), rel=0.1)
    assert right == pytest.approx(ball_ml(RIGHT_RADIUS), rel=0.1)
    assert any("joined" in warning for warning in found.warnings)
    assert not (found.segments[0].mask & found.segments[1].mask).any()


def test_one_lung_alone_keeps_its_side_with_a_warning(
    teller: Teller, make_body: Body, in_ball: Ball, volume_manifest: str
) -> None:
    source = make_body(lambda lps: np.where(in_ball(lps, LEFT, LEFT_RADIUS), -800.0, 40.0))
    found = analyse(teller(volume_manifest + SIDES), source, (), silent)
    left, right = found.segments
    assert left.mask.any()
    assert not right.mask.any()
    assert right.measurements == ()
    assert any("Only one side was found" in warning for warning in found.warnings)


def test_nothing_found_is_a_finding_too(
    teller: Teller, make_body: Body, volume_manifest: str
) -> None:
    source = make_body(lambda lps: np.full(lps.shape[:-1], 40.0))
    found = analyse(teller(volume_manifest + SIDES), source, (), silent)
    assert found.nothing_found
    assert [segment.mask.shape for segment in found.segments] == [source.grid.shape_kji] * 2
    assert found.sought == "What the test put there"


def test_small_components_and_all_but_the_largest_are_dropped(
    teller: Teller, make_body: Body, in_ball: Ball, volume_manifest: str
) -> None:
    balls = [((40.0, 0.0, 0.0), 20.0), ((-40.0, 0.0, 0.0), 14.0), ((0.0, 45.0, 0.0), 8.0)]
    source = make_body(
        lambda lps: np.where(
            np.any([in_ball(lps, centre, radius) for centre, radius in balls], axis=0), -800.0, 40.0
        )
    )

    def volume(rules: str) -> float:
        model = teller(f"{volume_manifest}\n[postprocess]\n{rules}\n{ONE}")
        (segment,) = analyse(model, source, (), silent).segments
        return float(segment.mask.sum()) * source.grid.voxel_mm3 / 1000

    everything = volume("")
    assert everything == pytest.approx(sum(ball_ml(radius) for _, radius in balls), rel=0.06)
    assert volume("largest = 2") == pytest.approx(ball_ml(20) + ball_ml(14), rel=0.06)
    assert volume("min_volume_ml = 20") == pytest.approx(ball_ml(20), rel=0.06)


def test_holes_are_filled_where_the_manifest_says_so(
    teller: Teller, make_body: Body, in_ball: Ball, volume_manifest: str
) -> None:
    source = make_body(
        lambda lps: np.where(
            in_ball(lps, (0, 0, 0), 30.0) & ~in_ball(lps, (0, 0, 0), 10.0), -800.0, 40.0
        )
    )
    with_hole = analyse(teller(volume_manifest + ONE), source, (), silent).segments[0].mask
    rules = f"{volume_manifest}\n[postprocess]\nfill_holes = true\n{ONE}"
    without = analyse(teller(rules), source, (), silent).segments[0].mask
    centre = tuple(size // 2 for size in source.grid.shape_kji)
    assert not with_hole[centre]
    assert without[centre]
    assert (without & with_hole == with_hole).all()


def test_argmax_gives_each_voxel_to_one_channel(
    teller: Teller, make_body: Body, in_ball: Ball, volume_manifest: str
) -> None:
    source = make_body(
        lambda lps: np.where(
            in_ball(lps, LEFT, 20.0), -800.0, np.where(in_ball(lps, RIGHT, 20.0), 600.0, 40.0)
        )
    )
    manifest = volume_manifest.replace("sigmoid", "softmax").replace(
        "[-2000.0, -380.0]", "[-380.0, 320.0, -2000.0, -380.0, 320.0, 2000.0]"
    )
    outputs = ONE + "channel = 1\n" + ONE.replace('"Air"', '"Bone"') + "channel = 2\n"
    model = teller(f'{manifest}\n[postprocess]\ndecide = "argmax"\n{outputs}')
    air, bone = (segment.mask for segment in analyse(model, source, (), silent).segments)
    assert not (air & bone).any()
    lps = source.grid.lps_mm(np.moveaxis(np.indices(source.grid.shape_kji), 0, -1))
    assert dice(air, in_ball(lps, LEFT, 20.0)) > 0.95
    assert dice(bone, in_ball(lps, RIGHT, 20.0)) > 0.95


def test_probabilities_are_kept_only_where_somebody_asks_and_all_else_is_the_same(
    teller: Teller, make_body: Body, in_ball: Ball, volume_manifest: str
) -> None:
    source = make_body(lambda lps: np.where(in_ball(lps, LEFT, 20.0), -800.0, 40.0))
    rules = "\n[postprocess]\nfill_holes = true\nlargest = 1\n"
    model = teller(f"{volume_manifest}{rules}{ONE}channel = 0\n")
    (with_them,) = analyse(model, source, (), silent).segments
    (without,) = analyse(model, source, (), silent, probabilities=False).segments
    assert with_them.probability is not None
    assert len(with_them.probability) == with_them.mask.sum() > 0
    assert without.probability is None
    assert np.array_equal(without.mask, with_them.mask)
    assert without.measurements == with_them.measurements


def test_what_the_network_gives_must_fit_the_manifest(
    teller: Teller, make_body: Body, volume_manifest: str
) -> None:
    source = make_body(lambda lps: lps[..., 0])
    with pytest.raises(ConfigError, match=r"gives \(1, 1, 128, 128, 128\) .* names 4 channels"):
        teller(volume_manifest + ONE + "channel = 3\n")
    broken = volume_manifest.replace('"bands"', '"broken"').replace("bands = [-2000.0, -380.0]", "")
    with pytest.raises(ConfigError, match=r"not finite with precision float32\. Take another"):
        analyse(teller(broken + ONE), source, (), silent)


def test_no_mean_is_measured_where_values_have_no_unit(
    teller: Teller, make_body: Body, in_ball: Ball, volume_manifest: str
) -> None:
    source = make_body(lungs(in_ball), modality="MR")
    found = analyse(teller(volume_manifest + SIDES), source, (), silent)
    assert [len(segment.measurements) for segment in found.segments] == [2, 2]
    assert found.deviations == ("The mean was not measured: values of modality MR have no unit.",)


def test_progress_names_each_stage_in_order(
    teller: Teller, make_body: Body, in_ball: Ball, volume_manifest: str
) -> None:
    told: list[tuple[str, float]] = []
    source = make_body(lungs(in_ball))
    analyse(
        teller(volume_manifest + SIDES), source, (), lambda stage, part: told.append((stage, part))
    )
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == ["preprocess", "infer", "postprocess", "measure"]
    assert all(0 <= part <= 1 for _, part in told)
