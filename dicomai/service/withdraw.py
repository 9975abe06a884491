"""Results that turned out wrong are taken back: a note goes wherever they went."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise

import pydicom
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import SOPInstanceUID
from dicomai.errors import NotFound
from dicomai.results.context import ResultContext
from dicomai.results.encode import written
from dicomai.results.gate.rejection import check_rejection
from dicomai.results.reissue import note_uid
from dicomai.results.rejection import encode_rejection
from dicomai.results.uids import rejection_uid
from dicomai.service.analyse import placed
from dicomai.service.reissue import reading_of, results_of
from dicomai.settings import Settings
from dicomai.store import analyses, deliveries, instances, jobs, reissues, withdrawals
from dicomai.store.engine import reading, writing
from dicomai.store.instances import Instance
from dicomai.store.job import Job, JobId, JobRoute
from dicomai.store.jobs import NotNow
from dicomai.store.states import UNFINISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """What became of a withdrawal.

    Attributes
    ----------
    job
        The job that carries the note.
    nodes
        Who gets it: those that have, or may have, something of the results and take rejection
        notes.
    by_hand
        Who has, or may have, something of them and takes none: there a person has to remove them.
    perhaps
        Of all these those that may have something, for their answer is not known.
    cancelled
        Deliveries that had not begun, and don't any more.
    """

    job: JobId
    nodes: tuple[str, ...]
    by_hand: tuple[str, ...]
    perhaps: frozenset[str]
    cancelled: tuple[JobId, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know of the nodes, one sentence each."""
        unsure = [
            f"{name} may have the results: what it made of them is not known."
            for name in self.nodes
            if name in self.perhaps
        ]
        left = [
            f"{name} {'may have' if name in self.perhaps else 'has'} the results and takes no "
            "rejection notes: remove them there by hand."
            for name in self.by_hand
        ]
        return (*unsure, *left)


def withdraw(
    engine: Engine, settings: Settings, job: JobId, reason: str, now: Instant
) -> Withdrawal:
    """Take back the results of an analysis: keep a rejection note, and queue it.

    What they were before they were reissued goes with them, wherever it is still in sight.

    Raises
    ------
    NotFound, NotNow
        There is no such job; or it is no analysis that gave results, is withdrawn already, or is
        being delivered just now.
    GateError
        The note breaks a rule; nothing was changed.
    """
    with reading(engine) as connection:
        old = jobs.existing(connection, job)
        rows = results_of(connection, old)
        inputs = instances.inputs_of(connection, job)
        takes = {each.name for each in settings.nodes if each.rejection_notes}
        in_sight = _in_sight(connection, old)
        before = [
            row for each, nodes in in_sight if nodes & takes for row in results_of(connection, each)
        ]
        known = instances.newest(connection, old.study_instance_uid, rejection_uid(old.uuid))
    if known is not None:
        raise NotNow(f"{old.title} is withdrawn already, by job {known.job_id}.", subject=str(job))
    if old.kind != "analyse" or old.is_withdrawal or old.state != "done" or not rows:
        raise NotNow(_nothing_to_withdraw(old), subject=str(job))
    octets = _note(settings, old, rows, before, reason, now)
    how = reading_of(settings, old, inputs)
    (row,) = placed(old, (octets,), settings.folders.data, how, now)
    with writing(engine) as connection:
        new = withdrawals.add(connection, old, _fingerprint(old), now)
        because = f"The results of {old.title} are withdrawn."
        cancelled = deliveries.cancel_unstarted(connection, old, because, now)
        in_sight_now = _in_sight(connection, old)
        if in_sight_now != in_sight:
            raise NotNow(
                f"{old.title} is being delivered just now. Repeat this when it is over.",
                subject=str(job),
            )
        went = sorted(
            reissues.delivered_to(connection, job).union(*(nodes for _, nodes in in_sight_now))
        )
        noted = tuple(each for each in went if each in takes)
        instances.add(connection, replace(row, job_id=new.id), now)
        route = JobRoute(route="withdrawal", mode="live", destinations=noted)
        analyses.add_destination(connection, new.id, route, now)
        done = Withdrawal(
            job=new.id,
            nodes=noted,
            by_hand=tuple(each for each in went if each not in takes),
            perhaps=frozenset(went) - reissues.surely_had_by(connection, old),
            cancelled=cancelled,
        )
        jobs.tell(connection, old, "results withdrawn", _told(old, done, reason), now)
        carries = f"{new.title} carries the note that takes back what job {old.id} had found."
        jobs.tell(connection, new, "results withdrawn", carries, now)
    return done


def _nothing_to_withdraw(job: Job) -> str:
    """Say why a job can't be withdrawn, and what can be done instead."""
    if job.kind == "deliver":
        return (
            f"{job.title} is a delivery. To take back the results that it was to deliver: dicomai "
            f"withdraw {job.result_of}"
        )
    if job.kind == "retrieve":
        return (
            f"{job.title} fetches images and has no results. The analyses of its study: dicomai "
            f"study {job.study_instance_uid}"
        )
    if job.is_withdrawal:
        return (
            f"{job.title} can't be taken back. For a new analysis: dicomai retry {job.supersedes} "
            "--again"
        )
    if job.state in UNFINISHED:
        return (
            f"{job.title} is {job.state} and has no results to withdraw. To keep it from making "
            f"some: dicomai cancel {job.id}"
        )
    return (
        f"{job.title} is {job.state} and has no results to withdraw. What else there is: dicomai "
        f"study {job.study_instance_uid}"
    )


def _told(old: Job, done: Withdrawal, reason: str) -> str:
    """Say who loses what and why."""
    goes = ", ".join(done.nodes) or "nobody"
    said = (
        f"A person withdrew the results of {old.title}; the note, job {done.job}, goes to {goes}."
    )
    return " ".join((said, *done.remarks, f"The reason: {reason}"))


def _in_sight(connection: Connection, old: Job) -> list[tuple[Job, frozenset[str]]]:
    """Return what reissued results took the place of, and where no note hides that yet.

    An archive may refuse to have an object rejected once more for another reason.
    """
    found = []
    hidden: frozenset[str] = frozenset()
    for later, earlier in pairwise(reissues.lineage(connection, old)):
        note = SOPInstanceUID(note_uid(later.uuid))
        hidden |= reissues.noted_at(connection, later.id, note)
        found.append((earlier, reissues.delivered_to(connection, earlier.id) - hidden))
    return found


def _note(
    settings: Settings,
    old: Job,
    rows: Sequence[Instance],
    before: Sequence[Instance],
    reason: str,
    now: Instant,
) -> bytes:
    data = settings.folders.data
    try:
        replaced, results = (
            [pydicom.dcmread(data / each.path, stop_before_pixels=True) for each in some]
            for some in (before, rows)
        )
    except FileNotFoundError as error:
        raise NotFound(
            f"{error.filename} is missing from the archive, so the results of {old.title} can't be "
            "named in a note. Withdraw them at the PACS.",
            subject=str(old.id),
        ) from error
    context = ResultContext(created_at=now, software_version=version("dicomai"))
    octets = written(encode_rejection([*replaced, *results], old.uuid, reason, context))
    check_rejection(octets, results, reason, replaced=replaced)
    return octets


def _fingerprint(old: Job) -> str:
    return hashlib.sha256(f"withdrawal of {uuid.UUID(str(old.uuid))}".encode()).hexdigest()
