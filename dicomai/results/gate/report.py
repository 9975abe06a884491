"""The content of a report, walked item by item and held against the findings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.findings import (
    Classification,
    Detection,
    Findings,
    Measurement,
    Segment,
)
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.codes import code_of, is_coded
from dicomai.results.gate.content import name, walk
from dicomai.results.gate.error import refuse
from dicomai.results.gate.planes import slices_of
from dicomai.results.gate.points import check_point, check_title
from dicomai.results.gate.regions import check_region
from dicomai.results.gate.report_references import check_report_references
from dicomai.results.gate.request import check_procedure
from dicomai.results.gate.voxels import Place

_NOT_DETECTED: Final = Code("260415000", "SCT", "Not detected")
_NOT_ANALYSED: Final = Code("NOT-ANALYSED", "99DICOMAI", "Not analysed")
_PRESENT: Final = Code("52101004", "SCT", "Present")  # CID 240
_ABSENT: Final = Code("272519000", "SCT", "Absent")
_ABNORMAL: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")  # CID 7150
_CERTAINTY: Final = Code("111012", "DCM", "Certainty of Finding")
_PERCENT: Final = Code("%", "UCUM", "percent")
_UNCERTAINTY: Final = Code("371884006", "SCT", "+/-, range of measurement uncertainty")  # CID 225
_PLACES: Final = frozenset({"SCOORD", "SCOORD3D"})
_OF_A_FINDING: Final = _PLACES | {"NUM"}
# What a group may say in codes: finding, category, site, side, and the algorithm's family.
_CODES: Final = frozenset({"121071", "276214006", "363698007", "272741003", "111000"})
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
    _root(report, uid)
    items = list(walk(report))
    check_report_references(report, items, others, findings, sources)
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
        verdict = _NOT_ANALYSED if findings.not_analysed else _NOT_DETECTED
        if len(groups) != 1 or not _only(next(iter(groups.values())), "121071", verdict):
            refuse("content", uid, f"it does not say just that: {verdict.meaning}")
        (group,) = groups.values()
        _algorithm(uid, group, findings)
        if any(item.ValueType in _OF_A_FINDING for item in walk(group)):
            refuse("content", uid, "nothing was found, and it measures something")
        check_title(report, uid, groups.values())
        return
    if set(groups) != set(expected):
        refuse("content", uid, f"its findings are {sorted(groups)}, not {sorted(expected)}")
    slices = slices_of(uid, findings, sources)
    for tracking_id, found in expected.items():
        group = groups[tracking_id]
        _tracking(uid, group, tracking_id, places, findings)
        _algorithm(uid, group, findings)
        _measured(uid, group, found)
        _no_more_codes(uid, group, found)
        if isinstance(found, Classification):
            _classified(uid, group, found)
        else:
            _named(uid, group, found)
        if isinstance(found, Detection):
            check_region(uid, group, found, findings)
        elif any(item.ValueType in _placeless(found) for item in walk(group)):
            refuse("coordinates", uid, f'"{tracking_id}" has a place that was not found')
        if not isinstance(found, Classification):
            check_point(uid, group, found, slices)
    check_title(report, uid, groups.values())
    unique = {_uid_of(group) for group in groups.values()}
    if len(unique) != len(groups):
        refuse("tracking", uid, "two findings have one tracking UID")


def _placeless(found: Segment | Classification) -> frozenset[str]:
    """Return the coordinates that a group may not have: a segment lies where its voxels do."""
    return _PLACES if isinstance(found, Classification) else frozenset({"SCOORD3D"})


def check_plain_report(report: Dataset, findings: Findings, *, numbers: bool) -> None:
    """Check a report in words, and its numbers where it is to have them."""
    uid = str(report.SOPInstanceUID)
    _status(report, uid)
    items = list(walk(report))
    _words(uid, items, findings)
    _conclusion(uid, items, findings)
    devices = [str(item.UID) for item in items if name(item) == "121012"]
    if devices != [str(report.DeviceUID)]:
        refuse("provenance", uid, "its observer is not the device that its header names")
    wanted: list[Measurement] = []
    for segment in findings.segments:
        wanted += segment.measurements if segment.mask.any() else ()
    scored: tuple[Detection | Classification, ...] = (
        *findings.detections,
        *findings.classifications,
    )
    for each in scored:
        wanted.append(Measurement(name=_CERTAINTY, value=each.probability * 100, unit=_PERCENT))
        wanted += each.measurements if isinstance(each, Detection) else ()
    said = sorted(
        (
            code_of(item.ConceptNameCodeSequence[0]),
            round(float(item.MeasuredValueSequence[0].NumericValue), 4),
            code_of(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]),
            *(
                tuple(code_of(each) for each in _coded(item, concept))
                for concept in ("370129005", "121401")
            ),
        )
        for item in items
        if item.ValueType == "NUM"
    )
    wanted += [
        Measurement(name=_UNCERTAINTY, value=each.uncertainty, unit=each.unit)
        for each in wanted
        if each.uncertainty is not None
    ]
    true = sorted(
        (
            each.name.value,
            round(each.value, 4),
            each.unit.value,
            *((code.value,) if code else () for code in (each.method, each.derivation)),
        )
        for each in wanted
    )
    if said != (true if numbers else []):
        refuse("content", uid, "its numbers are not those that were measured")


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


def _root(report: Dataset, uid: str) -> None:
    template = report.ContentTemplateSequence[0]
    if (template.MappingResource, template.TemplateIdentifier) != ("DCMR", "1500"):
        refuse("attributes", uid, "its root is not TID 1500")


def _observer(report: Dataset, uid: str) -> None:
    said = {name(item): item.get("UID") or item.get("TextValue") for item in report.ContentSequence}
    if (said.get("121012"), said.get("121016")) != (report.DeviceUID, report.DeviceSerialNumber):
        refuse("provenance", uid, "its observer is not the device that its header names")


def _groups(uid: str, items: list[Dataset]) -> dict[str, Dataset]:
    groups: dict[str, Dataset] = {}
    for item in items:
        if item.ValueType == "CONTAINER" and name(item) == "125007":
            ids = [str(each.TextValue) for each in item.ContentSequence if name(each) == "112039"]
            if len(ids) != 1 or ids[0] in groups:
                refuse("tracking", uid, "a group has no tracking identifier of its own")
            groups[ids[0]] = item
    return groups


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
    uids = [str(item.UID) for item in group.ContentSequence if name(item) == "112040"]
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
    segment = "121191" if isinstance(findings.where, Grid) else "121214"
    drawn = [item for item in group.ContentSequence if name(item) == segment]
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
    if isinstance(findings.where, Grid) or place.labels:  # all labels share a frame
        right = frame is None and number == place.number
    else:  # a region on one image is a frame, and then no segment is named (PS3.3 10.3)
        right = number is None and frame in place.frames
    if said.ReferencedSOPInstanceUID != place.seg_uid or not right:
        refuse("references", uid, f'"{tracking_id}" does not refer to its segment')


def _algorithm(uid: str, group: Dataset, findings: Findings) -> None:
    algorithm = findings.algorithm
    said = {
        concept: [str(item.TextValue) for item in group.ContentSequence if name(item) == concept]
        for concept in ("111001", "111003", "111002")
    }
    if said["111001"] != [algorithm.name] or said["111003"] != [algorithm.version]:
        refuse("provenance", uid, "a group names another algorithm or version")
    if not any(algorithm.package_sha256 in text for text in said["111002"]):
        refuse("provenance", uid, "a group lacks the digest of the model's package")


def _coded(group: Dataset, concept: str) -> list[Dataset]:
    return [
        item.ConceptCodeSequence[0]
        for item in group.get("ContentSequence") or ()
        if item.ValueType == "CODE" and name(item) == concept
    ]


def _only(group: Dataset, concept: str, code: Code | None) -> bool:
    """Tell whether a group says this code under a name and no other; with None, whether none."""
    said = _coded(group, concept)
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
        for item in walk(group)
        if item.ValueType == "CODE" and name(item) == "272741003"
    ]
    wanted_sides = (found.laterality,) if found.laterality else ()
    if len(sides) != len(wanted_sides) or not all(map(is_coded, sides, wanted_sides)):
        refuse("content", uid, f'"{found.tracking_id}" is not on the side that was found')


def _measured(uid: str, group: Dataset, found: _Found) -> None:
    """Check that it has each of the found numbers once, and no other."""
    wanted = list(found.measurements) if not isinstance(found, Classification) else []
    if not isinstance(found, Segment):
        wanted.append(Measurement(name=_CERTAINTY, value=found.probability * 100, unit=_PERCENT))
    for item in _numbers(group):
        match = next((each for each in wanted if _says(item, each)), None)
        if match is None:
            meaning = item.ConceptNameCodeSequence[0].get("CodeMeaning")
            refuse("content", uid, f'{meaning} of "{found.tracking_id}" is not what was measured')
        wanted.remove(match)
    if wanted:
        refuse("content", uid, f'"{found.tracking_id}" lacks its {wanted[0].name.meaning}')


def _numbers(holder: Dataset) -> list[Dataset]:
    """Return the numbers in a group, without those that are said of a number."""
    found: list[Dataset] = []
    for item in holder.get("ContentSequence") or ():
        found += [item] if item.ValueType == "NUM" else _numbers(item)
    return found


def _says(item: Dataset, measurement: Measurement) -> bool:
    told = (
        _only(item, "121401", measurement.derivation),
        _only(item, "370129005", measurement.method),
    )
    return (
        _is_number(item, measurement.name, measurement.value, measurement.unit)
        and all(told)
        and _says_how_uncertain(item, measurement)
    )


def _says_how_uncertain(item: Dataset, measurement: Measurement) -> bool:
    ranges = [each for each in walk(item) if each.ValueType == "NUM"]
    if measurement.uncertainty is None:
        return not ranges
    return len(ranges) == 1 and _is_number(
        ranges[0], _UNCERTAINTY, measurement.uncertainty, measurement.unit
    )


def _is_number(item: Dataset, what: Code, number: float, unit: Code) -> bool:
    if len(item.MeasuredValueSequence) != 1:
        return False
    said = item.MeasuredValueSequence[0]
    near = 1e-6 * max(1.0, abs(number))
    values = [float(said.NumericValue), float(said.get("FloatingPointValue", said.NumericValue))]
    return (
        is_coded(item.ConceptNameCodeSequence[0], what)
        and is_coded(said.MeasurementUnitsCodeSequence[0], unit)
        and all(abs(value - number) <= near for value in values)
    )


def _no_more_codes(uid: str, group: Dataset, found: _Found) -> None:
    """Check that nothing is said in codes but what the other checks look at."""
    verdict = {found.finding.value} if isinstance(found, Classification) else set()
    for item in group.ContentSequence:
        if item.ValueType == "CODE" and name(item) not in _CODES | verdict:
            meaning = item.ConceptNameCodeSequence[0].get("CodeMeaning")
            refuse("content", uid, f'"{found.tracking_id}" says {meaning}, which was not found')


def _classified(uid: str, group: Dataset, found: Classification) -> None:
    verdict = _PRESENT if found.present else _ABSENT
    if not _only(group, found.finding.value, verdict) or _coded(group, "121071"):
        refuse("content", uid, f"{found.finding.meaning} is not said to be what was found")


def _no_strays(uid: str, items: list[Dataset], groups: Mapping[str, Dataset]) -> None:
    """Check that every number and place belongs to a finding."""
    inside = sum(
        each.ValueType in _OF_A_FINDING for group in groups.values() for each in walk(group)
    )
    if sum(item.ValueType in _OF_A_FINDING for item in items) != inside:
        refuse("content", uid, "a number or a place stands outside its findings")


def _conclusion(uid: str, items: list[Dataset], findings: Findings) -> None:
    """Check what the one line says that many will read alone."""
    said = [str(item.TextValue).casefold() for item in items if name(item) == "121077"]
    if len(said) != 1 or "not for primary diagnosis" not in said[0]:
        refuse("status", uid, "it has no conclusion that says what it is not for")
    (line,) = said
    if findings.not_analysed:
        if f"not analysed: {findings.not_analysed}".casefold() not in line:
            refuse("content", uid, "its conclusion does not say why nothing was analysed")
        return
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
