"""An image is shown whole, in proportion, and answered with a probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from dicomai.errors import ConfigError, ResourceError
from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Plane
from dicomai.imaging.image import SourceImagePixels
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.pipeline import analyse
from dicomai.inference.preprocess import prepare_image
from dicomai.models.runtimes.torch_runtime import LoadedModel
from dicomai.models.steps import Preprocess
from tests.inference import own_memory

Teller = Callable[[str], LoadedModel]

MANIFEST = """
[limits]
modality = ["DX", "CR"]
view_position = ["PA", "AP"]
allow_missing = ["view_position"]
[[input]]
name = "chest"
kind = "image"
[preprocess]
shape_ji = [32, 32]
clip = [0, 1000]
scale_to = [-4.0, 4.0]
[infer]
network = "brightest"
inferer = "whole"
activation = "sigmoid"
[[output]]
kind = "class"
label = "Nodule"
threshold = 0.4
finding = { value = "27925004", scheme = "SCT", meaning = "Nodule" }
"""


def silent(stage: str, fraction: float) -> None:
    del stage, fraction


def image(
    pixels: np.ndarray, spacing: tuple[float, float] | None = None, view: str = "PA"
) -> SourceImagePixels:
    height, width = pixels.shape
    return SourceImagePixels(
        plane=Plane(shape_ji=(height, width), spacing_ji_mm=spacing, sop_instance_uid="1.2"),
        pixels=pixels.astype(np.float32),
        facts=Facts(modality="DX", view_position=view),
        series_instance_uid="1.2.3",
    )


def test_an_image_is_classified_by_its_threshold(teller: Teller) -> None:
    model = teller(MANIFEST)
    dark, bright = np.zeros((64, 48)), np.zeros((64, 48))
    bright[20:40, 10:30] = 1000
    (no,) = analyse(model, image(dark), (), silent).classifications
    (yes,) = analyse(model, image(bright), (), silent).classifications
    assert no.probability == pytest.approx(1 / (1 + np.exp(4)), rel=1e-3)
    assert yes.probability == pytest.approx(1 / (1 + np.exp(-4)), rel=1e-3)
    assert (no.present, yes.present) == (False, True)
    assert yes.threshold == 0.4
    assert analyse(model, image(dark), (), silent).nothing_found


class Narrow(torch.nn.Module):
    """A network that finds no memory on any device but the host."""

    def __init__(self, inner: torch.nn.Module, error: Exception) -> None:
        super().__init__()
        self.inner, self.error = inner, error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            raise self.error
        return torch.Tensor(self.inner(x))


def test_an_image_for_which_its_device_has_no_memory_is_shown_on_the_cpu(teller: Teller) -> None:
    own_memory.attached()
    model = teller(MANIFEST)
    room = iter([True, False])
    asked = replace(
        model,
        device=torch.device(own_memory.DEVICE),
        network=Narrow(model.network, torch.OutOfMemoryError("CUDA out of memory.")),
        make_room=lambda: next(room),
    )
    bright = image(np.full((64, 48), 1000.0))
    plain, found = (analyse(each, bright, (), silent) for each in (model, asked))
    assert found.classifications == plain.classifications
    assert plain.deviations == ()
    assert found.deviations == (
        "The memory of pretended:0 did not suffice; the network ran on the CPU.",
    )
    assert not list(room), "it was not asked whether others leave room"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
)
def test_an_image_for_which_the_host_has_no_memory_goes_to_no_cpu(
    teller: Teller, error: Exception
) -> None:
    own_memory.attached()
    model = teller(MANIFEST)
    full = Narrow(model.network, error)
    asked = replace(model, device=torch.device(own_memory.DEVICE), network=full)
    with pytest.raises(ResourceError, match="the memory of the host does not suffice"):
        analyse(asked, image(np.zeros((64, 48))), (), silent)


@pytest.mark.parametrize(
    ("shape", "spacing", "inner"),
    [
        ((64, 32), None, (32, 16)),
        ((30, 60), None, (16, 32)),
        ((64, 64), (1.0, 0.5), (32, 16)),
        ((8, 8), None, (32, 32)),
    ],
)
def test_an_image_keeps_its_proportions(
    shape: tuple[int, int], spacing: tuple[float, float] | None, inner: tuple[int, int]
) -> None:
    (out,) = prepare_image(
        image(np.full(shape, 500.0), spacing), Preprocess(shape_ji=(32, 32), clip=(0, 1000))
    )
    held = np.argwhere(out > 0.25)
    assert out.shape == (32, 32)
    assert tuple(held.max(axis=0) - held.min(axis=0) + 1) == inner
    np.testing.assert_allclose(held.mean(axis=0), 15.5, atol=0.5)


def test_an_image_is_not_mirrored() -> None:
    pixels = np.zeros((60, 60))
    pixels[:20, :30] = 1000
    (out,) = prepare_image(image(pixels), Preprocess(shape_ji=(30, 30), clip=(0, 1000)))
    assert out[:9, :14].min() == 1
    assert out[11:].max() == 0
    assert out[:, 16:].max() == 0


def test_pixels_without_a_spacing_keep_their_proportions() -> None:
    """6\\5: a pixel of 0.30 mm between rows and 0.25 between columns (PS3.3 C.7.6.3.1.7)."""
    steps = Preprocess(shape_ji=(60, 60), clip=(0, 1), scale_to=(0, 1))
    plain = image(np.ones((50, 60)))
    (square,) = prepare_image(plain, steps)
    assert (square.max(axis=1) > 0.5).sum() == 50
    (true,) = prepare_image(replace(plain, plane=replace(plain.plane, aspect_ji=(6.0, 5.0))), steps)
    assert ((true.max(axis=1) > 0.5).sum(), (true.max(axis=0) > 0.5).sum()) == (60, 60)
    known = replace(plain.plane, spacing_ji_mm=(1.0, 1.0), aspect_ji=(6.0, 5.0))
    measured = replace(plain, plane=known)
    np.testing.assert_array_equal(prepare_image(measured, steps)[0], square)


def test_percentiles_stretch_what_has_no_unit() -> None:
    pixels = np.linspace(100, 4000, 10000).reshape(100, 100)
    (out,) = prepare_image(
        image(pixels), Preprocess(shape_ji=(100, 100), clip_percentiles=(10, 90))
    )
    assert out[0, 0] == 0
    assert out[-1, -1] == 1
    assert out[50, 0] == pytest.approx(0.5, abs=0.01)
    (flat,) = prepare_image(
        image(np.full((9, 9), 7.0)), Preprocess(shape_ji=(9, 9), clip_percentiles=(1, 99))
    )
    assert set(np.unique(flat)) == {0}


def test_a_volume_is_no_image(teller: Teller, make_body: Callable[..., SourceVolume]) -> None:
    source = make_body(lambda lps: lps[..., 0])
    with pytest.raises(ConfigError, match="takes one image, not a volume"):
        analyse(teller(MANIFEST), source, (), silent)
