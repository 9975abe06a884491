"""The structure of a data set, followed to its last byte (PS3.5 chapter 7 and annex A).

Parsers that forgive read a truncated or mislabelled data set as another one. This one follows
every length to the end, in bounded memory and depth, and decodes no pixel; what it can't follow is
an InputError that says where.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydicom.datadict import dictionary_VR, keyword_for_tag

from dicomai.dicom.transfer_syntax import LONG_VRS, VRS, looks_implicit
from dicomai.errors import InputError

MAX_DEPTH: Final = 100
MAX_ELEMENTS: Final = 1_000_000
MAX_VALUE_BYTES: Final = 65_536
"""Longer values are passed over, and so are private ones, which nobody reads: `Element.value` is
None."""
MAX_KEPT_BYTES: Final = 2**29
"""Of all values that are not passed over; contours of a large structure set are some 2**28."""

PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})

_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_LONG_VRS: Final = frozenset(vr.decode() for vr in LONG_VRS)
_SHORT_VRS: Final = frozenset(vr.decode() for vr in VRS - LONG_VRS)


class Truncated(InputError):
    """It ends before what it says of itself does."""


@dataclass(frozen=True, slots=True)
class Element:
    """A data element as it stands in the file; `value` is raw, `items` those of a sequence."""

    tag: int
    vr: str
    value: bytes | None
    items: tuple[Elements, ...]
    offset: int
    length: int


Elements: TypeAlias = Mapping[int, Element]
"""A data set or an item of a sequence, by tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Where the pixels of a file are; `native` is a view of their bytes unless encapsulated."""

    tag: int
    vr: str
    length: int
    native: memoryview | None


class Walk:
    """One pass over a buffer; `pixels` and `remarks` are filled on the way."""

    def __init__(
        self, buffer: memoryview, *, implicit: bool, little: bool, encapsulated: bool | None
    ) -> None:
        self.buffer = buffer
        self.implicit = implicit
        self.little = little
        self.encapsulated = encapsulated
        self.order = "<" if little else ">"
        self.pixels: Pixels | None = None
        self.remarks: list[str] = []
        self.count = 0
        self.kept_bytes = 0

    def data_set(self, start: int) -> Elements:
        end = len(self.buffer)
        if start >= end:
            raise InputError("It has no data set after the meta information.")
        self._check_first(start)
        elements: dict[int, Element] = {}
        position, last = start, 0
        while position < end:
            if self.pixels is not None and not any(self.buffer[position : position + 4096]):
                self.remark(f"{end - position} empty bytes follow the data set.")
                break
            element, position = self.element(position, end, 0)
            if element.tag <= last:
                self.remark(f"{name(element.tag)} is out of order or there twice.")
            self._refuse_two_identities(elements.get(element.tag), element)
            last = element.tag
            elements[element.tag] = element
        return elements

    def _refuse_two_identities(self, earlier: Element | None, element: Element) -> None:
        # Readers differ in which of two they take: one result could go to two patients.
        if earlier is not None and earlier.tag in _IDENTIFYING and earlier.value != element.value:
            raise InputError(f"{name(element.tag)} is there twice, with two values.")

    def _check_first(self, start: int) -> None:
        """See whether the data set is written as its transfer syntax says."""
        head = bytes(self.buffer[start : start + 8])
        if len(head) < 8:
            raise Truncated("It is truncated in its first element. Send it again.")
        group = struct.unpack_from(self.order + "H", head)[0]
        if group & 0xFF == 0 and 0 < group >> 8 <= 0x20:
            order = "little" if self.little else "big"
            raise InputError(f"Its transfer syntax says {order} endian, and its data set is not.")
        if looks_implicit(head) != self.implicit:
            kind = "implicit" if self.implicit else "explicit"
            raise InputError(f"Its transfer syntax says {kind} VR, and its data set is not.")

    def remark(self, sentence: str) -> None:
        if sentence not in self.remarks and len(self.remarks) < 10:
            self.remarks.append(sentence)

    def element(self, position: int, end: int, depth: int) -> tuple[Element, int]:
        """Return the element at a position, and where the next one begins."""
        self.count += 1
        if self.count > MAX_ELEMENTS:
            raise InputError(f"It has more than {MAX_ELEMENTS} elements.")
        tag, vr, length, at = self._head(position, end)
        if tag in PIXEL_TAGS and depth == 0:
            return self._pixel_element(tag, vr, length, at, end)
        if length == _UNDEFINED:
            if tag in PIXEL_TAGS:  # of an icon
                after = self._fragments(tag, at, end)
                return Element(tag, vr, None, (), at, after - at), after
            if vr not in ("SQ", "UN"):
                raise InputError(f"{name(tag)} has VR {vr} and no length.")
            return self._sequence(tag, vr, at, end, depth, undefined=True)
        if length > end - at:
            raise Truncated(
                f"It is truncated or damaged: {name(tag)} says {length} bytes, and {end - at} are "
                "left. Send it again."
            )
        if vr == "SQ":
            return self._sequence(tag, vr, at, at + length, depth, undefined=False)
        if length % 2:
            self.remark(f"{name(tag)} has an odd length.")
        if (
            vr == "UN"
            and known_vr(tag) == "SQ"
            and (read := self._un_sequence(tag, at, length, depth))
        ):
            return read, at + length
        return Element(tag, vr, self._value(tag, at, length), (), at, length), at + length

    def _value(self, tag: int, at: int, length: int) -> bytes | None:
        if length > MAX_VALUE_BYTES or tag >> 16 & 1:
            return None
        self.kept_bytes += length
        if self.kept_bytes > MAX_KEPT_BYTES:
            raise InputError(
                f"Its values take more than {MAX_KEPT_BYTES} bytes, beside pixels and long ones."
            )
        return bytes(self.buffer[at : at + length])

    def _head(self, position: int, end: int) -> tuple[int, str, int, int]:
        """Return tag, VR, length, and where the value begins."""
        if end - position < 8:
            raise Truncated(
                f"It is truncated, or {end - position} bytes at {position} belong to no element. "
                "Send it again."
            )
        group, number = struct.unpack_from(self.order + "HH", self.buffer, position)
        tag = group << 16 | number
        if group == 0xFFFE:
            raise InputError(f"It is damaged: a delimiter stands alone at byte {position}.")
        if self.implicit:
            length = struct.unpack_from(self.order + "I", self.buffer, position + 4)[0]
            vr = "SQ" if length == _UNDEFINED and tag not in PIXEL_TAGS else known_vr(tag)
            return tag, vr, length, position + 8
        vr = bytes(self.buffer[position + 4 : position + 6]).decode("latin-1")
        if vr in _LONG_VRS:
            if end - position < 12:
                raise Truncated(f"It is truncated in the head of {name(tag)}. Send it again.")
            length = struct.unpack_from(self.order + "I", self.buffer, position + 8)[0]
            return tag, vr, length, position + 12
        if vr not in _SHORT_VRS:
            if self.pixels is not None:
                raise InputError(
                    f"It is damaged: {end - position} bytes after its pixels belong to no element."
                )
            self.remark(f"{name(tag)} has the value representation {vr!a}, which does not exist.")
            vr = known_vr(tag)
        length = struct.unpack_from(self.order + "H", self.buffer, position + 6)[0]
        return tag, vr, length, position + 8

    def _un_sequence(self, tag: int, at: int, length: int, depth: int) -> Element | None:
        """Return a sequence that someone marked UN (PS3.5 6.2.2), None where it is none."""
        try:
            return self._sequence(tag, "UN", at, at + length, depth, undefined=False)[0]
        except InputError:
            self.remark(f"{name(tag)} has VR UN and does not read as a sequence.")
            return None

    def _sequence(
        self, tag: int, vr: str, position: int, end: int, depth: int, *, undefined: bool
    ) -> tuple[Element, int]:
        if depth >= MAX_DEPTH:
            raise InputError(f"Its sequences are nested more than {MAX_DEPTH} deep.")
        start, was = position, (self.implicit, self.little, self.order)
        if vr == "UN":  # PS3.5 6.2.2: always implicit little endian inside
            self.implicit, self.little, self.order = True, True, "<"
        items: list[Elements] = []
        try:
            while undefined or position < end:
                item, length, position = self._delimiter(tag, position, end)
                if item == _SEQUENCE_END and undefined:
                    break
                if item != _ITEM:
                    raise InputError(f"It is damaged: {name(tag)} holds something that is no item.")
                read, position = self._item(tag, position, end, length, depth)
                items.append(read)
        finally:
            self.implicit, self.little, self.order = was
        return Element(tag, "SQ", None, tuple(items), start, position - start), position

    def _delimiter(self, tag: int, position: int, end: int) -> tuple[int, int, int]:
        if end - position < 8:
            raise Truncated(f"It is truncated or damaged: {name(tag)} has no end. Send it again.")
        group, number, length = struct.unpack_from(self.order + "HHI", self.buffer, position)
        return group << 16 | number, length, position + 8

    def _item(
        self, tag: int, position: int, end: int, length: int, depth: int
    ) -> tuple[Elements, int]:
        undefined = length == _UNDEFINED
        if not undefined and length > end - position:
            raise Truncated(
                f"It is truncated or damaged: an item of {name(tag)} says {length} bytes, and "
                f"{end - position} are left. Send it again."
            )
        stop = end if undefined else position + length
        elements: dict[int, Element] = {}
        while undefined or position < stop:
            if undefined:
                found, _, after = self._delimiter(tag, position, stop)
                if found == _ITEM_END:
                    return elements, after
            element, position = self.element(position, stop, depth + 1)
            elements[element.tag] = element
        return elements, position

    def _pixel_element(
        self, tag: int, vr: str, length: int, at: int, end: int
    ) -> tuple[Element, int]:
        encapsulated = length == _UNDEFINED
        if self.encapsulated is not None and encapsulated != self.encapsulated:
            said, found = (
                ("compressed", "are native") if self.encapsulated else ("native", "are not")
            )
            raise InputError(f"Its transfer syntax says {said} pixels, and they {found}.")
        if not encapsulated:
            if length > end - at:
                raise Truncated(
                    f"It is truncated: {name(tag)} says {length} bytes, and {end - at} are left. "
                    "Send it again."
                )
            # Pixels of an unknown syntax may be anything.
            native = self.buffer[at : at + length] if self.encapsulated is False else None
            self.pixels = Pixels(tag=tag, vr=vr, length=length, native=native)
            return Element(tag, vr, None, (), at, length), at + length
        after = self._fragments(tag, at, end)
        self.pixels = Pixels(tag=tag, vr=vr, length=after - at, native=None)
        return Element(tag, vr, None, (), at, after - at), after

    def _fragments(self, tag: int, position: int, end: int) -> int:
        """Return where encapsulated pixels end (PS3.5 A.4): by lengths, never by searching."""
        while True:
            item, size, position = self._delimiter(tag, position, end)
            if item == _SEQUENCE_END:
                return position
            if item != _ITEM or size > end - position:
                raise Truncated(f"It is truncated or damaged within {name(tag)}. Send it again.")
            position += size


_IDENTIFYING: Final = frozenset(
    {0x00080016, 0x00080018, 0x00100020, 0x00100021, 0x00100030, 0x0020000D, 0x0020000E}
)


def known_vr(tag: int) -> str:
    """Return the dictionary's value representation, "UN" for private and unknown elements."""
    if tag >> 16 & 1:
        return "UN"
    if tag & 0xFFFF == 0:
        return "UL"
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UN"
    # "US or SS" and "OB or OW": the bits are the same, and the first is how they are read here.
    return vr if vr == "SQ" or len(vr) == 2 else ("OW" if "OW" in vr else vr[:2])


def name(tag: int) -> str:
    """Return how people know an element: its keyword, or its number."""
    number = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    keyword = "" if tag >> 16 & 1 else keyword_for_tag(tag)
    return f"{keyword} {number}" if keyword else number
