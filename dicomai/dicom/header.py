"""The short header of an object: what rules, geometry and people ask of it, as plain values.

Values are bounded and safe to log and to store: control characters, direction overrides and
surrogates are written out as escapes, numbers that are none are left as their text.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from dicomai.dicom import uid
from dicomai.dicom.anatomic_regions import body_part, is_body_part
from dicomai.dicom.charset import Terms, decode, terms_of
from dicomai.dicom.data_set import Element, Elements, known_vr
from dicomai.dicom.part10 import Part10
from dicomai.dicom.view_codes import view_position
from dicomai.errors import InputError

AttributeValue: TypeAlias = str | float | Sequence[str | float]
"""One value, or several; a sequence is the number of its items."""

Attributes: TypeAlias = Mapping[str, AttributeValue]
"""The short header, by DICOM keyword."""

MAX_TEXT: Final = 256
"""Characters that are kept of a value."""
MAX_VALUES: Final = 64

EQUIPMENT: Final = "ContributingEquipmentSequence"
"""Kept as one "manufacturer / model" for each item, so that our own results are known again."""

BODY_PART: Final = "BodyPartExamined"
REGION: Final = "AnatomicRegionSequence"
"""Kept as the terms of Body Part Examined for what it names, or "meaning (value, scheme)" of codes
that have none."""

PIXELS: Final = "PixelData"
"""Kept as the number of bytes; the other two kinds of pixels (PS3.3 C.7.6.24) under it too."""

_NUMERIC: Final[Mapping[str, tuple[str, int]]] = {
    "US": ("H", 2), "SS": ("h", 2), "UL": ("I", 4), "SL": ("i", 4), "UV": ("Q", 8),
    "SV": ("q", 8), "FL": ("f", 4), "FD": ("d", 8),
}  # fmt: skip
_TEXT: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_ASCII: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
_ONE_VALUE: Final = frozenset({"LT", "ST", "UT", "UR"})
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHARED_GROUPS: Final = 0x52009229
_PER_FRAME_GROUPS: Final = 0x52009230
_PIXEL_REPRESENTATION: Final = 0x00280103
_CHARACTER_SET: Final = 0x00080005
_VIEW: Final = "ViewPosition"
_VIEW_CODES: Final = 0x00540220
_REGION_CODES: Final = 0x00082218
_FRAME_ANATOMY: Final = 0x00209071
_CODE_VALUE: Final = 0x00080100
_CODING_SCHEME: Final = 0x00080102
_CODE_MEANING: Final = 0x00080104


@dataclass(frozen=True, slots=True, kw_only=True)
class Identifiers:
    """The UIDs of an object, each one checked to be fit for a path."""

    study_instance_uid: uid.StudyInstanceUID
    series_instance_uid: uid.SeriesInstanceUID
    sop_instance_uid: uid.SOPInstanceUID
    sop_class_uid: uid.SOPClassUID


def identifiers(part10: Part10) -> Identifiers:
    """Return the four UIDs of a data set; an InputError names the one that is missing or no UID."""
    return Identifiers(
        study_instance_uid=uid.StudyInstanceUID(_uid(part10, "StudyInstanceUID")),
        series_instance_uid=uid.SeriesInstanceUID(_uid(part10, "SeriesInstanceUID")),
        sop_instance_uid=uid.SOPInstanceUID(_uid(part10, "SOPInstanceUID")),
        sop_class_uid=uid.SOPClassUID(_uid(part10, "SOPClassUID")),
    )


def attributes(part10: Part10, charset_default: str = "") -> dict[str, AttributeValue]:
    """Return the short header of an object.

    Parameters
    ----------
    part10
        The object, see `dicomai.dicom.part10.opened`.
    charset_default
        Specific Character Set of bytes above 127 in objects that declare none.

    Returns
    -------
    dict
        By keyword: the public attributes of the data set, and of a multi-frame image (PS3.3
        C.7.6.16) those that its functional groups hold for all frames, or else for the first. A
        view that only its code tells stands under View Position, and the part of the body that
        only Anatomic Region Sequence tells under Body Part Examined, unless frames differ in it.
    """
    little = part10.little_endian
    terms = terms_in(part10.elements, charset_default)
    representation = part10.elements.get(_PIXEL_REPRESENTATION)
    signed = representation is not None and values_of(representation, (), little) == [1.0]
    found: dict[str, AttributeValue] = {}
    for elements in (part10.elements, *_functional_groups(part10.elements)):
        for element in elements.values():
            keyword = "" if element.tag >> 16 & 1 else keyword_for_tag(element.tag)
            if keyword and keyword not in found:
                values = values_of(_signed(element, signed), terms, little)
                if values:
                    found[keyword] = values[0] if len(values) == 1 else values
    if part10.pixels is not None:
        found[PIXELS] = float(part10.pixels.length)
    equipment = part10.elements.get(tag_for_keyword(EQUIPMENT) or 0)
    if equipment is not None:
        found[EQUIPMENT] = [
            f"{_text(item, 0x00080070, terms)} / {_text(item, 0x00081090, terms)}"
            for item in equipment.items[:MAX_VALUES]
        ]
    if _VIEW not in found and (view := _view_of_code(part10.elements, terms)):
        found[_VIEW] = view
    if regions := _regions(part10.elements, terms):
        found[REGION] = regions[0] if len(regions) == 1 else regions
        if BODY_PART not in found and len(regions) == 1 and is_body_part(regions[0]):
            found[BODY_PART] = regions[0]
    return found


def _view_of_code(elements: Elements, terms: Terms) -> str:
    """Return what View Code Sequence says, in the words of View Position; else ""."""
    codes = elements.get(_VIEW_CODES)
    if codes is None or not codes.items:
        return ""
    code = codes.items[0]
    return view_position(_text(code, _CODE_VALUE, terms), _text(code, _CODING_SCHEME, terms))


def _regions(elements: Elements, terms: Terms) -> list[str]:
    """Return what is named as anatomic region, each once: by the object, or else by its frames."""
    codes = _items(elements, _REGION_CODES) or [
        code
        for tag in (_SHARED_GROUPS, _PER_FRAME_GROUPS)
        for frame in _items(elements, tag)
        for anatomy in _items(frame, _FRAME_ANATOMY)
        for code in _items(anatomy, _REGION_CODES)
    ]
    named = dict.fromkeys(_region(code, terms) for code in codes)
    return [each for each in named if each][:MAX_VALUES]


def _region(code: Elements, terms: Terms) -> str:
    value, scheme = _text(code, _CODE_VALUE, terms), _text(code, _CODING_SCHEME, terms)
    if part := body_part(value, scheme):
        return part
    meaning = _text(code, _CODE_MEANING, terms)
    return f"{meaning} ({value}, {scheme})".lstrip() if value else ""


def _items(elements: Elements, tag: int) -> Sequence[Elements]:
    element = elements.get(tag)
    return element.items if element is not None else ()


def _signed(element: Element, signed: bool) -> Element:
    """Return an element that implicit VR left open with the VR of the pixels (PS3.5 A.1)."""
    if signed and element.vr == "US" and dictionary_VR(element.tag) == "US or SS":
        return replace(element, vr="SS")
    return element


def terms_in(elements: Elements, charset_default: str = "") -> Terms:
    """Return the declared character sets (PS3.3 C.12.1.1.2), or the default where there is none."""
    element = elements.get(_CHARACTER_SET)
    declared = (element.value if element is not None else None) or b""
    text = declared.decode("ascii", "replace").rstrip("\0 ")
    return terms_of(text.split("\\")) or terms_of(charset_default)


def values_of(element: Element, terms: Terms, little: bool) -> list[str | float]:
    """Return an element's values, bounded; a sequence's is the number of its items."""
    vr = _vr(element)
    if vr == "SQ":
        return [float(len(element.items))] if element.items else []
    if element.value is None:
        return []
    if vr in _NUMERIC:
        return _numbers(element.value, vr, little)
    if vr in _TEXT or vr in _ASCII:
        raw = element.value.rstrip(b"\0 ")
        text = _decoded(raw, terms if vr in _TEXT else (), vr)
        parts = [text] if vr in _ONE_VALUE else text.split("\\")
        return [_typed(part, vr) for part in parts[:MAX_VALUES]] if text else []
    return []


def _vr(element: Element) -> str:
    """Return what an element is read as: a text is one, whatever its file takes it for.

    A Patient ID that says it is a number would lose its zeros, and be another patient's. One that
    was written as a number has none any more: 49 is not the character that its bytes are.
    """
    known = known_vr(element.tag)
    is_text = known in _TEXT and element.vr not in _NUMERIC
    return known if element.vr == "UN" or is_text else element.vr


def safe(text: str) -> str:
    """Return a text in which nothing moves a cursor, turns a line round or breaks a database."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _typed(text: str, vr: str) -> str | float:
    stripped = text.strip(" \0")
    if vr in ("DS", "IS"):
        try:
            value = float(stripped)
        except ValueError:
            return safe(stripped[:MAX_TEXT])
        return value if math.isfinite(value) else safe(stripped[:MAX_TEXT])
    return safe(stripped[:MAX_TEXT])


def _numbers(raw: bytes, vr: str, little: bool) -> list[str | float]:
    code, size = _NUMERIC[vr]
    count = min(len(raw) // size, MAX_VALUES)
    order = "<" if little else ">"
    unpacked = struct.unpack(f"{order}{count}{code}", raw[: count * size])
    return [float(each) if math.isfinite(each) else str(each) for each in unpacked]


def _decoded(raw: bytes, terms: Terms, vr: str) -> str:
    """Return a text; bytes that its character set does not explain are shown, never guessed."""
    try:
        return decode(raw, terms, vr)
    except UnicodeError:
        return "".join(chr(byte) if byte < 0x80 else f"<{byte:02X}>" for byte in raw)


def _text(elements: Elements, tag: int, terms: Terms) -> str:
    element = elements.get(tag)
    values = values_of(element, terms, True) if element is not None else []
    return "\\".join(str(each) for each in values)


def _functional_groups(elements: Elements) -> Iterator[Elements]:
    """Yield the macros that hold for all frames, then those of the first frame."""
    for tag in (_SHARED_GROUPS, _PER_FRAME_GROUPS):
        groups = elements.get(tag)
        for macro in groups.items[0].values() if groups is not None and groups.items else ():
            yield from macro.items[:1]


def _uid(part10: Part10, keyword: str) -> str:
    element = part10.elements.get(tag_for_keyword(keyword) or 0)
    raw = (element.value if element is not None else None) or b""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise InputError(f"{keyword} is no UID: {raw[:80]!r}.", subject=keyword) from error
    return uid.validated(text, keyword)
