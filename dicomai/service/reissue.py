"""Reissuing results: a person says whose a study really is, or which procedure it was."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from importlib.metadata import version

from pydicom import dcmread
from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant
from dicomai.dicom.identity import IdentityKey, identity_of, issuer_in, known_patient_id
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DicomaiError, InputError, NotFound, RefusedError, TransientError
from dicomai.net.study_identity import find_study_identity
from dicomai.results.context import ResultContext
from dicomai.results.encode import written
from dicomai.results.gate.reissue import check_reissued
from dicomai.results.gate.rejection import check_rejection
from dicomai.results.reissue import (
    REASON,
    Correction,
    Person,
    known_of,
    note_uid,
    reissued,
    rejection_note,
)
from dicomai.results.uids import COMPREHENSIVE_3D_SR_STORAGE
from dicomai.service import analyse
from dicomai.service.received import Reading
from dicomai.settings import Settings
from dicomai.store import deliveries, instances, reissues
from dicomai.store.engine import reading, writing
from dicomai.store.instances import Instance
from dicomai.store.job import Job, JobId
from dicomai.store.reissues import Reissue


def reissue(
    settings: Settings,
    engine: Engine,
    study: StudyInstanceUID,
    correction: Correction,
    clock: Callable[[], Instant],
) -> tuple[JobId, ...]:
    """Make the results of a study those of a corrected patient or procedure, and queue them.

    Results that left before are named in a rejection note, which goes to the nodes that take one.
    Who has a corrected Patient ID, the nodes that the results go to are asked, where they answer
    C-FIND; what none of them says of that patient stays empty.

    Returns
    -------
    tuple
        A new job for each analysis whose results count and had other values.

    Raises
    ------
    NotFound
        There are no results of this study.
    InputError
        A value can't be, or it is the one that all of them have.
    TransientError, RefusedError
        No node says who has the Patient ID, and one gives no answer.
    GateError
        What was made differs in more than the correction; nothing was changed.
    """
    with reading(engine) as connection:
        counted = _counted(connection, study)
        goes_to = {
            delivery.node
            for each in counted
            for delivery in deliveries.of_analysis(connection, each.id)
        }
    if not counted:
        raise NotFound(
            f"Study {study} has no results that could be reissued. See: dicomai study {study}",
            subject=study,
        )
    if correction.patient_id:
        if not known_patient_id(correction.patient_id, settings.decide.placeholder_ids):
            raise InputError(
                f"{correction.patient_id!a} stands for no patient (decide.placeholder_ids). Give "
                "the Patient ID that is the patient's own.",
                subject=study,
            )
        person = _person(settings, study, correction.patient_id, goes_to)
        correction = replace(correction, person=person)
    made = [_reissued(settings, engine, job, correction, clock()) for job in counted]
    # One that ended meanwhile, before the first of these counted, says what its images say.
    with reading(engine) as connection:
        known = {*made, *(job.id for job in counted)}
        late = [job for job in _counted(connection, study) if job.id not in known]
    made += [_reissued(settings, engine, job, correction, clock()) for job in late]
    new = tuple(each for each in made if each is not None)
    if not new:
        names = " and ".join(map(dictionary_description, correction.attributes))
        numbers = ", ".join(str(job.id) for job in counted)
        raise InputError(f"The results of job {numbers} have that {names}.", subject=study)
    return new


def _counted(connection: Connection, study: StudyInstanceUID) -> list[Job]:
    """Return the analyses of a study whose results count."""
    return [each for each in reissues.current(connection, study) if results_of(connection, each)]


def _person(
    settings: Settings, study: StudyInstanceUID, patient_id: str, goes_to: Collection[str]
) -> Person:
    """Return who has a Patient ID, as the first node says that has the study under it."""
    trouble: DicomaiError | None = None
    for node in settings.nodes:
        if node.name not in goes_to or not node.answers_find:
            continue
        try:
            there = find_study_identity(node, settings.receiver.ae_title, study, settings.tls.files)
        except (TransientError, RefusedError) as error:
            trouble = trouble or error
            continue
        if there is not None and there.patient_id == patient_id.strip(" "):
            return Person(
                name=there.patient_name,
                birth_date=there.birth_date,
                sex=there.sex,
                issuer_of_patient_id=there.issuer_of_patient_id,
            )
    if trouble is not None:
        raise trouble
    return Person()


def _reissued(
    settings: Settings, engine: Engine, job: Job, correction: Correction, now: Instant
) -> JobId | None:
    """Reissue the results of an analysis; None: they have these values, as after a kill amid it."""
    with reading(engine) as connection:
        rows = results_of(connection, job)
        holders = reissues.holders(connection, job)
        left = [
            row
            for each in reissues.lineage(connection, job)
            if holders[each.id]
            for row in results_of(connection, each)
        ]
        inputs = instances.inputs_of(connection, job.id)
    old = _read(settings, rows, job)
    correction = _with_issuer(correction, old, job)
    changes = correction.attributes
    if all(str(each.get(key) or "").strip(" ") == changes[key] for each in old for key in changes):
        return None
    unique = uuid.uuid4()
    new = reissued(old, correction, unique, now)
    octets = [written(each) for each in new]
    check_reissued(octets, old, changes, known_of(correction.person))
    if left:
        octets.append(_note(_read(settings, left, job), new, unique, now))
    how = reading_of(settings, job, inputs)
    key = key_of(new[0], how) if correction.patient_id else job.patient_key
    wanted = replace(job, uuid=unique, patient_key=key)
    placed = analyse.placed(wanted, octets, settings.folders.data, how, now)
    takes = {each.name for each in settings.nodes if each.rejection_notes}
    made = Reissue(
        unique=unique,
        patient_key=key,
        accession_number=correction.accession_number,
        produced=placed,
        holders=holders,
        by_hand=sorted(frozenset[str]().union(*holders.values()) - takes),
        unnamed=key != job.patient_key and not new[0].PatientName,
    )
    with writing(engine) as connection:
        return reissues.reissue(connection, job, made, now)


def _with_issuer(correction: Correction, old: Sequence[Dataset], job: Job) -> Correction:
    """Return a correction that says whose the Patient ID is, where that alone is wrong."""
    there = correction.person.issuer_of_patient_id
    ours = str(old[0].get("IssuerOfPatientID") or "").strip(" ") or issuer_in(job.patient_key)
    same_id = str(old[0].get("PatientID") or "").strip(" ") == correction.patient_id.strip(" ")
    if not (same_id and there and ours) or there == ours:
        return correction
    return replace(correction, issuer_of_patient_id=there)


def reading_of(settings: Settings, job: Job, inputs: Sequence[tuple[str, Instance]]) -> Reading:
    """Return how the images of an analysis were read, so that its results' key comes out alike.

    Where they are deleted, or their node is configured no more, the key tells whose ID it was.
    """
    node = next(
        (each for each in settings.nodes if inputs and each.name == inputs[0][1].node), None
    )
    return Reading(
        issuer_of_patient_id=node.issuer_of_patient_id if node else issuer_in(job.patient_key),
        charset_default=node.charset_default if node else "",
        placeholder_ids=settings.decide.placeholder_ids,
    )


def results_of(connection: Connection, job: Job) -> list[Instance]:
    """Return what an analysis found, the report last, without notes about what was before."""
    if job.is_withdrawal:
        return []  # its note is all there is
    rows = instances.of_job(connection, job.id)
    kept = [row for row in rows if row.sop_instance_uid != note_uid(job.uuid)]
    return sorted(kept, key=lambda row: row.sop_class_uid == COMPREHENSIVE_3D_SR_STORAGE)


def _read(settings: Settings, rows: Sequence[Instance], job: Job) -> list[Dataset]:
    try:
        return [dcmread(settings.folders.data / row.path) for row in rows]
    except FileNotFoundError as gone:
        raise NotFound(
            f"{gone.filename} is missing from the archive, so the results of job {job.id} can't be "
            f"reissued. For a new run: dicomai retry {job.id} --again",
            subject=str(job.id),
        ) from gone


def _note(
    left: Sequence[Dataset], new: Sequence[Dataset], unique: uuid.UUID, now: Instant
) -> bytes:
    context = ResultContext(created_at=now, software_version=version("dicomai"))
    octets = written(rejection_note(left, new[-1], unique, context))
    check_rejection(octets, left, REASON, reissued=new[-1])
    return octets


def key_of(result: Dataset, how: Reading) -> IdentityKey:
    """Return whose a result is, as images were read; InputError where it names no patient."""
    attributes = {
        keyword: str(result.get(keyword) or "")
        for keyword in ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
    }
    key = identity_of(
        attributes, issuer_of_node=how.issuer_of_patient_id, placeholders=how.placeholder_ids
    ).key
    if key is None:
        raise InputError(f"{attributes['PatientID']!a} names no patient.")
    return key
