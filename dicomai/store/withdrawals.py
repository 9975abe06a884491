"""Withdrawals: the job that carries the note by which an analysis is taken back."""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, insert, update

from dicomai.dicom.dates import Instant
from dicomai.store import schema
from dicomai.store.analyses import inputs
from dicomai.store.job import NORMAL, URGENT, WITHDRAWN, WITHDRAWN_BY, Job, blank, job_of
from dicomai.store.jobs import NotNow, locked

jobs = schema.jobs

_INPUT = (
    "input",
    "instance_id",
    "study_instance_uid",
    "series_instance_uid",
    "sop_instance_uid",
)


def add(connection: Connection, old: Job, fingerprint: str, now: Instant) -> Job:
    """Insert the job that carries the note by which an analysis is taken back; it is done.

    It takes the analysis's place as the last of its choice, so that a later one names no
    predecessor; the study is locked. It has the same input, so it can be run again.

    Raises
    ------
    NotNow
        Retention deletes the study, or somebody took the results back meanwhile.
    """
    old, study = locked(connection, old.id)
    if study is None or study.status == "deleting":
        raise NotNow(f"Retention deletes the study of {old.title}.", subject=str(old.id))
    if old.withdrawn_by is not None:
        raise NotNow(
            f"{old.title} is withdrawn already, by job {old.withdrawn_by}.", subject=str(old.id)
        )
    row = connection.execute(
        insert(jobs)
        .values(
            **blank(uuid.uuid4(), old.study_instance_uid, old.patient_key, now)
            | {"state": "done", "progress": 1.0, "summary": {"found": WITHDRAWN}},
            kind="analyse",
            model=old.model,
            package_sha256=old.package_sha256,
            choice=old.choice,
            fingerprint=fingerprint,
            generation=old.generation,
            supersedes=old.id,
            node="",
            priority=old.priority,
            urgency=URGENT if old.urgent else NORMAL,
            ageing=0,
            rank=now,
            finished_at=now,
        )
        .returning(jobs)
    ).one()
    job = job_of(row)
    connection.execute(
        update(jobs)
        .where(jobs.c.id == old.id)
        .values(summary={**old.summary, WITHDRAWN_BY: job.id})
    )
    for position, each in enumerate(inputs(connection, old.id)):
        values = {name: getattr(each, name) for name in _INPUT}
        connection.execute(
            insert(schema.job_inputs).values(job_id=job.id, position=position, **values)
        )
    return job
