"""DIMSE messages put together from their fragments (PS3.7 6.3, PS3.8 annex E).

Objects that a C-STORE brings go to their reception as they come; every other message is handed back
to pynetdicom, whole PDV by whole PDV.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from dicomai.net.c_store import StoreRequest, command_elements, has_data_set, store_request
from dicomai.net.limits import MAX_COMMAND_BYTES
from dicomai.net.reception import Incoming

# Identifiers, MPPS and commitment requests are small; what is larger is an attack, or a mistake.
MAX_OTHER_DATA_BYTES: Final = 2**24
# Each fragment costs as much time as kilobytes do. Who cuts a message into crumbs, or into nothing,
# takes the processor from everyone else; no peer in earnest has PDUs as small as that.
_MANY_FRAGMENTS: Final = 1000
_FEWEST_BYTES: Final = 64
_COMMAND: Final = 1
_LAST: Final = 2


class Malformed(Exception):
    """What came breaks the protocol; says how."""


class Service(Protocol):
    """What is done with messages."""

    def begin_object(self, request: StoreRequest, context_id: int) -> Incoming | None:
        """Return what takes the object of a request; None: the request is not for us."""

    def end_object(self, incoming: Incoming) -> None:
        """Answer the request whose object is whole."""

    def hand_back(self, context_id: int, control: int, data: bytes) -> None:
        """Give a PDV that is whole to pynetdicom."""


@dataclass(slots=True)
class Messages:
    """The messages of one association; a message is begun only when the one before is whole.

    Parameters
    ----------
    service
        What is done with them.
    begun, whole
        Called when a message begins, and when its last byte came.
    """

    service: Service
    begun: Callable[[], None]
    whole: Callable[[], None]
    _context_id: int | None = None
    _gathered: bytearray = field(default_factory=bytearray)
    _incoming: Incoming | None = None
    _other_bytes: int | None = None
    _fragments: int = 0
    _bytes: int = 0

    def fragment(self, context_id: int, control: int, piece: memoryview, *, ends: bool) -> None:
        """Take the next bytes of a fragment.

        Parameters
        ----------
        context_id, control
            Presentation context and control header of its PDV.
        piece
            Bytes; of an object they must stay until it is flushed.
        ends
            The PDV ends with them.

        Raises
        ------
        Malformed
            They belong to no message, to one that is too large, or to one in crumbs.
        """
        if self._context_id is None:
            self._context_id = context_id
            self._fragments = self._bytes = 0
            self.begun()
        elif context_id != self._context_id:
            raise Malformed("A message began before the one before it was whole.")
        self._bytes += len(piece)
        if ends:
            self._fragments += 1
            if self._bytes < self._fragments * _FEWEST_BYTES and self._fragments > _MANY_FRAGMENTS:
                raise Malformed(
                    f"A message comes in more than {_MANY_FRAGMENTS} fragments of less than "
                    f"{_FEWEST_BYTES} bytes."
                )
        last = ends and bool(control & _LAST)
        if control & _COMMAND:
            self._command(piece, last=last)
        elif self._incoming is not None:
            self._incoming.write(piece)
            if last:
                self._end()
                self._end_object()
        else:
            self._other(control, piece, ends=ends)

    def _command(self, piece: memoryview, *, last: bool) -> None:
        if self._incoming is not None or self._other_bytes is not None:
            raise Malformed("A command came where a data set was to come.")
        self._gathered += piece
        if len(self._gathered) > MAX_COMMAND_BYTES:
            raise Malformed(f"A command set has more than {MAX_COMMAND_BYTES} bytes.")
        if not last:
            return
        assert self._context_id is not None
        context_id, command_set = self._context_id, bytes(self._gathered)
        self._gathered.clear()
        elements = command_elements(command_set)
        if elements is None:
            raise Malformed("A command set can't be read.")
        request = store_request(elements)
        if request is not None:
            self._incoming = self.service.begin_object(request, context_id)
        more = has_data_set(elements)
        if not more:
            self._end()
        if self._incoming is None:
            self._other_bytes = 0 if more else None
            self.service.hand_back(context_id, _COMMAND | _LAST, command_set)
        elif not more:
            self._end_object()

    def _end_object(self) -> None:
        incoming, self._incoming = self._incoming, None
        assert incoming is not None
        self.service.end_object(incoming)

    def _other(self, control: int, piece: memoryview, *, ends: bool) -> None:
        if self._other_bytes is None:
            raise Malformed("A data set came without a command.")
        assert self._context_id is not None
        self._gathered += piece
        self._other_bytes += len(piece)
        if self._other_bytes > MAX_OTHER_DATA_BYTES:
            raise Malformed(f"A message has more than {MAX_OTHER_DATA_BYTES} bytes of data.")
        if not ends:
            return
        context_id, data = self._context_id, bytes(self._gathered)
        self._gathered.clear()
        if control & _LAST:
            self._other_bytes = None
            self._end()
        self.service.hand_back(context_id, control & _LAST, data)

    def _end(self) -> None:
        self._context_id = None
        self.whole()
