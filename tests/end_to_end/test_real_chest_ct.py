"""The main job on a real chest CT: storescu sends it, SEG and SR arrive, others read them."""

from __future__ import annotations

import contextlib
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
from pydicom.errors import InvalidDicomError
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

STUDY = "1.3.6.1.4.1.14519.5.2.1.6279.6001.298806137288633453246975630178"
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
ae_title = "{peer_ae}"
host = "127.0.0.1"
port = {peer_port}

[[routes]]
name = "lungs of every chest CT"
model = "chest-ct-lungs"
when = ["Modality = CT", "instances >= 20"]
destinations = ["PACS1"]

[[routes]]
name = "nodules of every chest CT"
model = "chest-ct-nodules"
when = ["Modality = CT", "instances >= 20"]
destinations = ["PACS1"]
"""


class StorePeer(Protocol):
    ae_title: str
    port: int
    files: Callable[[], list[Path]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running `dicomai serve`."""

    folder: Path

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
    folder: Path, port: int, pacs: StorePeer, peer: Callable[[str], str]
) -> Iterator[Service]:
    dicomai = [sys.executable, "-m", "dicomai"]
    subprocess.run([*dicomai, "init", str(folder)], check=True, timeout=60, capture_output=True)
    config = folder / "dicomai.toml"
    config.write_text(CONFIGURATION.format(port=port, peer_ae=pacs.ae_title, peer_port=pacs.port))
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
            yield Service(folder=folder)
        finally:
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
        # What the peer is still writing can't be read yet.
        with contextlib.suppress(InvalidDicomError, AttributeError, EOFError):
            header = pydicom.dcmread(file, stop_before_pixels=True)
            found.setdefault(header.SOPClassUID, []).append(file)
    return found


def reports(pacs: StorePeer) -> list[Path]:
    return by_class(pacs.files()).get(Comprehensive3DSRStorage, [])


@pytest.mark.slow
def test_seg_and_sr_come_back_to_dcmtk(
    lidc: Path,
    storescp: StorePeer,
    peer: Callable[[str], str],
    tmp_path: Path,
    free_ports: Callable[[int], list[int]],
) -> None:
    """storescu sends 133 real slices, twice; storescp gets one set that other software reads."""
    (port,) = free_ports(1)
    with serving(tmp_path / "service", port, storescp, peer) as service:
        send(lidc, port, peer)
        until(lambda: len(reports(storescp)) == 2, "two reports arrive")
        before = set(storescp.files())
        ran = [job["id"] for job in service.ask("jobs")]
        send(lidc, port, peer)
        until(lambda: "came again" in json.dumps(service.ask("study", STUDY)), "it came again")
        until(lambda: service.ask("study", STUDY)["status"] == "decided", "it is decided again")
        assert [job["id"] for job in service.ask("jobs")] == ran
        assert set(storescp.files()) == before
    segmentations = by_class(storescp.files())[SegmentationStorage]
    _check_headers([*segmentations, *reports(storescp)], peer)
    for number, file in enumerate(segmentations):
        _read_by_dcmqi_and_highdicom(file, peer, tmp_path / f"seg{number}", lidc)
    for number, file in enumerate(reports(storescp)):
        dump = subprocess.run([peer("dsrdump"), str(file)], capture_output=True, check=True)
        assert b"Imaging Measurement Report" in dump.stdout
        read = tmp_path / f"sr{number}.json"
        subprocess.run(
            [peer("tid1500reader"), "--inputDICOM", str(file), "--outputMetadata", str(read)],
            capture_output=True,
            check=True,
        )
        assert json.loads(read.read_text())


@pytest.mark.slow
def test_seg_and_sr_come_back_to_orthanc(
    lidc: Path,
    orthanc: StorePeer,
    peer: Callable[[str], str],
    tmp_path: Path,
    free_ports: Callable[[int], list[int]],
) -> None:
    """The same with Orthanc as the PACS."""
    (port,) = free_ports(1)
    with serving(tmp_path / "service", port, orthanc, peer):
        send(lidc, port, peer)
        until(lambda: len(reports(orthanc)) == 2, "two reports arrive")
    results = by_class(orthanc.files())
    assert results[SegmentationStorage]
    _check_headers([*results[SegmentationStorage], *results[Comprehensive3DSRStorage]], peer)


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
        mine = set_voxels_mm(volume.array, volume.affine)
        theirs = set_voxels_mm(other, affine)
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).max() < 0.01
    sources = {pydicom.dcmread(each, stop_before_pixels=True).SOPInstanceUID
               for each in lidc.iterdir()}  # fmt: skip
    referenced = {
        item.ReferencedSOPInstanceUID
        for group in seg.ReferencedSeriesSequence
        for item in group.ReferencedInstanceSequence
    }
    assert referenced <= sources


def set_voxels_mm(
    array: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the centres of the voxels that are set, in LPS mm, sorted by z, y, x."""
    points = np.argwhere(array) @ affine[:3, :3].T + affine[:3, 3]
    return points[np.lexsort(np.round(points, 1).T)]


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
