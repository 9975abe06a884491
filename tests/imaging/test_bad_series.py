"""What is wrong with a series is said with the object or the position, and nothing is guessed."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import _read_file_meta_info
from pydicom.filewriter import write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from dicomai.errors import InputError
from dicomai.imaging.series import read_object, read_series, scan
from dicomai.imaging.volume import volume_of, volumes_of

Maker = Callable[..., list[Dataset]]


def refusal(datasets: list[Dataset]) -> str:
    with pytest.raises(InputError) as error:
        volume_of(datasets)
    assert error.value.subject
    return error.value.sentence


def as_received(keyword: str, value: str | int | list[str]) -> RawDataElement:
    """An element as it stands in a file, which pydicom would not let us write."""
    tag = Tag(tag_for_keyword(keyword))
    if isinstance(value, int):
        return RawDataElement(tag, "US", 2, struct.pack("<H", value), 0, False, True)
    text = (value if isinstance(value, str) else "\\".join(value)).encode()
    vr = dictionary_VR(tag)
    return RawDataElement(tag, vr, len(text), text, 0, False, True)


def test_a_gap_is_named_where_it_is(make_series: Maker) -> None:
    slices = make_series(first=(0, 0, 40.0), shape_kji=(6, 4, 4))
    del slices[1]
    uid = slices[0].SeriesInstanceUID
    assert refusal(slices) == (
        f"Series {uid} has no slice at 42.5 mm, between 40.0 and 45.0 mm. Send the series again."
    )
    slices = make_series(first=(0, 0, 40.0), shape_kji=(8, 4, 4))
    del slices[2:5]
    assert "has no slice for 3 positions, between 42.5 and 52.5 mm" in refusal(slices)


def test_a_gap_of_a_series_from_head_to_feet_has_table_positions(make_series: Maker) -> None:
    slices = make_series(first=(0, 0, 40.0), row=(-1, 0, 0), shape_kji=(5, 4, 4))
    del slices[2]
    assert "no slice at 35.0 mm, between 32.5 and 37.5 mm" in refusal(slices)


def test_pet_that_has_fewer_slices_than_it_says_is_noted(make_series: Maker) -> None:
    slices = make_series(shape_kji=(6, 4, 4))
    for each in slices:
        each.Modality, each.NumberOfSlices = "PT", 6
    assert volume_of(slices).warnings == ()
    (warning,) = volume_of(slices[:-2]).warnings
    assert warning.startswith("The series says that it has 6 slices, and 4 are here:")


def test_the_slices_of_each_time_are_counted_alone(make_series: Maker) -> None:
    early, late = make_series(shape_kji=(6, 4, 4)), make_series(shape_kji=(6, 4, 4))
    for time, slices in ((100, early), (200, late)):
        for each in slices:
            each.Modality, each.NumberOfSlices, each.FrameReferenceTime = "PT", 6, time
            each.SeriesInstanceUID = early[0].SeriesInstanceUID
            each.FrameOfReferenceUID = early[0].FrameOfReferenceUID
    assert [each.warnings for each in volumes_of([*early, *late])] == [(), ()]


def test_the_same_object_twice_is_named(make_series: Maker) -> None:
    slices = make_series()
    assert f"names object {slices[2].SOPInstanceUID} twice" in refusal([*slices, slices[2]])


def test_a_scout_in_the_series_is_named(make_series: Maker) -> None:
    slices = make_series()
    (scout, *_) = make_series(row=(0, 1, 0), column=(0, 0, -1), shape_kji=(3, 6, 7))
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
    sentence = refusal([*slices, scout])
    assert "in 2 orientations: 5 axial, 1 sagittal (a scout)" in sentence
    assert scout.SOPInstanceUID in sentence


@pytest.mark.parametrize(
    ("cosines", "degrees"),
    [
        ([-1, 0, 0, 0, -1, 0], "180.0"),
        ([-1, 0, 0, 0, 1, 0], "180.0"),
        ([0, 1, 0, -1, 0, 0], "90.0"),
        ([0.99619, 0.08716, 0, -0.08716, 0.99619, 0], "5.0"),
    ],
)
def test_a_slice_that_is_turned_in_its_plane_is_named(
    make_series: Maker, cosines: list[float], degrees: str
) -> None:
    slices = make_series()
    del slices[3].ImageOrientationPatient  # they share the element
    slices[3].ImageOrientationPatient = cosines
    assert refusal(slices) == (
        f"Series {slices[0].SeriesInstanceUID} has one slice that is turned by {degrees}° against "
        f"the other 4: object {slices[3].SOPInstanceUID}. Have the modality mend it, or send the "
        "series without it."
    )


@pytest.mark.parametrize("count", [3, 5, 6, 20])
def test_slices_that_are_too_near_to_tell_are_not_called_repeats(
    make_series: Maker, count: int
) -> None:
    slices = make_series(spacing_kji=(0.05, 1, 1), shape_kji=(count, 4, 4))
    assert refusal(slices) == (
        f"Series {slices[0].SeriesInstanceUID} has slices no more than 0.050 mm apart, and below "
        "0.06 mm they can't be told from slices at one place. Have it reconstructed with a larger "
        "spacing."
    )


def test_a_slice_shifted_sideways_is_named(make_series: Maker) -> None:
    slices = make_series(first=(0, 0, 0))
    slices[2].ImagePositionPatient = [3, 0, 5]
    assert "the slice at 5.0 mm is shifted 3.0 mm sideways" in refusal(slices)


def test_a_tilt_along_the_rows_is_named(make_series: Maker) -> None:
    slices = make_series(first=(0, 0, 0))
    for k, each in enumerate(slices):
        each.ImagePositionPatient = [2.5 * k, 0, 2.5 * k]
    assert "gantry tilt of 45.0°: each slice is shifted along its rows" in refusal(slices)


def test_positions_rounded_by_the_modality_are_taken_and_noted(make_series: Maker) -> None:
    slices = make_series(first=(0, 0, 0), shape_kji=(9, 4, 4))
    for k, each in enumerate(slices):
        each.ImagePositionPatient = [0, 0, round(k * 0.625, 2)]
    volume = volume_of(slices)
    assert volume.warnings == ()
    slices[4].ImagePositionPatient = [0, 0, 2.53]
    (warning,) = volume_of(slices).warnings
    assert "up to 0.030 mm" in warning
    for k, each in enumerate(slices):
        each.ImagePositionPatient = [0, 0, round(k * 0.625, 1)]
    assert volume_of(slices).grid.spacing_kji_mm[0] == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("RescaleSlope", "NaN", "RescaleSlope is"),
        ("RescaleIntercept", "1e400", "RescaleIntercept is"),
        ("RescaleSlope", "0", "make no sensible values"),
        ("RescaleSlope", "1e30", "make no sensible values"),
        ("PixelSpacing", ["-1", "1"], "make no sense"),
        ("PixelSpacing", ["0", "1"], "make no sense"),
        ("PixelSpacing", ["1"], "PixelSpacing has 1 values where 2 belong"),
        ("PixelSpacing", None, "PixelSpacing is missing"),
        ("ImagePositionPatient", ["0", "0", "inf"], "not finite"),
        ("ImagePositionPatient", None, "has no ImagePositionPatient"),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], "no pair of unit vectors"),
        ("FrameOfReferenceUID", None, "has no FrameOfReferenceUID"),
        ("Rows", None, "Rows is missing"),
        ("Columns", 0, "make no sense"),
        ("Rows", 12, "slices of different size: 6×7"),
        ("BitsStored", 17, "17 bits stored of 16"),
        ("HighBit", 17, "16 bits stored of 16 allocated, high bit 17, which can't be"),
        ("SamplesPerPixel", 3, "is a colour image"),
        ("PhotometricInterpretation", "PALETTE COLOR", "is a colour image (PALETTE COLOR)"),
        ("PhotometricInterpretation", None, "its PhotometricInterpretation is missing"),
        ("NumberOfFrames", "2", "is a multi-frame object (CT Image Storage, 2 frames)"),
        ("PixelData", None, "has no pixel data"),
    ],
)
def test_a_wrong_attribute_names_its_object(
    make_series: Maker, keyword: str, value: str | int | list[str] | None, words: str
) -> None:
    slices = make_series()
    wrong = slices[3]
    if value is None:
        del wrong[keyword]
    else:
        wrong[keyword] = as_received(keyword, value)
    sentence = refusal(slices)
    assert words in sentence
    assert wrong.SOPInstanceUID in sentence


def test_truncated_pixel_data_names_its_object(make_series: Maker) -> None:
    slices = make_series()
    slices[1].PixelData = slices[1].PixelData[:-8]
    sentence = refusal(slices)
    assert f"Object {slices[1].SOPInstanceUID}: the pixel data can't be decoded" in sentence


def test_pixel_data_beyond_what_the_header_announces_are_noted(make_series: Maker) -> None:
    slices = make_series()
    plain = volume_of(slices)
    assert plain.warnings == ()
    slices[3].PixelData += bytes(7 * 2)
    longer = volume_of(slices)
    (warning,) = longer.warnings
    assert warning.startswith(f"Object {slices[3].SOPInstanceUID} has 14 bytes more pixel data")
    np.testing.assert_array_equal(longer.voxels, plain.voxels)
    slices[0].PixelData += bytes(2)
    slices[1].PixelData += bytes(2)
    (warning,) = volume_of(slices).warnings
    assert warning.endswith("The same holds of 2 more objects of the series.")


def test_frames_beyond_those_that_the_header_announces_are_noted(make_series: Maker) -> None:
    slices = make_series()
    slices[3].compress(RLELossless, generate_instance_uid=False)
    plain = volume_of(slices)
    assert plain.warnings == ()
    (frame,) = generate_frames(slices[3].PixelData, number_of_frames=1)
    slices[3].PixelData = encapsulate([frame, frame, frame])
    longer = volume_of(slices)
    (warning,) = longer.warnings
    assert "has 2 frames more than its header announces (1)" in warning
    np.testing.assert_array_equal(longer.voxels, plain.voxels)


def test_a_byte_that_makes_the_length_even_is_no_news(make_series: Maker) -> None:
    slices = make_series(shape_kji=(4, 3, 3))
    for each in slices:
        each.BitsAllocated, each.BitsStored, each.HighBit = 8, 8, 7
        each.PixelRepresentation = 0
        each.PixelData = bytes(range(10))
    assert volume_of(slices).warnings == ()


def test_pixel_data_that_no_one_can_decode_names_object_and_transfer_syntax(
    make_series: Maker,
) -> None:
    slices = make_series()
    slices[1].file_meta.TransferSyntaxUID = JPEG2000Lossless
    sentence = refusal(slices)
    assert slices[1].SOPInstanceUID in sentence
    assert "JPEG 2000 Image Compression (Lossless Only) (1.2.840.10008.1.2.4.90)" in sentence


def test_padding_takes_the_lowest_value_of_the_rest(make_series: Maker) -> None:
    slices = make_series(lambda lps: lps[..., 2])
    lowest = min(float(each.ImagePositionPatient[2]) for each in slices)
    for each in slices:
        pixels = np.frombuffer(each.PixelData, "<i2").reshape(6, 7).copy()
        pixels[0] = -32768
        each.PixelData = pixels.tobytes()
        each.PixelPaddingValue = -32768
    volume = volume_of(slices)
    assert volume.voxels.min() == pytest.approx(lowest)
    np.testing.assert_allclose(volume.voxels[:, 0], lowest)


@pytest.mark.parametrize(
    ("signed", "vr", "value", "limit"),
    [
        (1, "SS", -2000, None),
        (1, "US", 63536, None),
        (1, "US", 63536, 63540),
        (1, "US", 63536, 32768),
        (0, "US", 63536, None),
        (0, "SS", -2000, None),
        (0, "SS", -2000, -1990),
    ],
)
def test_padding_is_found_whatever_sign_its_value_was_written_with(
    make_series: Maker, signed: int, vr: str, value: int, limit: int | None
) -> None:
    slices = make_series()
    for each in slices:
        each.PixelRepresentation = signed
        each.RescaleSlope, each.RescaleIntercept = 1, -1024
        pixels = np.full((6, 7), 1000, "<i2")
        pixels[0] = -2000
        each.PixelData = pixels.tobytes()
        each.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            each.add_new("PixelPaddingRangeLimit", vr, limit)
    assert set(np.unique(volume_of(slices).voxels)) == {-24}


@pytest.mark.parametrize(
    ("signed", "vr", "value", "limit", "word"),
    [
        (0, "SS", -2000, None, 0xF830),
        (0, "US", 63536, None, 0xF830),
        (0, "SS", -2000, -1990, 0xF83A),
        (0, "US", 0x87D0, None, 0x87D0),
        (1, "SS", -30768, None, 0x87D0),
        (1, "US", 0x87D0, None, 0x87D0),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_padding_beyond_the_bits_stored_is_found(
    make_series: Maker, signed: int, vr: str, value: int, limit: int | None, word: int, syntax: UID
) -> None:
    slices = make_series()
    for each in slices:
        each.PixelRepresentation = signed
        each.BitsStored, each.HighBit = 12, 11
        each.RescaleSlope, each.RescaleIntercept = 1, -1024
        pixels = np.full((6, 7), 1000, "<u2")
        pixels[0], pixels[1] = word, word & 0x0FFF
        each.PixelData = pixels.tobytes()
        each.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            each.add_new("PixelPaddingRangeLimit", vr, limit)
        if syntax == RLELossless:
            each.compress(RLELossless, generate_instance_uid=False)
    voxels = volume_of(slices).voxels
    # The same bits without those above are a value like any other.
    value_of_tissue = (word & 0x0FFF) - 1024
    np.testing.assert_array_equal(voxels[:, 1], value_of_tissue)
    np.testing.assert_array_equal(voxels[:, 2:], -24)
    np.testing.assert_array_equal(voxels[:, 0], -24)


def test_bits_of_which_nobody_says_where_they_lie_are_the_lowest_and_unsigned(
    make_series: Maker,
) -> None:
    slices = make_series()
    for each in slices:
        each.BitsStored, each.PixelRepresentation = 12, 0
        each.RescaleSlope, each.RescaleIntercept = 1, -1024
        each.PixelData = (np.arange(42, dtype="<u2") * 97).tobytes()
        del each.HighBit, each.PixelRepresentation
    expected = (np.arange(42) * 97 - 1024).reshape(6, 7)
    for plane in volume_of(slices).voxels:
        np.testing.assert_array_equal(plane, expected)


def test_hounsfield_units_stay_whole_numbers(make_series: Maker) -> None:
    slices = make_series()
    for each in slices:
        each.RescaleSlope, each.RescaleIntercept = 1, -1024
        each.PixelData = np.full((6, 7), 1000, "<i2").tobytes()
    volume = volume_of(slices)
    assert volume.voxels.dtype == np.int16
    assert set(np.unique(volume.voxels)) == {-24}
    slices[4].PixelData = np.full((6, 7), -32000, "<i2").tobytes()
    assert volume_of(slices).voxels.dtype == np.float32


def test_whole_numbers_fit_after_an_intercept_that_does_not(make_series: Maker) -> None:
    slices = make_series()
    for each in slices:
        each.PixelRepresentation, each.RescaleSlope, each.RescaleIntercept = 0, 1, -40000
        each.PixelData = (np.arange(42) * 500 + 39000).astype("<u2").tobytes()
    voxels = volume_of(slices).voxels
    assert voxels.dtype == np.int16
    assert voxels[1].ravel().tolist() == list(range(-1000, 20000, 500))


def test_a_modality_lut_gives_the_values(make_series: Maker) -> None:
    slices = make_series()
    table = Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table["LUTDescriptor"].VR = "US"
    table.LUTData = [10, 20, 40, 80]
    table["LUTData"].VR = "US"
    table.ModalityLUTType = "US"
    for each in slices:
        each.Modality = "MR"
        del each.RescaleSlope, each.RescaleIntercept
        each.PixelRepresentation = 0
        each.ModalityLUTSequence = Sequence([table])
        each.PixelData = np.full((6, 7), 2, "<u2").tobytes()
    assert set(np.unique(volume_of(slices).voxels)) == {40}


def test_a_slice_may_be_nothing_but_padding_and_a_series_may_not(make_series: Maker) -> None:
    slices = make_series(lambda lps: lps[..., 2])
    for number, each in enumerate(slices, start=1):
        each.PixelPaddingValue = -32768
        each.PixelData = np.full((6, 7), -32768, "<i2").tobytes()
        if number == 2:
            volume = volume_of(slices)
            np.testing.assert_allclose(volume.voxels[:2], volume.voxels[2:].min())
            assert volume.voxels.max() > volume.voxels.min() > 100
    assert "nothing but padding" in refusal(slices)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_ct_without_rescale_is_refused(make_series: Maker, keyword: str) -> None:
    slices = make_series()
    delattr(slices[2], keyword)
    with pytest.raises(InputError, match=f"is CT without {keyword}"):
        volume_of(slices)
    for each in slices:
        each.Modality = "MR"
        each.pop(keyword, None)
    assert volume_of(slices)


@pytest.mark.parametrize(("keyword", "value"), [("RescaleSlope", 0.5), ("RescaleIntercept", -10)])
def test_slices_of_which_some_are_not_rescaled_are_refused(
    make_series: Maker, keyword: str, value: float
) -> None:
    slices = make_series()
    for each in slices:
        each.Modality = "MR"
        setattr(each, keyword, value)
    delattr(slices[2], keyword)
    sentence = refusal(slices)
    assert f"has slices with {keyword} side by side with others without" in sentence
    assert slices[2].SOPInstanceUID in sentence


def test_what_is_rescaled_by_one_and_zero_may_say_so_or_not(make_series: Maker) -> None:
    slices = make_series()
    for each in slices:
        each.Modality, each.RescaleSlope = "MR", 1
    del slices[2].RescaleSlope, slices[2].RescaleIntercept
    assert volume_of(slices).warnings == ()


def test_slices_with_and_without_a_modality_lut_are_refused(make_series: Maker) -> None:
    slices = make_series()
    for each in slices:
        each.Modality = "MR"
        del each.RescaleSlope, each.RescaleIntercept
        each.ModalityLUTSequence = Sequence([Dataset()])
        each.ModalityLUTSequence[0].LUTDescriptor = [2, 0, 16]
        each.ModalityLUTSequence[0]["LUTDescriptor"].VR = "US"
        each.ModalityLUTSequence[0].LUTData = [10, 20]
        each.ModalityLUTSequence[0]["LUTData"].VR = "US"
    assert volume_of(slices)
    del slices[1].ModalityLUTSequence
    sentence = refusal(slices)
    assert "has slices with Modality LUT Sequence side by side with others without" in sentence
    assert slices[1].SOPInstanceUID in sentence


@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [("RescaleType", "", "normalized"), ("RescaleType", "MGML", "US"), ("Units", "BQML", "CNTS")],
)
def test_slices_of_different_units_are_refused(
    make_series: Maker, keyword: str, one: str, other: str
) -> None:
    slices = make_series()
    for each in slices:
        each.Modality = "MR"
        setattr(each, keyword, one)
    assert volume_of(slices)
    setattr(slices[3], keyword, other)
    assert f"has slices side by side whose {keyword} differs" in refusal(slices)


def test_a_unit_that_is_not_said_is_the_usual_one(make_series: Maker) -> None:
    slices = make_series()
    slices[1].RescaleType = "HU"
    assert volume_of(slices)
    for each in slices:
        each.Modality = "MR"
        each.pop("RescaleType", None)
    slices[1].RescaleType = "US"
    assert volume_of(slices)


def test_a_real_world_value_mapping_is_noted_where_it_is_alone(make_series: Maker) -> None:
    slices = make_series()
    for each in slices:
        each.Modality = "MR"
        mapping = Dataset()
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.25, 0.0
        each.RealWorldValueMappingSequence = Sequence([mapping])
    assert volume_of(slices).warnings == ()
    for each in slices:
        del each.RescaleSlope, each.RescaleIntercept
    (warning,) = volume_of(slices).warnings
    assert "by Real World Value Mapping alone, which was not applied" in warning
    slices[2].RealWorldValueMappingSequence[0].RealWorldValueSlope = 0.5
    sentence = refusal(slices)
    assert "whose Real World Value Mapping differs" in sentence
    assert slices[2].SOPInstanceUID in sentence


def test_slices_of_two_echoes_are_no_volume(make_series: Maker) -> None:
    slices = make_series()
    for each in slices:
        each.Modality, each.EchoTime = "MR", 30
    slices[4].EchoTime = 30.4
    assert volume_of(slices)
    slices[3].EchoTime = slices[4].EchoTime = 90
    assert "has slices side by side with echo times from 30 to 90 ms" in refusal(slices)


@pytest.mark.parametrize("unit", ["Z_EFF", "MGML", "US"])
def test_a_ct_of_no_hounsfield_units_is_refused(make_series: Maker, unit: str) -> None:
    slices = make_series()
    for each in slices:
        each.RescaleType = unit
    with pytest.raises(InputError, match=f"is CT in {unit}, and models take Hounsfield units"):
        volume_of(slices)
    for each in slices:
        each.RescaleType = "HU"
    assert volume_of(slices)


def test_slices_turned_by_less_than_each_cosine_may_be_are_refused_where_they_are_wide(
    make_series: Maker,
) -> None:
    for width, passes in ((300, True), (900, False)):
        slices = make_series(shape_kji=(5, 6, width), spacing_kji=(2.5, 0.5, 0.5))
        for number, each in enumerate(slices):
            del each.ImageOrientationPatient  # they share the element
            each.ImageOrientationPatient = [1, 0.0008 * (number % 2), 0, 0, 1, 0]
        if passes:
            assert volume_of(slices)
        else:
            with pytest.raises(InputError, match=r"corner of object .* lies 0\.22 mm off"):
                volume_of(slices)


def test_no_memory_is_taken_on_the_word_of_headers(make_series: Maker) -> None:
    slices = make_series(shape_kji=(3, 4, 4))
    for each in slices:
        each.Rows = each.Columns = 65535  # 24 GiB of voxels
    assert "can't be decoded" in refusal(slices)


class TestFiles:
    """What is wrong with a file is said with its path."""

    @pytest.fixture
    def folder(self, make_series: Maker, tmp_path: Path) -> Path:
        for number, each in enumerate(make_series()):
            each.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
        return tmp_path

    def test_files_become_series(self, folder: Path) -> None:
        (series,) = read_series(folder.iterdir())
        assert len(series.datasets) == len(series.paths) == 5
        assert volume_of(series.datasets).grid.shape_kji == (5, 6, 7)

    def test_no_dicom(self, folder: Path) -> None:
        (folder / "letter.txt").write_text("Dear colleague")
        with pytest.raises(InputError, match=r"letter\.txt is no DICOM file\."):
            read_object(folder / "letter.txt")
        found = scan(folder)
        assert [each.path.name for each in found.unreadable] == ["letter.txt"]
        assert len(found.series) == 1

    def test_cut_off(self, folder: Path) -> None:
        path = folder / "2.dcm"
        whole = path.read_bytes()
        for length in (140, 300, len(whole) - 40):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError) as error:
                volume_of(read_series(sorted(folder.iterdir()))[0].datasets)
            assert str(path) in error.value.sentence or "can't be decoded" in error.value.sentence

    @pytest.mark.parametrize(
        "declared",
        [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless],
        ids=lambda uid: uid.keyword,
    )
    def test_another_transfer_syntax_than_declared(self, folder: Path, declared: UID) -> None:
        path = folder / "2.dcm"
        dataset = dcmread(path)
        with path.open("rb") as file:
            file.seek(132)
            _read_file_meta_info(file)
            rest = file.read()
        dataset.file_meta.TransferSyntaxUID = declared
        with path.open("wb") as file:
            file.write(b"\0" * 128 + b"DICM")
            write_file_meta_info(file, dataset.file_meta)
            file.write(rest)
        with pytest.raises(InputError) as error:
            volume_of(read_series(sorted(folder.iterdir()))[0].datasets)
        assert str(path) in error.value.sentence or dataset.SOPInstanceUID in error.value.sentence

    def test_no_sop_instance_uid(self, folder: Path) -> None:
        path = folder / "2.dcm"
        dataset = dcmread(path)
        del dataset.SOPInstanceUID
        dataset.save_as(path)
        with pytest.raises(InputError, match=r"2\.dcm has no SOP Instance UID"):
            read_object(path)

    def test_names_say_nothing(self, folder: Path) -> None:
        before = volume_of(read_series(sorted(folder.iterdir()))[0].datasets)
        shutil.move(folder / "0.dcm", folder / "z")
        shutil.move(folder / "4.dcm", folder / "0.dcm")
        after = volume_of(read_series(sorted(folder.iterdir()))[0].datasets)
        np.testing.assert_array_equal(before.voxels, after.voxels)
        assert before.grid.sop_instance_uids == after.grid.sop_instance_uids


def test_a_table_of_a_big_endian_file_has_its_words_the_other_way(
    make_series: Maker, tmp_path: Path
) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
    table.add_new("LUTData", "OW", struct.pack(">4H", 10, 20, 40, 300))
    slices = make_series(shape_kji=(3, 2, 2))
    for number, each in enumerate(slices):
        del each.RescaleSlope, each.RescaleIntercept
        each.Modality, each.ModalityLUTSequence = "MR", [table]
        each["PixelData"].VR = "OW"
        each.PixelData = np.array([[0, 1], [2, 3]], ">u2").tobytes()
        each.PixelRepresentation = 0
        each.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        each.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    read = [dcmread(file) for file in sorted(tmp_path.iterdir())]
    assert volume_of(read).voxels[0].tolist() == [[10, 20], [40, 300]]


@pytest.mark.parametrize(
    ("keyword", "octets"),
    [("Rows", b"\1\0\0"), ("BitsStored", b"\1"), ("InstanceNumber", b"1e400 ")],
)
def test_a_number_that_can_not_be_read_is_named(
    make_series: Maker, keyword: str, octets: bytes
) -> None:
    slices = make_series(shape_kji=(4, 2, 2))
    if keyword == "InstanceNumber":  # which is looked at where positions repeat
        slices[1].ImagePositionPatient = slices[0].ImagePositionPatient
    tag = Tag(tag_for_keyword(keyword))
    vr = dictionary_VR(tag)[:2]
    for each in slices:
        each[tag] = RawDataElement(tag, vr, len(octets), octets, 0, False, True)
    assert f"{keyword} can't be read" in refusal(slices)


@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [("Modality", "CT", "MR"), ("ConvolutionKernel", "B30f", "B70f")],
)
def test_slices_of_two_kinds_side_by_side_are_no_volume(
    make_series: Maker, keyword: str, one: str, other: str
) -> None:
    slices = make_series(shape_kji=(6, 2, 2))
    for number, each in enumerate(slices):
        each.pop(keyword, None)  # they share it
        setattr(each, keyword, other if number % 2 else one)
    assert f"whose {keyword} differs ({one} and {other}): they are no one volume" in refusal(slices)


def test_a_concatenation_that_is_not_whole_is_refused(make_series: Maker) -> None:
    slices = make_series(shape_kji=(4, 2, 2))
    for number, each in enumerate(slices):
        each.ConcatenationUID, each.InConcatenationNumber = "1.2.3", number + 1
        each.InConcatenationTotalNumber = 4
    volume_of(slices)
    assert "is part of a concatenation of 4 objects, and 3 of them are here" in refusal(slices[:3])
