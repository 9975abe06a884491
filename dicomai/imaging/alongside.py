"""A further volume on the grid of the first, for models that see two series or a prior at once."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicomai.errors import InputError
from dicomai.imaging.geometry import Grid, Point
from dicomai.imaging.volume import SourceVolume

Alignment = Literal["patient", "centre"]
"""By the patient's coordinates, which both share; or centre on centre, for want of those."""

_LINEAR: Final = 1


def laid_onto(grid: Grid, other: SourceVolume, align: Alignment) -> npt.NDArray[np.float32]:
    """Return a volume's values at the voxels of another grid, (K, J, I) float32.

    Linear interpolation; beyond the volume its lowest value. Nothing is registered.

    Parameters
    ----------
    grid
        Of the first input.
    other
        What is laid onto it.
    align
        "patient": a point is the same point of the patient in both, in one frame of reference
        (PS3.3 C.7.4.1.1.1). "centre": the middle of one lies on the middle of the other, and both
        keep their orientation in the patient.

    Raises
    ------
    InputError
        They share no frame of reference, and were to be aligned by it.
    """
    shift = np.zeros(3)
    if align == "centre":
        shift = _centre(other.grid) - _centre(grid)
    elif (
        not grid.frame_of_reference_uid
        or grid.frame_of_reference_uid != other.grid.frame_of_reference_uid
    ):
        raise InputError(
            f"Series {other.series_instance_uid} has another frame of reference than the images "
            "that the model looks at beside it, so no point of one is known in the other. Choose "
            "a series of the same position of the patient.",
            subject=other.series_instance_uid,
        )
    values = other.voxels.astype(np.float32, copy=False)
    lowest = float(values.min())
    out = np.empty(grid.shape_kji, dtype=np.float32)
    rows, columns = np.indices(grid.shape_kji[1:])
    for k, plane in enumerate(out):
        index = np.stack([np.full_like(rows, k), rows, columns], axis=-1)
        there = other.grid.kji(grid.lps_mm(index) + shift)
        # What lies on the first or last slice must not fall out by the last bit of a float.
        place = np.moveaxis(np.round(there, 6), -1, 0)
        plane[...] = ndimage.map_coordinates(values, place, order=_LINEAR, cval=lowest)
    return out


def _centre(grid: Grid) -> Point:
    """Return the middle of a grid, (3,) LPS mm."""
    return np.asarray(grid.lps_mm((np.asarray(grid.shape_kji) - 1) / 2))
