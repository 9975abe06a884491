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
    with op.batch_alter_table("hosts") as table:
        table.add_column(sa.Column("run", sa.Text(), nullable=False, server_default=""))
    with op.batch_alter_table("hosts") as table:
        table.alter_column("run", server_default=None)
