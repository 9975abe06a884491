"""A connection before it is an association: TLS and the first PDU, within their time and size.

pynetdicom gets a connection only with its first PDU read whole. So who connects and says nothing,
or says it byte by byte, holds one thread for as long as ARTIM allows (PS3.8 9.1.5), and no more.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import Any, Final

import structlog
from pynetdicom import evt
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dicomai.errors import ConfigError, DicomaiError, TransientError
from dicomai.net import association_request
from dicomai.net.limits import Limits
from dicomai.net.pdu_stream import PDU_HEAD
from dicomai.net.tls import why
from dicomai.net.upper_layer import INVALID_PARAMETER, Acceptor, Storage

# PS3.8 9.3.8: A-ABORT by the provider, for an unexpected PDU.
_UNEXPECTED: Final = bytes.fromhex("07000000000400000202")
_TLS_HANDSHAKE: Final = b"\x16\x03"  # RFC 8446 5.1: record of a handshake, version 3
_PIECE_BYTES: Final = 2**16
# Connections of one process that have not said yet who they are.
_MAX_WAITING: Final = 256
_MAX_WAITING_OF_ONE: Final = 64
# What accept(2) says where the process or the machine can open no more.
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# What bind(2) and getaddrinfo(3) say that may be otherwise in a moment, as after a start in a
# hurry, and what helps.
_NOT_NOW: Final = {
    errno.EADDRINUSE: "Is another program using it?",
    errno.EADDRNOTAVAIL: "Is that an address of this machine, and its network up?",
    socket.EAI_AGAIN: "Is a name server in reach?",
}
_REST_S: Final = 0.1
_POLL_S: Final = 0.1
_TELL_EVERY_S: Final = 60.0

_log = structlog.get_logger()


class _Unheard(Exception):
    """The connection came to no association request; says why, empty where nobody needs to know."""


def not_listening(who: str, host: str, port: int, settings: str, trouble: OSError) -> DicomaiError:
    """Return what is raised where a port can't be had.

    Parameters
    ----------
    who
        Wants to listen.
    settings
        Which say where.
    """
    lead = f"{who}: can't listen on {host} port {port}: {trouble.strerror}."
    subject = settings.split()[-1]
    if trouble.errno in _NOT_NOW:
        return TransientError(f"{lead} {_NOT_NOW[trouble.errno]} See {settings}.", subject=subject)
    if trouble.errno == errno.EACCES:
        return ConfigError(
            f"{lead} A port below 1024 must be allowed to the service: see "
            f"docs/how-to/run-for-good.md, With systemd. Or choose another one, {settings}.",
            subject=subject,
        )
    return ConfigError(f"{lead} See {settings}.", subject=subject)


class AssociationServer(ThreadedAssociationServer):
    """pynetdicom's, for the connections of strangers.

    Attributes
    ----------
    limits
        Of each connection.
    secured_by
        Context of TLS; None on a port without.
    storage
        Takes the objects.
    shares_port
        Others may listen where it does.
    acceptor
        What its associations are.
    """

    request_queue_size = 128
    daemon_threads = True
    block_on_close = False
    shares_port = False
    acceptor: type[Acceptor] = Acceptor
    limits: Limits
    secured_by: ssl.SSLContext | None
    storage: Storage
    _waiting: Counter[str]
    _counting: threading.Lock
    _tells_at = 0.0

    def open_to(self, limits: Limits, secured_by: ssl.SSLContext | None, storage: Storage) -> None:
        """Say on what terms it takes connections; before it serves any."""
        self.limits = limits
        self.secured_by = secured_by
        self.storage = storage
        self._waiting = Counter()
        self._counting = threading.Lock()
        self.RequestHandlerClass = _Handler

    def server_bind(self) -> None:
        """Take the port, alone unless it says that it shares it."""
        if self.shares_port:
            assert self.socket is not None
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def _bind_defaults(self) -> None:
        """Leave out pynetdicom's handlers that write a page of log for each PDU."""
        for event in evt._INTERVENTION_EVENTS:
            self.bind(event, evt.get_default_handler(event))

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Take the next connection; where nothing more can be opened, rest before another try.

        It stays at the port meanwhile, and the server would ask for it without a pause.
        """
        try:
            return super().get_request()
        except OSError as trouble:
            if trouble.errno in _NO_ROOM:
                if time.monotonic() >= self._tells_at:
                    self._tells_at = time.monotonic() + _TELL_EVERY_S
                    _log.error("connections wait", reason=os.strerror(trouble.errno or 0))
                time.sleep(_REST_S)
            raise

    def verify_request(self, _request: object, client_address: object) -> bool:
        """Tell whether one more may wait to be heard."""
        address = _address(client_address)
        with self._counting:
            if self._waiting[address] < _MAX_WAITING_OF_ONE and (
                self._waiting.total() < _MAX_WAITING
            ):
                self._waiting[address] += 1
                return True
        _log.warning(
            "connection closed",
            address=address,
            reason="Too many connections wait to be heard, or too many of this address.",
        )
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give it a thread of its own."""
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread is to be had
            self.heard(client_address)
            raise

    def heard(self, client_address: object) -> None:
        """Note that a connection said who it is, or never will."""
        address = _address(client_address)
        with self._counting:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    def handle_error(self, _request: object, client_address: object) -> None:
        """Log what went wrong with a connection, which no other notices."""
        _log.error("connection failed", address=_address(client_address), exc_info=True)


@contextmanager
def serving(server: AssociationServer) -> Iterator[Callable[[], None]]:
    """Take connections until the end of the block; gives what is to be called now and then.

    That raises a TransientError when no connections are taken any more, as after memory ran out:
    nobody else would notice.
    """
    thread = threading.Thread(target=_serve, args=(server,), name="listen")

    def check() -> None:
        if not thread.is_alive():
            port = str(server.server_address[1])
            raise TransientError(
                f"Port {port} takes no connections any more, as the log says. Its role is started "
                "again.",
                subject=port,
            )

    thread.start()
    try:
        yield check
    finally:
        # Not its own `shutdown`, which wants to be known to an AE that started it.
        BaseServer.shutdown(server)
        server.server_close()
        thread.join()


def _serve(server: AssociationServer) -> None:
    try:
        server.serve_forever(_POLL_S)
    except Exception:  # noqa: BLE001  `serving` tells of it
        _log.exception("listening ended", port=server.server_address[1])


class _Handler(RequestHandler):
    """One connection, from its accept to its first PDU."""

    server: AssociationServer

    def handle(self) -> None:
        try:
            self._first_pdu = self._heard()
        except (_Unheard, OSError) as trouble:
            if reason := str(trouble):
                _log.warning(
                    "connection closed", address=_address(self.client_address), reason=reason
                )
            self.server.shutdown_request(self.request)
            return
        finally:
            self.server.heard(self.client_address)
        try:
            super().handle()
        finally:  # pynetdicom leaves it open where the peer closed first
            self.request.close()

    def _heard(self) -> bytearray:
        limits = self.server.limits
        by = time.monotonic() + limits.request_s
        if self.server.secured_by is not None:
            self.request = _secured(self.request, self.server.secured_by, limits)
        try:
            return _first_pdu(self.request, limits, by)
        except TimeoutError:
            raise _Unheard(
                f"No association request came within {limits.request_s:g} s (ARTIM)."
            ) from None
        except ConnectionError:
            raise _Unheard from None
        finally:
            self.request.settimeout(limits.silence_s)

    def _create_association(self) -> Acceptor:
        server = self.server
        association = server.acceptor(server.ae, server.limits, server.storage)
        association._server = server
        association.acceptor.maximum_length = server.ae.maximum_pdu_size
        association.acceptor.ae_title = server.ae_title
        association.acceptor.address_info = self.local
        association.acceptor.implementation_class_uid = server.ae.implementation_class_uid
        association.acceptor.implementation_version_name = server.ae.implementation_version_name
        association.requestor.address_info = self.remote
        association._handlers = {
            event: list(handlers) if isinstance(handlers, list) else handlers
            for event, handlers in server._handlers.items()
        }
        association.hear(self.request, self._first_pdu)
        return association


def _secured(wire: socket.socket, context: ssl.SSLContext, limits: Limits) -> socket.socket:
    secured = context.wrap_socket(wire, server_side=True, do_handshake_on_connect=False)
    secured.settimeout(limits.request_s)
    try:
        secured.do_handshake()
    except TimeoutError:
        secured.close()
        raise _Unheard(f"TLS: no handshake within {limits.request_s:g} s.") from None
    except (ssl.SSLEOFError, ConnectionError):
        secured.close()
        raise _Unheard from None
    except ssl.SSLError as trouble:
        secured.close()
        raise _Unheard(_no_tls(trouble)) from trouble
    return secured


def _no_tls(trouble: ssl.SSLError) -> str:
    if trouble.reason in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER", "BAD_RECORD_TYPE"):
        return "It speaks no TLS, and this port does. Give it the port of [receiver]."
    return f"TLS: {why(trouble)}."


def _first_pdu(wire: socket.socket, limits: Limits, by: float) -> bytearray:
    head = _read(wire, PDU_HEAD.size, by)
    if not head:  # whoever looks whether the port is open
        raise _Unheard
    if head.startswith(_TLS_HANDSHAKE):
        raise _Unheard("It speaks TLS, and this port does not. Give it the port of [tls].")
    if len(head) < PDU_HEAD.size:
        raise _Unheard("It ended within the first PDU.")
    kind, length = PDU_HEAD.unpack(head)
    if kind != association_request.TYPE:
        wire.sendall(_UNEXPECTED)
        raise _Unheard(f"It began with a PDU of type 0x{kind:02X}.")
    if length > limits.pdu_bytes:
        wire.sendall(INVALID_PARAMETER)
        raise _Unheard(_too_long(length, limits))
    body = _read(wire, length, by)
    if len(body) < length:
        raise _Unheard("It ended within the first PDU.")
    try:
        association_request.check(memoryview(body))
        association_request.check_titles(body)
    except association_request.NoTitle as trouble:
        wire.sendall(trouble.rejection)
        raise _Unheard(str(trouble)) from trouble
    except association_request.Unshapely as trouble:
        wire.sendall(INVALID_PARAMETER)
        raise _Unheard(str(trouble)) from trouble
    return head + body


def _read(wire: socket.socket, size: int, by: float) -> bytearray:
    """Return so many bytes, fewer at the end of the connection; memory grows with what came."""
    read = bytearray()
    while len(read) < size:
        left_s = by - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        wire.settimeout(left_s)
        piece = wire.recv(min(size - len(read), _PIECE_BYTES))
        if not piece:
            break
        read += piece
    return read


def _too_long(length: int, limits: Limits) -> str:
    return f"A PDU says to have {length} bytes, and {limits.pdu_bytes} are taken at most."


def _address(client_address: object) -> str:
    return str(client_address[0]) if isinstance(client_address, tuple) else str(client_address)
