"""`dicomai archive rescan`, and who names it."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import Engine

from dicomai.dicom.dates import now
from dicomai.service.received import Reading, read_object
from dicomai.store import archive, hosts
from dicomai.store.engine import writing
from tests.cli.conftest import Dicomai


def put(data: Path, study: str, number: int = 1) -> Path:
    """Put an object into the archive as ingest does; return its file."""
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study}.1"
    image.SOPInstanceUID = f"{study}.1.{number}"
    image.PatientID, image.Modality, image.InstanceNumber = "P1", "CT", number
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = BytesIO()
    image.save_as(out, enforce_file_format=True)
    file = data / "came.dcm"
    file.write_bytes(out.getvalue())
    read = read_object(file, Reading())
    uids = read.identifiers
    place = archive.place(
        data,
        file,
        uids.study_instance_uid,
        uids.series_instance_uid,
        uids.sop_instance_uid,
        read.file_sha256,
    )
    file.unlink()
    return data / place


def test_what_lies_in_the_archive_is_taken_in_and_told(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    service.dispose()
    for study, number in (("1.2.3", 1), ("1.2.3", 2), ("1.2.4", 1)):
        put(tmp_path, study, number)

    answer = dicomai("archive", "rescan", "1.2.3", "--node", "PACS1")

    assert (answer.code, answer.err) == (0, "")
    assert answer.out == (
        "Taken in as sent by PACS1: 2 objects of 1 study; no route looks at them.\n"
    )
    (line,) = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (line["action"], line["subject"]) == ("archive rescan", "PACS1 1.2.3")
    shown = dicomai("study", "1.2.3")
    assert "Rebuilt from the archive: no route was looked at." in shown.out
    assert dicomai("study", "1.2.3", "--json").json["instances"] == 2
    assert dicomai("study", "1.2.4").code == 4
    rest = dicomai("archive", "rescan", "--node", "PACS1", "--decide", "--json")
    assert rest.json == {
        "studies": [{"study": "1.2.4", "objects": 1, "held": False}],
        "left_out": [],
        "files": [],
    }
    assert dicomai("study", "1.2.4", "--json").json["status"] == "open"
    again = dicomai("archive", "rescan", "--node", "PACS1")
    assert (again.code, again.out.count("\n")) == (0, 1)
    assert again.out.startswith("Nothing was taken in")


def test_a_file_that_is_left_is_named_with_code_1(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    service.dispose()
    damaged, whole = put(tmp_path, "1.2.3", 1), put(tmp_path, "1.2.3", 2)
    damaged.write_bytes(damaged.read_bytes()[:-3])
    answer = dicomai("archive", "rescan", "--node", "PACS1")
    assert answer.code == 1
    assert "1 object of 1 study" in answer.out
    assert damaged.name in answer.out
    assert whole.name not in answer.out
    assert "Put whole files in their places from a backup" in answer.out
    again = dicomai("archive", "rescan", "--node", "PACS1", "--json")
    assert again.code == 1
    (left,) = again.json["files"]
    assert left["file"] == str(damaged.relative_to(tmp_path))
    assert left["sentence"]


def test_it_is_refused_while_the_service_runs(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    put(tmp_path, "1.2.3")
    with writing(service) as connection:
        hosts.note_ingested(connection, "here", now(), now())
    answer = dicomai("archive", "rescan", "--node", "PACS1")
    assert answer.code == 1
    assert "Stop the service on all hosts first: systemctl stop dicomai.target" in answer.err
    assert not (tmp_path / "audit.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "--node"),
        (("--node", "PACS"), 4, "has no node 'PACS'"),
        (("--node", "PACS1", "1.2.9"), 4, "No study 1.2.9 lies in"),
        (("--node", "PACS1", "../x"), 2, "is no UID"),
    ],
)
def test_what_is_named_must_be_there(
    service: Engine,
    dicomai: Dicomai,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    service.dispose()
    put(tmp_path, "1.2.3")
    answer = dicomai("archive", "rescan", *arguments)
    assert answer.code == code
    assert says in answer.err


def test_whoever_tells_of_a_lost_database_names_the_command(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    service.dispose()
    put(tmp_path, "1.2.3")
    command = "dicomai archive rescan"
    assert command in dicomai("status").out
    (check,) = [each for each in dicomai("doctor", "--json").json if each["of"] == "archive"]
    assert command in check["remedy"]
    (tmp_path / "dicomai.db").unlink()
    assert command in dicomai("status").err
