"""The story of each study: events are added, never changed, and live as long as their study."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, Select, insert, select

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import schema
from dicomai.store.job import JobId

JsonValue: TypeAlias = (
    "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes
    ----------
    kind
        A constant string, as "job queued", for machines.
    sentence
        The same for a person, with object, reason and next step.
    """

    at: Instant
    study_instance_uid: StudyInstanceUID | None
    job_id: JobId | None
    kind: str
    sentence: str
    data: Mapping[str, JsonValue]


def record(
    connection: Connection,
    study: StudyInstanceUID | None,
    kind: str,
    sentence: str,
    data: Mapping[str, JsonValue],
    now: Instant,
    job: JobId | None = None,
) -> None:
    """Add an event; without a study, of the service as a whole."""
    connection.execute(
        insert(schema.events).values(
            at=now,
            study_instance_uid=study,
            job_id=job,
            kind=kind,
            sentence=sentence,
            data=dict(data),
        )
    )


def story(connection: Connection, study: StudyInstanceUID) -> tuple[Event, ...]:
    """Return what happened to a study, in order."""
    events = schema.events
    return _events(
        connection, select(events).where(events.c.study_instance_uid == study).order_by(events.c.id)
    )


def of_service(connection: Connection, kinds: Collection[str], limit: int) -> tuple[Event, ...]:
    """Return the latest events of some kinds that are of no study, the newest first."""
    events = schema.events
    return _events(
        connection,
        select(events)
        .where(events.c.study_instance_uid.is_(None), events.c.kind.in_(kinds))
        .order_by(events.c.id.desc())
        .limit(limit),
    )


def of_job(connection: Connection, job: JobId) -> tuple[Event, ...]:
    """Return what happened to a job, in order."""
    events = schema.events
    return _events(connection, select(events).where(events.c.job_id == job).order_by(events.c.id))


def _events(connection: Connection, query: Select[Any]) -> tuple[Event, ...]:
    return tuple(
        Event(
            at=Instant(row.at),
            study_instance_uid=row.study_instance_uid,
            job_id=row.job_id,
            kind=row.kind,
            sentence=row.sentence,
            data=row.data,
        )
        for row in connection.execute(query)
    )
