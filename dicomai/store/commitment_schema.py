"""The catalogue's tables about deliveries, and about storage commitment by others and by us.

`dicomai.store.schema` has them with all others.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text

from dicomai.store.columns import ID, MOMENT, Json, Sentence, metadata, one_of
from dicomai.store.states import CommitmentState, DeliveryState, PromiseState

deliveries: Final = Table(
    "deliveries",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sop_instance_uid", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("status", Integer),
    Column("sentence", Sentence, nullable=False),
    Column("at", MOMENT, nullable=False),
    CheckConstraint(one_of("state", DeliveryState), name="state"),
)

promises: Final = Table(
    "promises",
    metadata,
    # What a peer asked us to commit.
    Column("id", ID, primary_key=True),
    Column("node", Text, nullable=False),
    Column("transaction_uid", Text, nullable=False),
    Column("state", Text, nullable=False),
    # SOP class, SOP instance and failure reason of each; 0: none.
    Column("objects", Json, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    Column("kept_until", MOMENT),
    Column("due_at", MOMENT),
    Column("claim", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error_sentence", Sentence, nullable=False),
    Column("finished_at", MOMENT),
    CheckConstraint(one_of("state", PromiseState), name="state"),
    CheckConstraint("(state IN ('asked', 'judged')) = (due_at IS NOT NULL)", name="due_at"),
    CheckConstraint("(due_at IS NULL) = (finished_at IS NOT NULL)", name="finished_at"),
    Index("ix_promises_due_at", "due_at"),
    Index("ix_promises_transaction_uid", "transaction_uid"),
    sqlite_autoincrement=True,
)

promise_studies: Final = Table(
    "promise_studies",
    metadata,
    # The studies of which something is committed.
    Column("study_instance_uid", Text, primary_key=True),
    Column(
        "promise_id", BigInteger, ForeignKey("promises.id", ondelete="CASCADE"), primary_key=True
    ),
    Index("ix_promise_studies_promise_id", "promise_id"),
)

commitments: Final = Table(
    "commitments",
    metadata,
    # What a node was asked to commit of a delivery.
    Column("transaction_uid", Text, primary_key=True),
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("node", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("objects", Json, nullable=False),
    Column("asked_at", MOMENT, nullable=False),
    Column("answered_at", MOMENT),
    CheckConstraint(one_of("state", CommitmentState), name="state"),
    Index("ix_commitments_job_id", "job_id"),
)
