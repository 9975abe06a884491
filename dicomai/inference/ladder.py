"""The way down where memory does not suffice: fewer windows, gathered on the host, the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from dicomai.errors import ResourceError
from dicomai.inference.memory import Need, host_free_bytes
from dicomai.inference.run import Model, Run
from dicomai.models.runtimes.devices import HOST, is_out_of_memory, short_place
from dicomai.process import release_memory

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """How much is asked of memory.

    Attributes
    ----------
    model
        The network, where it is.
    windows
        That it sees at a time; 0 before it sees any.
    gathers
        Whether its device, with memory of its own, holds the input too and what windows say.
    """

    model: Model
    windows: int = 0
    gathers: bool = False

    @property
    def place(self) -> str:
        """Whose memory the network takes, as sentences call it."""
        return HOST if self.model.is_on_cpu else str(self.model.device)

    def check(self, memory: Need) -> None:
        """Raise ResourceError where more memory will be needed than there is."""
        of_host = memory.on_host(self.windows, device_is_host=self.model.is_on_cpu)
        if of_host > host_free_bytes():
            release_memory()  # what is spared of an earlier run is free for this one
        places = [(HOST, of_host, host_free_bytes())]
        free = self.model.free_bytes()
        if free is not None:
            wanted = memory.on_device(self.windows, gathers=self.gathers)
            places.append((self.place, wanted, free))
        for where, wanted, free in places:
            if wanted > free:
                raise ResourceError(
                    f"Model {self.model.package.name}: the memory of {where} does not suffice: "
                    f"{wanted / 1e9:.1f} GB will be needed, {free / 1e9:.1f} GB are free. Give it "
                    "more, or the model a smaller window.",
                    subject=where,
                )

    def lower(self, *, short_of_host: bool) -> tuple[Step, str] | None:
        """Return the next step down, and the sentence about it; None where none would help.

        A device that does less leaves more to the host, which is no help where that is short.
        """
        on_cpu = self.model.is_on_cpu
        if short_of_host and not on_cpu:
            return None
        told = _short_of(self.place)
        if self.windows > 1:
            fewer = self.windows // 2
            told = f"{told} for {self.windows} windows at a time; the network saw {fewer}."
            return replace(self, windows=fewer), told
        if self.gathers:
            return replace(self, gathers=False), f"{told}; windows were gathered on the host."
        if not on_cpu:
            return replace(self, model=self.model.on_cpu()), on_the_cpu(self.place)
        return None


def descended(step: Step, attempt: Callable[[Step], _Found], run: Run) -> _Found:
    """Return what an attempt gives, with less asked of memory each time that does not suffice.

    Each step down is told to the run.

    Raises
    ------
    ResourceError
        It does not suffice on the last step either.
    """
    while True:
        try:
            return attempt(step)
        except (ResourceError, MemoryError, RuntimeError) as error:
            if not isinstance(error, ResourceError) and not is_out_of_memory(error):
                raise
            short = error if isinstance(error, ResourceError) else _short(step, error)
            short.with_traceback(None)  # or its frames would keep what they hold
        if step.model.make_room():
            continue
        lower = step.lower(short_of_host=short.subject == HOST)
        if lower is None:
            raise short
        step, told = lower
        run.deviations.append(told)


def on_the_cpu(place: str) -> str:
    """Return the sentence about a network that found no memory in its place."""
    return f"{_short_of(place)}; the network ran on the CPU."


def _short_of(place: str) -> str:
    return f"The memory of {place} did not suffice"


def _short(step: Step, error: MemoryError | RuntimeError) -> ResourceError:
    place = short_place(error, step.model.device)
    return ResourceError(
        f"Model {step.model.package.name}: the memory of {place} does not suffice. Give it more, "
        "or the model a smaller window.",
        subject=place,
    )
