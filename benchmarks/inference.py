"""How fast a CT is analysed, how much memory that takes, and how MONAI does beside it.

A worker, as the service starts it, analyses a CT of 300×512×512 voxels and known truth with U-Nets
of several sizes: alone, and a backlog of studies one after the other. Bare forward passes over the
same windows are timed before and after each study, for the machine may be faster one minute than
the next, and MONAI's chain around the same network at the end. Times are medians over the rounds.
Repeat it with the command that it prints.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import highdicom
import numpy as np
import numpy.typing as npt
import torch
from inference_case import (
    SPACING_MM,
    Body,
    archived,
    body,
    parameters,
    queued,
    write_package,
    write_study,
)
from processes import Peak, cpu_seconds, proportional_bytes
from sqlalchemy import Engine

from dicomai.dicom.uid import StudyInstanceUID
from dicomai.inference.inferers import windows_of
from dicomai.models.package import Package
from dicomai.models.runtimes import torch_runtime
from dicomai.models.runtimes.devices import has_bfloat16
from dicomai.process import reuse_memory
from dicomai.settings import load as load_settings
from dicomai.store import instances, jobs
from dicomai.store.engine import open_engine, reading
from dicomai.store.job import Job, JobId
from dicomai.store.migrate import upgrade

SIZES: Final = {"small": (8, 16, 32), "middle": (32, 64, 128), "large": (32, 64, 128, 224)}
WARM: Final = (12, 64, 64)
_LOOK_S: Final = 0.5
"""Between looks at a queue: each is time that the worker has not."""
_REST_S: Final = 70.0
"""A runner keeps the memory of its last study for a minute (`dicomai.process.SpareMemory`)."""
SEG: Final = "1.2.840.10008.5.1.4.1.1.66.4"
CORES: Final = len(os.sched_getaffinity(0))
Masks = list[npt.NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is measured."""

    shape_kji: tuple[int, int, int]
    window: tuple[int, int, int]
    spacing_mm: float | None
    batch: int
    precision: str
    rounds: int
    backlog: int
    device: str

    @property
    def volume_bytes(self) -> int:
        """Of the source, as float32."""
        return 4 * int(np.prod(self.shape_kji))


class Pass(NamedTuple):
    """What the bare forward passes over one study took."""

    seconds: float
    cpu_seconds: float


@dataclass(slots=True, kw_only=True)
class Measured:
    """What came of one model."""

    forward: list[Pass]
    alone: list[Job]
    alone_cpu_s: float
    alone_bytes: int
    ours: Masks
    backlog_s: float = 0.0
    backlog_bytes: int = 0
    after_backlog: Pass | None = None
    monai: list[dict[str, float]] | None = None
    monai_bytes: int = 0
    theirs: Masks | None = None

    @property
    def stages(self) -> dict[str, float]:
        """Seconds in each stage."""
        return {
            name: statistics.median(job.stages_s[name] for job in self.alone)
            for name in self.alone[0].stages_s
        }

    @property
    def forward_s(self) -> float:
        """Seconds of the bare forward passes."""
        return statistics.median(each.seconds for each in self.forward)

    @property
    def other_s(self) -> float:
        """Seconds of everything but the forward passes: of each study against those around it."""
        around = pairwise(each.seconds for each in self.forward)
        return statistics.median(
            sum(job.stages_s.values()) - (before + after) / 2
            for job, (before, after) in zip(self.alone, around, strict=True)
        )

    @property
    def other_cpu_s(self) -> float:
        """Processor seconds of the same."""
        forward = statistics.median(each.cpu_seconds for each in self.forward)
        return max(0.0, self.alone_cpu_s - forward)

    def times_the_least(self, studies: int) -> float:
        """Return the backlog's seconds over the least, with the forward passes around it."""
        assert self.after_backlog is not None
        forward_s = (self.forward[-1].seconds + self.after_backlog.seconds) / 2
        return self.backlog_s / (studies * (forward_s + self.other_cpu_s / CORES))


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["small", "middle", "large"], choices=SIZES)
    parser.add_argument("--shape", nargs=3, type=int, default=(300, 512, 512))
    parser.add_argument("--window", nargs=3, type=int, default=(96, 96, 96))
    parser.add_argument("--spacing", type=float, default=1.5, help="of the models, mm; 0: source's")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backlog", type=int, default=20, help="studies; 0: leave it out")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:0")
    parser.add_argument("--no-monai", action="store_true")
    parser.add_argument("--folder", type=Path, help="on the disk to use")
    said = parser.parse_args()
    asked = Asked(
        shape_kji=(said.shape[0], said.shape[1], said.shape[2]),
        window=(said.window[0], said.window[1], said.window[2]),
        spacing_mm=said.spacing or None,
        batch=said.batch,
        precision=said.precision,
        rounds=said.rounds,
        backlog=said.backlog,
        device=said.device,
    )
    monai = not said.no_monai
    if monai and find_spec("monai") is None:
        print("MONAI is not installed (pip install -e .[benchmarks]): left out.", file=sys.stderr)
        monai = False
    with tempfile.TemporaryDirectory(dir=said.folder, prefix="inference-") as text:
        hospital = Hospital(Path(text), asked)
        found = {}
        for number, name in enumerate(said.models):
            backlog = asked.backlog if number == 0 else 0
            found[name] = hospital.measured(name, SIZES[name], backlog=backlog, monai=monai)
        print(f"{machine(asked.device)}\n\n    python {shlex.join(sys.argv)}\n")
        print(report(found, asked, hospital.body))


class Hospital:
    """A data folder with studies of one body, and a catalogue."""

    def __init__(self, folder: Path, asked: Asked) -> None:
        self.folder = folder
        self.asked = asked
        config = folder / "dicomai.toml"
        worker_table = f'[worker]\ndevice = "{asked.device}"\n'
        config.write_text(f'[service]\ndata = "data"\n{worker_table}')
        self.data = folder / "data"
        for name in ("spool", "archive", "quarantine", "models"):
            (self.data / name).mkdir(parents=True)
        self.engine: Engine = open_engine(load_settings(config, {}).database.url)
        upgrade(self.engine)
        self.body = body(asked.shape_kji)
        self._files: dict[StudyInstanceUID, list[Path]] = {}

    def study(self, voxels: npt.NDArray[np.int16]) -> StudyInstanceUID:
        """Put one more study of these voxels into the archive."""
        patient = f"P{len(self._files) + 1}"
        files = write_study(self.folder / patient, voxels, patient)
        uid = archived(self.engine, self.data, files, patient)
        self._files[uid] = files
        return uid

    def _tiny(self) -> npt.NDArray[np.int16]:
        """Return the middle of the body: what is imported for a Segmentation is so beforehand."""
        k, j, i = (
            slice(max(0, size - some) // 2, max(0, size - some) // 2 + some)
            for size, some in zip(self.asked.shape_kji, WARM, strict=True)
        )
        return self.body.hu[k, j, i]

    def measured(
        self, name: str, channels: Sequence[int], *, backlog: int, monai: bool
    ) -> Measured:
        """Measure all of one model."""
        asked = self.asked
        package = write_package(
            self.data / "models",
            name,
            channels,
            window=asked.window,
            spacing_mm=asked.spacing_mm,
            batch=asked.batch,
            precision=asked.precision,
        )
        once = forward(package, asked)
        tiny = self.study(self._tiny())
        watched = self.study(self.body.hu)
        alone = [self.study(self.body.hu) for _ in range(asked.rounds)]
        waiting = [self.study(self.body.hu) for _ in range(backlog)]
        with worker(self.folder) as process:
            _say(f"{name}: one study at a time")
            self._done(queued(self.engine, [tiny], package))
            time.sleep(_REST_S)  # it gives back what it spares
            before = proportional_bytes(process.pid)
            with Peak(process.pid) as peak:  # which takes time itself: of a study for that alone
                self._done(queued(self.engine, [watched], package))
            cpu_before = cpu_seconds(process.pid)
            done, passes = [], [once()]
            for uid in alone:
                _just_received(self._files[uid])
                done += self._done(queued(self.engine, [uid], package))
                passes.append(once())
            out = Measured(
                forward=passes,
                alone=done,
                alone_cpu_s=(cpu_seconds(process.pid) - cpu_before) / asked.rounds,
                alone_bytes=peak.bytes - before,
                ours=self._masks(done[-1]),
            )
            if waiting:
                _say(f"{name}: a backlog of {backlog}")
                with Peak(process.pid, every_s=1.0) as peak:
                    start = time.perf_counter()
                    self._done(queued(self.engine, waiting, package))
                    out.backlog_s = time.perf_counter() - start
                out.backlog_bytes = peak.bytes - before
                out.after_backlog = once()
        if monai:
            _say(f"{name}: MONAI")
            self._with_monai(package, out)
        return out

    def _done(self, wanted: set[JobId]) -> list[Job]:
        """Wait until jobs are done, and return them."""
        while True:
            with reading(self.engine) as connection:
                found = [jobs.get(connection, each) for each in wanted]
            rows = [each for each in found if each is not None]
            if bad := [each for each in rows if each.state in ("failed", "held", "cancelled")]:
                raise RuntimeError(bad[0].error_sentence)
            if all(each.state == "done" for each in rows):
                return rows
            time.sleep(_LOOK_S)

    def _masks(self, job: Job) -> Masks:
        """Read the masks of a job out of its Segmentation."""
        with reading(self.engine) as connection:
            rows = instances.of_job(connection, job.id)
        (path,) = [self.data / row.path for row in rows if row.sop_class_uid == SEG]
        seg = highdicom.seg.segread(path)
        out = []
        sources = sorted(
            (int(uid.rpartition(".")[2]), str(uid)) for (_, _, uid) in seg.get_source_image_uids()
        )
        for number in (1, 2):
            mask = np.zeros(self.asked.shape_kji, bool)
            uids = [uid for _, uid in sources]
            frames = seg.get_pixels_by_source_instance(
                uids, segment_numbers=[number], assert_missing_frames_are_empty=True
            )
            for (k, _), frame in zip(sources, frames, strict=True):
                mask[k - 1] = frame[..., 0] > 0
            out.append(mask)
        return out

    def _with_monai(self, package: Package, out: Measured) -> None:
        place = self.folder / f"monai-{package.name}"
        place.mkdir()
        command = [sys.executable, str(Path(__file__).with_name("inference_monai.py"))]
        tiny = self.folder / "tiny"
        if not tiny.exists():
            write_study(tiny, self._tiny(), "P0")
        files = self.folder / "P2"  # any of the whole body
        with subprocess.Popen(
            [*command, str(package.folder), str(place), self.asked.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def ask(folder: Path) -> dict[str, float]:
                assert process.stdin is not None
                assert process.stdout is not None
                _just_received(sorted(folder.iterdir()))
                process.stdin.write(f"{folder}\n")
                process.stdin.flush()
                seconds: dict[str, float] = json.loads(process.stdout.readline())
                return seconds

            process.stdout.readline()
            ask(tiny)
            before = proportional_bytes(process.pid)
            with Peak(process.pid) as peak:
                ask(files)
            out.monai_bytes = peak.bytes - before
            out.monai = [ask(files) for _ in range(self.asked.rounds)]
            process.stdin.close()
        size = int(np.prod(self.asked.shape_kji))
        out.theirs = [
            np.unpackbits(np.load(place / f"{channel}.npy"), count=size)
            .reshape(self.asked.shape_kji)
            .astype(bool)
            for channel in range(2)
        ]


@contextmanager
def worker(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker, as the service does."""
    command = [sys.executable, "-m", "dicomai", "work", "--config", str(folder / "dicomai.toml")]
    with (folder / "work.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def forward(package: Package, asked: Asked) -> Callable[[], Pass]:
    """Return what makes the bare forward passes over one study, in this process."""
    reuse_memory()  # as a runner does, or they would take half as long again
    torch.set_num_threads(CORES)
    model = torch_runtime.load(package, asked.device)
    network, device = model.network, model.device
    spacing = asked.spacing_mm
    shape = tuple(
        int(np.ceil(size * step / spacing - 1e-6)) if spacing else size
        for size, step in zip(asked.shape_kji, SPACING_MM, strict=True)
    )
    count = len(list(windows_of(shape, asked.window, 0.25)))
    sizes = [asked.batch] * (count // asked.batch) + [count % asked.batch] * (
        count % asked.batch > 0
    )
    half = asked.precision == "bfloat16" and has_bfloat16(device)
    inputs = torch.rand(asked.batch, 1, *asked.window, device=device)
    inputs = inputs.to(memory_format=torch.channels_last_3d)

    def led(sizes: Sequence[int]) -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, half):
            for size in sizes:
                network(inputs[:size])
        if not model.is_on_cpu:
            torch.cuda.synchronize(device)  # until then passes are only asked for

    def once() -> Pass:
        start, cpu_start = time.perf_counter(), time.process_time()
        led(sizes)
        return Pass(time.perf_counter() - start, time.process_time() - cpu_start)

    led(sizes[-2:])  # each number of windows once
    return once


def report(found: dict[str, Measured], asked: Asked, truth: Body) -> str:
    """Return the tables in Markdown."""
    heads = [f"{name} ({parameters(SIZES[name]) / 1e3:,.0f} k)" for name in found]
    lines = [f"| seconds | {' | '.join(heads)} |", f"| --- {'| ---: ' * len(heads)}|"]

    def row(title: str, values: Sequence[str]) -> None:
        lines.append(f"| {title} | {' | '.join(values)} |")

    every = list(found.values())
    for stage in every[0].stages:
        row(stage, [f"{each.stages[stage]:.2f}" for each in every])
    row("all stages", [f"{sum(each.stages.values()):.2f}" for each in every])
    row("bare forward passes", [f"{each.forward_s:.2f}" for each in every])
    row("everything but these", [f"{each.other_s:.2f}" for each in every])
    row("processor seconds of that", [f"{each.other_cpu_s:.2f}" for each in every])
    volume = asked.volume_bytes
    row(
        "peak memory, × the volume as float32",
        [f"{each.alone_bytes / volume:.2f}" for each in every],
    )
    for each in every:
        if each.backlog_s:
            told = (
                f"Backlog of {asked.backlog} studies: {each.backlog_s:.1f} s, "
                f"{each.times_the_least(asked.backlog):.2f} × (forward passes + processor seconds "
                f"of the rest / {CORES}); peak memory {each.backlog_bytes / volume:.2f} × the "
                "volume as float32."
            )
            lines += ["", told]
    if any(each.monai for each in every):
        lines += ["", *_beside_monai(heads, every, asked, truth)]
    return "\n".join(lines)


def _beside_monai(
    heads: Sequence[str], every: Sequence[Measured], asked: Asked, truth: Body
) -> list[str]:
    lines = [f"| beside MONAI | {' | '.join(heads)} |", f"| --- {'| ---: ' * len(heads)}|"]

    def row(title: str, values: Sequence[str]) -> None:
        lines.append(f"| {title} | {' | '.join(values)} |")

    names = ("load", "preprocess", "infer", "postprocess")
    ours = [sum(each.stages[name] for name in names) for each in every]
    theirs = [statistics.median(sum(run.values()) for run in each.monai or ()) for each in every]
    for part in every[0].monai[0] if every[0].monai else ():
        row(
            f"MONAI, {part}, s",
            [f"{statistics.median(run[part] for run in each.monai or ()):.2f}" for each in every],
        )
    row("MONAI, files to masks, s", [f"{each:.2f}" for each in theirs])
    row("dicomai, files to masks, s", [f"{each:.2f}" for each in ours])
    row("MONAI : dicomai", [f"{a / b:.2f}" for a, b in zip(theirs, ours, strict=True)])
    volume = asked.volume_bytes
    row("MONAI, peak memory, ×", [f"{each.monai_bytes / volume:.2f}" for each in every])
    for channel, part in enumerate(("body", "balls")):
        pairs = [(each.ours[channel], (each.theirs or each.ours)[channel]) for each in every]
        row(f"Dice of the two, {part}", [f"{dice(a, b):.5f}" for a, b in pairs])
        right = truth.truth[channel]
        for who, at in (("dicomai", 0), ("MONAI", 1)):
            row(
                f"Dice of {who} and the truth, {part}",
                [f"{dice(pair[at], right):.5f}" for pair in pairs],
            )
    return lines


def _just_received(files: Sequence[Path]) -> None:
    """Read files once: an object that has just been received is in the page cache."""
    for file in files:
        file.read_bytes()


def dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Return how far two masks agree, 0 to 1."""
    return (
        2 * np.count_nonzero(one & other) / max(1, np.count_nonzero(one) + np.count_nonzero(other))
    )


def machine(device: str) -> str:
    """Say what it ran on."""
    model = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    gpu = "" if device == "cpu" else f"{torch.cuda.get_device_name(device)}, "
    return (
        f"{gpu}{CORES} cores ({model}), load {os.getloadavg()[0]:.1f}, Linux {platform.release()}, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
