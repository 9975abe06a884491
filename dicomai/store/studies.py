"""Studies as the catalogue has them: rows and their lock, whose they are, and looking for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Result,
    Row,
    exists,
    func,
    literal_column,
    select,
    update,
)

from dicomai.dicom.dates import Instant
from dicomai.dicom.header import Attributes
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SOPInstanceUID, StudyInstanceUID
from dicomai.store import corrections, schema
from dicomai.store.states import StudyStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A row of the catalogue.

    Attributes
    ----------
    patient_key
        Whose it is; None until that was judged.
    accepted_key
        What a person chose where objects disagreed; series of other patients are no input.
    nodes
        Which nodes sent objects of it, sorted.
    instances
        Objects in it, our own results too; versions count once.
    quiet_until
        It is not whole before.
    full_quiet
        Objects followed a clean release, so that a release shortens nothing any more.
    decide_at
        When it is looked at next, while it is open.
    decision
        The last one's reason.
    """

    study_instance_uid: StudyInstanceUID
    status: StudyStatus
    patient_key: IdentityKey | None
    accepted_key: IdentityKey | None
    hold_reason: str | None
    accession_number: str
    study_date: str
    nodes: tuple[str, ...]
    instances: int
    first_object_at: Instant
    last_object_at: Instant
    quiet_until: Instant
    full_quiet: bool
    decide_at: Instant
    decided_at: Instant | None
    decision: str


def lock(connection: Connection, study: StudyInstanceUID) -> Study | None:
    """Take the study's lock until the transaction ends, and return the study.

    On PostgreSQL it is the row; on SQLite the write transaction itself. Whatever moves a study
    takes it first.
    """
    table = schema.studies
    return _one(
        connection.execute(
            select(table).where(table.c.study_instance_uid == study).with_for_update()
        )
    )


def get(connection: Connection, study: StudyInstanceUID) -> Study | None:
    """Return a study."""
    table = schema.studies
    return _one(connection.execute(select(table).where(table.c.study_instance_uid == study)))


def find_by_accession(connection: Connection, accession: str) -> tuple[Study, ...]:
    """Return the studies of an accession number, oldest first; several may share it."""
    table = schema.studies
    return _all(
        connection.execute(
            select(table)
            .where(table.c.accession_number == accession)
            .order_by(table.c.first_object_at, table.c.study_instance_uid)
        )
    )


def find_by_end(connection: Connection, end: str) -> tuple[Study, ...]:
    """Return the studies whose Study Instance UID ends in these digits and dots, oldest first."""
    table = schema.studies
    return _all(
        connection.execute(
            select(table)
            .where(table.c.study_instance_uid.endswith(end, autoescape=True))
            .order_by(table.c.first_object_at, table.c.study_instance_uid)
        )
    )


def before(
    connection: Connection, study: Study, key: IdentityKey, oldest: date
) -> tuple[Study, ...]:
    """Return a patient's decided studies before one of his, the latest first.

    Of the same day are those that say that they are earlier.

    Parameters
    ----------
    study
        The one that they come before.
    key
        The patient.
    oldest
        Those of an earlier day are left out.
    """
    table, headers = schema.studies, schema.study_headers
    found = connection.execute(
        select(table, headers.c.attributes)
        .join(headers, headers.c.study_instance_uid == table.c.study_instance_uid)
        .where(
            table.c.patient_key == key,
            table.c.status == "decided",
            table.c.study_instance_uid != study.study_instance_uid,
        )
    ).all()
    times = {row.study_instance_uid: str(row.attributes.get("StudyTime", "")) for row in found}
    own = header(connection, study.study_instance_uid)
    now = _digits(study.study_date), str(own.get("StudyTime", ""))
    first = f"{oldest:%Y%m%d}".zfill(8)
    dated = [
        ((day, times[each.study_instance_uid]), each)
        for each in map(_study, found)
        if len(day := _digits(each.study_date)) == 8 and first <= day
    ]
    return tuple(
        each
        for at, each in sorted(dated, key=lambda one: (one[0], one[1].study_instance_uid))[::-1]
        if at[0] < now[0] or (at[0] == now[0] and "" < at[1] < now[1])
    )


def listing(
    connection: Connection,
    limit: int,
    states: Collection[StudyStatus] = (),
    since: Instant | None = None,
    *,
    without_results: bool = False,
) -> tuple[Study, ...]:
    """Return the studies that changed last, newest first.

    Parameters
    ----------
    states
        Only studies in one of these; empty: in any.
    since
        Only those of which an object came then or later.
    without_results
        Only those that have images, and no results of ours.
    """
    table = schema.studies
    query = select(table).order_by(table.c.last_object_at.desc()).limit(limit)
    if states:
        query = query.where(table.c.status.in_(tuple(states)))
    if since is not None:
        query = query.where(table.c.last_object_at >= since)
    if without_results:
        # Written out, so that the partial index serves it: most studies have a hundred images.
        produced = schema.instances.c.origin == literal_column("'produced'")
        query = query.where(~_has(produced), _has(~produced))
    return _all(connection.execute(query))


def _has(which: ColumnElement[bool]) -> ColumnElement[bool]:
    instances = schema.instances
    own = instances.c.study_instance_uid == schema.studies.c.study_instance_uid
    return exists().where(own, which)


def arriving(connection: Connection, limit: int) -> tuple[Study, ...]:
    """Return the open studies, those first that are looked at next."""
    table = schema.studies
    # Written out, so that a partial index serves it.
    is_open = table.c.status == literal_column("'open'")
    query = select(table).where(is_open).order_by(table.c.decide_at).limit(limit)
    return _all(connection.execute(query))


def sharing(
    connection: Connection, study: StudyInstanceUID
) -> dict[StudyInstanceUID, SOPInstanceUID]:
    """Return the other studies that hold an object of this one too, each with one such object."""
    mine, others = schema.instances.alias("mine"), schema.instances.alias("others")
    found = connection.execute(
        select(others.c.study_instance_uid, func.min(others.c.sop_instance_uid))
        .join(mine, mine.c.sop_instance_uid == others.c.sop_instance_uid)
        .where(mine.c.study_instance_uid == study, others.c.study_instance_uid != study)
        .group_by(others.c.study_instance_uid)
    )
    return {StudyInstanceUID(uid): SOPInstanceUID(sop) for uid, sop in found}


def header(connection: Connection, study: StudyInstanceUID) -> Attributes:
    """Return what a study's objects say of patient and study."""
    table = schema.study_headers
    query = select(table.c.attributes).where(table.c.study_instance_uid == study)
    return connection.execute(query).scalar_one_or_none() or {}


def set_patient_key(connection: Connection, study: StudyInstanceUID, key: IdentityKey) -> None:
    """Note whose a study is; jobs made for another key can't finish from now on."""
    change(connection, study, patient_key=key)


def correct_patient(
    connection: Connection, study: Study, wrong: IdentityKey, key: IdentityKey
) -> None:
    """Note whose a locked study is by what a person says; what arrives later changes nothing."""
    uid = study.study_instance_uid
    corrections.correct_key(connection, uid, wrong, key, study.patient_key)
    accepted = key if study.accepted_key == wrong else study.accepted_key
    change(connection, uid, patient_key=key, accepted_key=accepted)


def correct_accession_number(
    connection: Connection, study: Study, said: Collection[str], number: str
) -> None:
    """Note a locked study's number by what a person says, instead of those that objects said."""
    uid = study.study_instance_uid
    corrections.correct_accession_number(connection, uid, said, study.accession_number, number)
    change(connection, uid, accession_number=number)


def change(connection: Connection, study: StudyInstanceUID, **values: object) -> None:
    """Write columns of a locked study's row."""
    table = schema.studies
    connection.execute(update(table).where(table.c.study_instance_uid == study).values(**values))


def _one(rows: Result[Any]) -> Study | None:
    found = _all(rows)
    return found[0] if found else None


def _digits(value: str) -> str:
    return value.replace(".", "").strip()


def _all(rows: Result[Any]) -> tuple[Study, ...]:
    return tuple(_study(row) for row in rows)


def _study(row: Row[Any]) -> Study:
    values: dict[str, Any] = {name: row._mapping[name] for name in Study.__dataclass_fields__}
    return Study(**{**values, "nodes": tuple(values["nodes"])})
