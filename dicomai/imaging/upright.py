"""Between slices that are shifted or unevenly spaced and a rectangular, evenly spaced grid.

Slices of a tilted gantry are interpolated along their rows and columns only, unevenly spaced ones
along their normal only. What is linear in place stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from dicomai.imaging.geometry import Grid

_STRAIGHT_PX: Final = 1e-6

Places = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Upright:
    """How the slices of a source lie to a rectangular grid.

    Attributes
    ----------
    grid
        The rectangular grid, with the planes' directions and pixels. It reaches as far as the
        slices do; its first and last plane are the first and last slice.
    shape_ji
        Rows and columns of a slice.
    at_k
        (K,) where each slice lies along the grid, in indices.
    thickness_k
        (K,) how much each slice stands for, in planes of the grid.
    at_ji
        (K, 2) where the first pixel of each slice lies in the planes of the grid, in indices.
    """

    grid: Grid
    shape_ji: tuple[int, int]
    at_k: Places
    thickness_k: Places
    at_ji: Places

    @property
    def tilted(self) -> bool:
        """Whether slices are shifted against each other."""
        return self.grid.shape_kji[1:] != self.shape_ji

    def straightened(
        self, voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
        """Return slices (K, J, I) on the rows and columns of the grid, (K, J', I').

        What a slice does not cover has the lowest of all values.
        """
        if not self.tilted:
            return voxels
        lowest = np.float32(voxels.min())
        out = np.empty((len(voxels), *self.grid.shape_kji[1:]), dtype=np.float32)
        for k, part in enumerate(voxels):
            rows, columns = self._onto(k)
            covered = np.outer(rows.sum(axis=1), columns.sum(axis=1))
            plane = rows @ np.ascontiguousarray(part, dtype=np.float32) @ columns.T
            out[k] = plane + (1 - covered) * lowest
        return out

    def weights_to(self, size: int, step: float) -> Weights:
        """Return what makes `size` planes, `step` planes of the grid apart, from slices.

        Both have the same centre. Linear between slices where the planes are finer than the grid,
        the mean of that over a plane's thickness where they are coarser.
        """
        planes = np.arange(size, dtype=np.float64)
        at = self._centre + (planes - (size - 1) / 2) * step
        if step <= 1:
            return _linear(at, self.at_k)
        far, near = _integral(at + step / 2, self.at_k), _integral(at - step / 2, self.at_k)
        return np.asarray((far - near) / step, dtype=np.float32)

    def weights_back(self, size: int, step: float) -> Weights:
        """Return what makes values at the slices from such planes, (K, size).

        The mean over what a slice stands for, where that is thicker than a plane.
        """
        at = (size - 1) / 2 + (self.at_k - self._centre) / step
        half = np.maximum(self.thickness_k / step, 1e-3) / 2
        planes = np.arange(size, dtype=np.float64)
        mean = (_integral(at + half, planes) - _integral(at - half, planes)) / (2 * half)[:, None]
        thick = (2 * half > 1)[:, None]
        return np.asarray(np.where(thick, mean, _linear(at, planes)), dtype=np.float32)

    def back(self, plane: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
        """Return values (J', I') in the plane of slice k at its own pixels, (J, I)."""
        if not self.tilted:
            return plane
        rows, columns = (
            csr_array(_linear(start + np.arange(size), np.arange(length, dtype=np.float64)))
            for start, size, length in zip(
                self.at_ji[k], self.shape_ji, self.grid.shape_kji[1:], strict=True
            )
        )
        return np.asarray(rows @ plane @ columns.T, dtype=np.float32)

    @property
    def _centre(self) -> float:
        return (self.grid.shape_kji[0] - 1) / 2

    def _onto(self, k: int) -> tuple[csr_array, csr_array]:
        """Return what makes the rows, the columns of a plane of the grid from those of slice k.

        A pixel reaches half a pixel beyond its centre; rows further out are empty.
        """
        out = []
        for start, size, length in zip(
            self.at_ji[k], self.shape_ji, self.grid.shape_kji[1:], strict=True
        ):
            wanted = np.arange(length) - start
            weights = _linear(wanted, np.arange(size, dtype=np.float64))
            weights[(wanted < -0.5) | (wanted > size - 0.5)] = 0
            out.append(csr_array(weights))
        return out[0], out[1]


def upright(source: Grid) -> Upright | None:
    """Return the rectangular grid of a source; None where the source is one itself."""
    tilt = np.array(source.tilt_ji)
    depth, height, width = source.shape_kji
    steps = np.array(source.slice_steps or range(depth), dtype=np.float64)
    shifts = np.outer(steps, tilt)
    if not source.slice_steps and np.abs(shifts).max() < _STRAIGHT_PX:
        return None
    first = np.floor(shifts.min(axis=0) + _STRAIGHT_PX)
    reach = np.ceil(shifts.max(axis=0) - _STRAIGHT_PX) - first
    planes = max(2, round(float(steps[-1])) + 1)
    each = float(steps[-1]) / (planes - 1)  # in steps of the source
    affine = source.index_to_lps.copy()
    along_j, along_i = affine[:3, 1].copy(), affine[:3, 2].copy()
    affine[:3, 0] = (affine[:3, 0] - tilt[0] * along_j - tilt[1] * along_i) * each
    affine[:3, 3] += first[0] * along_j + first[1] * along_i
    return Upright(
        grid=Grid(
            shape_kji=(planes, height + int(reach[0]), width + int(reach[1])),
            index_to_lps=affine,
            frame_of_reference_uid=source.frame_of_reference_uid,
        ),
        shape_ji=(height, width),
        at_k=steps / each,
        thickness_k=source.thickness_k / each,
        at_ji=shifts - first,
    )


def _linear(wanted: Places | npt.NDArray[np.int64], known: Places) -> Weights:
    """Return what interpolates linearly between known places, (wanted, known) float32.

    Known places grow; beyond the last its value goes on.
    """
    if len(known) == 1:
        return np.ones((len(wanted), 1), dtype=np.float32)
    places = np.clip(wanted, known[0], known[-1])
    below = np.clip(np.searchsorted(known, places, side="right") - 1, 0, len(known) - 2)
    share = (places - known[below]) / (known[below + 1] - known[below])
    out = np.zeros((len(places), len(known)), dtype=np.float32)
    rows = np.arange(len(places))
    out[rows, below] = 1 - share
    out[rows, below + 1] = share
    return out


def _integral(upto: Places, known: Places) -> Places:
    """Return the integral of the same interpolation from the first known place, (upto, known)."""
    t = np.clip(upto, known[0], known[-1])[:, None]
    gaps = np.diff(known)
    along = np.clip((t - known[:-1]) / gaps, 0, 1)  # of each gap, how much is passed
    out = np.zeros((len(upto), len(known)))
    out[:, :-1] += gaps * (along - along**2 / 2)
    out[:, 1:] += gaps * along**2 / 2
    out[:, 0] += np.minimum(upto - known[0], 0)
    out[:, -1] += np.maximum(upto - known[-1], 0)
    return out
