"""Standardised uptake values by body weight, against the arithmetic of the definition."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import PositronEmissionTomographyImageStorage

from dicomai.errors import InputError
from dicomai.imaging.intake import Intake
from dicomai.imaging.volume import volume_of

SUV = Intake(suv_body_weight=True)
HALF_LIFE_S = 6600.0
Maker = Callable[..., list[Dataset]]


@pytest.fixture
def pet(make_series: Maker) -> list[Dataset]:
    """70 kg, 350 MBq injected at 9:00, scanned one half-life later; 5000 Bq/mL everywhere."""
    slices = make_series(shape_kji=(4, 3, 3))
    for number, each in enumerate(slices):
        each.Modality, each.Units, each.PatientWeight = "PT", "BQML", 70
        each.CorrectedImage, each.DecayCorrection = ["DECY", "ATTN", "SCAT"], "START"
        each.SeriesDate, each.SeriesTime = "20260301", "105000"
        each.AcquisitionDate, each.AcquisitionTime = "20260301", f"1050{number:02}.5"
        drug = Dataset()
        drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 350e6, HALF_LIFE_S
        drug.RadiopharmaceuticalStartTime = "090000"
        each.RadiopharmaceuticalInformationSequence = [drug]
        # Each slice has a slope of its own, as PET has.
        del each.RescaleSlope
        each.RescaleSlope = 1 + number
        each.PixelData = np.full((3, 3), 5000 // (1 + number), "<i2").tobytes()
    return slices


def test_activity_is_that_at_the_start_of_the_scan(pet: list[Dataset]) -> None:
    plain = volume_of(pet)
    assert set(np.unique(plain.voxels)) == {5000, 4998}
    # 5000 Bq/mL over (350 MBq / 2) / 70 kg
    expected = plain.voxels / (175e6 / 70_000)
    np.testing.assert_allclose(volume_of(pet, SUV).voxels, expected, rtol=1e-6)
    for each in pet:
        each.DecayCorrection = "ADMIN"
    np.testing.assert_allclose(volume_of(pet, SUV).voxels, expected / 2, rtol=1e-6)


def test_injection_before_midnight(pet: list[Dataset]) -> None:
    before = volume_of(pet, SUV).voxels
    for each in pet:
        each.SeriesTime, each.AcquisitionTime = "003000", "003000"
        each.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime = "224000"
    np.testing.assert_allclose(volume_of(pet, SUV).voxels, before, rtol=1e-6)
    for each in pet:
        drug = each.RadiopharmaceuticalInformationSequence[0]
        drug.RadiopharmaceuticalStartDateTime = "20260228224000.00+0100"
    np.testing.assert_allclose(volume_of(pet, SUV).voxels, before, rtol=1e-6)


def test_seconds_may_be_left_out(pet: list[Dataset]) -> None:
    for each in pet:  # nothing but whole minutes
        each.AcquisitionTime = "1059"
    drug = pet[0].RadiopharmaceuticalInformationSequence[0]
    drug.RadiopharmaceuticalStartTime = "095900"
    expected = volume_of(pet, SUV).voxels
    drug.RadiopharmaceuticalStartTime = "0959"
    np.testing.assert_array_equal(volume_of(pet, SUV).voxels, expected)
    drug.RadiopharmaceuticalStartDateTime = "202603010959"
    np.testing.assert_array_equal(volume_of(pet, SUV).voxels, expected)


@pytest.mark.parametrize(
    "time", ["09", "095", "9:59", "09590", "095900.", "095900.ABC", "0959.5", "095961", "٠٩٥٩٠٠"]
)
def test_what_is_no_time_is_refused(pet: list[Dataset], time: str) -> None:
    drug = pet[0].RadiopharmaceuticalInformationSequence[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about the value
        drug.RadiopharmaceuticalStartTime = time
    with pytest.raises(InputError, match="has the date and time '20260301'"):
        volume_of(pet, SUV)


@pytest.mark.parametrize(
    ("stamp", "clock"),
    [
        ("20260301080000.00+0000", "+0100"),
        ("20260301043000-0330", "+0100"),
        ("20260228233000+0000", "+0930"),
        ("20260301090000+0100", "+0100"),
        ("20260301090000", "+0100"),
    ],
)
def test_an_injection_with_an_offset_from_utc_is_put_to_the_clock_of_the_header(
    pet: list[Dataset], stamp: str, clock: str
) -> None:
    expected = volume_of(pet, SUV).voxels
    pet[0].TimezoneOffsetFromUTC = clock
    pet[0].RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime = stamp
    np.testing.assert_array_equal(volume_of(pet, SUV).voxels, expected)


@pytest.mark.parametrize(
    ("time", "clock", "words"),
    [
        (None, None, "gives only its injection with an offset from UTC (+0000)"),
        ("090000", None, "gives only its injection with an offset from UTC (+0000)"),
        (None, "0100", "has the offset '0100' from UTC"),
    ],
)
def test_an_offset_from_utc_that_the_header_can_not_match_is_refused(
    pet: list[Dataset], time: str | None, clock: str | None, words: str
) -> None:
    drug = pet[0].RadiopharmaceuticalInformationSequence[0]
    drug.RadiopharmaceuticalStartDateTime = "20260301080000+0000"
    drug.RadiopharmaceuticalStartTime = time
    if clock is not None:
        pet[0].TimezoneOffsetFromUTC = clock
    with pytest.raises(InputError) as error:
        volume_of(pet, SUV)
    assert words in error.value.sentence


def test_a_series_that_holds_suv_stays_as_it_is(sample_series: Callable[[str], Any]) -> None:
    slices = sample_series("pet-sts-002.tar.xz")
    assert slices[0].Units == "GML"
    np.testing.assert_array_equal(volume_of(slices, SUV).voxels, volume_of(slices).voxels)


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("Modality", "MR", "is MR and no PET"),
        ("Units", "CNTS", "is in units of CNTS, not Bq/mL"),
        ("PatientWeight", None, "PatientWeight is missing"),
        ("PatientWeight", 0, "has a weight of 0 kg"),
        ("CorrectedImage", ["DECY"], "is not corrected for attenuation and decay"),
        ("DecayCorrection", "NONE", "has the decay correction NONE"),
        ("RadiopharmaceuticalInformationSequence", None, "nothing of the radiopharmaceutical"),
        ("SeriesTime", "120000", "began after its first slice was acquired"),
        ("SeriesTime", "", "has the date and time '20260301' ''"),
        ("SeriesDate", "20260222", "was injected at"),
        ("PatientWeight", 70_000, "has a weight of 70000 kg and an activity of 3.5e+08 Bq"),
    ],
)
def test_what_is_missing_is_said(
    keyword: str, value: object, words: str, pet: list[Dataset]
) -> None:
    for each in pet:
        if value is None:
            delattr(each, keyword)
        else:
            setattr(each, keyword, value)
        if keyword == "SeriesDate":
            drug = each.RadiopharmaceuticalInformationSequence[0]
            drug.RadiopharmaceuticalStartDateTime = "20260301090000"
    with pytest.raises(InputError) as error:
        volume_of(pet, SUV)
    assert words in error.value.sentence


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("RadionuclideTotalDose", 350, "an activity of 350 Bq"),
        ("RadionuclideHalfLife", 110_000_000, "has a half-life of 1.1e+08 s"),
        # A dynamic scan begins before the injection, of which only the time is told.
        ("RadiopharmaceuticalStartTime", "105010", "was injected at 2026-02-28 10:50:10"),
    ],
)
def test_what_can_not_be_is_refused(
    keyword: str, value: object, words: str, pet: list[Dataset]
) -> None:
    for each in pet:
        setattr(each.RadiopharmaceuticalInformationSequence[0], keyword, value)
    with pytest.raises(InputError) as error:
        volume_of(pet, SUV)
    assert words in error.value.sentence


def test_what_is_not_the_same_of_all_slices_is_refused(pet: list[Dataset]) -> None:
    pet[2].PatientWeight = 80
    with pytest.raises(InputError, match="has slices of different PatientWeight"):
        volume_of(pet, SUV)
    pet[2].PatientWeight = 70
    drug = pet[1].RadiopharmaceuticalInformationSequence[0]
    drug.RadionuclideTotalDose = 300e6
    with pytest.raises(InputError, match="has slices of different RadionuclideTotalDose"):
        volume_of(pet, SUV)
    drug.RadionuclideTotalDose = 350e6
    for each in pet:
        each.RadiopharmaceuticalInformationSequence.append(Dataset())
    with pytest.raises(InputError, match="was made with 2 radiopharmaceuticals"):
        volume_of(pet, SUV)


def test_a_pet_slice_without_slope_is_refused(pet: list[Dataset]) -> None:
    for each in pet:
        each.SOPClassUID = PositronEmissionTomographyImageStorage
    volume_of(pet)
    del pet[1].RescaleSlope
    with pytest.raises(InputError, match="RescaleSlope is missing"):
        volume_of(pet)
