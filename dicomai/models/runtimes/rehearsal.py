"""A forward pass without memory: its shapes, and the most that it would take at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dicomai.models.runtimes.networks import copied, memory_format


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


def rehearsed_shape(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a network gives of an input (N, C, …), or raise what it raises."""
    return tuple(_rehearsed(network, shape, _Tally()).shape)


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
    stand_in = copied(network, "meta")
    inputs = torch.empty(shape, device="meta")
    with torch.inference_mode(), tally:
        logits: Tensor = stand_in(inputs.to(memory_format=memory_format(inputs)))
        logits.float().exp()
    return logits
