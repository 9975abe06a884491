"""How a network is led over a volume, or shown an image, within the memory that there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from dicomai.errors import ConfigError
from dicomai.imaging.resample import Resampling
from dicomai.inference import on_device
from dicomai.inference.inferers import SlidingWindowInferer, WholeInferer
from dicomai.inference.ladder import Step, descended
from dicomai.inference.memory import Need, need
from dicomai.inference.postprocess import Choice, Region, regions
from dicomai.inference.preprocess import PreparedVolume
from dicomai.inference.run import Model, Run
from dicomai.models.manifest import Manifest

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
    step = Step(model=model, windows=windows, gathers=not model.is_on_cpu)

    def attempt(step: Step) -> dict[Choice, Region | None]:
        step.check(memory)
        return _found_at_once(step, prepare, choices, scored, run)

    return descended(step, attempt, run)


def said_of_image(model: Model, image: Tensor, run: Run) -> tuple[Tensor, float]:
    """Return what the network says of an image, and the seconds that it took.

    Parameters
    ----------
    model
        The network.
    image : (C, J, I) float32
        Preprocessed.
    run
        Told of it where the network had to go to the CPU.

    Returns
    -------
    (C',) float32
        Probabilities, on the host.

    Raises
    ------
    ResourceError
        The memory does not suffice on the CPU either.
    """

    return descended(Step(model=model), lambda step: run.turns.together(step.model, image), run)


def needed(model: Model, way: Resampling, inputs: int, masks: int) -> Need:
    """Return what a run of a model takes, before it starts."""
    manifest = model.package.manifest
    shape = manifest.infer.window_kji or way.model.shape_kji
    return need(
        way,
        channels=manifest.channels_named,
        depth=shape[0],
        masks=masks,
        inputs=inputs,
    )


def _found_at_once(
    step: Step,
    prepare: Prepare,
    choices: list[Choice],
    scored: frozenset[Choice],
    run: Run,
) -> dict[Choice, Region | None]:
    """Return what the network finds; its probabilities go back to the source's grid in slabs.

    They do so on the device where that gathers and can.
    """
    model, gathers = step.model, step.gathers
    start = time.monotonic()
    prepared = prepare(model.device if gathers else None)
    run.took("preprocess", time.monotonic() - start)
    start, before = time.monotonic(), run.stages_s.get("infer", 0.0)
    argmax = model.package.manifest.postprocess.decide == "argmax"
    way = prepared.resampling
    timed = run.timed("infer", _slabs(model, prepared, run, step.windows))
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

    if infer.window_kji is None:
        for slab in WholeInferer().slabs(prepared.inputs, model):
            yield finite(slab, manifest).to(prepared.inputs.device)
        return
    inferer = SlidingWindowInferer(
        window_kji=infer.window_kji,
        overlap=infer.overlap,
        blend=infer.blend,
        batch=windows,
        channels=manifest.channels_named,
        wanted=prepared.wanted,
        fraction=infer.only_where.fraction if infer.only_where else 0.0,
        padding=manifest.preprocess.scale_to[0],
        progress=lambda fraction: run.report("infer", fraction),
    )
    for slab in inferer.slabs(prepared.inputs, model):
        yield finite(slab, manifest)


def finite(probabilities: Tensor, manifest: Manifest) -> Tensor:
    """Return what a network gave; raise ConfigError where that is no number."""
    # Sums tell: what is not finite stays so, and others are 1 at most. One of all channels at a
    # time would take a copy of float16 as float32.
    sums = torch.stack([each.sum(dtype=torch.float32) for each in probabilities])
    if not torch.isfinite(sums).all():
        precision = manifest.infer.precision
        remedy = "Give it float32, or take" if precision != "float32" else "Take"
        raise ConfigError(
            f"Model {manifest.name}: the network gives numbers that are not finite with "
            f"precision {precision}. {remedy} another package.",
            subject=manifest.name,
        )
    return probabilities
