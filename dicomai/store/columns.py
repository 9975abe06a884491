"""What the columns of the catalogue are made of, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
import re
from typing import Any, Final, get_args

from sqlalchemy import BigInteger, Dialect, Integer, MetaData, Text
from sqlalchemy.types import TypeDecorator

LARGEST: Final = 2**31 - 1
"""What a column of type Integer holds at most; numbers that peers say are held against it."""
# PostgreSQL takes no NUL, and neither database half of a character.
_NO_TEXT: Final = re.compile(r"[\x00\ud800-\udfff]")


class Json(TypeDecorator[Any]):
    """A value as JSON in a text column."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:  # noqa: ARG002  SQLAlchemy's signature
        """Write it; NaN and infinity are no JSON and raise."""
        if value is None:
            return None
        return json.dumps(value, allow_nan=False, sort_keys=True)

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:  # noqa: ARG002  SQLAlchemy's signature
        """Read it."""
        return None if value is None else json.loads(value)


class Sentence(TypeDecorator[str]):
    """Words in a text column; they may quote a peer, and what no text may hold is written out."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002  SQLAlchemy's signature
        """Write it."""
        return None if value is None else _NO_TEXT.sub(lambda found: ascii(found[0])[1:-1], value)


def one_of(column: str, values: object) -> str:
    """Return the condition that a column holds one of some values, or of the names of a Literal."""
    names = get_args(values) or values
    assert isinstance(names, tuple)
    listed = ", ".join(f"'{name}'" for name in names)
    return f"{column} IN ({listed})"


ID: Final = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts rows by itself only in a column of type INTEGER; with AUTOINCREMENT it gives no
number twice, as PostgreSQL does."""
MOMENT: Final = BigInteger()

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
