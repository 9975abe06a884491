"""What one peer may take of the receiver: bytes, and time for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

# A command set has a dozen elements of a few dozen bytes (PS3.7 annex E); more is no command set.
MAX_COMMAND_BYTES: Final = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one association; what goes beyond is refused or aborted, and harms no other.

    Attributes
    ----------
    object_bytes
        Largest data set that is kept. The rest of a larger one is read and dropped, and the
        answer is 0xA700.
    pdu_bytes
        A PDU that says to be longer is not read; the association is aborted as for an invalid
        parameter (PS3.8 9.3.8). It is more than what is offered, for some peers overshoot.
    request_s
        From the connection to the whole of the association request, TLS included (PS3.8 9.1.5,
        ARTIM).
    silence_s
        Nothing from a peer for so long ends its association.
    bytes_per_s
        Within a message at least so much must come, seen over `silence_s`.
    """

    object_bytes: int = 10_000_000_000
    pdu_bytes: int = 2**20
    request_s: float = 30.0
    silence_s: float = 120.0
    bytes_per_s: float = 1000.0


@dataclass(slots=True)
class Pace:
    """Whether a message comes fast enough; a new one for each message.

    A peer that sends a byte now and then is never silent, and would stay for ever.

    Parameters
    ----------
    limits
        Those of the association.
    began_at
        Seconds on a monotonic clock when the message began.
    """

    limits: Limits
    began_at: float
    _bytes: int = field(default=0, init=False)

    def too_slow(self, received_bytes: int, at: float) -> bool:
        """Note that bytes came; tell whether the last stretch brought too few.

        Parameters
        ----------
        received_bytes
            How many came since the last call.
        at
            Seconds on the clock of `began_at`.
        """
        self._bytes += received_bytes
        stretch_s = at - self.began_at
        if stretch_s < self.limits.silence_s:
            return False
        brought, self._bytes, self.began_at = self._bytes, 0, at
        return brought < stretch_s * self.limits.bytes_per_s
