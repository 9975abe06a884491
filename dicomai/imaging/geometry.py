"""Where voxels lie: patient coordinates are LPS in millimetres (PS3.3 C.7.6.2.1.1).

Indices are of voxel centres: (k, j, i) is slice, row, column, and (0, 0, 0) is the centre of the
first voxel. Only an encoder adds the half pixel that SCOORD wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Affine: TypeAlias = npt.NDArray[np.float64]
"""(4, 4) float64: takes (k, j, i, 1) of a voxel's centre to LPS millimetres."""

Point: TypeAlias = npt.NDArray[np.float64]
"""(3,) float64: LPS millimetres."""

OFF_GRID_MM: Final = 0.2
"""How far a voxel of a volume may lie from where its own image puts it. The one statement of it:
what lies further off is refused when the volume is made, and when its results are checked."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """The grid of a volume in the patient, with the image that each slice came from.

    Attributes
    ----------
    shape_kji
        Slices, rows, columns.
    index_to_lps
        (4, 4) float64, see `Affine`. Columns 0, 1, 2 are the steps from slice to slice, row to
        row, column to column.
    frame_of_reference_uid
        Grids are comparable only where these are equal.
    sop_instance_uids
        The source image of each slice, by k; empty for a grid that no image lies on. Slices of an
        enhanced multi-frame object all name that object.
    frame_numbers
        The frame of the source image that each slice is, by k, from 1 (what Referenced Frame Number
        wants, PS3.3 10.3); empty where every source image has one frame.
    """

    shape_kji: tuple[int, int, int]
    index_to_lps: Affine
    frame_of_reference_uid: str
    sop_instance_uids: tuple[str, ...] = ()
    frame_numbers: tuple[int, ...] = ()

    @property
    def spacing_kji_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along k, j, i."""
        steps = np.linalg.norm(self.index_to_lps[:3, :3], axis=0)
        return (float(steps[0]), float(steps[1]), float(steps[2]))

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.index_to_lps[:3, :3])))

    def lps_mm(self, kji: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the patient coordinates of indices: (..., 3) to (..., 3) float64."""
        index = np.asarray(kji, dtype=np.float64)
        return index @ self.index_to_lps[:3, :3].T + self.index_to_lps[:3, 3]

    def kji(self, lps_mm: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the (fractional) indices of patient coordinates: (..., 3) to (..., 3) float64."""
        moved = np.asarray(lps_mm, dtype=np.float64) - self.index_to_lps[:3, 3]
        return np.asarray(np.linalg.solve(self.index_to_lps[:3, :3], moved[..., None])[..., 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The pixels of a projection image, which has no place in the patient.

    Attributes
    ----------
    shape_ji
        Rows, columns.
    spacing_ji_mm
        Between rows, between columns, on the detector; None where the image does not say.
    sop_instance_uid
        The image.
    """

    shape_ji: tuple[int, int]
    spacing_ji_mm: tuple[float, float] | None
    sop_instance_uid: str
