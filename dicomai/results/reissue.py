"""Results once more for a corrected patient or accession number, and the note on those before.

Nothing of what was found is encoded again: the objects are the same but for whose they are and what
they are called, and they refer to each other by their new names.
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

from dicomai.dicom import uid
from dicomai.dicom.charset import fits, terms_of
from dicomai.errors import InputError
from dicomai.results.context import ResultContext
from dicomai.results.rejection import INCORRECT_WORKLIST_ENTRY, Rejection, note
from dicomai.results.request import request_of
from dicomai.results.source import REQUEST

REASON: Final = "They are reissued for the corrected patient or procedure."


_LONGEST: Final = MappingProxyType({"LO": 64, "SH": 16})


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What results are to say otherwise; empty: as it was."""

    patient_id: str = ""
    accession_number: str = ""

    @property
    def attributes(self) -> Mapping[str, str]:
        """What changes, by keyword."""
        given = {"PatientID": self.patient_id, "AccessionNumber": self.accession_number}
        return {keyword: value for keyword, value in given.items() if value}


def reissued(
    results: Sequence[Dataset], correction: Correction, root: uuid.UUID
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
        if correction.accession_number:
            _correct_requests(one, correction.accession_number)
        for keyword, value in correction.attributes.items():
            setattr(one, keyword, value)
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


def _correct_requests(result: Dataset, accession_number: str) -> None:
    """Have the requests that a result names bear the number, as far as they bore the old one."""
    old = str(result.get("AccessionNumber") or "")
    for keyword in (REQUEST, "ReferencedRequestSequence"):
        for request in result.get(keyword) or ():
            if str(request.get("AccessionNumber") or "") == old:
                request.AccessionNumber = accession_number
    if "ValueType" in result and "ReferencedRequestSequence" not in result:
        study = Dataset()
        study.StudyInstanceUID = result.StudyInstanceUID
        study.AccessionNumber = accession_number
        result.ReferencedRequestSequence = [request_of(study, Dataset())]


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
