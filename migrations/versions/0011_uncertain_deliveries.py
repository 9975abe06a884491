"""Tries that don't count.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let a job know when its back-off is over."""
    op.add_column("jobs", sa.Column("backs_off_until", sa.BigInteger(), nullable=True))
