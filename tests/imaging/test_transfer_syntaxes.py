"""One picture in many encodings: the values that other decoders agree on, or a sentence."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import openjpeg.utils
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicomai.errors import InputError
from dicomai.imaging.decoders import DECODERS, NATIVE
from dicomai.imaging.pixels import in_parallel, stored_pixels, stored_values
from dicomai.imaging.series import read_object
from dicomai.imaging.volume import volume_of

Maker = Callable[..., list[Dataset]]

NOBODY_DECODES = {
    "ct512/ct512_jpeg-progressive-55-retired.dcm": "(1.2.840.10008.1.2.4.55): no decoder for it",
    "ct512/ct512_jpeg-spectral-53-retired.dcm": "(1.2.840.10008.1.2.4.53): no decoder for it",
    "encapsulated-uncompressed/emri_small_encapsulated_98.dcm": "(1.2.840.10008.1.2.1.98): no",
    "liver-1bit/liver_deflate.dcm": "(1.2.840.10008.1.2.8.1): no decoder for it",
    "liver-1bit/liver_nonbyte_aligned_deflate.dcm": "(1.2.840.10008.1.2.8.1): no decoder for it",
    "liver-1bit/liver_nonbyte_aligned_rle.dcm": "(1.2.840.10008.1.2.5): every decoder refuses it",
    "liver-1bit/liver_rle.dcm": "(1.2.840.10008.1.2.5): every decoder refuses it",
}
"""What the README of the folder says so of."""
TWELVE_BIT = {
    "ct-fragments/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm",
    "ct512/ct512_jpeg-extended-51.dcm",
    "nm-512/JPGExtended.dcm",
}
"""Lossy, and the library of the hash rounds otherwise; DCMTK is their truth below."""


def decoded(dataset: Dataset) -> npt.NDArray[np.generic]:
    """All frames as pydicom arranges them."""
    pixels = stored_pixels(dataset)
    frames = in_parallel(pixels.frame, range(pixels.count))
    return frames[0] if pixels.count == 1 else np.stack(frames)


def test_every_image_decodes_to_its_hash_or_is_refused_in_a_sentence(sample_data: Path) -> None:
    folder = sample_data / "transfer-syntaxes"
    truths = json.loads((folder / "truth.json").read_text())["files"]
    read = set()
    for name, truth in truths.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(folder / name, force=True)  # some have no preamble
        if name in NOBODY_DECODES:
            with pytest.raises(InputError) as error:
                decoded(dataset)
            assert dataset.SOPInstanceUID in error.value.sentence
            assert NOBODY_DECODES[name] in error.value.sentence
            continue
        values = decoded(dataset)
        read.add(truth["transfer_syntax"])
        assert values.shape == tuple(truth["shape"]), name
        found = np.ascontiguousarray(values, np.dtype(truth["dtype"]).newbyteorder("<"))
        if name in TWELVE_BIT:
            assert abs(found.mean() - truth["mean"]) < 0.03, name
            assert abs(found.std() - truth["std"]) < 0.03, name
        else:
            assert hashlib.sha256(found.tobytes()).hexdigest() == truth["sha256"], name
    assert len(truths) == 123
    assert set(NOBODY_DECODES) < set(truths)
    assert set(DECODERS) | NATIVE == read


def test_twelve_bit_jpeg_has_the_values_that_dcmtk_reads(
    peer: Callable[[str], str], sample_data: Path, tmp_path: Path
) -> None:
    for name in TWELVE_BIT:
        path = sample_data / "transfer-syntaxes" / name
        subprocess.run([peer("dcmdjpeg"), path, tmp_path / "plain.dcm"], check=True)
        plain = dcmread(tmp_path / "plain.dcm").pixel_array
        np.testing.assert_array_equal(decoded(read_object(path)), plain)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_of_dcmtk_is_read_with_every_predictor(
    peer: Callable[[str], str], make_series: Maker, tmp_path: Path, bits: int
) -> None:
    noise = np.random.default_rng(bits).integers(-(1 << bits - 1), 1 << bits - 1, (64, 80))
    smooth = np.add.outer(np.arange(64), np.arange(80)) * 5 % (1 << bits - 1)
    for signed in (0, 1) if bits > 8 else (0,):
        image = make_series(shape_kji=(1, 64, 80))[0]
        image.BitsAllocated = 8 if bits == 8 else 16
        image.BitsStored, image.HighBit, image.PixelRepresentation = bits, bits - 1, signed
        truth = np.where(np.arange(80) < 40, noise, smooth) - (0 if signed else -(1 << bits - 1))
        truth = np.clip(truth, 0 if not signed else None, (1 << bits - signed) - 1)
        words = truth & ((1 << bits) - 1)
        image.PixelData = words.astype("u1" if bits == 8 else "<u2").tobytes()
        image.save_as(tmp_path / "plain.dcm", enforce_file_format=True)
        for predictor in range(1, 8):
            command = [peer("dcmcjpeg"), "+el", "+sv", str(predictor)]
            files = [tmp_path / "plain.dcm", tmp_path / "jpeg.dcm"]
            subprocess.run([*command, *files], check=True)
            dataset = read_object(tmp_path / "jpeg.dcm")
            assert dataset.file_meta.TransferSyntaxUID == JPEGLossless
            np.testing.assert_array_equal(stored_values(dataset), truth, str((signed, predictor)))


@pytest.mark.parametrize(
    "name",
    [
        "ct512/ct512_rle.dcm",
        "ct512/ct512_jpeg-baseline-50.dcm",
        "ct512/ct512_jpeg-extended-51.dcm",
        "ct512/ct512_jpeg-lossless-57.dcm",
        "ct512/ct512_jpeg-lossless-sv1-70.dcm",
        "ct512/ct512_jpegls-lossless-80.dcm",
        "ct512/ct512_j2k-lossless-90.dcm",
        "htj2k/CT_small_htj2k_201.dcm",
        "htj2k/CT_small_htj2k_203.dcm",
        "sc-rgb/SC_rgb_jpeg_gdcm.dcm",
        "sc-rgb/SC_rgb_jpeg_dcmtk.dcm",
    ],
)
def test_a_frame_that_is_cut_off_is_refused(name: str, sample_data: Path) -> None:
    dataset = read_object(sample_data / "transfer-syntaxes" / name)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    for part in (0.3, 0.9, 0.99):
        dataset.PixelData = encapsulate([frame[: int(len(frame) * part)]])
        why = "an RLE segment is broken" if name.endswith("rle.dcm") else "it is cut off"
        with pytest.raises(InputError, match=f"the pixel data can't be decoded as .*: {why}"):
            stored_values(dataset)


def rle_frame(*segments: bytes, offsets: tuple[int, ...] | None = None) -> bytes:
    """Segments after a header that says where they begin, or what else it is to say."""
    if offsets is None:
        offsets = tuple(64 + sum(map(len, segments[:n])) for n in range(len(segments)))
    return struct.pack("<16L", len(offsets), *offsets, *[0] * (15 - len(offsets))) + b"".join(
        segments
    )


SEGMENT = b"\xd7\x01"  # 42 times the same
"""Of an image of 6 by 7 pixels."""


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (rle_frame(SEGMENT, SEGMENT, offsets=(64, 2**31)), "points to where no segment is"),
        (rle_frame(SEGMENT, SEGMENT, offsets=(64, 64)), "points to where no segment is"),
        (rle_frame(SEGMENT, SEGMENT, offsets=(60, 66)), "points to where no segment is"),
        (rle_frame(SEGMENT), "the frame has 1 segments, not 2"),
        (rle_frame(*[b"\xec\x01"] * 4), "the frame has 4 segments, not 2"),  # 21 each
        (b"\2" + bytes(9), "shorter than an RLE header"),
        (struct.pack("<16L", 99, *[64] * 15) + SEGMENT * 2, "says that there are 99 segments"),
        (rle_frame(SEGMENT, b"\xd8\x01"), "the frame has"),
        (rle_frame(SEGMENT, b"\x7f\x01"), "an RLE segment is broken"),
    ],
)
def test_rle_that_leads_astray_is_refused(make_series: Maker, frame: bytes, why: str) -> None:
    image = make_series()[0]
    assert (image.Rows, image.Columns) == (6, 7)
    image.file_meta.TransferSyntaxUID = RLELossless
    image.PixelData = encapsulate([rle_frame(SEGMENT, SEGMENT)])
    assert (stored_values(image) == 0x0101).all()
    image.PixelData = encapsulate([frame])
    with pytest.raises(InputError, match=why):
        stored_values(image)


def test_each_colour_of_rle_is_whole(sample_data: Path) -> None:
    image = dcmread(sample_data / "transfer-syntaxes" / "sc-rgb" / "SC_rgb_rle.dcm")
    (frame,) = generate_frames(image.PixelData, number_of_frames=1)
    _, *offsets = struct.unpack_from("<4L", frame)
    red, green, blue = (frame[a:b] for a, b in zip(offsets, [*offsets[1:], None], strict=True))
    image.PixelData = encapsulate([rle_frame(red + b"\0\1", green, blue)])  # one pixel more
    with pytest.raises(InputError, match="every decoder refuses it"):
        stored_pixels(image).frame(0)


def damaged(frame: bytes, chance: random.Random) -> bytes:
    """With one to four bytes changed, of the header in every second one."""
    out = bytearray(frame)
    end = min(len(frame), chance.choice((150, len(frame))))
    for _ in range(chance.randrange(1, 5)):
        out[chance.randrange(end)] = chance.randrange(256)
    return bytes(out)


@pytest.mark.parametrize("number", [201, 202, 203])
def test_what_openjpeg_refuses_of_htj2k_is_no_image(sample_data: Path, number: int) -> None:
    path = sample_data / "transfer-syntaxes" / "htj2k" / f"CT_small_htj2k_{number}.dcm"
    image = dcmread(path)
    (frame,) = generate_frames(image.PixelData, number_of_frames=1)
    packets = frame.index(b"\xff\x93") + 2  # a size in the header may be of gigabytes
    chance, refused = random.Random(number), 0
    for _ in range(100):
        broken = frame[:packets] + damaged(frame[packets:], chance)
        try:
            openjpeg.utils.decode(broken)
        except (RuntimeError, ValueError):
            refused += 1
            image.PixelData = encapsulate([broken])
            with pytest.raises(InputError, match="can't be decoded"):
                stored_values(image)
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "at", "wrong"),
    [
        ("htj2k/CT_small_htj2k_201.dcm", 16, b"\0\0\x89\0"),  # the origin: right of the end
        ("ct512/ct512_j2k-lossless-90.dcm", 8, b"\x7f\xff\xff\xff"),
        ("ct512/ct512_jpegls-lossless-80.dcm", None, b"\xff\xff\xff\xff"),
        ("ct512/ct512_jpeg-extended-51.dcm", None, b"\xff\xff\xff\xff"),
    ],
)
def test_a_frame_that_says_to_be_of_another_size_is_not_begun(
    sample_data: Path, name: str, at: int | None, wrong: bytes
) -> None:
    image = dcmread(sample_data / "transfer-syntaxes" / name)
    (frame,) = generate_frames(image.PixelData, number_of_frames=1)
    if at is None:
        at = frame.index(struct.pack(">2H", image.Rows, image.Columns))
    image.PixelData = encapsulate([frame[:at] + wrong + frame[at + 4 :]])
    with pytest.raises(InputError, match="and the header says"):
        stored_values(image)


def _encoded(image: Dataset, syntax: str, frame: bytes) -> Dataset:
    """Return an image of 8 bits with a compressed frame, which need not hold what it says."""
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = encapsulate([frame])
    return image


@pytest.mark.parametrize("junk", [b"\0\1\2", b"\xff\xd0", b"\xff\x01", b"\xff\x00", b"\xff\xff"])
def test_the_size_of_a_jpeg_is_looked_for_where_decoders_do(
    make_series: Maker, junk: bytes
) -> None:
    """They pass over what stands between two segments; the size was then not seen before them."""
    jpeg = imagecodecs.jpeg8_encode(np.zeros((64, 80), np.uint8))
    image = _encoded(make_series()[0], JPEGBaseline8Bit, jpeg[:2] + junk + jpeg[2:])
    with pytest.raises(InputError, match=r"is \(64, 80, 1\), and the header says \(6, 7, 1\)"):
        stored_values(image)


@pytest.mark.parametrize("long", [False, True])
def test_the_size_of_a_jpeg_2000_image_is_that_of_its_own_codestream(
    make_series: Maker, long: bool
) -> None:
    """What looks like a codestream in another box of a JP2 file is none."""
    image = make_series()[0]
    said = np.zeros((image.Rows, image.Columns), np.uint8)
    decoy = imagecodecs.jpeg2k_encode(said, level=0, codecformat="j2k", reversible=True)
    jp2 = imagecodecs.jpeg2k_encode(
        np.zeros((64, 80), np.uint8), level=0, codecformat="jp2", reversible=True
    )
    at = jp2.index(b"jp2h") - 4
    head = struct.pack(">L4sQ", 1, b"free", 16 + len(decoy)) if long else b""
    box = (head or struct.pack(">L4s", 8 + len(decoy), b"free")) + decoy
    for frame in (jp2, jp2[:at] + box + jp2[at:]):
        assert imagecodecs.jpeg2k_decode(frame).shape == (64, 80)
        with pytest.raises(InputError, match=r"is \(64, 80, 1\), and the header says \(6, 7, 1\)"):
            stored_values(_encoded(image, JPEG2000Lossless, frame))


def test_a_frame_that_would_grow_out_of_proportion_is_not_begun(make_series: Maker) -> None:
    """A kilobyte that says to be of gigabytes took them, and minutes."""
    image = make_series()[0]
    frame = bytearray(imagecodecs.jpeg8_encode(np.zeros((64, 64), np.uint8)))
    at = frame.index(struct.pack(">2H", 64, 64))
    struct.pack_into(">2H", frame, at, 60_000, 60_000)
    image.Rows = image.Columns = 60_000
    with pytest.raises(InputError, match="would become 3600000000, which is more than an image"):
        stored_values(_encoded(image, JPEGBaseline8Bit, bytes(frame)))


def test_a_frame_of_one_colour_may_be_large(make_series: Maker) -> None:
    image = make_series()[0]
    black = np.zeros((9000, 9000), np.uint8)
    frame = imagecodecs.jpeg2k_encode(black, level=0, codecformat="j2k", reversible=True)
    assert len(frame) * 1000 < black.nbytes
    image.Rows, image.Columns = black.shape
    assert not stored_pixels(_encoded(image, JPEG2000Lossless, frame)).frame(0).any()


@pytest.mark.parametrize(
    "name",
    [
        "ct512/ct512_rle.dcm",
        "sc-rgb/SC_rgb_rle.dcm",
        "htj2k/CT_small_htj2k_201.dcm",
        "ct512/ct512_jpeg-lossless-57.dcm",
        "ct512/ct512_jpegls-lossless-80.dcm",
        "ct512/ct512_j2k-lossless-90.dcm",
        "ct512/ct512_jpeg-extended-51.dcm",
        "sc-rgb/SC_rgb_jpeg_dcmtk.dcm",
    ],
)
def test_damaged_frames_are_images_or_refused(name: str, sample_data: Path) -> None:
    image = dcmread(sample_data / "transfer-syntaxes" / name)
    (frame,) = generate_frames(image.PixelData, number_of_frames=1)
    chance = random.Random(name)
    for _ in range(25):
        image.PixelData = encapsulate([damaged(frame, chance)])
        with suppress(InputError), warnings.catch_warnings(action="ignore"):
            assert stored_pixels(image).frame(0).shape[:2] == (image.Rows, image.Columns)


@pytest.mark.parametrize("signed", [False, True])
def test_values_in_the_highest_bits_are_those_that_count(make_series: Maker, signed: bool) -> None:
    truth = np.arange(42).reshape(6, 7) * 50 - (1000 if signed else 0)
    image = make_series()[0]
    image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 15, int(signed)
    image.PixelData = ((truth << 4) | 5).astype("<i2").tobytes()
    np.testing.assert_array_equal(stored_values(image), truth)


def test_frames_are_decoded_at_the_same_time_and_stay_in_order() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor only")
    together = threading.Barrier(2, timeout=30)

    def work(task: int) -> int:
        together.wait()  # raises where nobody else comes
        return task * task

    assert in_parallel(work, range(8)) == [0, 1, 4, 9, 16, 25, 36, 49]


def test_the_first_slice_that_can_not_be_decoded_is_named(make_series: Maker) -> None:
    slices = make_series(shape_kji=(40, 6, 7))
    for number in (7, 30):
        slices[number].PixelData = slices[number].PixelData[:-8]
    with pytest.raises(InputError, match=rf"Object {slices[7].SOPInstanceUID}: the pixel data"):
        volume_of(slices)


def test_every_syntax_has_a_row_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "transfer-syntaxes.md").read_text()
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 4 and cells[1].startswith("1.2."):
            rows[cells[1]] = (cells[3], cells[4])
    for syntax, order in DECODERS.items():
        assert rows.pop(syntax) == (", ".join(order.grey), ", ".join(order.colour)), syntax
    for syntax in NATIVE:
        assert rows.pop(syntax) == ("pydicom", "pydicom")
    assert {words for both in rows.values() for words in both} == {"refused"}


@pytest.mark.parametrize("overlay", [0x0000, 0xA000])
@pytest.mark.parametrize("signed", [False, True])
def test_rle_with_something_in_its_unused_bits_gives_the_stored_values(
    signed: bool, overlay: int
) -> None:
    truth = np.arange(256).reshape(16, 16) * 7 - (900 if signed else 0)
    words = (truth.astype("<i2").view("<u2") & 0x0FFF) | overlay
    planes = [(words >> 8).astype(np.uint8).tobytes(), (words & 0xFF).astype(np.uint8).tobytes()]
    rows = [  # PS3.5 G.3: each row a literal run
        b"".join(b"\x0f" + plane[at : at + 16] for at in range(0, 256, 16)) for plane in planes
    ]
    header = struct.pack("<16L", 2, 64, 64 + len(rows[0]), *[0] * 13)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = encapsulate([header + rows[0] + rows[1]])
    np.testing.assert_array_equal(stored_values(dataset), truth)


@pytest.mark.parametrize("name", ["encapsulated-wrong-bot", "encapsulated-two-frames-declared-one"])
def test_one_frame_is_found_whatever_the_offsets_say(name: str, sample_data: Path) -> None:
    truth = dcmread(sample_data / "transfer-syntaxes" / "mr-small" / "MR_small.dcm").pixel_array
    found = stored_values(read_object(sample_data / "odd" / "made" / "pixel" / f"{name}.dcm"))
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high_bit", [11, 15])
@pytest.mark.parametrize("tool", ["dcmcjpls", "dcmcjpeg", "jpeg2k of words", "jpeg2k of values"])
def test_unused_bits_are_left_out_whatever_an_encoder_does_with_them(
    peer: Callable[[str], str],
    make_series: Maker,
    tmp_path: Path,
    tool: str,
    high_bit: int,
    signed: bool,
) -> None:
    random = np.random.default_rng(1)
    truth = random.integers(-2048 if signed else 0, 2048 if signed else 4096, (64, 80))
    unused = random.integers(0, 16, truth.shape)
    shift = high_bit - 11
    words = (truth & 0xFFF) << shift | (unused << 12 if shift == 0 else unused)
    image = make_series(shape_kji=(1, 64, 80))[0]
    image.BitsStored, image.HighBit, image.PixelRepresentation = 12, high_bit, int(signed)
    image.PixelData = words.astype("<u2").tobytes()
    np.testing.assert_array_equal(stored_values(image), truth)
    if tool.startswith("jpeg2k"):
        samples, bits = (words, 16) if tool.endswith("words") else (truth & 0xFFF, 12)
        coded = imagecodecs.jpeg2k_encode(
            samples.astype("u2"), codecformat="j2k", level=0, bitspersample=bits
        )
        image.PixelData = encapsulate([bytes(coded)])
        image.file_meta.TransferSyntaxUID = JPEG2000Lossless
        np.testing.assert_array_equal(stored_values(image), truth)
        return
    image.save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    files = [tmp_path / "plain.dcm", tmp_path / "coded.dcm"]
    subprocess.run([peer(tool), *files], check=True)
    np.testing.assert_array_equal(stored_values(read_object(tmp_path / "coded.dcm")), truth)


def _coded(image: Dataset, syntax: str, frame: bytes) -> Dataset:
    image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, 0
    image.PixelData = encapsulate([bytes(frame)])
    image.file_meta.TransferSyntaxUID = syntax
    return image


def test_near_lossless_jpeg_ls_without_loss_is_lossless(make_series: Maker) -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 4096, (64, 80))
    words = (truth | random.integers(0, 16, truth.shape) << 12).astype("u2")
    (image,) = make_series(shape_kji=(1, 64, 80))
    _coded(image, JPEGLSNearLossless, imagecodecs.jpegls_encode(words, level=0))
    np.testing.assert_array_equal(stored_values(image), truth)


@pytest.mark.parametrize("kind", ["jpeg", "jp2"])
def test_the_unused_bits_of_a_frame_are_those_that_it_says(make_series: Maker, kind: str) -> None:
    """It says how many are coded, also behind what decoders pass over, and in a JP2 file."""
    random = np.random.default_rng(1)
    truth = random.integers(0, 4096, (64, 80))
    words = (truth << 4 | random.integers(0, 16, truth.shape)).astype("u2")
    if kind == "jpeg":
        jpeg = imagecodecs.ljpeg_encode(words, bitspersample=16)
        syntax, frame = JPEGLossless, jpeg[:2] + b"\xff\x01\0" + jpeg[2:]
    else:
        coded = imagecodecs.jpeg2k_encode(words, codecformat="jp2", level=0, reversible=True)
        at = coded.index(b"jp2c") - 4
        long = struct.pack(">L4sQ", 1, b"jp2c", 8 + len(coded) - at)
        syntax, frame = JPEG2000Lossless, coded[:at] + long + coded[at + 8 :]
    (image,) = make_series(shape_kji=(1, 64, 80))
    image = _coded(image, syntax, frame)
    image.HighBit = 15
    np.testing.assert_array_equal(stored_values(image), truth)


def test_what_fills_up_a_frame_is_passed_over_quickly(make_series: Maker) -> None:
    """Any number of them may stand before a marker."""
    jpeg = imagecodecs.jpeg8_encode(np.zeros((64, 80), np.uint8))
    for filling in (b"\xff", b"\xff\xd0", b"\xff\0"):
        frame = jpeg[:2] + filling * 5_000_000 + jpeg[2:]
        image = _encoded(make_series()[0], JPEGBaseline8Bit, frame)
        began = time.process_time()
        with pytest.raises(InputError, match=r"is \(64, 80, 1\)"):
            stored_values(image)
        assert time.process_time() - began < 1


@pytest.mark.parametrize("syntax", [JPEGLSNearLossless, JPEG2000])
def test_with_loss_a_value_may_lie_beyond_its_range(make_series: Maker, syntax: str) -> None:
    (image,) = make_series(shape_kji=(1, 64, 80))
    words = np.random.default_rng(1).choice([0, 4094], (64, 80)).astype("u2")
    words[:, :40] = 4094
    if syntax == JPEGLSNearLossless:
        coded = imagecodecs.jpegls_encode(words, level=5)
        decoded = imagecodecs.jpegls_decode(coded)
    else:  # of reversible wavelets, cut short
        coded = imagecodecs.jpeg2k_encode(
            words, codecformat="j2k", level=40, reversible=True, bitspersample=16
        )
        decoded = imagecodecs.jpeg2k_decode(coded)
    assert decoded.max() > 4095
    np.testing.assert_array_equal(stored_values(_coded(image, syntax, coded)), decoded)
