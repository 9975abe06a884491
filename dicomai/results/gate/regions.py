"""Where a report says that something lies, held against where it was found."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicomai.findings import Box, Detection, Findings, PixelBox, Sphere
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.content import name, walk
from dicomai.results.gate.error import refuse

TOLERANCE_MM: Final = 0.01


def check_region(uid: str, group: Dataset, found: Detection, findings: Findings) -> None:
    """Check that what a group says of a place is where it was found."""
    if isinstance(found.region, PixelBox):
        if found.mask is None or not found.mask.any():
            _on_image(uid, group, found.region)
        return
    if not isinstance(findings.where, Grid):
        refuse("coordinates", uid, f'"{found.tracking_id}" has no place in a projection image')
    points = _points(group, "111010")
    if len(points) != 1 or points[0].shape != (1, 3):
        refuse("coordinates", uid, f'"{found.tracking_id}" has no centre')
    if isinstance(found.region, Sphere):
        middle = np.array(found.region.centre_lps_mm)
        wanted = _ends(middle, found.region.diameter_mm / 2)
    else:
        middle = np.mean([found.region.corner_lps_mm, found.region.opposite_lps_mm], axis=0)
        wanted = _box_corners(found.region, findings.where)
    if not np.abs(points[0][0] - middle).max() <= TOLERANCE_MM:  # nor nan
        refuse("coordinates", uid, f'the centre of "{found.tracking_id}" lies elsewhere')
    surface = _points(group, "121231")
    if len(points) + len(surface) != sum(item.ValueType == "SCOORD3D" for item in walk(group)):
        refuse("coordinates", uid, f'"{found.tracking_id}" has more places than one')
    if found.mask is not None and found.mask.any():
        if surface:
            refuse("coordinates", uid, f'"{found.tracking_id}" has a segment and an outline')
        return  # its voxels say where it is, and were checked
    if not surface or not _same_points(np.concatenate(surface), wanted):
        refuse("coordinates", uid, f'the outline of "{found.tracking_id}" lies elsewhere')


def _points(group: Dataset, concept: str) -> list[npt.NDArray[np.float64]]:
    return [
        np.array(item.GraphicData, dtype=np.float64).reshape(-1, 3)
        for item in group.ContentSequence
        if item.ValueType == "SCOORD3D" and name(item) == concept
    ]


def _same_points(ours: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> bool:
    """Tell whether both sets hold the same points, in whatever order."""
    apart = np.linalg.norm(ours[:, None] - wanted[None], axis=2)
    return bool(apart.min(axis=0).max() <= TOLERANCE_MM and apart.min(axis=1).max() <= TOLERANCE_MM)


def _ends(middle: npt.NDArray[np.float64], radius: float) -> npt.NDArray[np.float64]:
    return np.concatenate([middle + radius * np.eye(3), middle - radius * np.eye(3)])


def _box_corners(box: Box, grid: Grid) -> npt.NDArray[np.float64]:
    """Return the eight corners: the diagonal, split along the axes of the grid."""
    axes = grid.index_to_lps[:3, :3]
    first = np.array(box.corner_lps_mm)
    steps = np.linalg.solve(axes, np.array(box.opposite_lps_mm) - first)
    return np.array(
        [
            first + axes @ (steps * np.array([k, j, i]))
            for k in (0, 1)
            for j in (0, 1)
            for i in (0, 1)
        ]
    )


def _on_image(uid: str, group: Dataset, box: PixelBox) -> None:
    outlines = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
    if len(outlines) != 1:
        refuse("coordinates", uid, "a box on an image has no outline, or several")
    image = outlines[0].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    if image != box.sop_instance_uid:
        refuse("coordinates", uid, "a box lies on another image than the one it was found on")
    points = list(pairwise(outlines[0].GraphicData))[::2]  # column, row
    # The centre of pixel (0, 0) is at (0.5, 0.5) (PS3.3 C.18.6.1.2): whole pixels reach half out.
    (top, left), (bottom, right) = box.first_ji, box.last_ji
    low = (left + 0.5 - 0.5, top + 0.5 - 0.5)
    high = (right + 0.5 + 0.5, bottom + 0.5 + 0.5)
    found = np.array(points, dtype=np.float64)
    off = (np.abs(found.min(axis=0) - low).max(), np.abs(found.max(axis=0) - high).max())
    if not all(each <= TOLERANCE_MM for each in off):  # nor nan
        refuse("coordinates", uid, "a box lies elsewhere on its image")
