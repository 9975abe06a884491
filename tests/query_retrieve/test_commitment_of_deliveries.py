"""Storage commitment that we ask for what we deliver: of Orthanc, and of an archive with faults.

The archive with faults is a small one on pynetdicom: no program at hand misbehaves on demand.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt

from dicomai.cli.jobs import remark, state_of
from dicomai.dicom.dates import Instant, Microseconds, now, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SOPInstanceUID, StudyInstanceUID
from dicomai.net.admission import COMMITMENT
from dicomai.net.commitment import INSTANCE
from dicomai.net.node import Node
from dicomai.service import duties
from dicomai.service.deliver import Deliverer
from dicomai.service.received import Reading, read_object
from dicomai.spool import reader
from dicomai.store import (
    analyses,
    archive,
    claims,
    commitments,
    decisions,
    deliveries,
    events,
    instances,
    jobs,
    nodes,
    schema,
    studies,
)
from dicomai.store.engine import reading, writing
from dicomai.store.instances import InstanceRow
from dicomai.store.job import Job, JobId, JobRoute, NewAnalysis

ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
"""Of what has little to do with the database, one is enough."""

SR = "1.2.840.10008.5.1.4.1.1.88.34"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


class Archive:
    """A server that stores, and commits by a script."""

    def __init__(self, our_port: int, port: int) -> None:
        self.port = port
        self.stored: list[str] = []
        self.asked: list[Dataset] = []
        self.takes_commitment = True
        self.knows: tuple[str, ...] = ()
        """Whose associations it takes; none named: everybody's."""
        self.answer = 0x0000
        self.report: Callable[[Dataset], Dataset | None] = whole
        """What it reports to a request, right after its answer."""
        self.early: Callable[[Dataset], Dataset | None] = lambda _: None
        """What it reports before its answer."""
        self.in_same = False
        """Whether it reports in the association in which it was asked."""
        self.reported: list[int] = []
        self._our_port = our_port
        self._server: Any = None
        self._threads: list[threading.Thread] = []
        self._answered = threading.Event()

    def node(self, **more: object) -> Node:
        return Node(
            name="PACS1",
            ae_title="ARCHIVE",
            host="127.0.0.1",
            port=self.port,
            commitment=True,
            **more,
        )

    def open(self) -> None:
        entity = AE("ARCHIVE")
        entity.require_calling_aet = list(self.knows)
        entity.supported_contexts = AllStoragePresentationContexts
        if self.takes_commitment:
            entity.add_supported_context(COMMITMENT)
        self._server = entity.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_N_ACTION, self._action),
                (evt.EVT_PDU_SENT, lambda _: self._answered.set()),
            ],
        )

    def close(self) -> None:
        for thread in self._threads:
            thread.join(20)
        if self._server is not None:
            self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def _action(self, event: evt.Event) -> tuple[int, None]:
        asked = event.action_information
        self.asked.append(asked)
        self._answered.clear()
        if (early := self.early(asked)) is not None:
            self.tell(early)
        if self.answer == 0x0000 and (told := self.report(asked)) is not None:
            target = self._in_same if self.in_same else self._in_its_own
            self._threads.append(threading.Thread(target=target, args=(event.assoc, told)))
            self._threads[-1].start()
        return self.answer, None

    def _in_same(self, association: Any, told: Dataset) -> None:
        assert self._answered.wait(15)
        said, _ = association.send_n_event_report(told, 1, COMMITMENT, INSTANCE)
        self.reported.append(said.Status)

    def _in_its_own(self, _: Any, told: Dataset) -> None:
        self.tell(told)

    def tell(self, told: Dataset) -> None:
        """Report in an association of its own."""
        entity = AE("ARCHIVE")
        entity.add_requested_context(COMMITMENT)
        association = entity.associate(
            "127.0.0.1",
            self._our_port,
            ae_title="DICOMAI",
            ext_neg=[build_role(COMMITMENT, scp_role=True)],
        )
        kind = 2 if "FailedSOPSequence" in told else 1
        said, _ = association.send_n_event_report(told, kind, COMMITMENT, INSTANCE)
        self.reported.append(said.Status)
        association.release()


def whole(asked: Dataset) -> Dataset:
    """All is kept."""
    told = Dataset()
    told.TransactionUID = asked.TransactionUID
    told.ReferencedSOPSequence = asked.ReferencedSOPSequence
    return told


def silence(_: Dataset) -> None:
    """Nothing is reported."""


def without(reason: int, *uids: str) -> Callable[[Dataset], Dataset]:
    """Some objects, or the first where none is named, are not kept."""

    def told(asked: Dataset) -> Dataset:
        lost = uids or (asked.ReferencedSOPSequence[0].ReferencedSOPInstanceUID,)
        items = list(asked.ReferencedSOPSequence)
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence = [
            each for each in items if each.ReferencedSOPInstanceUID not in lost
        ]
        report.FailedSOPSequence = []
        for each in items:
            if each.ReferencedSOPInstanceUID in lost:
                failed = Dataset()
                failed.ReferencedSOPClassUID = each.ReferencedSOPClassUID
                failed.ReferencedSOPInstanceUID = each.ReferencedSOPInstanceUID
                failed.FailureReason = reason
                report.FailedSOPSequence.append(failed)
        return report

    return told


@pytest.fixture
def pacs1(our_port: int, free_port: int) -> Iterator[Archive]:
    """An archive that is open when a test opens it."""
    made = Archive(our_port, free_port)
    yield made
    made.close()


@pytest.fixture
def delivering(
    site: Callable[..., Any], study_files: Path, doe: Any, tmp_path: Path
) -> Callable[..., tuple[Any, JobId]]:
    """Start our side with a delivery of two results to a node; return it, and their analysis."""

    def start(node: Node) -> tuple[Any, JobId]:
        here = site(Node(name="CT1", ae_title="CT1"), node)
        (first, *_) = sorted((study_files / doe.accession).iterdir())
        here.put(first)
        return here, analysed(here, StudyInstanceUID(doe.uid), node.name, tmp_path)

    return start


def analysed(site: Any, study: StudyInstanceUID, node: str, folder: Path) -> JobId:
    """Have an analysis of a study done, with an SR and a SEG to deliver."""
    with writing(site.engine) as connection:
        known = studies.lock(connection, study)
        assert known is not None
        new = NewAnalysis(
            study_instance_uid=study,
            patient_key=known.patient_key or IdentityKey(""),
            model="lungs",
            package_sha256="p",
            choice="ct",
            fingerprint=generate_uid(),
            inputs=(),
            route=JobRoute(route="lungs", mode="live", destinations=(node,)),
            ageing=Microseconds(0),
        )
        analyses.add_analysis(connection, new, now())
        job = claims.claim(connection, "w", ("analyse",), ("lungs",), now())
        assert job is not None
        rows = tuple(produced(site, study, each, folder) for each in (SR, SEG))
        assert analyses.finish(connection, job.held, rows, {}, {}, now()) == "done"
    return job.id


def produced(site: Any, study: StudyInstanceUID, sop_class: str, folder: Path) -> InstanceRow:
    """Put a result of a class into the archive; what is in it matters to nobody here."""
    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = sop_class, generate_uid()
    one.StudyInstanceUID, one.SeriesInstanceUID = study, generate_uid()
    one.PatientID, one.Modality = "P3", "SR" if sop_class == SR else "SEG"
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = folder / f"{one.SOPInstanceUID}.dcm"
    dcmwrite(file, one, enforce_file_format=True)
    found = read_object(file, Reading())
    uids, data = found.identifiers, site.settings.folders.data
    place = archive.place(
        data,
        file,
        uids.study_instance_uid,
        uids.series_instance_uid,
        uids.sop_instance_uid,
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    return InstanceRow(
        study_instance_uid=uids.study_instance_uid,
        series_instance_uid=uids.series_instance_uid,
        sop_instance_uid=uids.sop_instance_uid,
        sop_class_uid=uids.sop_class_uid,
        transfer_syntax_uid=found.transfer_syntax_uid,
        header_digest=found.version.header,
        pixel_digest=found.version.pixels,
        file_sha256=found.file_sha256,
        origin="produced",
        node="",
        received_at=now(),
        size_bytes=found.size_bytes,
        path=place,
        attributes=found.attributes,
    )


def deliver(site: Any, clock: Callable[[], Instant] = now) -> bool:
    worker = replace(site.worker(), clock=clock)
    return Deliverer(settings=site.settings, worker=worker).work_once()


def delivery(site: Any, analysis: JobId) -> Job:
    with reading(site.engine) as connection:
        (found,) = deliveries.of_analysis(connection, analysis)
    return found


def states(site: Any, analysis: JobId) -> list[str]:
    with reading(site.engine) as connection:
        known = deliveries.objects(connection, delivery(site, analysis).id)
    return [each.state for each in known]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def reported(site: Any, analysis: JobId) -> None:
    """Return when ingest has taken over the report that a delivery waits for."""
    until(lambda: delivery(site, analysis).state == "queued")


def story(site: Any, job: JobId) -> list[str]:
    with reading(site.engine) as connection:
        return [each.sentence for each in events.of_job(connection, job)]


def test_orthanc_commits_what_it_got(
    delivering: Callable[..., tuple[Any, JobId]], full_orthanc: Any, doe: Any
) -> None:
    here, analysis = delivering(full_orthanc.node(commitment=True))
    assert deliver(here)
    waiting = delivery(here, analysis)
    assert waiting.state in ("waiting", "queued")  # it may have reported by now
    reported(here, analysis)
    assert deliver(here)
    job = delivery(here, analysis)
    assert (job.state, job.summary["uncommitted"]) == ("done", 0)
    assert job.summary["found"] == "PACS1 has stored and committed all objects, 2 in all."
    assert states(here, analysis) == ["committed", "committed"]
    assert not deliver(here)
    done = [
        each
        for each in asked_of(full_orthanc, "/jobs?expand")
        if each["Type"] == "StorageCommitmentScp"
    ]
    assert [each["State"] for each in done] == ["Success"] * len(done)
    assert done
    with reading(here.engine) as connection:
        results = instances.of_job(connection, analysis)
    for each in results:  # others count what it has
        (there,) = asked_of(full_orthanc, "/tools/lookup", each.sop_instance_uid)
        asked_of(full_orthanc, there["Path"], method="DELETE")


def asked_of(pacs: Any, path: str, body: str = "", method: str = "") -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{pacs.http_port}{path}", data=body.encode() or None
    )
    request.method = method or request.get_method()
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@ON_SQLITE
def test_a_report_in_the_same_association_is_taken_too(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive
) -> None:
    pacs1.in_same = True
    pacs1.open()
    here, analysis = delivering(pacs1.node())
    assert deliver(here)
    reported(here, analysis)
    assert deliver(here)
    assert delivery(here, analysis).state == "done"
    assert states(here, analysis) == ["committed", "committed"]
    assert pacs1.reported == [0x0000]


def test_a_report_that_is_faster_than_the_answer_is_not_lost(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive
) -> None:
    here, analysis = delivering(pacs1.node())

    def early(asked: Dataset) -> Dataset:
        threading.Thread(target=wait, args=(asked,)).start()
        return whole(asked)

    def wait(asked: Dataset) -> None:
        def known() -> bool:
            with reading(here.engine) as connection:
                (one,) = commitments.of_job(connection, delivery(here, analysis).id)
            return one.state == "committed"

        until(known)
        ingested.set()

    ingested = threading.Event()
    pacs1.early, pacs1.report = early, silence
    action = pacs1._action
    pacs1._action = lambda event: (action(event), ingested.wait(15))[0]
    pacs1.open()
    assert deliver(here)
    assert ingested.is_set()
    assert delivery(here, analysis).state == "queued"
    assert deliver(here)
    assert delivery(here, analysis).state == "done"
    assert len(pacs1.asked) == 1


@ON_POSTGRESQL
def test_what_is_not_kept_is_sent_again_and_nothing_else(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive
) -> None:
    pacs1.report = without(0x0112)
    pacs1.open()
    here, analysis = delivering(pacs1.node())
    assert deliver(here)
    reported(here, analysis)
    assert sorted(states(here, analysis)) == ["committed", "uncommitted"]
    pacs1.report = whole
    assert deliver(here)
    reported(here, analysis)
    assert deliver(here)
    job = delivery(here, analysis)
    assert (job.state, states(here, analysis)) == ("done", ["committed", "committed"])
    assert set(job.stages_s) == {"compare", "send", "commit"}
    lost = pacs1.asked[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert sorted(pacs1.stored.count(each) for each in set(pacs1.stored)) == [1, 2]
    assert pacs1.stored.count(lost) == 2
    again = [each.ReferencedSOPInstanceUID for each in pacs1.asked[1].ReferencedSOPSequence]
    assert again == [lost]
    assert pacs1.asked[0].TransactionUID != pacs1.asked[1].TransactionUID
    assert any(
        "PACS1 has not committed 1 of 2 objects: PACS1 has not committed it: it has no such object "
        "(0x0112)." in each
        for each in story(here, job.id)
    )


@ON_SQLITE
def test_what_is_never_kept_fails_in_one_sentence_and_a_person_may_retry(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive
) -> None:
    pacs1.report = without(0x0213)
    pacs1.open()
    here, analysis = delivering(pacs1.node())
    for _ in range(3):
        assert deliver(here)
        reported(here, analysis)
    assert deliver(here)
    job = delivery(here, analysis)
    assert (job.state, job.error_kind, job.error_stage) == ("failed", "refused", "commit")
    (lost,) = {each.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for each in pacs1.asked[1:]}
    assert job.error_sentence == (
        f"Job {job.id} (to PACS1), commit: PACS1 stored 1 object 3 times and did not commit them, "
        f"as {lost}: PACS1 has not committed it: it has no resources left (0x0213). Ask its "
        f"administrator what its log says of them, then: dicomai retry {job.id}"
    )
    assert pacs1.stored.count(lost) == 3
    pacs1.report = whole
    with writing(here.engine) as connection:
        jobs.retry(connection, job.id, now())
    assert deliver(here)
    reported(here, analysis)
    assert deliver(here)
    assert delivery(here, analysis).state == "done"


@ON_POSTGRESQL
def test_a_report_that_does_not_come_is_a_warning_and_may_come_late(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive
) -> None:
    pacs1.report = silence
    pacs1.open()
    here, analysis = delivering(pacs1.node(commitment_s=600.0))
    assert deliver(here)
    job = delivery(here, analysis)
    assert (job.state, job.waiting_for, job.attempts) == ("waiting", "commitment", 0)
    assert "PACS1 has it, and is to report until" in remark(job)
    assert not deliver(here)
    other = commitments.Told(
        node="CT1",  # of which nobody asked it
        transaction_uid=pacs1.asked[0].TransactionUID,
        committed=frozenset(
            SOPInstanceUID(each.ReferencedSOPInstanceUID)
            for each in pacs1.asked[0].ReferencedSOPSequence
        ),
        failed={},
    )
    with writing(here.engine) as connection:
        commitments.note(connection, other, now())
    assert states(here, analysis) == ["sent", "sent"]
    with writing(here.engine) as connection:  # by now it is away: no reason to wait
        for _ in range(nodes.TOO_OFTEN):
            nodes.failed(connection, "PACS1", "It is away.", now())
    later = Instant(now() + seconds(601))
    duties.promote(here.engine, later)
    assert deliver(here, lambda: later)
    job = delivery(here, analysis)
    assert (job.state, job.summary["uncommitted"]) == ("done", 2)
    assert job.summary["found"] == (
        "Stored, uncommitted: PACS1 has not reported within 600 s (commitment_s) that it keeps 2 "
        "objects. They are stored there; ask its administrator what became of the request."
    )
    assert (state_of(job).plain, remark(job)) == ("stored, uncommitted", job.summary["found"])
    pacs1.tell(whole(pacs1.asked[0]))
    until(lambda: states(here, analysis) == ["committed", "committed"])
    job = delivery(here, analysis)
    assert (job.state, job.summary["uncommitted"]) == ("done", 0)
    assert job.summary["found"] == (
        "PACS1 has stored and committed all objects, and reported so late."
    )
    pacs1.tell(without(0x0112)(pacs1.asked[0]))  # it says something else now: too late
    until(lambda: not reader.waits(here.settings.folders.spool))
    assert states(here, analysis) == ["committed", "committed"]


@ON_SQLITE
def test_a_node_that_refuses_the_class_has_it_stored_uncommitted(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive
) -> None:
    pacs1.takes_commitment = False
    pacs1.open()
    here, analysis = delivering(pacs1.node())
    assert deliver(here)
    job = delivery(here, analysis)
    assert (job.state, job.summary["uncommitted"]) == ("done", 2)
    assert job.summary["found"] == (
        "Stored, uncommitted: PACS1 takes no request for storage commitment from DICOMAI. Allow it "
        "there, or set commitment = false for it."
    )
    assert states(here, analysis) == ["sent", "sent"]


@ON_SQLITE
@pytest.mark.parametrize(
    ("status", "state"), [(0x0124, "done"), (0x0110, "waiting")], ids=["for good", "for now"]
)
def test_a_node_that_answers_failure_is_asked_again_if_that_helps(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive, status: int, state: str
) -> None:
    pacs1.answer = status
    pacs1.open()
    here, analysis = delivering(pacs1.node())
    assert deliver(here)
    job = delivery(here, analysis)
    assert job.state == state
    said = str(job.summary.get("found") or job.error_sentence)
    assert f"PACS1 refused a request for storage commitment (status 0x{status:04X})." in said
    if state == "done":
        assert said.startswith("Stored, uncommitted: ")
        return
    assert (job.waiting_for, job.error_stage) == ("back-off", "commit")
    later = Instant(now() + seconds(3600))
    duties.promote(here.engine, later)
    pacs1.answer = 0x0000
    assert deliver(here, lambda: later)
    reported(here, analysis)
    assert deliver(here)
    assert delivery(here, analysis).state == "done"
    assert len(pacs1.stored) == 2  # nothing twice
    assert pacs1.asked[0].TransactionUID != pacs1.asked[1].TransactionUID


@ON_SQLITE
def test_a_node_that_knows_us_no_more_is_asked_when_it_does_again(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive
) -> None:
    pacs1.answer = 0x0110
    pacs1.open()
    here, analysis = delivering(pacs1.node())
    assert deliver(here)
    pacs1.close()
    pacs1.knows, pacs1.answer = ("OTHERS",), 0x0000
    pacs1.open()
    later = Instant(now() + seconds(3600))
    duties.promote(here.engine, later)
    assert deliver(here, lambda: later)
    job = delivery(here, analysis)
    assert (job.state, job.waiting_for) == ("waiting", "back-off")
    assert "does not know DICOMAI. Add that AE title" in job.error_sentence
    pacs1.close()
    pacs1.knows = ()
    pacs1.open()
    later = Instant(later + seconds(3600))
    duties.promote(here.engine, later)
    assert deliver(here, lambda: later)
    reported(here, analysis)
    assert deliver(here)
    assert delivery(here, analysis).state == "done"
    assert len(pacs1.stored) == 2  # nothing twice


@ON_POSTGRESQL
def test_a_report_that_names_other_objects_changes_nothing_of_ours(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive
) -> None:
    def strangers(asked: Dataset) -> Dataset:
        told = whole(asked)
        ours, _ = asked.ReferencedSOPSequence
        other = Dataset()
        other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = SR, "1.2.9"
        told.ReferencedSOPSequence = [ours, other]
        return told

    pacs1.report = strangers
    pacs1.open()
    here, analysis = delivering(pacs1.node())
    assert deliver(here)
    reported(here, analysis)
    assert sorted(states(here, analysis)) == ["committed", "uncommitted"]
    assert any(
        "PACS1 does not say in its report whether it has committed it. Its report names 1 objects "
        "that it was not asked about." in each
        for each in story(here, delivery(here, analysis).id)
    )
    with reading(here.engine) as connection:
        assert not instances.of_sops(connection, [SOPInstanceUID("1.2.9")])


@ON_POSTGRESQL
def test_a_delivery_that_waits_for_its_report_keeps_no_other_back(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive, doe: Any, tmp_path: Path
) -> None:
    pacs1.report = silence
    pacs1.open()
    here, first = delivering(pacs1.node())
    assert deliver(here)
    assert delivery(here, first).state == "waiting"
    with writing(here.engine) as connection:  # as if the same study had been analysed by another
        connection.execute(schema.jobs.update().values(model="others"))
    second = analysed(here, StudyInstanceUID(doe.uid), "PACS1", tmp_path)
    assert deliver(here)
    assert delivery(here, second).state == "waiting"
    assert len(pacs1.stored) == 4


@ON_SQLITE
def test_a_study_that_is_held_meanwhile_goes_on_to_wait(
    delivering: Callable[..., tuple[Any, JobId]], pacs1: Archive, doe: Any
) -> None:
    pacs1.report = silence
    pacs1.open()
    here, analysis = delivering(pacs1.node())
    assert deliver(here)
    due_at = delivery(here, analysis).due_at
    uid = StudyInstanceUID(doe.uid)
    with writing(here.engine) as connection:
        decisions.hold(connection, uid, "Two patients.", now())
    assert delivery(here, analysis).state == "held"
    with writing(here.engine) as connection:
        key = delivery(here, analysis).patient_key
        decisions.release(connection, uid, key, now())
    assert deliver(here)
    job = delivery(here, analysis)
    assert (job.state, job.waiting_for, job.due_at) == ("waiting", "commitment", due_at)
    assert len(pacs1.asked) == 1
