"""Reissues: the results of an analysis once more, as those of a corrected patient."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection, Table, exists, insert, select

from dicomai.dicom.dates import Instant
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SOPInstanceUID, StudyInstanceUID
from dicomai.store import deliveries, instances, schema, studies
from dicomai.store.instances import Instance, InstanceRow
from dicomai.store.job import REISSUE_OF, InstanceId, Job, JobId, job_of
from dicomai.store.jobs import NotNow, get, tell
from dicomai.store.states import PERHAPS_STORED, STORED, DeliveryState

jobs = schema.jobs
_COPIED: Final = (
    "kind",
    "study_instance_uid",
    "model",
    "package_sha256",
    "choice",
    "generation",
    "node",
    "priority",
    "urgency",
    "ageing",
    "rank",
    "claim",
    "attempts",
    "crashes",
    "worker",
    "beat",
    "stage",
    "progress",
    "error_sentence",
    "error_stage",
    "error_subject",
    "started_at",
    "stages_s",
)


def current(connection: Connection, study: StudyInstanceUID) -> tuple[Job, ...]:
    """Return the analyses of a study that are done and that none has replaced."""
    newer = jobs.alias("newer")
    found = connection.execute(
        select(jobs)
        .where(
            jobs.c.study_instance_uid == study,
            jobs.c.kind == "analyse",
            jobs.c.state == "done",
            ~exists().where(newer.c.supersedes == jobs.c.id),
        )
        .order_by(jobs.c.id)
    )
    return tuple(job_of(row) for row in found)


def last_of(connection: Connection, study: StudyInstanceUID, key: IdentityKey) -> Instance | None:
    """Return one of the last results of a study that name a patient; None: none is here."""
    found = connection.execute(
        select(jobs.c.id)
        .where(
            jobs.c.study_instance_uid == study,
            jobs.c.kind == "analyse",
            jobs.c.patient_key == key,
            exists().where(schema.instances.c.job_id == jobs.c.id),
        )
        .order_by(jobs.c.id.desc())
        .limit(1)
    ).scalar_one_or_none()
    return None if found is None else instances.of_job(connection, JobId(found))[0]


def first_of(
    connection: Connection, study: StudyInstanceUID, said: IdentityKey | None = None
) -> InstanceId | None:
    """Return the first result of a study that was reissued; None where it is not here any more.

    Objects are numbered as they come: what has a lower number was here when a person did that.

    Parameters
    ----------
    said
        Whom objects name: the first result since which the study is another's without a break, for
        a person who corrects a correction says nothing new of what came in between.
    """
    found = connection.execute(
        select(jobs)
        .where(jobs.c.study_instance_uid == study, jobs.c.kind == "analyse")
        .order_by(jobs.c.id)
    )
    every = {each.id: each for each in map(job_of, found)}
    reissued = [each for each in every.values() if each.is_reissue]
    if said is not None:
        reissued = _since_corrected(every, reissued, said)
    rows = instances.of_job(connection, reissued[0].id) if reissued else ()
    return min((each.id for each in rows), default=None)


def _since_corrected(
    every: Mapping[JobId, Job], reissued: Sequence[Job], said: IdentityKey
) -> list[Job]:
    """Return the reissues that gave a study to another than objects say, after the last undoing."""
    since: list[Job] = []
    for each in reissued:
        before = every.get(JobId(int(str(each.summary[REISSUE_OF]))))
        if before is None:  # pruned: nobody knows what it changed
            return []
        if each.patient_key == said:
            since = []
        elif before.patient_key != each.patient_key:
            since.append(each)
    return since


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reissue:
    """Results once more, and whose they are now.

    Attributes
    ----------
    unique
        Of the job that holds them.
    patient_key, accession_number
        The corrected ones; an accession number only where it changes.
    produced
        The results, and the note that withdraws those before.
    holders
        By analysis, the nodes that had, or may have had, some of those when the note was written.
    by_hand
        Of all these those that take no notes.
    unnamed
        Nobody said who has the corrected Patient ID, so that they name no one.
    """

    unique: uuid.UUID
    patient_key: IdentityKey
    accession_number: str
    produced: Sequence[InstanceRow]
    holders: Mapping[JobId, frozenset[str]]
    by_hand: Sequence[str]
    unnamed: bool


def reissue(connection: Connection, old: Job, new: Reissue, now: Instant) -> JobId:
    """Put reissued results into the catalogue, done, and queue them for delivery.

    The study is the corrected patient's from now on and has the corrected accession number, where
    one is given; what of the old results has not gone out is cancelled.

    Raises
    ------
    NotNow
        Meanwhile the study went or became another patient's, another analysis took the place of
        this one, or its results went to another node, or go there just now.
    """
    study = studies.lock(connection, old.study_instance_uid)
    still = {each.id for each in current(connection, old.study_instance_uid)}
    if study is None or study.status == "deleting" or old.id not in still:
        raise NotNow(
            f"{old.title} was replaced meanwhile, or its study is being deleted. Look at the study "
            f"and repeat this: dicomai study {old.study_instance_uid}",
            subject=str(old.id),
        )
    if study.patient_key not in (old.patient_key, new.patient_key):
        raise NotNow(
            f"Study {old.study_instance_uid} is another patient's by now than the results of "
            f"{old.title} say. Have it analysed anew: dicomai retry {old.id} --again",
            subject=str(old.id),
        )
    if new.patient_key != old.patient_key:
        studies.correct_patient(connection, study, old.patient_key, new.patient_key)
    if new.accession_number:
        said = _accession_numbers(connection, lineage(connection, old)[-1])
        studies.correct_accession_number(connection, study, said, new.accession_number)
    row = connection.execute(select(jobs).where(jobs.c.id == old.id)).one()._mapping
    fingerprint = f"{old.fingerprint} reissued {new.unique}"
    added = connection.execute(
        insert(jobs)
        .values(
            **{name: row[name] for name in _COPIED},
            uuid=str(new.unique),
            state="done",
            patient_key=new.patient_key,
            fingerprint=fingerprint,
            supersedes=old.id,
            summary={**old.summary, REISSUE_OF: old.id},
            created_at=now,
            finished_at=now,
        )
        .returning(jobs)
    ).one()
    job = job_of(added)
    _copy(connection, schema.job_inputs, old.id, job.id)
    _copy(connection, schema.job_routes, old.id, job.id)
    for each in new.produced:
        instances.add(connection, replace(each, job_id=job.id, origin="produced"), now)
    deliveries.cancel_unstarted(connection, old, f"Job {job.id} takes its place.", now)
    if holders(connection, old) != new.holders:
        raise NotNow(
            f"{old.title} is being delivered just now. Repeat this when it is over.",
            subject=str(old.id),
        )
    what = "accession number" if new.patient_key == old.patient_key else "Patient ID"
    sentence = (
        f"{job.title} holds the results of job {old.id} once more, for the {what} that a person "
        "gave."
    )
    if new.unnamed:
        sentence += (
            " They give that patient's ID alone, without name, birth date and sex: no node that "
            "answers C-FIND named the patient."
        )
    if new.by_hand:
        have = "has" if len(new.by_hand) == 1 else "have"
        if not surely_had_by(connection, old).issuperset(new.by_hand):
            have = "may have"
        sentence += (
            f" {', '.join(new.by_hand)} {have} the old ones and no rejection_notes: delete them "
            "there by hand."
        )
    tell(connection, job, "results reissued", sentence, now)
    deliveries.queue(connection, job, now)
    return job.id


def delivered_to(connection: Connection, analysis: JobId) -> frozenset[str]:
    """Return the nodes that have, or may have, some of an analysis's results."""
    return _nodes_with(connection, analysis, PERHAPS_STORED)


def noted_at(connection: Connection, analysis: JobId, note: SOPInstanceUID) -> frozenset[str]:
    """Return the nodes that have an analysis's note on what its results took the place of."""
    sent = schema.deliveries
    found = connection.execute(
        select(jobs.c.node)
        .join(sent, sent.c.job_id == jobs.c.id)
        .where(
            jobs.c.result_of == analysis,
            sent.c.sop_instance_uid == note,
            sent.c.state.in_(STORED),
        )
    )
    return frozenset(found.scalars())


def lineage(connection: Connection, analysis: Job) -> tuple[Job, ...]:
    """Return an analysis and, where its results are reissued ones, those that they were before."""
    found = [analysis]
    while (before := found[-1].summary.get(REISSUE_OF)) is not None:
        known = get(connection, JobId(int(str(before))))
        if known is None:  # pruned
            break
        found.append(known)
    return tuple(found)


def holders(connection: Connection, analysis: Job) -> dict[JobId, frozenset[str]]:
    """Return who has, or may have, some of its results, and who of what they were before."""
    return {each.id: delivered_to(connection, each.id) for each in lineage(connection, analysis)}


def had_by(connection: Connection, analysis: Job) -> frozenset[str]:
    """Return the nodes that have, or may have, some of its results, or of what they were before."""
    return frozenset[str]().union(*holders(connection, analysis).values())


def surely_had_by(connection: Connection, analysis: Job) -> frozenset[str]:
    """Return the nodes of which it is known that they have some of them."""
    every = lineage(connection, analysis)
    return frozenset[str]().union(*(_nodes_with(connection, each.id, STORED) for each in every))


def withdrawn_at(connection: Connection, analysis: Job) -> frozenset[str]:
    """Return the nodes that have, or may have, what reissued results take the place of."""
    before = lineage(connection, analysis)[1:2]
    return had_by(connection, before[0]) if before else frozenset()


def _accession_numbers(connection: Connection, analysis: Job) -> frozenset[str]:
    """Return the numbers in an analysis's results: those that its images had."""
    said = (
        row.attributes.get("AccessionNumber") for row in instances.of_job(connection, analysis.id)
    )
    return frozenset(each for each in said if isinstance(each, str))


def _nodes_with(
    connection: Connection, analysis: JobId, states: tuple[DeliveryState, ...]
) -> frozenset[str]:
    sent = schema.deliveries
    found = connection.execute(
        select(jobs.c.node)
        .join(sent, sent.c.job_id == jobs.c.id)
        .where(jobs.c.result_of == analysis, sent.c.state.in_(states))
        .distinct()
    )
    return frozenset(found.scalars())


def _copy(connection: Connection, table: Table, old: JobId, new: JobId) -> None:
    rows = connection.execute(select(table).where(table.c.job_id == old)).all()
    for row in rows:
        connection.execute(insert(table).values({**row._mapping, "job_id": new}))
