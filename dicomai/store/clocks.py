"""Clocks: the studies that one which was ahead has put off, and how they are taken up again."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, literal_column, select, update

from dicomai.dicom.dates import Instant, Microseconds, as_datetime, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import events, schema
from dicomai.store.studies import Study

AHEAD: Final = seconds(60)
"""By so much the clocks of machines may differ before a study is taken to be of the future."""


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
