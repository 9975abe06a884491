"""Findings as a Comprehensive 3D SR with TID 1500 as root (PS3.3 A.35.13, PS3.16 TID 1500).

The groups of measurements are highdicom's. What TID 1500 has besides, and highdicom has not, is
added here: an image library that needs no attribute that images lack, and the Qualitative
Evaluations with the words that every result must carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from highdicom import sr
from pydicom.dataset import Dataset

from dicomai.dicom.codes import OURS, Code
from dicomai.findings import Detection, Findings, Segment
from dicomai.results import summary, uids
from dicomai.results.context import PredecessorSR
from dicomai.results.job import Job
from dicomai.results.known_class import put_back
from dicomai.results.objects import KINDS
from dicomai.results.procedure import procedures
from dicomai.results.provenance import complete, time_taken
from dicomai.results.request import evidence, put_evidence, requests
from dicomai.results.seg import Encoded
from dicomai.results.sr_groups import groups, pydicom_code

CONTAINS: Final = sr.RelationshipTypeValues.CONTAINS
COMMENT: Final = Code("121106", "DCM", "Comment")
CONCLUSION: Final = Code("121077", "DCM", "Conclusion")
SUMMARY: Final = Code("121111", "DCM", "Summary")
QUALITATIVE_EVALUATIONS: Final = Code("C0034375", "UMLS", "Qualitative Evaluations")
IMAGE_LIBRARY: Final = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP: Final = Code("126200", "DCM", "Image Library Group")
FRAME_OF_REFERENCE: Final = Code("112227", "DCM", "Frame of Reference UID")
MEASUREMENTS: Final = Code("126000", "DCM", "Imaging Measurement Report")
# CID 7021 is extensible, and has no title for a report whose findings are no measurements.
RESULTS: Final = Code("AI-RESULTS", OURS, "AI Results Report")
OTHERS: Final = Code("ANALYSIS-OBJECTS", OURS, "Other objects of this analysis")
SOURCE: Final = Code("260753009", "SCT", "Source")


def encode_sr(job: Job, segs: Sequence[Encoded], others: Sequence[Dataset] = ()) -> Dataset:
    """Return the report on the findings; there is one also when nothing was found.

    Parameters
    ----------
    job
        What to encode.
    segs
        The Segmentations that the report refers to: each segment is in one of them.
    others
        All other objects of the analysis: the report ties them together.
    """
    made = [*(one.dataset for one in segs), *others]
    result = Dataset()
    result.ReferencedPerformedProcedureStepSequence = []
    result.PerformedProcedureCodeSequence = []
    result.CompletionFlag = "COMPLETE"
    result.VerificationFlag = "UNVERIFIED"
    result.PreliminaryFlag = "PRELIMINARY"  # until a radiologist makes a final one
    put_evidence(result, [*inputs(job), *made], str(job.sources[0].StudyInstanceUID))
    if before := job.context.predecessors:
        result.PredecessorDocumentsSequence = evidence([_predecessor(each) for each in before])
    if asked := requests(job):
        result.ReferencedRequestSequence = asked
    result.update(_content(job, segs, others)[0])
    if others or title(job.findings) is RESULTS or measured_in_own_ways(job.findings):
        result.CodingSchemeIdentificationSequence = [own_scheme()]
    put_back(result, inputs(job))
    complete(result, job, "SR")
    return result


def measured_in_own_ways(findings: Findings) -> bool:
    """Tell whether the method of a number has a code of our own."""
    found: tuple[Segment | Detection, ...] = (*findings.segments, *findings.detections)
    return any(
        number.method is not None and number.method.scheme == OURS
        for each in found
        for number in each.measurements
    )


def own_scheme() -> Dataset:
    """Return an item of Coding Scheme Identification Sequence: whose our own codes are."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator = OURS
    scheme.CodingSchemeName = "Codes of dicomai"
    scheme.CodingSchemeResponsibleOrganization = "dicomai"
    return scheme


def words(job: Job) -> tuple[tuple[Code, str], ...]:
    """Return what a report says in words, with the concept of each."""
    findings = job.findings
    algorithm = findings.algorithm
    said = [
        (CONCLUSION, f"AI result, not for primary diagnosis: {summary.line(findings)}."),
        (COMMENT, f"{'Looks' if findings.not_analysed else 'Looked'} for: {findings.sought}"),
        (COMMENT, f"{'Was given' if findings.not_analysed else 'Looked at'}: {_looked_at(job)}"),
        (COMMENT, f"Intended use: {algorithm.intended_use}"),
        (COMMENT, algorithm.warning),
        (COMMENT, "UNVERIFIED: no one has checked this result."),
        (SUMMARY, summary.plain(findings, _looked_at(job))),
    ]
    if findings.detections or findings.classifications:
        said.append((COMMENT, "Certainty of Finding is the model's own score in percent."))
    said += [
        (COMMENT, f"Nothing found: {segment.label}")
        for segment in findings.segments
        if not segment.mask.any()
    ]
    said += [(COMMENT, f"Deviation: {text}") for text in findings.deviations]
    if ran := time_taken(findings):
        said.append((COMMENT, f"Processing time: {ran}"))
    said += [(COMMENT, f"Warning: {text}") for text in (*findings.warnings, *job.carried.notes)]
    if job.compressed_with_loss is not None:
        said.append((COMMENT, "Warning: images were compressed with loss before they came."))
    return tuple(said)


def _looked_at(job: Job) -> str:
    count = len(job.findings.inputs) or len(job.sources)
    series = {each.series_instance_uid for each in job.findings.inputs}
    images = "1 image" if count == 1 else f"{count} images"
    return f"{images} of {len(series) or 1} series"


def _content(job: Job, segs: Sequence[Encoded], others: Sequence[Dataset]) -> sr.MeasurementReport:
    report = sr.MeasurementReport(
        observation_context=_observer(job),
        procedure_reported=[
            pydicom_code(each)
            for each in procedures(job.carried.dataset, str(job.sources[0].get("Modality", "")))
        ],
        imaging_measurements=groups(job, segs),
        title=pydicom_code(title(job.findings)),
    )
    content = report[0].ContentSequence
    content.insert(len(content) - 1, _library(job))  # before Imaging Measurements
    evaluations = sr.ContainerContentItem(
        name=pydicom_code(QUALITATIVE_EVALUATIONS), relationship_type=CONTAINS
    )
    evaluations.ContentSequence = sr.ContentSequence(
        [sr.TextContentItem(pydicom_code(concept), text, CONTAINS) for concept, text in words(job)]
    )
    if others:
        content.append(_others(others))
    content.append(evaluations)
    _separate(report[0])
    return report


def _separate(container: Dataset) -> None:
    """Make containers lists, not a flow of words: viewers then name each item."""
    container.ContinuityOfContent = "SEPARATE"
    for item in container.ContentSequence:
        # The images stay one flow: as a list they would hide what comes after them.
        if item.ValueType == "CONTAINER" and item.name != pydicom_code(IMAGE_LIBRARY_GROUP):
            _separate(item)


def _others(others: Sequence[Dataset]) -> sr.ContainerContentItem:
    """Return a reference to each object that no group of measurements refers to."""
    roles = {each.sop_class_uid: each.role for each in KINDS.values()}
    items: list[sr.ContentItem] = []
    for each in others:
        role = roles[each.SOPClassUID]
        assert role is not None
        item = sr.ImageContentItem if "Rows" in each else sr.CompositeContentItem
        items.append(
            item(
                pydicom_code(role),
                str(each.SOPClassUID),
                str(each.SOPInstanceUID),
                relationship_type=CONTAINS,
            )
        )
    container = sr.ContainerContentItem(name=pydicom_code(OTHERS), relationship_type=CONTAINS)
    container.ContentSequence = sr.ContentSequence(items)
    return container


def title(findings: Findings) -> Code:
    """Return what a report is: of measurements where each of its groups has a place on an image.

    OHIF draws an Imaging Measurement Report on the images, and fails where a group has no
    coordinates; a report with any other title it shows as text, whole.
    """
    placed = bool(findings.detections) or any(each.mask.any() for each in findings.segments)
    return MEASUREMENTS if placed and not findings.classifications else RESULTS


def _observer(job: Job) -> sr.ObservationContext:
    algorithm = job.findings.algorithm
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=sr.CodedConcept("121007", "DCM", "Device"),
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=uids.device_uid(algorithm.package_sha256),
                name=f"{algorithm.name} {algorithm.version}",
                manufacturer_name=algorithm.manufacturer,
                model_name=algorithm.name,
                serial_number=algorithm.package_sha256,
            ),
        )
    )


def _library(job: Job) -> sr.ContainerContentItem:
    """Return TID 1600: every image that the model saw; those of other series are another group.

    What a group says holds of all its images, and a prior lies in a frame of reference of its own.
    """
    frame_of_reference = getattr(job.findings.where, "frame_of_reference_uid", "")
    images = list(inputs(job))
    ours, others = images[: len(job.sources)], images[len(job.sources) :]
    parts = [_library_group(ours, frame_of_reference)]
    if others:
        parts.append(_library_group(others, ""))
    library = sr.ContainerContentItem(name=pydicom_code(IMAGE_LIBRARY), relationship_type=CONTAINS)
    library.ContentSequence = sr.ContentSequence(parts)
    return library


def _library_group(images: Sequence[Dataset], frame_of_reference: str) -> sr.ContainerContentItem:
    group = sr.ContainerContentItem(
        name=pydicom_code(IMAGE_LIBRARY_GROUP), relationship_type=CONTAINS
    )
    items: list[sr.ContentItem] = []
    if frame_of_reference:
        items.append(
            sr.UIDRefContentItem(
                pydicom_code(FRAME_OF_REFERENCE),
                frame_of_reference,
                sr.RelationshipTypeValues.HAS_ACQ_CONTEXT,
            )
        )
    source = sr.CodedConcept(SOURCE.value, SOURCE.scheme, SOURCE.meaning)
    items += [
        sr.ImageContentItem(
            source,
            str(image.SOPClassUID),
            str(image.SOPInstanceUID),
            relationship_type=CONTAINS,
        )
        for image in images
    ]
    group.ContentSequence = sr.ContentSequence(items)
    return group


def inputs(job: Job) -> Iterator[Dataset]:
    """Yield every image that the model saw: the sources, and inputs from other series."""
    seen = set()
    for source in job.sources:
        seen.add(str(source.SOPInstanceUID))
        yield source
    for image in job.findings.inputs:
        if image.sop_instance_uid not in seen:
            seen.add(image.sop_instance_uid)
            other = Dataset()
            other.StudyInstanceUID = image.study_instance_uid
            other.SeriesInstanceUID = image.series_instance_uid
            other.SOPClassUID = image.sop_class_uid
            other.SOPInstanceUID = image.sop_instance_uid
            yield other


def _predecessor(before: PredecessorSR) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = before.study_instance_uid
    item.SeriesInstanceUID = before.series_instance_uid
    item.SOPClassUID = before.sop_class_uid
    item.SOPInstanceUID = before.sop_instance_uid
    return item
