"""Pauses of nodes, routes and models.

Nothing that is paused is claimed. "paused" takes running jobs from their workers too, and they go
on at resume; "draining" lets them finish, and is drained when none runs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Delete, delete, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite

from dicomai.dicom.dates import Instant
from dicomai.store import schema
from dicomai.store.job import Job, JobId
from dicomai.store.jobs import release_held, tell
from dicomai.store.moves import move
from dicomai.store.states import PauseMode, PauseSubject

jobs = schema.jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A pause; `running` counts the jobs that it concerns and that still run."""

    subject: PauseSubject
    name: str
    mode: PauseMode
    since: Instant
    running: int

    @property
    def drained(self) -> bool:
        """It was to be drained, and nothing runs any more."""
        return self.mode == "draining" and self.running == 0

    @property
    def state(self) -> str:
        """How it rests, in a word."""
        return "drained" if self.drained else self.mode

    @property
    def resume(self) -> str:
        """The command that ends it."""
        return f"dicomai resume {self.subject} {self.name}"


def pause(
    connection: Connection, subject: PauseSubject, name: str, mode: PauseMode, now: Instant
) -> None:
    """Pause or drain a node, route or model; the later word counts."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    said = {"mode": mode, "since": now}
    connection.execute(
        insert(schema.pauses)
        .values(subject=subject, name=name, **said)
        .on_conflict_do_update(index_elements=["subject", "name"], set_=said)
    )
    if mode == "draining":
        return
    moved = move(
        connection,
        ("running",),
        "held",
        _concerned(subject, name),
        held_by="pause",
        attempts=jobs.c.attempts - 1,
    )
    for job in moved:
        tell(connection, job, "job held", f"{job.title} stopped: {subject} {name} is paused.", now)


def resume(connection: Connection, subject: PauseSubject, name: str, now: Instant) -> bool:
    """End a pause; False: there was none. Jobs that another pause concerns stay unclaimed."""
    ended = connection.execute(_pause(subject, name))
    release_held(connection, "pause", now)
    return ended.rowcount == 1


def listing(connection: Connection) -> tuple[Pause, ...]:
    """Return all pauses."""
    table = schema.pauses
    return tuple(
        Pause(
            subject=row.subject,
            name=row.name,
            mode=row.mode,
            since=row.since,
            running=connection.execute(
                select(func.count())
                .select_from(jobs)
                .where(jobs.c.state == "running", _concerned(row.subject, row.name))
            ).scalar_one(),
        )
        for row in connection.execute(select(table).order_by(table.c.subject, table.c.name)).all()
    )


def stopping(connection: Connection, found: Collection[Job]) -> dict[JobId, Pause]:
    """Return the pause that keeps each of some jobs from being claimed, of those that one does."""
    ids = [
        each.id
        for each in found
        if each.state == "queued" or (each.state == "held" and each.held_by == "pause")
    ]
    if not ids:
        return {}
    stopped: dict[JobId, Pause] = {}
    for pause in listing(connection):
        concerned = select(jobs.c.id).where(
            jobs.c.id.in_(ids), _concerned(pause.subject, pause.name)
        )
        for job in connection.execute(concerned).scalars():
            stopped.setdefault(job, pause)
    return stopped


def _pause(subject: PauseSubject, name: str) -> Delete:
    table = schema.pauses
    return delete(table).where(table.c.subject == subject, table.c.name == name)


def _concerned(subject: PauseSubject, name: str) -> ColumnElement[bool]:
    match subject:
        case "model":
            return jobs.c.model == name
        case "node":
            return jobs.c.node == name
        case "route":
            routes, pauses = schema.job_routes, schema.pauses
            paused = exists().where(pauses.c.subject == "route", pauses.c.name == routes.c.route)
            of_job = routes.c.job_id == jobs.c.id
            return exists().where(of_job, routes.c.route == name) & ~exists().where(of_job, ~paused)
