"""UIDs of a job's results: all derive from the job's UUID, so encoding again gives the same."""

from __future__ import annotations

import uuid
from typing import Final, Literal, get_args

from dicomai.dicom import uid
from dicomai.dicom.uid import SOPInstanceUID

Kind = Literal[
    "SEG",
    "SR",
    "SC",
    "KO",
    "PR",
    "LABELMAP",
    "PM",
    "RTSTRUCT",
    "PDF",
    "SR:ENHANCED",
    "SR:TEXT",
    "REJECTION",
]
LABELMAP_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENTATION_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.4"
COMPREHENSIVE_3D_SR_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.88.34"

_DEVICES: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://dicomai.org/devices")


def series_uid(job: uuid.UUID, kind: Kind) -> str:
    """Return the Series Instance UID of a job's results of one kind."""
    return uid.derived(job, kind, "series")


def instance_uid(job: uuid.UUID, kind: Kind, number: int = 1) -> str:
    """Return the SOP Instance UID of a job's result of one kind; `number` is from 1."""
    return uid.derived(job, kind, "instance", *((number,) if number > 1 else ()))


def rejection_uid(job: uuid.UUID) -> SOPInstanceUID:
    """Return the SOP Instance UID of the note that withdraws a job's results."""
    return SOPInstanceUID(instance_uid(job, "REJECTION"))


def dimension_uid(job: uuid.UUID, kind: Kind, number: int = 1) -> str:
    """Return the UID of the Dimension Organization of an object of a job."""
    return uid.derived(job, kind, "dimensions", *((number,) if number > 1 else ()))


def tracking_uid(job: uuid.UUID, tracking_id: str) -> str:
    """Return the Tracking UID that SEG and SR share for one finding."""
    return uid.derived(job, "tracking", tracking_id)


def device_uid(package_sha256: str) -> str:
    """Return the Device UID of a model: its package's digest decides, nothing else."""
    return uid.derived(_DEVICES, package_sha256)


def series_number(source: int | None, kind: Kind) -> int:
    """Return the Series Number of results: the source's times a thousand, and the kind's place.

    That is 1 for SEG, 2 for SR, and so on in the order of `Kind`: so they sort behind the series
    that they come from. A source without a number, or with one that leaves no room in an IS,
    counts as 9.
    """
    base = source * 1000 if source is not None and 0 < source < 2_000_000 else 9000
    return base + 1 + get_args(Kind).index(kind)
