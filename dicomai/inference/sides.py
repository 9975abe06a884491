"""Parts a mask that holds both of a pair, as the lungs, into the patient's left and right."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
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
"""Of the whole: what is smaller is no side of its own, where something is larger."""
_FOCUS: Final = 0.1
"""Of the largest one where none is so large: what is smaller lies where others do."""
_CRUMB: Final = 0.02
"""Of the whole: what is larger may be a collapsed lung, and is no piece of the trachea."""
_CLEAR: Final = 0.9
"""A part lies on one side of a plane where at least so much of it does. The lobes of one lung lie
above each other, and no sagittal plane has so much of each on a side of its own. A whole lung has
so much on the wrong side of a plane only where that is more than 10 cm away from the midline."""
_MARGIN_MM: Final = 30.0
"""Two parts beside each other are of one side only so far from the middle of the images, as a
patient seldom lies so far off it."""
_BOTH_SIDES_MM: Final = 200.0
"""Narrower images may be aimed at one lung, whose two pieces then lie around their middle."""
_PLANES: Final = 512
"""How many sagittal planes are tried between two sides, less than 1 mm apart in a patient."""
_EROSIONS: Final = 12
_JOINED: Final = "Both sides were joined; they were parted where the join is thinnest."
_ONE_SIDE: Final = (
    "Only one side was found; that it is the left or the right one was told from the middle of the "
    "images."
)
_BY_THE_MIDDLE: Final = (
    "Left and right were told apart by the middle of the images; check that it is the patient's."
)

_NARROW: Final = (
    "The images are narrow and may show one side alone; check which side of the patient each part "
    "is on."
)

_Parted: TypeAlias = tuple[dict[Side, Region | None], tuple[str, ...]]


def split(region: Region, grid: Grid) -> _Parted | None:
    """Return the left and the right part of a region, and warnings; None where nobody can tell.

    Two sides are large components that lie beside each other, with the middle of the images
    between them; a small component goes to the nearer one. A pair that is joined is cut where it
    is thinnest. In narrow images both come with a warning. What is no such pair, as the lobes of
    one lung or many foci, goes by the middle of the images, where each large component lies clearly
    on one side of it and the images reach beyond all.

    Parameters
    ----------
    region
        Of both sides.
    grid
        The source's; left is where x of LPS grows (PS3.3 C.7.6.2.1.1).
    """
    labels, count = labelled(region.mask)
    parts = _Parts(region, labels, count, grid)
    middle = float(grid.lps_mm([(size - 1) / 2 for size in grid.shape_kji])[0])
    narrow = (_NARROW,) if _width_mm(grid) < _BOTH_SIDES_MM else ()
    if len(parts.large) > 1 and not parts.are_foci:
        planes = parts.planes_between()
        if len(planes) == 1 and parts.lie_around(middle):
            return parts.parted(parts.left_of(planes[0]) > 0.5), narrow
        # With the middle beside them, they may be two pieces of one side as well as two sides.
        if planes and not parts.lie_around(middle) and not parts.lie_beyond(middle):
            return None
    elif len(parts.large) == 1:
        seeds = _cut_at_the_thinnest(region.mask)
        halves = None if seeds is None else _Parts(region, seeds, 2, grid)
        planes = [] if halves is None else halves.planes_between()
        if halves is not None and planes and halves.lie_around(middle):
            return halves.parted(halves.left_of(planes[0]) > 0.5), (_JOINED, *narrow)
    return None if _reaches_an_end(region, grid) else _by_the_middle(parts, middle)


def _width_mm(grid: Grid) -> float:
    """Return how far images reach from right to left."""
    return float(np.abs(grid.index_to_lps[0, :3]) @ np.array(grid.shape_kji))


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
    left, right = shares >= _CLEAR, shares <= 1 - _CLEAR
    if not (left | right)[parts.large].all():
        return None
    # A crumb that lies across the middle, as a piece of the trachea, makes no second side.
    least = 1 - _CLEAR if left[parts.large].all() else _CLEAR if right[parts.large].all() else 0.5
    sides = parts.parted(shares >= np.where(parts.are_crumbs, least, 0.5))
    is_one = None in sides.values() and (left | right | parts.are_crumbs).all()
    return sides, (_ONE_SIDE if is_one else _BY_THE_MIDDLE,)


class _Parts:
    """The components of a region, or its two halves.

    Attributes
    ----------
    large
        (n,) the indices of those that may be a side of their own; the label of a part is one more.
    are_foci
        Whether these are many, none of them large.
    are_crumbs
        Of each part, whether it is too small to be a side, even one that collapsed.
    """

    def __init__(
        self, region: Region, labels: npt.NDArray[np.int32], count: int, grid: Grid
    ) -> None:
        self._region, self._labels, self._grid = region, labels, grid
        self._sizes = np.bincount(labels[region.mask], minlength=count + 1)[1:]
        self._start = np.array([part.start for part in region.cut])
        whole = self._sizes.sum()
        least = _LEAST_SHARE * whole
        self.are_foci = bool(self._sizes.max() < least)
        if self.are_foci:
            least = _FOCUS * self._sizes.max()
        self.large = np.flatnonzero(self._sizes >= least)
        self.are_crumbs = self._sizes < _CRUMB * whole

    def planes_between(self) -> list[float]:
        """Return where on x, mm, sagittal planes have each large part clearly on one side.

        One for each way to part them: where it is clearest, and of equals in the middle.
        """
        edges, voxels = self._along_x
        shares = np.cumsum(voxels[:, ::-1], axis=1)[:, ::-1] / voxels.sum(axis=1, keepdims=True)
        clearest = np.maximum(shares, 1 - shares).min(axis=0)
        ways: dict[tuple[bool, ...], list[int]] = {}
        for plane in np.flatnonzero(clearest >= _CLEAR):
            is_left = tuple((shares[:, plane] > 0.5).tolist())
            if len(set(is_left)) == 2:
                ways.setdefault(is_left, []).append(int(plane))
        out = []
        for planes in ways.values():
            best = [each for each in planes if clearest[each] == clearest[planes].max()]
            out.append(float(edges[best[len(best) // 2]]))
        return out

    def lie_around(self, x_mm: float) -> bool:
        """Return whether large parts have their centres on both sides of a sagittal plane."""
        edges, voxels = self._along_x
        centres = voxels @ (edges + (edges[1] - edges[0]) / 2) / voxels.sum(axis=1)
        return bool(centres.min() < x_mm < centres.max())

    def lie_beyond(self, x_mm: float) -> bool:
        """Return whether all large parts lie clearly, and far, on one side of a sagittal plane."""
        far_left, far_right = (
            self.left_of(x_mm + away)[self.large] for away in (_MARGIN_MM, -_MARGIN_MM)
        )
        return bool((far_left >= _CLEAR).all() or (far_right <= 1 - _CLEAR).all())

    def left_of(self, x_mm: float) -> npt.NDArray[np.float64]:
        """Return how much of each part lies to the left of a sagittal plane, (n,) 0 to 1."""
        voxels = np.zeros(len(self._sizes) + 1)
        for labels, places_mm in self._slices():
            voxels += np.bincount(labels[places_mm > x_mm], minlength=len(voxels))
        return voxels[1:] / self._sizes

    @cached_property
    def _along_x(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Where each step along x begins, (p,) mm, and the voxels of each large part in it."""
        ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self._labels.shape) - 1)
        ends_mm = self._grid.lps_mm(ends + self._start)[:, 0]
        step_mm = max(float(np.ptp(ends_mm)) / _PLANES, 1e-6)
        edges = ends_mm.min() + (np.arange(_PLANES + 2) - 0.5) * step_mm
        row = np.zeros(len(self._sizes) + 1, dtype=np.int32)  # the first is of all else
        row[self.large + 1] = (np.arange(len(self.large)) + 1) * len(edges)
        voxels = np.zeros((len(self.large) + 1) * len(edges), dtype=np.int64)
        for labels, places_mm in self._slices():
            steps = ((places_mm - edges[0]) / step_mm).astype(np.int32)
            voxels += np.bincount((row[labels] + steps).ravel(), minlength=len(voxels))
        return edges, voxels.reshape(-1, len(edges))[1:]

    def _slices(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]]:
        """Give the labels of each slice, and where on x its voxels lie, mm."""
        _, rows, columns = self._labels.shape
        along_rows, along_columns = self._grid.index_to_lps[0, 1:3]
        beyond_mm = np.add.outer(along_rows * np.arange(rows), along_columns * np.arange(columns))
        for k, labels in enumerate(self._labels):
            yield labels, self._grid.lps_mm(self._start + np.array([k, 0, 0]))[0] + beyond_mm

    def parted(self, left: npt.NDArray[np.bool_]) -> dict[Side, Region | None]:
        """Return the parts that are `left`, and the others as the right side."""
        return {
            "left": self._region.only(np.append(False, left)[self._labels]),
            "right": self._region.only(np.append(False, ~left)[self._labels]),
        }


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
