"""The catalogue's tables about the network: what peers look for, and what they say that they have.

`dicomai.store.schema` has them with all others.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text

from dicomai.store.columns import MOMENT, Json, metadata, one_of
from dicomai.store.states import StepStatus

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
    Column("modality", Text, nullable=False),
    Column("objects", Integer, nullable=False),
    Column("counted_at", MOMENT, nullable=False),
)

procedure_steps: Final = Table(
    "procedure_steps",
    metadata,
    Column("step", Text, primary_key=True),
    Column("node", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("objects", Json, nullable=False),
    Column("reason", Text, nullable=False),
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
