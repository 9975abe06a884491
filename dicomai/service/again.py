"""A new generation of an analysis that is over, on the same input."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from dicomai.dicom.dates import Instant
from dicomai.errors import NotFound
from dicomai.routing.exclusion import exclude
from dicomai.routing.fingerprint import fingerprint
from dicomai.routing.image import Image, Series
from dicomai.routing.matching import beside
from dicomai.routing.selection import ModelInputs
from dicomai.service.applied import input_of
from dicomai.service.earlier import earlier_studies
from dicomai.service.whole import image_of, whole
from dicomai.store import analyses, instances, jobs, reruns, studies
from dicomai.store.before import became
from dicomai.store.job import Job, JobId, JobInput
from dicomai.store.jobs import NotNow


def again(
    connection: Connection, job: JobId, now: Instant, *, model: ModelInputs | None = None
) -> JobId:
    """Queue an analysis that is over once more, as a new job, and return that.

    It gets the same input, and what of it was missing and is here by now.

    Parameters
    ----------
    job
        It is over, or held because its package was replaced.
    now
        The time.
    model
        Its model's package as it is installed now; None: the same as before.

    Raises
    ------
    NotFound, NotNow
        There is no such job, its images are gone, or it is no analysis that is over; or the study
        has changed since, and a later decision has queued a job for what is here now.
    """
    # A decision on its study may be about to queue another.
    old, _ = jobs.locked(connection, job)
    newer = reruns.decided_later(connection, old)
    if newer is not None and _is_current(connection, newer):
        raise NotNow(
            f"{old.title} was superseded by job {newer.id}, which a later decision queued for what "
            f"is here now. It {became(newer)}",
            subject=str(job),
        )
    taken: list[JobInput] = []
    images: list[Image] = []
    for each in analyses.inputs(connection, job):
        row = instances.get(connection, each.instance_id)
        if row is None:  # deleted by retention; the same object may have come again
            row = instances.newest(connection, each.study_instance_uid, each.sop_instance_uid)
        if row is None:
            raise NotFound(
                f"Some images of {old.title} were deleted by retention. Send the study again, and "
                "repeat this.",
                subject=str(job),
            )
        taken.append(replace(each, instance_id=row.id))
        images.append(image_of(row))
    if model is not None:
        _add_missing(connection, old, model, taken, images)
    package = model.package_sha256 if model is not None else old.package_sha256
    digest = fingerprint(package, images, old.generation + 1)
    return reruns.again(connection, job, tuple(taken), package, digest, now)


def _is_current(connection: Connection, job: Job) -> bool:
    """Tell whether all that a job took is here, and in the version that is used."""
    here = instances.inputs_of(connection, job.id)
    taken = analyses.inputs(connection, job.id)
    return len(here) == len(taken) and all(row.newest for _, row in here)


def _add_missing(
    connection: Connection,
    old: Job,
    model: ModelInputs,
    taken: list[JobInput],
    images: list[Image],
) -> None:
    """Add what is here of inputs that a job had to do without."""
    known = {each.input for each in taken}
    missing = [each for each in model.inputs[1:] if each.name not in known]
    study = studies.get(connection, old.study_instance_uid)
    if not missing or study is None:
        return
    seen = whole(connection, study)
    uid = images[0].series_instance_uid
    first = Series(series_instance_uid=uid, images=tuple(images))
    left = [kept for each in seen.series if (kept := exclude(each, ())[0]) is not None]
    for choice in beside(missing, first, left, earlier_studies(connection, seen)):
        if choice.chosen is not None:
            images += choice.chosen.images
            taken += [
                input_of(choice.input, seen.rows[each.sop_instance_uid])
                for each in choice.chosen.images
            ]
