"""Layers that give a host the same numbers as torch's, or better ones, in less memory.

Tensors are (N, C, K, J, I) or (N, C, J, I) float.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

_HAS_ONEDNN: Final[bool] = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # no stub
_SLAB_VALUES: Final = 1 << 21
"""That go into a convolution at a time, where it works in slabs."""
_LARGE_VALUES: Final = 1 << 23
"""What has more is written over by its convolution."""
_CACHED_VALUES: Final = 1 << 18
"""That moments are taken of at a time."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation that is as exact where channels lie last in memory; there it may write x.

    torch's own for the CPU takes the square of the mean off the mean of squares there, in float32:
    of a window of air hardly more than rounding is left, and a U-Net made probabilities of it that
    were 0.2 off.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(next(each for each in (8, 4, 2, 1) if channels % each == 0), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to the same; x is written over where no gradient is wanted."""
        if torch.is_grad_enabled() or x.is_cuda or x.is_contiguous():
            out: Tensor = super().forward(x)
            return out
        mean, variance = self._moments(x)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        shape = (*x.shape[:2], *[1] * (x.dim() - 2))
        wide = _wide(x)
        scale, shift = scale.to(wide).reshape(shape), shift.to(wide).reshape(shape)
        if x.dtype == wide:
            return torch.addcmul(shift, x, scale, out=x)
        return torch.addcmul(shift, x, scale).to(x.dtype)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the group of each channel, (N, C) float64."""
        voxels = x.movedim(1, -1).flatten(1, -2)
        parts = torch.split(voxels, max(1, _CACHED_VALUES // x.shape[1]), dim=1)
        means, variances = [], []
        for part in parts:
            values = part.to(_wide(x))
            mean = values.mean(dim=1, keepdim=True)
            off = values - mean
            means.append(mean.squeeze(1))
            variances.append(torch.mul(off, off, out=off).mean(dim=1))
        grouped = (len(parts), len(x), self.num_groups, -1)
        mean, variance = (
            torch.stack(each).double().reshape(grouped) for each in (means, variances)
        )
        shares = [part.shape[1] / voxels.shape[1] for part in parts]
        weight = torch.tensor(shares, dtype=torch.float64, device=x.device).reshape(-1, 1, 1, 1)
        of_all = (weight * mean).sum(dim=0).mean(dim=-1, keepdim=True)
        spread = (weight * (variance + (mean - of_all) ** 2)).sum(dim=0).mean(dim=-1, keepdim=True)
        each_group = x.shape[1] // self.num_groups
        return (
            of_all.squeeze(-1).repeat_interleave(each_group, dim=1),
            spread.squeeze(-1).repeat_interleave(each_group, dim=1),
        )


def _wide(x: Tensor) -> torch.dtype:
    """Return float32, or float64 for x in float64."""
    return torch.promote_types(x.dtype, torch.float32)


def conv3d(
    convolution: nn.Conv3d, x: Tensor, *, padding: tuple[int, int, int] | None = None
) -> Tensor:
    """Return a convolution of x: on a host by oneDNN, whatever its size.

    torch leaves that out where N·C·K·J is 20,480 or less, as in a window of 96³ with one channel.
    It unfolds x for each tap of the kernel then, and takes three to eight times as long
    (benchmarks/inference.md).

    Parameters
    ----------
    convolution
        Without groups.
    padding
        Instead of its own, which is in numbers.
    """
    around = convolution.padding if padding is None else padding
    weight, bias = convolution.weight, convolution.bias
    assert not isinstance(around, str)
    if _HAS_ONEDNN and x.is_cpu and _is_plain(x, weight):
        out: Tensor = torch.mkldnn_convolution(
            x, weight, bias, around, convolution.stride, convolution.dilation, 1
        )
        return out
    return functional.conv3d(x, weight, bias, convolution.stride, around, convolution.dilation)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Tell whether numbers are float32 as they stand, and no gradient is wanted."""
    plain = x.dtype == weight.dtype == torch.float32
    return plain and not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()


def folded(layers: nn.Sequential) -> None:
    """Have each convolution do what the batch normalisation after it does, which goes."""
    for at, (convolution, norm) in enumerate(itertools.pairwise(list(layers))):
        if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
            layers[at] = fuse_conv_bn_eval(convolution, norm)
            layers[at + 1] = nn.Identity()


def convolved(convolution: nn.Conv3d, x: Tensor, *, in_slabs: bool) -> Tensor:
    """Return a convolution of x with a kernel of 3, stride 1 and as many channels.

    In slabs it overwrites a large x, where no gradient is wanted.
    """
    if not in_slabs or torch.is_grad_enabled() or x.numel() <= _LARGE_VALUES:
        return conv3d(convolution, x)
    depth = x.shape[2]
    planes = max(1, _SLAB_VALUES // x[:, :, 0].numel())
    before = x[:, :, :0]
    for low in range(0, depth, planes):
        high = min(low + planes, depth)
        slab = torch.cat((before, x[:, :, low : high + 1]), dim=2)
        before = x[:, :, high - 1 : high].clone()
        x[:, :, low:high] = _within(convolution, slab, low, high, depth)
    return x


def joined(convolution: nn.Conv3d, fine: Tensor, coarse: Tensor, *, in_slabs: bool) -> Tensor:
    """Return the convolution of a level and the coarser one, which is interpolated to its size.

    In slabs neither both nor the interpolated one stand in memory whole.

    Parameters
    ----------
    convolution
        With a kernel of 3 and stride 1.
    fine, coarse : (N, C, K, J, I), (N, C', K', J', I')
        The finer level; the coarser one.
    """
    depth = fine.shape[2]
    plane = len(fine) * (fine.shape[1] + coarse.shape[1]) * math.prod(fine.shape[3:])
    planes = max(2, _SLAB_VALUES // plane // 2 * 2)
    if not in_slabs or planes >= depth:
        return conv3d(convolution, torch.cat((fine, _larger(coarse, fine.shape[2:])), dim=1))
    if depth != 2 * coarse.shape[2]:
        coarse = _larger(coarse, fine.shape[2:])
    slabs = None
    for low in range(0, depth, planes):
        high = min(low + planes, depth)
        # The kernel sees a plane beyond on either side, and so does the interpolation.
        first, last = max(0, low - 1), min(depth, high + 1)
        if coarse.shape[2] == depth:
            beside = coarse[:, :, first:last]
        else:
            start = max(0, low // 2 - 1)
            near = coarse[:, :, start : high // 2 + 1]
            beside = _larger(near, (2 * near.shape[2], *fine.shape[3:]))
            beside = beside[:, :, first - 2 * start : last - 2 * start]
        slab = torch.cat((fine[:, :, first:last], beside), dim=1)
        part = _within(convolution, slab, low, high, depth)
        if slabs is None:
            slabs = torch.empty(
                (*part.shape[:2], depth, *part.shape[3:]),
                dtype=part.dtype,
                device=part.device,
                memory_format=torch.channels_last_3d,
            )
        slabs[:, :, low:high] = part
    assert slabs is not None
    return slabs


def _within(convolution: nn.Conv3d, slab: Tensor, low: int, high: int, depth: int) -> Tensor:
    """Return the planes from low to high, of a slab that has one beyond them where there is one."""
    if low == 0 or high == depth:
        slab = functional.pad(slab, (0, 0, 0, 0, int(low == 0), int(high == depth)))
    return conv3d(convolution, slab, padding=(0, 1, 1))


def _larger(x: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)
