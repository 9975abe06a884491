"""Messages out of the spool: what a peer says of procedure steps and of storage commitment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection

from dicomai.dicom.dates import Instant
from dicomai.errors import InputError
from dicomai.service import commitment, step
from dicomai.service.setting_aside import given_back, set_aside
from dicomai.service.spool_pass import Ingested, Marked, Pass
from dicomai.spool import reader
from dicomai.spool.entries import Entry
from dicomai.store import steps
from dicomai.store.engine import writing


def take_message(this: Pass, marked: Marked) -> Ingested:
    """Take over what a peer says of a procedure step, or of storage commitment."""
    done = Ingested(postponed=1)
    with this.going_on(marked.entry):
        try:
            _note_message(this, marked)
            done = Ingested(catalogued=1)
        except InputError as error:
            set_aside(this, marked.entry, error.sentence)
            done = Ingested(set_aside=1)
    return done


def _note_message(this: Pass, marked: Marked) -> None:
    entry = marked.entry
    if marked.attempt > reader.MAX_ATTEMPTS:
        raise InputError(
            f"Ingest ended {reader.MAX_ATTEMPTS} times while it worked on this message. It is "
            "kept here; please report it."
        )
    with given_back(entry):
        note = _noting(replace(entry, received_at=this.received_at(entry)))
    now = this.now()
    with writing(this.engine) as connection:
        this.note_ingested(connection, this.reached, now)
        note(connection, now)
    this.after_step("committed")
    reader.remove(entry)
    this.after_step("removed")


def _noting(entry: Entry) -> Callable[[Connection, Instant], object]:
    """Read a message; return what takes it over."""
    if entry.kind in ("commit", "report"):
        message = commitment.read(entry)
        return lambda connection, now: commitment.note(connection, entry, message, now)
    told = step.read(entry.path, entry.association.node)
    return lambda connection, now: steps.note(connection, told, now)
