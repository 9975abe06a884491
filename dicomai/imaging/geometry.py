"""Where voxels lie: patient coordinates are LPS in millimetres (PS3.3 C.7.6.2.1.1).

Indices are of voxel centres: (k, j, i) is slice, row, column, and (0, 0, 0) is the centre of the
first voxel. Only an encoder adds the half pixel that SCOORD wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Affine: TypeAlias = npt.NDArray[np.float64]
"""(4, 4) float64: takes (k, j, i, 1) of a voxel's centre to LPS millimetres."""

Point: TypeAlias = npt.NDArray[np.float64]
"""(3,) float64: LPS millimetres."""

OFF_GRID_MM: Final = 0.2
"""How far a voxel of a volume may lie from where its own image puts it; see `off_grid_mm`."""
_OPPOSITE: Final = str.maketrans("APRLHF", "PALRFH")
_ROUNDED_COSINES: Final = 1e-3
"""Some modalities write direction cosines with three decimals."""
_TURN: Final = 2 * _ROUNDED_COSINES
"""So far a rounded direction may be from that of the grid, which comes of rounded ones too."""
_OF_FLOAT32: Final = 1e-4
"""Of the last decimal: what numbers lose that were such on their way."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """The grid of a volume in the patient, with the image that each slice came from.

    Attributes
    ----------
    shape_kji
        Slices, rows, columns.
    index_to_lps
        (4, 4) float64, see `Affine`. Columns 0, 1, 2 are the steps from slice to slice, row to
        row, column to column. With a tilted gantry the first is not at right angles to the others.
    frame_of_reference_uid
        Grids are comparable only where these are equal.
    sop_instance_uids
        The source image of each slice, by k; empty for a grid that no image lies on. Slices of an
        enhanced multi-frame object all name that object.
    frame_numbers
        The frame of the source image that each slice is, by k, from 1 (what Referenced Frame Number
        wants, PS3.3 10.3); empty where every source image has one frame.
    slice_steps
        How many of the affine's steps from slice to slice each slice lies from the first, by k;
        empty where slices are evenly spaced, so that this is k. Then `lps_mm` says where a voxel
        lies, and the affine alone does not.
    """

    shape_kji: tuple[int, int, int]
    index_to_lps: Affine
    frame_of_reference_uid: str
    sop_instance_uids: tuple[str, ...] = ()
    frame_numbers: tuple[int, ...] = ()
    slice_steps: tuple[float, ...] = ()

    @property
    def spacing_kji_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring slices, along their normal, and rows and columns.

        Where slices are unevenly spaced, the usual distance.
        """
        rows, columns = (float(step) for step in np.linalg.norm(self.index_to_lps[:3, 1:3], axis=0))
        return (self.voxel_mm3 / (rows * columns), rows, columns)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel; where slices are unevenly spaced, between two of usual distance."""
        return float(abs(np.linalg.det(self.index_to_lps[:3, :3])))

    @property
    def tilt_ji(self) -> tuple[float, float]:
        """How many rows and columns each slice is shifted against the one before."""
        step, row, column = self.index_to_lps[:3, :3].T
        return float(step @ row / (row @ row)), float(step @ column / (column @ column))

    @property
    def thickness_k(self) -> npt.NDArray[np.float64]:
        """How much each slice stands for, (K,) float64 in steps: half way to both neighbours."""
        if not self.slice_steps:
            return np.ones(self.shape_kji[0])
        gaps = np.diff(self.slice_steps)
        return np.asarray((np.append(gaps, gaps[-1]) + np.insert(gaps, 0, gaps[0])) / 2)

    def lps_mm(self, kji: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the patient coordinates of indices: (..., 3) to (..., 3) float64."""
        index = np.asarray(kji, dtype=np.float64)
        if self.slice_steps:
            index = index.copy()
            index[..., 0] = _along(
                np.arange(len(self.slice_steps)), self.slice_steps, index[..., 0]
            )
        return index @ self.index_to_lps[:3, :3].T + self.index_to_lps[:3, 3]

    def kji(self, lps_mm: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the (fractional) indices of patient coordinates: (..., 3) to (..., 3) float64."""
        moved = np.asarray(lps_mm, dtype=np.float64) - self.index_to_lps[:3, 3]
        index = np.asarray(np.linalg.solve(self.index_to_lps[:3, :3], moved[..., None])[..., 0])
        if self.slice_steps:
            index[..., 0] = _along(
                self.slice_steps, np.arange(len(self.slice_steps)), index[..., 0]
            )
        return index


def _along(
    known: npt.ArrayLike, values: npt.ArrayLike, wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return values between known ones, linearly; beyond the last two their line goes on."""
    x, y = np.asarray(known, dtype=np.float64), np.asarray(values, dtype=np.float64)
    out = np.interp(wanted, x, y)
    for end, inner in ((0, 1), (-1, -2)):
        beyond = wanted < x[end] if end == 0 else wanted > x[end]
        slope = (y[end] - y[inner]) / (x[end] - x[inner])
        out = np.where(beyond, y[end] + (wanted - x[end]) * slope, out)
    return np.asarray(out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The pixels of a projection image, which has no place in the patient.

    Attributes
    ----------
    shape_ji
        Rows, columns.
    spacing_ji_mm
        Between rows, between columns; None where the image does not say.
    spacing_at
        Where it holds: in the "patient" where someone calibrated it or an ultrasound scanner or a
        microscope measured it, on the "detector" of an X-ray, which is further from the tube, so
        that lengths come out too long; empty without a spacing.
    sop_instance_uid
        The image.
    aspect_ji
        How high and how wide a pixel is, in proportion; counts where nobody knows the spacing.
    runs_to
        The sides of the patient to which rows and columns run, as ("L", "F") of a chest; None where
        the image does not say (Patient Orientation, PS3.3 C.7.6.1.1.1).
    """

    shape_ji: tuple[int, int]
    spacing_ji_mm: tuple[float, float] | None
    sop_instance_uid: str
    spacing_at: Literal["patient", "detector", ""] = ""
    aspect_ji: tuple[float, float] = (1.0, 1.0)
    runs_to: tuple[str, str] | None = None

    @property
    def sides(self) -> tuple[str, str, str, str] | None:
        """The patient's sides at the left, right, top and bottom of the image; None: not known."""
        if self.runs_to is None:
            return None
        right, bottom = self.runs_to
        return right.translate(_OPPOSITE), right, bottom.translate(_OPPOSITE), bottom

    @property
    def pixel_ji(self) -> tuple[float, float]:
        """How high and how wide a pixel is: mm where its spacing is known, else in proportion."""
        return self.spacing_ji_mm or self.aspect_ji


def off_grid_mm(cosines: npt.NDArray[np.float64], grid: Grid) -> float:
    """Return how far a voxel of a slice may lie from where its own image puts it.

    The one statement of it: what lies further off is refused when the volume is made, and when its
    results are checked. Cosines of three decimals turn a slice by what was rounded: what that does
    at its far corner is added.

    Parameters
    ----------
    cosines : (6,) float64
        Image Orientation (Patient) of the slice.
    grid
        The volume that it belongs to.
    """
    last = cosines / _ROUNDED_COSINES
    along_j, along_i = grid.index_to_lps[:3, 1], grid.index_to_lps[:3, 2]
    between_rows, between_columns = np.linalg.norm(along_j), np.linalg.norm(along_i)
    off = (cosines[:3] - along_i / between_columns, cosines[3:] - along_j / between_rows)
    across, down = (float(np.linalg.norm(each)) for each in off)
    if np.abs(last - np.round(last)).max() > _OF_FLOAT32 or max(across, down) > _TURN:
        return OFF_GRID_MM
    _, rows, columns = grid.shape_kji
    return float(
        OFF_GRID_MM + across * (columns - 1) * between_columns + down * (rows - 1) * between_rows
    )
