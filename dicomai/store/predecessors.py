"""Predecessors: the analysis whose results a newer one replaces, as its report names it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, exists, select

from dicomai.store import instances, schema
from dicomai.store.instances import Instance
from dicomai.store.job import Job, JobId
from dicomai.store.jobs import get
from dicomai.store.states import PERHAPS_STORED

jobs = schema.jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """An analysis whose results went out, may have, or are going out; newer ones replace them."""

    job: Job
    results: tuple[Instance, ...]


def of_job(connection: Connection, job: JobId) -> Predecessor | None:
    """Return the analysis that a new one's report names as its predecessor (PS3.3 C.17.2).

    It is the nearest superseded one of whose results something was sent, may have been, or is being
    sent; what a person withdrew, and what that was a reissue of, is passed over.
    """
    current = _before(connection, get(connection, job))
    while current is not None:
        if current.withdrawn_by is not None:
            while current is not None and current.is_reissue:
                current = _before(connection, current)
        elif not current.is_withdrawal and _went_out(connection, current):
            return Predecessor(job=current, results=instances.of_job(connection, current.id))
        current = _before(connection, current)
    return None


def _before(connection: Connection, job: Job | None) -> Job | None:
    return None if job is None or job.supersedes is None else get(connection, job.supersedes)


def _went_out(connection: Connection, job: Job) -> bool:
    if job.state != "done":
        return False
    sent = schema.deliveries
    some = exists().where(sent.c.job_id == jobs.c.id, sent.c.state.in_(PERHAPS_STORED))
    query = select(jobs.c.id).where(
        jobs.c.result_of == job.id, jobs.c.state.in_(("running", "done")) | some
    )
    return connection.execute(query).first() is not None
