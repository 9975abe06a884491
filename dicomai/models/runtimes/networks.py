"""The networks that a manifest may name, shared by training and by the torch runtime.

Tensors are (N, C, K, J, I) or (N, C, J, I) float; what comes out are logits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomai.errors import ConfigError
from dicomai.models.steps import Argument

Builder: TypeAlias = Callable[..., nn.Module]


_SLAB_VALUES: Final = 1 << 21
"""That are joined at a time, where they are joined in slabs."""
_LARGE_VALUES: Final = 1 << 23
"""A level of more is convolved in place, some planes at a time."""
_CACHED_VALUES: Final = 1 << 18
"""That moments are taken of at a time."""


class _GroupNorm(nn.GroupNorm):
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
        scale, shift = scale.float().reshape(shape), shift.float().reshape(shape)
        if x.dtype == torch.float32:
            return torch.addcmul(shift, x, scale, out=x)
        return torch.addcmul(shift, x, scale).to(x.dtype)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the group of each channel, (N, C) float64."""
        voxels = x.movedim(1, -1).flatten(1, -2)
        parts = torch.split(voxels, max(1, _CACHED_VALUES // x.shape[1]), dim=1)
        means, variances = [], []
        for part in parts:
            values = part.float()
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


def _norm3d(kind: str, channels: int) -> nn.Module:
    if kind not in {"group", "batch"}:
        raise ValueError(f'norm must be "group" or "batch", not {kind!r}')
    return nn.BatchNorm3d(channels) if kind == "batch" else _GroupNorm(channels)


class _Block3d(nn.Module):
    """Two convolutions, each with its normalisation; the first may halve the resolution.

    With `in_slabs` the second overwrites a large input, some planes at a time.
    """

    in_slabs = False

    def __init__(self, inputs: int, outputs: int, norm: str, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            _norm3d(norm, outputs),
            nn.ReLU(inplace=True),
            nn.Conv3d(outputs, outputs, 3, padding=1, bias=False),
            _norm3d(norm, outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, K, J, I) to (N, outputs, K', J', I')."""
        return self.from_second(self.layers[0](x))

    def from_second(self, x: Tensor) -> Tensor:
        """Return what comes of the first convolution's result."""
        norm, relu, convolution, *rest = list(self.layers)[1:]
        if self.in_slabs:  # What comes of one channel lies otherwise, whatever the weights.
            x = x.contiguous(memory_format=torch.channels_last_3d)
        x = relu(norm(x))
        if self.in_slabs and x.numel() > _LARGE_VALUES and not torch.is_grad_enabled():
            _convolve(convolution, x)
        else:
            x = convolution(x)
        for layer in rest:
            x = layer(x)
        return x


class UNet3d(nn.Module):
    """A U-Net of any depth for volumes of any shape.

    Each level halves the resolution by a stride; the way up is trilinear, so that no
    checkerboard appears and any shape comes back as it went in.

    Parameters
    ----------
    in_channels, out_channels
        Of the input and of the logits.
    channels
        Features at each level, finest first.
    norm
        "group": over the window, for what fills much of it; "batch": by what training saw, for
        what is rare, so that what else a window holds changes nothing.
    """

    in_slabs = False
    """Whether levels are joined some planes at a time: the same numbers in less memory."""

    def __init__(
        self,
        *,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: tuple[int, ...] = (8, 16, 32),
        norm: str = "group",
    ) -> None:
        super().__init__()
        self.first = _Block3d(in_channels, channels[0], norm)
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList([_Block3d(a, b, norm, stride=2) for a, b in pairs])
        self.up = nn.ModuleList([_Block3d(a + b, a, norm) for a, b in pairs])
        self.last = nn.Conv3d(channels[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, K, J, I) to logits (N, out_channels, K, J, I)."""
        x = self.first(x)
        fine: list[Tensor] = []
        for down in self.down:
            fine.append(x)
            x = down(x)
        for up in reversed(self.up):
            assert isinstance(up, _Block3d)
            planes = self._planes(fine[-1], x)
            x = _joined(up.layers[0], fine.pop(), x, planes)
            x = up.from_second(x)
        logits: Tensor = self.last(x)
        return logits

    def _planes(self, fine: Tensor, coarse: Tensor) -> int:
        """Return how many planes of a level are joined at a time; a multiple of two, or all."""
        depth = fine.shape[2]
        if not self.in_slabs:
            return depth
        plane = len(fine) * (fine.shape[1] + coarse.shape[1]) * math.prod(fine.shape[3:])
        return min(depth, max(2, _SLAB_VALUES // plane // 2 * 2))


def _convolve(convolution: nn.Module, x: Tensor) -> None:
    """Put the convolution of x into x."""
    assert isinstance(convolution, nn.Conv3d)
    depth = x.shape[2]
    planes = max(1, _SLAB_VALUES // x[:, :, 0].numel())
    nothing = torch.zeros_like(x[:, :, :1])
    before = nothing
    for low in range(0, depth, planes):
        high = min(low + planes, depth)
        parts = (before, x[:, :, low : high + 1], *((nothing,) if high == depth else ()))
        slab = torch.cat(parts, dim=2)
        before = x[:, :, high - 1 : high].clone()
        x[:, :, low:high] = functional.conv3d(slab, convolution.weight, padding=(0, 1, 1))


def _joined(convolution: nn.Module, fine: Tensor, coarse: Tensor, planes: int) -> Tensor:
    """Return the convolution of a level and the coarser one, which is interpolated to its size.

    So many planes at a time: neither both nor the interpolated one then stand in memory whole.
    """
    assert isinstance(convolution, nn.Conv3d)
    depth = fine.shape[2]
    if planes >= depth:
        out: Tensor = convolution(torch.cat((fine, _larger(coarse, fine.shape[2:])), dim=1))
        return out
    if depth != 2 * coarse.shape[2]:
        coarse = _larger(coarse, fine.shape[2:])
    parts = None
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
        joined = torch.cat((fine[:, :, first:last], beside), dim=1)
        if first == low or last == high:
            joined = functional.pad(joined, (0, 0, 0, 0, int(first == low), int(last == high)))
        part = functional.conv3d(joined, convolution.weight, padding=(0, 1, 1))
        if parts is None:
            shape = (*part.shape[:2], depth, *part.shape[3:])
            parts = torch.empty(
                shape,
                dtype=part.dtype,
                device=part.device,
                memory_format=torch.channels_last_3d,
            )
        parts[:, :, low:high] = part
    assert parts is not None
    return parts


def _larger(x: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def for_host(network: nn.Module) -> nn.Module:
    """Have a network take the least time and memory of a host; return it.

    Channels lie last in the weights of its convolutions in 3-D, and so in what these give.
    """
    for each in network.modules():
        if isinstance(each, UNet3d | _Block3d):
            each.in_slabs = True
        if isinstance(each, nn.Conv3d):
            each.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # no stub
    return network


def _norm2d(kind: str, channels: int) -> nn.Module:
    if kind not in {"group", "batch"}:
        raise ValueError(f'norm must be "group" or "batch", not {kind!r}')
    return nn.BatchNorm2d(channels) if kind == "batch" else _GroupNorm(channels)


class _Residual2d(nn.Module):
    """Two convolutions beside a shortcut that halves the resolution."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            _norm2d(norm, outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            _norm2d(norm, outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, J, I) to (N, outputs, J / 2, I / 2)."""
        return functional.relu(self.layers(x) + self.shortcut(x))


class Classifier2d(nn.Module):
    """A small residual network for an image.

    Parameters
    ----------
    in_channels, classes
        Of the image; logits that come out.
    channels
        Features of each stage; each halves the resolution.
    pool
        "mean" for what the whole image shows, "max" for what one spot of it shows, "both".
    norm
        As for `UNet3d`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        classes: int = 1,
        channels: tuple[int, ...] = (16, 32, 64, 64),
        pool: str = "both",
        norm: str = "group",
    ) -> None:
        super().__init__()
        if pool not in {"mean", "max", "both"}:
            raise ValueError(f'pool must be "mean", "max" or "both", not {pool!r}')
        self.pool = pool
        self.stages = nn.Sequential(
            *(
                _Residual2d(inputs, outputs, norm)
                for inputs, outputs in zip((in_channels, *channels), channels, strict=False)
            )
        )
        self.last = nn.Linear(channels[-1] * (2 if pool == "both" else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, J, I) to logits (N, classes)."""
        x = self.stages(x)
        pooled = []
        if self.pool != "max":
            pooled.append(x.mean(dim=(2, 3)))
        if self.pool != "mean":
            pooled.append(x.amax(dim=(2, 3)))
        logits: Tensor = self.last(torch.cat(pooled, dim=1))
        return logits


NETWORKS: Final[Mapping[str, Builder]] = MappingProxyType(
    {"unet3d": UNet3d, "classifier2d": Classifier2d}
)


def build(
    name: str, arguments: Mapping[str, Argument], networks: Mapping[str, Builder] = NETWORKS
) -> nn.Module:
    """Return a network with fresh weights.

    Parameters
    ----------
    name, arguments
        As `[infer]` of a manifest gives them.
    networks
        Those to choose from, by name.

    Raises
    ------
    ConfigError
        There is no such network, or it takes no such argument.
    """
    if name not in networks:
        raise ConfigError(
            f"infer.network: there is no network {name!r}; "
            f"there are {', '.join(sorted(networks))}.",
            subject=name,
        )
    try:
        return networks[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"infer.arguments: network {name!r} can't be built from them: {error}.", subject=name
        ) from None
