"""Analyses that lack an input: they wait while it is looked for, and get it in their own row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from sqlalchemy import Connection, delete, exists, insert, literal_column, select, update

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import schema, studies
from dicomai.store.arrivals import StudyGoing
from dicomai.store.job import Job, JobId, NewAnalysis, job_of
from dicomai.store.jobs import existing, tell
from dicomai.store.moves import move

jobs = schema.jobs

SOUGHT = "sought"
"""Key of a waiting job's summary: what was asked for, by input."""
MISSING = "missing"
"""Key of the summary of a job that goes on without: why, by input."""


def waiting(connection: Connection) -> tuple[Job, ...]:
    """Return the jobs that wait for an input, oldest first."""
    # Written out, so that the partial index serves it.
    is_waiting = jobs.c.state == literal_column("'waiting'")
    found = connection.execute(select(jobs).where(is_waiting, jobs.c.waiting_for == "input"))
    return tuple(sorted((job_of(row) for row in found), key=lambda job: job.id))


def complete(connection: Connection, older: JobId, new: NewAnalysis, now: Instant) -> bool:
    """Give a job that waits for an input what was found; its study is locked.

    False: it does not wait, or for another package, or was made for another patient.
    """
    # Locked: one that goes on without it just now, and may be claimed, does not take it any more.
    found = connection.execute(
        select(jobs)
        .where(
            jobs.c.id == older,
            jobs.c.state == "waiting",
            jobs.c.waiting_for == "input",
            jobs.c.package_sha256 == new.package_sha256,
            jobs.c.patient_key == new.patient_key,
        )
        .with_for_update()
    ).one_or_none()
    if found is None:
        return False
    prints = schema.fingerprints
    connection.execute(
        update(prints)
        .where(prints.c.fingerprint == found.fingerprint)
        .values(fingerprint=new.fingerprint)
    )
    connection.execute(
        update(jobs)
        .where(jobs.c.id == older)
        .values(fingerprint=new.fingerprint, error_sentence=new.waits)
    )
    put_inputs(connection, older, new)
    if not new.waits:
        for job in move(connection, ("waiting",), "queued", jobs.c.id == older, summary={}):
            tell(connection, job, "job queued", f"{job.title} has all its input now.", now)
    return True


def put_inputs(connection: Connection, job: JobId, new: NewAnalysis) -> None:
    """Write down what a job takes, in place of what it took; its own study is locked.

    Raises
    ------
    StudyGoing
        Retention is deleting another study of which it takes images.
    """
    # Retention that comes to their locks later finds the job.
    for uid in sorted({each.study_instance_uid for each in new.inputs} - {new.study_instance_uid}):
        study = studies.lock(connection, uid)
        if study is None or study.status == "deleting":
            raise StudyGoing(
                f"Study {uid}, queue: retention is deleting it, so no job can take its images. "
                "Send it again where it is needed.",
                subject=uid,
            )
    table = schema.job_inputs
    connection.execute(delete(table).where(table.c.job_id == job))
    for position, each in enumerate(new.inputs):
        connection.execute(
            insert(table).values(
                job_id=job,
                position=position,
                input=each.input,
                instance_id=each.instance_id,
                study_instance_uid=each.study_instance_uid,
                series_instance_uid=each.series_instance_uid,
                sop_instance_uid=each.sop_instance_uid,
            )
        )


def note(
    connection: Connection, job: Job, sought: Mapping[str, object], sentence: str, now: Instant
) -> bool:
    """Note what was asked for, and why a job waits now; False: it waits no more."""
    touched = connection.execute(
        update(jobs)
        .where(jobs.c.id == job.id, jobs.c.state == "waiting", jobs.c.waiting_for == "input")
        .values(summary={SOUGHT: dict(sought)}, error_sentence=sentence)
    )
    if not touched.rowcount:
        return False
    if sentence != job.error_sentence:
        waits = replace(job, error_sentence=sentence)
        tell(connection, waits, "job waits", f"{job.title}: {sentence}", now)
    return True


def go_without(connection: Connection, job: Job, missing: Mapping[str, str], now: Instant) -> bool:
    """Queue a job as it is, with why each input is missing; False: it waits no more."""
    moved = move(
        connection,
        ("waiting",),
        "queued",
        jobs.c.id == job.id,
        jobs.c.waiting_for == "input",
        summary={MISSING: dict(missing)},
        error_sentence="",
    )
    for each in moved:
        why = " ".join(missing.values())
        tell(connection, each, "job queued", f"{each.title} waits no more: {why}", now)
    return bool(moved)


def sought_of(job: Job) -> Mapping[str, object]:
    """Return what was asked for until now, by input."""
    return cast("Mapping[str, object]", job.summary.get(SOUGHT, {}))


def missing_of(job: Job) -> Mapping[str, str]:
    """Return why inputs are missing that were waited for in vain."""
    return cast("Mapping[str, str]", job.summary.get(MISSING, {}))


def strayed(connection: Connection, job: JobId) -> StudyInstanceUID | None:
    """Return a study that a job takes an input from and that may be another patient's by now."""
    inputs, studies = schema.job_inputs, schema.studies
    current = existing(connection, job)
    doubtful = exists().where(
        studies.c.study_instance_uid == inputs.c.study_instance_uid,
        (studies.c.status == "held") | (studies.c.patient_key != current.patient_key),
    )
    found = connection.execute(
        select(inputs.c.study_instance_uid)
        .where(
            inputs.c.job_id == job,
            inputs.c.study_instance_uid != current.study_instance_uid,
            doubtful,
        )
        .limit(1)
    ).scalar_one_or_none()
    return None if found is None else StudyInstanceUID(found)
