"""How a network is led over a volume, within the memory that there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import torch
from torch import Tensor

from dicomai.errors import ConfigError, ResourceError
from dicomai.imaging.resample import Resampling
from dicomai.inference import on_device
from dicomai.inference.inferers import SlidingWindowInferer, WholeInferer
from dicomai.inference.memory import Need, host_free_bytes, need
from dicomai.inference.postprocess import Choice, Region, regions
from dicomai.inference.preprocess import PreparedVolume
from dicomai.inference.run import Model, Run
from dicomai.models.manifest import Manifest
from dicomai.models.runtimes.torch_runtime import is_out_of_memory
from dicomai.process import release_memory

OF_HOST: Final = "the host"

Prepare: TypeAlias = Callable[[torch.device | None], PreparedVolume]
"""Makes the input of a network, on a device or (None) on the host."""


def found_in_volume(
    model: Model,
    prepare: Prepare,
    shape: tuple[int, ...],
    choices: list[Choice],
    scored: frozenset[Choice],
    memory: Need,
    run: Run,
) -> dict[Choice, Region | None]:
    """Return what the network finds, with as many windows at a time as memory lets it.

    Parameters
    ----------
    model
        The network.
    prepare
        Makes its input.
    shape
        Of one window, (1, C, K, J, I); of the whole input where there are none.
    choices, scored
        What is sought, and of which of it the probabilities are kept too.
    memory
        What it will take.
    run
        Told how it gets on.

    Raises
    ------
    ResourceError
        It does not let it even with one window at a time on the CPU.
    """
    run.report("infer", 0.0)
    memory = memory.with_window(model.pass_bytes(shape))
    infer = model.package.manifest.infer
    windows = infer.batch if infer.window_kji else 1
    gathers = not model.is_on_cpu
    while True:
        short: ResourceError | MemoryError | RuntimeError
        try:
            check_memory(model, memory, windows, gathers=gathers)
            return _found_at_once(model, prepare, choices, scored, run, windows, gathers=gathers)
        except (ResourceError, MemoryError) as error:
            short = error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            short = error
        short.with_traceback(None)  # or its frames would keep what they hold
        if model.make_room():
            continue
        of_host = model.is_on_cpu or (isinstance(short, ResourceError) and short.subject == OF_HOST)
        place = OF_HOST if of_host else str(model.device)
        if of_host and not model.is_on_cpu:
            raise short  # a device that does less leaves more to the host
        if windows > 1:
            fewer = windows // 2
            told = f"the network saw {fewer}"
            run.deviations.append(
                f"The memory of {place} did not suffice for {windows} windows at a time; {told}."
            )
            windows = fewer
        elif gathers:
            run.deviations.append(
                f"The memory of {place} did not suffice; windows were gathered on the host."
            )
            gathers = False
        elif not model.is_on_cpu:
            run.deviations.append(
                f"The memory of {place} did not suffice; the network ran on the CPU."
            )
            model = model.on_cpu()
        elif isinstance(short, RuntimeError):
            raise MemoryError from None
        else:
            raise short


def needed(model: Model, way: Resampling, inputs: int, masks: int) -> Need:
    """Return what a run of a model takes, before it starts."""
    manifest = model.package.manifest
    shape = manifest.infer.window_kji or way.model.shape_kji
    return need(
        way,
        channels=1 + max(each.channel for each in manifest.output),
        depth=shape[0],
        masks=masks,
        inputs=inputs,
    )


def check_memory(model: Model, memory: Need, windows: int, *, gathers: bool = False) -> None:
    """Raise ResourceError where a run will need more memory than there is.

    Where the device `gathers`, input and blended windows lie there too.
    """
    of_host = memory.on_host(windows, device_is_host=model.is_on_cpu)
    if of_host > host_free_bytes():
        release_memory()  # what is spared of an earlier run is free for this one
    places = [(OF_HOST, of_host, host_free_bytes())]
    free = model.free_bytes()
    if free is not None:
        places.append((str(model.device), memory.on_device(windows, gathers=gathers), free))
    for where, wanted, free in places:
        if wanted > free:
            raise ResourceError(
                f"Model {model.package.name}: the memory of {where} does not suffice: "
                f"{wanted / 1e9:.1f} GB will be needed, {free / 1e9:.1f} GB are free. Give it "
                "more, or the model a smaller window.",
                subject=where,
            )


def _found_at_once(
    model: Model,
    prepare: Prepare,
    choices: list[Choice],
    scored: frozenset[Choice],
    run: Run,
    windows: int,
    *,
    gathers: bool,
) -> dict[Choice, Region | None]:
    """Return what the network finds; its probabilities go back to the source's grid in slabs.

    They do so on the device where that `gathers` and can.
    """
    start = time.monotonic()
    prepared = prepare(model.device if gathers else None)
    run.took("preprocess", time.monotonic() - start)
    start, before = time.monotonic(), run.stages_s.get("infer", 0.0)
    argmax = model.package.manifest.postprocess.decide == "argmax"
    way = prepared.resampling
    timed = run.timed("infer", _slabs(model, prepared, run, windows))
    if gathers and on_device.takes(way):
        found = on_device.regions(timed, way, choices, argmax=argmax, scored=scored)
    else:
        slabs = (slab.cpu().numpy() for slab in timed)
        found = regions(slabs, way, choices, argmax=argmax, scored=scored)
    inferred = run.stages_s["infer"] - before
    run.took("postprocess", time.monotonic() - start - inferred)
    run.report("infer", 1.0)
    return found


def _slabs(model: Model, prepared: PreparedVolume, run: Run, windows: int) -> Iterator[Tensor]:
    """Give the probabilities on the model's grid, slab by slab, on the device of the input."""
    manifest = model.package.manifest
    infer = manifest.infer

    def fitting(batch: Tensor) -> Tensor:
        out = model(batch)
        _check_shape(out[0], manifest, dimensions=4)
        return out

    if infer.window_kji is None:
        for slab in WholeInferer().slabs(prepared.inputs, fitting):
            yield _finite(slab, manifest).to(prepared.inputs.device)
        return
    inferer = SlidingWindowInferer(
        window_kji=infer.window_kji,
        overlap=infer.overlap,
        blend=infer.blend,
        batch=windows,
        channels=1 + max(each.channel for each in manifest.output),
        wanted=prepared.wanted,
        fraction=infer.only_where.fraction if infer.only_where else 0.0,
        padding=manifest.preprocess.scale_to[0],
        progress=lambda fraction: run.report("infer", fraction),
    )
    for slab in inferer.slabs(prepared.inputs, fitting):
        yield _finite(slab, manifest)


def checked(probabilities: Tensor, manifest: Manifest, dimensions: int) -> Tensor:
    """Return what a network gave; raise ConfigError unless the manifest promises such."""
    _check_shape(probabilities, manifest, dimensions)
    return _finite(probabilities, manifest)


def _check_shape(probabilities: Tensor, manifest: Manifest, dimensions: int) -> None:
    needed = 1 + max(each.channel for each in manifest.output)
    shape = tuple(probabilities.shape)
    if len(shape) != dimensions or shape[0] < needed:
        raise ConfigError(
            f"Model {manifest.name}, infer: the network gives {shape}, and the "
            f"manifest names {needed} channels of {dimensions - 1} dimensions. Correct infer or "
            "output in its model.toml.",
            subject=manifest.name,
        )


def _finite(probabilities: Tensor, manifest: Manifest) -> Tensor:
    # Sums tell: what is not finite stays so, and others are 1 at most. One of all channels at a
    # time would take a copy of float16 as float32.
    sums = torch.stack([each.sum(dtype=torch.float32) for each in probabilities])
    if not torch.isfinite(sums).all():
        raise ConfigError(
            f"Model {manifest.name}, infer: the network gives numbers that are not finite with "
            f"precision {manifest.infer.precision}. Give it float32, or another package.",
            subject=manifest.name,
        )
    return probabilities
