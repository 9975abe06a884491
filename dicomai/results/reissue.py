"""Results once more for a corrected patient, and the note that withdraws what left before.

Nothing of what was found is encoded again: the objects are the same but for whose they are and what
they are called, and they refer to each other by their new names.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from typing import Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomai.dicom import uid
from dicomai.dicom.charset import fits, terms_of
from dicomai.dicom.codes import Code
from dicomai.errors import InputError
from dicomai.results.provenance import code_item
from dicomai.results.request import evidence

KEY_OBJECT_SELECTION: Final = "1.2.840.10008.5.1.4.1.1.88.59"
INCORRECT_WORKLIST_ENTRY: Final = Code("113038", "DCM", "Incorrect Modality Worklist Entry")
"""Of CID 7011: the objects are of another patient or procedure than they say (IHE RAD, IOCM)."""
_PATIENT_AND_STUDY: Final = (
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)


def reissued(results: Sequence[Dataset], patient_id: str, root: uuid.UUID) -> tuple[Dataset, ...]:
    """Return results of a job as another patient's, under new UIDs.

    Parameters
    ----------
    results
        All that the job made. Never changed.
    patient_id
        The corrected Patient ID.
    root
        Drawn for this: the new UIDs derive from it.

    Raises
    ------
    InputError
        The ID does not fit the character set of the results.
    """
    if not patient_id.strip() or len(patient_id) > 64 or "\\" in patient_id:
        raise InputError(f"{patient_id!a} is no Patient ID: 1 to 64 characters, no backslash.")
    for each in results:
        if not fits(patient_id, terms_of(each.get("SpecificCharacterSet")), "LO"):
            raise InputError(f"Patient ID {patient_id!a} does not fit the results' character set.")
    new = {
        str(each[keyword].value): uid.derived(root, str(each[keyword].value))
        for each in results
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID")
    }

    def rename(_data_set: Dataset, element: DataElement) -> None:
        if element.VR != "UI" or element.is_empty:
            return
        if isinstance(element.value, MultiValue):
            element.value = [new.get(str(value), str(value)) for value in element.value]
        else:
            element.value = UID(new.get(str(element.value), str(element.value)))

    changed = []
    for each in results:
        one = copy.deepcopy(each)
        one.walk(rename)
        one.PatientID = patient_id
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        changed.append(one)
    return tuple(changed)


def rejection_note(
    withdrawn: Sequence[Dataset], identity: Dataset, root: uuid.UUID, made_at: tuple[str, str]
) -> Dataset:
    """Return the document that withdraws results (PS3.3 A.35.4, PS3.16 TID 2010, CID 7011).

    Parameters
    ----------
    withdrawn
        What is not to be used any more.
    identity
        One of those that take its place: the note is about the same study, of that patient.
    root
        Drawn for this.
    made_at
        Date and time (DA, TM).
    """
    note = Dataset()
    for keyword in _PATIENT_AND_STUDY:
        if keyword in identity:
            note[keyword] = copy.deepcopy(identity[keyword])
    note.SOPClassUID = UID(KEY_OBJECT_SELECTION)
    note.SOPInstanceUID = UID(note_uid(root))
    note.SeriesInstanceUID = UID(uid.derived(root, "rejection note", "series"))
    note.Modality = "KO"
    note.SeriesNumber = 9999
    note.InstanceNumber = 1
    note.SeriesDescription = "Rejection note"
    note.ReferencedPerformedProcedureStepSequence = []
    note.ContentDate, note.ContentTime = made_at
    note.ValueType = "CONTAINER"
    note.ConceptNameCodeSequence = [code_item(INCORRECT_WORKLIST_ENTRY)]
    note.ContinuityOfContent = "SEPARATE"
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "2010"
    note.ContentTemplateSequence = [template]
    note.CurrentRequestedProcedureEvidenceSequence = evidence(withdrawn)
    note.ContentSequence = [_composite(each) for each in withdrawn]
    note.file_meta = FileMetaDataset()
    note.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    note.file_meta.MediaStorageSOPClassUID = note.SOPClassUID
    note.file_meta.MediaStorageSOPInstanceUID = note.SOPInstanceUID
    return note


def note_uid(root: uuid.UUID) -> str:
    """Return the SOP Instance UID of a note."""
    return uid.derived(root, "rejection note")


def _composite(withdrawn: Dataset) -> Dataset:
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    item.ValueType = "COMPOSITE"
    reference = Dataset()
    reference.ReferencedSOPClassUID = withdrawn.SOPClassUID
    reference.ReferencedSOPInstanceUID = withdrawn.SOPInstanceUID
    item.ReferencedSOPSequence = [reference]
    return item
