"""A connection of pynetdicom's that can be lent to the thread that sends.

pynetdicom looks every millisecond whether something came, copies what goes out fragment by fragment
between two threads, and encodes every command anew. While its connection is lent, both its threads
stand still, and whoever has it reads and writes. What he read and does not know he hands back.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.transport import AddressInformation, AssociationSocket

_LOOK_S: Final = 0.01
_READ_BYTES: Final = 2**16
# A peer that says a PDU is longer than this, eight times what we offer, means something else.
_LONGEST_PDU_BYTES: Final = 2**20
MOST_UNREAD: Final = 64
"""Messages that wait to be taken; then nothing more is read, so that a fast peer has to wait."""


class Wire(AssociationSocket):
    """The connection; `lent` is for the thread that requested the association.

    `pdu_s` is how long a PDU may take from its first byte to its last.
    """

    def __init__(self, association: Association, address: AddressInformation, pdu_s: float) -> None:
        super().__init__(association, address=address)
        self._pdu_s = pdu_s
        self._unread = bytearray()
        self._is_cut = False
        self._standing = threading.Event()
        self._at_home = threading.Event()
        self._at_home.set()

    @property
    def ready(self) -> bool:
        """Tell whether there is something to read; here pynetdicom's thread stands still."""
        if not self._at_home.is_set():
            self._standing.set()
            self._at_home.wait()
            self._standing.clear()
        if self.assoc.dimse.msg_queue.qsize() >= MOST_UNREAD:
            return False
        return bool(self._unread) or super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        """Return what was handed back first, then what comes.

        Less than that is the end of the connection: it broke, the peer trickles, or says to have
        more than a PDU holds.
        """
        if nr_bytes > _LONGEST_PDU_BYTES:
            return bytearray()
        taken = self._unread[:nr_bytes]
        del self._unread[:nr_bytes]
        assert self.socket is not None
        over_at = time.monotonic() + self._pdu_s
        while len(taken) < nr_bytes and time.monotonic() < over_at:
            piece = self.socket.recv(min(nr_bytes - len(taken), _READ_BYTES))
            if not piece:
                break
            taken += piece
        return taken

    def hand_back(self, read: bytes | bytearray) -> None:
        """Have pynetdicom read these bytes next, when it has the connection again."""
        self._unread += read

    def cut(self) -> None:
        """End the connection under whoever has it on loan, in another thread too."""
        self._is_cut = True
        if not self._at_home.is_set() and self.socket is not None:
            # Not its own method, by which an SSLSocket would go on in the clear.
            with suppress(OSError):
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    @contextmanager
    def lent(self) -> Iterator[socket.socket | None]:
        """Give the connection for a block; None where the association has ended."""
        association = self.assoc
        association._reactor_checkpoint.clear()
        self._at_home.clear()
        try:
            while not (self._standing.is_set() and association._is_paused):
                if not (association.is_alive() and association.dul.is_alive()):
                    break
                self._standing.wait(_LOOK_S)
            yield self.socket if association.is_established and not self._is_cut else None
        finally:
            association.dul._idle_timer.restart()
            self._at_home.set()
            association._reactor_checkpoint.set()


class Caller(AE):
    """Our application entity, whose connections can be lent.

    Its threads are daemons: what a process was told to stop amid must not keep it from ending.
    """

    def __init__(self, ae_title: str, pdu_s: float) -> None:
        super().__init__(ae_title)
        self._pdu_s = pdu_s

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[ssl.SSLContext, str] | None,
    ) -> AssociationSocket:
        assoc.daemon = assoc.dul.daemon = True
        wire = Wire(assoc, address, self._pdu_s)
        wire.tls_args = tls_args
        return wire
