"""How fast `dicomai send` stores objects at a peer, beside DCMTK's storescu.

Both send the same files over one association to DCMTK's `storescp --fork`, in turn, five times each
in one run; what counts is the median of the seconds from the start of the association to its end,
and the ratio of the medians. `python benchmarks/send.py` prints the table of send.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from dicomai.net import scu
from dicomai.net.node import Node

# As on the receiving side of the figures that are often quoted for DCMTK.
TUNED = {"TCP_NODELAY": "1", "TCP_BUFFER_LENGTH": "1048576"}
ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of object, and how many are sent in one association."""

    name: str
    sop_class: str
    side: int
    count: int


CASES = (
    Case(name="CT, 512x512", sop_class=CTImageStorage, side=512, count=500),
    Case(name="MR, 256x256", sop_class=MRImageStorage, side=256, count=1000),
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
    command = [
        "storescu",
        "-pdu",
        str(pdu),
        "-aec",
        "PEER",
        "+sd",
        "127.0.0.1",
        str(port),
        str(folder),
    ]
    subprocess.run(command, env=os.environ | TUNED, check=True)


def by_dicomai(port: int, files: list[Path]) -> None:
    """Send files as `dicomai send` and deliveries do."""
    node = Node(name="PEER", ae_title="PEER", host="127.0.0.1", port=port)
    outcomes = scu.store_objects(node, "BENCH", files, lambda _: None)
    assert all(each.kind == "ok" for each in outcomes), outcomes[0]


def measured(case: Case, pdu: int) -> tuple[list[float], list[float]]:
    """Return the seconds that storescu took, and ours, round by round."""
    theirs: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        files = write_series(source, case)
        ways: tuple[tuple[list[float], Callable[[int], None]], ...] = (
            (theirs, lambda port: by_storescu(port, source, pdu)),
            (ours, lambda port: by_dicomai(port, files)),
        )
        for _ in range(ROUNDS):
            for seconds, send in ways:
                target = Path(name) / "target"
                target.mkdir()
                with storescp(target, pdu) as port:
                    began = time.perf_counter()
                    send(port)
                    seconds.append(time.perf_counter() - began)
                assert len(list(target.iterdir())) == case.count
                shutil.rmtree(target)
    return theirs, ours


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--pdu", type=int, nargs="*", default=[16384, 131072])
    chosen = arguments.parse_args()
    cores = len(os.sched_getaffinity(0))
    version = subprocess.run(
        ["storescu", "--version"], capture_output=True, text=True, check=True
    ).stdout
    print(f"{platform.machine()}, {cores} cores, {version.splitlines()[0].strip('$ ')}")
    print(f"Python {sys.version.split()[0]}; medians of {ROUNDS}, one association, objects/s\n")
    print("| objects | largest PDU | storescu | dicomai send | ratio (least to most) |")
    print("| --- | ---: | ---: | ---: | --- |")
    for case in CASES:
        for pdu in chosen.pdu:
            theirs, ours = measured(case, pdu)
            rates = [case.count / statistics.median(each) for each in (theirs, ours)]
            pairs = [one / other for one, other in zip(theirs, ours, strict=True)]
            print(
                f"| {case.count} {case.name} | {pdu} | {rates[0]:.0f} | {rates[1]:.0f} "
                f"| {rates[1] / rates[0]:.2f} ({min(pairs):.2f} to {max(pairs):.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
