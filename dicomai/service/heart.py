"""The beat of a running job: its lease lives on only while the work gets on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from dicomai.errors import DatabaseError

if TYPE_CHECKING:
    from typing import Self

BEATS_PER_LEASE: Final = 4

Beat = Callable[[str, float], bool]
"""Extends the lease, told stage and fraction; False when the job is ours no more."""


class Heart:
    """Beats while there is progress, and knows when the job is lost or has taken too long.

    Parameters
    ----------
    beat
        Extends the lease in the database.
    lease_s
        How long a job without a beat stays ours.
    deadline_s
        What the job may take in all; then the heart stands still.
    """

    def __init__(self, beat: Beat, *, lease_s: float, deadline_s: float) -> None:
        self._beat = beat
        self._pause_s = lease_s / BEATS_PER_LEASE
        self._over_at = time.monotonic() + deadline_s
        self._stopped = threading.Event()
        self._lost = threading.Event()
        self._progressed = True
        self._ours_since: float | None = None
        self._waiting_since: float | None = None
        self._stage = ""
        self._fraction = 0.0
        self._thread = threading.Thread(target=self._live, name="heart", daemon=True)
        self._taken: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def lost(self) -> bool:
        """The job was cancelled, or its lease is over: nothing may be written any more."""
        return self._lost.is_set()

    @property
    def overdue(self) -> bool:
        """The deadline has passed."""
        return time.monotonic() >= self._over_at

    @property
    def stage(self) -> str:
        """What is being done."""
        return self._stage

    @property
    def stages_s(self) -> dict[str, float]:
        """Seconds that each stage has taken, the present one until now."""
        taken = dict(self._taken)
        if self._ours_since is not None:
            present = time.monotonic() - self._ours_since
            taken[self._stage] = taken.get(self._stage, 0.0) + present
        return taken

    def took(self, stages_s: Mapping[str, float]) -> None:
        """Note what stages in another process have taken."""
        self._taken |= stages_s

    @contextmanager
    def in_stage(self, name: str) -> Iterator[None]:
        """Do a stage in this process, timed; it counts as progress for as long as it takes."""
        self.progress(name, 0.0)
        self._ours_since = time.monotonic()
        try:
            yield
        finally:
            self._taken = self.stages_s
            self._ours_since = None

    def progress(self, stage: str, fraction: float) -> None:
        """Note that the work has got on."""
        self._stage, self._fraction, self._progressed = stage, fraction, True
        self._waiting_since = None

    def waits(self) -> None:
        """Note, again and again, that another job has the device: its time is not this one's."""
        now = time.monotonic()
        if self._waiting_since is not None:
            self._over_at += now - self._waiting_since
        self._waiting_since, self._progressed = now, True

    def _live(self) -> None:
        while not self._stopped.wait(self._pause_s):
            if self.overdue or not (self._progressed or self._ours_since is not None):
                continue
            self._progressed = False
            try:
                if not self._beat(self._stage, self._fraction):
                    self._lost.set()
                    return
            except DatabaseError:
                self._progressed = True  # away: beat as soon as it is back
