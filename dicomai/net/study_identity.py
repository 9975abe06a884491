"""Whose a study is, as a node says: C-FIND for its identity (PS3.4 C.4.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from dicomai.dicom.charset import Terms, decode
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DicomaiError, RefusedError, TransientError
from dicomai.net.calling import GoOn, NothingAccepted, PutOff, associated, watched
from dicomai.net.find import STUDY_ROOT_FIND, Match, match_of, terms_in
from dicomai.net.node import Node
from dicomai.net.tls import NO_FILES, TlsFiles

_MAX_ANSWERS: Final = 100
_PENDING: Final = (0xFF00, 0xFF01)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyIdentity:
    """Whose a study is, as a node says; empty where it does not, or not readably.

    Name, birth date and sex tell about the patient, but not one identity from another.
    """

    patient_id: str
    issuer_of_patient_id: str
    accession_number: str
    patient_name: str = field(default="", compare=False)
    birth_date: str = field(default="", compare=False)
    sex: str = field(default="", compare=False)


def find_study_identity(
    node: Node,
    our_ae: str,
    study_uid: StudyInstanceUID,
    files: TlsFiles = NO_FILES,
    go_on: GoOn = lambda: None,
) -> StudyIdentity | None:
    """Return whose a study is at a node, None where it has no such study (PS3.4 C.4.1).

    `go_on` is called often, and raises to break off.

    Raises
    ------
    TransientError
        It can't be reached, or gives no answer now; PutOff: it answers, but can't do it now.
    RefusedError
        It refuses for good; Rejected: every association with us.
    """
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = study_uid
    query.PatientID = ""
    query.IssuerOfPatientID = ""
    query.AccessionNumber = ""
    query.PatientName = ""
    query.PatientBirthDate = ""
    query.PatientSex = ""
    try:
        with (
            associated(
                node, our_ae, [build_context(STUDY_ROOT_FIND)], files, go_on=go_on
            ) as association,
            watched(association, go_on),
        ):
            found = _found(node, association, query)
    except NothingAccepted as trouble:
        raise RefusedError(
            f"{node.name} takes no C-FIND (study root) from {our_ae}. Allow it there, or set "
            "answers_find = false for it.",
            subject=node.name,
        ) from trouble
    if len(found) > 1:
        raise RefusedError(
            f"{node.name} has study {study_uid} under {len(found)} identities. Have it merged "
            "there first.",
            subject=study_uid,
        )
    return next(iter(found), None)


def _found(node: Node, association: Association, query: Dataset) -> set[StudyIdentity]:
    found = set()
    for said, identifier in association.send_c_find(query, STUDY_ROOT_FIND):
        if "Status" not in said:
            raise TransientError(
                f"{node.name} gave no answer to a C-FIND for study {query.StudyInstanceUID}.",
                subject=node.name,
            )
        if said.Status not in _PENDING:
            if said.Status != 0:
                raise _find_failed(node, query.StudyInstanceUID, said.Status)
            break
        if identifier is None:
            raise RefusedError(
                f"{node.name} answered a C-FIND for study {query.StudyInstanceUID} with something "
                "that can't be read. Look at its log.",
                subject=query.StudyInstanceUID,
            )
        match = match_of(identifier, node.charset_default)
        # A careless peer answers with more than was asked for; one that does not say which study
        # it means was asked for this one.
        if match.text("StudyInstanceUID") in ("", query.StudyInstanceUID):
            found.add(_identity(match, identifier, node.charset_default))
        if len(found) > _MAX_ANSWERS:
            break
    return found


def _identity(match: Match, identifier: Dataset, charset_default: str) -> StudyIdentity:
    birth_date, sex = match.text("PatientBirthDate"), match.text("PatientSex")
    terms = terms_in(identifier, charset_default)
    return StudyIdentity(
        patient_id=match.text("PatientID"),
        issuer_of_patient_id=_readable(identifier, "IssuerOfPatientID", terms),
        accession_number=match.text("AccessionNumber"),
        patient_name=_readable(identifier, "PatientName", terms).rstrip("=^ "),
        birth_date=birth_date if re.fullmatch(r"[0-9]{8}", birth_date) else "",
        sex=sex if sex in ("M", "F", "O") else "",
    )


def _readable(identifier: Dataset, keyword: str, terms: Terms) -> str:
    """Return a text, empty where its bytes don't say how they are to be read."""
    element: object = identifier.get_item(keyword) if keyword in identifier else None
    raw = (element.value if isinstance(element, RawDataElement) else None) or b""
    try:
        text = decode(raw, terms, dictionary_VR(keyword)).strip(" \0")
    except UnicodeError:
        return ""
    return text if text.isprintable() and "\\" not in text else ""


def _find_failed(node: Node, study_uid: str, code: int) -> DicomaiError:
    sentence = (
        f"{node.name} failed to look for study {study_uid} (C-FIND status 0x{code:04X}). Look at "
        "its log."
    )
    for_good = code == 0x0122 or code == 0x0124 or 0xA900 <= code <= 0xA9FF
    return (RefusedError if for_good else PutOff)(sentence, subject=node.name)
