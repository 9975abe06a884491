"""What a report refers to: inputs and results, its image library, the report that it replaces."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from dicomai.findings import Findings
from dicomai.results.gate.classes import SR
from dicomai.results.gate.content import name, walk
from dicomai.results.gate.error import refuse
from dicomai.results.gate.references import known_instances, places_of


def check_report_references(
    report: Dataset,
    items: list[Dataset],
    others: Sequence[Dataset],
    findings: Findings,
    sources: Sequence[Dataset],
) -> None:
    """Check that a report refers to what the model saw or made; `items` are all of its content."""
    uid = str(report.SOPInstanceUID)
    _references(uid, items, others, findings, sources)
    _library(uid, items, findings, sources)
    _predecessor(report, uid, others, findings, sources)


def _references(
    uid: str,
    items: list[Dataset],
    others: Sequence[Dataset],
    findings: Findings,
    sources: Sequence[Dataset],
) -> None:
    known = places_of(others, findings, sources)
    made = {str(each.SOPInstanceUID) for each in others}
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
            if reference.ReferencedSOPClassUID != known[reference.ReferencedSOPInstanceUID][2]:
                refuse(
                    "references",
                    uid,
                    f"it says another class of {reference.ReferencedSOPInstanceUID}",
                )
    series = {str(source.SeriesInstanceUID) for source in sources}
    for item in items:
        if name(item) == "121232" and str(item.UID) not in series:
            refuse("references", uid, f"it says that {item.UID} is the series of its images")
    frame_of_reference = getattr(findings.where, "frame_of_reference_uid", None)
    for item in items:
        if item.ValueType == "SCOORD3D" and (
            item.ReferencedFrameOfReferenceUID != frame_of_reference
        ):
            refuse("coordinates", uid, "a region lies in another frame of reference")


def _library(
    uid: str, items: list[Dataset], findings: Findings, sources: Sequence[Dataset]
) -> None:
    """Check that the image library has each image that the model saw (TID 1600)."""
    named = {
        str(reference.ReferencedSOPInstanceUID)
        for item in items
        if name(item) == "111028"
        for each in walk(item)
        for reference in each.get("ReferencedSOPSequence") or ()
    }
    if named != known_instances(findings, sources):
        refuse("references", uid, "its image library is not the images that the model saw")


def _predecessor(
    report: Dataset,
    uid: str,
    others: Sequence[Dataset],
    findings: Findings,
    sources: Sequence[Dataset],
) -> None:
    """Check that what it replaces is an earlier report of the same study (PS3.3 C.17.2)."""
    known = {uid, *places_of(others, findings, sources)}
    for study in report.get("PredecessorDocumentsSequence") or ():
        for series in study.ReferencedSeriesSequence:
            for each in series.ReferencedSOPSequence:
                if (
                    study.StudyInstanceUID != report.StudyInstanceUID
                    or each.ReferencedSOPClassUID != SR
                    or str(each.ReferencedSOPInstanceUID) in known
                ):
                    replaced = each.ReferencedSOPInstanceUID
                    refuse("references", uid, f"{replaced} is no report that it can replace")
