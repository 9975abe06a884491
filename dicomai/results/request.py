"""What a document names beside its content: the request it answers, the evidence it rests on."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.results.job import Job
from dicomai.results.provenance import code_item


def requests(job: Job) -> list[Dataset] | None:
    """Return Referenced Request Sequence (PS3.3 C.17.2) from what the images know of the order."""
    study = job.carried.dataset
    requests = study.get("RequestAttributesSequence") or []
    if not requests and not study.AccessionNumber:
        return None
    return [request_of(study, each) for each in requests or [Dataset()]]


def request_of(study: Dataset, source: Dataset) -> Dataset:
    """Return the item of a request: as an item of the images says, else as their study does."""
    item = Dataset()
    item.StudyInstanceUID = source.get("StudyInstanceUID") or study.StudyInstanceUID
    item.ReferencedStudySequence = []
    item.AccessionNumber = source.get("AccessionNumber") or study.AccessionNumber
    issuer = (source if source.get("AccessionNumber") else study).get(
        "IssuerOfAccessionNumberSequence"
    )
    if issuer:
        item.IssuerOfAccessionNumberSequence = issuer
    item.PlacerOrderNumberImagingServiceRequest = ""
    item.FillerOrderNumberImagingServiceRequest = ""
    item.RequestedProcedureID = source.get("RequestedProcedureID") or ""
    item.RequestedProcedureDescription = source.get("RequestedProcedureDescription") or ""
    item.RequestedProcedureCodeSequence = [
        code_item(Code(code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning))
        for code in source.get("RequestedProcedureCodeSequence") or ()
        if code.get("CodeValue") and code.get("CodingSchemeDesignator") and code.get("CodeMeaning")
    ]
    return item


def put_evidence(result: Dataset, rests_on: Iterable[Dataset], study: str) -> None:
    """Put on a document what it rests on: that of its study, and that of others (PS3.3 C.17.2)."""
    every = list(rests_on)
    result.CurrentRequestedProcedureEvidenceSequence = evidence(
        each for each in every if each.StudyInstanceUID == study
    )
    if elsewhere := evidence(each for each in every if each.StudyInstanceUID != study):
        result.PertinentOtherEvidenceSequence = elsewhere


def evidence(objects: Iterable[Dataset]) -> list[Dataset]:
    """Return objects as an evidence sequence: by study, then by series (PS3.3 C.17.2.1)."""
    studies: dict[str, dict[str, list[Dataset]]] = {}
    for each in objects:
        series = studies.setdefault(str(each.StudyInstanceUID), {})
        reference = Dataset()
        reference.ReferencedSOPClassUID = each.SOPClassUID
        reference.ReferencedSOPInstanceUID = each.SOPInstanceUID
        series.setdefault(str(each.SeriesInstanceUID), []).append(reference)
    return [_study(uid, series) for uid, series in studies.items()]


def _study(uid: str, series: dict[str, list[Dataset]]) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = uid
    item.ReferencedSeriesSequence = [_series(uid, each) for uid, each in series.items()]
    return item


def _series(uid: str, references: list[Dataset]) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = uid
    item.ReferencedSOPSequence = references
    return item
