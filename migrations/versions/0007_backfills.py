"""Routes over history, what is fetched for one purpose alone, inputs that are waited for.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from dicomai.migrations.check import change

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_WAITING = "'back-off', 'breaker', 'commitment'"
_RUNNING = sa.text("state = 'running'")


def upgrade() -> None:
    """Make the tables; counts are taken anew."""
    change(
        "jobs",
        "waiting_for",
        f"waiting_for IS NULL OR waiting_for IN ({_WAITING})",
        f"waiting_for IS NULL OR waiting_for IN ({_WAITING}, 'input')",
    )
    op.create_index("ix_studies_patient_key", "studies", ["patient_key"])
    _counts()
    op.create_table(
        "studies_apart",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("study_instance_uid", name=op.f("pk_studies_apart")),
    )
    op.create_table(
        "backfills",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("first_day", sa.Text(), nullable=False),
        sa.Column("last_day", sa.Text(), nullable=False),
        sa.Column("studies_per_hour", sa.Float(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("next_day", sa.Text(), nullable=True),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('running', 'done', 'cancelled')", name=op.f("ck_backfills_state")
        ),
        sa.CheckConstraint("mode IN ('live', 'shadow')", name=op.f("ck_backfills_mode")),
        sa.CheckConstraint(
            "(finished_at IS NULL) = (state = 'running')", name=op.f("ck_backfills_finished_at")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backfills")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_backfills_running",
        "backfills",
        ["node", "route", "mode", "first_day", "last_day"],
        unique=True,
        sqlite_where=_RUNNING,
        postgresql_where=_RUNNING,
    )
    _studies()


def _counts() -> None:
    op.drop_table("series_counts")
    op.create_table(
        "series_counts",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("objects", sa.Integer(), nullable=False),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("counted_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["studies.study_instance_uid"],
            name=op.f("fk_series_counts_study_instance_uid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "study_instance_uid", "node", "series_instance_uid", name=op.f("pk_series_counts")
        ),
    )


def _studies() -> None:
    op.create_table(
        "backfill_studies",
        sa.Column("backfill_id", sa.BigInteger(), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("study_date", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("retrieval", sa.BigInteger(), nullable=True),
        sa.Column("analysis", sa.BigInteger(), nullable=True),
        sa.Column("own", sa.Boolean(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "state IN ('found', 'fetching', 'held', 'analysis', 'left out', 'failed', 'cancelled')",
            name=op.f("ck_backfill_studies_state"),
        ),
        sa.CheckConstraint(
            "state <> 'analysis' OR analysis IS NOT NULL",
            name=op.f("ck_backfill_studies_analysis"),
        ),
        sa.ForeignKeyConstraint(
            ["backfill_id"],
            ["backfills.id"],
            name=op.f("fk_backfill_studies_backfill_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "backfill_id", "study_instance_uid", name=op.f("pk_backfill_studies")
        ),
    )
    op.create_index("ix_backfill_studies_state", "backfill_studies", ["backfill_id", "state"])
