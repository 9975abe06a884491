"""What is noted while a model runs, and what it needs of the place where it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from dicomai.models.package import Package

_Item = TypeVar("_Item")
Stage = Literal["load", "preprocess", "infer", "postprocess", "measure"]
Report: TypeAlias = Callable[[str, float], None]
"""Takes the stage and the fraction of it that is done."""


class Model(Protocol):
    """A package with its network, ready to be called."""

    @property
    def package(self) -> Package:
        """What it came from."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    @property
    def is_on_cpu(self) -> bool:
        """Whether that is the host."""

    @property
    def silent(self) -> Stage | None:
        """The stage in which it says nothing for minutes, and is not stuck; None as a rule."""

    @property
    def make_room(self) -> Callable[[], bool]:
        """Drops what else stands in the device's memory; False where nothing does."""

    def on_cpu(self) -> Model:
        """The same on the CPU."""

    def free_bytes(self) -> int | None:
        """What is free of the device's own memory; None on the CPU."""

    def pass_bytes(self, shape: tuple[int, ...]) -> int:
        """What a forward pass over an input (N, C, …) takes; 0 where nobody knows."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """(N, C, …) on any device to probabilities (N, C', …) on its own."""


class Turns(Protocol):
    """Who has the device, where several want it."""

    def alone(self, work: Callable[[], _Item], silent: Stage | None = None) -> _Item:
        """Return what the work returns, which has the device to itself.

        A stage in which it says nothing of how it gets on is told for it.
        """

    def together(self, model: Model, image: Tensor) -> tuple[Tensor, float]:
        """Return what a network says of an image (C, J, I), and seconds; it may see others too."""


class NoOthers:
    """Nobody else wants the device."""

    def alone(self, work: Callable[[], _Item], silent: Stage | None = None) -> _Item:  # noqa: ARG002  the protocol's
        """Do it at once."""
        return work()

    def together(self, model: Model, image: Tensor) -> tuple[Tensor, float]:
        """Show it at once."""
        start = time.monotonic()
        (out,) = model(image[None]).cpu()
        return out, time.monotonic() - start


@dataclass(slots=True, eq=False)
class Run:
    """What is noted while a run goes on."""

    report: Report
    turns: Turns
    stages_s: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Do a stage, timed and reported."""
        self.report(name, 0.0)
        start = time.monotonic()
        yield
        self.took(name, time.monotonic() - start)
        self.report(name, 1.0)

    def took(self, name: Stage, seconds: float) -> None:
        """Add to what a stage took."""
        self.stages_s[name] = round(self.stages_s.get(name, 0.0) + seconds, 3)

    def timed(self, name: Stage, items: Iterator[_Item]) -> Iterator[_Item]:
        """Give items; what making them takes counts for a stage."""
        while True:
            start = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.took(name, time.monotonic() - start)
            yield item
