"""Storage commitment that others ask of us: Orthanc, and a small modality on pynetdicom.

DCMTK's programs know nothing of the service; Orthanc asks for it and takes reports.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt

from dicomai.dicom.dates import Instant, Microseconds, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.net.admission import COMMITMENT
from dicomai.net.commitment import INSTANCE
from dicomai.net.node import Node
from dicomai.service import overview
from dicomai.service.promise import Keeper
from dicomai.spool import reader
from dicomai.store import (
    decisions,
    events,
    hosts,
    instances,
    pauses,
    promises,
    retention,
    schema,
    studies,
)
from dicomai.store.engine import reading, writing
from dicomai.store.promises import PromiseId
from dicomai.store.retention import Keep

ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
"""Of what has little to do with the database, one is enough."""

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
DAY = seconds(86400)


class Modality:
    """A CT that asks for storage commitment, and hears what came of it."""

    def __init__(self, our_port: int, own_port: int) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        self.roles: list[tuple[bool, bool]] = []
        self.refuses = 0
        self._our_port = our_port
        self._own_port = own_port
        self._server: Any = None

    def node(self, *more: str) -> Node:
        return Node(
            name="CT1",
            ae_title="CT1",
            host="127.0.0.1",
            port=self._own_port,
            may=("echo", "store", "commit", *more),
        )

    def listen(self) -> None:
        entity = AE("CT1")
        entity.add_supported_context(COMMITMENT, scu_role=False, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._reported), (evt.EVT_REQUESTED, self._called)]
        self._server = entity.start_server(
            ("127.0.0.1", self._own_port), block=False, evt_handlers=handlers
        )

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()

    def _called(self, event: evt.Event) -> None:
        for item in event.assoc.requestor.role_selection.values():
            self.roles.append((item.scu_role, item.scp_role))

    def _reported(self, event: evt.Event) -> tuple[int, None]:
        self.reports.append((event.event_type, event.event_information))
        return self.refuses, None

    def ask(
        self,
        objects: Sequence[tuple[str, str]],
        transaction: str | None = None,
        action: int = 1,
        instance: str = INSTANCE,
    ) -> int | None:
        """Ask to commit; return the status, None where the class was not accepted."""
        message = Dataset()
        if transaction != "":
            message.TransactionUID = transaction or generate_uid()
        message.ReferencedSOPSequence = []
        for sop_class, sop in objects:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop
            message.ReferencedSOPSequence.append(item)
        entity = AE("CT1")
        entity.add_requested_context(COMMITMENT)
        association = entity.associate("127.0.0.1", self._our_port, ae_title="DICOMAI")
        if not association.accepted_contexts:
            association.abort()
            return None
        said, _ = association.send_n_action(message, action, COMMITMENT, instance)
        association.release()
        return int(said.Status)

    @property
    def last(self) -> tuple[int, list[str], dict[str, int]]:
        """The last report: type of the event, committed objects, failed ones with their reason."""
        kind, told = self.reports[-1]
        return (
            kind,
            [each.ReferencedSOPInstanceUID for each in told.get("ReferencedSOPSequence", [])],
            {
                each.ReferencedSOPInstanceUID: each.FailureReason
                for each in told.get("FailedSOPSequence", [])
            },
        )


@pytest.fixture
def modality(our_port: int, free_port: int) -> Iterator[Modality]:
    """A modality whose port is shut until it is told to listen."""
    made = Modality(our_port, free_port)
    yield made
    made.close()


def keeper(site: Any, clock: Callable[[], Instant] = now) -> Keeper:
    return Keeper(settings=site.settings, engine=site.engine, clock=clock)


def keep(site: Any, done: Callable[[], object], pulse: Callable[[], None] = lambda: None) -> None:
    """Work on promises until something is so."""
    deadline = time.monotonic() + 15
    while not done():
        replace(keeper(site), pulse=pulse).keep_once()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pairs(paths: Sequence[Path]) -> list[tuple[str, str]]:
    found = [dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"]) for path in paths]
    return [(str(each.SOPClassUID), str(each.SOPInstanceUID)) for each in found]


def story(site: Any, study: str | None) -> list[str]:
    with reading(site.engine) as connection:
        return [each.sentence for each in events.story(connection, study)]


def post(pacs: Any, path: str, body: object) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{pacs.http_port}{path}", data=json.dumps(body).encode(), method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def asked_by_orthanc(pacs: Any, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{pacs.http_port}{path}") as answer:
        return json.load(answer)


def test_orthanc_sends_a_study_and_has_it_committed(
    site: Callable[..., Any], full_orthanc: Any, doe: Any
) -> None:
    here = site(full_orthanc.node(may=("echo", "store", "commit")))
    found = post(
        full_orthanc,
        "/tools/find",
        {"Level": "Instance", "Query": {"StudyInstanceUID": doe.uid}, "Expand": True},
    )
    post(full_orthanc, "/modalities/dicomai/store", {"Resources": [each["ID"] for each in found]})
    objects = [
        {"SOPClassUID": CT, "SOPInstanceUID": each["MainDicomTags"]["SOPInstanceUID"]}
        for each in found
    ]
    asked = post(
        full_orthanc, "/modalities/dicomai/storage-commitment", {"DicomInstances": objects}
    )
    keep(here, lambda: asked_by_orthanc(full_orthanc, asked["Path"])["Status"] != "Pending")
    told = asked_by_orthanc(full_orthanc, asked["Path"])
    assert told["Status"] == "Success"
    assert len(told["Success"]) == len(doe.images) * doe.images[0] == 4
    assert told["RemoteAET"] == "DICOMAI"
    (sentence,) = [each for each in story(here, doe.uid) if "commit" in each]
    assert sentence.startswith("PACS1 asked to commit 4 objects: all are kept until 20")


@ON_SQLITE
def test_orthanc_hears_what_is_not_here(
    site: Callable[..., Any], full_orthanc: Any, study_files: Path, doe: Any
) -> None:
    here = site(full_orthanc.node(may=("echo", "store", "commit")), Node(name="CT1", ae_title="C"))
    (file, *_) = sorted((study_files / doe.accession).iterdir())
    here.put(file)
    (there,) = pairs([file])
    objects = [{"SOPClassUID": one, "SOPInstanceUID": uid} for one, uid in (there, (CT, "1.2.9"))]
    asked = post(
        full_orthanc, "/modalities/dicomai/storage-commitment", {"DicomInstances": objects}
    )
    keep(here, lambda: asked_by_orthanc(full_orthanc, asked["Path"])["Status"] != "Pending")
    told = asked_by_orthanc(full_orthanc, asked["Path"])
    assert told["Status"] == "Failure"
    assert [each["SOPInstanceUID"] for each in told["Success"]] == [there[1]]
    ((failure),) = told["Failures"]
    assert (failure["SOPInstanceUID"], failure["FailureReason"]) == ("1.2.9", 0x0112)


def test_each_object_that_cannot_be_committed_has_its_reason(
    site: Callable[..., Any], modality: Modality, study_files: Path, doe: Any, tmp_path: Path
) -> None:
    here = site(modality.node())
    modality.listen()
    whole, damaged, other, lost = sorted((study_files / doe.accession).iterdir())
    here.put(whole, damaged, other)
    files = (whole, damaged, other, lost)
    uids = {path: uid for path, (_, uid) in zip(files, pairs(files), strict=True)}
    with reading(here.engine) as connection:
        rows = instances.of_sops(connection, [uids[damaged]])
    (row,) = rows[uids[damaged]]
    file = here.settings.folders.data / row.path
    octets = bytearray(file.read_bytes())
    octets[-1] ^= 1
    file.write_bytes(octets)
    unreadable = tmp_path / "aside.dcm"  # acknowledged by its head, and cut off behind it
    unreadable.write_bytes(lost.read_bytes()[:-8])
    here.put(unreadable)
    wanted = [(CT, uids[whole]), (CT, uids[damaged]), (MR, uids[other]), (CT, uids[lost])]
    assert modality.ask([*wanted, (CT, "1.2.9")]) == 0
    keep(here, lambda: modality.reports)
    assert modality.last == (
        2,
        [uids[whole]],
        {uids[damaged]: 0x0110, uids[other]: 0x0119, uids[lost]: 0x0110, "1.2.9": 0x0112},
    )
    assert modality.roles == [(False, True)]
    assert any(
        "2 are not committed (1 in the quarantine or damaged in the archive, 1 here as another SOP "
        "class), and it is told so" in each
        for each in story(here, doe.uid)
    )


@ON_POSTGRESQL
def test_a_transaction_again_is_answered_again_and_another_under_its_uid_fails(
    site: Callable[..., Any], modality: Modality, study_files: Path, doe: Any
) -> None:
    here = site(modality.node())
    modality.listen()
    files = sorted((study_files / doe.accession).iterdir())
    here.put(*files)
    objects, uid = pairs(files), generate_uid()
    for count in (1, 2):
        assert modality.ask(objects, uid) == 0
        keep(here, lambda count=count: len(modality.reports) == count)
        assert modality.last == (1, [each for _, each in objects], {})
    assert modality.ask(objects[:1], uid) == 0
    keep(here, lambda: len(modality.reports) == 3)
    assert modality.last == (2, [], {objects[0][1]: 0x0131})


@ON_SQLITE
def test_it_is_judged_when_every_host_has_ingested_what_came_before(
    site: Callable[..., Any], modality: Modality, study_files: Path, doe: Any
) -> None:
    here = site(modality.node())
    modality.listen()
    files = sorted((study_files / doe.accession).iterdir())
    with writing(here.engine) as connection:
        hosts.note_ingested(connection, "another", Instant(now() - seconds(1)), now())
    assert modality.ask(pairs(files)) == 0  # it arrived at that other host before
    keep(here, lambda: first_promise(here) is not None)
    keep(here, lambda: first_promise(here).claim)
    assert not modality.reports
    assert first_promise(here).state == "asked"
    here.put(*files)
    with writing(here.engine) as connection:
        hosts.note_ingested(connection, "another", now(), now())
    keep(here, lambda: modality.reports)
    assert modality.last[0] == 1


@ON_SQLITE
def test_nothing_is_judged_while_the_archive_is_away(
    site: Callable[..., Any], modality: Modality, study_files: Path, doe: Any
) -> None:
    here = site(modality.node())
    modality.listen()
    files = sorted((study_files / doe.accession).iterdir())
    here.put(*files)
    with writing(here.engine) as connection:
        hosts.note_ingested(connection, "another", Instant(now() - seconds(60)), now())
    assert modality.ask(pairs(files)) == 0
    keep(here, lambda: first_promise(here) is not None)
    kept = here.settings.folders.archive
    away = kept.rename(kept.with_name("away"))
    with writing(here.engine) as connection:
        hosts.note_ingested(connection, "another", now(), now())
    before = first_promise(here).claim
    keep(here, lambda: first_promise(here).claim > before + 1)
    assert not modality.reports
    away.rename(kept)
    keep(here, lambda: modality.reports)
    assert modality.last[0] == 1


def first_promise(site: Any) -> Any:
    with reading(site.engine) as connection:
        found = [promises.get(connection, PromiseId(number)) for number in range(1, 60)]
    return next((each for each in found if each is not None), None)


@ON_SQLITE
def test_a_modality_that_is_away_is_told_later_and_in_the_end_not_any_more(
    site: Callable[..., Any], modality: Modality, study_files: Path, doe: Any
) -> None:
    here = site(modality.node())
    files = sorted((study_files / doe.accession).iterdir())
    here.put(*files)
    assert modality.ask(pairs(files)) == 0
    keep(here, lambda: first_promise(here) and first_promise(here).attempts == 1)
    promise = first_promise(here)
    assert promise.state == "judged"
    assert "can't be reached at 127.0.0.1" in promise.error_sentence
    assert not keeper(here).keep_once()  # it waits
    with reading(here.engine) as connection:
        seen = overview.of_service(connection, here.settings, now(), 1)
    (remark,) = [each for each in seen.remarks if "commit" in each]
    assert remark.startswith(
        "CT1 asked to commit 4 objects and can't be told what became of it, tried 1 times: CT1 "
        "can't be reached at 127.0.0.1"
    )
    at = now()
    with writing(here.engine) as connection:
        connection.execute(schema.promises.update().values(attempts=14))
    while promise.due_at is not None:  # as after a restart: nothing but the row is known
        at = promise.due_at
        assert keeper(here, lambda at=at: at).keep_once()
        promise = first_promise(here)
    assert (promise.state, promise.attempts) == ("given up", 17)
    (said,) = [each for each in story(here, doe.uid) if "could not be told" in each]
    assert said.endswith("Have it ask again.")
    modality.listen()
    assert modality.ask(pairs(files), promise.transaction_uid) == 0
    keep(here, lambda: modality.reports)
    assert modality.last[0] == 1


@ON_SQLITE
def test_a_node_that_is_paused_is_told_when_it_is_resumed(
    site: Callable[..., Any], modality: Modality
) -> None:
    here = site(modality.node())
    modality.listen()
    with writing(here.engine) as connection:
        pauses.pause(connection, "node", "CT1", "paused", now())
    assert modality.ask([(CT, "1.2.9")]) == 0
    keep(here, lambda: first_promise(here))
    keep(here, lambda: first_promise(here).state == "judged")
    for _ in range(3):
        keeper(here).keep_once()
    assert not modality.reports
    with writing(here.engine) as connection:
        pauses.resume(connection, "node", "CT1", now())
    later = Instant(now() + seconds(11))
    with writing(here.engine) as connection:  # one that is killed while it reports
        assert promises.claim(connection, later) is not None
    assert not keeper(here, lambda: later).keep_once()
    after = Instant(later + promises.LEASE)
    assert keeper(here, lambda: after).keep_once()
    assert modality.last == (2, [], {"1.2.9": 0x0112})


def test_what_was_promised_outlives_retention_and_a_full_disk_for_its_time(
    site: Callable[..., Any], modality: Modality, study_files: Path, doe: Any, mueller: Any
) -> None:
    here = site(modality.node())
    modality.listen()
    files = sorted((study_files / doe.accession).iterdir())
    here.put(*files)
    assert modality.ask(pairs(files)) == 0
    keep(here, lambda: modality.reports)
    uid = StudyInstanceUID(doe.uid)
    data = here.settings.folders.data
    nothing = Keep(received=Microseconds(0), produced=Microseconds(0), jobs=Microseconds(0))
    with writing(here.engine) as connection:
        decisions.set_decided(connection, uid, "Whole.", now())
        until = promises.kept_until(connection, uid)
    assert until is not None
    assert 364 * DAY < until - now() <= 365 * DAY
    soon, late = Instant(until - DAY), Instant(until + DAY)
    assert retention.delete_expired(here.engine, data, nothing, soon) == 0
    here.put(*sorted((study_files / mueller.accession).iterdir()))
    with writing(here.engine) as connection:
        decisions.set_decided(connection, StudyInstanceUID(mueller.uid), "Whole.", now())
    assert retention.make_room(here.engine, data, 2**62, soon) == 1  # the younger one
    with reading(here.engine) as connection:
        assert studies.get(connection, uid) is not None
    with writing(here.engine) as connection:
        candidate = retention.Candidate(study_instance_uid=uid, origins=("received",))
        assert not retention.begin(connection, candidate, soon, soon)
        assert promises.prune(connection, soon, soon) == 0
    assert retention.delete_expired(here.engine, data, nothing, late) == 1
    with writing(here.engine) as connection:
        assert promises.prune(connection, late, late) == 1
    assert modality.ask(pairs(files)) == 0
    keep(here, lambda: len(modality.reports) == 2)
    assert set(modality.last[2].values()) == {0x0112}


@ON_SQLITE
def test_what_retention_deleted_while_it_was_looked_at_is_not_promised(
    site: Callable[..., Any], modality: Modality, study_files: Path, doe: Any
) -> None:
    here = site(modality.node())
    modality.listen()
    goes, comes_again = sorted((study_files / doe.accession).iterdir())[:2]
    here.put(goes, comes_again)
    uid, data = StudyInstanceUID(doe.uid), here.settings.folders.data
    nothing = Keep(received=Microseconds(0), produced=Microseconds(0), jobs=Microseconds(0))
    looked_at = 0

    def meanwhile() -> None:
        nonlocal looked_at
        looked_at += 1
        if looked_at == 2:
            with writing(here.engine) as connection:
                decisions.set_decided(connection, uid, "Whole.", now())
            assert retention.delete_expired(here.engine, data, nothing, now()) == 1
            here.put(comes_again)

    assert modality.ask(pairs([goes, comes_again])) == 0
    keep(here, lambda: modality.reports, meanwhile)
    ((_, gone), (_, there)) = pairs([goes, comes_again])
    assert modality.last == (2, [there], {gone: 0x0112})


@ON_SQLITE
def test_what_is_no_request_is_refused_and_leaves_nothing(
    site: Callable[..., Any], modality: Modality
) -> None:
    here = site(modality.node(), Node(name="CT2", ae_title="CT2"))
    one = [(CT, "1.2.3")]
    assert modality.ask(one, action=2) == 0x0123
    assert modality.ask(one, instance="1.2.3") == 0x0112
    assert modality.ask(one, transaction="") == 0x0115
    assert modality.ask([]) == 0x0115
    assert modality.ask([(CT, "")]) == 0x0115
    assert not list(reader.entries(here.settings.folders.spool))
    assert first_promise(here) is None


@ON_SQLITE
def test_without_being_allowed_nobody_may_ask(site: Callable[..., Any], modality: Modality) -> None:
    site(replace(modality.node(), may=("echo", "store")))
    assert modality.ask([(CT, "1.2.3")]) is None


@ON_SQLITE
def test_who_is_only_asked_may_report_and_not_ask(
    site: Callable[..., Any], modality: Modality, our_port: int
) -> None:
    here = site(replace(modality.node(), may=("echo", "store"), commitment=True))
    assert modality.ask([(CT, "1.2.3")]) == 0x0124
    entity = AE("CT1")
    entity.add_requested_context(COMMITMENT)
    association = entity.associate(
        "127.0.0.1",
        our_port,
        ae_title="DICOMAI",
        ext_neg=[build_role(COMMITMENT, scp_role=True)],
    )
    (context,) = association.accepted_contexts
    assert (context.as_scu, context.as_scp) == (False, True)
    for event_type, message, status in ((3, report(), 0x0113), (1, report(""), 0x0115)):
        said, _ = association.send_n_event_report(message, event_type, COMMITMENT, INSTANCE)
        assert said.Status == status
    said, _ = association.send_n_event_report(report(), 1, COMMITMENT, INSTANCE)
    assert said.Status == 0
    association.release()
    deadline = time.monotonic() + 10
    while reader.waits(here.settings.folders.spool):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (sentence,) = [each for each in story(here, None) if "commitment" in each]
    assert sentence.startswith(
        "CT1 reports on storage commitment of 1 objects under the Transaction UID 1.2.8, for which "
        "it was not asked; nothing was changed."
    )


def report(transaction: str = "1.2.8") -> Dataset:
    message = Dataset()
    message.TransactionUID = transaction
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, "1.2.3"
    message.ReferencedSOPSequence = [item]
    return message
