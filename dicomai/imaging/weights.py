"""What interpolates along an axis: each value of the result is a weighted sum of values there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

_ROWS: Final = 32

Weights = npt.NDArray[np.float32]
"""(out, in): each row makes one value of the result from values along an axis."""


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


def is_identity(weights: Weights) -> bool:
    return weights.shape[0] == weights.shape[1] and bool((weights == np.eye(len(weights))).all())


def reach(weights: Weights) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the first and the last column of each row that is not 0."""
    there = weights != 0
    return there.argmax(axis=1), weights.shape[1] - 1 - there[:, ::-1].argmax(axis=1)


class Plane:
    """Interpolates planes along rows and columns, (J, I) to (J', I')."""

    # The weights are kept sparse, for here the most voxels are: two or three of a row of weights
    # are not 0, and dense they would be most of the work.

    def __init__(self, weights_j: Weights, weights_i: Weights) -> None:
        self._across_j = None if is_identity(weights_j) else csr_array(weights_j)
        self._across_i = None if is_identity(weights_i) else csr_array(weights_i)
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
        self._first, self._last = reach(weights_k)
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


def _slabs(start: int, stop: int, slice_voxels: int, slab_voxels: int) -> Iterator[slice]:
    depth = max(1, slab_voxels // slice_voxels)
    for low in range(start, stop, depth):
        yield slice(low, min(low + depth, stop))
