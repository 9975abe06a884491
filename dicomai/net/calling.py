"""Calling a node: an association that says why where none comes about, and never waits for ever."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Final, cast

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_role

from dicomai.dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.errors import ConfigError, DicomaiError, RefusedError, TransientError
from dicomai.net import status
from dicomai.net.messages import MAX_OTHER_DATA_BYTES
from dicomai.net.node import Node
from dicomai.net.pdu_stream import wait_at_most
from dicomai.net.tls import NO_FILES, TlsFiles, client_context, peer_certificate, pin_of, why
from dicomai.net.wire import Caller, Wire

CONNECT_TIMEOUT_S: Final = 10.0
ACSE_TIMEOUT_S: Final = 30.0
# A PACS may take its time over a large object before it answers.
DIMSE_TIMEOUT_S: Final = 120.0
MAX_PDU_BYTES: Final = 2**17
_NO_ANSWER: Final = f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
_NO_TLS_HINT: Final = "Is it a DICOM node? If it speaks TLS there, set tls = true for it."


GoOn = Callable[[], None]
"""Raises when nobody waits for it any more."""
_LOOK_S: Final = 0.2


def _whatever_it_takes() -> None:
    """Go on."""


class NothingAccepted(RefusedError):
    """The peer associated, and accepted no presentation context."""


class Rejected(RefusedError):
    """No association comes about until something is corrected; of what is sent it says nothing."""


class PutOff(TransientError):
    """A node is there, and answers that it can't do now what it is asked for."""


@contextmanager
def associated(
    node: Node,
    our_ae: str,
    contexts: list[PresentationContext],
    files: TlsFiles = NO_FILES,
    takes: Sequence[str] = (),
    go_on: GoOn = _whatever_it_takes,
    message_bytes: int = MAX_OTHER_DATA_BYTES,
) -> Iterator[Association]:
    """Give an association with a node; it is released, or else aborted, at the end of the block.

    Parameters
    ----------
    node
        Whom to call; over TLS where it speaks that.
    our_ae
        What we call ourselves.
    contexts
        What to propose.
    files
        Our certificate, and the authorities whose certificates we believe.
    takes
        SOP classes that the node may send us in this association (PS3.7 D.3.3.4).
    go_on
        Called often until there is one; raises to give it up.
    message_bytes
        The most that a message of the node may have: all of it stands in memory.

    Raises
    ------
    ConfigError
        The node has no host or port, or a file of TLS can't be used.
    TransientError
        It can't be reached, rejects for now, or sends a message that is larger.
    Rejected
        It rejects for good, or shows another certificate than the node's.
    """
    require_address(node)
    entity = Caller(our_ae, DIMSE_TIMEOUT_S)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = CONNECT_TIMEOUT_S
    entity.acse_timeout = ACSE_TIMEOUT_S
    entity.dimse_timeout = DIMSE_TIMEOUT_S
    entity.network_timeout = DIMSE_TIMEOUT_S
    tls = _Tls(client_context(files, pinned=bool(node.certificate))) if node.tls else None
    wire: socket.socket | None = None
    connected = False
    impostor = ""

    def about_to_connect(event: evt.Event) -> None:
        nonlocal wire
        wire = wire or _wire_of(event)

    def opened(event: evt.Event) -> None:
        nonlocal connected, impostor
        connected = True
        if (found := _wire_of(event)) is not None:
            _prepare(found)
            if impostor := _impostor(node, found):
                found.shutdown(socket.SHUT_RDWR)  # before our request says anything

    def cut() -> None:
        for each in (wire, None if tls is None else tls.wire):
            if each is not None:
                # A wait for an answer ends with that too. Not its own method: see `Wire.cut`.
                with suppress(OSError):
                    socket.socket.shutdown(each, socket.SHUT_RDWR)

    association: Association | None = None
    coming = _Coming(message_bytes)
    began = time.monotonic()
    try:
        with _called_off(go_on, cut):
            try:
                association = entity.associate(
                    node.host,
                    node.port,
                    contexts=contexts,
                    ae_title=node.ae_title,
                    max_pdu=MAX_PDU_BYTES,
                    ext_neg=[build_role(uid, scp_role=True) for uid in takes],
                    tls_args=(cast("ssl.SSLContext", tls), node.host) if tls is not None else None,
                    evt_handlers=[
                        (evt.EVT_ACSE_SENT, about_to_connect),
                        (evt.EVT_CONN_OPEN, opened),
                        (evt.EVT_PDU_RECV, coming.add),
                        (evt.EVT_DIMSE_RECV, coming.note_whole),
                    ],
                )
            except OSError as trouble:  # a name that no server knows
                raise _unreachable(node, str(trouble.strerror or trouble)) from trouble
        if impostor:
            raise Rejected(impostor, subject=node.name)
        if not connected and time.monotonic() - began >= CONNECT_TIMEOUT_S:
            raise _unreachable(node, _NO_ANSWER)
        if not association.is_established:
            raise _not_established(node, our_ae, association, tls, connected=connected)
        try:
            yield association
        except Exception:
            coming.check(node)  # what else is wrong then comes of that
            raise
        coming.check(node)
        if association.is_established:
            association.release()
    finally:
        if association is not None and association.is_established:
            association.abort()
        if wire is not None:  # pynetdicom leaves it open where the peer closed first, or never came
            wire.close()
        if tls is not None and tls.wire is not None:
            tls.wire.close()


def require_address(node: Node) -> None:
    """Raise a ConfigError unless a node says where it listens."""
    if not node.host or not node.port:
        raise ConfigError(
            f"Node {node.name} has no host and port, so it can't be called: nothing can be sent to "
            "it or fetched from it. Add them to its [[nodes]].",
            subject=node.name,
        )


def patience(node: Node, limit_s: float, pulse: Callable[[], None]) -> GoOn:
    """Return what gives a node so long for all that it is asked from now on.

    Parameters
    ----------
    limit_s
        Then a TransientError says that it took longer.
    pulse
        Called meanwhile: who asks gets on.
    """
    give_up = time.monotonic() + limit_s

    def go_on() -> None:
        pulse()
        if time.monotonic() > give_up:
            raise TransientError(
                f"{node.name} took more than {limit_s:g} s to say what it has.", subject=node.name
            )

    return go_on


@contextmanager
def watched(association: Association, go_on: GoOn) -> Iterator[None]:
    """End an association from without when `go_on` raises; then raise that.

    Who waits for an answer sees nothing else: pynetdicom's wait can't be called off.
    """

    def end() -> None:
        if isinstance(wire := association.dul.socket, Wire):
            wire.cut()
        association.abort()
        association.dimse.msg_queue.put((None, None))

    with _called_off(go_on, end):
        yield


@contextmanager
def _called_off(go_on: GoOn, end: Callable[[], None]) -> Iterator[None]:
    """Call `end` until the block is over when `go_on` raises; then raise that."""
    over = threading.Event()
    reason: list[BaseException] = []

    def watch() -> None:
        while not over.wait(_LOOK_S):
            try:
                if not reason:
                    go_on()
            except BaseException as called_off:  # noqa: BLE001  raised again below
                reason.append(called_off)
            if reason:  # again, for a connection may be made only now
                end()

    watcher = threading.Thread(target=watch, name="watch", daemon=True)
    watcher.start()
    try:
        yield
    except Exception:
        if not reason:
            raise
    finally:
        over.set()
        watcher.join()
    if reason:
        raise reason[0]


class _Coming:
    """The message that is coming in, which pynetdicom gathers however large it is."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0

    def add(self, event: evt.Event) -> None:
        """Count what came; too much ends the connection."""
        if isinstance(event.pdu, P_DATA_TF):
            self._bytes += len(event.pdu)
            wire = event.assoc.dul.socket
            if self._bytes > self._most_bytes and wire is not None and wire.socket is not None:
                # Not its own method: see `Wire.cut`.
                with suppress(OSError):
                    socket.socket.shutdown(wire.socket, socket.SHUT_RDWR)

    def note_whole(self, _event: evt.Event) -> None:
        """Note that a message is whole; what is too large never is."""
        if self._bytes <= self._most_bytes:
            self._bytes = 0

    def check(self, node: Node) -> None:
        """Raise a TransientError where a message was too large."""
        if self._bytes > self._most_bytes:
            raise TransientError(
                f"{node.name} sends a message of more than {self._most_bytes} bytes, which is "
                "larger than any that is expected of it. The connection was ended.",
                subject=node.name,
            )


class _Tls:
    """What pynetdicom secures a connection with; keeps the connection, so that we can close it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.wire: ssl.SSLSocket | None = None

    def wrap_socket(
        self, wire: socket.socket, *, server_side: bool, server_hostname: str
    ) -> ssl.SSLSocket:
        self.wire = self.context.wrap_socket(
            wire, server_side=server_side, server_hostname=server_hostname
        )
        return self.wire


def _wire_of(event: evt.Event) -> socket.socket | None:
    connection = event.assoc.dul.socket
    return None if connection is None else connection.socket


def _prepare(wire: socket.socket) -> None:
    # Without it the kernel waits for more: 50 ms for each small object instead of 5.
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that stops within a PDU must not hold us for ever.
    wait_at_most(wire, DIMSE_TIMEOUT_S, DIMSE_TIMEOUT_S)


def _not_established(
    node: Node,
    our_ae: str,
    association: Association,
    tls: _Tls | None,
    *,
    connected: bool,
) -> DicomaiError:
    if not connected:
        return _unreachable(node, _why_not(node, tls))
    answer = association.acceptor.primitive or _overlooked(association)
    if answer is not None and answer.result:
        kind, sentence = status.rejection(
            node.name,
            node.ae_title,
            our_ae,
            answer.result or 0,
            int(answer.result_source or 0),
            int(answer.diagnostic or 0),
        )
        return (Rejected if kind == "refused" else TransientError)(sentence, subject=node.name)
    if association.rejected_contexts:
        return NothingAccepted(
            f"{node.name} accepts nothing of what {our_ae} proposes.", subject=node.name
        )
    hint = "Does it believe our certificate (tls.certificate)?" if node.tls else _NO_TLS_HINT
    return TransientError(
        f"{node.name} took the connection at {node.host} port {node.port} and made no "
        f"association. {hint}",
        subject=node.name,
    )


def _overlooked(association: Association) -> A_ASSOCIATE | None:
    """Return a rejection that was faster than pynetdicom.

    By the time that it looks whether the connection was made, the peer may have rejected the
    association and closed; then it takes it for a connection that never was.
    """
    with suppress(Empty):
        found = association.dul.to_user_queue.get_nowait()
        if isinstance(found, A_ASSOCIATE):
            return found
    return None


def _impostor(node: Node, wire: socket.socket) -> str:
    """Return what is wrong with the certificate at the other end, or nothing."""
    if not node.certificate:
        return ""
    shown = peer_certificate(wire)
    if shown is not None and pin_of(node.certificate).fits(shown):
        return ""
    found = f"{shown.name!a} (sha256:{shown.sha256})" if shown is not None else "none"
    return (
        f"{node.name} at {node.host} port {node.port} has the certificate {found}, and another is "
        "expected. If it was renewed, correct certificate of that node; nothing was sent."
    )


def _unreachable(node: Node, reason: str) -> TransientError:
    return TransientError(
        f"{node.name} can't be reached at {node.host} port {node.port}: {reason}. Does it run, and "
        "does a firewall let us through?",
        subject=node.name,
    )


def _why_not(node: Node, tls: _Tls | None) -> str:
    """Return why no connection was made; pynetdicom keeps it to its log."""
    try:
        with socket.create_connection((node.host, node.port), CONNECT_TIMEOUT_S) as wire:
            if tls is not None:
                tls.context.wrap_socket(wire, server_hostname=node.host).close()
    except TimeoutError:
        return _NO_ANSWER
    except OSError as trouble:
        return why(trouble)
    return "the connection broke"
