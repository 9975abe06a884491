"""What persons said before there was a place for it: withdrawals, corrected keys and numbers.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy import column, insert, or_, select, table, update

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_UID = "study_instance_uid"
_JOBS = table(
    "jobs",
    *map(column, ("id", "kind", "supersedes", _UID, "patient_key")),
    column("summary", sa.Text()),
)
_STUDIES = table("studies", *map(column, (_UID, "patient_key", "accepted_key", "accession_number")))
_IDENTITIES = table("series_identities", column(_UID), column("patient_key"))
_INSTANCES = table("instances", *map(column, (_UID, "origin", "attributes")))
_KEYS = table("corrected_keys", *map(column, (_UID, "patient_key", "corrected_key")))
_NUMBERS = table(
    "corrected_accession_numbers", *map(column, (_UID, "accession_number", "corrected_number"))
)


def upgrade() -> None:
    """Note it as it would be noted today; what is noted already stays."""
    connection = op.get_bind()
    newer, older = _JOBS.alias(), _JOBS.alias()
    rows = connection.execute(
        select(
            newer,
            older.c.summary.label("older_summary"),
            older.c.patient_key.label("older_key"),
        )
        .join_from(newer, older, older.c.id == newer.c.supersedes)
        .where(
            newer.c.kind == "analyse",
            or_(newer.c.summary.contains('"withdrawn"'), newer.c.summary.contains('"reissue_of"')),
        )
        .order_by(newer.c.id)
    ).all()
    reissues: dict[str, list[Any]] = {}
    for row in rows:
        summary = json.loads(row.summary)
        if summary.get("found") == "withdrawn":
            _note_withdrawal(connection, row)
        elif "reissue_of" in summary:
            reissues.setdefault(row.study_instance_uid, []).append(row)
    for uid, of_study in reissues.items():
        study = connection.execute(select(_STUDIES).where(_STUDIES.c[_UID] == uid)).one_or_none()
        if study is not None:
            _note_key(connection, study, of_study)
            _note_accession_number(connection, study)


def _note_withdrawal(connection: sa.Connection, row: Any) -> None:
    summary = json.loads(row.older_summary)
    if "withdrawn_by" not in summary:
        said = json.dumps(summary | {"withdrawn_by": row.id}, sort_keys=True)
        connection.execute(update(_JOBS).where(_JOBS.c.id == row.supersedes).values(summary=said))


def _note_key(connection: sa.Connection, study: Any, reissues: Sequence[Any]) -> None:
    """Let the key of the last reissue stand for those before it, unless it was undone since."""
    uid, key = study.study_instance_uid, study.patient_key
    if _knows(connection, _KEYS, uid) or key != reissues[-1].patient_key:
        return
    wrong = {row.older_key for row in reissues} - {key}
    said = select(_IDENTITIES.c.patient_key).where(_IDENTITIES.c[_UID] == uid).distinct()
    for each in sorted(wrong.intersection(connection.execute(said).scalars())):
        connection.execute(insert(_KEYS).values((uid, each, key)))
    if study.accepted_key in wrong:
        mine = _STUDIES.c[_UID] == uid
        connection.execute(update(_STUDIES).where(mine).values(accepted_key=key))


def _note_accession_number(connection: sa.Connection, study: Any) -> None:
    """Let the study's number stand for those that its objects say, unless one of them says it."""
    uid, number = study.study_instance_uid, study.accession_number
    attributes = connection.execute(
        select(_INSTANCES.c.attributes).where(
            _INSTANCES.c[_UID] == uid, _INSTANCES.c.origin != "produced"
        )
    ).scalars()
    every = [json.loads(each).get("AccessionNumber", "") for each in attributes]
    said = {each for each in every if isinstance(each, str) and each}
    if _knows(connection, _NUMBERS, uid) or not number or number in said:
        return
    for each in sorted(said):
        connection.execute(insert(_NUMBERS).values((uid, each, number)))


def _knows(connection: sa.Connection, corrections: sa.TableClause, uid: str) -> bool:
    mine = corrections.c[_UID] == uid
    return connection.execute(select(corrections).where(mine)).first() is not None
