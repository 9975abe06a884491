"""From the spool into archive and catalogue: nothing lost, nothing twice, nothing misread."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataelem import DataElement
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from sqlalchemy import event, select
from structlog.testing import capture_logs

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DatabaseError, TransientError
from dicomai.service import ingest as ingest_module
from dicomai.service import spool_pass
from dicomai.service.received import Reading, ReceivedObject
from dicomai.service.setting_aside import UNREADABLE
from dicomai.spool import names, quarantine, reader
from dicomai.spool.entries import End
from dicomai.store import decisions, events, hosts, retention, schema, studies
from dicomai.store.engine import reading, writing
from dicomai.store.retention import Candidate
from tests.store.catalogue_rows import associations_of

Hospital = Any  # conftest's: importlib mode has no package to import it from
MakeCT = Callable[..., Any]


def _quarantined(hospital: Hospital) -> list[str]:
    return [each.reason for each in quarantine.listing(hospital.config.quarantine)]


def _archived(hospital: Hospital) -> list[Path]:
    return sorted((hospital.config.data / "archive").rglob("*.dcm"))


def test_objects_become_rows_and_files(any_hospital: Hospital, make_ct: MakeCT) -> None:
    any_hospital.send(*(make_ct(number=number) for number in range(1, 4)))

    done = any_hospital.ingest()

    assert (done.catalogued, done.set_aside) == (3, 0)
    rows = any_hospital.rows()
    assert [row.sop_instance_uid for row in rows] == ["1.2.3.1.1", "1.2.3.1.2", "1.2.3.1.3"]
    for row in rows:
        file = any_hospital.config.data / row.path
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row.file_sha256
        assert row.path.name == f"{row.sop_instance_uid}.{row.file_sha256[:8]}.dcm"
    study = any_hospital.study()
    assert (study.patient_key, study.accession_number, study.nodes) == ("P1", "A1", ("CT1",))
    assert study.quiet_until == study.last_object_at + 60_000_000
    assert any_hospital.story("objects new") == ["3 objects came from CT1 (CT1, 192.0.2.1)."]
    assert list(reader.entries(any_hospital.config.spool)) == []
    assert list(reader.associations(any_hospital.config.spool)) == []


def test_a_pass_in_which_nothing_is_amiss_tells_nothing_in_the_log(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    with capture_logs() as told:
        hospital.send(make_ct(number=1), make_ct(number=2))
        assert hospital.ingest().catalogued == 2
    assert [line for line in told if line["log_level"] != "debug"] == []


def test_the_same_bytes_again_are_a_duplicate(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    hospital.send(make_ct())
    hospital.ingest()

    assert len(hospital.rows()) == len(_archived(hospital)) == 1
    assert hospital.story("objects duplicate") == [
        "1 object came again from CT1 (CT1, 192.0.2.1), byte for byte: nothing changed."
    ]


def test_a_file_keeps_the_time_at_which_its_object_first_came(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    came_at = hospital.clock
    hospital.send(make_ct())
    hospital.later(100)
    hospital.ingest()
    hospital.send(make_ct())
    hospital.ingest()
    (file,) = _archived(hospital)
    assert file.stat().st_mtime_ns == came_at * 1000


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_another_transfer_syntax_is_another_copy(
    hospital: Hospital, make_ct: MakeCT, syntax: str
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    (before,) = hospital.rows()
    hospital.send(make_ct(), syntax=syntax)
    hospital.ingest()

    (row,) = hospital.rows()
    assert (row.header_digest, row.pixel_digest) == (before.header_digest, before.pixel_digest)
    assert len(_archived(hospital)) == 2
    assert "same content, written otherwise" in hospital.story("objects copy")[0]


def test_other_pixels_are_a_new_version_and_both_are_kept(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    hospital.send(make_ct(PixelData=bytes(512)))
    hospital.ingest()

    (row,) = hospital.rows()
    assert row.newest
    assert len(_archived(hospital)) == 2
    assert "both are kept, the newest is used" in hospital.story("objects version")[0]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_a_node_takes_back_is_used_no_more(
    hospital: Hospital, make_ct: MakeCT, syntax: str
) -> None:
    hospital.send(make_ct(), node="CT1")
    hospital.ingest()
    (right,) = hospital.rows()
    hospital.later(10)
    hospital.send(make_ct(PatientName="Wrong^Name"), node="CT2")
    assert hospital.ingest_and_decide() == "decided"
    (wrong,) = hospital.rows()
    hospital.send(make_ct(), node="CT2", syntax=syntax)
    hospital.ingest()

    (row,) = hospital.rows()
    assert (wrong.id == row.id, right.id == row.id) == (False, True)
    assert hospital.study().status == "open"
    (told,) = hospital.story("objects returned")
    assert told.endswith("from CT2 (CT2, 192.0.2.1) as before the last change: that is used again.")
    last = max(_archived(hospital), key=lambda each: each.stat().st_mtime_ns)
    assert last.stat().st_mtime_ns == row.received_at * 1000
    assert b"Wrong^Name" not in last.read_bytes()


def test_a_change_of_another_node_is_undone_by_no_repetition(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct(), node="CT1")
    hospital.ingest()
    hospital.later(10)
    hospital.send(make_ct(PatientName="Right^Name"), node="CT2")
    assert hospital.ingest_and_decide() == "decided"
    (corrected,) = hospital.rows()
    hospital.send(make_ct(), node="CT1")
    hospital.ingest()

    assert [each.id for each in hospital.rows()] == [corrected.id]
    (told,) = hospital.story("objects passed over")
    assert "as before a change, and the change stays in use. If that is wrong, have" in told


def test_what_was_received_before_a_change_takes_nothing_back(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    hospital.later(10)
    hospital.send(make_ct(PatientName="Right^Name"))
    hospital.ingest()
    (corrected,) = hospital.rows()
    hospital.later(-5)
    hospital.send(make_ct())
    hospital.ingest()
    assert [each.id for each in hospital.rows()] == [corrected.id]


@pytest.mark.parametrize("taken_in", ["in one batch", "by a host that was away"])
def test_of_two_versions_that_is_used_which_was_received_last(
    any_hospital: Hospital, make_ct: MakeCT, taken_in: str
) -> None:
    hospital = any_hospital
    opened_first = hospital.send(ends=None)
    hospital.later(20)
    right = make_ct(PatientName="Right^Name", AccessionNumber="RIGHT", StudyDate="20260302")
    hospital.add(opened_first, right)
    opened_first.end("released", hospital.clock)
    if taken_in != "in one batch":
        assert hospital.ingest_and_decide() == "decided"
        hospital.later(-61)
    hospital.later(-10)
    hospital.send(make_ct(AccessionNumber="FIRST", StudyDate="20260301"))
    hospital.later(100)
    hospital.ingest()
    (row,) = hospital.rows()
    assert row.attributes["PatientName"] == "Right^Name"
    with reading(hospital.engine) as connection:
        said = studies.header(connection, row.study_instance_uid)
    assert said["PatientName"] == "Right^Name"
    (told,) = hospital.story("objects overtaken")
    assert "both are kept, the later is used" in told
    assert not hospital.story("objects version")
    assert len(_archived(hospital)) == 2
    study = hospital.study()
    assert (study.accession_number, study.study_date) == ("RIGHT", "20260302")
    assert hospital.study().status == ("open" if taken_in == "in one batch" else "decided")


def test_a_clock_that_is_set_back_makes_no_correction_an_older_version(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    hospital.later(-3600)
    hospital.send(make_ct(PatientName="Right^Name"))
    hospital.ingest()
    (row,) = hospital.rows()
    assert row.attributes["PatientName"] == "Right^Name"
    hospital.later(-3600)
    hospital.send(make_ct())  # the same node takes that back
    hospital.ingest()
    assert [each.attributes["PatientName"] for each in hospital.rows()] == ["DOE^JANE"]


def test_a_correction_that_came_by_a_clock_that_was_behind_is_no_older_version(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    years_s = hospital.clock / 1_000_000
    hospital.later(-years_s)
    hospital.send(make_ct(PatientName="Right^Name", AccessionNumber="RIGHT"))
    hospital.later(years_s)
    hospital.ingest()
    assert [each.attributes["PatientName"] for each in hospital.rows()] == ["Right^Name"]
    assert hospital.study().accession_number == "RIGHT"


def test_of_two_versions_by_a_clock_that_was_ahead_that_is_used_which_was_received_last(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    opened_first = hospital.send(ends=None)
    hospital.later(20)
    hospital.add(opened_first, make_ct(PatientName="Right^Name"))
    opened_first.end("released", hospital.clock)
    hospital.later(-10)
    hospital.send(make_ct())
    hospital.later(-3600)
    hospital.ingest()
    assert [each.attributes["PatientName"] for each in hospital.rows()] == ["Right^Name"]


def test_what_cant_be_read_goes_to_quarantine_and_harms_nothing_else(
    hospital: Hospital, make_ct: MakeCT, sample_data: Path
) -> None:
    odd = sample_data / "odd" / "made"
    hospital.send(
        odd / "truncated" / "cut-half-pixels.dcm",
        odd / "uid" / "no-study-uid.dcm",
        make_ct(),
        odd / "uid" / "sop-uid-path-dotdot.dcm",
    )

    done = hospital.ingest()

    assert (done.catalogued, done.set_aside) == (1, 3)
    assert [each[:40] for each in _quarantined(hospital)] == [
        "It is truncated: PixelData (7FE0,0010) s",
        "StudyInstanceUID is missing or empty.",
        "SOPInstanceUID is no UID: '../../../../t",
    ]
    assert len(hospital.rows()) == 1


def test_a_file_that_its_disk_does_not_give_back_holds_up_no_other(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(make_ct(number=1), make_ct(number=2), make_ct(number=3))
    read_object = ingest_module.read_object

    def damaged(path: Path, reading: Reading) -> ReceivedObject:
        if path.name.startswith("000002"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_object(path, reading)

    monkeypatch.setattr(ingest_module, "read_object", damaged)
    done = hospital.ingest()

    assert (done.catalogued, done.set_aside) == (2, 1)
    (reason,) = _quarantined(hospital)
    assert reason.endswith("can't be read: input/output error. Look at its disk, and send the "
                           "object again.")  # fmt: skip
    assert list(reader.entries(hospital.config.spool)) == []


def test_what_neither_its_disk_gives_back_nor_the_quarantine_takes_holds_up_no_other(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(make_ct(number=1))
    hospital.later(1)
    hospital.send(make_ct(number=2))
    (damaged, _) = reader.entries(hospital.config.spool)
    read_object, link = ingest_module.read_object, Path.hardlink_to

    def fails(path: Path, *_: object) -> Any:
        raise OSError(errno.EIO, "Input/output error", str(path))

    def reads(path: Path, reading: Reading) -> ReceivedObject:
        return fails(path) if path == damaged.path else read_object(path, reading)

    def links(self: Path, target: Path) -> None:
        if self.is_relative_to(hospital.config.quarantine):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(self, target)

    monkeypatch.setattr(ingest_module, "read_object", reads)
    monkeypatch.setattr(Path, "hardlink_to", links)
    monkeypatch.setattr(names, "write_durably", fails)
    inode = damaged.path.stat().st_ino
    done = hospital.ingest()

    assert (done.catalogued, done.set_aside) == (1, 1)
    assert list(reader.entries(hospital.config.spool)) == []
    (kept,) = (hospital.config.spool / UNREADABLE).glob("*.dcm")
    assert kept.stat().st_ino == inode
    with reading(hospital.engine) as connection:
        (told,) = connection.execute(
            select(schema.events.c.sentence).where(schema.events.c.kind == "object set aside")
        ).scalars()
    assert f"was set aside as {kept}:" in told


def test_an_object_that_fails_for_now_waits_and_holds_up_no_other(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(make_ct(number=1))
    (first,) = reader.entries(hospital.config.spool)
    hospital.later(10)
    hospital.send(make_ct(number=2), make_ct(study="1.2.4", series="1.2.4.1"))
    read_object = ingest_module.read_object

    def away(path: Path, reading: Reading) -> ReceivedObject:
        if path == first.path:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read_object(path, reading)

    with monkeypatch.context() as outage:
        outage.setattr(ingest_module, "read_object", away)
        for _ in range(reader.MAX_ATTEMPTS + 1):
            with pytest.raises(TransientError, match=r"Stale file handle.* is tried again"):
                hospital.ingest()
    assert (len(hospital.rows()), len(hospital.rows("1.2.4"))) == (1, 1)
    with reading(hospital.engine) as connection:
        (host,) = hosts.listing(connection)
    assert host.ingested_to == first.received_at, "a study must not be decided without it"

    assert hospital.ingest().catalogued == 1
    assert (len(hospital.rows()), _quarantined(hospital)) == (2, [])


def test_where_everything_fails_the_spool_is_not_read_again_and_again(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(*(make_ct(number=number) for number in range(1, 6)))
    tried = []

    def full(path: Path, _: Reading) -> ReceivedObject:
        tried.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(spool_pass, "_MOST_FAILED", 2)
        disk.setattr(ingest_module, "read_object", full)
        for _ in range(reader.MAX_ATTEMPTS + 1):
            with pytest.raises(OSError, match="No space left"):
                hospital.ingest()
    assert len(tried) == 3 * (reader.MAX_ATTEMPTS + 1)
    assert hospital.ingest().catalogued == 5


@pytest.mark.parametrize(("free_bytes", "aside"), [(3_000, 1), (1_500, 0)])
def test_an_object_that_would_fill_the_disk_is_set_aside_and_a_full_disk_is_waited_for(
    hospital: Hospital,
    make_ct: MakeCT,
    monkeypatch: pytest.MonkeyPatch,
    free_bytes: int,
    aside: int,
) -> None:
    hospital.config = replace(hospital.config, reserve_bytes=2_000)
    big = make_ct(number=1, Rows=64, Columns=64, PixelData=bytes(8192))
    hospital.send(big, syntax=DeflatedExplicitVRLittleEndian)
    hospital.later(10)
    hospital.send(make_ct(study="1.2.4", series="1.2.4.1"))

    with monkeypatch.context() as disk:
        disk.setattr(ingest_module, "free_bytes", lambda _: free_bytes)
        if aside:
            assert hospital.ingest().set_aside == 1
            (reason,) = _quarantined(hospital)
            assert reason.endswith("no room to inflate it. Make room, and send the object again.")
        else:
            with pytest.raises(TransientError, match="no room to inflate it"):
                hospital.ingest()
    assert len(hospital.rows("1.2.4")) == 1
    hospital.ingest()
    assert len(hospital.rows()) == 1 - aside


@pytest.mark.parametrize("mounted_at", ["the archive", "above it"])
def test_what_comes_while_the_archive_is_away_waits_in_the_spool(
    hospital: Hospital, make_ct: MakeCT, mounted_at: str
) -> None:
    """Where its disk is to be mounted it would be hidden as soon as that is back."""
    hospital.send(make_ct(number=1))
    hospital.ingest()
    archive = hospital.config.data / "archive"
    away = archive.rename(archive.with_name("away"))
    if mounted_at == "the archive":
        archive.mkdir()
    hospital.send(make_ct(number=2))
    with pytest.raises(TransientError, match=r"waits in the spool, .* Is its disk mounted"):
        hospital.ingest()
    assert not archive.exists() or not list(archive.iterdir())
    archive.rmdir() if archive.exists() else None
    away.rename(archive)
    assert hospital.ingest().catalogued == 1
    assert len(_archived(hospital)) == 2


def test_a_deflated_object_needs_no_room_in_the_temporary_folder_of_the_system(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(hospital.folder / "none"))
    hospital.send(make_ct(), syntax=DeflatedExplicitVRLittleEndian)
    assert hospital.ingest().catalogued == 1


def test_no_row_is_there_before_the_bytes_are_on_the_disk(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(make_ct(number=1), make_ct(number=2))
    fdatasync = os.fdatasync

    def failing(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith("000001"):
            raise OSError(errno.EIO, "Input/output error")
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", failing)
    done = hospital.ingest()

    assert (done.catalogued, done.set_aside) == (1, 1)
    assert len(hospital.rows()) == 1


def test_no_row_is_there_before_the_name_in_the_archive_is_on_the_disk(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(make_ct())

    def failing(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            hospital.ingest()
    assert hospital.rows() == []
    assert hospital.ingest().catalogued == 1


def test_what_an_earlier_version_had_in_its_spool_comes_from_its_sender(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    ended, lost = hospital.send(make_ct(number=1)), hospital.send(make_ct(number=2))
    for writer, end in ((ended, 5), (lost, None)):
        for said in (*writer.folder.glob("from-*"), *writer.folder.glob("end-*")):
            said.unlink()
        facts = asdict(writer.facts)
        del facts["retrieved"]  # retrievals came with the names
        (writer.folder / "facts.json").write_text(json.dumps(facts))
        if end is not None:
            (writer.folder / "end.json").write_text(json.dumps({"at": end, "how": "released"}))
    assert reader.ended(hospital.config.spool, ended.facts.id) == End(at=Instant(5), how="released")
    released = reader.ended(hospital.config.spool, lost.facts.id)
    assert released is not None
    assert released.how == "lost"

    done = hospital.ingest()

    assert (done.catalogued, done.set_aside) == (2, 0)
    assert [row.node for row in hospital.rows()] == [ended.facts.node, lost.facts.node]
    assert list(hospital.config.spool.iterdir()) == []


@pytest.mark.parametrize("said", ["", "from-nonsense"])
def test_objects_whose_sender_is_not_known_any_more_hold_up_no_other(
    hospital: Hospital, make_ct: MakeCT, said: str
) -> None:
    writer = hospital.send(make_ct(number=1))
    (name,) = writer.folder.glob("from-*")
    name.unlink()
    if said:
        (writer.folder / said).touch()
    hospital.send(make_ct(number=2))

    done = hospital.ingest()

    assert (done.catalogued, done.set_aside) == (1, 1)
    (reason,) = _quarantined(hospital)
    assert "does not say any more who sent it" in reason
    assert list(hospital.config.spool.iterdir()) == []
    with reading(hospital.engine) as connection:
        told = connection.execute(
            select(schema.events.c.sentence).where(schema.events.c.kind == "object set aside")
        ).scalar_one()
    assert told.startswith("An object from an unknown sender was set aside as ")


def test_every_odd_object_is_catalogued_or_quarantined(
    hospital: Hospital, sample_data: Path
) -> None:
    odd = sample_data / "odd"
    manifest = json.loads((odd / "manifest.json").read_text())["files"]
    outside = sorted(hospital.folder.parent.iterdir())
    files = {each["path"]: each for each in manifest if (odd / each["path"]).is_file()}
    hospital.send(*(odd / path for path in files))

    done = hospital.ingest()

    assert done.catalogued + done.set_aside == len(files) > 200
    kept = {hashlib.sha256(path.read_bytes()).hexdigest() for path in _archived(hospital)}
    aside = {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in hospital.config.quarantine.glob("*.dcm")
    }
    assert all(reason.endswith(".") for reason in _quarantined(hospital))
    assert sorted(hospital.folder.parent.iterdir()) == outside
    for path, each in files.items():
        assert each["sha256"] in kept | aside, path
        if path == "made/uid/sop-uid-leading-zero.dcm":  # its manifest is stricter than PACS are
            assert each["sha256"] in kept
        elif each["care"].startswith("quarantine with a sentence"):
            assert each["sha256"] in aside, path
        if each["care"].startswith(("keep", "read", "strip", "receive")) and path.startswith(
            "made/"
        ):
            wanted = kept | aside if path.startswith("made/shell") else kept
            assert each["sha256"] in wanted, path
    sql = "made/uid/study-uid-quote.dcm"
    assert files[sql]["sha256"] in aside


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_with_leading_zeros_is_another_one_than_without(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    studies = {"1.2.840.0123.5": "P1", "1.2.840.123.5": "P2"}
    for study, patient in studies.items():
        any_hospital.send(make_ct(study=study, series=f"{study}.01", PatientID=patient))

    assert any_hospital.ingest().catalogued == 2

    assert any_hospital.study("1.2.840.0123.5").patient_key == "P1"
    assert any_hospital.study("1.2.840.123.5").patient_key == "P2"
    assert {path.parent.parent.name for path in _archived(any_hospital)} == set(studies)
    (told,) = any_hospital.story("objects remarked", "1.2.840.0123.5")
    assert "a number that begins with 0, which PS3.5 9.1 forbids" in told


def test_two_patients_under_one_study_hold_it(any_hospital: Hospital, make_ct: MakeCT) -> None:
    any_hospital.send(make_ct(number=1), make_ct(number=2, PatientID="P2"))

    any_hospital.ingest()

    study = any_hospital.study()
    assert study.status == "held"
    assert study.hold_reason == (
        "Study 1.2.3 is held: its objects belong to 2 patients. Keys: P1, P2. Find out whose it "
        "is, then: dicomai study 1.2.3 --accept KEY."
    )
    assert any_hospital.ingest_and_decide() == "nothing to do"


def test_two_birth_dates_under_one_study_hold_it(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct(number=1), make_ct(number=2, PatientBirthDate="19610101"))
    hospital.ingest()

    assert "2 birth dates" in str(hospital.study().hold_reason)


def test_the_same_id_of_two_issuers_is_two_patients(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct(number=1))
    hospital.send(make_ct(number=2), node="ARCHIVE")
    hospital.ingest()

    assert "Keys: P1, P1@HOSPITAL" in str(hospital.study().hold_reason)


def test_one_object_under_two_studies_holds_both(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    hospital.send(make_ct(study="1.2.4"))
    hospital.ingest()

    assert hospital.study().status == hospital.study("1.2.4").status == "held"
    assert "came under study 1.2.4 too" in str(hospital.study().hold_reason)


def test_an_empty_patient_id_takes_name_birth_date_and_sex(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct(number=1, PatientID=""), make_ct(number=2, PatientID="0"))
    hospital.ingest()
    assert hospital.study().patient_key == "@DOE^JANE|19600131|F"
    assert hospital.study().status == "open"

    hospital.send(make_ct(number=3, PatientID="", PatientName="ROE^RICHARD"))
    hospital.ingest()
    assert hospital.study().status == "held"


@pytest.mark.parametrize("number", [False, True])
def test_several_patient_ids_in_one_object_or_a_number_hold(
    hospital: Hospital, make_ct: MakeCT, number: bool
) -> None:
    image = make_ct(PatientID=["P1", "P2"])
    if number:  # 49, whose bytes are the character 1
        image["PatientID"] = DataElement(Tag("PatientID"), "US", 49)
    hospital.send(image)
    hospital.ingest()

    reason = str(hospital.study().hold_reason)
    assert "an object names several Patient IDs" in reason
    assert "--accept" not in reason  # there is no key to accept
    assert "Correct Patient ID where they come from" in reason


def test_a_clean_release_shortens_the_quiet_time_of_a_node_that_promises_it(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    writer = hospital.send(make_ct(number=1), node="CT2", ends=None)
    hospital.ingest()
    assert hospital.study().quiet_until == hospital.clock + 60_000_000
    hospital.later(5)
    writer.end("released", hospital.clock)
    hospital.ingest()
    assert hospital.study().quiet_until == hospital.clock + 10_000_000

    hospital.later(5)
    hospital.send(make_ct(number=2), node="CT2")
    hospital.ingest()
    assert hospital.study().full_quiet
    assert hospital.study().quiet_until == hospital.clock + 60_000_000


def test_two_releases_that_were_waiting_together_shorten_nothing(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct(number=1), node="CT2")
    hospital.later(1)
    hospital.send(make_ct(number=2), node="CT2")
    hospital.ingest()

    assert hospital.study().full_quiet
    assert hospital.study().quiet_until == hospital.clock + 60_000_000


def test_no_association_reads_all_others_of_its_study(hospital: Hospital, make_ct: MakeCT) -> None:
    """A modality may open one for each image: the hundredth must not take as long as all before."""
    read: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM associations JOIN" in statement:
            read.append(statement)

    event.listen(hospital.engine, "before_cursor_execute", note)
    for number in range(1, 4):
        hospital.send(make_ct(number=number))
        assert hospital.ingest().catalogued == 1
    assert read == []


def test_an_abort_shortens_nothing(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct(), node="CT2", ends="aborted")
    hospital.ingest()

    assert hospital.study().quiet_until == hospital.clock + 60_000_000
    with reading(hospital.engine) as connection:
        (found,) = associations_of(connection, "1.2.3")
    assert (found.release, found.ended_at) == ("aborted", hospital.clock)


def test_a_host_publishes_how_far_it_has_ingested(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.ingest()
    with reading(hospital.engine) as connection:
        (host,) = hosts.listing(connection)
    assert (host.name, host.ingested_to) == ("here", hospital.clock)


def test_an_object_that_came_later_does_not_say_that_all_before_it_is_here(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    writer = hospital.send(make_ct(), ends=None)
    # Whole, and about to be called by its time of receipt.
    (writer.folder / f".000002-{hospital.clock + 5_000_000:016d}.part").touch()
    hospital.ingest()
    with reading(hospital.engine) as connection:
        (host,) = hosts.listing(connection)
    assert host.ingested_to == hospital.clock


def test_a_database_that_is_away_loses_nothing_and_counts_no_attempt(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    broken = hospital.folder / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    hospital.send(make_ct(), broken, make_ct(number=2))
    database = Path(str(hospital.engine.url.database))
    hospital.engine.dispose()
    database.rename(database.with_suffix(".away"))
    database.mkdir()
    for _ in range(4):
        with pytest.raises(DatabaseError):
            hospital.ingest()
    database.rmdir()
    database.with_suffix(".away").rename(database)

    assert hospital.ingest().catalogued == 2
    assert len(_quarantined(hospital)) == 1


def test_the_spool_is_not_read_while_the_database_is_away(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(make_ct())
    database = Path(str(hospital.engine.url.database))
    hospital.engine.dispose()
    database.rename(database.with_suffix(".away"))
    read: list[Path] = []
    folders = reader._folders

    def noted(spool: Path) -> list[Path]:
        read.append(spool)
        return folders(spool)

    monkeypatch.setattr(reader, "_folders", noted)
    with pytest.raises(DatabaseError):
        hospital.ingest()
    database.with_suffix(".away").rename(database)
    assert read == []
    assert hospital.ingest().catalogued == 1
    assert read


def test_a_study_that_is_being_deleted_waits_in_the_spool(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    candidate = Candidate(
        study_instance_uid=StudyInstanceUID("1.2.3"), origins=("received", "retrieved")
    )
    with writing(hospital.engine) as connection:
        decisions.set_decided(connection, candidate.study_instance_uid, "", hospital.clock)
        assert retention.begin(connection, candidate, hospital.clock, hospital.clock)
    hospital.send(make_ct(number=2), make_ct(study="1.2.4", series="1.2.4.1"))

    done = hospital.ingest()

    assert (done.catalogued, done.postponed) == (1, 1)
    with writing(hospital.engine) as connection:
        retention.complete(connection, candidate, hospital.clock)
    assert hospital.ingest().catalogued == 1
    assert [row.sop_instance_uid for row in hospital.rows()] == ["1.2.3.1.2"]


def test_a_duplicate_whose_file_is_gone_brings_it_back(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    (file,) = _archived(hospital)
    file.unlink()
    hospital.send(make_ct())

    hospital.ingest()

    assert _archived(hospital) == [file]


def test_a_duplicate_whose_file_is_damaged_is_kept_with_what_to_do(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    (file,) = _archived(hospital)
    whole = file.read_bytes()
    file.write_bytes(bytes(len(whole)))
    hospital.send(make_ct())

    assert hospital.ingest().set_aside == 1

    (reason,) = _quarantined(hospital)
    assert f"{file.relative_to(hospital.config.data)}, is damaged" in reason
    (kept,) = hospital.config.quarantine.glob("*.dcm")
    assert kept.read_bytes() == whole


def test_a_duplicate_whose_file_cannot_be_read_is_kept_and_holds_up_no_other(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    (file,) = _archived(hospital)
    file.unlink()
    file.symlink_to("/proc/self/mem")  # which gives EIO
    hospital.send(make_ct(), make_ct(number=2))

    done = hospital.ingest()

    assert (done.catalogued, done.set_aside) == (1, 1)
    (reason,) = _quarantined(hospital)
    assert f"{file.relative_to(hospital.config.data)}, is damaged or can't be read" in reason


def test_a_duplicate_whose_file_is_another_users_is_a_duplicate(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(make_ct())
    hospital.ingest()

    def refuses(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "utime", refuses)
    hospital.send(make_ct())
    assert hospital.ingest().catalogued == 1
    assert _quarantined(hospital) == []


def test_a_file_that_retention_takes_from_under_ingest_leaves_no_row(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(make_ct())
    real = ingest_module.note_arrived

    def late(*arguments: Any) -> Any:
        for file in _archived(hospital):
            file.unlink()
        return real(*arguments)

    monkeypatch.setattr(ingest_module, "note_arrived", late)
    with pytest.raises(TransientError, match="is taken in again"):
        hospital.ingest()
    with reading(hospital.engine) as connection:
        assert studies.get(connection, StudyInstanceUID("1.2.3")) is None
    monkeypatch.undo()

    assert hospital.ingest().catalogued == 1
    assert len(_archived(hospital)) == 1


def test_the_event_of_what_was_set_aside_survives_an_outage(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = hospital.folder / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    hospital.send(broken)

    def away(*_: object) -> None:
        raise DatabaseError("Away.")

    with monkeypatch.context() as outage:
        outage.setattr(events, "record", away)
        with pytest.raises(DatabaseError):
            hospital.ingest()
    hospital.ingest()

    with reading(hospital.engine) as connection:
        kinds = connection.execute(select(schema.events.c.kind)).scalars().all()
    assert kinds == ["object set aside"]
    assert len(_quarantined(hospital)) == 1


def test_no_name_and_no_id_stands_in_an_event(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct(PatientName="VERYRARE^NAME"))
    hospital.ingest()

    with reading(hospital.engine) as connection:
        story = events.story(connection, StudyInstanceUID("1.2.3"))
    assert all("VERYRARE" not in f"{each.sentence} {each.data}" for each in story)


STEPS = [
    "marked",
    "read",
    "placed",
    "settled",
    "committed",
    "removed",
    "ended",
    "forgotten",
    "published",
]


@pytest.mark.parametrize(
    ("step", "nth"), [*((step, 1) for step in STEPS), ("read", 2), ("placed", 3), ("removed", 2)]
)
def test_killed_after_any_step_ingest_goes_on(
    hospital: Hospital, make_ct: MakeCT, step: str, nth: int
) -> None:
    hospital.send(*(make_ct(number=number) for number in range(1, 4)))

    seen: list[str] = []

    def kill(name: str) -> None:
        seen.append(name)
        if seen.count(step) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    hospital.ingest_in_a_child(kill)
    hospital.ingest()

    assert len(hospital.rows()) == len(_archived(hospital)) == 3
    assert list(reader.entries(hospital.config.spool)) == []
    assert list(reader.associations(hospital.config.spool)) == []
    assert _quarantined(hospital) == []
    with reading(hospital.engine) as connection:
        study = studies.get(connection, StudyInstanceUID("1.2.3"))
        (association,) = associations_of(connection, "1.2.3")
    assert study is not None
    assert study.instances == 3
    assert association.release == "released"
    assert hospital.story("objects duplicate") == []


def test_an_entry_that_kills_twice_is_set_aside_and_takes_nobody_along(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(*(make_ct(number=number) for number in range(1, 4)))
    read_object = ingest_module.read_object

    def poisonous(path: Path, reading: Reading) -> ReceivedObject:
        if path.name.startswith("000002"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read_object(path, reading)

    monkeypatch.setattr(ingest_module, "read_object", poisonous)
    killed = 0
    while hospital.ingest_in_a_child() == -signal.SIGKILL:
        killed += 1
    assert killed == reader.MAX_ATTEMPTS

    assert [row.sop_instance_uid for row in hospital.rows()] == ["1.2.3.1.1", "1.2.3.1.3"]
    assert _quarantined(hospital) == [
        "Ingest ended 2 times while it worked on this object. It is kept here; please report it."
    ]
    assert list(reader.entries(hospital.config.spool)) == []
