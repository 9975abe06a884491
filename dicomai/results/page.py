"""A page that sums up a result, as Encapsulated PDF (PS3.3 A.45.1)."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.dicom.dates import as_datetime
from dicomai.errors import InputError
from dicomai.imaging.attributes import text
from dicomai.imaging.image import PICTURES
from dicomai.results.drawing import NOT_FOR_DIAGNOSIS, paragraph, typeface
from dicomai.results.job import Job
from dicomai.results.overlay import pictures
from dicomai.results.provenance import code_item, complete, reference
from dicomai.results.sr import words

_A4_PX: Final = (1240, 1754)  # 150 dots per inch
_DPI: Final = 150.0
_MARGIN: Final = 80
_BLACK: Final = (20, 22, 26)
_GREY: Final = (96, 102, 112)
_RED: Final = (170, 40, 30)
_MOST_PICTURES: Final = 2


def encode_pdf(job: Job) -> Dataset:
    """Return a page with the pictures of what was found and the words of the report.

    Raises
    ------
    InputError
        The job does not have the voxels or pixels to draw on.
    """
    if job.image is None:
        raise InputError(
            f"encode: a page of {job.findings.algorithm.name} was asked for without the images to "
            "draw on."
        )
    octets = _pdf(job)
    result = Dataset()
    result.ConversionType = "WSD"
    result.AcquisitionDateTime = ""
    # The words name nobody; the pictures show what stands in the images.
    result.BurnedInAnnotation = "YES" if _may_name_the_patient(job.sources) else "NO"
    result.DocumentTitle = f"AI result, unverified: {job.findings.algorithm.name}"
    result.ConceptNameCodeSequence = []
    result.VerificationFlag = "UNVERIFIED"
    result.MIMETypeOfEncapsulatedDocument = "application/pdf"
    result.EncapsulatedDocumentLength = len(octets)
    result.EncapsulatedDocument = octets + b"\0" * (len(octets) % 2)
    result.SourceInstanceSequence = [_source(each) for each in job.sources]
    complete(result, job, "PDF")
    return result


def _may_name_the_patient(sources: Sequence[Dataset]) -> bool:
    """Tell whether images have the patient burnt in, or are pictures that don't say they haven't.

    Scanners of slices and X-rays seldom say, and burn in nothing.
    """
    said = {(text(each, "BurnedInAnnotation"), text(each, "Modality")) for each in sources}
    return any(
        burnt_in == "YES" or (burnt_in != "NO" and modality in PICTURES)
        for burnt_in, modality in said
    )


def _source(source: Dataset) -> Dataset:
    item = reference(source)
    item.PurposeOfReferenceCodeSequence = [
        code_item(Code("121322", "DCM", "Source image for image processing operation"))
    ]
    return item


def _pdf(job: Job) -> bytes:
    out = io.BytesIO()
    at = time.gmtime(as_datetime(job.context.created_at).timestamp())
    title = f"AI result: {job.findings.algorithm.name}"
    page(job).save(
        out, "PDF", resolution=_DPI, title=title, creationDate=at, modDate=at, producer="dicomai"
    )
    return out.getvalue()


def page(job: Job) -> Image.Image:
    """Return the page as it is printed: A4, 150 dots per inch."""
    assert job.image is not None
    sheet = Image.new("RGB", _A4_PX, "white")
    draw = ImageDraw.Draw(sheet)
    algorithm, inner = job.findings.algorithm, _A4_PX[0] - 2 * _MARGIN
    x, y = _MARGIN, _MARGIN
    y = paragraph(
        draw, (x, y), f"{algorithm.name} {algorithm.version}", typeface(40), _BLACK, inner
    )
    y = paragraph(draw, (x, y + 6), f"{NOT_FOR_DIAGNOSIS}. UNVERIFIED.", typeface(26), _RED, inner)
    date, clock = job.date_and_time
    made = f"{date[:4]}-{date[4:6]}-{date[6:]} {clock[:2]}:{clock[2:4]} {job.offset}"
    y = paragraph(draw, (x, y + 4), f"Made {made}", typeface(20), _GREY, inner) + 16
    assert job.image is not None
    for picture in pictures(job.findings, job.image)[:_MOST_PICTURES]:
        shown = picture.image.copy()
        shown.thumbnail((inner, 480))
        sheet.paste(shown, (x, y))
        y += shown.height + 16
    for _, said in words(job):
        if y > _A4_PX[1] - _MARGIN - 30:
            draw.text((x, y), "The report says more.", font=typeface(20), fill=_GREY)
            break
        y = paragraph(draw, (x, y), said, typeface(20), _BLACK, inner) + 6
    return sheet
