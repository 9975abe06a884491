"""What is sent in another transfer syntax shows what it showed: held against its hash and DCMTK."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels import get_encoder
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicomai.errors import InputError
from dicomai.imaging.decoders import LOSSLESS, NATIVE
from dicomai.net.transcode import EXPLICIT, IMPLICIT, transcoded

Peer = Callable[[str], str]

NOT_DECODED = {
    "encapsulated-uncompressed/emri_small_encapsulated_98.dcm",
    "liver-1bit/liver_deflate.dcm",
    "liver-1bit/liver_nonbyte_aligned_deflate.dcm",
    "liver-1bit/liver_nonbyte_aligned_rle.dcm",
    "liver-1bit/liver_rle.dcm",
}
"""Nobody's decoder is installed; see tests/imaging/test_transfer_syntaxes.py."""
SEVEN_BITS = {"jpegls/JLSL_08_07_0_1F.dcm"}
"""DCMTK takes them for damage."""
OF_DCMTK = {
    "1.2.840.10008.1.2.4.50": "dcmdjpeg",
    "1.2.840.10008.1.2.4.51": "dcmdjpeg",
    "1.2.840.10008.1.2.4.57": "dcmdjpeg",
    "1.2.840.10008.1.2.4.70": "dcmdjpeg",
    "1.2.840.10008.1.2.4.80": "dcmdjpls",
    "1.2.840.10008.1.2.4.81": "dcmdjpls",
    "1.2.840.10008.1.2.5": "dcmdrle",
}


def samples(folder: Path) -> dict[str, Any]:
    """Truths of the files that have a preamble."""
    truths: dict[str, Any] = json.loads((folder / "truth.json").read_text())["files"]
    return {
        name: truth
        for name, truth in truths.items()
        if (folder / name).read_bytes()[128:132] == b"DICM"
    }


def sent(source: Path, syntax: str = EXPLICIT) -> Dataset:
    """An object as it is written, read again."""
    target = source.with_name("sent.dcm")
    transcoded(source, target, syntax)
    return dcmread(target)


def bytes_wanted(image: Dataset) -> int:
    """How long native pixel data must be (PS3.5 8.1.1)."""
    pixels = (
        image.Rows * image.Columns * image.SamplesPerPixel * int(image.get("NumberOfFrames", 1))
    )
    octets = -(-pixels * image.BitsAllocated // 8)
    return int(octets + octets % 2)


@pytest.fixture
def made(sample_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a small CT with some frames in the place of its pixels."""

    def write(syntax: str, frames: list[bytes], **attributes: object) -> Path:
        image = dcmread(sample_data / "transfer-syntaxes" / "ct-small" / "CT_small.dcm")
        for keyword, value in attributes.items():
            setattr(image, keyword, value)
        image.PixelData = encapsulate(frames)
        image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
        image.file_meta.TransferSyntaxUID = syntax
        image.save_as(tmp_path / "made.dcm", enforce_file_format=True)
        return tmp_path / "made.dcm"

    return write


def picture(bits: int, shape: tuple[int, ...] = (128, 128)) -> npt.NDArray[np.integer]:
    """A ramp over all values of so many bits, none like its neighbour."""
    count = math.prod(shape)
    ramp = np.arange(count) * ((1 << bits) - 4) // count + np.arange(count) * 7 % 4
    return ramp.reshape(shape).astype("u2" if bits > 8 else "u1")


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_every_lossless_sample_decodes_to_its_hash_before_and_after(
    sample_data: Path, tmp_path: Path
) -> None:
    folder = sample_data / "transfer-syntaxes"
    done = set()
    for name, truth in samples(folder).items():
        if truth["lossy"] or name in NOT_DECODED:
            continue
        for syntax in (EXPLICIT, IMPLICIT):
            transcoded(folder / name, tmp_path / "out.dcm", syntax)
            after = dcmread(tmp_path / "out.dcm")
            assert after.file_meta.TransferSyntaxUID == syntax
            values = after.pixel_array
            found = np.ascontiguousarray(values, np.dtype(truth["dtype"]).newbyteorder("<"))
            assert hashlib.sha256(found.tobytes()).hexdigest() == truth["sha256"], name
            said = dcmread(folder / name).get("LossyImageCompression")
            assert after.get("LossyImageCompression") == said
        if truth["transfer_syntax"] not in (EXPLICIT, IMPLICIT):
            assert len(after.PixelData) == bytes_wanted(after), name
            done.add(truth["transfer_syntax"])
    assert done == (NATIVE - {EXPLICIT, IMPLICIT}) | LOSSLESS | {RLELossless}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_what_is_written_has_the_pixels_that_dcmtk_reads(
    peer: Peer, sample_data: Path, tmp_path: Path
) -> None:
    folder = sample_data / "transfer-syntaxes"
    read = set()
    for name, truth in samples(folder).items():
        tool = OF_DCMTK.get(truth["transfer_syntax"])
        if tool is None or name in NOT_DECODED | SEVEN_BITS:
            continue
        if truth["lossy"] and truth["samples"] > 1:
            continue  # of which each makes full colour in its own way
        transcoded(folder / name, tmp_path / "ours.dcm", EXPLICIT)
        subprocess.run([peer(tool), folder / name, tmp_path / "theirs.dcm"], check=True)
        ours, theirs = dcmread(tmp_path / "ours.dcm"), dcmread(tmp_path / "theirs.dcm")
        values = ours.pixel_array.astype(int)
        rounding = 1 if truth["transfer_syntax"] == "1.2.840.10008.1.2.4.50" else 0
        np.testing.assert_allclose(values, theirs.pixel_array, rtol=0, atol=rounding)
        shown = []
        for each in ("ours", "theirs"):
            grey = tmp_path / f"{each}.pgm"
            subprocess.run([peer("dcm2pnm"), tmp_path / f"{each}.dcm", grey], check=True)
            shown.append(np.frombuffer(grey.read_bytes(), "u1"))
        np.testing.assert_allclose(shown[0].astype(int), shown[1], rtol=0, atol=rounding)
        read.add(truth["transfer_syntax"])
    assert read == set(OF_DCMTK)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_colour_is_what_the_header_says_that_it_is(
    peer: Peer, sample_data: Path, tmp_path: Path
) -> None:
    folder = sample_data / "transfer-syntaxes"
    for name, truth in samples(folder).items():
        before = dcmread(folder / name)
        if before.SamplesPerPixel == 1 or truth["transfer_syntax"] in (EXPLICIT, IMPLICIT):
            continue
        try:
            transcoded(folder / name, tmp_path / "out.dcm", EXPLICIT)
        except InputError:
            assert name == "sc-rgb/SC_rgb_jpeg.dcm"  # its data set is implicit
            continue
        after = dcmread(tmp_path / "out.dcm")
        assert (after.PhotometricInterpretation, after.PlanarConfiguration) == ("RGB", 0), name
        assert len(after.PixelData) == bytes_wanted(after)
        np.testing.assert_array_equal(after.pixel_array, before.pixel_array, name)
        subprocess.run([peer("dcm2pnm"), tmp_path / "out.dcm", tmp_path / "out.ppm"], check=True)


def test_ybr_that_lost_nothing_stays_ybr(made: Callable[..., Path]) -> None:
    values = picture(8, (128, 128, 3))
    encoded = get_encoder(RLELossless).encode(
        values,
        rows=128,
        columns=128,
        samples_per_pixel=3,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        photometric_interpretation="YBR_FULL",
        planar_configuration=0,
        number_of_frames=1,
        encoding_plugin="pydicom",
    )
    after = sent(
        made(
            RLELossless,
            [encoded],
            SamplesPerPixel=3,
            PhotometricInterpretation="YBR_FULL",
            PlanarConfiguration=1,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelRepresentation=0,
        )
    )
    assert (after.PhotometricInterpretation, after.PlanarConfiguration) == ("YBR_FULL", 0)
    assert after.PixelData == values.tobytes()


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_eight_bits_in_words_of_sixteen_are_written_as_words(
    made: Callable[..., Path], syntax: str, frames: int
) -> None:
    values = picture(8, (frames, 128, 128))
    code = imagecodecs.jpegls_encode if syntax == JPEGLSLossless else j2k
    path = made(
        syntax,
        [bytes(code(frame)) for frame in values],
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        NumberOfFrames=frames,
    )
    after = sent(path)
    assert (after.BitsAllocated, after["PixelData"].VR) == (16, "OW")
    assert after.PixelData == values.astype("<u2").tobytes()


def j2k(samples: npt.NDArray[np.generic], **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(samples, codecformat="j2k", level=0, **options))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high_bit", [11, 15])
@pytest.mark.parametrize("coded", ["words", "values"])
def test_signs_and_unused_bits_come_through(
    made: Callable[..., Path], coded: str, high_bit: int, signed: bool
) -> None:
    shift = high_bit - 11
    values = picture(12)
    words = values << shift | picture(4).astype("u2") << (12 if shift == 0 else 0)
    frame = j2k(words, bitspersample=16) if coded == "words" else j2k(values, bitspersample=12)
    path = made(
        JPEG2000Lossless,
        [frame],
        BitsStored=12,
        HighBit=high_bit,
        PixelRepresentation=int(signed),
    )
    after = sent(path)
    assert (after.BitsStored, after.HighBit) == (12, high_bit)
    written = np.frombuffer(after.PixelData, "<u2").reshape(128, 128)
    if coded == "words":
        np.testing.assert_array_equal(written, words)
        return
    np.testing.assert_array_equal(written >> shift & 0xFFF, values)
    if signed:
        truth = np.where(values > 2047, values.astype(int) - 4096, values)
        np.testing.assert_array_equal(written.view("<i2") >> shift, truth)


def test_what_loss_pushed_beyond_the_range_does_not_wrap_round(made: Callable[..., Path]) -> None:
    words = np.where(picture(12) % 3 > 0, 4094, 0).astype("u2")
    frame = bytes(imagecodecs.jpegls_encode(words, level=5))
    decoded = imagecodecs.jpegls_decode(frame)
    assert decoded.max() > 4095
    after = sent(
        made(JPEGLSNearLossless, [frame], BitsStored=12, HighBit=11, PixelRepresentation=0)
    )
    np.testing.assert_array_equal(after.pixel_array, np.minimum(decoded, 4095))
    path = made(JPEGLSNearLossless, [frame], BitsStored=8, HighBit=7, PixelRepresentation=0)
    with pytest.raises(InputError, match=r"values from 0 to 4\d+, and the header says 8 bits"):
        sent(path)


def test_offsets_of_compressed_frames_go_with_them(sample_data: Path, tmp_path: Path) -> None:
    image = dcmread(sample_data / "transfer-syntaxes/emri-multiframe/emri_small_RLE.dcm")
    frames = list(generate_frames(image.PixelData, number_of_frames=10))
    image.PixelData, image.ExtendedOffsetTable, image.ExtendedOffsetTableLengths = (
        encapsulate_extended(frames)
    )
    image["PixelData"].is_undefined_length = True
    image.save_as(tmp_path / "made.dcm")
    after = sent(tmp_path / "made.dcm")
    assert "ExtendedOffsetTable" not in after
    assert "ExtendedOffsetTableLengths" not in after
    truth = dcmread(sample_data / "transfer-syntaxes/emri-multiframe/emri_small.dcm")
    np.testing.assert_array_equal(after.pixel_array, truth.pixel_array)


@pytest.mark.parametrize("form", ["compressed", "native", "broken"])
def test_an_icon_is_decoded_too_or_left_out(
    made: Callable[..., Path], peer: Peer, form: str
) -> None:
    values = picture(8, (16, 16))
    icon = Dataset()
    icon.Rows = icon.Columns = 16
    icon.SamplesPerPixel, icon.PhotometricInterpretation = 1, "MONOCHROME2"
    icon.BitsAllocated = icon.BitsStored = 8
    icon.HighBit, icon.PixelRepresentation = 7, 0
    frame = bytes(imagecodecs.jpegls_encode(values))
    icon.PixelData = {
        "compressed": encapsulate([frame]),
        "native": values.tobytes(),
        "broken": encapsulate([frame[:40]]),
    }[form]
    icon["PixelData"].VR = "OB"
    icon["PixelData"].is_undefined_length = form != "native"
    image = bytes(imagecodecs.jpegls_encode(picture(16)))
    path = made(JPEGLSLossless, [image], PixelRepresentation=0, IconImageSequence=[icon])
    after = sent(path)
    np.testing.assert_array_equal(after.pixel_array, picture(16))
    if form == "broken":
        assert "IconImageSequence" not in after
        return
    (shown,) = after.IconImageSequence
    assert not shown["PixelData"].is_undefined_length
    assert shown.PixelData == values.tobytes()
    listed = subprocess.run(
        [peer("dcmdump"), path.with_name("sent.dcm")], capture_output=True, text=True, check=True
    )
    assert "PixelSequence" not in listed.stdout


@pytest.mark.parametrize(
    ("syntax", "options", "said", "told"),
    [
        (JPEG2000, {"reversible": False, "level": 60}, None, "01"),
        (JPEG2000, {"reversible": False, "level": 60}, "00", "01"),
        (JPEG2000, {"reversible": True}, "00", "00"),
        (JPEG2000, {"reversible": True, "codecformat": "jp2"}, "00", "00"),
        (JPEG2000, {"reversible": True}, None, "01"),
        (JPEG2000Lossless, {"reversible": True}, None, None),
        (JPEGLSNearLossless, {"level": 3}, None, "01"),
        (JPEGLSNearLossless, {"level": 0}, None, None),
        (JPEGLSLossless, {"level": 0}, None, None),
    ],
)
def test_what_was_lost_is_said(
    made: Callable[..., Path], syntax: str, options: Any, said: str | None, told: str | None
) -> None:
    code = j2k if "reversible" in options else imagecodecs.jpegls_encode
    if code is j2k:
        options = {"level": 0, "codecformat": "j2k", **options}
        frame = bytes(imagecodecs.jpeg2k_encode(picture(16), **options))
    else:
        frame = bytes(imagecodecs.jpegls_encode(picture(16), **options))
    attributes = {"LossyImageCompression": said} if said else {}
    after = sent(made(syntax, [frame], PixelRepresentation=0, **attributes))
    assert after.get("LossyImageCompression") == told
    lost = told == "01"
    method = "ISO_15444_1" if code is j2k else "ISO_14495_1"
    assert after.get("LossyImageCompressionMethod") == (method if lost else None)
    ratio = after.get("LossyImageCompressionRatio")
    assert ratio == (pytest.approx(128 * 128 * 2 / len(frame), abs=0.02) if lost else None)


def test_what_was_said_of_losses_stays(sample_data: Path, tmp_path: Path) -> None:
    path = sample_data / "transfer-syntaxes" / "nm-512" / "JPEG2000.dcm"
    transcoded(path, tmp_path / "out.dcm", EXPLICIT)
    before, after = dcmread(path), dcmread(tmp_path / "out.dcm")
    assert before.LossyImageCompression == "01"
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio"):
        assert after.get(keyword) == before.get(keyword)
    assert after.get("LossyImageCompressionMethod") == before.get("LossyImageCompressionMethod")


def test_a_process_of_its_own_decodes_what_only_our_plugin_does(
    sample_data: Path, tmp_path: Path
) -> None:
    folder = sample_data / "transfer-syntaxes" / "ct512"
    names = ("jpeg-lossless-57", "jpeg-lossless-sv1-70", "jpeg-extended-51")
    program = (
        "import sys; from pathlib import Path; import dicomai.roles.query\n"
        "from dicomai.net.transcode import EXPLICIT, transcoded\n"
        "for each in sys.argv[2:]:\n"
        "    transcoded(Path(each), Path(sys.argv[1]) / Path(each).name, EXPLICIT)"
    )
    files = [str(folder / f"ct512_{name}.dcm") for name in names]
    subprocess.run([sys.executable, "-c", program, str(tmp_path), *files], check=True)
    for name in names:
        assert len(dcmread(tmp_path / f"ct512_{name}.dcm").PixelData) == 512 * 512 * 2
