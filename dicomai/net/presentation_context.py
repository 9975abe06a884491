"""Presentation contexts as they are proposed and answered, in bytes (PS3.8 9.3.2.2, 9.3.3.2).

pynetdicom makes some twenty objects of each. A PACS proposes 128 of them with every association,
and then accepting it takes longer than receiving ten images.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dicomai.net.pdu_stream import PDU_HEAD

ACCEPTED: Final = 0
ABSTRACT_SYNTAX_NOT_SUPPORTED: Final = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED: Final = 4

_APPLICATION_CONTEXT: Final = 0x10
_PROPOSED: Final = 0x20
_ANSWERED: Final = 0x21
_ABSTRACT_SYNTAX: Final = 0x30
_TRANSFER_SYNTAX: Final = 0x40
_ITEM: Final = struct.Struct(">BxH")
# Protocol version, both AE titles, and what is reserved.
_FIXED_BYTES: Final = PDU_HEAD.size + 68
_HEAD_BYTES: Final = 4
# What stands where a peer proposed none; it is not looked at (PS3.8 9.3.3.2.1).
_ANY_SYNTAX: Final = "1.2.840.10008.1.2"


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a peer proposes: an abstract syntax, in one of several transfer syntaxes."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What it gets."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    reason: int

    @property
    def accepted(self) -> bool:
        """Whether it may be used."""
        return self.reason == ACCEPTED


def parted(request: bytes | bytearray) -> tuple[bytes, tuple[Proposal, ...]]:
    """Return an A-ASSOCIATE-RQ without its presentation contexts, and these.

    Parameters
    ----------
    request
        The whole PDU; `association_request.check` has looked at it.
    """
    kept, proposals = [], []
    for kind, item in _items(bytes(request), _FIXED_BYTES):
        if kind == _PROPOSED:
            proposals.append(_proposal(item))
        else:
            kept.append(_ITEM.pack(kind, len(item)) + item)
    return _with_length(bytes(request[:_FIXED_BYTES]), kept), tuple(proposals)


def results(
    proposals: Sequence[Proposal], chosen: Mapping[str, Sequence[str]]
) -> tuple[Result, ...]:
    """Return what each proposal gets.

    Parameters
    ----------
    proposals
        As they came.
    chosen
        For each abstract syntax that is taken the transfer syntaxes, the first wish first.
    """
    found = []
    for proposal in proposals:
        syntaxes = chosen.get(proposal.abstract_syntax)
        if syntaxes is None:
            reason, taken = ABSTRACT_SYNTAX_NOT_SUPPORTED, None
        else:
            taken = next((each for each in syntaxes if each in proposal.transfer_syntaxes), None)
            reason = TRANSFER_SYNTAXES_NOT_SUPPORTED if taken is None else ACCEPTED
        found.append(
            Result(
                proposal.context_id,
                proposal.abstract_syntax,
                taken or next(iter(proposal.transfer_syntaxes), _ANY_SYNTAX),
                reason,
            )
        )
    return tuple(found)


def answered(acceptance: bytes, contexts: Iterable[Result]) -> bytes:
    """Return an A-ASSOCIATE-AC that says what each presentation context gets.

    Parameters
    ----------
    acceptance
        The whole PDU, without any.
    """
    items = []
    for kind, item in _items(acceptance, _FIXED_BYTES):
        items.append(_ITEM.pack(kind, len(item)) + item)
        if kind == _APPLICATION_CONTEXT:
            items += map(_answer, contexts)
    return _with_length(acceptance[:_FIXED_BYTES], items)


def _proposal(item: bytes) -> Proposal:
    abstract_syntax, transfer_syntaxes = "", []
    for kind, value in _items(item, _HEAD_BYTES):
        uid = value.decode("latin-1").rstrip("\0 ")
        if kind == _ABSTRACT_SYNTAX:
            abstract_syntax = uid
        elif kind == _TRANSFER_SYNTAX:
            transfer_syntaxes.append(uid)
    return Proposal(item[0], abstract_syntax, tuple(transfer_syntaxes))


def _answer(result: Result) -> bytes:
    uid = result.transfer_syntax.encode("latin-1")
    head = struct.pack(">BxBx", result.context_id, result.reason)
    syntax = _ITEM.pack(_TRANSFER_SYNTAX, len(uid)) + uid
    return _ITEM.pack(_ANSWERED, len(head) + len(syntax)) + head + syntax


def _items(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ITEM.size <= len(data):
        kind, length = _ITEM.unpack_from(data, at)
        at += _ITEM.size + length
        yield kind, data[at - length : at]


def _with_length(fixed: bytes, items: Iterable[bytes]) -> bytes:
    body = fixed[PDU_HEAD.size :] + b"".join(items)
    return PDU_HEAD.pack(fixed[0], len(body)) + body
