"""A connection of pynetdicom's that can be lent to the thread that sends.

pynetdicom looks every millisecond whether something came, copies what goes out fragment by fragment
between two threads, and encodes every command anew. While its connection is lent, both its threads
stand still, and whoever has it reads and writes. What he read and does not know he hands back.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.transport import AddressInformation, AssociationSocket

_LOOK_S: Final = 0.01


class Wire(AssociationSocket):
    """The connection; `lent` is for the thread that requested the association."""

    def __init__(self, association: Association, address: AddressInformation) -> None:
        super().__init__(association, address=address)
        self._unread = bytearray()
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
        return bool(self._unread) or super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        """Return what was handed back first, then what comes."""
        taken = self._unread[:nr_bytes]
        del self._unread[:nr_bytes]
        return taken + super().recv(nr_bytes - len(taken))

    def hand_back(self, read: bytes | bytearray) -> None:
        """Have pynetdicom read these bytes next, when it has the connection again."""
        self._unread += read

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
            yield self.socket if association.is_established else None
        finally:
            association.dul._idle_timer.restart()
            self._at_home.set()
            association._reactor_checkpoint.set()


class Caller(AE):
    """Our application entity, whose connections can be lent.

    Its threads are daemons: what a process was told to stop amid must not keep it from ending.
    """

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[ssl.SSLContext, str] | None,
    ) -> AssociationSocket:
        assoc.daemon = assoc.dul.daemon = True
        wire = Wire(assoc, address)
        wire.tls_args = tls_args
        return wire
