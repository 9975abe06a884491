"""Reissuing results: a person says whose a study really is."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from pydicom import dcmread
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant
from dicomai.dicom.identity import identity_of
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import InputError, NotFound
from dicomai.results.encode import written
from dicomai.results.reissue import reissued, rejection_note
from dicomai.service import analyse
from dicomai.service.received import Reading
from dicomai.settings import Settings
from dicomai.store import instances, reissues
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job, JobId


def reissue(
    settings: Settings,
    engine: Engine,
    study: StudyInstanceUID,
    patient_id: str,
    clock: Callable[[], Instant],
) -> tuple[JobId, ...]:
    """Make the results of a study those of a corrected Patient ID, and queue them for delivery.

    Results that left before are named in a rejection note, which goes to the nodes that take one.

    Returns
    -------
    tuple
        A new job for each analysis whose results count.

    Raises
    ------
    NotFound
        There are no results of this study.
    InputError
        The ID is none, or it is the one that they have.
    """
    with reading(engine) as connection:
        found = reissues.current(connection, study)
    if not found:
        raise NotFound(
            f"Study {study} has no results that could be reissued. See: dicomai study {study}",
            subject=study,
        )
    return tuple(_reissued(settings, engine, job, patient_id, clock()) for job in found)


def _reissued(settings: Settings, engine: Engine, job: Job, patient_id: str, now: Instant) -> JobId:
    data = settings.folders.data
    with reading(engine) as connection:
        rows = instances.of_job(connection, job.id)
        left = bool(reissues.delivered_to(connection, job.id))
        inputs = instances.inputs_of(connection, job.id)
    if not rows:
        raise NotFound(
            f"The results of job {job.id} are not in the archive any more.", subject=str(job.id)
        )
    old = [dcmread(data / row.path) for row in rows]
    if all(str(each.get("PatientID") or "").strip(" ") == patient_id for each in old):
        raise InputError(f"The results of job {job.id} have that Patient ID.", subject=str(job.id))
    unique = uuid.uuid4()
    new = list(reissued(old, patient_id, unique))
    if left:
        at = datetime.fromtimestamp(now / 1e6, UTC)
        new.append(rejection_note(old, new[0], unique, (f"{at:%Y%m%d}", f"{at:%H%M%S}")))
    node = next(
        (each for each in settings.nodes if inputs and each.name == inputs[0][1].node), None
    )
    how = Reading(
        issuer_of_patient_id=node.issuer_of_patient_id if node else "",
        charset_default=node.charset_default if node else "",
        placeholder_ids=settings.decide.placeholder_ids,
    )
    attributes = {
        keyword: str(new[0].get(keyword) or "")
        for keyword in ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
    }
    key = identity_of(
        attributes, issuer_of_node=how.issuer_of_patient_id, placeholders=how.placeholder_ids
    ).key
    if key is None:
        raise InputError(f"{patient_id!a} names no patient.", subject=patient_id)
    wanted = replace(job, uuid=unique, patient_key=key)
    placed = analyse.placed(wanted, [written(each) for each in new], data, how, now)
    with writing(engine) as connection:
        return reissues.reissue(connection, job, unique, key, placed, now)
