"""On a host a network gives the same numbers as the plain one in float64, in less memory."""

from __future__ import annotations

import copy
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dicomai.models import package
from dicomai.models.runtimes import layers, torch_runtime
from dicomai.models.runtimes.layers import GroupNorm
from dicomai.models.runtimes.networks import Classifier2d, UNet3d, build, for_host
from dicomai.models.runtimes.rehearsal import rehearsed_bytes

BUILTIN = Path(str(resources.files("dicomai.models.builtin")))


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def exact(network: nn.Module, shown: torch.Tensor) -> torch.Tensor:
    """What torch's own layers make of it in float64, channel by channel in memory."""
    plain = copy.deepcopy(network).double()
    for each in plain.modules():
        if isinstance(each, GroupNorm):
            each.__class__ = nn.GroupNorm
    with torch.inference_mode():
        out: torch.Tensor = plain(shown.double().contiguous())
    return out


@pytest.mark.parametrize("brightness", [0.0, 1.0])
def test_a_window_that_is_all_alike_gives_what_float64_does(brightness: float) -> None:
    lungs = package.load(BUILTIN / "chest-ct-lungs")
    model = torch_runtime.load(lungs, "cpu")
    plain = build(lungs.manifest.infer.network, lungs.manifest.infer.arguments)
    plain.load_state_dict(load_file(lungs.weights))
    shown = torch.full((1, 1, 48, 80, 112), brightness)
    truth = torch.softmax(exact(plain, shown), dim=1)
    assert (model(shown) - truth).abs().max() < 1e-4


def test_an_image_of_one_colour_gives_what_float64_does() -> None:
    torch.manual_seed(0)
    network = Classifier2d(in_channels=3).eval()
    shown = torch.full((2, 3, 128, 96), 1.0).to(memory_format=torch.channels_last)
    shown = shown + random(2, 3, 128, 96).to(memory_format=torch.channels_last) / 10_000
    with torch.inference_mode():
        found = network(shown)
    assert (found - exact(network, shown)).abs().max() < 1e-5


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("shape", [(16, 16, 16), (12, 10, 14), (13, 9, 11), (2, 3, 5), (7, 8, 8)])
def test_levels_that_are_joined_in_slabs_give_the_same(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], norm: str
) -> None:
    monkeypatch.setattr(layers, "_SLAB_VALUES", 1)  # two planes at a time
    monkeypatch.setattr(layers, "_LARGE_VALUES", 1)
    monkeypatch.setattr(layers, "_CACHED_VALUES", 1000)
    torch.manual_seed(0)
    plain = UNet3d(in_channels=2, out_channels=3, channels=(8, 16, 24), norm=norm).eval()
    shown = random(2, 2, *shape)
    with torch.inference_mode():
        found = for_host(copy.deepcopy(plain))(shown)
    assert (found - exact(plain, shown)).abs().max() < 1e-5


def test_normalisation_by_what_training_saw_is_a_part_of_the_convolutions() -> None:
    torch.manual_seed(0)
    plain = UNet3d(channels=(8, 16), norm="batch").train()
    for _ in range(5):
        plain(torch.randn(2, 1, 12, 12, 12) * 3 + 1)  # from which it learns mean and variance
    for each in plain.parameters():
        nn.init.uniform_(each, -0.5, 0.5)
    shown = random(1, 1, 16, 12, 20)
    learning = for_host(copy.deepcopy(plain))
    assert any(isinstance(each, nn.BatchNorm3d) for each in learning.modules())
    found = for_host(copy.deepcopy(plain.eval()))
    assert not any(isinstance(each, nn.BatchNorm3d) for each in found.modules())
    with torch.inference_mode():
        assert torch.allclose(found(shown).double(), exact(plain, shown), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_no_convolution_of_a_host_unfolds_its_input() -> None:
    # 9,216 of the first and 18,432 of the third level are too few for torch to ask oneDNN.
    network = for_host(UNet3d(channels=(8, 16, 32)).eval())
    with torch.inference_mode(), torch.profiler.profile() as ran:
        network(random(1, 1, 96, 96, 96))
    named = {event.key for event in ran.key_averages()}
    assert "aten::mkldnn_convolution" in named
    assert not {each for each in named if "slow_conv" in each}


def test_levels_that_are_joined_in_slabs_take_half_the_memory() -> None:
    plain = UNet3d(channels=(32, 64, 128)).eval()
    shape = (1, 1, 96, 96, 96)
    at_once = rehearsed_bytes(plain, shape)
    in_slabs = rehearsed_bytes(for_host(copy.deepcopy(plain)), shape)
    assert in_slabs < 0.55 * at_once


def test_gradients_are_the_same_with_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_SLAB_VALUES", 1)
    monkeypatch.setattr(layers, "_LARGE_VALUES", 1)
    torch.manual_seed(0)
    plain = UNet3d(channels=(8, 16)).train()
    other = for_host(copy.deepcopy(plain))
    shown = random(2, 1, 8, 8, 8)
    for network in (plain, other):
        network(shown).square().mean().backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.allclose(one.grad, two.grad, atol=1e-5)
