"""Runs that a person asked for: an analysis that is over, once more, as a new generation."""

from __future__ import annotations

from sqlalchemy import Connection, select

from dicomai.dicom.dates import Instant
from dicomai.store import schema
from dicomai.store.analyses import add_analysis, add_destination
from dicomai.store.before import became, once_more
from dicomai.store.job import Job, JobId, JobInput, NewAnalysis, job_of
from dicomai.store.jobs import NotNow, cancel, get, locked, routes_of

jobs = schema.jobs


def again(
    connection: Connection,
    job: JobId,
    taken: tuple[JobInput, ...],
    package_sha256: str,
    fingerprint: str,
    now: Instant,
) -> JobId:
    """Queue a new generation of an analysis that is over, or of one whose package is gone.

    Parameters
    ----------
    taken
        Its input, as it is in the catalogue now.
    package_sha256
        The package that is to run now.
    fingerprint
        Of that package, the input, and the next generation.

    Raises
    ------
    NotFound, NotNow
        There is none; or it is no analysis, or not over, or was run again already; or its study is
        being deleted.
    """
    old, study = locked(connection, job)
    waits = old.state == "held" and old.held_by in ("config", "person")
    gone = waits and package_sha256 != old.package_sha256
    over = gone or old.state in ("done", "failed", "cancelled")
    if old.kind != "analyse":
        made_by = None if old.result_of is None else get(connection, old.result_of)
        raise NotNow(
            f"{old.title} is no analysis, so it can't be run again. {once_more(old, made_by)}",
            subject=str(job),
        )
    if not over:
        raise NotNow(
            f"{old.title} is {old.state}, so it can't be run again. See: dicomai job {job}",
            subject=str(job),
        )
    if study is None or study.status == "deleting":
        raise NotNow(
            f"Retention deletes the study of {old.title}. Send the study again, and repeat this.",
            subject=str(job),
        )
    if gone:
        cancel(
            connection,
            job,
            f"{old.title} is cancelled: the package of its model was replaced.",
            now,
        )
    # A withdrawal is wanted by nobody but those who had the results.
    analysed = old.supersedes if old.is_withdrawal else job
    routes = routes_of(connection, analysed) if analysed is not None else ()
    if not routes:
        raise NotNow(
            f"{old.title} can't be run again: retention deleted the job that it withdrew.",
            subject=str(job),
        )
    row = connection.execute(select(jobs.c.ageing).where(jobs.c.id == analysed)).scalar_one()
    new = NewAnalysis(
        study_instance_uid=old.study_instance_uid,
        patient_key=study.patient_key or old.patient_key,
        model=old.model,
        package_sha256=package_sha256,
        choice=old.choice,
        fingerprint=fingerprint,
        inputs=taken,
        route=routes[0],
        priority=old.priority,
        urgent=old.urgent,
        ageing=row,
        generation=old.generation + 1,
        supersedes=job,
    )
    added = add_analysis(connection, new, now)
    if added.outcome != "queued":
        raise NotNow(_already_again(connection, old, added.job_id), subject=str(job))
    for route in routes[1:]:
        add_destination(connection, added.job_id, route, now)
    return added.job_id


def decided_later(connection: Connection, job: Job) -> Job | None:
    """Return the last job that a later decision queued for other images of the same choice."""
    found = connection.execute(
        select(jobs)
        .where(
            jobs.c.id > job.id,
            jobs.c.kind == "analyse",
            jobs.c.study_instance_uid == job.study_instance_uid,
            jobs.c.model == job.model,
            jobs.c.choice == job.choice,
            jobs.c.generation == 0,
        )
        .order_by(jobs.c.id.desc())
    )
    # A withdrawal and a reissue stand for the job that they supersede, and for its images.
    later = (job_of(row) for row in found)
    return next((each for each in later if not each.is_withdrawal and not each.is_reissue), None)


def _already_again(connection: Connection, old: Job, known: JobId) -> str:
    """Say as which job another one was run again, what became of that, and what to do."""
    rerun = get(connection, known)
    sentence = f"{old.title} was run again already, as job {known}, which"
    if rerun is None:
        return (
            f"{sentence} retention deleted. Look for a later one: dicomai study "
            f"{old.study_instance_uid}"
        )
    return f"{sentence} {became(rerun)}"
