"""What a model package says of itself: the keys of `model.toml`.

Pydantic's models stand here because TOML comes in here. Nothing in a manifest is ever executed:
networks are chosen by name from a fixed table, conditions are parsed into values.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from dicomai.imaging.intake import Intake
from dicomai.models.input import Input, Limits
from dicomai.models.output import Measure, Output
from dicomai.models.steps import Infer, Postprocess, Preprocess
from dicomai.models.table import NOT_EMPTY, CodeTable, Sentence, Table

MANIFEST_NAME: Final = "model.toml"
_COLOURS: Final = 3


def _file_name(value: str) -> str:
    if not value or Path(value).name != value or not value.endswith(".safetensors"):
        raise ValueError("must be the name of a .safetensors file in the package's folder")
    return value


def _package_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        raise ValueError(
            f'must be small letters, digits and hyphens, as "chest-ct-lungs", not {value!r}'
        )
    return value


def _release(value: str) -> str:
    if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", value):
        raise ValueError(f'must be three numbers with dots between, as "1.0.0", not {value!r}')
    return value


class Manifest(Table):
    """A whole `model.toml`."""

    format: Literal[1]
    name: Annotated[str, AfterValidator(_package_name)]
    version: Annotated[str, AfterValidator(_release)]
    manufacturer: Annotated[str, Field(min_length=1, max_length=64)]
    licence: Annotated[str, Field(min_length=1)]
    intended_use: Sentence
    not_for: Sentence
    sought: Sentence
    """What the model looks for, in words; an SR says it where nothing was found."""
    family: CodeTable = CodeTable(value="123110", scheme="DCM", meaning="Artificial Intelligence")
    """CID 7162."""
    weights: Annotated[str, AfterValidator(_file_name)] = "weights.safetensors"
    limits: Limits
    input: Annotated[tuple[Input, ...], Field(max_length=8), NOT_EMPTY]
    preprocess: Preprocess
    infer: Infer
    postprocess: Postprocess = Postprocess()
    output: Annotated[tuple[Output, ...], NOT_EMPTY]
    measure: Measure = Measure()

    @property
    def intake(self) -> Intake:
        """How a series or an image becomes what the model takes."""
        return self.input[0].intake(self.limits.uneven_spacing_mm)

    @property
    def channels_shown(self) -> int:
        """How many channels the network is shown: one for each input, three for colours."""
        return _COLOURS if self.input[0].colour else len(self.input)

    @property
    def channels_named(self) -> int:
        """How many channels the network must give, so that each output has its own."""
        return 1 + max(each.channel for each in self.output)
