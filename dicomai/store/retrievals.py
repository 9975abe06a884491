"""Retrievals: what is fetched from a node, at most once at a time."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import Connection, delete, distinct, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dicomai.dicom.dates import Instant, Microseconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID, StudyInstanceUID
from dicomai.store import schema, studies
from dicomai.store.job import NORMAL, URGENT, Held, Job, JobId, blank, job_of, rank_of
from dicomai.store.jobs import ours, tell
from dicomai.store.moves import move
from dicomai.store.states import STORED, UNFINISHED

jobs = schema.jobs


_MOST_SERIES: Final = 30
"""An entry of an index of PostgreSQL has room for 2,700 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRetrieval:
    """Something that is to be fetched.

    Attributes
    ----------
    series
        Only these; empty, or more than 30: the whole study.
    purpose
        What alone it serves: routes don't look at a study that nothing else brought. Empty: it is
        fetched as if it had been sent.
    ageing
        See the table [worker] of the settings.
    """

    node: str
    study_instance_uid: StudyInstanceUID
    series: frozenset[SeriesInstanceUID] = frozenset()
    purpose: str = ""
    priority: int = 0
    urgent: bool = False
    ageing: Microseconds

    @property
    def choice(self) -> str:
        """What it is, so that it is not fetched twice at a time."""
        return "" if len(self.series) > _MOST_SERIES else " ".join(sorted(self.series))


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedRetrieval:
    """What became of the wish for one: a new job, or one that is under way."""

    outcome: Literal["queued", "present"]
    job_id: JobId


def queue(connection: Connection, wanted: NewRetrieval, now: Instant) -> AddedRetrieval:
    """Queue a retrieval, unless the same one is under way."""
    if not wanted.purpose:
        welcome(connection, wanted.study_instance_uid)
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    # Nobody knows yet whose it is; the objects will say.
    values = blank(uuid.uuid4(), wanted.study_instance_uid, IdentityKey(""), now)
    queued = (
        insert(jobs)
        .values(
            **values,
            kind="retrieve",
            model="",
            package_sha256="",
            choice=wanted.choice,
            generation=0,
            node=wanted.node,
            priority=wanted.priority,
            urgency=URGENT if wanted.urgent else NORMAL,
            ageing=wanted.ageing,
            rank=rank_of(now, wanted.priority, wanted.ageing),
        )
        .on_conflict_do_nothing()
        .returning(jobs)
    )
    while (row := connection.execute(queued).one_or_none()) is None:
        there = connection.execute(
            select(jobs.c.id).where(
                jobs.c.kind == "retrieve",
                jobs.c.study_instance_uid == wanted.study_instance_uid,
                jobs.c.node == wanted.node,
                jobs.c.choice == wanted.choice,
                jobs.c.state.in_(UNFINISHED),
            )
        ).scalar_one_or_none()
        # On PostgreSQL it may be over by now, and no longer in the way.
        if there is not None:
            return AddedRetrieval(outcome="present", job_id=JobId(there))
    job = job_of(row)
    if wanted.purpose and not is_here(connection, wanted.study_instance_uid):
        connection.execute(
            insert(schema.studies_apart)
            .values(study_instance_uid=wanted.study_instance_uid, purpose=wanted.purpose, at=now)
            .on_conflict_do_nothing()
        )
    what = f"{len(wanted.series)} series" if wanted.choice else "the study"
    tell(connection, job, "retrieval queued", f"{job.title} was queued, which fetches {what}.", now)
    return AddedRetrieval(outcome="queued", job_id=job.id)


def purpose_of(connection: Connection, study: StudyInstanceUID) -> str:
    """Return what alone a study was fetched for; empty: for nothing else than to be looked at."""
    table = schema.studies_apart
    query = select(table.c.purpose).where(table.c.study_instance_uid == study)
    return connection.execute(query).scalar_one_or_none() or ""


def welcome(connection: Connection, study: StudyInstanceUID) -> None:
    """Have routes look at a study, whatever else it was fetched for; at once if it is here."""
    apart, table = schema.studies_apart, schema.studies
    studies.lock(connection, study)  # a decision that reads the purpose may be on its way
    gone = connection.execute(delete(apart).where(apart.c.study_instance_uid == study))
    if gone.rowcount:
        connection.execute(
            update(table)
            .where(table.c.study_instance_uid == study, table.c.status == "decided")
            .values(status="open", decide_at=table.c.quiet_until)
        )


def is_here(connection: Connection, study: StudyInstanceUID) -> bool:
    """Tell whether the catalogue has images of a study, besides our own results."""
    instances = schema.instances
    found = connection.execute(
        select(instances.c.id)
        .where(instances.c.study_instance_uid == study, instances.c.origin != "produced")
        .limit(1)
    )
    return found.first() is not None


def series_of(job: Job) -> frozenset[SeriesInstanceUID]:
    """Return the series that a retrieval wants; empty: the whole study."""
    return frozenset(SeriesInstanceUID(uid) for uid in job.choice.split())


def asked(connection: Connection, study: StudyInstanceUID) -> bool:
    """Tell whether a study was ever to be fetched, whatever became of that."""
    found = connection.execute(
        select(jobs.c.id)
        .where(jobs.c.study_instance_uid == study, jobs.c.kind == "retrieve")
        .limit(1)
    )
    return found.first() is not None


def fetched_from(connection: Connection, study: StudyInstanceUID) -> frozenset[str]:
    """Return the nodes from which a study was fetched whole, the last time that it was wanted."""
    whole = connection.execute(
        select(jobs.c.node, jobs.c.state)
        .where(jobs.c.study_instance_uid == study, jobs.c.kind == "retrieve", jobs.c.choice == "")
        .order_by(jobs.c.id)
    )
    last = {row.node: row.state for row in whole}
    return frozenset(node for node, state in last.items() if state == "done")


def grew(connection: Connection, study: StudyInstanceUID, node: str, there: int) -> bool:
    """Tell whether a study that was fetched whole from a node has more objects there by now.

    Parameters
    ----------
    there
        As many as the node counts; results that went to it are among them.
    """
    if node not in fetched_from(connection, study) or not is_here(connection, study):
        return False  # what retention deleted does not come back
    instances, sent = schema.instances, schema.deliveries
    came = connection.execute(
        select(func.count()).where(
            instances.c.study_instance_uid == study,
            instances.c.newest,
            instances.c.origin != "produced",
        )
    ).scalar_one()
    ours_there = connection.execute(
        select(func.count(distinct(sent.c.sop_instance_uid)))
        .join(jobs, jobs.c.id == sent.c.job_id)
        .where(jobs.c.study_instance_uid == study, jobs.c.node == node, sent.c.state.in_(STORED))
    ).scalar_one()
    return there > came + ours_there


def here(connection: Connection, study: StudyInstanceUID) -> frozenset[SOPInstanceUID]:
    """Return the objects of a study that the catalogue has; our results too, which a node may have
    by now.
    """
    instances = schema.instances
    found = connection.execute(
        select(instances.c.sop_instance_uid).where(
            instances.c.study_instance_uid == study,
            instances.c.newest,
        )
    )
    return frozenset(SOPInstanceUID(uid) for uid in found.scalars())


def finish(
    connection: Connection,
    held: Held,
    stages_s: Mapping[str, float],
    summary: Mapping[str, object],
    sentence: str,
    now: Instant,
) -> bool:
    """Finish a retrieval, and say how; False: it is ours no more, and no row was touched."""
    moved = move(
        connection,
        ("running",),
        "done",
        *ours(held),
        finished_at=now,
        progress=1.0,
        stages_s=dict(stages_s),
        summary={**summary, "found": sentence},
        error_kind=None,
        error_sentence="",
        error_stage="",
        error_subject="",
    )
    for job in moved:
        tell(connection, job, "retrieved", f"{job.title}: {sentence}", now)
    return bool(moved)
