"""Who may claim next for a device: one job at a time is got ready for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from dicomai.inference.memory import host_free_bytes

VOLUMES: Final = 3
"""At a time for a device: one is loaded, one has the device, one is encoded."""
TAKES: Final = 3
"""Times its size as float32 that a volume takes on the host at most, in supervisor and runner
(benchmarks/inference.md). What a model takes beyond that its runner asks for by itself."""
LANES: Final = 8
"""Jobs at a time; those of images are small, and a network is shown several together."""
_WAIT_S: Final = 0.3

HANDS: Final = threading.Lock()
"""Held by the one lane of this process that loads, encodes or checks: what reads and writes DICOM
sets the warnings of the whole process, and Python does one thing at a time anyway."""


class Intake:
    """Lets one lane at a time claim and load; the next may, once the device has taken that job.

    So no more than one volume waits for a device, and any other host may claim the rest. Images
    are let wait together. A job that lost its process once is done alone: should it end another
    one, no other job is blamed for that.

    Parameters
    ----------
    free_bytes
        Says what memory the host has left.
    """

    def __init__(self, free_bytes: Callable[[], int] = host_free_bytes) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._idle_until = 0.0
        self._free_bytes = free_bytes
        self._room = threading.Condition()
        self._jobs = self._volumes = 0

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

    def admit(self, volume_bytes: int, wait_s: float, *, alone: bool) -> bool:
        """Let a job load its input, to its end; False when there was no room for it in time.

        There is room beside others where memory suffices for one more; without another volume
        there always is, and its runner says what is too large.

        Parameters
        ----------
        volume_bytes
            Of the volume, as float32; 0 for an image.
        wait_s
            How long to wait.
        alone
            Only where no other job is in; its lane lets none in until it is over.
        """
        with self._room:
            if not self._has_room(volume_bytes, alone):
                self._room.wait(wait_s)
            if not self._has_room(volume_bytes, alone):
                return False
            self._jobs += 1
            self._volumes += volume_bytes > 0
            return True

    def dismiss(self, volume_bytes: int) -> None:
        """Note that a job that was admitted is over."""
        with self._room:
            self._jobs -= 1
            self._volumes -= volume_bytes > 0
            self._room.notify_all()

    def _has_room(self, volume_bytes: int, alone: bool) -> bool:
        if alone:
            return not self._jobs
        if not volume_bytes or not self._volumes:
            return True
        return self._volumes < VOLUMES and self._free_bytes() >= TAKES * volume_bytes
