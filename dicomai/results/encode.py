"""From findings to DICOM objects: a SEG where masks have voxels, and always a report."""

from __future__ import annotations

import io
import uuid
import warnings
from collections.abc import Sequence

import pydicom
from pydicom import config
from pydicom.dataset import Dataset

from dicomai.errors import InputError
from dicomai.findings import Findings
from dicomai.results.context import ResultContext
from dicomai.results.provenance import job_of
from dicomai.results.seg import drawn, encode_seg
from dicomai.results.sr import encode_sr


def encode(
    findings: Findings,
    source_headers: Sequence[Dataset],
    job_uuid: uuid.UUID,
    context: ResultContext,
) -> tuple[Dataset, ...]:
    """Return the results of one analysis: a Segmentation if any mask has a voxel, then the report.

    The same arguments give the same bytes: UIDs come from the job's UUID, times from the context.

    Parameters
    ----------
    findings
        What the model found, in the geometry of the source images.
    source_headers
        The data sets of the source images in the order of `findings.where.sop_instance_uids`;
        pixels may be missing. Never changed.
    job_uuid
        Drawn when the job was made.
    context
        Who encodes, and when.

    Raises
    ------
    InputError
        The findings do not lie on these images, or their identity can't be read.
    ConfigError
        Text in an undeclared character set, or an unknown time zone.
    """
    job = job_of(findings, source_headers, job_uuid, context)
    segments = drawn(findings)
    seg = encode_seg(job, segments) if segments else None
    report = encode_sr(job, segments, seg)
    return (report,) if seg is None else (seg, report)


def written(result: Dataset) -> bytes:
    """Return an object as a Part 10 file (PS3.10), Explicit VR Little Endian.

    Raises
    ------
    InputError
        A character does not fit the object's character set. It would have become `?`.
    """
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Failed to encode", category=UserWarning)
        warnings.filterwarnings("error", message=".*replacement characters", category=UserWarning)
        # What the source says too long or against its representation is handed on as it is.
        with config.disable_value_validation():
            try:
                pydicom.dcmwrite(out, result, enforce_file_format=True)
            except (UserWarning, UnicodeError) as trouble:
                raise InputError(
                    f"encode: {result.SOPInstanceUID} holds text that its character set lacks: "
                    f"{trouble}",
                    subject=str(result.SOPInstanceUID),
                ) from trouble
    return out.getvalue()
