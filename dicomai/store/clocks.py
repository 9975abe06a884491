"""Clocks: what one which was ahead has put off or would delete, and who knows better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, literal_column, select, update

from dicomai.dicom.dates import Instant, Microseconds, as_datetime, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import events, schema
from dicomai.store.studies import Study

AHEAD: Final = seconds(60)
"""By so much the clocks of machines may differ before a study is taken to be of the future."""
LEAP: Final = seconds(3600)
"""A clock that gets on by so much more than time does has leapt, or is wrong."""
SETTLED: Final = seconds(86400)
"""A clock that leapt is believed when it has gone on evenly for so long."""
FIRST: Final = Instant(1_735_689_600_000_000)
"""2025-01-01, before there was anything of ours to receive: who says earlier has a clock that is
behind, as in 1970, and by what it says nothing is deleted."""
_LEAPT: Final = "clock leapt"
_BEHIND: Final = "clock was behind"
_LEAPS: Final = 100
"""Looked at, of all hosts."""


def received_before(came: Instant, other: Instant, now: Instant) -> bool:
    """Tell whether one thing was received before another, as far as their times say it.

    They don't where the other's alone is of the future, by a clock that was set back since, nor
    where the one's alone is by a clock that was behind, as in 1970.
    """
    ahead = came <= now + AHEAD < other
    behind = came < FIRST <= other
    return came < other and not (ahead or behind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leap:
    """A machine's clock went to another time at once; `before` is what was known of it then."""

    before: Instant
    at: Instant
    sentence: str


def ahead(
    connection: Connection, longest: Microseconds, now: Instant
) -> tuple[StudyInstanceUID, ...]:
    """Return the open studies that a clock which was ahead has put off.

    Parameters
    ----------
    longest
        Nothing but the quiet time puts a decision off for longer.
    """
    table = schema.studies
    is_open = table.c.status == literal_column("'open'")
    stamped = table.c.last_object_at > now + AHEAD
    put_off = (table.c.decide_at > table.c.quiet_until) & (table.c.decide_at > now + longest)
    found = connection.execute(
        select(table.c.study_instance_uid).where(
            is_open, table.c.decide_at > now, stamped | put_off
        )
    )
    return tuple(StudyInstanceUID(uid) for uid in found.scalars())


def set_back(connection: Connection, study: Study, now: Instant) -> None:
    """Have what came of a locked study before a clock was set back count as received now."""
    uid = study.study_instance_uid
    quiet = max(study.quiet_until - study.last_object_at, 0)
    quiet_until = min(study.quiet_until, now + quiet)
    table = schema.studies
    connection.execute(
        update(table)
        .where(table.c.study_instance_uid == uid)
        .values(
            first_object_at=min(study.first_object_at, now),
            last_object_at=min(study.last_object_at, now),
            quiet_until=quiet_until,
            decide_at=quiet_until,
        )
    )
    if any(each.kind == "clock was ahead" for each in events.story(connection, uid)):
        return
    until = as_datetime(study.decide_at).strftime("%Y-%m-%d %H:%M:%S UTC")
    sentence = (
        f"Study {uid} was put off until {until} by a clock that was ahead of this machine's. What "
        "came of it counts as received now. Have the clocks of all machines set by NTP."
    )
    events.record(connection, uid, "clock was ahead", sentence, {"until": study.decide_at}, now)


def set_forward(connection: Connection, begin: Instant, end: Instant, now: Instant) -> None:
    """Have the studies whose last object came by a clock that was behind count as received now.

    Parameters
    ----------
    begin, end
        What that clock said, at first and at last. Of what did come then the time begins anew.
    """
    table = schema.studies
    stamped = table.c.last_object_at.between(begin, end), table.c.status != "deleting"
    found = connection.execute(
        update(table)
        .where(*stamped)
        .values(last_object_at=now)
        .returning(table.c.study_instance_uid)
    ).scalars()
    for uid in found.all():
        sentence = (
            f"Study {uid} came by a clock that was behind, as it seems, and counts as received on "
            f"{_shown(now)}: it is kept as long as any other. Have the clocks of all machines set "
            "by NTP."
        )
        events.record(connection, uid, _BEHIND, sentence, {"begin": begin, "end": end}, now)


def note_leap(connection: Connection, host: str, before: Instant, at: Instant) -> Leap:
    """Note that a host's clock leapt: after a restart it would look as if it never had."""
    sentence = (
        f"The clock of {host} went from {_shown(before)} to {_shown(at)} at once. What is deleted "
        "there goes by the time before until the clock has been so for a day. If the service was "
        "off meanwhile nothing is to be done; else have the clock set by NTP."
    )
    events.record(connection, None, _LEAPT, sentence, {"host": host, "before": before}, at)
    return Leap(before=before, at=at, sentence=sentence)


def note_behind(connection: Connection, host: str, before: Instant, at: Instant) -> None:
    """Note that a host started by a clock that is behind: soon it tells of itself by that one."""
    sentence = (
        f"The clock of {host} says {_shown(at)}, and a host was heard of on {_shown(before)} "
        "already. What is deleted waits until it is right. Have it set by NTP; if it is so after "
        "each start, the battery of the machine's clock is empty."
    )
    events.record(connection, None, _BEHIND, sentence, {"host": host, "before": before}, at)


def leaps(connection: Connection, now: Instant) -> dict[str, Leap]:
    """Return the last leap of each host's clock, where it is not believed yet."""
    return _noted(connection, _LEAPT, now)


def behind(connection: Connection, now: Instant) -> dict[str, Leap]:
    """Return the hosts that started by a clock that was behind, less than a day ago by it."""
    return _noted(connection, _BEHIND, now)


def _noted(connection: Connection, kind: str, now: Instant) -> dict[str, Leap]:
    found: dict[str, Leap] = {}
    for event in events.of_service(connection, (kind,), _LEAPS):
        if event.at <= now < event.at + SETTLED:
            before = Instant(int(str(event.data["before"])))
            leap = Leap(before=before, at=event.at, sentence=event.sentence)
            found.setdefault(str(event.data["host"]), leap)
    return found


def of_server(connection: Connection) -> Instant | None:
    """Return the time by the clock of PostgreSQL's machine; SQLite has none of its own."""
    if connection.dialect.name != "postgresql":
        return None
    epoch = func.extract("epoch", func.clock_timestamp())
    return Instant(int(connection.execute(select(epoch)).scalar_one() * 1_000_000))


def apart(connection: Connection, clock: Callable[[], Instant]) -> Microseconds:
    """Return by how much a machine's clock is ahead of the database's, or behind: then less than 0.

    0 where that is no more than clocks may differ, and for SQLite. What hosts tell each other goes
    by one clock so: one that is hours ahead would take each study for whole as it comes.
    """
    before = clock()
    server = of_server(connection)
    if server is None:
        return Microseconds(0)
    # A slow answer is no difference.
    nearest = min(max(server, before), clock())
    return Microseconds(nearest - server if abs(nearest - server) > AHEAD else 0)


def common(connection: Connection, clock: Callable[[], Instant]) -> Instant:
    """Return the time by the clock that all hosts go by, see `apart`."""
    return Instant(clock() - apart(connection, clock))


def doubts(connection: Connection, now: Instant) -> tuple[str, ...]:
    """Return why the service does not go by a clock as it is, one sentence each."""
    noted = (*leaps(connection, now).values(), *behind(connection, now).values())
    said = tuple(each.sentence for each in noted)
    server = of_server(connection)
    if server is None or abs(now - server) <= AHEAD:
        return said
    differs = (
        f"This machine's clock says {_shown(now)} and that of the database {_shown(server)}. What "
        "comes and is decided goes by that of the database, and what is deleted by the earlier "
        "one. Have both set by NTP."
    )
    return (*said, differs)


def _shown(moment: Instant) -> str:
    return f"{as_datetime(moment):%Y-%m-%d %H:%M} UTC"
