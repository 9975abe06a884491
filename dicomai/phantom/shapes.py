"""Solids of which an anatomy is built, and how much of a voxel each fills.

Everything is in the body's frame: x to the patient's left, y to the back, z to the head, in
millimetres. A field is negative inside, and near the surface about the distance from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Field: TypeAlias = npt.NDArray[np.float32]
Matrix: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tube:
    """A capsule whose radius changes evenly from one end to the other."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    start_radius: float
    end_radius: float
    hu: float
    displaces_lung: bool = False

    @property
    def centre(self) -> npt.NDArray[np.float64]:
        """The middle, (3,) float64."""
        return np.asarray((np.asarray(self.start) + np.asarray(self.end)) / 2)

    @property
    def half_extent(self) -> npt.NDArray[np.float64]:
        """Half the edges of the box around it, (3,) float64."""
        reach = max(self.start_radius, self.end_radius)
        return np.asarray(np.abs(np.asarray(self.end) - np.asarray(self.start)) / 2 + reach)

    @property
    def thickness(self) -> float:
        """The largest diameter."""
        return 2 * max(self.start_radius, self.end_radius)

    def field(self, x: Field, y: Field, z: Field) -> Field:
        """Return the distance from its surface, negative inside."""
        start, end = np.asarray(self.start), np.asarray(self.end)
        axis = end - start
        length2 = float(axis @ axis) or 1e-6
        dx, dy, dz = (
            np.float32(1) * x - np.float32(start[0]),
            np.float32(1) * y - np.float32(start[1]),
            np.float32(1) * z - np.float32(start[2]),
        )
        a = (axis / length2).astype(np.float32)
        t = np.clip(dx * a[0] + dy * a[1] + dz * a[2], 0, 1)
        b = axis.astype(np.float32)
        away = np.sqrt((dx - t * b[0]) ** 2 + (dy - t * b[1]) ** 2 + (dz - t * b[2]) ** 2)
        radius = np.float32(self.start_radius) + t * np.float32(self.end_radius - self.start_radius)
        return np.asarray(away - radius, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipsoid:
    """An ellipsoid; `axes` holds the directions of its radii as rows, orthonormal."""

    centre_xyz: tuple[float, float, float]
    radii: tuple[float, float, float]
    axes: tuple[tuple[float, float, float], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    hu: float
    displaces_lung: bool = False

    @property
    def centre(self) -> npt.NDArray[np.float64]:
        """The centre, (3,) float64."""
        return np.asarray(self.centre_xyz, dtype=np.float64)

    @property
    def half_extent(self) -> npt.NDArray[np.float64]:
        """Half the edges of the box around it, (3,) float64."""
        scaled = np.asarray(self.axes) * np.asarray(self.radii)[:, None]
        return np.asarray(np.sqrt((scaled**2).sum(axis=0)))

    @property
    def thickness(self) -> float:
        """The smallest diameter."""
        return 2 * min(self.radii)

    def field(self, x: Field, y: Field, z: Field) -> Field:
        """Return about the distance from its surface, negative inside; exact for a ball."""
        dx, dy, dz = (
            x - np.float32(self.centre_xyz[0]),
            y - np.float32(self.centre_xyz[1]),
            z - np.float32(self.centre_xyz[2]),
        )
        norm2: Field = np.zeros((), dtype=np.float32)
        slope2: Field = np.zeros((), dtype=np.float32)
        for axis, radius in zip(self.axes, self.radii, strict=True):
            along = (
                dx * np.float32(axis[0] / radius)
                + dy * np.float32(axis[1] / radius)
                + dz * np.float32(axis[2] / radius)
            )
            norm2 = norm2 + along**2
            slope2 = slope2 + (along / np.float32(radius)) ** 2
        # First-order distance: field / |gradient|; equals the distance where all radii are equal.
        # A tiny offset keeps the centre itself inside.
        norm = np.sqrt(norm2 + np.float32(1e-6))
        slope = np.sqrt(slope2 + np.float32(1e-6 / max(self.radii) ** 2))
        return np.asarray(norm * (norm - 1) / slope, dtype=np.float32)


Solid: TypeAlias = Tube | Ellipsoid


def filled(distance: Field, edge_mm: float) -> Field:
    """Return the share of a voxel that lies inside, 0 to 1, for a flat surface through it.

    Parameters
    ----------
    distance
        Signed distance of the voxel's centre, mm.
    edge_mm
        How wide the surface is blurred: the voxel's width, or the scanner's resolution if larger.
    """
    return np.asarray(np.clip(np.float32(0.5) - distance * np.float32(1 / edge_mm), 0, 1))


def smooth_max(first: Field, second: Field, width: float) -> Field:
    """Return the intersection of two fields with its edge rounded by about `width` mm."""
    gap = np.asarray(first - second)
    np.abs(gap, out=gap)
    np.subtract(np.float32(width), gap, out=gap)
    np.maximum(gap, 0, out=gap)
    np.multiply(gap, gap, out=gap)
    gap *= np.float32(0.25 / width)
    gap += np.maximum(first, second)
    return gap


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lattice:
    """Voxel centres in the body's frame.

    Attributes
    ----------
    index_to_xyz
        (4, 4) float64: (k, j, i, 1) to (x, y, z, 1).
    shape_kji
        Slices, rows, columns.
    """

    index_to_xyz: Matrix
    shape_kji: tuple[int, int, int]
    _xyz_to_index: Matrix = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_xyz_to_index", np.linalg.inv(self.index_to_xyz))

    @property
    def steps_mm(self) -> npt.NDArray[np.float64]:
        """Distance between neighbours along k, j, i."""
        return np.asarray(np.linalg.norm(self.index_to_xyz[:3, :3], axis=0))

    def coordinates(
        self, box: tuple[slice, slice, slice], parts: int = 1
    ) -> tuple[Field, Field, Field]:
        """Return x, y, z of a box of voxels, each broadcastable to the box's shape.

        With `parts`, each slice is cut into that many sub-slices through its thickness, so that
        the first axis is `parts` times as long. An axis along which a coordinate does not change
        has length 1, which makes upright grids cheap.
        """
        k = np.arange(box[0].start * parts, box[0].stop * parts, dtype=np.float64)
        axes = (
            (k - (parts - 1) / 2) / parts,
            np.arange(box[1].start, box[1].stop, dtype=np.float64),
            np.arange(box[2].start, box[2].stop, dtype=np.float64),
        )
        found = []
        for row in self.index_to_xyz[:3]:
            total: npt.NDArray[np.float64] = np.full((1, 1, 1), row[3])
            for axis in range(3):
                if abs(row[axis]) > 1e-9:
                    shape = [1, 1, 1]
                    shape[axis] = -1
                    total = total + (axes[axis] * row[axis]).reshape(shape)
            found.append(total.astype(np.float32))
        return found[0], found[1], found[2]

    def box_around(self, solid: Solid, margin_mm: float) -> tuple[slice, slice, slice] | None:
        """Return the voxels that a solid may touch, or None if there are none."""
        inverse = self._xyz_to_index
        centre = inverse[:3, :3] @ solid.centre + inverse[:3, 3]
        reach = np.abs(inverse[:3, :3]) @ (solid.half_extent + margin_mm)
        low = np.maximum(np.ceil(centre - reach), 0).astype(int)
        high = np.minimum(np.floor(centre + reach) + 1, self.shape_kji).astype(int)
        if (high <= low).any():
            return None
        return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])
