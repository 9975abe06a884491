"""Whether the service stands still on all hosts, and what it has yet to take in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant, as_datetime
from dicomai.dicom.header import identifiers
from dicomai.dicom.part10 import Scratch, opened
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DicomaiError, DiskFull, InputError
from dicomai.service.overview import ALIVE
from dicomai.spool import reader
from dicomai.store import clocks, hosts
from dicomai.store.engine import reading
from dicomai.store.hosts import Sign

_LISTENED_S: Final = 15
"""Workers tell of themselves every ten seconds, hosts every two."""


def require_stopped(connection: Connection, now: Instant) -> Mapping[str, Sign]:
    """Return the last signs of life of all hosts, none of which lives.

    Raises
    ------
    DicomaiError
        One does, or the clock is wrong.
    """
    said = f"This machine's clock says {as_datetime(now):%Y-%m-%d %H:%M} UTC"
    if now < clocks.FIRST:
        raise DicomaiError(f"{said}, and what is rebuilt gets its time by it. Have it set by NTP.")
    signs, at = hosts.signs(connection), _earlier(connection, now)
    for name, sign in sorted(signs.items()):
        if sign.beat_at > now + clocks.AHEAD:
            heard = f"{as_datetime(sign.beat_at):%Y-%m-%d %H:%M} UTC"
            raise DicomaiError(
                f"{said}, and host {name} was heard of on {heard}. Have the clocks set by NTP; if "
                f"that host is gone for good: dicomai forget {name}",
                subject=name,
            )
        if at - sign.beat_at <= ALIVE:
            ago = max(0, at - sign.beat_at) / 1e6
            raise DicomaiError(
                f"Host {name} was heard of {ago:.0f} s ago, so the service runs there, and what it "
                "takes in meanwhile would count as decided on. Stop the service on all hosts "
                f"first: systemctl stop dicomai.target. {ALIVE / 1e6:.0f} s later, do this again.",
                subject=name,
            )
    return signs


def require_silence(engine: Engine, now: Instant, sleep: Callable[[float], None]) -> None:
    """Listen for whoever still works with a catalogue of an older version.

    The service of that version would go on with tables that it does not know, and without what a
    newer one notes in them. Not by the clock alone: it may be a moment since all were stopped.

    Raises
    ------
    DicomaiError
        Somebody told of himself meanwhile.
    """
    with reading(engine) as connection:
        before = hosts.beats(connection)
        at = _earlier(connection, now)
    if all(beat_at < at - ALIVE for beat_at in before.values()):
        return
    for _ in range(_LISTENED_S):
        sleep(1)
        with reading(engine) as connection:
            heard = hosts.beats(connection)
        for name in sorted(heard):
            if heard[name] != before.get(name):
                raise DicomaiError(
                    f"{name} is at work with this database, and would go on with an older version "
                    "of dicomai. Stop the service on all hosts: systemctl stop dicomai.target "
                    "dicomai-query. Then: dicomai db upgrade",
                    subject=name,
                )


def _earlier(connection: Connection, now: Instant) -> Instant:
    """Return the time by this machine's clock or by the database's, which hosts may go by.

    One that is ahead must not make long ago of a moment ago.
    """
    server = clocks.of_server(connection)
    return now if server is None else min(now, server)


def in_spool(spool: Path, scratch: Scratch) -> frozenset[StudyInstanceUID]:
    """Return the studies that the next ingest has something of; what it can't read has no place."""
    found = set()
    for entry in reader.entries(spool) if spool.is_dir() else ():
        if entry.kind == "object":
            with suppress(InputError, DiskFull, OSError), opened(entry.path, scratch) as part10:
                found.add(identifiers(part10).study_instance_uid)
    return frozenset(found)
