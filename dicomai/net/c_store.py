"""C-STORE as bytes: requests read from command sets, and their responses (PS3.7 9.3.1).

Command sets are implicit little endian, whatever was negotiated (PS3.7 6.3.1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from dicomai.net.pdu_stream import PDU_HEAD, PDV_HEAD

_ELEMENT: Final = struct.Struct("<HHL")
_U16: Final = struct.Struct("<H")
_GROUP_LENGTH: Final = 0x0000
_SOP_CLASS: Final = 0x0002
_COMMAND_FIELD: Final = 0x0100
_MESSAGE_ID: Final = 0x0110
_RESPONDED_TO: Final = 0x0120
_DATA_SET_TYPE: Final = 0x0800
_STATUS: Final = 0x0900
_ERROR_COMMENT: Final = 0x0902
_SOP_INSTANCE: Final = 0x1000
_MOVE_ORIGINATOR: Final = 0x1030
_C_STORE_RQ: Final = 0x0001
_C_STORE_RSP: Final = 0x8001
_NO_DATA_SET: Final = 0x0101
_P_DATA_TF: Final = 0x04
_LAST_OF_COMMAND: Final = 0x03
_MAX_COMMENT: Final = 64  # LO


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest:
    """A C-STORE-RQ; its data set follows.

    Attributes
    ----------
    message_id
        Which the response names.
    sop_class_uid, sop_instance_uid
        As they came, padding included.
    move_originator
        AE title of who asked for it by C-MOVE; empty where nobody did.
    """

    message_id: int
    sop_class_uid: bytes
    sop_instance_uid: bytes
    move_originator: str = ""


def command_elements(command_set: bytes) -> dict[int, bytes] | None:
    """Return the values of a command set by their element numbers, None if it is none."""
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(command_set):
        if len(command_set) - at < _ELEMENT.size:
            return None
        group, number, length = _ELEMENT.unpack_from(command_set, at)
        at += _ELEMENT.size
        if group != 0 or length > len(command_set) - at:
            return None
        elements[number] = command_set[at : at + length]
        at += length
    return elements if len(elements.get(_COMMAND_FIELD, b"")) == _U16.size else None


def has_data_set(elements: dict[int, bytes]) -> bool:
    """Tell whether a data set follows a command set."""
    return _u16(elements, _DATA_SET_TYPE) not in (_NO_DATA_SET, None)


def store_request(elements: dict[int, bytes]) -> StoreRequest | None:
    """Return the C-STORE-RQ that a command set is; None if it is another, or not complete."""
    message_id = _u16(elements, _MESSAGE_ID)
    sop_class, sop_instance = elements.get(_SOP_CLASS), elements.get(_SOP_INSTANCE)
    if _u16(elements, _COMMAND_FIELD) != _C_STORE_RQ:
        return None
    if message_id is None or not sop_class or not sop_instance:
        return None
    return StoreRequest(
        message_id=message_id,
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        move_originator=elements.get(_MOVE_ORIGINATOR, b"").decode("latin-1").strip(" \0"),
    )


def response(request: StoreRequest, status: int, comment: str) -> bytes:
    """Return the command set of a C-STORE-RSP.

    Parameters
    ----------
    request
        What it answers.
    status
        PS3.4 B.2.3.
    comment
        Why it was refused; shortened to what the standard has room for.
    """
    elements = [
        _element(_SOP_CLASS, _even(request.sop_class_uid, b"\0")),
        _element(_COMMAND_FIELD, _U16.pack(_C_STORE_RSP)),
        _element(_RESPONDED_TO, _U16.pack(request.message_id)),
        _element(_DATA_SET_TYPE, _U16.pack(_NO_DATA_SET)),
        _element(_STATUS, _U16.pack(status)),
    ]
    if comment:
        text = comment.replace("\\", "/").encode("ascii", "replace")[:_MAX_COMMENT]
        elements.append(_element(_ERROR_COMMENT, _even(text, b" ")))
    elements.append(_element(_SOP_INSTANCE, _even(request.sop_instance_uid, b"\0")))
    body = b"".join(elements)
    return _element(_GROUP_LENGTH, struct.pack("<L", len(body))) + body


def p_data(command_set: bytes, context_id: int, max_pdu_bytes: int) -> bytes:
    """Return the P-DATA-TF PDUs that carry a command set (PS3.8 9.3.5).

    Parameters
    ----------
    command_set
        The whole.
    context_id
        Of the presentation context.
    max_pdu_bytes
        What the peer takes (PS3.8 D.1.1); 0: as much as we like.
    """
    room = max(max_pdu_bytes - PDV_HEAD.size, 1) if max_pdu_bytes else len(command_set)
    pdus: list[bytes] = []
    for at in range(0, len(command_set), room):
        piece = command_set[at : at + room]
        control = _LAST_OF_COMMAND if at + room >= len(command_set) else _LAST_OF_COMMAND & 1
        pdus += (
            PDU_HEAD.pack(_P_DATA_TF, len(piece) + PDV_HEAD.size),
            PDV_HEAD.pack(len(piece) + 2, context_id, control),
            piece,
        )
    return b"".join(pdus)


def _u16(elements: dict[int, bytes], number: int) -> int | None:
    value = elements.get(number, b"")
    return _U16.unpack(value)[0] if len(value) == _U16.size else None


def _element(number: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, number, len(value)) + value


def _even(value: bytes, padding: bytes) -> bytes:
    return value + padding * (len(value) % 2)
