"""Chests that were drawn by someone else's formula lie where that formula says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dicomai.imaging.resample import resampling
from dicomai.imaging.series import scan
from dicomai.imaging.volume import volume_of
from dicomai.phantom.chest import ChestPhantom
from dicomai.phantom.ct import chest_scan, write_ct

NOISE_HU = 12.0


@pytest.fixture(scope="module")
def phantom() -> ChestPhantom:
    return ChestPhantom(3)


@pytest.mark.parametrize("from_head", [False, True])
@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal", "oblique"])
def test_each_voxel_is_the_tissue_of_its_place(
    phantom: ChestPhantom, tmp_path: Path, orientation: str, from_head: bool
) -> None:
    scanned = chest_scan(
        phantom, matrix=72, slice_spacing_mm=6.0, orientation=orientation, from_head=from_head
    )
    written = write_ct(tmp_path, 3, phantom=phantom, scan=scanned)
    (series,) = scan(tmp_path, pixels=True).series
    volume = volume_of(series.datasets[::-1])
    tissue = phantom.hounsfield(volume.grid.index_to_lps, volume.grid.shape_kji)
    off = volume.voxels - tissue
    assert np.abs(off).mean() < 2 * NOISE_HU
    assert np.corrcoef(volume.voxels.ravel(), tissue.ravel())[0, 1] > 0.99

    truth = phantom.truth(volume.grid.index_to_lps, volume.grid.shape_kji)
    for nodule in json.loads(written.truth.read_text())["nodules"]:
        index = np.round(volume.grid.kji(nodule["centre_lps_mm"])).astype(int)
        inside = volume.voxels[tuple(index)] > -500
        assert inside or nodule["diameter_mm"] < 2 * max(volume.grid.spacing_kji_mm)

    way = resampling(volume.grid, "HPL", (6.0, 6.0, 6.0))
    left = way.to_model(truth.left_lung.astype(np.float32)) > 0.5
    right = way.to_model(truth.right_lung.astype(np.float32)) > 0.5
    assert np.argwhere(left)[:, 2].mean() > np.argwhere(right)[:, 2].mean() + 10
