"""The queue, on both databases: who gets which job, and what may happen to it."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import date

import pytest
import sqlalchemy
from catalogue_rows import NOW, add, analysed, arrive, claim, claimed, finish, instance, job, wanted
from sqlalchemy import Connection, Engine, update

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID, StudyInstanceUID
from dicomai.errors import ERROR_KINDS
from dicomai.store import (
    analyses,
    backfills,
    claims,
    commitments,
    decisions,
    deliveries,
    events,
    jobs,
    moves,
    nodes,
    pauses,
    reruns,
    retention,
    retrievals,
    schema,
    withdrawals,
)
from dicomai.store.backfills import NewBackfill
from dicomai.store.commitments import Told
from dicomai.store.deliveries import DeliveryObject
from dicomai.store.engine import reading, writing
from dicomai.store.job import CRASHES, AddedJob, Held, JobId, JobRoute, jitter_of, policy
from dicomai.store.retrievals import NewRetrieval
from dicomai.store.states import JOB_STATES, MOVES, JobKind, JobState


def put(engine: Engine, number: JobId, state: JobState) -> None:
    """Set a row to a state, whatever the moves say, with what the CHECKs want."""
    over = state in ("done", "failed", "cancelled")
    with writing(engine) as connection:
        connection.execute(
            update(schema.jobs)
            .where(schema.jobs.c.id == number)
            .values(
                state=state,
                waiting_for="back-off" if state == "waiting" else None,
                due_at=NOW if state == "waiting" else None,
                held_by="config" if state == "held" else None,
                finished_at=NOW if over else None,
            )
        )


def test_each_move_is_allowed_or_not_as_the_table_says(engine: Engine) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    details = {
        "waiting": {"waiting_for": "back-off", "due_at": NOW},
        "held": {"held_by": "config"},
        **{state: {"finished_at": NOW} for state in ("done", "failed", "cancelled")},
    }
    for source, target in itertools.product(JOB_STATES, JOB_STATES):
        put(engine, number, source)
        with writing(engine) as connection:
            this = schema.jobs.c.id == number
            more = details.get(target, {})
            if target in MOVES[source]:
                moved = moves.move(connection, (source,), target, this, **more)
                assert [each.state for each in moved] == [target]
            else:
                with pytest.raises(AssertionError):
                    moves.move(connection, (source,), target, this, **more)


def test_a_move_from_another_state_touches_no_row(engine: Engine) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    with writing(engine) as connection:
        assert not moves.move(
            connection, ("running",), "done", schema.jobs.c.id == number, finished_at=NOW
        )
    assert job(engine, number).state == "queued"


@pytest.mark.parametrize(
    "values",
    [
        {"state": "lost"},
        {"state": "waiting"},
        {"state": "held"},
        {"state": "done"},
        {"held_by": "config"},
        {"attempts": 1},
        {"error_kind": "bad luck"},
        {"node": "PACS1"},
        {"fingerprint": None},
    ],
)
def test_the_database_refuses_a_row_that_contradicts_itself(
    engine: Engine, values: dict[str, object]
) -> None:
    arrive(engine)
    add(engine, wanted())
    with pytest.raises(sqlalchemy.exc.IntegrityError), writing(engine) as connection:
        connection.execute(update(schema.jobs).values(**values))


def test_urgent_comes_first_then_what_has_waited_longest_for_its_priority(engine: Engine) -> None:
    names = {}
    wishes = [
        ("old", {}, 0),
        ("young", {}, 900),
        ("young and important", {"priority": 1}, 500),
        ("urgent", {"urgent": True}, 2000),
        ("important but very young", {"priority": 1}, 700),
    ]
    for number, (name, wish, after_s) in enumerate(wishes):
        study = f"1.2.{number}"
        arrive(engine, study)
        new = wanted(study, name, **wish)
        names[add(engine, new, Instant(NOW + seconds(after_s))).job_id] = name
    order = [names[claimed(engine).id] for _ in wishes]
    assert order == [
        "urgent",
        "young and important",
        "old",
        "important but very young",
        "young",
    ]


def test_a_worker_gets_only_what_it_serves(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted(model="nodules"))
    assert claim(engine, models=("lungs",)) is None
    assert claim(engine, "deliver") is None
    assert claim(engine, models=("lungs", "nodules")) is not None


def test_giving_back_refunds_the_attempt_but_not_the_claim(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    first = claimed(engine)
    with writing(engine) as connection:
        assert jobs.give_back(connection, first.held, NOW)
    back = job(engine, first.id)
    assert (back.state, back.attempts, back.claim) == ("queued", 0, 1)
    second = claimed(engine)
    assert (second.attempts, second.claim) == (1, 2)


def test_every_late_write_of_a_zombie_touches_no_row(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    zombie = claimed(engine).held
    with writing(engine) as connection:
        jobs.give_back(connection, zombie, NOW)
    alive = claimed(engine)
    with writing(engine) as connection:
        assert not jobs.beat(connection, zombie, "infer", 0.5, NOW)
        assert not jobs.give_back(connection, zombie, NOW)
        assert jobs.fail(connection, zombie, "input", "late", "load", "", NOW) is None
        assert jobs.outcome(connection, zombie) == "lost"
    assert finish(engine, zombie) == "lost"
    assert job(engine, alive.id) == alive


def test_every_late_write_of_a_delivery_that_another_worker_has_touches_no_row(
    engine: Engine,
) -> None:
    arrive(engine)
    add(engine, wanted())
    finish(engine, claimed(engine).held)
    zombie = claimed(engine, "deliver").held
    with writing(engine) as connection:
        jobs.give_back(connection, zombie, NOW)
    alive = claimed(engine, "deliver")
    uid = SOPInstanceUID("1.2.3.9")
    refused = DeliveryObject(
        sop_instance_uid=uid, state="refused", status=0xC000, sentence="No.", at=NOW
    )
    with writing(engine) as connection:
        assert deliveries.start(connection, zombie, NOW) == "lost"
        assert not deliveries.begin_objects(connection, zombie, (uid,), NOW)
        assert not deliveries.note_objects(connection, zombie, (refused,))
        assert not deliveries.finish(connection, zombie, {}, {}, NOW)
        assert not commitments.begin(connection, zombie, "PACS1", "1.2.8", (uid,), NOW)
        assert commitments.begin(connection, alive.held, "PACS1", "1.2.9", (uid,), NOW)
        waits = commitments.await_report(connection, zombie, "1.2.9", NOW, "Asked.", {}, NOW)
        assert waits == "lost"
        assert deliveries.objects(connection, alive.id) == ()
        told = Told(node="PACS1", transaction_uid="1.2.9", committed=frozenset({uid}), failed={})
        commitments.note(connection, told, NOW)
        waits = commitments.await_report(connection, zombie, "1.2.9", NOW, "Asked.", {}, NOW)
        assert waits == "lost"
        (asked,) = commitments.of_job(connection, alive.id)
    assert (asked.transaction_uid, asked.state) == ("1.2.9", "committed")
    assert job(engine, alive.id) == alive


def test_after_a_commit_of_unknown_outcome_the_row_tells(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    with reading(engine) as connection:
        assert jobs.outcome(connection, held) == "ours"
    assert finish(engine, held) == "done"
    with reading(engine) as connection:
        assert jobs.outcome(connection, held) == "done"
        assert jobs.outcome(connection, Held(held.job_id, held.claim + 1)) == "lost"


@pytest.mark.parametrize(
    ("error", "state", "held_by"),
    [
        ("input", "failed", None),
        ("config", "held", "config"),
        ("transient", "waiting", None),
        ("resource", "waiting", None),
        ("crash", "queued", None),
        ("identity", "held", "identity"),
        ("refused", "held", "person"),
        ("deadline", "failed", None),
    ],
)
def test_the_kind_of_an_error_decides_what_follows(
    engine: Engine, error: str, state: str, held_by: str | None
) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    with writing(engine) as connection:
        after = jobs.fail(connection, held, error, "Why.", "infer", "1.2.3", NOW)
    assert after is not None
    assert (after.state, after.held_by, after.error_kind) == (state, held_by, error)
    assert (after.error_sentence, after.error_stage, after.error_subject) == (
        "Why.",
        "infer",
        "1.2.3",
    )


def test_back_off_doubles_with_jitter_up_to_a_day_and_ends() -> None:
    unique = uuid.uuid4()
    delays = []
    for attempts in range(1, 17):
        then = policy(
            "transient",
            "deliver",
            attempts=attempts,
            crashes=0,
            jitter=jitter_of(unique, attempts),
        )
        assert then.state == "waiting"
        assert then.delay is not None
        delays.append(then.delay / seconds(60))
    for number, delay in enumerate(delays):
        whole = min(1440.0, 2.0**number)
        assert whole / 2 <= delay <= whole
    assert sum(delays) / 1440 > 3  # days
    assert policy("transient", "deliver", attempts=17, crashes=0, jitter=0).state == "failed"


def test_a_retrieval_that_takes_too_long_goes_on_later() -> None:
    then = policy("deadline", "retrieve", attempts=1, crashes=0, jitter=0)
    assert then == policy("transient", "retrieve", attempts=1, crashes=0, jitter=0)
    assert policy("deadline", "retrieve", attempts=17, crashes=0, jitter=0).state == "failed"
    sent = policy("deadline", "deliver", attempts=1, crashes=0, jitter=0)
    assert (sent.state, sent.delay) == (then.state, then.delay)


def test_the_policy_knows_every_kind_of_error() -> None:
    for error, kind in itertools.product(ERROR_KINDS, ("analyse", "deliver", "retrieve")):
        policy(error, kind, attempts=1, crashes=1, jitter=0.0)


def test_a_backed_off_job_is_promoted_when_it_is_due(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    with writing(engine) as connection:
        after = jobs.fail(connection, held, "transient", "Away.", "load", "", NOW)
    assert after is not None
    assert after.due_at is not None
    with writing(engine) as connection:
        assert not jobs.promote_due(connection, Instant(after.due_at - 1))
        assert [each.id for each in jobs.promote_due(connection, after.due_at)] == [held.job_id]
    assert claimed(engine).attempts == 2


def test_a_cancelled_running_job_can_write_nothing(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    with writing(engine) as connection:
        jobs.cancel(connection, held.job_id, "No longer wanted.", NOW)
    assert finish(engine, held) == "lost"
    with pytest.raises(jobs.NotNow), writing(engine) as connection:
        jobs.cancel(connection, held.job_id, "Again.", NOW)


UNDER_WAY: tuple[JobState, ...] = ("waiting", "queued", "running", "held")


@pytest.mark.parametrize("state", UNDER_WAY)
def test_whatever_is_not_over_may_be_cancelled(engine: Engine, state: JobState) -> None:
    for study in ("1.2.3", "1.2.4"):
        arrive(engine, study)
    number = add(engine, wanted()).job_id
    other = add(engine, wanted("1.2.4", "f2")).job_id
    put(engine, number, state)
    with writing(engine) as connection:
        jobs.cancel(connection, number, "No longer wanted.", NOW)
    assert (job(engine, number).state, job(engine, other).state) == ("cancelled", "queued")


@pytest.mark.parametrize(
    ("act", "then"),
    [
        (lambda connection, number: jobs.retry(connection, number, NOW), "queued"),
        (lambda connection, number: jobs.cancel(connection, number, "Enough.", NOW), "cancelled"),
        (lambda connection, number: jobs.queue_report(connection, number, NOW), "queued"),
    ],
    ids=["retry", "cancel", "report"],
)
def test_what_is_asked_of_one_job_concerns_no_other(
    engine: Engine, act: Callable[[Connection, JobId], object], then: JobState
) -> None:
    numbers = []
    for study in ("1.2.3", "1.2.4", "1.2.5"):
        arrive(engine, study)
        numbers.append(add(engine, wanted(study, study)).job_id)
    for _ in numbers * CRASHES:
        held = claimed(engine).held
        with writing(engine) as connection:
            jobs.fail(connection, held, "crash", "Died.", "infer", "", NOW)
    with writing(engine) as connection:
        act(connection, numbers[1])
    assert [job(engine, each).state for each in numbers] == ["failed", then, "failed"]


def test_what_was_held_for_another_reason_is_not_released(engine: Engine) -> None:
    held = []
    for study, error in (("1.2.3", "config"), ("1.2.4", "identity"), ("1.2.5", "refused")):
        arrive(engine, study)
        add(engine, wanted(study, study))
        taken = claimed(engine).held
        with writing(engine) as connection:
            jobs.fail(connection, taken, error, "No.", "check", "", NOW)
        held.append(taken.job_id)
    with writing(engine) as connection:
        (released,) = jobs.release_held(connection, "config", NOW)
    assert released.id == held[0]
    assert [job(engine, each).held_by for each in held] == [None, "identity", "person"]


@pytest.mark.parametrize("state", UNDER_WAY)
def test_no_analysis_goes_on_whose_images_have_changed(engine: Engine, state: JobState) -> None:
    arrive(engine)
    old = add(engine, wanted()).job_id
    put(engine, old, state)
    new = add(engine, wanted(fingerprint="f2")).job_id
    assert job(engine, old).state == "cancelled"
    assert (job(engine, new).state, job(engine, new).supersedes) == ("queued", old)


def test_an_analysis_takes_the_place_of_none_of_another_model_or_choice(engine: Engine) -> None:
    arrive(engine)
    arrive(engine, "1.2.4")
    every = [
        add(engine, new).job_id
        for new in (
            wanted(),
            wanted(fingerprint="f2", model="nodules"),
            wanted(fingerprint="f3", choice="another series"),
            wanted("1.2.4", "f4"),
        )
    ]
    made = [job(engine, number) for number in every]
    assert [(each.state, each.supersedes) for each in made] == [("queued", None)] * 4


def test_what_changed_has_nothing_else_analysed_anew(engine: Engine) -> None:
    for study in ("1.2.3", "1.2.4"):
        arrive(engine, study)
        add(engine, wanted(study, study))
    add(engine, wanted("1.2.3", "changed"))
    assert add(engine, wanted("1.2.4", "1.2.4")).outcome == "present"


def test_a_failed_job_that_a_person_cancels_is_to_be_seen_to_no_more(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    with writing(engine) as connection:
        jobs.fail(connection, held, "input", "Bad slice.", "load", "", NOW)
        assert jobs.unsettled(connection) == {("failed", None): (held.job_id,)}
        later = Instant(NOW + seconds(86400))
        settled = jobs.cancel(connection, held.job_id, "Nothing can be done.", later)
        assert jobs.unsettled(connection) == {}
    assert (settled.state, settled.error_sentence) == ("cancelled", "Bad slice.")
    assert settled.finished_at == NOW  # by which a sweep knows what the job left
    with pytest.raises(jobs.NotNow, match="For a new run: "), writing(engine) as connection:
        jobs.retry(connection, held.job_id, NOW)


def test_retry_queues_the_same_row_with_its_attempts_forgotten(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    first = claimed(engine).held
    with writing(engine) as connection:
        jobs.fail(connection, first, "crash", "Died.", "infer", "", NOW)
    held = claimed(engine).held
    with writing(engine) as connection:
        jobs.fail(connection, held, "input", "Bad slice.", "load", "", NOW)
        again = jobs.retry(connection, held.job_id, NOW)
    assert (again.id, again.state, again.error_kind) == (held.job_id, "queued", None)
    assert (again.attempts, again.crashes) == (0, 0)


def test_nothing_is_tried_again_while_its_study_is_deleted(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    candidate = retention.Candidate(
        study_instance_uid=StudyInstanceUID("1.2.3"), origins=("received",)
    )
    with writing(engine) as connection:
        jobs.fail(connection, held, "input", "Bad.", "load", "1.2.3", NOW)
        decisions.set_decided(connection, candidate.study_instance_uid, "", NOW)
        assert retention.begin(connection, candidate, NOW, NOW)
        with pytest.raises(jobs.NotNow, match="deleted by retention"):
            jobs.retry(connection, held.job_id, NOW)


@pytest.mark.parametrize("series", [30, 31, 400])
def test_a_retrieval_of_many_series_is_queued(engine: Engine, series: int) -> None:
    chance = random.Random(series)
    uids = [f"2.25.{chance.randrange(10**57, 10**58)}" for _ in range(series)]
    new = NewRetrieval(
        node="N" * 64,
        study_instance_uid=StudyInstanceUID(uids[0]),
        series=frozenset(map(SeriesInstanceUID, uids)),
        ageing=seconds(600),
    )
    with writing(engine) as connection:
        number = retrievals.queue(connection, new, NOW).job_id
        job = jobs.get(connection, number)
        again = retrievals.queue(connection, new, NOW)
    assert job is not None
    assert retrievals.series_of(job) == (frozenset(uids) if series == 30 else frozenset())
    assert (again.outcome, again.job_id) == ("present", number)


def test_studies_that_cannot_move_hide_none_of_a_backfill_that_can(engine: Engine) -> None:
    day = date(2026, 1, 1)
    with writing(engine) as connection:
        backfill = backfills.add(
            connection,
            NewBackfill(
                node="PACS1", route="lungs", mode="shadow", first_day=day, last_day=day,
                studies_per_hour=60,
            ),
            NOW,
        ).backfill  # fmt: skip
        uids = [StudyInstanceUID(f"1.2.3.{number}") for number in range(2)]
        backfills.note_found(connection, backfill, [(uid, "20260101") for uid in uids])
        queued = [
            retrievals.queue(
                connection,
                NewRetrieval(node="PACS1", study_instance_uid=uid, ageing=seconds(600)),
                NOW,
            ).job_id
            for uid in uids
        ]
        for past in backfills.studies_of(connection, backfill, ("found",), 9):
            job_id = queued[uids.index(past.study_instance_uid)]
            backfills.move(connection, backfill, past, "fetching", retrieval=job_id)
        states = {queued[0]: "held", queued[1]: "failed"}
        for number, state in states.items():
            connection.execute(
                update(schema.jobs)
                .where(schema.jobs.c.id == number)
                .values(
                    state=state,
                    held_by="config" if state == "held" else None,
                    finished_at=None if state == "held" else NOW,
                )
            )
        found = backfills.arriving(connection, backfill, 1)
    assert [each.past.study_instance_uid for each in found] == uids[1:]


def test_a_retrieval_that_was_asked_for_again_is_not_tried_again_beside_it(engine: Engine) -> None:
    new = NewRetrieval(
        node="PACS1", study_instance_uid=StudyInstanceUID("1.2.3"), ageing=seconds(600)
    )
    with writing(engine) as connection:
        failed = retrievals.queue(connection, new, NOW).job_id
    held = claimed(engine, "retrieve").held
    with writing(engine) as connection:
        jobs.fail(connection, held, "refused", "PACS1 refused.", "fetch", "1.2.3", NOW)
        retrievals.queue(
            connection, replace(new, study_instance_uid=StudyInstanceUID("1.2.4")), NOW
        )
        other = retrievals.queue(connection, new, NOW).job_id
    with (
        writing(engine) as connection,
        pytest.raises(jobs.NotNow, match=rf"job {other}\b.* is queued\. See: dicomai job {other}"),
    ):
        jobs.retry(connection, failed, NOW)
    with writing(engine) as connection:
        jobs.cancel(connection, other, "Not wanted.", NOW)
        assert jobs.retry(connection, failed, NOW).state == "queued"


def test_again_makes_a_new_generation_on_the_same_input(engine: Engine) -> None:
    added = arrive(engine)
    old = add(engine, wanted(inputs=(added[0].instance_id,))).job_id
    with pytest.raises(jobs.NotNow), writing(engine) as connection:
        reruns.again(connection, old, (), "f" * 64, "f2", NOW)
    finish(engine, claimed(engine).held)
    with writing(engine) as connection:
        new = reruns.again(connection, old, analyses.inputs(connection, old), "f" * 64, "f2", NOW)
        assert analyses.inputs(connection, new) == analyses.inputs(connection, old)
    made = job(engine, new)
    assert (made.generation, made.supersedes, made.state) == (1, old, "queued")
    assert made.uuid != job(engine, old).uuid


@pytest.mark.parametrize("state", ["done", "cancelled"])
@pytest.mark.parametrize("kind", ["deliver", "retrieve"])
def test_what_is_over_and_no_analysis_names_a_command_that_does_it_once_more(
    engine: Engine, kind: JobKind, state: JobState
) -> None:
    if kind == "retrieve":
        new = NewRetrieval(
            node="PACS1", study_instance_uid=StudyInstanceUID("1.2.3"), ageing=seconds(600)
        )
        with writing(engine) as connection:
            number = retrievals.queue(connection, new, NOW).job_id
        command = "dicomai retrieve PACS1 --study 1.2.3"
    else:
        added = arrive(engine)
        inputs = (added[0].instance_id,)
        analysis = add(engine, wanted(inputs=inputs, destinations=("PACS1",))).job_id
        result = instance("1.2.3", "1.2.3.9", file="result", origin="produced", series="1.2.3.99")
        finish(engine, claimed(engine).held, (result,))
        with reading(engine) as connection:
            (number,) = (each.id for each in deliveries.of_analysis(connection, analysis))
        command = f"dicomai retry {analysis} --again"
    put(engine, number, state)
    with writing(engine) as connection:
        with pytest.raises(jobs.NotNow) as not_tried:
            jobs.retry(connection, number, NOW)
        with pytest.raises(jobs.NotNow) as not_again:
            reruns.again(connection, number, (), "f" * 64, "f2", NOW)
    assert not_tried.value.sentence.endswith(command)
    assert not_again.value.sentence.endswith(command)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("queued", "is queued. See: dicomai job {}"),
        ("running", "runs. See: dicomai job {}"),
        ("held", "is held. See: dicomai job {}"),
        ("failed", "failed. To try it again: dicomai retry {}"),
        ("done", "is done. For a new run: dicomai retry {} --again"),
        ("cancelled", "was cancelled. For a new run: dicomai retry {} --again"),
    ],
)
def test_what_was_run_again_already_says_as_which_job(
    engine: Engine, state: JobState, says: str
) -> None:
    added = arrive(engine)
    old = add(engine, wanted(inputs=(added[0].instance_id,))).job_id
    finish(engine, claimed(engine).held)
    with writing(engine) as connection:
        taken = analyses.inputs(connection, old)
        new = reruns.again(connection, old, taken, "f" * 64, "f2", NOW)
    put(engine, new, state)
    with pytest.raises(jobs.NotNow) as refused, writing(engine) as connection:
        reruns.again(connection, old, taken, "f" * 64, "f2", NOW)
    said = f"was run again already, as job {new}, which {says.format(new)}"
    assert refused.value.sentence.endswith(said)
    assert job(engine, new).state == state


def test_the_story_says_who_wanted_another_run(engine: Engine) -> None:
    added = arrive(engine)
    old = add(engine, wanted(inputs=(added[0].instance_id,), destinations=("PACS1",))).job_id
    finish(engine, claimed(engine).held)
    with writing(engine) as connection:
        taken = analyses.inputs(connection, old)
        new = reruns.again(connection, old, taken, "f" * 64, "f2", NOW)
        study = jobs.existing(connection, old).study_instance_uid
        told = [each.sentence for each in events.story(connection, study)]
    assert f"A person had job {old} run again: Job {new} (lungs) is queued." in told
    assert "A person had the analysis run again; a newer job takes its place." in told
    assert not any("have changed" in each or "has changed" in each for each in told)


def test_results_that_were_refused_are_made_anew_with_another_package(engine: Engine) -> None:
    added = arrive(engine)
    old = add(engine, wanted(inputs=(added[0].instance_id,))).job_id
    held = claimed(engine).held
    with writing(engine) as connection:
        jobs.fail(connection, held, "refused", "A rule is broken.", "check", "1.2.3", NOW)
        assert [each.id for each in jobs.held_by(connection, "person", 10)] == [old]
        assert not jobs.held_by(connection, "config", 10)
    same = job(engine, old).package_sha256
    with reading(engine) as connection:
        taken = analyses.inputs(connection, old)
    with pytest.raises(jobs.NotNow), writing(engine) as connection:
        reruns.again(connection, old, taken, same, "f2", NOW)
    with writing(engine) as connection:
        new = reruns.again(connection, old, taken, "a" * 64, "f2", NOW)
    assert (job(engine, old).state, job(engine, new).state) == ("cancelled", "queued")


def test_two_routes_share_one_analysis_and_each_node_gets_it_once(engine: Engine) -> None:
    arrive(engine)
    first = add(engine, wanted(route="a", destinations=("PACS1",)))
    second = add(engine, wanted(route="b", destinations=("PACS1", "PACS2")))
    assert (first.outcome, second.outcome) == ("queued", "shared")
    assert second.job_id == first.job_id
    assert add(engine, wanted(route="b", destinations=("PACS1", "PACS2"))).outcome == "present"
    finish(engine, claimed(engine).held)
    assert delivered_to(engine, first.job_id) == ["PACS1", "PACS2"]
    # A route that comes when it is done gets the results at once.
    late = wanted(route="c", destinations=("PACS2", "VNA"))
    assert add(engine, late).outcome == "shared"
    assert delivered_to(engine, first.job_id) == ["PACS1", "PACS2", "VNA"]
    with reading(engine) as connection:
        routes = {
            each.node: [route.route for route in jobs.routes_of(connection, each.id)]
            for each in deliveries.of_analysis(connection, first.job_id)
        }
    assert routes == {"PACS1": ["a", "b"], "PACS2": ["b", "c"], "VNA": ["c"]}


def test_what_one_node_has_says_nothing_of_what_another_has(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted(destinations=("PACS1", "VNA")))
    finish(engine, claimed(engine).held)
    uids = SOPInstanceUID("1.2.3.8"), SOPInstanceUID("1.2.3.9")

    def known(job: JobId) -> dict[str, str]:
        with reading(engine) as connection:
            told = deliveries.objects(connection, job)
        return {each.sop_instance_uid: each.state for each in told}

    def note(held: Held) -> None:
        sent = DeliveryObject(
            sop_instance_uid=uids[0], state="sent", status=0, sentence="Stored.", at=NOW
        )
        with writing(engine) as connection:
            assert deliveries.note_objects(connection, held, (sent,))

    def begin(held: Held) -> None:
        with writing(engine) as connection:
            assert deliveries.begin_objects(connection, held, uids, NOW)

    first, second = (claimed(engine, "deliver") for _ in range(2))
    begin(first.held)
    note(first.held)
    assert known(second.id) == {}
    begin(second.held)
    begin(first.held)  # once more, as after it broke off
    assert known(first.id) == {uids[0]: "sent", uids[1]: "uncertain"}
    assert known(second.id) == dict.fromkeys(uids, "uncertain")


def test_a_report_on_storage_commitment_concerns_its_own_delivery_alone(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted(destinations=("PACS1", "VNA")))
    finish(engine, claimed(engine).held)
    kept, other = SOPInstanceUID("1.2.3.8"), SOPInstanceUID("1.2.3.9")
    taken = [claimed(engine, "deliver") for _ in range(2)]
    sent = [
        DeliveryObject(sop_instance_uid=uid, state="sent", status=0, sentence="Stored.", at=NOW)
        for uid in (kept, other)
    ]
    with writing(engine) as connection:
        for each in taken:
            uid = f"1.2.9.{each.node}"
            assert deliveries.note_objects(connection, each.held, sent)
            assert commitments.begin(connection, each.held, each.node, uid, (kept,), NOW)
            later = Instant(NOW + seconds(60))
            asked = commitments.await_report(connection, each.held, uid, later, "Asked.", {}, NOW)
            assert asked == "waits"

    def reported(node: str) -> list[object]:
        told = Told(
            node=node,
            transaction_uid="1.2.9.PACS1",
            committed=frozenset({kept, other}),  # and of one it was not asked
            failed={},
        )
        with writing(engine) as connection:
            commitments.note(connection, told, NOW)
            return [
                (
                    jobs.existing(connection, each.id).state,
                    [one.state for one in deliveries.objects(connection, each.id)],
                    [one.state for one in commitments.of_job(connection, each.id)],
                )
                for each in taken
            ]

    waits = ("waiting", ["sent", "sent"], ["asked"])
    assert reported("VNA") == [waits, waits]
    assert reported("PACS1") == [("queued", ["committed", "sent"], ["committed"]), waits]


@pytest.mark.parametrize("state", ["waiting", "queued", "held"])
def test_results_that_others_replace_go_out_no_more(engine: Engine, state: JobState) -> None:
    old = analysed(engine)
    with reading(engine) as connection:
        (delivery,) = deliveries.of_analysis(connection, old)
    put(engine, delivery.id, state)
    add(engine, wanted(fingerprint="f2"))
    assert job(engine, delivery.id).state == "cancelled"


def test_no_route_that_comes_later_has_withdrawn_results_delivered(engine: Engine) -> None:
    added = arrive(engine)
    inputs = (added[0].instance_id,)
    old = add(engine, wanted(inputs=inputs)).job_id
    finish(engine, claimed(engine).held)
    with writing(engine) as connection:
        withdrawals.add(connection, jobs.existing(connection, old), "w1", NOW)
    later = wanted(route="b", destinations=("PACS2",), inputs=inputs)
    assert add(engine, later) == AddedJob(outcome="present", job_id=old)
    assert delivered_to(engine, old) == ["PACS1"]


def test_a_route_that_comes_later_shares_the_new_run_and_not_what_it_replaces(
    engine: Engine,
) -> None:
    added = arrive(engine)
    inputs = (added[0].instance_id,)
    first = wanted(inputs=inputs)
    old = add(engine, first).job_id
    finish(engine, claimed(engine).held)
    with writing(engine) as connection:
        taken = analyses.inputs(connection, old)
        new = reruns.again(connection, old, taken, first.package_sha256, "f2", NOW)
    finish(engine, claimed(engine).held)
    later = wanted(route="b", destinations=("PACS2",), inputs=inputs)
    assert add(engine, later) == AddedJob(outcome="shared", job_id=new)
    assert "PACS2" in delivered_to(engine, new)
    assert "PACS2" not in delivered_to(engine, old)


@pytest.mark.parametrize("how", ["failed", "given back", "paused"])
def test_a_delivery_that_stops_does_not_go_again_once_others_took_its_results_place(
    engine: Engine, how: str
) -> None:
    old = analysed(engine)
    running = claimed(engine, "deliver")
    add(engine, wanted(fingerprint="f2"))
    with writing(engine) as connection:
        if how == "failed":
            jobs.fail(connection, running.held, "transient", "No room.", "send", "", NOW)
        elif how == "given back":
            jobs.give_back(connection, running.held, NOW)
        else:
            pauses.pause(connection, "node", "PACS1", "paused", NOW)
            pauses.resume(connection, "node", "PACS1", NOW)
    if how != "failed":
        with writing(engine) as connection:
            again = claims.claim(connection, "w1", ("deliver",), (), NOW)
            assert again is not None
            assert deliveries.start(connection, again.held, NOW) == "lost"
    with reading(engine) as connection:
        (delivery,) = deliveries.of_analysis(connection, old)
    assert delivery.state == "cancelled"


def test_a_note_that_failed_is_tried_again_though_a_new_run_took_its_place(
    engine: Engine,
) -> None:
    old = analysed(engine)
    with writing(engine) as connection:
        route = JobRoute(route="withdrawal", mode="live", destinations=("PACS1",))
        deliveries.cancel_waiting(connection, old, "Withdrawn.", NOW)
        note = withdrawals.add(connection, jobs.existing(connection, old), "w1", NOW)
        analyses.add_destination(connection, note.id, route, NOW)
        reruns.again(connection, old, (), "", "f2", NOW)
    running = claimed(engine, "deliver")
    with writing(engine) as connection:
        assert deliveries.start(connection, running.held, NOW) is None
        jobs.fail(connection, running.held, "refused", "No notes.", "send", "", NOW)
        assert jobs.retry(connection, running.id, NOW).state == "queued"


def test_withdrawing_results_that_were_replaced_leaves_those_that_stand(engine: Engine) -> None:
    added = arrive(engine, count=2)
    old = add(engine, wanted(inputs=(added[0].instance_id,))).job_id
    finish(engine, claimed(engine).held)
    newer = wanted(fingerprint="f2", inputs=(added[1].instance_id,))
    stands = add(engine, newer).job_id
    with writing(engine) as connection:
        withdrawals.add(connection, jobs.existing(connection, old), "w1", NOW)

    shared = add(engine, replace(newer, route=replace(newer.route, route="b")))
    last = add(engine, wanted(fingerprint="f3", inputs=tuple(e.instance_id for e in added)))

    assert shared == AddedJob(outcome="shared", job_id=stands)
    assert (last.outcome, job(engine, stands).state) == ("queued", "cancelled")
    assert job(engine, last.job_id).supersedes == stands


@pytest.mark.parametrize("other", ["images", "package"])
def test_what_comes_back_is_analysed_anew_and_replaces_what_came_between(
    engine: Engine, other: str
) -> None:
    added = arrive(engine, count=2)
    before, after = (added[0].instance_id,), tuple(each.instance_id for each in added)
    first = wanted(inputs=before)
    old = add(engine, first).job_id
    finish(engine, claimed(engine).held)
    newer = replace(first, fingerprint="f2")
    if other == "images":
        newer = wanted(fingerprint="f2", inputs=after)
    else:
        newer = replace(newer, package_sha256="a" * 64)
    between = add(engine, newer).job_id
    finish(engine, claimed(engine).held)
    later = wanted(destinations=("PACS2",), inputs=before)

    new = add(engine, later)

    assert new.outcome == "queued"
    assert new.job_id not in (old, between)
    assert job(engine, new.job_id).supersedes == between
    assert "PACS2" not in delivered_to(engine, old)
    assert add(engine, later) == AddedJob(outcome="present", job_id=new.job_id)


def test_what_was_compared_with_a_prior_stays_so_when_that_is_deleted(engine: Engine) -> None:
    added = arrive(engine, count=2)
    alone = wanted(inputs=(added[0].instance_id,))
    old = add(engine, alone).job_id
    finish(engine, claimed(engine).held)
    both = wanted(fingerprint="f2", inputs=tuple(each.instance_id for each in added))
    ct, prior = both.inputs
    add(engine, replace(both, inputs=(ct, replace(prior, input="prior"))))
    finish(engine, claimed(engine).held)
    assert add(engine, alone) == AddedJob(outcome="present", job_id=old)


def test_two_routes_that_take_other_images_of_a_series_do_not_take_turns(engine: Engine) -> None:
    added = arrive(engine, count=2)
    some, others = ((each.instance_id,) for each in added)
    thin, thick = wanted(route="thin", inputs=some), wanted(fingerprint="f2", inputs=others)
    old = add(engine, thin).job_id
    finish(engine, claimed(engine).held)
    assert add(engine, thick).outcome == "queued"
    assert add(engine, thin) == AddedJob(outcome="present", job_id=old)


def delivered_to(engine: Engine, number: JobId) -> list[str]:
    with reading(engine) as connection:
        return [each.node for each in deliveries.of_analysis(connection, number)]


def test_a_shadow_route_delivers_nothing(engine: Engine) -> None:
    arrive(engine)
    number = add(engine, wanted(mode="shadow")).job_id
    finish(engine, claimed(engine).held)
    assert delivered_to(engine, number) == []
    live = JobRoute(route="lungs", mode="live", destinations=("PACS1",))
    with writing(engine) as connection:
        assert analyses.add_destination(connection, number, live, NOW)
    assert delivered_to(engine, number) == ["PACS1"]


def test_a_fingerprint_outlives_its_job(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted(destinations=()))
    finish(engine, claimed(engine).held)
    with writing(engine) as connection:
        assert retention.prune_jobs(connection, Instant(NOW + 1)) == 1
    assert add(engine, wanted()).outcome == "pruned"
    assert claim(engine) is None


def test_only_one_job_is_live_per_study_model_and_choice(engine: Engine) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    with reading(engine) as connection:
        row = dict(connection.execute(sqlalchemy.select(schema.jobs)).one()._mapping)
    del row["id"]
    twin = schema.jobs.insert().values(**{**row, "uuid": "other", "fingerprint": "f2"})
    with pytest.raises(sqlalchemy.exc.IntegrityError), writing(engine) as connection:
        connection.execute(twin)
    assert job(engine, number).state == "queued"


def open_breaker(engine: Engine, node: str) -> None:
    with writing(engine) as connection:
        for _ in range(nodes.TOO_OFTEN):
            nodes.failed(connection, node, f"{node} does not answer.", NOW)


def deliveries_of(engine: Engine, count: int) -> list[JobId]:
    """Finish so many analyses, each with a delivery to PACS1 and one to VNA."""
    for number in range(count):
        arrive(engine, f"1.2.{number}")
        add(engine, wanted(f"1.2.{number}", f"f{number}", destinations=("PACS1", "VNA")))
        finish(engine, claimed(engine).held)
    with reading(engine) as connection:
        listed = jobs.listing(connection, 100)
        return [each.id for each in listed if each.node == "PACS1"]


def test_a_breaker_parks_its_nodes_jobs_and_lets_one_try(engine: Engine) -> None:
    numbers = deliveries_of(engine, 3)
    open_breaker(engine, "PACS1")
    assert {job(engine, each).waiting_for for each in numbers} == {"breaker"}
    assert {claimed(engine, "deliver").node for _ in range(3)} == {"VNA"}
    assert claim(engine, "deliver") is None
    with writing(engine) as connection:
        assert not nodes.probe(connection, NOW)
        later = Instant(NOW + nodes.pause(1))
        (tried,) = nodes.probe(connection, later)
        assert not nodes.probe(connection, later)  # one at a time
        assert nodes.get(connection, "PACS1").breaker == "half-open"
    assert claimed(engine, "deliver").id == tried
    with writing(engine) as connection:
        state = nodes.failed(connection, "PACS1", "Still away.", later)
        assert (state.breaker, state.retry_at) == ("open", later + nodes.pause(2))
        nodes.delivered(connection, "PACS1", later)
    assert {job(engine, each).state for each in numbers} == {"queued", "running"}


def test_a_node_that_is_back_gets_what_backed_off_from_it_too(engine: Engine) -> None:
    numbers = deliveries_of(engine, 2)
    taken = claimed(engine, "deliver")
    while taken.node != "PACS1":
        taken = claimed(engine, "deliver")
    with writing(engine) as connection:
        after = jobs.fail(connection, taken.held, "transient", "Away.", "send", "PACS1", NOW)
    assert after is not None
    assert after.waiting_for == "back-off"
    open_breaker(engine, "PACS1")
    with writing(engine) as connection:
        nodes.delivered(connection, "PACS1", NOW)
    assert {job(engine, each).state for each in numbers} == {"queued"}


def _next_look(connection: Connection, number: JobId, at: Instant) -> Instant:
    """Return when to look again: each minute, as far as something may happen then.

    Until the next moment that the catalogue names, each look sees what the one before saw; the
    last one before it is taken, for what comes too early.
    """
    minute = seconds(60)
    named = (nodes.get(connection, "PACS1").retry_at, jobs.existing(connection, number).due_at)
    ahead = min((each for each in named if each is not None and each > at), default=at)
    whole_minutes = (ahead - at - 1) // minute
    return Instant(at + max(whole_minutes, 1) * minute)


def test_a_node_that_is_away_is_tried_often_and_costs_a_delivery_about_a_week(
    engine: Engine,
) -> None:
    arrive(engine)
    add(engine, wanted())
    finish(engine, claimed(engine).held)
    at, tries = NOW, 0
    while (taken := claim(engine, "deliver")) is not None:
        tries += 1
        with writing(engine) as connection:
            nodes.failed(connection, "PACS1", "Away.", at)
            after = jobs.fail(connection, taken.held, "transient", "Away.", "send", "", at)
            assert after is not None
            while after.state == "waiting" and not (
                nodes.probe(connection, at) or jobs.promote_due(connection, at)
            ):
                at = _next_look(connection, after.id, at)
    assert after.state == "failed"
    assert tries > 100
    assert 3 < (at - NOW) / seconds(86400) < 8
    with reading(engine) as connection:
        assert len(events.of_job(connection, after.id)) < 20  # only what counts is told


def test_a_node_is_tried_by_a_job_that_somebody_claims(engine: Engine) -> None:
    arrive(engine)
    for model, urgent in (("lungs", False), ("nodules", True)):
        add(engine, wanted(fingerprint=model, model=model, urgent=urgent, route=model))
        taken = claim(engine, models=(model,))
        assert taken is not None
        finish(engine, taken.held)
    open_breaker(engine, "PACS1")
    later = Instant(NOW + nodes.pause(1))
    with writing(engine) as connection:
        # The urgent one waits for the other: results of a study go out in order.
        (tried,) = nodes.probe(connection, later)
    assert claimed(engine, "deliver").id == tried


def test_a_node_is_tried_by_another_job_than_the_one_that_failed(engine: Engine) -> None:
    first, second = sorted(deliveries_of(engine, 2))
    taken = claimed(engine, "deliver")
    while taken.id != first:
        taken = claimed(engine, "deliver")
    with writing(engine) as connection:
        jobs.fail(connection, taken.held, "transient", "Broke off.", "send", "PACS1", NOW)
    open_breaker(engine, "PACS1")
    with writing(engine) as connection:
        assert nodes.probe(connection, Instant(NOW + nodes.pause(1))) == (second,)


def test_a_paused_route_keeps_no_node_shut(engine: Engine) -> None:
    deliveries_of(engine, 1)
    arrive(engine)
    add(engine, wanted(route="other"))
    finish(engine, claimed(engine).held)
    open_breaker(engine, "PACS1")
    later = Instant(NOW + nodes.pause(1))
    with writing(engine) as connection:
        nodes.probe(connection, later)
        pauses.pause(connection, "route", "lungs", "draining", NOW)
        (tried,) = nodes.probe(connection, later)
    taken = claimed(engine, "deliver")
    while taken.node != "PACS1":
        taken = claimed(engine, "deliver")
    assert taken.id == tried


def test_results_made_while_a_breaker_is_open_wait_too(engine: Engine) -> None:
    open_breaker(engine, "PACS1")
    (number,) = deliveries_of(engine, 1)
    assert job(engine, number).waiting_for == "breaker"


def test_a_delivery_parked_while_its_breaker_closes_goes_on(engine: Engine) -> None:
    open_breaker(engine, "PACS1")
    (number,) = deliveries_of(engine, 1)
    with writing(engine) as connection:
        assert not jobs.promote_due(connection, NOW)
        # The delivery that closed it did not see the other one, which was not committed yet.
        connection.execute(schema.nodes.update().values(breaker="closed", retry_at=None))
        assert [each.id for each in jobs.promote_due(connection, NOW)] == [number]


def test_back_off_does_not_go_round_an_open_breaker(engine: Engine) -> None:
    (number,) = deliveries_of(engine, 1)
    while (taken := claimed(engine, "deliver")).id != number:
        pass
    with writing(engine) as connection:
        jobs.fail(connection, taken.held, "transient", "Away.", "send", "PACS1", NOW)
    open_breaker(engine, "PACS1")
    with writing(engine) as connection:
        assert not jobs.promote_due(connection, Instant(NOW + seconds(1e6)))


def test_results_of_a_study_reach_a_node_in_order(engine: Engine) -> None:
    arrive(engine)
    for model in ("lungs", "nodules"):
        add(engine, wanted(fingerprint=model, model=model))
    for _ in range(2):
        taken = claim(engine, models=("lungs", "nodules"))
        assert taken is not None
        finish(engine, taken.held)
    first = claimed(engine, "deliver")
    assert claim(engine, "deliver") is None
    put(engine, first.id, "waiting")
    assert claim(engine, "deliver") is None
    put(engine, first.id, "queued")
    first = claimed(engine, "deliver")
    with writing(engine) as connection:
        assert deliveries.start(connection, first.held, NOW) is None
        assert deliveries.finish(connection, first.held, {}, {}, NOW)
    assert claimed(engine, "deliver").id > first.id


def test_results_go_to_a_node_from_which_something_of_their_study_is_still_to_be_fetched(
    engine: Engine,
) -> None:
    arrive(engine)
    uid = StudyInstanceUID("1.2.3")
    new = NewRetrieval(node="PACS1", study_instance_uid=uid, ageing=seconds(600))
    with writing(engine) as connection:
        retrievals.queue(connection, new, NOW)
    add(engine, wanted())
    finish(engine, claimed(engine).held)
    assert claim(engine, "deliver") is not None


@pytest.mark.parametrize(
    ("subject", "name", "kind"),
    [("model", "lungs", "analyse"), ("route", "lungs", "analyse"), ("node", "PACS1", "deliver")],
)
def test_what_is_paused_is_not_claimed_and_goes_on_at_resume(
    engine: Engine, subject: str, name: str, kind: str
) -> None:
    arrive(engine)
    add(engine, wanted())
    if kind == "deliver":
        finish(engine, claimed(engine).held)
    running = claimed(engine, kind)
    with writing(engine) as connection:
        pauses.pause(connection, subject, name, "paused", NOW)
    stopped = job(engine, running.id)
    assert (stopped.state, stopped.held_by, stopped.attempts) == ("held", "pause", 0)
    with writing(engine) as connection:
        assert not jobs.beat(connection, running.held, "infer", 0.5, NOW)
        assert pauses.resume(connection, subject, name, NOW)
        pauses.pause(connection, subject, name, "draining", NOW)
    assert claim(engine, kind) is None
    with writing(engine) as connection:
        assert pauses.resume(connection, subject, name, NOW)
    assert claimed(engine, kind).id == running.id


def test_draining_lets_running_jobs_finish_and_says_when_none_runs(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    with writing(engine) as connection:
        pauses.pause(connection, "model", "lungs", "draining", NOW)
        (pause,) = pauses.listing(connection)
    assert (pause.running, pause.drained) == (1, False)
    assert finish(engine, held) == "done"
    with reading(engine) as connection:
        (pause,) = pauses.listing(connection)
    assert pause.drained


def test_an_analysis_shared_with_another_route_runs_although_one_is_paused(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted(route="a"))
    with writing(engine) as connection:
        pauses.pause(connection, "route", "a", "paused", NOW)
    assert claim(engine) is None
    add(engine, wanted(route="b"))
    assert claim(engine) is not None


def test_what_is_paused_stops_nothing_else_of_the_same_name(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted(model="lungs", route="chest"))
    with writing(engine) as connection:
        pauses.pause(connection, "route", "lungs", "paused", NOW)
        pauses.pause(connection, "node", "lungs", "paused", NOW)
    assert claim(engine) is not None
