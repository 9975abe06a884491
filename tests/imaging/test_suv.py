"""Standardised uptake values by body weight, against the arithmetic of the definition."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedPETImageStorage, PositronEmissionTomographyImageStorage

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


def _set_of_drug(slices: list[Dataset], **said: object) -> None:
    """Have all slices say this of the radiopharmaceutical."""
    for each in slices:
        for keyword, value in said.items():
            setattr(each.RadiopharmaceuticalInformationSequence[0], keyword, value)


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


@pytest.mark.parametrize("half_life_s", [740, 1224, 6586.2, 45_720, 282_240])
def test_activity_decays_by_its_half_life(pet: list[Dataset], half_life_s: float) -> None:
    _set_of_drug(pet, RadionuclideHalfLife=half_life_s)
    left_bq = 350e6 * np.exp(-np.log(2) / half_life_s * 6600)
    expected = volume_of(pet).voxels / (left_bq / 70_000)
    np.testing.assert_allclose(volume_of(pet, SUV).voxels, expected, rtol=1e-6)


def test_of_an_injection_as_the_scan_begins_all_activity_is_there(
    pet: list[Dataset], enhanced_pet: Callable[[], Dataset]
) -> None:
    expected = volume_of(pet).voxels / (350e6 / 70_000)
    # A day before it would be half as much: of a short half-life that is refused anyhow.
    _set_of_drug(pet, RadiopharmaceuticalStartTime="105000", RadionuclideHalfLife=86_400)
    for each in pet:
        each.AcquisitionTime = "105000"
    np.testing.assert_allclose(volume_of(pet, SUV).voxels, expected, rtol=1e-6)
    whole = enhanced_pet()
    whole.DecayCorrectionDateTime = "20260301105000"
    (drug,) = whole.RadiopharmaceuticalInformationSequence
    drug.RadiopharmaceuticalStartDateTime = "20260301105000"
    for frame in whole.PerFrameFunctionalGroupsSequence:
        frame.FrameContentSequence[0].FrameAcquisitionDateTime = "20260301105000"
    np.testing.assert_allclose(volume_of([whole], SUV).voxels, expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DA:UserWarning")  # pydicom's, rightly
@pytest.mark.parametrize("date", ["2026031", "026030100", "2026.03.01", "20260231"])
def test_what_is_no_date_is_refused(pet: list[Dataset], date: str) -> None:
    for each in pet:
        each.SeriesDate = each.AcquisitionDate = date
    with pytest.raises(InputError, match=f"has the date and time '{date}' '105000'"):
        volume_of(pet, SUV)


def test_seconds_may_be_left_out(pet: list[Dataset]) -> None:
    for each in pet:  # nothing but whole minutes
        each.AcquisitionTime = "1059"
    _set_of_drug(pet, RadiopharmaceuticalStartTime="095900")
    expected = volume_of(pet, SUV).voxels
    _set_of_drug(pet, RadiopharmaceuticalStartTime="0959")
    np.testing.assert_array_equal(volume_of(pet, SUV).voxels, expected)
    _set_of_drug(pet, RadiopharmaceuticalStartDateTime="202603010959")
    np.testing.assert_array_equal(volume_of(pet, SUV).voxels, expected)


@pytest.mark.parametrize(
    "time", ["09", "095", "9:59", "09590", "095900.", "095900.ABC", "0959.5", "095961", "٠٩٥٩٠٠"]
)
def test_what_is_no_time_is_refused(pet: list[Dataset], time: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about the value
        _set_of_drug(pet, RadiopharmaceuticalStartTime=time)
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
    _set_of_drug(pet, RadiopharmaceuticalStartDateTime=stamp)
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
    _set_of_drug(
        pet,
        RadiopharmaceuticalStartDateTime="20260301080000+0000",
        RadiopharmaceuticalStartTime=time,
    )
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


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("RadionuclideHalfLife", 1200),
        ("RadiopharmaceuticalStartTime", "100000"),
        ("RadiopharmaceuticalStartDateTime", "20260301090000"),
    ],
)
def test_slices_of_different_injections_are_refused(
    keyword: str, value: object, pet: list[Dataset]
) -> None:
    _set_of_drug(pet[3:], **{keyword: value})
    with pytest.raises(InputError, match=f"has slices of different {keyword}"):
        volume_of(pet, SUV)


def test_a_scan_that_begins_amid_its_slices_is_refused(pet: list[Dataset]) -> None:
    for each in pet:
        each.SeriesTime = "105002"  # the first slice is of 10:50:00.5, the last of 10:50:03.5
    with pytest.raises(InputError, match="began after its first slice was acquired"):
        volume_of(pet, SUV)


def test_slices_of_different_starts_of_the_scan_are_refused(pet: list[Dataset]) -> None:
    pet[3].SeriesTime = "105000.00"  # the same, spelt otherwise
    volume_of(pet, SUV)
    pet[3].SeriesTime = "104000"
    with pytest.raises(InputError, match="has slices of different SeriesTime"):
        volume_of(pet, SUV)


@pytest.mark.parametrize("slices", [slice(0, 4), slice(3, 4)])
def test_suv_of_another_type_is_refused(slices: slice, pet: list[Dataset]) -> None:
    for each in pet:
        each.Units = "GML"
    volume_of(pet, SUV)
    for each in pet[slices]:
        each.SUVType = "LBM"
    with pytest.raises(InputError, match="holds SUV of the type LBM, not by body weight"):
        volume_of(pet, SUV)


def test_a_pet_slice_without_slope_is_refused(pet: list[Dataset]) -> None:
    for each in pet:
        each.SOPClassUID = PositronEmissionTomographyImageStorage
    volume_of(pet)
    del pet[1].RescaleSlope
    with pytest.raises(InputError, match="RescaleSlope is missing"):
        volume_of(pet)


@pytest.fixture
def enhanced_pet(
    make_series: Maker, make_enhanced: Callable[..., Dataset]
) -> Callable[[], Dataset]:
    """Gives the same as Enhanced PET (PS3.3 A.56): its activity is in MBq."""

    def made() -> Dataset:
        slices = make_series(shape_kji=(4, 3, 3))
        for number, each in enumerate(slices):
            del each.RescaleSlope
            each.RescaleSlope = 1 + number
            each.PixelData = np.full((3, 3), 5000 // (1 + number), "<i2").tobytes()
        groups = []
        for number in range(4):
            unit = Dataset()
            unit.CodeValue, unit.CodingSchemeDesignator = "Bq/ml", "UCUM"
            groups.append(
                {
                    "FrameContentSequence": {
                        "FrameAcquisitionDateTime": f"202603011050{number:02}.5"
                    },
                    "RealWorldValueMappingSequence": {
                        "RealWorldValueSlope": 1.0 + number,
                        "RealWorldValueIntercept": 0.0,
                        "MeasurementUnitsCodeSequence": [unit],
                    },
                }
            )
        whole = make_enhanced(slices, groups)
        whole.SOPClassUID, whole.Modality = EnhancedPETImageStorage, "PT"
        whole.PatientWeight = 70
        whole.DecayCorrected = whole.AttenuationCorrected = "YES"
        whole.DecayCorrectionDateTime = "20260301105000"
        drug = Dataset()
        drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 350, HALF_LIFE_S
        drug.RadiopharmaceuticalStartDateTime = "20260301090000"
        whole.RadiopharmaceuticalInformationSequence = [drug]
        return whole

    return made


Whole = Callable[[], Dataset]


def test_enhanced_pet_has_the_values_of_its_single_images(
    enhanced_pet: Whole, pet: list[Dataset]
) -> None:
    whole = enhanced_pet()
    expected = volume_of(pet, SUV).voxels
    np.testing.assert_allclose(volume_of([whole], SUV).voxels, expected, rtol=1e-6)
    whole.DecayCorrectionDateTime = "20260301090000"  # to the injection
    np.testing.assert_allclose(volume_of([whole], SUV).voxels, expected / 2, rtol=1e-6)


def test_enhanced_pet_in_suv_stays_as_it_is(enhanced_pet: Whole) -> None:
    whole = enhanced_pet()
    for frame in whole.PerFrameFunctionalGroupsSequence:
        unit = frame.RealWorldValueMappingSequence[0].MeasurementUnitsCodeSequence[0]
        unit.CodeValue = "g/ml{SUVbw}"
    np.testing.assert_array_equal(volume_of([whole], SUV).voxels, volume_of([whole]).voxels)
    unit.CodeValue = "Bq/ml"
    with pytest.raises(InputError, match="is in units of BQML, GML, not Bq/mL"):
        volume_of([whole], SUV)
    for frame in whole.PerFrameFunctionalGroupsSequence:
        unit = frame.RealWorldValueMappingSequence[0].MeasurementUnitsCodeSequence[0]
        unit.CodeValue = "g/ml{SUVlbm}"
    with pytest.raises(InputError, match=r"is in units of g/ml\{SUVlbm\}, not Bq/mL"):
        volume_of([whole], SUV)


def test_of_several_scales_that_of_the_values_counts(enhanced_pet: Whole) -> None:
    whole = enhanced_pet()
    expected = volume_of([whole], SUV).voxels
    for frame in whole.PerFrameFunctionalGroupsSequence:
        other = copy.deepcopy(frame.RealWorldValueMappingSequence[0])
        other.RealWorldValueSlope *= 3e-4
        other.MeasurementUnitsCodeSequence[0].CodeValue = "g/ml{SUVbw}"
        frame.RealWorldValueMappingSequence.append(other)
    np.testing.assert_array_equal(volume_of([whole], SUV).voxels, expected)
    other.RealWorldValueSlope = frame.RealWorldValueMappingSequence[0].RealWorldValueSlope
    with pytest.raises(InputError, match=r"^Frame 4 of .* gives 2 units for its rescaled values"):
        volume_of([whole], SUV)


def test_times_of_enhanced_pet_are_put_to_one_clock(enhanced_pet: Whole) -> None:
    whole = enhanced_pet()
    expected = volume_of([whole], SUV).voxels
    drug = whole.RadiopharmaceuticalInformationSequence[0]
    drug.RadiopharmaceuticalStartDateTime = "20260301080000+0000"
    with pytest.raises(InputError, match="gives times of different offsets from UTC"):
        volume_of([whole], SUV)
    whole.TimezoneOffsetFromUTC = "+0100"
    np.testing.assert_array_equal(volume_of([whole], SUV).voxels, expected)
    drug.RadiopharmaceuticalStartDateTime = "20260301043000-0330"
    whole.DecayCorrectionDateTime += "+0100"
    np.testing.assert_array_equal(volume_of([whole], SUV).voxels, expected)
    whole.DecayCorrectionDateTime = whole.DecayCorrectionDateTime.removesuffix("+0100")
    del whole.TimezoneOffsetFromUTC
    drug.RadiopharmaceuticalStartDateTime = "20260301090000+0100"
    whole.DecayCorrectionDateTime += "+0100"
    for frame in whole.PerFrameFunctionalGroupsSequence:
        frame.FrameContentSequence[0].FrameAcquisitionDateTime += "+0100"
    np.testing.assert_array_equal(volume_of([whole], SUV).voxels, expected)


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("PatientWeight", None, "PatientWeight is missing"),
        ("PatientWeight", 70_000, "has a weight of 70000 kg and an activity of 3.5e+08 Bq"),
        ("DecayCorrected", "NO", "is not corrected for attenuation and decay"),
        ("AttenuationCorrected", None, "is not corrected for attenuation and decay"),
        ("DecayCorrectionDateTime", None, "has the date and time '' ''"),
        ("DecayCorrectionDateTime", "20260301105001", "to a time after its first frame"),
        ("DecayCorrectionDateTime", "20260301085959", "was injected at 2026-03-01 09:00:00"),
        ("RadiopharmaceuticalInformationSequence", None, "nothing of the radiopharmaceutical"),
    ],
)
def test_what_enhanced_pet_lacks_is_said(
    keyword: str, value: object, words: str, enhanced_pet: Whole
) -> None:
    whole = enhanced_pet()
    if value is None:
        delattr(whole, keyword)
    else:
        setattr(whole, keyword, value)
    with pytest.raises(InputError) as error:
        volume_of([whole], SUV)
    assert words in error.value.sentence


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("RadionuclideTotalDose", 350e6, "an activity of 3.5e+14 Bq"),  # Bq, where MBq belong
        ("RadionuclideTotalDose", None, "RadionuclideTotalDose is missing"),
        ("RadionuclideHalfLife", 0.1, "has a half-life of 0.1 s"),
        ("RadiopharmaceuticalStartDateTime", None, "has the date and time '' ''"),
        ("RadiopharmaceuticalStartDateTime", "20260226090000", "was injected at 2026-02-26"),
    ],
)
def test_what_can_not_be_of_enhanced_pet_is_refused(
    keyword: str, value: object, words: str, enhanced_pet: Whole
) -> None:
    whole = enhanced_pet()
    setattr(whole.RadiopharmaceuticalInformationSequence[0], keyword, value)
    with pytest.raises(InputError) as error:
        volume_of([whole], SUV)
    assert words in error.value.sentence


def test_enhanced_pet_whose_units_are_not_those_of_its_values_is_refused(
    enhanced_pet: Whole,
) -> None:
    whole = enhanced_pet()
    frame = whole.PerFrameFunctionalGroupsSequence[2]
    mapping = frame.RealWorldValueMappingSequence[0]
    mapping.RealWorldValueSlope = 1.0
    with pytest.raises(InputError, match=r"^Frame 3 of .* gives no units for its rescaled values"):
        volume_of([whole], SUV)
    del mapping.RealWorldValueSlope  # a table
    with pytest.raises(InputError, match="gives no units"):
        volume_of([whole], SUV)
    del frame.RealWorldValueMappingSequence
    with pytest.raises(InputError, match="gives no units"):
        volume_of([whole], SUV)
    assert volume_of([whole])


def test_two_enhanced_objects_of_one_volume_say_the_same(enhanced_pet: Whole) -> None:
    whole, other = enhanced_pet(), enhanced_pet()
    for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(other, keyword, whole[keyword].value)
    for frame in other.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[2] += 10
    expected = volume_of([whole], SUV).voxels
    np.testing.assert_array_equal(volume_of([whole, other], SUV).voxels[4:], expected)
    drug = other.RadiopharmaceuticalInformationSequence[0]
    drug.RadiopharmaceuticalStartDateTime = "20260301093000"
    with pytest.raises(
        InputError, match="has slices of different RadiopharmaceuticalStartDateTime"
    ):
        volume_of([whole, other], SUV)
