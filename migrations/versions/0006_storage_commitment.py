"""Storage commitment: what peers ask of us, and what we ask of them.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from dicomai.migrations.check import change

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_BEFORE = "state IN ('sent', 'warning', 'transient', 'refused')"
_AFTER = "state IN ('sent', 'warning', 'transient', 'refused', 'committed', 'uncommitted')"


def upgrade() -> None:
    """Make the tables, and let an object of a delivery be committed."""
    op.create_table(
        "promises",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("transaction_uid", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("objects", sa.Text(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("kept_until", sa.BigInteger(), nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error_sentence", sa.Text(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('asked', 'judged', 'reported', 'given up')",
            name=op.f("ck_promises_state"),
        ),
        sa.CheckConstraint(
            "(state IN ('asked', 'judged')) = (due_at IS NOT NULL)",
            name=op.f("ck_promises_due_at"),
        ),
        sa.CheckConstraint(
            "(due_at IS NULL) = (finished_at IS NOT NULL)",
            name=op.f("ck_promises_finished_at"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promises")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_promises_due_at", "promises", ["due_at"])
    op.create_index("ix_promises_transaction_uid", "promises", ["transaction_uid"])
    op.create_table(
        "promise_studies",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("promise_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["promise_id"],
            ["promises.id"],
            name=op.f("fk_promise_studies_promise_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "study_instance_uid", "promise_id", name=op.f("pk_promise_studies")
        ),
    )
    op.create_index("ix_promise_studies_promise_id", "promise_studies", ["promise_id"])
    op.create_table(
        "commitments",
        sa.Column("transaction_uid", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("objects", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("answered_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('asking', 'asked', 'committed', 'failed', 'over')",
            name=op.f("ck_commitments_state"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
            name=op.f("fk_commitments_job_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("transaction_uid", name=op.f("pk_commitments")),
    )
    op.create_index("ix_commitments_job_id", "commitments", ["job_id"])
    change("deliveries", "state", _BEFORE, _AFTER)
