"""Numbers about a mask, each with its code and unit (PS3.16 TID 1419; IBSI reference manual)."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from dicomai.dicom.codes import HOUNSFIELD, MILLILITRE, MILLIMETRE, OURS, Code
from dicomai.findings import Mask, Measurement
from dicomai.imaging.geometry import Grid
from dicomai.imaging.mask import Cut

VOLUME: Final = Code("118565006", "SCT", "Volume")
DIAMETER: Final = Code("81827009", "SCT", "Diameter")
EQUAL_BALL: Final = Code("EQUIVALENT-BALL", OURS, "Diameter of the ball of equal volume")
"""How `diameter` is measured: a reader would take a bare Diameter for one drawn across a slice."""
MAXIMUM_3D_DIAMETER: Final = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
ATTENUATION: Final = Code("112031", "DCM", "Attenuation Coefficient")
MEAN: Final = Code("373098007", "SCT", "Mean")


def voxel_count(mask: Mask, grid: Grid, first_k: int = 0) -> float:
    """Return how many voxels a mask has; each counts for what its slice stands for.

    Parameters
    ----------
    mask : (K, J, I) bool
        Any part of the grid that begins with slice `first_k`.
    """
    thickness = grid.thickness_k[first_k : first_k + len(mask)]
    return float(np.count_nonzero(mask, axis=(1, 2)) @ thickness)


def volume_ml(voxels: float, grid: Grid) -> float:
    """Return the volume of so many voxels, mL: their number times the volume of one (IBSI YEKZ)."""
    return voxels * grid.voxel_mm3 / 1000


def equivalent_diameter_mm(voxels: float, grid: Grid) -> float:
    """Return the diameter of the ball that has the volume of so many voxels, mm."""
    return float(np.cbrt(6 * voxels * grid.voxel_mm3 / np.pi))


def longest_diameter_mm(mask: Mask, grid: Grid, first_k: int = 0) -> float:
    """Return the largest distance between two points of a mask's surface, mm (IBSI L0JK).

    The surface is that of the mesh at one half between voxels inside and outside: its points lie
    in the middle between the centres of two face neighbours of which one is inside. For one voxel
    it is the longest of its edges.

    Parameters
    ----------
    mask : (K, J, I) bool
        With at least one voxel; any part of the grid that holds it.
    grid
        Whose spacing counts.
    first_k
        The slice of the grid that the mask begins with.
    """
    padded = np.pad(mask, 1)
    points = []
    for axis in range(3):
        for way in (-1, 1):
            exposed = padded & ~np.roll(padded, -way, axis=axis)
            index = np.argwhere(exposed).astype(np.float64)
            index[:, axis] += way / 2
            points.append(index)
    # Less the margin of the padding, which matters where slices are unevenly spaced.
    surface = grid.lps_mm(np.concatenate(points) + np.array([first_k - 1, -1, -1]))
    with suppress(QhullError):  # flat, so few enough to compare all
        surface = surface[ConvexHull(surface).vertices]
    return float(pdist(surface).max())


def centre_lps_mm(mask: Mask, cut: Cut, grid: Grid) -> tuple[float, float, float]:
    """Return the mean of a mask's voxel centres, LPS mm; each counts as in `voxel_count`.

    Parameters
    ----------
    mask : (K, J, I) bool
        The part of the grid that `cut` names.
    """
    kji = np.argwhere(mask) + np.array([part.start for part in cut])
    x, y, z = np.average(grid.lps_mm(kji), axis=0, weights=grid.thickness_k[kji[:, 0]])
    return float(x), float(y), float(z)


def measurements(
    names: tuple[str, ...],
    mask: Mask,
    voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32],
    grid: Grid,
    modality: str,
    first_k: int = 0,
) -> tuple[Measurement, ...]:
    """Return the measurements that a manifest names, of a mask with at least one voxel.

    Parameters
    ----------
    names
        Of `volume`, `mean`, `diameter`, `longest_diameter`.
    mask : (K, J, I) bool
    voxels : (K, J, I)
        Modality units, the same part of the grid as the mask.
    modality
        The mean is measured in CT, whose values have a unit.
    first_k
        The slice of the grid that the mask begins with.
    """
    count = voxel_count(mask, grid, first_k)
    out = []
    for name in names:
        if name == "volume":
            out.append(Measurement(name=VOLUME, value=volume_ml(count, grid), unit=MILLILITRE))
        elif name == "mean" and modality == "CT":
            mean = _mean(voxels, mask, grid.thickness_k[first_k : first_k + len(mask)])
            out.append(Measurement(name=ATTENUATION, value=mean, unit=HOUNSFIELD, derivation=MEAN))
        elif name == "diameter":
            size = equivalent_diameter_mm(count, grid)
            out.append(Measurement(name=DIAMETER, value=size, unit=MILLIMETRE, method=EQUAL_BALL))
        elif name == "longest_diameter":
            size = longest_diameter_mm(mask, grid, first_k)
            out.append(Measurement(name=MAXIMUM_3D_DIAMETER, value=size, unit=MILLIMETRE))
    return tuple(out)


def _mean(
    voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32],
    mask: Mask,
    thickness_k: npt.NDArray[np.float64],
) -> float:
    """Return the mean of a mask's voxels; each counts for what its slice stands for."""
    # Whole numbers add up exactly in any order: slice by slice nothing large is copied.
    wide = np.float64 if voxels.dtype.kind == "f" else np.int64
    sums = [plane[part].sum(dtype=wide) for plane, part in zip(voxels, mask, strict=True)]
    counts = np.count_nonzero(mask, axis=(1, 2))
    return float(np.array(sums) @ thickness_k / (counts @ thickness_k))


def labelled(mask: Mask) -> tuple[npt.NDArray[np.int32], int]:
    """Return the components of a mask, voxels that share a face, numbered from 1."""
    out = np.empty(mask.shape, dtype=np.int32)
    count = int(ndimage.label(mask, output=out))
    return out, count
