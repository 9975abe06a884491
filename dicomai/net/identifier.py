"""Identifiers of query and retrieve requests that peers send us (PS3.4 C.4.1.1.3, C.4.2.1.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, get_args

from pydicom import config
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from dicomai.dicom.charset import TEXT_VRS, Terms, chosen_for, decode
from dicomai.dicom.data_set import Element
from dicomai.dicom.header import values_of
from dicomai.errors import InputError
from dicomai.net.find import UNIQUE_KEYS, Level, terms_in

ROOTS: Final[Mapping[str, tuple[str, Level]]] = {
    "1.2.840.10008.5.1.4.1.2.1.1": ("C-FIND", "patient"),
    "1.2.840.10008.5.1.4.1.2.1.2": ("C-MOVE", "patient"),
    "1.2.840.10008.5.1.4.1.2.1.3": ("C-GET", "patient"),
    "1.2.840.10008.5.1.4.1.2.2.1": ("C-FIND", "study"),
    "1.2.840.10008.5.1.4.1.2.2.2": ("C-MOVE", "study"),
    "1.2.840.10008.5.1.4.1.2.2.3": ("C-GET", "study"),
}
"""Service and root of each information model that is answered (PS3.4 C.6)."""

LEVELS: Final[tuple[Level, ...]] = get_args(Level)
_NO_KEYS: Final = frozenset(
    {"QueryRetrieveLevel", "SpecificCharacterSet", "RetrieveAETitle", "InstanceAvailability"}
)
_NOT_MATCHED: Final = frozenset({"AT", "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UN"})
_NUMBERS: Final = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a peer asks for.

    Attributes
    ----------
    keys
        By keyword, text as PS3.4 C.2.2.2 has it; empty: to be told.
    strange
        It has keys that are not heeded: sequences, private ones.
    terms
        Character sets that it is written in.
    """

    level: Level
    keys: Mapping[str, str]
    strange: bool
    terms: Terms

    def uids(self, level: Level) -> tuple[str, ...]:
        """Return the values of a level's unique key."""
        return tuple(each for each in self.keys.get(UNIQUE_KEYS[level], "").split("\\") if each)


def read(identifier: Dataset, root: Level, charset_default: str) -> Asked:
    """Return what an identifier asks for, hierarchically (PS3.4 C.4.1.2.1).

    Raises
    ------
    InputError
        It has no level of its root, the unique key of a level above is not one value, or some key
        can't be read: without it others' patients would match.
    """
    terms = terms_in(identifier, charset_default)
    keys: dict[str, str] = {}
    strange = False
    for tag in sorted(identifier.keys()):
        element: object = identifier.get_item(tag)
        keyword = keyword_for_tag(tag)
        if isinstance(element, DataElement) and element.is_empty and keyword:
            keys[keyword] = ""  # pydicom leaves only what has a value as it came
            continue
        if not keyword or _vr(keyword) in _NOT_MATCHED:
            strange = True
            continue
        keys[keyword] = _value(keyword, element, terms)
    level = keys.get("QueryRetrieveLevel", "").strip().lower()
    levels = LEVELS[LEVELS.index(root) :]
    if level not in levels:
        raise InputError(f"QueryRetrieveLevel {level.upper()!a} is not one of this model.")
    asked = Asked(
        level=level,
        keys={name: value for name, value in keys.items() if name not in _NO_KEYS},
        strange=strange,
        terms=terms,
    )
    for above in levels[: levels.index(asked.level)]:
        values = asked.uids(above)
        if len(values) != 1 or any(sign in values[0] for sign in "*?"):
            raise InputError(f"{UNIQUE_KEYS[above]} must be one value at level {level.upper()}.")
    return asked


def _value(keyword: str, element: object, terms: Terms) -> str:
    """Return a key as text; what can't be read is refused, never passed over."""
    if not isinstance(element, RawDataElement):
        raise InputError(f"{keyword} can't be read: it came as a sequence.")
    vr = _vr(keyword)
    raw = element.value or b""
    if vr in _NUMBERS:
        one = Element(tag=int(element.tag), vr=vr, value=raw, items=(), offset=0, length=len(raw))
        values = values_of(one, terms, element.is_little_endian)
        if raw and not values:
            raise InputError(f"{keyword} can't be read: {len(raw)} bytes are no {vr}.")
        return "\\".join(str(each).removesuffix(".0") for each in values)
    try:
        return decode(raw.rstrip(b"\0 "), terms if vr in TEXT_VRS else (), vr)
    except UnicodeError as trouble:
        declared = f"character set {'/'.join(terms)}" if terms else "ASCII: it declares no other"
        raise InputError(f"{keyword} can't be read in {declared}.") from trouble


def _vr(keyword: str) -> str:
    return dictionary_VR(keyword).partition(" or ")[0]


def written(asked: Asked, found: Mapping[str, Iterable[str]], our_ae: str) -> Dataset:
    """Return the identifier of a match: what was asked for, in a character set that holds it."""
    answer = Dataset()
    answer.QueryRetrieveLevel = asked.level.upper()
    answer.RetrieveAETitle = our_ae
    answer.InstanceAvailability = "ONLINE"
    texts: list[tuple[str, str]] = []
    for keyword in asked.keys:
        tag = tag_for_keyword(keyword)
        vr = _vr(keyword)
        if tag is None or vr == "SQ" or vr.startswith("O") or vr == "UN":
            continue
        values = list(found.get(keyword, ()))
        if vr in TEXT_VRS:
            texts += [(vr, each) for each in values]
        answer.add(_element(tag, vr, values))
    if not all(text.isascii() for _, text in texts):
        terms = chosen_for(asked.terms, texts)
        answer.SpecificCharacterSet = list(terms) if len(terms) > 1 else terms[0]
    return answer


def _element(tag: int, vr: str, values: list[str]) -> DataElement:
    given: object = values if len(values) > 1 else next(iter(values), None)
    if values and vr in _NUMBERS:
        numbers = [float(each) if vr in ("FL", "FD") else int(each) for each in values]
        given = numbers if len(numbers) > 1 else numbers[0]
    try:
        return DataElement(tag, vr, given, validation_mode=config.IGNORE)
    except (ValueError, TypeError, OverflowError):  # a number that is none stands in the object
        return DataElement(tag, vr, None)
