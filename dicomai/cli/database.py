"""`dicomai db upgrade`."""

from __future__ import annotations

import typer

from dicomai.cli import audit
from dicomai.cli.options import ConfigOption
from dicomai.cli.terminal import say

app = typer.Typer(help="The database.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The database."""


@app.command("upgrade")
def upgrade(config: ConfigOption = None) -> None:
    """Bring the database to this version's tables; makes them where there are none."""
    from dicomai.settings import load
    from dicomai.store.engine import name, open_engine
    from dicomai.store.migrate import upgrade as bring_up

    settings = load(config)
    engine = open_engine(settings.database.url)
    bring_up(engine)
    audit.record(settings.service.data, "db upgrade", "")
    say(f"{name(engine)} is up to date.")
