"""Results reach their node once, belong to the patient there, and a refusal is said in words."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bodies
import pydicom
import pytest
from faulty_pacs import FaultyPeer
from pydicom.dataset import Dataset
from ward import Ward, open_ward

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.inference.runner_process import RunnerProcess
from dicomai.net import scu
from dicomai.net.node import Node
from dicomai.net.study_identity import StudyIdentity
from dicomai.routing.route import Route
from dicomai.service import duties
from dicomai.service.deliver import Deliverer, is_other_issuer
from dicomai.service.supervise import Supervisor
from dicomai.service.withdraw import withdraw
from dicomai.settings import TlsSettings
from dicomai.store import decisions, deliveries, events, jobs, nodes, pauses, studies
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job, JobId
from tests.conftest import Authority, StorePeer

DAY = seconds(86400)


@pytest.fixture
def ward_of(tmp_path: Path, runner: RunnerProcess) -> Iterator[Callable[..., tuple[Ward, JobId]]]:
    opened = []

    def make(node: Node, routes: tuple[Route, ...] = ()) -> tuple[Ward, JobId]:
        ward = open_ward(tmp_path, node)
        ward = replace(ward, settings=replace(ward.settings, routes=routes))
        opened.append(ward)
        job = ward.queue(ward.study("P1"), mode="live", destinations=(node.name,))
        Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()
        return ward, job

    yield make
    for each in opened:
        each.engine.dispose()


def deliver(ward: Ward, clock: Callable[[], Instant] = now) -> bool:
    return Deliverer(settings=ward.settings, worker=ward.worker(clock=clock)).work_once()


def delivery(ward: Ward, analysis: JobId) -> Job:
    with reading(ward.engine) as connection:
        (found,) = deliveries.of_analysis(connection, analysis)
    return found


def objects(ward: Ward, job: Job) -> list[str]:
    with reading(ward.engine) as connection:
        return [each.state for each in deliveries.objects(connection, job.id)]


def test_dcmtk_receives_all_objects_of_an_analysis(
    ward_of: Callable[..., tuple[Ward, JobId]], storescp: object
) -> None:
    port = storescp.port
    node = Node(name="PACS1", ae_title="STORESCP", host="127.0.0.1", port=port)
    ward, analysis = ward_of(node)
    assert deliver(ward)
    job = delivery(ward, analysis)
    assert (job.state, job.error_sentence) == ("done", "")
    assert objects(ward, job) == ["sent", "sent"]
    came = [pydicom.dcmread(path) for path in storescp.files()]
    assert {each.SOPInstanceUID for each in came} == {
        row.sop_instance_uid for row in ward.results(analysis)
    }
    assert not deliver(ward)


def test_a_node_that_speaks_tls_gets_its_results_over_tls(
    ward_of: Callable[..., tuple[Ward, JobId]],
    storescp_with_tls: Callable[..., StorePeer],
    authority: Authority,
) -> None:
    pacs = storescp_with_tls(authority.issue("pacs"))
    node = Node(name="PACS1", ae_title="STORESCP", host="127.0.0.1", port=pacs.port, tls=True)
    ward, analysis = ward_of(node)
    certificate, key = authority.issue("dicomai")
    tls = TlsSettings(certificate=certificate, key=key, authorities=authority.certificate)
    assert deliver(replace(ward, settings=replace(ward.settings, tls=tls)))
    job = delivery(ward, analysis)
    assert (job.state, job.error_sentence) == ("done", "")
    assert len(pacs.files()) == 2


def test_a_peer_that_breaks_off_gets_the_rest_later_and_nothing_twice(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    peer = faulty(0x0000, "abort")
    ward, analysis = ward_of(peer.node())
    deliver(ward)
    job = delivery(ward, analysis)
    assert (job.state, job.waiting_for, job.error_kind) == ("waiting", "back-off", "transient")
    # It may have kept the one that it did not answer.
    assert sorted(objects(ward, job)) == ["sent", "uncertain"]
    assert not deliver(ward)
    later = Instant(now() + DAY)
    duties.promote(ward.engine, later)
    deliver(ward, lambda: later)
    assert delivery(ward, analysis).state == "done"
    assert peer.associations == 2
    assert len({each.SOPInstanceUID for each in peer.stored}) == len(peer.stored) == 2


def test_a_peer_that_is_away_opens_its_breaker_and_is_tried_again(
    ward_of: Callable[..., tuple[Ward, JobId]], free_port: int
) -> None:
    ward, analysis = ward_of(Node(name="PACS1", ae_title="AWAY", host="127.0.0.1", port=free_port))
    at = now()
    for _ in range(nodes.TOO_OFTEN):
        assert deliver(ward, lambda at=at: at)  # type: ignore[misc]  # mypy can't infer it
        at = Instant(at + DAY)
        with reading(ward.engine) as connection:
            breaker = nodes.get(connection, "PACS1")
        duties.promote(ward.engine, at)
    assert breaker.breaker == "open"
    job = delivery(ward, analysis)
    assert "can't be reached at 127.0.0.1" in job.error_sentence
    assert "connection refused" in job.error_sentence


def test_a_peer_that_was_away_for_a_night_gets_its_results_in_the_morning(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer], free_port: int
) -> None:
    away = Node(name="PACS1", ae_title="AWAY", host="127.0.0.1", port=free_port)
    ward, analysis = ward_of(away)
    at = evening = now()
    while at < evening + DAY / 2:
        if not deliver(ward, lambda at=at: at):  # type: ignore[misc]  # mypy can't infer it
            at = Instant(at + seconds(600))
        duties.promote(ward.engine, at)
    assert delivery(ward, analysis).state in ("queued", "waiting")
    back = replace(ward, settings=replace(ward.settings, nodes=(faulty().node(),)))
    morning = Instant(at + seconds(3600))
    duties.promote(ward.engine, morning)
    assert deliver(back, lambda: morning)
    assert delivery(ward, analysis).state == "done"


@pytest.mark.parametrize("answers_find", [False, True])
def test_what_waits_for_a_peer_that_does_not_know_us_goes_when_it_does(
    ward_of: Callable[..., tuple[Ward, JobId]],
    faulty: Callable[..., FaultyPeer],
    answers_find: bool,
) -> None:
    ward, analysis = ward_of(faulty(knows=("OTHERS",)).node(answers_find=answers_find))
    at = now()
    for _ in range(nodes.TOO_OFTEN):
        assert deliver(ward, lambda at=at: at)  # type: ignore[misc]  # mypy can't infer it
        with reading(ward.engine) as connection:
            known = nodes.get(connection, "PACS1")
        at = Instant(at + DAY)
        duties.promote(ward.engine, at)
    assert known.breaker == "open"
    assert "does not know DICOMAI. Add that AE title" in known.last_error
    assert delivery(ward, analysis).state == "queued"
    knows_us = replace(ward, settings=replace(ward.settings, nodes=(faulty().node(),)))
    assert deliver(knows_us, lambda: at)
    assert delivery(ward, analysis).state == "done"


@pytest.mark.parametrize("status", [0x0110, 0xA700])
def test_a_peer_that_puts_an_object_off_keeps_its_breaker_closed(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer], status: int
) -> None:
    peer = faulty(*([status, 0x0000] + [status] * nodes.TOO_OFTEN))
    ward, analysis = ward_of(peer.node())
    at = now()
    for _ in range(nodes.TOO_OFTEN):
        assert deliver(ward, lambda at=at: at)  # type: ignore[misc]  # mypy can't infer it
        job = delivery(ward, analysis)
        assert (job.state, job.waiting_for, job.error_kind) == ("waiting", "back-off", "transient")
        at = Instant(at + DAY)
        duties.promote(ward.engine, at)
    with reading(ward.engine) as connection:
        there = nodes.get(connection, "PACS1")
    assert (there.breaker, there.failures) == ("closed", 0)
    assert sorted(objects(ward, job)) == ["sent", "transient"]


def test_a_refusal_for_good_fails_in_plain_words_and_the_rest_is_sent(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    peer = faulty(0xA900, 0x0000)
    ward, analysis = ward_of(peer.node())
    deliver(ward)
    job = delivery(ward, analysis)
    assert (job.state, job.error_kind, job.error_stage) == ("failed", "refused", "send")
    assert "data set does not match its SOP class" in job.error_sentence
    assert "status 0xA900" in job.error_sentence
    assert sorted(objects(ward, job)) == ["refused", "sent"]
    assert len(peer.stored) == 1


def test_a_warning_is_kept_and_the_delivery_is_done(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    ward, analysis = ward_of(faulty(0xB000, 0x0000).node())
    deliver(ward)
    job = delivery(ward, analysis)
    assert (job.state, job.summary["warnings"]) == ("done", 1)
    with reading(ward.engine) as connection:
        story = events.of_job(connection, job.id)
    (warning,) = [each for each in story if each.kind == "delivered with a warning"]
    assert "changed values in it" in warning.sentence


@pytest.mark.parametrize(
    ("identity", "named"),
    [(("P2", "AP1"), "another Patient ID"), (("P1", "A7"), "another Accession Number")],
)
def test_results_whose_patient_is_another_one_at_the_node_are_held(
    ward_of: Callable[..., tuple[Ward, JobId]],
    faulty: Callable[..., FaultyPeer],
    identity: tuple[str, str],
    named: str,
) -> None:
    peer = faulty(identity=identity)
    ward, analysis = ward_of(peer.node(answers_find=True))
    deliver(ward)
    job = delivery(ward, analysis)
    assert (job.state, job.held_by, job.error_kind) == ("held", "identity", "identity")
    assert named in job.error_sentence
    assert not peer.stored


def test_a_node_that_answers_whose_a_study_is_is_away_no_more(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    ward, analysis = ward_of(faulty(identity=("P2", "AP1")).node(answers_find=True))
    with writing(ward.engine) as connection:
        for _ in range(nodes.TOO_OFTEN):
            nodes.failed(connection, "PACS1", "PACS1 can't be reached.", now())
    later = Instant(now() + DAY)
    duties.promote(ward.engine, later)
    assert deliver(ward, lambda: later)
    assert delivery(ward, analysis).held_by == "identity"
    with reading(ward.engine) as connection:
        assert nodes.get(connection, "PACS1").breaker == "closed"


def test_a_note_about_results_that_the_node_has_under_another_patient_is_held(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    peer = faulty(identity=("P1", "AP1"))
    ward, analysis = ward_of(replace(peer.node(answers_find=True), rejection_notes=True))
    deliver(ward)
    peer.identity = ("P2", "AP1")
    stored = len(peer.stored)
    note = withdraw(ward.engine, ward.settings, analysis, "Another patient's.", now()).job
    deliver(ward)
    job = delivery(ward, note)
    assert (job.state, job.held_by) == ("held", "identity")
    assert "another Patient ID than the results that the note takes back" in job.error_sentence
    assert job.error_sentence.endswith(f"by hand, and then: dicomai cancel {job.id}")
    assert len(peer.stored) == stored
    with writing(ward.engine) as connection:
        jobs.cancel(connection, job.id, "Deleted by hand.", now())


def test_results_whose_patient_id_is_another_issuers_at_the_node_are_held(
    tmp_path: Path, runner: RunnerProcess, faulty: Callable[..., FaultyPeer]
) -> None:
    scanner = Node(name="CT1", ae_title="CT1", issuer_of_patient_id="HOSPITAL")
    peer = faulty(identity=("P1", "AP1"))
    pacs = peer.node(answers_find=True)
    ward = open_ward(tmp_path, scanner, pacs)
    study = ward.study("P1", key="P1@HOSPITAL")
    analysis = ward.queue(study, mode="live", destinations=(pacs.name,))
    Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()

    def attempt(issuer: str, pacs: Node = pacs) -> str:
        peer.issuer = issuer
        deliver(replace(ward, settings=replace(ward.settings, nodes=(scanner, pacs))))
        job = delivery(ward, analysis)
        if job.state == "held":
            assert (job.held_by, job.error_kind, peer.stored) == ("identity", "identity", [])
            with writing(ward.engine) as connection:
                jobs.retry(connection, job.id, now())
        return job.error_sentence

    held = attempt("CLINIC")
    assert "under another Issuer of Patient ID than the images" in held
    assert f"dicomai study {study} --patient ID" in held
    assert "set issuer_of_patient_id for PACS1 to what it says" in held
    # What the node says of all images that name none, it will say of results, too.
    own = replace(pacs, issuer_of_patient_id="CLINIC")
    assert "another Issuer of Patient ID" in attempt("OTHER", own)
    assert attempt("CLINIC", own) == ""
    assert delivery(ward, analysis).state == "done"
    ward.engine.dispose()


@pytest.mark.parametrize(
    ("stated", "key", "patient_id", "at_node", "own", "other"),
    [
        ("HOSPITAL", "P1@HOSPITAL", "P1", "CLINIC", "", True),
        ("HOSPITAL", "P1@HOSPITAL", "P1", "CLINIC", "CLINIC", True),
        ("HOSPITAL", "P1@HOSPITAL", "P1", "HOSPITAL", "", False),
        ("", "P1@A%40B", "P1", "A@B", "", False),
        ("", "P1@HOSPITAL", "P1", "", "", False),
        ("", "P1@HOSPITAL", "", "CLINIC", "", False),
        ("", "P1", "P1", "CLINIC", "", False),
        ("", "@DOE^JANE|19600101|F", "P1", "CLINIC", "", False),
    ],
)
def test_an_issuer_that_nobody_states_is_no_other_one(
    stated: str, key: str, patient_id: str, at_node: str, own: str, other: bool
) -> None:
    node = Node(name="PACS1", ae_title="PACS1", issuer_of_patient_id=own)
    ours = StudyIdentity(patient_id="P1", issuer_of_patient_id=stated, accession_number="")
    there = StudyIdentity(patient_id=patient_id, issuer_of_patient_id=at_node, accession_number="")
    assert is_other_issuer(node, IdentityKey(key), ours, there) == other


@pytest.mark.parametrize("identity", [("P1", "AP1"), ("P1", ""), None])
def test_results_whose_patient_agrees_with_the_node_are_sent(
    ward_of: Callable[..., tuple[Ward, JobId]],
    faulty: Callable[..., FaultyPeer],
    identity: tuple[str, str] | None,
) -> None:
    peer = faulty(identity=identity)
    ward, analysis = ward_of(peer.node(answers_find=True))
    deliver(ward)
    assert delivery(ward, analysis).state == "done"
    assert len(peer.stored) == 2


def test_a_backslash_in_an_accession_number_is_no_other_one(
    ward_of: Callable[..., tuple[Ward, JobId]],
    faulty: Callable[..., FaultyPeer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slice_of = bodies.ct_slice

    def with_two(*args: Any) -> Dataset:
        image = slice_of(*args)
        image.AccessionNumber = ["A1", "A2"]
        return image

    monkeypatch.setattr(bodies, "ct_slice", with_two)
    peer = faulty(identity=("P1", "A1\\A2"))
    ward, analysis = ward_of(peer.node(answers_find=True))
    deliver(ward)
    assert delivery(ward, analysis).state == "done"


def test_a_delivery_that_waits_for_a_slow_node_is_given_back_at_once(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    peer = faulty(identity=("P1", "AP1"))
    peer.answers.clear()
    ward, analysis = ward_of(peer.node(answers_find=True))
    stop = threading.Event()
    deliverer = Deliverer(settings=ward.settings, worker=ward.worker(stop=stop))
    working = threading.Thread(target=deliverer.work_once)
    working.start()
    assert peer.asked.wait(20)
    stop.set()
    working.join(10)
    assert not working.is_alive()
    assert delivery(ward, analysis).state == "queued"


@pytest.mark.parametrize("answers_find", [False, True])
def test_a_delivery_that_calls_a_silent_node_is_given_back_at_once(
    ward_of: Callable[..., tuple[Ward, JobId]],
    until: Callable[..., None],
    silent_port: int,
    answers_find: bool,
) -> None:
    node = Node(
        name="PACS1",
        ae_title="FAULTY",
        host="127.0.0.1",
        port=silent_port,
        answers_find=answers_find,
    )
    ward, analysis = ward_of(node)
    stop = threading.Event()
    deliverer = Deliverer(settings=ward.settings, worker=ward.worker(stop=stop))
    working = threading.Thread(target=deliverer.work_once)
    working.start()
    until(lambda: delivery(ward, analysis).stage == ("compare" if answers_find else "send"))
    stop.set()
    working.join(5)
    assert not working.is_alive()
    job = delivery(ward, analysis)
    assert (job.state, job.attempts) == ("queued", 0)


@pytest.mark.parametrize("how", ["stop", "cancel", "pause"])
def test_sending_to_a_slow_node_ends_soon_after_the_job_was_taken_away(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer], how: str
) -> None:
    peer = faulty(0x0000, "wait")
    peer.answers.clear()
    ward, analysis = ward_of(peer.node())
    stop = threading.Event()
    deliverer = Deliverer(settings=ward.settings, worker=ward.worker(stop=stop))
    working = threading.Thread(target=deliverer.work_once)
    working.start()
    assert peer.asked.wait(20)
    job = delivery(ward, analysis)
    with writing(ward.engine) as connection:
        if how == "cancel":
            jobs.cancel(connection, job.id, "No longer wanted.", now())
        elif how == "pause":
            pauses.pause(connection, "node", "PACS1", "paused", now())
        else:
            stop.set()
    working.join(10)
    assert not working.is_alive()
    state = {"stop": "queued", "cancel": "cancelled", "pause": "held"}[how]
    job = delivery(ward, analysis)
    assert (job.state, job.attempts - (how == "cancel"), job.crashes) == (state, 0, 0)
    # What it took is known all the same.
    assert sorted(objects(ward, job)) == ["sent", "uncertain"]


def test_who_waits_for_a_slow_node_gets_on(
    ward_of: Callable[..., tuple[Ward, JobId]],
    faulty: Callable[..., FaultyPeer],
    until: Callable[..., None],
) -> None:
    peer = faulty("wait")
    peer.answers.clear()
    ward, analysis = ward_of(peer.node())
    pulses: list[float] = []
    worker = replace(ward.worker(), pulse=lambda: pulses.append(time.monotonic()))
    working = threading.Thread(target=Deliverer(settings=ward.settings, worker=worker).work_once)
    working.start()
    assert peer.asked.wait(20)
    before = len(pulses)
    until(lambda: len(pulses) > before + 3)
    # A worker that is killed now leaves this behind.
    assert objects(ward, delivery(ward, analysis)) == ["uncertain", "uncertain"]
    peer.answers.set()
    working.join(20)
    assert delivery(ward, analysis).state == "done"


@pytest.mark.parametrize("mounted_at", ["the archive", "above it"])
def test_an_archive_that_is_away_is_no_fault_of_the_node(
    ward_of: Callable[..., tuple[Ward, JobId]],
    faulty: Callable[..., FaultyPeer],
    mounted_at: str,
) -> None:
    peer = faulty()
    ward, analysis = ward_of(peer.node())
    archive = ward.settings.folders.data / "archive"
    away = archive.rename(archive.with_name("away"))
    if mounted_at == "the archive":
        archive.mkdir()
    deliver(ward)
    job = delivery(ward, analysis)
    assert (job.state, job.waiting_for, job.error_kind) == ("waiting", "back-off", "transient")
    assert "Is its disk mounted?" in job.error_sentence
    with reading(ward.engine) as connection:
        assert not nodes.listing(connection)
    away.rename(archive)
    later = Instant(now() + DAY)
    duties.promote(ward.engine, later)
    deliver(ward, lambda: later)
    assert delivery(ward, analysis).state == "done"


def test_a_file_that_cannot_be_read_now_is_sent_later_and_the_others_at_once(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    peer = faulty()
    ward, analysis = ward_of(peer.node())
    path = ward.file(ward.results(analysis)[0])
    aside = path.rename(path.with_suffix(".aside"))
    path.symlink_to(path)  # can be opened by nobody, as what lies on a disk that fails
    deliver(ward)
    job = delivery(ward, analysis)
    assert (job.state, job.error_kind) == ("waiting", "transient")
    assert f"{path} can't be read" in job.error_sentence
    assert sorted(objects(ward, job)) == ["sent", "transient"]
    with reading(ward.engine) as connection:
        there = nodes.get(connection, "PACS1")
    assert (there.failures, there.last_contact_at is None) == (0, False)
    aside.replace(path)
    later = Instant(now() + DAY)
    duties.promote(ward.engine, later)
    deliver(ward, lambda: later)
    assert delivery(ward, analysis).state == "done"
    assert len({each.SOPInstanceUID for each in peer.stored}) == len(peer.stored) == 2


def test_a_study_that_is_held_is_not_delivered(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    peer = faulty()
    ward, analysis = ward_of(peer.node())

    def hold(stage: str, job: Job) -> None:
        if stage == "compare":
            with writing(ward.engine) as connection:
                decisions.hold(connection, job.study_instance_uid, "Two patients.", now())

    worker = replace(ward.worker(), observe=hold)
    Deliverer(settings=ward.settings, worker=worker).work_once()
    job = delivery(ward, analysis)
    assert (job.state, job.held_by) == ("held", "study")
    assert not peer.stored


def test_what_turns_out_another_patients_while_its_node_is_reached_is_not_delivered(
    ward_of: Callable[..., tuple[Ward, JobId]],
    faulty: Callable[..., FaultyPeer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = faulty()
    ward, analysis = ward_of(peer.node())
    study = ward.job(analysis).study_instance_uid
    send = scu.store_objects

    def meanwhile(*given: Any, **more: Any) -> Any:
        with writing(ward.engine) as connection:
            studies.lock(connection, study)
            studies.set_patient_key(connection, study, IdentityKey("P2"))
        return send(*given, **more)

    monkeypatch.setattr(scu, "store_objects", meanwhile)
    assert deliver(ward)
    job = delivery(ward, analysis)
    assert (job.state, job.held_by) == ("held", "identity")
    assert not peer.stored
    assert objects(ward, job) == []


def test_a_node_that_left_the_configuration_holds_its_deliveries(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    ward, analysis = ward_of(faulty().node())
    without = replace(ward.settings, nodes=())
    Deliverer(settings=without, worker=ward.worker()).work_once()
    job = delivery(ward, analysis)
    assert (job.state, job.held_by) == ("held", "config")
    assert job.error_sentence.startswith(
        f"Job {job.id} (to PACS1): The configuration has no node PACS1 any more."
    )


def test_what_waits_for_a_route_that_is_set_to_shadow_stays_until_it_is_live_again(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    peer = faulty()
    live = Route(name="all", model="bodies")
    ward, analysis = ward_of(peer.node(), (live,))
    for mode in ("shadow", "off"):
        quiet = replace(ward.settings, routes=(replace(live, mode=mode),))
        Deliverer(settings=quiet, worker=ward.worker()).work_once()
        job = delivery(ward, analysis)
        assert (job.state, job.held_by) == ("held", "config")
        assert job.error_sentence == (
            f"Job {job.id} (to PACS1), compare: Route all is in shadow or off since these results "
            "waited to go out. Nothing goes out now. They go once it is live again and dicomai was "
            f"started anew; if they shall not: dicomai cancel {job.id}"
        )
        assert peer.associations == 0
        with writing(ward.engine) as connection:
            jobs.release_held(connection, "config", now())
    assert deliver(ward)
    assert delivery(ward, analysis).state == "done"
    assert len(peer.stored) == 2


def test_what_a_node_has_already_is_said_where_its_route_is_not_live_any_more(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    live = Route(name="all", model="bodies")
    ward, analysis = ward_of(faulty("abort").node(), (live,))
    assert deliver(ward)
    quiet = replace(ward.settings, routes=(replace(live, mode="shadow"),))
    with writing(ward.engine) as connection:
        jobs.promote_due(connection, Instant(now() + seconds(3600)))
    Deliverer(settings=quiet, worker=ward.worker()).work_once()
    job = delivery(ward, analysis)
    assert (job.state, job.held_by) == ("held", "config")
    assert "PACS1 has, or may have, 1 of 2 objects, and gets no more now." in job.error_sentence
    assert job.error_sentence.endswith(f"dicomai withdraw {analysis}")


def test_of_two_routes_only_the_one_that_is_live_yet_says_which_forms_go_out(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    peer = faulty()
    numbers = Route(name="all", model="bodies", objects=("SR",))
    pictures = Route(name="other", model="bodies", objects=("SC",))
    ward, analysis = ward_of(peer.node(), (numbers, pictures))
    job = delivery(ward, analysis)
    with writing(ward.engine) as connection:
        deliveries._want(connection, job.id, "other", "PACS1")
    quiet = replace(ward.settings, routes=(numbers, replace(pictures, mode="shadow")))
    Deliverer(settings=quiet, worker=ward.worker()).work_once()
    assert {each.Modality for each in peer.stored} == {"SR", "SEG"}


def test_a_note_that_takes_results_back_goes_out_whatever_became_of_their_route(
    ward_of: Callable[..., tuple[Ward, JobId]], faulty: Callable[..., FaultyPeer]
) -> None:
    peer = faulty()
    live = Route(name="all", model="bodies")
    ward, analysis = ward_of(replace(peer.node(), rejection_notes=True), (live,))
    assert deliver(ward)
    note = withdraw(ward.engine, ward.settings, analysis, "It is wrong.", now()).job
    both = (replace(live, name=name, mode="shadow") for name in ("all", "withdrawal"))
    quiet = replace(ward.settings, routes=tuple(both))
    Deliverer(settings=quiet, worker=ward.worker()).work_once()
    assert delivery(ward, note).state == "done"
    assert peer.stored[-1].Modality == "KO"


def test_a_node_gets_the_forms_that_its_routes_ask_for_and_what_the_report_refers_to(
    ward_of: Callable[..., tuple[Ward, JobId]], storescp: StorePeer
) -> None:
    node = Node(name="PACS1", ae_title="STORESCP", host="127.0.0.1", port=storescp.port)
    only_pictures = Route(name="all", model="bodies", objects=("SC",))
    more = Route(name="other", model="bodies", objects=("SEG", "SR", "KO"))
    ward, analysis = ward_of(node, (only_pictures, more))
    made = {each.sop_class_uid for each in ward.results(analysis)}
    assert len(made) == 4  # SEG, SR, SC, KO: routes share an analysis
    assert deliver(ward)
    assert (delivery(ward, analysis).state) == "done"
    kinds = {pydicom.dcmread(file).Modality for file in storescp.files()}
    assert kinds == {"SR", "SEG", "OT"}
