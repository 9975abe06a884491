"""The catalogue's tables about the network: what peers look for, and what they say that they have.

`dicomai.store.schema` has them with all others.
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
    Index,
    Integer,
    Table,
    Text,
    text,
)

from dicomai.store.columns import ID, MOMENT, Json, Sentence, metadata, one_of
from dicomai.store.states import BackfillState, HistoryState, RouteMode, StepStatus

study_headers: Final = Table(
    "study_headers",
    metadata,
    # What peers ask for when they look for a study.
    Column(
        "study_instance_uid",
        Text,
        ForeignKey("studies.study_instance_uid", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("patient_id", Text, nullable=False),
    # Without regard to case: the whole, and each of its scripts.
    Column("patient_names", Text, nullable=False),
    Column("accession_number", Text, nullable=False),
    Column("study_date", Text, nullable=False),
    # Each between backslashes.
    Column("modalities", Text, nullable=False),
    # All that it says of patient and study.
    Column("attributes", Json, nullable=False),
    Index("ix_study_headers_patient_id", "patient_id", "study_instance_uid"),
    Index("ix_study_headers_accession_number", "accession_number"),
    Index("ix_study_headers_study_date", "study_date"),
)

series_counts: Final = Table(
    "series_counts",
    metadata,
    # What a node said that it has (C-FIND); of series that are not here too.
    Column(
        "study_instance_uid",
        Text,
        ForeignKey("studies.study_instance_uid", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("node", Text, primary_key=True),
    Column("series_instance_uid", Text, primary_key=True),
    Column("objects", Integer, nullable=False),
    # What else it told of the series: conditions of routes are held against it.
    Column("attributes", Json, nullable=False),
    Column("counted_at", MOMENT, nullable=False),
)

procedure_steps: Final = Table(
    "procedure_steps",
    metadata,
    Column("step", Text, primary_key=True),
    Column("node", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("objects", Json, nullable=False),
    Column("reason", Sentence, nullable=False),
    Column("changed_at", MOMENT, nullable=False),
    CheckConstraint(one_of("status", StepStatus), name="status"),
)

procedure_step_studies: Final = Table(
    "procedure_step_studies",
    metadata,
    # It may come before its study does.
    Column("study_instance_uid", Text, primary_key=True),
    Column("step", Text, ForeignKey("procedure_steps.step", ondelete="CASCADE"), primary_key=True),
    Index("ix_procedure_step_studies_step", "step"),
)

studies_apart: Final = Table(
    "studies_apart",
    metadata,
    # Fetched for one purpose alone; it may be asked for before anything of it comes.
    Column("study_instance_uid", Text, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("at", MOMENT, nullable=False),
)

pulls: Final = Table(
    "pulls",
    metadata,
    Column("name", Text, primary_key=True),
    # The day of the last answer, by the service's time zone.
    Column("answered", Text, nullable=False),
)

backfills: Final = Table(
    "backfills",
    metadata,
    Column("id", ID, primary_key=True),
    Column("node", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("first_day", Text, nullable=False),
    Column("last_day", Text, nullable=False),
    Column("studies_per_hour", Float, nullable=False),
    Column("state", Text, nullable=False),
    # The day that the node is asked for next; without one all were asked for.
    Column("next_day", Text),
    # Nothing is fetched before.
    Column("next_at", MOMENT, nullable=False),
    Column("trouble", Sentence, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("finished_at", MOMENT),
    CheckConstraint(one_of("state", BackfillState), name="state"),
    CheckConstraint(one_of("mode", RouteMode), name="mode"),
    CheckConstraint("(finished_at IS NULL) = (state = 'running')", name="finished_at"),
    Index(
        "uq_backfills_running",
        "node",
        "route",
        "mode",
        "first_day",
        "last_day",
        unique=True,
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    sqlite_autoincrement=True,
)

backfill_studies: Final = Table(
    "backfill_studies",
    metadata,
    Column(
        "backfill_id",
        BigInteger,
        ForeignKey("backfills.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("study_instance_uid", Text, primary_key=True),
    Column("study_date", Text, nullable=False),
    Column("state", Text, nullable=False),
    # The job that fetches it, none where it was here; and the one that analyses it.
    Column("retrieval", BigInteger),
    Column("analysis", BigInteger),
    # The analysis was made for this backfill, and may end with it.
    Column("own", Boolean, nullable=False),
    Column("sentence", Sentence, nullable=False),
    CheckConstraint(one_of("state", HistoryState), name="state"),
    CheckConstraint("state <> 'analysis' OR analysis IS NOT NULL", name="analysis"),
    Index("ix_backfill_studies_state", "backfill_id", "state"),
)
