"""The first catalogue.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _associations()
    _events()
    _fingerprints()
    _hosts()
    _jobs()
    _nodes()
    _pauses()
    _studies()
    _workers()
    _association_studies()
    _deliveries()
    _job_inputs()
    _job_routes()
    _series()
    _instances()
    _series_identities()
    _copies()


def _associations() -> None:
    op.create_table(
        "associations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("calling_ae", sa.Text(), nullable=False),
        sa.Column("called_ae", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("release", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "release IS NULL OR release IN ('released', 'aborted', 'lost')",
            name=op.f("ck_associations_release"),
        ),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (release IS NULL)", name=op.f("ck_associations_ended_at")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_associations")),
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=True),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_job_id", "events", ["job_id"], unique=False)
    op.create_index(
        "ix_events_study_instance_uid", "events", ["study_instance_uid", "id"], unique=False
    )


def _fingerprints() -> None:
    op.create_table(
        "fingerprints",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("job_uuid", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_fingerprints")),
    )


def _hosts() -> None:
    op.create_table(
        "hosts",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ingested_to", sa.BigInteger(), nullable=False),
        sa.Column("beat_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hosts")),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("uuid", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("patient_key", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("package_sha256", sa.Text(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("supersedes", sa.BigInteger(), nullable=True),
        sa.Column("result_of", sa.BigInteger(), nullable=True),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("urgency", sa.Integer(), nullable=False),
        sa.Column("ageing", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("beat_at", sa.BigInteger(), nullable=True),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("waiting_for", sa.Text(), nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("held_by", sa.Text(), nullable=True),
        sa.Column("error_kind", sa.Text(), nullable=True),
        sa.Column("error_sentence", sa.Text(), nullable=False),
        sa.Column("error_stage", sa.Text(), nullable=False),
        sa.Column("error_subject", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("stages_s", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('done', 'failed', 'cancelled'))",
            name=op.f("ck_jobs_finished_at"),
        ),
        sa.CheckConstraint(
            "(kind = 'analyse') = (fingerprint IS NOT NULL)", name=op.f("ck_jobs_fingerprint")
        ),
        sa.CheckConstraint(
            "(kind = 'deliver') = (result_of IS NOT NULL) AND (kind = 'deliver') = (node <> '')",
            name=op.f("ck_jobs_deliver"),
        ),
        sa.CheckConstraint("(state = 'held') = (held_by IS NOT NULL)", name=op.f("ck_jobs_held")),
        sa.CheckConstraint(
            "(state = 'waiting') = (waiting_for IS NOT NULL)", name=op.f("ck_jobs_waiting")
        ),
        sa.CheckConstraint("due_at IS NULL OR state = 'waiting'", name=op.f("ck_jobs_due_at")),
        sa.CheckConstraint(
            "error_kind IS NULL OR error_kind IN ('input', 'config', 'transient', 'resource', "
            "'crash', 'identity', 'refused', 'deadline')",
            name=op.f("ck_jobs_error_kind"),
        ),
        sa.CheckConstraint(
            "held_by IS NULL OR held_by IN ('study', 'config', 'identity', 'pause', 'person')",
            name=op.f("ck_jobs_held_by"),
        ),
        sa.CheckConstraint("kind IN ('analyse', 'deliver')", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint(
            "state IN ('waiting', 'queued', 'running', 'held', 'done', 'failed', 'cancelled')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint(
            "waiting_for IS NULL OR waiting_for IN ('back-off', 'breaker', 'commitment')",
            name=op.f("ck_jobs_waiting_for"),
        ),
        sa.CheckConstraint("attempts >= 0 AND attempts <= claim", name=op.f("ck_jobs_attempts")),
        sa.CheckConstraint("urgency IN (0, 1)", name=op.f("ck_jobs_urgency")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("uuid", name=op.f("uq_jobs_uuid")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"], unique=False)
    op.create_index(
        "ix_jobs_node",
        "jobs",
        ["node", "state"],
        unique=False,
        sqlite_where=sa.text("kind = 'deliver'"),
        postgresql_where=sa.text("kind = 'deliver'"),
    )
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["kind", "urgency", "rank", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_jobs_running",
        "jobs",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index("ix_jobs_study_instance_uid", "jobs", ["study_instance_uid"], unique=False)
    op.create_index(
        "ix_jobs_waiting",
        "jobs",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index("ix_jobs_supersedes", "jobs", ["supersedes"])
    op.create_index("uq_jobs_delivery", "jobs", ["result_of", "node"], unique=True)
    op.create_index("uq_jobs_fingerprint", "jobs", ["fingerprint"], unique=True)
    op.create_index(
        "uq_jobs_live_analysis",
        "jobs",
        ["study_instance_uid", "model", "choice"],
        unique=True,
        sqlite_where=sa.text(
            "kind = 'analyse' AND state IN ('waiting', 'queued', 'running', 'held')"
        ),
        postgresql_where=sa.text(
            "kind = 'analyse' AND state IN ('waiting', 'queued', 'running', 'held')"
        ),
    )


def _nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("breaker", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("openings", sa.Integer(), nullable=False),
        sa.Column("retry_at", sa.BigInteger(), nullable=True),
        sa.Column("last_contact_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("last_error_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(breaker = 'open') = (retry_at IS NOT NULL)", name=op.f("ck_nodes_retry_at")
        ),
        sa.CheckConstraint(
            "breaker IN ('closed', 'open', 'half-open')", name=op.f("ck_nodes_breaker")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_nodes")),
    )


def _pauses() -> None:
    op.create_table(
        "pauses",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("mode IN ('paused', 'draining')", name=op.f("ck_pauses_mode")),
        sa.CheckConstraint("subject IN ('node', 'route', 'model')", name=op.f("ck_pauses_subject")),
        sa.PrimaryKeyConstraint("subject", "name", name=op.f("pk_pauses")),
    )


def _studies() -> None:
    op.create_table(
        "studies",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("patient_key", sa.Text(), nullable=True),
        sa.Column("accepted_key", sa.Text(), nullable=True),
        sa.Column("hold_reason", sa.Text(), nullable=True),
        sa.Column("accession_number", sa.Text(), nullable=False),
        sa.Column("study_date", sa.Text(), nullable=False),
        sa.Column("nodes", sa.Text(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("first_object_at", sa.BigInteger(), nullable=False),
        sa.Column("last_object_at", sa.BigInteger(), nullable=False),
        sa.Column("quiet_until", sa.BigInteger(), nullable=False),
        sa.Column("full_quiet", sa.Boolean(), nullable=False),
        sa.Column("decide_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("deleting", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(status = 'deleting') = (deleting IS NOT NULL)", name=op.f("ck_studies_deleting")
        ),
        sa.CheckConstraint(
            "status <> 'held' OR hold_reason IS NOT NULL", name=op.f("ck_studies_hold_reason")
        ),
        sa.CheckConstraint(
            "status IN ('open', 'decided', 'held', 'deleting')", name=op.f("ck_studies_status")
        ),
        sa.CheckConstraint("instances >= 0", name=op.f("ck_studies_instances")),
        sa.PrimaryKeyConstraint("study_instance_uid", name=op.f("pk_studies")),
    )
    op.create_index("ix_studies_accession_number", "studies", ["accession_number"], unique=False)
    op.create_index(
        "ix_studies_deleting",
        "studies",
        ["study_instance_uid"],
        unique=False,
        sqlite_where=sa.text("status = 'deleting'"),
        postgresql_where=sa.text("status = 'deleting'"),
    )
    op.create_index("ix_studies_last_object_at", "studies", ["last_object_at"], unique=False)
    op.create_index(
        "ix_studies_to_decide",
        "studies",
        ["decide_at"],
        unique=False,
        sqlite_where=sa.text("status = 'open'"),
        postgresql_where=sa.text("status = 'open'"),
    )


def _workers() -> None:
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("kinds", sa.Text(), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("beat_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )


def _association_studies() -> None:
    op.create_table(
        "association_studies",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("association_id", sa.Text(), nullable=False),
        sa.Column("objects", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["association_id"],
            ["associations.id"],
            name=op.f("fk_association_studies_association_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "study_instance_uid", "association_id", name=op.f("pk_association_studies")
        ),
    )
    op.create_index(
        "ix_association_studies_association_id", "association_studies", ["association_id"]
    )


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('sent', 'warning', 'transient', 'refused')", name=op.f("ck_deliveries_state")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_deliveries_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "sop_instance_uid", name=op.f("pk_deliveries")),
    )


def _job_inputs() -> None:
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("instance_id", sa.BigInteger(), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_inputs_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "position", name=op.f("pk_job_inputs")),
    )
    op.create_index(
        "ix_job_inputs_study_instance_uid", "job_inputs", ["study_instance_uid"], unique=False
    )


def _job_routes() -> None:
    op.create_table(
        "job_routes",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("destinations", sa.Text(), nullable=False),
        sa.CheckConstraint("mode IN ('live', 'shadow')", name=op.f("ck_job_routes_mode")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_routes_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "route", name=op.f("pk_job_routes")),
    )


def _series() -> None:
    op.create_table(
        "series",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("series_number", sa.Integer(), nullable=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["studies.study_instance_uid"],
            name=op.f("fk_series_study_instance_uid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "study_instance_uid", "series_instance_uid", name=op.f("pk_series")
        ),
    )


def _instances() -> None:
    op.create_table(
        "instances",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("newest", sa.Boolean(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("header_digest", sa.Text(), nullable=False),
        sa.Column("pixel_digest", sa.Text(), nullable=True),
        sa.Column("file_sha256", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(origin = 'produced') = (job_id IS NOT NULL)",
            name=op.f("ck_instances_produced_by_a_job"),
        ),
        sa.CheckConstraint(
            "origin IN ('received', 'retrieved', 'produced')", name=op.f("ck_instances_origin")
        ),
        sa.ForeignKeyConstraint(
            ["study_instance_uid", "series_instance_uid"],
            ["series.study_instance_uid", "series.series_instance_uid"],
            name=op.f("fk_instances_study_instance_uid_series_instance_uid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_instances_job_id", "instances", ["job_id"], unique=False)
    op.create_index(
        "ix_instances_sop_instance_uid", "instances", ["sop_instance_uid"], unique=False
    )
    op.create_index(
        "ix_instances_study_instance_uid",
        "instances",
        ["study_instance_uid", "series_instance_uid"],
        unique=False,
    )
    op.create_index(
        "uq_instances_newest",
        "instances",
        ["study_instance_uid", "sop_instance_uid"],
        unique=True,
        sqlite_where=sa.text("newest"),
        postgresql_where=sa.text("newest"),
    )


def _series_identities() -> None:
    op.create_table(
        "series_identities",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("patient_key", sa.Text(), nullable=False),
        sa.Column("patient_name", sa.Text(), nullable=False),
        sa.Column("birth_date", sa.Text(), nullable=False),
        sa.Column("sex", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_instance_uid", "series_instance_uid"],
            ["series.study_instance_uid", "series.series_instance_uid"],
            name=op.f("fk_series_identities_study_instance_uid_series_instance_uid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "study_instance_uid",
            "series_instance_uid",
            "patient_key",
            "patient_name",
            "birth_date",
            "sex",
            name=op.f("pk_series_identities"),
        ),
    )


def _copies() -> None:
    op.create_table(
        "copies",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("instance_id", sa.BigInteger(), nullable=False),
        sa.Column("file_sha256", sa.Text(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instances.id"],
            name=op.f("fk_copies_instance_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_copies")),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_copies_file", "copies", ["instance_id", "file_sha256"], unique=True)
    op.create_index("uq_copies_path", "copies", ["path"], unique=True)
