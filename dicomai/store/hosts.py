"""Who takes part: hosts and how far each has ingested, workers and what they serve."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dicomai.dicom.dates import Instant, Microseconds
from dicomai.errors import TransientError
from dicomai.store import arrivals, associations, schema
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """The last sign of life of a host: which run of its scheduler gave it, and when."""

    run: str
    beat_at: Instant

    @property
    def machine(self) -> str:
        """The machine that it came from; none by a version that did not say."""
        return self.run.partition("/")[0]


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


def run_on(machine: str, place: str) -> str:
    """Return what a run of a scheduler is called, on a machine and at a spool's place."""
    return f"{machine}/{place}/{secrets.token_hex(8)}"


def sign_of(connection: Connection, name: str) -> Sign | None:
    """Return the last sign of life of a host; None where there is none of the name."""
    table = schema.hosts
    row = connection.execute(select(table).where(table.c.name == name)).one_or_none()
    return None if row is None else Sign(run=row.run, beat_at=row.beat_at)


def signs(connection: Connection) -> dict[str, Sign]:
    """Return the last sign of life of each host."""
    rows = connection.execute(select(schema.hosts))
    return {row.name: Sign(run=row.run, beat_at=Instant(row.beat_at)) for row in rows}


def is_free(connection: Connection, sign: Sign | None, run: str) -> bool:
    """Tell whether nobody but the run before this one can have given a sign.

    None has, or it came from this very spool; SQLite serves no second host.
    """
    if sign is None or not sign.run or connection.dialect.name == "sqlite":
        return True
    return sign.run.split("/")[1:2] == run.split("/")[1:2]


def take_name(
    connection: Connection, name: str, run: str, now: Instant, before: Sign | None = None
) -> bool:
    """Have a host go by this run of its scheduler, and by none before it.

    Decisions wait for it from now on, until it tells how far it has ingested. False where there
    was another sign of life than the one `before`: another run was faster.
    """
    table = schema.hosts
    if before is None:
        taken = _add(connection, name, run, Instant(0), now)
    else:
        same = table.c.run == before.run, table.c.beat_at == before.beat_at
        changed = update(table).where(table.c.name == name, *same).values(run=run)
        taken = connection.execute(changed).rowcount == 1
    if taken:
        # Its name before hosts were called after their spools.
        old = table.c.name == run.partition("/")[0], table.c.run == ""
        connection.execute(delete(table).where(*old))
    return taken


def note_alive(connection: Connection, name: str, now: Instant, run: str) -> None:
    """Note that a host is at work, and no further than it was; nothing where it has no name."""
    table = schema.hosts
    ours = table.c.name == name, table.c.run == run
    connection.execute(update(table).where(*ours).values(beat_at=now))


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
    if not _add(connection, name, run, ingested_to, now):
        raise NameTaken(
            f"Another scheduler goes by the name of host {name}: a copy of its spool is at work, "
            "or a second one on the same data folder. This one takes another name. Stop the one "
            "that is not meant to run, then forget the name that stays silent: dicomai hosts",
            subject=name,
        )


def _add(connection: Connection, name: str, run: str, ingested_to: Instant, now: Instant) -> bool:
    """Add a host unless there is one of the name; two may do so at the same moment."""
    table = schema.hosts
    into = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    row = {"name": name, "run": run, "ingested_to": ingested_to, "beat_at": now}
    added = into(table).values(row).on_conflict_do_nothing().returning(table.c.name)
    return connection.execute(added).first() is not None


def listing(connection: Connection) -> tuple[Host, ...]:
    """Return every host that ever ingested, by name."""
    table = schema.hosts
    return tuple(
        Host(name=row.name, ingested_to=row.ingested_to, beat_at=row.beat_at)
        for row in connection.execute(select(table).order_by(table.c.name))
    )


def beats(connection: Connection) -> dict[str, Instant]:
    """Return when each host and worker was last heard of, of a catalogue of any version."""
    return {
        f"{kind} {row.name}": row.beat_at
        for kind, table in (("Host", schema.hosts), ("Worker", schema.workers))
        for row in connection.execute(select(table.c.name, table.c.beat_at))
    }


def last_beat(connection: Connection) -> Instant | None:
    """Return when a host was last heard of; None where none ever was."""
    latest = select(func.max(schema.hosts.c.beat_at))
    return connection.execute(latest).scalar_one_or_none()


def forget_host(connection: Connection, name: str, now: Instant) -> bool:
    """Forget a host that is no more; decisions wait for it, and for what it received, otherwise."""
    for study in associations.lose(connection, name, now):
        arrivals.look_again(connection, study)
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
