"""The header of each study: what peers look for studies by, kept as objects come."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, insert, select, update

from dicomai.dicom.header import Attributes, AttributeValue
from dicomai.dicom.matching import forms
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import schema

PATIENT: Final = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "OtherPatientIDs",
    "EthnicGroup",
    "PatientComments",
)
"""Attributes of a patient (PS3.4 C.6.1.1.2)."""
STUDY: Final = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "StudyDescription",
    "ReferringPhysicianName",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "Occupation",
    "AdditionalPatientHistory",
    "TimezoneOffsetFromUTC",
)
"""Attributes of a study (PS3.4 C.6.2.1.2), but for those that are counted."""


def note(
    connection: Connection, study: StudyInstanceUID, attributes: Attributes, *, ours: bool
) -> None:
    """Keep what an object says of patient and study; the last received one is believed.

    Parameters
    ----------
    attributes
        The short header of the object.
    ours
        We made it: it repeats what its source said.
    """
    table = schema.study_headers
    said = {name: attributes[name] for name in (*PATIENT, *STUDY) if name in attributes}
    modality = _text(attributes, "Modality")
    known = connection.execute(
        select(table.c.modalities, table.c.attributes).where(table.c.study_instance_uid == study)
    ).one_or_none()
    if known is None:
        values = _columns(said) | {"modalities": _joined({modality})}
        connection.execute(insert(table).values(study_instance_uid=study, **values))
        return
    changed: dict[str, object] = {}
    if modality not in known.modalities.split("\\"):
        changed["modalities"] = _joined({modality, *known.modalities.split("\\")})
    if not ours and dict(known.attributes) != said:
        changed |= _columns(said)
    if changed:
        connection.execute(
            update(table).where(table.c.study_instance_uid == study).values(**changed)
        )


def _columns(said: dict[str, AttributeValue]) -> dict[str, object]:
    names = forms(_text(said, "PatientName"), "PN")
    return {
        "patient_id": _text(said, "PatientID"),
        "patient_names": "\n".join(names),
        "accession_number": _text(said, "AccessionNumber"),
        "study_date": _text(said, "StudyDate"),
        "attributes": said,
    }


def _joined(modalities: set[str]) -> str:
    return "".join(f"\\{each}" for each in sorted(modalities - {""})) + "\\"


def _text(attributes: Attributes, keyword: str) -> str:
    value = attributes.get(keyword, "")
    return value if isinstance(value, str) else ""
