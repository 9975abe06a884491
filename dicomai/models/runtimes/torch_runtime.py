"""Runs a package's network with torch, eager, on one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dicomai.errors import ConfigError, ResourceError
from dicomai.models.package import Package, verify
from dicomai.models.runtimes.networks import NETWORKS, Builder, build

_CPU_FULL: Final = "DefaultCPUAllocator: can't allocate memory"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A package with its network in the memory of a device, ready to be called."""

    package: Package
    device: torch.device
    network: nn.Module

    def __call__(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the probabilities of a batch.

        Parameters
        ----------
        inputs : (N, C, K, J, I) or (N, C, J, I) float32
            Preprocessed as the manifest says.

        Returns
        -------
        (N, C', K, J, I) or (N, C') float32
            After the activation, 0 to 1.

        Raises
        ------
        ResourceError
            The device's memory does not suffice.
        """
        infer = self.package.manifest.infer
        half = infer.precision == "bfloat16" and has_bfloat16(self.device)
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half),
            ):
                shown = torch.from_numpy(inputs).to(self.device)
                logits = self.network(shown.to(memory_format=_memory_format(shown))).float()
                if infer.activation == "sigmoid":
                    probabilities = torch.sigmoid(logits)
                else:
                    probabilities = torch.softmax(logits, dim=1)
                out: npt.NDArray[np.float32] = probabilities.cpu().numpy()
                return out
        except (torch.OutOfMemoryError, RuntimeError) as error:
            # The allocator of the CPU has no class of its own for it.
            if not isinstance(error, torch.OutOfMemoryError) and _CPU_FULL not in str(error):
                raise
            raise ResourceError(
                f"Model {self.package.name}, infer: the memory of {self.device} does not suffice: "
                f"{str(error).splitlines()[0]}",
                subject=str(self.device),
            ) from None


def _memory_format(inputs: torch.Tensor) -> torch.memory_format:
    """Return the order of axes in memory that convolutions take least time in."""
    return torch.channels_last_3d if inputs.dim() == 5 else torch.channels_last


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has instructions for bfloat16; without, it takes longer than float32.

    A package that allows bfloat16 is run in float32 where there are none.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return any(able.get(each, False) for each in ("amx_bf16", "avx512_bf16", "bf16"))


def resolve_device(device: str) -> torch.device:
    """Return the device of a setting: "auto" takes the first GPU, or the CPU where there is none.

    Raises
    ------
    ConfigError
        The device that was named is not there.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f'worker.device: {device!r} is no device; give "auto", "cpu" or "cuda:0".',
            subject=device,
        ) from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"worker.device: {device} is not there; torch sees {torch.cuda.device_count()} GPUs. "
            'Give "auto" or "cpu", or look at the driver with nvidia-smi.',
            subject=device,
        )
    return found


def load(
    package: Package, device: str = "auto", *, networks: Mapping[str, Builder] = NETWORKS
) -> LoadedModel:
    """Return a package's network with its weights, on a device.

    Parameters
    ----------
    package
        Its files are compared with its digest first.
    device
        "auto", "cpu", "cuda:0", …
    networks
        Those that a manifest may name.

    Raises
    ------
    ConfigError
        The package has changed, the weights can't be read or don't fit the network, or the device
        is not there.
    """
    verify(package)
    target = resolve_device(device)
    network = build(package.manifest.infer.network, package.manifest.infer.arguments, networks)
    try:
        weights = load_file(package.weights)
        network.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"Model package {package.name}: {package.weights.name} does not fit network "
            f"{package.manifest.infer.network!r}: {reason[:300]}",
            subject=package.name,
        ) from None
    if not all(bool(torch.isfinite(each).all()) for each in network.state_dict().values()):
        raise ConfigError(
            f"Model package {package.name}: {package.weights.name} holds numbers that are not "
            "finite. Take the package from its maker again.",
            subject=package.name,
        )
    return LoadedModel(package=package, device=target, network=network.eval().to(target))
