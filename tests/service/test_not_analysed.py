"""What a model can't take: a failed job, or a report that says why where a route asks for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bodies
import pydicom
import pytest
from ward import Ward, open_ward

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.errors import ResourceError
from dicomai.inference.runner_process import RunnerProcess
from dicomai.routing.route import ResultObject, Route
from dicomai.service import analyse, duties
from dicomai.service.supervise import Supervisor
from dicomai.store import instances, jobs
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job, JobId
from dicomai.store.leases import LeaseObserver


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    monkeypatch.setattr(bodies, "SHAPE", (2, 24, 32))  # too few slices for a volume
    opened = open_ward(tmp_path)
    yield opened
    opened.engine.dispose()


@pytest.mark.parametrize(
    ("objects", "state"), [(("SEG", "SR"), "failed"), (("SEG", "SR", "NOT-ANALYSED"), "done")]
)
def test_a_report_says_why_only_where_a_route_asks_for_it(
    ward: Ward, runner: RunnerProcess, objects: tuple[ResultObject, ...], state: str
) -> None:
    routes = (Route(name="all", model="bodies", objects=objects),)
    settings = replace(ward.settings, routes=routes)
    job = ward.queue(ward.study("P1"))
    Supervisor(settings=settings, runner=runner, worker=ward.worker()).work_once()
    done = ward.job(job)
    assert done.state == state
    reports = [pydicom.dcmread(ward.file(row)) for row in ward.results(job)]
    if state == "failed":
        assert "only 2 slices" in done.error_sentence
        assert not reports
        return
    assert "not analysed: " in str(done.summary["found"])
    (report,) = reports
    words = [item.TextValue for item in report.ContentSequence[-1].ContentSequence]
    assert any("could not look at these images" in text for text in words)
    assert any("not analysed: Series" in text and "only 2 slices" in text for text in words)


def test_memory_that_does_not_suffice_is_told_when_the_last_try_is_over(
    ward: Ward, runner: RunnerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise ResourceError("Model bodies: the memory of the host does not suffice.")

    monkeypatch.setattr(analyse, "load", full)
    routes = (Route(name="all", model="bodies", objects=("SR", "NOT-ANALYSED")),)
    settings = replace(ward.settings, routes=routes)
    job = ward.queue(ward.study("P1"))
    supervisor = Supervisor(settings=settings, runner=runner, worker=ward.worker())
    states = []
    while supervisor.work_once():
        states.append(ward.job(job).state)
        with writing(ward.engine) as connection:
            jobs.promote_due(connection, Instant(now() + seconds(3600)))
    assert states == ["waiting", "waiting", "waiting", "done"]
    (report,) = [pydicom.dcmread(ward.file(row)) for row in ward.results(job)]
    words = [item.TextValue for item in report.ContentSequence[-1].ContentSequence]
    assert any("the memory of the host does not suffice" in text for text in words)


def test_what_lacks_an_image_in_the_archive_is_told_by_the_others(
    ward: Ward, runner: RunnerProcess
) -> None:
    routes = (Route(name="all", model="bodies", objects=("SR", "NOT-ANALYSED")),)
    settings = replace(ward.settings, routes=routes)
    job = ward.queue(ward.study("P1"))
    with reading(ward.engine) as connection:
        (_, first), _ = instances.inputs_of(connection, job)
    (settings.folders.data / first.path).unlink()
    Supervisor(settings=settings, runner=runner, worker=ward.worker()).work_once()
    found = str(ward.job(job).summary["found"])
    assert f"Image {first.sop_instance_uid} ({first.path}) is missing from the archive" in found
    (report,) = [pydicom.dcmread(ward.file(row)) for row in ward.results(job)]
    assert str(settings.folders.data) not in report.to_json()


def die(folder: Path, routes: tuple[Route, ...], where: str) -> None:
    """Claim a job, and be killed in a stage."""
    ward = open_ward(folder)

    def kill(stage: str, _: Job) -> None:
        if stage == where:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = replace(ward.settings, routes=routes)
    worker = ward.worker(observe=kill)
    Supervisor(settings=settings, runner=RunnerProcess("cpu"), worker=worker).work_once()


def killed(ward: Ward, folder: Path, job: JobId, routes: tuple[Route, ...], where: str) -> str:
    """Have a worker claim the job and be killed; return the state that its lease leaves."""
    ward.engine.dispose()
    child = multiprocessing.get_context("fork").Process(target=die, args=(folder, routes, where))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    observer = LeaseObserver(0.01)
    while ward.job(job).state == "running":
        duties.expire(ward.engine, observer, routes, now())
    return ward.job(job).state


@pytest.mark.parametrize("objects", [("SR",), ("SR", "NOT-ANALYSED")])
def test_what_kills_its_worker_twice_is_told_where_a_route_asks_for_it(
    tmp_path: Path, objects: tuple[ResultObject, ...]
) -> None:
    ward = open_ward(tmp_path)
    routes = (Route(name="all", model="bodies", objects=objects),)
    settings = replace(ward.settings, routes=routes)
    job = ward.queue(ward.study("P1"))
    states = [killed(ward, tmp_path, job, routes, "load") for _ in range(2)]
    told = "NOT-ANALYSED" in objects
    assert states == ["queued", "queued" if told else "failed"]
    # It never reaches a runner.
    one = Supervisor(settings=settings, runner=RunnerProcess("cpu"), worker=ward.worker())
    assert one.work_once() is told
    assert ward.job(job).state == ("done" if told else "failed")
    reports = [pydicom.dcmread(ward.file(row)) for row in ward.results(job)]
    ward.engine.dispose()
    words = [
        item.TextValue for each in reports for item in each.ContentSequence[-1].ContentSequence
    ]
    assert any("not analysed: Twice the program ended" in text for text in words) is told


def test_a_report_that_kills_its_worker_too_is_not_tried_again(tmp_path: Path) -> None:
    ward = open_ward(tmp_path)
    routes = (Route(name="all", model="bodies", objects=("SR", "NOT-ANALYSED")),)
    job = ward.queue(ward.study("P1"))
    stages = ("load", "load", "encode")
    states = [killed(ward, tmp_path, job, routes, each) for each in stages]
    ward.engine.dispose()
    assert states == ["queued", "queued", "failed"]


def test_what_kills_a_runner_twice_is_told_where_a_route_asks_for_it(
    tmp_path: Path, runner: RunnerProcess
) -> None:
    ward = open_ward(tmp_path)
    bodies.write_package(ward.settings.folders.models, "venom", "poison")
    routes = (Route(name="all", model="venom", objects=("SR", "NOT-ANALYSED")),)
    settings = replace(ward.settings, routes=routes)
    job = ward.queue(ward.study("P1"), model="venom")
    one = Supervisor(settings=settings, runner=runner, worker=ward.worker())
    states = []
    while one.work_once():
        states.append(ward.job(job).state)
    assert states == ["queued", "done"]
    (report,) = [pydicom.dcmread(ward.file(row)) for row in ward.results(job)]
    ward.engine.dispose()
    assert report.PatientID == "P1"
    words = [item.TextValue for item in report.ContentSequence[-1].ContentSequence]
    assert any("not analysed: " in text and "signal 11 (SIGSEGV)" in text for text in words)
