"""The devices that torch computes on here: which there are, and what they say when they can't."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

import torch

from dicomai.errors import ConfigError, TransientError

HOST: Final = "the host"
"""Whose memory the CPU has, as sentences and errors call it."""
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


def short_place(error: Exception, device: torch.device) -> str:
    """Return whose memory an error is about, while a network is on a device or goes there."""
    of_host = isinstance(error, MemoryError | OSError) or _HOST_FULL in str(error)
    return HOST if of_host or device.type == "cpu" else str(device)
