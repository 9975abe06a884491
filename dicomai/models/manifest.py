"""What a model package says of itself: `model.toml`, read and checked key by key.

Pydantic's models stand here because TOML comes in here. Nothing in a manifest is ever executed:
networks are chosen by name from a fixed table, conditions are parsed into values.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from dicomai.errors import ConfigError
from dicomai.imaging.intake import Intake
from dicomai.models.input import Input, Limits
from dicomai.models.output import Measure, Output
from dicomai.models.steps import Infer, Postprocess, Preprocess
from dicomai.models.table import CodeTable, Sentence, Table

MANIFEST_NAME: Final = "model.toml"


def _file_name(value: str) -> str:
    if not value or Path(value).name != value or not value.endswith(".safetensors"):
        raise ValueError("must be the name of a .safetensors file in the package's folder")
    return value


class Manifest(Table):
    """A whole `model.toml`."""

    format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
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
    input: Annotated[tuple[Input, ...], Field(min_length=1, max_length=8)]
    preprocess: Preprocess
    infer: Infer
    postprocess: Postprocess = Postprocess()
    output: Annotated[tuple[Output, ...], Field(min_length=1)]
    measure: Measure = Measure()

    @property
    def intake(self) -> Intake:
        """How a series or an image becomes what the model takes."""
        return self.input[0].intake(self.limits.uneven_spacing_mm)

    @model_validator(mode="after")
    def _inputs_fit_together(self) -> Manifest:
        first, *further = self.input
        if first.source != "study" or first.optional or first.align != "patient":
            raise ValueError("the first input is of the study: no source, optional or align")
        if further and any(each.kind != "volume" for each in self.input):
            raise ValueError("a model of several inputs takes volumes only")
        names = [each.name for each in self.input]
        if len(set(names)) != len(names):
            raise ValueError("two inputs have the same name")
        for each in further:
            if each.source == "prior" and each.align == "patient":
                raise ValueError(
                    f"input {each.name}: a prior lies in a frame of reference of its own; say "
                    'align = "centre", which is how the model must have been trained'
                )
        if any(each.max_age_days is not None and each.source != "prior" for each in self.input):
            raise ValueError('max_age_days of an input belongs to source = "prior"')
        channels = self.infer.arguments.get("in_channels")
        if further and channels is not None and channels != len(self.input):
            raise ValueError(
                f"infer.arguments.in_channels is {channels}, and there are {len(self.input)} inputs"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        image = self.input[0].kind == "image"
        if image and any(each.kind != "class" for each in self.output):
            raise ValueError('an image takes outputs of kind "class" only')
        if not image and any(each.kind == "class" for each in self.output):
            raise ValueError('a volume takes outputs of kind "segment" and "detection" only')
        if image and (self.infer.inferer != "whole" or self.preprocess.shape_ji is None):
            raise ValueError("an image takes the inferer whole and preprocess.shape_ji")
        if not image and self.preprocess.shape_ji is not None:
            raise ValueError("preprocess.shape_ji belongs to an image")
        taken = self.input[0]
        if image and (taken.part or taken.values == "suv_bw"):
            raise ValueError('part and values = "suv_bw" of an input belong to a volume')
        if not image and (taken.colour or taken.values == "displayed"):
            raise ValueError('colour and values = "displayed" of an input belong to an image')
        if taken.colour and taken.values != "modality":
            raise ValueError("a colour image is as it is: leave values out")
        if image and self.preprocess.spacing_mm is not None:
            raise ValueError("preprocess.spacing_mm belongs to a volume")
        labels = [each.label for each in self.output]
        if len(set(labels)) != len(labels):
            raise ValueError("two outputs have the same label")
        if self.postprocess.split_sides and any(
            each.kind == "segment" and each.laterality is None for each in self.output
        ):
            raise ValueError("postprocess.split_sides needs a laterality in each segment")
        return self


def parse(text: str, where: str) -> Manifest:
    """Return the manifest that a TOML text holds.

    Parameters
    ----------
    text
        The content of a `model.toml`.
    where
        The file, for the sentence of an error.

    Raises
    ------
    ConfigError
        Names the file, the key, what is wrong and what to do.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}.", subject=where) from None
    try:
        return Manifest.model_validate(table)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_sentence(where, each) for each in error.errors(include_url=False)),
            subject=where,
        ) from None


def read(path: Path) -> Manifest:
    """Return the manifest in a file; raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: a model package is a folder with a {MANIFEST_NAME}.",
            subject=str(path),
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}.", subject=str(path)) from None
    return parse(text, str(path))


def _sentence(where: str, error: object) -> str:
    assert isinstance(error, dict)
    steps = [
        str(step)
        for step in error["loc"]
        if not (isinstance(step, str) and step in {"segment", "detection", "class"})
        or len(error["loc"]) <= 2
    ]
    key = "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps).lstrip(".")
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = "there is no such key; remove it or correct its spelling"
    elif kind == "missing":
        message = "is missing; add it"
    else:
        given = error.get("input")
        shown = "" if isinstance(given, dict | list) or given is None else f", not {given!r}"
        message = f"{message[:1].lower()}{message[1:]}{shown}"
    return f"{where}, {key}: {message}." if key else f"{where}: {message}."
