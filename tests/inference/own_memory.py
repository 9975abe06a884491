"""A device with a memory of its own, for hosts without a GPU: torch's CPU does its work.

Its tensors can't be mixed with those of the host, nor read by numpy, until they are copied: so
what forgets a copy, or makes one too many ahead of an operation, fails here as it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, TypeAlias

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

DEVICE: Final = "pretended:0"
_NAME: Final = "pretended"
_COPIES: Final = ("aten::_to_copy", "aten::copy_")
_INDEXED: Final = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")
"""An index may lie on the host."""
_Arguments: TypeAlias = tuple[object, ...]
_Named: TypeAlias = dict[str, object]
_Operation: TypeAlias = torch._ops.OpOverload


class _There(torch.Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> _There:
        made: _There = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(DEVICE),
        )
        return made

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def tolist(self) -> object:
        """Copy it, as torch does; of its own it does so only where a subclass says how."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls,
        func: _Operation,
        types: Sequence[type],
        args: _Arguments = (),
        kwargs: _Named | None = None,
    ) -> object:
        return _done(func, args, kwargs or {})


def _done(operation: _Operation, args: _Arguments, kwargs: _Named) -> object:
    """Do an operation on what tensors of the device hold; what comes of it lies there too."""
    name = operation._schema.name
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    ours = [each for each in given if isinstance(each, _There)]
    mixed = any(not isinstance(each, _There) and each.dim() for each in given)
    by_index = name in _INDEXED and isinstance(args[0], _There)
    if mixed and name not in _COPIES and not by_index:
        raise RuntimeError(f"{name}: some tensors lie on {DEVICE}, some on the host.")
    device = kwargs.get("device")
    stays = device is None or torch.device(str(device)).type == _NAME
    if name == "aten::copy_":
        stays = isinstance(args[0], _There)
    if device is not None and stays:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(_held, (args, kwargs))
    out = operation(*args, **kwargs)
    same = {id(each.held): each for each in ours}

    def placed(each: object) -> object:
        if not isinstance(each, torch.Tensor):
            return each
        if id(each) in same:  # it was written in its place
            return same[id(each)]
        if not stays and any(_shares(each, one.held) for one in ours):
            each = each.clone()
        return _There(each) if stays else each

    return tree_map(placed, out)


def _held(each: object) -> object:
    return each.held if isinstance(each, _There) else each


def _shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _empty(
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    order = memory_format or torch.contiguous_format
    return _There(torch.empty(size, dtype=dtype, memory_format=order))


def _empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> torch.Tensor:
    return _There(torch.empty_strided(size, stride, dtype=dtype))


def _copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    held = _held(target)
    assert isinstance(held, torch.Tensor)
    held.copy_(_held(source))
    return target


@cache
def attached() -> torch.library.Library:
    """Have torch know the device; it stays known to the process."""
    backend_registration._setup_privateuseone_for_python_backend(_NAME, _Module())
    library = torch.library.Library("aten", "IMPL")
    made: dict[str, Callable[..., torch.Tensor]] = {
        "empty.memory_format": _empty,
        "empty_strided": _empty_strided,
        "_copy_from": _copy,
    }
    for name, function in made.items():
        library.impl(name, function, "PrivateUse1")
    return library
