"""What a role does again and again, in threads that are watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import structlog

from dicomai.errors import DicomaiError
from dicomai.roles.tree import Life
from dicomai.service.trouble import Trouble

IDLE_S: Final = 0.3
AWAY_S: Final = 1.0
STUCK_S: Final = 300.0
"""A loop that did not come round for so long is stuck; encoding a large study takes a minute."""
_WATCH_S: Final = 0.5

Build: TypeAlias = Callable[[Callable[[], None]], Callable[[], bool | None]]

log = structlog.get_logger()


class Loop(threading.Thread):
    """Does one thing again and again until told to stop; waits while something is wrong.

    Parameters
    ----------
    name
        For the log.
    build
        Given what to call while it gets on, returns what does the next piece of work; that says
        False when there was none, None when it did not look, for another loop does.
    stop
        Ends it.
    idle_s
        How long it waits when there was nothing to do.
    trouble
        Of the loops that share its work; None: it has its own.
    """

    def __init__(
        self,
        name: str,
        build: Build,
        stop: threading.Event,
        *,
        idle_s: float = IDLE_S,
        trouble: Trouble | None = None,
    ) -> None:
        # A daemon: one that is stuck must not keep its process from ending.
        super().__init__(name=name, daemon=True)
        self._once = build(self.pulse)
        self._stop_asked = stop
        self._idle_s = idle_s
        self._trouble = trouble or Trouble()
        self._came_round = time.monotonic()

    @property
    def lives(self) -> bool:
        """It runs and is not stuck."""
        return self.is_alive() and time.monotonic() - self._came_round < STUCK_S

    def pulse(self) -> None:
        """Note that it gets on."""
        self._came_round = time.monotonic()

    def run(self) -> None:
        """Loop; a defect ends it, and with it its process, which is started again."""
        structlog.contextvars.bind_contextvars(loop=self.name)
        while not self._stop_asked.is_set():
            self.pulse()
            try:
                worked = self._once()
            except (DicomaiError, OSError) as error:
                if self._trouble.begins(why := str(error)):
                    log.warning("loop waits", why=why)
                self._stop_asked.wait(AWAY_S)
                continue
            except Exception:
                log.exception("defect")
                return
            if worked is not None and self._trouble.ends():
                log.info("loop goes on")
            if not worked:
                self._stop_asked.wait(self._idle_s)


def keep(loops: Sequence[Loop], life: Life) -> None:
    """Run loops until told to stop, or until one has died or is stuck; then all shall stop."""
    life.ready()  # from now on it is let end what it has in hand
    for loop in loops:
        loop.start()
    while not life.stop.wait(_WATCH_S):
        life.pulse()
        dead = [loop.name for loop in loops if not loop.lives]
        if dead:
            log.error("loop ended; the role is started again", loops=dead)
            life.stop.set()
