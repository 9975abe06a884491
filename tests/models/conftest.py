"""Packages that know the answer: small networks whose weights are written down, not trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dicomai.models.runtimes.networks import build

MANIFEST = """
format = 1
name = "{name}"
version = "1.0.0"
manufacturer = "dicomai"
licence = "Apache-2.0"
intended_use = "Tests."
not_for = "Patients."
sought = "Lungs"

[limits]
modality = ["CT"]

[[input]]
name = "ct"
kind = "volume"
when = ["Modality = CT"]
prefer = ["-instances"]

[preprocess]
spacing_mm = [4.0, 4.0, 4.0]
clip = [-1000, 400]

[infer]
network = "unet3d"
arguments = {{ channels = [4, 8] }}
inferer = "sliding_window"
window_kji = [16, 16, 16]
activation = "sigmoid"

[[output]]
kind = "segment"
label = "Lungs"
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "39607008", scheme = "SCT", meaning = "Lung" }}

[measure]
segment = ["volume"]
"""


def write_package(folder: Path, name: str = "lungs") -> Path:
    """Write a package with fresh weights under `folder` and return its own folder."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "model.toml").write_text(MANIFEST.format(name=name))
    (package / "CARD.md").write_text("# Lungs\n")
    torch.manual_seed(1)
    save_file(build("unet3d", {"channels": (4, 8)}).state_dict(), package / "weights.safetensors")
    return package


@pytest.fixture
def lungs_package(tmp_path: Path) -> Path:
    """The folder of a whole package called "lungs"."""
    return write_package(tmp_path / "models")
