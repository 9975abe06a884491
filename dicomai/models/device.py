"""How settings and the command line name the device that a network runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DEVICE_PATTERN: Final = r"^(auto|cpu|cuda(:[0-9]+)?)$"
_DRIVERS: Final = tuple(map(Path, ("/proc/driver/nvidia/gpus", "/dev/nvidiactl", "/dev/dxg")))
"""Signs of NVIDIA's driver on a host, and in a container that hides it in /proc; and of that of any
GPU in WSL."""


def has_gpu_driver() -> bool:
    """Tell whether there may be a GPU, without torch, which takes seconds to load."""
    return any(each.exists() for each in _DRIVERS)
