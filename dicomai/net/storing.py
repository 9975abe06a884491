"""C-STORE requests, from files straight to the wire (PS3.7 9.3.1, PS3.8 9.3.5).

The data set goes as it stands in the file: read in one call into a buffer in which the heads of the
PDUs stand already, and written in one call. So memory is the buffer's, whatever the object's size.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pynetdicom.association import Association

from dicomai.net.c_store import command_elements, p_data
from dicomai.net.pdu_stream import PDU_HEAD, PDV_HEAD
from dicomai.net.wire import Wire

_P_DATA_TF: Final = 0x04
_COMMAND, _LAST = 0x01, 0x02
_ELEMENT: Final = struct.Struct("<HHL")
_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001
_MEDIUM: Final = 0x0000
_DATA_SET_FOLLOWS: Final = 0x0001
_U16: Final = struct.Struct("<H")

_HEADS: Final = PDU_HEAD.size + PDV_HEAD.size
_BUFFER_BYTES: Final = 2**20
# Of the PDUs of one call: IOV_MAX.
_MOST_FRAGMENTS: Final = 1024
# Where a peer takes PDUs of any length, or of absurd ones.
_MOST_PDU_BYTES: Final = 2**18
# A response has a few hundred bytes; a longer one is none.
_MOST_RESPONSE_BYTES: Final = 2**16
_READ_BYTES: Final = 2**16
_COMMAND_ROOM: Final = 512


class NoAnswer(Exception):
    """The peer ended the association, took too long, or answered with something else."""


class Empty(Exception):
    """The file has no data set. Nothing was sent of it."""


class Unreadable(Exception):
    """The file can't be read now; says why. Nothing was sent of it."""


class BrokenOff(Exception):
    """The file could not be read to its end; says why. The peer waits for the rest in vain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be stored.

    Attributes
    ----------
    path, data_set_at
        The file, and where the data set begins in it.
    context_id
        Of a presentation context that was accepted for its class and transfer syntax.
    originator
        Who asked for it by C-MOVE, and the Message ID of that; None: nobody.
    """

    path: Path
    data_set_at: int
    sop_class_uid: str
    sop_instance_uid: str
    context_id: int
    originator: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Status and Error Comment of a C-STORE-RSP (PS3.7 annex C)."""

    status: int
    comment: str


@contextmanager
def storing(association: Association, timeout_s: float) -> Iterator[Storer]:
    """Send objects during a block; pynetdicom stands still for so long.

    Parameters
    ----------
    association
        Established by a `Caller`.
    timeout_s
        How long a peer may take for an answer.
    """
    home = association.dul.socket
    assert isinstance(home, Wire)
    with home.lent() as wire:
        storer = Storer(wire, association.acceptor.maximum_length or 0, timeout_s)
        try:
            yield storer
        finally:
            home.hand_back(storer.unread)


class Storer:
    """Sends one object after the other over a wire that was lent; see `storing`.

    Attributes
    ----------
    unread
        What came and is no response: pynetdicom is to read it.
    """

    def __init__(self, wire: socket.socket | None, max_pdu_bytes: int, timeout_s: float) -> None:
        self._wire = wire
        self._max_pdu_bytes = max_pdu_bytes
        self._timeout_s = timeout_s
        self._fragments = _Fragments(max_pdu_bytes)
        self._message_id = 0
        self.unread = bytearray()

    def store(self, request: Request) -> Response:
        """Send an object and wait for the answer.

        Raises
        ------
        NoAnswer, BrokenOff
            The association is of no use any more.
        Empty, Unreadable
            Only the file is not.
        """
        wire = self._wire
        if wire is None:
            raise NoAnswer
        self._message_id = self._message_id % 0xFFFF + 1
        command = p_data(
            _command_set(request, self._message_id), request.context_id, self._max_pdu_bytes
        )
        with _opened(request) as (file, size):
            pieces = self._fragments.of(file, request, size, command)
            first = next(pieces)
            self._wire = None  # until the answer is there
            try:
                wire.sendall(first)
                for piece in pieces:
                    wire.sendall(piece)
                response = self._response(wire, request.context_id)
            except OSError as trouble:
                raise NoAnswer from trouble
            except Unreadable as trouble:
                raise BrokenOff(str(trouble)) from trouble
        self._wire = wire
        return response

    def _response(self, wire: socket.socket, context_id: int) -> Response:
        command = bytearray()
        by = time.monotonic() + self._timeout_s
        while True:
            pdu = self._pdu(wire, by)
            at = PDU_HEAD.size
            while at < len(pdu):
                size, context, control, piece = _fragment(pdu, at)
                if context != context_id or not control & _COMMAND:
                    raise NoAnswer
                command += piece
                at += size
                if control & _LAST:
                    del self.unread[: len(pdu)]
                    return _response(bytes(command), self._message_id)
            del self.unread[: len(pdu)]

    def _pdu(self, wire: socket.socket, by: float) -> bytearray:
        """Return the next P-DATA-TF, which stays unread; another PDU, or none, is no answer."""
        unread = self.unread
        while True:
            if len(unread) >= PDU_HEAD.size:
                kind, length = PDU_HEAD.unpack_from(unread)
                if kind != _P_DATA_TF or length > _MOST_RESPONSE_BYTES:
                    raise NoAnswer
                if len(unread) >= PDU_HEAD.size + length:
                    return unread[: PDU_HEAD.size + length]
            came = wire.recv(_READ_BYTES)
            unread += came
            if not came or time.monotonic() > by:
                raise NoAnswer


class _Fragments:
    """A buffer of P-DATA-TF PDUs, each with one PDV, whose heads stand and whose bytes change."""

    def __init__(self, max_pdu_bytes: int) -> None:
        most = min(max_pdu_bytes or _MOST_PDU_BYTES, _MOST_PDU_BYTES)
        # PS3.8 D.1.1: the length of a PDU without its own head; PDVs are of even length.
        self._room = max((most - PDV_HEAD.size) & ~1, 2)
        step = self._room + _HEADS
        self._count = max(1, min(_MOST_FRAGMENTS, _BUFFER_BYTES // step))
        whole = memoryview(bytearray(_COMMAND_ROOM + self._count * step))
        self._whole = whole
        self._heads = [_COMMAND_ROOM + number * step for number in range(self._count)]
        self._rooms = [whole[at + _HEADS : at + step] for at in self._heads]
        self._context_id = 0

    def of(self, file: int, request: Request, size: int, command: bytes) -> Iterator[memoryview]:
        """Give a command and the data set that follows, in pieces; each is used before the next.

        Parameters
        ----------
        file
            A descriptor.
        size
            Of the data set, in bytes.
        command
            PDUs that go before.

        Raises
        ------
        Unreadable
            The file ends before its size, or its disk fails.
        """
        if request.context_id != self._context_id:
            self._context_id = request.context_id
            for at in self._heads:
                self._head(at, self._room, last=False)
        at, left = request.data_set_at, size
        before = memoryview(command)
        while left:
            count = min(left, self._count * self._room)
            full, rest = divmod(count, self._room)
            rooms = self._rooms[:full] + ([self._rooms[full][:rest]] if rest else [])
            _fill(file, rooms, at)
            at, left = at + count, left - count
            end = self._heads[0] + len(rooms) * _HEADS + count
            final = self._heads[len(rooms) - 1]
            if not left:
                self._head(final, len(rooms[-1]), last=True)
            start = _COMMAND_ROOM - len(before)
            if start < 0:  # a peer of tiny PDUs
                yield before
                start = _COMMAND_ROOM
            else:
                self._whole[start:_COMMAND_ROOM] = before
            yield self._whole[start:end]
            before = memoryview(b"")
            if not left:
                self._head(final, self._room, last=False)

    def _head(self, at: int, length: int, *, last: bool) -> None:
        PDU_HEAD.pack_into(self._whole, at, _P_DATA_TF, length + PDV_HEAD.size)
        control = _LAST if last else 0
        PDV_HEAD.pack_into(self._whole, at + PDU_HEAD.size, length + 2, self._context_id, control)


@contextmanager
def _opened(request: Request) -> Iterator[tuple[int, int]]:
    """Give a descriptor of the file, and the size of the data set in it."""
    try:
        file = os.open(request.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as trouble:
        raise Unreadable(trouble.strerror or str(trouble)) from trouble
    try:
        size = os.fstat(file).st_size - request.data_set_at
        if size <= 0:
            raise Empty
        yield file, size
    finally:
        os.close(file)


def _fill(file: int, rooms: list[memoryview], at: int) -> None:
    """Read so many bytes as there is room for, from a position of a file."""
    while rooms:
        try:
            count = os.preadv(file, rooms, at)
        except OSError as trouble:
            raise Unreadable(trouble.strerror or str(trouble)) from trouble
        if not count:
            raise Unreadable("it became shorter while it was sent")
        at += count
        while rooms and count >= len(rooms[0]):
            count -= len(rooms[0])
            rooms = rooms[1:]
        if count:
            rooms = [rooms[0][count:], *rooms[1:]]


def _command_set(request: Request, message_id: int) -> bytes:
    body = b"".join(
        (
            _element(0x0002, _uid(request.sop_class_uid)),
            _element(0x0100, _U16.pack(_C_STORE_RQ)),
            _element(0x0110, _U16.pack(message_id)),
            _element(0x0700, _U16.pack(_MEDIUM)),
            _element(0x0800, _U16.pack(_DATA_SET_FOLLOWS)),
            _element(0x1000, _uid(request.sop_instance_uid)),
            *_originator(request),
        )
    )
    return _element(0x0000, struct.pack("<L", len(body))) + body


def _originator(request: Request) -> Iterator[bytes]:
    if request.originator is not None:
        title, message_id = request.originator
        raw = title.encode("ascii", "replace")
        yield _element(0x1030, raw + b" " * (len(raw) % 2))
        yield _element(0x1031, _U16.pack(message_id))


def _element(number: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, number, len(value)) + value


def _uid(uid: str) -> bytes:
    value = uid.encode("ascii", "replace")
    return value + b"\0" * (len(value) % 2)


def _fragment(pdu: bytearray, at: int) -> tuple[int, int, int, bytearray]:
    """Return size, presentation context, control header and bytes of a PDV."""
    if len(pdu) - at < PDV_HEAD.size:
        raise NoAnswer
    length, context_id, control = PDV_HEAD.unpack_from(pdu, at)
    end = at + 4 + length
    if length < 2 or end > len(pdu):
        raise NoAnswer
    return 4 + length, context_id, control, pdu[at + PDV_HEAD.size : end]


def _response(command_set: bytes, message_id: int) -> Response:
    elements = command_elements(command_set) or {}
    field, responded_to, status = (elements.get(each, b"") for each in (0x0100, 0x0120, 0x0900))
    if field != _U16.pack(_C_STORE_RSP) or responded_to != _U16.pack(message_id):
        raise NoAnswer
    if len(status) != _U16.size:
        raise NoAnswer
    comment = elements.get(0x0902, b"").decode("latin-1").strip("\0 ")
    return Response(status=_U16.unpack(status)[0], comment=comment)
