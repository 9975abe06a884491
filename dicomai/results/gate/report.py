"""The content of a report, walked item by item and held against the findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.findings import (
    Box,
    Classification,
    Detection,
    Findings,
    Measurement,
    PixelBox,
    Segment,
    Sphere,
)
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.error import refuse
from dicomai.results.gate.header import code_of, known_instances

TOLERANCE_MM: Final = 0.01
_Found = Segment | Detection | Classification
Numbers = Mapping[str, tuple[int, str]]


def check_report(
    report: Dataset,
    seg: Dataset | None,
    numbers: Numbers,
    findings: Findings,
    sources: Sequence[Dataset],
) -> None:
    """Check a Comprehensive 3D SR with TID 1500 as root.

    Parameters
    ----------
    report, seg
        As read back; no SEG where no mask has a voxel.
    numbers
        Tracking id to (segment number, tracking UID) of the SEG.
    findings, sources
        What was found, in what.
    """
    uid = str(report.SOPInstanceUID)
    _status(report, uid)
    items = list(_walk(report))
    _references(uid, items, seg, findings, sources)
    groups = _groups(uid, items)
    _words(uid, items, findings)
    all_found: tuple[_Found, ...] = (
        *findings.segments,
        *findings.detections,
        *findings.classifications,
    )
    expected = {
        found.tracking_id: found
        for found in all_found
        if not isinstance(found, Segment) or found.mask.any()
    }
    if not expected:
        if len(groups) != 1 or _codes(next(iter(groups.values())), "121071") != ["260415000"]:
            refuse("content", uid, "nothing was found, and it does not say just that")
        return
    if set(groups) != set(expected):
        refuse("content", uid, f"its findings are {sorted(groups)}, not {sorted(expected)}")
    for tracking_id, found in expected.items():
        group = groups[tracking_id]
        _tracking(uid, group, tracking_id, numbers, seg)
        _algorithm(uid, group, findings)
        if isinstance(found, Classification):
            _classified(uid, group, found)
        else:
            _measured(uid, group, found.measurements)
            wanted = found.type if isinstance(found, Segment) else found.finding
            if _codes(group, "121071") != [wanted.value]:
                refuse("content", uid, f'"{tracking_id}" is not coded as {wanted.meaning}')
            if found.laterality and _sides(group) != [found.laterality.value]:
                refuse("content", uid, f'"{tracking_id}" is not on the side that was found')
        if isinstance(found, Detection):
            _certain(uid, group, found.probability)
            _region(uid, group, found, findings)


def _status(report: Dataset, uid: str) -> None:
    wanted = {
        "VerificationFlag": "UNVERIFIED",
        "CompletionFlag": "COMPLETE",
        "PreliminaryFlag": "PRELIMINARY",
    }
    for keyword, value in wanted.items():
        if report.get(keyword) != value:
            refuse("status", uid, f"{keyword} is {report.get(keyword)}, not {value}")
    if "VerifyingObserverSequence" in report:
        refuse("status", uid, "it names someone who verified it")
    template = report.ContentTemplateSequence[0]
    if (template.MappingResource, template.TemplateIdentifier) != ("DCMR", "1500"):
        refuse("attributes", uid, "its root is not TID 1500")


def _walk(holder: Dataset) -> Iterator[Dataset]:
    for item in holder.get("ContentSequence") or ():
        yield item
        yield from _walk(item)


def _name(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return code_of(names[0]) if names else ""


def _groups(uid: str, items: list[Dataset]) -> dict[str, Dataset]:
    groups: dict[str, Dataset] = {}
    for item in items:
        if item.ValueType == "CONTAINER" and _name(item) == "125007":
            ids = [str(each.TextValue) for each in item.ContentSequence if _name(each) == "112039"]
            if len(ids) != 1 or ids[0] in groups:
                refuse("tracking", uid, "a group has no tracking identifier of its own")
            groups[ids[0]] = item
    return groups


def _references(
    uid: str,
    items: list[Dataset],
    seg: Dataset | None,
    findings: Findings,
    sources: Sequence[Dataset],
) -> None:
    known = known_instances(findings, sources)
    if seg is not None:
        known.add(str(seg.SOPInstanceUID))
    for item in items:
        for reference in item.get("ReferencedSOPSequence") or ():
            if reference.ReferencedSOPInstanceUID not in known:
                refuse(
                    "references",
                    uid,
                    f"it refers to {reference.ReferencedSOPInstanceUID}, which is neither an input "
                    "nor a result",
                )
    frame_of_reference = getattr(findings.where, "frame_of_reference_uid", None)
    for item in items:
        if item.ValueType == "SCOORD3D" and (
            item.ReferencedFrameOfReferenceUID != frame_of_reference
        ):
            refuse("coordinates", uid, "a region lies in another frame of reference")


def _words(uid: str, items: list[Dataset], findings: Findings) -> None:
    said = "\n".join(str(item.TextValue) for item in items if item.ValueType == "TEXT")
    algorithm = findings.algorithm
    must = (
        algorithm.intended_use,
        algorithm.not_for,
        findings.sought,
        *findings.deviations,
        *findings.warnings,
    )
    for text in must:
        if text not in said:
            refuse("provenance", uid, f'its words lack "{text}"')
    if "UNVERIFIED" not in said:
        refuse("status", uid, "its words do not say that no one has checked it")


def _tracking(
    uid: str, group: Dataset, tracking_id: str, numbers: Numbers, seg: Dataset | None
) -> None:
    uids = [str(item.UID) for item in group.ContentSequence if _name(item) == "112040"]
    if len(uids) != 1:
        refuse("tracking", uid, f'"{tracking_id}" has no tracking UID')
    drawn = [item for item in group.ContentSequence if _name(item) == "121191"]
    if tracking_id not in numbers:
        if drawn:
            refuse("references", uid, f'"{tracking_id}" refers to a segment that is not there')
        return
    number, tracking_uid = numbers[tracking_id]
    if uids != [tracking_uid]:
        refuse("tracking", uid, f'"{tracking_id}" has another tracking UID than its segment')
    assert seg is not None
    references = [item.ReferencedSOPSequence[0] for item in drawn]
    if [
        (str(each.ReferencedSOPInstanceUID), int(each.ReferencedSegmentNumber))
        for each in references
    ] != [(str(seg.SOPInstanceUID), number)]:
        refuse("references", uid, f'"{tracking_id}" does not refer to its segment')


def _algorithm(uid: str, group: Dataset, findings: Findings) -> None:
    algorithm = findings.algorithm
    said = {
        name: [str(item.TextValue) for item in group.ContentSequence if _name(item) == name]
        for name in ("111001", "111003", "111002")
    }
    if said["111001"] != [algorithm.name] or said["111003"] != [algorithm.version]:
        refuse("provenance", uid, "a group names another algorithm or version")
    if not any(algorithm.package_sha256 in text for text in said["111002"]):
        refuse("provenance", uid, "a group lacks the digest of the model's package")


def _codes(group: Dataset, name: str) -> list[str]:
    return [
        code_of(item.ConceptCodeSequence[0])
        for item in group.ContentSequence
        if item.ValueType == "CODE" and _name(item) == name
    ]


def _sides(group: Dataset) -> list[str]:
    return [
        code_of(item.ConceptCodeSequence[0])
        for item in _walk(group)
        if item.ValueType == "CODE" and _name(item) == "272741003"
    ]


def _numbers(group: Dataset, name: Code) -> list[tuple[float, str]]:
    return [
        (float(value.NumericValue), code_of(value.MeasurementUnitsCodeSequence[0]))
        for item in group.ContentSequence
        if item.ValueType == "NUM" and _name(item) == name.value
        for value in item.MeasuredValueSequence
    ]


def _measured(uid: str, group: Dataset, measurements: tuple[Measurement, ...]) -> None:
    for measurement in measurements:
        if not any(
            unit == measurement.unit.value
            and abs(value - measurement.value) <= 1e-6 * max(1.0, abs(measurement.value))
            for value, unit in _numbers(group, measurement.name)
        ):
            refuse("content", uid, f"{measurement.name.meaning} is not {measurement.value}")


def _certain(uid: str, group: Dataset, probability: float) -> None:
    said = _numbers(group, Code("111012", "DCM", "Certainty of Finding"))
    if len(said) != 1 or said[0][1] != "%" or abs(said[0][0] - probability * 100) > 1e-4:
        refuse("content", uid, "a probability differs from what the model said")


def _classified(uid: str, group: Dataset, found: Classification) -> None:
    _certain(uid, group, found.probability)
    if _codes(group, found.finding.value) != ["52101004" if found.present else "272519000"]:
        refuse("content", uid, f"{found.finding.meaning} is not said to be what was found")


def _region(uid: str, group: Dataset, found: Detection, findings: Findings) -> None:
    if isinstance(found.region, PixelBox):
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
    if np.abs(points[0][0] - middle).max() > TOLERANCE_MM:
        refuse("coordinates", uid, f'the centre of "{found.tracking_id}" lies elsewhere')
    surface = _points(group, "121231")
    if found.mask is not None and found.mask.any():
        return  # its voxels say where it is, and were checked
    if not surface or not _same_points(np.concatenate(surface), wanted):
        refuse("coordinates", uid, f'the outline of "{found.tracking_id}" lies elsewhere')


def _points(group: Dataset, name: str) -> list[npt.NDArray[np.float64]]:
    return [
        np.array(item.GraphicData, dtype=np.float64).reshape(-1, 3)
        for item in group.ContentSequence
        if item.ValueType == "SCOORD3D" and _name(item) == name
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
    if (
        np.abs(found.min(axis=0) - low).max() > TOLERANCE_MM
        or np.abs(found.max(axis=0) - high).max() > TOLERANCE_MM
    ):
        refuse("coordinates", uid, "a box lies elsewhere on its image")
