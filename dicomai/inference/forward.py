"""How a network is led over a volume, within the memory that there is."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dicomai.errors import ConfigError, ResourceError
from dicomai.imaging.resample import Resampling
from dicomai.inference.inferers import SlidingWindowInferer, WholeInferer
from dicomai.inference.memory import Need, host_free_bytes, need
from dicomai.inference.postprocess import Choice, Region, regions
from dicomai.inference.preprocess import PreparedVolume
from dicomai.inference.run import Model, Run
from dicomai.models.manifest import Manifest
from dicomai.process import release_memory


def found_in_volume(
    model: Model,
    prepared: PreparedVolume,
    choices: list[Choice],
    scored: frozenset[Choice],
    memory: Need,
    run: Run,
) -> dict[Choice, Region | None]:
    """Return what the network finds, with as many windows at a time as memory lets it.

    Of the choices that are `scored` the probabilities are kept too.

    Raises
    ------
    ResourceError
        It does not let it even with one window at a time on the CPU.
    """
    run.report("infer", 0.0)
    infer = model.package.manifest.infer
    windows = infer.batch if infer.window_kji else 1
    shape = infer.window_kji or prepared.inputs.shape[1:]
    memory = memory.with_window(model.pass_bytes((1, len(prepared.inputs), *shape)))
    gathers = not model.is_on_cpu
    while True:
        short: ResourceError | MemoryError | torch.OutOfMemoryError
        try:
            check_memory(model, memory, windows, gathers=gathers)
            where = model.device if gathers else torch.device("cpu")
            slabs = _slabs(model, prepared, run, windows, where)
            way = prepared.resampling
            return _found_at_once(model, slabs, way, choices, scored, run)
        except (ResourceError, MemoryError, torch.OutOfMemoryError) as error:
            short = error.with_traceback(None)  # or its frames would keep what they hold
        if model.make_room():
            continue
        place = "the host" if model.is_on_cpu else str(model.device)
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
    places = [("the host", of_host, host_free_bytes())]
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
    slabs: Iterator[npt.NDArray[np.floating]],
    way: Resampling,
    choices: list[Choice],
    scored: frozenset[Choice],
    run: Run,
) -> dict[Choice, Region | None]:
    """Return what the network finds; its probabilities go back to the source's grid in slabs."""
    start, before = time.monotonic(), run.stages_s.get("infer", 0.0)
    argmax = model.package.manifest.postprocess.decide == "argmax"
    timed = run.timed("infer", slabs)
    found = regions(timed, way, choices, argmax=argmax, scored=scored)
    inferred = run.stages_s["infer"] - before
    run.took("postprocess", time.monotonic() - start - inferred)
    run.report("infer", 1.0)
    return found


def _slabs(
    model: Model, prepared: PreparedVolume, run: Run, windows: int, where: torch.device
) -> Iterator[npt.NDArray[np.floating]]:
    """Give the probabilities on the model's grid, slab by slab; they are gathered somewhere."""
    manifest = model.package.manifest
    infer = manifest.infer

    def fitting(batch: Tensor) -> Tensor:
        out = model(batch)
        _check_shape(out[0], manifest, dimensions=4)
        return out

    inputs = torch.from_numpy(prepared.inputs).to(where)
    if infer.window_kji is None:
        slabs = WholeInferer().slabs(inputs, fitting)
        yield from (_on_host(_finite(slab, manifest)) for slab in slabs)
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
    slabs = inferer.slabs(inputs, fitting)
    yield from (_on_host(_finite(slab, manifest)) for slab in slabs)


def _on_host(slab: Tensor) -> npt.NDArray[np.floating]:
    """Return a slab in the host's memory, where a GPU writes fastest if the pages stay in place."""
    if slab.device.type != "cpu":
        slab = torch.empty(slab.shape, dtype=slab.dtype, pin_memory=True).copy_(slab)
    out: npt.NDArray[np.floating] = slab.numpy()
    return out


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
    # One sum tells: what is not finite stays so, and others are 1 at most.
    if not torch.isfinite(probabilities.sum(dtype=torch.float32)):
        raise ConfigError(
            f"Model {manifest.name}, infer: the network gives numbers that are not finite with "
            f"precision {manifest.infer.precision}. Give it float32, or another package.",
            subject=manifest.name,
        )
    return probabilities
