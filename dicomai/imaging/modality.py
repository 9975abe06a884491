"""From stored values to modality units: rescale, modality LUT, padding (PS3.3 C.11.1, C.7.5.1.1.2).

For CT these are Hounsfield units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import (
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    PositronEmissionTomographyImageStorage,
)

from dicomai.errors import InputError
from dicomai.imaging.attributes import (
    items_of,
    name_of,
    numbers,
    text,
    values_checked_here,
    whole,
)
from dicomai.imaging.pixels import Samples, stored_pixels

LARGEST: Final = 1e9
"""Of a slope, an intercept and a value in modality units; what is beyond is a defect."""

_PET: Final = frozenset(
    {
        PositronEmissionTomographyImageStorage,
        EnhancedPETImageStorage,
        LegacyConvertedEnhancedPETImageStorage,
    }
)
"""Always have slope and intercept (PS3.3 C.8.9.4); without them values mean nothing."""

Values: TypeAlias = npt.NDArray[np.int32] | npt.NDArray[np.float32]
Padding: TypeAlias = npt.NDArray[np.bool_] | None
"""(J, I) bool: which pixels are padding; None where none is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModalityTransform:
    """How the stored values of one frame become modality units.

    Attributes
    ----------
    slope, intercept
        Where there is no table.
    table
        (N,) float64 of a modality LUT, and the stored value that its first entry is for.
    padding
        The lowest and the highest stored value that mean padding.
    """

    name: str
    subject: str
    slope: float = 1.0
    intercept: float = 0.0
    table: tuple[npt.NDArray[np.float64], int] | None = None
    padding: tuple[int, int] | None = None

    def values(self, stored: Samples, words: Samples | None = None) -> tuple[Values, Padding]:
        """Return a frame in modality units, and which of its pixels are padding.

        Parameters
        ----------
        stored : (J, I)
            Stored values.
        words : (J, I) or None
            The same with their unused bits, where padding may stand too.

        Returns
        -------
        values : (J, I) int32 where that is exact, else float32
        padding : (J, I) bool, or None
        """
        padded = self._padded(stored, words)
        if self.table is not None:
            entries, first = self.table
            index = np.clip(stored.astype(np.int64) - first, 0, len(entries) - 1)
            return entries[index].astype(np.float32), padded
        if stored.size:
            largest = max(abs(float(stored.max())), abs(float(stored.min())), 1.0) * abs(self.slope)
            if largest > LARGEST:
                raise self.absurd()
        if self.slope == int(self.slope) and self.intercept == int(self.intercept):
            # LARGEST keeps the product within 32 bits, whatever the stored values are made of.
            exact: npt.NDArray[np.signedinteger] = stored.astype(
                np.int64 if stored.dtype.itemsize > 2 else np.int32
            )
            if self.slope != 1:
                exact *= int(self.slope)
            exact += int(self.intercept)
            return exact.astype(np.int32, copy=False), padded
        out = stored.astype(np.float64)
        out *= self.slope
        out += self.intercept
        return out.astype(np.float32), padded

    def whole_numbers(
        self, stored: Samples, words: Samples | None = None
    ) -> tuple[npt.NDArray[np.int16], float] | None:
        """Return a frame as int16 with the lowest of its values, as `values` does but sooner.

        None where it has a table, padding, another slope than 1, or values beyond int16.
        """
        if (
            self.table is not None
            or self.slope != 1
            or self.intercept != int(self.intercept)
            or stored.dtype.kind not in "iu"
            or not stored.size
            or self._padded(stored, words) is not None
        ):
            return None
        shift, info = int(self.intercept), np.iinfo(np.int16)
        low, high = int(stored.min()) + shift, int(stored.max()) + shift
        if low < info.min or high > info.max or max(shift - low, high - shift) > LARGEST:
            return None
        # What int16 can't hold on the way wraps round, and back again.
        out = stored.astype(np.int16)
        out += np.int16((shift + 2**15) % 2**16 - 2**15)
        return out, float(low)

    def absurd(self) -> InputError:
        """Return the sentence about a slope or intercept that can't be."""
        return InputError(
            f"{self.name}: Rescale Slope {self.slope:g} and Intercept {self.intercept:g} make no "
            "sensible values. Have the modality mend them and send the object again.",
            subject=self.subject,
        )

    def _padded(self, stored: Samples, words: Samples | None) -> Padding:
        if self.padding is None:
            return None
        padded = self._is_padding(stored, *self.padding)
        if words is not None and words is not stored:
            # -2000 with 12 bits stored, say, which only the whole word has room for.
            padded |= self._is_padding(words, *self.padding)
        return padded if padded.any() else None

    @staticmethod
    def _is_padding(stored: Samples, value: int, limit: int) -> npt.NDArray[np.bool_]:
        # The VR of the attribute follows Pixel Representation, which some writers forget.
        span = 1 << 8 * stored.dtype.itemsize
        if stored.dtype.kind == "u":
            value, limit = value % span, limit % span
        else:
            value, limit = (each - span if 2 * each >= span else each for each in (value, limit))
        low, high = min(value, limit), max(value, limit)
        if high != low:
            return np.asarray((stored >= low) & (stored <= high))
        return np.asarray(stored == low)


def modality_transform(dataset: Dataset) -> ModalityTransform:
    """Return how an image of one frame becomes modality units.

    Raises
    ------
    InputError
        Slope, intercept or table make no sense, or the image is CT in other units than Hounsfield.
    """
    name, subject = name_of(dataset), text(dataset, "SOPInstanceUID")
    _check_hounsfield(dataset)
    padding = None
    if "PixelPaddingValue" in dataset:
        value = whole(dataset, "PixelPaddingValue")
        padding = (value, whole(dataset, "PixelPaddingRangeLimit", value))
    tables = items_of(dataset, "ModalityLUTSequence")
    if tables:
        entries, first, _ = lookup_table(dataset, tables[0], "modality", signed=is_signed(dataset))
        return ModalityTransform(
            name=name, subject=subject, table=(entries, first), padding=padding
        )
    of_pet = text(dataset, "SOPClassUID") in _PET
    (slope,) = numbers(dataset, "RescaleSlope", 1, None if of_pet else (1.0,))
    (intercept,) = numbers(dataset, "RescaleIntercept", 1, None if of_pet else (0.0,))
    out = ModalityTransform(
        name=name, subject=subject, slope=slope, intercept=intercept, padding=padding
    )
    if slope == 0 or max(abs(slope), abs(intercept)) > LARGEST:
        raise out.absurd()
    return out


def check_one_scale(headers: Sequence[Dataset], series: str) -> tuple[str, ...]:
    """Return what a reader should know of the values of slices side by side.

    Raises
    ------
    InputError
        Equal values mean different things: some are rescaled and others not, or they are mapped to
        the real world in different ways.
    """
    for keyword, unsaid in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        without = [each for each in headers if not text(each, keyword)]
        if without and any(numbers(each, keyword, 1, (unsaid,)) != (unsaid,) for each in headers):
            raise _not_one_scale(series, keyword, without[0])
    without = [each for each in headers if not items_of(each, "ModalityLUTSequence")]
    if 0 < len(without) < len(headers):
        raise _not_one_scale(series, "Modality LUT Sequence", without[0])
    mappings = [_only_mapped(each) for each in headers]
    for header, mapping in zip(headers, mappings, strict=True):
        if mapping != mappings[0]:
            raise InputError(
                f"Series {series} has slices side by side whose Real World Value Mapping differs, "
                f"as {name_of(header)}, and no Rescale Slope: their values can't be compared. "
                "Have the modality send them rescaled.",
                subject=series,
            )
    noted = (
        "The series gives the meaning of its values by Real World Value Mapping alone, which was "
        "not applied; the model was given the stored values."
    )
    return (noted,) if mappings[0] else ()


def _not_one_scale(series: str, what: str, without: Dataset) -> InputError:
    return InputError(
        f"Series {series} has slices with {what} side by side with others without, as "
        f"{name_of(without)}: their values can't be compared. Have the modality mend it and send "
        "the series again.",
        subject=series,
    )


def _only_mapped(header: Dataset) -> tuple[tuple[str, str], ...]:
    """Return how values are mapped to the real world where nothing rescales them, else ().

    Each item has a slope and an intercept (PS3.3 C.7.6.16.2.11).
    """
    if text(header, "RescaleSlope") or items_of(header, "ModalityLUTSequence"):
        return ()
    return tuple(
        (text(item, "RealWorldValueSlope"), text(item, "RealWorldValueIntercept"))
        for item in items_of(header, "RealWorldValueMappingSequence")
    )


def modality_values(dataset: Dataset, header: Dataset | None = None) -> tuple[Values, Padding]:
    """Return an image of one frame in modality units; see `ModalityTransform.values`.

    `header` is what says how, where that is not the object itself.
    """
    transform = modality_transform(dataset if header is None else header)
    pixels = stored_pixels(dataset)
    with values_checked_here():
        return transform.values(*pixels.frame_and_words(0))


def is_signed(dataset: Dataset) -> bool:
    """Return whether stored values may be below 0."""
    return whole(dataset, "PixelRepresentation", 0) == 1


def lookup_table(
    dataset: Dataset, item: Dataset, kind: str, keyword: str = "LUT", *, signed: bool
) -> tuple[npt.NDArray[np.float64], int, int]:
    """Return the entries of a LUT, the value of the first, and the bits of each (PS3.3 C.11.1.1).

    Parameters
    ----------
    dataset, item
        The image, and where its table stands.
    kind
        What a sentence calls it.
    keyword
        What the keywords of its descriptor and data begin with.
    signed
        Whether what is looked up may be below 0; so may then be the value of the first entry,
        whatever sign it was written with.

    Raises
    ------
    InputError
        It does not hold what its descriptor says.
    """
    count, first, bits = (int(part) for part in numbers(item, f"{keyword}Descriptor", 3))
    count = count % (1 << 16) or 1 << 16
    if signed and first >= 1 << 15:
        first -= 1 << 16
    value = lut_data(item, f"{keyword}Data")
    if isinstance(value, bytes):
        wide = len(value) >= 2 * count
        entries = np.frombuffer(value, "<u2" if wide else "u1")[:count].astype(np.float64)
    else:
        entries = np.atleast_1d(np.asarray(value, dtype=np.float64))[:count]
    if len(entries) != count or bits not in range(8, 17):
        raise InputError(
            f"{name_of(dataset)}: its {kind} LUT announces {count} entries of {bits} bits and "
            f"holds {len(entries)}. Have the modality mend it.",
            subject=text(dataset, "SOPInstanceUID"),
        )
    return entries, first, bits


def lut_data(item: Dataset, keyword: str = "LUTData") -> Any:  # pydicom gives what it likes
    """Return the data of a table: numbers, or words of OW, the lower octet of each first.

    In a big endian file words have the higher one first (PS3.5 7.3), and pydicom leaves them so.
    """
    with values_checked_here():
        value = item[keyword].value if keyword in item else b""
    _, is_little_endian = item.original_encoding
    if isinstance(value, bytes) and is_little_endian is False and len(value) % 2 == 0:
        return np.frombuffer(value, ">u2").astype("<u2").tobytes()
    return value


def _check_hounsfield(dataset: Dataset) -> None:
    """Refuse CT whose values are no Hounsfield units: models and measurements take them for such.

    A CT Image always has slope and intercept, and Rescale Type where they give anything else, as
    iodine maps and effective atomic numbers do (PS3.3 C.8.2.1).
    """
    if text(dataset, "Modality") != "CT":
        return
    tables = items_of(dataset, "ModalityLUTSequence")
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
