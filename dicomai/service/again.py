"""A new generation of an analysis that is over: the same package on the same input."""

from __future__ import annotations

from sqlalchemy import Connection

from dicomai.dicom.dates import Instant
from dicomai.errors import NotFound
from dicomai.routing.fingerprint import fingerprint
from dicomai.routing.image import Image
from dicomai.store import analyses, instances, jobs
from dicomai.store.job import JobId


def again(connection: Connection, job: JobId, now: Instant) -> JobId:
    """Queue an analysis that is over once more, as a new job, and return that.

    Raises
    ------
    NotFound, NotNow
        There is no such job, its images are gone, or it is no analysis that is over.
    """
    old = jobs.existing(connection, job)
    inputs = instances.inputs_of(connection, job)
    if old.kind == "analyse" and len(inputs) < len(analyses.inputs(connection, job)):
        raise NotFound(
            f"Some images of {old.title} were deleted by retention. Send the study again.",
            subject=str(job),
        )
    images = [
        Image(
            series_instance_uid=each.series_instance_uid,
            sop_instance_uid=each.sop_instance_uid,
            sop_class_uid=each.sop_class_uid,
            header_digest=each.header_digest,
            pixel_digest=each.pixel_digest,
            origin=each.origin,
            node=each.node,
            attributes=each.attributes,
        )
        for _, each in inputs
    ]
    digest = fingerprint(old.package_sha256, images, old.generation + 1)
    return analyses.again(connection, job, digest, now)
