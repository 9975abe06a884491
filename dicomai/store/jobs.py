"""The queue: beats, errors, and what a person may do to a job.

Every write after a claim (`claims`) names the job, its claim and the state it expects, so a worker
that lost its job touches no row; see `analyses` and `deliveries` for how jobs begin and end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, Connection, func, literal_column, or_, select, update

from dicomai.dicom.dates import Instant, Microseconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DicomaiError, ErrorKind, NotFound
from dicomai.store import events, schema, studies
from dicomai.store.before import once_more
from dicomai.store.job import CRASHES, Held, Job, JobId, JobRoute, Next, jitter_of, job_of, policy
from dicomai.store.moves import move
from dicomai.store.states import UNFINISHED, HeldBy, JobKind, JobState, WaitingFor
from dicomai.store.studies import Study

jobs = schema.jobs


class NotNow(DicomaiError):
    """What was asked of a job doesn't fit its state."""


def get(connection: Connection, job: JobId) -> Job | None:
    """Return a job."""
    found = connection.execute(select(jobs).where(jobs.c.id == job)).one_or_none()
    return None if found is None else job_of(found)


def listing(
    connection: Connection, limit: int, states: Collection[JobState] = ()
) -> tuple[Job, ...]:
    """Return the newest jobs, in these states only where some are given."""
    query = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
    if states:
        query = query.where(jobs.c.state.in_(tuple(states)))
    return tuple(job_of(row) for row in connection.execute(query))


def held_by(connection: Connection, reason: HeldBy, limit: int) -> tuple[Job, ...]:
    """Return the newest jobs that are held for a reason."""
    query = select(jobs).where(jobs.c.state == "held", jobs.c.held_by == reason)
    return tuple(
        job_of(row) for row in connection.execute(query.order_by(jobs.c.id.desc()).limit(limit))
    )


def unsettled(
    connection: Connection,
) -> dict[tuple[JobState, HeldBy | None], tuple[JobId, ...]]:
    """Return the jobs that failed or are held, newest first, by what holds them.

    Those that a newer analysis of their study stands for are left out.
    """
    newer = select(jobs.c.supersedes).where(jobs.c.supersedes.is_not(None))
    analysis = func.coalesce(jobs.c.result_of, jobs.c.id)
    found: dict[tuple[JobState, HeldBy | None], list[JobId]] = {}
    for job, state, held_by in connection.execute(
        select(jobs.c.id, jobs.c.state, jobs.c.held_by)
        .where(jobs.c.state.in_(("failed", "held")), analysis.not_in(newer))
        .order_by(jobs.c.id.desc())
    ):
        found.setdefault((state, held_by), []).append(job)
    return {what: tuple(ids) for what, ids in found.items()}


def of_study(connection: Connection, study: StudyInstanceUID) -> tuple[Job, ...]:
    """Return the jobs of a study, oldest first."""
    query = select(jobs).where(jobs.c.study_instance_uid == study).order_by(jobs.c.id)
    return tuple(job_of(row) for row in connection.execute(query))


def counts(connection: Connection) -> dict[tuple[JobKind, JobState], int]:
    """Return how many jobs of each kind stand in each state."""
    query = select(jobs.c.kind, jobs.c.state, func.count()).group_by(jobs.c.kind, jobs.c.state)
    return {(kind, state): number for kind, state, number in connection.execute(query)}


def models_asked_for(connection: Connection) -> frozenset[str]:
    """Return the models whose analyses are queued or wait, if no route has them any more, too."""
    asked = jobs.c.kind == "analyse", jobs.c.state.in_(("queued", "waiting"))
    return frozenset(connection.execute(select(jobs.c.model).where(*asked).distinct()).scalars())


def routes_of(connection: Connection, job: JobId) -> tuple[JobRoute, ...]:
    """Return the routes that want a job's results."""
    table = schema.job_routes
    found = connection.execute(select(table).where(table.c.job_id == job).order_by(table.c.route))
    return tuple(
        JobRoute(route=row.route, mode=row.mode, destinations=tuple(row.destinations))
        for row in found
    )


def ours(held: Held) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The condition that a job is still under this claim."""
    return jobs.c.id == held.job_id, jobs.c.claim == held.claim


def outcome(connection: Connection, held: Held) -> Literal["ours", "done", "lost"]:
    """Tell what became of a job after a commit of unknown outcome.

    "ours": nothing was written, go on; "done": this claim finished it; "lost": it was cancelled,
    failed, held, or belongs to another claim.
    """
    found = connection.execute(select(jobs.c.state).where(*ours(held))).scalar_one_or_none()
    if found == "running":
        return "ours"
    return "done" if found == "done" else "lost"


def beat(connection: Connection, held: Held, stage: str, progress: float, now: Instant) -> bool:
    """Show that a running job makes progress; False: it is ours no more."""
    touched = connection.execute(
        update(jobs)
        .where(*ours(held), jobs.c.state == "running")
        .values(beat=jobs.c.beat + 1, beat_at=now, stage=stage, progress=progress)
    )
    return touched.rowcount == 1


def give_back(connection: Connection, held: Held, now: Instant) -> bool:
    """Queue a running job again at its old place; the attempt does not count."""
    moved = move(
        connection,
        ("running",),
        "queued",
        *ours(held),
        attempts=jobs.c.attempts - 1,
        started_at=None,
        stage="",
        progress=0.0,
    )
    for job in moved:
        tell(connection, job, "job given back", f"{job.title} was given back by {job.worker}.", now)
    return bool(moved)


def fail(
    connection: Connection,
    held: Held,
    error: ErrorKind,
    sentence: str,
    stage: str,
    subject: str,
    now: Instant,
    beat: int | None = None,
) -> Job | None:
    """Do with a running job what the kind of its error demands, and return it as it is then.

    A try before its back-off was over, to see whether its node is back, does not count: else a
    night without its node would use up the tries of a week.

    None: it is ours no more, or has beaten since the `beat` that is given; no row was touched.
    """
    same = ours(held) if beat is None else (*ours(held), jobs.c.beat == beat)
    found = connection.execute(select(jobs).where(*same, jobs.c.state == "running")).one_or_none()
    if found is None:
        return None
    job = job_of(found)
    crashes = job.crashes + (error == "crash")
    jitter = jitter_of(job.uuid, job.attempts)
    then = policy(error, job.kind, attempts=job.attempts, crashes=crashes, jitter=jitter)
    until, early = job.backs_off_until, False
    if error == "transient" and until is not None and now < until:
        then, early = Next(state="waiting", delay=Microseconds(until - now)), True
    if then.state != "failed" and (over := cancel_if_replaced(connection, job, now)) is not None:
        return over
    moved = move(
        connection,
        ("running",),
        then.state,
        *same,
        attempts=job.attempts - early,
        crashes=crashes,
        error_kind=error,
        error_sentence=sentence,
        error_stage=stage,
        error_subject=subject,
        **_columns_of(then, now),
    )
    for changed in moved:
        if not early or sentence != job.error_sentence:
            tell(connection, changed, f"job {changed.state}", sentence, now)
        return changed
    return None


def _columns_of(then: Next, now: Instant) -> dict[str, Any]:
    match then.state:
        case "waiting":
            assert then.delay is not None
            until = Instant(now + then.delay)
            return {"waiting_for": "back-off", "due_at": until, "backs_off_until": until}
        case "held":
            return {"held_by": then.held_by}
        case "failed":
            return {"finished_at": now}
        case "queued":
            return {}


def promote_due(connection: Connection, now: Instant) -> tuple[Job, ...]:
    """Queue the jobs whose time is over, unless their node's breaker is open.

    Their back-off is over, too. Who waited in vain for a report on storage commitment needs no node
    any more. One that was parked for a breaker that closed meanwhile has nothing left to wait for.
    """
    nodes = schema.nodes
    shut = select(nodes.c.name).where(nodes.c.breaker != "closed")
    # Written out, so that the partial index serves it.
    waiting = jobs.c.state == literal_column("'waiting'")
    over = or_(
        jobs.c.kind != "deliver",
        jobs.c.waiting_for == "commitment",
        jobs.c.node.not_in(shut),
    )
    due = waiting, jobs.c.waiting_for.in_(get_args(WaitingFor)), jobs.c.due_at <= now, over
    # By the nodes that are not shut: thousands may wait for one that is.
    parked = (
        jobs.c.kind == literal_column("'deliver'"),
        jobs.c.node.in_(select(nodes.c.name).where(nodes.c.breaker == "closed")),
        func.coalesce(jobs.c.waiting_for, "") == "breaker",
    )
    return move(connection, ("waiting",), "queued", *due, backs_off_until=None) + move(
        connection, ("waiting",), "queued", *parked
    )


def cancel(connection: Connection, job: JobId, because: str, now: Instant) -> Job:
    """Cancel a job that is not done; a running one's worker can write nothing any more.

    One that failed is settled by it: nobody is told of it as of what is to be seen to.

    Raises
    ------
    NotFound, NotNow
        There is none, or it is done, or cancelled.
    """
    before = existing(connection, job).finished_at
    open_ = move(
        connection,
        ("waiting", "queued", "running", "held"),
        "cancelled",
        jobs.c.id == job,
        finished_at=now,
    )
    # What failed was over then: what lies in the archive since is of another end of it.
    failed = move(connection, ("failed",), "cancelled", jobs.c.id == job, finished_at=before or now)
    for cancelled in open_ + failed:
        tell(connection, cancelled, "job cancelled", because, now)
        return cancelled
    current = existing(connection, job)
    raise NotNow(f"{current.title} is {current.state} already.", subject=str(job))


_NO_RETRY: Final[Mapping[JobState, str]] = MappingProxyType(
    {
        "queued": "is queued already, and starts when a worker is free. See: dicomai status",
        "running": "runs already. To stop it: dicomai cancel {job}",
        "waiting": "waits, and is tried again by itself. For when, see: dicomai job {job}",
        "done": "is done. {once_more}",
        "cancelled": "was cancelled. {once_more}",
    }
)


def retry(connection: Connection, job: JobId, now: Instant) -> Job:
    """Queue a failed or held job again: the same row, its attempts forgotten.

    Raises
    ------
    NotFound, NotNow
        There is none, or its state or its study forbids it; the sentence says what helps.
    """
    current, study = locked(connection, job)
    analysis = job if current.result_of is None else current.result_of
    newer = replaced_by(connection, current)
    if newer is not None:
        raise NotNow(
            f"{current.title} can't be tried again: job {newer} has taken the place of its "
            f"analysis. See: dicomai job {newer}",
            subject=str(job),
        )
    if current.held_by == "study":
        raise NotNow(
            f"{current.title} is held with its study. Why, and what helps: dicomai study "
            f"{current.study_instance_uid}",
            subject=str(job),
        )
    gone = study is None or study.status == "deleting"
    if gone and current.kind != "retrieve":
        raise NotNow(
            f"{current.title} can't run: its study was deleted by retention. Send the study again, "
            f"then: dicomai retry {analysis} --again",
            subject=str(job),
        )
    if current.state == "failed" and (other := _same_under_way(connection, current)) is not None:
        raise NotNow(
            f"{current.title} was asked for again: job {other.id} does the same, and is "
            f"{other.state}. See: dicomai job {other.id}",
            subject=str(job),
        )
    moved = move(
        connection,
        ("failed", "held"),
        "queued",
        jobs.c.id == job,
        attempts=0,
        crashes=0,
        backs_off_until=None,
        error_kind=None,
        error_sentence="",
        error_stage="",
        error_subject="",
        **_new_rank(),
    )
    for queued in moved:
        tell(connection, queued, "job queued", f"A person had {queued.title} tried again.", now)
        return queued
    made_by = None if current.result_of is None else get(connection, current.result_of)
    said = _NO_RETRY[current.state].format(job=job, once_more=once_more(current, made_by))
    raise NotNow(f"{current.title} {said}", subject=str(job))


def replaced_by(connection: Connection, job: Job) -> JobId | None:
    """Return the job that took the place of an analysis, or of that whose results a delivery sends.

    A note that takes results back goes out, whatever came in its place.
    """
    made_by = None if job.result_of is None else get(connection, job.result_of)
    if made_by is not None and made_by.is_withdrawal:
        return None
    analysis = job.id if job.result_of is None else job.result_of
    newer = connection.execute(select(jobs.c.id).where(jobs.c.supersedes == analysis)).scalars()
    number = newer.first()
    return None if number is None else JobId(number)


def cancel_if_replaced(connection: Connection, job: Job, now: Instant) -> Job | None:
    """Cancel a running delivery of results whose place others took; None: none did.

    It ran when they did, and what is on its way can't be called back. What stops may not go again.
    """
    newer = replaced_by(connection, job) if job.kind == "deliver" else None
    if newer is None:
        return None
    moved = move(
        connection,
        ("running",),
        "cancelled",
        *ours(job.held),
        finished_at=now,
    )
    for cancelled in moved:
        because = f"It stopped, and goes no more: job {newer} has taken the place of its analysis."
        tell(connection, cancelled, "job cancelled", because, now)
        return cancelled
    return None


def _same_under_way(connection: Connection, job: Job) -> Job | None:
    """Return another job that does the same and is not over: two such may not be."""
    found = connection.execute(
        select(jobs).where(
            jobs.c.id != job.id,
            jobs.c.kind == job.kind,
            jobs.c.study_instance_uid == job.study_instance_uid,
            jobs.c.model == job.model,
            jobs.c.node == job.node,
            jobs.c.choice == job.choice,
            jobs.c.kind != "deliver",
            jobs.c.state.in_(UNFINISHED),
        )
    ).one_or_none()
    return None if found is None else job_of(found)


def queue_report(connection: Connection, job: JobId, now: Instant) -> Job | None:
    """Queue an analysis that its crashes made fail once more, for a report that says so.

    Its crashes stay, so that whoever claims it leaves its images alone, and one more is the end.
    Returns None for any other job.
    """
    moved = move(
        connection,
        ("failed",),
        "queued",
        jobs.c.id == job,
        jobs.c.error_kind == "crash",
        jobs.c.crashes == CRASHES,
        **_new_rank(),
    )
    for queued in moved:
        sentence = f"{queued.title} was queued for a report that says why there is no result."
        tell(connection, queued, "job queued", sentence, now)
        return queued
    return None


def release_held(connection: Connection, held_by: HeldBy, now: Instant) -> tuple[Job, ...]:
    """Queue the jobs that wait for something that has changed, as the configuration."""
    moved = move(connection, ("held",), "queued", jobs.c.held_by == held_by, **_new_rank())
    for job in moved:
        tell(connection, job, "job queued", f"{job.title} is tried again.", now)
    return moved


def _new_rank() -> dict[str, Any]:
    return {"rank": jobs.c.created_at - jobs.c.priority * jobs.c.ageing}


def existing(connection: Connection, job: JobId) -> Job:
    """Return a job; NotFound says that there is none."""
    current = get(connection, job)
    if current is None:
        raise NotFound(f"There is no job {job}. See: dicomai jobs", subject=str(job))
    return current


def locked(connection: Connection, job: JobId) -> tuple[Job, Study | None]:
    """Return a job as nobody else moves it now, and its study if that is still here.

    Who decides on the study, deletes it, or has the job too, is waited for.

    Raises
    ------
    NotFound
        There is no such job.
    """
    study = studies.lock(connection, existing(connection, job).study_instance_uid)
    connection.execute(select(jobs.c.id).where(jobs.c.id == job).with_for_update())
    return existing(connection, job), study


def tell(connection: Connection, job: Job, kind: str, sentence: str, now: Instant) -> None:
    """Add an event of a job to its study's story."""
    data = {
        "state": job.state,
        "attempts": job.attempts,
        "error": job.error_kind,
        "stage": job.error_stage,
        "subject": job.error_subject,
        "due_at": job.due_at,
        "worker": job.worker,
    }
    events.record(connection, job.study_instance_uid, kind, sentence, data, now, job.id)
