"""Processor seconds of each stage around the forward passes, on one thread.

One CT of 300×512×512 voxels goes through the engine in this process: load, preprocess, infer with a
small U-Net, postprocess, measure, encode, check. Processor seconds count, which hold on a busy
machine too; the network's own are taken off. Medians over the rounds, after one to warm up.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from inference_case import body, write_package, write_study

from dicomai.dicom.dates import now
from dicomai.imaging.series import read_object
from dicomai.imaging.volume import volume_of
from dicomai.inference.inputs import inputs_of
from dicomai.inference.pipeline import analyse
from dicomai.models.package import Package
from dicomai.models.runtimes import torch_runtime
from dicomai.models.runtimes.torch_runtime import LoadedModel
from dicomai.results import gate
from dicomai.results.context import ResultContext
from dicomai.results.encode import encode, written

SMALLEST = (1,)
ROWS = ("load", "preprocess", "infer, postprocess", "measure", "encode", "check")


class Watched:
    """A model that notes the processor seconds of its network."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.spent_s = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def __call__(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        start = time.process_time()
        out = self.model(inputs)
        self.spent_s += time.process_time() - start
        return out


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs=3, type=int, default=(300, 512, 512))
    parser.add_argument("--spacing", type=float, default=1.5, help="of the model, mm; 0: source's")
    parser.add_argument("--rounds", type=int, default=3)
    said = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="stages-") as text:
        folder = Path(text)
        files = write_study(folder / "study", body(tuple(said.shape)).hu, "P1")
        package = write_package(
            folder,
            "small",
            SMALLEST,
            window=(96, 96, 96),
            spacing_mm=said.spacing or None,
            batch=1,
            precision="float32",
        )
        rounds = [once(files, package) for _ in range(said.rounds + 1)][1:]
    print(
        f"{platform.machine()}, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}\n\n"
        f"    python {shlex.join(sys.argv)}\n\n| stage | processor seconds |\n| --- | ---: |"
    )
    for row in ROWS:
        print(f"| {row} | {statistics.median(each[row] for each in rounds):.2f} |")
    print(f"| all | {statistics.median(sum(each.values()) for each in rounds):.2f} |")


def once(files: list[Path], package: Package) -> dict[str, float]:
    """Return the processor seconds of each stage of one study."""
    model = Watched(torch_runtime.load(package, "cpu"))
    marks: dict[tuple[str, float], float] = {}
    start = time.process_time()
    datasets = []
    for file in files:
        with file.open("rb") as opened:
            hashlib.file_digest(opened, "sha256").hexdigest()
        datasets.append(read_object(file))
    volume = volume_of(datasets, package.manifest.intake)
    loaded = time.process_time()

    def mark(stage: str, fraction: float) -> None:
        marks.setdefault((stage, fraction), time.process_time())

    findings = analyse(model, volume, inputs_of(volume.headers), mark)
    analysed = time.process_time()
    context = ResultContext(created_at=now(), software_version="0", timezone="UTC")
    wanted = ("SEG", "SR")
    objects = encode(findings, volume.headers, uuid.uuid4(), context, wanted, volume.voxels)
    octets = [written(each) for each in objects]
    encoded = time.process_time()
    gate.check(octets, findings, volume.headers)
    checked = time.process_time()
    preprocessed = marks["preprocess", 1.0] - marks["preprocess", 0.0]
    measured = analysed - marks["measure", 0.0]
    return {
        "load": loaded - start,
        "preprocess": preprocessed,
        "infer, postprocess": analysed - loaded - preprocessed - measured - model.spent_s,
        "measure": measured,
        "encode": encoded - analysed,
        "check": checked - encoded,
    }


if __name__ == "__main__":
    main()
