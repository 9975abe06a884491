"""Resampling on a GPU, there and back: the same numbers as `imaging.resample` gives on the host.

Weights are dense here, for a GPU multiplies matrices faster than it picks numbers out of them.
Slices of a tilted gantry and unevenly spaced ones are left to the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dicomai.imaging.mask import Cut
from dicomai.imaging.resample import Resampling
from dicomai.imaging.weights import Complete
from dicomai.inference.memory import DEVICE_SLAB_VOXELS
from dicomai.inference.postprocess import Choice, Growing, Region, growing


def takes(way: Resampling) -> bool:
    """Tell whether volumes can be brought to a model's grid and back there."""
    return way.upright is None


def to_model(
    way: Resampling, voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32], device: torch.device
) -> Tensor:
    """Return source voxels on the model's grid, (K', J', I') float32, as `Resampling.to_model`."""
    there = torch.tensor(voxels, device=device).permute(way.axes)
    if any(way.turned):
        there = there.flip([axis for axis, turn in enumerate(way.turned) if turn])
    weights = [way.weights_to(axis) for axis in range(3)]
    k, j, i = (_on(device, each) for each in weights)
    out = torch.empty(way.model.shape_kji, device=device)
    deep = max(1, len(there) // len(out))  # slices of the source for each one
    voxels_each = deep * math.prod(there.shape[1:])
    every = Complete(weights[0], turned=False)
    for some, near in every.slabs(len(there), voxels_each, DEVICE_SLAB_VOXELS):
        planes = j @ (there[near].float() @ i.T)
        out[some] = torch.tensordot(k[some, near], planes, dims=1)
    return out


def regions(
    slabs: Iterable[Tensor],
    way: Resampling,
    choices: Iterable[Choice],
    *,
    argmax: bool,
    scored: frozenset[Choice],
) -> dict[Choice, Region | None]:
    """Return what each choice holds on the source's grid, as `postprocess.regions`.

    Probabilities come and are compared on their device; only masks, and the probabilities inside of
    those that are `scored`, go to the host.
    """
    found = growing(way.source.shape_kji, choices, scored)
    if argmax:
        for where, values in _to_source(slabs, way):
            _take_most_probable(where, values, found)
    else:
        sought = sorted({choice.channel for choice in found})
        for where, values in _to_source((slab[sought] for slab in slabs), way):
            for choice, mask in found.items():
                probable = values[sought.index(choice.channel)]
                _take(mask, where, probable >= choice.threshold, probable)
    return {choice: mask.region() for choice, mask in found.items()}


def _take_most_probable(where: Cut, values: Tensor, found: Mapping[Choice, Growing]) -> None:
    first = values.argmax(dim=0)
    there = (torch.bincount(first.ravel(), minlength=len(values)) > 0).tolist()
    for choice, mask in found.items():
        if there[choice.channel]:
            probable = values[choice.channel]
            inside = first == choice.channel
            if choice.channel == 0:  # where nothing was shown to the network, all are 0
                inside &= probable > 0
            _take(mask, where, inside, probable)


def _take(mask: Growing, where: Cut, inside: Tensor, values: Tensor) -> None:
    # Flat, or each voxel inside would have three indices.
    probabilities = values.ravel()[inside.ravel()].cpu().numpy() if mask.scored else None
    mask.take(where, inside.cpu().numpy(), probabilities)


def _to_source(slabs: Iterable[Tensor], way: Resampling) -> Iterator[tuple[Cut, Tensor]]:
    """Give slabs of the model's grid, (C, slices, J', I'), on the source's, (C, ., J, I)."""
    if way.axes[0] != 0:  # slices run along another axis: all are gathered first
        slabs = (torch.cat([slab.clone() for slab in slabs], dim=1),)
    axes = [int(at) for at in np.argsort(way.axes)]
    weights = [way.weights_back(at) for at in axes]
    on_it: list[Tensor] = []
    complete = Complete(weights[0], turned=way.turned[axes[0]])
    _, rows, columns = way.source.shape_kji
    near: Tensor | None = None
    start = 0
    for slab in slabs:
        part = slab.permute(0, *(at + 1 for at in axes))
        near = part if near is None else torch.cat((near, part), dim=1)
        end = start + near.shape[1]
        on_it = on_it or [_on(near.device, each) for each in weights]
        k, j, i = on_it
        for some, reach in complete.slabs(end, len(near) * rows * columns, DEVICE_SLAB_VOXELS):
            values = near[:, reach.start - start : reach.stop - start].float()
            values = torch.einsum("ok,ckji->coji", k[some, reach], values)
            yield (some, slice(0, rows), slice(0, columns)), j @ (values @ i.T)
        needed = complete.needed_from(end)
        near, start = near[:, needed - start :].clone(), needed  # the slab is not ours


def _on(device: torch.device, weights: npt.NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(weights)).to(device)
