"""Whatever is killed, each study gets one set of results, and it is its own patient's."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from ward import Ward, open_ward

from dicomai.dicom.dates import now
from dicomai.inference.runner_process import COMMAND, RunnerProcess
from dicomai.service.supervise import STAGES, Supervisor
from dicomai.store import jobs, leases
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job, JobId
from dicomai.store.leases import LeaseObserver

CONFUSED = (sys.executable, str(Path(__file__).with_name("confused_runner.py")))
SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = open_ward(tmp_path)
    yield opened
    opened.engine.dispose()


def end_leases(ward: Ward) -> None:
    """See the beats stand still for longer than a lease."""
    observer = LeaseObserver(1.0)
    for moment in (0.0, 0.4, 0.8, 1.2):
        with writing(ward.engine) as connection:
            leases.expire(connection, observer, moment, now())


def die_in(folder: Path, stage: str) -> None:
    """Claim a job, and be killed when it reaches a stage."""
    ward = open_ward(folder)

    def die(name: str, _: Job) -> None:
        if name == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    with RunnerProcess("cpu") as runner:
        Supervisor(
            settings=ward.settings, runner=runner, worker=ward.worker(observe=die)
        ).work_once()


def finish_all(ward: Ward) -> None:
    with RunnerProcess("cpu") as runner:
        one = Supervisor(settings=ward.settings, runner=runner, worker=ward.worker())
        while one.work_once():
            pass


def assert_one_own_set(ward: Ward, job: JobId, patient: str) -> None:
    """The job is done; SEG and SR are its patient's, and name images of its study alone."""
    done = ward.job(job)
    assert (done.state, done.error_sentence) == ("done", "")
    rows = ward.results(job)
    assert sorted(row.sop_class_uid for row in rows) == [SEG, SR]
    for row in rows:
        result = pydicom.dcmread(ward.file(row))
        assert (result.PatientID, result.StudyInstanceUID) == (patient, done.study_instance_uid)
        if row.sop_class_uid == SEG:
            with reading(ward.engine) as connection:
                own = {
                    uid
                    for (uid,) in connection.exec_driver_sql(
                        f"SELECT sop_instance_uid FROM job_inputs WHERE job_id = {job}"
                    )
                }
            (series,) = result.ReferencedSeriesSequence
            named = {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence}
            assert named
            assert named <= own


@pytest.mark.slow
def test_a_worker_killed_in_any_stage_leaves_one_set_of_results(ward: Ward, tmp_path: Path) -> None:
    queued = {}
    fork = multiprocessing.get_context("fork")
    ward.engine.dispose()
    for number, stage in enumerate(STAGES):
        queued[ward.queue(ward.study(f"P{number}"))] = f"P{number}"
        child = fork.Process(target=die_in, args=(tmp_path, stage))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, stage
    with reading(ward.engine) as connection:
        assert len(jobs.listing(connection, 100, ("running",))) == len(STAGES)
    end_leases(ward)
    finish_all(ward)
    for job, patient in queued.items():
        assert_one_own_set(ward, job, patient)
        assert ward.job(job).crashes == 1
    named = {row.path for job in queued for row in ward.results(job)}
    produced = {
        path.relative_to(ward.settings.folders.data)
        for path in ward.settings.folders.archive.rglob("*.dcm")
        if pydicom.dcmread(path, stop_before_pixels=True).Modality != "CT"
        and ".results" not in path.parts
    }
    assert {str(path) for path in named} == {str(path) for path in produced}


def test_what_a_kill_left_half_beside_a_result_does_not_end_the_job(ward: Ward) -> None:
    job = ward.queue(ward.study("P1"))
    folder = ward.settings.folders.archive / ".results" / str(ward.job(job).uuid)
    folder.mkdir(parents=True)
    (folder / ".0.dcm.01234567.part").touch()
    finish_all(ward)
    assert_one_own_set(ward, job, "P1")


def test_a_worker_that_lost_its_lease_writes_nothing_when_it_comes_back(ward: Ward) -> None:
    job = ward.queue(ward.study("P1"))

    def lose(stage: str, _: Job) -> None:
        if stage == "commit":
            end_leases(ward)

    with RunnerProcess("cpu") as runner:
        worker = ward.worker(observe=lose)
        Supervisor(settings=ward.settings, runner=runner, worker=worker).work_once()
        lost = ward.job(job)
        assert (lost.state, lost.crashes) == ("queued", 1)
        assert not ward.results(job)
        Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()
    assert_one_own_set(ward, job, "P1")


def test_an_answer_for_another_patient_is_never_written(ward: Ward) -> None:
    first, second = (ward.queue(ward.study(patient)) for patient in ("P1", "P2"))
    with RunnerProcess("cpu", command=CONFUSED) as runner:
        one = Supervisor(settings=ward.settings, runner=runner, worker=ward.worker())
        while one.work_once():
            pass
    assert_one_own_set(ward, first, "P1")
    held = ward.job(second)
    assert (held.state, held.held_by, held.error_kind) == ("held", "identity", "identity")
    assert not ward.results(second)


@pytest.mark.slow
def test_two_patients_under_load_with_kills_never_share_a_result(ward: Ward) -> None:
    queued = {
        ward.queue(ward.study(f"P{number % 2}", brightness=1000 + number)): f"P{number % 2}"
        for number in range(6)
    }
    chance = random.Random(13)
    over = threading.Event()
    runners = [RunnerProcess("cpu", command=command) for command in (COMMAND, CONFUSED)]

    def work(runner: RunnerProcess) -> None:
        one = Supervisor(settings=ward.settings, runner=runner, worker=ward.worker(stop=over))
        while not over.is_set():
            one.work_once()

    def unfinished() -> int:
        with reading(ward.engine) as connection:
            return len(jobs.listing(connection, 100, ("queued", "running")))

    threads = [threading.Thread(target=work, args=(runner,)) for runner in runners]
    for thread in threads:
        thread.start()
    kills = 0
    give_up = time.monotonic() + 90
    while unfinished() and time.monotonic() < give_up:
        victim = chance.choice(runners).pid
        if victim is not None and kills < 4 and chance.random() < 0.2:
            os.kill(victim, signal.SIGKILL)
            kills += 1
        over.wait(0.2)
        with writing(ward.engine) as connection:
            for job in jobs.listing(connection, 100, ("held", "failed")):
                if job.error_kind in ("identity", "crash"):
                    jobs.retry(connection, job.id, now())
    over.set()
    for thread in threads:
        thread.join()
    for runner in runners:
        runner.kill()
    for job, patient in queued.items():
        assert_one_own_set(ward, job, patient)
