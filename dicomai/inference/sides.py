"""Parts a mask that holds both of a pair, as the lungs, into the patient's left and right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicomai.findings import Mask
from dicomai.imaging.geometry import Grid
from dicomai.inference.measure import labelled
from dicomai.inference.postprocess import Region
from dicomai.models.output import Side

_COARSE_VOXELS: Final = 500_000
"""Where a joined pair is cut is found on a grid of about so many voxels."""
_LEAST_SHARE: Final = 0.15
"""Of the whole: what is smaller is no side of its own."""
_EROSIONS: Final = 12
_ONE_SIDE: Final = (
    "Only one side was found; that it is the left or the right one was told from the middle of the "
    "images."
)


def split(region: Region, grid: Grid) -> tuple[dict[Side, Region | None], tuple[str, ...]]:
    """Return the left and the right part of a region, and warnings.

    Components go by their centroid: to the left of the patient where it is nearer to the left one
    of the two large ones. A pair that is joined is cut where it is thinnest. A single one goes by
    the centre of the images.

    Parameters
    ----------
    region
        Of both sides.
    grid
        The source's; left is where x of LPS grows (PS3.3 C.7.6.2.1.1).
    """
    labels, count = labelled(region.mask)
    sizes = np.bincount(labels[region.mask], minlength=count + 1)[1:]
    large = np.flatnonzero(sizes >= _LEAST_SHARE * sizes.sum()) + 1
    if len(large) == 1:
        seeds = _cut_at_the_thinnest(region.mask)
        if seeds is not None:
            return _by_centroid(region, seeds, 2, np.array([1, 2]), grid), (
                "Both sides were joined; they were parted where the join is thinnest.",
            )
    told = () if len(large) >= 2 else (_ONE_SIDE,)
    return _by_centroid(region, labels, count, large, grid), told


def _by_centroid(
    region: Region,
    labels: npt.NDArray[np.int32],
    count: int,
    large: npt.NDArray[np.intp],
    grid: Grid,
) -> dict[Side, Region | None]:
    start = np.array([part.start for part in region.cut])
    x = np.array([grid.lps_mm(centre + start)[0] for centre in _centres(labels, count)])
    if len(large) >= 2:
        middle = float((x[large - 1].min() + x[large - 1].max()) / 2)
    else:
        middle = float(grid.lps_mm([(size - 1) / 2 for size in grid.shape_kji])[0])
    left = np.concatenate(([False], x > middle))
    right = np.concatenate(([False], x <= middle))
    return {"left": region.only(left[labels]), "right": region.only(right[labels])}


def _centres(labels: npt.NDArray[np.int32], count: int) -> Iterator[npt.NDArray[np.float64]]:
    """Give the centroid of each component, (3,) indices, from its shadows on the axes."""
    for number, cut in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
        part = labels[cut] == number
        centre = []
        for axis in range(3):
            shadow = np.count_nonzero(part, axis=tuple({0, 1, 2} - {axis}))
            place = np.arange(len(shadow)) + cut[axis].start
            centre.append(float((shadow * place).sum() / shadow.sum()))
        yield np.array(centre)


def _cut_at_the_thinnest(mask: Mask) -> npt.NDArray[np.int32] | None:
    """Return 1 and 2 for the two halves of a mask, 0 outside; None where it does not fall apart."""
    stride = max(1, round((mask.size / _COARSE_VOXELS) ** (1 / 3)))
    coarse = mask[::stride, ::stride, ::stride]
    depth = ndimage.distance_transform_cdt(np.pad(coarse, 1), metric="taxicab")[1:-1, 1:-1, 1:-1]
    for erosion in range(1, _EROSIONS + 1):
        labels, count = labelled(depth > erosion)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        sizes[0] = 0
        large = np.flatnonzero(sizes >= max(1, _LEAST_SHARE * sizes.sum()))
        if len(large) == 2:
            break
        if len(large) != 1:
            return None
    else:
        return None
    seeds = (labels == large[0]) * 1 + (labels == large[1]) * 2
    nearest = ndimage.distance_transform_edt(
        seeds == 0, return_distances=False, return_indices=True
    )
    assert isinstance(nearest, np.ndarray)
    halves = seeds[tuple(nearest)].astype(np.int32)
    fine = halves
    for axis, size in enumerate(mask.shape):
        fine = np.repeat(fine, stride, axis=axis)
        fine = np.take(fine, np.arange(size), axis=axis)
    return np.where(mask, fine, 0).astype(np.int32)
