"""Every key of the configuration, for the reference page that is printed from it."""

from __future__ import annotations

import inspect
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from dicomai.settings.tables import SECTIONS, TABLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key of the configuration, for the reference page."""

    table: str
    key: str
    type: str
    default: str
    description: str


def reference() -> tuple[Setting, ...]:
    """Return every key of the configuration with its type, its default and what it means."""
    found = []
    for table, model in SECTIONS.items():
        for key, info in model.model_fields.items():
            found.append(
                Setting(
                    table=f"[{table}]",
                    key=key,
                    type=_type_name(str(info.annotation)),
                    default=_default_name(info.default),
                    description=info.description or "",
                )
            )
    for table, kind in TABLES.items():
        described = _numpydoc(kind.__doc__ or "")
        found += [
            Setting(
                table=f"[[{table}]]",
                key=each.name,
                type=_type_name(str(each.type)),
                default="" if each.default is MISSING else _default_name(each.default),
                description=described.get(each.name, ""),
            )
            for each in fields(kind)
        ]
    return tuple(found)


def _type_name(annotation: str) -> str:
    """Return a type in the words of TOML."""
    if "Literal" in annotation or annotation == "Mode":
        return "text"
    if annotation.startswith("tuple"):
        return "list of text"
    for word, name in (("str", "text"), ("Path", "path"), ("bool", "true or false"),
                       ("int", "whole number"), ("float", "number"), ("date", "date")):  # fmt: skip
        if word in annotation:
            return name
    return annotation


def _default_name(value: object) -> str:
    """Return a default as TOML writes it, empty where there is none."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _numpydoc(text: str) -> dict[str, str]:
    """Return the descriptions of the section "Attributes" of a docstring, by name."""
    _, _, section = inspect.cleandoc(text).partition("Attributes\n----------\n")
    described: dict[str, list[str]] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line.startswith(" "):
            for name in names:
                described[name].append(line.strip())
        else:
            names = [name.strip() for name in line.split(",")]
            described.update({name: [] for name in names})
    return {name: " ".join(lines) for name, lines in described.items()}
