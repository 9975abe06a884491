"""The devices that torch sees are told apart, used, passed over or named with what ails them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dicomai.errors import ConfigError, TransientError
from dicomai.models.runtimes import devices


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="is no device"):
        devices.resolve_device("gpu")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ConfigError, match=f"{absent} is not there"):
        devices.resolve_device(absent)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have torch see GPUs, each of which says such a thing when it is to compute."""

    def there(*said: str) -> None:
        ones = torch.ones

        def computed(size: int, *, device: torch.device) -> torch.Tensor:
            if said[device.index]:
                raise torch.AcceleratorError(said[device.index])
            return ones(size)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(said))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Quadro P2000")
        monkeypatch.setattr(torch, "ones", computed)

    return there


def test_gpus_under_a_driver_that_is_too_old_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # NVML counts them all the same
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda:0 is not there; torch sees 0 GPUs"):
        devices.resolve_device("cuda:0")
    assert devices.resolve_device("auto") == torch.device("cpu")


def test_a_gpu_that_torch_has_no_code_for_is_passed_over_or_named(
    gpus: Callable[..., None],
) -> None:
    said = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel er"
    gpus(said, "")
    assert devices.resolve_device("auto") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"has no code for cuda:0, a Quadro P2000\."):
        devices.resolve_device("cuda:0")
    gpus(said)
    assert devices.resolve_device("auto") == torch.device("cpu")


def test_work_waits_for_a_gpu_that_does_not_compute(gpus: Callable[..., None]) -> None:
    gpus("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors")
    with pytest.raises(TransientError, match=r"cuda:0 does not compute: .*unavailable\. Look"):
        devices.resolve_device("cuda:0")
    assert devices.resolve_device("auto") == torch.device("cuda:0")


def test_a_gpu_whose_memory_others_have_is_there(gpus: Callable[..., None]) -> None:
    gpus("CUDA error: out of memory\nCUDA kernel errors")
    assert devices.resolve_device("cuda:0") == torch.device("cuda:0")


def test_of_two_gpus_each_is_asked_whether_it_has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    generations = {0: SimpleNamespace(major=8), 1: SimpleNamespace(major=7)}

    def properties(device: torch.device | int) -> SimpleNamespace:
        return generations[device.index if isinstance(device, torch.device) else device]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert devices.has_bfloat16(torch.device("cuda:0"))
    assert not devices.has_bfloat16(torch.device("cuda:1"))


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear", False),
        ("cuDNN error: CUDNN_STATUS_BAD_PARAM", False),
        ("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(handle)`", False),
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul(handle)`", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
        ("Triton Error [CUDA]: an illegal memory access was encountered", True),
        ("CUDA driver error: unspecified launch failure", True),
    ],
)
def test_a_call_that_a_library_does_not_take_is_no_fault_of_the_device(
    said: str, *, fault: bool
) -> None:
    assert devices.is_device_fault(RuntimeError(said)) == fault


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation after trying 9 plans.",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp"',
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_full_memory_of_a_gpu_is_known_by_all_that_is_said_of_it(said: str) -> None:
    error = RuntimeError(said)
    assert devices.is_out_of_memory(error)
    assert not devices.is_device_fault(error)
    assert devices.short_place(error, torch.device("cuda:0")) == "cuda:0"
    assert devices.short_place(error, torch.device("cpu")) == "the host"
