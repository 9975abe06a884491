"""A runner whose networks misbehave, for tests: `python misbehaving_runner.py FD DEVICE PID`.

The runner itself is the real one. The networks are registered the way that `serve` takes them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch

from dicomai.inference.runner import main
from dicomai.models.runtimes.networks import NETWORKS, UNet3d


class Misbehaving(UNet3d):
    """Fits its manifest, and misbehaves when it is shown something."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":
            self.misbehave()
        return super().forward(x)

    def misbehave(self) -> None:
        raise NotImplementedError


def die() -> NoReturn:
    """End the process as a broken kernel of a GPU does; another thread may take the signal."""
    os.kill(os.getpid(), signal.SIGSEGV)
    while True:
        time.sleep(60)


class Poison(Misbehaving):
    """Kills its process."""

    def misbehave(self) -> None:
        die()


class Stuck(Misbehaving):
    """Never comes back, and makes no progress."""

    def misbehave(self) -> None:
        while True:
            time.sleep(60)


class Greedy(Misbehaving):
    """Wants more memory than there is."""

    def misbehave(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.")


class Faulty(Misbehaving):
    """Comes upon what CUDA lets no process recover from."""

    def misbehave(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class Hungry(Misbehaving):
    """Wants more of the host's memory than there is."""

    def misbehave(self) -> None:
        raise MemoryError


class Patient(Misbehaving):
    """Waits until there is a file "go" in the folder that the environment names."""

    def misbehave(self) -> None:
        go = Path(os.environ["DICOMAI_TEST_GO"])
        (go / f"in-{time.monotonic_ns()}").touch()
        while not (go / "go").exists():
            time.sleep(0.01)


class PatientPoison(Patient):
    """Kills its process, once the file exists."""

    def misbehave(self) -> None:
        super().misbehave()
        die()


class Defective(Misbehaving):
    """Has a defect."""

    def misbehave(self) -> None:
        raise ZeroDivisionError("division by zero")


MISBEHAVING = {
    "poison": Poison,
    "stuck": Stuck,
    "greedy": Greedy,
    "faulty": Faulty,
    "hungry": Hungry,
    "defective": Defective,
    "patient": Patient,
    "patient-poison": PatientPoison,
}

if __name__ == "__main__":
    main(sys.argv[1:], {**NETWORKS, **MISBEHAVING})
