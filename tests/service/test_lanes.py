"""While the device works on one study the next is loaded; the innocent of a death go on."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bodies
import pytest
from bodies import write_package
from ward import Ward, open_ward

from dicomai.inference.runner_process import RunnerProcess
from dicomai.service.heart import Heart
from dicomai.service.intake import HANDS, LANES, TAKES, Intake
from dicomai.service.supervise import Supervisor
from dicomai.store import schema
from dicomai.store.engine import writing
from dicomai.store.job import Job

Until = Callable[..., None]


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = open_ward(tmp_path)
    yield opened
    opened.engine.dispose()


@pytest.fixture(scope="module")
def waiting_room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("go")


@pytest.fixture(scope="module")
def patient(waiting_room: Path) -> Iterator[RunnerProcess]:
    """The real runner, with networks that wait for a file "go"."""
    script = str(Path(__file__).with_name("misbehaving_runner.py"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DICOMAI_TEST_GO", str(waiting_room))
        with RunnerProcess("cpu", command=(sys.executable, script)) as process:
            yield process


@pytest.fixture
def go(waiting_room: Path) -> Path:
    """The folder in which they wait, empty."""
    for each in waiting_room.iterdir():
        each.unlink()
    return waiting_room


@contextmanager
def lanes(
    ward: Ward,
    runner: RunnerProcess,
    observe: Callable[[str, Job], None],
    intake: Intake | None = None,
) -> Iterator[None]:
    """Work in all lanes of a device until the block ends."""
    stop, intake = threading.Event(), intake or Intake()
    worker = ward.worker(stop=stop, observe=observe, deadline_s=170.0, lease_s=60.0)
    one = Supervisor(settings=ward.settings, runner=runner, worker=worker, intake=intake)

    def work() -> None:
        while not stop.is_set():
            if not one.work_once():
                stop.wait(0.02)

    threads = [threading.Thread(target=work) for _ in range(LANES)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_next_study_is_ready_while_the_device_has_the_one_before(
    ward: Ward, patient: RunnerProcess, go: Path, until: Until
) -> None:
    write_package(ward.settings.folders.models, "patient", "patient")
    jobs = [ward.queue(ward.study(f"P{number}"), model="patient") for number in range(4)]
    reached: dict[str, set[int]] = {}

    by_itself: list[bool] = []

    def note(stage: str, job: Job) -> None:
        reached.setdefault(stage, set()).add(job.id)
        if stage in ("load", "encode", "check"):
            by_itself.append(HANDS.locked())

    with lanes(ward, patient, note):
        # The first can't end before the second is ready for the device.
        until(lambda: len(reached.get("preprocess", ())) == 2, 60)
        assert len(reached["infer"]) == 1
        # Any other host may have the rest.
        assert [ward.job(each).state for each in jobs[2:]] == ["queued", "queued"]
        (go / "go").touch()
        until(lambda: all(ward.job(each).state == "done" for each in jobs), 60)
    assert all(ward.job(each).crashes == 0 for each in jobs)
    # What reads and writes DICOM sets warnings for the whole process.
    assert by_itself == [True] * 12


def test_a_study_that_memory_has_no_room_for_is_loaded_when_it_is_alone(
    ward: Ward, patient: RunnerProcess, go: Path, until: Until
) -> None:
    write_package(ward.settings.folders.models, "patient", "patient")
    first, second = (ward.queue(ward.study(f"P{number}"), model="patient") for number in range(2))
    volume = 4 * math.prod(bodies.SHAPE)
    reached: list[tuple[str, int]] = []
    asked: list[int] = []

    def free_bytes() -> int:
        asked.append(len(reached))
        return TAKES * volume - 1

    def note(stage: str, job: Job) -> None:
        reached.append((stage, job.id))

    with lanes(ward, patient, note, Intake(free_bytes)):
        until(lambda: ward.job(second).state == "running" and len(asked) > 3, 60)
        assert {job for _, job in reached} == {first}
        (go / "go").touch()
        until(lambda: ward.job(second).state == "done", 60)
    assert reached.index(("commit", first)) < reached.index(("load", second))
    assert (ward.job(second).attempts, ward.job(second).crashes) == (1, 0)


def test_what_lost_its_process_once_is_done_alone(
    ward: Ward, patient: RunnerProcess, go: Path, until: Until
) -> None:
    write_package(ward.settings.folders.models, "patient", "patient")
    before, suspect, after = (
        ward.queue(ward.study(f"P{number}"), model="patient") for number in range(3)
    )
    with writing(ward.engine) as connection:
        lost = schema.jobs.update().where(schema.jobs.c.id == suspect).values(crashes=1)
        connection.execute(lost)
    reached: list[tuple[str, int]] = []

    def note(stage: str, job: Job) -> None:
        reached.append((stage, job.id))

    with lanes(ward, patient, note):
        until(lambda: ("infer", before) in reached and ward.job(suspect).state == "running", 60)
        assert {job for _, job in reached} == {before}
        (go / "go").touch()
        until(lambda: ward.job(after).state == "done", 60)
    assert reached.index(("commit", before)) < reached.index(("load", suspect))
    assert reached.index(("commit", suspect)) < reached.index(("load", after))


@pytest.mark.slow
def test_of_two_studies_in_a_runner_that_dies_only_the_poisonous_one_is_to_blame(
    ward: Ward, patient: RunnerProcess, go: Path, until: Until
) -> None:
    write_package(ward.settings.folders.models, "venom", "patient-poison")
    poisonous = ward.queue(ward.study("P1"), model="venom")
    harmless = ward.queue(ward.study("P2"))
    reached: list[tuple[str, int]] = []

    def note(stage: str, job: Job) -> None:
        reached.append((stage, job.id))
        if (stage, job.id) == ("preprocess", harmless):
            (go / "go").touch()  # now both are inside

    with lanes(ward, patient, note):
        until(lambda: ward.job(harmless).state == "done", 120)
        until(lambda: ward.job(poisonous).crashes, 120)
    assert reached.index(("infer", poisonous)) < reached.index(("preprocess", harmless))
    assert (ward.job(harmless).crashes, ward.job(harmless).attempts) == (0, 1)


def test_time_in_which_another_job_has_the_device_counts_for_no_deadline(until: Until) -> None:
    heart = Heart(lambda *_: True, lease_s=60.0, deadline_s=0.2)
    idle = Heart(lambda *_: True, lease_s=60.0, deadline_s=0.2)

    def over_for_others() -> bool:
        heart.waits()
        return idle.overdue

    until(over_for_others)
    assert not heart.overdue
    heart.progress("infer", 0.0)
    until(lambda: heart.overdue)


def test_stopping_gives_every_lane_its_job_back(
    ward: Ward, patient: RunnerProcess, go: Path, until: Until
) -> None:
    write_package(ward.settings.folders.models, "patient", "patient")
    jobs = [ward.queue(ward.study(f"P{number}"), model="patient") for number in range(2)]
    reached: list[str] = []
    with lanes(ward, patient, lambda stage, _: reached.append(stage)):
        until(lambda: reached.count("preprocess") == 2, 60)
    for each in jobs:
        assert (ward.job(each).state, ward.job(each).attempts) == ("queued", 0)
    assert patient.pid is None
