"""Jobs that retrieve.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LIVE = "kind = 'retrieve' AND state IN ('waiting', 'queued', 'running', 'held')"
_CHECKS = (
    ("kind", "kind IN ('analyse', 'deliver')", "kind IN ('analyse', 'deliver', 'retrieve')"),
    (
        "deliver",
        "(kind = 'deliver') = (result_of IS NOT NULL) AND (kind = 'deliver') = (node <> '')",
        "(kind = 'deliver') = (result_of IS NOT NULL) AND (kind = 'analyse') = (node = '')",
    ),
)


def upgrade() -> None:
    """Let the queue hold retrievals, each of them once."""
    for name, before, after in _CHECKS:
        if op.get_bind().dialect.name == "sqlite":
            _rewrite(before, after)
        else:
            op.drop_constraint(op.f(f"ck_jobs_{name}"), "jobs")
            op.create_check_constraint(op.f(f"ck_jobs_{name}"), "jobs", after)
    op.create_index(
        "uq_jobs_live_retrieval",
        "jobs",
        ["study_instance_uid", "node", "choice"],
        unique=True,
        sqlite_where=sa.text(_LIVE),
        postgresql_where=sa.text(_LIVE),
    )


def _rewrite(before: str, after: str) -> None:
    """Change a CHECK where it is written down.

    A table that is made anew, as SQLite's other way is, would on its way lose the rows of others
    that refer to it, for foreign keys can't be switched off in a transaction.
    """
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = connection.execute(
        sa.text(
            "UPDATE sqlite_master SET sql = replace(sql, :before, :after) "
            "WHERE type = 'table' AND name = 'jobs' AND instr(sql, :before) > 0"
        ),
        {"before": before, "after": after},
    )
    assert changed.rowcount == 1, before
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = RESET")
