"""Parts a mask that holds both of a pair, as the lungs, into the patient's left and right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

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
_CLEAR: Final = 0.9
"""A part lies on one side of a plane where at least so much of it does. The lobes of one lung lie
above each other, and no sagittal plane has so much of each on a side of its own. A whole lung has
so much on the wrong side of a plane only where that is more than 10 cm away from the midline."""
_EROSIONS: Final = 12
_JOINED: Final = "Both sides were joined; they were parted where the join is thinnest."
_ONE_SIDE: Final = (
    "Only one side was found; that it is the left or the right one was told from the middle of the "
    "images."
)
_BY_THE_MIDDLE: Final = (
    "Left and right were told apart by the middle of the images; check that it is the patient's."
)

_Parted: TypeAlias = tuple[dict[Side, Region | None], tuple[str, ...]]


def split(region: Region, grid: Grid) -> _Parted | None:
    """Return the left and the right part of a region, and warnings; None where nobody can tell.

    Two sides are large components that lie beside each other, with the middle of the images
    between them; a small component goes to the nearer one. A pair that is joined is cut where it
    is thinnest. What is no such pair, as the lobes of one lung, goes by the middle of the images,
    where each large component lies clearly on one side of it and the images reach beyond all.

    Parameters
    ----------
    region
        Of both sides.
    grid
        The source's; left is where x of LPS grows (PS3.3 C.7.6.2.1.1).
    """
    labels, count = labelled(region.mask)
    parts = _Parts(region, labels, count, grid)
    if not parts.large.size:
        return None
    middle = float(grid.lps_mm([(size - 1) / 2 for size in grid.shape_kji])[0])
    if parts.large.size > 1:
        left = parts.beside_each_other()
        if left is not None:
            # With the middle beside both, they may be two pieces of one side as well as two sides.
            return (parts.parted(left), ()) if parts.lie_around(middle) else None
    else:
        seeds = _cut_at_the_thinnest(region.mask)
        halves = None if seeds is None else _Parts(region, seeds, 2, grid)
        left = None if halves is None else halves.beside_each_other()
        if halves is not None and left is not None and halves.lie_around(middle):
            return halves.parted(left), (_JOINED,)
    return None if _reaches_an_end(region, grid) else _by_the_middle(parts, middle)


def _reaches_an_end(region: Region, grid: Grid) -> bool:
    """Return whether a region reaches the left or right end of images, whose middle tells nothing.

    Such images show a part of the body, perhaps one side alone.
    """
    steps = grid.index_to_lps[:3, :3]
    axis = int(np.argmax(np.abs(steps[0]) / np.linalg.norm(steps, axis=0)))
    first, last = region.cut[axis].start == 0, region.cut[axis].stop == grid.shape_kji[axis]
    return bool(
        (first and region.mask.take(0, axis).any()) or (last and region.mask.take(-1, axis).any())
    )


def _by_the_middle(parts: _Parts, middle: float) -> _Parted | None:
    shares = parts.left_of(middle)
    large = shares[parts.large]
    left, right = large >= _CLEAR, large <= 1 - _CLEAR
    if not (left | right).all():
        return None
    # What is small and lies across the middle, as a piece of the trachea, makes no second side.
    least = 1 - _CLEAR if left.all() else _CLEAR if right.all() else 0.5
    sides = parts.parted(shares >= least)
    return sides, (_ONE_SIDE if None in sides.values() else _BY_THE_MIDDLE,)


class _Parts:
    """The components of a region, or its two halves.

    Attributes
    ----------
    large
        (n,) the indices of those that may be a side of their own; the label of a part is one more.
    """

    def __init__(
        self, region: Region, labels: npt.NDArray[np.int32], count: int, grid: Grid
    ) -> None:
        self._region, self._labels, self._grid = region, labels, grid
        self._sizes = np.bincount(labels[region.mask], minlength=count + 1)[1:]
        self._start = np.array([part.start for part in region.cut])
        self.large = np.flatnonzero(self._sizes >= _LEAST_SHARE * self._sizes.sum())
        self._centres_x = np.array(
            [grid.lps_mm(centre + self._start)[0] for centre in _centres(labels, self.large + 1)]
        )

    def beside_each_other(self) -> npt.NDArray[np.bool_] | None:
        """Return which parts lie to the left of a sagittal plane in the middle of the large ones.

        None where that plane does not have each large part clearly on one side.
        """
        shares = self.left_of(float(self._centres_x.min() + self._centres_x.max()) / 2)
        left, right = shares[self.large] >= _CLEAR, shares[self.large] <= 1 - _CLEAR
        return shares > 0.5 if (left | right).all() and left.any() and right.any() else None

    def lie_around(self, x_mm: float) -> bool:
        """Return whether large parts have their centres on both sides of a sagittal plane."""
        return bool(self._centres_x.min() < x_mm < self._centres_x.max())

    def left_of(self, x_mm: float) -> npt.NDArray[np.float64]:
        """Return how much of each part lies to the left of a sagittal plane, (n,) 0 to 1."""
        _, rows, columns = self._labels.shape
        along_rows, along_columns = self._grid.index_to_lps[0, 1:3]
        beyond_mm = np.add.outer(along_rows * np.arange(rows), along_columns * np.arange(columns))
        voxels = np.zeros(len(self._sizes) + 1)
        for k, labels in enumerate(self._labels):
            first_mm = self._grid.lps_mm(self._start + np.array([k, 0, 0]))[0]
            voxels += np.bincount(labels[first_mm + beyond_mm > x_mm], minlength=len(voxels))
        return voxels[1:] / self._sizes

    def parted(self, left: npt.NDArray[np.bool_]) -> dict[Side, Region | None]:
        """Return the parts that are `left`, and the others as the right side."""
        return {
            "left": self._region.only(np.append(False, left)[self._labels]),
            "right": self._region.only(np.append(False, ~left)[self._labels]),
        }


def _centres(
    labels: npt.NDArray[np.int32], wanted: npt.NDArray[np.intp]
) -> Iterator[npt.NDArray[np.float64]]:
    """Give the centroid of each wanted part, (3,) indices, from its shadows on the axes."""
    cuts = ndimage.find_objects(labels)
    for number in wanted:
        cut = cuts[number - 1]
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
