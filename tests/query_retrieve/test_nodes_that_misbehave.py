"""Nodes that are down, slow, deaf or wrong: each retrieval ends in a state with a sentence."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, evt
from pynetdicom.dimse_messages import C_FIND_RSP
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.dsutils import encode
from pynetdicom.pdu import P_DATA_TF
from typer.testing import CliRunner

from dicomai.cli.main import app
from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DatabaseError, TransientError
from dicomai.net import calling
from dicomai.net import find as finding
from dicomai.net.find import STUDY_ROOT_FIND
from dicomai.net.get import STUDY_ROOT_GET
from dicomai.net.move import STUDY_ROOT_MOVE
from dicomai.net.node import Node
from dicomai.roles.work import fetchers
from dicomai.routing.pull import Pull
from dicomai.service import count, pull
from dicomai.service.count import Counter
from dicomai.service.pull import Puller
from dicomai.service.retrieve import Retriever
from dicomai.service.rules import Rules
from dicomai.store import jobs, pulls, retrievals, schema
from dicomai.store.engine import reading, writing
from dicomai.store.job import BEHIND, Job, JobId
from dicomai.store.retrievals import NewRetrieval

CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY = "1.2.3"
EVERY = (STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE)
Answers = Callable[[evt.Event], Iterator[Any]]


@pytest.fixture
def engine(sqlite_engine: Any) -> Any:
    """One database is enough: what goes wrong here lies below it."""
    return sqlite_engine


def one_image(event: evt.Event) -> Iterator[Any]:
    """Count one image of one series."""
    match = Dataset()
    match.StudyInstanceUID = STUDY
    match.SeriesInstanceUID = f"{STUDY}.1"
    match.NumberOfSeriesRelatedInstances = 1
    match.SOPInstanceUID, match.SOPClassUID = f"{STUDY}.1.1", CT
    yield 0xFF00, match


def answers_nothing(_event: evt.Event) -> Iterator[Any]:
    yield 0


def answers(status: int) -> Answers:
    def answer(_event: evt.Event) -> Iterator[Any]:
        yield status, None

    return answer


def sends_nothing(status: int) -> Answers:
    """End a retrieval with a status and no object."""

    def answer(event: evt.Event) -> Iterator[Any]:
        yield 1
        yield status, None

    return answer


def breaks_off(event: evt.Event) -> Iterator[Any]:
    event.assoc.abort()
    yield 0xFF00, None


class Held:
    """A peer that takes its time, until its test is over."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def silent(self, _event: evt.Event) -> Iterator[Any]:
        self.over.wait(30)
        yield 0x0000, None

    def trickling(self, event: evt.Event) -> Iterator[Any]:
        """Send a byte of a PDU now and then, for ever."""
        wire = event.assoc.dul.socket.socket
        for byte in struct.pack(">BxL", 4, 2**16) + bytes(2**16):
            if self.over.wait(0.05):
                break
            wire.sendall(bytes([byte]))
        yield 0x0000, None


@contextmanager
def peer_that(
    port: int, *, find: Answers = one_image, get: Answers = answers_nothing, **facts: Any
) -> Iterator[Node]:
    """Start a node that answers as a test says; `takes`: the services that it offers."""
    entity = AE("PACS1")
    for service in facts.pop("takes", EVERY):
        entity.add_supported_context(service)
    entity.add_supported_context(CT, scu_role=True, scp_role=True)
    for name, value in facts.items():
        setattr(entity, name, value)
    wires: list[socket.socket] = []

    def opened(event: evt.Event) -> None:
        wires.append(event.assoc.dul.socket.socket)

    server = entity.start_server(
        ("127.0.0.1", port),
        block=False,
        evt_handlers=[
            (evt.EVT_CONN_OPEN, opened),
            (evt.EVT_C_FIND, find),
            (evt.EVT_C_GET, get),
            (evt.EVT_C_MOVE, get),
        ],
    )
    try:
        yield Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=port, retrieve="get")
    finally:
        server.shutdown()
        for wire in wires:  # pynetdicom forgets to, where we broke off amid what it sent
            wire.close()


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.over.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for answers no longer than a test can."""
    monkeypatch.setattr(calling, "DIMSE_TIMEOUT_S", 0.5)


def fetched(site: Any, study: str = STUDY) -> Job:
    wanted = NewRetrieval(
        node="PACS1", study_instance_uid=StudyInstanceUID(study), ageing=seconds(600)
    )
    with writing(site.engine) as connection:
        job = retrievals.queue(connection, wanted, now()).job_id
    assert Retriever(settings=site.settings, worker=site.worker()).work_once()
    found: Job = site.job(job)
    return found


def told(folder: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "-c", str(folder / "dicomai.toml")])
    return " ".join((done.stdout + done.stderr).replace("│", " ").split())


BACK_OFF, REFUSED = ("waiting", "transient"), ("failed", "refused")


@pytest.mark.parametrize(
    ("script", "outcome", "sentence"),
    [
        (
            {"require_calling_aet": ["NOBODY"]},
            REFUSED,
            "PACS1 rejected the association because it does not know DICOMAI.",
        ),
        ({"takes": (STUDY_ROOT_FIND,)}, REFUSED, "PACS1 takes no C-GET (study root) from DICOMAI."),
        ({"find": answers(0xA700)}, BACK_OFF, "PACS1 failed to look for series (status 0xA700"),
        ({"find": breaks_off}, BACK_OFF, "PACS1 gave no answer to a C-FIND for series, or broke"),
        (
            {"find": lambda _: iter(())},
            ("failed", "input"),
            f"PACS1 has nothing of study {STUDY}.",
        ),
        (
            {"get": sends_nothing(0xC000)},
            BACK_OFF,
            "PACS1 failed to send what it was asked for (status 0xC000",
        ),
        ({"get": sends_nothing(0xA702)}, BACK_OFF, "it is out of resources (status 0xA702"),
        ({"get": sends_nothing(0xA900)}, REFUSED, "for one of another SOP class (status 0xA900"),
        ({"get": sends_nothing(0xFE00)}, BACK_OFF, "somebody cancelled it there (status 0xFE00"),
        ({"get": breaks_off}, BACK_OFF, "PACS1 gave no answer to a C-GET, or broke off after 0"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else None,
)
def test_a_retrieval_says_what_is_wrong_with_its_node(
    site: Callable[..., Any],
    free_port: int,
    tmp_path: Path,
    script: dict[str, Any],
    outcome: tuple[str, str],
    sentence: str,
) -> None:
    with peer_that(free_port, **script) as node:
        here = site(node, receives=False)
        here.ingest()
        job = fetched(here)
    assert (job.state, job.error_kind) == outcome
    assert sentence in job.error_sentence
    assert job.error_sentence.startswith(f"Job {job.id} (from PACS1), ")
    words = " ".join(job.error_sentence.split()[:12])
    assert words in told(tmp_path, "job", str(job.id))
    assert words in told(tmp_path, "study", STUDY)


def test_a_node_that_does_not_say_what_it_has_is_asked_for_all_the_same(
    site: Callable[..., Any],
    free_port: int,
    tmp_path: Path,
    made: Callable[[Any], list[Dataset]],
    doe: Any,
) -> None:
    images = made(doe)

    def generous(event: evt.Event) -> Iterator[Any]:
        yield len(images)
        for each in images:
            yield 0xFF00, each

    with peer_that(free_port, get=generous, takes=(STUDY_ROOT_GET,)) as node:
        here = site(node)
        job = fetched(here, doe.uid)
    assert job.state == "done", job.error_sentence
    sentence = (
        "4 objects came, as PACS1 counts; what it has it does not say: PACS1 takes no C-FIND "
        "(study root) from DICOMAI. Allow it there."
    )
    assert job.summary["found"] == sentence
    assert sentence in told(tmp_path, "job", str(job.id))
    assert sentence in told(tmp_path, "study", doe.uid)


@pytest.mark.parametrize("how", ["silent", "trickling"])
def test_a_node_that_is_too_slow_is_tried_again(
    site: Callable[..., Any],
    free_port: int,
    tmp_path: Path,
    held: Held,
    impatient: None,
    how: str,
) -> None:
    with peer_that(free_port, find=getattr(held, how)) as node:
        here = site(node, receives=False)
        job = fetched(here)
    assert (job.state, job.error_kind) == BACK_OFF
    sentence = "PACS1 gave no answer to a C-FIND for series, or broke off."
    assert sentence in job.error_sentence
    assert sentence in told(tmp_path, "study", STUDY)


def test_a_job_that_waits_for_a_slow_node_is_given_back_at_once(
    site: Callable[..., Any], free_port: int, held: Held
) -> None:
    stop, asked = threading.Event(), threading.Event()

    def silent(event: evt.Event) -> Iterator[Any]:
        asked.set()
        yield from held.silent(event)

    with peer_that(free_port, find=silent) as node:
        here = site(node, receives=False)
        wanted = NewRetrieval(
            node="PACS1", study_instance_uid=StudyInstanceUID(STUDY), ageing=seconds(600)
        )
        with writing(here.engine) as connection:
            job = retrievals.queue(connection, wanted, now()).job_id
        retriever = Retriever(settings=here.settings, worker=here.worker(stop))
        working = threading.Thread(target=retriever.work_once)
        working.start()
        assert asked.wait(20)
        stop.set()
        working.join(10)
        assert not working.is_alive()
        assert here.job(job).state == "queued"


def test_a_node_that_is_too_slow_to_be_counted_at_holds_up_no_other_study(
    site: Callable[..., Any],
    free_port: int,
    tmp_path: Path,
    study_files: Path,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
    mueller: Any,
    doe: Any,
) -> None:
    asked = 0

    def silent(event: evt.Event) -> Iterator[Any]:
        nonlocal asked
        asked += 1
        yield from held.silent(event)

    monkeypatch.setattr(count, "ANSWER_S", 0.5)
    with peer_that(free_port, find=silent) as node:
        here = site(replace(node, answers_find=True, quiet_s=600, floor_s=0.0))
        here.put(*(study_files / mueller.accession).iterdir(), node="PACS1")
        here.put(*(study_files / doe.accession).iterdir(), node="PACS1")
        beats = []
        counter = Counter(
            settings=here.settings,
            engine=here.engine,
            clock=lambda: Instant(now() + seconds(1)),
            rules=lambda: Rules(
                routes=(), models={}, patience=seconds(9), ageing=seconds(9), zone=ZoneInfo("UTC")
            ),
            pulse=lambda: beats.append(1),
        )
        assert not counter.count_once()
        assert not counter.count_once()
    assert asked == 1  # and not once for each study
    assert beats
    sentence = "What PACS1 has of it could not be counted: PACS1 took more than 0.5 s"
    shown = [told(tmp_path, "study", each.uid) for each in (mueller, doe)]
    assert sum(sentence in each for each in shown) == 1


def test_a_node_that_is_too_slow_for_a_pull_is_told_of(
    site: Callable[..., Any],
    free_port: int,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pull, "ANSWER_S", 0.5)
    with peer_that(free_port, find=held.silent) as node:
        here = site(node, receives=False)
        settings = replace(here.settings, pulls=(Pull(name="ct", node="PACS1", every_s=1),))
        assert not Puller(settings=settings, engine=here.engine, clock=now).pull_once()
    with reading(here.engine) as connection:
        (event,) = connection.execute(schema.events.select()).all()
    assert event.kind == "pull failed"
    assert (
        "Pull ct can't ask PACS1: PACS1 took more than 0.5 s to say what it has." in event.sentence
    )


def silent_after_one(held: Held) -> Answers:
    """Tell of one study that there are more, and then nothing."""
    asked = 0

    def answer(event: evt.Event) -> Iterator[Any]:
        nonlocal asked
        asked += 1
        if asked > 1:
            yield from held.silent(event)
            return
        yield from one_image(event)
        yield 0xFE00, None

    return answer


def test_what_a_node_told_a_pull_before_it_was_too_slow_is_fetched(
    site: Callable[..., Any], free_port: int, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "ANSWER_S", 2.0)
    with peer_that(free_port, find=silent_after_one(held)) as node:
        here = site(node, receives=False)
        settings = replace(here.settings, pulls=(Pull(name="ct", node="PACS1"),))
        assert Puller(settings=settings, engine=here.engine, clock=now).pull_once()
    with reading(here.engine) as connection:
        assert [each.study_instance_uid for each in jobs.listing(connection, 10)] == [STUDY]
        (remark,) = pull.failing(connection).values()
        assert pulls.answered(connection, "ct") is None
    assert remark == (
        "Pull ct does not hear of all studies: PACS1 took more than 2 s to say what it has."
    )


def test_a_pull_takes_nothing_while_the_database_is_away(
    site: Callable[..., Any], free_port: int, held: Held
) -> None:
    asked, answer = [], silent_after_one(held)

    def find(event: evt.Event) -> Iterator[Any]:
        asked.append(event)
        yield from answer(event)

    def pulse() -> None:
        if len(asked) > 1:
            raise DatabaseError("The database is away.")

    with peer_that(free_port, find=find) as node:
        here = site(node, receives=False)
        settings = replace(here.settings, pulls=(Pull(name="ct", node="PACS1"),))
        puller = Puller(settings=settings, engine=here.engine, clock=now, pulse=pulse)
        with pytest.raises(DatabaseError):
            puller.pull_once()
    with reading(here.engine) as connection:
        assert not jobs.listing(connection, 10)


def test_a_node_that_is_silent_holds_up_no_retrieval_from_another(
    site: Callable[..., Any], full_orthanc: Any, free_port: int, held: Held, doe: Any, mueller: Any
) -> None:
    silent = 0

    def silent_get(event: evt.Event) -> Iterator[Any]:
        nonlocal silent
        silent += 1
        yield 1
        yield from held.silent(event)

    def any_study(event: evt.Event) -> Iterator[Any]:
        for status, found in one_image(event):
            found.StudyInstanceUID = event.identifier.StudyInstanceUID
            yield status, found

    def queue(node: str, study: str, **others: Any) -> JobId:
        wanted = NewRetrieval(
            node=node,
            study_instance_uid=StudyInstanceUID(study),
            ageing=seconds(600),
            **others,
        )
        with writing(here.engine) as connection:
            return retrievals.queue(connection, wanted, now()).job_id

    stop = threading.Event()
    with peer_that(free_port, find=any_study, get=silent_get) as node:
        here = site(full_orthanc.node(retrieve="get"), replace(node, name="TAPE"))
        history = [queue("TAPE", f"1.2.3.{number}", priority=-BEHIND) for number in range(2)]
        loops = fetchers(here.settings, here.engine, "w", stop)
        for loop in loops:
            loop.start()
        until(lambda: here.job(history[0]).state == "running" and silent == 1)
        # What is of today overtakes what is fetched of history from the same node.
        priors = [queue("TAPE", f"1.2.4.{number}", urgent=True) for number in range(3)]
        until(lambda: silent == 2)
        today = queue("PACS1", doe.uid), queue("PACS1", mueller.uid, urgent=True)
        until(lambda: all(here.job(each).state == "done" for each in today))
        states = [here.job(each).state for each in (*history, *priors)]
        stop.set()
        for loop in loops:
            loop.join(10)
            assert not loop.is_alive()
    assert states == ["running", "queued", "running", "queued", "queued"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def match_in_pdus(event: evt.Event, uid: str) -> bytes:
    """Return a match of some kilobytes as it goes over the wire."""
    match = Dataset()
    match.StudyInstanceUID = uid
    match.AdditionalPatientHistory = "x" * 4000
    said = C_FIND()
    said.MessageIDBeingRespondedTo = event.request.MessageID
    said.AffectedSOPClassUID = event.request.AffectedSOPClassUID
    said.Status = 0xFF00
    raw = encode(match, event.context.transfer_syntax.is_implicit_VR, True)
    assert raw is not None
    said.Identifier = BytesIO(raw)
    message = C_FIND_RSP()
    message.primitive_to_message(said)
    octets = b""
    for primitive in message.encode_msg(event.context.context_id, 16382):
        pdu = P_DATA_TF()
        pdu.from_primitive(primitive)
        octets += pdu.encode()
    return octets


class Torrent:
    """Sends matches as fast as they are taken."""

    def __init__(self, matches: int) -> None:
        self.matches = matches
        self.sent = 0

    def answer(self, event: evt.Event) -> Iterator[Any]:
        octets = match_in_pdus(event, "1.2.3")
        wire = event.assoc.dul.socket.socket
        with suppress(OSError):
            while self.sent < self.matches:
                wire.sendall(octets)
                self.sent += 1
        yield 0x0000, None

    def stands_still(self) -> int:
        """Return how many it has sent when it sends no more."""
        before = -1
        while before != self.sent:
            before = self.sent
            threading.Event().wait(0.5)
        return before


def test_ten_thousand_matches_are_read_as_they_are_taken(free_port: int) -> None:
    torrent = Torrent(matches=10_000)
    with peer_that(free_port, find=torrent.answer) as node:
        found = finding.find(node, "DICOMAI", finding.query("study", {}))
        assert next(found).text("StudyInstanceUID") == "1.2.3"
        first = torrent.stands_still()
        assert first < torrent.matches  # what the sockets hold, and little more
        assert sum(1 for _ in islice(found, first)) == first
        assert torrent.stands_still() > first
        # Who takes no more does not wait for the rest.
        began = time.monotonic()
        found.close()  # type: ignore[attr-defined]  # it is a generator
        assert time.monotonic() - began < calling.ACSE_TIMEOUT_S / 2


def test_an_answer_without_end_is_broken_off(free_port: int) -> None:
    """All of a message stands in memory until it is whole."""
    sent = 0

    def without_end(event: evt.Event) -> Iterator[Any]:
        nonlocal sent
        wire, context = event.assoc.dul.socket.socket, event.context.context_id
        answer = C_FIND()
        answer.MessageIDBeingRespondedTo = event.message_id
        answer.AffectedSOPClassUID, answer.Status = STUDY_ROOT_FIND, 0xFF00
        answer.Identifier = BytesIO(bytes(2))
        message = C_FIND_RSP()
        message.primitive_to_message(answer)
        command = next(iter(message.encode_msg(context, 0)))
        pdu = P_DATA_TF()
        pdu.from_primitive(command)
        wire.sendall(pdu.encode())
        piece = bytes(2**16)
        head = struct.pack(">BBLLBB", 4, 0, len(piece) + 6, len(piece) + 2, context, 0)
        with suppress(OSError):
            while sent < 2**28:
                wire.sendall(head + piece)
                sent += len(piece)
        yield 0, None

    with peer_that(free_port, find=without_end) as node:
        with pytest.raises(TransientError, match="a message of more than 16777216 bytes"):
            list(finding.find(node, "DICOMAI", finding.query("study", {})))
        assert sent < 2**26


def test_each_answer_is_bounded_and_not_all_of_them(free_port: int) -> None:
    def many(_event: evt.Event) -> Iterator[Any]:
        for _ in range(50):
            match = Dataset()
            match.StudyInstanceUID = STUDY
            yield 0xFF00, match

    with (
        peer_that(free_port, find=many) as node,
        calling.associated(
            node, "DICOMAI", [build_context(STUDY_ROOT_FIND)], message_bytes=1000
        ) as association,
    ):
        wanted = Dataset()
        wanted.QueryRetrieveLevel = "STUDY"
        found = list(association.send_c_find(wanted, STUDY_ROOT_FIND))
    assert len(found) == 51
