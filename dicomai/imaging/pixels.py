"""Stored values of one image, decoded, and turned to modality units (PS3.3 C.7.6.3, C.11.1)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, RLELossless

from dicomai.errors import InputError
from dicomai.imaging.attributes import name_of, numbers, text, values_checked_here, whole

GREYSCALE: Final = ("MONOCHROME1", "MONOCHROME2")
LARGEST: Final = 1e9
"""Of a slope, an intercept and a value in modality units; what is beyond is a defect."""


def check_greyscale(dataset: Dataset) -> None:
    """Raise InputError unless the object is one greyscale image of whole numbers."""
    name = name_of(dataset)
    subject = text(dataset, "SOPInstanceUID")
    kind = sop_class_name(dataset)
    frames = whole(dataset, "NumberOfFrames", 1)
    if frames != 1:
        raise InputError(
            f"{name} is a multi-frame object ({kind}, {frames} frames), and dicomai reads images "
            "of one frame each. Have the modality send classic single-frame images.",
            subject=subject,
        )
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
    if whole(dataset, "SamplesPerPixel", 1) != 1 or photometric not in GREYSCALE:
        raise InputError(
            f"{name} ({kind}) is a colour image ({photometric or 'no photometric interpretation'}),"
            " and models take greyscale images. Choose the original series.",
            subject=subject,
        )
    if "MOSAIC" in text(dataset, "ImageType").split("\\"):
        raise InputError(
            f"{name} is a mosaic of many slices in one picture, which dicomai does not take apart. "
            "Have the modality send single slices or enhanced MR.",
            subject=subject,
        )


def sop_class_name(dataset: Dataset) -> str:
    """Return what kind of object it is, in words."""
    uid = text(dataset, "SOPClassUID")
    return UID(uid).name if uid else "without SOP Class"


def stored_values(dataset: Dataset) -> npt.NDArray[np.integer]:
    """Return the stored values, (J, I) whole numbers, without what lies in unused bits.

    Raises
    ------
    InputError
        The pixel data can't be decoded or is too short; names the object and its transfer syntax.
    """
    allocated, stored = whole(dataset, "BitsAllocated"), whole(dataset, "BitsStored")
    shift = whole(dataset, "HighBit", stored - 1) + 1 - stored
    if not 1 <= stored <= allocated or allocated not in (8, 16, 32) or shift < 0:
        raise InputError(
            f"{name_of(dataset)}: {stored} bits stored of {allocated} allocated, high bit "
            f"{stored - 1 + shift}, which can't be.",
            subject=text(dataset, "SOPInstanceUID"),
        )
    syntax = _transfer_syntax(dataset)
    with values_checked_here():
        try:
            pixels: npt.NDArray[np.integer] = pixel_array(dataset, raw=True)
        except MemoryError:
            raise
        # Decoders of five libraries raise what they like; whatever it was, this object is at fault.
        except Exception as error:  # noqa: BLE001
            raise InputError(
                f"{name_of(dataset)}: the pixel data can't be decoded as {syntax.name} "
                f"({syntax}): {_in_short(error)}. Send the object again, uncompressed if it is in "
                "order.",
                subject=text(dataset, "SOPInstanceUID"),
            ) from None
    shape = (whole(dataset, "Rows"), whole(dataset, "Columns"))
    if pixels.shape != shape:
        raise InputError(
            f"{name_of(dataset)}: the pixel data decodes to {pixels.shape}, but the header says "
            f"{shape}. Send the object again.",
            subject=text(dataset, "SOPInstanceUID"),
        )
    if syntax.is_compressed and syntax != RLELossless:
        return pixels  # decoders give values, not bits; RLE packs the bytes as they are
    return _without_unused_bits(pixels, allocated, stored, shift)


def _without_unused_bits(
    pixels: npt.NDArray[np.integer], allocated: int, stored: int, shift: int
) -> npt.NDArray[np.integer]:
    """Old modalities keep overlays in the bits that PS3.5 8.1.1 leaves unused."""
    if stored == allocated:
        return pixels
    # Up to the top and down again: an arithmetic shift extends the sign where there is one.
    raised = np.left_shift(pixels, allocated - stored - shift)
    out: npt.NDArray[np.integer] = np.right_shift(raised, allocated - stored)
    return out


def _in_short(error: Exception) -> str:
    """Return the reason of pydicom's many lines: its plugins are a programmer's matter."""
    said = str(error)
    if "missing dependencies" in said or "is not supported" in said:
        return "no decoder for it is installed"
    if "all available plugins" in said:
        return "every decoder refuses it"
    return " ".join(said.split())[:200].rstrip(".:") or type(error).__name__


def _transfer_syntax(dataset: Dataset) -> UID:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        raise InputError(
            f"{name_of(dataset)} does not say its transfer syntax. Send it again.",
            subject=text(dataset, "SOPInstanceUID"),
        )
    return UID(syntax)


def modality_values(
    dataset: Dataset,
) -> tuple[npt.NDArray[np.int32] | npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
    """Return an image in modality units, and which of its pixels are padding.

    Rescale slope and intercept, or the modality LUT, of this very image (PS3.3 C.11.1.1.2); for
    CT these are Hounsfield units.

    Returns
    -------
    values : (J, I) int32 where that is exact, else float32
    padding : (J, I) bool, or None where the image declares none (PS3.3 C.7.5.1.1.2)
    """
    stored = stored_values(dataset)
    padding = _padding(dataset, stored)
    _check_hounsfield(dataset)
    if text(dataset, "ModalityLUTSequence"):
        with values_checked_here():
            return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32), padding
    (slope,) = numbers(dataset, "RescaleSlope", 1, (1.0,))
    (intercept,) = numbers(dataset, "RescaleIntercept", 1, (0.0,))
    largest = float(np.abs(stored.astype(np.float64)).max(initial=1.0)) * abs(slope)
    if slope == 0 or max(largest, abs(slope), abs(intercept)) > LARGEST:
        raise InputError(
            f"{name_of(dataset)}: Rescale Slope {slope:g} and Intercept {intercept:g} make no "
            "sensible values. Have the modality mend them and send the object again.",
            subject=text(dataset, "SOPInstanceUID"),
        )
    if slope == int(slope) and intercept == int(intercept):
        exact = stored.astype(np.int64) * int(slope) + int(intercept)
        return exact.astype(np.int32), padding
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32), padding


def _check_hounsfield(dataset: Dataset) -> None:
    """Refuse CT whose values are no Hounsfield units: models and measurements take them for such.

    A CT Image always has slope and intercept, and Rescale Type where they give anything else, as
    iodine maps and effective atomic numbers do (PS3.3 C.8.2.1).
    """
    if text(dataset, "Modality") != "CT":
        return
    tables = dataset.get("ModalityLUTSequence")
    if tables:
        unit = text(tables[0], "ModalityLUTType")
    else:
        unit = text(dataset, "RescaleType")
        for keyword in ("RescaleSlope", "RescaleIntercept"):
            if not text(dataset, keyword):
                raise InputError(
                    f"{name_of(dataset)} is CT without {keyword}, so nobody knows its Hounsfield "
                    "units. Have the modality mend it and send the object again.",
                    subject=text(dataset, "SOPInstanceUID"),
                )
    if unit.upper() not in {"", "HU"}:
        raise InputError(
            f"{name_of(dataset)} is CT in {unit}, and models take Hounsfield units. Choose the "
            "series that has them.",
            subject=text(dataset, "SOPInstanceUID"),
        )


def _padding(dataset: Dataset, stored: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_] | None:
    if "PixelPaddingValue" not in dataset:
        return None
    value = whole(dataset, "PixelPaddingValue")
    limit = whole(dataset, "PixelPaddingRangeLimit", value)
    if stored.dtype.kind == "u":
        # The VR of the attribute follows Pixel Representation, which some writers forget.
        bits = 8 * stored.dtype.itemsize
        value, limit = value % (1 << bits), limit % (1 << bits)
    padding: npt.NDArray[np.bool_] = (stored >= min(value, limit)) & (stored <= max(value, limit))
    return padding if padding.any() else None
