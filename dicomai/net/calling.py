"""Calling a node: an association that says why where none comes about, and never waits for ever."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from dicomai.dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.errors import ConfigError, DicomaiError, RefusedError, TransientError
from dicomai.net import status
from dicomai.net.node import Node

CONNECT_TIMEOUT_S: Final = 10.0
ACSE_TIMEOUT_S: Final = 30.0
# A PACS may take its time over a large object before it answers.
DIMSE_TIMEOUT_S: Final = 120.0
MAX_PDU_BYTES: Final = 2**17


class NothingAccepted(RefusedError):
    """The peer associated, and accepted no presentation context."""


@contextmanager
def associated(
    node: Node, our_ae: str, contexts: list[PresentationContext]
) -> Iterator[Association]:
    """Give an association with a node; it is released, or else aborted, at the end of the block.

    Raises
    ------
    ConfigError
        The node has no host or port.
    TransientError
        It can't be reached, or rejects for now.
    RefusedError
        It rejects for good.
    """
    if not node.host or not node.port:
        raise ConfigError(
            f"Node {node.name} has no host and port, so nothing can be sent to it. Add them to "
            "its [[nodes]].",
            subject=node.name,
        )
    entity = AE(our_ae)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = CONNECT_TIMEOUT_S
    entity.acse_timeout = ACSE_TIMEOUT_S
    entity.dimse_timeout = DIMSE_TIMEOUT_S
    entity.network_timeout = DIMSE_TIMEOUT_S
    wire: socket.socket | None = None
    connected = False

    def about_to_connect(event: evt.Event) -> None:
        nonlocal wire
        wire = wire or _wire_of(event)

    def opened(event: evt.Event) -> None:
        nonlocal connected
        connected = True
        if (found := _wire_of(event)) is not None:
            _prepare(found)

    try:
        association = entity.associate(
            node.host,
            node.port,
            contexts=contexts,
            ae_title=node.ae_title,
            max_pdu=MAX_PDU_BYTES,
            evt_handlers=[
                (evt.EVT_ACSE_SENT, about_to_connect),
                (evt.EVT_CONN_OPEN, opened),
            ],
        )
    except OSError as trouble:  # a name that no server knows
        raise _unreachable(node, str(trouble.strerror or trouble)) from trouble
    try:
        if not association.is_established:
            raise _not_established(node, our_ae, association, connected=connected)
        yield association
        if association.is_established:
            association.release()
    finally:
        if association.is_established:
            association.abort()
        if wire is not None:  # pynetdicom leaves it open where the peer closed first, or never came
            wire.close()


def _wire_of(event: evt.Event) -> socket.socket | None:
    connection = event.assoc.dul.socket
    return None if connection is None else connection.socket


def _prepare(wire: socket.socket) -> None:
    # Without it the kernel waits for more: 50 ms for each small object instead of 5.
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that stops within a PDU must not hold us for ever.
    wire.settimeout(DIMSE_TIMEOUT_S)


def _not_established(
    node: Node, our_ae: str, association: Association, *, connected: bool
) -> DicomaiError:
    if not connected:
        return _unreachable(node, _why_not(node))
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        kind, sentence = status.rejection(
            node.name,
            node.ae_title,
            our_ae,
            answer.result or 0,
            int(answer.result_source or 0),
            int(answer.diagnostic or 0),
        )
        return (RefusedError if kind == "refused" else TransientError)(sentence, subject=node.name)
    if association.rejected_contexts:
        return NothingAccepted(
            f"{node.name} accepts nothing of what {our_ae} proposes.", subject=node.name
        )
    return TransientError(
        f"{node.name} took the connection at {node.host} port {node.port} and made no "
        "association. Is it a DICOM node?",
        subject=node.name,
    )


def _unreachable(node: Node, reason: str) -> TransientError:
    return TransientError(
        f"{node.name} can't be reached at {node.host} port {node.port}: {reason}. Does it run, and "
        "does a firewall let us through?",
        subject=node.name,
    )


def _why_not(node: Node) -> str:
    """Return why no connection was made; pynetdicom keeps it to its log."""
    try:
        socket.create_connection((node.host, node.port), CONNECT_TIMEOUT_S).close()
    except TimeoutError:
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
    except OSError as trouble:
        return (trouble.strerror or str(trouble)).lower()
    return "the connection broke"
