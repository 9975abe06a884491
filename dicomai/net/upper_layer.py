"""The upper layer of an association that we accepted: pynetdicom's, run by one thread.

pynetdicom has a thread for the transport and one for the association; both look every millisecond
whether the other did something, and what comes is copied from one to the other. Here the thread of
the association waits in the kernel for its peer and drives pynetdicom's state machine itself. All
is pynetdicom's still, negotiation, services, release, abort, except that objects of C-STORE
requests go straight from the socket to their reception, and are answered from there.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dul import _PDU_TYPES, DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ, P_DATA_TF, _PDUType
from pynetdicom.transport import AssociationSocket

from dicomai.net.admission import Call
from dicomai.net.c_store import StoreRequest, p_data, response
from dicomai.net.limits import Limits
from dicomai.net.messages import Malformed, Messages
from dicomai.net.pdu_stream import PDU_HEAD, PDV_HEAD, TICK_S, Ended, PduStream, TooSlow
from dicomai.net.reception import Incoming
from dicomai.net.tls import peer_certificate
from dicomai.spool.part import Bytes

if TYPE_CHECKING:
    from pynetdicom.pdu_primitives import _PDUPrimitiveType

# PS3.8 9.3.8: A-ABORT by the provider, for an invalid PDU parameter.
INVALID_PARAMETER: Final = bytes.fromhex("07000000000400000206")
_P_DATA_TF: Final = 0x04
_ASSOCIATING: Final = frozenset({0x01, 0x02})
# A-ASSOCIATE-RJ, A-RELEASE-RQ and -RP, A-ABORT (PS3.8 9.3.4, 9.3.6 to 9.3.8).
_BARE: Final = frozenset({0x03, 0x05, 0x06, 0x07})
_BARE_BYTES: Final = 4
_AWAITING_REQUEST: Final = "Sta2"
_OPEN: Final = "Sta6"
_IDLE: Final = "Sta1"
_CLOSING: Final = "Sta13"
_CONNECTION_CLOSED: Final = "Evt17"
_P_DATA: Final = "Evt10"
_TIMER_EXPIRED: Final = "Evt18"
_INVALID_PDU: Final = "Evt19"

# Returns what takes the object of a request; None: pynetdicom is to answer.
Storage: TypeAlias = Callable[["Acceptor", StoreRequest, int], Incoming | None]


class _Over(Exception):
    """This side ended the association while its thread waited for the peer."""


class _Connection(AssociationSocket):
    """One whose peer may take its time to read, as long as it may be silent."""

    def __init__(self, association: Association, wire: socket.socket, sending_s: float) -> None:
        super().__init__(association, wire)
        self._sending_s = sending_s

    def send(self, bytestream: bytes) -> None:
        """Send at once; a connection that broke is an event."""
        wire = self.socket
        if not isinstance(wire, ssl.SSLSocket):  # the kernel bounds each way by itself
            super().send(bytestream)
            return
        with suppress(OSError):  # closed meanwhile: then it can't be sent, either
            wire.settimeout(self._sending_s)
        super().send(bytestream)
        with suppress(OSError):
            wire.settimeout(TICK_S)


class UpperLayer(DULServiceProvider):
    """pynetdicom's provider without its thread: it acts when its association turns it.

    Parameters
    ----------
    association
        Whose it is.
    limits
        Of the association.
    storage
        Takes its objects.

    Attributes
    ----------
    reason
        Why this side ended the association; empty where it did not.
    """

    def __init__(self, association: Acceptor, limits: Limits, storage: Storage) -> None:
        super().__init__(association)
        self._acceptor = association
        self._limits = limits
        self._storage = storage
        # Any thread may send, for instance to abort; only its own reads and closes.
        self._acting = threading.RLock()
        self._request: tuple[StoreRequest, int] | None = None
        self._incoming: Incoming | None = None
        # Its largest PDU in bytes, known once it is associated.
        self._peer_takes: int | None = None
        self.reason = ""
        self._connection: AssociationSocket
        self._stream: PduStream
        self._messages: Messages

    def hear(self, wire: socket.socket, read_ahead: Bytes) -> None:
        """Take the connection, and what was read of it already."""
        self.socket = self._connection = _Connection(self.assoc, wire, self._limits.silence_s)
        self._stream = PduStream(wire, self._limits, read_ahead, tick=self._tick)
        self._messages = Messages(self, self._stream.begin_message, self._stream.end_message)

    @property
    def is_receiving(self) -> bool:
        """Whether an object has begun that is not whole."""
        return self._incoming is not None

    @property
    def has_more(self) -> bool:
        """Whether something came that was not looked at yet."""
        return self._stream.has_more

    def start(self) -> None:
        """Let the association go on; there is no thread to start."""
        self.assoc._dul_ready.set()

    def is_alive(self) -> bool:
        """Tell whether there is still something to do."""
        return not self._kill_thread

    def send_pdu(self, primitive: _PDUPrimitiveType) -> None:
        """Send at once."""
        super().send_pdu(primitive)
        self.settle()

    def receive_pdu(
        self, wait: bool = False, timeout: float | None = None
    ) -> _PDUPrimitiveType | None:
        """Return the next primitive for the association, None if there is none in time."""
        until = time.monotonic() + (self._limits.request_s if timeout is None else timeout)
        while wait and self.is_alive() and self.to_user_queue.empty() and time.monotonic() < until:
            self.turn()
        return super().receive_pdu()

    def stop_dul(self) -> bool:
        """Go on until the connection is closed; from another thread, tell whether it is."""
        if threading.current_thread() is self._acceptor.thread:
            while self.is_alive() and self.state_machine.current_state != _IDLE:
                self.turn()
        return super().stop_dul()

    def wake(self) -> None:
        """Have the thread of the association look at what another one did."""
        with suppress(OSError):
            if self._connection.socket is not None:
                # Not the method of a TLS socket, which would take its keys away.
                socket.socket.shutdown(self._connection.socket, socket.SHUT_RD)

    def turn(self) -> None:
        """Do one thing: what is due on this side, or else what the peer sends next."""
        self.settle()
        if not self.is_alive():
            return
        if self.state_machine.current_state == _CLOSING:
            self._stream.linger()
            self._connection.close()
        else:
            self._hear()
        self.settle()

    def settle(self) -> None:
        """Let the state machine do all that is due."""
        if not self._is_due():
            return
        with self._acting:
            while self.is_alive() and self._is_due():
                if self.event_queue.empty():
                    self._process_recv_primitive()
                self._act(self.event_queue.get_nowait())

    def _is_due(self) -> bool:
        return bool(self.event_queue.queue or self.to_provider_queue.queue)

    def _act(self, event: str) -> None:
        try:
            self.state_machine.do_action(event)
        except Exception as trouble:  # noqa: BLE001  as pynetdicom does: nothing is known of its state
            self.reason = f"pynetdicom failed with {type(trouble).__name__} at {event}."
            pdu = A_ABORT_RQ()
            pdu.source, pdu.reason_diagnostic = 2, 0
            if self._connection.socket is not None:
                self._connection.send(pdu.encode())
            self.assoc.is_aborted, self.assoc.is_established = True, False
            self.assoc._kill = True
            self._kill_thread = True

    def _hear(self) -> None:
        try:
            # Objects one after the other, until there is something for others to do.
            while not self._receive_pdu():
                pass
        except (Ended, _Over):
            self.event_queue.put(_CONNECTION_CLOSED)
        except TooSlow as trouble:
            self.reason = str(trouble)
            self.assoc.abort()
        except Malformed as trouble:
            self.reason = str(trouble)
            self.event_queue.put(_INVALID_PDU)

    def _tick(self) -> None:
        if self.artim_timer.expired:
            self.event_queue.put(_TIMER_EXPIRED)
            self.settle()
        if not self.is_alive() or self.assoc._kill:
            raise _Over

    def _receive_pdu(self) -> bool:
        """Take a PDU; tell whether it, or another thread, gave somebody else something to do."""
        kind, length = self._stream.head()
        if kind not in _KINDS:
            raise Malformed(f"A PDU is of the unknown type 0x{kind:02X}.")
        if kind in _ASSOCIATING and self.state_machine.current_state != _AWAITING_REQUEST:
            # Not even decoded, which may take long: only the first was looked at.
            raise Malformed(f"A PDU of type 0x{kind:02X} came within an association.")
        if kind in _BARE and length != _BARE_BYTES:
            raise Malformed(f"A PDU of type 0x{kind:02X} says to have {length} bytes.")
        if length > self._limits.pdu_bytes:
            with self._acting:
                self._connection.send(INVALID_PARAMETER)
            self.reason = (
                f"A PDU says to have {length} bytes, and {self._limits.pdu_bytes} are taken at "
                "most."
            )
            raise Ended
        if kind == _P_DATA_TF and self.state_machine.current_state == _OPEN:
            self._receive_data(length)
            return self._is_due() or bool(self.assoc.dimse.msg_queue.queue) or self.assoc._kill
        self._stream.begin_message()
        whole = PDU_HEAD.pack(kind, length) + self._stream.take(length)
        self._stream.end_message()
        try:
            pdu, event = self._decode_pdu(bytearray(whole))
        except Exception as trouble:
            raise Malformed(f"A PDU of type 0x{kind:02X} can't be read.") from trouble
        self._recv_pdu.put(pdu)
        self.event_queue.put(event)
        return True

    def _receive_data(self, length: int) -> None:
        """Take the PDVs of a P-DATA-TF as they come."""
        if length == 0:
            raise Malformed("A P-DATA-TF holds nothing.")
        stream, fragment = self._stream, self._messages.fragment
        while length:
            if length < PDV_HEAD.size:
                raise Malformed("A PDV goes beyond its PDU.")
            size, context_id, control = stream.pdv_head()
            if size < 2 or size + 4 > length:
                raise Malformed("A PDV goes beyond its PDU.")
            length -= size + 4
            left = size - 2
            if not left:
                fragment(context_id, control, _NOTHING, ends=True)
            while left:
                piece = stream.some(left)
                left -= len(piece)
                fragment(context_id, control, piece, ends=not left)

    def begin_object(self, request: StoreRequest, context_id: int) -> Incoming | None:
        """Return what takes the object of a request; None: pynetdicom is to answer."""
        self._incoming = self._storage(self._acceptor, request, context_id)
        self._request = (request, context_id)
        return self._incoming

    def end_object(self, incoming: Incoming) -> None:
        """Answer the request whose object is whole."""
        assert self._request is not None
        (request, context_id), self._request = self._request, None
        answer = incoming.finish()
        self._incoming = None
        command_set = response(request, answer.status, answer.sentence)
        if self._peer_takes is None:
            self._peer_takes = self.assoc.requestor.maximum_length or 0
        pdus = p_data(command_set, context_id, self._peer_takes)
        with self._acting:
            if self.state_machine.current_state == _OPEN:
                self._connection.send(pdus)
        incoming.answered()

    def drop(self) -> None:
        """Let go of an object that will not be whole."""
        if self._incoming is not None:
            self._incoming.drop()

    def hand_back(self, context_id: int, control: int, data: bytes) -> None:
        """Give a PDV to pynetdicom, as the P-DATA-TF that it would have read."""
        pdv = PDV_HEAD.pack(len(data) + 2, context_id, control) + data
        pdu = P_DATA_TF()
        pdu.decode(PDU_HEAD.pack(_P_DATA_TF, len(pdv)) + pdv)
        self._acceptor.before_service(context_id)
        self._recv_pdu.put(pdu)
        self.event_queue.put(_P_DATA)
        self.settle()

    def _send(self, pdu: _PDUType) -> None:
        if self._connection.socket is not None:
            self._connection.send(self._acceptor.encoded(pdu))
            evt.trigger(self.assoc, evt.EVT_PDU_SENT, {"pdu": pdu})


_KINDS: Final = frozenset(kind[0] for kind in _PDU_TYPES)
_NOTHING: Final = memoryview(b"")


class Acceptor(Association):
    """An association that a peer asked for; `start` runs it in the thread that calls.

    Parameters
    ----------
    entity
        Ours.
    limits
        What the peer may take.
    storage
        Takes its objects.
    """

    def __init__(self, entity: ApplicationEntity, limits: Limits, storage: Storage) -> None:
        super().__init__(entity, "acceptor")
        self.thread: threading.Thread | None = None
        self.dul: UpperLayer = UpperLayer(self, limits, storage)
        self.acse_timeout = entity.acse_timeout
        self.network_timeout = entity.network_timeout

    def hear(self, wire: socket.socket, first_pdu: Bytes) -> None:
        """Take the connection, and the request that was read of it already."""
        self.dul.hear(wire, first_pdu)

    def call(self) -> Call:
        """Return who calls whom, from where, over what."""
        request = self.requestor.primitive
        peer = self.requestor.address_info
        assert request is not None
        assert peer is not None
        assert self.dul.socket is not None
        wire = self.dul.socket.socket
        return Call(
            called_ae=str(request.called_ae_title),
            calling_ae=str(request.calling_ae_title),
            address=peer.address,
            secured=isinstance(wire, ssl.SSLSocket),
            certificate=peer_certificate(wire),
        )

    def encoded(self, pdu: _PDUType) -> bytes:
        """Return the bytes of a PDU that is to be sent."""
        return pdu.encode()

    def before_service(self, context_id: int) -> None:
        """Prepare for a message that is handed to pynetdicom."""

    def _bind_defaults(self) -> None:
        """Bind nothing: its server's handlers are all there are."""

    def start(self) -> None:
        """Run from the request to the end."""
        self.thread = threading.current_thread()
        try:
            self.run_reactor()
        finally:
            self.dul.drop()
            self.thread = None

    def is_alive(self) -> bool:
        """Tell whether it runs."""
        return self.thread is not None

    def kill(self) -> None:
        """End it, and wait until its connection is closed."""
        if threading.current_thread() is not self.thread:
            self.dul.wake()
        super().kill()

    def _run_reactor(self) -> None:
        """Serve the peer until the association ends."""
        while not self._kill:
            # Whoever stops the reactor sends requests of his own, and reads the responses.
            self._is_paused = True
            self.dul.turn()
            if not self._reactor_checkpoint.is_set():
                continue
            self._is_paused = False
            context_id, message = self.dimse.get_msg(block=False)
            # Several, where they came in one PDU.
            while message is not None and context_id is not None and not self._kill:
                self._serve_request(message, context_id)
                context_id, message = self.dimse.get_msg(block=False)
            if self.is_established and self.acse.is_release_requested():
                self.acse.send_release(is_response=True)
                self.is_released, self.is_established = True, False
                # In the midst of an object it is no end of what was to come.
                evt.trigger(
                    self, evt.EVT_ABORTED if self.dul.is_receiving else evt.EVT_RELEASED, {}
                )
                self.kill()
            elif self.acse.is_aborted():
                self.dul.receive_pdu(wait=False)  # so that EVT_ACSE_RECV is told
                self.is_aborted, self.is_established = True, False
                evt.trigger(self, evt.EVT_ABORTED, {})
                self.kill()
            elif not self.dul.is_alive():
                self.kill()
