"""The clock that deletion goes by: never ahead of what is known of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.dates import now as present
from dicomai.store import clocks, hosts
from dicomai.store.engine import reading, writing

_OFF: Final = seconds(86400)
"""A service that is off each night deletes as soon as it starts; one that was off longer waits."""

log = structlog.get_logger()


def _since_boot_s() -> float:
    """Return a monotonic time that goes on while the machine sleeps, as others do not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A time, and the monotonic time when it was: it goes on from there."""

    then: Instant
    monotonic_s: float

    def at(self, monotonic_s: float) -> Instant:
        """Return what it is at a monotonic time."""
        return Instant(self.then + seconds(monotonic_s - self.monotonic_s))


class SteadyClock:
    """Says what time it is, and does not leap ahead as a machine's clock may.

    One that leaps, while the service runs or since any host was last heard of, is believed when it
    has gone on evenly for a day, across restarts too; until then the time before goes on. Where the
    database is another machine's, the earlier of both counts. A clock that is behind is gone by:
    that deletes nothing. When it is right again it has not leapt, but it has when it goes to
    another time. Behind for a day, it was the time before that was wrong.

    Parameters
    ----------
    engine
        The catalogue; read at once, before this host tells of itself.
    host
        Says what this one is called, which may change while the service runs.
    wall, monotonic
        The machine's clocks.
    """

    def __init__(
        self,
        engine: Engine,
        host: Callable[[], str],
        wall: Callable[[], Instant] = present,
        monotonic: Callable[[], float] = _since_boot_s,
    ) -> None:
        self._engine = engine
        self._host = host
        self._wall = wall
        self._monotonic = monotonic
        now, monotonic_s = wall(), monotonic()
        # What clocks said that were behind, and are right again.
        self._wrong: list[tuple[Instant, Instant]] = []
        self._noted_of = host()
        with writing(engine) as connection:
            leap = clocks.leaps(connection, now).get(self._noted_of)
            heard = hosts.last_beat(connection)
            if heard is not None:
                # By a clock that was behind; what was heard before that says more.
                told = heard
                for each in clocks.behind(connection, told).values():
                    self._note_wrong(each.at, told, each.before)
                    heard = max(heard, each.before)
            # Unless a clock that had leapt said so: it would be believed when it does so again.
            is_behind = heard is not None and now < heard and not clocks.leaps(connection, heard)
            if is_behind and heard is not None and heard - now > clocks.LEAP:
                clocks.note_behind(connection, self._noted_of, heard, now)
        believed = now
        if leap is not None:
            believed = Instant(leap.before + now - leap.at)
        elif heard is not None and (now - heard > _OFF or is_behind):
            believed = heard
        self._believed = Pace(then=believed, monotonic_s=monotonic_s)
        # What the clock has said since it leapt, and when that was.
        self._leapt = None if leap is None else Pace(then=now, monotonic_s=monotonic_s)
        self._leapt_at = now if leap is None else leap.at
        # What the clock has said since it is behind what is believed, and when that began. Where it
        # is so from the start, nobody knows for how long the machine was off.
        self._behind: Pace | None = None
        self._behind_from_s, self._behind_from = monotonic_s, now
        self._near = _OFF if is_behind else clocks.LEAP
        self._apart = False

    def now(self) -> Instant:
        """Return the time.

        Raises
        ------
        DatabaseError
            The database is away.
        """
        with reading(self._engine) as connection:
            server = clocks.of_server(connection)
            now, monotonic_s = self._wall(), self._monotonic()
        self._look_behind(now, monotonic_s)
        believed = self._believed.at(monotonic_s)
        if self._behind is not None:
            # As in 1970, with an empty battery: what is believed goes on until NTP sets it right.
            believed, self._leapt = now, None
        elif now - believed <= self._near or self._has_settled(now, monotonic_s):
            self._believed, self._leapt = Pace(then=now, monotonic_s=monotonic_s), None
            self._near, believed = clocks.LEAP, now
        if self._behind is None and self._wrong:
            self._set_forward(believed)
        if server is None:
            return believed
        apart = now - server > clocks.LEAP
        if apart and not self._apart:
            log.warning("clock is ahead of the database's", hours=round((now - server) / 3.6e9, 1))
        self._apart = apart
        return min(believed, server)

    def _set_forward(self, now: Instant) -> None:
        """Have what came by a clock that was behind kept from now on, or it would go at once."""
        with writing(self._engine) as connection:
            for begin, end in self._wrong:
                clocks.set_forward(connection, begin, end, now)

    def _note_wrong(self, begin: Instant, end: Instant, right: Instant) -> None:
        """Note what a clock said that was behind; what it stamps by a day or two goes no sooner."""
        # Receivers start before this, and are stopped after it.
        since, until = Instant(begin - clocks.SETTLED), Instant(end + clocks.SETTLED)
        if until < right - clocks.SETTLED:
            self._wrong.append((since, until))

    def _look_behind(self, now: Instant, monotonic_s: float) -> None:
        """Note whether the clock is behind what is believed, by more than clocks are set."""
        if self._believed.at(monotonic_s) - now <= clocks.LEAP:
            if self._behind is not None:
                wrong = self._behind.at(monotonic_s)
                self._note_wrong(self._behind_from, wrong, self._believed.at(monotonic_s))
            self._behind = None  # it is right, or right again, or ahead
            return
        said = None if self._behind is None else self._behind.at(monotonic_s)
        if said is None or said - now > clocks.LEAP:
            self._behind_from_s, self._behind_from = monotonic_s, now
        elif now - said > clocks.LEAP or (
            seconds(monotonic_s - self._behind_from_s) >= clocks.SETTLED
        ):
            # It goes from one wrong time to another, or was right all along.
            assert self._behind is not None
            self._believed, self._behind = self._behind, None
            return
        self._behind = Pace(then=now, monotonic_s=monotonic_s)

    def _has_settled(self, now: Instant, monotonic_s: float) -> bool:
        """Tell whether the clock has gone on evenly since it leapt; note a new leap."""
        evenly = self._leapt is not None and abs(now - self._leapt.at(monotonic_s)) <= clocks.LEAP
        if evenly and now - self._leapt_at >= clocks.SETTLED:
            return True
        host, at = self._host(), self._leapt_at if evenly else now
        if evenly and host == self._noted_of:
            return False
        # After a restart it is looked for under the name that the host has then.
        before = Instant(self._believed.at(monotonic_s) - (now - at))
        with writing(self._engine) as connection:
            leap = clocks.note_leap(connection, host, before, at)
        self._noted_of = host
        if not evenly:
            log.warning("clock leapt", sentence=leap.sentence)
            self._leapt, self._leapt_at = Pace(then=now, monotonic_s=monotonic_s), now
        return False
