"""The catalogue's version: bringing it up to date, and refusing any other."""

from __future__ import annotations

from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from dicomai.errors import ConfigError
from dicomai.store.engine import reading, writing

_LOCK = 0x6469636F6D6169  # "dicomai": two upgrades at a time take turns


def upgrade(engine: Engine) -> str:
    """Bring the catalogue to this program's version, in one transaction, and return it.

    Raises
    ------
    ConfigError
        It is of a newer program.
    DatabaseError
        The database is away.
    """
    with as_file(files("dicomai.migrations")) as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            _refuse_unknown(connection, ScriptDirectory.from_config(config))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    return newest()


def newest() -> str:
    """Return the version of the catalogue that this program works with."""
    with as_file(files("dicomai.migrations")) as folder:
        head = ScriptDirectory(str(folder)).get_current_head()
    assert head is not None
    return head


def current(engine: Engine) -> str | None:
    """Return the version of the catalogue as it is; None where there is none yet."""
    with reading(engine) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def require_current(engine: Engine) -> None:
    """Refuse a catalogue of another version.

    Raises
    ------
    ConfigError
        It has another version; the sentence says which command helps.
    DatabaseError
        The database is away.
    """
    with as_file(files("dicomai.migrations")) as folder:
        scripts = ScriptDirectory(str(folder))
        with reading(engine) as connection:
            _refuse_unknown(connection, scripts)
            found = MigrationContext.configure(connection).get_current_revision()
        wanted = scripts.get_current_head()
    if found != wanted:
        state = "is empty" if found is None else f"has version {found}"
        raise ConfigError(
            f"The database {state}, and this dicomai needs version {wanted}. Stop the service, "
            "keep a copy of the database, then: dicomai db upgrade",
            subject="database.url",
        )


def _refuse_unknown(connection: Connection, scripts: ScriptDirectory) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise ConfigError(
            f"The database has version {found}, which this dicomai does not know: a newer one "
            "made it. Install that one, or restore the copy that was kept before the upgrade.",
            subject="database.url",
        )
