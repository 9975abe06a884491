"""A manifest whose tables can't all be meant is refused, before a wrong result is believed."""

from __future__ import annotations

import inspect

import pytest

from dicomai.errors import ConfigError
from dicomai.models.architecture import ARCHITECTURES, DEFAULT_CHANNELS
from dicomai.models.manifest import Manifest
from dicomai.models.model_toml import parse
from dicomai.models.runtimes.networks import NETWORKS

HEAD = """
format = 1
name = "fitting"
version = "1.0.0"
manufacturer = "dicomai"
licence = "Apache-2.0"
intended_use = "Tests."
not_for = "Patients."
sought = "Anything"
"""
CODE = '{ value = "39607008", scheme = "SCT", meaning = "Lung" }'


def volume(
    *,
    modality: str = "CT",
    limits: str = "",
    inputs: str = "",
    network: str = "unet3d",
    arguments: str = "out_channels = 3",
    infer: str = 'inferer = "whole"\nactivation = "softmax"',
    postprocess: str = 'decide = "argmax"',
    output: str = "channel = 1",
    further: str = "",
    measure: str = 'segment = ["volume"]',
) -> Manifest:
    return parse(
        f"""{HEAD}
[limits]
modality = ["{modality}"]
{limits}
[[input]]
name = "series"
kind = "volume"
{inputs}
[preprocess]
clip = [0, 1]
[infer]
network = "{network}"
arguments = {{ {arguments} }}
{infer}
[postprocess]
{postprocess}
[[output]]
kind = "segment"
label = "One"
category = {CODE}
type = {CODE}
{output}
{further}
[measure]
{measure}
""",
        "model.toml",
    )


def segment(keys: str) -> str:
    code = f"category = {CODE}\ntype = {CODE}"
    return f'[[output]]\nkind = "segment"\nlabel = "Another"\n{code}\n{keys}'


def detection(keys: str) -> str:
    return f'[[output]]\nkind = "detection"\nlabel = "Another"\nfinding = {CODE}\n{keys}'


def image(
    *,
    limits: str = 'modality = ["DX"]',
    inputs: str = "",
    preprocess: str = "clip = [0, 1]",
    network: str = "classifier2d",
    arguments: str = "",
    activation: str = "sigmoid",
    output: str = "",
    further: str = "",
) -> Manifest:
    return parse(
        f"""{HEAD}
[limits]
{limits}
[[input]]
name = "picture"
kind = "image"
{inputs}
[preprocess]
shape_ji = [32, 32]
{preprocess}
[infer]
network = "{network}"
arguments = {{ {arguments} }}
inferer = "whole"
activation = "{activation}"
[[output]]
kind = "class"
label = "One"
finding = {CODE}
{output}
{further}
""",
        "model.toml",
    )


THRESHOLD = {"postprocess": "", "infer": 'inferer = "whole"\nactivation = "sigmoid"'}
PRIOR = '[[input]]\nname = "prior"\nkind = "volume"\nsource = "prior"\nalign = "centre"'
LEFT = 'channel = 1\nlaterality = "left"'
RIGHT = 'channel = 1\nlaterality = "right"'
SPLIT = 'decide = "argmax"\nsplit_sides = true'


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # A probability that can only be 1, or that nothing was compared with.
        ({"arguments": "out_channels = 1"}, 'softmax makes the only channel .* say "sigmoid"'),
        ({"arguments": ""}, "softmax makes the only channel"),
        (
            {"infer": 'inferer = "whole"\nactivation = "sigmoid"'},
            'argmax takes the most probable channel.*say decide = "threshold"',
        ),
        ({"output": ""}, r"output\[0\].channel is missing, and the network gives 3 channels"),
        ({"output": "channel = 3"}, r"output\[0\].channel is 3, counted from 0, .* gives 3"),
        ({"output": "channel = 1\nthreshold = 0.3"}, r"output\[0\].threshold has no effect"),
        ({"arguments": "out_channels = 0"}, "out_channels is 0; give a whole number"),
        ({"arguments": "out_channels = true"}, "out_channels is True; give a whole number"),
        # Two outputs that would be one.
        ({"further": segment("channel = 1")}, r"output\[1\] would be the same as output\[0\]"),
        (
            {**THRESHOLD, "output": LEFT, "further": segment(RIGHT)},
            r"output\[1\].laterality is right, and output\[0\] .*split_sides",
        ),
        (
            {"postprocess": SPLIT, "output": LEFT, "further": segment(LEFT)},
            r"output\[1\] would be the same .*correct channel or laterality",
        ),
        # A network that takes something else.
        ({"arguments": "out_channels = 3, in_channels = 3"}, "in_channels is 3, .* is 1 input"),
        ({"inputs": PRIOR}, "in_channels is 1, and there are 2 inputs; say in_channels = 2"),
        ({"network": "classifier2d"}, "classifier2d takes one image.* one volume; take unet3d"),
        # Keys without effect, and outputs of another kind of input.
        (
            {"further": f'[[output]]\nkind = "class"\nlabel = "Other"\nfinding = {CODE}'},
            'a volume takes outputs of kind "segment" and "detection" only',
        ),
        ({"further": segment("channel = 2").replace("Another", "One")}, "have the same label"),
        ({"infer": 'inferer = "whole"\nactivation = "softmax"\noverlap = 0.5'}, "infer: overlap"),
        ({"infer": 'inferer = "whole"\nactivation = "softmax"\nbatch = 2'}, "infer.batch"),
        ({"output": f"channel = 1\nsite = {CODE}"}, r"output\[0\].site: there is no such key"),
        ({"measure": 'detection = ["volume"]'}, "measure.detection needs an output"),
        ({"postprocess": 'decide = "argmax"\nmax_findings = 3'}, "max_findings needs an output"),
        ({"measure": 'segment = ["mean", "mean"]'}, "measure.segment: a name stands twice"),
        (
            {"modality": "MR", "measure": 'segment = ["mean"]'},
            "measure.segment: mean is in HU, of CT only",
        ),
        ({"postprocess": SPLIT}, "split_sides needs a laterality"),
        # Values that no image has.
        ({"limits": "pixel_spacing_mm = [-5, 1]"}, "limits.pixel_spacing_mm: .* 0 or above"),
        ({"limits": "slice_spacing_mm = [-5, 1]"}, "limits.slice_spacing_mm: .* 0 or above"),
        ({"limits": "age_years = [-9, -1]"}, "limits.age_years: .* 0 or above"),
        ({"limits": "age_years = [90, 18]"}, "limits.age_years: the first number"),
        ({"limits": 'body_part = [" CHEST"]'}, r"limits.body_part\[0\]: ' CHEST' is no value"),
        ({"limits": 'view_position = [""]'}, r"limits.view_position\[0\]: '' is no value"),
    ],
)
def test_a_volume_is_asked_for_what_can_be(changes: dict[str, str], words: str) -> None:
    volume()
    with pytest.raises(ConfigError, match=words) as error:
        volume(**changes)
    assert len(error.value.sentence.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": "softmax"}, "softmax makes the only channel"),
        ({"arguments": "classes = 2"}, r"output\[0\].channel is missing"),
        ({"output": "channel = 1"}, "the network gives 1; correct it"),
        ({"arguments": "in_channels = 3"}, "in_channels is 3, and there is 1 input"),
        ({"inputs": "colour = true"}, "in_channels is 1, and the image is in red, green and blue"),
        ({"network": "unet3d"}, "unet3d takes one volume, .* one image; take classifier2d"),
        (
            {"further": f'[[output]]\nkind = "class"\nlabel = "Other"\nfinding = {CODE}'},
            r"output\[1\] would be the same as output\[0\]",
        ),
        ({"output": 'laterality = "left"'}, r"output\[0\].laterality: .* of kind 'class'"),
        ({"output": "display_rgb = [1, 2, 3]"}, r"output\[0\].display_rgb: there is no such key"),
        ({"further": segment("channel = 0")}, 'an image takes outputs of kind "class" only'),
        ({"preprocess": 'clip = [0, 1]\naxes = "HPL"'}, "preprocess.axes belongs to a volume"),
        (
            {"further": '[postprocess]\ndecide = "argmax"'},
            "postprocess.decide belongs to a volume",
        ),
        ({"further": "[postprocess]\nsplit_sides = true"}, "postprocess.split_sides belongs to"),
        ({"further": "[postprocess]\nmin_volume_ml = 5"}, "postprocess.min_volume_ml belongs to"),
        ({"further": '[measure]\nsegment = ["volume"]'}, "measure.segment belongs to a volume"),
        ({"limits": 'modality = ["DX"]\ncoverage_mm = 9'}, "limits.coverage_mm belongs to a"),
        (
            {"limits": 'modality = ["DX"]\nslice_spacing_mm = [1, 2]'},
            "limits.slice_spacing_mm belongs to a volume",
        ),
        ({"limits": "modality = []"}, "limits.modality: is empty"),
        ({"limits": 'modality = ["DX", " CR"]'}, r"limits.modality\[1\]: ' CR' is no value"),
        (
            {"inputs": 'values = "displayed"', "preprocess": "clip = [0, 4095]"},
            r"preprocess.clip reaches beyond .* say clip = \[0, 1\]",
        ),
        (
            {
                "inputs": "colour = true",
                "arguments": "in_channels = 3",
                "preprocess": "clip = [0, 255]",
            },
            "preprocess.clip reaches beyond",
        ),
        ({"inputs": 'when = ["Modality = DX", "Modalty = DX"]'}, r"input\[0\].when\[1\]: \"Mod"),
        ({"output": "threshold = 2"}, r"output\[0\].threshold: input should be less than 1"),
    ],
)
def test_an_image_is_asked_for_what_can_be(changes: dict[str, str], words: str) -> None:
    image()
    with pytest.raises(ConfigError, match=words) as error:
        image(**changes)
    assert len(error.value.sentence.splitlines()) == 1


def test_channels_may_be_shared_on_purpose() -> None:
    background = volume(output="channel = 0")
    assert background.output[0].channel == 0
    core = segment("channel = 1\nthreshold = 0.9")
    assert len(volume(**THRESHOLD, further=core).output) == 2
    sides = volume(postprocess=SPLIT, output=LEFT, further=segment(RIGHT))
    assert [each.channel for each in sides.output] == [1, 1]
    both = volume(further=detection("channel = 1"), measure='detection = ["volume"]')
    assert [each.kind for each in both.output] == ["segment", "detection"]
    shown = image(inputs='values = "displayed"', preprocess="clip = [0.1, 0.9]")
    assert shown.preprocess.clip == (0.1, 0.9)


def test_what_is_known_of_each_network_is_what_it_is_built_by() -> None:
    assert set(ARCHITECTURES) == set(NETWORKS)
    for name, each in ARCHITECTURES.items():
        arguments = inspect.signature(NETWORKS[name]).parameters
        for argument in (each.taken, each.given):
            assert arguments[argument].default == DEFAULT_CHANNELS
