"""What two transactions of PostgreSQL do to each other; SQLite has one at a time that writes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import sqlalchemy
from catalogue_rows import (
    AGEING,
    NOW,
    add,
    analysed,
    arrive,
    claimed,
    finish,
    instance,
    job,
    wanted,
)
from sqlalchemy import Connection, Engine, event

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import ErrorKind
from dicomai.net.commitment import NO_SUCH_OBJECT
from dicomai.results.uids import series_uid
from dicomai.service import leavings
from dicomai.service.again import again
from dicomai.service.promise import Keeper
from dicomai.settings import Settings, load
from dicomai.store import (
    analyses,
    backfills,
    claims,
    decisions,
    deliveries,
    instances,
    jobs,
    lacking,
    pauses,
    promises,
    reissues,
    retention,
    retrievals,
    studies,
)
from dicomai.store.arrivals import StudyGoing
from dicomai.store.backfills import NewBackfill
from dicomai.store.engine import reading, writing
from dicomai.store.job import AddedJob, JobId
from dicomai.store.jobs import NotNow
from dicomai.store.promises import Asked
from dicomai.store.reissues import Reissue
from dicomai.store.retention import Candidate
from dicomai.store.retrievals import NewRetrieval

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


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Those of a data folder that nobody wrote to yet."""
    file = tmp_path / "dicomai.toml"
    file.write_text('[service]\ndata = "data"\n')
    return load(file, {})


def candidate(engine: Engine, study: str) -> Candidate:
    """Have a study decided, so that retention may delete it."""
    uid = StudyInstanceUID(study)
    with writing(engine) as connection:
        decisions.set_decided(connection, uid, "Whole.", NOW)
    return Candidate(study_instance_uid=uid, origins=("received",))


def begin(engine: Engine, goes: Candidate) -> bool:
    with writing(engine) as connection:
        return retention.begin(connection, goes, LATER, LATER)


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


def test_no_file_goes_while_another_host_is_through_with_its_study(
    engine: Engine, waits: Waits, tmp_path: Path
) -> None:
    arrive(engine)
    goes = candidate(engine, "1.2.3")
    assert begin(engine, goes)
    with reading(engine) as connection:
        (path,) = retention.files(connection, goes, "", 9)
    with writing(engine) as connection:
        assert retention.complete(connection, goes, LATER)
        deleting = waits(lambda: retention.delete_marked(engine, tmp_path, LATER))
        # It has come again by now, under the same name.
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert deleting.result(20) == 0
    assert (tmp_path / path).exists()


@pytest.mark.parametrize("kind", ["analyse", "deliver"])
def test_no_result_comes_and_none_leaves_while_a_study_turns_out_to_be_two_patients(
    engine: Engine, waits: Waits, kind: str
) -> None:
    arrive(engine)
    add(engine, wanted())
    if kind == "deliver":
        finish(engine, claimed(engine).held)
    taken = claimed(engine, kind)

    def go_on() -> str | None:
        if kind == "analyse":
            return finish(engine, taken.held)
        with writing(engine) as connection:
            return deliveries.start(connection, taken.held, LATER)

    with writing(engine) as connection:
        studies.lock(connection, taken.study_instance_uid)
        going_on = waits(go_on)
        decisions.hold(connection, taken.study_instance_uid, "Two patients.", NOW)
    assert going_on.result(20) == "study held"
    assert job(engine, taken.id).state == "held"


def test_a_person_who_wants_another_run_cancels_no_job_that_a_decision_just_queued(
    engine: Engine, waits: Waits
) -> None:
    first, late = (each.instance_id for each in arrive(engine, count=2))
    old = add(engine, wanted(inputs=(first,))).job_id
    finish(engine, claimed(engine).held)

    def run_again() -> None:
        with writing(engine) as connection:
            again(connection, old, LATER)

    new = wanted(fingerprint="f2", inputs=(first, late))
    with writing(engine) as connection:
        studies.lock(connection, new.study_instance_uid)
        asking = waits(run_again)
        newer = analyses.add_analysis(connection, new, NOW).job_id
    with pytest.raises(NotNow, match=f"was superseded by job {newer}"):
        asking.result(20)
    assert job(engine, newer).state == "queued"


@pytest.mark.parametrize("state", ["failed", "held"])
def test_a_job_that_is_queued_as_a_person_has_it_tried_again_is_queued_once(
    engine: Engine, waits: Waits, state: str
) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    error: ErrorKind = "input" if state == "failed" else "config"
    taken = claimed(engine)
    with writing(engine) as connection:
        jobs.fail(connection, taken.held, error, "It did not work.", "", "", NOW)
    assert job(engine, number).state == state

    def retry() -> None:
        with writing(engine) as connection:
            jobs.retry(connection, number, NOW)

    with writing(engine) as connection:
        if state == "failed":  # by another person, else by who has changed the configuration
            jobs.retry(connection, number, NOW)
        else:
            jobs.release_held(connection, "config", NOW)
        retrying = waits(retry)
    with pytest.raises(NotNow, match="is queued already"):
        retrying.result(20)


def test_a_job_that_goes_on_without_an_input_gets_it_no_more_under_its_worker(
    engine: Engine, waits: Waits
) -> None:
    first, late = (each.instance_id for each in arrive(engine, count=2))
    lacks = replace(wanted(inputs=(first,)), waits="PACS1 is asked for its input late.")
    older = add(engine, lacks).job_id
    with writing(engine) as connection:
        assert lacking.go_without(connection, job(engine, older), {"late": "None."}, NOW)
        deciding = waits(lambda: add(engine, wanted(fingerprint="f2", inputs=(first, late))))
    newer = deciding.result(20)
    assert isinstance(newer, AddedJob)
    assert (newer.outcome, newer.job_id > older) == ("queued", True)
    with reading(engine) as connection:
        taken = [each.instance_id for each in analyses.inputs(connection, older)]
    assert (taken, job(engine, older).state) == ([first], "cancelled")


def test_a_study_that_is_decided_on_as_a_person_wants_it_is_looked_at(
    engine: Engine, waits: Waits
) -> None:
    uid = StudyInstanceUID("1.2.3")
    wish = NewRetrieval(node="PACS1", study_instance_uid=uid, ageing=AGEING)

    def want(purpose: str = "") -> None:
        with writing(engine) as connection:
            retrievals.queue(connection, replace(wish, purpose=purpose), NOW)

    want("backfill 1")
    arrive(engine)
    with writing(engine) as connection:
        studies.lock(connection, uid)
        assert retrievals.purpose_of(connection, uid)
        wanting = waits(want)
        decisions.set_decided(connection, uid, "It was fetched for backfill 1 alone.", NOW)
    wanting.result(20)
    with reading(engine) as connection:
        found = studies.get(connection, uid)
    assert found is not None
    assert found.status == "open"


def test_results_are_reissued_by_one_of_two_who_correct_them_at_once(
    engine: Engine, waits: Waits
) -> None:
    number = analysed(engine)
    old = job(engine, number)

    def correct(connection: Connection, accession_number: str) -> JobId:
        made = Reissue(
            unique=uuid.uuid4(),
            patient_key=old.patient_key,
            accession_number=accession_number,
            produced=(),
            holders=reissues.holders(connection, old),
            by_hand=(),
            unnamed=False,
        )
        return reissues.reissue(connection, old, made, NOW)

    def beside() -> None:
        with writing(engine) as connection:
            correct(connection, "A3")

    with writing(engine) as connection:
        studies.lock(connection, old.study_instance_uid)
        correcting = waits(beside)
        new = correct(connection, "A2")
    with pytest.raises(NotNow, match="was replaced meanwhile"):
        correcting.result(20)
    with reading(engine) as connection:
        assert [each.id for each in reissues.current(connection, old.study_instance_uid)] == [new]


def test_nothing_is_promised_of_a_study_that_retention_begins_to_delete(
    engine: Engine, waits: Waits, settings: Settings
) -> None:
    arrive(engine)
    goes = candidate(engine, "1.2.3")
    with writing(engine) as connection:
        (row,) = instances.of_study(connection, goes.study_instance_uid)
        asked = Asked(sop_class_uid=row.sop_class_uid, sop_instance_uid=row.sop_instance_uid)
        number = promises.note(connection, "CT1", "1.2.9", (asked,), NOW, 0, NOW)
    file = settings.folders.data / row.path
    file.parent.mkdir(parents=True)
    file.write_text("1.2.3/0")  # as its digest says
    keeper = Keeper(settings=settings, engine=engine, clock=lambda: LATER)
    with writing(engine) as connection:
        assert retention.begin(connection, goes, LATER, LATER)
        judging = waits(keeper.keep_once)
    assert judging.result(20)
    with reading(engine) as connection:
        judged = promises.get(connection, number)
    assert judged is not None
    assert judged.state == "judged"
    assert judged.failed == (replace(asked, reason=NO_SUCH_OBJECT),)


def test_no_file_is_swept_while_its_object_is_taken_in_again(
    engine: Engine, waits: Waits, settings: Settings
) -> None:
    arrive(engine)
    row = instance("1.2.3", "1.2.3.1.9", file="late")
    file = settings.folders.data / row.path
    file.parent.mkdir(parents=True)
    file.touch()
    days_later = Instant(now() + 2 * seconds(86400))
    with writing(engine) as connection:
        studies.lock(connection, row.study_instance_uid)
        sweeping = waits(lambda: leavings.sweep(engine, settings.folders, days_later))
        instances.add(connection, row, NOW)
    assert sweeping.result(20) == 0
    assert file.exists()


def test_no_result_is_swept_while_its_job_is_tried_again(
    engine: Engine, waits: Waits, settings: Settings
) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    taken = claimed(engine)
    with writing(engine) as connection:
        jobs.fail(connection, taken.held, "input", "It did not work.", "", "", NOW)
    series = series_uid(job(engine, number).uuid, "SR")
    file = settings.folders.data / instance("1.2.3", "1.2.3.1.9", series=series).path
    file.parent.mkdir(parents=True)
    file.touch()
    days_later = Instant(now() + 2 * seconds(86400))
    with writing(engine) as connection:
        jobs.retry(connection, number, NOW)
        sweeping = waits(lambda: leavings.sweep(engine, settings.folders, days_later))
    assert sweeping.result(20) == 0
    assert file.exists()


def test_the_later_word_counts_of_two_who_pause_a_node_at_once(
    engine: Engine, waits: Waits
) -> None:
    def drain() -> None:
        with writing(engine) as connection:
            pauses.pause(connection, "node", "PACS1", "draining", LATER)

    with writing(engine) as connection:
        pauses.pause(connection, "node", "PACS1", "paused", NOW)
        draining = waits(drain)
    draining.result(20)
    with reading(engine) as connection:
        (kept,) = pauses.listing(connection)
    assert (kept.mode, kept.since) == ("draining", LATER)


def test_no_job_takes_a_study_that_retention_deletes(engine: Engine) -> None:
    (prior,) = arrive(engine, "1.2.2")
    arrive(engine, "1.2.3")
    assert begin(engine, candidate(engine, "1.2.2"))
    new = replace(wanted("1.2.3"), inputs=wanted("1.2.2", inputs=(prior.instance_id,)).inputs)
    with pytest.raises(StudyGoing, match="queue: retention is deleting it"):
        add(engine, new)


def test_a_delivery_that_is_claimed_meanwhile_is_not_cancelled(
    engine: Engine, waits: Waits
) -> None:
    number = analysed(engine)
    analysis = job(engine, number)

    def cancel() -> None:
        with writing(engine) as connection:
            deliveries.cancel_unstarted(connection, analysis, "Withdrawn.", NOW)

    with writing(engine) as connection:
        claims.claim(connection, "w1", ("deliver",), (), NOW)
        cancelling = waits(cancel)
    with pytest.raises(NotNow, match="is being delivered just now"):
        cancelling.result(20)
    with reading(engine) as connection:
        (delivery,) = deliveries.of_analysis(connection, number)
    assert delivery.state == "running"


@pytest.mark.parametrize("kind", ["analyse", "deliver"])
def test_a_worker_whose_job_goes_to_another_while_it_finishes_writes_nothing(
    engine: Engine, kind: str
) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    if kind == "deliver":
        finish(engine, claimed(engine).held)
    late = claimed(engine, kind)

    def to_another() -> None:
        with writing(engine) as connection:
            assert jobs.give_back(connection, late.held, NOW)
        claimed(engine, kind)

    with before_first(engine, "UPDATE jobs SET state", to_another):
        if kind == "analyse":
            assert finish(engine, late.held) == "lost"
        else:
            with writing(engine) as connection:
                assert not deliveries.finish(connection, late.held, {}, {}, NOW)
    now_is = job(engine, late.id)
    assert (now_is.state, now_is.claim) == ("running", late.claim + 1)
    with reading(engine) as connection:
        queued = deliveries.of_analysis(connection, number)
    assert len(queued) == (kind == "deliver")


@contextmanager
def before_first(engine: Engine, statement: str, do: Callable[[], object]) -> Iterator[None]:
    """Do something right before the next statement that begins so."""
    left = [do]

    def then(_c: object, _cursor: object, text: str, *_: object) -> None:
        if left and text.startswith(statement):
            left.pop()()

    event.listen(engine, "before_cursor_execute", then)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", then)
    assert not left


@contextmanager
def after_first(engine: Engine, table: str, do: Callable[[], object]) -> Iterator[None]:
    """Do something right after the next insertion into a table."""

    left = [do]

    def then(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if left and statement.startswith(f"INSERT INTO {table} "):
            left.pop()()

    event.listen(engine, "after_cursor_execute", then)
    try:
        yield
    finally:
        event.remove(engine, "after_cursor_execute", then)


def test_a_retrieval_that_ends_as_the_same_is_wanted_again_is_queued_anew(engine: Engine) -> None:
    new = NewRetrieval(node="PACS1", study_instance_uid=StudyInstanceUID("1.2.3"), ageing=AGEING)
    with writing(engine) as connection:
        first = retrievals.queue(connection, new, NOW).job_id

    def end() -> None:
        with writing(engine) as other:
            jobs.cancel(other, first, "Enough.", NOW)

    with writing(engine) as connection, after_first(engine, "jobs", end):
        again = retrievals.queue(connection, new, NOW)
    assert (again.outcome, again.job_id > first) == ("queued", True)


def test_a_backfill_that_ends_as_the_same_is_wanted_again_is_started_anew(engine: Engine) -> None:
    day = date(2026, 1, 1)
    new = NewBackfill(
        node="PACS1", route="lungs", mode="shadow", first_day=day, last_day=day, studies_per_hour=60
    )
    with writing(engine) as connection:
        first = backfills.add(connection, new, NOW).backfill

    def end() -> None:
        with writing(engine) as other:
            backfills.set_done(other, first, NOW, "")

    with writing(engine) as connection, after_first(engine, "backfills", end):
        again = backfills.add(connection, new, NOW)
    assert (again.outcome, again.backfill.id > first.id) == ("started", True)
