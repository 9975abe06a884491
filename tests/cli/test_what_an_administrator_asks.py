"""Status, jobs and the story of a study, over a catalogue in which things went right and wrong."""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import pytest
from alembic import command as migrations
from alembic.config import Config
from catalogue_rows import NOW, add, arrive, claimed, finish, instance, sha256, wanted
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from dicomai.dicom.dates import Instant, as_datetime, now, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.errors import ErrorKind
from dicomai.spool import host
from dicomai.spool.entries import opened
from dicomai.store import (
    archive,
    claims,
    decisions,
    hosts,
    instances,
    jobs,
    nodes,
    schema,
    series,
    studies,
)
from dicomai.store.engine import open_engine, reading, writing
from dicomai.store.hosts import Worker
from dicomai.store.job import JobId
from dicomai.store.migrate import current, newest, upgrade
from dicomai.store.series import SeriesIdentity
from tests.cli.conftest import Dicomai

UID = "1.2.3"


def analysed(service: Engine) -> None:
    """A study of two images whose analysis is done and whose results wait to be sent."""
    (first, _) = arrive(service, UID, count=2)
    add(service, wanted(UID, inputs=(first.instance_id,)))
    result = instance(UID, f"{UID}.9", file="result", origin="produced", series=f"{UID}.99")
    assert finish(service, claimed(service).held, (result,)) == "done"


def failed(service: Engine, sentence: str = "Series 1.2.3.1 has no slice at 42.5 mm.") -> int:
    arrive(service, UID)
    number = add(service, wanted(UID)).job_id
    with writing(service) as connection:
        held = claims.claim(connection, "w1", ("analyse",), ("lungs",), NOW)
        assert held is not None
        jobs.fail(connection, held.held, "input", sentence, "load", "1.2.3.1", NOW)
    return int(number)


def test_a_new_service_says_that_nothing_came(service: Engine, dicomai: Dicomai) -> None:
    assert "No study was received yet." in dicomai("status").out
    assert dicomai("jobs").out == "There is no job.\n"
    assert dicomai("status", "--json").json["studies"] == []


def working(*models: str, beat_at: Instant) -> Worker:
    return Worker(
        name="here:1:cpu",
        host="here",
        device="cpu",
        kinds=("analyse",),
        models=models,
        started_at=Instant(0),
        beat_at=beat_at,
    )


@pytest.mark.parametrize(("silent_s", "says"), [(12, "00."), (40, "; not heard of for 4")])
def test_a_worker_that_fell_silent_is_marked(
    service: Engine, dicomai: Dicomai, silent_s: float, says: str
) -> None:
    worker = working("lungs", beat_at=Instant(now() - seconds(silent_s)))
    with writing(service) as connection:
        hosts.note_worker(connection, worker)
    (line,) = [each for each in dicomai("status").out.splitlines() if "Worker here" in each]
    assert says in line
    assert ("does it run?" in line) == (silent_s > 25)


def test_a_job_whose_model_is_gone_and_no_route_wants_any_more_is_told(
    service: Engine, dicomai: Dicomai
) -> None:
    worker = working("chest-ct-lungs", "chest-ct-nodules", "chest-xray-nodule", beat_at=now())
    with writing(service) as connection:
        hosts.note_worker(connection, worker)
    assert "No worker is there" not in dicomai("status").out
    arrive(service, UID)
    add(service, wanted(UID))
    told = "No worker is there for lungs: jobs wait. Those that run had no such package"
    assert told in dicomai("status").out
    assert told in dicomai("doctor").out


def test_a_configuration_that_was_changed_under_the_service_is_told(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    worker = Worker(
        name="here:1:cpu",
        host=socket.gethostname(),
        device="cpu",
        kinds=("analyse",),
        models=("lungs",),
        started_at=now(),
        beat_at=now(),
    )
    with writing(service) as connection:
        hosts.note_worker(connection, worker)
    file = tmp_path / "dicomai.toml"
    sentence = f"{file.name} was changed after the service started here"
    os.utime(file, (1, 1))
    assert sentence not in dicomai("status").out
    os.utime(file, (now() / 1e6 + 1, now() / 1e6 + 1))
    assert sentence in dicomai("status").out
    assert sentence in dicomai("doctor").out


def test_a_node_that_was_not_reached_does_not_answer(service: Engine, dicomai: Dicomai) -> None:
    def fail() -> None:
        with writing(service) as connection:
            nodes.failed(connection, "PACS1", "PACS1 can't be reached.", NOW)

    fail()
    shown = dicomai("status").out
    assert re.search(r"PACS1 +failing +PACS1 can't be reached\.", shown)
    assert "PACS1 is away" not in shown
    fail()
    fail()
    shown = dicomai("status").out
    assert re.search(r"PACS1 +away +PACS1 can't be reached\.", shown)
    assert "PACS1 is away, and its deliveries are tried again at" in shown
    assert "dicomai echo PACS1" in shown
    with writing(service) as connection:
        nodes.delivered(connection, "PACS1", NOW)
    assert re.search(r"PACS1 +answers .*\d *$", dicomai("status").out, re.MULTILINE)


def test_an_object_in_the_quarantine_is_named_with_the_page_on_it(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    (tmp_path / "quarantine" / "000001.dcm").write_bytes(b"")
    (remark,) = [each for each in dicomai("status").out.splitlines() if "1 object lies" in each]
    page = re.search(r"(docs/\S+\.md), (.+)$", remark)
    assert page is not None
    text = (Path(__file__).parents[2] / page[1]).read_text(encoding="utf-8")
    assert f"\n## {page[2].rstrip()}\n" in text


def test_the_configuration_may_be_named_before_the_command_or_after(
    service: Engine, dicomai: Dicomai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    file = tmp_path / "dicomai.toml"
    assert dicomai("status").code == 3
    assert dicomai("--config", file, "status").code == 0
    assert dicomai("-c", file, "config", "check").code == 0
    assert dicomai("-c", tmp_path / "no.toml", "status", "--config", file).code == 0


def test_status_shows_studies_jobs_and_what_wants_a_person(
    service: Engine, dicomai: Dicomai
) -> None:
    analysed(service)
    answer = dicomai("status")
    assert answer.code == 0
    assert UID in answer.out
    assert "No worker is there for chest-ct-lungs" in answer.out
    seen = dicomai("status", "--json").json
    assert {"kind": "deliver", "state": "queued", "number": 1} in seen["jobs"]
    assert seen["studies"][0]["study"] == UID


def test_failed_and_held_jobs_are_named_with_what_comes_next(
    service: Engine, dicomai: Dicomai
) -> None:
    for number in range(8):
        arrive(service, f"1.2.{number}")
        add(service, wanted(f"1.2.{number}", f"f{number}"))
        kind: ErrorKind = "config" if number == 7 else "input"
        with writing(service) as connection:
            job = claims.claim(connection, "w1", ("analyse",), ("lungs",), NOW)
            assert job is not None
            jobs.fail(connection, job.held, kind, "No.", "load", "", NOW)
    shown = dicomai("status").out
    assert "Failed: jobs 7, 6, 5, 4, 3 and 2 more. Why: dicomai job 7." in shown
    assert "Held for the configuration: job 8. Why: dicomai job 8." in shown
    add(service, wanted("1.2.6", "of late images"))
    assert "Failed: jobs 6, 5, 4, 3, 2 and 1 more." in dicomai("status").out


def test_a_full_disk_and_pauses_are_said_plainly(
    service: Engine, dicomai: Dicomai, monkeypatch: pytest.MonkeyPatch
) -> None:
    dicomai("drain", "model", "chest-ct-nodules")
    dicomai("pause", "node", "PACS1")
    monkeypatch.setenv("DICOMAI_RECEIVER__RESERVE_BYTES", str(10**18))
    remarks = dicomai("status", "--json").json["remarks"]
    assert any("Studies are refused, and analyses wait. Make room" in each for each in remarks)
    assert (
        "Node PACS1 is paused: its jobs wait. To let it go on: dicomai resume node PACS1" in remarks
    )
    assert any(each.startswith("Model chest-ct-nodules is drained") for each in remarks)
    looks = [each for each in dicomai("doctor", "--json").json if each["of"] == "service"]
    # What is free on the disk may change between the two.
    found = {re.sub(r"\d+", "N", each["found"]) for each in looks}
    assert found == {re.sub(r"\d+", "N", each) for each in remarks}
    assert {each["verdict"] for each in looks} == {"warn"}


def test_a_spool_that_no_scheduler_takes_in_is_told(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    def told() -> list[str]:
        remarks = dicomai("status", "--json").json["remarks"]
        return [each for each in remarks if "no scheduler" in each]

    facts = {"calling_ae": "CT1", "called_ae": "DICOMAI", "address": "192.0.2.1", "node": "CT1"}
    writer = opened(tmp_path / "spool", started_at=now(), **facts)
    came = writer.add(StudyInstanceUID(UID), (b"an object",))
    assert not told()  # a moment ago
    long_ago = Instant(came.received_at - seconds(600))
    came.path.rename(came.path.with_name(f"000001-{long_ago}.dcm"))
    (remark,) = told()
    assert remark.endswith("Start it: dicomai serve, or dicomai schedule")
    with writing(service) as connection:
        hosts.note_ingested(connection, host.name_of(tmp_path / "spool"), now(), now())
    assert not told()


def test_the_room_on_a_disk_of_the_archive_s_own_is_told(
    service: Engine, dicomai: Dicomai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "archive").rmdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (tmp_path / "archive").symlink_to(other)
        free = dicomai("status", "--json").json["archive_free_bytes"]
        assert f"free in {tmp_path / 'archive'}." in dicomai("status").out
        reserve = 2 * free + 10**9  # the half of it is not there
        monkeypatch.setenv("DICOMAI_RECEIVER__RESERVE_BYTES", str(reserve))
        remarks = dicomai("status", "--json").json["remarks"]
        assert any("/archive is full" in each and "Analyses wait." in each for each in remarks)
        disks = [each for each in dicomai("doctor", "--json").json if each["of"] == "disk"]
    assert disks[1]["verdict"] == "bad"
    assert disks[1]["remedy"].startswith("Make room: analyses wait")


def test_an_archive_that_is_away_or_another_host_s_is_told(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    arrive(service, UID)
    remarks = dicomai("status", "--json").json["remarks"]
    assert any("Is its disk mounted?" in each for each in remarks)
    (tmp_path / "archive").rmdir()
    (tmp_path / "archive").symlink_to("x" * 300)  # to look at it is an error, as at a stale share
    remarks = dicomai("status", "--json").json["remarks"]
    assert any("Is its disk mounted?" in each for each in remarks)
    (tmp_path / "archive").unlink()
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "00").mkdir()
    with writing(service) as connection:
        for name in ("here-1", "there-2"):
            hosts.note_ingested(connection, name, now(), now())
        hosts.note_ingested(connection, "gone-3", Instant(1), Instant(1))
    archive.note_host(tmp_path, "here-1")
    others = [
        each for each in dicomai("status", "--json").json["remarks"] if "another archive" in each
    ]
    assert len(others) == 1
    assert others[0].startswith("Host there-2 has another archive than this one")


def test_the_story_of_a_study_names_series_jobs_and_events(
    service: Engine, dicomai: Dicomai
) -> None:
    analysed(service)
    told = dicomai("study", UID, "--json").json
    assert [each["produced"] for each in told["series"]] == [False, True]
    assert told["series"][0]["nodes"] == ["CT1"]
    assert [(each["kind"], each["state"]) for each in told["jobs"]] == [
        ("analyse", "done"),
        ("deliver", "queued"),
    ]
    assert told["jobs"][0]["results"][0]["sop_instance_uid"] == f"{UID}.9"
    assert [each["kind"] for each in told["events"]][:2] == ["job queued", "job done"]
    shown = dicomai("study", UID).out
    for words in ("12345@HOSPITAL", "CT1", "lungs", "results of 1 to PACS1", "was queued by route"):
        assert words in shown


def test_both_versions_of_an_object_that_came_changed_are_shown(
    service: Engine, dicomai: Dicomai
) -> None:
    arrive(service, UID, count=2)
    assert dicomai("study", UID, "--json").json["versions"] == []
    with writing(service) as connection:
        changed = instance(UID, f"{UID}.1.1", pixels="others", file="changed")
        assert instances.add(connection, changed, NOW).outcome == "version"

    shown = dicomai("study", UID).out
    assert re.search(rf"1\.2\.3\.1\.1 .* CT1 .* {changed.file_sha256[:8]} +used", shown)
    old = sha256(f"{UID}/1")[:8]
    assert re.search(rf"1\.2\.3\.1\.1 .* CT1 .* {old} +kept until retention", shown)
    told = dicomai("study", UID, "--json").json["versions"]
    assert [(each["sop_instance_uid"], each["used"]) for each in told] == [
        (f"{UID}.1.1", True),
        (f"{UID}.1.1", False),
    ]
    assert told[0]["file"] == str(changed.path)


def test_an_accession_number_names_a_study_and_two_are_listed(
    service: Engine, dicomai: Dicomai
) -> None:
    arrive(service, UID)
    assert dicomai("study", "A1", "--json").json["study"] == UID
    arrive(service, "1.2.4")
    answer = dicomai("study", "A1")
    assert "2 studies go by A1" in answer.out
    assert "1.2.4" in answer.out


def test_a_study_goes_by_what_a_table_shows_of_it_and_by_what_was_pasted_with_spaces(
    service: Engine, dicomai: Dicomai
) -> None:
    uid = "2.25.233293861462331247484206354323263405059"
    arrive(service, uid)
    for name in (f" {uid} ", "…323263405059", "A1 "):
        assert dicomai("study", name, "--json").json["study"] == uid
    arrive(service, "1.323263405059")
    assert "2 studies go by …323263405059" in dicomai("study", "…323263405059").out
    assert dicomai("study", "…%5059").code == 4
    assert dicomai("study", "…").code == 4


@pytest.mark.parametrize(
    "command",
    [("study", "9.9.9"), ("job", "77"), ("retry", "77"), ("cancel", "77"), ("echo", "NOBODY")],
)
def test_what_does_not_exist_is_code_4_and_a_sentence(
    command: tuple[str, ...], service: Engine, dicomai: Dicomai
) -> None:
    answer = dicomai(*command)
    assert answer.code == 4
    assert answer.err.startswith("dicomai: ")
    assert command[1] in answer.err


def test_a_failed_job_says_why_and_is_tried_again(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    number = failed(service)
    shown = dicomai("job", str(number))
    assert "no slice at 42.5 mm" in shown.out
    assert "input, at load" in shown.out
    assert dicomai("jobs", "--state", "failed", "--json").json[0]["error_kind"] == "input"
    assert dicomai("retry", str(number)).out == f"Job {number} is queued.\n"
    assert dicomai("job", str(number), "--json").json["state"] == "queued"
    line = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1])
    assert (line["action"], line["subject"]) == ("retry", str(number))
    assert line["user"]


def test_a_job_that_needs_no_retry_says_so(service: Engine, dicomai: Dicomai) -> None:
    arrive(service, UID)
    number = add(service, wanted(UID)).job_id
    queued = dicomai("retry", str(number))
    assert queued.code == 1
    assert "is queued already, and starts when a worker is free" in queued.err
    claimed(service)
    assert f"runs already. To stop it: dicomai cancel {number}" in dicomai("retry", str(number)).err
    assert dicomai("cancel", str(number)).code == 0
    assert f"dicomai retry {number} --again" in dicomai("retry", str(number)).err


def test_a_held_study_without_a_key_is_not_told_to_accept_one(
    service: Engine, dicomai: Dicomai
) -> None:
    arrive(service, UID)
    with writing(service) as connection:
        decisions.hold(connection, StudyInstanceUID(UID), "Several Patient IDs in one object.", NOW)
    shown = dicomai("study", UID).out
    assert "Several Patient IDs" in shown
    assert "--accept" not in shown


def test_a_done_job_is_run_again_as_a_new_generation(service: Engine, dicomai: Dicomai) -> None:
    analysed(service)
    refused = dicomai("retry", "1")
    assert refused.code == 1
    assert "--again" in refused.err
    assert dicomai("retry", "1", "--again").code == 0
    newest = dicomai("jobs", "--json").json[0]
    assert (newest["state"], newest["supersedes"], newest["model"]) == ("queued", 1, "lungs")


def test_a_job_whose_package_was_replaced_runs_again_with_the_new_one(
    service: Engine, dicomai: Dicomai
) -> None:
    (image,) = arrive(service, UID)
    add(service, wanted(UID, model="chest-ct-lungs", inputs=(image.instance_id,)))
    with writing(service) as connection:
        held = claims.claim(connection, "w1", ("analyse",), ("chest-ct-lungs",), NOW)
        assert held is not None
        jobs.fail(connection, held.held, "config", "Another package.", "load", "", NOW)
    assert dicomai("retry", "1", "--again").code == 0
    with reading(service) as connection:
        new, old = jobs.get(connection, JobId(2)), jobs.get(connection, JobId(1))
    assert new is not None
    assert old is not None
    assert (old.state, new.state) == ("cancelled", "queued")
    assert old.package_sha256 != new.package_sha256
    assert dicomai("models", "show", "chest-ct-lungs", "--json").json["sha256"] == (
        new.package_sha256
    )


def test_a_job_is_cancelled_once(service: Engine, dicomai: Dicomai) -> None:
    arrive(service, UID)
    add(service, wanted(UID))
    assert dicomai("cancel", "1").out == "Job 1 (lungs) is cancelled.\n"
    again = dicomai("cancel", "1")
    assert again.code == 1
    assert "cancelled already" in again.err


def test_of_several_jobs_what_cannot_be_done_is_said_and_harms_no_other(
    service: Engine, dicomai: Dicomai
) -> None:
    for study in (UID, "1.2.3.7"):
        (image,) = arrive(service, study)
        add(service, wanted(study, f"of {study}", inputs=(image.instance_id,)))
    several = dicomai("cancel", "1", "99", "2", "1")
    assert several.out == "Job 1 (lungs) is cancelled.\nJob 2 (lungs) is cancelled.\n"
    assert several.err == "dicomai: There is no job 99. See: dicomai jobs\n"
    assert several.code == 4
    again = dicomai("retry", "2", "1", "--again")
    assert (again.out, again.code) == ("Job 3 is queued.\nJob 4 is queued.\n", 0)
    retried = dicomai("retry", "3", "4")
    assert retried.err.count("is queued already") == 2
    assert retried.code == 1


def test_a_withdrawal_without_a_reason_is_a_usage_error(service: Engine, dicomai: Dicomai) -> None:
    analysed(service)
    answer = dicomai("withdraw", 1, "--reason", " ")
    assert answer.code == 2
    assert "it is empty" in answer.err
    assert dicomai("job", 1, "--json").json["summary"] == {"found": 1}


def test_nothing_is_fetched_from_a_node_that_cannot_be_called(
    service: Engine, dicomai: Dicomai
) -> None:
    answer = dicomai("retrieve", "HERE", "--study", "1.2.3")
    assert answer.code == 3
    assert "Node HERE has no host and port, so it can't be called" in answer.err
    assert dicomai("jobs", "--json").json == []


def test_an_unknown_state_is_a_usage_error(service: Engine, dicomai: Dicomai) -> None:
    answer = dicomai("jobs", "--state", "lost")
    assert answer.code == 2
    assert "waiting, queued" in answer.err


def test_pause_drain_and_resume(service: Engine, dicomai: Dicomai) -> None:
    assert dicomai("pause", "node", "PACS1").code == 0
    assert dicomai("drain", "route", "lungs").code == 0
    resting = dicomai("status", "--json").json["pauses"]
    assert [(each["subject"], each["mode"]) for each in resting] == [
        ("node", "paused"),
        ("route", "draining"),
    ]
    assert "drained" in dicomai("status").out
    assert dicomai("resume", "node", "PACS1").code == 0
    assert dicomai("resume", "node", "PACS1").code == 4
    nobody = dicomai("pause", "node", "PACS2")
    assert nobody.code == 4
    assert "There are: HERE, PACS1." in nobody.err


def test_a_queued_job_says_which_pause_it_waits_for(service: Engine, dicomai: Dicomai) -> None:
    analysed(service)  # a delivery to PACS1 is queued
    arrive(service, "1.2.4")
    number = add(service, wanted("1.2.4", "f2", model="chest-ct-lungs")).job_id
    assert "Waits" not in dicomai("jobs").out
    for subject, name, waiting in (
        ("node", "PACS1", [2]),
        ("model", "chest-ct-lungs", [number]),
        ("route", "lungs", [number, 2]),
    ):
        dicomai("drain", subject, name)
        sentence = f"{subject} {name} is drained. To let it go on: dicomai resume {subject} {name}"
        found = dicomai("jobs", "--json").json
        assert [each["id"] for each in found if each["paused"]] == waiting
        shown = (("jobs",), ("job", str(waiting[-1])), ("study", UID if 2 in waiting else "1.2.4"))
        for command in shown:
            assert sentence in dicomai(*command).out
        dicomai("resume", subject, name)


def test_a_held_study_is_released_for_one_of_its_patients(
    service: Engine, dicomai: Dicomai
) -> None:
    arrive(service, UID)
    uid = StudyInstanceUID(UID)
    with writing(service) as connection:
        for key in ("12345@HOSPITAL", "777"):
            series.note_identity(
                connection,
                uid,
                SeriesIdentity(
                    series_instance_uid=SeriesInstanceUID(f"{UID}.1"),
                    key=IdentityKey(key),
                    patient_name="",
                    birth_date="",
                    sex="",
                ),
            )
        decisions.hold(connection, uid, "Two patients under one Study Instance UID.", NOW)
    assert "Two patients" in dicomai("status").out
    assert "777" in dicomai("study", UID).out
    wrong = dicomai("study", UID, "--accept", "999")
    assert wrong.code == 4
    assert "777" in wrong.err
    assert dicomai("study", UID, "--accept", "777").code == 0
    with reading(service) as connection:
        released = studies.get(connection, uid)
    assert released is not None
    assert (released.status, released.patient_key) == ("open", "777")


def test_studies_are_listed(service: Engine, dicomai: Dicomai) -> None:
    assert dicomai("studies").out == "No study was received yet.\n"
    arrive(service, UID)
    assert UID in dicomai("studies", "--state", "arriving", "--without-results").out
    assert dicomai("studies", "--state", "held").out == "There is no such study.\n"
    shown = f"{as_datetime(NOW).astimezone():%Y-%m-%d %H:%M}"
    (listed,) = dicomai("studies", "--since", shown, "--json").json
    assert (listed["study"], listed["status"]) == (UID, "open")
    assert dicomai("studies", "--since", "2999-01-31", "--json").json == []
    for wrong in (("--state", "open"), ("--since", "31.1.2026")):
        answer = dicomai("studies", *wrong)
        assert answer.code == 2
        assert "arriving, decided" in answer.err or "Write it as 2026-01-31" in answer.err


def test_routes_are_had_look_at_a_study_again(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    arrive(service, UID)
    with writing(service) as connection:
        decisions.set_decided(connection, StudyInstanceUID(UID), "There is no route.", NOW)
    answer = dicomai("study", UID, "--decide")
    assert answer.code == 0
    assert answer.out.endswith(f"What they make of it: dicomai study {UID}\n")
    told = dicomai("study", UID, "--json").json
    assert told["status"] == "open"
    assert told["decision"] == "A person had the routes look at this study again."
    (line,) = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (line["action"], line["subject"]) == ("study --decide", UID)
    assert dicomai("study", "1.2.99", "--decide").code == 4
    both = dicomai("study", UID, "--decide", "--accept", "777")
    assert both.code == 2
    assert "one after the other" in both.err


def test_what_a_peer_sent_moves_no_cursor_and_is_no_markup(
    service: Engine, dicomai: Dicomai
) -> None:
    failed(service, "bad \x1b[2J value [bold]x[/bold]")
    shown = dicomai("jobs").out
    assert "\x1b" not in shown
    assert "\\x1b[2J value [bold]x[/bold]" in shown


def test_a_pipe_gets_whole_lines_without_colour(service: Engine, dicomai: Dicomai) -> None:
    failed(service, "word " * 60 + "end")
    (line,) = [each for each in dicomai("jobs").out.splitlines() if "word" in each]
    assert line.rstrip().endswith("end")


def test_a_database_of_another_version_is_code_3_and_names_the_command(
    service: Engine, dicomai: Dicomai
) -> None:
    with writing(service) as connection:
        connection.exec_driver_sql("DELETE FROM alembic_version")
    answer = dicomai("status")
    assert answer.code == 3
    assert "dicomai db upgrade" in answer.err


@pytest.mark.parametrize("upgrade", [("db", "upgrade"), ("init", ".")])
def test_no_upgrade_takes_the_tables_from_under_a_service(
    service: Engine,
    dicomai: Dicomai,
    monkeypatch: pytest.MonkeyPatch,
    upgrade: tuple[str, ...],
) -> None:
    with as_file(files("dicomai.migrations")) as folder, writing(service) as connection:
        schema.metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        migrations.upgrade(config, "0013")
        hosts.note_ingested(connection, "h", now(), now())

    def beating(_: float) -> None:
        with writing(service) as connection:
            hosts.note_ingested(connection, "h", now(), now())

    monkeypatch.setattr("dicomai.cli.database.time.sleep", beating)
    answer = dicomai(*upgrade)
    assert answer.code == 1
    assert "Host h is at work" in answer.err
    assert current(service) == "0013"
    monkeypatch.setattr("dicomai.cli.database.time.sleep", lambda _: None)  # it was stopped
    assert dicomai(*upgrade).code == 0
    assert current(service) == newest()
    monkeypatch.setattr("dicomai.cli.database.time.sleep", beating)
    assert dicomai(*upgrade).code == 0  # nothing to do


def test_a_database_that_is_away_is_code_5(
    service: Engine, dicomai: Dicomai, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMAI_DATABASE__URL", "postgresql://nobody:secret@127.0.0.1:1/none")
    answer = dicomai("status")
    assert answer.code == 5
    assert "secret" not in answer.err


def test_a_database_that_takes_nothing_new_is_said_to(
    service: Engine,
    dicomai: Dicomai,
    postgresql_cluster: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = make_url(postgresql_cluster)
    engine = open_engine(postgresql_cluster)
    upgrade(engine)
    engine.dispose()
    standby = url.update_query_dict({"options": "-c default_transaction_read_only=on"})
    (tmp_path / "archive" / "ab" / "1.2.3").mkdir(parents=True)  # placed, and it gets no row now
    monkeypatch.setenv("DICOMAI_DATABASE__URL", standby.render_as_string(hide_password=False))
    said, *others = dicomai("status", "--json").json["remarks"]
    assert "can only be read" in said
    assert not any("rescan" in each for each in others)
    found = {each["of"]: each for each in dicomai("doctor", "--json").json}
    assert found["database"] == {**found["database"], "verdict": "bad", "found": said}
    assert "archive" not in found


def test_no_password_of_a_database_is_shown(
    service: Engine, dicomai: Dicomai, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "127.0.0.1:1/none?password=secret&sslpassword=secret&sslmode=require"
    monkeypatch.setenv("DICOMAI_DATABASE__URL", f"postgresql://nobody:secret@{where}")
    answer = dicomai("config", "check")
    assert answer.code == 0
    assert "sslmode=require" in answer.out
    assert "secret" not in answer.out
    assert "secret" not in dicomai("doctor").out


@pytest.mark.parametrize("url", ["postgresql://u:secret@h:port/none", "postgresql://u@h:54 32/n"])
def test_a_url_of_a_database_that_can_t_be_read_is_a_mistake_of_the_configuration(
    service: Engine, dicomai: Dicomai, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("DICOMAI_DATABASE__URL", url)
    for command in (("status",), ("config", "check")):
        answer = dicomai(*command)
        assert answer.code == 3
        assert "database.url is no URL of a database" in answer.err
        assert "secret" not in answer.err
    (problem,) = json.loads(dicomai("config", "check", "--json").out)
    assert problem["key"] == "database.url"
