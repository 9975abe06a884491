"""How a PostgreSQL is connected to, and which of its connections are left.

`engine` opens databases, and says what is wrong with one.
"""

from __future__ import annotations

import select
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from dicomai.errors import ConfigError

ANSWER_S: Final = 10
"""How long a PostgreSQL may take to accept a connection, or to show that one still stands."""
_NETWORK: Final[Mapping[str, int]] = MappingProxyType(
    {
        "connect_timeout": ANSWER_S,
        # A machine that is gone says nothing: who waits for it is told after a minute, and who
        # waits for a long statement is not, for the machine acknowledges.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    }
)
"""What libpq is told of connections over a network, unless the URL says otherwise."""
OLDEST_POSTGRESQL: Final = (13, 0)
READ_ONLY: Final = "25006"  # read_only_sql_transaction: a standby, or a fenced primary

_TOO_MUCH: Final = "54000"  # program_limit_exceeded
# Where the server hands out transaction numbers, and refuses when they run out: until it was
# vacuumed it takes nothing new, with the code of a text that is too long.
_NUMBERS: Final = ("varsup.c", "multixact.c")
_USED: Final = "dicomai_used"


def create_engine(url: URL, lock_timeout_s: float) -> Engine:
    """Return the engine of a PostgreSQL; nothing is connected yet.

    Parameters
    ----------
    lock_timeout_s
        How long a statement waits for another one's lock.
    """
    url = url.set(drivername="postgresql+psycopg")
    limits = {key: limit for key, limit in _NETWORK.items() if key not in url.query}
    # Prepared statements are the server's, by numbers that begin anew with each client:
    # behind a pooler that hands servers on, one would run another one's statement.
    spoken = {"client_encoding": "utf8", "prepare_threshold": None}
    engine = sqlalchemy.create_engine(
        url, connect_args=limits | spoken, max_overflow=20, hide_parameters=True
    )

    def prepare(connection: Any, _: object) -> None:
        _prepare(connection, lock_timeout_s)

    event.listen(engine, "connect", prepare)
    event.listen(engine, "checkout", _have_answer)
    event.listen(engine, "handle_error", _leave_read_only)
    return engine


def too_long(original: BaseException) -> bool:
    """Tell whether the driver's error is that a text is too long for its index."""
    if getattr(original, "sqlstate", None) != _TOO_MUCH:
        return False
    diagnosis: Any = getattr(original, "diag", None)
    return diagnosis.source_file not in _NUMBERS


def _prepare(connection: Any, lock_timeout_s: float) -> None:  # psycopg's, behind SQLAlchemy
    version = divmod(connection.info.server_version, 10000)
    if version < OLDEST_POSTGRESQL:
        raise ConfigError(
            f"PostgreSQL {version[0]} is too old: dicomai needs {OLDEST_POSTGRESQL[0]} or newer.",
            subject="database.url",
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigError(
            f"The database {connection.info.dbname} has the encoding {encoding}, in which not each "
            "patient's name can be written: dicomai needs UTF8. See docs/how-to/run-for-good.md, "
            "With PostgreSQL: createdb -E UTF8 -T template0",
            subject="database.url",
        )
    connection.autocommit = True
    with connection.cursor() as cursor:
        # Whatever the server says: a commit that was reported is on its disk.
        cursor.execute("SET synchronous_commit = on")
        # Who waited for a lock reads what its owner wrote, and is not sent away.
        cursor.execute("SET default_transaction_isolation = 'read committed'")
        cursor.execute(f"SET lock_timeout = '{round(lock_timeout_s)}s'")
        cursor.execute("SET application_name = 'dicomai'")
    connection.autocommit = False


def _have_answer(connection: Any, record: ConnectionPoolEntry, _: object) -> None:  # psycopg's
    """Have a connection replaced that does not answer in time, before anything is asked of it.

    SQLAlchemy's own look waits for ever where something between accepts and doesn't pass it on.
    """
    import psycopg  # here, for who has SQLite needs none

    if not record.info.get(_USED):  # it has just answered
        record.info[_USED] = True
        return
    raw = connection.pgconn
    answers = select.poll()
    answers.register(raw.socket, select.POLLIN)
    try:
        raw.send_query(b"")
        while raw.is_busy():
            if not answers.poll(ANSWER_S * 1000):
                raise sqlalchemy.exc.InvalidatePoolError
            raw.consume_input()
        while raw.get_result() is not None:
            pass
    except psycopg.OperationalError as gone:
        raise sqlalchemy.exc.InvalidatePoolError from gone
    if raw.status != psycopg.pq.ConnStatus.OK:  # its answer was a farewell
        raise sqlalchemy.exc.InvalidatePoolError


def _leave_read_only(context: ExceptionContext) -> None:
    """Have connections made anew: after a failover those to the primary before it stay, useless."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True
