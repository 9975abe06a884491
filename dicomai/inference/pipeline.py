"""One run of a model on one input: preprocess, infer, postprocess, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol, TypeAlias, TypeVar, assert_never

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from dicomai.errors import ConfigError, ResourceError
from dicomai.findings import Classification, Detection, Findings, Segment, SourceImage, Sphere
from dicomai.imaging.attributes import text
from dicomai.imaging.image import SourceImagePixels
from dicomai.imaging.mask import blank_mask
from dicomai.imaging.resample import Resampling, resampling
from dicomai.imaging.volume import SourceVolume
from dicomai.inference import limits
from dicomai.inference.inferers import SlidingWindowInferer, WholeInferer
from dicomai.inference.measure import (
    centre_lps_mm,
    equivalent_diameter_mm,
    measurements,
    voxel_count,
)
from dicomai.inference.memory import Need, host_free_bytes, need
from dicomai.inference.postprocess import Choice, Region, cleaned, components, regions
from dicomai.inference.preprocess import PreparedVolume, prepare_image, prepare_volume
from dicomai.inference.sides import split
from dicomai.models.manifest import DetectionOutput, Manifest, SegmentOutput
from dicomai.models.package import Package

Source: TypeAlias = SourceVolume | SourceImagePixels
_Item = TypeVar("_Item")
Stage = Literal["preprocess", "infer", "postprocess", "measure"]
Report: TypeAlias = Callable[[str, float], None]
"""Takes the stage and the fraction of it that is done."""


class InTurn(Protocol):
    """Does something when the device is free for it."""

    def __call__(self, work: Callable[[], _Item]) -> _Item:
        """Return what the work returns."""


def at_once(work: Callable[[], _Item]) -> _Item:
    """Do it at once: nobody else has the device."""
    return work()


class Model(Protocol):
    """A package with its network, ready to be called."""

    @property
    def package(self) -> Package:
        """What it came from."""

    @property
    def device(self) -> object:
        """Where it is, as "cuda:0"."""

    @property
    def is_on_cpu(self) -> bool:
        """Whether that is the host."""

    @property
    def make_room(self) -> Callable[[], bool]:
        """Drops what else stands in the device's memory; False where nothing does."""

    def on_cpu(self) -> Model:
        """The same on the CPU."""

    def free_bytes(self) -> int | None:
        """What is free of the device's own memory; None on the CPU."""

    def pass_bytes(self, shape: tuple[int, ...]) -> int:
        """What a forward pass over an input (N, C, …) takes; 0 where nobody knows."""

    def __call__(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(N, C, …) to probabilities (N, C', …)."""


@dataclass(slots=True, eq=False)
class _Run:
    """What is noted while a run goes on."""

    report: Report
    in_turn: InTurn
    stages_s: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        self.report(name, 0.0)
        start = time.monotonic()
        yield
        self.took(name, time.monotonic() - start)
        self.report(name, 1.0)

    def took(self, name: Stage, seconds: float) -> None:
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


def inputs_of(headers: Sequence[Dataset]) -> tuple[SourceImage, ...]:
    """Return the images that a model sees, as results name them."""
    return tuple(
        SourceImage(
            study_instance_uid=text(each, "StudyInstanceUID"),
            series_instance_uid=text(each, "SeriesInstanceUID"),
            sop_class_uid=text(each, "SOPClassUID"),
            sop_instance_uid=text(each, "SOPInstanceUID"),
        )
        for each in headers
    )


def analyse(
    model: Model,
    source: Source,
    inputs: tuple[SourceImage, ...],
    progress: Report,
    in_turn: InTurn = at_once,
) -> Findings:
    """Return what a model finds in an input.

    Parameters
    ----------
    model
        A package with its network.
    source
        The volume or image.
    inputs
        The images it was made from, as `inputs_of` gives them.
    progress
        Called with stage and fraction whenever the run got on.
    in_turn
        Does what needs the device, where others may have it.

    Raises
    ------
    InputError
        The input is not of the kind that the model takes, or lies outside its limits.
    ConfigError
        The network does not give what the manifest says.
    ResourceError
        The device's memory does not suffice.
    """
    manifest = model.package.manifest
    kind = "volume" if isinstance(source, SourceVolume) else "image"
    if manifest.input[0].kind != kind:
        raise ConfigError(
            f"Model {manifest.name} takes one {manifest.input[0].kind}, not a {kind}. Give its "
            "route another series or another model.",
            subject=manifest.name,
        )
    where = source.grid if isinstance(source, SourceVolume) else source.plane
    limits.check(manifest.limits, source.facts, where, manifest.name, source.series_instance_uid)
    run = _Run(progress, in_turn)
    run.warnings += source.warnings
    segments: tuple[Segment, ...] = ()
    detections: tuple[Detection, ...] = ()
    classifications: tuple[Classification, ...] = ()
    if isinstance(source, SourceVolume):
        segments, detections = _in_a_volume(model, source, run)
    else:
        classifications = _of_an_image(model, source, run)
    return Findings(
        algorithm=model.package.algorithm,
        where=where,
        inputs=inputs,
        sought=manifest.sought,
        segments=segments,
        detections=detections,
        classifications=classifications,
        deviations=tuple(run.deviations),
        warnings=tuple(run.warnings),
        stages_s=run.stages_s,
    )


def _of_an_image(model: Model, source: SourceImagePixels, run: _Run) -> tuple[Classification, ...]:
    manifest = model.package.manifest
    with run.stage("preprocess"):
        prepared = prepare_image(source, manifest.preprocess)

    def infer() -> npt.NDArray[np.float32]:
        with run.stage("infer"):
            return _checked(WholeInferer()(prepared, model), manifest, dimensions=1)

    probabilities = run.in_turn(infer)
    with run.stage("postprocess"):
        out = tuple(
            Classification(
                label=output.label,
                tracking_id=output.label,
                finding=output.finding.code,
                site=output.site.code if output.site else None,
                present=bool(probabilities[output.channel] >= output.threshold),
                probability=float(probabilities[output.channel]),
                threshold=output.threshold,
            )
            for output in manifest.output
            if output.kind == "class"
        )
    with run.stage("measure"):
        return out


def _in_a_volume(
    model: Model, source: SourceVolume, run: _Run
) -> tuple[tuple[Segment, ...], tuple[Detection, ...]]:
    manifest = model.package.manifest
    choices = [Choice(each.channel, each.threshold) for each in manifest.output]
    way = resampling(source.grid, manifest.preprocess.axes, manifest.preprocess.spacing_mm)
    needed = _needed(model, way, 1 + len(source.beside), len(set(choices)))
    with run.stage("preprocess"):
        _check_memory(model, needed, 0)
        prepared = prepare_volume(source, way, manifest.preprocess, manifest.infer)
    rules = manifest.postprocess
    found = run.in_turn(partial(_found, model, prepared, choices, needed, run))
    del prepared
    with run.stage("postprocess"):
        kept: dict[Choice, Region | None] = {}
        for done, (choice, region) in enumerate(found.items(), start=1):
            kept[choice] = region and cleaned(region, rules, source.grid, choice.threshold)
            run.report("postprocess", done / (len(found) + 1))
        own = _own_regions(manifest, choices, kept, source, run)
    with run.stage("measure"):
        if source.facts.modality != "CT" and "mean" in (
            *manifest.measure.segment,
            *manifest.measure.detection,
        ):
            run.deviations.append(
                f"The mean was not measured: values of modality {source.facts.modality} have no "
                "unit."
            )
        segments: list[Segment] = []
        detections: list[Detection] = []
        for output, region in zip(manifest.output, own, strict=True):
            if output.kind == "segment":
                segments.append(_segment(output, region, manifest, source))
            elif output.kind == "detection":
                detections += _detections(output, region, manifest, source, run)
            elif output.kind == "class":
                raise AssertionError("a manifest of a volume has no class")
            else:
                assert_never(output)
        return tuple(segments), tuple(detections)


def _found(
    model: Model, prepared: PreparedVolume, choices: list[Choice], needed: Need, run: _Run
) -> dict[Choice, Region | None]:
    """Return what the network finds, with as many windows at a time as memory lets it.

    Raises
    ------
    ResourceError
        It does not let it even with one window at a time on the CPU.
    """
    run.report("infer", 0.0)
    infer = model.package.manifest.infer
    windows = infer.batch if infer.window_kji else 1
    shape = infer.window_kji or prepared.inputs.shape[1:]
    needed = needed.with_window(model.pass_bytes((1, len(prepared.inputs), *shape)))
    while True:
        short: ResourceError | MemoryError
        try:
            _check_memory(model, needed, windows)
            return _found_at_once(model, prepared, choices, run, windows)
        except (ResourceError, MemoryError) as error:
            short = error.with_traceback(None)  # or its frames would keep what they hold
        if model.make_room():
            continue
        where = "the host" if model.is_on_cpu else str(model.device)
        if windows > 1:
            fewer = windows // 2
            told = f"the network saw {fewer}"
            run.deviations.append(
                f"The memory of {where} did not suffice for {windows} windows at a time; {told}."
            )
            windows = fewer
        elif not model.is_on_cpu:
            run.deviations.append(
                f"The memory of {where} did not suffice; the network ran on the CPU."
            )
            model = model.on_cpu()
        else:
            raise short


def _needed(model: Model, way: Resampling, inputs: int, masks: int) -> Need:
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


def _check_memory(model: Model, needed: Need, windows: int) -> None:
    """Raise ResourceError where a run will need more memory than there is."""
    of_host = needed.on_host(windows, device_is_host=model.is_on_cpu)
    places = [("the host", of_host, host_free_bytes())]
    free = model.free_bytes()
    if free is not None:
        places.append((str(model.device), windows * needed.window, free))
    for where, wanted, free in places:
        if wanted > free:
            raise ResourceError(
                f"Model {model.package.name}: the memory of {where} does not suffice: "
                f"{wanted / 1e9:.1f} GB will be needed, {free / 1e9:.1f} GB are free. Give it "
                "more, or the model a smaller window.",
                subject=where,
            )


def _found_at_once(
    model: Model, prepared: PreparedVolume, choices: list[Choice], run: _Run, windows: int
) -> dict[Choice, Region | None]:
    """Return what the network finds; its probabilities go back to the source's grid in slabs."""
    start, before = time.monotonic(), run.stages_s.get("infer", 0.0)
    argmax = model.package.manifest.postprocess.decide == "argmax"
    slabs = run.timed("infer", _slabs(model, prepared, run, windows))
    found = regions(slabs, prepared.resampling, choices, argmax=argmax)
    inferred = run.stages_s["infer"] - before
    run.took("postprocess", time.monotonic() - start - inferred)
    run.report("infer", 1.0)
    return found


def _slabs(
    model: Model, prepared: PreparedVolume, run: _Run, windows: int
) -> Iterator[npt.NDArray[np.floating]]:
    """Give the probabilities on the model's grid, slab by slab."""
    manifest = model.package.manifest
    infer = manifest.infer

    def checked(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        out = model(batch)
        for each in out:
            _checked(each, manifest, dimensions=4)
        return out

    if infer.window_kji is None:
        return WholeInferer().slabs(prepared.inputs, checked)
    return SlidingWindowInferer(
        window_kji=infer.window_kji,
        overlap=infer.overlap,
        blend=infer.blend,
        batch=windows,
        channels=1 + max(each.channel for each in manifest.output),
        wanted=prepared.wanted,
        fraction=infer.only_where.fraction if infer.only_where else 0.0,
        padding=manifest.preprocess.scale_to[0],
        progress=lambda fraction: run.report("infer", fraction),
    ).slabs(prepared.inputs, checked)


def _checked(
    probabilities: npt.NDArray[np.float32], manifest: Manifest, dimensions: int
) -> npt.NDArray[np.float32]:
    """Raise ConfigError unless a network gave what the manifest promises."""
    needed = 1 + max(each.channel for each in manifest.output)
    if probabilities.ndim != dimensions or len(probabilities) < needed:
        raise ConfigError(
            f"Model {manifest.name}, infer: the network gives {probabilities.shape}, and the "
            f"manifest names {needed} channels of {dimensions - 1} dimensions. Correct infer or "
            "output in its model.toml.",
            subject=manifest.name,
        )
    if not np.isfinite(probabilities).all():
        raise ConfigError(
            f"Model {manifest.name}, infer: the network gives numbers that are not finite with "
            f"precision {manifest.infer.precision}. Give it float32, or another package.",
            subject=manifest.name,
        )
    return probabilities


def _own_regions(
    manifest: Manifest,
    choices: list[Choice],
    kept: dict[Choice, Region | None],
    source: SourceVolume,
    run: _Run,
) -> list[Region | None]:
    """Return what each output holds: a mask of both sides is parted."""
    if not manifest.postprocess.split_sides:
        return [kept[choice] for choice in choices]
    out: list[Region | None] = []
    parted = {}
    for output, choice in zip(manifest.output, choices, strict=True):
        region = kept[choice]
        if region is not None and output.laterality is not None:
            if choice not in parted:
                parted[choice], told = split(region, source.grid)
                run.warnings += told
            region = parted[choice][output.laterality]
        out.append(region)
    return out


def _segment(
    output: SegmentOutput, region: Region | None, manifest: Manifest, source: SourceVolume
) -> Segment:
    return Segment(
        label=output.label,
        tracking_id=output.label,
        category=output.category.code,
        type=output.type.code,
        laterality=output.laterality_code,
        mask=(blank_mask(source.grid.shape_kji) if region is None else region.whole(source.grid)),
        probability=None if region is None else region.values,
        measurements=(
            ()
            if region is None
            else measurements(
                manifest.measure.segment,
                region.mask,
                source.voxels[region.cut],
                source.grid,
                source.facts.modality,
                region.cut[0].start,
            )
        ),
        display_rgb=output.display_rgb,
    )


def _detections(
    output: DetectionOutput,
    region: Region | None,
    manifest: Manifest,
    source: SourceVolume,
    run: _Run,
) -> list[Detection]:
    """Return the components of a region, the most probable first."""
    if region is None:
        return []
    scored = [
        (float(each.values.max() if output.score == "max" else each.values.mean()), each)
        for each in components(region)
        if _diameter_mm(each, source) >= output.min_diameter_mm
    ]
    scored.sort(key=lambda each: -each[0])
    most = manifest.postprocess.max_findings
    if len(scored) > most:
        run.warnings.append(
            f"{output.label}: {len(scored)} were found; the {most} most probable are told."
        )
    return [
        Detection(
            label=f"{output.label} {number}",
            tracking_id=f"{output.label} {number}",
            finding=output.finding.code,
            site=output.site.code if output.site else None,
            laterality=output.laterality_code,
            region=Sphere(
                centre_lps_mm=centre_lps_mm(part.mask, part.cut, source.grid),
                diameter_mm=_diameter_mm(part, source),
            ),
            probability=min(probability, 1.0),
            measurements=measurements(
                manifest.measure.detection,
                part.mask,
                source.voxels[part.cut],
                source.grid,
                source.facts.modality,
                part.cut[0].start,
            ),
            category=output.category.code if output.category else None,
            mask=part.whole(source.grid) if output.mask else None,
            display_rgb=output.display_rgb,
        )
        for number, (probability, part) in enumerate(scored[:most], start=1)
    ]


def _diameter_mm(region: Region, source: SourceVolume) -> float:
    size = voxel_count(region.mask, source.grid, region.cut[0].start)
    return equivalent_diameter_mm(size, source.grid)
