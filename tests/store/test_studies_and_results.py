"""Holds, identity and superseding: a result belongs to its patient, and to its images."""

from __future__ import annotations

from dataclasses import replace

import pytest
from catalogue_rows import (
    NOW,
    PATIENT,
    add,
    arrive,
    associations_of,
    claim,
    claimed,
    finish,
    instance,
    job,
    wanted,
)
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID, StudyInstanceUID
from dicomai.dicom.version import with_identity
from dicomai.store import (
    analyses,
    associations,
    claims,
    decisions,
    deliveries,
    events,
    hosts,
    instances,
    jobs,
    predecessors,
    reissues,
    retention,
    schema,
    series,
    studies,
    withdrawals,
)
from dicomai.store.associations import Association
from dicomai.store.engine import reading, writing
from dicomai.store.hosts import Worker
from dicomai.store.job import JobId, JobRoute
from dicomai.store.jobs import NotNow
from dicomai.store.retention import Candidate
from dicomai.store.series import SeriesIdentity
from dicomai.store.states import DeliveryState, StudyStatus

STUDY = StudyInstanceUID("1.2.3")
OTHER = IdentityKey("99999@HOSPITAL")


def hold(engine: Engine) -> None:
    with writing(engine) as connection:
        studies.lock(connection, STUDY)
        decisions.hold(connection, STUDY, "Its objects belong to 2 patients.", NOW)


def release(engine: Engine, key: IdentityKey = PATIENT) -> None:
    with writing(engine) as connection:
        studies.lock(connection, STUDY)
        decisions.release(connection, STUDY, key, NOW)


def result(study: str = "1.2.3") -> tuple[instances.InstanceRow, ...]:
    row = instance(study, f"{study}.9", file="seg", origin="produced", series=f"{study}.9")
    return (row,)


def test_a_held_study_parks_its_jobs_until_a_person_accepts_a_patient(engine: Engine) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    hold(engine)
    assert job(engine, number).held_by == "study"
    assert claim(engine) is None
    with pytest.raises(jobs.NotNow), writing(engine) as connection:
        jobs.retry(connection, number, NOW)
    release(engine)
    assert claimed(engine).id == number
    with reading(engine) as connection:
        study = studies.get(connection, STUDY)
        told = [each.kind for each in events.story(connection, STUDY)]
    assert study is not None
    assert (study.status, study.accepted_key, study.hold_reason) == ("open", PATIENT, None)
    assert told == ["job queued", "study held", "study released"]


def test_accepting_another_patient_leaves_the_first_ones_jobs_held(engine: Engine) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    hold(engine)
    release(engine, OTHER)
    assert claim(engine) is None
    assert job(engine, number).held_by == "identity"
    assert job(engine, number).error_sentence.endswith(f"To end it: dicomai cancel {number}")


def test_a_running_job_of_a_held_study_writes_no_result(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    hold(engine)
    assert finish(engine, held, result()) == "study held"
    after = job(engine, held.job_id)
    assert (after.state, after.held_by, after.attempts) == ("held", "study", 0)
    with reading(engine) as connection:
        assert not instances.of_job(connection, held.job_id)
        assert not deliveries.of_analysis(connection, held.job_id)
    release(engine)
    assert finish(engine, claimed(engine).held, result()) == "done"


def test_a_job_made_for_another_patient_writes_no_result(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    with writing(engine) as connection:
        studies.set_patient_key(connection, STUDY, OTHER)
    assert finish(engine, held, result()) == "other identity"
    after = job(engine, held.job_id)
    assert (after.state, after.held_by, after.error_kind) == ("held", "identity", "identity")
    assert after.error_sentence.endswith(f"To end it: dicomai cancel {after.id}")
    with reading(engine) as connection:
        assert not instances.of_job(connection, held.job_id)


def note(engine: Engine) -> JobId:
    """Deliver results, withdraw them, and return the delivery of the note."""
    add(engine, wanted())
    analysis = claimed(engine)
    finish(engine, analysis.held, result())
    sent = claimed(engine, "deliver")
    with writing(engine) as connection:
        assert deliveries.finish(connection, sent.held, {}, {}, NOW)
        old = jobs.existing(connection, analysis.id)
        new = withdrawals.add(connection, old, "withdrawal", NOW)
        route = JobRoute(route="withdrawal", mode="live", destinations=("PACS1",))
        analyses.add_destination(connection, new.id, route, NOW)
        (queued,) = deliveries.of_analysis(connection, new.id)
    return queued.id


def test_a_note_that_takes_results_back_goes_though_its_study_is_held(engine: Engine) -> None:
    arrive(engine)
    number = note(engine)
    late = add(engine, wanted(fingerprint="f2", choice="another")).job_id
    hold(engine)
    assert [job(engine, each).state for each in (number, late)] == ["queued", "held"]
    sending = claimed(engine, "deliver")
    with writing(engine) as connection:
        assert deliveries.start(connection, sending.held, NOW) is None
    assert job(engine, number).state == "running"


def test_a_note_that_was_parked_goes_whosever_the_study_turns_out_to_be(engine: Engine) -> None:
    arrive(engine)
    number = note(engine)
    hold(engine)
    with writing(engine) as connection:  # as it was parked until notes went by themselves
        parked = schema.jobs.update().where(schema.jobs.c.id == number)
        connection.execute(parked.values(state="held", held_by="study"))
    release(engine, OTHER)
    assert claimed(engine, "deliver").id == number


@pytest.mark.parametrize("trouble", ["held", "another patient"])
def test_a_delivery_begins_only_while_the_study_is_free_and_its_patients(
    engine: Engine, trouble: str
) -> None:
    arrive(engine)
    add(engine, wanted())
    finish(engine, claimed(engine).held, result())
    delivery = claimed(engine, "deliver")
    if trouble == "held":
        hold(engine)
    else:
        with writing(engine) as connection:
            studies.set_patient_key(connection, STUDY, OTHER)
    with writing(engine) as connection:
        refused = deliveries.start(connection, delivery.held, NOW)
    assert refused == ("study held" if trouble == "held" else "other identity")
    assert job(engine, delivery.id).state == "held"


def test_finishing_writes_results_deliveries_events_and_state_together(engine: Engine) -> None:
    arrive(engine)
    number = add(engine, wanted(destinations=("PACS1", "VNA"))).job_id
    assert finish(engine, claimed(engine).held, result()) == "done"
    done = job(engine, number)
    assert (done.state, done.stages_s, done.summary) == ("done", {"infer": 1.0}, {"found": 1})
    with reading(engine) as connection:
        (made,) = instances.of_job(connection, number)
        told = [each.kind for each in events.of_job(connection, number)]
        study = studies.get(connection, STUDY)
        nodes = [each.node for each in deliveries.of_analysis(connection, number)]
    assert (made.origin, made.job_id, made.sop_instance_uid) == ("produced", number, "1.2.3.9")
    assert nodes == ["PACS1", "VNA"]
    assert told == ["job queued", "job done"]
    assert study is not None
    assert study.instances == 2


def superseded(engine: Engine) -> JobId:
    return add(engine, wanted(fingerprint="f2")).job_id


def test_late_images_cancel_a_queued_analysis(engine: Engine) -> None:
    arrive(engine)
    old = add(engine, wanted()).job_id
    new = superseded(engine)
    assert job(engine, old).state == "cancelled"
    assert job(engine, new).supersedes == old
    assert claimed(engine).id == new
    with pytest.raises(jobs.NotNow), writing(engine) as connection:
        jobs.retry(connection, old, NOW)


def test_late_images_cancel_a_running_analysis_whose_write_then_touches_no_row(
    engine: Engine,
) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    superseded(engine)
    assert finish(engine, held, result()) == "lost"
    with reading(engine) as connection:
        assert not instances.of_job(connection, held.job_id)


def test_late_images_cancel_deliveries_that_have_not_begun(engine: Engine) -> None:
    arrive(engine)
    old = add(engine, wanted()).job_id
    finish(engine, claimed(engine).held, result())
    new = superseded(engine)
    assert claim(engine, "deliver") is None
    with reading(engine) as connection:
        (delivery,) = deliveries.of_analysis(connection, old)
        assert predecessors.of_job(connection, new) == ()
    assert delivery.state == "cancelled"


def test_what_was_superseded_is_not_sent_afterwards(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    finish(engine, claimed(engine).held, result())
    delivery = claimed(engine, "deliver")
    with writing(engine) as connection:
        jobs.fail(connection, delivery.held, "refused", "No.", "send", "PACS1", NOW)
    new = superseded(engine)
    with (
        writing(engine) as connection,
        pytest.raises(NotNow, match=f"job {new} has taken the place"),
    ):
        jobs.retry(connection, delivery.id, NOW)


def test_a_job_that_was_cancelled_while_it_waited_for_the_lock_is_lost(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    held = claimed(engine).held
    with writing(engine) as connection:
        study = studies.lock(connection, STUDY)
        jobs.cancel(connection, held.job_id, "No.", NOW)
        assert deliveries.hold_unless_free(connection, held, study, NOW) == "lost"


def test_what_was_delivered_is_named_as_predecessor(engine: Engine) -> None:
    arrive(engine)
    old = add(engine, wanted()).job_id
    finish(engine, claimed(engine).held, result())
    delivery = claimed(engine, "deliver")
    new = superseded(engine)
    # Being sent counts: it is read again at the commit.
    assert finish(engine, claimed(engine).held, ()) == "other predecessor"
    with writing(engine) as connection:
        before = predecessors.of_job(connection, new)
        sop = SOPInstanceUID("1.2.3.9")
        for state in ("transient", "sent"):  # the last word on it counts
            told = deliveries.DeliveryObject(
                sop_instance_uid=sop, state=state, status=0, sentence="", at=NOW
            )
            assert deliveries.note_objects(connection, delivery.held, [told])
        assert deliveries.finish(connection, delivery.held, {}, {}, NOW)
        (sent,) = deliveries.objects(connection, delivery.id)
    (one,) = before
    assert (one.job.id, [each.sop_instance_uid for each in one.results]) == (old, [sop])
    assert sent.state == "sent"
    assert finish(engine, job(engine, new).held, (), old) == "done"


def told_of(uid: str, state: DeliveryState) -> deliveries.DeliveryObject:
    return deliveries.DeliveryObject(
        sop_instance_uid=SOPInstanceUID(uid), state=state, status=0, sentence="", at=NOW
    )


def test_what_may_have_gone_out_counts_as_delivered(engine: Engine) -> None:
    arrive(engine)
    old = add(engine, wanted()).job_id
    finish(engine, claimed(engine).held, result())
    delivery = claimed(engine, "deliver")
    with writing(engine) as connection:
        uids = [SOPInstanceUID("1.2.3.9")]
        assert deliveries.begin_objects(connection, delivery.held, uids, NOW)
        jobs.cancel(connection, delivery.id, "No.", NOW)
        assert not deliveries.begin_objects(connection, delivery.held, uids, NOW)
        assert reissues.delivered_to(connection, old) == {"PACS1"}
        assert not reissues.surely_had_by(connection, jobs.existing(connection, old))
    new = superseded(engine)
    with reading(engine) as connection:
        before = predecessors.of_job(connection, new)
    assert [each.job.id for each in before] == [old]


def test_what_a_node_took_is_noted_whoever_has_the_delivery_by_then(engine: Engine) -> None:
    arrive(engine)
    add(engine, wanted())
    finish(engine, claimed(engine).held, result())
    first = claimed(engine, "deliver")
    uids = [SOPInstanceUID(f"1.2.3.{number}") for number in range(4)]
    with writing(engine) as connection:
        assert deliveries.begin_objects(connection, first.held, uids, NOW)
        jobs.give_back(connection, first.held, NOW)
    second = claimed(engine, "deliver")
    with writing(engine) as connection:
        late = [told_of(uids[0], "sent"), told_of(uids[1], "transient")]
        assert deliveries.note_objects(connection, second.held, [told_of(uids[2], "committed")])
        late.append(told_of(uids[2], "sent"))
        assert not deliveries.note_objects(connection, first.held, late)
        known = [each.state for each in deliveries.objects(connection, second.id)]
    assert known == ["sent", "uncertain", "committed", "uncertain"]


def test_the_predecessor_is_found_behind_a_job_that_never_ran(engine: Engine) -> None:
    arrive(engine)
    old = add(engine, wanted()).job_id
    finish(engine, claimed(engine).held, result())
    claimed(engine, "deliver")
    superseded(engine)
    third = add(engine, wanted(fingerprint="f3")).job_id
    with reading(engine) as connection:
        found = predecessors.of_job(connection, third)
    assert [each.job.id for each in found] == [old]


def test_the_predecessor_is_found_behind_results_that_were_withdrawn(engine: Engine) -> None:
    arrive(engine)
    old = add(engine, wanted()).job_id
    finish(engine, claimed(engine).held, result())
    claimed(engine, "deliver")
    wrong = superseded(engine)
    finish(engine, claimed(engine).held, (), old)
    with writing(engine) as connection:
        withdrawals.add(connection, jobs.existing(connection, wrong), "w1", NOW)
    third = add(engine, wanted(fingerprint="f3")).job_id
    with reading(engine) as connection:
        found = predecessors.of_job(connection, third)
    assert [each.job.id for each in found] == [old]


def test_a_predecessor_is_named_for_each_node(engine: Engine) -> None:
    arrive(engine)
    old = add(engine, wanted(destinations=("PACS1", "PACS2"))).job_id
    finish(engine, claimed(engine).held, result())
    with writing(engine) as connection:
        for _ in range(2):
            delivery = claims.claim(connection, "w1", ("deliver",), (), NOW)
            assert delivery is not None
            assert deliveries.finish(connection, delivery.held, {}, {}, NOW)
    between = add(engine, wanted(fingerprint="f2", destinations=("PACS1", "PACS2"))).job_id
    assert finish(engine, claimed(engine).held, (), old) == "done"
    delivery = claimed(engine, "deliver")
    with writing(engine) as connection:
        assert deliveries.finish(connection, delivery.held, {}, {}, NOW)
    third = add(engine, wanted(fingerprint="f3")).job_id  # PACS2 did not get the second results
    with reading(engine) as connection:
        found = predecessors.of_job(connection, third)
    assert [each.job.id for each in found] == [between, old]


def test_what_arrives_opens_a_decided_study_and_moves_its_quiet(engine: Engine) -> None:
    arrive(engine)
    quiet = Instant(NOW + seconds(60))
    with writing(engine) as connection:
        assert not decisions.due(connection, Instant(quiet - 1))
        assert decisions.due(connection, quiet) == (STUDY,)
        decisions.set_decided(connection, STUDY, "Whole.", quiet)
        series.mark_decided(connection, STUDY, [SeriesInstanceUID("1.2.3.1")], quiet)
        assert not decisions.due(connection, Instant(quiet + seconds(1e6)))
    # The same bytes again change nothing.
    arrive(engine, received_at=Instant(quiet + 1))
    with reading(engine) as connection:
        study = studies.get(connection, STUDY)
        assert study is not None
        assert study.status == "decided"
    (added,) = arrive_one_more(engine, Instant(quiet + 2))
    assert added.outcome == "new"
    with reading(engine) as connection:
        study = studies.get(connection, STUDY)
        assert study is not None
        assert (study.status, study.quiet_until) == ("open", quiet + 2 + seconds(60))
        assert study.instances == 2
        assert [each.changed for each in series.of_study(connection, STUDY)] == [True]


def arrive_one_more(engine: Engine, at: Instant) -> tuple[instances.Added, ...]:
    return arrive(engine, count=2, received_at=at)[1:]


def test_a_reason_to_wait_is_told_once(engine: Engine) -> None:
    arrive(engine)
    with writing(engine) as connection:
        for step in range(3):
            until = Instant(NOW + seconds(60 + step))
            decisions.postpone(connection, STUDY, "Slices are missing.", until, NOW)
        assert len(events.story(connection, STUDY)) == 1
        assert not decisions.due(connection, Instant(NOW + seconds(61)))


def test_a_row_from_before_patient_and_order_counted_tells_versions_apart(engine: Engine) -> None:
    arrive(engine)

    def come(file: str, header: str, accession: str) -> str:
        row = instance("1.2.3", "1.2.3.7", file=file)
        attributes = {**row.attributes, "AccessionNumber": accession}
        row = replace(row, header_digest=header, attributes=attributes)
        with writing(engine) as connection:
            return instances.add(connection, row, NOW).outcome

    assert come("before", "old", "A1") == "new"
    digest = with_identity("old", {"AccessionNumber": "A1"})
    assert come("copy", digest, "A1") == "copy"
    assert come("corrected", with_identity("old", {"AccessionNumber": "A2"}), "A2") == "version"
    assert come("sent again", digest, "A1") == "passed over"


def test_versions_copies_and_duplicates_are_told_apart(engine: Engine) -> None:
    arrive(engine)

    def come(**differs: str | None) -> instances.Added:
        with writing(engine) as connection:
            return instances.add(connection, instance("1.2.3", "1.2.3.7", **differs), NOW)

    lossy = "1.2.840.10008.1.2.4.50"
    assert come(file="lossy", pixels=None, syntax=lossy).outcome == "new"
    assert come(file="lossy", pixels=None, syntax=lossy).outcome == "duplicate"
    assert come(file="lossless", pixels="p").outcome == "copy"
    assert come(file="other jpeg", pixels=None, syntax=lossy).outcome == "copy"
    duplicate = come(file="lossless", pixels="p")
    assert (duplicate.outcome, duplicate.path.name[:8]) == ("duplicate", "1.2.3.7.")
    with reading(engine) as connection:
        used = {each.sop_instance_uid: each for each in instances.of_study(connection, STUDY)}
    # Lossless beats lossy, and the version keeps the digest of its first copy.
    assert used[SOPInstanceUID("1.2.3.7")].transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert used[SOPInstanceUID("1.2.3.7")].pixel_digest is None
    assert come(file="moved", header="other geometry").outcome == "version"
    assert come(file="old again", pixels=None).outcome == "passed over"
    with reading(engine) as connection:
        newest = instances.of_series(connection, STUDY, SeriesInstanceUID("1.2.3.1"))
        study = studies.get(connection, STUDY)
    assert [each.file_sha256 for each in newest][1] == instance("1", "1", file="moved").file_sha256
    assert study is not None
    assert study.instances == 2


def test_one_object_in_two_studies_is_seen(engine: Engine) -> None:
    arrive(engine, "1.2.3")
    arrive(engine, "1.2.4")
    with writing(engine) as connection:
        row = instance("1.2.4", "1.2.3.1.0", file="elsewhere")
        assert instances.add(connection, row, NOW).outcome == "new"
        found = instances.studies_of_sop(connection, SOPInstanceUID("1.2.3.1.0"))
    assert found == ("1.2.3", "1.2.4")


def test_an_accession_number_lists_its_studies(engine: Engine) -> None:
    arrive(engine, "1.2.4", received_at=Instant(NOW + 1))
    arrive(engine, "1.2.3")
    with reading(engine) as connection:
        found = studies.find_by_accession(connection, "A1")
        newest = studies.listing(connection, 1)
    assert [each.study_instance_uid for each in found] == ["1.2.3", "1.2.4"]
    assert [each.study_instance_uid for each in newest] == ["1.2.4"]


def test_studies_are_listed_by_state_by_time_and_by_what_they_lack(engine: Engine) -> None:
    def listed(*states: StudyStatus, since: Instant | None = None, **more: bool) -> list[str]:
        with reading(engine) as connection:
            found = studies.listing(connection, 9, states, since, **more)
        return [each.study_instance_uid for each in found]

    for number, uid in enumerate(("1.2.3", "1.2.4", "1.2.5")):
        arrive(engine, uid, received_at=Instant(NOW + number))
    add(engine, wanted("1.2.4"))
    finish(engine, claimed(engine).held, (instance("1.2.4", "1.2.4.9", file="sr"),))
    with writing(engine) as connection:
        decisions.set_decided(connection, StudyInstanceUID("1.2.5"), "Whole.", NOW)

    assert listed() == ["1.2.5", "1.2.4", "1.2.3"]
    assert listed("decided") == ["1.2.5"]
    assert listed("open", "decided") == ["1.2.5", "1.2.4", "1.2.3"]
    assert listed("held") == []
    assert listed(since=Instant(NOW + 1)) == ["1.2.5", "1.2.4"]
    assert listed(without_results=True) == ["1.2.5", "1.2.3"]
    assert listed("open", since=Instant(NOW + 1), without_results=True) == []


def test_each_series_keeps_whose_it_is(engine: Engine) -> None:
    arrive(engine)
    mine = SeriesIdentity(
        series_instance_uid=SeriesInstanceUID("1.2.3.1"),
        key=PATIENT,
        patient_name="Doe^Jane",
        birth_date="19600101",
        sex="F",
    )
    nobodys = SeriesIdentity(
        series_instance_uid=SeriesInstanceUID("1.2.3.1"),
        key=None,
        patient_name="",
        birth_date="",
        sex="",
    )
    with writing(engine) as connection:
        for identity in (mine, nobodys, mine):
            series.note_identity(connection, STUDY, identity)
        assert series.identities(connection, STUDY) == (nobodys, mine)


def keys_of(engine: Engine) -> list[str | None]:
    with reading(engine) as connection:
        return [each.key for each in series.identities(connection, STUDY)]


def corrected(engine: Engine, key: str, wrong: str = "") -> None:
    with writing(engine) as connection:
        study = studies.lock(connection, STUDY)
        assert study is not None
        assert study.patient_key is not None
        said = IdentityKey(wrong or study.patient_key)
        studies.correct_patient(connection, study, said, IdentityKey(key))


def identified(engine: Engine, key: str) -> None:
    with writing(engine) as connection:
        identity = SeriesIdentity(
            series_instance_uid=SeriesInstanceUID("1.2.3.1"),
            key=IdentityKey(key),
            patient_name=key,
            birth_date="",
            sex="",
        )
        series.note_identity(connection, STUDY, identity)


def test_a_corrected_key_stands_for_the_one_that_objects_have(engine: Engine) -> None:
    arrive(engine)
    identified(engine, PATIENT)
    corrected(engine, "MISTYPED")
    assert keys_of(engine) == ["MISTYPED"]
    corrected(engine, "NEW")
    identified(engine, "OTHER")
    assert keys_of(engine) == ["NEW", "OTHER"]
    identified(engine, "MISTYPED")  # nobody said that these are anybody else's
    assert sorted(map(str, keys_of(engine))) == ["MISTYPED", "NEW", "OTHER"]
    corrected(engine, PATIENT)
    assert sorted(map(str, keys_of(engine))) == [PATIENT, "MISTYPED", "OTHER"]
    with reading(engine) as connection:
        study = studies.get(connection, STUDY)
        assert connection.execute(schema.corrected_keys.select()).all() == []
    assert study is not None
    assert (study.patient_key, study.accepted_key) == (PATIENT, None)


@pytest.mark.parametrize("right", [PATIENT, "NEW"])
def test_what_a_person_mistyped_stands_for_nobody_where_several_results_said_it(
    engine: Engine, right: str
) -> None:
    arrive(engine)
    identified(engine, PATIENT)
    for _ in range(2):  # of each result of the study, as dicomai study --patient does
        corrected(engine, "MISTYPED", PATIENT)
    for _ in range(2):
        corrected(engine, right, "MISTYPED")
    identified(engine, "MISTYPED")
    assert sorted(map(str, keys_of(engine))) == sorted((right, "MISTYPED"))


def test_images_that_come_again_after_their_results_were_corrected_undo_nothing(
    engine: Engine,
) -> None:
    arrive(engine)
    identified(engine, PATIENT)
    add(engine, wanted(destinations=()))
    assert finish(engine, claimed(engine).held, result()) == "done"
    images = Candidate(study_instance_uid=STUDY, origins=("received", "retrieved"))
    with writing(engine) as connection:
        decisions.set_decided(connection, STUDY, "Whole.", NOW)
        assert retention.begin(connection, images, NOW, NOW)
        assert retention.complete(connection, images, NOW)
    corrected(engine, "MISTYPED")
    corrected(engine, "NEW")
    arrive(engine, key=IdentityKey("NEW"))
    identified(engine, PATIENT)
    assert keys_of(engine) == ["NEW"]
    identified(engine, "MISTYPED")
    assert keys_of(engine) == ["NEW", "MISTYPED"]  # nobody said that these are anybody else's


def test_the_patient_whom_a_person_accepted_is_corrected_too(engine: Engine) -> None:
    arrive(engine)
    identified(engine, PATIENT)
    identified(engine, OTHER)
    hold(engine)
    release(engine)
    corrected(engine, "NEW")
    with reading(engine) as connection:
        study = studies.get(connection, STUDY)
    assert study is not None
    assert (study.patient_key, study.accepted_key) == ("NEW", "NEW")
    assert sorted(map(str, keys_of(engine))) == [OTHER, "NEW"]


def test_associations_are_open_until_their_end_is_known(engine: Engine) -> None:
    arrive(engine)
    link = Association(
        id="a1",
        host="h1",
        node="CT1",
        calling_ae="CT",
        called_ae="DICOMAI",
        address="127.0.0.1",
        started_at=NOW,
    )
    with writing(engine) as connection:
        associations.note(connection, link, STUDY)
        associations.note(connection, link, STUDY)
        assert associations_of(connection, STUDY) == (link,)
        assert associations.studies_of(connection, "a1") == (STUDY,)
        assert associations.end(connection, "a1", NOW, "released")
        assert not associations.end(connection, "a1", NOW, "lost")
        (ended,) = associations_of(connection, STUDY)
        assert (ended.ended_at, ended.release) == (NOW, "released")


def test_what_belongs_to_no_study_any_more_is_forgotten_in_time(engine: Engine) -> None:
    later = Instant(NOW + 1)
    with writing(engine) as connection:
        for name, study in (("a1", STUDY), ("a2", StudyInstanceUID("1.2.4"))):
            link = Association(
                id=name,
                host="h1",
                node="CT1",
                calling_ae="CT",
                called_ae="DICOMAI",
                address="127.0.0.1",
                started_at=NOW,
            )
            associations.note(connection, link, study)
            associations.end(connection, name, NOW, "released")
        events.record(connection, None, "breaker opened", "Away.", {}, NOW)
        events.record(connection, STUDY, "study decided", "Quiet.", {}, NOW)
    arrive(engine)
    arrive(engine, "1.2.4")
    candidate = Candidate(study_instance_uid=STUDY, origins=("received",))
    with writing(engine) as connection:
        decisions.set_decided(connection, STUDY, "Whole.", NOW)
        assert retention.begin(connection, candidate, NOW, NOW)
        assert retention.complete(connection, candidate, NOW)
        assert retention.prune_rest(connection, NOW) == 0
        assert retention.prune_rest(connection, later) == 2
        assert not associations.studies_of(connection, "a1")
        (left,) = associations_of(connection, "1.2.4")
    assert left.id == "a2"


def test_hosts_and_workers_say_how_far_they_are_and_what_they_serve(engine: Engine) -> None:
    worker = Worker(
        name="h1/cpu",
        host="h1",
        device="cpu",
        kinds=("analyse",),
        models=("lungs",),
        started_at=NOW,
        beat_at=NOW,
    )
    with writing(engine) as connection:
        hosts.note_ingested(connection, "h1", NOW, NOW)
        hosts.note_ingested(connection, "h1", Instant(NOW + 5), NOW)
        hosts.note_worker(connection, worker)
        hosts.note_worker(connection, worker)
        assert [each.ingested_to for each in hosts.listing(connection)] == [NOW + 5]
        live = hosts.workers(connection, NOW, seconds(60))
        assert live == (worker,)
        assert not hosts.workers(connection, Instant(NOW + seconds(61)), seconds(60))
    assert hosts.unserved(["lungs", "nodules"], live) == ("nodules",)


def test_of_the_arriving_studies_those_come_first_that_are_decided_next(engine: Engine) -> None:
    for number in (2, 1, 3):
        arrive(engine, f"1.2.{number}", received_at=Instant(NOW + number))
    with writing(engine) as connection:
        decisions.set_decided(connection, StudyInstanceUID("1.2.1"), "Whole.", NOW)
        decisions.postpone(connection, StudyInstanceUID("1.2.3"), None, Instant(NOW + 10**9), NOW)
        found = studies.arriving(connection, 9)
        assert len(studies.arriving(connection, 1)) == 1
    assert [each.study_instance_uid for each in found] == ["1.2.2", "1.2.3"]
