"""The head of a data set as it was sent: its first UIDs, read without decoding anything else.

What is read comes from the network, so elements, depth and inflated bytes are bounded, and the
buffer is looked at in place.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydicom.datadict import dictionary_VR

from dicomai.dicom.transfer_syntax import (
    BIG_ENDIAN,
    DEFLATED,
    LONG_VRS,
    is_implicit,
    looks_implicit,
)
from dicomai.dicom.uid import (
    SeriesInstanceUID,
    SOPClassUID,
    SOPInstanceUID,
    StudyInstanceUID,
    validated,
)
from dicomai.errors import InputError

MAX_ELEMENTS: Final = 100_000
MAX_DEPTH: Final = 32
_FIRST_ELEMENT_BYTES: Final = 16
_INFLATE_STEPS: Final = (2**16, 2**20, 2**24)

_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_WANTED: Final = {
    _SOP_CLASS: "SOPClassUID",
    _SOP_INSTANCE: "SOPInstanceUID",
    _STUDY: "StudyInstanceUID",
    _SERIES: "SeriesInstanceUID",
}

_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Which object a data set is."""

    sop_class_uid: SOPClassUID
    sop_instance_uid: SOPInstanceUID
    study_instance_uid: StudyInstanceUID
    series_instance_uid: SeriesInstanceUID


class _Short(Exception):
    """The bytes end before the head does."""


def read_head(data: memoryview, transfer_syntax: str) -> Head:
    """Return the UIDs of a data set.

    Parameters
    ----------
    data
        The data set, without preamble and meta information.
    transfer_syntax
        UID of the transfer syntax it was sent in. A private one may be explicit or implicit, and
        is little endian.

    Raises
    ------
    InputError
        It can't be read, or a UID is missing or none (PS3.5 9.1).
    """
    if transfer_syntax in DEFLATED:
        found = _inflated(data)
    else:
        found = _walked(
            data,
            implicit=_is_implicit(data, transfer_syntax),
            order=">" if transfer_syntax == BIG_ENDIAN else "<",
        )
    return _head(found)


def head_so_far(data: memoryview, transfer_syntax: str) -> Head | None:
    """Return the UIDs of a data set of which so much has come; None: they are yet to come.

    Raises as `read_head`, where nothing that follows could help.
    """
    if transfer_syntax in DEFLATED or len(data) < _FIRST_ELEMENT_BYTES:
        return None
    walk = _Walk(
        data,
        implicit=_is_implicit(data, transfer_syntax),
        order=">" if transfer_syntax == BIG_ENDIAN else "<",
    )
    try:
        return _head(walk.head(whole=False))
    except _Short:
        return None


def _head(found: Mapping[int, bytes]) -> Head:
    texts = {tag: found.get(tag, b"").decode("latin-1") for tag in _WANTED}
    return Head(
        sop_class_uid=SOPClassUID(validated(texts[_SOP_CLASS], "SOPClassUID")),
        sop_instance_uid=SOPInstanceUID(validated(texts[_SOP_INSTANCE], "SOPInstanceUID")),
        study_instance_uid=StudyInstanceUID(validated(texts[_STUDY], "StudyInstanceUID")),
        series_instance_uid=SeriesInstanceUID(validated(texts[_SERIES], "SeriesInstanceUID")),
    )


def _is_implicit(data: memoryview, transfer_syntax: str) -> bool:
    """Return how the data set is written; its first element must be as its syntax says."""
    implicit = is_implicit(transfer_syntax, data)
    if implicit != looks_implicit(data):
        said = "implicit" if implicit else "explicit"
        raise InputError(f"Its transfer syntax says {said} VR, and its data set is not.")
    return implicit


def _walked(data: memoryview, *, implicit: bool, order: str) -> dict[int, bytes]:
    try:
        return _Walk(data, implicit=implicit, order=order).head(whole=True)
    except _Short as trouble:
        raise InputError(
            "Its data set can't be read up to Series Instance UID in the transfer syntax it was "
            "sent in: it is cut off, or written in another one."
        ) from trouble


def _inflated(data: memoryview) -> dict[int, bytes]:
    """Inflate no more than the head needs (PS3.5 A.5)."""
    for limit in _INFLATE_STEPS:
        machine = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # What is not inflated it would keep, and an object may have gigabytes; what can't be
            # made smaller is hardly larger deflated.
            grown = machine.decompress(data[: 2 * limit], limit)
        except zlib.error as trouble:
            raise InputError(
                f"Its transfer syntax says deflated, and its data set is not: {trouble}."
            ) from trouble
        whole = machine.eof or (len(grown) < limit and len(data) <= 2 * limit)
        try:
            return _Walk(memoryview(grown), implicit=False, order="<").head(whole=whole)
        except _Short:
            if whole:
                break
    raise InputError(
        "Its deflated data set can't be read up to Series Instance UID: it is cut off or damaged."
    )


class _Walk:
    """One pass over the elements of a buffer, in order of their tags.

    Every object that is received is walked through once, so this is written for speed.
    """

    def __init__(self, data: memoryview, *, implicit: bool, order: str) -> None:
        self._data = data
        self._size = len(data)
        self._implicit = implicit
        # Tag and length; tag, value representation and short length (PS3.5 7.1).
        self._bare = struct.Struct(order + "HHL").unpack_from
        self._explicit = struct.Struct(order + "HH2sH").unpack_from
        self._u32 = struct.Struct(order + "L").unpack_from
        self._count = 0

    def head(self, *, whole: bool) -> dict[int, bytes]:
        """Return the values wanted; the end of the buffer counts as the data set's if whole."""
        found: dict[int, bytes] = {}
        at = 0
        while len(found) < len(_WANTED):
            if whole and at == self._size:
                break
            tag, vr, length, value = self._element(at)
            if tag > _SERIES:
                break
            at = self._after(vr, length, value, 0)
            if tag in _WANTED:
                if length > 1024:
                    raise InputError(f"{_WANTED[tag]} says that it has {length} bytes.")
                found.setdefault(tag, bytes(self._data[value:at]))
        return found

    def _element(self, at: int) -> tuple[int, bytes, int, int]:
        """Return tag, value representation, length, and where the value begins."""
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise InputError(f"More than {MAX_ELEMENTS} elements precede Series Instance UID.")
        try:
            if not self._implicit:
                group, number, vr, length = self._explicit(self._data, at)
                if group != 0xFFFE:
                    if vr not in LONG_VRS:
                        return group << 16 | number, vr, length, at + 8
                    (length,) = self._u32(self._data, at + 8)
                    return group << 16 | number, vr, length, at + 12
            group, number, length = self._bare(self._data, at)
        except struct.error as trouble:
            raise _Short from trouble
        tag = group << 16 | number
        return tag, _known_vr(tag) if length == _UNDEFINED else b"", length, at + 8

    def _end(self, value: int, length: int) -> int:
        if length > self._size - value:
            raise _Short
        return value + length

    def _after(self, vr: bytes, length: int, value: int, depth: int) -> int:
        """Return where the next element begins."""
        if length != _UNDEFINED:
            return self._end(value, length)
        if vr not in (b"SQ", b"UN"):
            raise InputError("An element that is no sequence has no length.")
        if depth >= MAX_DEPTH:
            raise InputError(f"Its sequences are nested more than {MAX_DEPTH} deep.")
        walk = self
        if vr == b"UN" and not self._implicit:  # PS3.5 6.2.2: implicit little endian inside
            walk = _Walk(self._data, implicit=True, order="<")
            walk._count = self._count
        at = walk._items(value, depth)
        self._count = walk._count
        return at

    def _items(self, at: int, depth: int) -> int:
        while True:
            tag, _, length, at = self._element(at)
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise InputError("A sequence holds something that is no item.")
            if length != _UNDEFINED:
                at = self._end(at, length)
                continue
            while True:
                tag, vr, length, value = self._element(at)
                if tag == _ITEM_END:
                    at = value
                    break
                at = self._after(vr, length, value, depth + 1)


def _known_vr(tag: int) -> bytes:
    """Return what an implicit element of undefined length is: a sequence, if anything we know."""
    try:
        return b"SQ" if tag >> 16 & 1 or dictionary_VR(tag) == "SQ" else b""
    except KeyError:
        return b"SQ"
