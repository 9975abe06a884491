"""Single images: as shown, in grey and in colour, with the spacing that they have."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.processing import apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian

from dicomai.errors import InputError
from dicomai.imaging.geometry import Plane
from dicomai.imaging.image import image_of
from dicomai.imaging.intake import Intake
from dicomai.imaging.series import read_object
from dicomai.inference.limits import check
from dicomai.inference.preprocess import prepare_image
from dicomai.models.input import Limits
from dicomai.models.steps import Preprocess

SHOWN = Intake(displayed=True)
COLOUR = Intake(colour=True)


@pytest.fixture
def xray(sample_data: Path) -> Dataset:
    """MONOCHROME1, 8 bits, window 128 by 256, For Presentation."""
    return dcmread(sample_data / "modalities" / "dx" / "dx_image.dcm")


@pytest.mark.parametrize("name", ["mg_L_monochrome2.dcm", "mg_R_monochrome1.dcm"])
def test_a_mammogram_is_shown_by_its_sigmoid_and_turned_round(name: str, sample_data: Path) -> None:
    dataset = dcmread(sample_data / "modalities" / "mg" / name)
    theirs = apply_voi_lut(dataset.pixel_array, dataset) / 4095
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        theirs = 1 - theirs
    shown = image_of(dataset, SHOWN).pixels
    np.testing.assert_allclose(shown, theirs, atol=1e-5)
    assert 0 <= shown.min() < shown.max() <= 1


@pytest.mark.parametrize("width", [80, 2, 1])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", ""])
def test_windows_do_what_pydicom_makes_of_them(function: str, width: int, xray: Dataset) -> None:
    xray.WindowCenter, xray.WindowWidth, xray.VOILUTFunction = [100.5, 9], [width, 9], function
    if not function:
        del xray.VOILUTFunction  # which means LINEAR
    theirs = 1 - np.clip(apply_voi_lut(xray.pixel_array, xray) / 255, 0, 1)
    np.testing.assert_allclose(image_of(xray, SHOWN).pixels, theirs, atol=1e-5)


def test_an_image_whose_only_frame_has_functional_groups_is_shown_by_these(xray: Dataset) -> None:
    classic, calibrated = image_of(xray, SHOWN), copy.deepcopy(xray)
    calibrated.PixelSpacing, calibrated.RescaleSlope = [0.1, 0.2], 3
    values = image_of(calibrated)
    levels, measures, rescale = Dataset(), Dataset(), Dataset()
    for keyword in ("WindowCenter", "WindowWidth"):
        levels[keyword] = xray[keyword]
        del xray[keyword]
    measures.PixelSpacing = [0.1, 0.2]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, 0, "US"
    shared, frame = Dataset(), Dataset()
    shared.PixelMeasuresSequence, shared.PixelValueTransformationSequence = [measures], [rescale]
    frame.FrameVOILUTSequence = [levels]
    xray.SharedFunctionalGroupsSequence = [shared]
    xray.PerFrameFunctionalGroupsSequence = [frame]
    shown = image_of(xray, SHOWN)
    np.testing.assert_array_equal(shown.pixels, classic.pixels)
    assert shown.plane.spacing_ji_mm == (0.1, 0.2)
    frame_groups = xray.pop("PerFrameFunctionalGroupsSequence")
    assert image_of(xray).plane.spacing_ji_mm == (0.1, 0.2)
    xray["PerFrameFunctionalGroupsSequence"] = frame_groups
    rescale.RescaleSlope = 3
    np.testing.assert_array_equal(image_of(xray).pixels, values.pixels)
    assert shown.headers == (xray,)
    assert "WindowCenter" not in xray


def test_without_a_window_the_full_range_is_shown(xray: Dataset) -> None:
    del xray.WindowCenter, xray.WindowWidth
    xray.PixelData = np.clip(xray.pixel_array, 20, 200).tobytes()
    shown = image_of(xray, SHOWN).pixels
    stored = xray.pixel_array.astype(float)
    np.testing.assert_allclose(
        shown, 1 - (stored - stored.min()) / (stored.max() - stored.min()), atol=1e-6
    )


def test_a_voi_lut_is_looked_up(sample_data: Path) -> None:
    dataset = dcmread(sample_data / "modalities" / "mr-vlut" / "vlut_04.dcm")
    bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
    theirs = apply_voi_lut(dataset.pixel_array, dataset) / (2**bits - 1)
    np.testing.assert_allclose(image_of(dataset, SHOWN).pixels, theirs, atol=1e-6)
    # It is for display only: unasked, the values are those of the modality.
    np.testing.assert_array_equal(image_of(dataset).pixels, dataset.pixel_array)


@pytest.mark.parametrize(("count", "bits", "held"), [(5, 16, 4), (4, 7, 4), (4, 17, 4)])
def test_a_voi_lut_that_does_not_hold_what_it_says_is_refused(
    count: int, bits: int, held: int, xray: Dataset
) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [count, 0, bits])
    table.add_new("LUTData", "US", list(range(held)))
    xray.VOILUTSequence = [table]
    told = f"its VOI LUT announces {count} entries of {bits} bits and holds {held}"
    with pytest.raises(InputError, match=told):
        image_of(xray, SHOWN)


def test_a_voi_lut_may_have_an_entry_for_every_word(xray: Dataset) -> None:
    """Their number has no room in 16 bits, and is 0 (PS3.3 C.11.2.1.1)."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [0, 0, 16])
    table.add_new("LUTData", "OW", (np.arange(1 << 16)[::-1]).astype("<u2").tobytes())
    xray.VOILUTSequence, xray.PhotometricInterpretation = [table], "MONOCHROME2"
    expected = 1 - xray.pixel_array / 65535
    np.testing.assert_allclose(image_of(xray, SHOWN).pixels, expected, atol=1e-6)


def test_an_image_of_several_frames_or_none_but_padding_is_refused(xray: Dataset) -> None:
    xray.NumberOfFrames = 2
    with pytest.raises(InputError, match="is a multi-frame object"):
        image_of(xray)
    xray.NumberOfFrames, xray.PixelPaddingValue, xray.PixelPaddingRangeLimit = 1, 0, 255
    with pytest.raises(InputError, match="nothing but padding"):
        image_of(xray)


@pytest.mark.parametrize("first", [-100, 65436])
@pytest.mark.parametrize("signed", [False, True])
def test_a_voi_lut_may_begin_below_zero_where_values_may_lie_there(
    first: int, signed: bool, xray: Dataset
) -> None:
    """A writer of implicit VR can't say so: PS3.3 C.11.2.1.1 does, by the range of the rescale."""
    xray.PhotometricInterpretation, xray.PixelRepresentation = "MONOCHROME2", int(signed)
    xray.BitsAllocated, xray.BitsStored, xray.HighBit = 16, 12, 11
    below = -2048 if signed else 0
    stored = below + np.arange(xray.Rows * xray.Columns).reshape(xray.Rows, xray.Columns) % 220
    xray.PixelData = stored.astype("<i2").tobytes()
    xray.RescaleSlope, xray.RescaleIntercept = 1, -100 - below
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [200, first, 16])
    table.add_new("LUTData", "US", [300 * at for at in range(200)])
    xray.VOILUTSequence = [table]
    shown = image_of(xray, SHOWN).pixels
    last = np.minimum(stored - below, 199)
    np.testing.assert_allclose(shown, last * 300 / 65535, atol=1e-6)


def test_a_voi_lut_begins_below_zero_where_values_are_rescaled_downwards(xray: Dataset) -> None:
    xray.PhotometricInterpretation, xray.RescaleSlope, xray.RescaleIntercept = "MONOCHROME2", -1, 99
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 65536 - 156, 16])
    table.add_new("LUTData", "US", [200 * at for at in range(256)])
    xray.VOILUTSequence = [table]
    expected = (255 - xray.pixel_array.astype(float)) * 200 / 65535
    np.testing.assert_allclose(image_of(xray, SHOWN).pixels, expected, atol=1e-6)


def test_a_voi_lut_begins_high_where_no_value_lies_below_zero(xray: Dataset) -> None:
    xray.PhotometricInterpretation, xray.PixelRepresentation = "MONOCHROME2", 1
    xray.BitsAllocated, xray.BitsStored, xray.HighBit = 16, 16, 15
    stored = np.arange(xray.Rows * xray.Columns).reshape(xray.Rows, xray.Columns) % 200
    xray.PixelData = (stored + 7232).astype("<i2").tobytes()
    xray.RescaleSlope, xray.RescaleIntercept = 1, 32768
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [200, 40000, 16])
    table.add_new("LUTData", "US", [300 * at for at in range(200)])
    xray.VOILUTSequence = [table]
    np.testing.assert_allclose(image_of(xray, SHOWN).pixels, stored * 300 / 65535, atol=1e-6)


def test_padding_is_shown_black(xray: Dataset) -> None:
    pixels = xray.pixel_array.copy()
    pixels[:3] = 0
    xray.PixelPaddingValue = 0
    xray.PixelData = pixels.tobytes()
    shown = image_of(xray, SHOWN).pixels
    assert not shown[:3].any()
    assert shown[3:].max() > 0.9


@pytest.mark.parametrize(("function", "width"), [("LINEAR", 0), ("SIGMOID", 0), ("CUBIC", 9)])
def test_a_window_that_can_not_be_is_refused(function: str, width: int, xray: Dataset) -> None:
    xray.WindowWidth, xray.VOILUTFunction = width, function
    with pytest.raises(InputError, match=f"a window of width {width} by {function} can't be"):
        image_of(xray, SHOWN)


def test_images_for_processing_are_refused_unless_the_model_takes_them(xray: Dataset) -> None:
    def say(limits: Limits) -> None:
        image = image_of(xray)
        check(limits, image.facts, image.plane, "nodule", "1.2.3")

    say(Limits(modality=("DX",)))
    xray.PresentationIntentType = "FOR PROCESSING"
    with pytest.raises(InputError, match="the raw values of the detector"):
        say(Limits(modality=("DX",)))
    say(Limits(modality=("DX",), for_processing=True))


def test_a_spacing_says_where_it_holds(xray: Dataset) -> None:
    def spacing(pixel: object, imager: object, calibration: str = "") -> tuple[object, str]:
        other = copy.deepcopy(xray)
        for keyword, value in (("PixelSpacing", pixel), ("ImagerPixelSpacing", imager)):
            if value is None:
                del other[keyword]
            else:
                setattr(other, keyword, value)
        other.PixelSpacingCalibrationType = calibration
        plane = image_of(other).plane
        return plane.spacing_ji_mm, plane.spacing_at

    assert spacing([0.2, 0.3], [0.2, 0.3]) == ((0.2, 0.3), "detector")
    assert spacing([0.19, 0.29], [0.2, 0.3]) == ((0.19, 0.29), "patient")
    assert spacing([0.143, 0.143], [0.14293, 0.143000007])[1] == "detector"
    assert spacing([0.142, 0.142], [0.143, 0.143])[1] == "patient"
    assert spacing([0.2, 0.3], [0.2, 0.3], "FIDUCIAL") == ((0.2, 0.3), "patient")
    assert spacing([0.2, 0.3], None) == ((0.2, 0.3), "detector")
    assert spacing(None, [0.2, 0.3]) == ((0.2, 0.3), "detector")
    assert spacing(None, None) == (None, "")
    assert spacing([0, 0], [0.2, 0.3]) == ((0.2, 0.3), "detector")


def test_an_ultrasound_image_has_the_spacing_of_its_only_region(xray: Dataset) -> None:
    """In centimetres, of columns and rows (PS3.3 C.8.5.5.1.15); negative ones run the other way."""
    del xray.PixelSpacing, xray.ImagerPixelSpacing
    xray.Modality = "US"
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, -0.03
    xray.SequenceOfUltrasoundRegions = [region]
    assert image_of(xray).plane.spacing_ji_mm == pytest.approx((0.3, 0.2))
    assert image_of(xray).plane.spacing_at == "patient"
    xray.SequenceOfUltrasoundRegions = [region, region]
    assert image_of(xray).plane.spacing_ji_mm is None
    xray.SequenceOfUltrasoundRegions = [region]
    for keyword, value in (
        ("PhysicalUnitsXDirection", 4),  # seconds
        ("PhysicalUnitsYDirection", 7),  # cm/s
        ("PhysicalDeltaX", 0.0),
        ("PhysicalDeltaY", 0.0),
    ):
        before = region[keyword].value
        setattr(region, keyword, value)
        assert image_of(xray).plane.spacing_ji_mm is None
        setattr(region, keyword, before)


def test_an_aspect_ratio_is_read(xray: Dataset) -> None:
    xray.PixelAspectRatio = [4, 3]
    spacing = image_of(xray).plane.spacing_ji_mm
    assert image_of(xray).plane.pixel_ji == spacing  # which tells more
    del xray.PixelSpacing, xray.ImagerPixelSpacing
    assert image_of(xray).plane.pixel_ji == (4, 3)
    xray.PixelAspectRatio = [0, 3]
    assert image_of(xray).plane.pixel_ji == (1, 1)
    xray.PixelAspectRatio = None
    assert image_of(xray).plane.pixel_ji == (1, 1)


def test_an_ultrasound_region_tells_the_spacing(sample_data: Path) -> None:
    cine = dcmread(sample_data / "modalities" / "us" / "us_cine_rgb_6frames.dcm")
    with pytest.raises(InputError, match=r"multi-frame object .* 6 frames"):
        image_of(cine, COLOUR)
    cine.NumberOfFrames = 1
    cine.PixelData = cine.PixelData[: cine.Rows * cine.Columns * 3]
    image = image_of(cine, COLOUR)
    assert image.plane.spacing_ji_mm == pytest.approx((0.2, 0.2))
    assert image.plane.spacing_at == "patient"


@pytest.mark.parametrize(
    "name",
    [
        "modalities/photo/vl_photo_lesion_planar1.dcm",
        "modalities/us/US-YBR_FULL_422-EVRLE.dcm",
        "transfer-syntaxes/palette/examples_palette.dcm",
        "transfer-syntaxes/palette/OBXXXX1A_rle.dcm",
        "transfer-syntaxes/testpattern/testpattern_palette16.dcm",
        "transfer-syntaxes/testpattern/testpattern_palette8.dcm",
        "transfer-syntaxes/planar/color-pl.dcm",
        "transfer-syntaxes/sc-rgb/SC_rgb_16bit.dcm",
        "transfer-syntaxes/sc-rgb/SC_ybr_full_uncompressed.dcm",
        "transfer-syntaxes/sc-rgb/SC_rgb_dcmtk_ebcyn2.dcm",
    ],
)
def test_colours_are_those_that_dcmtk_shows(
    name: str, sample_data: Path, tmp_path: Path, peer: Callable[[str], str]
) -> None:
    path = sample_data / name
    dataset = read_object(path)
    dataset.Modality = dataset.get("Modality") or "OT"
    image = image_of(dataset, COLOUR)
    assert image.pixels.dtype == np.float32
    assert image.pixels.shape == (*image.plane.shape_ji, 3)
    command = [peer("dcmj2pnm"), "+op", path, tmp_path / "shown.ppm"]
    subprocess.run(command, check=True, capture_output=True)
    theirs = np.asarray(Image.open(tmp_path / "shown.ppm"), dtype=float) / 255
    assert np.abs(image.pixels - theirs).max() < 2.5 / 255  # both round
    assert np.abs(image.pixels - theirs).mean() < 0.6 / 255


@pytest.mark.parametrize("photometric", ["HSV", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422"])
def test_colours_that_only_a_compression_has_are_refused_without_it(
    photometric: str, sample_data: Path
) -> None:
    dataset = dcmread(sample_data / "modalities" / "photo" / "vl_photo_lesion_planar1.dcm")
    dataset.PhotometricInterpretation = photometric
    with pytest.raises(InputError, match=f"its colours are {photometric}, which dicomai does not"):
        image_of(dataset, COLOUR)


def test_pixel_data_beyond_an_image_are_noted(sample_data: Path, xray: Dataset) -> None:
    assert image_of(xray).warnings == ()
    xray.PixelData += bytes(xray.Columns)
    (warning,) = image_of(xray).warnings
    assert f"has {xray.Columns} bytes more pixel data than its header announces" in warning
    halved = dcmread(sample_data / "modalities" / "us" / "US-YBR_FULL_422-EVRLE.dcm")
    assert image_of(halved, COLOUR).warnings == ()


def test_grey_and_colour_are_not_mistaken_for_each_other(sample_data: Path, xray: Dataset) -> None:
    photo = dcmread(sample_data / "modalities" / "photo" / "vl_photo_lesion_planar1.dcm")
    with pytest.raises(InputError, match=r"is a colour image \(RGB\)"):
        image_of(photo)
    with pytest.raises(InputError, match=r"is a greyscale image \(MONOCHROME1\), and the model"):
        image_of(xray, COLOUR)
    grey = image_of(photo, COLOUR).grey
    assert grey.shape == (photo.Rows, photo.Columns)
    assert 0 < grey.min() < grey.max() < 1


def palette_image(entries: bytes, bits: int, values: np.ndarray, count: int = 256) -> Dataset:
    """An image of one row with a grey palette, as a file that a modality wrote."""
    dataset = Dataset()
    dataset.SOPClassUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality, dataset.PhotometricInterpretation = "US", "PALETTE COLOR"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 1, values.size, 1
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.itemsize
    dataset.HighBit, dataset.PixelRepresentation = 8 * values.itemsize - 1, 0
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTable"
        setattr(dataset, f"{keyword}Descriptor", [count, 0, bits])
        dataset[f"{keyword}Descriptor"].VR = "US"
        setattr(dataset, f"{keyword}Data", entries)
    dataset.add_new("PixelData", "OW", values.tobytes())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


GREY = np.arange(256)


@pytest.mark.parametrize(
    ("entries", "bits"),
    [
        (GREY.astype("u1"), 8),  # two in a word
        (GREY.astype("<u2"), 8),  # each in a word, in its low byte
        (GREY.astype("<u2"), 16),
        ((GREY * 257).astype("<u2"), 16),
        ((GREY * 257).astype("<u2"), 8),
    ],
)
def test_a_palette_is_as_bright_in_words_as_in_bytes(entries: np.ndarray, bits: int) -> None:
    values = np.array([0, 1, 51, 128, 255], "u1")
    shown = image_of(palette_image(entries.tobytes(), bits, values), COLOUR).pixels
    np.testing.assert_allclose(shown[0], np.repeat(values[:, None] / 255, 3, axis=1), atol=1e-6)


def test_a_palette_of_bytes_has_colours_for_values_of_words() -> None:
    values = np.array([0, 255, 256, 1000, 1023, 60000], "<u2")
    entries = np.repeat(GREY, 4).astype("u1")
    shown = image_of(palette_image(entries.tobytes(), 8, values, 1024), COLOUR).pixels
    expected = np.array([0, 63, 64, 250, 255, 255]) / 255  # what lies beyond takes the last
    np.testing.assert_allclose(shown[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("first", [100, -100])
def test_a_palette_begins_at_its_first_value(first: int) -> None:
    values = np.array([first - 3, first, first + 7, first + 255, first + 256], "<i2")
    dataset = palette_image(GREY.astype("<u2").tobytes(), 16, values)
    dataset.PixelRepresentation = 1
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTableDescriptor"
        del dataset[keyword]
        dataset.add_new(keyword, "US", [256, first % (1 << 16), 8])
    shown = image_of(dataset, COLOUR)
    expected = np.array([0, 0, 7, 255, 255]) / 255
    np.testing.assert_allclose(shown.pixels[0, :, 2], expected, atol=1e-6)
    np.testing.assert_allclose(shown.grey[0], expected, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_of_segments_is_looked_up(bits: int) -> None:
    top = (1 << bits) - 1
    # One point at 0, then a line of 255 points up to the top (PS3.3 C.7.9.2).
    segments = np.array([0, 1, 0, 1, 255, top], f"<u{bits // 8}").tobytes()
    dataset = palette_image(b"", bits, np.array([0, 51, 255, 259], "<u2"))
    for colour in ("Red", "Green", "Blue"):
        del dataset[f"{colour}PaletteColorLookupTableData"]
        setattr(dataset, f"Segmented{colour}PaletteColorLookupTableData", segments)
    shown = image_of(dataset, COLOUR).pixels
    np.testing.assert_allclose(shown[0, :, 1], np.array([0, 0.2, 1, 1]), atol=0.003)
    for colour in ("Red", "Green", "Blue"):
        getattr(dataset, f"{colour}PaletteColorLookupTableDescriptor")[0] = 1024
    if bits == 8:
        with pytest.raises(InputError, match="its palette can't be read: it has 1024 entries of 8"):
            image_of(dataset, COLOUR)


def test_a_palette_that_is_cut_off_is_refused(sample_data: Path) -> None:
    path = sample_data / "transfer-syntaxes" / "palette" / "examples_palette.dcm"
    dataset = read_object(path)
    del dataset.GreenPaletteColorLookupTableData
    with pytest.raises(InputError, match="its palette can't be read"):
        image_of(dataset, COLOUR)


def test_a_network_of_colour_gets_three_planes(sample_data: Path) -> None:
    photo = dcmread(sample_data / "modalities" / "photo" / "vl_photo_lesion_planar1.dcm")
    image = image_of(photo, COLOUR)
    assert isinstance(image.plane, Plane)
    height, width = image.plane.shape_ji
    half = (height // 2, width // 2)
    prepared = prepare_image(image, Preprocess(shape_ji=half, clip=(0, 1), scale_to=(0, 1)))
    assert prepared.shape == (3, *half)
    assert (height % 2, width % 2) == (0, 0)
    blocks = image.pixels.reshape(half[0], 2, half[1], 2, 3).mean(axis=(1, 3))
    # The mean of the linear interpolation reaches a little into the neighbours.
    assert np.abs(np.moveaxis(prepared, 0, -1) - blocks).mean() < 0.01
