"""Whose objects of a study are by what a person said, instead of the key that they have.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "corrected_keys",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("patient_key", sa.Text(), nullable=False),
        sa.Column("corrected_key", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["studies.study_instance_uid"],
            name=op.f("fk_corrected_keys_study_instance_uid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "study_instance_uid", "patient_key", name=op.f("pk_corrected_keys")
        ),
    )
