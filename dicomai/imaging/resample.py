"""Between the grid of the images and the grid of a model, exactly, there and back.

Axes are exchanged and turned round to those of the patient that lie nearest, and each is
resampled by itself; nothing is rotated, so an oblique series stays as oblique as it is. Both
grids have the same centre. Slices of a tilted gantry and unevenly spaced ones are first brought
onto a rectangular grid, and results from it onto the slices again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

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

_SLAB_VOXELS: Final = 1 << 22

# Along rows the weights are kept sparse, for there the most voxels are: two or three of a row of
# weights are not 0, and dense it would be most of the work.
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
        self, voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return source voxels on the model's grid, (K', J', I') float32.

        Linear interpolation where the model is finer; the mean of the linear interpolation over a
        model voxel where it is coarser. Beyond the source, its edge goes on.
        """
        if self.upright is not None:
            voxels = self.upright.straightened(voxels)
        there = self._turn(np.transpose(voxels, self.axes))
        out_k, out_j, out_i = self.model.shape_kji
        weights_k, weights_j, weights_i = (self._weights_to(axis) for axis in range(3))
        rows = np.empty((there.shape[0], out_j, out_i), dtype=np.float32)
        few_j = csr_array(weights_j)
        for k, part in enumerate(there):
            rows[k] = (few_j @ np.ascontiguousarray(part, dtype=np.float32)) @ weights_i.T
        flat = weights_k @ rows.reshape(rows.shape[0], -1)
        return flat.reshape(out_k, out_j, out_i)

    def to_source(
        self,
        channels: npt.NDArray[np.float32],
        wanted: Callable[[npt.NDArray[np.float32]], bool] | None = None,
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Give values on the model's grid back on the source's, slab by slab.

        Parameters
        ----------
        channels : (C, K', J', I') float32
            On the model's grid.
        wanted
            Called with what a slab is interpolated from, (C, slices, ., .); where it says no, the
            slab is passed over. No interpolated value lies beyond those that it sees.

        Yields
        ------
        slices : slice
            Of the source's k.
        values : (C, slices, J, I) float32
        """
        back = np.argsort(self.axes)
        turned = np.stack([self._turn(each) for each in channels])
        here = np.transpose(turned, (0, *(back + 1)))
        weights_k, weights_j, weights_i = (self._weights_back(int(at)) for at in back)
        count = here.shape[0]
        few_j = csr_array(weights_j)
        flat = np.ascontiguousarray(here).reshape(count, here.shape[1], -1)
        for slab in _slabs(self.source.shape_kji, channels=count):
            part = np.matmul(weights_k[slab], flat).reshape(count, -1, *here.shape[2:])
            if wanted is None or wanted(part):
                wide = part @ weights_i.T
                out = np.empty((*part.shape[:2], *self.source.shape_kji[1:]), dtype=np.float32)
                for index in np.ndindex(part.shape[:2]):
                    plane = few_j @ wide[index]
                    if self.upright is not None:
                        plane = self.upright.back(plane, slab.start + index[1])
                    out[index] = plane
                yield slab, out

    @property
    def _straight(self) -> Grid:
        """The source, or the rectangular grid that stands for it."""
        return self.source if self.upright is None else self.upright.grid

    def _weights_to(self, axis: int) -> Weights:
        """Return what makes values along an axis of the model from those of the source."""
        size, step = self.model.shape_kji[axis], self._step(axis)
        if self.axes[axis] == 0 and self.upright is not None:
            weights = self.upright.weights_to(size, step)
            return weights[::-1, ::-1] if self.turned[axis] else weights
        return axis_weights(self._straight.shape_kji[self.axes[axis]], size, step)

    def _weights_back(self, axis: int) -> Weights:
        """Return what makes values along the axis of the source that an axis of the model is."""
        size, step = self.model.shape_kji[axis], self._step(axis)
        if self.axes[axis] == 0 and self.upright is not None:
            return self.upright.weights_back(size, step)
        return axis_weights(size, self._straight.shape_kji[self.axes[axis]], 1 / step)

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


def _slabs(shape_kji: tuple[int, ...], channels: int = 1) -> Iterator[slice]:
    depth = max(1, _SLAB_VOXELS // (channels * shape_kji[1] * shape_kji[2]))
    for start in range(0, shape_kji[0], depth):
        yield slice(start, min(start + depth, shape_kji[0]))
