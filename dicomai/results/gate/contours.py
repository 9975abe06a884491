"""The contours of a structure set, filled again and held against the masks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicomai.findings import Detection, Findings, Segment
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.error import refuse
from dicomai.results.gate.planes import Corners, Image, slices_of

TOLERANCE_MM: Final = 0.01
_Sides = set[tuple[tuple[int, int], tuple[int, int]]]


def has_contours(findings: Findings) -> bool:
    """Tell whether a mask with voxels has a place in the patient."""
    return isinstance(findings.where, Grid) and bool(_outlined(findings))


def _outlined(findings: Findings) -> list[Segment | Detection]:
    found: tuple[Segment | Detection, ...] = (*findings.segments, *findings.detections)
    return [each for each in found if each.mask is not None and each.mask.any()]


def check_contours(result: Dataset, findings: Findings, sources: Sequence[Dataset]) -> None:
    """Check the regions one by one, and that nobody is said to have approved them."""
    uid = str(result.SOPInstanceUID)
    if result.get("ApprovalStatus") != "UNAPPROVED":
        refuse("status", uid, "it does not say that no one has approved it")
    assert isinstance(findings.where, Grid)
    frame = findings.where.frame_of_reference_uid
    regions = {int(item.ROINumber): item for item in result.StructureSetROISequence}
    if any(item.ReferencedFrameOfReferenceUID != frame for item in regions.values()) or (
        result.get("FrameOfReferenceUID") != frame
    ):
        refuse("geometry", uid, "its frame of reference is not that of the findings")
    (listed,) = result.ReferencedFrameOfReferenceSequence
    (study,) = listed.RTReferencedStudySequence
    if listed.FrameOfReferenceUID != frame:
        refuse("geometry", uid, "its images are said to lie in another frame of reference")
    if study.ReferencedSOPInstanceUID != result.StudyInstanceUID:
        refuse("references", uid, "its images are said to be of another study")
    wanted = _outlined(findings)
    contours = {int(item.ReferencedROINumber): item for item in result.ROIContourSequence}
    named = [str(regions[number].ROIName) for number in sorted(regions)]
    if named != [each.label[:64] for each in wanted] or set(contours) != set(regions):
        refuse("content", uid, f"its regions are {named}")
    observed = [int(each.ReferencedROINumber) for each in result.RTROIObservationsSequence]
    if sorted(observed) != sorted(regions):
        refuse("content", uid, "its observations are not one of each region")
    if any(
        each.RTROIInterpretedType or each.ROIInterpreter
        for each in result.RTROIObservationsSequence
    ):
        refuse("status", uid, "a region is said to have been interpreted")
    slices = slices_of(uid, findings, sources)
    at = {each.image: k for k, each in enumerate(slices)}
    for number, found in zip(sorted(regions), wanted, strict=True):
        if regions[number].ROIGenerationAlgorithm != "AUTOMATIC":
            refuse("provenance", uid, f"{found.label} is not said to be automatic")
        if regions[number].ROIDescription != found.tracking_id[:1024]:
            refuse("tracking", uid, f"{found.label} is tracked as something else")
        drawn: dict[int, _Sides] = {}
        for contour in contours[number].ContourSequence:
            image = _image(contour)
            if image not in at or contour.ContourGeometricType != "CLOSED_PLANAR":
                refuse("references", uid, f"a contour of {found.label} lies on no slice")
            corners = slices[at[image]].corners
            assert corners is not None
            line = _pixels(contour, corners, uid, slices[0].source)
            _toggle(drawn.setdefault(at[image], set()), line)
        assert found.mask is not None
        for k, plane in enumerate(found.mask):
            filled = _filled(drawn.get(k, set()), plane.shape)
            if filled is None or not np.array_equal(filled, plane):
                refuse("geometry", uid, f"{found.label} differs from its mask at slice {k}")


def _image(contour: Dataset) -> Image:
    (item,) = contour.ContourImageSequence
    return str(item.ReferencedSOPInstanceUID), int(item.get("ReferencedFrameNumber") or 0)


def _pixels(contour: Dataset, corners: Corners, uid: str, source: Dataset) -> list[tuple[int, int]]:
    """Return a contour as row and column of corners of pixels, closed."""
    points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
    if len(points) != contour.NumberOfContourPoints:
        refuse("readable", uid, "a contour has another number of points than it says")
    first, last_column, last_row = corners[0], corners[1], corners[2]
    across = (last_column - first) / (int(source.Columns) - 1)
    down = (last_row - first) / (int(source.Rows) - 1)
    basis = np.column_stack([down, across, np.cross(down, across)])
    index = np.linalg.solve(basis, (points - first).T).T[:, :2] + 0.5
    whole = np.rint(index)
    placed = first + (whole[:, :1] - 0.5) * down + (whole[:, 1:] - 0.5) * across
    if not np.linalg.norm(placed - points, axis=1).max() <= TOLERANCE_MM:  # nor nan
        refuse("geometry", uid, "a contour does not lie on the sides of the pixels of its slice")
    line = [(int(row), int(column)) for row, column in whole]
    return [*line, line[0]]


def _toggle(sides: _Sides, line: list[tuple[int, int]]) -> None:
    """Add the sides of a line; what runs there and back is nothing, as a channel to a hole."""
    for one, other in pairwise(line):
        sides ^= {(min(one, other), max(one, other))}


def _filled(sides: _Sides, shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    turns = np.zeros((shape[0], shape[1] + 1), dtype=bool)
    for (row, column), (row2, column2) in sides:
        if column == column2:
            turns[row:row2, column] ^= True
        elif row != row2:
            return None
    inside: npt.NDArray[np.bool_] = np.logical_xor.accumulate(turns, axis=1)[:, :-1]
    return inside
