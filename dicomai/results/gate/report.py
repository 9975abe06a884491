"""The content of a report, walked item by item and held against the findings."""

from __future__ import annotations

import re
from collections import Counter
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
from dicomai.results.gate.header import code_of, is_coded
from dicomai.results.gate.references import known_instances
from dicomai.results.gate.request import check_procedure
from dicomai.results.gate.voxels import Place

TOLERANCE_MM: Final = 0.01
_NOT_DETECTED: Final = Code("260415000", "SCT", "Not detected")
_PRESENT: Final = Code("52101004", "SCT", "Present")  # CID 240
_ABSENT: Final = Code("272519000", "SCT", "Absent")
_ABNORMAL: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")  # CID 7150
_CERTAINTY: Final = Code("111012", "DCM", "Certainty of Finding")
_PERCENT: Final = Code("%", "UCUM", "percent")
_OF_A_FINDING: Final = frozenset({"NUM", "SCOORD", "SCOORD3D"})
_Found = Segment | Detection | Classification


def check_report(
    report: Dataset,
    others: Sequence[Dataset],
    places: Mapping[str, Place],
    findings: Findings,
    sources: Sequence[Dataset],
) -> None:
    """Check a Comprehensive 3D SR with TID 1500 as root.

    Parameters
    ----------
    report
        As read back.
    others
        All other objects of the analysis.
    places
        Tracking id to the segment that shows it.
    findings, sources
        What was found, in what.
    """
    uid = str(report.SOPInstanceUID)
    _status(report, uid)
    items = list(_walk(report))
    _references(uid, items, others, findings, sources)
    groups = _groups(uid, items)
    _words(uid, items, findings)
    _observer(report, uid)
    check_procedure(report, uid, sources)
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
    _no_strays(uid, items, groups)
    _conclusion(uid, items, findings)
    if not expected:
        if len(groups) != 1 or not _only(next(iter(groups.values())), "121071", _NOT_DETECTED):
            refuse("content", uid, "nothing was found, and it does not say just that")
        (group,) = groups.values()
        _algorithm(uid, group, findings)
        if any(item.ValueType in {"NUM", "SCOORD", "SCOORD3D"} for item in _walk(group)):
            refuse("content", uid, "nothing was found, and it measures something")
        return
    if set(groups) != set(expected):
        refuse("content", uid, f"its findings are {sorted(groups)}, not {sorted(expected)}")
    for tracking_id, found in expected.items():
        group = groups[tracking_id]
        _tracking(uid, group, tracking_id, places, findings)
        _algorithm(uid, group, findings)
        _measured(uid, group, found)
        if isinstance(found, Classification):
            _classified(uid, group, found)
        else:
            _named(uid, group, found)
        if isinstance(found, Detection):
            _region(uid, group, found, findings)
        elif any(item.ValueType in {"SCOORD", "SCOORD3D"} for item in _walk(group)):
            refuse("coordinates", uid, f'"{tracking_id}" has a place that was not found')
    unique = {_uid_of(group) for group in groups.values()}
    if len(unique) != len(groups):
        refuse("tracking", uid, "two findings have one tracking UID")


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


def _observer(report: Dataset, uid: str) -> None:
    said = {
        _name(item): item.get("UID") or item.get("TextValue") for item in report.ContentSequence
    }
    if (said.get("121012"), said.get("121016")) != (report.DeviceUID, report.DeviceSerialNumber):
        refuse("provenance", uid, "its observer is not the device that its header names")


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
    others: Sequence[Dataset],
    findings: Findings,
    sources: Sequence[Dataset],
) -> None:
    known = known_instances(findings, sources)
    made = {str(each.SOPInstanceUID) for each in others}
    known |= made
    tied = {
        str(each.ReferencedSOPInstanceUID)
        for item in items
        for each in item.get("ReferencedSOPSequence") or ()
    }
    if missing := made - tied:
        refuse("references", uid, f"its content does not refer to {min(missing)}")
    for item in items:
        for reference in item.get("ReferencedSOPSequence") or ():
            if reference.ReferencedSOPInstanceUID not in known:
                refuse(
                    "references",
                    uid,
                    f"it refers to {reference.ReferencedSOPInstanceUID}, which is neither an input "
                    "nor a result",
                )
    series = {str(source.SeriesInstanceUID) for source in sources}
    for item in items:
        if _name(item) == "121232" and str(item.UID) not in series:
            refuse("references", uid, f"it says that {item.UID} is the series of its images")
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


def _uid_of(group: Dataset) -> str:
    uids = [str(item.UID) for item in group.ContentSequence if _name(item) == "112040"]
    return uids[0] if len(uids) == 1 else ""


def _tracking(
    uid: str,
    group: Dataset,
    tracking_id: str,
    places: Mapping[str, Place],
    findings: Findings,
) -> None:
    uids = [_uid_of(group)]
    if not uids[0]:
        refuse("tracking", uid, f'"{tracking_id}" has no tracking UID')
    name = "121191" if isinstance(findings.where, Grid) else "121214"
    drawn = [item for item in group.ContentSequence if _name(item) == name]
    if tracking_id not in places:
        if drawn:
            refuse("references", uid, f'"{tracking_id}" refers to a segment that is not there')
        return
    place = places[tracking_id]
    if uids != [place.tracking_uid]:
        refuse("tracking", uid, f'"{tracking_id}" has another tracking UID than its segment')
    if len(drawn) != 1:
        refuse("references", uid, f'"{tracking_id}" does not refer to its segment')
    said = drawn[0].ReferencedSOPSequence[0]
    frame, number = said.get("ReferencedFrameNumber"), said.get("ReferencedSegmentNumber")
    if isinstance(findings.where, Grid):
        right = frame is None and number == place.number
    else:  # a region on one image is a frame, and then no segment is named (PS3.3 10.3)
        right = number is None and frame in place.frames
    if said.ReferencedSOPInstanceUID != place.seg_uid or not right:
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


def _coded(group: Dataset, name: str) -> list[Dataset]:
    return [
        item.ConceptCodeSequence[0]
        for item in group.get("ContentSequence") or ()
        if item.ValueType == "CODE" and _name(item) == name
    ]


def _only(group: Dataset, name: str, code: Code | None) -> bool:
    """Tell whether a group says this code under a name and no other; with None, whether none."""
    said = _coded(group, name)
    return len(said) == (code is not None) and all(is_coded(each, code) for each in said if code)


def _named(uid: str, group: Dataset, found: Segment | Detection) -> None:
    """Check what it is, of what category, where and on which side."""
    wanted = found.type if isinstance(found, Segment) else found.finding
    if not _only(group, "121071", wanted):
        refuse("content", uid, f'"{found.tracking_id}" is not coded as {wanted.meaning}')
    if not _only(group, "276214006", found.category or _ABNORMAL):
        refuse("content", uid, f'"{found.tracking_id}" has another category')
    site = found.site if isinstance(found, Detection) else found.laterality and found.type
    if not _only(group, "363698007", site):
        refuse("content", uid, f'"{found.tracking_id}" is not where it was found')
    sides = [
        item.ConceptCodeSequence[0]
        for item in _walk(group)
        if item.ValueType == "CODE" and _name(item) == "272741003"
    ]
    wanted_sides = (found.laterality,) if found.laterality else ()
    if len(sides) != len(wanted_sides) or not all(map(is_coded, sides, wanted_sides)):
        refuse("content", uid, f'"{found.tracking_id}" is not on the side that was found')


def _measured(uid: str, group: Dataset, found: _Found) -> None:
    """Check that it has each of the found numbers once, and no other."""
    wanted = list(found.measurements) if not isinstance(found, Classification) else []
    if not isinstance(found, Segment):
        wanted.append(Measurement(name=_CERTAINTY, value=found.probability * 100, unit=_PERCENT))
    for item in _walk(group):
        if item.ValueType != "NUM":
            continue
        match = next((each for each in wanted if _says(item, each)), None)
        if match is None:
            name = item.ConceptNameCodeSequence[0].get("CodeMeaning")
            refuse("content", uid, f'{name} of "{found.tracking_id}" is not what was measured')
        wanted.remove(match)
    if wanted:
        refuse("content", uid, f'"{found.tracking_id}" lacks its {wanted[0].name.meaning}')


def _says(item: Dataset, measurement: Measurement) -> bool:
    if len(item.MeasuredValueSequence) != 1:
        return False
    said = item.MeasuredValueSequence[0]
    near = 1e-6 * max(1.0, abs(measurement.value))
    values = [float(said.NumericValue), float(said.get("FloatingPointValue", said.NumericValue))]
    told = (
        _only(item, "121401", measurement.derivation),
        _only(item, "370129005", measurement.method),
    )
    return (
        is_coded(item.ConceptNameCodeSequence[0], measurement.name)
        and is_coded(said.MeasurementUnitsCodeSequence[0], measurement.unit)
        and all(abs(value - measurement.value) <= near for value in values)
        and all(told)
    )


def _classified(uid: str, group: Dataset, found: Classification) -> None:
    verdict = _PRESENT if found.present else _ABSENT
    if not _only(group, found.finding.value, verdict) or _coded(group, "121071"):
        refuse("content", uid, f"{found.finding.meaning} is not said to be what was found")


def _no_strays(uid: str, items: list[Dataset], groups: Mapping[str, Dataset]) -> None:
    """Check that every number and place belongs to a finding."""
    inside = sum(
        each.ValueType in _OF_A_FINDING for group in groups.values() for each in _walk(group)
    )
    if sum(item.ValueType in _OF_A_FINDING for item in items) != inside:
        refuse("content", uid, "a number or a place stands outside its findings")


def _conclusion(uid: str, items: list[Dataset], findings: Findings) -> None:
    """Check what the one line says that many will read alone."""
    said = [str(item.TextValue).casefold() for item in items if _name(item) == "121077"]
    if len(said) != 1 or "not for primary diagnosis" not in said[0]:
        refuse("status", uid, "it has no conclusion that says what it is not for")
    (line,) = said
    if ("nothing found; looked for" in line) != (
        findings.nothing_found and not findings.classifications
    ):
        refuse("content", uid, "its conclusion does not say what was found")
    if findings.nothing_found and not findings.classifications:
        return
    for segment in findings.segments:
        label = re.escape(segment.label.casefold())
        said_so = rf"(?<!no ){label}" if segment.mask.any() else rf"no {label}"
        if not re.search(said_so, line):
            refuse("content", uid, f"its conclusion does not say whether there is {segment.label}")
    for each in findings.classifications:
        verdict = "present" if each.present else "not present"
        if f"{each.label.casefold()} {verdict} (" not in line:
            refuse("content", uid, f"its conclusion does not say whether there is {each.label}")
    kinds = Counter(
        re.sub(r"[ #0-9]+$", "", each.label) or each.finding.meaning for each in findings.detections
    )
    for kind, count in kinds.items():
        if f" {count} {kind.casefold()}{'s' if count > 1 else ''}: " not in line:
            refuse("content", uid, f"its conclusion does not say that there is {count} {kind}")


def _region(uid: str, group: Dataset, found: Detection, findings: Findings) -> None:
    if isinstance(found.region, PixelBox):
        if found.mask is None or not found.mask.any():
            _on_image(uid, group, found.region)
        elif any(item.ValueType == "SCOORD" for item in _walk(group)):
            refuse("coordinates", uid, f'"{found.tracking_id}" has a segment and an outline')
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
    if len(points) + len(surface) != sum(item.ValueType == "SCOORD3D" for item in _walk(group)):
        refuse("coordinates", uid, f'"{found.tracking_id}" has more places than one')
    if found.mask is not None and found.mask.any():
        if surface:
            refuse("coordinates", uid, f'"{found.tracking_id}" has a segment and an outline')
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
