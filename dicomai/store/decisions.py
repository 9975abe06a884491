"""Decisions on studies: which are due, waits, holds, and what a person has done with them."""

from __future__ import annotations

from sqlalchemy import Connection, literal_column, select, update

from dicomai.dicom.dates import Instant
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import events, moves, schema, studies
from dicomai.store.studies import Study


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
        studies.change(connection, study, decide_at=until)
        return
    current = studies.get(connection, study)
    if current is not None and current.decision != because:
        events.record(connection, study, "study waits", because, {"until": until}, now)
    studies.change(connection, study, decide_at=until, decision=because)


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
    studies.change(
        connection, study.study_instance_uid, decision=study.decision.replace(was, now_is)
    )


def hold(connection: Connection, study: StudyInstanceUID, reason: str, now: Instant) -> None:
    """Hold a locked study and park its queued jobs; a running one can't finish meanwhile."""
    table = schema.studies
    current = studies.get(connection, study)
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
    studies.change(connection, study, status="open", decide_at=now, decision=sentence)
    _have_all_looked_at(connection, study)
    events.record(connection, study, "study reopened", sentence, {}, now)


def _have_all_looked_at(connection: Connection, study: StudyInstanceUID) -> None:
    """Have no series of a study count as decided on."""
    table = schema.series
    connection.execute(
        update(table).where(table.c.study_instance_uid == study).values(decided_at=None)
    )
