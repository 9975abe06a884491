"""What people and scripts read: answers on stdout, progress and trouble on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dicomai.roles.logs import escaped

# A pipe has no width; a line that wraps there can't be searched.
_UNLIMITED: Final = 10_000

_COLOURS: Final = {
    "good": "green",
    "bad": "bold red",
    "warn": "yellow",
    "quiet": "dim",
}


def prepare_streams() -> None:
    """Have what is said reach no file of ours, and no letter of it end a command.

    Whoever starts us may have closed a standard stream: the next file that is opened would get its
    number. A locale that is not UTF-8 lacks letters of patients and signs of ours; those are
    written out, as \\u2026.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == number  # the lowest that is free
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def answers() -> Console:
    """Return the console of answers, stdout; plain and unwrapped where no terminal is."""
    return _console(stderr=False)


def remarks() -> Console:
    """Return the console of progress and trouble, stderr."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNLIMITED
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def say(sentence: str) -> None:
    """Print a sentence on stdout."""
    answers().print(text(sentence), soft_wrap=False)


def complain(sentence: str) -> None:
    """Print a sentence on stderr, after the word that marks it as an error."""
    remarks().print(Text.assemble(("dicomai: ", _COLOURS["bad"]), text(sentence)))


def text(value: object, look: str = "") -> Text:
    """Return what a cell or line shows: control characters written out, no markup.

    Parameters
    ----------
    value
        Anything; None becomes nothing.
    look
        ``good``, ``bad``, ``warn``, ``quiet`` or nothing.
    """
    shown = "" if value is None else str(value)
    lines = [escaped(line) for line in shown.split("\n")]
    return Text("\n".join(lines), style=_COLOURS.get(look, ""), overflow="fold")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", empty: str = ""
) -> None:
    """Print rows as a table that folds rather than cuts; where there is none, the sentence `empty`.

    Columns whose name ends in ``#`` are numbers: right-aligned, shown without the sign.
    """
    filled = list(rows)
    if not filled:
        if empty:
            say(empty)
        return
    console = answers()
    console.print(_laid_out(columns, filled, title))
    console.print()


def records(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a table where the terminal is wide enough, else each below the other.

    Of many columns a table would leave a few characters each, and of a UID nothing to copy.
    """
    console = answers()
    shown = _laid_out(columns, rows)
    unbounded = console.options.update(width=_UNLIMITED)
    if console.measure(shown, options=unbounded).maximum <= console.width:
        console.print(shown)
        console.print()
        return
    for row in rows:
        sheet(zip(columns, row, strict=True))


def _laid_out(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    shown = Table(
        title=text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    for column in columns:
        number = column.endswith("#")
        shown.add_column(
            column.removesuffix("#"),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
        )
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else text(cell) for cell in row))
    return shown


def sheet(rows: Iterable[tuple[str, object]]) -> None:
    """Print facts of one thing, name and value; those without a value are left out."""
    table(["what", "is"], [row for row in rows if row[1] is not None and str(row[1])])


def progress() -> Progress:
    """Return a display of progress on stderr, which is gone when its block ends."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=remarks(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def print_json(value: object) -> None:
    """Print a value of dicts, lists, texts and numbers as JSON."""
    sys.stdout.write(in_json(value, indent=2) + "\n")


def in_json(value: object, indent: int | None = None) -> str:
    """Return a value of dicts, lists, texts and numbers as JSON for stdout.

    What could move a cursor or turn a line round is an escape of JSON, which reads as the same; so
    is what stdout has no code for.
    """
    in_ascii = (sys.stdout.encoding or "utf-8").lower() != "utf-8"
    written = json.dumps(value, ensure_ascii=in_ascii, indent=indent, allow_nan=False)
    return "\n".join(map(_escaped_in_json, written.split("\n")))


def _escaped_in_json(line: str) -> str:
    # Of the controls JSON itself escapes those of ASCII, but DEL.
    return line if escaped(line) == line else "".join(map(_escape_in_json, line))


def _escape_in_json(character: str) -> str:
    return character if escaped(character) == character else f"\\u{ord(character):04x}"


def moment(instant: int | None) -> str:
    """Return microseconds UTC as this machine's local time; empty when there is none."""
    if instant is None:
        return ""
    return f"{datetime.fromtimestamp(instant / 1e6, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def clock(instant: int | None) -> str:
    """Return microseconds UTC as local time, without the date if that is today's."""
    shown = moment(instant)
    return shown.removeprefix(f"{datetime.now(UTC).astimezone():%Y-%m-%d} ")


def iso(instant: int | None) -> str | None:
    """Return microseconds UTC in ISO 8601, as scripts want it."""
    if instant is None:
        return None
    return datetime.fromtimestamp(instant / 1e6, UTC).isoformat(timespec="milliseconds")


def span(seconds: float) -> str:
    """Return a span as people say it: 0.4 s, 12 s, 3 min 20 s, 5 h 10 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, lesser, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit} {rest} {lesser}" if rest else f"{whole // size} {unit}"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole} s"


def size(octets: int) -> str:
    """Return a number of bytes as people say it."""
    amount = float(octets)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
