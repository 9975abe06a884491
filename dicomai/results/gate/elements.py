"""The items of sequences, read from their bytes (PS3.5 7.1, 7.5).

A Segmentation or a report holds tens of thousands of elements in items. pydicom reads all that
stands outside of them; for these it takes longer than everything else that is checked.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydicom.charset import convert_encodings
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag

from dicomai.results.gate.error import refuse


@dataclass(frozen=True, slots=True)
class Element:
    """An element of an item, Explicit VR Little Endian."""

    representation: bytes
    value: bytes


Elements: TypeAlias = Mapping[int, Element]
"""What an item holds, by tag."""

_TEXT: Final = frozenset({b"LO", b"LT", b"PN", b"SH", b"ST", b"UC", b"UT"})
_LONG: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_SHORT: Final = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"}
    | {b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
_DECIMAL: Final = rb" *[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *"
_WHOLE: Final = rb" *[+-]?[0-9]+ *"
_IN_WORDS: Final = {  # Python takes more for a number: nan, inf, 4_8
    representation: re.compile(rb"(?:%s(?:\\%s)*)?" % (one, one))
    for representation, one in ((b"DS", _DECIMAL), (b"IS", _WHOLE))
}
_SIZE: Final = {
    **dict.fromkeys((b"AT", b"FL", b"OF", b"OL", b"SL", b"UL"), 4),
    **dict.fromkeys((b"FD", b"OD", b"OV", b"SV", b"UV"), 8),
}
_ITEM: Final = bytes.fromhex("fe ff 00 e0")
_HEAD: Final = struct.Struct("<HH2sH")
_LENGTH: Final = struct.Struct("<L")


def items_of(dataset: Dataset, keyword: str) -> list[Elements]:
    """Return the items of a sequence; none where it is missing or empty."""
    if keyword not in dataset:
        return []
    element = dataset.get_item(Tag(keyword))
    if element.VR != "SQ":
        refuse("readable", str(dataset.get("SOPInstanceUID")), f"{keyword} is no sequence")
    if element.is_raw:
        sequence = bytes(element.value or b"")
    else:  # somebody read it before
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        encodings = convert_encodings(dataset.get("SpecificCharacterSet") or "ISO_IR 6")
        write_sequence(buffer, dataset[keyword], encodings)
        sequence = buffer.getvalue()
    try:
        return items_in(sequence)
    except (ValueError, struct.error) as trouble:
        refuse("readable", str(dataset.get("SOPInstanceUID")), f"{keyword}: {trouble}")


def readable_items(image: Dataset, keyword: str) -> Sequence[Dataset]:
    """Return the items of a sequence of an image or of one of its items; none where it is no such.

    What can't be read of the images can't be in a result.
    """
    try:
        value: object = image.get(keyword)
    except (OSError, ValueError, struct.error):  # as pydicom says of bytes that are no items
        return ()
    return value if isinstance(value, Items) else ()


def items_in(sequence: bytes) -> list[Elements]:
    """Return the items of a sequence's value.

    Raises
    ------
    ValueError, struct.error
        The bytes are no whole items.
    """
    return list(_items(sequence))


def inner(holder: Elements, tag: int) -> list[Elements]:
    """Return the items of a sequence in an item; none where it is missing or empty."""
    return items_in(octets(holder, tag, b"SQ"))


def octets(holder: Elements, tag: int, representation: bytes) -> bytes:
    """Return a value as it stands there, empty where it is missing.

    Raises
    ------
    ValueError
        It has another value representation than its reader takes.
    """
    if tag not in holder:
        return b""
    element = holder[tag]
    if element.representation != representation:
        raise ValueError(f"{keyword_for_tag(tag)} is no {representation.decode()}")
    return element.value


def said(holder: Elements, tag: int, representation: bytes) -> str:
    """Return a text without padding, several between backslashes; empty where it is missing."""
    return octets(holder, tag, representation).decode("latin-1").strip("\0 ")


def numbers(holder: Elements, tag: int, count: int) -> tuple[float, ...]:
    """Return so many decimal strings."""
    values = tuple(float(each) for each in said(holder, tag, b"DS").split("\\"))
    if len(values) != count:
        raise ValueError(f"{keyword_for_tag(tag)} has {len(values)} values, not {count}")
    return values


def integer(holder: Elements, tag: int, representation: bytes) -> int | None:
    """Return a single whole number, IS or US; None where it is missing."""
    value = octets(holder, tag, representation)
    if tag not in holder:
        return None
    if representation == b"IS":
        return int(value)
    if len(value) != 2:
        raise ValueError(f"{keyword_for_tag(tag)} has not one value")
    return int.from_bytes(value, "little")


def is_plain(sequence: bytes) -> bool:
    """Tell whether all texts in a sequence read the same in every character set.

    Raises
    ------
    ValueError, struct.error
        The bytes are no whole items.
    """
    return _is_plain(sequence, set())


def _is_plain(sequence: bytes, known: set[bytes]) -> bool:
    """Read a whole sequence; `known` are those inside that are plain: frames repeat each other."""
    plain = True
    for holder in _items(sequence):
        for each in holder.values():
            if each.representation == b"SQ":
                if each.value in known:
                    continue
                if _is_plain(each.value, known):
                    known.add(each.value)
                else:
                    plain = False
            elif each.representation in _TEXT:
                plain = plain and each.value.isascii() and b"\x1b" not in each.value
    return plain


def _items(sequence: bytes) -> Iterator[Elements]:
    at, end = 0, len(sequence)
    while at < end:
        if sequence[at : at + 4] != _ITEM:
            raise ValueError(f"there is no item at byte {at}")
        (length,) = _LENGTH.unpack_from(sequence, at + 4)
        at += 8
        if length > end - at:
            raise ValueError("an item is longer than its sequence, or its length is not defined")
        yield _elements(sequence, at, at + length)
        at += length


def _elements(sequence: bytes, at: int, end: int) -> Elements:
    out: dict[int, Element] = {}
    before = -1
    while at < end:
        group, number, representation, length = _HEAD.unpack_from(sequence, at)
        at += 8
        if representation in _LONG:
            (length,) = _LENGTH.unpack_from(sequence, at)
            at += 4
        elif representation not in _SHORT:
            raise ValueError(f"there is no value representation {representation!r}")
        if length > end - at:
            raise ValueError("an element is longer than its item, or its length is not defined")
        tag, value = group << 16 | number, sequence[at : at + length]
        if tag <= before:  # a second of the same tag may say another thing to another reader
            raise ValueError(f"{keyword_for_tag(tag)} is not in its place, or there twice")
        if length % _SIZE.get(representation, 2):
            raise ValueError(f"{keyword_for_tag(tag)} is no whole {representation.decode()}")
        if representation in _IN_WORDS and not _IN_WORDS[representation].fullmatch(value):
            raise ValueError(f"{keyword_for_tag(tag)} is written in no numbers")
        out[tag] = Element(representation, value)
        before = tag
        at += length
    return out
