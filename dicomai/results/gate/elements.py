"""The items of sequences, read from their bytes (PS3.5 7.1, 7.5).

A Segmentation or a report holds tens of thousands of elements in items. pydicom reads all that
stands outside of them; for these it takes longer than everything else that is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence
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
_ITEM: Final = bytes.fromhex("fe ff 00 e0")
_HEAD: Final = struct.Struct("<HH2sH")
_LENGTH: Final = struct.Struct("<L")


def items_of(dataset: Dataset, keyword: str) -> list[Elements]:
    """Return the items of a sequence; none where it is missing or empty."""
    if keyword not in dataset:
        return []
    element = dataset.get_item(Tag(keyword))
    if element.is_raw and element.VR == "SQ":
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
    return items_in(octets(holder, tag))


def octets(holder: Elements, tag: int) -> bytes:
    """Return a value as it stands there, empty where it is missing."""
    return holder[tag].value if tag in holder else b""


def said(holder: Elements, tag: int) -> str:
    """Return a value without padding, several between backslashes; empty where it is missing."""
    return octets(holder, tag).decode("latin-1").strip("\0 ")


def numbers(holder: Elements, tag: int) -> tuple[float, ...]:
    """Return decimal strings."""
    return tuple(map(float, said(holder, tag).split("\\"))) if octets(holder, tag) else ()


def is_plain(sequence: bytes) -> bool:
    """Tell whether all texts in a sequence read the same in every character set.

    Raises
    ------
    ValueError, struct.error
        The bytes are no whole items.
    """
    return all(
        is_plain(each.value)
        if each.representation == b"SQ"
        else each.representation not in _TEXT
        or (each.value.isascii() and b"\x1b" not in each.value)
        for holder in _items(sequence)
        for each in holder.values()
    )


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
    out = {}
    while at < end:
        group, number, representation, length = _HEAD.unpack_from(sequence, at)
        at += 8
        if representation in _LONG:
            (length,) = _LENGTH.unpack_from(sequence, at)
            at += 4
        if length > end - at:
            raise ValueError("an element is longer than its item, or its length is not defined")
        out[group << 16 | number] = Element(representation, sequence[at : at + length])
        at += length
    return out
