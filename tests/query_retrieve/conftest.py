"""Two archives that no one here wrote, with the same studies in each."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from dicomai.dicom.dates import now
from dicomai.errors import TransientError
from dicomai.net.node import Node
from dicomai.net.query_server import QueryConfig, answer
from dicomai.net.receiver import ReceiverConfig, TlsPort, receive
from dicomai.net.tls import TlsFiles
from dicomai.roles.query import CatalogueArchive
from dicomai.roles.schedule import ingest_of
from dicomai.service.attempt import Worker
from dicomai.service.ingest import ingest
from dicomai.settings import Settings, load
from dicomai.spool import entries, reader
from dicomai.store import jobs, schema
from dicomai.store.engine import open_engine, reading, writing
from dicomai.store.job import Job, JobId
from dicomai.store.migrate import upgrade
from tests.conftest import Authority

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
ROOT = "1.2.826.0.1.3680043.10.543"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One of the studies that every archive here has."""

    uid: str
    patient_id: str
    name: str
    charset: str | Sequence[str]
    accession: str
    date: str
    modality: str
    images: tuple[int, ...]
    """In each of its series."""

    def series_uid(self, series: int) -> str:
        return f"{self.uid}.{series}"

    def sop_uid(self, series: int, image: int) -> str:
        return f"{self.uid}.{series}.{image}"


MUELLER = Made(
    uid=f"{ROOT}.1",
    patient_id="P1",
    name="Müller^Jürgen",
    charset="ISO_IR 100",
    accession="A1",
    date="20260301",
    modality="CT",
    images=(3, 2),
)
YAMADA = Made(
    uid=f"{ROOT}.2",
    patient_id="P2",
    name="Yamada^Tarou=山田^太郎=やまだ^たろう",
    charset=["", "ISO 2022 IR 87"],
    accession="A2",
    date="20260410",
    modality="MR",
    images=(1,),
)
DOE = Made(
    uid=f"{ROOT}.3",
    patient_id="P3",
    name="Doe^Jane",
    charset="ISO_IR 100",
    accession="A3",
    date="20260520",
    modality="CT",
    images=(4,),
)
STUDIES = (MUELLER, YAMADA, DOE)


def data_sets(study: Made) -> Iterator[Dataset]:
    """Give the images of a study."""
    for series, count in enumerate(study.images, 1):
        for image in range(1, count + 1):
            yield _image(study, series, image)


def _image(study: Made, series: int, image: int) -> Dataset:
    one = Dataset()
    one.SpecificCharacterSet = study.charset
    one.SOPClassUID = UID(CT if study.modality == "CT" else MR)
    one.SOPInstanceUID = UID(study.sop_uid(series, image))
    one.StudyInstanceUID = UID(study.uid)
    one.SeriesInstanceUID = UID(study.series_uid(series))
    one.StudyDate = study.date
    one.StudyTime = "101500"
    one.AccessionNumber = study.accession
    one.Modality = study.modality
    one.PatientName = study.name
    one.PatientID = study.patient_id
    one.PatientBirthDate = "19600102"
    one.PatientSex = "O"
    one.StudyID = study.accession
    one.StudyDescription = f"Study of {study.modality}"
    one.SeriesDescription = f"Series {series}"
    one.SeriesNumber = series
    one.InstanceNumber = image
    one.ImagePositionPatient = [0, 0, 5 * image]
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.PixelSpacing = [1, 1]
    one.Rows = one.Columns = 4
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit = 15
    one.PixelRepresentation = 0
    one.SamplesPerPixel = 1
    one.PhotometricInterpretation = "MONOCHROME2"
    one.PixelData = bytes([series, image]) * 16
    return one


def write(data_set: Dataset, path: Path) -> Path:
    """Write a data set as a file."""
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    data_set.file_meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    dcmwrite(path, data_set, enforce_file_format=True)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacs:
    """An archive that runs."""

    name: str
    ae_title: str
    port: int
    http_port: int = 0

    def node(self, **others: object) -> Node:
        """As the configuration names it."""
        return Node(
            name="PACS1",
            ae_title=self.ae_title,
            host="127.0.0.1",
            port=self.port,
            **others,
        )


def _ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    pytest.fail(f"nothing listens on {port}")


@pytest.fixture(scope="session")
def our_port() -> int:
    """Where the archives believe that we receive."""
    return _ports(1)[0]


@pytest.fixture(scope="session")
def our_tls_port() -> int:
    """Where we receive over TLS, where a test says so."""
    return _ports(1)[0]


@pytest.fixture(scope="session")
def our_query_port() -> int:
    """Where our archive answers."""
    return _ports(1)[0]


@pytest.fixture(scope="session")
def study_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all studies."""
    folder = tmp_path_factory.mktemp("studies")
    for study in STUDIES:
        (folder / study.accession).mkdir()
        for each in data_sets(study):
            write(each, folder / study.accession / f"{each.SOPInstanceUID}.dcm")
    return folder


def _load(peer: Callable[[str], str], pacs: Pacs, folder: Path, *options: str) -> Pacs:
    called = ("-aec", pacs.ae_title, "127.0.0.1", str(pacs.port))
    subprocess.run(
        [peer("storescu"), "+sd", "+r", *options, *called, folder],
        check=True,
        capture_output=True,
    )
    return pacs


@contextmanager
def _orthanc(program: str, folder: Path, **others: object) -> Iterator[Pacs]:
    dicom_port, http_port = _ports(2)
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "DefaultEncoding": "Utf8",
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "Plugins": [],
        **others,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    command = [program, str(folder / "orthanc.json")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(dicom_port, process)
            yield Pacs(name="orthanc", ae_title="ORTHANC", port=dicom_port, http_port=http_port)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def full_orthanc(
    peer: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    our_port: int,
    study_files: Path,
) -> Iterator[Pacs]:
    """Orthanc with the studies."""
    folder = tmp_path_factory.mktemp("orthanc")
    modalities = {"dicomai": ["DICOMAI", "127.0.0.1", our_port]}
    with _orthanc(peer("Orthanc"), folder, DicomModalities=modalities) as pacs:
        yield _load(peer, pacs, study_files)


@pytest.fixture(scope="session")
def orthanc_that_limits(
    peer: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    our_port: int,
    study_files: Path,
) -> Iterator[Pacs]:
    """Orthanc with the studies, which tells two things in one answer and no more."""
    folder = tmp_path_factory.mktemp("orthanc-limits")
    with _orthanc(
        peer("Orthanc"),
        folder,
        LimitFindResults=2,
        LimitFindInstances=2,
        DicomModalities={"dicomai": ["DICOMAI", "127.0.0.1", our_port]},
    ) as pacs:
        yield _load(peer, pacs, study_files)


@pytest.fixture(scope="session")
def tls_files(authority: Authority) -> TlsFiles:
    """Our certificate, and who vouches for those of others."""
    certificate, key = authority.issue("dicomai-query")
    return TlsFiles(certificate=certificate, key=key, authorities=authority.certificate)


@pytest.fixture(scope="session")
def orthanc_over_tls(
    peer: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
    our_tls_port: int,
    our_query_port: int,
    study_files: Path,
) -> Iterator[Pacs]:
    """Orthanc with the studies, which speaks TLS in both directions and wants a certificate."""
    certificate, key = authority.issue("orthanc")
    there = {"Host": "127.0.0.1", "UseDicomTls": True}
    with _orthanc(
        peer("Orthanc"),
        tmp_path_factory.mktemp("orthanc-tls"),
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(certificate),
        DicomTlsPrivateKey=str(key),
        DicomTlsTrustedCertificates=str(authority.certificate),
        DicomModalities={
            "dicomai": {"AET": "DICOMAI", "Port": our_tls_port, **there},
            "archive": {"AET": "ARCHIVE", "Port": our_query_port, **there},
        },
    ) as pacs:
        shown = ("+tls", str(key), str(certificate), "+cf", str(authority.certificate))
        yield _load(peer, pacs, study_files, *shown)


@pytest.fixture(scope="session")
def full_dcmqrscp(
    peer: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    our_port: int,
    study_files: Path,
) -> Iterator[Pacs]:
    """DCMTK's dcmqrscp with the studies."""
    folder = tmp_path_factory.mktemp("dcmqrscp")
    (port,) = _ports(1)
    store = folder / "store"
    store.mkdir()
    settings = folder / "dcmqrscp.cfg"
    settings.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\ndicomai = (DICOMAI, 127.0.0.1, {our_port})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nDCMQRSCP {store} RW (100, 1024mb) ANY\nAETable END\n"
    )
    command = [peer("dcmqrscp"), "-c", str(settings)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            pacs = Pacs(name="dcmqrscp", ae_title="DCMQRSCP", port=port)
            yield _load(peer, pacs, study_files)
        finally:
            process.kill()


@pytest.fixture(params=["orthanc", "dcmqrscp"])
def pacs(request: pytest.FixtureRequest) -> Pacs:
    """Each of the two archives."""
    found: Pacs = request.getfixturevalue(f"full_{request.param}")
    return found


@pytest.fixture
def mueller() -> Made:
    """A CT of two series, under a name that ASCII lacks."""
    return MUELLER


@pytest.fixture
def yamada() -> Made:
    """An MR under a name in three scripts."""
    return YAMADA


@pytest.fixture
def doe() -> Made:
    """A CT of one series."""
    return DOE


@pytest.fixture(scope="session")
def _empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("catalogue") / "dicomai.db"
    engine = open_engine(f"sqlite:///{file}")
    upgrade(engine)
    engine.dispose()
    return file


@pytest.fixture(scope="session")
def _postgresql(postgresql_cluster: str) -> Iterator[Engine]:
    with psycopg.connect(
        postgresql_cluster.replace("+psycopg", ""), autocommit=True
    ) as maintenance:
        maintenance.execute("CREATE DATABASE query_retrieve")
    url = make_url(postgresql_cluster).set(database="query_retrieve")
    engine = open_engine(url.render_as_string(hide_password=False))
    upgrade(engine)
    yield engine
    engine.dispose()


def _data_folder(folder: Path) -> Path:
    data = folder / "data"
    for name in ("spool", "archive", "quarantine", "models"):
        (data / name).mkdir(parents=True)
    return data


@pytest.fixture
def sqlite_engine(_empty_sqlite: Path, tmp_path: Path) -> Iterator[Engine]:
    """An empty catalogue in SQLite, in the data folder of this test."""
    file = _data_folder(tmp_path) / "dicomai.db"
    shutil.copy(_empty_sqlite, file)
    engine = open_engine(f"sqlite:///{file}")
    yield engine
    engine.dispose()


@pytest.fixture
def postgresql_engine(_postgresql: Engine, tmp_path: Path) -> Engine:
    """An empty catalogue in PostgreSQL, and a data folder."""
    _data_folder(tmp_path)
    with writing(_postgresql) as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
    return _postgresql


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An empty catalogue in each of the databases."""
    found: Engine = request.getfixturevalue(f"{request.param}_engine")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Our side: receiver, ingest and catalogue."""

    settings: Settings
    engine: Engine

    def worker(self, stop: threading.Event | None = None) -> Worker:
        """A worker for one attempt at a time."""
        return Worker(
            name="tests",
            engine=self.engine,
            lease_s=10.0,
            deadline_s=60.0,
            clock=now,
            stop=stop or threading.Event(),
            pulse=lambda: None,
            observe=lambda _stage, _job: None,
        )

    def ingest(self) -> None:
        """Take over what is in the spool."""
        ingest(self.engine, ingest_of(self.settings), now)

    def put(self, *paths: Path, node: str = "CT1") -> None:
        """Have objects come from a node; return when they are in the catalogue."""
        spool = self.settings.folders.spool
        writer = entries.opened(
            spool,
            calling_ae="CT1",
            called_ae="DICOMAI",
            address="127.0.0.1",
            node=node,
            started_at=now(),
        )
        for path in paths:
            writer.add(dcmread(path).StudyInstanceUID, [path.read_bytes()])
        writer.end("released", now())
        deadline = time.monotonic() + 20
        while reader.waits(spool):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def job(self, job: JobId) -> Job:
        """Return a job as it is now."""
        with reading(self.engine) as connection:
            return jobs.existing(connection, job)


def _serve_loop(site: Site, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(TransientError):  # as a scheduler waits for what is away
            site.ingest()
        stop.wait(0.05)


def _tls_table(port: int, files: TlsFiles) -> str:
    return (
        f'[tls]\nport = {port}\ncertificate = "{files.certificate}"\nkey = "{files.key}"\n'
        f'authorities = "{files.authorities}"\n'
    )


@pytest.fixture
def site(
    engine: Engine, tmp_path: Path, our_port: int, our_tls_port: int
) -> Iterator[Callable[..., Site]]:
    """Start our side, with some nodes; it receives, and takes in what came."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(
        *nodes: Node,
        ae_title: str = "DICOMAI",
        tls: TlsFiles | None = None,
        receives: bool = True,
    ) -> Site:
        file = tmp_path / "dicomai.toml"
        file.write_text(
            f'[service]\ndata = "data"\n[receiver]\nport = {our_port}\nae_title = "{ae_title}"\n'
            + (_tls_table(our_tls_port, tls) if tls else "")
        )
        url = engine.url.render_as_string(hide_password=False)
        settings = replace(load(file, {"DICOMAI_DATABASE__URL": url}), nodes=nodes)
        made = Site(settings=settings, engine=engine)
        if not receives:
            return made
        ready = threading.Event()
        config = ReceiverConfig(
            ae_title=ae_title,
            host="127.0.0.1",
            port=our_port,
            nodes=nodes,
            spool=settings.folders.spool,
            reserve_bytes=0,
            max_associations=10,
            tls=TlsPort(port=our_tls_port, files=tls) if tls else None,
        )
        threads.append(threading.Thread(target=receive, args=(config, ready.set, stop)))
        threads.append(threading.Thread(target=_serve_loop, args=(made, stop)))
        for thread in threads:
            thread.start()
        assert ready.wait(20)
        return made

    yield start
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def made() -> Callable[[Made], list[Dataset]]:
    """Make the images of a study."""

    def images(study: Made) -> list[Dataset]:
        found = list(data_sets(study))
        for each in found:
            each.file_meta = FileMetaDataset()
            each.file_meta.TransferSyntaxUID = UID(EXPLICIT)
        return found

    return images


@pytest.fixture
def filled(
    site: Callable[..., Site], study_files: Path, our_query_port: int
) -> Iterator[Callable[..., Site]]:
    """Our archive with the studies, and a port at which it answers, over TLS if files are given."""
    stop = threading.Event()
    threads = []

    def start(*nodes: Node, ae_title: str = "DICOMAI", tls: TlsFiles | None = None) -> Site:
        client = Node(name="CLIENT", ae_title="CLIENT", may=("echo", "query"))
        here = site(client, *nodes, tls=tls)
        here.put(*sorted(study_files.rglob("*.dcm")))
        ready = threading.Event()
        config = QueryConfig(
            ae_title=ae_title,
            host="127.0.0.1",
            port=our_query_port,
            nodes=here.settings.nodes,
            max_associations=3,
            tls=tls,
        )
        archive = CatalogueArchive(settings=here.settings, engine=here.engine)
        threads.append(threading.Thread(target=answer, args=(config, archive, ready.set, stop)))
        threads[-1].start()
        assert ready.wait(20)
        return here

    yield start
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
