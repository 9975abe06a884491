"""CHECKs of a table that is there: what the two databases do differently about them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


def change(table: str, name: str, before: str, after: str) -> None:
    """Have a CHECK of a table say something else.

    Parameters
    ----------
    table, name
        Whose it is, and its name without the prefix of the naming convention.
    before, after
        What it says, as it is written down.
    """
    if op.get_bind().dialect.name == "sqlite":
        _rewrite(table, before, after)
        return
    op.drop_constraint(op.f(f"ck_{table}_{name}"), table)
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, after)


def _rewrite(table: str, before: str, after: str) -> None:
    """Change it where it is written down.

    A table that is made anew, as SQLite's other way is, would on its way lose the rows of others
    that refer to it, for foreign keys can't be switched off in a transaction.
    """
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = connection.execute(
        sa.text(
            "UPDATE sqlite_master SET sql = replace(sql, :before, :after) "
            "WHERE type = 'table' AND name = :table AND instr(sql, :before) > 0"
        ),
        {"table": table, "before": before, "after": after},
    )
    assert changed.rowcount == 1, before
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = RESET")
