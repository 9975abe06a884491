"""Deliveries: one job for each result and node, and a state for each object of it."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from sqlalchemy import Connection, bindparam, delete, insert, select

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import SOPInstanceUID, StudyInstanceUID
from dicomai.store import lacking, schema, studies
from dicomai.store.job import NORMAL, URGENT, Held, Job, JobId, blank, job_of
from dicomai.store.jobs import NotNow, cancel_if_replaced, existing, ours, routes_of, tell
from dicomai.store.moves import move
from dicomai.store.states import PERHAPS_STORED, STORED, DeliveryState
from dicomai.store.studies import Study

jobs = schema.jobs

_UNCERTAIN: Final = "It was to go out; what the node made of it is not known."

Refusal = Literal["study held", "other identity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryObject:
    """What became of one object at its destination; `status` is DIMSE's (PS3.4 B.2.3)."""

    sop_instance_uid: SOPInstanceUID
    state: DeliveryState
    status: int | None
    sentence: str
    at: Instant


def queue(connection: Connection, analysis: Job, now: Instant) -> tuple[JobId, ...]:
    """Queue deliveries of a finished analysis to each node of its live routes, once per node."""
    added = []
    for route in routes_of(connection, analysis.id):
        for node in route.destinations if route.mode == "live" else ():
            known = connection.execute(
                select(jobs.c.id).where(jobs.c.result_of == analysis.id, jobs.c.node == node)
            ).scalar_one_or_none()
            if known is None:
                job = _insert(connection, analysis, node, now)
                added.append(job.id)
                known = job.id
            _want(connection, JobId(known), route.route, node)
    return tuple(added)


def start(connection: Connection, held: Held, now: Instant) -> Refusal | Literal["lost"] | None:
    """Take the study's lock and say whether a claimed delivery may begin; None: it may.

    A study that is held, or another patient's by now, holds the job. Results whose place others
    took while their delivery ran, and that it was given back for, are not begun again.
    """
    uid = connection.execute(
        select(jobs.c.study_instance_uid).where(*ours(held), jobs.c.state == "running")
    ).scalar_one_or_none()
    if uid is None:
        return "lost"
    study = studies.lock(connection, StudyInstanceUID(uid))
    if cancel_if_replaced(connection, existing(connection, held.job_id), now) is not None:
        return "lost"
    return hold_unless_free(connection, held, study, now)


def hold_unless_free(
    connection: Connection, held: Held, study: Study | None, now: Instant
) -> Refusal | Literal["lost"] | None:
    """Hold a running job whose locked study is held or another patient's; None: it is free.

    A note that withdraws results names whose they were, and goes wherever they went.
    """
    # Read under the study's lock: waiting for it may have taken long.
    key = connection.execute(
        select(jobs.c.patient_key).where(*ours(held), jobs.c.state == "running")
    ).scalar_one_or_none()
    if key is None:
        return "lost"
    of = connection.execute(select(jobs.c.result_of).where(jobs.c.id == held.job_id)).scalar_one()
    if of is not None and existing(connection, JobId(of)).is_withdrawal:
        return None  # it takes back what went out, whosever that was taken for
    if study is not None and study.status == "held":
        moved = move(
            connection,
            ("running",),
            "held",
            *ours(held),
            held_by="study",
            error_kind="identity",
            error_sentence=study.hold_reason or "",
            attempts=jobs.c.attempts - 1,
        )
        for each in moved:
            tell(connection, each, "job held", f"{each.title} waits for its study.", now)
        return "study held"
    stray = lacking.strayed(connection, held.job_id if of is None else JobId(of))
    if study is None or study.patient_key != key or stray is not None:
        sentence = (
            "The job was made for another patient than the study's is now; nothing was written. To "
            f"end it: dicomai cancel {held.job_id}"
            if stray is None
            else f"It compares with study {stray}, which is not the patient's without doubt any "
            "more; nothing was written. Find out whose that is: dicomai study "
            f"{stray}; then: dicomai retry {held.job_id}"
        )
        moved = move(
            connection,
            ("running",),
            "held",
            *ours(held),
            held_by="identity",
            error_kind="identity",
            error_sentence=sentence,
        )
        for each in moved:
            tell(connection, each, "job held", sentence, now)
        return "other identity"
    return None


def begin_objects(
    connection: Connection, held: Held, uids: Collection[SOPInstanceUID], now: Instant
) -> bool:
    """Note that objects of a running delivery are about to go out; False: it is ours no more.

    Whatever happens then, nobody can say that the node does not have them.
    """
    if not _is_ours(connection, held):
        return False
    known = {each.sop_instance_uid: each.state for each in objects(connection, held.job_id)}
    begun = [
        DeliveryObject(
            sop_instance_uid=uid, state="uncertain", status=None, sentence=_UNCERTAIN, at=now
        )
        for uid in uids
        if known.get(uid) not in PERHAPS_STORED
    ]
    _put(connection, held.job_id, begun)
    return True


def note_objects(connection: Connection, held: Held, told: Sequence[DeliveryObject]) -> bool:
    """Note what became of objects of a running delivery; False: it is ours no more.

    What the node took is noted whoever has the job by now, for the node has it.
    """
    is_ours = _is_ours(connection, held)
    if not is_ours:
        known = {each.sop_instance_uid: each.state for each in objects(connection, held.job_id)}
        told = [
            each
            for each in told
            if each.state in STORED
            and each.sop_instance_uid in known
            and known[each.sop_instance_uid] not in STORED
        ]
    _put(connection, held.job_id, told)
    return is_ours


def _is_ours(connection: Connection, held: Held) -> bool:
    """Lock the row of a delivery, and tell whether it runs under this claim."""
    row = connection.execute(
        select(jobs.c.claim, jobs.c.state).where(jobs.c.id == held.job_id).with_for_update()
    ).one_or_none()
    return row is not None and (row.claim, row.state) == (held.claim, "running")


def _put(connection: Connection, job: JobId, told: Sequence[DeliveryObject]) -> None:
    """Have the rows of objects say this, whatever they said."""
    if not told:
        return
    table = schema.deliveries
    before = delete(table).where(
        table.c.job_id == job, table.c.sop_instance_uid == bindparam("sop")
    )
    connection.execute(before, [{"sop": each.sop_instance_uid} for each in told])
    connection.execute(insert(table), [{"job_id": job, **asdict(each)} for each in told])


def objects(connection: Connection, job: JobId) -> tuple[DeliveryObject, ...]:
    """Return what became of the objects of a delivery, as far as it got."""
    table = schema.deliveries
    found = connection.execute(
        select(table).where(table.c.job_id == job).order_by(table.c.sop_instance_uid)
    )
    return tuple(
        DeliveryObject(
            sop_instance_uid=row.sop_instance_uid,
            state=row.state,
            status=row.status,
            sentence=row.sentence,
            at=row.at,
        )
        for row in found
    )


def finish(
    connection: Connection,
    held: Held,
    stages_s: Mapping[str, float],
    summary: Mapping[str, object],
    now: Instant,
    sentence: str = "",
) -> bool:
    """Finish a delivery; False: it is ours no more, and no row was touched.

    The sentence says how it ended, if not simply with all objects there.
    """
    moved = move(
        connection,
        ("running",),
        "done",
        *ours(held),
        finished_at=now,
        progress=1.0,
        stages_s=dict(stages_s),
        summary=dict(summary),
        error_kind=None,
        error_sentence="",
        error_stage="",
        error_subject="",
    )
    for job in moved:
        ended = sentence or f"{job.node} has all objects."
        tell(connection, job, "delivered", f"{job.title}: {ended}", now)
    return bool(moved)


def of_analysis(connection: Connection, analysis: JobId) -> tuple[Job, ...]:
    """Return the deliveries of an analysis's results."""
    query = select(jobs).where(jobs.c.result_of == analysis).order_by(jobs.c.id)
    return tuple(job_of(row) for row in connection.execute(query))


def cancel_waiting(
    connection: Connection, analysis: JobId, because: str, now: Instant
) -> tuple[JobId, ...]:
    """Cancel the deliveries of an analysis's results that are not on their way; return them."""
    cancelled = move(
        connection,
        ("waiting", "queued", "held"),
        "cancelled",
        jobs.c.result_of == analysis,
        finished_at=now,
    )
    for each in cancelled:
        tell(connection, each, "job cancelled", because, now)
    return tuple(each.id for each in cancelled)


def cancel_unstarted(
    connection: Connection, analysis: Job, because: str, now: Instant
) -> tuple[JobId, ...]:
    """Cancel all deliveries of an analysis's results; return them.

    Raises
    ------
    NotNow
        One is on its way.
    """
    cancelled = cancel_waiting(connection, analysis.id, because, now)
    # Looked for last: until it is cancelled here, a worker may claim it (PostgreSQL).
    for each in of_analysis(connection, analysis.id):
        if each.state == "running":
            raise NotNow(
                f"{each.title} is being delivered just now. Repeat this when it is over.",
                subject=str(analysis.id),
            )
    return cancelled


def _insert(connection: Connection, analysis: Job, node: str, now: Instant) -> Job:
    nodes = schema.nodes
    breaker = connection.execute(
        select(nodes.c.breaker).where(nodes.c.name == node)
    ).scalar_one_or_none()
    values = blank(uuid.uuid4(), analysis.study_instance_uid, analysis.patient_key, now)
    if breaker not in (None, "closed"):
        values |= {"state": "waiting", "waiting_for": "breaker"}
    row = connection.execute(
        insert(jobs)
        .values(
            **values,
            kind="deliver",
            model="",
            package_sha256="",
            choice="",
            generation=0,
            result_of=analysis.id,
            node=node,
            priority=analysis.priority,
            urgency=URGENT if analysis.urgent else NORMAL,
            ageing=0,
            rank=now,
        )
        .returning(jobs)
    ).one()
    job = job_of(row)
    tell(connection, job, "delivery queued", f"{job.title} was queued for {node}.", now)
    return job


def _want(connection: Connection, delivery: JobId, route: str, node: str) -> None:
    table = schema.job_routes
    known = connection.execute(
        select(table.c.route).where(table.c.job_id == delivery, table.c.route == route)
    ).first()
    if known is None:
        connection.execute(
            insert(table).values(job_id=delivery, route=route, mode="live", destinations=[node])
        )
