"""DCMTK sends a study to the running service, and DCMTK receives its SEG and SR."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import UID
from sqlalchemy import create_engine, make_url

sys.path.insert(0, str(Path(__file__).parent.parent / "service"))  # for `bodies`
from bodies import write_package, write_study

from dicomai.settings import load
from dicomai.store import events, jobs
from dicomai.store.engine import open_engine, reading
from dicomai.store.migrate import upgrade

CONFIG = """
[database]
url = "{url}"

[service]
data = "data"

[receiver]
port = {port}
host = "127.0.0.1"
reserve_bytes = 0

[worker]
device = "cpu"
lease_s = 20.0
stop_s = 10.0

[retention]
reserve_bytes = 0

[log]
format = "json"

[[nodes]]
name = "CT1"
ae_title = "STORESCU"
quiet_s = 1.0
may = ["echo", "store", "query"]

[[nodes]]
name = "PACS1"
ae_title = "STORESCP"
host = "127.0.0.1"
port = {pacs}

[[routes]]
name = "bodies"
model = "bodies"
when = ["Modality = CT"]
destinations = {destinations}
"""

ORTHANC_AND_QUERIES = """
[[nodes]]
name = "PACS2"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
answers_find = true

[query]
port = {query}
"""

SERVE = """
import sys
from pathlib import Path
from dicomai.roles.serve import serve
from dicomai.settings import load
if __name__ == "__main__":
    sys.exit(serve(load(Path(sys.argv[1]), {})))
"""
SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"


class Service:
    """`serve` in a process of its own."""

    def __init__(self, folder: Path, port: int, pacs: int, url: str, also: str = "") -> None:
        self.config = folder / "dicomai.toml"
        destinations = '["PACS1", "PACS2"]' if also else '["PACS1"]'
        said = CONFIG.format(port=port, pacs=pacs, url=url, destinations=destinations)
        self.config.write_text(said + also)
        self.data = folder / "data"
        for name in ("spool", "archive", "quarantine", "models"):
            (self.data / name).mkdir(parents=True)
        write_package(self.data / "models")
        self.port = port
        self.engine = open_engine(load(self.config, {}).database.url)
        upgrade(self.engine)
        self._script = folder / "serve.py"
        self._script.write_text(SERVE)
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(folder / "notify"))
        self._ear.settimeout(60)
        self._notify = str(folder / "notify")
        self.log = folder / "log"

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(self._script), str(self.config)],
                env=os.environ | {"NOTIFY_SOCKET": self._notify},
                stderr=log,
            )
        assert self._ear.recv(100) == b"READY=1", self.log.read_text()
        return process

    def close(self) -> None:
        self._ear.close()
        self.engine.dispose()

    def send(self, storescu: str, folder: Path) -> None:
        command = [storescu, "-aec", "DICOMAI", "127.0.0.1", str(self.port), "+sd", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    def finished(self, count: int) -> bool:
        """So many jobs are over, and none is on its way."""
        with reading(self.engine) as connection:
            found = jobs.listing(connection, 100)
        over = [each for each in found if each.state in ("done", "failed", "cancelled", "held")]
        return len(over) >= count and len(over) == len(found)

    def story(self, study: str) -> str:
        with reading(self.engine) as connection:
            found = events.story(connection, study)
        return "\n".join(each.sentence for each in found)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind; for SQLite the one in the data folder."""
    if request.param == "sqlite":
        return ""
    cluster = make_url(request.getfixturevalue("postgresql_cluster"))
    name = f"end_to_end_{uuid.uuid4().hex}"
    maintenance = create_engine(cluster, isolation_level="AUTOCOMMIT")
    with maintenance.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    maintenance.dispose()
    return cluster.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def service(tmp_path: Path, storescp: object, database_url: str) -> Iterator[Service]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    opened = Service(tmp_path, port, storescp.port, database_url)
    yield opened
    opened.close()


def eventually(condition: Callable[[], object], service: Service, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, service.log.read_text()[-6000:]
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def tree_of(pid: int) -> set[int]:
    """The process and all that descend from it."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(folder.name)] = int(stat[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def runs(pid: int) -> bool:
    """It is there, and not only waits to be buried."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_study_goes_in_and_seg_and_sr_come_back_once(
    service: Service, storescp: object, peer: Callable[[str], str], tmp_path: Path
) -> None:
    storescu = peer("storescu")
    files = write_study(tmp_path / "study", "P1")
    study = pydicom.dcmread(files[0]).StudyInstanceUID
    received = storescp.files
    process = service.start()
    try:
        service.send(storescu, tmp_path / "study")
        eventually(lambda: len(received()) == 2 and service.finished(2), service)
        back = [pydicom.dcmread(path) for path in received()]
        assert {each.SOPClassUID for each in back} == {SEG, SR}
        assert {(each.PatientID, each.StudyInstanceUID) for each in back} == {("P1", study)}

        # The same study again: nothing more comes, now or until the end.
        service.send(storescu, tmp_path / "study")
        eventually(lambda: not any((service.data / "spool").glob("*/*.dcm")), service)
        assert service.finished(2)
        assert len(received()) == 2

        # A second patient, and every process but the parent is killed in between.
        write_study(tmp_path / "other", "P2")
        service.send(storescu, tmp_path / "other")
        for pid in tree_of(process.pid) - {process.pid}:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(received()) == 4 and service.finished(4), service, 90)
        by_patient: dict[str, set[str]] = {}
        for path in received():
            each = pydicom.dcmread(path)
            by_patient.setdefault(each.PatientID, set()).add(each.SOPClassUID)
        assert by_patient == {"P1": {SEG, SR}, "P2": {SEG, SR}}
        children = tree_of(process.pid)
    finally:
        stop(process)
    eventually(lambda: not any(runs(pid) for pid in children), service)
    assert "Route bodies (live) matches" in service.story(study)
    assert not re.search(r"\bP[12]\b|Patient\^|19600101", service.log.read_text())


def _renamed(files: list[Path], study: str, zeros: str) -> None:
    """Give a study UIDs of the same numbers, with or without zeros before them."""
    for number, file in enumerate(files, start=1):
        image = pydicom.dcmread(file)
        image.StudyInstanceUID = study
        image.SeriesInstanceUID = f"{study}.{zeros}2"
        image.FrameOfReferenceUID = f"{study}.{zeros}9"
        image.SOPInstanceUID = f"{study}.{zeros}2.{zeros}{number}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(file)


def _named_by(result: pydicom.Dataset) -> set[str]:
    """Return all objects that a result refers to."""
    return {str(each.value) for each in result.iterall() if each.tag == 0x00081155}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_uids_with_leading_zeros_go_all_the_way_and_are_other_ones_than_without(
    tmp_path: Path,
    storescp: object,
    orthanc: object,
    peer: Callable[[str], str],
    free_ports: Callable[[int], list[int]],
) -> None:
    port, query = free_ports(2)
    also = ORTHANC_AND_QUERIES.format(port=orthanc.port, query=query)
    service = Service(tmp_path, port, storescp.port, "", also)
    odd, plain = "1.2.840.0123.5", "1.2.840.123.5"
    _renamed(write_study(tmp_path / "odd", "P1"), odd, "0")
    _renamed(write_study(tmp_path / "plain", "P2"), plain, "")
    process = service.start()
    try:
        for folder in ("odd", "plain"):
            pacs = [peer("storescu"), "127.0.0.1", str(orthanc.port), "+sd", tmp_path / folder]
            subprocess.run(pacs, check=True, capture_output=True)
            service.send(peer("storescu"), tmp_path / folder)
        eventually(lambda: len(storescp.files()) == 4 and service.finished(6), service)
        for files in (storescp.files(), orthanc.files()):
            read = [pydicom.dcmread(file) for file in files]
            for study, patient, zeros in ((odd, "P1", "0"), (plain, "P2", "")):
                here = [each for each in read if each.StudyInstanceUID == study]
                assert {each.PatientID for each in here} == {patient}
                (seg,) = (each for each in here if each.SOPClassUID == SEG)
                (sr,) = (each for each in here if each.SOPClassUID == SR)
                assert seg.FrameOfReferenceUID == f"{study}.{zeros}9"
                images = {f"{study}.{zeros}2.{zeros}{number}" for number in range(1, 7)}
                assert _named_by(seg) <= images
                assert _named_by(sr) - {seg.SOPInstanceUID} <= images
                assert {UID(each.SOPInstanceUID).is_valid for each in (seg, sr)} == {True}

        # What we answer, asked by DCMTK: all of the one study, and nothing of the other.
        got = tmp_path / "got"
        got.mkdir()
        asked = ["-aec", "DICOMAI", "-aet", "STORESCU", "127.0.0.1", str(query)]
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={odd}"]
        subprocess.run([peer("getscu"), "-S", "+B", "-od", str(got), *asked, *keys], check=True)
        found = [pydicom.dcmread(file) for file in got.iterdir()]
        assert len(found) == 8
        assert {each.StudyInstanceUID for each in found} == {odd}
    finally:
        stop(process)
        service.close()
    assert "kept as received: A UID has a number that begins with 0" in service.story(odd)
    assert "begins with 0" not in service.story(plain)

    # A catalogue that is lost is made again of the files.
    (service.data / "dicomai.db").unlink()
    ours = [sys.executable, "-m", "dicomai", "-c", str(service.config)]
    for command in (["db", "upgrade"], ["archive", "rescan", "--node", "CT1"]):
        subprocess.run([*ours, *command], check=True, capture_output=True)
    listed = subprocess.run([*ours, "studies", "--json"], check=True, capture_output=True)
    assert {each["study"]: each["instances"] for each in json.loads(listed.stdout)} == {
        odd: 8,
        plain: 8,
    }
