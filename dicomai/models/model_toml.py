"""A manifest is read from `model.toml` and checked, key by key and as a whole."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dicomai.errors import ConfigError
from dicomai.models.fit import misfits
from dicomai.models.manifest import MANIFEST_NAME, Manifest

_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "dict_type": "must be a table of keys",
        "missing": "is missing; add it",
        "model_attributes_type": "must be a table of keys",
        "model_type": "must be a table of keys",
        "string_type": "must be text, in quotes",
        "too_long": "has {actual_length} entries, and takes {max_length}",
        "tuple_type": "must be a list, in brackets",
        "union_tag_invalid": "kind must be one of {expected_tags}, not {tag!r}",
        "union_tag_not_found": "kind is missing; add it",
    }
)
"""What pydantic says in words of Python, by its name of the error."""


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
        manifest = Manifest.model_validate(table)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(
                dict.fromkeys(_sentence(where, each) for each in error.errors(include_url=False))
            ),
            subject=where,
        ) from None
    for wrong in misfits(manifest):
        raise ConfigError(f"{where}: {wrong}.", subject=where)
    return manifest


def read(path: Path) -> Manifest:
    """Return the manifest in a file; raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # as Notepad saves it, too
    except (FileNotFoundError, NotADirectoryError):
        beneath = sorted(path.parent.glob(f"*/{MANIFEST_NAME}"))  # as archives are unpacked
        there = f" {beneath[0].parent} is one; take that." if beneath else ""
        raise ConfigError(
            f"{path} is missing: a model package is a folder with a {MANIFEST_NAME}.{there}",
            subject=str(path),
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8: {error}. Save it as UTF-8.", subject=str(path)
        ) from None
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
    given = error["input"]
    if steps[:2] == ("infer", "arguments") and len(steps) > 3:  # one error for each kind it is not
        named, message = steps[:3], "must be text, a number, true or false, or a list of numbers"
    elif kind == "value_error":
        message = error["msg"].removeprefix("Value error, ")
    elif kind == "tuple_type" and len(steps) == 1 and isinstance(given, dict):
        message = f"there may be several: write [[{steps[-1]}]], in two pairs of brackets"
    elif kind == "extra_forbidden":
        holder = f" in an output of kind {of_output[0]!r}" if of_output else ""
        message = f"there is no such key{holder}; remove it or correct its spelling"
    else:
        said = f"{error['msg'][:1].lower()}{error['msg'][1:]}"
        shown = "" if isinstance(given, dict | list) or given is None else f", not {given!r}"
        words = _WORDS[kind].format(**error.get("ctx", {})) if kind in _WORDS else said
        message = words + shown
    key = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in named)
    return f"{where}, {key.lstrip('.')}: {message}." if key else f"{where}: {message}."
