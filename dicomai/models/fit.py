"""Whether the tables of a manifest fit together: what can be told before an image is seen."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

from dicomai.models.architecture import ARCHITECTURES, DEFAULT_CHANNELS, Architecture
from dicomai.models.manifest import Manifest
from dicomai.models.output import Output

_OF_A_VOLUME: Final = (
    "limits.slice_spacing_mm",
    "limits.coverage_mm",
    "limits.uneven_spacing_mm",
    "preprocess.axes",
    "preprocess.spacing_mm",
    "postprocess.",
    "measure.",
)
"""Keys, and the beginnings of keys, that mean nothing to an image."""
_ABOUT: Final = MappingProxyType(
    {
        "measure.segment": "segment",
        "measure.detection": "detection",
        "postprocess.max_findings": "detection",
    }
)
"""Keys that mean something to a kind of output only."""


def misfits(manifest: Manifest) -> Iterator[str]:
    """Give a sentence for each mistake: the key, what is wrong with it, and what to do."""
    yield from _of_the_inputs(manifest)
    if manifest.input[0].kind == "image":
        yield from _of_an_image(manifest)
    else:
        yield from _of_a_volume(manifest)
    architecture = ARCHITECTURES.get(manifest.infer.network)
    if architecture is not None:  # else building it names those that there are
        yield from _of_the_network(manifest, architecture)
    yield from _of_the_decision(manifest)
    yield from _of_the_sides(manifest)
    yield from _of_the_outputs(manifest)
    yield from _without_an_output(manifest)


def _of_the_inputs(manifest: Manifest) -> Iterator[str]:
    first, *further = manifest.input
    if first.source != "study" or first.optional or first.align != "patient":
        yield "the first input is of the study: no source, optional or align"
    if further and any(each.kind != "volume" for each in manifest.input):
        yield "a model of several inputs takes volumes only"
    names = [each.name for each in manifest.input]
    if len(set(names)) != len(names):
        yield "two inputs have the same name"
    for each in further:
        if each.source == "prior" and each.align == "patient":
            yield (
                f"input {each.name}: a prior lies in a frame of reference of its own; say "
                'align = "centre", which is how the model must have been trained'
            )
    if any(each.max_age_days is not None and each.source != "prior" for each in manifest.input):
        yield 'max_age_days of an input belongs to source = "prior"'


def _of_an_image(manifest: Manifest) -> Iterator[str]:
    taken, clip = manifest.input[0], manifest.preprocess.clip
    if any(each.kind != "class" for each in manifest.output):
        yield 'an image takes outputs of kind "class" only'
    if manifest.infer.inferer != "whole" or manifest.preprocess.shape_ji is None:
        yield "an image takes the inferer whole and preprocess.shape_ji"
    if taken.part or taken.values == "suv_bw":
        yield 'part and values = "suv_bw" of an input belong to a volume'
    if taken.colour and taken.values != "modality":
        yield "a colour image is as it is: leave values out"
    if (taken.colour or taken.values == "displayed") and clip and not 0 <= clip[0] < clip[1] <= 1:
        yield (
            "preprocess.clip reaches beyond the values of the image, which in colour or as "
            "displayed are 0 to 1; say clip = [0, 1], or a part of it"
        )
    for key in _written(manifest):
        if key.startswith(_OF_A_VOLUME):
            yield f"{key} belongs to a volume; remove it"


def _written(manifest: Manifest) -> Iterator[str]:
    """Give the keys of the tables around the network that the manifest names, defaults too."""
    tables = {
        "limits": manifest.limits,
        "preprocess": manifest.preprocess,
        "postprocess": manifest.postprocess,
        "measure": manifest.measure,
    }
    for name, table in tables.items():
        for key in type(table).model_fields:
            if key in table.model_fields_set:
                yield f"{name}.{key}"


def _of_a_volume(manifest: Manifest) -> Iterator[str]:
    taken = manifest.input[0]
    if any(each.kind == "class" for each in manifest.output):
        yield 'a volume takes outputs of kind "segment" and "detection" only'
    if manifest.preprocess.shape_ji is not None:
        yield "preprocess.shape_ji belongs to an image"
    if taken.colour or taken.values == "displayed":
        yield 'colour and values = "displayed" of an input belong to an image'
    if "CT" not in manifest.limits.modality:
        for kind, measures in (
            ("segment", manifest.measure.segment),
            ("detection", manifest.measure.detection),
        ):
            if "mean" in measures:
                yield (
                    f"measure.{kind}: mean is in HU, of CT only, and limits.modality has no CT; "
                    "remove it"
                )
    if manifest.infer.inferer == "whole" and "batch" in manifest.infer.model_fields_set:
        yield "infer.batch belongs to images, and to windows of a volume; remove it"


def _of_the_network(manifest: Manifest, architecture: Architecture) -> Iterator[str]:
    infer, kind = manifest.infer, manifest.input[0].kind
    if architecture.kind != kind:
        fitting = " or ".join(name for name, each in ARCHITECTURES.items() if each.kind == kind)
        yield (
            f"infer.network: {infer.network} takes one {architecture.kind}, and the input is one "
            f"{kind}; take {fitting}"
        )
    for argument in (architecture.taken, architecture.given):
        said = infer.arguments.get(argument, DEFAULT_CHANNELS)
        if type(said) is not int or said < 1:
            yield f"infer.arguments.{argument} is {said!r}; give a whole number from 1 on"
            return
    takes = infer.arguments.get(architecture.taken, DEFAULT_CHANNELS)
    shown = manifest.channels_shown
    if takes != shown:
        why = "there is 1 input" if shown == 1 else f"there are {shown} inputs"
        if manifest.input[0].colour:
            why = "the image is in red, green and blue"
        yield (
            f"infer.arguments.{architecture.taken} is {takes}, and {why}; say "
            f"{architecture.taken} = {shown}, if the network was trained so"
        )
    gives = infer.arguments.get(architecture.given, DEFAULT_CHANNELS)
    assert isinstance(gives, int)
    yield from _of_the_channels(manifest, gives)


def _of_the_channels(manifest: Manifest, gives: int) -> Iterator[str]:
    if manifest.infer.activation == "softmax" and gives == 1:
        yield (
            "infer.activation: softmax makes the only channel of the network 1 everywhere; say "
            '"sigmoid"'
        )
    for number, each in enumerate(manifest.output):
        if gives > 1 and "channel" not in each.model_fields_set:
            yield (
                f"output[{number}].channel is missing, and the network gives {gives} channels, "
                f"of which 0 is often the background; say which, 0 to {gives - 1}"
            )
        if each.channel >= gives:
            yield (
                f"output[{number}].channel is {each.channel}, counted from 0, and the network "
                f"gives {gives}; correct it, or infer.arguments"
            )


def _of_the_decision(manifest: Manifest) -> Iterator[str]:
    if manifest.postprocess.decide != "argmax":
        return
    if manifest.infer.activation != "softmax":
        yield (
            "postprocess.decide: argmax takes the most probable channel, however improbable, and "
            'the channels of sigmoid may all be; say decide = "threshold", or activation = '
            '"softmax"'
        )
    for number, each in enumerate(manifest.output):
        if "threshold" in each.model_fields_set:
            yield (
                f"output[{number}].threshold has no effect with postprocess.decide = "
                '"argmax"; remove one of them'
            )


def _of_the_outputs(manifest: Manifest) -> Iterator[str]:
    labels = [each.label for each in manifest.output]
    if len(set(labels)) != len(labels):
        yield "two outputs have the same label"
    first: dict[tuple[object, ...], int] = {}
    for number, each in enumerate(manifest.output):
        side = _side(each) if manifest.postprocess.split_sides else None
        told = first.setdefault((each.kind, each.channel, each.threshold, side), number)
        if told != number:
            yield (
                f"output[{number}] would be the same as output[{told}]: its kind, channel"
                f"{', threshold and side' if side else ' and threshold'} are; correct channel"
                f"{' or laterality' if side else ''}, or remove it"
            )


def _of_the_sides(manifest: Manifest) -> Iterator[str]:
    sides = [_side(each) for each in manifest.output]
    if manifest.postprocess.split_sides:
        if not any(sides) or any(
            each.kind == "segment" and side is None
            for each, side in zip(manifest.output, sides, strict=True)
        ):
            yield "postprocess.split_sides needs a laterality in each segment, and in one output"
        return
    first: dict[int, int] = {}
    for number, each in enumerate(manifest.output):
        if sides[number] is None:
            continue
        told = first.setdefault(each.channel, number)
        if sides[told] != sides[number]:
            yield (
                f"output[{number}].laterality is {sides[number]}, and output[{told}] takes the "
                "same channel for the other side; correct channel, or say "
                "postprocess.split_sides = true if the channel holds both"
            )


def _side(output: Output) -> str | None:
    return None if output.kind == "class" else output.laterality


def _without_an_output(manifest: Manifest) -> Iterator[str]:
    """Give the keys about a kind of output that there is none of."""
    kinds = {each.kind for each in manifest.output}
    for key in _written(manifest):
        if key in _ABOUT and _ABOUT[key] not in kinds:
            yield f'{key} needs an output of kind "{_ABOUT[key]}", and there is none; remove it'
