"""Studies: what arrived and when, the lock, holds, and which are due to be decided."""

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
from sqlalchemy.dialects import postgresql, sqlite

from dicomai.dicom.dates import Instant
from dicomai.dicom.header import Attributes
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SOPInstanceUID, StudyInstanceUID
from dicomai.errors import TransientError
from dicomai.store import corrections, events, moves, schema
from dicomai.store.states import StudyStatus


class StudyGoing(TransientError):
    """Retention is deleting the study's files: what arrives waits, and no job takes them."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An object of a study came.

    Attributes
    ----------
    quiet_until
        Its receipt and the quiet period of its node; of several the latest counts.
    """

    study_instance_uid: StudyInstanceUID
    node: str
    received_at: Instant
    quiet_until: Instant
    accession_number: str
    study_date: str


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
        produced = schema.instances.c.origin == "produced"
        query = query.where(_has(~produced), ~_has(produced))
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


def note_arrival(connection: Connection, arrival: Arrival) -> Study:
    """Take the study's lock, make its row if there is none, and note the object's arrival.

    Raises
    ------
    StudyGoing
        Retention is deleting it, or has just done so.
    """
    table = schema.studies
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(
        insert(table)
        .values(
            study_instance_uid=arrival.study_instance_uid,
            status="open",
            accession_number=arrival.accession_number,
            study_date=arrival.study_date,
            nodes=[arrival.node],
            instances=0,
            first_object_at=arrival.received_at,
            last_object_at=arrival.received_at,
            quiet_until=arrival.quiet_until,
            full_quiet=False,
            decide_at=arrival.quiet_until,
            decision="",
        )
        .on_conflict_do_nothing()
    )
    study = lock(connection, arrival.study_instance_uid)
    # On PostgreSQL the row may go while its lock is waited for.
    if study is None or study.status == "deleting":
        raise StudyGoing(
            f"Study {arrival.study_instance_uid}, ingest: retention is deleting it. What arrived "
            "waits in the spool until that is done.",
            subject=arrival.study_instance_uid,
        )
    quiet_until = max(study.quiet_until, arrival.quiet_until)
    connection.execute(
        update(table)
        .where(table.c.study_instance_uid == arrival.study_instance_uid)
        .values(
            accession_number=_accession_number(connection, study, arrival),
            study_date=arrival.study_date or study.study_date,
            nodes=sorted({*study.nodes, arrival.node}),
            last_object_at=max(study.last_object_at, arrival.received_at),
            quiet_until=quiet_until,
            decide_at=quiet_until,
        )
    )
    changed = get(connection, arrival.study_instance_uid)
    assert changed is not None
    return changed


def _accession_number(connection: Connection, study: Study, arrival: Arrival) -> str:
    """Return the number that a study has once an object came: what a person corrected stays."""
    said = arrival.accession_number
    if said in ("", study.accession_number):
        return study.accession_number
    return corrections.accession_number(connection, study.study_instance_uid, said)


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


def set_quiet(
    connection: Connection, study: StudyInstanceUID, quiet_until: Instant, *, full_quiet: bool
) -> None:
    """Move the moment before which a study is not whole, as a clean release does."""
    _update(
        connection,
        study,
        quiet_until=quiet_until,
        decide_at=quiet_until,
        full_quiet=full_quiet,
    )


def set_patient_key(connection: Connection, study: StudyInstanceUID, key: IdentityKey) -> None:
    """Note whose a study is; jobs made for another key can't finish from now on."""
    _update(connection, study, patient_key=key)


def correct_patient(
    connection: Connection, study: Study, wrong: IdentityKey, key: IdentityKey
) -> None:
    """Note whose a locked study is by what a person says; what arrives later changes nothing."""
    corrections.correct_key(connection, study.study_instance_uid, wrong, key)
    accepted = key if study.accepted_key == wrong else study.accepted_key
    _update(connection, study.study_instance_uid, patient_key=key, accepted_key=accepted)


def correct_accession_number(
    connection: Connection, study: Study, said: Collection[str], number: str
) -> None:
    """Note a locked study's number by what a person says, instead of those that objects said."""
    uid = study.study_instance_uid
    corrections.correct_accession_number(connection, uid, said, study.accession_number, number)
    _update(connection, uid, accession_number=number)


def due(connection: Connection, now: Instant, limit: int = 100) -> tuple[StudyInstanceUID, ...]:
    """Return the open studies whose moment to be looked at has come, longest due first."""
    table = schema.studies
    # Written out, so that a partial index serves it.
    is_open = table.c.status == literal_column("'open'")
    found = connection.execute(
        select(table.c.study_instance_uid)
        .where(is_open, table.c.decide_at <= now)
        .order_by(table.c.decide_at)
        .limit(limit)
    )
    return tuple(StudyInstanceUID(uid) for uid in found.scalars())


def postpone(
    connection: Connection,
    study: StudyInstanceUID,
    because: str | None,
    until: Instant,
    now: Instant,
) -> None:
    """Look at a locked study again later; a reason that is new is an event, None is none."""
    if because is None:
        _update(connection, study, decide_at=until)
        return
    current = get(connection, study)
    if current is not None and current.decision != because:
        events.record(connection, study, "study waits", because, {"until": until}, now)
    _update(connection, study, decide_at=until, decision=because)


def set_decided(
    connection: Connection, study: StudyInstanceUID, because: str, now: Instant
) -> None:
    """Note that a locked study was decided on; what comes later opens it again."""
    count_as_decided(connection, study, because, now)
    events.record(connection, study, "study decided", because, {}, now)


def count_as_decided(
    connection: Connection, study: StudyInstanceUID, because: str, now: Instant
) -> None:
    """Have a locked study that is open be one that was decided on; whoever calls tells it."""
    table = schema.studies
    connection.execute(
        update(table)
        .where(table.c.study_instance_uid == study, table.c.status == "open")
        .values(status="decided", decided_at=now, decision=because)
    )


def amend_decision(connection: Connection, study: Study, was: str, now_is: str) -> None:
    """Replace a sentence of a locked study's last decision."""
    _update(connection, study.study_instance_uid, decision=study.decision.replace(was, now_is))


def hold(connection: Connection, study: StudyInstanceUID, reason: str, now: Instant) -> None:
    """Hold a locked study and park its queued jobs; a running one can't finish meanwhile."""
    table = schema.studies
    current = get(connection, study)
    if current is not None and current.status == "held" and current.hold_reason == reason:
        return
    held = connection.execute(
        update(table)
        .where(table.c.study_instance_uid == study, table.c.status.in_(("open", "decided", "held")))
        .values(status="held", hold_reason=reason)
    )
    if held.rowcount:
        parked = moves.park(connection, study, "study", reason)
        events.record(connection, study, "study held", reason, {"jobs": list(parked)}, now)


def release(
    connection: Connection, study: StudyInstanceUID, key: IdentityKey, now: Instant
) -> None:
    """Free a held, locked study for one patient's series; jobs of that patient go on.

    The study is decided on again at once.
    """
    table = schema.studies
    freed = connection.execute(
        update(table)
        .where(table.c.study_instance_uid == study, table.c.status == "held")
        .values(
            status="open",
            hold_reason=None,
            accepted_key=key,
            patient_key=key,
            decide_at=now,
        )
    )
    if not freed.rowcount:
        return
    _have_all_looked_at(connection, study)
    resumed = moves.unpark(connection, study, key)
    events.record(
        connection,
        study,
        "study released",
        f"A person accepted {key} as the patient of this study.",
        {"jobs": list(resumed)},
        now,
    )


def reopen(connection: Connection, study: StudyInstanceUID, now: Instant) -> None:
    """Have a locked study that is open, or was decided on, be decided on at once, all of it."""
    sentence = "A person had the routes look at this study again."
    _update(connection, study, status="open", decide_at=now, decision=sentence)
    _have_all_looked_at(connection, study)
    events.record(connection, study, "study reopened", sentence, {}, now)


def _have_all_looked_at(connection: Connection, study: StudyInstanceUID) -> None:
    """Have no series of a study count as decided on."""
    table = schema.series
    connection.execute(
        update(table).where(table.c.study_instance_uid == study).values(decided_at=None)
    )


def _update(connection: Connection, study: StudyInstanceUID, **values: object) -> None:
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
