"""A worker has a runner for each GPU that torch can use, else one for the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicomai.models import device
from dicomai.roles.work import devices

TORCH = """
import torch

ones, said = torch.ones, {said}

def computed(size, *, device):
    if said[device.index]:
        raise torch.AcceleratorError("CUDA error: " + said[device.index])
    return ones(size)

torch.cuda.device_count = lambda: len(said)
torch.cuda.is_available = lambda: {available}
torch.ones = computed
"""


@pytest.mark.parametrize(
    ("available", "said", "found"),
    [
        (True, ("", ""), ("cuda:0", "cuda:1")),
        (True, ("no kernel image is available", ""), ("cuda:1",)),
        (True, ("busy", ""), ("cuda:0", "cuda:1")),
        (False, ("", ""), ("cpu",)),  # as under a driver that is too old
    ],
)
def test_auto_takes_the_gpus_that_torch_can_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: bool,
    said: tuple[str, ...],
    found: tuple[str, ...],
) -> None:
    text = TORCH.format(available=available, said=said)
    (tmp_path / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(device, "_DRIVERS", (tmp_path,))
    assert devices("auto") == found


def test_where_there_is_no_driver_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_DRIVERS", ())
    assert devices("auto") == ("cpu",)
    assert devices("cuda:1") == ("cuda:1",)
