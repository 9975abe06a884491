"""What modalities say of their work.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "procedure_steps",
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("objects", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "status IN ('IN PROGRESS', 'COMPLETED', 'DISCONTINUED')",
            name=op.f("ck_procedure_steps_status"),
        ),
        sa.PrimaryKeyConstraint("step", name=op.f("pk_procedure_steps")),
    )
    op.create_table(
        "procedure_step_studies",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["step"],
            ["procedure_steps.step"],
            name=op.f("fk_procedure_step_studies_step"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "study_instance_uid", "step", name=op.f("pk_procedure_step_studies")
        ),
    )
    op.create_index("ix_procedure_step_studies_step", "procedure_step_studies", ["step"])
