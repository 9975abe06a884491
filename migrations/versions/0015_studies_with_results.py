"""Which studies have results of ours, without a look at all their images.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Index the results."""
    op.create_index(
        "ix_instances_produced",
        "instances",
        ["study_instance_uid"],
        sqlite_where=sa.text("origin = 'produced'"),
        postgresql_where=sa.text("origin = 'produced'"),
    )
