"""Each voxel lies where the headers say, in any orientation, spacing and order, there and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from scipy.spatial.transform import Rotation

from dicomai.imaging import back, resample
from dicomai.imaging.back import Back
from dicomai.imaging.geometry import Grid
from dicomai.imaging.resample import resampling
from dicomai.imaging.volume import SourceVolume, volume_of
from dicomai.imaging.weights import axis_weights

TOLERANCE_MM = 0.01
AXES = ["HPL", "FAR", "LPH", "PHL", "LHA"]


@dataclass(frozen=True)
class Place:
    """Where a made series lies."""

    row: tuple[float, ...]
    column: tuple[float, ...]
    first: tuple[float, ...]
    spacing_kji: tuple[float, ...]
    shape_kji: tuple[int, ...]
    order: tuple[int, ...]


@st.composite
def places(draw: st.DrawFn) -> Place:
    seed = draw(st.integers(0, 2**32 - 1))
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    if draw(st.booleans()):
        turn = np.eye(3)[:, draw(st.permutations(range(3)))] * draw(
            st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)
        )
    spacing = st.floats(0.4, 4.0).map(lambda value: round(value, 3))
    shape = draw(st.tuples(st.integers(3, 7), st.integers(2, 7), st.integers(2, 7)))
    return Place(
        row=tuple(turn[:, 0]),
        column=tuple(turn[:, 1]),
        first=draw(st.tuples(*[st.floats(-60, 60).map(lambda value: round(value, 4))] * 3)),
        spacing_kji=draw(st.tuples(spacing, spacing, spacing)),
        shape_kji=shape,
        order=tuple(draw(st.permutations(range(shape[0])))),
    )


def loaded(make_series: Callable[..., list[Dataset]], place: Place) -> list[SourceVolume]:
    """The series whose voxels hold their own x, y and z."""
    return [
        volume_of(make_series(lambda lps, axis=axis: lps[..., axis], **vars(place)))
        for axis in range(3)
    ]


def coordinates(grid: Grid) -> npt.NDArray[np.float64]:
    return grid.lps_mm(np.moveaxis(np.indices(grid.shape_kji), 0, -1))


def inner(points: npt.NDArray[np.float64], grid: Grid, reach_kji: npt.NDArray[np.float64]):
    """Which points have all that they are interpolated from within a grid."""
    index = grid.kji(points)
    last = np.array(grid.shape_kji) - 1
    slack = 1e-6
    return ((index - reach_kji > -slack) & (index + reach_kji < last + slack)).all(axis=-1)


@settings(max_examples=60, deadline=None)
@given(place=places())
def test_every_voxel_holds_its_own_coordinates(
    make_series: Callable[..., list[Dataset]], place: Place
) -> None:
    volumes = loaded(make_series, place)
    found = np.stack([each.voxels for each in volumes], axis=-1)
    assert np.abs(found - coordinates(volumes[0].grid)).max() < TOLERANCE_MM
    uids = [header.SOPInstanceUID for header in volumes[0].headers]
    assert tuple(uids) == volumes[0].grid.sop_instance_uids


@settings(max_examples=60, deadline=None)
@given(
    place=places(),
    axes=st.sampled_from(AXES),
    spacing=st.tuples(*[st.floats(0.5, 4.0)] * 3),
)
def test_the_model_grid_and_the_way_back_are_exact(
    make_series: Callable[..., list[Dataset]],
    place: Place,
    axes: str,
    spacing: tuple[float, float, float],
) -> None:
    volumes = loaded(make_series, place)
    source = volumes[0].grid
    way = resampling(source, axes, spacing)
    model = way.model
    assert np.allclose(model.spacing_kji_mm, spacing)
    there = np.stack([way.to_model(each.voxels) for each in volumes], axis=-1)
    where = coordinates(model)
    of_source = [0.0, 0.0, 0.0]
    for axis, at in enumerate(way.axes):
        ratio = spacing[axis] / source.spacing_kji_mm[at]
        of_source[at] = ratio / 2 if ratio > 1 else 0
    within = inner(where, source, np.array(of_source))
    assert np.abs(there - where)[within].max(initial=0) < TOLERANCE_MM

    back = np.empty((3, *source.shape_kji))
    for (slab, *_), values, _ in Back(way).slabs(np.moveaxis(where, -1, 0).astype(np.float32)):
        back[:, slab] = values
    of_model = [
        max(0.0, source.spacing_kji_mm[at] / spacing[axis] / 2)
        if source.spacing_kji_mm[at] > spacing[axis]
        else 0.0
        for axis, at in enumerate(way.axes)
    ]
    points = coordinates(source)
    within = inner(points, model, np.array(of_model))
    off = np.abs(np.moveaxis(back, 0, -1) - points)
    assert off[within].max(initial=0) < TOLERANCE_MM


@settings(max_examples=30, deadline=None)
@given(
    place=places(),
    axes=st.sampled_from(AXES),
    spacing=st.none() | st.tuples(*[st.floats(0.5, 4.0)] * 3),
    high=st.lists(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3), max_size=3),
    thick=st.integers(1, 4),
    least=st.sampled_from([0.4, 1.0]),
)
def test_what_is_left_out_for_being_low_is_low(
    make_series: Callable[..., list[Dataset]],
    place: Place,
    axes: str,
    spacing: tuple[float, float, float] | None,
    high: list[tuple[float, float, float]],
    thick: int,
    least: float,
) -> None:
    way = resampling(volume_of(make_series(**vars(place))).grid, axes, spacing)
    model = np.full((1, *way.model.shape_kji), 0.1, dtype=np.float32)
    for at in high:
        model[0, *(np.array(at) * way.model.shape_kji).astype(int)] = 1
    whole = np.zeros(way.source.shape_kji)
    for where, values, _ in Back(way).slabs(model):
        whole[where] = values[0]
    once = way.axes[0] != 0
    parts = [model] if once else np.split(model, range(thick, model.shape[1], thick), axis=1)
    there = np.zeros(way.source.shape_kji)
    back = Back(way)
    for part in parts:
        for where, values, _ in back.slabs(part, least=least):
            there[where] = values[0]
    low = whole < least
    np.testing.assert_allclose(there[~low], whole[~low], rtol=1e-5)
    assert (there[low] < least).all()
    if not high:
        assert not there.any()


@pytest.mark.parametrize("axes", AXES)
def test_axes_run_where_their_letters_say(
    make_series: Callable[..., list[Dataset]], axes: str
) -> None:
    x, y, z = loaded(
        make_series,
        Place((0, -1, 0), (0, 0, -1), (9, 8, 7), (2, 1, 1.5), (5, 6, 7), (0, 1, 2, 3, 4)),
    )
    way = resampling(x.grid, axes, None)
    grows = {"L": (x, 1), "R": (x, -1), "P": (y, 1), "A": (y, -1), "H": (z, 1), "F": (z, -1)}
    for axis, letter in enumerate(axes):
        volume, sign = grows[letter]
        assert (np.diff(way.to_model(volume.voxels), axis=axis) * sign > 0).all()


def test_left_stays_left_in_a_prone_patient_who_lies_feet_first(
    make_series: Callable[..., list[Dataset]],
) -> None:
    left_only = make_series(
        lambda lps: np.where(lps[..., 0] > 0, 50.0, 0.0), row=(-1, 0, 0), first=(5, -3, 100)
    )
    way = resampling(volume_of(left_only).grid, "HPL", None)
    there = way.to_model(volume_of(left_only).voxels)
    bright = there > 25
    assert bright.any()
    np.testing.assert_array_equal(bright, coordinates(way.model)[..., 0] > 0)


def test_the_same_volume_as_highdicom_has_it(make_series: Callable[..., list[Dataset]]) -> None:
    ours = volume_of(make_series(row=(0.6, 0.8, 0), column=(0, 0, -1)))
    theirs = ours.volume
    for index in ((0, 0, 0), (4, 5, 6), (2, 0, 6)):
        point = theirs.map_indices_to_reference(np.array([index]))[0]
        np.testing.assert_allclose(point, ours.grid.lps_mm(index), atol=1e-9)
    assert theirs.frame_of_reference_uid == ours.grid.frame_of_reference_uid


@pytest.mark.parametrize(("size", "new", "step"), [(9, 4, 2.3), (5, 11, 0.5), (4, 9, 3.0)])
def test_weights_sum_to_one(size: int, new: int, step: float) -> None:
    weights = axis_weights(size, new, step)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert (weights >= 0).all()


def test_slabs_make_the_whole(
    make_series: Callable[..., list[Dataset]], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = volume_of(make_series(shape_kji=(11, 6, 7)))
    way = resampling(volume.grid, "PHL", (1.0, 2.0, 3.0))
    channels = np.random.default_rng(0).random((2, *way.model.shape_kji), dtype=np.float32)
    whole = np.concatenate([values for _, values, _ in Back(way).slabs(channels)], axis=1)
    there = way.to_model(volume.voxels)
    for module in (resample, back):
        monkeypatch.setattr(module, "SLAB_VOXELS", 200)
    parts = list(Back(way).slabs(channels))
    assert len(parts) > 2
    np.testing.assert_allclose(np.concatenate([v for _, v, _ in parts], axis=1), whole, rtol=1e-6)
    np.testing.assert_allclose(way.to_model(volume.voxels), there, rtol=1e-6)
    high = float(whole[0, :3].max())
    passed = [slab for slab, *_ in Back(way).slabs(channels, lambda part: part.max() > 2)]
    assert high < 2
    assert passed == []
