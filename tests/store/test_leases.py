"""Leases: over when a beat stands still on the observer's own clock, and never otherwise."""

from __future__ import annotations

import pytest
from catalogue_rows import NOW, add, arrive, claim, claimed, finish, job, wanted
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import jobs, leases, retrievals
from dicomai.store.engine import writing
from dicomai.store.job import Job
from dicomai.store.leases import LeaseObserver, Over
from dicomai.store.retrievals import NewRetrieval

LEASE_S = 60.0


def look(engine: Engine, observer: LeaseObserver, at: float) -> tuple[Job, ...]:
    with writing(engine) as connection:
        return leases.expire(connection, observer, at, NOW)


def test_a_job_without_a_beat_is_queued_again_and_a_beating_one_is_not(engine: Engine) -> None:
    for study in ("1.2.3", "1.2.4"):
        arrive(engine, study)
        add(engine, wanted(study, study))
    silent, beating = claimed(engine), claimed(engine)
    observer = LeaseObserver(LEASE_S)
    for at in range(0, 60, 10):
        assert not look(engine, observer, float(at))
        with writing(engine) as connection:
            assert jobs.beat(connection, beating.held, "infer", at / 60, NOW)
    (expired,) = look(engine, observer, 60.0)
    assert (expired.id, expired.state, expired.crashes) == (silent.id, "queued", 1)
    assert expired.error_kind == "crash"
    assert "It is tried again" in expired.error_sentence
    assert job(engine, beating.id).state == "running"


def test_each_of_several_jobs_that_stand_still_at_once_is_queued_again(engine: Engine) -> None:
    for study in ("1.2.3", "1.2.4"):
        arrive(engine, study)
        add(engine, wanted(study, study))
    silent = [claimed(engine).id for _ in range(2)]  # their beats are alike
    observer = LeaseObserver(LEASE_S)
    looks = [look(engine, observer, float(at)) for at in range(0, 70, 10)]
    assert [each.id for each in looks[-1]] == silent
    assert [job(engine, number).state for number in silent] == ["queued", "queued"]


def test_a_beat_between_the_look_and_the_write_keeps_its_job(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    running = claimed(engine)

    class Slow(LeaseObserver):
        """Sees a worker that wakes up just after the look, as another connection may."""

        def observe(self, connection: Connection, monotonic_now: float) -> tuple[Over, ...]:
            over = super().observe(connection, monotonic_now)
            if over:
                assert jobs.beat(connection, running.held, "infer", 0.5, NOW)
            return over

    observer = Slow(LEASE_S)
    for at in range(0, 70, 10):
        assert not look(engine, observer, float(at))
    assert job(engine, running.id).state == "running"
    assert job(engine, running.id).progress == 0.5


def test_a_step_of_the_clock_ends_no_lease(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    running = claimed(engine)
    observer = LeaseObserver(LEASE_S)
    year = seconds(365 * 86400)
    with writing(engine) as connection:
        for now in (NOW, Instant(NOW + year), Instant(NOW - year)):
            assert not leases.expire(connection, observer, 1.0, now)
    assert job(engine, running.id).state == "running"


def test_an_outage_ends_no_lease(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    running = claimed(engine)
    observer = LeaseObserver(LEASE_S)
    for at in (0.0, 20.0, 40.0, 55.0):
        assert not look(engine, observer, at)
    # Ten minutes later the database is back; the worker has not had its chance yet.
    assert not look(engine, observer, 655.0)
    with writing(engine) as connection:
        assert jobs.beat(connection, running.held, "infer", 0.5, NOW)
    for at in range(670, 720, 10):
        assert not look(engine, observer, float(at))


def test_a_look_that_fails_counts_as_an_outage(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    claimed(engine)
    observer = LeaseObserver(LEASE_S)
    for at in (0.0, 20.0, 40.0):
        look(engine, observer, at)
    with engine.connect() as closed:
        pass
    with pytest.raises(Exception, match="closed"):
        observer.observe(closed, 55.0)
    assert not look(engine, observer, 65.0)


@pytest.mark.parametrize("kind", ["deliver", "retrieve"])
def test_what_only_moves_objects_is_tried_again_however_often_its_worker_dies(
    engine: Engine, kind: str
) -> None:
    arrive(engine)
    add(engine, wanted())
    finish(engine, claimed(engine).held)
    with writing(engine) as connection:
        retrievals.queue(
            connection,
            NewRetrieval(
                node="PACS1", study_instance_uid=StudyInstanceUID("1.2.9"), ageing=seconds(600)
            ),
            NOW,
        )
    observer = LeaseObserver(LEASE_S)
    for number in range(3):
        taken = claimed(engine, kind)
        looks = [look(engine, observer, 1000.0 * number + at) for at in (0.0, 20.0, 40.0, 60.0)]
        (over,) = looks[-1]
        assert (over.id, over.state, over.waiting_for) == (taken.id, "waiting", "back-off")
        assert (over.error_kind, over.crashes) == ("transient", 0)
        assert over.due_at is not None
        with writing(engine) as connection:
            jobs.promote_due(connection, over.due_at)


def test_a_poisonous_job_fails_the_second_time_and_others_go_on(engine: Engine) -> None:
    for study in ("1.2.3", "1.2.4"):
        arrive(engine, study)
        add(engine, wanted(study, study))
    poison = claimed(engine)
    with writing(engine) as connection:
        first = jobs.fail(connection, poison.held, "crash", "Killed.", "infer", "", NOW)
    assert first is not None
    assert first.state == "queued"
    again = claimed(engine)
    assert (again.id, again.attempts) == (poison.id, 2)
    observer = LeaseObserver(LEASE_S)
    expired = [each for at in (0.0, 20.0, 40.0, 60.0) for each in look(engine, observer, at)]
    assert [(each.id, each.state) for each in expired] == [(poison.id, "failed")]
    assert "It is tried again" not in expired[0].error_sentence
    assert expired[0].error_sentence.endswith(f"dicomai retry {poison.id}")
    other = claimed(engine)
    assert other.id != poison.id
    assert finish(engine, other.held) == "done"
    assert claim(engine) is None
