"""Whose an object is: the key that all objects of a study must share.

The key is Patient ID, its spaces trimmed and nothing else, with its issuer. An empty ID, or one
that stands for none, is no identity: then name, birth date and sex take its place.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, NewType
from urllib.parse import quote, unquote

from dicomai.dicom.dates import is_day
from dicomai.dicom.header import Attributes

IdentityKey = NewType("IdentityKey", str)
"""`12345@HOSPITAL`, `12345`, or without an ID `@DOE^JANE|19600101|F`; what would be ambiguous is
written in percent escapes."""


_NOBODYS: Final = "an object names several Patient IDs, or gives it as a number"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose one object is.

    Attributes
    ----------
    key
        None where nobody can say: an object has several Patient IDs, or a number for one.
    birth_date
        Empty where it isn't known, or no day.
    """

    key: IdentityKey | None
    birth_date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """All objects are one patient's."""

    key: IdentityKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambiguous:
    """The objects may be several patients'; `keys` are those that a person may choose from."""

    keys: tuple[IdentityKey, ...]
    because: str


def identity_of(
    attributes: Attributes, *, issuer_of_node: str, placeholders: Collection[str]
) -> Identity:
    """Return whose an object is.

    Parameters
    ----------
    attributes
        Its short header.
    issuer_of_node
        Issuer of Patient IDs from the node that sent it, where the object does not say.
    placeholders
        Patient IDs that stand for none.
    """
    birth_date = known_birth_date(_text(attributes, "PatientBirthDate"))
    patient_id = attributes.get("PatientID", "")
    if not isinstance(patient_id, str):  # a number may have lost zeros, and be another's
        return Identity(key=None, birth_date=birth_date)
    known_id = known_patient_id(patient_id, placeholders)
    if known_id:
        issuer = _text(attributes, "IssuerOfPatientID") or issuer_of_node.strip(" ")
        key = _plain(known_id) + (f"@{_plain(issuer)}" if issuer else "")
        return Identity(key=IdentityKey(key), birth_date=birth_date)
    name = _name(_text(attributes, "PatientName"))
    # As results repeat them (PS3.5 6.2): they leave out what is no date or sex, and are the same
    # patient's.
    born, sex = _text(attributes, "PatientBirthDate"), _text(attributes, "PatientSex")
    known = born if is_day(born) else "", sex if sex in ("M", "F", "O") else ""
    without = "|".join(_plain(part) for part in (name, *known))
    return Identity(key=IdentityKey(f"@{without}"), birth_date=birth_date)


def has_patient_id(key: IdentityKey | None) -> bool:
    """Tell whether a key names a patient by an ID, and not by what others may share."""
    return key is not None and not key.startswith("@")


def patient_id_in(key: IdentityKey) -> str:
    """Return the Patient ID that a key names; empty where it names none."""
    return unquote(key.partition("@")[0])


def issuer_in(key: IdentityKey) -> str:
    """Return the issuer that a key names; empty where it names none, or no Patient ID."""
    patient_id, _, issuer = key.partition("@")
    return unquote(issuer) if patient_id else ""


def judge(identities: Iterable[Identity]) -> Agreed | Ambiguous:
    """Tell whether the objects of a study, at least one, are one patient's."""
    seen = set(identities)
    keys = tuple(sorted({each.key for each in seen if each.key is not None}))
    dates = sorted({each.birth_date for each in seen if each.birth_date})
    if any(each.key is None for each in seen):
        return Ambiguous(keys=keys, because=_NOBODYS)
    if len(keys) != 1:
        return Ambiguous(keys=keys, because=f"its objects belong to {len(keys)} patients")
    if len(dates) > 1:
        return Ambiguous(keys=keys, because=f"its objects give {len(dates)} birth dates")
    return Agreed(key=keys[0])


def comparable_name(name: str) -> str:
    """Return a person's name so that it is equal to the same name spelt otherwise.

    Letter case, width of characters, spaces around components and empty ones at the end (PS3.5
    6.2.1) are what systems change as they pass a name on.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    groups = [
        "^".join(" ".join(part.split()) for part in group.split("^")) for group in plain.split("=")
    ]
    return "=".join(group.rstrip("^") for group in groups).rstrip("=")


def known_patient_id(said: str, placeholders: Collection[str]) -> str:
    """Return a Patient ID without its spaces; empty where it is none, or stands for none."""
    trimmed = said.strip(" ")
    return "" if trimmed in placeholders else trimmed


def known_birth_date(said: str) -> str:
    """Return a birth date where it is a day: 00000000 and 1960 say nothing about the patient."""
    # ACR-NEMA wrote 1960.01.31 (PS3.5 6.2, note on DA).
    digits = said.strip(" ").replace(".", "")
    return digits if is_day(digits) else ""


def _text(attributes: Attributes, keyword: str) -> str:
    value = attributes.get(keyword, "")
    if isinstance(value, str | float | int):
        return str(value).strip(" ")
    return "\\".join(str(part) for part in value)


def _name(name: str) -> str:
    """Return a name without the empty components and groups at its end (PS3.5 6.2.1)."""
    groups = [group.strip(" ").rstrip("^ ") for group in name.split("=")]
    return "=".join(groups).rstrip("=")


def _plain(text: str) -> str:
    return "".join(quote(each, safe="") if each in "@|%" else each for each in text)
