"""Objects that come: the study's row, whose lock they take, and how long it is quiet after them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, update
from sqlalchemy.dialects import postgresql, sqlite

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import TransientError
from dicomai.store import corrections, schema, studies
from dicomai.store.clocks import received_before
from dicomai.store.studies import Study


class StudyGoing(TransientError):
    """Retention is deleting the study's files: what arrives waits, and no job takes them."""


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


def note_arrival(connection: Connection, arrival: Arrival, now: Instant) -> Study:
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
    study = studies.lock(connection, arrival.study_instance_uid)
    # On PostgreSQL the row may go while its lock is waited for.
    if study is None or study.status == "deleting":
        raise StudyGoing(
            f"Study {arrival.study_instance_uid}, ingest: retention is deleting it. What arrived "
            "waits in the spool until that is done.",
            subject=arrival.study_instance_uid,
        )
    # What was received before others, and is taken in only now, says nothing against them.
    late = received_before(arrival.received_at, study.last_object_at, now)
    first, second = (study, arrival) if late else (arrival, study)
    number = first.accession_number or second.accession_number
    if number != study.accession_number:  # else what a person corrected stays
        number = corrections.accession_number(connection, arrival.study_instance_uid, number)
    quiet_until = max(study.quiet_until, arrival.quiet_until)
    connection.execute(
        update(table)
        .where(table.c.study_instance_uid == arrival.study_instance_uid)
        .values(
            accession_number=number,
            study_date=first.study_date or second.study_date,
            nodes=sorted({*study.nodes, arrival.node}),
            last_object_at=max(study.last_object_at, arrival.received_at),
            quiet_until=quiet_until,
            decide_at=quiet_until,
        )
    )
    changed = studies.get(connection, arrival.study_instance_uid)
    assert changed is not None
    return changed


def set_quiet(
    connection: Connection, study: StudyInstanceUID, quiet_until: Instant, *, full_quiet: bool
) -> None:
    """Move the moment before which a study is not whole, as a clean release does."""
    studies.change(
        connection,
        study,
        quiet_until=quiet_until,
        decide_at=quiet_until,
        full_quiet=full_quiet,
    )


def look_again(connection: Connection, study: StudyInstanceUID) -> None:
    """Have an open study decided on anew as soon as it is quiet: there is one veto less."""
    found = studies.lock(connection, study)
    if found is not None and found.status == "open":
        studies.change(connection, study, decide_at=found.quiet_until)
