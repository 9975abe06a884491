"""What a manifest says of the form in which its model takes a series or an image."""

from __future__ import annotations

import pytest

from dicomai.errors import ConfigError
from dicomai.imaging.intake import PLAIN, Intake
from dicomai.models.manifest import Manifest
from dicomai.models.model_toml import parse

HEAD = """
format = 1
name = "taker"
version = "1.0.0"
manufacturer = "dicomai"
licence = "Apache-2.0"
intended_use = "Tests."
not_for = "Patients."
sought = "Anything"
"""
CODE = '{ value = "39607008", scheme = "SCT", meaning = "Lung" }'


def volume(limits: str = "", taken: str = "") -> Manifest:
    return parse(
        f"""{HEAD}
[limits]
modality = ["PT"]
{limits}
[[input]]
name = "series"
kind = "volume"
{taken}
[preprocess]
clip = [0, 1]
[infer]
network = "unet3d"
inferer = "whole"
activation = "sigmoid"
[[output]]
kind = "segment"
label = "Lung"
category = {CODE}
type = {CODE}
""",
        "model.toml",
    )


def image(limits: str = "", taken: str = "") -> Manifest:
    return parse(
        f"""{HEAD}
[limits]
modality = ["XC"]
{limits}
[[input]]
name = "picture"
kind = "image"
{taken}
[preprocess]
shape_ji = [8, 8]
clip = [0, 1]
[infer]
network = "classifier2d"
arguments = {{ in_channels = {3 if "colour = true" in taken else 1} }}
inferer = "whole"
activation = "sigmoid"
[[output]]
kind = "class"
label = "Lung"
finding = {CODE}
""",
        "model.toml",
    )


def test_without_a_word_a_model_takes_what_is_plain() -> None:
    assert volume().intake == image().intake == PLAIN
    assert not image().limits.for_processing


def test_each_key_says_its_part() -> None:
    assert volume(taken='part = "b-value 0"').intake == Intake(part="b-value 0")
    assert volume(taken='values = "suv_bw"').intake == Intake(suv_body_weight=True)
    assert volume("uneven_spacing_mm = 1.5").intake == Intake(uneven_mm=1.5)
    assert image(taken='values = "displayed"').intake == Intake(displayed=True)
    assert image(taken="colour = true").intake == Intake(colour=True)
    assert image("for_processing = true").limits.for_processing


@pytest.mark.parametrize(
    ("kind", "taken", "words"),
    [
        (image, 'part = "time 1"', "belong to a volume"),
        (image, 'values = "suv_bw"', "belong to a volume"),
        (image, 'colour = true\nvalues = "displayed"', "leave values out"),
        (volume, "colour = true", "belong to an image"),
        (volume, 'values = "displayed"', "belong to an image"),
        (volume, 'values = "suv"', "values"),
    ],
)
def test_what_does_not_go_together_is_refused(kind: object, taken: str, words: str) -> None:
    assert callable(kind)
    with pytest.raises(ConfigError, match=words):
        kind(taken=taken)


def test_a_negative_tolerance_is_refused() -> None:
    with pytest.raises(ConfigError, match="uneven_spacing_mm"):
        volume("uneven_spacing_mm = -1")
