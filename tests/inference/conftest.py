"""Models that tell the truth by arithmetic, and bodies whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Grid
from dicomai.imaging.volume import SourceVolume
from dicomai.models import package
from dicomai.models.runtimes import torch_runtime
from dicomai.models.runtimes.networks import NETWORKS
from dicomai.models.runtimes.torch_runtime import LoadedModel

HEAD = """
format = 1
name = "truth-teller"
version = "1.2.3"
manufacturer = "dicomai"
licence = "Apache-2.0"
intended_use = "Tests."
not_for = "Patients."
sought = "What the test put there"
"""
VOLUME = """
[limits]
modality = ["CT", "MR"]
[[input]]
name = "ct"
kind = "volume"
[preprocess]
spacing_mm = [4.0, 4.0, 4.0]
clip = [-2000, 2000]
scale_to = [-2000, 2000]
[infer]
network = "bands"
arguments = { bands = [-2000.0, -380.0] }
inferer = "whole"
activation = "sigmoid"
"""


class Bands(nn.Module):
    """Each channel is the surer of a voxel, the further inside its band of values it lies."""

    def __init__(self, bands: tuple[float, ...]) -> None:
        super().__init__()
        self.bands = list(zip(bands[::2], bands[1::2], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, …) to logits (N, bands, …)."""
        return torch.cat([torch.minimum(x - low, high - x) / 400 for low, high in self.bands], 1)


class Brightest(nn.Module):
    """Says of an image how bright its brightest pixel is."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, J, I) to logits (N, 1)."""
        return x.amax(dim=(2, 3))


class Broken(nn.Module):
    """Gives nothing that is a number."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, …) to as many NaN."""
        return x * float("nan")


class Narrow(Bands):
    """Has memory for two windows at a time."""

    seen: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, …) to logits (N, bands, …), as long as N is at most 2."""
        if x.device.type != "meta":
            self.seen.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.")
        return super().forward(x)


TELLERS = {
    **NETWORKS,
    "bands": Bands,
    "brightest": Brightest,
    "broken": Broken,
    "narrow": Narrow,
}


@pytest.fixture(scope="session")
def teller(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Gives a model whose manifest is a head and the rest that is given."""

    def load(rest: str) -> LoadedModel:
        folder = tmp_path_factory.mktemp("teller") / "truth-teller"
        folder.mkdir()
        (folder / "model.toml").write_text(HEAD + rest)
        (folder / "CARD.md").write_text("It tells the truth.\n")
        save_file({}, folder / "weights.safetensors")
        return torch_runtime.load(package.load(folder), "cpu", networks=TELLERS)

    return load


Field = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def body(
    values: Field,
    *,
    row: tuple[float, float, float] = (1, 0, 0),
    column: tuple[float, float, float] = (0, 1, 0),
    spacing_kji: tuple[float, float, float] = (2.0, 1.5, 1.5),
    extent_mm: float = 150.0,
    modality: str = "CT",
) -> SourceVolume:
    """A cube around the origin whose voxels hold a function of their patient coordinates."""
    across, down = np.array(row, dtype=float), np.array(column, dtype=float)
    steps = np.stack((np.cross(across, down), down, across), axis=1) * spacing_kji
    shape = tuple(round(extent_mm / step) for step in spacing_kji)
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = -steps @ ((np.array(shape) - 1) / 2)
    grid = Grid(
        shape_kji=(shape[0], shape[1], shape[2]),
        index_to_lps=affine,
        frame_of_reference_uid="1.2.3",
        sop_instance_uids=tuple(f"1.2.3.{k}" for k in range(shape[0])),
    )
    lps = np.moveaxis(np.indices(shape), 0, -1) @ steps.T + affine[:3, 3]
    return SourceVolume(
        grid=grid,
        voxels=np.round(values(lps)).astype(np.int16),
        facts=Facts(modality=modality),
        series_instance_uid="1.2.3.4",
    )


def ball(
    lps: npt.NDArray[np.float64], centre: tuple[float, float, float], radius: float
) -> npt.NDArray[np.bool_]:
    """Which points lie in a ball."""
    inside: npt.NDArray[np.bool_] = np.linalg.norm(lps - centre, axis=-1) <= radius
    return inside


@pytest.fixture(scope="session")
def volume_manifest() -> str:
    """The part of a manifest that all models of volumes here share."""
    return VOLUME


@pytest.fixture(scope="session")
def make_body() -> Callable[..., SourceVolume]:
    """Gives `body`."""
    return body


@pytest.fixture(scope="session")
def in_ball() -> Callable[..., npt.NDArray[np.bool_]]:
    """Gives `ball`."""
    return ball


@pytest.fixture(scope="session")
def manifest_head() -> str:
    """The part of a manifest that all models here share."""
    return HEAD


@pytest.fixture
def windows_seen() -> list[int]:
    """How many windows the network "narrow" was shown at a time."""
    Narrow.seen.clear()
    return Narrow.seen
