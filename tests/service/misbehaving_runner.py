"""A runner whose networks misbehave, for tests: `python misbehaving_runner.py FD DEVICE PID`.

The runner itself is the real one. The networks are registered the way that `serve` takes them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from dicomai.inference.runner import main
from dicomai.models.runtimes.networks import NETWORKS, UNet3d


class Poison(UNet3d):
    """Kills its process, as a broken kernel of a GPU does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return super().forward(x)


class Stuck(UNet3d):
    """Never comes back, and makes no progress."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while True:
            time.sleep(60)


class Greedy(UNet3d):
    """Wants more memory than there is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.")


class Faulty(UNet3d):
    """Comes upon what CUDA lets no process recover from."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class Hungry(UNet3d):
    """Wants more of the host's memory than there is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise MemoryError


class Patient(UNet3d):
    """Waits until there is a file "go" in the folder that the environment names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":
            go = Path(os.environ["DICOMAI_TEST_GO"])
            (go / f"in-{time.monotonic_ns()}").touch()
            while not (go / "go").exists():
                time.sleep(0.01)
        return super().forward(x)


class PatientPoison(Patient):
    """Kills its process, once the file exists."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        super().forward(x)
        if x.device.type != "meta":
            os.kill(os.getpid(), signal.SIGSEGV)
        return x


class Defective(UNet3d):
    """Has a defect."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
