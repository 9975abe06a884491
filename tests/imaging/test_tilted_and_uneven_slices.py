"""Tilted and unevenly spaced slices: straight for the model, and results in their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from scipy.spatial.transform import Rotation

from dicomai.errors import InputError
from dicomai.imaging.back import Back
from dicomai.imaging.geometry import Grid
from dicomai.imaging.intake import Intake
from dicomai.imaging.resample import resampling
from dicomai.imaging.stack import POSITION_TOLERANCE_MM
from dicomai.imaging.volume import SourceVolume, volume_of
from dicomai.inference.measure import centre_lps_mm, volume_ml, voxel_count

TOLERANCE_MM = 0.01
LEAST_TILT_MM = 2 * POSITION_TOLERANCE_MM
"""For a step of usual length: so the last slice lies outside the tolerance."""
LEAST_OFF_MM = 1.1 * POSITION_TOLERANCE_MM
"""From an even spacing: slices that lie nearer count as even, and the reader is told so."""
ANY = Intake(uneven_mm=100.0)
Maker = Callable[..., list[Dataset]]
Sample = Callable[[str], tuple[Dataset, ...]]


@dataclass(frozen=True)
class Place:
    """Where a made series lies."""

    row: tuple[float, ...]
    column: tuple[float, ...]
    first: tuple[float, ...]
    spacing_kji: tuple[float, ...]
    shape_kji: tuple[int, ...]
    order: tuple[int, ...]
    tilt_ji_mm: tuple[float, ...]
    steps: tuple[float, ...] | None


def uneven_mm(steps: tuple[float, ...]) -> float:
    """How far steps of 1 mm lie from the even ones between the first and the last."""
    return float(np.abs(np.array(steps) - np.linspace(0, steps[-1], len(steps))).max())


@st.composite
def places(draw: st.DrawFn) -> Place:
    seed = draw(st.integers(0, 2**32 - 1))
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    between = round(draw(st.floats(0.8, 3.0)), 3)
    in_plane = st.floats(0.4, 2.0).map(lambda value: round(value, 3))
    # Up to 30 degrees, as gantries tilt; sometimes along the rows too.
    most = between * 0.4
    # What lies within the tolerance of positions counts as straight.
    tilts = st.tuples(*[st.floats(-most, most).map(lambda value: round(value, 3))] * 2)
    tilt = draw(st.just((0.0, 0.0)) | tilts.filter(lambda ji: math.hypot(*ji) > LEAST_TILT_MM))
    depth = draw(st.integers(3, 6))
    gap = st.floats(0.5, 2.5).map(lambda value: round(value, 3))
    gaps = st.lists(gap, min_size=depth - 1, max_size=depth - 1)
    placed = gaps.map(lambda each: (0.0, *np.cumsum(each).tolist()))
    steps = draw(st.none() | placed.filter(lambda each: uneven_mm(each) * between > LEAST_OFF_MM))
    return Place(
        row=tuple(turn[:, 0]),
        column=tuple(turn[:, 1]),
        first=draw(st.tuples(*[st.floats(-30, 30).map(lambda value: round(value, 4))] * 3)),
        spacing_kji=(between, draw(in_plane), draw(in_plane)),
        shape_kji=(depth, 16, 14),
        order=tuple(draw(st.permutations(range(depth)))),
        tilt_ji_mm=tilt,
        steps=steps,
    )


def loaded(make_series: Maker, place: Place) -> list[SourceVolume]:
    """The series whose voxels hold their own x, y and z."""
    return [
        volume_of(make_series(lambda lps, axis=axis: lps[..., axis], **vars(place)), ANY)
        for axis in range(3)
    ]


def coordinates(grid: Grid) -> npt.NDArray[np.float64]:
    return grid.lps_mm(np.moveaxis(np.indices(grid.shape_kji), 0, -1))


@settings(max_examples=25, deadline=None)
@given(place=places())
def test_every_voxel_holds_its_own_coordinates(make_series: Maker, place: Place) -> None:
    volumes = loaded(make_series, place)
    grid = volumes[0].grid
    found = np.stack([each.voxels for each in volumes], axis=-1)
    assert np.abs(found - coordinates(grid)).max() < TOLERANCE_MM
    index = np.moveaxis(np.indices(grid.shape_kji), 0, -1)
    np.testing.assert_allclose(grid.kji(coordinates(grid)), index, atol=1e-6)
    for k, uid in enumerate(grid.sop_instance_uids):
        (header,) = (each for each in volumes[0].headers if each.SOPInstanceUID == uid)
        position = np.array(header.ImagePositionPatient, dtype=float)
        assert np.linalg.norm(grid.lps_mm((k, 0, 0)) - position) < TOLERANCE_MM


@settings(max_examples=25, deadline=None)
@given(
    place=places(),
    axes=st.sampled_from(["HPL", "FAR", "PHL", "LHA"]),
    spacing=st.tuples(*[st.floats(0.5, 2.5)] * 3),
)
def test_the_model_grid_and_the_way_back_are_exact(
    make_series: Maker, place: Place, axes: str, spacing: tuple[float, float, float]
) -> None:
    volumes = loaded(make_series, place)
    source = volumes[0].grid
    way = resampling(source, axes, spacing)
    steps = way.model.index_to_lps[:3, :3]
    angles = steps.T @ steps
    np.testing.assert_allclose(angles, np.diag(np.diag(angles)), atol=1e-9)  # rectangular
    there = np.stack([way.to_model(each.voxels) for each in volumes], axis=-1)
    where = coordinates(way.model)
    # Everything within a voxel of the model, and the slices beside, must lie within the slices.
    reach = max(spacing) * np.sqrt(3) / 2 + max(place.spacing_kji[0] * 2.5, 0)
    normal = np.cross(place.row, place.column)
    corners = where[..., None, :] + np.array(
        [
            a * normal * max(spacing) / 2 * np.sqrt(3)
            + b * np.array(place.row) * reach
            + c * np.array(place.column) * reach
            for a in (-1, 1)
            for b in (-1, 1)
            for c in (-1, 1)
        ]
    )
    index = source.kji(corners)
    last = np.array(source.shape_kji) - 1
    within = ((index > -1e-6) & (index < last + 1e-6)).all(axis=(-1, -2))
    assert np.abs(there - where)[within].max(initial=0) < TOLERANCE_MM

    back = np.empty((3, *source.shape_kji))
    for (slab, *_), values, _ in Back(way).slabs(np.moveaxis(where, -1, 0).astype(np.float32)):
        back[:, slab] = values
    points = coordinates(source)
    index = way.model.kji(points)
    # The model's edge goes on beyond its last voxel, so what lies there is not asked for; where
    # the model is finer than the source, a source voxel is the mean of several of its voxels.
    margin = np.maximum(max(place.spacing_kji) * 2.5 / np.array(spacing), 1.0)
    inside = ((index >= margin) & (index <= np.array(way.model.shape_kji) - 1 - margin)).all(-1)
    off = np.abs(np.moveaxis(back, 0, -1) - points)
    assert off[inside].max(initial=0) < TOLERANCE_MM


def test_masks_of_a_tilted_ball_lie_on_its_slices(make_series: Maker) -> None:
    centre, radius = np.array([3.0, 4.0, 118.0]), 9.0
    slices = make_series(
        lambda lps: np.where(np.linalg.norm(lps - centre, axis=-1) < radius, 50.0, 0.0),
        first=(-18.0, -20.0, 100.0),
        spacing_kji=(2.0, 1.0, 1.0),
        shape_kji=(19, 40, 44),
        tilt_ji_mm=(0.5, 0.0),
    )
    volume = volume_of(slices)
    way = resampling(volume.grid, "HPL", (1.0, 1.0, 1.0))
    model = way.to_model(volume.voxels) / 50
    mask = np.concatenate([values[0] > 0.5 for _, values, _ in Back(way).slabs(model[None])])
    truth = volume.voxels > 25
    off = np.argwhere(mask != truth)
    distance = np.linalg.norm(volume.grid.lps_mm(off) - centre, axis=-1)
    assert np.abs(distance - radius).max(initial=0) < 1.0  # half a slice
    found = centre_lps_mm(mask, (slice(0, 19), slice(0, 40), slice(0, 44)), volume.grid)
    assert np.linalg.norm(np.array(found) - centre) < 0.2
    assert volume_ml(voxel_count(mask, volume.grid), volume.grid) * 1000 == pytest.approx(
        4 / 3 * np.pi * radius**3, rel=0.03
    )


def test_left_stays_left_on_tilted_slices(make_series: Maker) -> None:
    slices = make_series(
        lambda lps: np.where(lps[..., 0] > 0, 50.0, 0.0),
        row=(-1, 0, 0),
        first=(5, -3, 100),
        tilt_ji_mm=(1.0, 0.0),
    )
    volume = volume_of(slices)
    way = resampling(volume.grid, "HPL", None)
    left = coordinates(way.model)[..., 0] > 0
    bright = way.to_model(volume.voxels) > 25
    assert bright.any()
    assert not (bright & ~left).any()
    back = np.concatenate([values[0] for _, values, _ in Back(way).slabs(left[None].astype("f4"))])
    np.testing.assert_array_equal(back > 0.5, coordinates(volume.grid)[..., 0] > 0)


def test_what_no_tilted_slice_covers_has_the_lowest_value(make_series: Maker) -> None:
    slices = make_series(
        lambda lps: 80 + lps[..., 1] * 0, tilt_ji_mm=(1.5, 0.0), shape_kji=(5, 6, 7)
    )
    for each in slices:
        pixels = np.frombuffer(each.PixelData, "<i2").copy()
        pixels[0] = -20000
        each.PixelData = pixels.tobytes()
    volume = volume_of(slices)
    model = resampling(volume.grid, "HPL", None).to_model(volume.voxels)
    assert model.shape == (5, 12, 7)  # 6 mm further at the last slice, rows are 1 mm apart
    assert model[0, 7:].max() == volume.voxels.min() == -100
    assert model[4, :5].max() == -100
    assert (model[2] == 80).sum() > 30


@pytest.mark.parametrize(
    ("name", "degrees"), [("bad-gantry-tilt.tar.xz", "14.0°"), ("ct-philips-tilt.tar.xz", "18.5°")]
)
def test_slices_of_real_tilted_gantries_lie_where_they_say(
    name: str, degrees: str, sample_series: Sample
) -> None:
    volume = volume_of(sample_series(name))
    assert f"was taken with a gantry tilt of {degrees}" in volume.warnings[0]
    _, rows, columns = volume.grid.shape_kji
    for k, header in enumerate(volume.headers):
        row, column = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
        between_rows, between_columns = (float(part) for part in header.PixelSpacing)
        for j, i in ((0, 0), (rows - 1, 0), (rows - 1, columns - 1)):
            point = np.array(header.ImagePositionPatient, dtype=float)
            point = point + row * between_columns * i + column * between_rows * j
            assert np.linalg.norm(volume.grid.lps_mm((k, j, i)) - point) < TOLERANCE_MM


def test_an_uneven_series_is_refused_above_the_tolerance_with_the_place_of_the_gap(
    sample_series: Sample,
) -> None:
    slices = sample_series("made-uneven")
    told = r"3\.00 mm between the slices at 4\.0 and 7\.0 mm, elsewhere 2\.00 mm"
    with pytest.raises(InputError, match=told):
        volume_of(slices)
    with pytest.raises(InputError, match=told + r".* allows 0\.9 mm of difference\."):
        volume_of(slices, Intake(uneven_mm=0.9))
    volume = volume_of(slices, Intake(uneven_mm=1.0))
    assert volume.grid.slice_steps == pytest.approx((0, 1, 2, 3.5, 4.5, 5.5))
    assert "2.00 to 3.00 mm apart" in volume.warnings[0]
    for k, header in enumerate(volume.headers):
        np.testing.assert_allclose(volume.grid.lps_mm((k, 0, 0)), header.ImagePositionPatient)


def test_positions_that_a_modality_rounded_count_as_even_and_the_reader_is_told(
    make_series: Maker,
) -> None:
    slices = make_series(steps=(0.0, 1.0, 1.938), spacing_kji=(1.0,) * 3, shape_kji=(3, 6, 7))
    volume = volume_of(slices)
    assert volume.grid.slice_steps == ()
    assert volume.warnings[0] == "Slices lie up to 0.031 mm from an even spacing of 0.969 mm."


def test_a_missing_slice_is_a_gap_that_a_model_may_allow(sample_series: Sample) -> None:
    slices = sample_series("made-missing-slice")
    with pytest.raises(InputError, match=r"no slice at 6\.0 mm.* allows 1\.5 mm of difference\."):
        volume_of(slices, Intake(uneven_mm=1.5))
    assert volume_of(slices, Intake(uneven_mm=2.0)).grid.slice_steps[3] == pytest.approx(4)


def test_voxels_of_uneven_slices_count_for_what_their_slice_stands_for(
    make_series: Maker,
) -> None:
    steps = (0.0, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 6.0, 7.0, 8.0)
    shape = (len(steps), 8, 8)
    volume = volume_of(make_series(shape_kji=shape, spacing_kji=(2.0, 1.0, 1.0), steps=steps), ANY)
    assert volume.grid.spacing_kji_mm == pytest.approx((2.0, 1.0, 1.0))
    mask = np.zeros(shape, dtype=bool)
    mask[2:8, 2:6, 2:6] = True
    # From half way to the slice below the first to half way to the one above the last.
    millilitres = (6.5 - 1.5) * 2.0 * 16 / 1000
    assert volume_ml(voxel_count(mask, volume.grid), volume.grid) == pytest.approx(millilitres)
    cut = (slice(2, 8), slice(2, 6), slice(2, 6))
    assert volume_ml(voxel_count(mask[cut], volume.grid, 2), volume.grid) == pytest.approx(
        millilitres
    )
    z = centre_lps_mm(mask[cut], cut, volume.grid)[2]
    assert z == pytest.approx(100 + 2 * (1.5 + 6.5) / 2)
