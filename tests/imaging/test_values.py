"""Voxels hold what PS3.3 C.11.1 makes of stored values, whatever bits, sign, scale and padding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import MRImageStorage

from dicomai.errors import InputError
from dicomai.imaging.volume import volume_of

SHAPE = (3, 2, 3)
Numbers = npt.NDArray[np.int64]
Maker = Callable[..., list[Dataset]]


@dataclass(frozen=True)
class Stored:
    """What the slices of a series hold, and how."""

    allocated: int
    stored: int
    high: int
    signed: bool
    values: Numbers
    scales: tuple[tuple[float, float], ...]
    padding: tuple[int, int] | None
    table: tuple[int, tuple[int, ...]] | None

    @property
    def expected(self) -> npt.NDArray[np.float64]:
        if self.table is not None:
            first, entries = self.table
            return np.array(entries, float)[np.clip(self.values - first, 0, len(entries) - 1)]
        slope, intercept = (
            np.array(each)[:, None, None] for each in zip(*self.scales, strict=True)
        )
        return self.values * slope + intercept

    @property
    def padded(self) -> npt.NDArray[np.bool_]:
        if self.padding is None:
            return np.zeros(SHAPE, bool)
        return (self.values >= min(self.padding)) & (self.values <= max(self.padding))


@st.composite
def series(draw: st.DrawFn) -> Stored:
    allocated = draw(st.sampled_from([8, 16, 16, 32]))
    stored = draw(st.integers(4, min(allocated, 28)) | st.just(min(allocated, 28)))
    high = draw(st.just(stored - 1) | st.integers(stored - 1, allocated - 1))
    signed = draw(st.booleans())
    low = -(1 << stored - 1) if signed else 0
    top = low + (1 << stored) - 1
    # Tables and padding are words of 16 bits.
    words = st.integers(max(low, -(1 << 15)), min(top, (1 << 15) - 1 if signed else (1 << 16) - 1))
    near = draw(words)
    values = st.integers(low, top) | st.integers(max(low, near - 3), min(top, near + 3))
    whole = st.tuples(st.sampled_from([1, 1, 1, 2, -1]), st.integers(-70_000, 70_000))
    some = st.tuples(
        st.sampled_from([1, 2, 0.25, -1.5, 0.003]), st.sampled_from([0.0, -7.5, 1024.25])
    )
    one = draw(whole | some)
    scales = st.just((one,) * 3) | st.tuples(*[whole | some] * 3) | st.just(((1, -1024),) * 3)
    padding = st.tuples(st.just(near), words.filter(lambda limit: abs(limit - near) < 5))
    entries = st.lists(st.integers(0, (1 << 16) - 1), min_size=2, max_size=9).map(tuple)
    drawn = draw(st.lists(values, min_size=18, max_size=18))
    numbers = np.array(drawn, dtype=np.int64).reshape(SHAPE)
    stated = draw(st.none() | st.tuples(st.just(near), st.just(near)) | padding)
    if stated and draw(st.booleans()):
        numbers[draw(st.integers(0, 2))] = near
    return Stored(
        allocated=allocated,
        stored=stored,
        high=high,
        signed=signed,
        values=numbers,
        scales=draw(scales),
        padding=stated,
        table=draw(st.none() | st.none() | st.tuples(words, entries)),
    )


def written(slices: list[Dataset], held: Stored) -> list[Dataset]:
    sign = "SS" if held.signed else "US"
    out = [copy.deepcopy(each) for each in slices]
    for each, values, scale in zip(out, held.values, held.scales, strict=True):
        each.Modality, each.SOPClassUID = "MR", MRImageStorage
        each.BitsAllocated, each.BitsStored, each.HighBit = held.allocated, held.stored, held.high
        each.PixelRepresentation = int(held.signed)
        words = (values << held.high + 1 - held.stored) % (1 << held.allocated)
        each.PixelData = words.astype(f"<u{held.allocated // 8}").tobytes()
        if held.table is None:
            each.RescaleSlope, each.RescaleIntercept = scale
        else:
            del each.RescaleSlope, each.RescaleIntercept
            first, entries = held.table
            table = Dataset()
            table.add_new("LUTDescriptor", sign, [len(entries), first, 16])
            table.add_new("LUTData", "US", list(entries))
            table.ModalityLUTType = "US"
            each.ModalityLUTSequence = [table]
        if held.padding is not None:
            value, limit = held.padding
            each.add_new("PixelPaddingValue", sign, value)
            if limit != value:
                each.add_new("PixelPaddingRangeLimit", sign, limit)
    return out


@settings(max_examples=40, deadline=None)
@given(held=series())
def test_voxels_are_what_the_standard_makes_of_stored_values(
    held: Stored, make_series: Maker
) -> None:
    slices = written(make_series(shape_kji=SHAPE), held)
    padded, expected = held.padded, held.expected
    if padded.all():
        event("nothing but padding")
        with pytest.raises(InputError, match="nothing but padding"):
            volume_of(slices)
        return
    expected[padded] = expected[~padded].min()
    voxels = volume_of(slices).voxels
    np.testing.assert_allclose(voxels, expected, rtol=1e-6, atol=1e-4)
    fits = np.array_equal(expected, expected.astype(np.int16))
    whole = held.table is None and all(part == int(part) for scale in held.scales for part in scale)
    assert (voxels.dtype == np.int16) == (fits and whole)
