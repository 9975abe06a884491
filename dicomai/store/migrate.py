"""The catalogue's version: bringing it up to date, and refusing any other.

Alembic is loaded where it is brought up to date, and nowhere else: that takes longer than most
commands take for all they do.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, column, inspect, select, table, text

from dicomai.errors import ConfigError, DatabaseError
from dicomai.store import archive
from dicomai.store.engine import GOES_ON, absence, file_of, reading, writing

_LOCK = 0x6469636F6D6169  # "dicomai": two upgrades at a time take turns
_VERSION: Final = table("alembic_version", column("version_num"))


def upgrade(engine: Engine) -> str:
    """Bring the catalogue to this program's version, in one transaction, and return it.

    Makes the file of an SQLite database that there is not yet; nothing else does.

    Raises
    ------
    ConfigError
        It is of a newer program.
    DatabaseError
        The database is away or locked, or belongs to another role.
    """
    try:
        _upgrade(engine)
    except DatabaseError as error:
        if not error.sentence.endswith(GOES_ON):
            raise
        what = error.sentence.removesuffix(GOES_ON)
        raise DatabaseError(
            f"{what} Nothing was changed. Then, again: dicomai db upgrade", subject=error.subject
        ) from error
    return newest()


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    if (file := file_of(engine)) is not None and file.parent.is_dir() and not file.exists():
        file.touch(mode=0o640)  # patients' names are in it; what lies beside it gets its mode
    with as_file(files("dicomai.migrations")) as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            _refuse_unknown(_current(connection))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def newest() -> str:
    """Return the version of the catalogue that this program works with."""
    return max(_known())


def current(engine: Engine) -> str | None:
    """Return the version of the catalogue as it is; None where there is none yet."""
    with reading(engine) as connection:
        return _current(connection)


def is_behind(engine: Engine) -> bool:
    """Tell whether there is a catalogue of an older version.

    Raises
    ------
    DatabaseError
        The database is away.
    """
    if absence(engine):
        return False
    return current(engine) in _known() - {newest()}


def require_current(engine: Engine, data: Path | None = None) -> None:
    """Refuse a catalogue of another version, or one that is not there.

    Parameters
    ----------
    data
        The data folder, so that the sentence tells of the studies that a lost catalogue leaves in
        the archive.

    Raises
    ------
    ConfigError
        It is not there or has another version; the sentence says which command helps.
    DatabaseError
        The database is away.
    """
    if absent := absence(engine):
        raise ConfigError(absent + _left(data), subject="database.url")
    found, wanted = current(engine), newest()
    _refuse_unknown(found)
    if found is None:
        raise ConfigError(
            "The database has no tables. If it held a catalogue before, stop the service and put "
            f"the copy that was kept in its place; for a new one: dicomai db upgrade{_left(data)}",
            subject="database.url",
        )
    if found != wanted:
        raise ConfigError(
            f"The database has version {found}, and this dicomai needs version {wanted}. Stop the "
            "service, keep a copy of the database, then: dicomai db upgrade",
            subject="database.url",
        )


def _left(data: Path | None) -> str:
    """Return what an empty catalogue would not know of, as a second sentence."""
    studies = len(archive.studies(data)) if data is not None else 0
    if not studies:
        return ""
    known = "1 study that lies" if studies == 1 else f"{studies} studies that lie"
    return (
        f". An empty one knows nothing of the {known} in {data}/{archive.FOLDER} until dicomai "
        "archive rescan takes in what lies there."
    )


def _known() -> frozenset[str]:
    """Return the versions that this program knows: each migration's file begins with its own."""
    names = (each.name for each in files("dicomai.migrations").joinpath("versions").iterdir())
    return frozenset(name[:4] for name in names if name[:4].isdecimal())


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_VERSION.name):
        return None
    found: str | None = connection.execute(select(_VERSION)).scalar_one_or_none()
    return found


def _refuse_unknown(found: str | None) -> None:
    if found is not None and found not in _known():
        raise ConfigError(
            f"The database has version {found}, which this dicomai does not know: a newer one "
            "made it. Install that one, or restore the copy that was kept before the upgrade.",
            subject="database.url",
        )
