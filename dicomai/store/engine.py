"""The database: how it is opened, and the two ways of using it.

Only edges open connections; every other function of the store takes one.
"""

from __future__ import annotations

import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL, ExceptionContext, make_url

from dicomai.errors import ConfigError, DatabaseError, InputError
from dicomai.store import postgresql

BUSY_TIMEOUT_S: Final = 30.0
"""How long a transaction waits for another one's lock before it gives up."""
OLDEST_SQLITE: Final = (3, 35, 0)  # RETURNING

_WRITING: Final = "dicomai_writing"
# What a statement of ours did wrong is a defect, and rises as it is.
_DEFECTS: Final = (
    sqlalchemy.exc.IntegrityError,
    sqlalchemy.exc.ProgrammingError,
)
_NOT_ALLOWED: Final = "42501"  # its insufficient_privilege: tables that belong to another role
_LOCKED: Final = "55P03"  # its lock_not_available, after lock_timeout
_CUT_SHORT: Final = ("57014", "25P03")  # its query_canceled, idle_in_transaction_session_timeout
_TRIED: Final = re.compile(r"- host: ('[^']*')")  # as psycopg lists what it tried
GOES_ON: Final = " Reception goes on without it, and work by itself when it can be used again."
"""How the sentence ends on a database that is away for a time; not true where nobody tries."""


class Unstorable(InputError):
    """A value that the database can't hold, and will not by trying again; nothing was written."""


class CommitUnknown(DatabaseError):
    """The connection broke at the commit: read the row before doing anything again."""


def open_engine(url: str) -> Engine:
    """Return the engine of a database; nothing is connected yet, and no file is made.

    Parameters
    ----------
    url
        `sqlite:///FILE` on a local disk, or `postgresql://USER:PASSWORD@HOST/NAME`.

    Raises
    ------
    ConfigError
        The URL is none, or names another kind of database.
    """
    parsed = _parsed(url)
    match parsed.get_backend_name():
        case "sqlite":
            engine = sqlalchemy.create_engine(
                parsed, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True
            )
            event.listen(engine, "do_connect", _open_sqlite)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            if parsed.database is not None:
                _have_same_file(engine, Path(parsed.database))
        case "postgresql":
            engine = postgresql.create_engine(parsed, BUSY_TIMEOUT_S)
        case other:
            raise ConfigError(
                f"database.url: {other} is no database that dicomai knows; it takes SQLite and "
                "PostgreSQL.",
                subject="database.url",
            )
    event.listen(engine, "handle_error", _unstorable)
    return engine


def shown(url: str) -> str:
    """Return the URL of a database as anybody may read it: without passwords.

    Raises
    ------
    ConfigError
        It is none.
    """
    parsed = _parsed(url)
    secrets = {key: "***" for key in parsed.query if "password" in key}
    return parsed.update_query_dict(secrets).render_as_string(hide_password=True)


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:  # a port that is no number
        raise ConfigError(
            "database.url is no URL of a database. Leave it empty for SQLite in the data folder, "
            "or write postgresql://USER@HOST:PORT/NAME.",
            subject="database.url",
        ) from error


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Give a connection in a transaction that writes, committed at the end.

    On SQLite it begins IMMEDIATE: a read that turns into a write would fail at once, whatever the
    timeout, if another wrote meanwhile. An exception rolls back.

    Raises
    ------
    DatabaseError
        The database is away or was locked for too long; nothing was written.
    Unstorable
        It can't hold a value.
    CommitUnknown
        The connection broke at the commit: nobody knows yet whether it was written.
    """
    with _connected(engine) as plain:
        connection = plain.execution_options(**{_WRITING: True})
        transaction = connection.begin()
        try:
            yield connection
        except BaseException:
            transaction.rollback()
            raise
        try:
            transaction.commit()
        except sqlalchemy.exc.DBAPIError as error:
            if isinstance(error, _DEFECTS) or not error.connection_invalidated:
                raise
            raise CommitUnknown(
                f"{name(engine)} went away at a commit: {_reason(error)}. What was written is "
                "read again before anything is repeated."
            ) from error


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Give a connection for reading; whatever it writes is rolled back.

    Raises
    ------
    DatabaseError
        The database is away.
    """
    with _connected(engine) as connection:
        yield connection


@contextmanager
def _connected(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.connect() as connection:
            yield connection
    except (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.TimeoutError) as error:
        if isinstance(error, _DEFECTS) and _state(error) != _NOT_ALLOWED:
            raise
        raise DatabaseError(_sentence(engine, error), subject=name(engine)) from error


def file_of(engine: Engine) -> Path | None:
    """Return the file of an SQLite database, None for any other."""
    url = engine.url
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    return Path(url.database)


def name(engine: Engine) -> str:
    """Return which database it is, for a sentence: without its password."""
    url = engine.url
    if url.get_backend_name() == "sqlite":
        return f"The database {url.database}"
    hosts = [url.host] if url.host else url.normalized_query.get("host", ())
    servers = [each for each in hosts if not each.startswith("/")]  # where its sockets lie: here
    return f"The database {url.database} on {' or '.join(servers) or 'this machine'}"


def absence(engine: Engine) -> str:
    """Return the sentence that says that the file of a database does not exist, else nothing."""
    file = file_of(engine)
    if file is None or _exists(file):
        return ""
    if not _exists(file.parent):
        return (
            f"The folder {file.parent} of the database does not exist. Mount its disk; for a new "
            f"service: dicomai init {shlex.quote(str(file.parent))}"
        )
    return (
        f"The database {file} does not exist. If it was lost, stop the service and put the copy "
        "that was kept in its place; for a new and empty one: dicomai db upgrade"
    )


def unwritable(engine: Engine) -> str:
    """Return the sentence on a database that answers and takes nothing new, else nothing.

    That is a standby, and a PostgreSQL whose disk is full. The disk of SQLite is the data folder's.
    What is tried leaves nothing behind.
    """
    if engine.dialect.name != "postgresql":
        return ""
    try:
        with reading(engine) as connection:
            connection.exec_driver_sql("DELETE FROM alembic_version WHERE false")
            allowed = "SELECT has_database_privilege(current_database(), 'TEMPORARY')"
            if connection.exec_driver_sql(allowed).scalar_one():
                connection.exec_driver_sql(
                    "CREATE TEMPORARY TABLE dicomai_room AS "  # of a MB
                    "SELECT repeat('x', 1900) FROM generate_series(1, 500)"
                )
    except DatabaseError as error:
        return error.sentence
    return ""


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True
    return True


def _sentence(engine: Engine, error: sqlalchemy.exc.SQLAlchemyError) -> str:
    original = getattr(error, "orig", None)
    code = original.sqlite_errorcode & 0xFF if isinstance(original, sqlite3.Error) else None
    if code == sqlite3.SQLITE_CANTOPEN and (absent := absence(engine)):
        return absent
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return (
            f"{name(engine)} can't be written by this user: {_reason(error)}. Run this as the "
            "service's user, or give that user the file and its folder."
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return (
            f"{name(engine)} is damaged: {_reason(error)}. Reception goes on without it, and the "
            "rest only when a copy that was kept is in its place; stop the service first. See "
            "docs/how-to/run-for-good.md, If the database was lost"
        )
    if _state(error) == _NOT_ALLOWED:
        return (
            f"{name(engine)} can't be used by the role of database.url: {_reason(error)}. Its "
            "tables must belong to that role, and so must the database that they are made in: see "
            "docs/how-to/run-for-good.md, With PostgreSQL, and If the database was lost for how a "
            f"copy is put in its place.{GOES_ON}"
        )
    if _state(error) == postgresql.READ_ONLY:
        return (
            f"{name(engine)} can only be read: {_reason(error)}. It is a standby, or was made "
            f"read-only; have database.url lead to the primary.{GOES_ON}"
        )
    if _state(error) in _CUT_SHORT:
        return (
            f"{name(engine)} did not let us finish: {_reason(error)}. Its administrator can give "
            "the role of database.url more time: statement_timeout, and "
            f"idle_in_transaction_session_timeout.{GOES_ON}"
        )
    if code == sqlite3.SQLITE_BUSY or _state(error) == _LOCKED:
        return (
            f"{name(engine)} was kept locked by somebody else for {BUSY_TIMEOUT_S:.0f} s: "
            f"{_reason(error)}. See what else uses it, such as a backup or a session of psql or "
            f"sqlite3, and let that come to its end.{GOES_ON}"
        )
    if "password" in _reason(error):  # libpq gives no code of what keeps it from connecting
        return (
            f"{name(engine)} can't be used: {_reason(error)}. The role's password stands in "
            ".pgpass in the home of the user who runs this, with mode 600; see "
            f"docs/how-to/run-for-good.md, With PostgreSQL.{GOES_ON}"
        )
    return (
        f"{name(engine)} can't be used: {_reason(error)}. See that it runs and has room.{GOES_ON}"
    )


def _state(error: sqlalchemy.exc.SQLAlchemyError) -> str:
    """Return PostgreSQL's code of an error; nothing where there is none."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _unstorable(context: ExceptionContext) -> Unstorable | None:
    """Return what is raised for a value that its column or its driver does not take."""
    original = context.original_exception
    if not (
        isinstance(context.sqlalchemy_exception, sqlalchemy.exc.DataError)
        or isinstance(original, OverflowError | UnicodeError)
        or postgresql.too_long(original)
    ):
        return None
    assert context.engine is not None
    why = " ".join(str(original).split()).rstrip(".")
    return Unstorable(
        f"{name(context.engine)} can't hold a value that it was given: {why}. Please report it.",
        subject=name(context.engine),
    )


def _reason(error: sqlalchemy.exc.SQLAlchemyError) -> str:
    original = getattr(error, "orig", None) or error
    said, _, _ = str(original).partition("\nLINE ")  # of the statement, which is ours
    if len(set(_TRIED.findall(said))) == 1:  # of one server each address, with the last one first
        said, _, _ = said.partition("\nMultiple connection attempts")
    return " ".join(said.split()).rstrip(".")


def _open_sqlite(dialect: Any, _: object, arguments: list[Any], options: dict[str, Any]) -> Any:
    # SQLite would make the file where there is none: an empty catalogue in place of a lost one.
    file, *rest = arguments
    return dialect.connect(f"file:{quote(file)}?mode=rw", *rest, **(options | {"uri": True}))


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    # The driver would begin transactions by itself, and never IMMEDIATE ones.
    connection.isolation_level = None
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise ConfigError(
            f"SQLite {sqlite3.sqlite_version} is too old: dicomai needs "
            f"{'.'.join(map(str, OLDEST_SQLITE))}. Use a newer libsqlite3, or PostgreSQL."
        )
    connection.execute(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT_S * 1000)}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _have_same_file(engine: Engine, file: Path) -> None:
    """Have no connection used when the file is another one than at the first of them.

    What is written to one that was taken away is lost, and nobody would know: the process that has
    it open sees no difference. In another one the numbers of jobs are others.
    """
    first: list[tuple[int, int]] = []

    def note(*_: object) -> None:
        if not first:
            first.append(_number(file))

    def look(*_: object) -> None:
        if _number(file) != first[0]:
            raise DatabaseError(
                f"The database {file} was taken away or replaced while this process had it open. "
                "Stop the service, and see docs/how-to/run-for-good.md, If the database was lost.",
                subject=str(file),
            )

    event.listen(engine, "connect", note)
    event.listen(engine, "checkout", look)


def _number(file: Path) -> tuple[int, int]:
    """Return which file a name stands for; of one that is not there, which is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_dev, status.st_ino


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
