"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from dicomai.errors import NotFound


def _or_before_the_command(context: typer.Context, value: Path | None) -> Path | None:
    if value is None and context.parent is not None:
        before: Path | None = context.find_root().params.get("config")
        return before
    return value


ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration; else $DICOMAI_CONFIG, ./dicomai.toml, /etc/dicomai/dicomai.toml.",
        show_default=False,
        callback=_or_before_the_command,
        readable=False,  # said with its remedy when it is read
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def must_exist(*paths: Path) -> None:
    """Raise NotFound where one of the paths that were named leads nowhere."""
    for path in paths:
        if not path.exists():
            raise NotFound(f"There is no {path}.", subject=str(path))


def no_dicom(*paths: Path) -> str:
    """Return the sentence that there is no DICOM in what was named, and what helps."""
    from dicomai.dicom.part10 import is_dicomdir

    sentence = f"There is no DICOM in {', '.join(map(str, paths))}."
    if any(is_dicomdir(path) for path in paths):
        sentence += " A DICOMDIR is a table of contents: give the folder that it lies in."
    if any(path.suffix.lower() == ".zip" for path in paths):
        sentence += " A zip archive is not opened: unpack it, and give the folder."
    return sentence
