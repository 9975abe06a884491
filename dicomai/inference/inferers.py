"""How a network is led over an input: whole, or window by window.

An inferer is a callable `(inputs, network)` around a plain function, as in MONAI.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]
Network: TypeAlias = Callable[[Array], Array]
"""A batch (N, C, …) to its probabilities (N, C', …)."""
Progress: TypeAlias = Callable[[float], None]
"""Takes the fraction that is done, 0 to 1."""
Window: TypeAlias = tuple[slice, ...]
"""A part of a grid, along k, j, i."""

_SIGMA: Final = 0.125
"""Of the window: MONAI's default for Gaussian blending."""
_LEAST: Final = 1e-3
"""Weight of a window's corners against its centre."""
_WHOLE_PRECISION_BYTES: Final = 1 << 30
"""Of the sums of all channels over the slices of a window."""


def _silent(_: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeInferer:
    """Shows the network the whole input at once."""

    def __call__(self, inputs: Array, network: Network) -> Array:
        """(C, …) to probabilities (C', …)."""
        (out,) = network(inputs[None])
        return np.asarray(out)

    def slabs(self, inputs: Array, network: Network) -> Iterator[Array]:
        """Give the same as the one slab that it is."""
        yield self(inputs, network)


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
        slabs = [slab.astype(np.float32) for slab in self.slabs(inputs, network)]
        out = np.zeros((max(map(len, slabs)), *inputs.shape[1:]), dtype=np.float32)
        first = 0
        for slab in slabs:
            out[: len(slab), first : first + slab.shape[1]] = slab
            first += slab.shape[1]
        return out

    def slabs(self, inputs: Array, network: Network) -> Iterator[Array]:
        """Give the same in slabs (C', slices, J, I), by k, each as soon as no window can change it.

        A slab is valid until the next one is asked for. Only as many slices as a window has stand
        in memory.
        """
        by_start: dict[int, list[Window]] = {}
        for window in windows_of(inputs.shape[1:], self.window_kji, self.overlap):
            shown = by_start.setdefault(window[0].start, [])
            if self.wanted is None or self.wanted[window].mean() >= self.fraction:
                shown.append(window)
        count = sum(map(len, by_start.values()))
        weight = importance(self.window_kji, self.blend)
        blended = _Blended((min(self.window_kji[0], inputs.shape[1]), *inputs.shape[2:]))
        done, starts = 0, sorted(by_start)
        for start, end in itertools.pairwise((*starts, inputs.shape[1])):
            windows = by_start[start]
            for first in range(0, len(windows), self.batch):
                some = windows[first : first + self.batch]
                answer = network(_batch(inputs, some, self.window_kji, self.padding))
                for window, said in zip(some, answer, strict=True):
                    blended.add(window, said, weight)
                done += len(some)
                self.progress(done / count)
            yield blended.first(end - start, self.channels)
            blended.drop(end - start)
        if not count:
            self.progress(1.0)


class _Blended:
    """Weighted sums of what windows said of the slices that a window reaches.

    Float16 where float32 would take more than a gibibyte: sums are of a few probabilities.
    """

    def __init__(self, shape_kji: tuple[int, ...]) -> None:
        self._total: npt.NDArray[np.floating] | None = None
        self._weights = np.zeros(shape_kji, dtype=np.float32)
        self._first = 0

    def add(self, window: Window, said: Array, weight: Array) -> None:
        """Add what the network says of a window, (C', K, J, I)."""
        inside = _from_zero(window)
        k = slice(window[0].start - self._first, window[0].stop - self._first)
        here = (k, *window[1:])
        if self._total is None:
            shape = (len(said), *self._weights.shape)
            self._total = np.zeros(shape, dtype=_precision(len(said), self._weights.size))
        for total, each in zip(self._total, said, strict=True):
            total[here] += each[inside] * weight[inside]
        self._weights[here] += weight[inside]

    def first(self, count: int, channels: int) -> npt.NDArray[np.floating]:
        """Return the mean of the first slices, (C', count, J, I), until they are dropped."""
        weights = np.maximum(self._weights[:count], _LEAST * _LEAST)
        if self._total is None:
            return np.zeros((channels, *weights.shape), dtype=np.float32)
        for total in self._total:
            np.divide(total[:count], weights, out=total[:count], casting="same_kind")
        return self._total[:, :count]

    def drop(self, count: int) -> None:
        """Go on to the slices after the first ones, which no later window reaches."""
        self._first += count
        for sums in (self._weights, *(() if self._total is None else self._total)):
            rest = len(sums) - count
            sums[:rest] = sums[count:]
            sums[rest:] = 0


def _precision(channels: int, voxels: int) -> type[np.floating]:
    return np.float32 if 4 * channels * voxels <= _WHOLE_PRECISION_BYTES else np.float16


def blended_bytes(channels: int, voxels: int) -> int:
    """Return what sums over so many voxels, the slices of a window, take; weights too."""
    return voxels * (channels * np.dtype(_precision(channels, voxels)).itemsize + 4)


def windows_of(
    shape: tuple[int, ...], window: tuple[int, int, int], overlap: float
) -> Iterator[Window]:
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


def _batch(
    inputs: Array, windows: Sequence[Window], window_kji: tuple[int, int, int], padding: float
) -> Array:
    """Return what a network sees of windows, (N, C, *window_kji); short ones are padded."""
    out = np.empty((len(windows), inputs.shape[0], *window_kji), dtype=np.float32)
    for shown, window in zip(out, windows, strict=True):
        inside = _from_zero(window)
        if any(part.stop < size for part, size in zip(inside, window_kji, strict=True)):
            shown[:] = padding
        shown[:, *inside] = inputs[:, *window]
    return out


def _from_zero(window: Window) -> Window:
    return tuple(slice(0, part.stop - part.start) for part in window)
