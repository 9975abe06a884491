"""What is done from time to time is done, and one duty's trouble is not another's."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ward import Ward, open_ward

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DatabaseError, DiskFull
from dicomai.roles.schedule import shut_down
from dicomai.service import duties, leavings
from dicomai.service.duties import Duty
from dicomai.service.trouble import Trouble
from dicomai.store import claims, hosts, jobs, retention, studies
from dicomai.store.engine import reading, writing
from dicomai.store.retention import Candidate, Keep

DAY = seconds(86400)


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = open_ward(tmp_path)
    yield opened
    opened.engine.dispose()


def test_a_duty_that_never_ends_keeps_its_role_no_longer_than_the_stop_time(ward: Ward) -> None:
    clock = duties.started(ward.settings, ward.engine, threading.Event())
    begun, over = threading.Event(), threading.Event()

    def never() -> None:
        begun.set()
        over.wait()

    clock.add_job(never, executor="slow")
    assert begun.wait(20)
    try:
        asked = time.monotonic()
        shut_down(clock, 0.1)
        assert time.monotonic() - asked < 10
    finally:
        over.set()


def test_every_duty_of_the_design_is_on_the_clock(ward: Ward) -> None:
    clock = duties.started(ward.settings, ward.engine, threading.Event())
    try:
        names = {job.id for job in clock.get_jobs()}
    finally:
        clock.shutdown()
    assert names == {"leases", "back-offs", "retention", "room", "pruning", "sweeping"}


def test_a_clock_that_is_set_forward_makes_up_for_nothing(ward: Ward) -> None:
    """APScheduler lists what it missed: a clock that said 1970 is set forward by half a century."""
    later = datetime.now(UTC) + timedelta(days=30)
    clock = duties.started(ward.settings, ward.engine, threading.Event())
    try:
        (leases,) = (job for job in clock.get_jobs() if job.id == "leases")
        assert len(leases._get_run_times(later)) == 1
    finally:
        clock.shutdown()


def test_a_clock_that_is_set_back_holds_up_no_duty(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = duties.started(ward.settings, ward.engine, threading.Event())
    try:
        look = duties.going_on(clock)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        clock.pause()
        for job in clock.get_jobs():
            job.modify(next_run_time=tomorrow)
        look()
        assert {job.next_run_time for job in clock.get_jobs()} == {tomorrow}
        at = time.time()
        monkeypatch.setattr(duties.time, "time", lambda: at - 7200)
        look()
        assert all(job.next_run_time < tomorrow for job in clock.get_jobs())
    finally:
        clock.shutdown()


def test_sweeping_takes_what_kills_left_in_archive_and_quarantine(ward: Ward) -> None:
    folders = ward.settings.folders
    folders.quarantine.mkdir(exist_ok=True)
    left = [folder / ".1.01234567.part" for folder in (folders.archive, folders.quarantine)]
    left.append(folders.archive / ".results" / str(uuid.uuid4()) / "0.dcm")
    left[-1].parent.mkdir(parents=True)
    for part in left:
        part.touch()
    assert duties.sweep(ward.engine, folders, Instant(now() + DAY + seconds(1))) == len(left)
    assert not any(part.exists() for part in left)


def test_sweeping_looks_at_no_file_that_the_catalogue_names(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.study("P1")
    folders = ward.settings.folders
    named = set(folders.archive.rglob("*.dcm"))
    looked_at: set[Path] = set()
    lstat = Path.lstat

    def noted(path: Path) -> os.stat_result:
        looked_at.add(path)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", noted)
    nobodys = next(iter(named)).with_name("1.2.3.01234567.dcm")
    nobodys.write_bytes(b"x")
    assert duties.sweep(ward.engine, folders, Instant(now() + DAY + seconds(1))) == 1
    assert named
    assert nobodys in looked_at
    assert not named & looked_at


def test_a_deletion_that_was_cut_short_goes_on_when_the_scheduler_starts(
    ward: Ward, until: Callable[..., None]
) -> None:
    study = StudyInstanceUID(ward.study("P1"))
    with writing(ward.engine) as connection:
        candidate = Candidate(study_instance_uid=study, origins=("received",))
        assert retention.begin(connection, candidate, now(), now())

    def is_gone() -> bool:
        with reading(ward.engine) as connection:
            return studies.get(connection, study) is None

    clock = duties.started(ward.settings, ward.engine, threading.Event())
    try:
        until(is_gone)
    finally:
        clock.shutdown()
    assert not list(ward.settings.folders.archive.rglob("*.dcm"))


def test_a_lease_ends_on_the_clock_while_a_slow_duty_is_on_its_way(
    ward: Ward, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ward.queue(ward.study("P1"))
    with writing(ward.engine) as connection:
        claims.claim(connection, "gone", ("analyse",), ("bodies",), now())
    swept = threading.Event()

    def long_walk(*_: object) -> int:
        swept.wait(60)
        return 0

    monkeypatch.setattr(leavings, "sweep", long_walk)
    worker = ward.settings.worker.model_copy(update={"lease_s": 0.6})
    clock = duties.started(replace(ward.settings, worker=worker), ward.engine, threading.Event())
    try:
        until(lambda: ward.job(job).state == "queued")
    finally:
        swept.set()
        clock.shutdown()
    assert ward.job(job).crashes == 1


def test_a_back_off_that_is_over_is_queued(ward: Ward) -> None:
    job = ward.queue(ward.study("P1"))
    with writing(ward.engine) as connection:
        claimed = claims.claim(connection, "tests", ("analyse",), ("bodies",), now())
        assert claimed is not None
        jobs.fail(connection, claimed.held, "transient", "Away.", "load", "", now())
    assert duties.promote(ward.engine, now()) == 0
    assert duties.promote(ward.engine, Instant(now() + DAY)) == 1
    assert ward.job(job).state == "queued"


def test_jobs_are_pruned_and_studies_deleted_after_their_days_but_never_open_ones(
    ward: Ward,
) -> None:
    over, unfinished = ward.study("P1"), ward.study("P2")
    job = ward.queue(over)
    ward.queue(unfinished)
    with writing(ward.engine) as connection:
        jobs.cancel(connection, job, "A person cancelled it.", now())
    kept = dict.fromkeys(("received_days", "produced_days", "jobs_days", "reserve_bytes"), 0.0)
    no_days = ward.settings.retention.model_copy(update=kept)
    by_name = {
        duty.name: duty
        for duty in duties.duties(
            replace(ward.settings, retention=no_days), ward.engine, threading.Event()
        )
    }
    by_name["retention"].do()
    with reading(ward.engine) as connection:
        assert studies.get(connection, over) is None
        assert studies.get(connection, unfinished) is not None
    assert len(list(ward.settings.folders.archive.rglob("*.dcm"))) == 6
    keep = Keep(received=seconds(0), produced=seconds(0), jobs=seconds(0))
    assert duties.prune(ward.engine, keep, Instant(now() + 1)) == 1


def test_a_clock_that_leapt_deletes_nothing(ward: Ward) -> None:
    study = StudyInstanceUID(ward.study("P1"))
    a_year_ago = Instant(now() - 365 * DAY)
    with writing(ward.engine) as connection:
        hosts.note_ingested(connection, "h1", a_year_ago, a_year_ago)
    part = ward.settings.folders.archive / ".1.01234567.part"
    part.touch()
    kept = dict.fromkeys(("received_days", "produced_days", "jobs_days"), 0.0)
    no_days = ward.settings.retention.model_copy(update={**kept, "reserve_bytes": 2**62})
    for duty in duties.duties(
        replace(ward.settings, retention=no_days), ward.engine, threading.Event()
    ):
        duty.do()
    with reading(ward.engine) as connection:
        assert studies.get(connection, study) is not None
    assert part.exists()


def test_a_duty_that_fails_leaves_the_others_alone(
    ward: Ward, capsys: pytest.CaptureFixture[str]
) -> None:
    done = threading.Event()

    def full() -> None:
        raise DiskFull("No room.")

    def defect() -> None:
        raise ZeroDivisionError

    for do in (full, defect, done.set):
        duties._do(Duty(name=do.__name__, every_s=1, do=do), Trouble())
    assert done.is_set()
    said = capsys.readouterr().out
    assert "No room." in said
    assert "ZeroDivisionError" in said


def test_what_keeps_a_duty_from_being_done_is_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    away = iter([True, True, True, False, False])

    def do() -> None:
        if next(away):
            raise DatabaseError("The database is away.")

    trouble = Trouble(settled_s=0.0)
    for _ in range(5):
        duties._do(Duty(name="back-offs", every_s=1, do=do), trouble)
    said = capsys.readouterr().out
    assert (said.count("duty waits"), said.count("duty goes on")) == (1, 1)
