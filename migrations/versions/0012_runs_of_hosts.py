"""Which run of a scheduler has the name of a host, so that two hosts of one name are noticed.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keep the rows: decisions wait for each host until it has told of itself by its new name."""
    rows = op.get_bind().execute(sa.text("SELECT name, ingested_to, beat_at FROM hosts")).all()
    op.drop_table("hosts")
    made = op.create_table(
        "hosts",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ingested_to", sa.BigInteger(), nullable=False),
        sa.Column("beat_at", sa.BigInteger(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hosts")),
    )
    op.bulk_insert(made, [{**row._mapping, "run": ""} for row in rows])
