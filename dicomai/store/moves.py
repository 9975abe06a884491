"""The moves of jobs: every change of state in the store goes through `move`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, union_all, update

from dicomai.dicom.dates import Instant
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import schema
from dicomai.store.job import Job, JobId, job_of
from dicomai.store.states import MOVES, UNFINISHED, HeldBy, JobState, WaitingFor

jobs = schema.jobs


def move(
    connection: Connection,
    sources: tuple[JobState, ...],
    target: JobState,
    *where: ColumnElement[bool],
    waiting_for: WaitingFor | None = None,
    due_at: Instant | None = None,
    held_by: HeldBy | None = None,
    finished_at: Instant | None = None,
    **values: Any,  # columns of the table, of their own types
) -> tuple[Job, ...]:
    """Move the jobs that stand in one of `sources` and match; return them as they are now.

    What a state needs to hold, and only it, is set with it.
    """
    for source in sources:
        assert target in MOVES[source], f"no job moves from {source} to {target}"
    moved = connection.execute(
        update(jobs)
        .where(jobs.c.state.in_(sources), *where)
        .values(
            state=target,
            waiting_for=waiting_for,
            due_at=due_at,
            held_by=held_by,
            finished_at=finished_at,
            **values,
        )
        .returning(jobs)
    )
    return tuple(sorted((job_of(row) for row in moved), key=lambda job: job.id))


def park(
    connection: Connection, study: StudyInstanceUID, held_by: HeldBy, sentence: str
) -> tuple[JobId, ...]:
    """Hold the queued and waiting jobs of a study; what is fetched of it may show whose it is.

    One that waits for an input goes on waiting: it would run without, once it is released. A note
    that takes results back goes on: it names whose they were when they left, and nothing else.
    """
    moved = move(
        connection,
        ("queued", "waiting"),
        "held",
        jobs.c.study_instance_uid == study,
        jobs.c.kind != "retrieve",
        jobs.c.waiting_for.is_(None) | (jobs.c.waiting_for != "input"),
        ~_carries_note(connection, study),
        held_by=held_by,
        error_sentence=sentence,
    )
    return tuple(job.id for job in moved)


def unpark(connection: Connection, study: StudyInstanceUID, key: IdentityKey) -> tuple[JobId, ...]:
    """Queue the jobs that the study's hold parked, if they are this patient's.

    The others are another patient's: they stay held, for their identity; but for a note that takes
    back what left as another patient's.
    """
    parked = jobs.c.study_instance_uid == study, jobs.c.held_by == "study"
    moved = move(
        connection,
        ("held",),
        "queued",
        *parked,
        (jobs.c.patient_key == key) | _carries_note(connection, study),
        error_sentence="",
        rank=jobs.c.created_at - jobs.c.priority * jobs.c.ageing,
    )
    for number in connection.execute(select(jobs.c.id).where(*parked)).scalars().all():
        sentence = (
            "The job was made for another patient than the study's is now. To end it: dicomai "
            f"cancel {number}"
        )
        connection.execute(
            update(jobs)
            .where(jobs.c.id == number)
            .values(held_by="identity", error_kind="identity", error_sentence=sentence)
        )
    return tuple(job.id for job in moved)


def _carries_note(connection: Connection, study: StudyInstanceUID) -> ColumnElement[bool]:
    """Return the condition that a job of a study sends a note that takes results back."""
    found = connection.execute(
        select(jobs).where(jobs.c.study_instance_uid == study, jobs.c.kind == "analyse")
    )
    notes = [job.id for job in map(job_of, found) if job.is_withdrawal]
    return func.coalesce(jobs.c.result_of, 0).in_(notes)  # a NULL is in nothing, nor outside it


def unfinished(connection: Connection, study: StudyInstanceUID) -> tuple[JobId, ...]:
    """Return the jobs of a study, and those that take input from it, that aren't over."""
    inputs = schema.job_inputs
    own, unfinished = jobs.alias("own"), jobs.c.state.in_(UNFINISHED)
    # In one list of numbers: for either of two conditions PostgreSQL reads all jobs.
    concerned = union_all(
        select(own.c.id).where(own.c.study_instance_uid == study),
        select(inputs.c.job_id).where(inputs.c.study_instance_uid == study),
    )
    found = connection.execute(
        select(jobs.c.id).where(jobs.c.id.in_(concerned), unfinished).order_by(jobs.c.id)
    )
    return tuple(JobId(number) for number in found.scalars())
