"""The main job on a real chest CT: storescu sends it, SEG and SR arrive, others read them.

One service sends to DCMTK's storescp and to Orthanc at once, so that the models run once.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from sqlalchemy import Engine

from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import events, jobs, studies
from dicomai.store.engine import open_engine, reading

STUDY = StudyInstanceUID("1.3.6.1.4.1.14519.5.2.1.6279.6001.298806137288633453246975630178")
PATIENT = "LIDC-IDRI-0001"

CONFIGURATION = """
[service]
data = "."
timezone = "America/New_York"

[receiver]
ae_title = "DICOMAI"
host = "127.0.0.1"
port = {port}
reserve_bytes = 1000000

[worker]
device = "cpu"

[[nodes]]
name = "CT1"
ae_title = "STORESCU"
quiet_s = 1.0

[[nodes]]
name = "PACS1"
ae_title = "STORESCP"
host = "127.0.0.1"
port = {storescp}

[[nodes]]
name = "PACS2"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {orthanc}

[[routes]]
name = "lungs of every chest CT"
model = "chest-ct-lungs"
when = ["Modality = CT", "instances >= 20"]
destinations = ["PACS1", "PACS2"]

[[routes]]
name = "nodules of every chest CT"
model = "chest-ct-nodules"
when = ["Modality = CT", "instances >= 20"]
destinations = ["PACS1", "PACS2"]
"""


class StorePeer(Protocol):
    ae_title: str
    port: int
    files: Callable[[], list[Path]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running `dicomai serve`."""

    folder: Path
    engine: Engine

    def states(self) -> list[tuple[int, str, str]]:
        """Number, kind and state of every job."""
        with reading(self.engine) as connection:
            return [(job.id, job.kind, job.state) for job in jobs.listing(connection, 100)]

    def story(self) -> str:
        """What happened to the study."""
        with reading(self.engine) as connection:
            return " ".join(event.sentence for event in events.story(connection, STUDY))

    def status(self) -> str:
        """Where the study stands."""
        with reading(self.engine) as connection:
            found = studies.get(connection, STUDY)
        return "" if found is None else found.status

    def ask(self, *words: str) -> Any:
        """Run a command of the command line with --json, and read its answer."""
        done = subprocess.run(
            [sys.executable, "-m", "dicomai", *words, "--json",
             "--config", str(self.folder / "dicomai.toml")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextmanager
def serving(
    folder: Path, port: int, storescp: StorePeer, orthanc: StorePeer, peer: Callable[[str], str]
) -> Iterator[Service]:
    dicomai = [sys.executable, "-m", "dicomai"]
    subprocess.run([*dicomai, "init", str(folder)], check=True, timeout=60, capture_output=True)
    config = folder / "dicomai.toml"
    config.write_text(CONFIGURATION.format(port=port, storescp=storescp.port, orthanc=orthanc.port))
    engine = open_engine(f"sqlite:///{folder / 'dicomai.db'}")
    echo = [peer("echoscu"), "-aec", "DICOMAI", "-aet", "STORESCU", "127.0.0.1", str(port)]
    with (
        (folder / "serve.log").open("wb") as log,
        subprocess.Popen(
            [*dicomai, "serve", "--config", str(config)], stdout=log, stderr=log
        ) as process,
    ):
        try:
            until(
                lambda: (
                    process.poll() is not None
                    or subprocess.run(echo, capture_output=True, check=False).returncode == 0
                ),
                "C-ECHO is answered",
            )
            assert process.poll() is None, (folder / "serve.log").read_text()
            yield Service(folder=folder, engine=engine)
        finally:
            engine.dispose()
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def until(condition: Callable[[], bool], what: str, seconds: float = 170) -> None:
    """Return when the condition holds, fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.1)


def send(lidc: Path, port: int, peer: Callable[[str], str]) -> None:
    subprocess.run(
        [peer("storescu"), "+sd", "-aec", "DICOMAI", "-aet", "STORESCU", "127.0.0.1", str(port),
         str(lidc)],
        check=True, timeout=120, env={**os.environ, "TCP_NODELAY": "1"},
    )  # fmt: skip


def by_class(files: list[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in files:
        header = pydicom.dcmread(file, specific_tags=["SOPClassUID"])
        found.setdefault(header.SOPClassUID, []).append(file)
    return found


@pytest.mark.slow
def test_seg_and_sr_come_back_to_dcmtk_and_to_orthanc(
    lidc: Path,
    storescp: StorePeer,
    orthanc: StorePeer,
    peer: Callable[[str], str],
    tmp_path: Path,
    free_ports: Callable[[int], list[int]],
) -> None:
    """storescu sends 133 real slices, twice; each PACS gets one set that other software reads."""
    (port,) = free_ports(1)
    with serving(tmp_path / "service", port, storescp, orthanc, peer) as service:
        send(lidc, port, peer)
        until(lambda: len(finished(service)) == 6, "two analyses and four deliveries are done")
        ran, before = service.states(), (storescp.files(), orthanc.files())
        send(lidc, port, peer)
        until(lambda: "came again" in service.story(), "it came again")
        until(lambda: service.status() == "decided", "it is decided again")
        assert service.states() == ran
        assert (storescp.files(), orthanc.files()) == before
        assert [job["id"] for job in service.ask("jobs")] == [number for number, *_ in ran]
        assert "came again" in json.dumps(service.ask("study", STUDY))
    at_storescp, at_orthanc = by_class(before[0]), by_class(before[1])
    assert len(at_storescp[Comprehensive3DSRStorage]) == 2
    assert {uid: len(files) for uid, files in at_orthanc.items()} == {
        uid: len(files) for uid, files in at_storescp.items()
    }
    for files in (*at_storescp.values(), *at_orthanc.values()):
        _check_headers(files, peer)
    for number, file in enumerate(at_storescp[SegmentationStorage]):
        _read_by_dcmqi_and_highdicom(file, peer, tmp_path / f"seg{number}", lidc)
    for number, file in enumerate(at_storescp[Comprehensive3DSRStorage]):
        dump = subprocess.run([peer("dsrdump"), str(file)], capture_output=True, check=True)
        assert b"Imaging Measurement Report" in dump.stdout
        read = tmp_path / f"sr{number}.json"
        subprocess.run(
            [peer("tid1500reader"), "--inputDICOM", str(file), "--outputMetadata", str(read)],
            capture_output=True,
            check=True,
        )
        assert json.loads(read.read_text())


def finished(service: Service) -> list[int]:
    """The jobs that are done; none may have another end."""
    states = service.states()
    assert not {state for _, _, state in states} & {"failed", "held", "cancelled"}, service.story()
    return [number for number, _, state in states if state == "done"]


def _check_headers(files: list[Path], peer: Callable[[str], str]) -> None:
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        assert header.PatientID == PATIENT
        assert header.StudyInstanceUID == STUDY
        checked = subprocess.run(
            [peer("dciodvfy"), "-new", str(file)], capture_output=True, text=True, check=False
        )
        assert not [line for line in checked.stderr.splitlines() if line.startswith("Error")]


def _read_by_dcmqi_and_highdicom(
    file: Path, peer: Callable[[str], str], out: Path, lidc: Path
) -> None:
    out.mkdir()
    subprocess.run(
        [peer("segimage2itkimage"), "--inputDICOM", str(file), "--outputDirectory", str(out),
         "--outputType", "nrrd"],
        capture_output=True, check=True,
    )  # fmt: skip
    seg = hd.seg.segread(file)
    for number in seg.segment_numbers:
        volume = seg.get_volume(
            segment_numbers=[number], combine_segments=True, skip_overlap_checks=True
        )
        assert volume.array.any()
        other, affine = read_nrrd(out / f"{number}.nrrd")
        theirs = np.argwhere(other)
        theirs_mm = theirs @ affine[:3, :3].T + affine[:3, 3]
        to_index = np.linalg.inv(volume.affine)
        mine = np.rint(theirs_mm @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
        mine_mm = mine @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        assert np.abs(mine_mm - theirs_mm).max() < 0.01
        assert mine.min() >= 0
        assert volume.array[tuple(mine.T)].all()
        assert len(theirs) == np.count_nonzero(volume.array)
    sources = {pydicom.dcmread(each, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
               for each in lidc.iterdir()}  # fmt: skip
    referenced = {
        item.ReferencedSOPInstanceUID
        for group in seg.ReferencedSeriesSequence
        for item in group.ReferencedInstanceSequence
    }
    assert referenced <= sources


def read_nrrd(file: Path) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float64]]:
    """Read dcmqi's output: the array, slowest axis first, and its affine to LPS mm."""
    head, _, body = file.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode("ascii").splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    kinds = {"unsigned char": "u1", "uint8": "u1", "short": "<i2", "unsigned short": "<u2",
             "uint16": "<u2"}  # fmt: skip
    raw = gzip.decompress(body) if fields["encoding"] in ("gzip", "gz") else body
    sizes = [int(size) for size in fields["sizes"].split()]
    steps = [
        [float(part) for part in vector.strip("()").split(",")]
        for vector in fields["space directions"].split()
    ]
    affine = np.eye(4)
    affine[:3, :3] = np.array(steps[::-1]).T
    affine[:3, 3] = [float(part) for part in fields["space origin"].strip("()").split(",")]
    return np.frombuffer(raw, kinds[fields["type"]]).reshape(sizes[::-1]), affine
