"""What peers look for studies by.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEPT = (
    "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientBirthTime",
    "PatientSex", "OtherPatientIDs", "EthnicGroup", "PatientComments", "StudyInstanceUID",
    "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "StudyDescription",
    "ReferringPhysicianName", "PatientAge", "PatientSize", "PatientWeight", "Occupation",
    "AdditionalPatientHistory", "TimezoneOffsetFromUTC",
)  # fmt: skip


def upgrade() -> None:
    """Make the table, and fill it with what the catalogue has."""
    headers = op.create_table(
        "study_headers",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("patient_names", sa.Text(), nullable=False),
        sa.Column("accession_number", sa.Text(), nullable=False),
        sa.Column("study_date", sa.Text(), nullable=False),
        sa.Column("modalities", sa.Text(), nullable=False),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["studies.study_instance_uid"],
            name=op.f("fk_study_headers_study_instance_uid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_instance_uid", name=op.f("pk_study_headers")),
    )
    op.create_index(
        "ix_study_headers_patient_id", "study_headers", ["patient_id", "study_instance_uid"]
    )
    op.create_index("ix_study_headers_accession_number", "study_headers", ["accession_number"])
    op.create_index("ix_study_headers_study_date", "study_headers", ["study_date"])
    connection = op.get_bind()
    studies = connection.execute(
        sa.text(
            "SELECT study_instance_uid, max(id) FROM instances WHERE newest "
            "GROUP BY study_instance_uid"
        )
    ).all()
    for study, newest in studies:
        connection.execute(sa.insert(headers).values(_row(connection, study, newest)))


def _row(connection: sa.Connection, study: str, newest: int) -> dict[str, str]:
    said = json.loads(
        connection.execute(
            sa.text("SELECT attributes FROM instances WHERE id = :id"), {"id": newest}
        ).scalar_one()
    )
    modalities = connection.execute(
        sa.text(
            "SELECT DISTINCT modality FROM series WHERE study_instance_uid = :study "
            "AND modality <> '' ORDER BY modality"
        ),
        {"study": study},
    ).scalars()

    def text(keyword: str) -> str:
        value = said.get(keyword, "")
        return value if isinstance(value, str) else ""

    return {
        "study_instance_uid": study,
        "patient_id": text("PatientID"),
        "patient_names": _names(text("PatientName")),
        "accession_number": text("AccessionNumber"),
        "study_date": text("StudyDate"),
        "modalities": "".join(f"\\{each}" for each in modalities) + "\\",
        "attributes": json.dumps(
            {name: said[name] for name in _KEPT if name in said}, sort_keys=True
        ),
    }


def _names(name: str) -> str:
    """Return a name and its scripts, as they were folded at this version."""
    whole = "=".join(part.rstrip(" ^") for part in name.casefold().split("=")).rstrip("=")
    parts = (part.strip(" ^") for part in whole.split("=") if part)
    return "\n".join(dict.fromkeys((whole, *parts)))
