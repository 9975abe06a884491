"""A job is claimed, analysed, encoded, checked and committed, or its row says why not."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import bodies
import highdicom
import numpy as np
import pytest
from bodies import truth, write_package
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import Connection, event
from ward import Ward, open_ward

from dicomai.dicom.dates import now
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DiskFull
from dicomai.inference.runner_process import RunnerProcess
from dicomai.service import supervise
from dicomai.service.supervise import STAGES, Supervisor
from dicomai.store import decisions, instances, jobs, studies
from dicomai.store.engine import writing
from dicomai.store.instances import InstanceRow
from dicomai.store.job import Job

SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = open_ward(tmp_path)
    yield opened
    opened.engine.dispose()


def supervisor(ward: Ward, runner: RunnerProcess, **options: object) -> Supervisor:
    worker = ward.worker(**options)
    return Supervisor(settings=ward.settings, runner=runner, worker=worker)


def test_a_job_ends_with_seg_and_sr_in_the_archive_and_every_stage_timed(
    ward: Ward, runner: RunnerProcess
) -> None:
    job = ward.queue(ward.study("P1"))
    stages: list[str] = []
    one = supervisor(ward, runner, observe=lambda stage, _: stages.append(stage))
    assert one.work_once()
    assert not one.work_once()
    done = ward.job(job)
    assert (done.state, done.error_sentence) == ("done", "")
    assert stages == list(STAGES)
    assert set(done.stages_s) == set(STAGES)
    assert "Body" in str(done.summary["found"]) or "body" in str(done.summary["found"])
    rows = {row.sop_class_uid: row for row in ward.results(job)}
    assert set(rows) == {SEG, SR}
    assert all(row.origin == "produced" for row in rows.values())
    seg = highdicom.seg.segread(ward.file(rows[SEG]))
    assert seg.PatientID == "P1"
    assert np.array_equal(seg.get_volume(combine_segments=True).array > 0, truth()[1:5])
    assert not (ward.settings.folders.archive / ".results" / str(done.uuid)).exists()


def test_the_report_tells_what_was_left_out_of_the_series(
    ward: Ward, runner: RunnerProcess
) -> None:
    study = ward.study("P1")
    job = ward.queue(study)
    with writing(ward.engine) as connection:
        (image, *_) = instances.of_study(connection, StudyInstanceUID(study))
        for uid, kind in (("2.25.7", "DERIVED"), ("2.25.8", "ORIGINAL")):  # one came too late
            values = {each.name: getattr(image, each.name) for each in fields(InstanceRow)}
            values |= {"sop_instance_uid": uid, "path": f"archive/{uid}.dcm"}
            values["attributes"] = {**image.attributes, "ImageType": [kind, "PRIMARY"]}
            instances.add(connection, InstanceRow(**values), now())
    supervisor(ward, runner).work_once()
    assert ward.job(job).state == "done"
    (report,) = (row for row in ward.results(job) if row.sop_class_uid == SR)
    said = dcmread(ward.file(report)).to_json()
    assert re.search(r"Warning: 1 of \d+ objects of series .* left out: derived from other", said)


def test_an_input_that_was_changed_in_the_archive_is_not_analysed(
    ward: Ward, runner: RunnerProcess
) -> None:
    study = ward.study("P1")
    job = ward.queue(study)
    victim = next((ward.settings.folders.archive).rglob("*.dcm"))
    octets = bytearray(victim.read_bytes())
    octets[-1] ^= 1
    victim.unlink()
    victim.write_bytes(octets)
    supervisor(ward, runner).work_once()
    failed = ward.job(job)
    assert (failed.state, failed.error_kind, failed.error_stage) == ("failed", "input", "load")
    assert str(victim.relative_to(ward.settings.folders.data)) in failed.error_sentence
    assert "has other bytes than those that were received" in failed.error_sentence


def test_a_series_of_ids_that_stand_for_none_is_one_patients(
    ward: Ward, runner: RunnerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_of = bodies.ct_slice

    def of_nobody(number: int, *args: Any) -> Dataset:
        image = slice_of(number, *args)
        image.PatientID = ("", "0")[number % 2]
        return image

    monkeypatch.setattr(bodies, "ct_slice", of_nobody)
    job = ward.queue(ward.study("X", key="@Patient^X|19600101|O"))
    assert supervisor(ward, runner).work_once()
    assert (ward.job(job).state, ward.job(job).error_sentence) == ("done", "")


def test_nothing_is_claimed_while_less_than_half_of_the_reserve_is_free(
    ward: Ward, runner: RunnerProcess
) -> None:
    job = ward.queue(ward.study("P1"))
    reserve = ward.settings.receiver.model_copy(update={"reserve_bytes": 10**18})
    full = replace(supervisor(ward, runner), settings=replace(ward.settings, receiver=reserve))
    with pytest.raises(DiskFull, match=r"half of receiver\.reserve_bytes"):
        full.work_once()
    assert full.work_once() is None  # another lane has just looked
    assert ward.job(job).state == "queued"


def test_nothing_is_claimed_while_the_disk_of_the_archive_is_full(
    ward: Ward, runner: RunnerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ward.queue(ward.study("P1"))
    full = ward.settings.folders.archive
    monkeypatch.setattr(supervise, "free_bytes", lambda path: 0 if path == full else 10**18)
    with pytest.raises(DiskFull, match=f"The disk of {full} has less than"):
        supervisor(ward, runner).work_once()
    assert ward.job(job).state == "queued"


def test_no_result_is_written_where_the_archive_is_to_be_mounted(
    ward: Ward, runner: RunnerProcess
) -> None:
    job = ward.queue(ward.study("P1"))
    archive = ward.settings.folders.archive

    def unmount(stage: str, _: Job) -> None:
        if stage == "commit":
            archive.rename(archive.with_name("away"))
            archive.mkdir()

    assert supervisor(ward, runner, observe=unmount).work_once()
    waits = ward.job(job)
    assert (waits.state, waits.error_kind) == ("waiting", "transient")
    assert "Is its disk mounted?" in waits.error_sentence
    assert not list(archive.iterdir())


def test_an_untrusted_model_holds_the_job_until_it_is_trusted(
    ward: Ward, runner: RunnerProcess
) -> None:
    job = ward.queue(ward.study("P1"))
    (ward.settings.folders.models / "trusted.toml").unlink()
    supervisor(ward, runner).work_once()
    held = ward.job(job)
    assert (held.state, held.held_by) == ("held", "config")
    assert "dicomai models trust bodies" in held.error_sentence


@pytest.mark.slow
def test_a_poisonous_job_fails_the_second_time_and_others_are_served(
    ward: Ward, runner: RunnerProcess
) -> None:
    write_package(ward.settings.folders.models, "venom", "poison")
    poisonous = ward.queue(ward.study("P1"), model="venom")
    harmless = ward.queue(ward.study("P2"))
    one = supervisor(ward, runner)
    while one.work_once():
        pass
    failed = ward.job(poisonous)
    assert (failed.state, failed.error_kind, failed.crashes) == ("failed", "crash", 2)
    assert failed.error_stage == "infer"
    assert "killed by signal 11 (SIGSEGV) while it worked on series 2.25." in failed.error_sentence
    assert ward.job(harmless).state == "done"


def test_a_job_that_is_stuck_gets_no_lease_and_is_killed_and_failed_at_its_deadline(
    ward: Ward, runner: RunnerProcess
) -> None:
    write_package(ward.settings.folders.models, "slow", "stuck")
    ward.queue(ward.study("P0"))
    supervisor(ward, runner).work_once()  # the runner is up
    job = ward.queue(ward.study("P1"), model="slow")
    # A beat is due each 0.1 s while there is progress: 40 of them until the deadline.
    supervisor(ward, runner, deadline_s=4.0, lease_s=0.4).work_once()
    failed = ward.job(job)
    assert (failed.state, failed.error_kind, failed.error_stage) == ("failed", "deadline", "infer")
    assert "longer than 4 s" in failed.error_sentence
    assert runner.pid is None
    with writing(ward.engine) as connection:
        (beats,) = connection.exec_driver_sql(f"SELECT beat FROM jobs WHERE id = {job}").one()
    assert beats < 20


def stop_at(stage: str, stop: threading.Event) -> Callable[[str, Job], None]:
    def observe(name: str, _: Job) -> None:
        if name == stage:
            stop.set()

    return observe


@pytest.mark.parametrize("stage", ["load", "infer", "encode"])
def test_a_worker_that_is_to_stop_gives_its_job_back_and_the_attempt_does_not_count(
    ward: Ward, runner: RunnerProcess, stage: str
) -> None:
    job = ward.queue(ward.study("P1"))
    stop = threading.Event()
    supervisor(ward, runner, stop=stop, observe=stop_at(stage, stop)).work_once()
    back = ward.job(job)
    assert (back.state, back.attempts) == ("queued", 0)
    assert not ward.results(job)
    supervisor(ward, runner).work_once()
    assert ward.job(job).state == "done"


def test_a_cancelled_job_writes_nothing_and_its_runner_is_stopped(
    ward: Ward, runner: RunnerProcess
) -> None:
    write_package(ward.settings.folders.models, "slow", "stuck")
    job = ward.queue(ward.study("P1"), model="slow")

    def cancel(stage: str, _: Job) -> None:
        if stage == "infer":
            with writing(ward.engine) as connection:
                jobs.cancel(connection, job, "A person cancelled it.", now())

    supervisor(ward, runner, observe=cancel, lease_s=1.0).work_once()
    assert ward.job(job).state == "cancelled"
    assert not ward.results(job)


def hold(connection: Connection, study: StudyInstanceUID) -> None:
    decisions.hold(connection, study, "Two patients.", now())


def change_patient(connection: Connection, study: StudyInstanceUID) -> None:
    studies.set_patient_key(connection, study, IdentityKey("P2"))


@pytest.mark.parametrize(("change", "held_by"), [(hold, "study"), (change_patient, "identity")])
def test_a_study_that_is_held_or_another_patients_meanwhile_gets_no_results(
    ward: Ward,
    runner: RunnerProcess,
    change: Callable[[Connection, StudyInstanceUID], None],
    held_by: str,
) -> None:
    job = ward.queue(ward.study("P1"))

    def meanwhile(stage: str, job: Job) -> None:
        if stage == "check":
            with writing(ward.engine) as connection:
                change(connection, job.study_instance_uid)

    supervisor(ward, runner, observe=meanwhile).work_once()
    held = ward.job(job)
    assert (held.state, held.held_by) == ("held", held_by)
    assert not ward.results(job)


def test_results_that_name_another_patient_than_their_job_are_not_written(
    ward: Ward, runner: RunnerProcess
) -> None:
    job = ward.queue(ward.study("P1", key="P2"))
    supervisor(ward, runner).work_once()
    held = ward.job(job)
    assert (held.state, held.error_kind) == ("held", "identity")
    assert "names another patient or study than the job was made for" in held.error_sentence
    assert not ward.results(job)


def test_results_are_held_while_the_database_is_away_and_committed_when_it_is_back(
    ward: Ward, runner: RunnerProcess
) -> None:
    job = ward.queue(ward.study("P1"))
    url = ward.settings.database.url
    ward.engine.dispose()
    event.listen(ward.engine, "connect", lambda c, _: c.execute("PRAGMA busy_timeout = 20"))
    other = sqlite3.connect(url.removeprefix("sqlite:///"), check_same_thread=False)
    back = threading.Timer(0.5, other.rollback)

    def lock(stage: str, _: Job) -> None:
        if stage == "commit":
            other.execute("BEGIN IMMEDIATE")
            back.start()

    supervisor(ward, runner, observe=lock).work_once()
    back.join()
    other.close()
    assert ward.job(job).state == "done"
    assert len(ward.results(job)) == 2


@pytest.mark.slow
def test_a_runner_that_is_killed_in_any_stage_is_replaced_and_the_job_done(
    ward: Ward, runner: RunnerProcess
) -> None:
    for number, stage in enumerate(("preprocess", "infer", "postprocess", "measure")):
        job = ward.queue(ward.study(f"P{number}"))
        killed: list[int] = []

        def kill(name: str, _: Job, stage: str = stage, killed: list[int] = killed) -> None:
            if name == stage and not killed and runner.pid is not None:
                killed.append(runner.pid)
                os.kill(runner.pid, signal.SIGKILL)

        one = supervisor(ward, runner, observe=kill)
        while one.work_once():
            pass
        done = ward.job(job)
        assert killed, stage
        assert done.state == "done", (stage, done.error_sentence)
        assert len(ward.results(job)) == 2
