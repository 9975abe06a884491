"""The networks that a manifest may name, shared by training and by the torch runtime.

Tensors are (N, C, K, J, I) or (N, C, J, I) float; what comes out are logits.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomai.errors import ConfigError
from dicomai.models.runtimes.layers import GroupNorm, conv3d, convolved, folded, joined
from dicomai.models.steps import Argument

Builder: TypeAlias = Callable[..., nn.Module]


def _norm3d(kind: str, channels: int) -> nn.Module:
    if kind not in {"group", "batch"}:
        raise ValueError(f'norm must be "group" or "batch", not {kind!r}')
    return nn.BatchNorm3d(channels) if kind == "batch" else GroupNorm(channels)


class _Block3d(nn.Module):
    """Two convolutions, each with its normalisation; the first may halve the resolution."""

    in_slabs = False
    """Whether it works on some planes at a time: the same numbers in less memory."""

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
        convolution = self.layers[0]
        assert isinstance(convolution, nn.Conv3d)
        return self.from_second(conv3d(convolution, x))

    def from_second(self, x: Tensor) -> Tensor:
        """Return what comes of the first convolution's result."""
        norm, relu, convolution, *rest = list(self.layers)[1:]
        if self.in_slabs:  # What comes of one channel lies otherwise, whatever the weights.
            x = x.contiguous(memory_format=torch.channels_last_3d)
        x = relu(norm(x))
        assert isinstance(convolution, nn.Conv3d)
        x = convolved(convolution, x, in_slabs=self.in_slabs)
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

    def __init__(
        self,
        *,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: tuple[int, ...] = (8, 16, 32),
        norm: str = "group",
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels is empty; give at least one number")
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
            convolution = up.layers[0]
            assert isinstance(convolution, nn.Conv3d)
            x = joined(convolution, fine.pop(), x, in_slabs=up.in_slabs)
            x = up.from_second(x)
        return conv3d(self.last, x)


def for_host(network: nn.Module) -> nn.Module:
    """Have a network take the least time and memory of a host; return it.

    Channels lie last in the weights of its convolutions in 3-D, and so in what these give. Where it
    is not to learn any more, normalisation by what training saw becomes a part of these weights, so
    they must be there already.
    """
    for each in network.modules():
        if isinstance(each, _Block3d):
            each.in_slabs = True
            if not network.training:
                folded(each.layers)
        if isinstance(each, nn.Conv3d):
            each.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # no stub
    return network


def copied(network: nn.Module, device: str) -> nn.Module:
    """Return a copy on another device; on its own no second one is made meanwhile."""
    memo: dict[int, object] = {
        id(each): nn.Parameter(each.detach().to(device), requires_grad=each.requires_grad)
        for each in network.parameters()
    }
    memo |= {id(each): each.to(device) for each in network.buffers()}
    out: nn.Module = copy.deepcopy(network, memo)
    return out


def memory_format(inputs: Tensor) -> torch.memory_format:
    """Return the order of axes in memory that convolutions take least time in."""
    return torch.channels_last_3d if inputs.dim() == 5 else torch.channels_last


def _norm2d(kind: str, channels: int) -> nn.Module:
    if kind not in {"group", "batch"}:
        raise ValueError(f'norm must be "group" or "batch", not {kind!r}')
    return nn.BatchNorm2d(channels) if kind == "batch" else GroupNorm(channels)


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
        if not channels:
            raise ValueError("channels is empty; give at least one number")
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
    known = inspect.signature(networks[name]).parameters
    named = [each.name for each in known.values() if each.kind is inspect.Parameter.KEYWORD_ONLY]
    if named and (unknown := sorted(set(arguments) - set(named))):
        raise ConfigError(
            f"infer.arguments: network {name!r} takes no {', '.join(map(repr, unknown))}; it takes "
            f"{', '.join(named)}.",
            subject=name,
        )
    try:
        return networks[name](**arguments)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:  # RuntimeError is torch's
        raise ConfigError(
            f"infer.arguments: network {name!r} can't be built from them: {error}.", subject=name
        ) from None
