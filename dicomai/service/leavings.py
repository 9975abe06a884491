"""Files of the archive that no row names: what is left of work that was cut short, or what is lost.

The catalogue may be older than the archive, where a copy of its database was put back: then such a
file is all that is left of an object that was acknowledged, or of a result that was delivered. So
none is deleted but what nobody was ever told of: what never was whole, and what lay there before
the analysis that made it ended without it. Any other is set aside for a person, once: what ingest
set aside after it had given it its place is there already, with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final, get_args

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.results.uids import Kind, series_uid
from dicomai.settings import Folders
from dicomai.spool import quarantine
from dicomai.spool.entries import AssociationFacts, AssociationId
from dicomai.store import archive, events, hosts, jobs, studies
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job
from dicomai.store.states import UNFINISHED

_RESULT: Final = (
    "It is a result of {}, which is {}, and counts for nothing: it was written when the job was "
    "over already, or an older copy of the database was put in its place. Don't send it in again."
)
_UNKNOWN: Final = (
    "It lay in the archive with study {}, and the catalogue did not know it: an older copy of the "
    "database was put in its place, or work on it was cut short. If the study lacks it, send it in "
    "again; where more lies there, dicomai archive rescan takes it in before it is set aside too."
)
_SET_ASIDE: Final = AssociationId("archive")
"""In the place of who sent it: that is not known any more."""

log = structlog.get_logger()


def sweep(engine: Engine, folders: Folders, now: Instant) -> int:
    """Take what no row names and nobody touched for a day out of the archive; return how many.

    Files of studies that the catalogue does not know are left alone.
    """
    with reading(engine) as connection:
        # What a host has in its spool yet may have its place already.
        ingested_to = [host.ingested_to for host in hosts.listing(connection)]
    settled = min(now, *ingested_to) if ingested_to else now
    kept = quarantine.Contents(folders.quarantine, but=_SET_ASIDE)
    swept = 0
    for group in archive.listing(folders.data):
        with reading(engine) as connection:
            nobodys = archive.unnamed(connection, group)
        for path in nobodys:
            try:
                if not archive.is_stale(folders.data, path, now):
                    continue
                if archive.is_leaving(path):
                    archive.unlink(folders.data, path)
                    swept += 1
                elif archive.is_object(path) and archive.is_stale(folders.data, path, settled):
                    swept += _take_out(engine, folders, kept, path, now)
            except OSError as trouble:
                log.warning("file not swept", file=str(path), why=str(trouble))
    return swept


def _take_out(
    engine: Engine,
    folders: Folders,
    kept: quarantine.Contents,
    path: PurePosixPath,
    now: Instant,
) -> bool:
    """Set an object aside; delete it where it is kept, or an attempt at an analysis left it."""
    study = StudyInstanceUID(archive.study_of(path))
    with reading(engine) as connection:
        maker = maker_of(path, jobs.of_study(connection, study))
    if maker is not None and maker.state in UNFINISHED:
        return False  # it may be about to be named
    attempted = maker is not None and _was_there_at_the_end(folders, path, maker)
    name = None if attempted else kept.name_of(folders.data / path)
    left = attempted or name is not None
    if maker is not None:
        reason = _RESULT.format(maker.title, maker.state)
    else:
        reason = _UNKNOWN.format(study)
    if not left:
        facts = AssociationFacts(
            id=_SET_ASIDE, calling_ae="", called_ae="", address="", node="", started_at=now
        )
        name = quarantine.put(folders.quarantine, folders.data / path, reason, now, facts)
    with writing(engine) as connection:
        studies.lock(connection, study)
        # It may have come again: ingest looks under this lock whether its file is there.
        if not archive.unnamed(connection, (path,)) or _is_being_made(connection, path, study):
            return False
        archive.unlink(folders.data, path)
        if not left:
            sentence = f"{path} was set aside as {name}: {reason}"
            events.record(connection, study, "object set aside", sentence, {"file": name}, now)
        elif name is not None:
            sentence = (
                f"{path}, which the catalogue does not know, was removed: its bytes are in the "
                f"quarantine as {name}, with the reason beside them."
            )
            events.record(connection, study, "file removed", sentence, {"file": name}, now)
    if not left:
        log.warning("object set aside", file=name, sentence=reason)
    return True


def _is_being_made(connection: Connection, path: PurePosixPath, study: StudyInstanceUID) -> bool:
    """Tell whether an object may be about to be named: its job may have been retried meanwhile."""
    maker = maker_of(path, jobs.of_study(connection, study))
    return maker is not None and maker.state in UNFINISHED


def maker_of(path: PurePosixPath, known: Iterable[Job]) -> Job | None:
    """Return the one of a study's jobs that an object is a result of; what counts has a row."""
    series = path.parent.name
    for job in known:
        if any(series == series_uid(job.uuid, kind) for kind in get_args(Kind)):
            return job
    return None


def _was_there_at_the_end(folders: Folders, path: PurePosixPath, maker: Job) -> bool:
    """Tell whether a result lay there when its job ended, which did not name it.

    One that is later is of another end, which the catalogue does not know: the job was retried.
    """
    ended = maker.finished_at
    return ended is not None and archive.touched_at(folders.data, path) <= ended
