"""Send each file in an association of its own, as some modalities do; a part of `receive.py`.

DCMTK's storescu would have to be started for each object, which takes longer than any receiver.
Here the bytes of each association are made before it begins: request, C-STORE, release.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)

_ACCEPTED, _P_DATA, _RELEASED = 0x02, 0x04, 0x06
_RELEASE = bytes.fromhex("05000000000400000000")
_CONTEXT_ID = 1
# (0000,0900) Status, implicit little endian.
_SUCCESS = bytes.fromhex("00000009020000000000")


def main() -> None:
    """Send, once told to by a line of standard input."""
    port, calling, called, max_pdu_bytes, *files = sys.argv[1:]
    conversations = [
        _conversation(Path(file), calling, called, int(max_pdu_bytes)) for file in files
    ]
    print("ready", flush=True)
    sys.stdin.readline()
    for request, stores in conversations:
        with socket.create_connection(("127.0.0.1", int(port))) as wire:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.sendall(request)
            _expect(wire, _ACCEPTED)
            wire.sendall(stores)
            answer = _expect(wire, _P_DATA)
            if _SUCCESS not in answer:
                raise SystemExit(f"not stored: {answer!r}")
            wire.sendall(_RELEASE)
            _expect(wire, _RELEASED)


def _conversation(file: Path, calling: str, called: str, room: int) -> tuple[bytes, bytes]:
    """Return the association request, and the C-STORE-RQ with its data set."""
    source = dcmread(file, stop_before_pixels=True)
    syntax = source.file_meta.TransferSyntaxUID
    command = Dataset()
    command.CommandGroupLength = 0
    command.AffectedSOPClassUID = source.SOPClassUID
    command.CommandField, command.MessageID, command.Priority = 0x0001, 1, 0
    command.CommandDataSetType = 0x0001
    command.AffectedSOPInstanceUID = source.SOPInstanceUID
    whole = encode(command, is_implicit_vr=True, is_little_endian=True) or b""
    whole = whole[:8] + struct.pack("<L", len(whole) - 12) + whole[12:]
    raw = file.read_bytes()
    meta_bytes = 132 + 12 + source.file_meta.FileMetaInformationGroupLength
    stores = b"".join((*_pdus(whole, room, 1), *_pdus(raw[meta_bytes:], room, 0)))
    return _request(source.SOPClassUID, syntax, calling, called, room), stores


def _pdus(data: bytes, max_pdu_bytes: int, kind: int) -> Iterator[bytes]:
    room = max_pdu_bytes - 6
    for at in range(0, len(data), room):
        piece = data[at : at + room]
        control = kind | (2 if at + room >= len(data) else 0)
        yield struct.pack(">BxLLBB", _P_DATA, len(piece) + 6, len(piece) + 2, _CONTEXT_ID, control)
        yield piece


def _request(abstract: UID, syntax: UID, calling: str, called: str, room: int) -> bytes:
    entity = AE(calling)
    entity.add_requested_context(abstract, syntax)
    (context,) = entity.requested_contexts
    context.context_id = _CONTEXT_ID
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID("1.2.840.10008.3.1.1.1")
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    primitive.presentation_context_definition_list = [context]
    length = MaximumLengthNotification()
    length.maximum_length_received = room
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID("1.2.826.0.1.3680043.9.3811.3.0.4")
    primitive.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def _expect(wire: socket.socket, kind: int) -> bytes:
    """Return the body of the next PDU, which must be of a kind."""
    head = _exactly(wire, 6)
    found, length = struct.unpack(">BxL", head)
    if found != kind:
        raise SystemExit(f"a PDU of type {found} came, {kind} was awaited")
    return _exactly(wire, length)


def _exactly(wire: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = wire.recv(size - len(data))
        if not piece:
            raise SystemExit("the receiver ended the association")
        data += piece
    return data


if __name__ == "__main__":
    main()
