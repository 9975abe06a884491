"""Pulls: the day until which each has asked its node, so that an outage skips none."""

from __future__ import annotations

from datetime import date

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from dicomai.store import schema


def answered(connection: Connection, name: str) -> date | None:
    """Return the day on which a pull was last answered, and all that was found was queued."""
    table = schema.pulls
    day = connection.execute(select(table.c.answered).where(table.c.name == name)).scalar()
    return None if day is None else date.fromisoformat(day)


def note_answered(connection: Connection, name: str, day: date) -> None:
    """Note the day on which a pull was answered, and all that was found was queued."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    told = {"answered": day.isoformat()}
    connection.execute(
        insert(schema.pulls)
        .values(name=name, **told)
        .on_conflict_do_update(index_elements=["name"], set_=told)
    )
