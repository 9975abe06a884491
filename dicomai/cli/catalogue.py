"""The catalogue as commands open it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dicomai.settings import Settings


def opened(config: Path | None) -> tuple[Settings, Engine]:
    """Return the configuration and its database, which is of this version.

    Raises
    ------
    ConfigError
        The configuration is wrong, or the database not there or of another version.
    DatabaseError
        The database is away.
    """
    from dicomai.settings import load
    from dicomai.store.engine import open_engine
    from dicomai.store.migrate import require_current

    settings = load(config)
    engine = open_engine(settings.database.url)
    require_current(engine, settings.folders.data)
    return settings, engine
