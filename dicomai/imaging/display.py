"""Images as they are shown: VOI LUT and window (PS3.3 C.11.2), palettes (PS3.3 C.7.6.3.1.5)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut

from dicomai.errors import InputError
from dicomai.imaging.attributes import (
    items_of,
    name_of,
    numbers,
    text,
    values_checked_here,
    whole,
)
from dicomai.imaging.modality import Padding, is_signed, lookup_table
from dicomai.imaging.pixels import Samples, stored_pixels

Picture = npt.NDArray[np.float32]
_PALETTE: Final = tuple(f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue"))


def displayed(values: Picture, padding: Padding, dataset: Dataset) -> Picture:
    """Return a greyscale image as it is shown, (J, I) float32 from 0, black, to 1, white.

    By its first VOI LUT, else its first window, else from its lowest to its highest value; turned
    round for MONOCHROME1.

    Parameters
    ----------
    values : (J, I) float32
        Modality units.
    padding : (J, I) bool or None
        Is shown black.
    """
    tables = items_of(dataset, "VOILUTSequence")
    if tables:
        below = _may_be_below_zero(dataset)
        entries, first, bits = lookup_table(dataset, tables[0], "VOI", signed=below)
        index = np.clip(np.round(values).astype(np.int64) - first, 0, len(entries) - 1)
        out = np.asarray(entries[index] / ((1 << bits) - 1))
    elif text(dataset, "WindowCenter") and text(dataset, "WindowWidth"):
        out = _windowed(values.astype(np.float64), dataset)
    else:
        kept = values if padding is None else values[~padding]
        low, high = float(kept.min()), float(kept.max())
        out = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    if text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        out = 1 - out
    shown = np.clip(out, 0, 1).astype(np.float32)
    if padding is not None:
        shown[padding] = 0
    return shown


def _may_be_below_zero(dataset: Dataset) -> bool:
    """Return whether what a VOI LUT is looked up by may be below 0 (PS3.3 C.11.2.1.1)."""
    if items_of(dataset, "ModalityLUTSequence"):
        return False
    stored = whole(dataset, "BitsStored")
    lowest = -(1 << stored - 1) if is_signed(dataset) else 0
    (slope,) = numbers(dataset, "RescaleSlope", 1, (1.0,))
    (intercept,) = numbers(dataset, "RescaleIntercept", 1, (0.0,))
    return slope * (lowest if slope > 0 else lowest + (1 << stored) - 1) + intercept < 0


def _windowed(values: npt.NDArray[np.float64], dataset: Dataset) -> npt.NDArray[np.float64]:
    """Return values by the first window (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
    centre, width = (_first(dataset, keyword) for keyword in ("WindowCenter", "WindowWidth"))
    function = text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.asarray((values - centre) / width + 0.5)
    if function == "LINEAR" and width > 1:
        return np.asarray((values - (centre - 0.5)) / (width - 1) + 0.5)
    if function == "LINEAR" and width == 1:
        return np.asarray((values > centre - 0.5).astype(np.float64))
    raise InputError(
        f"{name_of(dataset)}: a window of width {width:g} by {function} can't be. Have the "
        "modality mend it.",
        subject=text(dataset, "SOPInstanceUID"),
    )


def _first(dataset: Dataset, keyword: str) -> float:
    count = len(text(dataset, keyword).split("\\"))
    return numbers(dataset, keyword, count)[0]


def rgb(dataset: Dataset) -> Picture:
    """Return a colour image of one frame, (J, I, 3) float32 from 0 to 1, whatever it is stored as.

    Raises
    ------
    InputError
        It is no colour image, or can't be decoded.
    """
    photometric = text(dataset, "PhotometricInterpretation")
    pixels = stored_pixels(dataset)
    with values_checked_here():
        values = pixels.frame(0)
        if photometric == "PALETTE COLOR":
            return _by_palette(values, dataset)
    if values.ndim != 3 or values.shape[2] < 3:
        raise InputError(
            f"{name_of(dataset)} is a greyscale image ({photometric}), and the model takes colour.",
            subject=pixels.subject,
        )
    return np.asarray(values[..., :3] / ((1 << pixels.stored) - 1), dtype=np.float32)


def _by_palette(values: Samples, dataset: Dataset) -> Picture:
    """Return what a palette makes of stored values (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6)."""
    planes = []
    for keyword in _PALETTE:
        if f"Segmented{keyword}Data" in dataset:
            return _by_segmented_palette(values, dataset)
        if f"{keyword}Data" not in dataset:
            raise _unreadable(dataset, f"{keyword}Data is missing")
        signed = is_signed(dataset)
        entries, first, _ = lookup_table(dataset, dataset, "palette", keyword, signed=signed)
        planes.append((entries, np.clip(values.astype(np.int64) - first, 0, len(entries) - 1)))
    # Entries of 8 bits may stand in the low bytes of words, whatever the descriptor says of them;
    # as 16 bits the whole palette would be black.
    white = 0xFF if max(entries.max() for entries, _ in planes) <= 0xFF else 0xFFFF
    shown = np.stack([entries[index] for entries, index in planes], axis=-1)
    return np.asarray(shown / white, dtype=np.float32)


def _by_segmented_palette(values: Samples, dataset: Dataset) -> Picture:
    """Return what a palette of segments makes of stored values (PS3.3 C.7.9.2)."""
    count, first, bits = (int(part) for part in numbers(dataset, f"{_PALETTE[0]}Descriptor", 3))
    count = count or 1 << 16
    # pydicom counts in the width of the entries, so that what lies beyond comes round again.
    within = np.clip(values.astype(np.int64), first, first + count - 1)
    if count > 1 << bits:
        raise _unreadable(dataset, f"it has {count} entries of {bits} bits in segments")
    try:
        shown = apply_color_lut(within, dataset)[..., :3]
    except (AttributeError, ValueError, IndexError, KeyError) as error:
        raise _unreadable(dataset, str(error)) from None
    return np.asarray(shown / np.iinfo(shown.dtype).max, dtype=np.float32)


def _unreadable(dataset: Dataset, why: str) -> InputError:
    return InputError(
        f"{name_of(dataset)}: its palette can't be read: {why}. Have the modality mend it.",
        subject=text(dataset, "SOPInstanceUID"),
    )
