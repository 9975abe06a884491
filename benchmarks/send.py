"""How fast `dicomai send` and a delivery store objects at a peer, beside DCMTK's storescu.

All send the same files over one association to DCMTK's `storescp --fork`, in turn, twelve times
each in one run; what counts is the median of the seconds from the start of the association to its
end, and the ratio of the medians. `python benchmarks/send.py` prints the table of send.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from dicomai.dicom.dates import now, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import (
    SeriesInstanceUID,
    SOPClassUID,
    SOPInstanceUID,
    StudyInstanceUID,
    TransferSyntaxUID,
)
from dicomai.net import scu
from dicomai.net.node import Node
from dicomai.roles import logs
from dicomai.service.attempt import Worker
from dicomai.service.deliver import Deliverer
from dicomai.settings import load
from dicomai.store import analyses, archive, arrivals, claims, studies
from dicomai.store.arrivals import Arrival
from dicomai.store.engine import open_engine, writing
from dicomai.store.instances import InstanceRow
from dicomai.store.job import JobRoute, NewAnalysis
from dicomai.store.migrate import upgrade

# As on the receiving side of the figures that are often quoted for DCMTK.
TUNED = {"TCP_NODELAY": "1", "TCP_BUFFER_LENGTH": "1048576"}
ROUNDS = 12


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of object, and how many are sent in one association."""

    name: str
    sop_class: str
    side: int
    count: int


SEG = "1.2.840.10008.5.1.4.1.1.66.4"
CASES = (
    Case(name="CT, 512x512", sop_class=CTImageStorage, side=512, count=500),
    Case(name="MR, 256x256", sop_class=MRImageStorage, side=256, count=1000),
    # What a delivery sends is ours; here only its class and its size are.
    Case(name="SEG, 130 kB", sop_class=SEG, side=256, count=500),
)


def write_series(folder: Path, case: Case) -> list[Path]:
    """Write a series of random pixels."""
    noise = np.random.default_rng(14)
    study = f"2.25.{uuid.uuid4().int}"
    files = []
    for number in range(case.count):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = case.sop_class, f"{study}.1.{number + 1}"
        image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study}.1"
        image.PatientID, image.PatientName = "SEND", "Bench^Mark"
        image.Modality, image.InstanceNumber = case.name[:2], number + 1
        image.Rows = image.Columns = case.side
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.PixelData = noise.bytes(case.side * case.side * 2)
        image["PixelData"].VR = "OW"
        files.append(folder / f"{number:04}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    return files


@contextmanager
def storescp(folder: Path, pdu: int) -> Iterator[int]:
    """Run DCMTK's storescp; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [
        "storescp",
        "--fork",
        "-pdu",
        str(pdu),
        "-aet",
        "PEER",
        "-od",
        str(folder),
        str(port),
    ]
    with subprocess.Popen(command, env=os.environ | TUNED, stdout=subprocess.DEVNULL) as process:
        try:
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()


def by_storescu(port: int, folder: Path, pdu: int) -> None:
    """Send a folder with DCMTK."""
    options = ["-R", "-pdu", str(pdu), "-aec", "PEER", "+sd"]
    command = ["storescu", *options, "127.0.0.1", str(port), str(folder)]
    subprocess.run(command, env=os.environ | TUNED, check=True)


def by_dicomai(port: int, files: list[Path]) -> None:
    """Send files as `dicomai send` and deliveries do."""
    node = Node(name="PEER", ae_title="PEER", host="127.0.0.1", port=port)
    outcomes = scu.store_objects(node, "BENCH", files, lambda _: None)
    assert all(each.kind == "ok" for each in outcomes), outcomes[0]


@contextmanager
def delivery(folder: Path, port: int, files: list[Path]) -> Iterator[Callable[[], bool]]:
    """Give what delivers files, as the results of an analysis, out of a catalogue on SQLite."""
    (folder / "dicomai.toml").write_text(
        f"""
        [[nodes]]
        name = "PEER"
        ae_title = "PEER"
        host = "127.0.0.1"
        port = {port}
        """
    )
    settings = load(folder / "dicomai.toml", {})
    (settings.folders.data / archive.FOLDER / "1.2.3").mkdir(
        parents=True
    )  # an empty one is not mounted
    engine = open_engine(settings.database.url)
    upgrade(engine)
    study = StudyInstanceUID("1.2.3")
    with writing(engine) as connection:
        arrival = Arrival(
            study_instance_uid=study, node="PEER", received_at=now(), quiet_until=now(),
            accession_number="", study_date="",
        )  # fmt: skip
        arrivals.note_arrival(connection, arrival, now())
        studies.set_patient_key(connection, study, IdentityKey("P"))
        wanted = NewAnalysis(
            study_instance_uid=study, patient_key=IdentityKey("P"), model="m", package_sha256="",
            choice="", fingerprint="f", inputs=(), ageing=seconds(600),
            route=JobRoute(route="r", mode="live", destinations=("PEER",)),
        )  # fmt: skip
        analyses.add_analysis(connection, wanted, now())
        job = claims.claim(connection, "w", ("analyse",), ("m",), now())
        assert job is not None
        produced = [_produced(study, path, number) for number, path in enumerate(files)]
        analyses.finish(connection, job.held, produced, {}, {}, now())
    worker = Worker(
        name="w", engine=engine, lease_s=60, deadline_s=600, clock=now, stop=threading.Event(),
        pulse=lambda: None, observe=lambda _stage, _job: None,
    )  # fmt: skip
    try:
        yield Deliverer(settings=settings, worker=worker).work_once
    finally:
        engine.dispose()


def _produced(study: StudyInstanceUID, path: Path, number: int) -> InstanceRow:
    return InstanceRow(
        study_instance_uid=study, series_instance_uid=SeriesInstanceUID("1.2.3.9"),
        sop_instance_uid=SOPInstanceUID(f"1.2.3.9.{number}"), sop_class_uid=SOPClassUID(SEG),
        transfer_syntax_uid=TransferSyntaxUID(ExplicitVRLittleEndian), header_digest=str(number),
        pixel_digest=None, file_sha256=f"{number:064}", origin="produced", node="",
        received_at=now(), size_bytes=path.stat().st_size, path=PurePosixPath(path), attributes={},
    )  # fmt: skip


def measured(case: Case, pdu: int) -> dict[str, list[float]]:
    """Return the seconds that each way took, round by round."""
    ways = ("storescu", "dicomai send", *(["delivery"] if case.sop_class == SEG else []))
    taken: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        files = write_series(source, case)
        for number in range(ROUNDS):
            # Each is first in turn: who comes later finds more of the memory taken.
            for way in (*ways[number % len(ways) :], *ways[: number % len(ways)]):
                # Deleted with the case only: where files were just deleted, new ones come slowly.
                place = Path(name) / f"{number}-{way}"
                target, data = place / "target", place / "data"
                target.mkdir(parents=True)
                data.mkdir()
                os.sync()
                with storescp(target, pdu) as port, delivery(data, port, files) as deliver:
                    began = time.perf_counter()
                    if way == "storescu":
                        by_storescu(port, source, pdu)
                    elif way == "delivery":
                        assert deliver()
                    else:
                        by_dicomai(port, files)
                    taken[way].append(time.perf_counter() - began)
                assert len(list(target.iterdir())) == case.count
    return taken


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--pdu", type=int, nargs="*", default=[16384, 131072])
    chosen = arguments.parse_args()
    logs.configure("json", "error")
    gc.freeze()  # as a worker does
    cores = len(os.sched_getaffinity(0))
    told = subprocess.run(["storescu", "--version"], capture_output=True, text=True, check=True)
    version = told.stdout.splitlines()[0].strip("$ ")
    print(f"{platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}, {version}")
    print(f"Python {sys.version.split()[0]}; medians of {ROUNDS}, one association, objects/s\n")
    print("| objects | largest PDU | storescu | by | objects/s | ratio (least to most) |")
    print("| --- | ---: | ---: | --- | ---: | --- |")
    for case in CASES:
        for pdu in chosen.pdu:
            taken = measured(case, pdu)
            theirs = taken.pop("storescu")
            for way, ours in taken.items():
                rates = [case.count / statistics.median(each) for each in (theirs, ours)]
                pairs = [one / other for one, other in zip(theirs, ours, strict=True)]
                print(
                    f"| {case.count} {case.name} | {pdu} | {rates[0]:.0f} | {way} | {rates[1]:.0f} "
                    f"| {rates[1] / rates[0]:.2f} ({min(pairs):.2f} to {max(pairs):.2f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
