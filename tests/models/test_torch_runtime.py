"""The runtime gives probabilities of the shape that went in, or says what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dicomai.errors import ConfigError, ResourceError
from dicomai.models import package
from dicomai.models.runtimes import networks, torch_runtime
from tests.inference import own_memory


@pytest.mark.parametrize("shape", [(16, 16, 16), (5, 17, 9), (1, 3, 2)])
def test_a_unet_takes_any_shape(lungs_package: Path, shape: tuple[int, int, int]) -> None:
    model = torch_runtime.load(package.load(lungs_package), "cpu")
    out = model(torch.rand((2, 1, *shape), generator=torch.Generator().manual_seed(0)))
    assert out.shape == (2, 1, *shape)
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_is_used_where_the_device_has_it_and_float32_where_not(
    lungs_package: Path, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    shown = torch.rand((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    exact = torch_runtime.load(package.load(lungs_package), "cpu")(shown)
    manifest = lungs_package / "model.toml"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace("[infer]", '[infer]\nprecision = "bfloat16"'))
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": able}
    )
    out = torch_runtime.load(package.load(lungs_package), "cpu")(shown)
    assert torch.allclose(out, exact, atol=0.02)
    assert (out == exact).all() != able


def test_a_gpu_computes_float32_as_float32(lungs_package: Path) -> None:
    own_memory.attached()
    # As TORCH_ALLOW_TF32_CUBLAS_OVERRIDE has it, which NVIDIA's own containers set.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]  # no stub; torch's own
    torch_runtime.load(package.load(lungs_package), own_memory.DEVICE)
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]  # no stub
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
def test_a_network_is_compiled_for_a_gpu_and_not_for_the_cpu(
    lungs_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = lungs_package / "model.toml"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace("[infer]", "[infer]\ncompile = true"))
    model = torch_runtime.load(package.load(lungs_package), "cpu")
    assert model.compiled is None
    shown = torch.rand((1, 1, 16, 16, 16))
    tries: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        tries.append(graph)
        raise RuntimeError("there is no compiler")

    compile_by = partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compile_by)
    forward = torch_runtime.compiled_for(torch.device("cuda"), model.network)
    # As on a host that can't: the network runs as it is, in whatever thread.
    with ThreadPoolExecutor(1) as other:
        out = other.submit(replace(model, compiled=forward), shown).result()
    assert tries
    assert (out == model(shown)).all()


@pytest.mark.parametrize("pool", ["mean", "max", "both"])
def test_a_classifier_gives_a_logit_per_class(pool: str) -> None:
    network = networks.build("classifier2d", {"classes": 3, "channels": (4, 8), "pool": pool})
    assert network(torch.zeros(2, 1, 33, 64)).shape == (2, 3)


def test_an_unknown_network_or_argument_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no network 'resnet'; there are classifier2d, unet3d"):
        networks.build("resnet", {})
    with pytest.raises(ConfigError, match=r"infer\.arguments.*'depth'"):
        networks.build("unet3d", {"depth": 3})


def test_what_an_argument_should_be_called_is_told(lungs_package: Path) -> None:
    manifest = lungs_package / "model.toml"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace("channels = [4, 8]", "chanels = [4, 8]"))
    with pytest.raises(ConfigError) as error:
        torch_runtime.load(package.load(lungs_package), "cpu")
    assert error.value.sentence == (
        f"{manifest}, infer.arguments: network 'unet3d' takes no 'chanels'; it takes "
        "in_channels, out_channels, channels, norm."
    )


@pytest.mark.parametrize("channels", ["[]", "[4, -1]", "[4.5]", '"many"'])
def test_arguments_that_build_no_network_are_named(lungs_package: Path, channels: str) -> None:
    manifest = lungs_package / "model.toml"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace("channels = [4, 8]", f"channels = {channels}"))
    with pytest.raises(ConfigError, match=r"infer\.arguments: network 'unet3d' can't be built"):
        torch_runtime.load(package.load(lungs_package), "cpu")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (torch.nn.Conv3d(2, 1, 3, padding=1), "does not take (1, 1, 16, 16, 16)"),
        (torch.nn.Conv2d(1, 1, 3, padding=1), "does not take (1, 1, 16, 16, 16)"),
        (torch.nn.Conv3d(1, 2, 3), "gives (1, 2, 14, 14, 14) of (1, 1, 16, 16, 16)"),
        (torch.nn.Flatten(0), "gives (4096,) of (1, 1, 16, 16, 16)"),
    ],
)
def test_a_network_that_does_not_fit_its_manifest_is_not_loaded(
    lungs_package: Path, network: torch.nn.Module, words: str
) -> None:
    save_file(network.state_dict(), lungs_package / "weights.safetensors")
    loaded = package.load(lungs_package)
    with pytest.raises(ConfigError) as error:
        torch_runtime.load(loaded, "cpu", networks={"unet3d": lambda **_: network})
    assert f"infer.arguments: network 'unet3d' {words}" in error.value.sentence


def test_a_deep_network_for_whole_volumes_is_loaded(lungs_package: Path) -> None:
    manifest = lungs_package / "model.toml"
    text = re.sub(
        r"\[infer\].*?(?=\nactivation)",
        '[infer]\nnetwork = "unet3d"\narguments = { channels = [4, 4, 8, 8, 8] }\n'
        'inferer = "whole"',
        manifest.read_text(),
        flags=re.DOTALL,
    )
    manifest.write_text(text)
    deep = networks.build("unet3d", {"channels": (4, 4, 8, 8, 8)})
    save_file(deep.state_dict(), lungs_package / "weights.safetensors")
    assert torch_runtime.load(package.load(lungs_package), "cpu").is_on_cpu


def test_weights_in_whole_numbers_are_named(lungs_package: Path) -> None:
    weights = load_file(lungs_package / "weights.safetensors")
    weights["last.bias"] = weights["last.bias"].to(torch.int8)
    save_file(weights, lungs_package / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"last\.bias holds torch\.int8"):
        torch_runtime.load(package.load(lungs_package), "cpu")


def test_weights_of_another_network_are_named(lungs_package: Path) -> None:
    other = networks.build("unet3d", {"channels": (8, 8)}).state_dict()
    save_file(other, lungs_package / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"weights\.safetensors does not fit network 'unet3d'"):
        torch_runtime.load(package.load(lungs_package), "cpu")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            lambda own: {f"module.{name}": each for name, each in own.items()},
            r"its keys begin otherwise: module\.down\.0\.layers\.0\.weight, not down\.0\.layers\.0",
        ),
        (
            lambda own: {name: own[name] for name in own if "last" not in name},
            r"it lacks last\.bias, last\.weight\.",
        ),
        (
            lambda own: own | {f"head.{number}": torch.zeros(1) for number in range(5)},
            r"it has head\.0, head\.1, head\.2 and 2 more too",
        ),
        (
            lambda own: own | {"last.bias": torch.zeros(3)},
            r"last\.bias has the shape \(3,\), and the network \(1,\)",
        ),
    ],
)
def test_what_of_weights_does_not_fit_is_told_with_the_remedy(
    lungs_package: Path, made: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    path = lungs_package / "weights.safetensors"
    save_file(made(load_file(path)), path)
    with pytest.raises(ConfigError, match=words) as error:
        torch_runtime.load(package.load(lungs_package), "cpu")
    assert "Save the state dict of the network that infer.arguments builds" in error.value.sentence
    assert "state_dict" not in error.value.sentence


def test_a_pickle_is_not_opened(lungs_package: Path) -> None:
    torch.save({"a": torch.zeros(1)}, lungs_package / "weights.safetensors")
    with pytest.raises(ConfigError, match="does not fit"):
        torch_runtime.load(package.load(lungs_package), "cpu")


@pytest.mark.parametrize(
    ("number", "dtype"), [(float("nan"), torch.float32), (1e39, torch.float64)]
)
def test_weights_that_are_not_finite_in_the_network_are_refused(
    lungs_package: Path, number: float, dtype: torch.dtype
) -> None:
    weights = load_file(lungs_package / "weights.safetensors")
    weights["last.bias"] = torch.full_like(weights["last.bias"], number, dtype=dtype)
    save_file(weights, lungs_package / "weights.safetensors")
    with pytest.raises(ConfigError, match="not finite"):
        torch_runtime.load(package.load(lungs_package), "cpu")


def test_weights_of_a_narrow_floating_point_are_taken(lungs_package: Path) -> None:
    weights = load_file(lungs_package / "weights.safetensors")
    narrow = {name: each.to(torch.float8_e4m3fn) for name, each in weights.items()}
    save_file(narrow, lungs_package / "weights.safetensors")
    model = torch_runtime.load(package.load(lungs_package), "cpu")
    assert {each.dtype for each in model.network.parameters()} == {torch.float32}


def test_too_little_memory_is_told_as_such(lungs_package: Path) -> None:
    class Greedy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.device.type == "meta" else torch.empty(1 << 60, dtype=torch.uint8)

    save_file({}, lungs_package / "weights.safetensors")
    greedy = torch_runtime.load(
        package.load(lungs_package), "cpu", networks={"unet3d": lambda **_: Greedy()}
    )
    with pytest.raises(ResourceError, match="Model lungs: the memory of the host does not"):
        greedy(torch.zeros((1, 1, 4, 4, 4)))
