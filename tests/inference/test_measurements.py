"""Measures against analytic bodies and the published values of the IBSI digital phantom."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dicomai.imaging.geometry import Grid
from dicomai.imaging.mask import bounds
from dicomai.inference.measure import (
    centre_lps_mm,
    equivalent_diameter_mm,
    longest_diameter_mm,
    measurements,
    volume_ml,
)


def grid(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> Grid:
    return Grid(
        shape_kji=(shape[0], shape[1], shape[2]),
        index_to_lps=np.diag([*spacing, 1.0])[[2, 1, 0, 3]],
        frame_of_reference_uid="1.2",
    )


def nifti(path: Path) -> npt.NDArray[np.int16]:
    """The voxels of a small NIfTI file of 16-bit numbers, last index fastest."""
    data = gzip.decompress(path.read_bytes())
    size = struct.unpack_from("<8h", data, 40)[1:4]
    (offset,) = struct.unpack_from("<f", data, 108)
    voxels = np.frombuffer(data, "<i2", count=int(np.prod(size)), offset=int(offset))
    return voxels.reshape(size[::-1])


def test_the_ibsi_phantom_has_its_published_values(sample_data: Path) -> None:
    folder = sample_data / "ibsi-digital-phantom" / "nifti"
    voxels = nifti(folder / "image" / "phantom.nii.gz")
    mask = nifti(folder / "mask" / "mask.nii.gz").astype(np.bool_)
    where = grid(mask.shape, (2.0, 2.0, 2.0))
    assert volume_ml(int(mask.sum()), where) * 1000 == pytest.approx(592)  # YEKZ
    assert longest_diameter_mm(mask, where) == pytest.approx(13.1, abs=0.05)  # L0JK
    (mean,) = measurements(("mean",), mask, voxels, where, "CT")
    assert mean.value == pytest.approx(2.15, abs=0.005)  # Q4LE


def test_a_single_voxel_has_the_size_of_itself() -> None:
    mask = np.ones((1, 1, 1), dtype=np.bool_)
    where = grid(mask.shape, (3.0, 1.0, 2.0))
    assert longest_diameter_mm(mask, where) == pytest.approx(3.0)
    assert volume_ml(1, where) == pytest.approx(0.006)
    assert equivalent_diameter_mm(1, where) == pytest.approx((36 / np.pi) ** (1 / 3))


def test_a_flat_mask_has_a_diameter() -> None:
    mask = np.ones((1, 1, 9), dtype=np.bool_)
    assert longest_diameter_mm(mask, grid(mask.shape, (1.0, 1.0, 2.0))) == pytest.approx(18.0)


def test_bounds_hold_a_mask_and_no_more() -> None:
    mask = np.zeros((5, 6, 7), dtype=np.bool_)
    assert bounds(mask) is None
    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert bounds(mask) == (slice(1, 4), slice(2, 3), slice(3, 7))


def test_a_centre_counts_from_the_whole_grid() -> None:
    where = grid((9, 9, 9), (2.0, 1.0, 1.5))
    mask = np.ones((1, 1, 3), dtype=np.bool_)
    cut = (slice(4, 5), slice(2, 3), slice(5, 8))
    assert centre_lps_mm(mask, cut, where) == pytest.approx((6 * 1.5, 2.0, 8.0))


@pytest.mark.parametrize("far", [1.0, 2.0, 3.0])
def test_a_ball_where_slices_grow_sparse_has_its_centre_and_mean(far: float) -> None:
    z = np.concatenate([np.arange(0.0, 20.0), np.arange(20.0, 40.0, far)])
    where = replace(grid((len(z), 25, 25), (1.0, 1.0, 1.0)), slice_steps=tuple(z.tolist()))
    k, j, i = np.meshgrid(z - 20, np.arange(-12, 13), np.arange(-12, 13), indexing="ij")
    ball = k**2 + j**2 + i**2 <= 10**2
    cut = bounds(ball)
    assert cut is not None
    assert centre_lps_mm(ball[cut], cut, where) == pytest.approx((12, 12, 20), abs=0.25)
    # What grows to the head with the place has the value of its middle on the average.
    voxels = np.broadcast_to(10 * k, ball.shape).astype(np.int16)
    names = ("mean",)
    (mean,) = measurements(names, ball[cut], voxels[cut], where, "CT", cut[0].start)
    assert mean.value == pytest.approx(0, abs=2.5)
    (as_float,) = measurements(
        names, ball[cut], voxels[cut].astype(np.float32), where, "CT", cut[0].start
    )
    assert as_float.value == pytest.approx(mean.value, abs=1e-9)


def test_slices_stand_for_their_own_thickness_where_a_mask_begins_later() -> None:
    steps = (0.0, 1.0, 2.0, 5.0, 8.0)  # which stand for 1, 1, 2, 3 and 3 of the usual ones
    where = replace(grid((5, 2, 2), (1.0, 1.0, 1.0)), slice_steps=steps)
    voxels = np.full((2, 2, 2), 30, np.int16)
    voxels[1] = 80
    found = measurements(
        ("volume", "mean"), np.ones((2, 2, 2), bool), voxels, where, "CT", first_k=2
    )
    assert [each.value for each in found] == [pytest.approx(0.020), pytest.approx(60.0)]


def test_each_measure_has_its_code_and_unit() -> None:
    mask = np.ones((2, 2, 2), dtype=np.bool_)
    names = ("volume", "mean", "diameter", "longest_diameter")
    found = measurements(
        names, mask, np.ones((2, 2, 2), np.int16), grid((2, 2, 2), (1, 1, 1)), "CT"
    )
    assert [(each.name.value, each.name.scheme, each.unit.value) for each in found] == [
        ("118565006", "SCT", "mL"),
        ("112031", "DCM", "[hnsf'U]"),
        ("81827009", "SCT", "mm"),
        ("L0JK", "IBSI", "mm"),
    ]
    assert found[1].derivation is not None
    assert found[1].derivation.value == "373098007"
