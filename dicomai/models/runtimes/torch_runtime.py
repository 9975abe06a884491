"""Runs a package's network with torch, eager, on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor, nn

from dicomai.errors import ConfigError, ResourceError
from dicomai.models.manifest import MANIFEST_NAME, Manifest
from dicomai.models.package import Package, verify
from dicomai.models.runtimes.devices import (
    HOST,
    has_bfloat16,
    is_out_of_memory,
    resolve_device,
    short_place,
)
from dicomai.models.runtimes.networks import (
    NETWORKS,
    Builder,
    build,
    copied,
    for_host,
    memory_format,
)
from dicomai.models.runtimes.rehearsal import rehearsed_bytes, rehearsed_shape
from dicomai.models.runtimes.weights import fill

_SOME_VOLUME: Final = (128, 128, 128)
"""Shape of a whole volume, where a manifest leaves it to the series."""


def _no_room() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A package with its network in the memory of a device, ready to be called."""

    package: Package
    device: torch.device
    network: nn.Module
    make_room: Callable[[], bool] = _no_room
    """Drops what else stands in the device's memory; False where nothing does."""
    compiled: Callable[[Tensor], Tensor] | None = None
    """The network as torch has compiled it, where the manifest lets it."""
    _rehearsed: dict[tuple[int, ...], int] = field(default_factory=dict)

    @property
    def weights_bytes(self) -> int:
        """What its weights take."""
        state = self.network.state_dict().values()
        return sum(each.numel() * each.element_size() for each in state)

    @property
    def silent(self) -> Literal["infer"] | None:
        """The stage in which it is compiled, for a minute and more with each number of windows."""
        return None if self.compiled is None else "infer"

    @property
    def is_on_cpu(self) -> bool:
        """Whether it runs on the host."""
        return self.device.type == "cpu"

    def on_cpu(self) -> LoadedModel:
        """Return the same on the CPU."""
        return LoadedModel(
            package=self.package,
            device=torch.device("cpu"),
            network=for_host(copied(self.network, "cpu")),
        )

    def free_bytes(self) -> int | None:
        """Return what is free of the device's own memory; None on the CPU."""
        if self.is_on_cpu:
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(free + unused)

    def pass_bytes(self, shape: tuple[int, ...]) -> int:
        """Return what a forward pass over an input (N, C, …) takes beside the weights.

        It is rehearsed with tensors that have shapes and no memory; 0 where the network can't be.
        """
        if shape not in self._rehearsed:
            self._rehearsed[shape] = rehearsed_bytes(self.network, shape)
        return self._rehearsed[shape]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the probabilities of a batch.

        Parameters
        ----------
        inputs : (N, C, K, J, I) or (N, C, J, I) float32
            Preprocessed as the manifest says; on any device.

        Returns
        -------
        (N, C', K, J, I) or (N, C') float32
            After the activation, 0 to 1; on the model's device, in the order of its axes.

        Raises
        ------
        ResourceError
            The device's memory does not suffice.
        """
        try:
            return self._shown(inputs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            place, trouble = short_place(error, self.device), str(error)
        # Not within: the error would keep what its frames hold.
        raise _no_memory(self.package, place, trouble)

    def _shown(self, inputs: Tensor) -> Tensor:
        infer = self.package.manifest.infer
        half = infer.precision == "bfloat16" and has_bfloat16(self.device)
        forward = self.network if self.compiled is None else self.compiled
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half),
        ):
            shown = inputs.to(self.device)
            logits = forward(shown.to(memory_format=memory_format(shown)))
            # Channel by channel in memory, as they are blended and compared.
            logits = logits.float().contiguous()
            if infer.activation == "sigmoid":
                return torch.sigmoid(logits)
            return torch.softmax(logits, dim=1)


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
        The package has changed, the network does not take or give what the manifest says, the
        weights can't be read or don't fit the network, or the device is not there.
    ResourceError
        The memory of the device does not suffice, or that of the host: the subject says which.
    """
    verify(package)
    target = resolve_device(device)
    try:
        return _loaded(package, target, networks)
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        place, trouble = short_place(error, target), str(error)
    # Not within: the error would keep what its frames hold.
    raise _no_memory(package, place, trouble)


def _no_memory(package: Package, place: str, trouble: str) -> ResourceError:
    torch.cuda.empty_cache()
    other = "" if place == HOST else ', or "cpu" as worker.device or --device'
    why = next(iter(trouble.splitlines()), "it is full").rstrip(".")
    return ResourceError(
        f"Model {package.name}: the memory of {place} does not suffice: {why}. Give it more"
        f"{other}.",
        subject=place,
    )


def _loaded(package: Package, target: torch.device, networks: Mapping[str, Builder]) -> LoadedModel:
    infer = package.manifest.infer
    try:
        network = build(infer.network, infer.arguments, networks).eval()
    except ConfigError as error:
        where = package.folder / MANIFEST_NAME
        raise ConfigError(f"{where}, {error.sentence}", subject=error.subject) from None
    _check_fits(network, package.manifest)
    fill(network, package)
    network = network.to(target)
    if target.type == "cpu":
        network = for_host(network)
    else:
        # For the whole process. torch's own choice, TF32, has 10 bits of a number, not 23.
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # no stub
        # Of products it is torch's own choice only where no variable of a container says other.
        torch.set_float32_matmul_precision("highest")
    compiled = compiled_for(target, network) if package.manifest.infer.compile else None
    return LoadedModel(package=package, device=target, network=network, compiled=compiled)


def _check_fits(network: nn.Module, manifest: Manifest) -> None:
    """Raise ConfigError unless a network takes and gives what a manifest says."""
    infer = manifest.infer
    # A manifest of an image has shape_ji; its network answers for the whole of it.
    grid = manifest.preprocess.shape_ji or infer.window_kji or _SOME_VOLUME
    places = grid if manifest.input[0].kind == "volume" else ()
    shown, named = (1, manifest.channels_shown, *grid), manifest.channels_named
    where = f"Model package {manifest.name}, infer.arguments: network {infer.network!r}"
    try:
        given = rehearsed_shape(network, shown)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{where} does not take {shown}, what its model.toml says it is shown: "
            f"{reason[:300]}. Correct infer, input or preprocess.",
            subject=manifest.name,
        ) from None
    if len(given) < 2 or given[0] != 1 or given[1] < named or given[2:] != places:
        raise ConfigError(
            f"{where} gives {given} of {shown}, and its model.toml names {named} channels of "
            f"{len(places)} dimensions. Correct infer or output.",
            subject=manifest.name,
        )


def compiled_for(device: torch.device, network: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return a network that torch compiles when it is first called; None on the CPU.

    There it takes 40 s, and forward passes of a U-Net as long as before (benchmarks/inference.md).
    """
    if device.type == "cpu":
        return None
    compiled = torch.compile(network)

    def forward(shown: Tensor) -> Tensor:
        # For the thread that calls: where compiling fails, the network runs as it is.
        with torch._dynamo.config.patch(suppress_errors=True):
            out: Tensor = compiled(shown)
            return out

    return forward
