"""What a model package says of itself: `model.toml`, read and checked key by key.

Pydantic's models stand here because TOML comes in here. Nothing in a manifest is ever executed:
networks are chosen by name from a fixed table, conditions are parsed into values.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from dicomai.errors import ConfigError
from dicomai.imaging.intake import Intake
from dicomai.models.fit import misfits
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

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        for wrong in misfits(self):
            raise ValueError(wrong)
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
    except OSError as error:
        raise ConfigError(unreadable(path, error), subject=str(path)) from None
    return parse(text, str(path))


def unreadable(path: Path, error: OSError) -> str:
    """Return the sentence about a file of a package that is there and can't be read."""
    return (
        f"{path} can't be read: {error.strerror}. Copy the package again, or give the service's "
        "user its files."
    )


def _sentence(where: str, error: ErrorDetails) -> str:
    steps, kind = error["loc"], error["type"]
    of_output = steps[2:3] if steps[:1] == ("output",) else ()  # its kind, by which pydantic chose
    named = [*steps[:2], *steps[3:]] if of_output else steps
    key = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in named)
    if kind == "extra_forbidden":
        holder = f" in an output of kind {of_output[0]!r}" if of_output else ""
        message = f"there is no such key{holder}; remove it or correct its spelling"
    elif kind == "missing":
        message = "is missing; add it"
    elif kind == "value_error":
        message = error["msg"].removeprefix("Value error, ")
    else:
        given = error["input"]
        shown = "" if isinstance(given, dict | list) or given is None else f", not {given!r}"
        message = f"{error['msg'][:1].lower()}{error['msg'][1:]}{shown}"
    return f"{where}, {key.lstrip('.')}: {message}." if key else f"{where}: {message}."
