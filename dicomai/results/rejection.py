"""A note that withdraws results: Key Object Selection that rejects (PS3.16 TID 2010, CID 7011).

As IHE's Imaging Object Change Management has it: an archive that knows the title hides what the
note refers to, and any other shows the note.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset

from dicomai.dicom import charset, dates
from dicomai.dicom.codes import Code
from dicomai.results import uids
from dicomai.results.content_item import DEVICE, DEVICE_UID, OBSERVER_TYPE, item, text_item
from dicomai.results.context import ResultContext
from dicomai.results.key_objects import DESCRIPTION
from dicomai.results.objects import KEY_OBJECT_STORAGE
from dicomai.results.provenance import code_item, file_meta, reference
from dicomai.results.request import evidence
from dicomai.results.source import REQUEST, carried, put, texts

REJECTED: Final = Code("113037", "DCM", "Rejected for Patient Safety Reasons")
INCORRECT_WORKLIST_ENTRY: Final = Code("113038", "DCM", "Incorrect Modality Worklist Entry")
"""The objects are of another patient or procedure than they say (IHE RAD, IOCM)."""
_EQUIPMENT: Final = (
    "DeviceSerialNumber",
    "DeviceUID",
    "ContributingEquipmentSequence",
    "TimezoneOffsetFromUTC",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why results are rejected, and what the note of that is called.

    Attributes
    ----------
    title
        Of CID 7011.
    said
        The same in words.
    """

    title: Code
    said: str
    sop_instance_uid: str
    series_instance_uid: str


def encode_rejection(
    results: Sequence[Dataset], job: uuid.UUID, reason: str, context: ResultContext
) -> Dataset:
    """Return the note that withdraws all results of an analysis.

    Parameters
    ----------
    results
        Their headers; the report is the last.
    job
        Of the analysis; the note's UIDs derive from it, so that there is one note.
    reason
        Why, in a person's words.
    context
        Who withdraws, and when.
    """
    rejection = Rejection(
        title=REJECTED,
        said=f"AI results withdrawn: {reason}",
        sop_instance_uid=uids.rejection_uid(job),
        series_instance_uid=uids.series_uid(job, "REJECTION"),
    )
    return note(results, results[-1], rejection, context)


def note(
    results: Sequence[Dataset], like: Dataset, rejection: Rejection, context: ResultContext
) -> Dataset:
    """Return a note that rejects objects.

    Parameters
    ----------
    results
        What it rejects: their headers.
    like
        The report whose patient, study, request and device it has.
    rejection
        Why, and its UIDs.
    context
        Who rejects, and when.
    """
    study = carried(like)
    result = Dataset()
    put(result, (each for each in study.dataset if each.keyword != REQUEST))
    for keyword in _EQUIPMENT:
        if keyword in like:
            result[keyword] = like[keyword]
    result.SOPClassUID = KEY_OBJECT_STORAGE
    result.SOPInstanceUID = rejection.sop_instance_uid
    result.SeriesInstanceUID = rejection.series_instance_uid
    result.Modality = "KO"
    result.SeriesNumber = int(like.SeriesNumber) + 90
    result.SeriesDescription = "AI results withdrawn"
    result.InstanceNumber = 1
    result.Manufacturer = context.manufacturer
    result.ManufacturerModelName = context.model_name
    result.SoftwareVersions = context.software_version
    date, time = dates.da_and_tm(context.created_at, str(like.TimezoneOffsetFromUTC))
    for keyword in ("Series", "Content", "InstanceCreation"):
        setattr(result, f"{keyword}Date", date)
        setattr(result, f"{keyword}Time", time)
    result.ReferencedPerformedProcedureStepSequence = []
    if "ReferencedRequestSequence" in like:
        result.ReferencedRequestSequence = like.ReferencedRequestSequence
    result.ValueType = "CONTAINER"
    result.ConceptNameCodeSequence = [code_item(rejection.title)]
    result.ContinuityOfContent = "SEPARATE"
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "2010"
    result.ContentTemplateSequence = [template]
    result.CurrentRequestedProcedureEvidenceSequence = evidence(results)
    observer = item("CODE", "HAS OBS CONTEXT", OBSERVER_TYPE)
    observer.ConceptCodeSequence = [code_item(DEVICE)]
    device = item("UIDREF", "HAS OBS CONTEXT", DEVICE_UID)
    device.UID = like.DeviceUID
    said = text_item(DESCRIPTION, rejection.said)
    result.ContentSequence = [observer, device, said, *map(_withdrawn, results)]
    terms = charset.chosen_for(study.terms, texts(result))
    if terms:
        result.SpecificCharacterSet = list(terms) if len(terms) > 1 else terms[0]
    file_meta(result)
    return result


def _withdrawn(result: Dataset) -> Dataset:
    made = Dataset()
    made.RelationshipType = "CONTAINS"
    made.ValueType = "IMAGE" if "Rows" in result else "COMPOSITE"
    made.ReferencedSOPSequence = [reference(result)]
    return made
