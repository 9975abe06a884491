"""Leases: a running job is free again when nobody has seen its beat change for the lease's length.

Time is taken on the observer's own monotonic clock, and only while it reaches the database: neither
a step of any clock nor an outage ends a lease.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, literal_column, select

from dicomai.dicom.dates import Instant
from dicomai.errors import ErrorKind
from dicomai.store import jobs, schema
from dicomai.store.job import Held, Job, JobId, policy

_GAP: float = 0.5
"""Part of a lease after which two looks don't count as one observation any more."""


@dataclass(frozen=True, slots=True)
class Over:
    """A claim whose lease is over, and the beat that stood still."""

    held: Held
    beat: int


@dataclass(frozen=True, slots=True)
class _Seen:
    claim: int
    beat: int
    since: float


class LeaseObserver:
    """Sees which beats stand still; look at least four times a lease.

    Parameters
    ----------
    lease_s
        How long a beat may stand still.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: dict[JobId, _Seen] = {}
        self._last = float("-inf")

    def observe(self, connection: Connection, monotonic_now: float) -> tuple[Over, ...]:
        """Return the claims whose lease is over.

        Parameters
        ----------
        monotonic_now
            This process's `time.monotonic()`.
        """
        if monotonic_now - self._last > self._lease_s * _GAP:
            self._seen.clear()  # the database, or this process, was away: all begin anew
        # A look that fails counts as an outage.
        self._last = float("-inf")
        table = schema.jobs
        rows = connection.execute(
            select(table.c.id, table.c.claim, table.c.beat).where(
                table.c.state == literal_column("'running'")
            )
        ).all()
        seen: dict[JobId, _Seen] = {}
        over = []
        for number, claim, beat in rows:
            before = self._seen.get(number)
            if before is None or (before.claim, before.beat) != (claim, beat):
                before = _Seen(claim, beat, monotonic_now)
            seen[JobId(number)] = before
            if monotonic_now - before.since >= self._lease_s:
                over.append(Over(Held(JobId(number), claim), beat))
        self._seen = seen
        self._last = monotonic_now
        return tuple(over)


def expire(
    connection: Connection, observer: LeaseObserver, monotonic_now: float, now: Instant
) -> tuple[Job, ...]:
    """Take the jobs whose lease is over from their workers; a second time fails an analysis.

    A delivery or a retrieval has nothing of its own that could kill a worker: it backs off. A beat
    that comes between look and write keeps its job.
    """
    expired = []
    for over in observer.observe(connection, monotonic_now):
        job = jobs.get(connection, over.held.job_id)
        if job is None or job.claim != over.held.claim:
            continue
        error: ErrorKind = "crash" if job.kind == "analyse" else "transient"
        changed = jobs.fail(
            connection,
            over.held,
            error,
            _sentence(job, error),
            job.stage,
            job.study_instance_uid,
            now,
            beat=over.beat,
        )
        if changed is not None:
            expired.append(changed)
    return tuple(expired)


def _sentence(job: Job, error: ErrorKind) -> str:
    """Return what a person reads of a lease that is over, and of what follows from it."""
    where = f" in stage {job.stage}" if job.stage else ""
    over = f"{job.title}: worker {job.worker} showed no progress{where}, its lease is over."
    crashes = job.crashes + (error == "crash")
    if policy(error, job.kind, attempts=job.attempts, crashes=crashes, jitter=0).state == "failed":
        return (
            f"{over} It has come to nothing too often to be tried again by itself: "
            f"dicomai retry {job.id}"
        )
    if error == "crash":
        return (
            f"{over} It is tried again; a second time fails it, so that it stops no other worker."
        )
    return f"{over} It is tried again."
