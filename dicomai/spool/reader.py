"""The spool as ingest reads it: what came, in which order, who is still sending.

Every step may be killed and repeated. Nothing here needs the receiver, and nothing of it is
harmed by one that is writing at the same time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.spool import earlier
from dicomai.spool.entries import (
    ASSOCIATION,
    END,
    FACTS_PREFIX,
    LOCK,
    OBJECT,
    OLD_PREFIX,
    PART,
    STUDY_PREFIX,
    AssociationFacts,
    AssociationId,
    End,
    Ending,
    Entry,
    facts_of,
    nobody,
    receiver_lives,
)
from dicomai.spool.names import name_also

MAX_ATTEMPTS: Final = 2
"""An entry that killed ingest so often is set aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAssociation:
    """One that is still sending, and the studies it has sent something of."""

    facts: AssociationFacts
    studies: frozenset[StudyInstanceUID]


def associations(spool: Path) -> tuple[AssociationFacts, ...]:
    """Return every association that the spool holds, open or ended, by time of start."""
    return tuple(facts for folder in _folders(spool) if (facts := _facts(folder)) is not None)


def entries(spool: Path) -> Iterator[Entry]:
    """Give the objects that are there now, in order of their receipt."""
    found = []
    for folder in _folders(spool):
        names = [match for name in _names(folder) if (match := OBJECT.fullmatch(name))]
        if not names:
            continue
        facts = _facts(folder)
        if facts is None:
            continue
        found += [
            Entry(
                association=facts,
                counter=int(name[1]),
                received_at=Instant(int(name[2])),
                path=folder / name[0],
            )
            for name in names
        ]
    found.sort(key=lambda entry: (entry.received_at, entry.association.id, entry.counter))
    yield from found


def waits(spool: Path) -> bool:
    """Tell whether ingest has something to do: an object, or an association that has ended."""
    return any(
        any(map(OBJECT.fullmatch, _names(folder)))
        or ended(spool, AssociationId(folder.name)) is not None
        for folder in _folders(spool)
    )


def oldest_received_at(spool: Path) -> Instant | None:
    """Return the time of receipt of the oldest object here, or a time shortly before.

    One that is still being written was not received yet, and has none. None: everything received
    before this call is ingested. Take the clock *before* the call to say up to when that holds.
    """
    times = []
    for folder in _folders(spool):
        # A listing may miss a file that is renamed meanwhile; the second one sees it, or it was
        # received after the first one began.
        names = {*_names(folder), *_names(folder)}
        written = [int(match[2]) for name in names if (match := OBJECT.fullmatch(name))]
        settling = [int(match[1]) for name in names if (match := PART.fullmatch(name))]
        if settling and receiver_lives(folder):
            times += settling
        times += written
    return Instant(min(times)) if times else None


def open_associations(spool: Path) -> tuple[OpenAssociation, ...]:
    """Return the associations that have not ended, by time of start."""
    return tuple(
        OpenAssociation(facts=facts, studies=_studies(folder))
        for folder in _folders(spool)
        if _end(folder) is None and receiver_lives(folder) and (facts := _facts(folder)) is not None
    )


def ended(spool: Path, association: AssociationId) -> End | None:
    """Return when and how an association ended, None while it is open.

    One whose receiver was killed is lost; its end is the last that was heard of it.
    """
    folder = spool / association
    if _end(folder) is None and receiver_lives(folder):
        return None
    # In this order: the receiver writes the end before it lets go of the lock.
    end = _end(folder)
    if end is None:
        received = [int(match[2]) for name in _names(folder) if (match := OBJECT.fullmatch(name))]
        started_at = int(association[:16])
        return End(at=Instant(max([started_at, *received, *_taken(folder)])), how="lost")
    return end


def mark(entry: Entry) -> int:
    """Note that work on an entry begins; return how many times it has, this one included.

    More than `MAX_ATTEMPTS`: it killed whoever worked on it. Set it aside. No sync: an object ends
    a process, and what ends the machine has other causes.
    """
    attempt = 1
    while True:
        try:
            name_also(entry.path, _attempt(entry, attempt))
        except FileExistsError:
            attempt += 1
        else:
            return attempt


def unmark(entry: Entry) -> None:
    """Take back the marks of an entry whose work ended in order and is to be done again later."""
    for attempt in range(1, MAX_ATTEMPTS + 2):
        with suppress(FileNotFoundError):
            _attempt(entry, attempt).unlink()


def remove(entry: Entry) -> None:
    """Take an entry out of the spool; whoever calls has made it durable elsewhere."""
    folder = entry.path.parent
    if entry.received_at > max(_taken(folder), default=0):
        # Its name was a sign of life of its association; the lock is one now.
        with suppress(OSError):
            os.utime(folder / LOCK, ns=(entry.received_at * 1000,) * 2)
    with suppress(FileNotFoundError):
        entry.path.unlink()
    unmark(entry)


def forget(spool: Path, association: AssociationId) -> bool:
    """Remove the folder of an association that has ended and holds no object any more.

    Returns whether it is gone.
    """
    folder = spool / association
    if ended(spool, association) is None or any(map(OBJECT.fullmatch, _names(folder))):
        return False
    # One step: half a folder would say that a released association was lost.
    going = spool / f"{OLD_PREFIX}{association}"
    folder.rename(going)
    shutil.rmtree(going, ignore_errors=True)  # a receiver that starts cleans up too
    return True


def _folders(spool: Path) -> list[Path]:
    return sorted(folder for folder in spool.iterdir() if ASSOCIATION.fullmatch(folder.name))


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:  # forgotten meanwhile
        return []


def _taken(folder: Path) -> tuple[int, ...]:
    """Return when the last object was received that was taken out, or when the folder was made."""
    try:
        return ((folder / LOCK).stat().st_mtime_ns // 1000,)
    except FileNotFoundError:  # forgotten meanwhile
        return ()


def _studies(folder: Path) -> frozenset[StudyInstanceUID]:
    return frozenset(
        StudyInstanceUID(name.removeprefix(STUDY_PREFIX))
        for name in _names(folder)
        if name.startswith(STUDY_PREFIX)
    )


def _facts(folder: Path) -> AssociationFacts | None:
    """Return who sends, nobody where that is damaged; None where ingest has just forgotten it."""
    association = AssociationId(folder.name)
    for name in _names(folder):
        if name.startswith(FACTS_PREFIX):
            with suppress(ValueError):
                return facts_of(association, name)
    if (said := earlier.facts(folder)) is not None:
        return said
    return nobody(association) if folder.is_dir() else None


def _end(folder: Path) -> End | None:
    for name in _names(folder):
        if found := END.fullmatch(name):
            how: Ending = found[2]  # type: ignore[assignment]  # the pattern has no other
            return End(at=Instant(int(found[1])), how=how)
    return earlier.end(folder)


def _attempt(entry: Entry, number: int) -> Path:
    return entry.path.with_suffix(f".attempt{number}")
