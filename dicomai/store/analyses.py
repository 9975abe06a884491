"""Analyses: how they are asked for, shared by routes, superseded, and finished."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from sqlalchemy import Connection, delete, exists, insert, select, update

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import counted
from dicomai.store import deliveries, instances, lacking, predecessors, schema, studies
from dicomai.store.instances import InstanceRow
from dicomai.store.job import (
    NORMAL,
    URGENT,
    AddedJob,
    Held,
    Job,
    JobId,
    JobInput,
    JobRoute,
    NewAnalysis,
    blank,
    job_of,
    rank_of,
)
from dicomai.store.jobs import existing, get, ours, routes_of, tell
from dicomai.store.moves import move
from dicomai.store.states import UNFINISHED

jobs = schema.jobs

FinishOutcome = Literal["done", "lost", "study held", "other identity", "other predecessor"]


def add_analysis(connection: Connection, new: NewAnalysis, now: Instant) -> AddedJob:
    """Queue an analysis, once; its study is locked.

    An analysis that was asked for before is shared: the route's destinations are added to it, or to
    what took its place for the same images, and get its results at once where it is done. The last
    analysis of the same study, model and choice with another fingerprint is superseded, also where
    what is asked for was done before it: images, or a package, may come back.
    """
    known = _asked_for_before(connection, new, now)
    if known is not None:
        return known
    older = _last_of_choice(connection, new)
    if older is not None and lacking.complete(connection, older, new, now):
        add_destination(connection, older, new.route, now)
        return AddedJob(outcome="queued", job_id=older)
    replaced = {
        each: existing(connection, each) for each in (older, new.supersedes) if each is not None
    }
    for old in replaced.values():
        if not old.is_withdrawal:  # its note has to reach who has the results
            _withdraw(connection, old, new, now)
    job = _insert(connection, new, older if older is not None else new.supersedes, now)
    before = replaced.get(job.supersedes) if job.supersedes is not None else None
    tell(connection, job, "job queued", _why_queued(job, new, before), now)
    return AddedJob(outcome="queued", job_id=job.id)


def _why_queued(job: Job, new: NewAnalysis, before: Job | None) -> str:
    if new.supersedes is not None:
        return f"A person had job {new.supersedes} run again: {job.title} is queued."
    what = "waits for an input of" if new.waits else "was queued by"
    sentence = f"{job.title} {what} route {new.route.route}"
    if before is None:
        return f"{sentence}."
    if before.is_withdrawal:
        return (
            f"{sentence}. It replaces none: the results of job {before.supersedes} are withdrawn."
        )
    what = "input" if before.package_sha256 == new.package_sha256 else "package"
    return f"{sentence} and replaces job {before.id}, whose {what} has changed."


def inputs(connection: Connection, job: JobId) -> tuple[JobInput, ...]:
    """Return the instances that a job took, in order; some may be gone by now."""
    table = schema.job_inputs
    found = connection.execute(
        select(table).where(table.c.job_id == job).order_by(table.c.position)
    )
    return tuple(
        JobInput(
            input=row.input,
            instance_id=row.instance_id,
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            sop_instance_uid=row.sop_instance_uid,
        )
        for row in found
    )


def add_destination(connection: Connection, job: JobId, route: JobRoute, now: Instant) -> bool:
    """Have another route share an analysis; False: it did already.

    Where it is done, its results are delivered at once, once to each node.
    """
    if any(each == route for each in routes_of(connection, job)):
        return False
    table = schema.job_routes
    connection.execute(table.delete().where(table.c.job_id == job, table.c.route == route.route))
    connection.execute(
        insert(table).values(
            job_id=job,
            route=route.route,
            mode=route.mode,
            destinations=list(route.destinations),
        )
    )
    current = get(connection, job)
    if current is not None and current.state == "done":
        deliveries.queue(connection, current, now)
    return True


def in_the_way(connection: Connection, new: NewAnalysis) -> JobId | None:
    """Return a live job that an analysis in shadow would take the place or the route of."""
    routes, delivery = schema.job_routes, jobs.alias("delivery")
    live = exists().where(routes.c.job_id == jobs.c.id, routes.c.mode == "live")
    same_route = exists().where(
        routes.c.job_id == jobs.c.id,
        routes.c.mode == "live",
        routes.c.route == new.route.route,
    )
    going_out = exists().where(delivery.c.result_of == jobs.c.id, delivery.c.state.in_(UNFINISHED))
    found = connection.execute(
        select(jobs.c.id).where(
            jobs.c.study_instance_uid == new.study_instance_uid,
            jobs.c.kind == "analyse",
            ((jobs.c.fingerprint == new.fingerprint) & same_route)
            | (
                (jobs.c.fingerprint != new.fingerprint)
                & (jobs.c.model == new.model)
                & (jobs.c.choice == new.choice)
                & live
                & (jobs.c.state.in_(UNFINISHED) | going_out)
            ),
        )
    )
    number = found.scalars().first()
    return None if number is None else JobId(number)


def finish(
    connection: Connection,
    held: Held,
    produced: Sequence[InstanceRow],
    stages_s: Mapping[str, float],
    summary: Mapping[str, object],
    now: Instant,
    predecessor_ids: Sequence[JobId] = (),
    deviations: Sequence[str] = (),
) -> FinishOutcome:
    """Finish a running analysis: results, deliveries, events and state, or none of them.

    Parameters
    ----------
    produced
        Results whose files are durable.
    predecessor_ids
        The jobs that they name as predecessors.
    deviations
        What was done otherwise than the package says: an event each.

    Returns
    -------
    str
        "lost": the claim is not ours any more, no row was touched. "study held", "other identity":
        the job is held. "other predecessor": meanwhile the superseded job's results went out;
        nothing was written, encode again.
    """
    found = connection.execute(
        select(jobs.c.study_instance_uid).where(*ours(held), jobs.c.state == "running")
    ).scalar_one_or_none()
    if found is None:
        return "lost"
    study = studies.lock(connection, StudyInstanceUID(found))
    refused = deliveries.hold_unless_free(connection, held, study, now)
    if refused is not None:
        return refused
    current = predecessors.of_job(connection, held.job_id)
    if [each.job.id for each in current] != [*predecessor_ids]:
        return "other predecessor"
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
    if not moved:
        return "lost"
    (job,) = moved
    for row in produced:
        instances.add(connection, replace(row, job_id=job.id, origin="produced"), now)
    for each in deviations:
        tell(connection, job, "job deviated", f"{job.title}: {each}", now)
    tell(connection, job, "job done", f"{job.title} made {counted(produced)}.", now)
    deliveries.queue(connection, job, now)
    return "done"


def _asked_for_before(connection: Connection, new: NewAnalysis, now: Instant) -> AddedJob | None:
    """Return what came of the same analysis, and share it; None: it was not, or must be done anew.

    The last job of its choice is what stands: a new run, a reissue or a withdrawal of it, or an
    analysis of other images or by another package, which what has come back is to replace.
    """
    prints = schema.fingerprints
    known = connection.execute(
        select(prints.c.job_id).where(prints.c.fingerprint == new.fingerprint)
    ).scalar_one_or_none()
    if known is None:
        return None
    first = get(connection, JobId(known))
    if first is None:
        return AddedJob(outcome="pruned", job_id=JobId(known))
    number = _last_of_choice(connection, first)
    last = first if number is None else existing(connection, number)
    withdrawn = last.supersedes if last.is_withdrawal else None
    if _stands_for(connection, last, first, new):
        if withdrawn is not None:
            return AddedJob(outcome="present", job_id=withdrawn)
        return _share(connection, last, new.route, now)
    wanted = routes_of(connection, last.id if withdrawn is None else withdrawn)
    lost = {each.input for each in inputs(connection, last.id)} - {e.input for e in new.inputs}
    # Two routes that take other images of one series would take turns for ever; and what was
    # compared with a prior that is deleted by now stays so.
    if lost or all(each.route != new.route.route for each in wanted):
        return AddedJob(outcome="present", job_id=first.id)
    _free_fingerprint(connection, first)
    return None


def _share(connection: Connection, job: Job, route: JobRoute, now: Instant) -> AddedJob:
    if not add_destination(connection, job.id, route, now):
        return AddedJob(outcome="present", job_id=job.id)
    sentence = f"Route {route.route} shares {job.title}: same model, same images."
    tell(connection, job, "job shared", sentence, now)
    return AddedJob(outcome="shared", job_id=job.id)


def _stands_for(connection: Connection, last: Job, first: Job, new: NewAnalysis) -> bool:
    """Tell whether the last job of a choice is the first, or what took its place for the same.

    Another that a decision queued has other images or another package, or it would be the first;
    where retention deleted those images meanwhile, only that tells.
    """
    made = last
    while made.is_withdrawal or made.is_reissue:
        before = None if made.supersedes is None else get(connection, made.supersedes)
        if before is None:  # pruned
            return False
        made = before
    if made.generation == 0:
        return made.id == first.id
    same_package = made.package_sha256 == new.package_sha256
    return same_package and _takes_the_same(connection, made, new.inputs)


def _takes_the_same(connection: Connection, job: Job, wanted: Sequence[JobInput]) -> bool:
    """Tell whether a job took these images; those that came again have another row since."""
    taken = {each.sop_instance_uid: each.instance_id for each in inputs(connection, job.id)}
    here = {each.sop_instance_uid: each.instance_id for each in wanted}
    return taken.keys() == here.keys() and not any(
        here[uid] != row and instances.get(connection, row) is not None
        for uid, row in taken.items()
    )


def _last_of_choice(connection: Connection, like: Job | NewAnalysis) -> JobId | None:
    """Return the last job of a study, model and choice: what stands.

    A withdrawal of results whose place others had taken before is none: it leaves those alone.
    """
    found = connection.execute(
        select(jobs)
        .where(
            jobs.c.study_instance_uid == like.study_instance_uid,
            jobs.c.kind == "analyse",
            jobs.c.model == like.model,
            jobs.c.choice == like.choice,
        )
        .order_by(jobs.c.id.desc())
    )
    every = [job_of(row) for row in found]
    replaced = {each.supersedes for each in every if not each.is_withdrawal}
    stand = (each.id for each in every if not each.is_withdrawal or each.supersedes not in replaced)
    return next(stand, None)


def _withdraw(connection: Connection, old: Job, new: NewAnalysis, now: Instant) -> None:
    """Cancel what of a superseded analysis has not gone out."""
    if new.supersedes is not None:
        why = "A person had the analysis run again"
    elif old.package_sha256 != new.package_sha256:
        why = "The package of its model has changed"
    else:
        why = "The study's images have changed"
    because = f"{why}; a newer job takes its place."
    cancelled = move(
        connection,
        ("waiting", "queued", "running", "held"),
        "cancelled",
        jobs.c.id == old.id,
        finished_at=now,
    )
    for job in cancelled:
        tell(connection, job, "job cancelled", because, now)
        _free_fingerprint(connection, job)
    deliveries.cancel_waiting(connection, old.id, because, now)


def _free_fingerprint(connection: Connection, job: Job) -> None:
    """Let the same images be analysed should they ever be the study's again."""
    prints = schema.fingerprints
    connection.execute(delete(prints).where(prints.c.fingerprint == job.fingerprint))
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job.id)
        .values(fingerprint=f"{job.fingerprint} superseded {job.uuid}")
    )


def _insert(
    connection: Connection, new: NewAnalysis, supersedes: JobId | None, now: Instant
) -> Job:
    unique = uuid.uuid4()
    waits = {"state": "waiting", "waiting_for": "input", "error_sentence": new.waits}
    row = connection.execute(
        insert(jobs)
        .values(
            **blank(unique, new.study_instance_uid, new.patient_key, now)
            | (waits if new.waits else {}),
            kind="analyse",
            model=new.model,
            package_sha256=new.package_sha256,
            choice=new.choice,
            fingerprint=new.fingerprint,
            generation=new.generation,
            supersedes=supersedes,
            node="",
            priority=new.priority,
            urgency=URGENT if new.urgent else NORMAL,
            ageing=new.ageing,
            rank=rank_of(now, new.priority, new.ageing),
        )
        .returning(jobs)
    ).one()
    job = job_of(row)
    connection.execute(
        insert(schema.fingerprints).values(
            fingerprint=new.fingerprint, job_id=job.id, job_uuid=str(unique), created_at=now
        )
    )
    lacking.put_inputs(connection, job.id, new)
    add_destination(connection, job.id, new.route, now)
    return job
