"""Where a report says that something lies, held against where it was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicomai.findings import Box, Detection, Findings, PixelBox, Sphere
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.content import name, walk
from dicomai.results.gate.error import refuse

TOLERANCE_MM: Final = 0.01
_Points: TypeAlias = npt.NDArray[np.float64]
_Shape: TypeAlias = tuple[str, _Points]
"""Graphic Type and points of a region."""


def check_region(uid: str, group: Dataset, found: Detection, findings: Findings) -> None:
    """Check that what a group says of a place is where it was found."""
    if isinstance(found.region, PixelBox):
        if found.mask is None or not found.mask.any():
            _on_image(uid, group, found.region)
        return
    if not isinstance(findings.where, Grid):
        refuse("coordinates", uid, f'"{found.tracking_id}" has no place in a projection image')
    points = _points(group, "111010")
    if len(points) != 1 or points[0][0] != "POINT" or points[0][1].shape != (1, 3):
        refuse("coordinates", uid, f'"{found.tracking_id}" has no centre')
    if isinstance(found.region, Sphere):
        middle = np.array(found.region.centre_lps_mm)
    else:
        middle = np.mean([found.region.corner_lps_mm, found.region.opposite_lps_mm], axis=0)
    if not np.abs(points[0][1][0] - middle).max() <= TOLERANCE_MM:  # nor nan
        refuse("coordinates", uid, f'the centre of "{found.tracking_id}" lies elsewhere')
    surface = _points(group, "121231")
    if len(points) + len(surface) != sum(item.ValueType == "SCOORD3D" for item in walk(group)):
        refuse("coordinates", uid, f'"{found.tracking_id}" has more places than one')
    if found.mask is not None and found.mask.any():
        if surface:
            refuse("coordinates", uid, f'"{found.tracking_id}" has a segment and an outline')
        return  # its voxels say where it is, and were checked
    if isinstance(found.region, Sphere):
        right = _is_ball(surface, middle, found.region.diameter_mm)
    else:
        right = _is_box(surface, *_box_faces(found.region, findings.where))
    if not right:
        refuse("coordinates", uid, f'the outline of "{found.tracking_id}" lies elsewhere')


def _points(group: Dataset, concept: str) -> list[_Shape]:
    return [
        (str(item.GraphicType), np.array(item.GraphicData, dtype=np.float64).reshape(-1, 3))
        for item in group.ContentSequence
        if item.ValueType == "SCOORD3D" and name(item) == concept
    ]


def _is_ball(surface: Sequence[_Shape], middle: _Points, diameter_mm: float) -> bool:
    """Tell whether there is one ellipsoid: the ends of three axes, two by two (C.18.9.1.2)."""
    if [(kind, ends.shape) for kind, ends in surface] != [("ELLIPSOID", (6, 3))]:
        return False
    one, other = surface[0][1][::2], surface[0][1][1::2]
    off = np.abs((one + other) / 2 - middle).max()
    axes = (one - other) / diameter_mm
    skew = np.abs(axes @ axes.T - np.eye(3)).max() * diameter_mm  # of length 1, at right angles
    return bool(off <= TOLERANCE_MM and skew <= TOLERANCE_MM)


def _is_box(surface: Sequence[_Shape], near: _Points, far: _Points) -> bool:
    """Tell whether there are two polygons, the faces of a box."""
    if [kind for kind, _ in surface] != ["POLYGON", "POLYGON"]:
        return False
    (_, one), (_, other) = surface
    return (_outlines(one, near) and _outlines(other, far)) or (
        _outlines(one, far) and _outlines(other, near)
    )


def _outlines(line: _Points, corners: _Points) -> bool:
    """Tell whether a closed line runs from corner to corner, whichever is first, either way."""
    if line.shape != (len(corners) + 1, corners.shape[1]):
        return False
    ways = [np.roll(each, first, axis=0) for each in (corners, corners[::-1]) for first in range(4)]
    return any(np.abs(line - np.vstack([way, way[:1]])).max() <= TOLERANCE_MM for way in ways)


def _box_faces(box: Box, grid: Grid) -> tuple[_Points, _Points]:
    """Return the corners of both faces along k, in turn: the diagonal, split along the grid."""
    axes = grid.index_to_lps[:3, :3]
    first = np.array(box.corner_lps_mm)
    steps = np.linalg.solve(axes, np.array(box.opposite_lps_mm) - first)
    around = ((0, 0), (0, 1), (1, 1), (1, 0))
    near, far = (
        np.array([first + axes @ (steps * np.array([k, j, i])) for j, i in around]) for k in (0, 1)
    )
    return near, far


def _on_image(uid: str, group: Dataset, box: PixelBox) -> None:
    outlines = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
    if len(outlines) != 1:
        refuse("coordinates", uid, "a box on an image has no outline, or several")
    image = outlines[0].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    if image != box.sop_instance_uid:
        refuse("coordinates", uid, "a box lies on another image than the one it was found on")
    # The centre of pixel (0, 0) is at (0.5, 0.5) (PS3.3 C.18.6.1.2): whole pixels reach half out,
    # and (0.0, 0.0) is the outer corner of the first.
    (top, left), (bottom, right) = box.first_ji, box.last_ji
    right, bottom = right + 1, bottom + 1
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])  # column, row
    line = np.array(outlines[0].GraphicData, dtype=np.float64).reshape(-1, 2)
    if outlines[0].GraphicType != "POLYLINE" or not _outlines(line, corners):
        refuse("coordinates", uid, "a box lies elsewhere on its image")
