"""The catalogue's tables about jobs: the queue, what a job takes, and which routes want it.

`dicomai.store.schema` has them with all others.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    text,
)

from dicomai.errors import ERROR_KINDS
from dicomai.store.columns import ID, MOMENT, Json, Sentence, metadata, one_of
from dicomai.store.states import HeldBy, JobKind, JobState, RouteMode, WaitingFor

jobs: Final = Table(
    "jobs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("uuid", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("study_instance_uid", Text, nullable=False),
    Column("patient_key", Text, nullable=False),
    # What is analysed.
    Column("model", Text, nullable=False),
    Column("package_sha256", Text, nullable=False),
    Column("choice", Text, nullable=False),
    Column("fingerprint", Text),
    Column("generation", Integer, nullable=False),
    Column("supersedes", BigInteger),
    # What is delivered and where, or retrieved and from where.
    Column("result_of", BigInteger),
    Column("node", Text, nullable=False),
    # Order.
    Column("priority", Integer, nullable=False),
    Column("urgency", Integer, nullable=False),
    Column("ageing", BigInteger, nullable=False),
    Column("rank", BigInteger, nullable=False),
    # The claim and its lease.
    Column("claim", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("beat_at", MOMENT),
    Column("stage", Text, nullable=False),
    Column("progress", Float, nullable=False),
    # Why it stands where it stands.
    Column("waiting_for", Text),
    Column("due_at", MOMENT),
    # When its last back-off is over; a try before that is for its node's sake.
    Column("backs_off_until", MOMENT),
    Column("held_by", Text),
    Column("error_kind", Text),
    Column("error_sentence", Sentence, nullable=False),
    Column("error_stage", Text, nullable=False),
    Column("error_subject", Sentence, nullable=False),
    # What came out.
    Column("created_at", MOMENT, nullable=False),
    Column("started_at", MOMENT),
    Column("finished_at", MOMENT),
    Column("stages_s", Json, nullable=False),
    Column("summary", Json, nullable=False),
    CheckConstraint(one_of("kind", JobKind), name="kind"),
    CheckConstraint(one_of("state", JobState), name="state"),
    CheckConstraint("urgency IN (0, 1)", name="urgency"),
    CheckConstraint(
        f"waiting_for IS NULL OR {one_of('waiting_for', WaitingFor)}", name="waiting_for"
    ),
    CheckConstraint("(state = 'waiting') = (waiting_for IS NOT NULL)", name="waiting"),
    CheckConstraint(
        "due_at IS NULL OR state = 'waiting'",
        name="due_at",
    ),
    CheckConstraint(f"held_by IS NULL OR {one_of('held_by', HeldBy)}", name="held_by"),
    CheckConstraint("(state = 'held') = (held_by IS NOT NULL)", name="held"),
    CheckConstraint(
        f"error_kind IS NULL OR {one_of('error_kind', ERROR_KINDS)}", name="error_kind"
    ),
    CheckConstraint("(kind = 'analyse') = (fingerprint IS NOT NULL)", name="fingerprint"),
    CheckConstraint(
        "(kind = 'deliver') = (result_of IS NOT NULL) AND (kind = 'analyse') = (node = '')",
        name="deliver",
    ),
    CheckConstraint(
        "(finished_at IS NOT NULL) = (state IN ('done', 'failed', 'cancelled'))", name="finished_at"
    ),
    CheckConstraint("attempts >= 0 AND attempts <= claim", name="attempts"),
    Index("ix_jobs_study_instance_uid", "study_instance_uid"),
    Index("ix_jobs_finished_at", "finished_at"),
    Index("uq_jobs_fingerprint", "fingerprint", unique=True),
    Index(
        "uq_jobs_live_analysis",
        "study_instance_uid",
        "model",
        "choice",
        unique=True,
        sqlite_where=text("kind = 'analyse' AND state IN ('waiting', 'queued', 'running', 'held')"),
        postgresql_where=text(
            "kind = 'analyse' AND state IN ('waiting', 'queued', 'running', 'held')"
        ),
    ),
    Index("uq_jobs_delivery", "result_of", "node", unique=True),
    Index(
        "uq_jobs_live_retrieval",
        "study_instance_uid",
        "node",
        "choice",
        unique=True,
        sqlite_where=text(
            "kind = 'retrieve' AND state IN ('waiting', 'queued', 'running', 'held')"
        ),
        postgresql_where=text(
            "kind = 'retrieve' AND state IN ('waiting', 'queued', 'running', 'held')"
        ),
    ),
    Index("ix_jobs_supersedes", "supersedes"),
    # The hot queries of claim, promote_due, leases and breakers.
    Index(
        "ix_jobs_queued",
        "kind",
        "urgency",
        "rank",
        "id",
        sqlite_where=text("state = 'queued'"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index(
        "ix_jobs_waiting",
        "waiting_for",
        "due_at",
        sqlite_where=text("state = 'waiting'"),
        postgresql_where=text("state = 'waiting'"),
    ),
    Index(
        "ix_jobs_running",
        "id",
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    Index(
        "ix_jobs_node",
        "node",
        "state",
        sqlite_where=text("kind = 'deliver'"),
        postgresql_where=text("kind = 'deliver'"),
    ),
    sqlite_autoincrement=True,
)

fingerprints: Final = Table(
    "fingerprints",
    metadata,
    # Outlives the job, so that what was analysed once is never analysed again by itself.
    Column("fingerprint", Text, primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    Column("job_uuid", Text, nullable=False),
    Column("created_at", MOMENT, nullable=False),
)

job_inputs: Final = Table(
    "job_inputs",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("input", Text, nullable=False),
    Column("instance_id", BigInteger, nullable=False),
    Column("study_instance_uid", Text, nullable=False),
    Column("series_instance_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    Index("ix_job_inputs_study_instance_uid", "study_instance_uid"),
)

job_routes: Final = Table(
    "job_routes",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("route", Text, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("destinations", Json, nullable=False),
    CheckConstraint(one_of("mode", RouteMode), name="mode"),
)
