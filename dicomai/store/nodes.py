"""What was learned of each peer: its breaker, and when it was last in contact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, and_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dicomai.dicom.dates import Instant, Microseconds, seconds
from dicomai.store import events, schema
from dicomai.store.claims import deliverable
from dicomai.store.job import JobId
from dicomai.store.moves import move
from dicomai.store.states import BREAKER, Breaker, Outcome

jobs = schema.jobs

TOO_OFTEN: Final = 3
"""Failures in a row that open a breaker."""
_FIRST_PAUSE_S: Final = 60.0
_LONGEST_PAUSE_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A peer as the catalogue knows it; `retry_at`: when an open breaker lets one job try."""

    name: str
    breaker: Breaker
    failures: int
    openings: int
    retry_at: Instant | None
    last_contact_at: Instant | None
    last_error: str
    last_error_at: Instant | None


def get(connection: Connection, name: str) -> NodeState:
    """Return what is known of a node; one that nobody has met yet is closed, as all begin."""
    table = schema.nodes
    row = connection.execute(select(table).where(table.c.name == name)).one_or_none()
    if row is None:
        return NodeState(
            name=name,
            breaker="closed",
            failures=0,
            openings=0,
            retry_at=None,
            last_contact_at=None,
            last_error="",
            last_error_at=None,
        )
    return NodeState(**{field: row._mapping[field] for field in NodeState.__dataclass_fields__})


def listing(connection: Connection) -> tuple[NodeState, ...]:
    """Return all nodes that were met."""
    names = connection.execute(select(schema.nodes.c.name).order_by(schema.nodes.c.name)).scalars()
    return tuple(get(connection, name) for name in names.all())


def delivered(connection: Connection, name: str, now: Instant) -> None:
    """Note that a node answered: if its breaker closes by that, all that waits for it goes on.

    What it said of an object counts for that object's job alone.
    """
    node = _lock(connection, name)
    _set(
        connection,
        name,
        breaker=BREAKER[node.breaker, "delivered"],
        failures=0,
        openings=0,
        retry_at=None,
        last_contact_at=now,
    )
    if node.breaker == "closed":
        return
    move(
        connection,
        ("waiting",),
        "queued",
        jobs.c.kind == "deliver",
        jobs.c.node == name,
        jobs.c.waiting_for.in_(("breaker", "back-off")),
    )
    events.record(connection, None, "breaker closed", f"{name} answers again.", {"node": name}, now)


def failed(connection: Connection, name: str, sentence: str, now: Instant) -> NodeState:
    """Note that a node could not be reached; too often in a row opens its breaker.

    Its queued deliveries then wait, moved in one statement.
    """
    node = _lock(connection, name)
    failures = node.failures + 1
    outcome: Outcome = "failed"
    if node.breaker == "closed" and failures >= TOO_OFTEN:
        outcome = "failed too often"
    after = BREAKER[node.breaker, outcome]
    opens = after == "open" and node.breaker != "open"
    openings = node.openings + opens
    retry_at = Instant(now + pause(openings)) if opens else node.retry_at
    _set(
        connection,
        name,
        breaker=after,
        failures=failures,
        openings=openings,
        retry_at=retry_at,
        last_error=sentence,
        last_error_at=now,
    )
    if opens:
        moved = move(
            connection,
            ("queued",),
            "waiting",
            jobs.c.kind == "deliver",
            jobs.c.node == name,
            waiting_for="breaker",
        )
        data = {"node": name, "retry_at": retry_at, "jobs": len(moved)}
        events.record(connection, None, "breaker opened", sentence, data, now)
    return get(connection, name)


def probe(connection: Connection, now: Instant) -> tuple[JobId, ...]:
    """Let one delivery try each node whose pause is over; return the queued jobs."""
    table = schema.nodes
    over = connection.execute(
        select(table.c.name)
        .where(
            or_(
                table.c.breaker == "half-open",
                (table.c.breaker == "open") & (table.c.retry_at <= now),
            )
        )
        .order_by(table.c.name)
    ).scalars()
    queued = []
    for name in over.all():
        node = _lock(connection, name)
        if node.breaker == "open":
            half_open = BREAKER[node.breaker, "pause over"]
            _set(connection, name, breaker=half_open, retry_at=None)
        job = _first_to_try(connection, name)
        if job is not None:
            queued += [
                each.id for each in move(connection, ("waiting",), "queued", jobs.c.id == job)
            ]
    return tuple(queued)


def pause(openings: int) -> Microseconds:
    """Return how long a breaker stays open the n-th time in a row."""
    return seconds(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** max(openings - 1, 0)))


def _first_to_try(connection: Connection, name: str) -> JobId | None:
    """Return the job that tries a half-open node; None while one does, or there is none.

    One that nobody would claim tries nothing: the node would stay shut for as long as it stands.
    Of the others comes first what was claimed least, so that none with which the node breaks off
    each time keeps it shut for all.
    """
    deliveries = jobs.c.kind == "deliver", jobs.c.node == name
    claimable = and_(jobs.c.state == "queued", *deliverable())
    trying = connection.execute(
        select(jobs.c.id)
        # Not all that the node ever got.
        .where(*deliveries, jobs.c.state.in_(("queued", "running")))
        .where((jobs.c.state == "running") | claimable)
        .limit(1)
    ).first()
    if trying is not None:
        return None
    first = connection.execute(
        select(jobs.c.id)
        .where(
            *deliveries,
            jobs.c.state == "waiting",
            jobs.c.waiting_for != "commitment",
            *deliverable(),
        )
        .order_by(jobs.c.claim, jobs.c.urgency, jobs.c.rank, jobs.c.id)
        .limit(1)
    ).scalar_one_or_none()
    return None if first is None else JobId(first)


def _lock(connection: Connection, name: str) -> NodeState:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(
        insert(schema.nodes)
        .values(name=name, breaker="closed", failures=0, openings=0, last_error="")
        .on_conflict_do_nothing()
    )
    connection.execute(
        select(schema.nodes.c.name).where(schema.nodes.c.name == name).with_for_update()
    )
    return get(connection, name)


def _set(connection: Connection, name: str, **values: object) -> None:
    connection.execute(update(schema.nodes).where(schema.nodes.c.name == name).values(**values))
