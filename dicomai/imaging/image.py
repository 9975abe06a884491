"""From the data set of a projection X-ray to pixels in which dense tissue is bright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from dicomai.errors import InputError
from dicomai.imaging.attributes import name_of, numbers, text
from dicomai.imaging.facts import Facts, facts_of
from dicomai.imaging.frame import check_single_frame
from dicomai.imaging.geometry import Plane
from dicomai.imaging.modality import modality_values
from dicomai.imaging.pixels import check_greyscale, sop_class_name

MODALITIES: Final = ("CR", "DX", "RG", "MG", "PX", "IO")
USUAL_ORIENTATION: Final = ("L", "F")
"""Frontal chest as it is hung: rows run to the patient's left, columns to the feet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceImagePixels:
    """A projection image.

    Attributes
    ----------
    plane
        Its size and spacing; it has no place in the patient.
    pixels
        (J, I) float32 in modality units, turned round for MONOCHROME1, so that what lets fewer
        X-rays pass is brighter. Padding has the lowest value of what is no padding.
    facts
        What the image says of patient and acquisition.
    headers
        Its data set; empty in a runner.
    """

    plane: Plane
    pixels: npt.NDArray[np.float32]
    facts: Facts
    series_instance_uid: str
    headers: tuple[Dataset, ...] = ()
    warnings: tuple[str, ...] = ()


def image_of(dataset: Dataset) -> SourceImagePixels:
    """Return a projection X-ray as a model wants it.

    Raises
    ------
    InputError
        It is no greyscale projection of one frame, lies on its side, or can't be decoded.
    """
    name, subject = name_of(dataset), text(dataset, "SOPInstanceUID")
    modality = text(dataset, "Modality")
    check_greyscale(dataset)
    check_single_frame(dataset)
    if modality not in MODALITIES:
        raise InputError(
            f"{name} ({sop_class_name(dataset)}, modality {modality or 'unknown'}) is no "
            "projection X-ray, and the model takes one.",
            subject=subject,
        )
    noted = _check_hanging(dataset)
    values, padding = modality_values(dataset)
    pixels = values.astype(np.float32)
    kept = pixels if padding is None else pixels[~padding]
    if not kept.size:
        raise InputError(f"{name} is nothing but padding.", subject=subject)
    if text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        # Low values are shown bright, so they are what is dense; the range stays the same.
        pixels = kept.max() + kept.min() - pixels
    if padding is not None:
        pixels[padding] = pixels[~padding].min()
    height, width = pixels.shape
    return SourceImagePixels(
        plane=Plane(
            shape_ji=(height, width),
            spacing_ji_mm=_spacing_ji_mm(dataset),
            sop_instance_uid=subject,
        ),
        pixels=pixels,
        facts=facts_of(dataset),
        series_instance_uid=text(dataset, "SeriesInstanceUID"),
        headers=(dataset,),
        warnings=noted,
    )


def _spacing_ji_mm(dataset: Dataset) -> tuple[float, float] | None:
    """Pixel Spacing where someone calibrated, else that on the detector (PS3.3 10.7.1.3)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        if text(dataset, keyword):
            between_rows, between_columns = numbers(dataset, keyword, 2)
            if min(between_rows, between_columns) > 0:
                return between_rows, between_columns
    return None


def _check_hanging(dataset: Dataset) -> tuple[str, ...]:
    """Refuse a frontal image that lies on its side or is mirrored; note one that does not say.

    Only the first letter counts: an oblique LP is still hung to the left. Mammograms and lateral
    views are hung in other ways, which is theirs to say.
    """
    orientation = text(dataset, "PatientOrientation").upper().split("\\")
    if len(orientation) != 2 or not all(orientation):
        return ("The image does not say how it is hung (Patient Orientation); L\\F was assumed.",)
    if not set(orientation[0][0] + orientation[1][0]) <= set("LRFH"):
        return ()
    if (orientation[0][0], orientation[1][0]) != USUAL_ORIENTATION:
        said = "\\".join(orientation)
        raise InputError(
            f"{name_of(dataset)} is turned or mirrored (Patient Orientation {said}, where a model "
            "takes L\\F). Turn it at the workstation and send it again.",
            subject=text(dataset, "SOPInstanceUID"),
        )
    return ()
