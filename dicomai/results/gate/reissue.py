"""Results made once more for a corrected patient or order: that, new names, and nothing else."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from dicomai.results.gate.error import refuse
from dicomai.results.gate.reading import opened, strictly_read

_MADE: Final = ("InstanceCreationDate", "InstanceCreationTime")
# Written out here, not taken from the encoder: what that forgets, the gate must not forget too.
_OF_AN_ID: Final = (
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "OtherPatientIDsSequence",
)
_OF_A_PERSON: Final = (
    *_OF_AN_ID,
    "PatientName",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientSpeciesDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "AdmissionID",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
_OF_AN_ORDER: Final = (
    "IssuerOfAccessionNumberSequence",
    "StudyID",
    "StudyDescription",
    "ProcedureCodeSequence",
    "ReferringPhysicianName",
    "AdmissionID",
)
_REQUESTS: Final = ("RequestAttributesSequence", "ReferencedRequestSequence")
# CT, MR, any imaging: what a report says where no order does.
_OF_NO_ORDER: Final = (("25045-6", "LN"), ("25056-3", "LN"), ("363679005", "SCT"))
_NEVER_ABSENT: Final = ("PatientName", "PatientBirthDate", "PatientSex")


def check_reissued(
    octets: Sequence[bytes],
    old: Sequence[Dataset],
    corrected: Mapping[str, str],
    known: Mapping[str, str],
) -> None:
    """Return when results are the old ones but for a correction and new names.

    Parameters
    ----------
    octets
        Of each result, in the order of the old ones.
    old
        Those that they take the place of, pixels and all.
    corrected
        What was given: Patient ID, its issuer, Accession Number, by keyword.
    known
        What is known of the one who has the corrected Patient ID, by keyword. Where it is not the
        name and birth date of the old results, nothing of the person that these name may stay.

    Raises
    ------
    GateError
        Names the rule that one breaks.
    """
    new = [opened(each) for each in octets]
    if len(new) != len(old):
        refuse("content", str(old[0].SOPInstanceUID), f"{len(old)} results became {len(new)}")
    names = {
        str(was[keyword].value): str(now[keyword].value)
        for was, now in zip(old, new, strict=True)
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID")
    }
    if len(set(names.values())) != len(names) or not names.keys().isdisjoint(names.values()):
        refuse("identity", str(new[0].SOPInstanceUID), "its UIDs are not its own")
    for was, now in zip(old, new, strict=True):
        with strictly_read(now):
            _check(was, now, names, corrected, known)


def _check(
    was: Dataset,
    now: Dataset,
    names: Mapping[str, str],
    corrected: Mapping[str, str],
    known: Mapping[str, str],
) -> None:
    uid = str(now.SOPInstanceUID)
    for keyword, value in corrected.items():
        if _text(now, keyword) != value.strip(" "):
            refuse("identity", uid, f"its {keyword} is not the corrected one")
    for keyword in _NEVER_ABSENT:
        if keyword not in now:
            refuse("attributes", uid, f"{keyword} is missing")
    other_id = any(
        _text(was, keyword) != _text(now, keyword) for keyword in ("PatientID", "IssuerOfPatientID")
    )
    other_person = other_id and not _is_same_person(was, known)
    other_order = _text(was, "AccessionNumber") != _text(now, "AccessionNumber")
    wrong = {
        *(_OF_AN_ID if other_id else ()),
        *(_OF_A_PERSON if other_person else ()),
        *(_OF_AN_ORDER if other_order else ()),
    }
    for keyword in wrong:
        if keyword in now and _text(now, keyword) not in ("", known.get(keyword, "")):
            refuse("identity", uid, f"its {keyword} is of the wrong patient or order")
    free = {*wrong, *_MADE, *corrected}
    if other_person or other_order:
        free.update((*_REQUESTS, "ContentSequence"))
        _check_requests(was, now, uid, names, keep_others=not other_person)
        _check_content(was, now, uid, names)
    _check_same(was, now, uid, names, {Tag(keyword) for keyword in free})


def _is_same_person(was: Dataset, known: Mapping[str, str]) -> bool:
    name, birth_date = (known.get(each, "") for each in ("PatientName", "PatientBirthDate"))
    sexes = {_text(was, "PatientSex"), known.get("PatientSex", "")} - {""}
    return (
        bool(_letters(name) and birth_date)
        and _letters(_text(was, "PatientName")) == _letters(name)
        and _text(was, "PatientBirthDate") == birth_date
        and len(sexes) < 2
    )


def _letters(name: str) -> list[str]:
    # Of the first group; width and composition of characters are what systems change.
    plain = unicodedata.normalize("NFKC", name).partition("=")[0]
    return plain.casefold().replace("^", " ^ ").rstrip("^ ").split()


def _check_requests(
    was: Dataset, now: Dataset, uid: str, names: Mapping[str, str], *, keep_others: bool
) -> None:
    number = _text(now, "AccessionNumber")
    for keyword in _REQUESTS:
        before = list(was.get(keyword) or ()) if keep_others else []
        for request in now.get(keyword) or ():
            if any(_is_same_item(each, request, names) for each in before) and _text(
                request, "AccessionNumber"
            ) not in ("", _text(was, "AccessionNumber")):
                continue
            if _text(request, "AccessionNumber") != number or any(
                _text(request, each)
                for each in ("RequestedProcedureID", "ScheduledProcedureStepID")
            ):
                refuse("request", uid, f"{keyword} names an order that is not the corrected one")


def _check_content(was: Dataset, now: Dataset, uid: str, names: Mapping[str, str]) -> None:
    """Check that a report says the same, but of no procedure of another order (TID 1500)."""
    (before, procedures), (after, said) = (_parted(each) for each in (was, now))
    if len(before) != len(after) or not all(
        _is_same_item(one, other, names) for one, other in zip(before, after, strict=True)
    ):
        refuse("content", uid, "ContentSequence is not as it was")
    own = {
        *_codes(now, "ProcedureCodeSequence"),
        *(
            code
            for request in now.get("ReferencedRequestSequence") or ()
            for code in _codes(request, "RequestedProcedureCodeSequence")
        ),
        *_OF_NO_ORDER,
    }
    reported = {code for item in said for code in _codes(item, "ConceptCodeSequence")}
    if reported - own or bool(reported) != bool(procedures):
        refuse("request", uid, "it reports on a procedure of an order that is not its own")


def _parted(report: Dataset) -> tuple[list[Dataset], list[Dataset]]:
    """Return the content of a report without the procedures it reports on, and these."""
    rest: list[Dataset] = []
    procedures: list[Dataset] = []
    for item in report.get("ContentSequence") or ():
        concept = _codes(item, "ConceptNameCodeSequence")
        (procedures if concept == {("121058", "DCM")} else rest).append(item)
    return rest, procedures


def _codes(holder: Dataset, keyword: str) -> set[tuple[str, str]]:
    return {
        (
            str(code.get("CodeValue") or code.get("LongCodeValue") or ""),
            str(code.get("CodingSchemeDesignator") or ""),
        )
        for code in holder.get(keyword) or ()
    }


def _check_same(
    was: Dataset, now: Dataset, uid: str, names: Mapping[str, str], but_for: set[BaseTag]
) -> None:
    for tag in sorted({*was.keys(), *now.keys()} - but_for):
        if tag not in was or tag not in now or not _is_same(was[tag], now[tag], names):
            keyword = (was if tag in was else now)[tag].keyword
            refuse("content", uid, f"{keyword or tag} is not as it was")


def _is_same(was: DataElement, now: DataElement, names: Mapping[str, str]) -> bool:
    if was.VR != now.VR:
        return False
    if was.VR == "SQ":
        return len(was.value) == len(now.value) and all(
            _is_same_item(one, other, names)
            for one, other in zip(was.value, now.value, strict=True)
        )
    if was.VR == "UI":
        return [names.get(each, each) for each in _uids(was)] == _uids(now)
    return bool(was.value == now.value)


def _is_same_item(was: Dataset, now: Dataset, names: Mapping[str, str]) -> bool:
    return was.keys() == now.keys() and all(_is_same(each, now[each.tag], names) for each in was)


def _uids(element: DataElement) -> list[str]:
    value = element.value
    return [str(each) for each in value] if isinstance(value, MultiValue) else [str(value or "")]


def _text(result: Dataset, keyword: str) -> str:
    value = result.get(keyword)
    return "" if value is None else str(value).strip(" ")
