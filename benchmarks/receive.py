"""How fast objects are received: dicomai beside DCMTK, Orthanc and pynetdicom, in one run.

Each case is sent by DCMTK's storescu to each receiver in turn, and so again for every round; an
association for each object by `one_each.py`, for storescu itself takes longer to start. The
table has objects per second as medians over the rounds, and dicomai's rate over each other's as
median of the ratios within a round. Repeat it with the command that it prints.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from receivers import AE_TITLE, MAX_PDU_BYTES, RECEIVERS, missing, peak_bytes, running

CT: Final = "1.2.840.10008.5.1.4.1.1.2"
MR: Final = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT: Final = "1.2.840.10008.5.1.4.1.1.2.1"
# As long as every number that takes its place.
_PLACE: Final = "1.2.826.0.1.3680043.10.543.9000000"
_ROOT: Final = _PLACE[:-7]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of object: 16 bits, rows by columns by frames."""

    name: str
    sop_class: str
    size: int
    frames: int = 1


CT_SLICE: Final = Kind(name="CT slice", sop_class=CT, size=512)
MR_SLICE: Final = Kind(name="MR slice", sop_class=MR, size=256)
MULTI_FRAME: Final = Kind(name="multi-frame", sop_class=ENHANCED_CT, size=512, frames=572)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is sent, and by how many senders at once.

    Attributes
    ----------
    key
        Names it on the command line.
    objects
        In all.
    associations
        At once; each sends its share.
    one_each
        An association of its own for each object, `associations` at a time.
    """

    key: str
    kind: Kind
    objects: int
    associations: int
    one_each: bool = False

    @property
    def title(self) -> str:
        count = f"{self.associations} association{'s' * (self.associations > 1)}"
        how = f"one association per object, {self.associations} at a time"
        return f"{self.kind.name}, {how if self.one_each else count}"


CASES: Final = (
    Case(key="ct-1", kind=CT_SLICE, objects=480, associations=1),
    Case(key="ct-4", kind=CT_SLICE, objects=960, associations=4),
    Case(key="ct-30", kind=CT_SLICE, objects=3000, associations=30),
    Case(key="ct-each", kind=CT_SLICE, objects=120, associations=1, one_each=True),
    Case(key="ct-each-4", kind=CT_SLICE, objects=240, associations=4, one_each=True),
    Case(key="mr-1", kind=MR_SLICE, objects=960, associations=1),
    Case(key="mr-4", kind=MR_SLICE, objects=1920, associations=4),
    Case(key="mr-30", kind=MR_SLICE, objects=6000, associations=30),
    Case(key="mr-each", kind=MR_SLICE, objects=120, associations=1, one_each=True),
    Case(key="multi-1", kind=MULTI_FRAME, objects=2, associations=1),
    Case(key="multi-4", kind=MULTI_FRAME, objects=4, associations=4),
)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=[case.key for case in CASES])
    parser.add_argument("--receivers", nargs="+", default=list(RECEIVERS))
    parser.add_argument("--share", type=float, default=1.0, help="of each case's objects")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--large", type=int, default=2 * 2**30, help="bytes; 0: leave it out")
    said = parser.parse_args()
    names = [name for name in said.receivers if not missing(name)]
    for name in set(said.receivers) - set(names):
        print(f"{name}: left out, for there is no {missing(name)}.", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=said.folder, prefix="receive-") as text:
        folder = Path(text)
        rates: dict[str, dict[str, list[float]]] = {}
        for case in (case for case in CASES if case.key in said.cases):
            batches = written(case, folder / "sent", said.share)
            rates[case.title] = {name: [] for name in names}
            for number in range(said.rounds):
                for name in names:
                    received = folder / "received" / f"{number}-{name}".replace(" ", "-")
                    rate = objects_per_second(case, batches, name, received)
                    rates[case.title][name].append(rate)
                    print(f"{case.title}: {name} {rate:.1f}/s", file=sys.stderr, flush=True)
            # Not after each: ext4 without a journal makes new files slowly where others were just
            # deleted, up to three times in all.
            shutil.rmtree(folder / "received")
            shutil.rmtree(folder / "sent")
        print(f"{machine()}\n\n    python {shlex.join(sys.argv)}\n\n{table(rates, names)}")
        if said.large:
            peak = peak_of_a_large_object(said.large, folder)
            print(f"\nMemory while {said.large / 1e9:.1f} GB arrive: {peak / 1e6:.0f} MB resident.")


def objects_per_second(case: Case, batches: list[list[Path]], name: str, folder: Path) -> float:
    """Send a case to a receiver; every object must be acknowledged."""
    with running(name, folder) as (port, _):
        if case.one_each:
            senders = [one_each(port, batch) for batch in batches]
            began = time.perf_counter()
            for each in senders:
                assert each.stdin is not None
                each.stdin.close()
        else:
            began = time.perf_counter()
            senders = [sender(port, batch) for batch in batches]
        failed = [each.args for each in senders if each.wait() != 0]
        seconds = time.perf_counter() - began
    if failed:
        raise RuntimeError(f"{name} did not take {failed}")
    return sum(len(batch) for batch in batches) / seconds


def sender(port: int, files: Sequence[Path]) -> subprocess.Popen[bytes]:
    """Start sending files in one association."""
    command = ["storescu", "-pdu", str(MAX_PDU_BYTES), "-aet", "CT1", "-aec", AE_TITLE]
    environment = os.environ | {"TCP_NODELAY": "1", "TCP_BUFFER_LENGTH": "1048576"}
    return subprocess.Popen([*command, "127.0.0.1", str(port), *map(str, files)], env=environment)


def one_each(port: int, files: Sequence[Path]) -> subprocess.Popen[bytes]:
    """Prepare to send files in an association each, once its standard input is closed."""
    program = [sys.executable, str(Path(__file__).with_name("one_each.py"))]
    process = subprocess.Popen(
        [*program, str(port), "CT1", AE_TITLE, str(MAX_PDU_BYTES), *map(str, files)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise RuntimeError(f"{process.args!r} failed")
    return process


def written(case: Case, folder: Path, share: float) -> list[list[Path]]:
    """Write the objects of a case, every one with UIDs of its own; return each sender's."""
    count = max(case.associations, round(case.objects * share))
    before, after = encoded(case.kind).split(_PLACE.encode() + b"\0" * (len(_PLACE) % 2), 1)
    batches: list[list[Path]] = [[] for _ in range(case.associations)]
    folder.mkdir()
    # The number stands twice: in the meta information, and in the data set.
    between, after = after.split(_PLACE.encode() + b"\0" * (len(_PLACE) % 2), 1)
    for number in range(count):
        uid = f"{_ROOT}{1_000_000 + number}".encode() + b"\0" * (len(_PLACE) % 2)
        path = folder / f"{number:05d}.dcm"
        with path.open("wb") as file:
            file.writelines((before, uid, between, uid, after))
        batches[number % case.associations].append(path)
    os.sync()
    return batches


def encoded(kind: Kind) -> bytes:
    """Return an object whose SOP Instance UID is `_PLACE`, with noise for pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = kind.sop_class
    meta.MediaStorageSOPInstanceUID = _PLACE
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set = Dataset()
    data_set.file_meta = meta
    data_set.SOPClassUID, data_set.SOPInstanceUID = kind.sop_class, _PLACE
    data_set.PatientID, data_set.PatientName = "1", "Bench^Mark"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = f"{_ROOT}1", f"{_ROOT}2"
    data_set.StudyDate, data_set.StudyTime, data_set.StudyID = "20260101", "120000", "1"
    data_set.Modality, data_set.SeriesNumber, data_set.InstanceNumber = "CT", 1, 1
    data_set.SamplesPerPixel, data_set.PhotometricInterpretation = 1, "MONOCHROME2"
    data_set.Rows = data_set.Columns = kind.size
    if kind.frames > 1:
        data_set.NumberOfFrames = kind.frames
    data_set.BitsAllocated, data_set.BitsStored, data_set.HighBit = 16, 12, 11
    data_set.PixelRepresentation = 0
    noise = np.random.default_rng(1).integers(0, 4096, (kind.size, kind.size), np.uint16)
    data_set.PixelData = noise.tobytes() * kind.frames
    with tempfile.TemporaryFile() as file:
        data_set.save_as(file, enforce_file_format=True)
        file.seek(0)
        return file.read()


def peak_of_a_large_object(size: int, folder: Path) -> int:
    """Return the most memory of dicomai, in bytes, while one object of a size arrives."""
    frames = size // (2 * CT_SLICE.size**2)
    kind = Kind(name="large", sop_class=ENHANCED_CT, size=CT_SLICE.size)
    path = folder / "large.dcm"
    whole = encoded(kind)
    length = frames * 2 * CT_SLICE.size**2
    at = whole.rindex(b"\xe0\x7f\x10\x00OW\0\0") + 8
    with path.open("wb") as file:
        file.write(whole[:at] + length.to_bytes(4, "little"))
        for _ in range(frames):
            file.write(whole[at + 4 :])
    with running("dicomai", folder / "large") as (port, pid):
        if sender(port, [path]).wait() != 0:
            raise RuntimeError("dicomai did not take the large object")
        return peak_bytes(pid)


def table(rates: dict[str, dict[str, list[float]]], names: Sequence[str]) -> str:
    """Return the table in Markdown."""
    others = [name for name in names if name != "dicomai"] if "dicomai" in names else []
    heads = ["case", *(f"{name} /s" for name in names), *(f"dicomai : {name}" for name in others)]
    lines = [f"| {' | '.join(heads)} |", f"| --- {'| ---: ' * (len(heads) - 1)}|"]
    for title, found in rates.items():
        cells = [per_second(statistics.median(found[name])) for name in names]
        for name in others:
            pairs = zip(found["dicomai"], found[name], strict=True)
            cells.append(f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def per_second(rate: float) -> str:
    """Return a rate as the table has it."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def machine() -> str:
    """Say what it ran on."""
    model = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return (
        f"{os.cpu_count()} cores ({model}), Linux {platform.release()}, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main()
