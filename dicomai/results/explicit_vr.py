"""Data sets as bytes, Explicit VR Little Endian (PS3.5 7.1.2, 7.5).

pydicom writes each value. Where items stand in items it looks through the inner ones again on each
level, and a report has the same codes thousands of times: what was written once is kept here.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Final, TypeAlias

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element
from pydicom.uid import UID

_COMMANDS: Final = 0x0006FFFF
_ITEM: Final = bytes.fromhex("fe ff 00 e0")
_BULK: Final = frozenset({"OB", "OD", "OF", "OW"})
_KEPT: Final = frozenset({str, int, UID})
_Known: TypeAlias = dict[tuple[object, ...], bytes]


def written(dataset: Dataset) -> bytes:
    """Return a data set."""
    return b"".join(pieces(dataset))


def pieces(dataset: Dataset, as_they_are: Collection[int] = ()) -> list[bytes]:
    """Return a data set piece by piece, so that pixels need not be copied.

    Parameters
    ----------
    dataset
        Its File Meta Information is not written.
    as_they_are
        Tags of sequences that are written as the bytes that they are, where nobody read them.
    """
    return _pieces(dataset, (), [default_encoding], {}, as_they_are)


def item(body: bytes) -> bytes:
    """Return an item of a sequence."""
    return _ITEM + struct.pack("<L", len(body)) + body


def sequence(tag: int, items: bytes) -> bytes:
    """Return a sequence of items, as `item` gives them."""
    return _long(tag, "SQ", len(items)) + items


def short(tag: int, representation: str, value: bytes) -> bytes:
    """Return an element whose length has two bytes."""
    kind = representation.encode()
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, kind, len(value)) + value


def _long(tag: int, representation: str, length: int) -> bytes:
    """Return the head of an element whose length has four bytes."""
    kind = representation.encode()
    return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, kind, 0, length)


def _pieces(
    holder: Dataset,
    outer: tuple[Dataset, ...],
    encodings: list[str],
    known: _Known,
    as_they_are: Collection[int] = (),
) -> list[bytes]:
    if "SpecificCharacterSet" in holder:
        encodings = convert_encodings(holder.SpecificCharacterSet)
    within = (holder, *outer)
    out = []
    for tag in sorted(holder.keys()):
        if not tag & 0xFFFF and tag > _COMMANDS:  # Group Length: retired, and wrong by now (7.2)
            continue
        if tag in as_they_are and (unread := _unread(holder, tag)):
            out += [_long(tag, "SQ", len(unread)), unread]
            continue
        element = holder[tag]
        if len(element.VR) != 2:  # as "US or SS"
            correct_ambiguous_vr_element(element, holder, True, list(within))
        value = element.value
        if element.VR == "SQ" and not _is_open(element):
            items = (b"".join(_pieces(each, within, encodings, known)) for each in value)
            out.append(sequence(tag, b"".join(map(item, items))))
        elif type(value) in _KEPT:
            key = (tag, element.VR, value, *encodings)
            if key not in known:
                known[key] = _by_pydicom(element, encodings)
            out.append(known[key])
        elif element.VR in _BULK and isinstance(value, bytes) and len(value) % 2 == 0:
            out += [_long(tag, element.VR, len(value)), value]
        else:
            out.append(_by_pydicom(element, encodings))
    return out


def _unread(holder: Dataset, tag: int) -> bytes:
    """Return the bytes of a sequence that nobody read; none where somebody did."""
    raw = holder.get_item(tag)
    return bytes(raw.value) if raw.is_raw and raw.VR == "SQ" and raw.value else b""


def _is_open(element: DataElement) -> bool:
    """Tell whether a sequence, or an item of it, was read with a length that is not defined."""
    return element.is_undefined_length or any(
        each.is_undefined_length_sequence_item for each in element.value
    )


def _by_pydicom(element: DataElement, encodings: list[str]) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    try:
        write_data_element(buffer, element, encodings)
    except (UserWarning, UnicodeError) as trouble:  # a warning that the caller made an error
        raise UnicodeError(f"{element.keyword or element.tag}: {trouble}") from trouble
    return buffer.getvalue()
