"""Who may claim next for a device: one job at a time is got ready for it."""

from __future__ import annotations

import threading
import time
from typing import Final

VOLUMES: Final = 3
"""At a time for a device: one is loaded, one has the device, one is encoded."""
LANES: Final = 8
"""Jobs at a time; those of images are small, and a network is shown several together."""
_WAIT_S: Final = 0.3

HANDS: Final = threading.Lock()
"""Held by the one lane of this process that loads, encodes or checks: what reads and writes DICOM
sets the warnings of the whole process, and Python does one thing at a time anyway."""


class Intake:
    """Lets one lane at a time claim and load; the next may, once the device has taken that job.

    So no more than one volume waits for a device, and any other host may claim the rest. Images
    are let wait together.

    Attributes
    ----------
    volumes
        Held by each job whose input is a volume, from its loading to its end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._idle_until = 0.0
        self.volumes = threading.Semaphore(VOLUMES)

    def enter(self) -> bool:
        """Come in; False when another lane is in, or has just found that nothing is due."""
        if time.monotonic() < self._idle_until or not self._lock.acquire(timeout=_WAIT_S):
            return False
        self._owner = threading.get_ident()
        return True

    def leave(self, *, nothing_due: bool = False) -> None:
        """Let the next one in; only who came in can, once."""
        if self._owner != threading.get_ident():
            return
        if nothing_due:
            self._idle_until = time.monotonic() + _WAIT_S
        self._owner = None
        self._lock.release()
