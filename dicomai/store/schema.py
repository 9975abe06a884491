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
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    Text,
    text,
)

from dicomai.store.columns import ID, MOMENT, Json, Sentence, one_of
from dicomai.store.columns import metadata as metadata
from dicomai.store.commitment_schema import commitments as commitments
from dicomai.store.commitment_schema import deliveries as deliveries
from dicomai.store.commitment_schema import promise_studies as promise_studies
from dicomai.store.commitment_schema import promises as promises
from dicomai.store.job_schema import fingerprints as fingerprints
from dicomai.store.job_schema import job_inputs as job_inputs
from dicomai.store.job_schema import job_routes as job_routes
from dicomai.store.job_schema import jobs as jobs
from dicomai.store.network_schema import backfill_studies as backfill_studies
from dicomai.store.network_schema import backfills as backfills
from dicomai.store.network_schema import procedure_step_studies as procedure_step_studies
from dicomai.store.network_schema import procedure_steps as procedure_steps
from dicomai.store.network_schema import pulls as pulls
from dicomai.store.network_schema import series_counts as series_counts
from dicomai.store.network_schema import studies_apart as studies_apart
from dicomai.store.network_schema import study_headers as study_headers
from dicomai.store.states import Breaker, Origin, PauseMode, PauseSubject, Release, StudyStatus

studies: Final = Table(
    "studies",
    metadata,
    Column("study_instance_uid", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("patient_key", Text),
    Column("accepted_key", Text),
    Column("hold_reason", Sentence),
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

# The accession number that a person gave a study, instead of one that its objects have.
corrected_accession_numbers: Final = Table(
    "corrected_accession_numbers",
    metadata,
    Column(
        "study_instance_uid",
        Text,
        ForeignKey("studies.study_instance_uid", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("accession_number", Text, primary_key=True),
    Column("corrected_number", Text, nullable=False),
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
        "ix_instances_produced",
        "study_instance_uid",
        sqlite_where=text("origin = 'produced'"),
        postgresql_where=text("origin = 'produced'"),
    ),
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


events: Final = Table(
    "events",
    metadata,
    Column("id", ID, primary_key=True),
    Column("at", MOMENT, nullable=False),
    Column("study_instance_uid", Text),
    Column("job_id", BigInteger),
    Column("kind", Text, nullable=False),
    Column("sentence", Sentence, nullable=False),
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
    Column("last_error", Sentence, nullable=False),
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
    Column("because", Sentence, nullable=False),
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
    # Of the scheduler that has the name.
    Column("run", Text, nullable=False),
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
