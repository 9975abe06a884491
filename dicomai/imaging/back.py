"""From a model's grid back to that of the images, slab by slab while the model gets on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dicomai.imaging.resample import SLAB_VOXELS, Resampling
from dicomai.imaging.weights import Complete, Plane, Weights, is_identity, reach


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
        self._reaches = tuple(reach(each) for each in self._weights[1:])
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
            Called with what a slab is interpolated from, (C, slices, ., .); where it says no, the
            slab is passed over. No interpolated value lies beyond those that it sees.
        least
            Where all values lie below it may be left out; None leaves nothing out.
        chosen
            Called as `wanted` is, says which channels to bring back; None: all.
        """
        weights_k, weights_j, weights_i = self._weights
        near = self._near
        near.add(np.transpose(part, (0, *(at + 1 for at in self._axes))))
        rows, columns = self._way.source.shape_kji[1:]
        for slab, of in self._complete.slabs(near.end, len(part) * rows * columns, SLAB_VOXELS):
            values = _times(weights_k[slab, of], near.slices(of.start, of.stop))
            if wanted is not None and not wanted(values):
                continue
            channels = np.arange(len(values)) if chosen is None else chosen(values)
            if len(channels) < len(values):
                values = values[channels]
            if least is None or self._way.upright is not None:
                every = (slice(0, rows), slice(0, columns))
                plane = Plane(weights_j, weights_i)
                out = self._across(values, plane, slab.start, every)
                yield Part((slab, *every), out, channels)
                continue
            cut = self._cut(values, least)
            if cut is not None:
                (from_j, from_i), (to_j, to_i) = cut
                plane = Plane(weights_j[to_j, from_j], weights_i[to_i, from_i])
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
        across: Plane,
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


def streamed(
    way: Resampling, channels: npt.NDArray[np.floating] | Iterable[npt.NDArray[np.floating]]
) -> Iterable[npt.NDArray[np.floating]]:
    """Return slabs of the model along its k, (C, slices, J', I'), as `Back` takes them.

    As they come, where slices of the model and of the source run along one axis; else all are
    gathered first.
    """
    if isinstance(channels, np.ndarray):
        return (channels,)
    if way.axes[0] == 0:
        return channels
    return (np.concatenate([part.copy() for part in channels], axis=1),)


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
    if is_identity(weights):
        return values
    flat: npt.NDArray[np.float32] = np.matmul(weights, values.reshape(*values.shape[:2], -1))
    return flat.reshape(len(values), -1, *values.shape[2:])
