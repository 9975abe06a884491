"""How a network is led over an input: whole, or window by window.

An inferer is a callable `(inputs, network)` around a plain function, as in MONAI. Windows are cut
out and blended where the input lies, the host or a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dicomai.inference.memory import sum_bytes

Network: TypeAlias = Callable[[Tensor], Tensor]
"""A batch (N, C, …) float32 to its probabilities (N, C', …), on whatever device."""
Progress: TypeAlias = Callable[[float], None]
"""Takes the fraction that is done, 0 to 1."""
Window: TypeAlias = tuple[slice, ...]
"""A part of a grid, along k, j, i."""

_SIGMA: Final = 0.125
"""Of the window: MONAI's default for Gaussian blending."""
_LEAST: Final = 1e-3
"""Weight of a window's corners against its centre."""


def _silent(_: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeInferer:
    """Shows the network the whole input at once."""

    def __call__(self, inputs: Tensor, network: Network) -> Tensor:
        """(C, …) to probabilities (C', …)."""
        return network(inputs[None])[0]

    def slabs(self, inputs: Tensor, network: Network) -> Iterator[Tensor]:
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

    def __call__(self, inputs: Tensor, network: Network) -> Tensor:
        """(C, K, J, I) to probabilities (C', K, J, I); 0 where no window was shown."""
        slabs = self.slabs(inputs, network)
        return torch.cat([slab.to(torch.float32, copy=True) for slab in slabs], dim=1)

    def slabs(self, inputs: Tensor, network: Network) -> Iterator[Tensor]:
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
        weight = importance(self.window_kji, self.blend).to(inputs.device)
        depth = min(self.window_kji[0], inputs.shape[1])
        blended = _Blended((depth, *inputs.shape[2:]), inputs.device)
        lead = _Lead(inputs.device)
        done, unseen, starts = 0, 0, sorted(by_start)
        for start, end in itertools.pairwise((*starts, inputs.shape[1])):
            windows = by_start[start]
            for first in range(0, len(windows), self.batch):
                some = windows[first : first + self.batch]
                answer = network(_batch(inputs, some, self.window_kji, self.padding))
                for window, said in zip(some, answer, strict=True):
                    blended.add(window, said, weight)
                del answer, said  # or they would stay while the next are made
                done += len(some)
                lead.pass_asked()
                self.progress(done / count)
            if not blended.channels:  # the first window says how many there are
                unseen += end - start
            else:
                if unseen:
                    yield _nothing(inputs, blended.channels, unseen)
                    unseen = 0
                yield blended.first(end - start)
            if end < inputs.shape[1]:
                blended.drop(end - start)
        if not count:
            yield _nothing(inputs, self.channels, unseen)
            self.progress(1.0)


class _Lead:
    """How far the host may be ahead of a GPU, which does later what it is asked for: one pass.

    Its queue holds a thousand layers. What is told of its progress would be of dozens of passes
    that it has not begun, and then nothing for as long as they take, as if it were stuck.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked: torch.cuda.Event | None = None

    def pass_asked(self) -> None:
        """Note that a pass was asked for, and wait for the one before it."""
        if self._device.type != "cuda":
            return
        before = self._asked
        self._asked = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch's
        self._asked.record(torch.cuda.current_stream(self._device))
        if before is not None:
            before.synchronize()


class _Blended:
    """Weighted sums of what windows said of the slices that a window reaches."""

    def __init__(self, shape_kji: tuple[int, ...], device: torch.device) -> None:
        self._total: Tensor | None = None
        self._weights = torch.zeros(shape_kji, device=device)
        self._first = 0

    def add(self, window: Window, said: Tensor, weight: Tensor) -> None:
        """Add what the network says of a window, (C', K, J, I)."""
        inside = _from_zero(window)
        k = slice(window[0].start - self._first, window[0].stop - self._first)
        here = (k, *window[1:])
        if self._total is None:
            shape = (len(said), *self._weights.shape)
            whole = sum_bytes(len(said), self._weights.numel()) == 4
            precision = torch.float32 if whole else torch.float16
            self._total = self._weights.new_zeros(shape, dtype=precision)
        # Channel by channel: what precision differs costs is then a temporary of one.
        for total, each in zip(self._total, said.to(self._weights.device), strict=True):
            total[here].addcmul_(each[inside], weight[inside])
        self._weights[here] += weight[inside]

    @property
    def channels(self) -> int:
        """How many each window has; 0 before the first one."""
        return 0 if self._total is None else len(self._total)

    def first(self, count: int) -> Tensor:
        """Return the mean of the first slices, (C', count, J, I), until they are dropped."""
        assert self._total is not None
        weights = self._weights[:count].clamp(min=_LEAST * _LEAST)
        for total in self._total:
            total[:count].div_(weights)
        return self._total[:, :count]

    def drop(self, count: int) -> None:
        """Go on to the slices after the first ones, which no later window reaches."""
        self._first += count
        for sums in (self._weights, *(() if self._total is None else self._total)):
            rest = len(sums) - count
            for at in range(0, rest, count):  # what is written must not be what is read
                some = min(count, rest - at)
                sums[at : at + some] = sums[at + count : at + count + some]
            sums[rest:].zero_()


def _nothing(inputs: Tensor, channels: int, slices: int) -> Tensor:
    """Return probabilities of slices of which no window was shown; they take no memory."""
    return inputs.new_zeros(1).expand(channels, slices, *inputs.shape[2:])


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


def importance(window: tuple[int, int, int], blend: Literal["gaussian", "constant"]) -> Tensor:
    """Return the weight of each voxel of a window, (K, J, I) float32, at most 1."""
    if blend == "constant":
        return torch.ones(window)
    axes = [
        np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (_SIGMA * size)) ** 2)
        for size in window
    ]
    weight = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return torch.from_numpy(np.maximum(weight / weight.max(), _LEAST).astype(np.float32))


def _batch(
    inputs: Tensor, windows: Sequence[Window], window_kji: tuple[int, int, int], padding: float
) -> Tensor:
    """Return what a network sees of windows, (N, C, *window_kji); short ones are padded."""
    out = inputs.new_empty((len(windows), len(inputs), *window_kji))
    for shown, window in zip(out, windows, strict=True):
        inside = _from_zero(window)
        if any(part.stop < size for part, size in zip(inside, window_kji, strict=True)):
            shown[:] = padding
        shown[:, *inside] = inputs[:, *window]
    return out


def _from_zero(window: Window) -> Window:
    return tuple(slice(0, part.stop - part.start) for part in window)
