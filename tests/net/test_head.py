"""The head of a data set: read in every encoding, and from any bytes in bounded time."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from dicomai.dicom.uid import of_uuid
from dicomai.errors import InputError
from dicomai.net.head import Head, read_head

ENCODINGS = {
    "1.2.840.10008.1.2": (True, True),
    "1.2.840.10008.1.2.1": (False, True),
    "1.2.840.10008.1.2.2": (False, False),
    "1.2.840.10008.1.2.1.99": (False, True),
    "1.2.3.4": (False, True),  # private, and explicit
    "1.2.3.5": (True, True),  # private, and implicit
}


def encoded(data_set: Dataset, syntax: str) -> bytes:
    implicit, little = ENCODINGS[syntax]
    target = DicomBytesIO()
    target.is_implicit_VR, target.is_little_endian = implicit, little
    write_dataset(target, data_set)
    raw = target.getvalue()
    if syntax.endswith(".99"):
        machine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return machine.compress(raw) + machine.flush()
    return raw


def nested(depth: int, *, undefined: bool) -> Dataset:
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.9.9"
    if depth:
        item.ReferencedImageSequence = Sequence([nested(depth - 1, undefined=undefined)])
        item["ReferencedImageSequence"].is_undefined_length = undefined
    item.is_undefined_length_sequence_item = undefined
    return item


@given(
    uids=st.lists(st.uuids().map(of_uuid), min_size=4, max_size=4),
    depth=st.integers(0, 6),
    undefined=st.booleans(),
    private=st.binary(max_size=200),
    syntax=st.sampled_from(sorted(ENCODINGS)),
)
def test_the_uids_are_found_behind_whatever_precedes_them(
    uids: list[str], depth: int, undefined: bool, private: bytes, syntax: str
) -> None:
    data_set = nested(depth, undefined=undefined)
    data_set.SOPClassUID, data_set.SOPInstanceUID = uids[:2]
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = uids[2:]
    data_set.PatientName = "Doe^Jane"
    data_set.private_block(0x0011, "DICOMAI", create=True).add_new(1, "OB", private + b"\0" * 2)
    data_set.PixelData = bytes(64)
    data_set["PixelData"].VR = "OW"
    head = read_head(memoryview(encoded(data_set, syntax)), syntax)
    assert head == Head(
        sop_class_uid=uids[0],
        sop_instance_uid=uids[1],
        study_instance_uid=uids[2],
        series_instance_uid=uids[3],
    )


@given(data=st.binary(max_size=400), syntax=st.sampled_from(sorted(ENCODINGS)))
def test_any_bytes_give_a_head_or_a_sentence(data: bytes, syntax: str) -> None:
    with pytest.raises(InputError) as caught:
        read_head(memoryview(data), syntax)
    assert caught.value.sentence.endswith(".")


def test_a_deflated_bomb_is_inflated_no_further_than_the_limit() -> None:
    machine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    long = bytes.fromhex("09000110") + b"OB\0\0" + (2**26).to_bytes(4, "little")
    bomb = machine.compress(long + bytes(2**26)) + machine.flush()
    with pytest.raises(InputError, match="Series Instance UID"):
        read_head(memoryview(bomb), "1.2.840.10008.1.2.1.99")


@pytest.mark.filterwarnings("ignore:Expected explicit VR, but found implicit VR")
def test_heads_of_real_objects_are_those_that_pydicom_reads(sample_data: Path) -> None:
    count = 0
    refusals = {}
    for path in sorted((sample_data / "transfer-syntaxes").rglob("*.dcm")):
        raw = path.read_bytes()
        if raw[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
            continue
        known = dcmread(BytesIO(raw), stop_before_pixels=True)
        body = memoryview(raw)[144 + int.from_bytes(raw[140:144], "little") :]
        if "StudyInstanceUID" not in known or "SeriesInstanceUID" not in known:
            continue
        try:
            head = read_head(body, str(known.file_meta.TransferSyntaxUID))
        except InputError as refused:
            refusals[path.name] = refused.sentence
            continue
        assert head.sop_class_uid == known.SOPClassUID, path
        assert head.sop_instance_uid == known.SOPInstanceUID
        assert head.study_instance_uid == known.StudyInstanceUID
        assert head.series_instance_uid == known.SeriesInstanceUID
        count += 1
    assert count > 40
    assert refusals == {  # the one that lies
        "SC_rgb_jpeg.dcm": "Its transfer syntax says explicit VR, and its data set is not."
    }


def test_a_deflated_object_of_any_size_takes_little_memory() -> None:
    pixels = random.Random(1).randbytes(20_000_000)
    data_set = Dataset()
    data_set.SOPClassUID, data_set.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    data_set.add_new(0x7FE00010, "OB", pixels)
    deflated = encoded(data_set, "1.2.840.10008.1.2.1.99")
    tracemalloc.start()
    try:
        head = read_head(memoryview(deflated), "1.2.840.10008.1.2.1.99")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert head.sop_instance_uid == "1.2.3.4"
    assert peak_bytes < 1_000_000


def test_a_deflated_head_that_begins_late_is_found() -> None:
    data_set = Dataset()
    data_set.SOPClassUID, data_set.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    data_set.add_new(0x00090010, "LO", "SOMEONE")
    data_set.add_new(0x00091001, "OB", random.Random(1).randbytes(3_000_000))
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    deflated = encoded(data_set, "1.2.840.10008.1.2.1.99")
    assert read_head(memoryview(deflated), "1.2.840.10008.1.2.1.99").study_instance_uid == "1.2.3.1"
    with pytest.raises(InputError, match="cut off"):
        read_head(memoryview(deflated)[:200_000], "1.2.840.10008.1.2.1.99")
