"""A new generation of an analysis that is over, on the same input."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from dicomai.dicom.dates import Instant
from dicomai.errors import NotFound
from dicomai.routing.fingerprint import fingerprint
from dicomai.routing.image import Image
from dicomai.store import analyses, instances, jobs
from dicomai.store.job import JobId


def again(
    connection: Connection, job: JobId, now: Instant, *, package_sha256: str | None = None
) -> JobId:
    """Queue an analysis that is over once more, as a new job, and return that.

    Parameters
    ----------
    job
        It is over, or held because its package was replaced.
    now
        The time.
    package_sha256
        The package of its model that is installed now; None: the same as before.

    Raises
    ------
    NotFound, NotNow
        There is no such job, its images are gone, or it is no analysis that is over.
    """
    old = jobs.existing(connection, job)
    taken, images = [], []
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
        images.append(
            Image(
                series_instance_uid=row.series_instance_uid,
                sop_instance_uid=row.sop_instance_uid,
                sop_class_uid=row.sop_class_uid,
                header_digest=row.header_digest,
                pixel_digest=row.pixel_digest,
                origin=row.origin,
                node=row.node,
                attributes=row.attributes,
            )
        )
    package = package_sha256 or old.package_sha256
    digest = fingerprint(package, images, old.generation + 1)
    return analyses.again(connection, job, tuple(taken), package, digest, now)
