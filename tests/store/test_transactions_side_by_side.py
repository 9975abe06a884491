"""What two transactions of PostgreSQL do to each other; SQLite has one at a time that writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy
from catalogue_rows import NOW, add, arrive, wanted
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import analyses, retention, studies
from dicomai.store.engine import reading, writing
from dicomai.store.retention import Candidate
from dicomai.store.studies import StudyGoing

pytestmark = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)

LATER = Instant(NOW + seconds(86400))
_WAITING = sqlalchemy.text(
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE wait_event_type = 'Lock' AND datname = current_database()"
)
Waits = Callable[[Callable[[], object]], "Future[object]"]


@pytest.fixture
def waits(engine: Engine) -> Iterator[Waits]:
    """Have something begun, and go on when it waits for a lock."""
    with ThreadPoolExecutor(1) as pool:

        def begun(work: Callable[[], object]) -> Future[object]:
            future = pool.submit(work)
            until = time.monotonic() + 20
            while True:
                with reading(engine) as connection:
                    if connection.execute(_WAITING).scalar_one():
                        return future
                assert not future.done(), future.result()
                assert time.monotonic() < until
                time.sleep(0.01)

        yield begun


def candidate(engine: Engine, study: str) -> Candidate:
    """Have a study decided, so that retention may delete it."""
    uid = StudyInstanceUID(study)
    with writing(engine) as connection:
        studies.set_decided(connection, uid, "Whole.", NOW)
    return Candidate(study_instance_uid=uid, origins=("received",))


def begin(engine: Engine, goes: Candidate) -> bool:
    with writing(engine) as connection:
        return retention.begin(connection, goes, LATER)


def test_what_comes_as_the_last_of_its_study_is_deleted_waits(engine: Engine, waits: Waits) -> None:
    arrive(engine)
    goes = candidate(engine, "1.2.3")
    assert begin(engine, goes)
    with writing(engine) as connection:
        studies.lock(connection, goes.study_instance_uid)
        arriving = waits(lambda: arrive(engine, received_at=LATER))
        retention.complete(connection, goes, LATER)
    with pytest.raises(StudyGoing):
        arriving.result(20)
    assert arrive(engine, received_at=LATER)[0].outcome == "new"


def test_retention_waits_for_a_job_that_is_about_to_take_a_study(
    engine: Engine, waits: Waits
) -> None:
    (prior,) = arrive(engine, "1.2.2")
    arrive(engine, "1.2.3")
    goes = candidate(engine, "1.2.2")
    new = replace(wanted("1.2.3"), inputs=wanted("1.2.2", inputs=(prior.instance_id,)).inputs)
    with writing(engine) as connection:
        studies.lock(connection, new.study_instance_uid)
        analyses.add_analysis(connection, new, NOW)
        deleting = waits(lambda: begin(engine, goes))
    assert deleting.result(20) is False


def test_no_job_takes_a_study_that_retention_deletes(engine: Engine) -> None:
    (prior,) = arrive(engine, "1.2.2")
    arrive(engine, "1.2.3")
    assert begin(engine, candidate(engine, "1.2.2"))
    new = replace(wanted("1.2.3"), inputs=wanted("1.2.2", inputs=(prior.instance_id,)).inputs)
    with pytest.raises(StudyGoing, match="1.2.2, queue: retention is deleting it"):
        add(engine, new)
