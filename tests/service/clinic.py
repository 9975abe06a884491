"""A clinic with its clock in hand: scanners, a spool, workers that stop where one likes, a PACS.

All of it is the real code, but for the runner and the network of deliveries: there a worker stops
and is told what comes of it, so that anything may happen meanwhile.
"""

from __future__ import annotations

import hashlib
import queue
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pydicom
from bodies import ct_slice
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, KeyObjectSelectionDocumentStorage
from sqlalchemy import Column, Engine, MetaData, Table, Text, event, text

from dicomai import errors
from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.findings import Findings
from dicomai.inference.messages import Analyse
from dicomai.inference.runner_process import RunnerDied
from dicomai.models.registry import open_registry
from dicomai.net.node import Node
from dicomai.net.scu import StoreOutcome
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs
from dicomai.service.attempt import Worker
from dicomai.service.decide import decide_due
from dicomai.service.deliver import Deliverer
from dicomai.service.ingest import ingest
from dicomai.service.rules import Rules
from dicomai.service.spool_pass import Ingest
from dicomai.service.supervise import Supervisor
from dicomai.settings import load
from dicomai.spool.entries import Ending, Writer, opened
from dicomai.store import deliveries, jobs, leases, studies
from dicomai.store.engine import open_engine, reading, writing
from dicomai.store.instances import Instance
from dicomai.store.job import Job
from dicomai.store.leases import LeaseObserver
from dicomai.store.studies import Study

LEASE_S: Final = 1e6  # no heart beats by itself
SENDERS: Final = {
    "CT1": Node(name="CT1", ae_title="CT1"),
    "CT2": Node(name="CT2", ae_title="CT2", association_per_study=True),
}
PACS: Final = tuple(
    Node(name=name, ae_title=name, host="192.0.2.9", port=104, rejection_notes=notes)
    for name, notes in (("PACS1", True), ("PACS2", False))
)
FORMS: Final = ("SR", "SR:TEXT")
ROUTES: Final = (
    Route(name="first", model="bodies", destinations=("PACS1",), objects=FORMS),
    Route(name="second", model="bodies", destinations=("PACS1", "PACS2"), objects=FORMS),
)
ANSWERS: Final[dict[str, Exception]] = {
    "input": errors.InputError("These images are no input."),
    "transient": errors.TransientError("Not now."),
    "resource": errors.ResourceError("No memory."),
    "config": errors.ConfigError("No device."),
    "deadline": errors.DeadlineError("It took too long."),
    "crash": RunnerDied("was killed by signal 11 (SIGSEGV)"),
}
"""What a runner may say instead of findings."""
PACS_ANSWERS: Final = ("takes", "warns", "refuses", "no room", "away", "mute", "mute, kept")


class Killed(BaseException):
    """A process ends here, and writes nothing more."""


class Hand:
    """A worker in a thread of its own, which stops at each edge until it is told to go on."""

    def __init__(self, clinic: Clinic, name: str) -> None:
        self.clinic = clinic
        self.name = name
        self.at = ""
        self.job: Job | None = None
        self.stopping = threading.Event()
        self._dead = False
        self._engine = opened_engine(clinic.settings.database.url)
        event.listen(self._engine, "begin", self._live)
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._came: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def start(self, kind: str) -> None:
        """Look for a job, and do it up to the first edge."""
        self.stopping.clear()
        self._dead = False
        work = self._supervisor() if kind == "analyse" else self._deliverer()
        threading.Thread(target=self._run, args=(work.work_once,), daemon=True).start()
        self._wait()

    def go_on(self, answer: str) -> None:
        """Go on to the next edge, or to the end of the attempt."""
        self._told.put(answer)
        self._wait()

    def reach(self, edge: str) -> str:
        """Stop here, in the thread, and return what is to come of it."""
        self.at = edge
        self._came.put(None)
        answer = self._told.get()
        if answer == "dies":
            self._dead = True
        self._live()
        return answer

    def analyse(self, request: Analyse, **_: object) -> Findings:
        """Stand in for the runner."""
        answer = self.reach("infer")
        if answer in ANSWERS:
            raise ANSWERS[answer]
        if answer == "stops":
            self.stopping.set()
        package = open_registry(self.clinic.settings.folders.models).get("bodies")
        return Findings(
            algorithm=package.algorithm,
            where=request.source.grid,  # type: ignore[union-attr]  # a volume
            inputs=request.inputs,
            sought=package.manifest.sought,
        )

    def _wait(self) -> None:
        trouble = self._came.get(timeout=60)
        if trouble is not None:
            raise trouble

    def _run(self, work: Callable[[], object]) -> None:
        _HERE.hand = self
        try:
            with suppress(Killed):
                work()
        finally:
            self.at, self.job = "", None
            self._came.put(sys.exc_info()[1])

    def _live(self, *_: object) -> None:
        """Keep whatever tidies up after a death from writing: a kill leaves no time for it."""
        if self._dead:
            raise Killed

    def close(self) -> None:
        """End its thread and its connections."""
        while self.at:
            self.go_on("dies")
        self._engine.dispose()

    def _observe(self, stage: str, job: Job) -> None:
        self.job = job
        if stage in ("commit", "send"):
            self.reach(stage)

    def _worker(self) -> Worker:
        return Worker(
            name=self.name,
            engine=self._engine,
            lease_s=LEASE_S,
            deadline_s=LEASE_S,
            clock=lambda: self.clinic.clock,
            stop=self.stopping,
            pulse=lambda: None,
            observe=self._observe,
        )

    def _supervisor(self) -> Supervisor:
        runner: Any = self
        return Supervisor(settings=self.clinic.settings, runner=runner, worker=self._worker())

    def _deliverer(self) -> Deliverer:
        return Deliverer(settings=self.clinic.settings, worker=self._worker())


_HERE = threading.local()


def store_objects(node: Node, _ae: str, *given: Any, **more: Any) -> tuple[StoreOutcome, ...]:
    """Stand in for `dicomai.net.scu.store_objects`: the network of the hand that calls."""
    clinic: Clinic = _HERE.hand.clinic
    return clinic.store(_HERE.hand, node, *given, **more)


class Clinic:
    """A data folder, a catalogue and a clock; `wrongs` are what its PACS could not believe."""

    def __init__(self, template: Path, folder: Path, database: str) -> None:
        shutil.copytree(template, folder)
        environment = {"DICOMAI_DATABASE__URL": database} if database else {}
        configured = load(folder / "dicomai.toml", environment)
        nodes = (*SENDERS.values(), *PACS)
        self.settings = replace(configured, nodes=nodes, routes=ROUTES)
        self.engine = opened_engine(self.settings.database.url)
        package = open_registry(self.settings.folders.models).get("bodies")
        model = ModelInputs(package_sha256=package.sha256, inputs=package.inputs)
        self.rules = Rules(
            routes=ROUTES,
            models={"bodies": model},
            patience=seconds(900),
            ageing=seconds(600),
            zone=ZoneInfo("UTC"),
        )
        self.clock = Instant(1_795_000_000_000_000)
        self.hands = (Hand(self, "one"), Hand(self, "two"))
        self.associations: dict[str, Writer] = {}
        self.stored: dict[tuple[str, str], int] = {}
        self.wrongs: list[str] = []

    def send(self, sender: str, octets: bytes) -> Path:
        """Put an object into the spool as the receiver does; return its file."""
        if sender not in self.associations:
            self.associations[sender] = opened(
                self.settings.folders.spool,
                calling_ae=sender,
                called_ae="DICOMAI",
                address="192.0.2.1",
                node=sender,
                started_at=self.clock,
            )
        entry = self.associations[sender].add(StudyInstanceUID("1.2"), [octets])
        # The receiver stamps with the real time; the clinic has its own.
        stamped = entry.path.with_name(f"{entry.counter:06d}-{self.clock:016d}.dcm")
        return entry.path.rename(stamped)

    def end(self, sender: str, how: Ending) -> None:
        """End the association of a sender."""
        self.associations.pop(sender).end(how, self.clock)

    def ingest(self, steps: int | None = None) -> None:
        """Take over what is in the spool; killed after so many steps, if any are said."""
        folders = self.settings.folders
        config = Ingest(
            data=folders.data,
            spool=folders.spool,
            quarantine=folders.quarantine,
            host="here",
            nodes=SENDERS,
        )
        taken = 0

        def kill(_step: str) -> None:
            nonlocal taken
            taken += 1
            if taken == steps:
                raise Killed

        with suppress(Killed):
            ingest(self.engine, config, lambda: self.clock, kill)

    def decide(self) -> None:
        """Decide on what is due."""
        assert "defect" not in decide_due(self.engine, self.rules, self.clock).values()

    def end_leases(self, alive: Sequence[Hand] = ()) -> None:
        """Let a lease's time pass; the beats of those who are alive go on."""
        observer = LeaseObserver(1.0)
        for moment in (0.0, 0.4, 0.8, 1.2):
            with writing(self.engine) as connection:
                for hand in alive:
                    if hand.job is not None:
                        jobs.beat(connection, hand.job.held, "infer", moment / 2, self.clock)
                leases.expire(connection, observer, moment, self.clock)

    def store(
        self,
        hand: Hand,
        node: Node,
        objects: Sequence[Path],
        on_each: Callable[[StoreOutcome], None],
        *_: object,
        on_established: Callable[[], None],
        **__: object,
    ) -> tuple[StoreOutcome, ...]:
        """Stand in for the association with a PACS."""
        assert hand.job is not None
        self._look_at_patient(hand.job, objects)
        answer = hand.reach("called")
        outcomes: list[StoreOutcome] = []
        if answer != "away":
            on_established()
        for path in objects:
            mute = answer.startswith("mute") and not outcomes
            uid = str(pydicom.dcmread(path).SOPInstanceUID)
            if answer in ("takes", "warns", "stops") or (mute and answer.endswith("kept")):
                self._keep(hand.job, node, uid)
            outcome = replace(_OUTCOMES[answer], path=path, sop_instance_uid=uid, unanswered=mute)
            outcomes.append(outcome)
            if answer == "takes" and hand.reach("stored") == "loses":
                answer = "mute"
            on_each(outcome)
        return tuple(outcomes)

    def _look_at_patient(self, job: Job, objects: Sequence[Path]) -> None:
        """Nothing begins to go out for a study that is held, or another patient's by now.

        But for a note: it takes results back whoever's they are by now.
        """
        found = [pydicom.dcmread(each) for each in objects]
        note = all(each.SOPClassUID == KeyObjectSelectionDocumentStorage for each in found)
        with reading(self.engine) as connection:
            study = studies.get(connection, job.study_instance_uid)
        free = study is not None and study.status != "held" and study.patient_key == job.patient_key
        if not (free or note):
            self.wrongs.append(f"{job.title} goes out for {study}")
        for each in found:
            if (each.PatientID, each.StudyInstanceUID) != (job.patient_key, job.study_instance_uid):
                self.wrongs.append(f"{job.title} sends another patient's {each.SOPInstanceUID}")

    def _keep(self, job: Job, node: Node, uid: str) -> None:
        """Take an object; twice only where it was written down that nobody knows."""
        known = self.stored.get((node.name, uid), 0)
        self.stored[node.name, uid] = known + 1
        with reading(self.engine) as connection:
            noted = {
                each.sop_instance_uid: each.state for each in deliveries.objects(connection, job.id)
            }
        if known and noted.get(uid) != "uncertain":
            self.wrongs.append(f"{node.name} got {uid} again, which was {noted.get(uid)}")

    @contextmanager
    def closing(self) -> Iterator[None]:
        """End all threads and connections in the end."""
        try:
            yield
        finally:
            for hand in self.hands:
                hand.close()
            for sender in tuple(self.associations):
                self.end(sender, "lost")
            self.engine.dispose()


def _outcome(kind: Any, status: int | None) -> StoreOutcome:
    return StoreOutcome(
        path=Path(), sop_instance_uid="", status=status, kind=kind, sentence=f"It said {status}."
    )


_OUTCOMES: Final = {
    "takes": _outcome("ok", 0x0000),
    "stops": _outcome("ok", 0x0000),
    "warns": _outcome("warning", 0xB000),
    "refuses": _outcome("refused", 0x0122),
    "no room": _outcome("transient", 0xA700),
    "away": _outcome("transient", None),
    "mute": _outcome("transient", None),
    "mute, kept": _outcome("transient", None),
}


def opened_engine(url: str) -> Engine:
    """Open a catalogue that need not survive a power cut."""
    engine = open_engine(url)
    if url.startswith("sqlite"):
        event.listen(
            engine, "connect", lambda plain, _: plain.execute("PRAGMA synchronous=OFF").close()
        )
    return engine


moves_seen: Final = Table(
    "moves_seen", MetaData(), *(Column(name, Text) for name in ("job", "was", "became"))
)


def watch_moves(engine: Engine) -> None:
    """Have the database itself write down each move of a job, in the table `moves_seen`."""
    begin = "INSERT INTO moves_seen VALUES (NEW.id, OLD.state, NEW.state);"
    trigger = "CREATE TRIGGER see_moves AFTER UPDATE ON jobs"
    statements = [f"{trigger} WHEN OLD.state <> NEW.state BEGIN {begin} END"]
    if engine.dialect.name == "postgresql":
        body = f"BEGIN {begin} RETURN NEW; END"
        statements = [
            f"CREATE FUNCTION see_move() RETURNS trigger AS $${body}$$ LANGUAGE plpgsql",
            f"{trigger} FOR EACH ROW WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION see_move()",
        ]
    with writing(engine) as connection:
        moves_seen.create(connection)
        for each in statements:
            connection.execute(text(each))


@cache
def ct(study: str, series: str, number: int, patient: str, brightness: int) -> bytes:
    """Return a slice as a file."""
    image = ct_slice(number, study, series, patient, brightness)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = BytesIO()
    image.save_as(out, enforce_file_format=True)
    return out.getvalue()


def sha256(octets: bytes) -> str:
    return hashlib.sha256(octets).hexdigest()


def chosen_of(study: Study, rows: Iterable[Instance]) -> list[Instance]:
    """Return the images of the series that the model gets: of those of the patient, the longest."""
    of_series: dict[str, list[Instance]] = {}
    for each in rows:
        of_series.setdefault(each.series_instance_uid, []).append(each)
    theirs = [
        each
        for each in of_series.values()
        if all(row.attributes["PatientID"] == study.patient_key for row in each)
    ]
    return min(theirs, key=lambda each: (-len(each), each[0].series_instance_uid), default=[])
