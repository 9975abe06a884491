"""Between the grid of the images and the grid of a model, exactly, there and back.

Axes are exchanged and turned round to those of the patient that lie nearest, and each is
resampled by itself; nothing is rotated, so an oblique series stays as oblique as it is. Both
grids have the same centre. Slices of a tilted gantry and unevenly spaced ones are first brought
onto a rectangular grid, and results from it onto the slices again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from dicomai.imaging.geometry import Grid
from dicomai.imaging.upright import Upright, upright

DIRECTIONS: Final = {
    "R": (-1, 0, 0),
    "L": (1, 0, 0),
    "A": (0, -1, 0),
    "P": (0, 1, 0),
    "F": (0, 0, -1),
    "H": (0, 0, 1),
}
"""Letters of PS3.3 C.7.6.1.1.1, as LPS directions."""

SLAB_VOXELS: Final = 1 << 22
"""Of all channels, that are resampled at a time."""

_ROWS: Final = 32

# Within planes the weights are kept sparse, for there the most voxels are: two or three of a row of
# weights are not 0, and dense they would be most of the work.
Weights = npt.NDArray[np.float32]
"""(out, in): each row makes one value of the result from values along an axis."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resampling:
    """How a source grid and a model grid lie to each other.

    Attributes
    ----------
    source, model
        The grids; that of the model reaches at least as far on every side.
    axes
        For each axis of the model, the axis of the source that it is.
    turned
        For each axis of the model, whether it runs against that of the source.
    upright
        The rectangular grid in between, where the source is none.
    """

    source: Grid
    model: Grid
    axes: tuple[int, int, int]
    turned: tuple[bool, bool, bool]
    upright: Upright | None = None

    def to_model(
        self,
        voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32],
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return source voxels on the model's grid, (K', J', I') float32.

        Linear interpolation where the model is finer; the mean of the linear interpolation over a
        model voxel where it is coarser. Beyond the source, its edge goes on. They are put into
        `out`, or into a new array; beside it only some slices stand in memory.
        """
        if self.upright is not None:
            voxels = self.upright.straightened(voxels)
        there = self._turn(np.transpose(voxels, self.axes))
        weights_k, weights_j, weights_i = (self.weights_to(axis) for axis in range(3))
        if out is None:
            out = np.empty(self.model.shape_kji, dtype=np.float32)
        plane = _Plane(weights_j, weights_i)
        if _is_identity(weights_k):
            for row, part in zip(out, there, strict=True):
                row[:] = plane(part)
            return out
        every = Complete(weights_k, turned=False)
        for some, near in every.slabs(len(there), math.prod(there.shape[1:]), SLAB_VOXELS):
            shape = (near.stop - near.start, math.prod(self.model.shape_kji[1:]))
            rows = np.empty(shape, dtype=np.float32)
            for row, part in zip(rows, there[near], strict=True):
                row[:] = plane(part).ravel()
            out[some] = (csr_array(weights_k[some, near]) @ rows).reshape(out[some].shape)
        return out

    def to_source(
        self,
        channels: npt.NDArray[np.floating] | Iterable[npt.NDArray[np.floating]],
        wanted: Callable[[npt.NDArray[np.float32]], bool] | None = None,
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Give values on the model's grid back on the source's, slab by slab.

        Parameters
        ----------
        channels : (C, K', J', I')
            On the model's grid; or slabs of it, by its k, each read before the next is asked for.
            Then no more than a slab stands in memory, where slices of the model and of the source
            run along one axis; else all are gathered first.
        wanted
            Called with what a slab is interpolated from, (C, slices, ., .); where it says no, the
            slab is passed over. No interpolated value lies beyond those that it sees.

        Yields
        ------
        slices : slice
            Of the source's k; the last ones first where the model's slices run against them.
        values : (C, slices, J, I) float32
        """
        back = Back(self)
        for part in self.streamed(channels):
            for each in back.slabs(part, wanted):
                yield each.where[0], each.values

    def streamed(
        self, channels: npt.NDArray[np.floating] | Iterable[npt.NDArray[np.floating]]
    ) -> Iterable[npt.NDArray[np.floating]]:
        """Return slabs as `Back` takes them: gathered, where slices run along another axis."""
        if isinstance(channels, np.ndarray):
            return (channels,)
        if self.axes[0] == 0:
            return channels
        return (np.concatenate([part.copy() for part in channels], axis=1),)

    @property
    def _straight(self) -> Grid:
        """The source, or the rectangular grid that stands for it."""
        return self.source if self.upright is None else self.upright.grid

    def weights_to(self, axis: int) -> Weights:
        """Return what makes values along an axis of the model from those of the source."""
        size, step = self.model.shape_kji[axis], self._step(axis)
        if self.axes[axis] == 0 and self.upright is not None:
            weights = self.upright.weights_to(size, step)
            return weights[::-1, ::-1] if self.turned[axis] else weights
        return axis_weights(self._straight.shape_kji[self.axes[axis]], size, step)

    def weights_back(self, axis: int) -> Weights:
        """Return what makes values along the axis of the source that an axis of the model is."""
        size, step = self.model.shape_kji[axis], self._step(axis)
        if self.axes[axis] == 0 and self.upright is not None:
            weights = self.upright.weights_back(size, step)
        else:
            weights = axis_weights(size, self._straight.shape_kji[self.axes[axis]], 1 / step)
        return weights[:, ::-1] if self.turned[axis] else weights

    def _step(self, axis: int) -> float:
        """How many source voxels one voxel of the model is long, along an axis of the model."""
        return self.model.spacing_kji_mm[axis] / self._straight.spacing_kji_mm[self.axes[axis]]

    def _turn(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return array[tuple(slice(None, None, -1 if turn else 1) for turn in self.turned)]


def resampling(
    source: Grid, axes: str, spacing_mm: tuple[float, float, float] | None
) -> Resampling:
    """Return the way from a source grid to that of a model.

    Parameters
    ----------
    source
        The grid of the images.
    axes
        Direction of the patient in which k, j and i of the model grow, as "HPL".
    spacing_mm
        Of the model, along its k, j, i; None keeps that of the source.
    """
    between = upright(source)
    straight = source if between is None else between.grid
    wanted = np.array([DIRECTIONS[letter] for letter in axes], dtype=np.float64)
    directions = straight.index_to_lps[:3, :3] / np.array(straight.spacing_kji_mm)
    along = wanted @ directions  # how far each model axis runs along each source axis
    a, b, c = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(along[axis, at]) for axis, at in enumerate(order)),
    )
    order = (a, b, c)
    turned = (bool(along[0, a] < 0), bool(along[1, b] < 0), bool(along[2, c] < 0))
    sizes = [straight.shape_kji[at] for at in order]
    spacings = [straight.spacing_kji_mm[at] for at in order]
    new_spacings = list(spacing_mm) if spacing_mm else spacings
    shape = [
        max(1, math.ceil(size * old / new - 1e-6))
        for size, old, new in zip(sizes, spacings, new_spacings, strict=True)
    ]
    affine = np.eye(4)
    for axis, (at, turn) in enumerate(zip(order, turned, strict=True)):
        affine[:3, axis] = directions[:, at] * new_spacings[axis] * (-1 if turn else 1)
    centre = straight.lps_mm([(size - 1) / 2 for size in straight.shape_kji])
    affine[:3, 3] = centre - affine[:3, :3] @ [(size - 1) / 2 for size in shape]
    model = Grid(
        shape_kji=(shape[0], shape[1], shape[2]),
        index_to_lps=affine,
        frame_of_reference_uid=straight.frame_of_reference_uid,
    )
    return Resampling(source=source, model=model, axes=order, turned=turned, upright=between)


def axis_weights(size: int, new_size: int, step: float) -> Weights:
    """Return what makes `new_size` values from `size` along an axis, (new_size, size) float32.

    Both have the same centre, and a new voxel is `step` old ones long. Each row sums to 1, and
    values that grow linearly with place are exact, except where the old ones end.
    """
    if size == new_size and math.isclose(step, 1):
        return np.eye(size, dtype=np.float32)
    places = np.arange(new_size, dtype=np.float64)
    at = (size - 1) / 2 + (places - (new_size - 1) / 2) * step
    old = np.arange(size, dtype=np.float64)
    if step > 1:
        near, far = at[:, None] - step / 2 - old, at[:, None] + step / 2 - old
        weights = _hat_integral(far) - _hat_integral(near)
    else:
        weights = np.clip(1 - np.abs(np.clip(at, 0, size - 1)[:, None] - old), 0, None)
    total = weights.sum(axis=1, keepdims=True)
    outside = total[:, 0] < 1e-9
    weights[outside] = np.eye(size)[np.clip(np.round(at[outside]), 0, size - 1).astype(int)]
    total[outside] = 1
    return np.asarray(weights / total, dtype=np.float32)


def _hat_integral(t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From minus infinity to t, of the hat of width 2 that linear interpolation is made of."""
    t = np.clip(t, -1, 1)
    return np.asarray(0.5 + t - np.sign(t) * t * t / 2)


class _Plane:
    """Interpolates planes along rows and columns, (J, I) to (J', I')."""

    def __init__(self, weights_j: Weights, weights_i: Weights) -> None:
        self._across_j = None if _is_identity(weights_j) else csr_array(weights_j)
        self._across_i = None if _is_identity(weights_i) else csr_array(weights_i)
        self._rows_first = weights_j.shape[0] < weights_j.shape[1]  # fewer are left to turn

    def __call__(
        self, plane: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        out = np.ascontiguousarray(plane, dtype=np.float32)
        if self._across_j is not None and self._rows_first:
            out = self._across_j @ out
        if self._across_i is not None:
            # Sparse weights can only stand on the left; two turns cost less than dense ones.
            out = _turned(self._across_i @ _turned(out))
        if self._across_j is not None and not self._rows_first:
            out = self._across_j @ out
        return out


def _turned(
    plane: npt.NDArray[np.int16] | npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Return (J, I) as (I, J) float32; some rows at a time, which the caches hold."""
    out = np.empty(plane.shape[::-1], dtype=np.float32)
    for start in range(0, len(plane), _ROWS):
        out[:, start : start + _ROWS] = plane[start : start + _ROWS].T
    return out


class Part(NamedTuple):
    """Values on a part of the source's grid: where, (C, slices, rows, columns), which channels."""

    where: tuple[slice, slice, slice]
    values: npt.NDArray[np.float32]
    channels: npt.NDArray[np.intp]


class Back:
    """Brings probabilities from the model's grid to the source's while they come in.

    Parameters
    ----------
    way
        Between the grids; the model's slices run along those of the source, or all of them come
        as one slab.
    """

    def __init__(self, way: Resampling) -> None:
        self._way = way
        self._axes = tuple(int(at) for at in np.argsort(way.axes))
        self._weights = tuple(way.weights_back(at) for at in self._axes)
        self._reaches = tuple(_reach(each) for each in self._weights[1:])
        self._complete = Complete(self._weights[0], turned=way.turned[self._axes[0]])
        self._near = _Near()

    def slabs(
        self,
        part: npt.NDArray[np.floating],
        wanted: Callable[[npt.NDArray[np.float32]], bool] | None = None,
        least: float | None = None,
        chosen: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.intp]] | None = None,
    ) -> Iterator[Part]:
        """Give what the next slab of the model completes, as parts of the source's grid.

        Parameters
        ----------
        part : (C, slices, J', I')
            The next slices along the model's k.
        wanted
            As of `Resampling.to_source`.
        least
            Where all values lie below it may be left out; None leaves nothing out.
        chosen
            Called as `wanted` is, says which channels to bring back; None: all.
        """
        weights_k, weights_j, weights_i = self._weights
        near = self._near
        near.add(np.transpose(part, (0, *(at + 1 for at in self._axes))))
        rows, columns = self._way.source.shape_kji[1:]
        for slab, reach in self._complete.slabs(near.end, len(part) * rows * columns, SLAB_VOXELS):
            values = _times(weights_k[slab, reach], near.slices(reach.start, reach.stop))
            if wanted is not None and not wanted(values):
                continue
            channels = np.arange(len(values)) if chosen is None else chosen(values)
            if len(channels) < len(values):
                values = values[channels]
            if least is None or self._way.upright is not None:
                every = (slice(0, rows), slice(0, columns))
                plane = _Plane(weights_j, weights_i)
                out = self._across(values, plane, slab.start, every)
                yield Part((slab, *every), out, channels)
                continue
            cut = self._cut(values, least)
            if cut is not None:
                (from_j, from_i), (to_j, to_i) = cut
                plane = _Plane(weights_j[to_j, from_j], weights_i[to_i, from_i])
                some = np.ascontiguousarray(values[:, :, from_j, from_i])
                out = self._across(some, plane, slab.start, (to_j, to_i))
                yield Part((slab, to_j, to_i), out, channels)
        near.forget(self._complete.needed_from(near.end))

    def _cut(
        self, values: npt.NDArray[np.float32], least: float
    ) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
        """Return the model's rows and columns that hold so much, and the source's they reach."""
        high = values.max(axis=(0, 1)) >= least
        out = []
        for axis in (0, 1):
            there = np.flatnonzero(high.any(axis=1 - axis))
            if not there.size:
                return None
            first, last = self._reaches[axis]
            to = np.flatnonzero((last >= there[0]) & (first <= there[-1]))
            reached = slice(int(to[0]), int(to[-1]) + 1)
            near = slice(int(first[reached].min()), int(last[reached].max()) + 1)
            out.append((near, reached))
        return (out[0][0], out[1][0]), (out[0][1], out[1][1])

    def _across(
        self,
        values: npt.NDArray[np.float32],
        across: _Plane,
        first_k: int,
        cut: tuple[slice, slice],
    ) -> npt.NDArray[np.float32]:
        """Return values (C, slices, J', I') at the source's rows and columns."""
        shape = tuple(part.stop - part.start for part in cut)
        out = np.empty((*values.shape[:2], *shape), dtype=np.float32)
        for index in np.ndindex(values.shape[:2]):
            plane = across(values[index])
            if self._way.upright is not None:
                plane = self._way.upright.back(plane, first_k + index[1])
            out[index] = plane
        return out


class Complete:
    """Which slices of the source are complete while those of the model come in.

    Parameters
    ----------
    weights_k
        What makes the source's slices from the model's, (out, in).
    turned
        Whether they run against each other.
    """

    def __init__(self, weights_k: Weights, *, turned: bool) -> None:
        self._first, self._last = _reach(weights_k)
        self._order = range(len(weights_k))[:: -1 if turned else 1]
        self._done = 0

    def slabs(self, end: int, slice_voxels: int, slab_voxels: int) -> Iterator[tuple[slice, slice]]:
        """Give slabs of the source that the model's slices before `end` complete, not given yet.

        With each come the slices of the model that it is made of.
        """
        ready = self._done
        while ready < len(self._order) and self._last[self._order[ready]] < end:
            ready += 1
        for at in _slabs(self._done, ready, slice_voxels, slab_voxels):
            slab = slice(min(self._order[at]), max(self._order[at]) + 1)
            yield slab, slice(int(self._first[slab].min()), int(self._last[slab].max()) + 1)
        self._done = ready

    def needed_from(self, end: int) -> int:
        """Return the first slice of the model that others to come need; `end` if none is."""
        left = list(self._order[self._done :])
        return int(self._first[left].min()) if left else end


class _Near:
    """The slices of a model that are still needed: what is left of earlier slabs, and the last."""

    def __init__(self) -> None:
        self._left: npt.NDArray[np.floating] | None = None
        self._last: npt.NDArray[np.floating] | None = None
        self._left_from = self._last_from = 0
        self.end = 0

    def add(self, slab: npt.NDArray[np.floating]) -> None:
        """Take the next slices, (C, slices, ., .)."""
        self._last, self._last_from = slab, self.end
        self.end += slab.shape[1]

    def slices(self, low: int, high: int) -> npt.NDArray[np.float32]:
        """Return some of them, (C, high - low, ., .) float32."""
        assert self._last is not None
        last = self._last[:, max(0, low - self._last_from) : max(0, high - self._last_from)]
        if low >= self._last_from:
            return np.ascontiguousarray(last, dtype=np.float32)
        assert self._left is not None
        left = self._left[:, low - self._left_from : high - self._left_from]
        return np.concatenate((left, last), axis=1, dtype=np.float32)

    def forget(self, low: int) -> None:
        """Keep only those from `low` on."""
        self._left = self.slices(min(low, self.end), self.end).copy()  # the slab is not ours
        self._left_from = min(low, self.end)
        self._last = None


def _times(weights: Weights, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return what weights (out, in) make of values (C, in, ., .)."""
    if _is_identity(weights):
        return values
    flat: npt.NDArray[np.float32] = np.matmul(weights, values.reshape(*values.shape[:2], -1))
    return flat.reshape(len(values), -1, *values.shape[2:])


def _is_identity(weights: Weights) -> bool:
    return weights.shape[0] == weights.shape[1] and bool((weights == np.eye(len(weights))).all())


def _reach(weights: Weights) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the first and the last column of each row that is not 0."""
    there = weights != 0
    return there.argmax(axis=1), weights.shape[1] - 1 - there[:, ::-1].argmax(axis=1)


def _slabs(start: int, stop: int, slice_voxels: int, slab_voxels: int) -> Iterator[slice]:
    depth = max(1, slab_voxels // slice_voxels)
    for low in range(start, stop, depth):
        yield slice(low, min(low + depth, stop))
