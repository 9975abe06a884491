"""How a worker gets a job: one statement, and what keeps a queued job from being claimed."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, exists, literal_column, select, update

from dicomai.dicom.dates import Instant
from dicomai.store import schema
from dicomai.store.job import HISTORY, Job, job_of
from dicomai.store.states import JobKind

jobs = schema.jobs


def claim(
    connection: Connection,
    worker: str,
    kinds: Collection[JobKind],
    models: Collection[str],
    now: Instant,
    *,
    besides: Collection[str] = (),
    history: bool = True,
) -> Job | None:
    """Claim the first queued job that this worker serves, or None.

    Parameters
    ----------
    worker
        Its name, for people.
    kinds
        What it does, first things first.
    models
        The packages that its analyses may be of.
    besides
        The nodes from which it fetches nothing now.
    history
        False: it fetches nothing that waits behind what is of today.
    """
    for kind in kinds:
        claiming = _claiming(kind, tuple(models), tuple(sorted(besides)), history)
        found = connection.execute(claiming, {"by": worker, "at": now}).one_or_none()
        if found is not None:
            return job_of(found)
    return None


@lru_cache(maxsize=16)  # putting it together costs more than to run it, and idle workers poll
def _claiming(
    kind: JobKind, models: tuple[str, ...], besides: tuple[str, ...], history: bool
) -> Any:  # an UPDATE … RETURNING
    # Written out, so that the partial index serves it.
    free = [jobs.c.state == literal_column("'queued'"), jobs.c.kind == kind]
    if kind == "analyse":
        free += [jobs.c.model.in_(models), ~_paused("model", jobs.c.model)]
        free.append(~_routes_paused())
    elif kind == "deliver":
        free += deliverable()
    else:
        free += [~_paused("node", jobs.c.node), jobs.c.node.not_in(besides)]
        free += [] if history else [jobs.c.priority > HISTORY]
    first = (
        select(jobs.c.id)
        .where(*free)
        .order_by(jobs.c.urgency, jobs.c.rank, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=jobs)
        .scalar_subquery()
    )
    return (
        update(jobs)
        .where(jobs.c.id == first)
        .values(
            state="running",
            claim=jobs.c.claim + 1,
            attempts=jobs.c.attempts + 1,
            worker=bindparam("by"),
            beat=jobs.c.beat + 1,
            stage="",
            progress=0.0,
            started_at=bindparam("at"),
            beat_at=bindparam("at"),
        )
        .returning(jobs)
    )


def deliverable() -> tuple[ColumnElement[bool], ...]:
    """The conditions that a queued delivery would be claimed: no pause, none before it."""
    return ~_paused("node", jobs.c.node), ~_earlier_delivery(), ~_routes_paused()


def _paused(subject: str, name: ColumnElement[str]) -> ColumnElement[bool]:
    pauses = schema.pauses
    return exists().where(pauses.c.subject == subject, pauses.c.name == name)


def _routes_paused() -> ColumnElement[bool]:
    """All routes that want the job are paused."""
    routes = schema.job_routes
    wanted = exists().where(routes.c.job_id == jobs.c.id, ~_paused("route", routes.c.route))
    return exists().where(schema.pauses.c.subject == "route") & ~wanted


def _earlier_delivery() -> ColumnElement[bool]:
    """Results of one study reach a node in the order in which they were made."""
    earlier = jobs.alias("earlier")
    return exists().where(
        earlier.c.study_instance_uid == jobs.c.study_instance_uid,
        earlier.c.kind == "deliver",
        earlier.c.node == jobs.c.node,
        earlier.c.id < jobs.c.id,
        earlier.c.state.in_(("queued", "running", "waiting")),
        # What only waits for a report is at its node already.
        earlier.c.waiting_for.is_distinct_from("commitment"),
    )
