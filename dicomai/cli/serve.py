"""`dicomai serve`, `receive`, `query`, `work`, `schedule`: the service, or one role of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dicomai.cli.options import ConfigOption

if TYPE_CHECKING:
    from dicomai.roles.serve import RoleName


def serve(config: ConfigOption = None) -> None:
    """Run the whole service in one process tree."""
    _run(config, None)


def receive(config: ConfigOption = None) -> None:
    """Only receive into the spool. Needs no database."""
    _run(config, {"receive"})


def query(config: ConfigOption = None) -> None:
    """Only answer what peers ask of the archive (C-FIND, C-GET, C-MOVE)."""
    _run(config, {"query"})


def work(config: ConfigOption = None) -> None:
    """Only run models and deliver their results."""
    _run(config, {"work"})


def schedule(config: ConfigOption = None) -> None:
    """Only ingest what came, decide about it, and keep house."""
    _run(config, {"schedule"})


def _run(config: Path | None, roles: set[RoleName] | None) -> None:
    from dicomai.roles.serve import serve as serve_roles
    from dicomai.settings import load

    if code := serve_roles(load(config), roles):
        raise typer.Exit(code)
