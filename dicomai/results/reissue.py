"""Results once more for a corrected patient or accession number, and the note on those before.

Nothing of what was found is encoded again: the objects are the same but for whose they are, which
order they answer and what they are called, and they refer to each other by their new names. What
they say of the wrong patient or order goes: half of it beside another's number would be worse.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pydicom.datadict import dictionary_description, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

from dicomai.dicom import dates, uid
from dicomai.dicom.charset import fits, terms_of
from dicomai.dicom.dates import Instant
from dicomai.dicom.identity import comparable_name
from dicomai.errors import InputError
from dicomai.results.context import ResultContext
from dicomai.results.procedure import leave_out_procedures_of_others
from dicomai.results.rejection import INCORRECT_WORKLIST_ENTRY, Rejection, note
from dicomai.results.request import request_of
from dicomai.results.source import PATIENT, REQUEST

REASON: Final = "They are reissued for the corrected patient or procedure."


_LONGEST: Final = MappingProxyType({"LO": 64, "SH": 16})
_OF_AN_ID: Final = (
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "OtherPatientIDsSequence",
)
_OF_THE_DATA: Final = frozenset(
    {"PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"}
)
_OF_A_PERSON: Final = (
    *(each for each in PATIENT if each not in _OF_THE_DATA),
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "AdmissionID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
_OF_AN_ORDER: Final = (
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    "ProcedureCodeSequence",
    "AdmissionID",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who has a Patient ID, as far as anybody says; empty where nobody does."""

    name: str = ""
    birth_date: str = ""
    sex: str = ""
    issuer_of_patient_id: str = ""


def known_of(person: Person) -> Mapping[str, str]:
    """Return what is known of a person, by keyword."""
    return {
        "PatientName": person.name,
        "PatientBirthDate": person.birth_date,
        "PatientSex": person.sex,
        "IssuerOfPatientID": person.issuer_of_patient_id,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What results are to say otherwise; empty: as it was.

    Attributes
    ----------
    issuer_of_patient_id
        That of `person`, where the results have the same Patient ID of another issuer.
    person
        Who has the corrected Patient ID.
    """

    patient_id: str = ""
    issuer_of_patient_id: str = ""
    accession_number: str = ""
    person: Person = Person()

    @property
    def attributes(self) -> Mapping[str, str]:
        """What changes, by keyword."""
        given = {
            "PatientID": self.patient_id,
            "IssuerOfPatientID": self.issuer_of_patient_id,
            "AccessionNumber": self.accession_number,
        }
        return {keyword: value for keyword, value in given.items() if value}


def reissued(
    results: Sequence[Dataset], correction: Correction, root: uuid.UUID, now: Instant
) -> tuple[Dataset, ...]:
    """Return results of a job as another patient's or procedure's, under new UIDs.

    Parameters
    ----------
    results
        All that the job made. Never changed.
    correction
        What they are to say.
    root
        Drawn for this: the new UIDs derive from it.
    now
        When they are made.

    Raises
    ------
    InputError
        A value can't be one of its attribute, or does not fit the results' character set.
    """
    for keyword, value in correction.attributes.items():
        _check(keyword, value, results)
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
        of_the_other = _correct_patient(one, correction)
        _correct_order(one, correction.accession_number, all_requests=of_the_other)
        date, time = dates.da_and_tm(now, str(one.TimezoneOffsetFromUTC))
        one.InstanceCreationDate, one.InstanceCreationTime = date, time
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        changed.append(one)
    return tuple(changed)


def _check(keyword: str, value: str, results: Sequence[Dataset]) -> None:
    vr = dictionary_VR(keyword)
    longest = _LONGEST[vr]
    name = dictionary_description(keyword)
    if not value.strip() or len(value) > longest or "\\" in value or not value.isprintable():
        raise InputError(f"{value!a} is no {name}: 1 to {longest} characters, no backslash.")
    for each in results:
        if not fits(value, terms_of(each.get("SpecificCharacterSet")), vr):
            raise InputError(f"{name} {value!a} does not fit the results' character set.")


def _correct_patient(result: Dataset, correction: Correction) -> bool:
    """Make a result that of the corrected patient; True where that is another person."""
    same_id = correction.patient_id in ("", str(result.get("PatientID") or "").strip(" "))
    if same_id and not correction.issuer_of_patient_id:
        return False
    person = correction.person
    other = not _is_same_person(result, person)
    _drop(result, _OF_A_PERSON if other else _OF_AN_ID)
    result.PatientID = correction.patient_id
    terms = terms_of(result.get("SpecificCharacterSet"))
    if fits(person.issuer_of_patient_id, terms, "LO") and person.issuer_of_patient_id:
        result.IssuerOfPatientID = person.issuer_of_patient_id
    if other:
        result.PatientName = person.name if fits(person.name, terms, "PN") else ""
        result.PatientBirthDate = person.birth_date
        result.PatientSex = person.sex
    return other


def _is_same_person(result: Dataset, person: Person) -> bool:
    """Tell whether a result's patient is this one, so that no more than the ID was wrong.

    Name and birth date have to agree, and to be known: a name alone is that of many.
    """
    sex = str(result.get("PatientSex") or "")
    return (
        _alphabetic(str(result.get("PatientName") or "")) == _alphabetic(person.name) != ""
        and str(result.get("PatientBirthDate") or "") == person.birth_date != ""
        and (not sex or not person.sex or sex == person.sex)
    )


def _alphabetic(name: str) -> str:
    # Not every system keeps the groups in other scripts.
    return comparable_name(name).partition("=")[0]


def _correct_order(result: Dataset, accession_number: str, *, all_requests: bool) -> None:
    """Make a result answer the corrected order, with nothing of the one that it named.

    Other orders that it names stay, unless they are another patient's: `all_requests`.
    """
    before = str(result.get("AccessionNumber") or "")
    changes = accession_number not in ("", before.strip(" "))
    if not changes and not all_requests:
        return
    if changes:
        _drop(result, _OF_AN_ORDER)
        result.AccessionNumber = accession_number
        result.StudyID = result.ReferringPhysicianName = ""
    for keyword in (REQUEST, "ReferencedRequestSequence"):
        kept = [
            request
            for request in result.get(keyword) or ()
            if not all_requests and str(request.get("AccessionNumber") or "") not in ("", before)
        ]
        if keyword != REQUEST and "ValueType" in result and result.AccessionNumber:
            kept.insert(0, request_of(result, Dataset()))
        _drop(result, (keyword,))
        if kept:
            setattr(result, keyword, kept)
    leave_out_procedures_of_others(result)


def _drop(result: Dataset, keywords: Sequence[str]) -> None:
    for keyword in keywords:
        if keyword in result:
            delattr(result, keyword)


def rejection_note(
    withdrawn: Sequence[Dataset], report: Dataset, root: uuid.UUID, context: ResultContext
) -> Dataset:
    """Return the note that withdraws results whose place others take.

    Parameters
    ----------
    withdrawn
        What is not to be used any more: their headers.
    report
        Of those that take their place: the note is about the same study, of that patient.
    root
        Drawn for these.
    context
        Who reissues, and when.
    """
    rejection = Rejection(
        title=INCORRECT_WORKLIST_ENTRY,
        said=f"AI results withdrawn: {REASON}",
        sop_instance_uid=note_uid(root),
        series_instance_uid=uid.derived(root, "rejection note", "series"),
    )
    return note(withdrawn, report, rejection, context)


def note_uid(root: uuid.UUID) -> str:
    """Return the SOP Instance UID of a note."""
    return uid.derived(root, "rejection note")
