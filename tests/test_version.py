"""Another transfer syntax is another copy; another place, patient or pixel is another version."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicomai.dicom.header import attributes
from dicomai.dicom.part10 import opened
from dicomai.dicom.version import VersionDigest, version_digest


def _ct() -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.1.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    dataset.PatientID, dataset.Modality = "P1", "CT"
    dataset.PatientName = "DOE^JANE"
    dataset.ImagePositionPatient = [0.0, 0.0, 2.5]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.7, 0.7]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = 15, 17
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelPaddingValue = -2000
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.PixelData = np.arange(255, dtype="<i2").tobytes()
    return dataset


@pytest.fixture
def native(tmp_path: Path) -> Path:
    path = tmp_path / "native.dcm"
    _ct().save_as(path, enforce_file_format=True)
    return path


def _digest(path: Path) -> VersionDigest:
    with opened(path) as part10:
        return version_digest(part10, "P1", attributes(part10))


@pytest.mark.parametrize(
    ("program", "options", "has_pixels"),
    [
        ("dcmconv", ["+ti"], True),
        ("dcmconv", ["+tb"], True),
        ("dcmconv", ["+td"], True),
        ("dcmconv", ["+e", "+g"], True),  # explicit lengths, group lengths
        ("dcmcrle", [], False),
        ("dcmcjpls", [], False),
    ],
    ids=["implicit", "big endian", "deflated", "lengths", "RLE", "JPEG-LS"],
)
def test_a_copy_in_another_transfer_syntax_is_the_same_version(
    native: Path,
    tmp_path: Path,
    peer: Callable[[str], str],
    program: str,
    options: list[str],
    has_pixels: bool,
) -> None:
    copy = tmp_path / "copy.dcm"
    subprocess.run([peer(program), *options, str(native), str(copy)], check=True)

    assert _digest(copy).same_version(_digest(native))
    assert (_digest(copy).pixels is not None) == has_pixels
    assert copy.read_bytes() != native.read_bytes()


def test_what_a_system_adds_on_the_way_is_the_same_version(native: Path, tmp_path: Path) -> None:
    dataset = _ct()
    dataset.PatientName, dataset.AccessionNumber = "Doe^Jane^^", ""
    dataset.StudyID, dataset.StudyDescription, dataset.WindowCenter = "4711", "CT", 40
    dataset.save_as(tmp_path / "passed.dcm", enforce_file_format=True)

    assert _digest(tmp_path / "passed.dcm").same_version(_digest(native))


def test_a_name_in_another_character_set_is_the_same_version(tmp_path: Path) -> None:
    dataset = _ct()
    for number, declared in enumerate(("ISO_IR 100", "ISO_IR 192")):
        dataset.SpecificCharacterSet, dataset.PatientName = declared, "MÜLLER^ÄNNE"
        dataset.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)

    assert (tmp_path / "0.dcm").read_bytes() != (tmp_path / "1.dcm").read_bytes()
    assert _digest(tmp_path / "0.dcm") == _digest(tmp_path / "1.dcm")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ImagePositionPatient", [0.0, 0.0, 2.6]),
        ("PixelSpacing", [0.7, 0.8]),
        ("RescaleIntercept", 0),
        ("PixelPaddingValue", -2001),
        ("PhotometricInterpretation", "MONOCHROME1"),
        ("SeriesInstanceUID", "1.2.3.2"),
        ("PatientBirthDate", "19600101"),
        ("PatientName", "DOE^JANET"),
        ("PatientSex", "F"),
        ("AccessionNumber", "A2"),
        ("StudyDate", "20260302"),
    ],
)
def test_other_geometry_identity_or_interpretation_is_a_new_version(
    native: Path, tmp_path: Path, keyword: str, value: object
) -> None:
    dataset = _ct()
    setattr(dataset, keyword, value)
    dataset.save_as(tmp_path / "other.dcm", enforce_file_format=True)

    assert _digest(tmp_path / "other.dcm").header != _digest(native).header


def test_other_pixels_are_a_new_version(native: Path, tmp_path: Path) -> None:
    dataset = _ct()
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(tmp_path / "other.dcm", enforce_file_format=True)

    assert not _digest(tmp_path / "other.dcm").same_version(_digest(native))


def test_another_patient_is_a_new_version(native: Path) -> None:
    with opened(native) as part10:
        one, other = (version_digest(part10, key, {}) for key in ("P1", "P2"))
    assert one.header != other.header


def test_big_endian_by_pydicom_reads_alike(native: Path, tmp_path: Path) -> None:
    dataset = _ct()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = np.arange(255, dtype=">i2").tobytes()
    dataset.save_as(
        tmp_path / "big.dcm", implicit_vr=False, little_endian=False, enforce_file_format=True
    )

    assert _digest(tmp_path / "big.dcm") == _digest(native)


def test_padding_after_the_last_frame_is_no_content(native: Path, tmp_path: Path) -> None:
    dataset = _ct()
    dataset.PixelData += b"\0\0"
    dataset.save_as(tmp_path / "padded.dcm", enforce_file_format=True)

    assert _digest(tmp_path / "padded.dcm") == _digest(native)


def test_functional_groups_count(
    sample_data: Path, tmp_path: Path, peer: Callable[[str], str]
) -> None:
    source = sample_data / "odd" / "objects" / "seg_image_ct_binary.dcm"
    big = tmp_path / "big.dcm"
    subprocess.run([peer("dcmconv"), "+te", str(source), str(big)], check=True)
    moved = dcmread(source)
    frame = moved.PerFrameFunctionalGroupsSequence[0]
    frame.PlanePositionSequence[0].ImagePositionPatient = [1.0, 2.0, 3.0]
    moved.save_as(tmp_path / "moved.dcm")

    assert _digest(big).same_version(_digest(source))
    assert _digest(tmp_path / "moved.dcm").header != _digest(source).header
