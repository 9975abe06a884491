"""What a sender needs of a file: three UIDs, and where the data set begins."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_file_meta_info

from dicomai.dicom.part10 import is_dicomdir, media
from dicomai.errors import InputError

CT, SOP, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", "1.2.840.10008.1.2.1"
DATA_SET = b"\x08\x00\x16\x00UI\x02\x001\0" + bytes(20)


def meta(**more: object) -> bytes:
    """Return preamble and meta information, by pydicom."""
    found = FileMetaDataset()
    found.MediaStorageSOPClassUID, found.MediaStorageSOPInstanceUID = CT, SOP
    found.TransferSyntaxUID = EXPLICIT
    for keyword, value in more.items():
        setattr(found, keyword, value)
    buffer = BytesIO()
    write_file_meta_info(buffer, found, enforce_standard=True)
    return bytes(128) + b"DICM" + buffer.getvalue()


def test_it_is_what_pydicom_reads_in_every_sample(sample_data: Path) -> None:
    files = sorted((sample_data / "transfer-syntaxes").rglob("*.dcm"))
    assert len(files) > 20
    for path in files:
        try:
            theirs = read_file_meta_info(path)
        except InvalidDicomError:  # no preamble
            theirs = FileMetaDataset()
        if "MediaStorageSOPInstanceUID" not in theirs:
            with pytest.raises(InputError, match="lacks"):
                media(path)
            continue
        found = media(path)
        assert (found.sop_class_uid, found.sop_instance_uid, found.transfer_syntax_uid) == (
            theirs.MediaStorageSOPClassUID,
            theirs.MediaStorageSOPInstanceUID,
            theirs.TransferSyntaxUID,
        )
        assert found.data_set_at == 144 + theirs.FileMetaInformationGroupLength, path


@pytest.mark.parametrize("private", [10, 5000, 100_000])
def test_it_may_be_long(tmp_path: Path, private: int) -> None:
    head = meta(PrivateInformationCreatorUID="1.2", PrivateInformation=bytes(private))
    path = tmp_path / "a.dcm"
    path.write_bytes(head + DATA_SET)
    assert media(path).data_set_at == len(head)
    assert media(path).sop_instance_uid == SOP


@pytest.mark.parametrize("length", [0, 4, 2**31])
def test_a_wrong_group_length_moves_nothing(tmp_path: Path, length: int) -> None:
    head = bytearray(meta())
    head[140:144] = length.to_bytes(4, "little")
    path = tmp_path / "a.dcm"
    path.write_bytes(head + DATA_SET)
    assert media(path).data_set_at == len(head)


@pytest.mark.parametrize(
    "data", [b"", bytes(132), meta()[:150], meta().replace(b"\x10\0UI", b"\x20\0UI")]
)
def test_what_is_no_such_file_is_said(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    with pytest.raises(InputError):
        media(path)


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "DICOMDIR.", "DICOMDIR;1", "DICOMDIR.;1"])
def test_a_dicomdir_is_known_however_a_disc_spells_it(name: str) -> None:
    assert is_dicomdir(Path("cd") / name)
    assert not is_dicomdir(Path("cd") / f"ct-{name}")
