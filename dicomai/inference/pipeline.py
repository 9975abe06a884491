"""One run of a model on one input: preprocess, infer, postprocess, measure."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final, assert_never

import torch

from dicomai.errors import ConfigError, InputError
from dicomai.findings import Classification, Detection, Findings, Segment, SourceImage, Sphere
from dicomai.imaging.image import SourceImagePixels
from dicomai.imaging.mask import blank_mask
from dicomai.imaging.resample import resampling
from dicomai.imaging.volume import SourceVolume
from dicomai.inference import limits
from dicomai.inference.forward import (
    Prepare,
    finite,
    found_in_volume,
    needed,
    said_of_image,
)
from dicomai.inference.inputs import Source
from dicomai.inference.ladder import Step
from dicomai.inference.measure import (
    centre_lps_mm,
    equivalent_diameter_mm,
    measurements,
    voxel_count,
)
from dicomai.inference.postprocess import Choice, Region, cleaned, components
from dicomai.inference.preprocess import (
    PreparedVolume,
    can_prepare,
    prepare_image,
    prepare_volume,
)
from dicomai.inference.run import Model, NoOthers, Report, Run, Turns
from dicomai.inference.sides import split
from dicomai.models.manifest import Manifest
from dicomai.models.output import DetectionOutput, SegmentOutput

_NO_OTHERS: Final = NoOthers()


def analyse(
    model: Model,
    source: Source,
    inputs: tuple[SourceImage, ...],
    progress: Report,
    turns: Turns = _NO_OTHERS,
    *,
    probabilities: bool = True,
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
    turns
        Who has the device, where others want it too.
    probabilities
        Whether segments shall say how likely each of their voxels is: as large as the volume.

    Raises
    ------
    InputError
        The input lies outside the model's limits, or the sides of what was found can't be told.
    ConfigError
        The input is not of the kind that the model takes, or the network gives no numbers.
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
    run = Run(progress, turns)
    run.warnings += source.warnings
    segments: tuple[Segment, ...] = ()
    detections: tuple[Detection, ...] = ()
    classifications: tuple[Classification, ...] = ()
    if isinstance(source, SourceVolume):
        segments, detections = _in_a_volume(model, source, run, probabilities=probabilities)
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


def _of_an_image(model: Model, source: SourceImagePixels, run: Run) -> tuple[Classification, ...]:
    manifest = model.package.manifest
    with run.stage("preprocess"):
        prepared = prepare_image(source, manifest.preprocess)
    run.report("infer", 0.0)
    answer, seconds = said_of_image(model, torch.from_numpy(prepared), run)
    probabilities = finite(answer, manifest)
    run.took("infer", seconds)
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
    model: Model, source: SourceVolume, run: Run, *, probabilities: bool
) -> tuple[tuple[Segment, ...], tuple[Detection, ...]]:
    manifest = model.package.manifest
    choices = [Choice(each.channel, each.threshold) for each in manifest.output]
    way = resampling(source.grid, manifest.preprocess.axes, manifest.preprocess.spacing_mm)
    memory = needed(model, way, 1 + len(source.beside), len(set(choices)))
    Step(model=model).check(memory)
    prepare: Prepare = partial(prepare_volume, source, way, manifest.preprocess, manifest.infer)
    if model.is_on_cpu or not can_prepare(way, manifest.preprocess):
        with run.stage("preprocess"):  # while another has its turn
            prepare = partial(_moved, prepare(None))
    rules = manifest.postprocess
    scored = frozenset(
        choice
        for output, choice in zip(manifest.output, choices, strict=True)
        if probabilities or output.kind != "segment"
    )
    shape = (1, 1 + len(source.beside), *(manifest.infer.window_kji or way.model.shape_kji))
    ask = partial(found_in_volume, model, prepare, shape, choices, scored, memory, run)
    found = run.turns.alone(ask, model.silent)
    del prepare, ask
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
                segments.append(
                    _segment(output, region, manifest, source, probabilities=probabilities)
                )
            elif output.kind == "detection":
                detections += _detections(output, region, manifest, source, run)
            elif output.kind == "class":
                raise AssertionError("a manifest of a volume has no class")
            else:
                assert_never(output)
        return tuple(segments), tuple(detections)


def _moved(prepared: PreparedVolume, device: torch.device | None) -> PreparedVolume:
    """Return what is prepared on the host on a device."""
    return prepared if device is None else replace(prepared, inputs=prepared.inputs.to(device))


def _own_regions(
    manifest: Manifest,
    choices: list[Choice],
    kept: dict[Choice, Region | None],
    source: SourceVolume,
    run: Run,
) -> list[Region | None]:
    """Return what each output holds: a mask of both sides is parted."""
    if not manifest.postprocess.split_sides:
        return [kept[choice] for choice in choices]
    out: list[Region | None] = []
    parted = {}
    for output, choice in zip(manifest.output, choices, strict=True):
        region = kept[choice]
        if region is not None and output.kind != "class" and output.laterality is not None:
            if choice not in parted:
                sides = split(region, source.grid)
                if sides is None:
                    raise InputError(
                        f"Series {source.series_instance_uid} was not analysed by {manifest.name}, "
                        "because nobody could tell the left from the right of what it found: this "
                        "is neither a pair around the middle of the images nor, part by part, "
                        "clear of that middle and of their ends. Choose a series that shows both "
                        "sides of the patient.",
                        subject=source.series_instance_uid,
                    )
                parted[choice], told = sides
                run.warnings += told
            region = parted[choice][output.laterality]
        out.append(region)
    return out


def _segment(
    output: SegmentOutput,
    region: Region | None,
    manifest: Manifest,
    source: SourceVolume,
    *,
    probabilities: bool,
) -> Segment:
    return Segment(
        label=output.label,
        tracking_id=output.label,
        category=output.category.code,
        type=output.type.code,
        laterality=output.laterality_code,
        mask=(blank_mask(source.grid.shape_kji) if region is None else region.whole(source.grid)),
        probability=None if region is None or not probabilities else region.values,
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
    run: Run,
) -> list[Detection]:
    """Return the components of a region, the most probable first."""
    if region is None:
        return []
    scored = [
        (_score(each, output), each)
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


def _score(region: Region, output: DetectionOutput) -> float:
    assert region.values is not None
    return float(region.values.max() if output.score == "max" else region.values.mean())


def _diameter_mm(region: Region, source: SourceVolume) -> float:
    size = voxel_count(region.mask, source.grid, region.cut[0].start)
    return equivalent_diameter_mm(size, source.grid)
