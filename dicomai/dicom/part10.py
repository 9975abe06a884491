"""A DICOM file, checked to its last byte (PS3.10 chapter 7); `data_set` follows what it holds."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
)

from dicomai.dicom.data_set import Element, Elements, Pixels, Truncated, Walk
from dicomai.dicom.transfer_syntax import BIG_ENDIAN, DEFLATED, GE_PRIVATE, IMPLICIT, is_implicit
from dicomai.errors import DiskFull, InputError

INFLATED_AT_LEAST: Final = 16 * 2**20
INFLATED_RATIO: Final = 200
"""A deflated data set may grow to the larger of the two; images of nothing grow a thousandfold."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_HEAD_BYTES: Final = 1024
_ELEMENT: Final = struct.Struct("<HH2sH")
_NO_PREAMBLE: Final = "It is no DICOM file: it lacks the preamble and DICM (PS3.10 7.1)."
_ZIP: Final = "It is a zip archive, which is not opened: unpack it, and give the folder."


@dataclass(frozen=True, slots=True, kw_only=True)
class Part10:
    """A file whose structure holds to the end.

    Attributes
    ----------
    transfer_syntax_uid, media_sop_instance_uid
        Of the File Meta Information.
    elements
        The data set's, without the pixels.
    remarks
        What is wrong with it and does no harm, one sentence each.
    """

    transfer_syntax_uid: str
    media_sop_instance_uid: str
    little_endian: bool
    elements: Elements
    pixels: Pixels | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """The File Meta Information of a file (PS3.10 7.1), and where its data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_at: int


def is_dicomdir(file: Path) -> bool:
    """Tell a DICOMDIR (PS3.10 8.6), which lists the files beside it, however a disc spells it."""
    name, *_ = file.name.upper().split(";")  # ISO 9660 adds a version, and some mounts lower case
    return name.removesuffix(".") == "DICOMDIR"


def _no_dicom(head: bytes) -> InputError:
    return InputError(_ZIP if head.startswith(b"PK\x03\x04") else _NO_PREAMBLE)


def media(path: Path) -> Media:
    """Return the File Meta Information of a file; the data set is not looked at.

    Raises
    ------
    InputError
        It is no Part 10 file, or lacks one of the three UIDs.
    """
    with path.open("rb", buffering=0) as file:
        head = file.read(_HEAD_BYTES)
        if head[128:132] != b"DICM":
            raise _no_dicom(head)
        values = _plain_meta(head)
        if values is None:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                meta, start = _meta(mapped, trusting=False)
            values = {tag & 0xFFFF: each.value or b"" for tag, each in meta.items()}, start
    found = Media(
        sop_class_uid=_text(values[0].get(0x0002)),
        sop_instance_uid=_text(values[0].get(0x0003)),
        transfer_syntax_uid=_text(values[0].get(0x0010)),
        data_set_at=values[1],
    )
    if not (found.sop_class_uid and found.sop_instance_uid and found.transfer_syntax_uid):
        raise InputError("Its meta information lacks SOP class, SOP instance or transfer syntax.")
    return found


def _plain_meta(head: bytes) -> tuple[dict[int, bytes], int] | None:
    """Return the values of group 0002 and where it ends, if all is as it should be; else None.

    A sender looks at every file; what is odd is for `_meta`, which takes longer.
    """
    values: dict[int, bytes] = {}
    at = 132
    while len(head) - at >= _ELEMENT.size:
        group, number, vr, length = _ELEMENT.unpack_from(head, at)
        if group != 2:
            said = values.get(0, b"")
            return (values, at) if int.from_bytes(said, "little") == at - 144 else None
        at += _ELEMENT.size
        if vr == b"OB":
            if len(head) - at < 4:
                return None
            length = int.from_bytes(head[at : at + 4], "little")
            at += 4
        elif vr not in (b"UL", b"UI", b"SH", b"AE"):
            return None
        values[number] = head[at : at + length]
        at += length
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """A folder for a file without a name, and how much of its disk that may take."""

    folder: Path
    room_bytes: int


@contextmanager
def opened(path: Path, scratch: Scratch | None = None) -> Iterator[Part10]:
    """Give the structure of a file; views of its pixels hold until the end of the block.

    Parameters
    ----------
    scratch
        Takes a data set that is deflated; without it, the system's temporary folder.

    Raises
    ------
    InputError
        It is no Part 10 file, is truncated, or is written otherwise than its transfer syntax says.
    DiskFull
        It is deflated, and there is no room to inflate it.
    """
    with path.open("rb") as file:
        head = file.read(132)
        if head[128:] != b"DICM":
            raise _no_dicom(head)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            meta, start = _meta(mapped)
            syntax = _uid(meta, 0x00020010)
            if not syntax:
                raise InputError("Its meta information names no transfer syntax.")
            if syntax not in DEFLATED:
                yield from _whole(mapped, start, meta, syntax)
                return
            folder = scratch.folder if scratch is not None else None
            with tempfile.TemporaryFile(dir=folder) as inflated:
                _inflate(
                    mapped, start, inflated, scratch.room_bytes if scratch is not None else None
                )
                with mmap.mmap(inflated.fileno(), 0, access=mmap.ACCESS_READ) as plain:
                    yield from _whole(plain, 0, meta, syntax)


def _whole(mapped: mmap.mmap, start: int, meta: Elements, syntax: str) -> Iterator[Part10]:
    with memoryview(mapped) as buffer:
        walk = Walk(
            buffer,
            implicit=is_implicit(syntax, buffer[start : start + 8]),
            little=syntax != BIG_ENDIAN,
            encapsulated=_encapsulated(syntax),
        )
        try:
            elements = walk.data_set(start)
            yield Part10(
                transfer_syntax_uid=syntax,
                media_sop_instance_uid=_uid(meta, 0x00020003),
                little_endian=walk.little and syntax != GE_PRIVATE,
                elements=elements,
                pixels=walk.pixels,
                remarks=tuple(walk.remarks),
            )
        finally:
            if walk.pixels is not None and walk.pixels.native is not None:
                walk.pixels.native.release()


def _encapsulated(syntax: str) -> bool | None:
    """Tell how pixels stand in a transfer syntax (PS3.5 annex A); None where we don't know it."""
    if syntax in IMPLICIT or syntax in (
        ExplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        BIG_ENDIAN,
    ):
        return False
    return True if syntax.startswith(("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")) else None


def _uid(elements: Elements, tag: int) -> str:
    element = elements.get(tag)
    return _text(element.value if element is not None else None)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace").rstrip("\0 ")


def _meta(mapped: mmap.mmap, *, trusting: bool = True) -> tuple[Elements, int]:
    """Return the group 0002 (always explicit little endian) and where the data set begins.

    It ends where its group length says, or (without trust in that) with its last element.
    """
    with memoryview(mapped) as buffer:
        walk = Walk(buffer, implicit=False, little=True, encapsulated=None)
        elements: dict[int, Element] = {}
        position, declared_end = 132, 0
        while position + 8 <= len(buffer):
            if bytes(buffer[position : position + 2]) != b"\x02\x00":
                break
            # A meta element inside the data set is none; but a wrong group length hides none.
            if trusting and declared_end and position >= declared_end and 0x00020010 in elements:
                break
            element, position = walk.element(position, len(buffer), 0)
            elements[element.tag] = element
            if element.tag == 0x00020000 and element.value and len(element.value) == 4:
                declared_end = position + int.from_bytes(element.value, "little")
        return elements, position


def _inflate(mapped: mmap.mmap, start: int, target: IO[bytes], room_bytes: int | None) -> None:
    """Write the data set that was deflated (PS3.5 A.5), unless it grows out of proportion."""
    limit = max(INFLATED_AT_LEAST, INFLATED_RATIO * (len(mapped) - start))
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    position, written = start, 0
    pending = b""
    try:
        while not machine.eof and (pending or position < len(mapped)):
            if not pending:
                pending = mapped[position : position + 2**16]
                position += len(pending)
            grown = machine.decompress(pending, 2**20)
            pending = machine.unconsumed_tail
            written += len(grown)
            if written > limit:
                raise InputError(
                    f"Its deflated data set grows past {limit} bytes from {len(mapped) - start}: "
                    "more than an image does. It was not read on."
                )
            if room_bytes is not None and written > room_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            target.write(grown)
        target.flush()
    except OSError as trouble:
        if trouble.errno not in _NO_ROOM:
            raise
        raise DiskFull(
            f"Its deflated data set grows past {written} bytes, and there is no room to inflate it."
        ) from trouble
    except zlib.error as error:
        raise InputError(
            f"Its transfer syntax says deflated, and its data set is not: {error}."
        ) from error
    if not machine.eof:
        raise Truncated("It is truncated: its deflated data set has no end. Send it again.")
    if written == 0:
        raise InputError("It has no data set after the meta information.")
