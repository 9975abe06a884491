"""A small hospital: CTs, a spool, a database, a clock."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import sqlalchemy
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.net.node import Node
from dicomai.routing.condition import parse
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs, parse_input
from dicomai.service.decide import Outcome, Rules, decide_study
from dicomai.service.ingest import ingest
from dicomai.service.spool_pass import AfterStep, Ingest, Ingested
from dicomai.settings import Folders
from dicomai.spool.entries import Writer, opened
from dicomai.store import events, instances, jobs, schema, studies
from dicomai.store.engine import open_engine, reading, writing
from dicomai.store.instances import Instance
from dicomai.store.job import Job
from dicomai.store.studies import Study

MakeCT = Callable[..., Dataset]


def ct(
    *, study: str = "1.2.3", series: str = "1.2.3.1", number: int = 1, **attributes: object
) -> Dataset:
    """Return a 16 by 16 CT at 2.5 mm times its number; keywords replace or (None) remove."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"{series}.{number}"
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series
    dataset.PatientID = "P1"
    dataset.PatientName = "DOE^JANE"
    dataset.PatientBirthDate = "19600131"
    dataset.PatientSex = "F"
    dataset.StudyDate = "20261120"
    dataset.AccessionNumber = "A1"
    dataset.Modality = "CT"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = number
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.BodyPartExamined = "CHEST"
    dataset.SliceThickness = 2.5
    dataset.ConvolutionKernel = "B30f"
    dataset.FrameOfReferenceUID = f"{study}.9"
    dataset.ImagePositionPatient = [-100.0, -100.0, 2.5 * number]
    dataset.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    dataset.PixelSpacing = [0.7, 0.7]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024.0, 1.0
    pixels = (np.arange(256, dtype="<i2") + 256 * number) % 3000
    dataset.PixelData = pixels.tobytes()
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def written(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a data set as Part 10; RLE and deflated too."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2")
    dataset.file_meta.TransferSyntaxUID = syntax
    implicit = syntax == ImplicitVRLittleEndian
    if syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, "1.2.840.10008.1.2.1.99"):
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
    return path


@pytest.fixture
def make_ct() -> MakeCT:
    """The function `ct` of this file."""
    return ct


@pytest.fixture
def write() -> Callable[..., Path]:
    """The function `written` of this file."""
    return written


@dataclass(kw_only=True)
class Hospital:
    """A spool, a database and a clock, with what a receiver, ingest and decide do to them."""

    engine: Engine
    config: Ingest
    rules: Rules
    folder: Path
    clock: Instant

    def send(
        self,
        *objects: Dataset | Path,
        node: str = "CT1",
        syntax: str = ExplicitVRLittleEndian,
        ends: Literal["released", "aborted"] | None = "released",
    ) -> Writer:
        """Put objects into the spool as the receiver does, through one association."""
        writer = opened(
            self.config.spool,
            calling_ae=node,
            called_ae="DICOMAI",
            address="192.0.2.1",
            node=node,
            started_at=self.clock,
        )
        for each in objects:
            self.add(writer, each, syntax)
        if ends:
            writer.end(ends, self.clock)
        return writer

    def add(
        self, writer: Writer, each: Dataset | Path, syntax: str = ExplicitVRLittleEndian
    ) -> None:
        """Put one object into the spool, received now by our clock."""
        path = each if isinstance(each, Path) else written(each, self.folder / "sent.dcm", syntax)
        entry = writer.add(StudyInstanceUID("1.2.3"), [path.read_bytes()])
        # The receiver stamps with the real time; the test has its own.
        entry.path.rename(entry.path.with_name(f"{entry.counter:06d}-{self.clock:016d}.dcm"))

    @property
    def folders(self) -> Folders:
        """Where all that is kept lies."""
        data = self.config.data
        return Folders(
            data=data,
            spool=self.config.spool,
            archive=data / "archive",
            quarantine=self.config.quarantine,
            models=data / "models",
        )

    def later(self, second: float) -> None:
        """Let time pass."""
        self.clock = Instant(self.clock + seconds(second))

    def ingest(self, after_step: AfterStep = lambda _: None) -> Ingested:
        """Take over what is in the spool."""
        return ingest(self.engine, self.config, lambda: self.clock, after_step)

    def ingest_in_a_child(self, after_step: AfterStep = lambda _: None) -> int:
        """Ingest in a process of its own; return its exit code, negative for a signal."""
        return self.in_a_child(lambda: self.ingest(after_step))

    def in_a_child(self, work: Callable[[], object]) -> int:
        """Do something in a process of its own; return its exit code, negative for a signal."""
        self.engine.dispose()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def ingest_until_killed(self, number: int) -> bool:
        """Ingest in a process that is killed after so many steps; False: it had fewer."""
        taken = 0

        def kill(_step: str) -> None:
            nonlocal taken
            taken += 1
            if taken == number:
                os.kill(os.getpid(), signal.SIGKILL)

        return self.ingest_in_a_child(kill) == -signal.SIGKILL

    def decide(self, uid: str = "1.2.3") -> Outcome:
        """Decide on a study."""
        return decide_study(self.engine, StudyInstanceUID(uid), self.rules, self.clock)

    def ingest_and_decide(self, wait: float = 61, uid: str = "1.2.3") -> Outcome:
        """Ingest, be quiet for so many seconds, publish that, and decide."""
        self.ingest()
        self.later(wait)
        self.ingest()
        return self.decide(uid)

    def study(self, uid: str = "1.2.3") -> Study:
        """The study's row."""
        with reading(self.engine) as connection:
            found = studies.get(connection, StudyInstanceUID(uid))
        assert found is not None
        return found

    def story(self, kind: str = "", uid: str | None = "1.2.3") -> list[str]:
        """The sentences of a study's events, of one kind or all."""
        with reading(self.engine) as connection:
            found = events.story(connection, StudyInstanceUID(uid or ""))
        return [each.sentence for each in found if kind in ("", each.kind)]

    def jobs(self, uid: str = "1.2.3") -> list[Job]:
        """The study's analyses, oldest first."""
        with reading(self.engine) as connection:
            found = jobs.of_study(connection, StudyInstanceUID(uid))
        return sorted((each for each in found if each.kind == "analyse"), key=lambda job: job.id)

    def rows(self, uid: str = "1.2.3") -> list[Instance]:
        """The newest version of each object of a study."""
        with reading(self.engine) as connection:
            return list(instances.of_study(connection, StudyInstanceUID(uid)))


NODES = {
    "CT1": Node(name="CT1", ae_title="CT1"),
    "CT2": Node(name="CT2", ae_title="CT2", association_per_study=True),
    "ARCHIVE": Node(
        name="ARCHIVE", ae_title="ARCHIVE", quiet_s=300, issuer_of_patient_id="HOSPITAL"
    ),
}
MODELS = {
    "lungs": ModelInputs(
        package_sha256="a" * 64,
        inputs=(parse_input("ct", "volume", ["Modality = CT"], ["SliceThickness"]),),
    ),
    "nodules": ModelInputs(
        package_sha256="b" * 64, inputs=(parse_input("ct", "volume", ["Modality = CT"], []),)
    ),
}
LUNGS = Route(
    name="lungs", model="lungs", when=(parse("BodyPartExamined = CHEST"),), destinations=("PACS1",)
)


def _hospital(engine: Engine, folder: Path) -> Hospital:
    for name in ("data", "data/spool", "data/archive", "data/quarantine"):
        (folder / name).mkdir()
    return Hospital(
        engine=engine,
        folder=folder,
        clock=Instant(1_795_000_000_000_000),
        config=Ingest(
            data=folder / "data",
            spool=folder / "data" / "spool",
            quarantine=folder / "data" / "quarantine",
            host="here",
            nodes=NODES,
            placeholder_ids=("0",),
        ),
        rules=Rules(
            routes=(LUNGS,),
            models=MODELS,
            patience=seconds(900),
            ageing=seconds(600),
            zone=ZoneInfo("UTC"),
        ),
    )


@pytest.fixture
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs cost most of these tests' time; that they happen is held by the tests of the spool."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


# One engine of each kind for all tests: each new one would compile every statement again.


@pytest.fixture(scope="session")
def _sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Path]]:
    """An engine, and the catalogue without a row that its file is replaced with."""
    folder = tmp_path_factory.mktemp("catalogue")
    (folder / "dicomai.db").touch()
    engine = open_engine(f"sqlite:///{folder / 'dicomai.db'}")
    schema.metadata.create_all(engine)
    engine.dispose()
    yield engine, shutil.copy(folder / "dicomai.db", folder / "empty.db")
    engine.dispose()


@pytest.fixture(scope="session")
def _postgresql(postgresql_cluster: str) -> Iterator[Engine]:
    maintenance = sqlalchemy.make_url(postgresql_cluster)
    server = sqlalchemy.create_engine(maintenance, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE ingest"))
    server.dispose()
    engine = open_engine(maintenance.set(database="ingest").render_as_string(hide_password=False))
    schema.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def _empty_sqlite(_sqlite: tuple[Engine, Path]) -> Engine:
    engine, empty = _sqlite
    engine.dispose()
    file = Path(str(engine.url.database))
    for left in file.parent.glob(f"{file.name}-*"):
        left.unlink()
    shutil.copy(empty, file)  # into the same file: an engine takes no other
    return engine


@pytest.fixture
def hospital(_no_sync: None, _empty_sqlite: Engine, tmp_path: Path) -> Hospital:
    """A hospital on SQLite."""
    return _hospital(_empty_sqlite, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def any_hospital(_no_sync: None, request: pytest.FixtureRequest, tmp_path: Path) -> Hospital:
    """A hospital on each database."""
    if request.param == "sqlite":
        return _hospital(request.getfixturevalue("_empty_sqlite"), tmp_path)
    engine: Engine = request.getfixturevalue("_postgresql")
    with writing(engine) as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
    return _hospital(engine, tmp_path)
