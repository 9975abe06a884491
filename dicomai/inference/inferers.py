"""How a network is led over an input: whole, or window by window.

An inferer is a callable `(inputs, network)` around a plain function, as in MONAI.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]
Network: TypeAlias = Callable[[Array], Array]
"""A batch (N, C, …) to its probabilities (N, C', …)."""
Progress: TypeAlias = Callable[[float], None]
"""Takes the fraction that is done, 0 to 1."""

_SIGMA: Final = 0.125
"""Of the window: MONAI's default for Gaussian blending."""
_LEAST: Final = 1e-3
"""Weight of a window's corners against its centre."""


def _silent(_: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeInferer:
    """Shows the network the whole input at once."""

    def __call__(self, inputs: Array, network: Network) -> Array:
        """(C, …) to probabilities (C', …)."""
        (out,) = network(inputs[None])
        return np.asarray(out)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlidingWindowInferer:
    """Shows the network one window after the other and blends the probabilities.

    Attributes
    ----------
    wanted : (K, J, I) bool or None
        Windows in which less than `fraction` of these is true are passed over.
    """

    window_kji: tuple[int, int, int]
    overlap: float = 0.25
    blend: Literal["gaussian", "constant"] = "gaussian"
    batch: int = 1
    channels: int = 1
    wanted: npt.NDArray[np.bool_] | None = None
    fraction: float = 0.0
    padding: float = 0.0
    progress: Progress = field(default=_silent)

    def __call__(self, inputs: Array, network: Network) -> Array:
        """(C, K, J, I) to probabilities (C', K, J, I); 0 where no window was shown."""
        windows = [
            window
            for window in windows_of(inputs.shape[1:], self.window_kji, self.overlap)
            if self.wanted is None or self.wanted[window].mean() >= self.fraction
        ]
        return sliding_window(
            inputs,
            network,
            windows,
            self.window_kji,
            weight=importance(self.window_kji, self.blend),
            batch=self.batch,
            channels=self.channels,
            padding=self.padding,
            progress=self.progress,
        )


def windows_of(
    shape: tuple[int, ...], window: tuple[int, int, int], overlap: float
) -> Iterator[tuple[slice, ...]]:
    """Give windows that cover a shape, each cut off where the shape ends.

    Steps are of `window * (1 - overlap)`, at least 1; the last window on an axis ends with it.
    """
    starts = []
    for size, length in zip(shape, window, strict=True):
        last = max(0, size - length)
        starts.append([*range(0, last, max(1, round(length * (1 - overlap)))), last])
    for corner in itertools.product(*starts):
        yield tuple(
            slice(start, min(start + length, size))
            for start, length, size in zip(corner, window, shape, strict=True)
        )


def importance(window: tuple[int, int, int], blend: Literal["gaussian", "constant"]) -> Array:
    """Return the weight of each voxel of a window, (K, J, I) float32, at most 1."""
    if blend == "constant":
        return np.ones(window, dtype=np.float32)
    axes = [
        np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (_SIGMA * size)) ** 2)
        for size in window
    ]
    weight = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return np.asarray(np.maximum(weight / weight.max(), _LEAST), dtype=np.float32)


def sliding_window(
    inputs: Array,
    network: Network,
    windows: list[tuple[slice, ...]],
    window_kji: tuple[int, int, int],
    *,
    weight: Array,
    batch: int,
    channels: int,
    padding: float,
    progress: Progress,
) -> Array:
    """Return the weighted mean of what a network says of each voxel, (C', K, J, I) float32.

    Parameters
    ----------
    inputs : (C, K, J, I) float32
    network
        Takes (N, C, *window_kji), gives (N, C', *window_kji).
    windows
        Where to look; one that is smaller than the window is padded at its end.
    weight : window_kji float32
        Of each voxel within a window.
    channels
        C' of what is returned when there is no window at all.
    """
    if not windows:
        return np.zeros((channels, *inputs.shape[1:]), dtype=np.float32)
    total: Array | None = None
    weights = np.zeros(inputs.shape[1:], dtype=np.float32)
    for start in range(0, len(windows), batch):
        some = windows[start : start + batch]
        shown = np.full((len(some), inputs.shape[0], *window_kji), padding, dtype=np.float32)
        for index, window in enumerate(some):
            shown[index][:, *_from_zero(window)] = inputs[:, *window]
        answer = network(shown)
        if total is None:
            total = np.zeros((answer.shape[1], *inputs.shape[1:]), dtype=np.float32)
        for window, said in zip(some, answer, strict=True):
            inside = _from_zero(window)
            total[:, *window] += said[:, *inside] * weight[inside]
            weights[window] += weight[inside]
        progress(min(1.0, (start + batch) / len(windows)))
    assert total is not None
    np.maximum(weights, _LEAST * _LEAST, out=weights)
    total /= weights
    return total


def _from_zero(window: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, part.stop - part.start) for part in window)
