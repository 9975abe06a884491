"""`dicomai`: its commands, and what it says and returns when something goes wrong.

Exit codes: 0 done, 1 failed, 2 usage, 3 configuration, 4 not found, 5 database. What a command
needs is imported when it runs, so that help and completion are quick.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dicomai.cli import (
    archive,
    backfill,
    config,
    database,
    demo,
    doctor,
    find,
    hosts,
    job_acts,
    jobs,
    models,
    nodes,
    pauses,
    phantom,
    retrieve,
    route,
    run,
    serve,
    status,
    study,
)
from dicomai.cli.options import ConfigOption
from dicomai.cli.terminal import complain, prepare_streams
from dicomai.cli.trouble import sentence_of
from dicomai.errors import DicomaiError
from dicomai.process import WAITING


class Commands(TyperGroup):
    """A group of commands whose errors are sentences and exit codes."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command that the arguments name, and exit."""
        try:
            return super().main(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - no traceback may reach a user
            complain(sentence_of(error))
            sys.exit(error.exit_code if isinstance(error, DicomaiError) else 1)


app = typer.Typer(
    name="dicomai",
    cls=Commands,
    help="Puts AI models behind a PACS: DICOM studies in, DICOM SEG and Structured Reports out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 configuration, 4 not found, 5 database.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dicomai {version('dicomai')}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it, exit."),
    ] = False,
    config: ConfigOption = None,  # noqa: ARG001  the commands look it up
) -> None:
    from dicomai.roles import logs

    logs.configure("console", "warning")


for command in (
    serve.serve,
    serve.receive,
    serve.query,
    serve.work,
    serve.schedule,
    status.status,
    jobs.jobs,
    jobs.job,
    study.studies,
    study.study,
    job_acts.retry,
    job_acts.cancel,
    job_acts.withdraw,
    pauses.pause,
    pauses.resume,
    pauses.drain,
    nodes.echo,
    nodes.send,
    hosts.hosts,
    hosts.forget,
    find.find,
    retrieve.retrieve,
    backfill.backfill,
    backfill.backfills,
    run.run,
    config.init,
    doctor.doctor,
    demo.demo,
):
    app.command()(command)
for name, group in (
    ("models", models.app),
    ("route", route.app),
    ("config", config.app),
    ("db", database.app),
    ("archive", archive.app),
    ("phantom", phantom.app),
):
    app.add_typer(group, name=name)


def main() -> None:
    """Run `dicomai` with the arguments of this process."""
    prepare_streams()
    # For `run`, which has its network in this process; a runner is started with them anyway.
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
    # Python lets what it starts import from the current folder first, and that may hold modules
    # that came along with images. Who started this one so has chosen it.
    if not _imports_from_here():
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    app(prog_name="dicomai")


def _imports_from_here() -> bool:
    with suppress(OSError):
        return Path(sys.path[0]).samefile(".")
    return False
