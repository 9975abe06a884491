"""Setting aside: what ingest can take nothing from is kept in the quarantine, with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from dicomai.errors import InputError
from dicomai.service.spool_pass import Pass
from dicomai.spool import quarantine, reader
from dicomai.spool.entries import Entry
from dicomai.spool.folder import DAMAGED
from dicomai.store import events
from dicomai.store.engine import writing

log = structlog.get_logger(__name__)

UNREADABLE: Final = "unreadable"
"""Folder in the spool of what its disk does not give back, where the quarantine is on another."""


def set_aside(this: Pass, entry: Entry, reason: str) -> None:
    """Keep an entry in the quarantine; it leaves the spool when the event of it is there."""
    now = this.now()
    try:
        name = quarantine.put(this.config.quarantine, entry.path, reason, now, entry.association)
    except OSError as trouble:
        if trouble.errno not in DAMAGED:
            raise
        # A quarantine on another disk wants a copy, which this one does not give; a link it does.
        beside = this.config.spool / UNREADABLE
        name = str(beside / quarantine.put(beside, entry.path, reason, now, entry.association))
    with writing(this.engine) as connection:
        sender = entry.association.node or "an unknown sender"
        sentence = f"An object from {sender} was set aside as {name}: {reason}"
        events.record(connection, None, "object set aside", sentence, {"file": name}, now)
    reader.remove(entry)
    log.warning("object set aside", file=name, sentence=reason)


@contextmanager
def given_back(entry: Entry) -> Iterator[None]:
    """Have what a damaged disk does not give back set aside, and not tried for ever."""
    try:
        yield
    except OSError as trouble:
        if trouble.errno not in DAMAGED:
            raise
        raise InputError(
            f"{entry.path} can't be read: {os.strerror(trouble.errno or 0).lower()}. Look at its "
            "disk, and send the object again."
        ) from trouble
