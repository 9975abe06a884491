"""The pictures of what was found as Secondary Capture: any viewer shows them (PS3.3 A.8.1)."""

from __future__ import annotations

from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.errors import InputError
from dicomai.imaging.attributes import text
from dicomai.imaging.image import PICTURES
from dicomai.results.job import Job
from dicomai.results.overlay import Picture, pictures
from dicomai.results.provenance import code_item, complete, note_loss, reference

_PROCESSED: Final = Code("121322", "DCM", "Source image for image processing operation")


def encode_sc(job: Job) -> tuple[Dataset, ...]:
    """Return a single-frame RGB image for each picture.

    Raises
    ------
    InputError
        The job does not have the voxels or pixels to draw on.
    """
    if job.image is None:
        raise InputError(
            f"encode: pictures of {job.findings.algorithm.name} were asked for without the images "
            "to draw on."
        )
    drawn = pictures(job.findings, job.image)
    return tuple(_image(job, each, number) for number, each in enumerate(drawn, start=1))


def _image(job: Job, picture: Picture, number: int) -> Dataset:
    result = Dataset()
    pixels = np.asarray(picture.image.convert("RGB"), dtype=np.uint8)
    result.ImageType = ["DERIVED", "SECONDARY"]
    result.ConversionType = "WSD"
    result.DateOfSecondaryCapture, result.TimeOfSecondaryCapture = job.date_and_time
    result.SamplesPerPixel = 3
    result.PhotometricInterpretation = "RGB"
    result.PlanarConfiguration = 0
    result.Rows, result.Columns = pixels.shape[:2]
    result.BitsAllocated, result.BitsStored, result.HighBit = 8, 8, 7
    result.PixelRepresentation = 0
    octets = pixels.tobytes()
    result.PixelData = octets + b"\0" * (len(octets) % 2)
    # Model, version and that it is no diagnosis are burnt in; the patient's name is not.
    result.BurnedInAnnotation = "YES"
    if visible := _recognizable(job):
        result.RecognizableVisualFeatures = visible
    result.PatientOrientation = list(picture.sides) if picture.sides else ""
    result.DerivationDescription = (
        f"{picture.name}: images with what {job.findings.algorithm.name} found drawn on them; "
        "not for measurement or primary diagnosis"
    )
    shown = job.sources if picture.slice is None else (job.slices()[picture.slice],)
    purpose = [code_item(_PROCESSED)]
    result.SourceImageSequence = [_source(each, purpose) for each in shown]
    result.LossyImageCompression = "00"
    note_loss(result, job)
    complete(result, job, "SC", number)
    return result


def _recognizable(job: Job) -> str:
    """Return whether a person can be known by his picture; "" of a photograph that doesn't say."""
    said = {text(each, "RecognizableVisualFeatures") for each in job.sources}
    if "YES" in said:
        return "YES"
    shows_nobody = said == {"NO"} or text(job.sources[0], "Modality") not in PICTURES
    return "NO" if shows_nobody else ""


def _source(source: Dataset, purpose: list[Dataset]) -> Dataset:
    item = reference(source)
    item.PurposeOfReferenceCodeSequence = purpose
    return item
