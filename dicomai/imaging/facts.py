"""What a series says of patient and acquisition, as far as a model's limits ask for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Final

from pydicom import Dataset

from dicomai.dicom.anatomic_regions import another_part, body_part
from dicomai.dicom.view_codes import view_position
from dicomai.errors import InputError
from dicomai.imaging.attributes import items_of, text

_AGE: Final = re.compile(r"(\d{3})([DWMY])", re.ASCII)
_DAYS: Final = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """None or "" where the object does not say.

    `view_position` is that of the View Code where View Position is not said, and LATERAL where only
    Patient Orientation tells. `body_part` is that of Anatomic Region Sequence where Body Part
    Examined is not said, and all frames that say one say the same.
    """

    modality: str = ""
    age_years: float | None = None
    sex: str = ""
    body_part: str = ""
    view_position: str = ""
    presentation_intent: str = ""


def facts_of(dataset: Dataset) -> Facts:
    """Return the facts of one object; those of a series are those of its first slice."""
    return Facts(
        modality=text(dataset, "Modality"),
        age_years=_age_years(dataset),
        sex=text(dataset, "PatientSex").upper(),
        body_part=body_part_of(dataset),
        view_position=text(dataset, "ViewPosition").upper() or _view_position(dataset),
        presentation_intent=text(dataset, "PresentationIntentType").upper(),
    )


def body_part_of(dataset: Dataset) -> str:
    """Return Body Part Examined, else what Anatomic Region Sequence says in its words; else ""."""
    return text(dataset, "BodyPartExamined").upper() or _coded_part(dataset)


def noted_of_part(dataset: Dataset) -> tuple[str, ...]:
    """Note an object that names two parts of the body; what is written goes before the code.

    It is what PACS and worklists show and rules are written for, and the two may well be a part and
    what it is part of.
    """
    said, coded = text(dataset, "BodyPartExamined").upper(), _coded_part(dataset)
    if not another_part(said, coded):
        return ()
    told = (
        f"The images say {said} as Body Part Examined and {coded} as Anatomic Region Sequence; the "
        "first was believed."
    )
    return (told,)


def _coded_part(dataset: Dataset) -> str:
    """Return the part that the code names; "" as well where it can't be read, or there are two."""
    try:
        codes = items_of(dataset, "AnatomicRegionSequence") or [
            code
            for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
            for frame in items_of(dataset, keyword)
            for anatomy in items_of(frame, "FrameAnatomySequence")
            for code in items_of(anatomy, "AnatomicRegionSequence")
        ]
        named = {(text(each, "CodeValue"), text(each, "CodingSchemeDesignator")) for each in codes}
    except InputError:  # nothing depends on it but limits, and they take it for not said
        return ""
    parts = {body_part(value, scheme) for value, scheme in named if value}
    return parts.pop() if len(parts) == 1 else ""


def _view_position(dataset: Dataset) -> str:
    """Return the view by its code; LATERAL where rows run to the front or the back, else ""."""
    for code in items_of(dataset, "ViewCodeSequence")[:1]:
        if said := view_position(text(code, "CodeValue"), text(code, "CodingSchemeDesignator")):
            return said
    rows_to = text(dataset, "PatientOrientation").upper()[:1]
    return "LATERAL" if rows_to in {"A", "P"} else ""


def _age_years(dataset: Dataset) -> float | None:
    """Patient's Age, else from Birth Date to Study Date."""
    age = _AGE.fullmatch(text(dataset, "PatientAge"))
    if age:
        return float(age[1]) * _DAYS[age[2]] / _DAYS["Y"]
    born, examined = _day(text(dataset, "PatientBirthDate")), _day(text(dataset, "StudyDate"))
    if born is None or examined is None or examined < born:
        return None
    return (examined - born).days / _DAYS["Y"]


def _day(value: str) -> date | None:
    try:
        return date.fromisoformat(value) if len(value) == 8 else None
    except ValueError:
        return None
