"""What becomes of a study once it is here: each rule, with its reason in the story."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import date
from pathlib import PurePosixPath
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RLELossless
from sqlalchemy import insert, text

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID, StudyInstanceUID
from dicomai.errors import InputError, NotFound
from dicomai.routing import matching
from dicomai.routing.condition import parse
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs, parse_input
from dicomai.service import applied as applied_module
from dicomai.service import duties
from dicomai.service import ingest as ingest_module
from dicomai.service.again import again
from dicomai.service.decide import accept, are_due, decide_again, decide_due
from dicomai.service.waiting_routes import take_up
from dicomai.spool import entries
from dicomai.store import (
    analyses,
    claims,
    decisions,
    deliveries,
    hosts,
    instances,
    jobs,
    reissues,
    retention,
    schema,
    series,
    studies,
    waiting_routes,
)
from dicomai.store.engine import reading, writing
from dicomai.store.instances import InstanceRow
from dicomai.store.job import Job, JobId
from dicomai.store.jobs import NotNow
from dicomai.store.reissues import Reissue
from dicomai.store.retention import Candidate, Keep
from dicomai.store.series import SeriesIdentity

STUDY = StudyInstanceUID("1.2.3")

Hospital = Any  # conftest's: importlib mode has no package to import it from
MakeCT = Callable[..., Any]


def _with(hospital: Hospital, *routes: Route) -> None:
    hospital.rules = replace(hospital.rules, routes=routes)


def _chest(make_ct: MakeCT, count: int = 4, **changes: object) -> list[Any]:
    return [make_ct(number=number, **changes) for number in range(1, count + 1)]


def test_a_quiet_study_that_a_route_wants_gets_one_job(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    any_hospital.send(*_chest(make_ct))

    assert any_hospital.ingest_and_decide() == "decided"

    (job,) = any_hospital.jobs()
    assert (job.model, job.state, job.patient_key) == ("lungs", "queued", "P1")
    with reading(any_hospital.engine) as connection:
        taken = analyses.inputs(connection, job.id)
        (route,) = jobs.routes_of(connection, job.id)
    assert [(each.input, each.sop_instance_uid) for each in taken] == [
        ("ct", f"1.2.3.1.{number}") for number in range(1, 5)
    ]
    assert (route.route, route.mode, route.destinations) == ("lungs", "live", ("PACS1",))
    assert any_hospital.study().status == "decided"
    (matched,) = any_hospital.story("route matched")
    assert matched == "Route lungs (live) matches: lungs gets ct: series 1 (1.2.3.1)."
    assert any_hospital.study().decision.endswith("Route lungs wants it.")


def test_nothing_is_decided_while_objects_may_still_come(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))

    assert hospital.ingest_and_decide(wait=59) == "nothing to do"
    assert hospital.jobs() == []


def test_an_outage_of_ingest_does_not_look_like_silence(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest()
    hospital.later(61)

    assert hospital.decide() == "not yet"
    hospital.later(2)
    assert hospital.decide() == "not yet"
    assert hospital.story("study waits") == []  # as every study does for a moment
    hospital.later(30)
    assert hospital.decide() == "not yet"
    hospital.later(2)
    assert hospital.decide() == "not yet"
    (waits,) = hospital.story("study waits")
    assert waits.startswith("Host here has not yet ingested all that came until")


def test_a_backlog_is_never_decided_on_halfway(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "BATCH", 2)
    hospital.send(*_chest(make_ct, 6))
    hospital.later(7200)  # the database was away
    outcomes = []

    def after_step(step: str) -> None:
        if step in ("committed", "ended"):
            outcomes.append(hospital.decide())

    hospital.ingest(after_step)

    assert set(outcomes) == {"not yet"}
    hospital.later(2)
    assert hospital.decide() == "decided"


def test_an_outage_makes_no_host_a_silent_one(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest()
    hospital.later(7200)

    assert hospital.decide() == "not yet"


@pytest.mark.parametrize("ingested_ahead", [True, False])
def test_a_study_of_a_clock_that_was_ahead_is_decided_on_all_the_same(
    any_hospital: Hospital, make_ct: MakeCT, ingested_ahead: bool
) -> None:
    hospital = any_hospital
    day = 86400
    hospital.later(day)
    hospital.send(*_chest(make_ct))
    if ingested_ahead:
        hospital.ingest()
    hospital.later(-day)  # the clock is set right
    hospital.ingest()
    right = hospital.clock
    assert are_due(hospital.engine, hospital.rules.patience, right)
    assert decide_due(hospital.engine, hospital.rules, right) == {}
    assert hospital.study().quiet_until == right + seconds(60)
    assert hospital.study().last_object_at == right
    (sentence,) = hospital.story("clock was ahead")
    assert "was put off until" in sentence
    assert not are_due(hospital.engine, hospital.rules.patience, right)
    hospital.send(make_ct(number=5))
    assert hospital.ingest_and_decide() == "decided"
    assert len(hospital.story("clock was ahead")) == 1


def test_a_decision_that_was_put_off_while_the_clock_was_ahead_is_taken(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct), ends=None)
    hospital.ingest()
    with writing(hospital.engine) as connection:
        study = StudyInstanceUID("1.2.3")
        tomorrow = Instant(hospital.clock + seconds(86400))
        decisions.postpone(connection, study, "The host is behind.", tomorrow, tomorrow)
    hospital.later(61)
    hospital.ingest()
    decide_due(hospital.engine, hospital.rules, hospital.clock)
    # Its association is open: patience counts from the last object, as ever.
    assert hospital.study().decide_at == hospital.study().last_object_at + seconds(900)
    assert not are_due(hospital.engine, hospital.rules.patience, hospital.clock)


def test_a_study_that_breaks_the_decision_keeps_nobody_else_from_it(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.send(make_ct(), make_ct(study="1.2.4", series="1.2.4.1"))
    hospital.ingest()
    hospital.later(61)
    hospital.ingest()
    real = matching.match

    def breaks(route: Route, model: Any, study: Any, **others: Any) -> Any:
        if study[0].series_instance_uid == "1.2.3.1":
            raise ZeroDivisionError
        return real(route, model, study, **others)

    monkeypatch.setattr(applied_module, "match", breaks)

    assert decide_due(hospital.engine, hospital.rules, hospital.clock) == {
        "1.2.3": "defect",
        "1.2.4": "decided",
    }
    assert decide_due(hospital.engine, hospital.rules, hospital.clock) == {}
    (why,) = hospital.story("study waits")
    assert why.startswith("Study 1.2.3, decide: a defect of dicomai, ZeroDivisionError")


def test_a_silent_host_blocks_until_patience_and_is_named(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    with writing(hospital.engine) as connection:
        hosts.note_ingested(connection, "node2", hospital.clock, hospital.clock)
    hospital.send(*_chest(make_ct))

    assert hospital.ingest_and_decide() == "not yet"
    assert hospital.ingest_and_decide(wait=840) == "decided"
    assert "although host node2 has not yet ingested all that came" in hospital.study().decision


def test_an_open_association_vetoes_until_patience(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(*_chest(make_ct), ends=None)

    assert hospital.ingest_and_decide() == "not yet"
    assert hospital.story("study waits") == [
        "An association of CT1 that sent objects of it is open."
    ]
    assert hospital.ingest_and_decide(wait=840) == "decided"


def test_an_object_in_flight_holds_up_its_own_study_only(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "now", lambda: hospital.clock)
    hospital.send(*_chest(make_ct))
    slow = hospital.send(make_ct(study="1.2.4", series="1.2.4.1"), node="CT2", ends=None)
    with slow.begin() as arriving:
        arriving.write(b"half")
        assert hospital.ingest_and_decide() == "decided"
        assert hospital.decide("1.2.4") == "not yet"


def test_the_end_of_the_association_lifts_the_veto(hospital: Hospital, make_ct: MakeCT) -> None:
    writer = hospital.send(*_chest(make_ct), ends=None)
    assert hospital.ingest_and_decide() == "not yet"
    writer.end("released", hospital.clock)

    assert hospital.ingest_and_decide(wait=0) == "decided"


def test_a_missing_slice_vetoes_until_patience_and_can_still_come(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    one, two, three, four, five = _chest(make_ct, 5)
    hospital.send(one, two, four, five)

    assert hospital.ingest_and_decide() == "not yet"
    assert hospital.story("study waits") == ["Series 1 (1.2.3.1) has no slice at 7.5 mm."]
    hospital.send(three)
    assert hospital.ingest_and_decide() == "decided"
    assert "although" not in hospital.study().decision


def test_a_gap_that_stays_is_decided_after_patience(hospital: Hospital, make_ct: MakeCT) -> None:
    one, two, _, four, five = _chest(make_ct, 5)
    hospital.send(one, two, four, five)
    hospital.ingest_and_decide()

    assert hospital.ingest_and_decide(wait=840) == "decided"
    assert "although series 1 (1.2.3.1) has no slice at 7.5 mm" in hospital.study().decision


def test_only_changed_series_can_veto(hospital: Hospital, make_ct: MakeCT) -> None:
    one, two, _, four, five = _chest(make_ct, 5)
    hospital.send(one, two, four, five)
    assert hospital.ingest_and_decide(wait=901) == "decided"
    hospital.send(*_chest(make_ct, series="1.2.3.2", SeriesNumber=2))

    assert hospital.ingest_and_decide() == "decided"


def test_exact_duplicates_queue_nothing(hospital: Hospital, make_ct: MakeCT) -> None:
    for _ in range(2):
        hospital.send(*_chest(make_ct))
        hospital.ingest_and_decide()

    assert len(hospital.jobs()) == 1
    assert len(hospital.story("study decided")) == 1


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_another_transfer_syntax_queues_nothing(
    hospital: Hospital, make_ct: MakeCT, syntax: str
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    hospital.send(*_chest(make_ct), syntax=syntax)
    hospital.ingest_and_decide()

    assert len(hospital.jobs()) == 1


def test_a_study_that_retention_deleted_and_that_came_again_can_be_run_again(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    (job,) = hospital.jobs()
    everything = Candidate(study_instance_uid=job.study_instance_uid, origins=("received",))
    with writing(hospital.engine) as connection:
        jobs.cancel(connection, job.id, "Over.", hospital.clock)
        assert retention.begin(connection, everything, hospital.clock, hospital.clock)
        retention.complete(connection, everything, hospital.clock)
        with pytest.raises(NotFound, match="Send the study again"):
            again(connection, job.id, hospital.clock)
    hospital.send(*_chest(make_ct))
    assert hospital.ingest_and_decide() == "decided"
    assert len(hospital.jobs()) == 1  # once: nothing starts by itself

    with writing(hospital.engine) as connection:
        new = again(connection, job.id, hospital.clock)
        taken = instances.inputs_of(connection, new)
    assert [each.sop_instance_uid for _, each in taken] == [
        f"1.2.3.1.{number}" for number in range(1, 5)
    ]


def test_a_route_that_changed_shares_the_newest_run_of_a_study_that_came_again(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    (old,) = hospital.jobs()
    _cancel(hospital, old)
    with writing(hospital.engine) as connection:
        new = again(connection, old.id, hospital.clock)
        jobs.cancel(connection, new, "Over.", hospital.clock)
    _deleted_by_retention(hospital)
    (lungs,) = hospital.rules.routes
    _with(hospital, replace(lungs, destinations=("VNA",)))

    hospital.send(*_chest(make_ct))
    assert hospital.ingest_and_decide() == "decided"

    with reading(hospital.engine) as connection:
        assert [each.destinations for each in jobs.routes_of(connection, new)] == [("VNA",)]
        assert [each.destinations for each in jobs.routes_of(connection, old.id)] == [("PACS1",)]


def _deleted_by_retention(hospital: Hospital, *, jobs_too: bool = False) -> None:
    keep = Keep(received=seconds(1), produced=seconds(1), jobs=seconds(1))
    hospital.later(10)
    retention.delete_expired(hospital.engine, hospital.config.data, keep, hospital.clock)
    if jobs_too:
        duties.prune(hospital.engine, keep, hospital.clock)


def _cancel(hospital: Hospital, job: Job) -> None:
    with writing(hospital.engine) as connection:
        jobs.cancel(connection, job.id, "Over.", hospital.clock)


def test_images_that_were_superseded_before_they_were_analysed_are_when_they_come_back(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    hospital.send(make_ct(number=2, PixelData=bytes(512)))
    hospital.ingest_and_decide()
    first, second = hospital.jobs()
    assert (first.state, second.supersedes) == ("cancelled", first.id)
    _cancel(hospital, second)
    _deleted_by_retention(hospital)
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()

    *_, third = hospital.jobs()
    assert (third.state, third.supersedes) == ("queued", second.id)


def test_images_that_come_back_after_retention_are_not_taken_for_those_that_came_between(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    for images in (_chest(make_ct), [make_ct(number=2, PixelData=bytes(512))]):
        hospital.send(*images)
        hospital.ingest_and_decide()
        *_, job = hospital.jobs()
        _cancel(hospital, job)
    _deleted_by_retention(hospital)
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()

    _, between, third = hospital.jobs()
    assert (third.state, third.supersedes) == ("queued", between.id)


def test_images_that_were_asked_for_before_say_what_became_of_that(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    (job,) = hospital.jobs()
    _cancel(hospital, job)
    _deleted_by_retention(hospital)
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    (told,) = hospital.story("route matched")
    assert told.endswith(
        f"Job {job.id} (lungs) is of the same images, and was cancelled. "
        f"For a new run: dicomai retry {job.id} --again"
    )

    _deleted_by_retention(hospital, jobs_too=True)
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    assert hospital.jobs() == []
    (told,) = hospital.story("route matched")
    # It was cancelled; nothing says that it analysed them.
    assert (
        f"Job {job.id} was of the same images, and was deleted by retention with what became of it"
    ) in told
    assert told.endswith("dicomai run lungs FOLDER")


def test_an_analysis_of_what_a_study_is_no_more_is_not_run_again(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*_chest(make_ct, 4))
    hospital.ingest_and_decide()
    (old,) = hospital.jobs()
    _cancel(hospital, old)
    hospital.send(*_chest(make_ct, 6)[4:])
    hospital.ingest_and_decide()
    _, new = hospital.jobs()

    with writing(hospital.engine) as connection, pytest.raises(NotNow) as no:
        again(connection, old.id, hospital.clock)
    assert no.value.sentence.endswith(f"It is queued. See: dicomai job {new.id}")
    assert [each.state for each in hospital.jobs()] == ["cancelled", "queued"]
    _cancel(hospital, new)
    with writing(hospital.engine) as connection, pytest.raises(NotNow) as no:
        again(connection, old.id, hospital.clock)
    assert no.value.sentence.endswith(f"dicomai retry {new.id} --again")
    _deleted_by_retention(hospital)
    hospital.send(*_chest(make_ct, 4))
    hospital.ingest_and_decide()
    *_, last = hospital.jobs()  # they are the study's again
    assert (last.state, last.supersedes) == ("queued", new.id)


def test_late_slices_queue_one_new_job_that_supersedes_the_old(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    any_hospital.send(*_chest(make_ct, 4))
    any_hospital.ingest_and_decide()
    any_hospital.send(*_chest(make_ct, 6)[4:])
    any_hospital.ingest_and_decide()

    old, new = any_hospital.jobs()
    assert (old.state, new.state, new.supersedes) == ("cancelled", "queued", old.id)
    with reading(any_hospital.engine) as connection:
        assert len(analyses.inputs(connection, new.id)) == 6


def test_a_new_version_of_a_slice_supersedes_and_the_older_is_kept(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    (before,) = hospital.jobs()
    hospital.send(make_ct(number=2, PixelData=bytes(512)), ends="aborted")
    hospital.ingest_and_decide()

    old, new = hospital.jobs()
    assert (old.state, new.supersedes) == ("cancelled", old.id)
    with reading(hospital.engine) as connection:
        used, was = (
            {row.sop_instance_uid: row for _, row in instances.inputs_of(connection, job.id)}
            for job in (new, before)
        )
    assert {uid for uid in used if used[uid].id != was[uid].id} == {"1.2.3.1.2"}
    assert (hospital.config.data / used["1.2.3.1.2"].path).read_bytes().endswith(bytes(512))
    # The older one is kept until retention takes the study.
    assert (
        hashlib.sha256((hospital.config.data / was["1.2.3.1.2"].path).read_bytes()).hexdigest()
        == was["1.2.3.1.2"].file_sha256
    )


def test_images_with_a_corrected_accession_number_are_analysed_anew(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    hospital.send(*_chest(make_ct, AccessionNumber="A2"))
    hospital.ingest_and_decide()

    old, new = hospital.jobs()
    assert (old.state, new.supersedes) == ("cancelled", old.id)
    with reading(hospital.engine) as connection:
        used = [
            row.attributes["AccessionNumber"] for _, row in instances.inputs_of(connection, new.id)
        ]
    assert set(used) == {"A2"}
    assert hospital.study().accession_number == "A2"


def test_a_late_series_that_changes_no_input_queues_nothing(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    hospital.send(*_chest(make_ct, series="1.2.3.2", Modality="MR"))
    assert hospital.ingest_and_decide() == "decided"

    assert len(hospital.jobs()) == 1


def test_a_second_route_to_the_same_model_shares_the_analysis(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    first = hospital.rules.routes[0]
    _with(hospital, first, replace(first, name="research", destinations=("XNAT",)))
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()

    (job,) = hospital.jobs()
    with reading(hospital.engine) as connection:
        routes = jobs.routes_of(connection, job.id)
    assert [(each.route, each.destinations) for each in routes] == [
        ("lungs", ("PACS1",)),
        ("research", ("XNAT",)),
    ]


@pytest.mark.parametrize("any_hospital", ["postgresql"], indirect=True)
def test_no_study_is_decided_on_while_it_turns_out_to_be_two_patients(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    any_hospital.send(*_chest(make_ct))
    any_hospital.ingest()
    any_hospital.later(61)
    any_hospital.ingest()
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    until = time.monotonic() + 20
    with ThreadPoolExecutor(1) as pool:
        with writing(any_hospital.engine) as connection:
            studies.lock(connection, STUDY)
            deciding = pool.submit(any_hospital.decide)
            with reading(any_hospital.engine) as other:
                while not other.execute(waiting).scalar_one() and time.monotonic() < until:
                    other.rollback()  # else it sees what it saw
            decisions.hold(connection, STUDY, "Two patients.", any_hospital.clock)
        assert deciding.result(20) == "nothing to do"
    assert not any_hospital.jobs()


def test_an_open_study_that_turns_out_to_be_two_patients_is_held_when_it_is_due(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*_chest(make_ct))
    hospital.ingest()
    # As it may stand where what took it in told patients apart less well than what decides.
    other = SeriesIdentity(
        series_instance_uid=SeriesInstanceUID("1.2.3.1"),
        key=IdentityKey("P2"),
        patient_name="Roe^Jane",
        birth_date="19700101",
        sex="F",
    )
    with writing(hospital.engine) as connection:
        series.note_identity(connection, STUDY, other)
    hospital.later(60)
    assert hospital.decide() == "held"
    assert hospital.study().status == "held"
    assert not hospital.jobs()
    (sentence,) = hospital.story("study held")
    assert "P1" in sentence
    assert "P2" in sentence


def test_several_routes_may_match(hospital: Hospital, make_ct: MakeCT) -> None:
    first = hospital.rules.routes[0]
    nodules = Route(name="nodules", model="nodules", priority=5, urgent=True, mode="shadow")
    _with(hospital, first, nodules)
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()

    assert [(job.model, job.priority, job.urgent) for job in hospital.jobs()] == [
        ("lungs", 0, False),
        ("nodules", 5, True),
    ]
    assert "Route nodules (shadow) matches" in hospital.story("route matched")[1]


def _compares(hospital: Hospital) -> Route:
    """Have a model that takes a prior, and return a route to it."""
    volume = ["Modality = CT"]
    compares = ModelInputs(
        package_sha256="c" * 64,
        inputs=(
            parse_input("ct", "volume", volume, []),
            parse_input("prior", "volume", volume, [], source="prior", max_age_days=1_000_000),
        ),
    )
    hospital.rules = replace(hospital.rules, models={"compares": compares})
    return Route(name="compare", model="compares", destinations=("PACS1",))


def test_the_latest_earlier_study_of_the_patient_is_the_prior(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    _with(hospital, _compares(hospital))

    def taken_from(uid: str, **says: object) -> set[str]:
        hospital.send(*_chest(make_ct, study=uid, series=f"{uid}.1", **says))
        hospital.ingest_and_decide(uid=uid)
        with reading(hospital.engine) as connection:
            return {
                each.study_instance_uid
                for job in hospital.jobs(uid)
                for each in analyses.inputs(connection, job.id)
                if each.input == "prior"
            }

    assert taken_from("1.2.1", StudyDate="20261118", StudyTime="0800") == set()
    assert taken_from("1.2.4", StudyDate="20261119", StudyTime="0900") == {"1.2.1"}
    assert taken_from("1.2.2", StudyDate="20261119", StudyTime="0800") == {"1.2.1"}
    assert taken_from("1.2.5", StudyDate="20261120", StudyTime="0700") == {"1.2.4"}
    assert taken_from("1.2.6", StudyDate="20261119", StudyTime="0830") == {"1.2.2"}
    # Of the same day, and nothing says that it is earlier.
    assert taken_from("1.2.7", StudyDate="20261118", StudyTime="0800") == set()
    assert taken_from("1.2.8", StudyDate="20261118", StudyTime="") == set()
    assert taken_from("1.2.9", PatientBirthDate="19600201") == set()
    assert taken_from("1.2.10", PatientID="P1 2") == set()


def test_a_job_that_waits_for_its_prior_goes_no_further_for_another_patient(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    _with(hospital, replace(_compares(hospital), inputs_from="ARCHIVE"))
    hospital.send(*_chest(make_ct))
    assert hospital.ingest_and_decide() == "decided"
    (waits,) = hospital.jobs()
    assert (waits.state, waits.waiting_for, waits.patient_key) == ("waiting", "input", "P1")
    hospital.send(*_chest(make_ct, PatientID="P2"))
    hospital.ingest()
    assert hospital.study().status == "held"

    accept(hospital.engine, STUDY, IdentityKey("P2"), hospital.clock)
    assert hospital.ingest_and_decide() == "decided"

    before, now = hospital.jobs()
    assert (before.id, before.state, before.patient_key) == (waits.id, "cancelled", "P1")
    assert (now.state, now.waiting_for, now.patient_key) == ("waiting", "input", "P2")


NO_HEART = "Model package models/heart: weights.safetensors is missing. Copy it again, whole."


def _heart_is_broken(hospital: Hospital, *routes: Route, **more: object) -> None:
    hospital.rules = replace(
        hospital.rules,
        routes=(*routes, Route(name="hearts", model="heart", **more)),
        missing={"heart": NO_HEART},
    )


def _heart_is_whole(hospital: Hospital) -> None:
    models = {**hospital.rules.models, "heart": hospital.rules.models["nodules"]}
    hospital.rules = replace(hospital.rules, models=models, missing={})


def _take_up(hospital: Hospital) -> list[bool]:
    with reading(hospital.engine) as connection:
        assert not waiting_routes.due(connection, ("hearts",), hospital.clock)
        waiting = waiting_routes.due(connection, (), hospital.clock)
    return [take_up(hospital.engine, each, hospital.rules, hospital.clock) for each in waiting]


def test_a_package_that_cannot_be_read_keeps_back_its_own_route_alone(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    _heart_is_broken(any_hospital, *any_hospital.rules.routes)
    any_hospital.send(*_chest(make_ct))

    assert any_hospital.ingest_and_decide() == "decided"
    assert [job.model for job in any_hospital.jobs()] == ["lungs"]
    (waits,) = any_hospital.story("route waits")
    assert waits == (
        "Route hearts waits for its model, and looks at the study by itself when that can be read "
        f"again: {NO_HEART}"
    )
    assert any_hospital.study().decision.endswith(f"Route lungs wants it. {waits}")
    assert _take_up(any_hospital) == [False]

    any_hospital.later(3 * 86400)
    _heart_is_whole(any_hospital)
    assert _take_up(any_hospital) == [True]

    assert [job.model for job in any_hospital.jobs()] == ["lungs", "heart"]
    assert len(any_hospital.story("route matched")) == 2
    assert any_hospital.study().decision.endswith("Route lungs wants it. Route hearts wants it.")
    assert _take_up(any_hospital) == []


def test_a_study_outgrows_no_route_that_waits_for_its_model(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    _heart_is_broken(hospital, max_study_age_days=2)
    hospital.send(*_chest(make_ct))
    hospital.send(*_chest(make_ct, study="1.2.4", series="1.2.4.1", StudyDate="20261101"))
    hospital.ingest_and_decide()
    assert hospital.decide("1.2.4") == "decided"
    assert "it takes studies from" in hospital.story("route unmatched", "1.2.4")[0]

    hospital.later(3 * 86400)
    _heart_is_whole(hospital)
    assert _take_up(hospital) == [True]
    assert [job.model for job in hospital.jobs()] == ["heart"]


def test_a_route_waits_for_no_study_that_its_own_conditions_leave_out(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    _heart_is_broken(hospital, when=(parse("BodyPartExamined = HEART"),))
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()

    assert hospital.story("route waits") == []
    assert '"BodyPartExamined = HEART", and it has CHEST' in hospital.story("route unmatched")[0]


def test_a_route_waits_on_where_more_of_the_study_comes(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    _heart_is_broken(hospital)
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    hospital.send(*_chest(make_ct, 2, series="1.2.3.2", SeriesNumber=2))
    hospital.ingest()
    _heart_is_whole(hospital)
    assert _take_up(hospital) == []  # it is decided on anew

    assert hospital.ingest_and_decide() == "decided"
    assert [job.model for job in hospital.jobs()] == ["heart"]
    assert _take_up(hospital) == []


def test_a_route_that_was_removed_waits_no_longer(hospital: Hospital, make_ct: MakeCT) -> None:
    _heart_is_broken(hospital)
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    _with(hospital)

    assert _take_up(hospital) == [True]
    assert hospital.study().decision.endswith(
        "Route hearts is not configured any more, so it waits no longer."
    )
    assert _take_up(hospital) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "off"}, "Route lungs does not match: it is off."),
        ({"since": date(2026, 11, 21)}, "it takes studies from 2026-11-21 on, and this one is of"),
        ({"when": (parse("calling_node = CT2"),)}, '"calling_node = CT2", and it has CT1'),
        ({"when": (parse("instances >= 20"),)}, '"instances >= 20", and it has 4'),
        ({"when": (parse("ContrastBolusAgent present"),)}, "and it has no ContrastBolusAgent"),
    ],
)
def test_a_route_that_does_not_match_says_why(
    hospital: Hospital, make_ct: MakeCT, changes: dict[str, object], reason: str
) -> None:
    _with(hospital, replace(hospital.rules.routes[0], **changes))
    hospital.send(*_chest(make_ct))

    assert hospital.ingest_and_decide() == "decided"
    assert hospital.jobs() == []
    (sentence,) = hospital.story("route unmatched")
    assert reason in sentence
    assert hospital.study().decision.endswith("No route wants it; its events say why.")


def test_the_chosen_series_and_the_runner_up_are_told(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(*_chest(make_ct), *_chest(make_ct, series="1.2.3.2", SliceThickness=1.0))
    hospital.ingest_and_decide()

    (sentence,) = hospital.story("route matched")
    assert "lungs gets ct: series 1 (1.2.3.2)." in sentence
    assert "Series 1 (1.2.3.1) fits too, and comes after: by SliceThickness it has 2.5" in sentence


def test_what_is_never_input_is_told_once(hospital: Hospital, make_ct: MakeCT) -> None:
    first = hospital.rules.routes[0]
    _with(hospital, first, replace(first, name="again"))
    scout = make_ct(number=9, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    mpr = make_ct(series="1.2.3.2", ImageType=["DERIVED", "SECONDARY", "MPR"])
    hospital.send(*_chest(make_ct), scout, mpr)
    hospital.ingest_and_decide()

    assert hospital.story("objects left out") == [
        "1 of 5 objects of series 1 (1.2.3.1) left out: a localizer.",
        "1 of 1 objects of series 1 (1.2.3.2) left out: derived from other images.",
    ]
    (job,) = hospital.jobs()
    with reading(hospital.engine) as connection:
        assert len(analyses.inputs(connection, job.id)) == 4


def test_a_study_that_no_route_wants_says_so(hospital: Hospital, make_ct: MakeCT) -> None:
    _with(hospital)
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()

    assert hospital.study().decision.endswith("There is no route, so nothing is to be done.")


def test_accepting_a_key_releases_that_patients_series_only(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*_chest(make_ct), *_chest(make_ct, series="1.2.3.2", PatientID="P2"))
    assert hospital.ingest_and_decide() == "nothing to do"
    assert hospital.study().status == "held"

    accept(hospital.engine, StudyInstanceUID("1.2.3"), IdentityKey("P1"), hospital.clock)

    assert hospital.ingest_and_decide(wait=0) == "decided"
    (job,) = hospital.jobs()
    with reading(hospital.engine) as connection:
        taken = analyses.inputs(connection, job.id)
    assert {each.series_instance_uid for each in taken} == {"1.2.3.1"}
    (sentence,) = hospital.story("series left out")
    assert sentence.startswith(
        "Series 1 (1.2.3.2) left out: it has objects of another patient than"
    )


@pytest.mark.parametrize("corrected", [3, 4])
def test_images_with_a_corrected_patient_id_count_when_that_is_accepted(
    hospital: Hospital, make_ct: MakeCT, corrected: int
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    hospital.send(*_chest(make_ct, PatientID="P9")[:corrected])
    hospital.ingest_and_decide()
    assert hospital.study().status == "held"

    accept(hospital.engine, StudyInstanceUID("1.2.3"), IdentityKey("P9"), hospital.clock)

    assert hospital.ingest_and_decide(wait=0) == "decided"
    if corrected < 4:  # one is P1's still
        assert len(hospital.story("series left out")) == len(hospital.jobs()) == 1
        return
    old, new = hospital.jobs()
    assert (old.state, new.state, new.patient_key) == ("cancelled", "queued", "P9")
    assert not hospital.story("series left out")


def test_who_accepted_a_wrong_patient_id_may_accept_the_right_one_when_that_is_back(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    for images in (_chest(make_ct), _chest(make_ct, PatientID="WRONG")):
        hospital.send(*images)
        hospital.ingest_and_decide()
        hospital.later(10)
    accept(hospital.engine, STUDY, IdentityKey("WRONG"), hospital.clock)
    assert hospital.decide() == "decided"
    hospital.send(*_chest(make_ct))
    assert hospital.ingest_and_decide() == "decided"
    (told,) = hospital.story("series left out")
    assert told.endswith(f"If that was wrong: dicomai study {STUDY} --accept KEY")
    *_, wrong = hospital.jobs()
    assert (wrong.patient_key, wrong.state) == ("WRONG", "queued")

    accept(hospital.engine, STUDY, IdentityKey("P1"), hospital.clock)

    *_, wrong = hospital.jobs()
    assert (wrong.state, wrong.held_by) == ("held", "identity")
    assert hospital.decide() == "decided"
    *_, right = hospital.jobs()
    assert (right.patient_key, right.state, right.supersedes) == ("P1", "queued", wrong.id)
    with pytest.raises(InputError, match="not held"):
        accept(hospital.engine, STUDY, IdentityKey("P1"), hospital.clock)


def test_results_that_left_as_another_patients_are_told_when_a_key_is_accepted(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    job = _analysed(hospital)
    _delivered(hospital)
    hospital.send(*_chest(make_ct, PatientID="P9"))
    hospital.ingest_and_decide()

    left = accept(hospital.engine, StudyInstanceUID("1.2.3"), IdentityKey("P9"), hospital.clock)

    (sentence,) = left
    assert sentence == (
        f"Job {job.id} (lungs): its results went to PACS1 as those of P1, and the study belongs to "
        f"P9. To take them back: dicomai withdraw {job.id}"
    )
    assert hospital.story("results of another patient") == [sentence]


def test_results_that_left_as_the_accepted_patients_are_not_told(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    _analysed(hospital)
    _delivered(hospital)
    hospital.send(make_ct(series="1.2.3.2", PatientID="P9"))
    hospital.ingest_and_decide()

    assert not accept(hospital.engine, StudyInstanceUID("1.2.3"), IdentityKey("P1"), hospital.clock)


def test_a_conflict_that_comes_late_parks_the_queued_job(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    hospital.send(make_ct(series="1.2.3.2", PatientID="P2"))
    hospital.ingest()

    (job,) = hospital.jobs()
    assert (job.state, job.held_by) == ("held", "study")
    accept(hospital.engine, StudyInstanceUID("1.2.3"), IdentityKey("P1"), hospital.clock)
    hospital.ingest_and_decide()
    (job,) = hospital.jobs()
    assert job.state == "queued"


def test_one_object_under_two_studies_that_ingest_did_not_see_holds_both(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*_chest(make_ct))
    hospital.send(make_ct(study="1.2.4"))
    hospital.ingest()
    with writing(hospital.engine) as connection:  # as two hosts that ingest at once leave them
        connection.execute(schema.studies.update().values(status="open", hold_reason=None))

    assert hospital.ingest_and_decide() == "held"

    assert not hospital.jobs()
    for uid, other in (("1.2.3", "1.2.4"), ("1.2.4", "1.2.3")):
        assert hospital.study(uid).status == "held"
        assert f"came under study {other} too" in str(hospital.study(uid).hold_reason)
    accept(hospital.engine, StudyInstanceUID("1.2.3"), IdentityKey("P1"), hospital.clock)
    assert hospital.ingest_and_decide(wait=0) == "decided"


def test_a_held_study_of_which_results_are_left_is_released_for_their_patient(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    _analyse_and_deliver(hospital, make_ct)
    hospital.send(make_ct(number=9, PatientID="P9"))
    hospital.ingest()
    _delete_images(hospital)
    reason = str(hospital.study().hold_reason)
    assert reason.endswith("Its images are deleted by now, and results of P1 are left.")
    uid = StudyInstanceUID("1.2.3")
    with pytest.raises(NotFound, match=r"no objects of P9; it has: P1\."):
        accept(hospital.engine, uid, IdentityKey("P9"), hospital.clock)
    assert not accept(hospital.engine, uid, IdentityKey("P1"), hospital.clock)
    assert hospital.ingest_and_decide() == "decided"


def test_objects_of_another_patient_than_the_results_that_are_left_hold_their_study(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    _analyse_and_deliver(hospital, make_ct)
    _delete_images(hospital)
    hospital.send(make_ct(number=9, PatientID="P9"))
    hospital.ingest()
    reason = str(hospital.study().hold_reason)
    assert "what came is of P9, and results of P1 are here. Keys: P1, P9." in reason
    uid = StudyInstanceUID("1.2.3")
    (told,) = accept(hospital.engine, uid, IdentityKey("P9"), hospital.clock)
    assert "as those of P1, and the study belongs to P9" in told


def test_objects_of_the_patient_of_the_results_that_are_left_are_decided_on(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    _analyse_and_deliver(hospital, make_ct)
    _delete_images(hospital)
    hospital.send(*_chest(make_ct))
    assert hospital.ingest_and_decide() == "decided"


def test_objects_of_two_studies_that_name_several_patients_have_no_key_to_accept(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    several = ["P1", "P2"]
    hospital.send(make_ct(PatientID=several))
    hospital.send(make_ct(study="1.2.4", PatientID=several))
    hospital.ingest()
    for uid in ("1.2.3", "1.2.4"):
        reason = str(hospital.study(uid).hold_reason)
        assert "too. No object names one patient alone, so none can be accepted" in reason
        assert "--accept" not in reason


def _result(hospital: Hospital, **attributes: str) -> InstanceRow:
    """Return a result in the catalogue's words."""
    image = hospital.rows()[0]
    values = {each.name: getattr(image, each.name) for each in fields(InstanceRow)}
    values |= {"series_instance_uid": "1.2.3.9", "sop_instance_uid": "1.2.3.9.1"}
    values |= {"path": PurePosixPath("archive/sr.dcm"), "file_sha256": "5" * 64}
    values |= {"attributes": {**image.attributes, **attributes}}
    return InstanceRow(**values)


def _analyse_and_deliver(hospital: Hospital, make_ct: MakeCT) -> None:
    """Have a study of P1 decided on, with a result that is kept and delivered."""
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    _analysed(hospital, _result(hospital))
    _delivered(hospital)


def _delete_images(hospital: Hospital) -> None:
    """Have retention delete all but the results."""
    hospital.later(10)
    keep = Keep(received=seconds(1), produced=seconds(1e6), jobs=seconds(1e6))
    retention.delete_expired(hospital.engine, hospital.config.data, keep, hospital.clock)
    assert len(hospital.rows()) == 1


def _analysed(hospital: Hospital, *produced: InstanceRow) -> Job:
    """Run the queued analysis."""
    with writing(hospital.engine) as connection:
        job = claims.claim(connection, "w1", ("analyse",), ("lungs",), hospital.clock)
        assert job is not None
        assert analyses.finish(connection, job.held, produced, {}, {}, hospital.clock) == "done"
        return job


def _delivered(hospital: Hospital) -> None:
    """Deliver the results of the analysis that is done."""
    with writing(hospital.engine) as connection:
        job = claims.claim(connection, "w1", ("deliver",), (), hospital.clock)
        assert job is not None
        assert deliveries.start(connection, job.held, hospital.clock) is None
        uids = (SOPInstanceUID("2.25.1"),)
        assert deliveries.begin_objects(connection, job.held, uids, hospital.clock)
        assert deliveries.finish(connection, job.held, {}, {}, hospital.clock)


def _reissued_to(hospital: Hospital, job: Job, key: str, accession_number: str = "") -> JobId:
    """Have a person say whose the results of an analysis are, and of which procedure."""
    with writing(hospital.engine) as connection:
        new = Reissue(
            unique=uuid.uuid4(),
            patient_key=IdentityKey(key),
            accession_number=accession_number,
            produced=(),
            holders=reissues.holders(connection, job),
            by_hand=(),
            unnamed=False,
        )
        return reissues.reissue(connection, job, new, hospital.clock)


def test_what_arrives_does_not_undo_that_a_person_corrected_the_accession_number(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    number = _analysed(hospital, _result(hospital, AccessionNumber="A0")).id

    def after(said: str) -> str:
        """Have an object come that no route wants, and return the study's number."""
        count = len(hospital.rows())
        hospital.send(
            make_ct(series="1.2.3.2", number=count, BodyPartExamined="HEAD", AccessionNumber=said)
        )
        hospital.ingest()
        return str(hospital.study().accession_number)

    def corrected(said: str) -> None:
        nonlocal number
        with reading(hospital.engine) as connection:
            job = jobs.existing(connection, number)
        number = _reissued_to(hospital, job, "P1", said)

    corrected("MISTYPED")
    corrected("A2")
    assert (after("A1"), after(""), after("A0")) == ("A2", "A2", "A2")
    assert after("MISTYPED") == "MISTYPED"  # now it comes from where objects come from
    corrected("A3")
    assert (after("A1"), after("MISTYPED")) == ("A3", "A3")
    corrected("A1")
    assert (after("A1"), after("MISTYPED"), after("A3")) == ("A1", "A1", "A3")


def test_what_arrives_does_not_undo_that_a_person_corrected_the_patient(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    _reissued_to(hospital, _analysed(hospital), "P9")

    hospital.send(make_ct(number=1))  # byte for byte
    hospital.ingest()

    assert hospital.study().patient_key == "P9"
    with writing(hospital.engine) as connection:
        delivery = claims.claim(connection, "w1", ("deliver",), (), hospital.clock)
        assert delivery is not None
        assert deliveries.start(connection, delivery.held, hospital.clock) is None
    # A late slice of the old patient makes an analysis for the corrected one: results that name
    # the old one are held.
    hospital.send(make_ct(number=5))
    hospital.ingest_and_decide()
    assert [job.patient_key for job in hospital.jobs()] == ["P1", "P9", "P9"]
    # What comes corrected is the same patient's.
    hospital.send(make_ct(number=6, PatientID="P9"))
    hospital.ingest_and_decide()
    assert (hospital.study().status, hospital.study().patient_key) == ("decided", "P9")


def test_results_of_a_patient_whom_a_study_is_no_more_are_not_reissued(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    job = _analysed(hospital)
    with writing(hospital.engine) as connection:
        studies.set_patient_key(connection, StudyInstanceUID("1.2.3"), IdentityKey("P2"))
    for key in ("P1", "P9"):
        with pytest.raises(NotNow, match="is another patient's by now"):
            _reissued_to(hospital, job, key)
    assert hospital.study().patient_key == "P2"


def test_a_third_patient_holds_a_study_that_was_corrected(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital = any_hospital
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    _reissued_to(hospital, _analysed(hospital), "P9")

    hospital.send(*_chest(make_ct, series="1.2.3.2", PatientID="P2"))
    hospital.ingest()

    assert "Keys: P2, P9." in (hospital.study().hold_reason or "")
    uid = StudyInstanceUID("1.2.3")
    with pytest.raises(NotFound, match="it has: P2, P9"):
        accept(hospital.engine, uid, IdentityKey("P1"), hospital.clock)
    accept(hospital.engine, uid, IdentityKey("P9"), hospital.clock)
    assert hospital.ingest_and_decide() == "decided"
    (sentence,) = hospital.story("series left out")
    assert "(1.2.3.2) left out" in sentence


def test_only_a_held_study_and_one_of_its_keys_can_be_accepted(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    study = StudyInstanceUID("1.2.3")
    with pytest.raises(NotFound, match=r"no study 1\.2\.3"):
        accept(hospital.engine, study, IdentityKey("P1"), hospital.clock)
    hospital.send(*_chest(make_ct))
    hospital.ingest()
    with pytest.raises(InputError, match="is open, not held"):
        accept(hospital.engine, study, IdentityKey("P1"), hospital.clock)
    hospital.send(make_ct(number=9, PatientID="P2"))
    hospital.ingest()
    with pytest.raises(NotFound, match="it has: P1, P2"):
        accept(hospital.engine, study, IdentityKey("P3"), hospital.clock)


def test_due_studies_are_decided_together(hospital: Hospital, make_ct: MakeCT) -> None:
    hospital.send(*_chest(make_ct), *_chest(make_ct, study="1.2.4", series="1.2.4.1"))
    hospital.ingest()
    assert decide_due(hospital.engine, hospital.rules, hospital.clock) == {}
    hospital.later(61)
    hospital.ingest()

    assert decide_due(hospital.engine, hospital.rules, Instant(hospital.clock)) == {
        "1.2.3": "decided",
        "1.2.4": "decided",
    }


def test_our_own_result_that_a_pacs_sends_back_starts_no_loop(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    equipment = Dataset()
    equipment.Manufacturer = equipment.ManufacturerModelName = "dicomai"
    ours = make_ct(series="1.2.3.2", SliceThickness=0.5, ContributingEquipmentSequence=[equipment])
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    hospital.send(ours)
    assert hospital.ingest_and_decide() == "decided"

    assert len(hospital.jobs()) == 1
    assert hospital.story("objects left out") == [
        "1 of 1 objects of series 1 (1.2.3.2) left out: our own result."
    ]


def test_two_studies_of_one_association_keep_their_patients(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    mixed = [
        make_ct(study=study, series=f"{study}.1", number=number, PatientID=patient)
        for number in range(1, 5)
        for study, patient in (("1.2.3", "P1"), ("1.2.4", "P2"))
    ]
    any_hospital.send(*mixed)

    assert any_hospital.ingest_and_decide() == "decided"
    assert any_hospital.decide("1.2.4") == "decided"
    for uid, patient in (("1.2.3", "P1"), ("1.2.4", "P2")):
        (job,) = any_hospital.jobs(uid)
        assert job.patient_key == patient
        with reading(any_hospital.engine) as connection:
            taken = analyses.inputs(connection, job.id)
        assert {each.study_instance_uid for each in taken} == {uid}


def test_a_route_that_came_later_looks_at_what_a_person_names(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    (lungs,) = any_hospital.rules.routes
    _with(any_hospital)
    any_hospital.send(*_chest(make_ct))
    any_hospital.ingest_and_decide()
    _with(any_hospital, lungs)
    any_hospital.later(3600)
    assert any_hospital.decide() == "nothing to do"

    decide_again(any_hospital.engine, STUDY, any_hospital.clock)

    assert any_hospital.decide() == "decided"
    (job,) = any_hospital.jobs()
    assert (job.model, job.state) == ("lungs", "queued")
    assert any_hospital.story("study reopened") == [
        "A person had the routes look at this study again."
    ]
    # And once more: the same images are not analysed twice.
    decide_again(any_hospital.engine, STUDY, any_hospital.clock)
    assert any_hospital.decide() == "decided"
    assert [each.id for each in any_hospital.jobs()] == [job.id]


def test_routes_look_again_at_a_study_that_came_for_a_backfill_alone(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest()
    with writing(hospital.engine) as connection:
        apart = {"study_instance_uid": STUDY, "purpose": "backfill 1", "at": hospital.clock}
        connection.execute(insert(schema.studies_apart).values(**apart))
    hospital.ingest_and_decide()
    assert hospital.jobs() == []

    decide_again(hospital.engine, STUDY, hospital.clock)

    assert hospital.decide() == "decided"
    assert len(hospital.jobs()) == 1


def test_a_newer_package_replaces_the_results_of_a_study_that_is_looked_at_again(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    (old,) = hospital.jobs()
    models = {
        name: replace(each, package_sha256="b" * 64) for name, each in hospital.rules.models.items()
    }
    hospital.rules = replace(hospital.rules, models=models)

    decide_again(hospital.engine, STUDY, hospital.clock)

    assert hospital.decide() == "decided"
    was, new = hospital.jobs()
    assert (was.id, was.state, new.supersedes) == (old.id, "cancelled", old.id)
    assert hospital.story("job cancelled") == [
        "The package of its model has changed; a newer job takes its place."
    ]
    assert hospital.story("job queued")[-1].endswith(
        f"replaces job {old.id}, whose package has changed."
    )


def test_no_route_looks_again_at_a_study_that_is_held_or_going(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    with pytest.raises(NotFound, match="There is no study"):
        decide_again(hospital.engine, StudyInstanceUID("1.2.99"), hospital.clock)
    hospital.send(*_chest(make_ct))
    hospital.ingest_and_decide()
    with writing(hospital.engine) as connection:
        decisions.hold(connection, STUDY, "Two patients.", hospital.clock)
    with pytest.raises(InputError, match="is held, so no route may look at it"):
        decide_again(hospital.engine, STUDY, hospital.clock)
    received = Candidate(study_instance_uid=STUDY, origins=("received",))
    (job,) = hospital.jobs()
    with writing(hospital.engine) as connection:
        jobs.cancel(connection, job.id, "Not wanted.", hospital.clock)
        assert retention.begin(connection, received, hospital.clock, hospital.clock)
    with pytest.raises(InputError, match="is being deleted by retention"):
        decide_again(hospital.engine, STUDY, hospital.clock)
