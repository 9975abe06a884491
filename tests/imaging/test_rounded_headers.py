"""Positions with one decimal and directions with three are taken, and nothing else for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from scipy.spatial.transform import Rotation

from dicomai.errors import InputError
from dicomai.imaging.volume import SourceVolume, volume_of

Maker = Callable[..., list[Dataset]]
Vector = npt.NDArray[np.float64]

ROUNDED_MM = 0.05 * np.sqrt(3)
"""How far a position with one decimal may be from the truth."""
ROUNDED_COSINE = 0.0005 * np.sqrt(3)
TURNS = st.integers(0, 2**32 - 1).map(
    lambda seed: Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
)


def positions_of(slices: Sequence[Dataset]) -> Vector:
    return np.array([each.ImagePositionPatient for each in slices], dtype=np.float64)


def rounded(slices: list[Dataset]) -> list[Dataset]:
    for each in slices:
        each.ImagePositionPatient = [f"{float(part):.1f}" for part in each.ImagePositionPatient]
    return slices


def with_cosines(slices: list[Dataset], cosines: Sequence[Sequence[float]]) -> list[Dataset]:
    for each, own in zip(slices, cosines, strict=True):
        del each.ImageOrientationPatient  # they share the element
        each.ImageOrientationPatient = [f"{part:.3f}" for part in own]
    return slices


def farthest_mm(volume: SourceVolume, truth: Callable[[float, float, float], Vector]) -> float:
    """How far a corner lies from the truth."""
    depth, height, width = volume.grid.shape_kji
    return max(
        float(np.linalg.norm(volume.grid.lps_mm((k, j, i)) - truth(k, j, i)))
        for k in (0, depth // 2, depth - 1)
        for j in (0, height - 1)
        for i in (0, width - 1)
    )


@settings(max_examples=50, deadline=None)
@given(
    turn=TURNS,
    first=st.tuples(*[st.floats(-200, 200)] * 3),
    step=st.floats(0.7, 6),
    depth=st.integers(3, 60),
)
def test_an_oblique_stack_of_rounded_positions_lies_straight_within_the_rounding(
    make_series: Maker,
    turn: Vector,
    first: tuple[float, float, float],
    step: float,
    depth: int,
) -> None:
    spacing, shape = (step, 1.0, 1.5), (depth, 6, 7)
    slices = make_series(
        row=turn[:, 0], column=turn[:, 1], first=first, spacing_kji=spacing, shape_kji=shape
    )
    volume = volume_of(rounded(slices))
    assert not any("tilt" in each for each in volume.warnings)
    assert volume.grid.tilt_ji == pytest.approx((0, 0), abs=1e-9)
    off = farthest_mm(
        volume,
        lambda k, j, i: first + turn[:, 2] * step * k + turn[:, 1] * j + turn[:, 0] * 1.5 * i,
    )
    assert off < ROUNDED_MM * 1.25  # two ends of a line, where each is off its own way


def test_decimals_that_were_binary_numbers_on_their_way_are_decimals(make_series: Maker) -> None:
    for seed in range(30):
        turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
        slices = make_series(
            row=turn[:, 0], column=turn[:, 1], first=(-213.37, 187.21, 903.4), shape_kji=(40, 3, 3)
        )
        for each in rounded(slices):
            narrow = np.float32([float(part) for part in each.ImagePositionPatient])
            each.ImagePositionPatient = [f"{float(part):.9f}"[:16] for part in narrow]
        assert not any("tilt" in each for each in volume_of(slices).warnings)


@settings(max_examples=20, deadline=None)
@given(turn=TURNS, degrees=st.floats(0.5, 30), depth=st.integers(30, 60))
def test_a_tilt_is_found_in_rounded_positions(
    make_series: Maker, turn: Vector, degrees: float, depth: int
) -> None:
    slices = make_series(
        row=turn[:, 0],
        column=turn[:, 1],
        spacing_kji=(3.0, 1.0, 1.0),
        shape_kji=(depth, 6, 7),
        tilt_ji_mm=(3.0 * np.tan(np.radians(degrees)), 0.0),
    )
    truth = positions_of(slices)
    volume = volume_of(rounded(slices))
    (told,) = (each for each in volume.warnings if "gantry tilt" in each)
    assert float(told.split("tilt of ")[1].split("°")[0]) == pytest.approx(degrees, abs=0.2)
    placed = volume.grid.lps_mm([(k, 0, 0) for k in range(depth)])
    assert np.linalg.norm(placed - truth, axis=1).max() < ROUNDED_MM * 1.25


@settings(max_examples=30, deadline=None)
@given(turn=TURNS, depth=st.integers(5, 30), data=st.data())
def test_what_rounding_does_not_explain_is_still_found(
    make_series: Maker, turn: Vector, depth: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, depth - 2))
    axis, words = data.draw(
        st.sampled_from([(2, "is unevenly spaced"), (0, "stacked straight"), (1, "not stacked")])
    )
    slices = make_series(
        row=turn[:, 0], column=turn[:, 1], spacing_kji=(2.0, 1, 1), shape_kji=(depth, 6, 7)
    )
    moved = positions_of(slices)[at] + turn[:, axis] * 0.45
    del slices[at].ImagePositionPatient
    slices[at].ImagePositionPatient = [f"{part:.6f}" for part in moved]
    with pytest.raises(InputError, match=words):
        volume_of(rounded(slices))


@pytest.mark.parametrize("step", [0.25, 0.3, 0.5, 1.0])
def test_a_missing_slice_is_none_that_was_rounded(make_series: Maker, step: float) -> None:
    for seed in range(20):
        turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
        slices = make_series(
            row=turn[:, 0], column=turn[:, 1], spacing_kji=(step, 1, 1), shape_kji=(40, 3, 3)
        )
        del slices[17]
        with pytest.raises(InputError):
            volume_of(rounded(slices))


def test_positions_of_more_decimals_are_held_to_them(make_series: Maker) -> None:
    turn = Rotation.from_euler("xyz", [20, 30, 40], degrees=True).as_matrix()
    slices = make_series(row=turn[:, 0], column=turn[:, 1], shape_kji=(12, 6, 7))
    moved = positions_of(slices)[5] + turn[:, 0] * 0.1
    slices[5].ImagePositionPatient = [f"{part:.6f}" for part in moved]
    with pytest.raises(InputError, match=r"is shifted 0\.1 mm sideways"):
        volume_of(slices)


@settings(max_examples=50, deadline=None)
@given(turn=TURNS, seed=st.integers(0, 2**32 - 1), depth=st.integers(3, 100))
def test_directions_of_three_decimals_are_taken_though_they_differ_in_the_last(
    make_series: Maker, turn: Vector, seed: int, depth: int
) -> None:
    spacing, shape = (1.0, 100.0, 100.0), (depth, 5, 6)  # 400 by 500 mm
    slices = make_series(
        row=turn[:, 0], column=turn[:, 1], first=(0, 0, 0), spacing_kji=spacing, shape_kji=shape
    )
    # Some computation left noise, so that what lies half way is rounded now up and now down.
    noise = np.random.default_rng(seed).uniform(-2e-5, 2e-5, (depth, 6))
    volume = volume_of(with_cosines(slices, np.concatenate((turn[:, 0], turn[:, 1])) + noise))
    assert not any("tilt" in each for each in volume.warnings)
    off = farthest_mm(
        volume, lambda k, j, i: turn[:, 2] * k + turn[:, 1] * 100 * j + turn[:, 0] * 100 * i
    )
    assert off < ROUNDED_COSINE * (400 + 500)
    steps = volume.grid.index_to_lps[:3, 1:3]
    np.testing.assert_allclose(steps.T @ steps, np.eye(2) * 1e4, atol=1e-6)
    placed = volume.grid.lps_mm([(k, 0, 0) for k in range(depth)])
    assert np.linalg.norm(placed - positions_of(volume.headers), axis=1).max() < 0.06


def test_axial_slices_that_differ_in_the_last_of_three_decimals_are_taken(
    make_series: Maker,
) -> None:
    slices = make_series(shape_kji=(5, 512, 512), spacing_kji=(2.5, 0.8, 0.8))
    plain, turned = (1, 0, 0, 0, 1, 0), (1, 0.001, 0, -0.001, 1, 0)
    volume = volume_of(with_cosines(slices, [plain, plain, turned, plain, plain]))
    (told,) = volume.warnings
    # 0.8 of 0.001, for the grid is turned by a fifth, over 511 pixels each way.
    assert f"a corner of object {volume.headers[2].SOPInstanceUID} lies 0.5 mm off the grid" in told


@pytest.mark.parametrize("cosine", [0.002, 0.0008])
def test_directions_that_differ_by_more_than_their_rounding_are_refused(
    make_series: Maker, cosine: float
) -> None:
    slices = make_series(shape_kji=(5, 512, 512), spacing_kji=(2.5, 0.8, 0.8))
    del slices[2].ImageOrientationPatient
    slices[2].ImageOrientationPatient = [1, cosine, 0, -cosine, 1, 0]
    with pytest.raises(InputError, match=r"turned against each other|is turned by 0\.1°"):
        volume_of(slices)
