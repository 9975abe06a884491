"""PDUs as they come over a connection, read in large pieces into one buffer (PS3.8 9.3)."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from dicomai.net.limits import Limits, Pace
from dicomai.spool.part import Bytes

# PS3.8 9.3.1: type, reserved, length of what follows.
PDU_HEAD: Final = struct.Struct(">BxL")
# PS3.8 9.3.5.1 and E.2: length of what follows, presentation context, message control header.
PDV_HEAD: Final = struct.Struct(">LBB")
# How often a thread that waits for its peer looks after its timers.
TICK_S: Final = 1.0
# Twice the largest PDU that is offered, and little enough to stay in the processor's cache.
_BUFFER_BYTES: Final = 2**18
_LINGER_S: Final = 1.0
_LINGER_BYTES: Final = 2**23


class Ended(Exception):
    """The peer closed its connection, or it broke."""


class TooSlow(Exception):
    """The peer sends nothing, or next to nothing."""


class PduStream:
    """What one peer sends, in order.

    Parameters
    ----------
    wire
        Connected; with TLS the handshake is done. It waits no longer than `TICK_S` from now on.
    limits
        Of the association.
    read_ahead
        What was read of it already.
    tick
        Called while nothing comes, about every `TICK_S`; what it raises ends the wait.
    """

    def __init__(
        self,
        wire: socket.socket,
        limits: Limits,
        read_ahead: Bytes,
        *,
        tick: Callable[[], None],
    ) -> None:
        wait_at_most(wire, TICK_S, limits.silence_s)
        self._wire = wire
        self._limits = limits
        self._tick = tick
        self._view = memoryview(bytearray(max(_BUFFER_BYTES, len(read_ahead))))
        self._view[: len(read_ahead)] = read_ahead
        self._start, self._end = 0, len(read_ahead)
        self._pace: Pace | None = None

    @property
    def has_more(self) -> bool:
        """Whether something can be read without waiting."""
        if self._start < self._end:
            return True
        if isinstance(self._wire, ssl.SSLSocket) and self._wire.pending():
            return True
        return bool(select.select([self._wire], [], [], 0)[0])

    def head(self) -> tuple[int, int]:
        """Return type and length of the next PDU, and wait for it as long as there is life.

        Raises
        ------
        Ended, TooSlow
            There is none.
        """
        kind, length = PDU_HEAD.unpack(self._together(PDU_HEAD.size))
        return kind, length

    def pdv_head(self) -> tuple[int, int, int]:
        """Return length, presentation context and control header of the next PDV; raises so."""
        size, context_id, control = PDV_HEAD.unpack(self._together(PDV_HEAD.size))
        return size, context_id, control

    def take(self, size: int) -> bytes:
        """Return so many bytes; memory grows with what came, not with what was said to come."""
        taken = bytearray()
        while len(taken) < size:
            taken += self.some(size - len(taken))
        return bytes(taken)

    def some(self, limit: int) -> memoryview:
        """Return at least one byte and at most so many; they stay until the next call."""
        if self._start == self._end:
            self._fill()
        start = self._start
        self._start = min(self._end, start + limit)
        return self._view[start : self._start]

    def begin_message(self) -> None:
        """Note that a message began: its bytes must keep coming."""
        self._pace = Pace(self._limits, time.monotonic())

    def end_message(self) -> None:
        """Note that the message is whole: what comes next may take its time."""
        self._pace = None

    def linger(self) -> None:
        """Let the peer read what it was sent last: a close with bytes unread would destroy that."""
        with suppress(OSError):
            # Not the method of a TLS socket, which would take its keys away.
            socket.socket.shutdown(self._wire, socket.SHUT_WR)
            by = time.monotonic() + _LINGER_S
            left = _LINGER_BYTES
            while left > 0 and time.monotonic() < by:
                count = self._wire.recv_into(self._view)
                if not count:
                    return
                left -= count

    def _together(self, size: int) -> memoryview:
        """Return exactly so many bytes; they stay only until the next call."""
        while self._end - self._start < size:
            self._fill()
        start = self._start
        self._start += size
        return self._view[start : self._start]

    def _fill(self) -> None:
        """Read what is there, and wait until something is."""
        left = self._end - self._start
        if left == 0 or self._end == len(self._view):
            self._view[:left] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, left
        # Silence is that of the peer: what came before is done with, however long we took over it.
        began = time.monotonic()
        while True:
            try:
                count = self._wire.recv_into(self._view[self._end :])
            except (BlockingIOError, TimeoutError):
                self._tick()
                count = -1
            except OSError as trouble:
                raise Ended from trouble
            if count == 0:
                raise Ended
            at = time.monotonic()
            if count > 0:
                self._end += count
            elif at - began > self._limits.silence_s:
                raise TooSlow(f"Nothing came for {self._limits.silence_s:g} s.")
            if self._pace is not None and self._pace.too_slow(max(count, 0), at):
                raise TooSlow(
                    f"A message came slower than {self._limits.bytes_per_s:g} bytes per second."
                )
            if count > 0:
                return


def wait_at_most(wire: socket.socket, receiving_s: float, sending_s: float) -> None:
    """Bound the waits of a connection.

    The kernel does it for a plain socket: where Python does, each read is preceded by a poll.
    """
    if type(wire) is not socket.socket:
        wire.settimeout(receiving_s)
        return
    wire.settimeout(None)
    for option, seconds in ((socket.SO_RCVTIMEO, receiving_s), (socket.SO_SNDTIMEO, sending_s)):
        whole = int(seconds)
        microseconds = int((seconds - whole) * 1_000_000)
        wire.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, microseconds))
