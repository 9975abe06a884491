"""Predecessors: the analyses whose results a newer one replaces, as its report names them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, exists, select

from dicomai.store import instances, schema
from dicomai.store.instances import Instance
from dicomai.store.job import Job, JobId
from dicomai.store.jobs import get
from dicomai.store.states import PERHAPS_STORED, JobState

jobs = schema.jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """An analysis whose results went out, may have, or are going out; newer ones replace them."""

    job: Job
    results: tuple[Instance, ...]


def of_job(connection: Connection, job: JobId) -> tuple[Predecessor, ...]:
    """Return the analyses that a new one's report names as its predecessors (PS3.3 C.17.2).

    Of the superseded ones they are, for each node, the nearest of whose results something was sent
    there, may have been, or is being sent; the nearest comes first. What a person withdrew, and
    what that was a reissue of, is passed over.
    """
    found: list[Predecessor] = []
    covered: set[str] = set()
    current = _before(connection, get(connection, job))
    while current is not None:
        if current.withdrawn_by is not None:
            while current is not None and current.is_reissue:
                current = _before(connection, current)
        elif current.state == "done" and not current.is_withdrawal:
            sent = _sent(connection, current.id)
            if sent.keys() - covered:
                results = instances.of_job(connection, current.id)
                found.append(Predecessor(job=current, results=results))
            covered |= {node for node, state in sent.items() if state == "done"}
        current = _before(connection, current)
    return tuple(found)


def _before(connection: Connection, job: Job | None) -> Job | None:
    return None if job is None or job.supersedes is None else get(connection, job.supersedes)


def _sent(connection: Connection, job: JobId) -> dict[str, JobState]:
    """Return the nodes that have results of a job, may have, or get them, with its delivery."""
    sent = schema.deliveries
    some = exists().where(sent.c.job_id == jobs.c.id, sent.c.state.in_(PERHAPS_STORED))
    query = select(jobs.c.node, jobs.c.state).where(
        jobs.c.result_of == job, jobs.c.state.in_(("running", "done")) | some
    )
    return {row.node: row.state for row in connection.execute(query)}
