"""Whether an object holds greyscale images of whole numbers, as most models take them."""

from __future__ import annotations

from typing import Final

from pydicom import Dataset

from dicomai.errors import InputError
from dicomai.imaging.attributes import name_of, sop_class_name, text, whole

GREYSCALE: Final = ("MONOCHROME1", "MONOCHROME2")


def check_greyscale(dataset: Dataset) -> None:
    """Raise InputError unless the object holds greyscale images of whole numbers."""
    name = name_of(dataset)
    subject = text(dataset, "SOPInstanceUID")
    kind = sop_class_name(dataset)
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise InputError(
            f"{name} ({kind}) holds floating point pixels, which dicomai does not read.",
            subject=subject,
        )
    if "PixelData" not in dataset:
        raise InputError(
            f"{name} ({kind}) has no pixel data, so it is no image. Leave it out of the series.",
            subject=subject,
        )
    photometric = text(dataset, "PhotometricInterpretation")
    if not photometric:
        raise InputError(
            f"{name} ({kind}) does not say whether it is grey or in colour: its "
            "PhotometricInterpretation is missing. Have the modality or the PACS mend it and send "
            "the object again.",
            subject=subject,
        )
    if whole(dataset, "SamplesPerPixel", 1) != 1 or photometric not in GREYSCALE:
        raise InputError(
            f"{name} ({kind}) is a colour image ({photometric}), and the model takes greyscale "
            "ones. Choose another series, or a model of colour.",
            subject=subject,
        )
    if "MOSAIC" in text(dataset, "ImageType").split("\\"):
        raise InputError(
            f"{name} is a mosaic of many slices in one picture, which dicomai does not take apart. "
            "Have the modality send single slices or enhanced MR.",
            subject=subject,
        )
