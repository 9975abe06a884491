"""A flat view of a volume as radiologists hang it, with the sides of the patient at its edges.

The patient's right is on the viewer's left, front or head on top, and a millimetre is as long
across as down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from dicomai.imaging.geometry import Grid

Axis = Literal[0, 1, 2]
_LETTERS: Final = (("R", "L"), ("A", "P"), ("F", "H"))
_PLANES: Final = ("sagittal", "coronal", "axial")
_LONGEST_PX: Final = 760
_MOST_ZOOM: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One plane of a grid, on the screen.

    Attributes
    ----------
    plane
        What it is called: axial, coronal, sagittal, by the nearest axis of the patient.
    normal, index
        The axis of the grid (k, j, i) that is looked along, and the index on it.
    down, across
        The axes of the grid that run down and across the screen.
    flip_down, flip_across
        Whether they run against their index.
    px_per_voxel
        Down, across.
    size_px
        Height, width.
    px_per_mm
        The scale, the same down and across.
    sides
        Letters of the patient's sides: left, right, top, bottom of the screen.
    """

    plane: str
    normal: Axis
    index: int
    down: Axis
    across: Axis
    flip_down: bool
    flip_across: bool
    px_per_voxel: tuple[float, float]
    size_px: tuple[int, int]
    px_per_mm: float
    sides: tuple[str, str, str, str]

    def cut(self, volume: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return the plane of a (K, J, I) array as it hangs: (down, across)."""
        flat: npt.NDArray[np.generic] = np.take(volume, self.index, axis=self.normal)
        if self.down > self.across:
            flat = flat.T
        if self.flip_down:
            flat = flat[::-1]
        return flat[:, ::-1] if self.flip_across else flat

    def px(self, kji: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> tuple[float, float]:
        """Return where an index lies on the screen: x, y from the upper left corner."""
        y, x = float(kji[self.down]), float(kji[self.across])
        y = shape[self.down] - 1 - y if self.flip_down else y
        x = shape[self.across] - 1 - x if self.flip_across else x
        return (x + 0.5) * self.px_per_voxel[1], (y + 0.5) * self.px_per_voxel[0]


def view(grid: Grid, normal: Axis, index: int) -> View:
    """Return the view along an axis of the grid."""
    patient = _patient_axes(grid)
    others: list[Axis] = [axis for axis in (0, 1, 2) if axis != normal]
    # Right to left goes across, then front to back; what is left goes down.
    across, down = sorted(others, key=lambda axis: patient[axis])
    directions = grid.index_to_lps[:3, :3]
    down_is_feet = patient[down] == 2
    towards_down = directions[patient[down], down] > 0
    flip_down = bool(towards_down if down_is_feet else not towards_down)
    flip_across = bool(directions[patient[across], across] < 0)
    spacing = grid.spacing_kji_mm
    height_mm = grid.shape_kji[down] * spacing[down]
    width_mm = grid.shape_kji[across] * spacing[across]
    scale = min(
        _LONGEST_PX / max(height_mm, width_mm), _MOST_ZOOM / min(spacing[down], spacing[across])
    )
    low, high = _LETTERS[patient[across]]
    first, last = _LETTERS[patient[down]]
    top, bottom = (last, first) if down_is_feet else (first, last)
    return View(
        plane=_PLANES[patient[normal]],
        normal=normal,
        index=index,
        down=down,
        across=across,
        flip_down=flip_down,
        flip_across=flip_across,
        px_per_voxel=(spacing[down] * scale, spacing[across] * scale),
        size_px=(max(1, round(height_mm * scale)), max(1, round(width_mm * scale))),
        sides=(low, high, top, bottom),
        px_per_mm=scale,
    )


def axis_towards(grid: Grid, patient_axis: Axis) -> Axis:
    """Return the axis of the grid that runs nearest to x, y or z of the patient."""
    found: Axis = _AXES[_patient_axes(grid).index(patient_axis)]
    return found


_AXES: Final[tuple[Axis, Axis, Axis]] = (0, 1, 2)


def _patient_axes(grid: Grid) -> list[Axis]:
    """Return for k, j, i the nearest axis of the patient, each one once."""
    steps = np.abs(grid.index_to_lps[:3, :3] / np.array(grid.spacing_kji_mm))
    best = max(
        ((x, y, z) for x in _AXES for y in _AXES for z in _AXES if len({x, y, z}) == 3),
        key=lambda order: float(sum(steps[order[axis], axis] for axis in _AXES)),
    )
    return list(best)
