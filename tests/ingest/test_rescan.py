"""Rows rebuilt from the files of the archive: all are, nothing is analysed again, or harmed."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom import config as pydicom_config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy import delete, insert, update

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.dates import now as present
from dicomai.dicom.matching import Key
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DicomaiError, NotFound
from dicomai.results.uids import rejection_uid, series_uid
from dicomai.service import leavings
from dicomai.service import rescan as rescan_module
from dicomai.service.decide import decide_again, decide_due
from dicomai.service.received import Reading, ReceivedObject
from dicomai.service.rescan import Rebuilt, Rescan, folders_of, rescan
from dicomai.store import archive, hosts, instances, retention, schema, search, series
from dicomai.store.engine import reading, writing
from dicomai.store.retention import Keep

Hospital = Any  # conftest's: importlib mode has no package to import it from
MakeCT = Callable[..., Any]

STUDY = StudyInstanceUID("1.2.3")
DAY = seconds(86400)
SILENCE = 121
"""Seconds after which a host that was stopped is not taken to live any more."""
KEEP = Keep(received=seconds(30 * 86400), produced=seconds(365 * 86400), jobs=DAY)


def rescanned(
    hospital: Hospital,
    *studies: str,
    node: str = "CT1",
    decide: bool = False,
    after_step: Callable[[str], None] = lambda _: None,
) -> list[Rebuilt]:
    """Rescan some studies, or all; return what became of those that had something to rebuild."""
    config = hospital.config
    plan = Rescan(
        folders=hospital.folders,
        node=config.nodes[node],
        placeholder_ids=config.placeholder_ids,
        decide=decide,
    )
    found = folders_of(config.data, [StudyInstanceUID(each) for each in studies])
    done = rescan(hospital.engine, plan, found, lambda: hospital.clock, after_step)
    return [each for each in done if each.objects or each.left_out or each.unfit]


def lose_database(hospital: Hospital) -> None:
    schema.metadata.drop_all(hospital.engine)
    schema.metadata.create_all(hospital.engine)
    hospital.later(3600)


def chest(make_ct: MakeCT, **attributes: object) -> list[Any]:
    return [make_ct(number=number, **attributes) for number in range(1, 9)]


def archived(hospital: Hospital) -> list[Path]:
    return sorted((hospital.config.data / "archive").rglob("*.dcm"))


def touched(hospital: Hospital, study: str) -> Instant:
    """When the first of a study's files was placed, or counts as placed again."""
    data = hospital.config.data
    paths = [path.relative_to(data) for path in archived(hospital) if study in path.parts]
    return min(archive.touched_at(data, path) for path in paths)


def versions(hospital: Hospital, uid: str = "1.2.3") -> list[Any]:
    """What is known of each object of a study, and of each version where it has several."""
    with reading(hospital.engine) as connection:
        study = StudyInstanceUID(uid)
        found = [
            *instances.of_study(connection, study),
            *instances.several_versions(connection, study),
        ]
    told = [
        (
            *(each.series_instance_uid, each.sop_instance_uid, each.newest, each.version),
            *(each.file_sha256, each.transfer_syntax_uid, each.size_bytes, each.path),
            *(each.received_at, each.origin, each.node, each.attributes),
        )
        for each in found
    ]
    return sorted(told, key=str)


def stopped(hospital: Hospital) -> Hospital:
    """Stop the service, and wait until that is believed."""
    hospital.later(SILENCE)
    return hospital


def decided(hospital: Hospital) -> dict[Any, Any]:
    """Let the service run for a while, and return what was decided."""
    hospital.ingest()
    hospital.later(1000)
    hospital.ingest()
    outcomes: dict[Any, Any] = decide_due(hospital.engine, hospital.rules, hospital.clock)
    return outcomes


def test_all_that_was_known_of_objects_and_versions_comes_back_and_nothing_is_decided_on(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*chest(make_ct))
    assert hospital.ingest_and_decide() == "decided"
    hospital.later(100)
    hospital.send(make_ct(number=3, PixelData=bytes(512)))
    assert hospital.ingest_and_decide() == "decided"
    before, study = versions(hospital), hospital.study()
    assert len(before) == 10
    lose_database(hospital)

    (rebuilt,) = rescanned(hospital)

    assert (rebuilt.objects, rebuilt.held, rebuilt.left_out, rebuilt.unfit) == (9, False, "", ())
    assert versions(hospital) == before
    now = hospital.study()
    assert (now.status, now.patient_key, now.nodes, now.instances) == ("decided", "P1", ("CT1",), 8)
    assert (now.accession_number, now.study_date) == (study.accession_number, study.study_date)
    assert now.first_object_at == study.first_object_at
    assert now.decision.startswith("Rebuilt from the archive: no route was looked at.")
    (told,) = hospital.story("objects rebuilt")
    assert told.startswith(
        "9 objects rebuilt from the archive, as sent by CT1: no route was looked"
    )
    assert told.endswith(f"To have them look at it: dicomai study {STUDY} --decide")
    with reading(hospital.engine) as connection:
        assert not any(each.changed for each in series.of_study(connection, STUDY))
    assert decided(hospital) == {}
    assert hospital.jobs() == []
    assert rescanned(stopped(hospital)) == []


def test_routes_look_at_a_rebuilt_study_when_a_person_asks(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*chest(make_ct))
    hospital.ingest()
    lose_database(hospital)
    rescanned(hospital)
    decide_again(hospital.engine, STUDY, hospital.clock)
    assert decided(hospital) == {STUDY: "decided"}
    assert [each.state for each in hospital.jobs()] == ["queued"]


def test_a_late_image_of_a_rebuilt_study_is_decided_on_as_any(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*chest(make_ct))
    hospital.ingest_and_decide()
    lose_database(hospital)
    rescanned(hospital)
    hospital.send(make_ct(number=9))
    assert hospital.ingest_and_decide() == "decided"
    (job,) = hospital.jobs()
    with reading(hospital.engine) as connection:
        assert len(instances.inputs_of(connection, job.id)) == 9


def test_routes_look_at_what_is_rebuilt_where_that_is_wanted(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    any_hospital.send(*chest(make_ct), *chest(make_ct, study="1.2.4", series="1.2.4.1"))
    any_hospital.ingest()
    lose_database(any_hospital)
    (rebuilt,) = rescanned(any_hospital, "1.2.4", decide=True)
    assert (rebuilt.study_instance_uid, rebuilt.objects) == ("1.2.4", 8)
    assert any_hospital.study("1.2.4").status == "open"
    assert decided(any_hospital) == {"1.2.4": "decided"}
    assert len(any_hospital.jobs("1.2.4")) == 1
    assert "as if it had just come" in any_hospital.story("objects rebuilt", "1.2.4")[0]


def test_what_came_after_the_backup_becomes_rows(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(*chest(make_ct), *chest(make_ct, study="1.2.4", series="1.2.4.1"))
    hospital.ingest_and_decide()
    hospital.send(make_ct(study="1.2.5", series="1.2.5.1"))
    hospital.ingest()
    hospital.engine.dispose()
    file = Path(hospital.engine.url.database)
    shutil.copy(file, hospital.folder / "backup")
    for study in ("1.2.3", "1.2.5", "1.2.6"):
        hospital.send(make_ct(number=9, study=study, series=f"{study}.1"))
    hospital.ingest()
    hospital.engine.dispose()
    shutil.copy(hospital.folder / "backup", file)
    decision = hospital.study().decision

    done = rescanned(stopped(hospital))

    assert {each.study_instance_uid: each.objects for each in done} == {
        "1.2.3": 1,
        "1.2.5": 1,
        "1.2.6": 1,
    }
    assert len(hospital.rows()) == 9
    assert hospital.study().decision.startswith(f"{decision} Rebuilt from the archive: no route")
    # What the backup knew and nobody had decided on is looked at, as it would have been.
    states = [hospital.study(uid).status for uid in ("1.2.3", "1.2.5", "1.2.6")]
    assert states == ["decided", "open", "decided"]
    (told,) = hospital.story("objects rebuilt", "1.2.5")
    assert "was not decided on before, so routes look at it" in told
    decided(hospital)
    assert len(hospital.jobs()) == 1  # the backup's
    assert hospital.jobs("1.2.6") == []


def test_a_study_that_was_analysed_after_the_backup_is_not_looked_at_again(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    equipment = Dataset()
    equipment.Manufacturer = equipment.ManufacturerModelName = "dicomai"
    hospital.send(*chest(make_ct))
    hospital.ingest()
    hospital.engine.dispose()
    file = Path(hospital.engine.url.database)
    shutil.copy(file, hospital.folder / "backup")
    hospital.send(make_ct(series="1.2.3.2", ContributingEquipmentSequence=[equipment]))
    hospital.ingest()
    hospital.engine.dispose()
    shutil.copy(hospital.folder / "backup", file)
    assert hospital.study().status == "open"

    rescanned(stopped(hospital))

    assert hospital.study().status == "decided"
    assert decided(hospital) == {}
    assert hospital.jobs() == []
    hospital.send(make_ct(number=9))  # a late image is decided on as any
    assert hospital.ingest_and_decide() == "decided"
    assert len(hospital.jobs()) == 1


def test_the_newest_version_is_the_one_that_came_last(hospital: Hospital, make_ct: MakeCT) -> None:
    """Also where it came between two receipts of the first, and where only it is known."""
    other = make_ct(PixelData=bytes(512))
    for each in (make_ct(), other, make_ct()):
        hospital.send(each)
        hospital.ingest()
        hospital.later(10)
    before = versions(hospital)
    (newest,) = hospital.rows()
    lose_database(hospital)
    rescanned(hospital)
    assert versions(hospital) == before
    table = schema.instances
    with writing(hospital.engine) as connection:
        connection.execute(delete(table).where(table.c.newest.is_(False)))
    (rebuilt,) = rescanned(hospital)
    assert rebuilt.objects == 1
    assert versions(hospital) == before
    (row,) = hospital.rows()
    assert row.file_sha256 == newest.file_sha256


def test_a_change_that_another_nodes_repetition_did_not_undo_is_undone_by_no_rescan(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    """Of who sent what only the catalogue knew."""
    for image, node, syntax in (
        (make_ct(), "CT1", ExplicitVRLittleEndian),
        (make_ct(PatientName="Right^Name"), "CT2", ExplicitVRLittleEndian),
        (make_ct(), "CT1", ImplicitVRLittleEndian),  # passed over, in a file of its own
    ):
        hospital.send(image, node=node, syntax=syntax)
        hospital.ingest()
        hospital.later(10)
    (corrected,) = hospital.rows()
    assert len(archived(hospital)) == 3
    lose_database(hospital)
    rescanned(hospital)
    (row,) = hospital.rows()
    assert row.file_sha256 == corrected.file_sha256


def test_the_order_of_versions_holds_though_a_clock_was_ahead(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct(), make_ct(PixelData=bytes(512)))
    hospital.ingest()
    last, first = archived(hospital)
    for file, ahead in ((first, 1), (last, 2)):
        at = hospital.clock // 10**6 + ahead * 10**6
        os.utime(file, (at, at))
    lose_database(hospital)
    rescanned(hospital)
    (row,) = hospital.rows()
    assert hospital.config.data / row.path == last


@pytest.mark.parametrize("written_at", [0, 10**9, 4 * 10**9])
def test_retention_takes_nothing_for_the_time_of_a_file(
    hospital: Hospital, make_ct: MakeCT, written_at: int
) -> None:
    """As results that it kept for longer than images, and the file of a clock of 1970."""
    hospital.send(*chest(make_ct))
    hospital.ingest_and_decide()
    for file in archived(hospital):
        os.utime(file, (written_at, written_at))
    lose_database(hospital)
    rescanned(hospital)
    assert all(0 <= row.received_at <= hospital.clock for row in hospital.rows())
    data = hospital.config.data
    assert retention.delete_expired(hospital.engine, data, KEEP, hospital.clock) == 0
    hospital.later(30 * 86400 + 1)
    assert retention.delete_expired(hospital.engine, data, KEEP, hospital.clock) == 1
    assert archived(hospital) == []


def test_a_clock_of_1970_rebuilds_nothing(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    lose_database(hospital)
    hospital.clock = Instant(1000)
    with pytest.raises(DicomaiError, match="clock says 1970-01-01 00:00 UTC"):
        rescanned(hospital)


def test_nothing_is_rebuilt_while_a_host_lives(any_hospital: Hospital, make_ct: MakeCT) -> None:
    any_hospital.send(make_ct())
    any_hospital.ingest()
    lose_database(any_hospital)
    any_hospital.ingest()  # which tells that it lives
    with pytest.raises(DicomaiError, match="Stop the service on all hosts first: systemctl stop"):
        rescanned(any_hospital)
    any_hospital.later(-3600)
    with pytest.raises(DicomaiError, match="and host here was heard of on 2026"):
        rescanned(any_hospital)
    any_hospital.later(3600 + SILENCE)

    def start_it(_: str) -> None:
        with writing(any_hospital.engine) as connection:
            sign = hosts.sign_of(connection, "here")
            hosts.take_name(connection, "here", "there/1/2", any_hospital.clock, sign)

    with pytest.raises(DicomaiError, match="was started while the archive was read"):
        rescanned(any_hospital, after_step=start_it)
    assert len(rescanned(any_hospital)) == 1


def test_a_study_that_ingest_is_not_through_with_is_left_out(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*chest(make_ct), *chest(make_ct, study="1.2.4", series="1.2.4.1"))
    hospital.ingest()
    hospital.send(make_ct(number=9))
    assert hospital.ingest_until_killed(len(("marked", "read", "placed", "settled")))
    assert len(archived(hospital)) == 17
    lose_database(hospital)

    left, done = sorted(rescanned(hospital), key=lambda each: each.study_instance_uid)

    assert (left.objects, done.objects) == (0, 8)
    assert left.left_out.startswith("Study 1.2.3 is left out: the spool holds objects of it")
    assert "within a day: dicomai archive rescan 1.2.3 --node CT1 --decide" in left.left_out
    assert touched(hospital, "1.2.3") > touched(hospital, "1.2.4")  # by no sweep before that
    hospital.ingest()
    (rebuilt,) = rescanned(stopped(hospital), "1.2.3")
    assert rebuilt.objects == 8
    assert len(hospital.rows()) == 9


def test_a_study_that_retention_deletes_is_left_out(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct(number=1), make_ct(number=2))
    hospital.ingest()
    table, known = schema.instances, schema.studies
    with writing(hospital.engine) as connection:
        connection.execute(delete(table).where(table.c.sop_instance_uid == "1.2.3.1.2"))
        connection.execute(update(known).values(status="deleting", deleting=["received"]))
    (left,) = rescanned(stopped(hospital))
    assert "Study 1.2.3 is left out: retention is deleting it" in left.left_out
    assert len(hospital.rows()) == 1


def test_files_that_are_damaged_or_out_of_place_are_named_and_harm_no_other(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(*chest(make_ct))
    hospital.ingest()
    cut, changed, moved, unreadable, linked, *_ = files = archived(hospital)
    cut.write_bytes(cut.read_bytes()[:-100])
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    elsewhere = moved.parent.with_name("1.2.3.77") / moved.name
    elsewhere.parent.mkdir()
    moved.rename(elsewhere)
    linked.rename(hospital.folder / "linked")
    linked.symlink_to(hospital.folder / "linked")
    for beside in (cut.with_name("README"), cut.with_suffix(".damaged"), cut.parents[2] / "README"):
        beside.write_text("An administrator's.")
    read_object = rescan_module.read_object

    def read(path: Path, reading: Reading) -> ReceivedObject:
        if path == unreadable:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_object(path, reading)

    monkeypatch.setattr(rescan_module, "read_object", read)
    lose_database(hospital)
    there = [each.lstat().st_ino for each in archived(hospital)]

    (rebuilt,) = rescanned(hospital)

    assert rebuilt.objects == 3
    why = {hospital.config.data / each.path: each.because for each in rebuilt.unfit}
    assert why.keys() == {cut, changed, elsewhere, unreadable, linked}
    assert why[cut].startswith("It is truncated")
    assert why[changed].startswith("Its bytes are not those that its name has the digest of")
    assert why[elsewhere].startswith("It says that it is object 1.2.3.1.3 of series 1.2.3.1 of")
    assert why[unreadable] == "It can't be read: input/output error."
    assert why[linked] == "It is no file, but leads elsewhere."
    assert [each.lstat().st_ino for each in archived(hospital)] == there
    monkeypatch.undo()
    (again,) = rescanned(hospital)
    assert (again.objects, len(again.unfit)) == (1, 4)
    assert len(files) - len(hospital.rows()) == 4


def test_a_file_whose_bytes_have_a_row_already_is_named(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct())
    hospital.ingest_and_decide()
    (file,), (row,) = archived(hospital), hospital.rows()
    shutil.copy(file, file.with_name(f"{row.sop_instance_uid}.{row.file_sha256}.dcm"))
    (rebuilt,) = rescanned(stopped(hospital))
    assert rebuilt.objects == 0
    assert [each.because for each in rebuilt.unfit] == [
        f"The catalogue has the same bytes as {row.path}: this file is too much."
    ]
    assert len(hospital.rows()) == 1


@pytest.mark.parametrize("sync", ["fdatasync", "fsync"])
def test_no_row_is_there_before_its_file_and_its_name_are_on_the_disk(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    lose_database(hospital)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, sync, fail)
    with suppress(OSError):  # of a name: more than one file may be meant
        (left,) = rescanned(hospital)
        assert [each.because for each in left.unfit] == ["It can't be read: input/output error."]
    assert hospital.rows() == []


def test_routes_look_at_what_had_come_for_a_backfill_alone_where_that_is_wanted(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*chest(make_ct))
    hospital.ingest()
    lose_database(hospital)
    with writing(hospital.engine) as connection:
        apart = {"study_instance_uid": STUDY, "purpose": "backfill 1", "at": hospital.clock}
        connection.execute(insert(schema.studies_apart).values(apart))
    rescanned(hospital, decide=True)
    assert decided(hospital) == {STUDY: "decided"}
    assert len(hospital.jobs()) == 1


def test_what_the_catalogue_can_not_hold_is_named_and_harms_no_other(
    any_hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its place, for that comes first; PostgreSQL has no room for it in an index."""
    monkeypatch.setattr(pydicom_config, "replace_un_with_known_vr", False)
    chance = random.Random(5)
    long = "".join(chr(0x20000 + chance.randrange(42000)) for _ in range(5000)).encode()
    hostile = make_ct(number=2, SpecificCharacterSet="ISO_IR 192")
    for keyword in ("PatientID", "IssuerOfPatientID", "PatientName"):
        hostile[keyword] = DataElement(keyword, "UN", long)
    any_hospital.send(make_ct(number=1), hostile, make_ct(number=3))
    any_hospital.ingest()
    lose_database(any_hospital)

    (rebuilt,) = rescanned(any_hospital)

    fits = any_hospital.engine.dialect.name == "sqlite"
    assert (rebuilt.objects, len(rebuilt.unfit)) == ((3, 0) if fits else (2, 1))
    assert all("don't fit into the catalogue" in each.because for each in rebuilt.unfit)


def test_half_a_file_and_the_result_of_a_known_job_are_left_to_the_sweep(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*chest(make_ct))
    hospital.ingest_and_decide()
    (job,) = hospital.jobs()
    named = archived(hospital)[0]
    named.with_name(".1.01234567.part").write_text("half")
    result = named.parent.with_name(series_uid(job.uuid, "SEG")) / "1.2.3.01234567.dcm"
    result.parent.mkdir()
    result.write_text("a result")
    assert rescanned(stopped(hospital)) == []


def test_a_name_that_is_no_text_harms_neither_rescan_nor_sweep(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*chest(make_ct))
    hospital.ingest()
    lose_database(hospital)
    first = archived(hospital)[0]
    strange = Path(os.fsdecode(os.fsencode(first.parent) + b"/copy\xe9.dcm"))
    shutil.copy(first, strange)
    (folder,) = (hospital.config.data / "archive").glob("??")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe9")).mkdir()
    (rebuilt,) = rescanned(hospital)
    (unfit,) = rebuilt.unfit
    assert (rebuilt.objects, unfit.path.name) == (8, "copy\\udce9.dcm")
    assert "not UTF-8" in unfit.because
    hospital.clock = Instant(present() + DAY + seconds(60))
    hospital.ingest()
    archived(hospital)[0].with_name(".1.01234567.part").write_text("half")
    assert leavings.sweep(hospital.engine, hospital.folders, hospital.clock) == 1
    assert strange.exists()


def test_a_series_that_leads_elsewhere_is_named(
    hospital: Hospital, make_ct: MakeCT, tmp_path: Path
) -> None:
    hospital.send(make_ct(number=1), make_ct(number=2, series="1.2.3.2"))
    hospital.ingest()
    lose_database(hospital)
    moved = archived(hospital)[0].parent
    moved.symlink_to(moved.rename(tmp_path / "moved"), target_is_directory=True)
    (rebuilt,) = rescanned(hospital)
    assert (rebuilt.objects, [each.path.name for each in rebuilt.unfit]) == (1, [moved.name])


def test_results_that_a_backup_does_not_know_to_be_withdrawn_are_told_of(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*chest(make_ct))
    hospital.ingest_and_decide()
    (job,) = hospital.jobs()
    series_folder = archived(hospital)[0].parent.with_name(series_uid(job.uuid, "REJECTION"))
    series_folder.mkdir()
    for digest in ("01234567", "01234568"):
        (series_folder / f"{rejection_uid(job.uuid)}.{digest}.dcm").write_text("a note")
    (left,) = rescanned(stopped(hospital))
    assert (left.objects, left.unfit) == (0, ())
    assert left.left_out.count("is left out") == 1
    assert left.left_out.endswith(f"dicomai withdraw {job.id} --reason TEXT")


STEPS = ("read", "settled", "committed")


@pytest.mark.parametrize(("step", "nth"), [(step, nth) for step in STEPS for nth in (1, 2)])
def test_killed_after_any_step_a_rescan_is_done_again(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    hospital.send(*(make_ct(number=number) for number in range(1, 6)))
    hospital.ingest_and_decide()
    before = versions(hospital)
    lose_database(hospital)
    monkeypatch.setattr(rescan_module, "BATCH", 2)
    seen: list[str] = []

    def kill(name: str) -> None:
        seen.append(name)
        if seen.count(step) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    code = hospital.in_a_child(lambda: rescanned(hospital, after_step=kill))

    assert code == -signal.SIGKILL
    assert decided(hospital) == {}  # whatever is there counts as decided on
    rescanned(stopped(hospital))
    assert versions(hospital) == before
    assert decided(hospital) == {}
    told = hospital.story("objects rebuilt")
    assert sum(int(each.split(" ")[0]) for each in told) == 5
    assert hospital.study().decision.count("Rebuilt") == 1


@pytest.mark.parametrize(
    ("attributes", "because"),
    [({"PatientID": "P2"}, "P1, P2"), ({"PatientBirthDate": "19600201"}, "2 birth dates")],
)
def test_two_patients_under_one_study_hold_it(
    any_hospital: Hospital, make_ct: MakeCT, attributes: dict[str, str], because: str
) -> None:
    any_hospital.send(make_ct(number=1), make_ct(series="1.2.3.2", **attributes))
    any_hospital.ingest()
    lose_database(any_hospital)
    (rebuilt,) = rescanned(any_hospital)
    assert (rebuilt.objects, rebuilt.held) == (2, True)
    study = any_hospital.study()
    assert study.status == "held"
    assert because in str(study.hold_reason)


def test_one_object_under_two_studies_holds_both(hospital: Hospital, make_ct: MakeCT) -> None:
    for study in ("1.2.3", "1.2.4"):
        hospital.send(make_ct(study=study, series=f"{study}.1", SOPInstanceUID="1.2.9"))
    hospital.ingest()
    lose_database(hospital)
    rescanned(hospital)
    assert [hospital.study(uid).status for uid in ("1.2.3", "1.2.4")] == ["held", "held"]


def test_objects_count_as_sent_by_the_node_that_is_named(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    lose_database(hospital)
    rescanned(hospital, node="ARCHIVE")
    assert hospital.study().patient_key == "P1@HOSPITAL"
    assert [row.node for row in hospital.rows()] == ["ARCHIVE"]


def test_our_own_earlier_results_become_rows_and_are_no_input(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    equipment = Dataset()
    equipment.Manufacturer = equipment.ManufacturerModelName = "dicomai"
    ours = make_ct(series="1.2.3.2", SliceThickness=0.5, ContributingEquipmentSequence=[equipment])
    hospital.send(*chest(make_ct), ours)
    hospital.ingest()
    lose_database(hospital)
    rescanned(hospital, decide=True)
    assert decided(hospital) == {"1.2.3": "decided"}
    assert len(hospital.rows()) == 9
    (job,) = hospital.jobs()
    with reading(hospital.engine) as connection:
        inputs = instances.inputs_of(connection, job.id)
    assert {row.series_instance_uid for _, row in inputs} == {"1.2.3.1"}


def test_no_peer_gets_results_of_which_nobody_knows_whether_they_were_withdrawn(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    equipment = Dataset()
    equipment.Manufacturer = equipment.ManufacturerModelName = "dicomai"
    hospital.send(make_ct(), make_ct(series="1.2.3.2", ContributingEquipmentSequence=[equipment]))
    hospital.send(make_ct(study="1.2.4", series="1.2.4.1"))
    hospital.ingest()
    lose_database(hospital)
    rescanned(hospital)
    with reading(hospital.engine) as connection:
        keys = [
            Key(keyword="StudyInstanceUID", vr="UI", kind="values", values=("1.2.3",)),
        ]
        (study,) = search.page(connection, "study", keys, ["NumberOfStudyRelatedSeries"]).found
        (of_images,) = search.page(connection, "series", keys, []).found
        for number, found in ((1, 1), (2, 0)):
            which = Key(
                keyword="SeriesInstanceUID", vr="UI", kind="values", values=(f"1.2.3.{number}",)
            )
            page = search.page(connection, "image", [*keys, which], [])
            assert len(page.found) == found
        (patient,) = search.page(connection, "patient", [], []).found
        (given,) = search.objects(connection, studies=["1.2.3"])
    assert study["NumberOfStudyRelatedSeries"] == study["NumberOfStudyRelatedInstances"] == 1
    assert of_images["SeriesInstanceUID"] == "1.2.3.1"
    assert given.series_instance_uid == "1.2.3.1"
    assert patient["NumberOfPatientRelatedInstances"] == 2
    assert [row.origin for row in hospital.rows()] == ["received", "produced"]


def test_a_study_that_does_not_lie_there_is_code_4(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    with pytest.raises(NotFound, match=r"No study 1\.2\.4 lies in"):
        rescanned(hospital, "1.2.4")
