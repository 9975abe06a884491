"""`dicomai find`: what a node has."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import in_json, records, remarks, say, text
from dicomai.errors import InputError

if TYPE_CHECKING:
    from dicomai.net.find import Match, Query

_PAGE: Final = 500
"""Matches that are held at a time: a table is as wide as its widest cell."""


def find(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name in the configuration.")],
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEYWORD=VALUE",
            help="What to look for, by DICOM keyword: PatientName='DOE*', StudyDate=20260101-, "
            "ModalitiesInStudy=CT. A keyword alone is shown and matches all.",
            show_default=False,
        ),
    ] = None,
    level: Annotated[
        Literal["patient", "study", "series", "image"],
        typer.Option("--level", help="What to list."),
    ] = "study",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Stop after so many matches.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a node what it has (C-FIND).

    Lists of series need StudyInstanceUID=…, of images SeriesInstanceUID=… too.
    """
    from dicomai.net import find as finding
    from dicomai.settings import load

    settings = load(config)
    target = settings.node(node)
    try:
        wanted = finding.query(level, _parsed(keys or ()))
    except InputError as wrong:
        raise typer.BadParameter(wrong.sentence) from wrong
    cut = finding.Cut()
    matches = finding.find(
        target, settings.receiver.ae_title, wanted, settings.tls.files, limit, cut
    )
    if json:
        _print_all(matches)
    else:
        _show(node, wanted, matches)
    if cut.happened:
        remarks().print(text(cut.because, "warn"))


def _parsed(texts: Sequence[str]) -> Mapping[str, str]:
    keys: dict[str, str] = {}
    for each in texts:
        keyword, _, value = each.partition("=")
        if not keyword:
            raise InputError("Write KEYWORD=VALUE, without spaces around =.")
        if keyword in keys:
            raise InputError(f"{keyword} is given twice. Join its values with a backslash.")
        keys[keyword] = value
    return keys


def _show(node: str, wanted: Query, matches: Iterator[Match]) -> None:
    columns = list(wanted.keys)
    number = 0
    while page := list(itertools.islice(matches, _PAGE)):
        number += len(page)
        records(columns, [[match.text(column) for column in columns] for match in page])
    things = {"study": "studies", "series": "series"}.get(wanted.level, f"{wanted.level}s")
    one = number == 1
    say(f"{node} has {number or 'no'} such {wanted.level if one else things}.")


def _print_all(matches: Iterator[Match]) -> None:
    """Print a JSON list, match by match."""
    between = "[\n  "
    for match in matches:
        sys.stdout.write(between + in_json(match.attributes))
        between = ",\n  "
    sys.stdout.write("[]\n" if between.startswith("[") else "\n]\n")
