"""The receiver: takes what its nodes send into the spool, and answers when it is durable.

A process of its own, without a database. Objects are kept as they came, in their transfer syntax.
What it promised is on disk, so it may be killed at any moment.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from pydicom import config as pydicom_config
from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import A_P_ABORT

from dicomai.dicom.dates import now
from dicomai.dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.net import commitment_taking, mpps
from dicomai.net.admission import (
    LOCAL_FAILURE,
    RECEIVING,
    VERIFICATION,
    Rejection,
    allowed,
    caller,
    chosen_syntaxes,
    in_vain,
    roles,
    too_many,
)
from dicomai.net.c_store import StoreRequest
from dicomai.net.connection import AssociationServer, not_listening, serving
from dicomai.net.limits import Limits
from dicomai.net.node import Node
from dicomai.net.reception import Incoming, Reception, Request
from dicomai.net.slots import FOLDER as SLOTS_FOLDER
from dicomai.net.slots import Slot, Slots
from dicomai.net.storage_association import StorageAcceptor
from dicomai.net.tls import TlsFiles, server_context
from dicomai.net.upper_layer import Acceptor
from dicomai.spool import entries
from dicomai.spool.entries import Ending

ACSE_TIMEOUT_S: Final = 30.0
# Nothing at all from a peer for so long ends its association, a half-sent PDU included.
NETWORK_TIMEOUT_S: Final = 120.0
# Every PDU costs the state machine a turn; beyond this size nothing is gained.
MAX_PDU_BYTES: Final = 2**17
_STOP_S: Final = 20.0
_POLL_S: Final = 0.1

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPort:
    """Where the receiver listens for TLS, and with which certificate."""

    port: int
    files: TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverConfig:
    """What the receiver needs to know.

    Attributes
    ----------
    ae_title, host, port
        What it is called, and where it listens; port None: over TLS only.
    tls
        The port that takes TLS, and with which files; None: there is none.
    nodes
        Who may call.
    spool
        The folder that takes the objects; must exist.
    reserve_bytes
        Free space that reception leaves: objects that would take of it are refused.
    max_associations
        At a time; more are rejected for now.
    shares_port
        Other receiver processes listen on the same port.
    limits
        What one association may take.
    """

    ae_title: str
    host: str
    port: int | None
    nodes: tuple[Node, ...]
    spool: Path
    reserve_bytes: int
    max_associations: int
    shares_port: bool = False
    tls: TlsPort | None = None
    limits: Limits = field(default_factory=Limits)


def receive(config: ReceiverConfig, ready: Callable[[], None], stop: threading.Event) -> None:
    """Receive until told to stop; then finish the objects in hand and close.

    Parameters
    ----------
    config
        Where and for whom.
    ready
        Called when it listens.
    stop
        Set, for instance by a handler of SIGTERM, to end it.

    Raises
    ------
    ConfigError
        It may not listen there.
    TransientError
        It can't listen there now, or listens no more.
    """
    # UIDs that come are looked at where they count. pydicom would look each time one is handled,
    # which is half of what it costs to accept an association.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    entries.clean(config.spool, now())
    receiver = _Receiver(config)
    with ExitStack() as listening:
        listening.callback(receiver.close_all)
        checks = [listening.enter_context(serving(server)) for server in receiver.listen()]
        ready()
        while not stop.wait(_POLL_S):
            for check in checks:
                check()
            receiver.close_dead()


class _Server(AssociationServer):
    """One whose associations bring objects."""

    acceptor = StorageAcceptor


class _SharingServer(_Server):
    """One of several, each in a process of its own, that take the connections of one port."""

    shares_port = True


class _Receiver:
    """The receptions of one process, and what binds them to pynetdicom's events."""

    def __init__(self, config: ReceiverConfig) -> None:
        self._config = config
        self._slots = Slots(config.spool / SLOTS_FOLDER, config.max_associations)
        self._receptions: dict[Acceptor, Reception] = {}
        self._places: dict[Acceptor, Slot] = {}
        self._lock = threading.Lock()

    def listen(self) -> Iterator[AssociationServer]:
        """Give a server for each port."""
        config = self._config
        if config.port is not None:
            yield self._listen("receiver", config.port, None)
        if config.tls is not None:
            yield self._listen("tls", config.tls.port, server_context(config.tls.files))

    def _listen(
        self, section: str, port: int, secured_by: ssl.SSLContext | None
    ) -> AssociationServer:
        entity = AE(self._config.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_pdu_size = MAX_PDU_BYTES
        # The limit itself is in `_requested`, which doesn't count calls that wait to be rejected.
        entity.maximum_associations = 10 * self._config.max_associations
        entity.acse_timeout = ACSE_TIMEOUT_S
        entity.network_timeout = NETWORK_TIMEOUT_S
        # What it supports is decided for each caller, in `_requested`; it wants one to begin with.
        entity.add_supported_context(VERIFICATION)
        try:
            server = entity.make_server(
                (self._config.host, port),
                server_class=_SharingServer if self._config.shares_port else _Server,
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_N_CREATE, self._step),
                    (evt.EVT_N_SET, self._step),
                    (evt.EVT_N_ACTION, self._commitment),
                    (evt.EVT_N_EVENT_REPORT, self._commitment),
                    (evt.EVT_ACSE_RECV, self._told),
                    (evt.EVT_RELEASED, self._released),
                    (evt.EVT_ABORTED, self._aborted),
                ],
            )
        except OSError as trouble:
            settings = f"receiver.host and {section}.port"
            raise not_listening("Receiver", self._config.host, port, settings, trouble) from trouble
        assert isinstance(server, AssociationServer)
        server.open_to(self._config.limits, secured_by, self._begin_object)
        return server

    def close_dead(self) -> None:
        """End what ended without an event: its thread is gone."""
        for association, reception in self._open():
            if not association.is_alive():
                self._end(association, reception, "lost")

    def close_all(self) -> None:
        """Let each association finish the object in hand, then abort it."""
        deadline = time.monotonic() + _STOP_S
        closers = []
        for association, reception in self._open():
            closer = threading.Thread(
                target=self._close, args=(association, reception), daemon=True
            )
            closer.start()
            closers.append(closer)
        for closer in closers:
            closer.join(max(0.0, deadline - time.monotonic()))

    def _close(self, association: Acceptor, reception: Reception) -> None:
        reception.wait_until_idle(_STOP_S)
        self._end(association, reception, "aborted")
        association.abort()

    def _open(self) -> list[tuple[Acceptor, Reception]]:
        with self._lock:
            return list(self._receptions.items())

    def _end(self, association: Acceptor, reception: Reception, how: Ending) -> None:
        with self._lock:
            place = self._places.pop(association, None)
        if place is not None:  # before its line is logged: who reads that may call again
            place.release()
        reception.end(how, association.dul.reason)
        with self._lock:
            self._receptions.pop(association, None)

    def _requested(self, event: evt.Event) -> None:
        """Decide who it is and what it may, before anything is negotiated."""
        association = event.assoc
        assert isinstance(association, StorageAcceptor)
        try:
            self._decide(association)
        except Exception:
            # pynetdicom logs it, and would go on as if nothing had been decided.
            with self._lock:
                place = self._places.pop(association, None)
            if place is not None:
                place.release()
            self._reject(association, LOCAL_FAILURE)
            raise

    def _decide(self, association: StorageAcceptor) -> None:
        call = association.call()
        found = caller(self._config.nodes, self._config.ae_title, call)
        if isinstance(found, Node):
            found = self._placed(association, found)
        if isinstance(found, Rejection):
            _log.warning(
                "association rejected",
                calling_ae=call.calling_ae.strip(),
                called_ae=call.called_ae.strip(),
                address=call.address,
                reason=found.sentence,
            )
            self._reject(association, found.code)
            return
        chosen = chosen_syntaxes(
            (proposal.abstract_syntax, proposal.transfer_syntaxes)
            for proposal in association.proposals
            if allowed(found, proposal.abstract_syntax)
        )
        if not chosen:
            proposed = [proposal.abstract_syntax for proposal in association.proposals]
            _log.warning("nothing accepted", reason=in_vain(found, call, proposed, RECEIVING))
        association.choose(chosen)
        selected = association.requestor.role_selection
        association.grant(
            roles(
                found,
                {str(uid): (bool(r.scu_role), bool(r.scp_role)) for uid, r in selected.items()},
            )
        )
        with self._lock:
            self._receptions[association] = Reception(
                spool=self._config.spool,
                reserve_bytes=self._config.reserve_bytes,
                object_bytes=self._config.limits.object_bytes,
                node=found.name,
                calling_ae=call.calling_ae.strip(),
                called_ae=call.called_ae.strip(),
                address=call.address,
                started_at=now(),
                certificate=call.certificate.name if call.certificate is not None else "",
            )

    def _reject(self, association: Acceptor, code: tuple[int, int, int]) -> None:
        association.acse.send_reject(*code)
        evt.trigger(association, evt.EVT_REJECTED, {})
        association.kill()

    def _placed(self, association: Acceptor, node: Node) -> Node | Rejection:
        """Take a place for an association; return the node, or its rejection for now."""
        place = self._slots.take(node.name, node.max_associations)
        if not isinstance(place, Slot):
            limit = node.max_associations if place == "node" else self._config.max_associations
            return too_many(node, place, limit)
        with self._lock:
            self._places[association] = place
        return node

    def _begin_object(
        self, association: Acceptor, request: StoreRequest, context_id: int
    ) -> Incoming | None:
        """Return what takes an object; None where its context was not accepted."""
        assert isinstance(association, StorageAcceptor)
        with self._lock:
            reception = self._receptions.get(association)
        context = association.contexts.get(context_id)
        if reception is None or context is None:
            return None
        return reception.begin(
            Request(
                sop_class_uid=request.sop_class_uid.decode("latin-1"),
                sop_instance_uid=request.sop_instance_uid.decode("latin-1"),
                abstract_syntax=context.abstract_syntax,
                transfer_syntax=context.transfer_syntax,
                retrieved=request.move_originator == self._config.ae_title,
            )
        )

    def _step(self, event: evt.Event) -> tuple[int, None]:
        """Take what a modality says of a procedure step."""
        association = event.assoc
        assert isinstance(association, Acceptor)
        with self._lock:
            reception = self._receptions[association]
        return mpps.take(event, reception), None

    def _commitment(self, event: evt.Event) -> tuple[int, None]:
        """Take what a node asks us to commit, or reports on what we asked of it."""
        association = event.assoc
        assert isinstance(association, Acceptor)
        with self._lock:
            reception = self._receptions[association]
        node = next(each for each in self._config.nodes if each.name == reception.node)
        return commitment_taking.take(event, reception, node), None

    def _told(self, event: evt.Event) -> None:
        """See whether the connection broke: pynetdicom calls that an abort by the provider."""
        if isinstance(getattr(event, "primitive", None), A_P_ABORT):
            self._ended(event, "lost")

    def _released(self, event: evt.Event) -> None:
        self._ended(event, "released")

    def _aborted(self, event: evt.Event) -> None:
        self._ended(event, "aborted")

    def _ended(self, event: evt.Event, how: Ending) -> None:
        association = event.assoc
        assert isinstance(association, Acceptor)
        with self._lock:
            reception = self._receptions.get(association)
        if reception is not None:
            self._end(association, reception, how)
