"""How the grid of the images and the grid of a model lie to each other, and the way there.

Axes are exchanged and turned round to those of the patient that lie nearest, and each is
resampled by itself; nothing is rotated, so an oblique series stays as oblique as it is. Both
grids have the same centre. Slices of a tilted gantry and unevenly spaced ones are first brought
onto a rectangular grid, and results from it onto the slices again.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from dicomai.imaging.geometry import Grid
from dicomai.imaging.upright import Upright, upright
from dicomai.imaging.weights import Complete, Plane, Weights, axis_weights, is_identity

SLAB_VOXELS: Final = 1 << 22
"""That are resampled at a time, of all channels."""

DIRECTIONS: Final = {
    "R": (-1, 0, 0),
    "L": (1, 0, 0),
    "A": (0, -1, 0),
    "P": (0, 1, 0),
    "F": (0, 0, -1),
    "H": (0, 0, 1),
}
"""Letters of PS3.3 C.7.6.1.1.1, as LPS directions."""


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
        plane = Plane(weights_j, weights_i)
        if is_identity(weights_k):
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
