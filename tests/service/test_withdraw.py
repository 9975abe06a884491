"""Results that were wrong are taken back wherever they went, once."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from faulty_pacs import FaultyPeer
from ward import Ward, open_ward

from dicomai.cli.jobs import remark, what
from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.inference.runner_process import RunnerProcess
from dicomai.net.node import Node
from dicomai.service import duties
from dicomai.service import withdraw as withdraw_module
from dicomai.service.again import again
from dicomai.service.deliver import Deliverer
from dicomai.service.supervise import Supervisor
from dicomai.service.withdraw import withdraw
from dicomai.store import deliveries, events, instances, jobs, predecessors, schema, studies
from dicomai.store.engine import reading, writing
from dicomai.store.job import JobId
from dicomai.store.jobs import NotNow
from tests.conftest import StorePeer

REASON = "The left and the right lung were exchanged."


@pytest.fixture
def done(
    tmp_path: Path, runner: RunnerProcess, storescp: StorePeer
) -> Iterator[tuple[Ward, JobId]]:
    """An analysis whose results wait for a node."""
    node = Node(
        name="PACS1",
        ae_title="STORESCP",
        host="127.0.0.1",
        port=storescp.port,
        rejection_notes=True,
    )
    ward = open_ward(tmp_path, node)
    job = ward.queue(ward.study("P1"), mode="live", destinations=("PACS1",))
    Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()
    yield ward, job
    ward.engine.dispose()


def deliver(ward: Ward) -> bool:
    return Deliverer(settings=ward.settings, worker=ward.worker()).work_once()


def test_a_rejection_note_goes_where_the_results_went(
    done: tuple[Ward, JobId],
    runner: RunnerProcess,
    storescp: StorePeer,
    peer: Callable[[str], str],
) -> None:
    ward, job = done
    assert deliver(ward)
    before = set(storescp.files())
    results = {pydicom.dcmread(file).SOPInstanceUID for file in before}
    taken = withdraw(ward.engine, ward.settings, job, REASON, now())
    assert (taken.nodes, taken.cancelled) == (("PACS1",), ())
    assert deliver(ward)
    assert not deliver(ward)
    (file,) = set(storescp.files()) - before
    note = pydicom.dcmread(file)
    assert note.ConceptNameCodeSequence[0].CodeValue == "113037"
    rejected = {
        each.ReferencedSOPInstanceUID
        for item in note.ContentSequence
        for each in item.get("ReferencedSOPSequence", ())
    }
    assert rejected == results
    assert any(REASON in str(item.get("TextValue", "")) for item in note.ContentSequence)
    with writing(ward.engine) as connection:
        (sent,) = deliveries.of_analysis(connection, taken.job)
        with pytest.raises(NotNow, match=r"by hand: dicomai send PACS1 FILE, with the file"):
            jobs.retry(connection, sent.id, now())
    checked = subprocess.run([peer("dciodvfy"), "-new", file], capture_output=True, text=True)
    assert not [line for line in checked.stderr.splitlines() if line.startswith("Error")]
    dumped = subprocess.run([peer("dsrdump"), file], capture_output=True, text=True)
    assert dumped.returncode == 0, dumped.stderr
    with pytest.raises(NotNow, match="withdrawn already"):
        withdraw(ward.engine, ward.settings, job, REASON, now())
    # A new run names no predecessor: what it would replace is gone.
    with writing(ward.engine) as connection:
        new = again(connection, taken.job, now())
    Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()
    assert ward.job(new).state == "done"
    (report,) = (
        read
        for read in (pydicom.dcmread(ward.file(row)) for row in ward.results(new))
        if read.Modality == "SR"
    )
    assert "PredecessorDocumentsSequence" not in report


def test_what_left_under_a_patient_whose_the_study_is_no_more_can_be_withdrawn(
    done: tuple[Ward, JobId], storescp: StorePeer
) -> None:
    ward, job = done
    assert deliver(ward)
    before = set(storescp.files())
    with writing(ward.engine) as connection:  # as when the images came corrected
        studies.set_patient_key(connection, ward.job(job).study_instance_uid, IdentityKey("P2"))
    withdraw(ward.engine, ward.settings, job, REASON, now())
    assert deliver(ward)
    (file,) = set(storescp.files()) - before
    assert pydicom.dcmread(file).PatientID == "P1"


def test_a_note_that_waits_goes_out_though_a_new_run_is_asked_for(
    done: tuple[Ward, JobId], storescp: StorePeer
) -> None:
    ward, job = done
    assert deliver(ward)
    before = set(storescp.files())
    withdraw(ward.engine, ward.settings, job, REASON, now())
    with writing(ward.engine) as connection:
        new = again(connection, job, now())
        assert predecessors.of_job(connection, new) == ()
    assert deliver(ward)
    (file,) = set(storescp.files()) - before
    assert pydicom.dcmread(file).Modality == "KO"


def test_a_new_run_names_no_withdrawn_report_where_no_note_went_either(
    done: tuple[Ward, JobId],
) -> None:
    ward, job = done
    assert deliver(ward)
    (node,) = ward.settings.nodes
    settings = replace(ward.settings, nodes=(replace(node, rejection_notes=False),))
    withdraw(ward.engine, settings, job, REASON, now())
    with writing(ward.engine) as connection:
        new = again(connection, job, now())
        assert predecessors.of_job(connection, new) == ()


def test_a_new_run_of_what_was_withdrawn_goes_where_the_analysis_was_to_go(
    done: tuple[Ward, JobId],
) -> None:
    ward, job = done
    taken = withdraw(ward.engine, ward.settings, job, REASON, now())
    assert taken.nodes == ()  # nobody had it, so the note goes nowhere
    with writing(ward.engine) as connection:
        new = again(connection, taken.job, now())
        assert jobs.routes_of(connection, new) == jobs.routes_of(connection, job)


def test_what_was_not_sent_is_never_sent(done: tuple[Ward, JobId], storescp: StorePeer) -> None:
    ward, job = done
    with reading(ward.engine) as connection:
        (waiting,) = deliveries.of_analysis(connection, job)
    taken = withdraw(ward.engine, ward.settings, job, REASON, now())
    assert (taken.nodes, taken.cancelled) == ((), (waiting.id,))
    assert not deliver(ward)
    assert not storescp.files()
    with reading(ward.engine) as connection:
        told = [each.sentence for each in events.story(connection, waiting.study_instance_uid)]
    assert told[-2] == (
        f"A person withdrew the results of Job {job} (bodies); the note, job {taken.job}, goes to "
        f"nobody. The reason: {REASON}"
    )
    assert ward.job(job).withdrawn_by == taken.job


def may_have(ward: Ward, peer: FaultyPeer, job: JobId) -> Ward:
    """Have a node end the association over the first object that it gets."""
    ward = replace(ward, settings=replace(ward.settings, nodes=(peer.node(),)))
    assert deliver(ward)
    with reading(ward.engine) as connection:
        (delivery,) = deliveries.of_analysis(connection, job)
        states = [each.state for each in deliveries.objects(connection, delivery.id)]
    assert sorted(states) == ["transient", "uncertain"]
    return ward


def test_what_a_node_may_have_is_taken_back_there(
    done: tuple[Ward, JobId], faulty: Callable[..., FaultyPeer]
) -> None:
    ward, job = done
    peer = faulty("abort")
    ward = may_have(ward, peer, job)
    (node,) = ward.settings.nodes
    settings = replace(ward.settings, nodes=(replace(node, rejection_notes=True),))
    taken = withdraw(ward.engine, settings, job, REASON, now())
    assert (taken.nodes, taken.by_hand, taken.perhaps) == (("PACS1",), (), {"PACS1"})
    with reading(ward.engine) as connection:
        withdrawn = events.of_job(connection, job)[-1]
    assert deliver(replace(ward, settings=settings))
    (note,) = peer.stored
    assert note.Modality == "KO"
    assert taken.remarks == ("PACS1 may have the results: what it made of them is not known.",)
    assert taken.remarks[0] in withdrawn.sentence


def test_a_person_removes_by_hand_what_a_node_may_have(
    done: tuple[Ward, JobId], faulty: Callable[..., FaultyPeer]
) -> None:
    ward, job = done
    ward = may_have(ward, faulty("abort"), job)
    taken = withdraw(ward.engine, ward.settings, job, REASON, now())
    assert (taken.nodes, taken.by_hand) == ((), ("PACS1",))
    assert taken.remarks == (
        "PACS1 may have the results and takes no rejection notes: remove them there by hand.",
    )


def test_what_a_node_may_have_it_may_have_though_it_refuses_it_later(
    done: tuple[Ward, JobId], faulty: Callable[..., FaultyPeer]
) -> None:
    ward, job = done
    ward = may_have(ward, faulty("abort", 0xA900, 0xA900), job)
    later = Instant(now() + seconds(86400))
    duties.promote(ward.engine, later)
    Deliverer(settings=ward.settings, worker=ward.worker(clock=lambda: later)).work_once()
    with reading(ward.engine) as connection:
        (delivery,) = deliveries.of_analysis(connection, job)
    assert (delivery.state, delivery.error_kind) == ("failed", "refused")
    assert withdraw(ward.engine, ward.settings, job, REASON, now()).by_hand == ("PACS1",)


def test_what_is_on_its_way_is_withdrawn_when_that_is_over(done: tuple[Ward, JobId]) -> None:
    ward, job = done
    refused = []

    def take_back(stage: str, _job: object) -> None:
        if stage == "send":
            with pytest.raises(NotNow, match="is being delivered just now"):
                withdraw(ward.engine, ward.settings, job, REASON, now())
            refused.append(stage)

    worker = ward.worker(observe=take_back)
    assert Deliverer(settings=ward.settings, worker=worker).work_once()
    assert refused
    taken = withdraw(ward.engine, ward.settings, job, REASON, now())
    assert (taken.nodes, taken.perhaps) == (("PACS1",), frozenset())


def test_of_two_who_withdraw_at_once_one_is_told_of_the_other(
    done: tuple[Ward, JobId], monkeypatch: pytest.MonkeyPatch
) -> None:
    ward, job = done
    place, first = withdraw_module.placed, []

    def meanwhile(*given: Any) -> Any:
        if not first:
            first.append(None)
            first[0] = withdraw(ward.engine, ward.settings, job, REASON, now())
        return place(*given)

    monkeypatch.setattr(withdraw_module, "placed", meanwhile)
    with pytest.raises(NotNow, match="withdrawn already, by job"):
        withdraw(ward.engine, ward.settings, job, "Of another reason.", now())
    with reading(ward.engine) as connection:
        (kept,) = instances.of_job(connection, first[0].job)
    octets = (ward.settings.folders.data / kept.path).read_bytes()
    assert hashlib.sha256(octets).hexdigest() == kept.file_sha256
    assert ward.job(job).withdrawn_by == first[0].job


def test_a_note_says_whose_it_is_and_is_not_taken_back(done: tuple[Ward, JobId]) -> None:
    ward, job = done
    taken = withdraw(ward.engine, ward.settings, job, REASON, now())
    note = ward.job(taken.job)
    assert what(note) == f"withdrawal of {job}"
    assert remark(ward.job(job)).startswith(f"Withdrawn by job {note.id}. It had found: ")
    with reading(ward.engine) as connection:
        (told,) = events.of_job(connection, note.id)
    assert told.sentence == (
        f"Job {note.id} (withdrawal of job {job}) carries the note that takes back what job {job} "
        "had found."
    )
    with pytest.raises(NotNow, match=f"dicomai retry {job} --again"):
        withdraw(ward.engine, ward.settings, note.id, REASON, now())


def test_who_names_a_delivery_is_shown_the_analysis(done: tuple[Ward, JobId]) -> None:
    ward, job = done
    with reading(ward.engine) as connection:
        (delivery,) = deliveries.of_analysis(connection, job)
    with pytest.raises(NotNow, match=f"is a delivery.*dicomai withdraw {job}"):
        withdraw(ward.engine, ward.settings, delivery.id, REASON, now())


def test_a_job_without_results_is_not_withdrawn(done: tuple[Ward, JobId]) -> None:
    ward, _ = done
    queued = ward.queue(ward.study("P2"))
    with pytest.raises(NotNow, match="dicomai cancel"):
        withdraw(ward.engine, ward.settings, queued, REASON, now())


@pytest.mark.parametrize("images", ["here", "deleted"])
def test_results_of_a_patient_whose_issuer_the_sender_has_are_withdrawn(
    tmp_path: Path, runner: RunnerProcess, images: str
) -> None:
    ward = open_ward(tmp_path, Node(name="CT1", ae_title="CT1", issuer_of_patient_id="HOSPITAL"))
    job = ward.queue(ward.study("P1", key="P1@HOSPITAL"))
    Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()
    assert ward.job(job).state == "done"
    if images == "deleted":
        with writing(ward.engine) as connection:
            connection.execute(
                schema.instances.delete().where(schema.instances.c.origin != "produced")
            )
    taken = withdraw(ward.engine, ward.settings, job, REASON, now())
    assert len(ward.results(taken.job)) == 1
    ward.engine.dispose()


def test_a_node_that_takes_no_notes_is_named(done: tuple[Ward, JobId]) -> None:
    ward, job = done
    assert deliver(ward)
    (node,) = ward.settings.nodes
    settings = replace(ward.settings, nodes=(replace(node, rejection_notes=False),))
    taken = withdraw(ward.engine, settings, job, REASON, now())
    assert (taken.nodes, taken.by_hand) == ((), ("PACS1",))
    assert not deliver(ward)
