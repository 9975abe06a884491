"""The reference pages of the documentation, printed from the code.

`python -m dicomai.cli.reference FOLDER` writes them; a test compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import typer
from typer._click.core import Command, Context

from dicomai.cli.main import app
from dicomai.settings import PREFIX, reference

_WIDTH: Final = 88
_HEAD: Final = "<!-- Printed by: python -m dicomai.cli.reference docs/reference -->\n"

_COMMAND_LINE: Final = """# The command line

Answers go to stdout, progress and trouble to stderr. Where a command takes `--json`, the keys are a
promise: they stay.

| exit code | means |
| --- | --- |
| 0 | done |
| 1 | failed |
| 2 | usage: there is no such command or option |
| 3 | the configuration is wrong, or the database missing or of another version: change it |
| 4 | what was named does not exist, or holds no DICOM |
| 5 | the database is away or locked, or may not be used by this user |
"""

_TABLE_HEAD: Final = "| key | takes | default | |\n| --- | --- | --- | --- |\n"

_SETTINGS: Final = """# Settings

One TOML file: the one that `--config` names, else `$DICOMAI_CONFIG`, else `./dicomai.toml`, else
`/etc/dicomai/dicomai.toml`. Variables stand over it: `{prefix}RECEIVER__PORT=104` is `port = 104`
in `[receiver]`. Unknown keys are errors. `dicomai config check` reads it all and names each error.

Tables in double brackets, `[[nodes]]` and `[[routes]]`, may be there many times.
"""


def command_line() -> str:
    """Return the page of all commands, in Markdown."""
    root = typer.main.get_command(app)
    parts = [_HEAD + _COMMAND_LINE]
    parts += [
        f"\n## {' '.join(path)}\n\n```\n{text}\n```\n" for path, text in _helps(root, ("dicomai",))
    ]
    return "".join(parts)


def _helps(
    command: Command, path: tuple[str, ...], parent: Context | None = None
) -> Iterator[tuple[tuple[str, ...], str]]:
    context = Context(
        command,
        info_name=path[-1],
        parent=parent,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )
    yield path, command.get_help(context).rstrip()
    for name, each in getattr(command, "commands", {}).items():
        yield from _helps(each, (*path, name), context)


def settings() -> str:
    """Return the page of all settings, in Markdown."""
    parts = [_HEAD + _SETTINGS.format(prefix=PREFIX)]
    table = ""
    for each in reference():
        if each.table != table:
            table = each.table
            parts.append(
                f"\n## {table}\n\n| key | takes | default | |\n| --- | --- | --- | --- |\n"
            )
        default = f"`{each.default}`" if each.default else ""
        description = each.description.replace("|", "\\|")
        parts.append(f"| `{each.key}` | {each.type} | {default} | {description} |\n")
    return "".join(parts)


def pages() -> dict[str, str]:
    """Return each page by the name of its file."""
    return {"cli.md": command_line(), "settings.md": settings()}


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(sys.argv[1]) / name).write_text(text, encoding="utf-8")
