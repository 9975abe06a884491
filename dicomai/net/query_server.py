"""The port on which peers ask what the archive has, and fetch it.

Who may call and what one call may take is as at the receiver.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from pynetdicom import AE, evt
from pynetdicom.presentation import PresentationContext, build_context

from dicomai.dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.net.admission import (
    ANSWERING,
    LOCAL_FAILURE,
    VERIFICATION,
    Rejection,
    caller,
    chosen_syntaxes,
    in_vain,
    is_storage,
    too_many,
)
from dicomai.net.answering import Answerer, Archive
from dicomai.net.c_store import StoreRequest
from dicomai.net.connection import AssociationServer, not_listening, serving
from dicomai.net.identifier import ROOTS
from dicomai.net.limits import Limits
from dicomai.net.node import Node
from dicomai.net.tls import TlsFiles, server_context
from dicomai.net.transcode import EXPLICIT, IMPLICIT
from dicomai.net.upper_layer import Acceptor

_POLL_S: Final = 0.1
_STOP_S: Final = 2.0
"""So long peers may take to be told that we stop."""
_NATIVE: Final = frozenset({EXPLICIT, IMPLICIT})
MAX_PDU_BYTES: Final = 2**17

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryConfig:
    """What the server needs to know.

    Attributes
    ----------
    ae_title, host, port
        What it is called, and where it listens.
    nodes
        Who may call; those with "query" in `may` may ask.
    max_associations
        At a time; more are rejected for now.
    tls
        It takes TLS, with these files; None: it does not.
    limits
        What one association may take.
    """

    ae_title: str
    host: str
    port: int
    nodes: tuple[Node, ...]
    max_associations: int
    tls: TlsFiles | None = None
    limits: Limits = field(default_factory=Limits)


def answer(
    config: QueryConfig, archive: Archive, ready: Callable[[], None], stop: threading.Event
) -> None:
    """Answer until told to stop.

    Raises
    ------
    ConfigError
        It may not listen there.
    TransientError
        It can't listen there now, or listens no more.
    """
    desk = _Desk(config, archive)
    try:
        with serving(desk.listen()) as check:
            ready()
            while not stop.wait(_POLL_S):
                check()
    finally:
        desk.close()


class _Server(AssociationServer):
    """One whose associations answer."""

    acceptor = Answerer


class _Desk:
    """Who is being answered."""

    def __init__(self, config: QueryConfig, archive: Archive) -> None:
        self._config = config
        self._archive = archive
        self._peers: dict[Acceptor, str] = {}
        self._lock = threading.Lock()

    def listen(self) -> AssociationServer:
        """Return a server at the port."""
        config = self._config
        entity = AE(config.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_pdu_size = MAX_PDU_BYTES
        # The limit itself is in `_decided`, which doesn't count calls that wait to be rejected.
        entity.maximum_associations = 10 * config.max_associations
        entity.acse_timeout = config.limits.request_s
        entity.network_timeout = config.limits.silence_s
        entity.dimse_timeout = config.limits.silence_s
        # What it supports is decided for each caller, in `_requested`; it wants one to begin with.
        entity.add_supported_context(VERIFICATION)
        secured_by: ssl.SSLContext | None = server_context(config.tls) if config.tls else None
        try:
            server = entity.make_server(
                (config.host, config.port),
                server_class=_Server,
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_RELEASED, self._ended),
                    (evt.EVT_ABORTED, self._ended),
                ],
            )
        except OSError as trouble:
            raise not_listening(
                "Queries", config.host, config.port, "query.port", trouble
            ) from trouble
        assert isinstance(server, AssociationServer)
        server.open_to(config.limits, secured_by, _keep_nothing)
        return server

    def close(self) -> None:
        """Abort what is open; who does not read what he is sent can't be told."""
        with self._lock:
            closers = [threading.Thread(target=each.abort, daemon=True) for each in self._peers]
        deadline = time.monotonic() + _STOP_S
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(max(0.0, deadline - time.monotonic()))

    def _requested(self, event: evt.Event) -> None:
        association = event.assoc
        assert isinstance(association, Answerer)
        try:
            found = self._decided(association)
        except Exception:
            # pynetdicom logs it, and would go on as if nothing had been decided.
            self._reject(association, LOCAL_FAILURE)
            raise
        if isinstance(found, Rejection):
            _log.warning("association rejected", reason=found.sentence)
            self._reject(association, found.code)
            return
        association.archive = self._archive
        association.charset_default = found.charset_default
        request = association.requestor.primitive
        assert request is not None
        proposals = [
            (str(context.abstract_syntax), [str(uid) for uid in context.transfer_syntax])
            for context in request.presentation_context_definition_list
        ]
        granted = supported(found, proposals)
        if not granted:
            names = [name for name, _ in proposals]
            # Storage classes beside a query are for what C-GET would send.
            asked = [name for name in names if name in ROOTS] or names
            reason = in_vain(found, association.call(), asked, ANSWERING)
            _log.warning("nothing accepted", reason=reason)
        association.acceptor.supported_contexts = granted

    def _decided(self, association: Answerer) -> Node | Rejection:
        assert association.dul.socket is not None
        wire = association.dul.socket.socket
        assert wire is not None
        # An answer is two PDUs: without it the second waits 40 ms until the peer has the first.
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found = caller(self._config.nodes, self._config.ae_title, association.call())
        if isinstance(found, Rejection):
            return found
        with self._lock:
            self._peers = {each: name for each, name in self._peers.items() if each.is_alive()}
            of_node = list(self._peers.values()).count(found.name)
            if len(self._peers) >= self._config.max_associations:
                limit = self._config.max_associations
                return too_many(found, "all", limit, "query.max_associations")
            if found.max_associations and of_node >= found.max_associations:
                return too_many(found, "node", found.max_associations)
            self._peers[association] = found.name
        return found

    def _reject(self, association: Answerer, code: tuple[int, int, int]) -> None:
        association.acse.send_reject(*code)
        evt.trigger(association, evt.EVT_REJECTED, {})
        association.kill()

    def _ended(self, event: evt.Event) -> None:
        association = event.assoc
        assert isinstance(association, Acceptor)
        with self._lock:
            name = self._peers.pop(association, "")
        if name:
            _log.info("query association ended", node=name)


def supported(
    node: Node, proposals: Sequence[tuple[str, Sequence[str]]]
) -> list[PresentationContext]:
    """Return what a node may have of what it proposes.

    Parameters
    ----------
    proposals
        (abstract syntax, transfer syntaxes) of each presentation context.

    Notes
    -----
    Storage classes are for what C-GET sends: for them the peer says that it takes the role of the
    SCP. What will be wanted is not known yet. So of several transfer syntaxes in one context a
    native one is chosen, for what can be decoded can be brought into that; unless the class has a
    context for native ones alone: then the others are for what goes as it is.
    """
    chosen = chosen_syntaxes([each for each in proposals if _may(node, each[0])])
    with_native = {name for name, syntaxes in proposals if syntaxes and set(syntaxes) <= _NATIVE}
    return [
        build_context(name, sorted(syntaxes, key=_is_other))
        if name == VERIFICATION or name in ROOTS
        else _sendable(name, sorted(syntaxes, key=_is_other, reverse=name in with_native))
        for name, syntaxes in chosen.items()
    ]


def _may(node: Node, abstract_syntax: str) -> bool:
    if abstract_syntax == VERIFICATION:
        return "echo" in node.may
    return "query" in node.may and (abstract_syntax in ROOTS or is_storage(abstract_syntax))


def _is_other(syntax: str) -> bool:
    return syntax not in _NATIVE


def _sendable(abstract_syntax: str, syntaxes: list[str]) -> PresentationContext:
    context = build_context(abstract_syntax, syntaxes)
    context.scu_role = False
    context.scp_role = True
    return context


def _keep_nothing(_association: Acceptor, _request: StoreRequest, _context_id: int) -> None:
    """Take no object: this port only answers."""
    return
