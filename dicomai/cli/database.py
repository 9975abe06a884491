"""`dicomai db upgrade`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from dicomai.cli import audit
from dicomai.cli.options import ConfigOption
from dicomai.cli.terminal import say

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = typer.Typer(help="The database.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The database."""


@app.command("upgrade")
def upgrade(config: ConfigOption = None) -> None:
    """Bring the database to this version's tables; makes them where there are none.

    The service must be stopped on all hosts; it listens for 15 seconds whether one still runs.
    """
    from dicomai.settings import load
    from dicomai.store.engine import name, open_engine

    settings = load(config)
    engine = open_engine(settings.database.url)
    bring_up(engine)
    audit.record(settings.service.data, "db upgrade", "")
    say(f"{name(engine)} is up to date.")


def bring_up(engine: Engine) -> None:
    """Bring a database to this version's tables, unless a service of an older one is at work.

    Raises
    ------
    DicomaiError
        One is, or the database is of a newer version or away.
    """
    from dicomai.dicom.dates import now
    from dicomai.service.standstill import require_silence
    from dicomai.store import migrate

    if migrate.is_behind(engine):
        require_silence(engine, now(), time.sleep)
    migrate.upgrade(engine)
