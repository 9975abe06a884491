"""Runs a package's network with torch, eager, on one device."""

from __future__ import annotations

import copy
import errno
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dicomai.errors import ConfigError, ResourceError, TransientError
from dicomai.models.manifest import MANIFEST_NAME, Manifest
from dicomai.models.package import Package, verify
from dicomai.models.runtimes.networks import NETWORKS, Builder, build, for_host

_HOST_FULL: Final = "DefaultCPUAllocator: can't allocate memory"
_FULL: Final = (
    _HOST_FULL,
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine",
    "NVML_SUCCESS",
)
"""What is said of full memory without a class of its own: by the CPU's allocator, cuBLAS, cuDNN
since its version 9, and torch itself. Of a convolution torch says that it finds no engine when none
had room to work in; and where NVML is not there to tell who takes the memory, as in parts of a GPU
(MIG) and in some containers, its allocator complains of that instead."""
_FAULTS: Final = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error",
    "CUDNN_STATUS",
    "CUBLAS_STATUS",
)
_ARGUMENTS: Final = (
    "CUDNN_STATUS_BAD_PARAM",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_SUPPORTED",
)
"""What libraries say of a call that they do not take; the device is as well as before."""
_NO_CODE: Final = "no kernel image"
"""What CUDA says where a GPU is older, or newer, than those that PyTorch was made for."""
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
            network=for_host(_copied(self.network, "cpu")),
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
            trouble = str(error).splitlines()[0]
        # Not within: the error would keep what its frames hold.
        if not self.is_on_cpu:
            torch.cuda.empty_cache()
        raise ResourceError(
            f"Model {self.package.name}, infer: the memory of {self.device} does not suffice: "
            f"{trouble}",
            subject=str(self.device),
        )

    def _shown(self, inputs: Tensor) -> Tensor:
        infer = self.package.manifest.infer
        half = infer.precision == "bfloat16" and has_bfloat16(self.device)
        forward = self.network if self.compiled is None else self.compiled
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half),
        ):
            shown = inputs.to(self.device)
            logits = forward(shown.to(memory_format=_memory_format(shown)))
            # Channel by channel in memory, as they are blended and compared.
            logits = logits.float().contiguous()
            if infer.activation == "sigmoid":
                return torch.sigmoid(logits)
            return torch.softmax(logits, dim=1)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether there was no memory, of a device or of the host."""
    match error:
        case MemoryError() | torch.OutOfMemoryError():
            return True
        case OSError():
            return error.errno == errno.ENOMEM
        case RuntimeError():
            return any(each in str(error) for each in _FULL)
    return False


def is_device_fault(error: Exception) -> bool:
    """Tell whether a device failed, not its memory: CUDA lets a process use it no more then."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    if is_out_of_memory(error) or any(each in said for each in _ARGUMENTS):
        return False
    return isinstance(error, torch.AcceleratorError) or any(each in said for each in _FAULTS)


def is_host_out_of_memory(error: Exception) -> bool:
    """Tell whether it was the host that had no memory, whatever device the network is on."""
    return isinstance(error, MemoryError) or _HOST_FULL in str(error)


def _copied(network: nn.Module, device: str) -> nn.Module:
    """Return a copy on another device; on its own no second one is made meanwhile."""
    memo: dict[int, object] = {
        id(each): nn.Parameter(each.detach().to(device), requires_grad=each.requires_grad)
        for each in network.parameters()
    }
    memo |= {id(each): each.to(device) for each in network.buffers()}
    out: nn.Module = copy.deepcopy(network, memo)
    return out


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of all storages that live at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.most = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                key = storage._cdata
                if key not in self._live:
                    self._live[key] = storage.nbytes()
                    self.most = max(self.most, sum(self._live.values()))
                    weakref.finalize(storage, self._live.pop, key, None)
        return out


def rehearsed_bytes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the most that a forward pass over an input (N, C, …) takes beside the weights.

    0 where the network can't be led without memory.
    """
    tally = _Tally()
    try:
        _rehearsed(network, shape, tally)
    except Exception:  # noqa: BLE001  # whatever it trips over, the real pass decides
        return 0
    return tally.most


def _rehearsed(network: nn.Module, shape: tuple[int, ...], tally: _Tally) -> Tensor:
    """Return what a forward pass gives, as a tensor that has a shape and no memory."""
    stand_in = _copied(network, "meta")
    inputs = torch.empty(shape, device="meta")
    with torch.inference_mode(), tally:
        logits: Tensor = stand_in(inputs.to(memory_format=_memory_format(inputs)))
        logits.float().exp()
    return logits


def _memory_format(inputs: torch.Tensor) -> torch.memory_format:
    """Return the order of axes in memory that convolutions take least time in."""
    return torch.channels_last_3d if inputs.dim() == 5 else torch.channels_last


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes faster in bfloat16 than in float32.

    A package that allows bfloat16 is run in float32 where it does not. Of a processor only the
    matrix unit does: with the vector instructions alone a window of 64³ took 1.34 times as long in
    bfloat16, with 8 channels and with 12 (median of nine in turn, an Intel Xeon with avx512_bf16).
    """
    if device.type == "cuda":
        # torch's own is_bf16_supported answers for the first GPU, whichever is asked about; and
        # where the arithmetic is missing, cuDNN has no convolution at all.
        return bool(torch.cuda.get_device_properties(device).major >= 8)
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def resolve_device(device: str) -> torch.device:
    """Return the device of a setting: "auto" takes the first GPU, or the CPU where there is none.

    Raises
    ------
    ConfigError
        The device that was named is not there, or this PyTorch has no code for it.
    TransientError
        It is there and does not compute.
    """
    if device == "auto":
        return torch.device(next(gpus(), "cpu"))
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f'{device!r} is no device; worker.device or --device is "auto", "cpu" or "cuda:0".',
            subject=device,
        ) from None
    if found.type == "cuda":
        count = gpu_count()
        if (found.index or 0) >= count:
            raise ConfigError(
                f"{device} is not there; torch sees {count} GPUs. Give "
                '"auto" or "cpu" as worker.device or --device, or look at the driver with '
                "nvidia-smi.",
                subject=device,
            )
        _check_computes(found)
    return found


def gpus() -> Iterator[str]:
    """Give the GPUs that this PyTorch has code for, as "cuda:0"."""
    for number in range(gpu_count()):
        if _NO_CODE not in gpu_trouble(torch.device("cuda", number)):
            yield f"cuda:{number}"


def gpu_count() -> int:
    """Return how many GPUs torch can use."""
    # Under a driver that is too old for it torch still counts GPUs.
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_trouble(device: torch.device) -> str:
    """Return why a GPU does not compute, as CUDA says it; "" where it does, or has no memory."""
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError as error:
        return "" if is_out_of_memory(error) else str(error).splitlines()[0]
    return ""


def _check_computes(device: torch.device) -> None:
    trouble = gpu_trouble(device)
    if _NO_CODE in trouble:
        raise ConfigError(
            f"PyTorch {torch.__version__} has no code for {device}, a "
            f"{torch.cuda.get_device_name(device)}. Install a PyTorch that has, or give "
            '"cpu" as worker.device or --device.',
            subject=str(device),
        )
    if trouble:
        raise TransientError(
            f"{device} does not compute: {trouble}. Look at it with nvidia-smi.",
            subject=str(device),
        )


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
    """
    verify(package)
    target = resolve_device(device)
    infer = package.manifest.infer
    try:
        network = build(infer.network, infer.arguments, networks).eval()
    except ConfigError as error:
        where = package.folder / MANIFEST_NAME
        raise ConfigError(f"{where}, {error.sentence}", subject=error.subject) from None
    _check_fits(network, package.manifest)
    _fill(network, package)
    if not all(bool(torch.isfinite(each).all()) for each in network.state_dict().values()):
        raise ConfigError(
            f"Model package {package.name}: {package.weights.name} holds numbers that are not "
            "finite. Take the package from its maker again.",
            subject=package.name,
        )
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
        given = tuple(_rehearsed(network, shown, _Tally()).shape)
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


def _fill(network: nn.Module, package: Package) -> None:
    """Give a network its weights; raise ConfigError where they are not those of one like it."""
    try:
        weights = load_file(package.weights)
    except SafetensorError as error:
        raise _misfit(package, f"it is no whole safetensors file ({error})") from None
    own = network.state_dict()
    for wrong in _misfits(own, weights):
        raise _misfit(package, wrong)
    network.load_state_dict(weights)


def _misfits(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Give what weights have that their network has not, and the other way round."""
    common = sorted(own.keys() & weights.keys())
    lacks, has_more = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if not common and any(each.endswith(tuple(own)) for each in has_more):
        yield f"its keys begin otherwise: {has_more[0]}, not {lacks[0]}"
    if lacks:
        yield f"it lacks {_some(lacks)}"
    if has_more:
        yield f"it has {_some(has_more)} too"
    for name in common:
        # torch would take whole numbers for what they stand for, without their scale.
        if own[name].is_floating_point() and not weights[name].is_floating_point():
            yield f"{name} holds {weights[name].dtype}, and must be of floating point"
        if own[name].shape != weights[name].shape:
            found, wanted = tuple(weights[name].shape), tuple(own[name].shape)
            yield f"{name} has the shape {found}, and the network {wanted}"


def _some(names: list[str]) -> str:
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")


def _misfit(package: Package, wrong: str) -> ConfigError:
    infer = package.manifest.infer
    return ConfigError(
        f"Model package {package.name}: {package.weights.name} does not fit network "
        f"{infer.network!r}: {wrong}. Save the state dict of the network that infer.arguments "
        "builds, by safetensors.torch.save_file, or copy the package again.",
        subject=package.name,
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
