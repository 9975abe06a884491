"""Who takes part: hosts and how far each has ingested, workers and what they serve."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from dicomai.dicom.dates import Instant, Microseconds
from dicomai.errors import TransientError
from dicomai.store import schema
from dicomai.store.states import JobKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine with a spool; `ingested_to`: all that it took before is in the catalogue."""

    name: str
    ingested_to: Instant
    beat_at: Instant

    @property
    def told_of(self) -> Instant | None:
        """How far it has ingested; None before its first pass."""
        return self.ingested_to or None


class NameTaken(TransientError):
    """Another scheduler has taken a host's name since this one did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker process and what it serves."""

    name: str
    host: str
    device: str
    kinds: tuple[JobKind, ...]
    models: tuple[str, ...]
    started_at: Instant
    beat_at: Instant


def run_on(machine: str) -> str:
    """Return what a run of a scheduler on a machine is called."""
    return f"{machine}/{secrets.token_hex(8)}"


def heard_elsewhere(connection: Connection, name: str, machine: str) -> Instant | None:
    """Return when a run on another machine last told of a host; None where none has the name."""
    table = schema.hosts
    row = connection.execute(select(table).where(table.c.name == name)).one_or_none()
    if row is None or row.run.rpartition("/")[0] in ("", machine):
        return None
    return Instant(row.beat_at)


def take_name(connection: Connection, name: str, run: str, now: Instant) -> None:
    """Have a host go by this run of its scheduler, and by none before it.

    Decisions wait for it from now on, until it tells how far it has ingested.
    """
    table = schema.hosts
    taken = connection.execute(update(table).where(table.c.name == name).values(run=run))
    if not taken.rowcount:
        first = Instant(0)
        connection.execute(insert(table).values(name=name, run=run, ingested_to=first, beat_at=now))
    # Its name before hosts were called after their spools.
    before = table.c.name == run.rpartition("/")[0], table.c.run == ""
    connection.execute(delete(table).where(*before))


def note_ingested(
    connection: Connection, name: str, ingested_to: Instant, now: Instant, run: str = ""
) -> None:
    """Note how far a host has ingested its spool.

    Raises
    ------
    NameTaken
        Another run has the name: a copy of the spool is at work, or a second scheduler on it.
        What either told would be taken for the other's.
    """
    table = schema.hosts
    values = {"ingested_to": ingested_to, "beat_at": now}
    ours = table.c.name == name, table.c.run == run
    if connection.execute(update(table).where(*ours).values(**values)).rowcount:
        return
    if connection.execute(select(table.c.name).where(table.c.name == name)).first() is not None:
        raise NameTaken(
            f"Another scheduler goes by the name of host {name}: a copy of its spool is at work, "
            "or a second one on the same data folder.",
            subject=name,
        )
    connection.execute(insert(table).values(name=name, run=run, **values))


def listing(connection: Connection) -> tuple[Host, ...]:
    """Return every host that ever ingested, by name."""
    table = schema.hosts
    return tuple(
        Host(name=row.name, ingested_to=row.ingested_to, beat_at=row.beat_at)
        for row in connection.execute(select(table).order_by(table.c.name))
    )


def last_beat(connection: Connection) -> Instant | None:
    """Return when a host was last heard of; None where none ever was."""
    latest = select(func.max(schema.hosts.c.beat_at))
    return connection.execute(latest).scalar_one_or_none()


def forget_host(connection: Connection, name: str) -> bool:
    """Forget a host that is no more; decisions wait for it otherwise."""
    table = schema.hosts
    return connection.execute(delete(table).where(table.c.name == name)).rowcount == 1


def note_worker(connection: Connection, worker: Worker) -> None:
    """Note that a worker lives, and what it serves."""
    table = schema.workers
    values = {field: getattr(worker, field) for field in Worker.__dataclass_fields__}
    values |= {"kinds": list(worker.kinds), "models": list(worker.models)}
    touched = connection.execute(update(table).where(table.c.name == worker.name).values(**values))
    if not touched.rowcount:
        connection.execute(insert(table).values(**values))


def forget_worker(connection: Connection, name: str) -> None:
    """Note that a worker has ended."""
    connection.execute(delete(schema.workers).where(schema.workers.c.name == name))


def workers(connection: Connection, now: Instant, within: Microseconds) -> tuple[Worker, ...]:
    """Return the workers that beat within a span of time."""
    table = schema.workers
    found = connection.execute(
        select(table).where(table.c.beat_at >= now - within).order_by(table.c.name)
    )
    return tuple(
        Worker(
            name=row.name,
            host=row.host,
            device=row.device,
            kinds=tuple(row.kinds),
            models=tuple(row.models),
            started_at=row.started_at,
            beat_at=row.beat_at,
        )
        for row in found
    )


def unserved(models: Collection[str], live: Collection[Worker]) -> tuple[str, ...]:
    """Return the models that no live worker serves: their jobs would wait for ever."""
    served = {model for worker in live if "analyse" in worker.kinds for model in worker.models}
    return tuple(sorted(set(models) - served))
