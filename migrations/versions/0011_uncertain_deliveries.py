"""Objects that may be at a node though nobody knows, and tries that don't count.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from dicomai.migrations.check import change

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_STATES = "'sent', 'warning', 'transient', 'refused', 'committed', 'uncommitted'"


def upgrade() -> None:
    """Let an object of a delivery be uncertain, and a job know when its back-off is over."""
    change("deliveries", "state", f"state IN ({_STATES})", f"state IN ({_STATES}, 'uncertain')")
    op.add_column("jobs", sa.Column("backs_off_until", sa.BigInteger(), nullable=True))
