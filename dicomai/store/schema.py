"""The catalogue's tables: one MetaData for SQLite and PostgreSQL.

Moments are integer microseconds UTC. JSON is stored as text and never queried. What may not happen
is forbidden here, by CHECKs and unique indexes, so that no race and no defect of ours can do it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    Text,
    text,
)

from dicomai.errors import ERROR_KINDS
from dicomai.store.columns import ID, MOMENT, Json, one_of
from dicomai.store.columns import metadata as metadata
from dicomai.store.commitment_schema import commitments as commitments
from dicomai.store.commitment_schema import deliveries as deliveries
from dicomai.store.commitment_schema import promise_studies as promise_studies
from dicomai.store.commitment_schema import promises as promises
from dicomai.store.network_schema import backfill_studies as backfill_studies
from dicomai.store.network_schema import backfills as backfills
from dicomai.store.network_schema import procedure_step_studies as procedure_step_studies
from dicomai.store.network_schema import procedure_steps as procedure_steps
from dicomai.store.network_schema import pulls as pulls
from dicomai.store.network_schema import series_counts as series_counts
from dicomai.store.network_schema import studies_apart as studies_apart
from dicomai.store.network_schema import study_headers as study_headers
from dicomai.store.states import (
    Breaker,
    HeldBy,
    JobKind,
    JobState,
    Origin,
    PauseMode,
    PauseSubject,
    Release,
    RouteMode,
    StudyStatus,
    WaitingFor,
)

studies: Final = Table(
    "studies",
    metadata,
    Column("study_instance_uid", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("patient_key", Text),
    Column("accepted_key", Text),
    Column("hold_reason", Text),
    Column("accession_number", Text, nullable=False),
    Column("study_date", Text, nullable=False),
    Column("nodes", Json, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("first_object_at", MOMENT, nullable=False),
    Column("last_object_at", MOMENT, nullable=False),
    Column("quiet_until", MOMENT, nullable=False),
    Column("full_quiet", Boolean, nullable=False),
    Column("decide_at", MOMENT, nullable=False),
    Column("decided_at", MOMENT),
    Column("decision", Text, nullable=False),
    # The origins whose objects retention is deleting.
    Column("deleting", Json),
    CheckConstraint(one_of("status", StudyStatus), name="status"),
    CheckConstraint("status <> 'held' OR hold_reason IS NOT NULL", name="hold_reason"),
    CheckConstraint("instances >= 0", name="instances"),
    CheckConstraint("(status = 'deleting') = (deleting IS NOT NULL)", name="deleting"),
    Index("ix_studies_accession_number", "accession_number"),
    Index("ix_studies_last_object_at", "last_object_at"),
    Index("ix_studies_patient_key", "patient_key"),
    # The hot query of decide.
    Index(
        "ix_studies_to_decide",
        "decide_at",
        sqlite_where=text("status = 'open'"),
        postgresql_where=text("status = 'open'"),
    ),
    Index(
        "ix_studies_deleting",
        "study_instance_uid",
        sqlite_where=text("status = 'deleting'"),
        postgresql_where=text("status = 'deleting'"),
    ),
)

series: Final = Table(
    "series",
    metadata,
    Column(
        "study_instance_uid",
        Text,
        ForeignKey("studies.study_instance_uid", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("series_instance_uid", Text, primary_key=True),
    Column("modality", Text, nullable=False),
    Column("series_number", Integer),
    Column("description", Text, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("changed_at", MOMENT, nullable=False),
    Column("decided_at", MOMENT),
)

series_identities: Final = Table(
    "series_identities",
    metadata,
    Column("study_instance_uid", Text, primary_key=True),
    Column("series_instance_uid", Text, primary_key=True),
    # Empty where nobody can say whose the object is.
    Column("patient_key", Text, primary_key=True),
    Column("patient_name", Text, primary_key=True),
    Column("birth_date", Text, primary_key=True),
    Column("sex", Text, primary_key=True),
    ForeignKeyConstraint(
        ["study_instance_uid", "series_instance_uid"],
        ["series.study_instance_uid", "series.series_instance_uid"],
        ondelete="CASCADE",
    ),
)

# What a person said of whose a study's objects are, instead of the key that they have.
corrected_keys: Final = Table(
    "corrected_keys",
    metadata,
    Column(
        "study_instance_uid",
        Text,
        ForeignKey("studies.study_instance_uid", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("patient_key", Text, primary_key=True),
    Column("corrected_key", Text, nullable=False),
)

instances: Final = Table(
    "instances",
    metadata,
    Column("id", ID, primary_key=True),
    Column("study_instance_uid", Text, nullable=False),
    Column("series_instance_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    Column("newest", Boolean, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("header_digest", Text, nullable=False),
    Column("pixel_digest", Text),
    Column("file_sha256", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("path", Text, nullable=False),
    Column("job_id", BigInteger),
    Column("attributes", Json, nullable=False),
    ForeignKeyConstraint(
        ["study_instance_uid", "series_instance_uid"],
        ["series.study_instance_uid", "series.series_instance_uid"],
        ondelete="CASCADE",
    ),
    CheckConstraint(one_of("origin", Origin), name="origin"),
    CheckConstraint("(origin = 'produced') = (job_id IS NOT NULL)", name="produced_by_a_job"),
    Index("ix_instances_study_instance_uid", "study_instance_uid", "series_instance_uid"),
    Index("ix_instances_sop_instance_uid", "sop_instance_uid"),
    Index("ix_instances_job_id", "job_id"),
    Index(
        "uq_instances_newest",
        "study_instance_uid",
        "sop_instance_uid",
        unique=True,
        sqlite_where=text("newest"),
        postgresql_where=text("newest"),
    ),
    sqlite_autoincrement=True,
)

copies: Final = Table(
    "copies",
    metadata,
    Column("id", ID, primary_key=True),
    Column(
        "instance_id", BigInteger, ForeignKey("instances.id", ondelete="CASCADE"), nullable=False
    ),
    Column("file_sha256", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("path", Text, nullable=False),
    Index("uq_copies_file", "instance_id", "file_sha256", unique=True),
    Index("uq_copies_path", "path", unique=True),
    sqlite_autoincrement=True,
)

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
    Column("held_by", Text),
    Column("error_kind", Text),
    Column("error_sentence", Text, nullable=False),
    Column("error_stage", Text, nullable=False),
    Column("error_subject", Text, nullable=False),
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

events: Final = Table(
    "events",
    metadata,
    Column("id", ID, primary_key=True),
    Column("at", MOMENT, nullable=False),
    Column("study_instance_uid", Text),
    Column("job_id", BigInteger),
    Column("kind", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("data", Json, nullable=False),
    Index("ix_events_study_instance_uid", "study_instance_uid", "id"),
    Index("ix_events_job_id", "job_id"),
    sqlite_autoincrement=True,
)

nodes: Final = Table(
    "nodes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("breaker", Text, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("openings", Integer, nullable=False),
    Column("retry_at", MOMENT),
    Column("last_contact_at", MOMENT),
    Column("last_error", Text, nullable=False),
    Column("last_error_at", MOMENT),
    CheckConstraint(one_of("breaker", Breaker), name="breaker"),
    CheckConstraint("(breaker = 'open') = (retry_at IS NOT NULL)", name="retry_at"),
)

waiting_routes: Final = Table(
    "waiting_routes",
    metadata,
    # Not held against the study yet: the package of their model could not be read.
    Column(
        "study_instance_uid",
        Text,
        ForeignKey("studies.study_instance_uid", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("route", Text, primary_key=True),
    Column("because", Text, nullable=False),
    Column("due_at", MOMENT, nullable=False),
)

pauses: Final = Table(
    "pauses",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("since", MOMENT, nullable=False),
    CheckConstraint(one_of("subject", PauseSubject), name="subject"),
    CheckConstraint(one_of("mode", PauseMode), name="mode"),
)

hosts: Final = Table(
    "hosts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("ingested_to", MOMENT, nullable=False),
    Column("beat_at", MOMENT, nullable=False),
)

workers: Final = Table(
    "workers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("kinds", Json, nullable=False),
    Column("models", Json, nullable=False),
    Column("started_at", MOMENT, nullable=False),
    Column("beat_at", MOMENT, nullable=False),
)

associations: Final = Table(
    "associations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("calling_ae", Text, nullable=False),
    Column("called_ae", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("started_at", MOMENT, nullable=False),
    Column("ended_at", MOMENT),
    Column("release", Text),
    CheckConstraint(f"release IS NULL OR {one_of('release', Release)}", name="release"),
    CheckConstraint("(ended_at IS NULL) = (release IS NULL)", name="ended_at"),
)

association_studies: Final = Table(
    "association_studies",
    metadata,
    Column("study_instance_uid", Text, primary_key=True),
    Column(
        "association_id", Text, ForeignKey("associations.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("objects", Integer, nullable=False),
    Index("ix_association_studies_association_id", "association_id"),
)
