"""What a result refers to in its header: nothing that the model did not see, or did not make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicomai.findings import Findings
from dicomai.results.gate.classes import (
    ENHANCED_SR,
    LABELMAP,
    PDF,
    PM,
    PR,
    RTSTRUCT,
    SC,
    SEG,
    SR,
    TEXT_SR,
)
from dicomai.results.gate.elements import Elements, inner, items_of, said
from dicomai.results.gate.error import refuse

_CLASS: Final = Tag("ReferencedSOPClassUID")
_INSTANCE: Final = Tag("ReferencedSOPInstanceUID")
_SERIES: Final = Tag("SeriesInstanceUID")
_STUDY: Final = Tag("StudyInstanceUID")
_REFERENCED_SERIES: Final = Tag("ReferencedSeriesSequence")
_OBJECTS: Final = Tag("ReferencedSOPSequence")
_IMAGES: Final = Tag("ReferencedImageSequence")
_INSTANCES: Final = Tag("ReferencedInstanceSequence")


def known_instances(findings: Findings, sources: Sequence[Dataset]) -> set[str]:
    """Return the SOP Instance UIDs of what the model saw."""
    return {str(source.SOPInstanceUID) for source in sources} | {
        image.sop_instance_uid for image in findings.inputs
    }


_Place = tuple[str, str, str]


def places_of(
    others: Sequence[Dataset], findings: Findings, sources: Sequence[Dataset]
) -> dict[str, _Place]:
    """Return SOP Instance UID to (study, series, SOP class) of all that may be referred to."""
    places = {
        image.sop_instance_uid: (
            image.study_instance_uid,
            image.series_instance_uid,
            image.sop_class_uid,
        )
        for image in findings.inputs
    }
    for each in (*sources, *others):
        places[str(each.SOPInstanceUID)] = (
            str(each.StudyInstanceUID),
            str(each.SeriesInstanceUID),
            str(each.SOPClassUID),
        )
    return places


def check_references(
    result: Dataset,
    uid: str,
    others: Sequence[Dataset],
    findings: Findings,
    sources: Sequence[Dataset],
) -> None:
    """Check that what the header lists are things the model saw; of an SR, all and each result."""
    known = places_of(others if result.SOPClassUID == SR else (), findings, sources)
    listed = _listed(result)
    report = result.SOPClassUID in (SR, ENHANCED_SR, TEXT_SR)
    if report and (missing := set(known) - {each for each, _ in listed}):
        refuse("references", uid, f"its evidence lacks {min(missing)}")
    if not listed:
        refuse("references", uid, "it refers to no image")
    for keyword, current in (
        ("CurrentRequestedProcedureEvidenceSequence", True),
        ("PertinentOtherEvidenceSequence", False),
    ):
        for study in items_of(result, keyword):
            if (_said(study, _STUDY) == str(result.StudyInstanceUID)) != current:
                refuse("references", uid, f"{keyword} is not of the studies that belong there")
    for each, place in listed:
        if each not in known:
            refuse("references", uid, f"it refers to {each}, which the model did not see")
        if not all(ours in ("", theirs) for ours, theirs in zip(place, known[each], strict=True)):
            refuse("references", uid, f"it says another study, series or class of {each}")


def _listed(result: Dataset) -> list[tuple[str, _Place]]:
    """Return the instances that a header lists, each with what it says of study, series, class."""
    study = str(result.StudyInstanceUID)
    images = {SC: "SourceImageSequence", PDF: "SourceInstanceSequence"}.get(result.SOPClassUID)
    if images is not None:
        return [
            (str(each.ReferencedSOPInstanceUID), ("", "", str(each.ReferencedSOPClassUID)))
            for each in result[images].value
        ]
    if result.SOPClassUID == RTSTRUCT:
        return [
            (
                str(each.ReferencedSOPInstanceUID),
                (study, str(series.SeriesInstanceUID), str(each.ReferencedSOPClassUID)),
            )
            for frame in result.ReferencedFrameOfReferenceSequence
            for named in frame.RTReferencedStudySequence
            for series in named.RTReferencedSeriesSequence
            for each in series.ContourImageSequence
        ]
    if result.SOPClassUID in (SEG, LABELMAP, PM, PR):
        tag = _IMAGES if result.SOPClassUID == PR else _INSTANCES
        named = [
            (_said(each, _INSTANCE), (study, _said(series, _SERIES), _said(each, _CLASS)))
            for series in items_of(result, "ReferencedSeriesSequence")
            for each in _some(result, series, tag)
        ]
        return named + [
            (_said(each, _INSTANCE), ("", "", _said(each, _CLASS)))
            for each in items_of(result, "SourceImageSequence")
        ]
    return [
        (
            _said(each, _INSTANCE),
            (_said(listed, _STUDY), _said(series, _SERIES), _said(each, _CLASS)),
        )
        for keyword in (
            "CurrentRequestedProcedureEvidenceSequence",
            "PertinentOtherEvidenceSequence",
        )
        for listed in items_of(result, keyword)
        for series in _some(result, listed, _REFERENCED_SERIES)
        for each in _some(result, series, _OBJECTS)
    ]


def instances_listed(result: Dataset) -> set[str]:
    """Return the SOP Instance UIDs in the Common Instance Reference (PS3.3 C.12.2)."""
    return {
        _said(each, _INSTANCE)
        for series in items_of(result, "ReferencedSeriesSequence")
        for each in inner(series, _INSTANCES)
    }


def _some(result: Dataset, holder: Elements, tag: int) -> list[Elements]:
    """Return the items of a sequence of Type 1."""
    items = inner(holder, tag)
    if not items:
        reason = f"it refers to no image where it has a series: {keyword_for_tag(tag)} is empty"
        refuse("references", str(result.SOPInstanceUID), reason)
    return items


def _said(holder: Elements, tag: int) -> str:
    return said(holder, tag, b"UI") or "none"  # and not "": that is what need not be said
