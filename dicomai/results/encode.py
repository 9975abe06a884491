"""From findings to DICOM objects: always a report, and beside it what is asked for."""

from __future__ import annotations

import io
import uuid
import warnings
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomai.errors import InputError
from dicomai.findings import Findings
from dicomai.results.capture import encode_sc
from dicomai.results.context import ResultContext
from dicomai.results.explicit_vr import pieces
from dicomai.results.frames import FRAMES
from dicomai.results.job import job_of
from dicomai.results.key_objects import encode_ko
from dicomai.results.objects import DEFAULT
from dicomai.results.page import encode_pdf
from dicomai.results.parametric_map import encode_pm
from dicomai.results.plain_report import encode_plain
from dicomai.results.presentation import encode_pr
from dicomai.results.seg import drawn, encode_segs
from dicomai.results.sr import encode_sr
from dicomai.results.structure_set import encode_rtstruct
from dicomai.routing.route import ResultObject


def encode(
    findings: Findings,
    source_headers: Sequence[Dataset],
    job_uuid: uuid.UUID,
    context: ResultContext,
    objects: Collection[ResultObject] = DEFAULT,
    image: npt.NDArray[np.generic] | None = None,
) -> tuple[Dataset, ...]:
    """Return the results of one analysis; the last is the report, which refers to all others.

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
    objects
        The kinds that are wanted. There is always a report, and a Segmentation, to which the
        report refers, where a mask has a voxel; key images and marks only where something has a
        place.
    image
        The voxels (K, J, I) or pixels (J, I) that the model saw, in the modality's units: "SC" and
        "PDF" need them.

    Raises
    ------
    InputError
        The findings do not lie on these images, or their identity can't be read.
    ConfigError
        Text in an undeclared character set, or an unknown time zone.
    """
    job = job_of(findings, source_headers, job_uuid, context, image)
    segs = encode_segs(job, drawn(findings), objects)
    # The report refers to one of each segment's forms, and ties the others to it.
    forms = [each for each in segs if each.dataset.SOPClassUID == segs[0].dataset.SOPClassUID]
    others = [each.dataset for each in segs[len(forms) :]]
    if "SC" in objects:
        others += encode_sc(job)
    if "KO" in objects and (keys := encode_ko(job)) is not None:
        others.append(keys)
    if "PR" in objects:
        others += encode_pr(job)
    if "PM" in objects:
        others += encode_pm(job)
    if "RTSTRUCT" in objects and (contours := encode_rtstruct(job)) is not None:
        others.append(contours)
    if "PDF" in objects:
        others.append(encode_pdf(job))
    if "SR:ENHANCED" in objects:
        others.append(encode_plain(job, "SR:ENHANCED"))
    if "SR:TEXT" in objects:
        others.append(encode_plain(job, "SR:TEXT"))
    return (*(each.dataset for each in forms), *others, encode_sr(job, forms, others))


def written(result: Dataset) -> bytes:
    """Return an object as a Part 10 file (PS3.10), in the transfer syntax that it names.

    Raises
    ------
    InputError
        A character does not fit the object's character set. It would have become `?`.
    """
    head = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Failed to encode", category=UserWarning)
        warnings.filterwarnings("error", message=".*replacement characters", category=UserWarning)
        # What the source says too long or against its representation is handed on as it is.
        with config.disable_value_validation():
            try:
                if result.file_meta.TransferSyntaxUID != ExplicitVRLittleEndian:
                    pydicom.dcmwrite(head, result, enforce_file_format=True)
                    return head.getvalue()
                empty = Dataset()
                empty.file_meta = result.file_meta
                pydicom.dcmwrite(head, empty, enforce_file_format=True)
                return b"".join((head.getvalue(), *pieces(result, as_they_are=(FRAMES,))))
            except (UserWarning, UnicodeError) as trouble:
                why = str(trouble).partition("\n")[0]  # pydicom's has a traceback
                raise InputError(
                    f"encode: {result.SOPInstanceUID} holds text that its character set lacks: "
                    f"{why}",
                    subject=str(result.SOPInstanceUID),
                ) from trouble
