"""What goes, and when: whole studies without unfinished jobs, finished jobs.

A study goes in three steps, each of which may be the last before a crash: its rows are marked and
that is committed; its files are unlinked; its rows are deleted. Whoever comes next goes on, and
several hosts may be at it: each step looks under the study's lock whether it is still to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Final

import structlog
from sqlalchemy import (
    Connection,
    Engine,
    case,
    delete,
    exists,
    func,
    literal_column,
    select,
    update,
)

from dicomai.dicom.dates import Instant, Microseconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.spool.folder import free_bytes
from dicomai.store import archive, clocks, events, promises, schema, series, studies, waiting_routes
from dicomai.store.engine import reading, writing
from dicomai.store.moves import unfinished
from dicomai.store.states import UNFINISHED, Origin, StudyStatus

_RECEIVED: Final[tuple[Origin, ...]] = ("received", "retrieved")
_PRODUCED: Final[tuple[Origin, ...]] = ("produced",)
_GO: Final[tuple[StudyStatus, ...]] = ("decided", "held")
_MAKE_ROOM: Final[tuple[StudyStatus, ...]] = ("decided",)
_STUDIES: Final = 100
"""Marked before any of them is deleted."""
_FILES: Final = 100
"""Unlinked in one transaction, which keeps ingest from their study, and on SQLite all writers."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How long things are kept after they came."""

    received: Microseconds
    produced: Microseconds
    jobs: Microseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A study, and the origins of those of its objects that go."""

    study_instance_uid: StudyInstanceUID
    origins: tuple[Origin, ...]


def begin(
    connection: Connection,
    candidate: Candidate,
    before: Instant,
    now: Instant,
    statuses: Collection[StudyStatus] = _GO,
) -> bool:
    """Mark what of a study goes; False: it may not go any more. Step one: commit this.

    Parameters
    ----------
    before
        What came later keeps the study here: the same bytes again too, for their sender was told
        that we have them.
    """
    study = studies.lock(connection, candidate.study_instance_uid)
    if (
        study is None
        or study.status not in statuses
        or study.last_object_at > before
        or unfinished(connection, candidate.study_instance_uid)
        or (
            study.status == "decided"
            and waiting_routes.of_study(connection, candidate.study_instance_uid)
        )
        or (promises.kept_until(connection, candidate.study_instance_uid) or 0) > now
    ):
        return False
    table = schema.studies
    connection.execute(
        update(table)
        .where(table.c.study_instance_uid == candidate.study_instance_uid)
        .values(status="deleting", deleting=list(candidate.origins))
    )
    data = {"origins": list(candidate.origins)}
    sentence = "Retention deletes this study's objects, as the configuration says."
    events.record(connection, candidate.study_instance_uid, "study deleting", sentence, data, now)
    return True


def going(connection: Connection) -> tuple[Candidate, ...]:
    """Return the studies that are marked, also those whose deletion was cut short."""
    table = schema.studies
    found = connection.execute(
        select(table.c.study_instance_uid, table.c.deleting)
        # Written out, so that the partial index serves it.
        .where(table.c.status == literal_column("'deleting'"))
        .order_by(table.c.study_instance_uid)
    )
    return tuple(
        Candidate(study_instance_uid=uid, origins=tuple(origins)) for uid, origins in found
    )


def files(
    connection: Connection, candidate: Candidate, after: str, limit: int
) -> tuple[PurePosixPath, ...]:
    """Return files of what goes, in order, from one on. Step two: unlink them."""
    copies, instances = schema.copies, schema.instances
    found = connection.execute(
        select(copies.c.path)
        .join(instances, instances.c.id == copies.c.instance_id)
        .where(
            instances.c.study_instance_uid == candidate.study_instance_uid,
            instances.c.origin.in_(candidate.origins),
            copies.c.path > after,
        )
        .order_by(copies.c.path)
        .limit(limit)
    )
    return tuple(PurePosixPath(path) for path in found.scalars())


def complete(connection: Connection, candidate: Candidate, now: Instant) -> bool:
    """Delete the rows of what has gone; a study of which nothing is left goes with its story.

    Step three. False: another host did that, and what is here now came since.
    """
    uid = candidate.study_instance_uid
    if not _is_marked(connection, candidate):
        return False
    instances, listed, table = schema.instances, schema.series, schema.studies
    connection.execute(
        delete(instances).where(
            instances.c.study_instance_uid == uid, instances.c.origin.in_(candidate.origins)
        )
    )
    in_series = (instances.c.study_instance_uid == listed.c.study_instance_uid) & (
        instances.c.series_instance_uid == listed.c.series_instance_uid
    )
    connection.execute(
        delete(listed).where(listed.c.study_instance_uid == uid, ~exists().where(in_series))
    )
    left = connection.execute(
        select(func.count())
        .select_from(instances)
        .where(instances.c.study_instance_uid == uid, instances.c.newest)
    ).scalar_one()
    if left:
        held = table.c.hold_reason.is_not(None)
        connection.execute(
            update(table)
            .where(table.c.study_instance_uid == uid)
            .values(status=case((held, "held"), else_="decided"), deleting=None, instances=left)
        )
        _amend_hold(connection, uid)
        data = {"origins": list(candidate.origins)}
        sentence = "Its objects of this origin are deleted; the others are still here."
        events.record(connection, uid, "study thinned", sentence, data, now)
        return True
    brought = schema.association_studies
    connection.execute(delete(brought).where(brought.c.study_instance_uid == uid))
    connection.execute(delete(schema.events).where(schema.events.c.study_instance_uid == uid))
    apart = schema.studies_apart
    connection.execute(delete(apart).where(apart.c.study_instance_uid == uid))
    connection.execute(delete(table).where(table.c.study_instance_uid == uid))
    return True


def _amend_hold(connection: Connection, study: StudyInstanceUID) -> None:
    """Have what holds a study say that its images, of which it speaks, are deleted."""
    table = schema.studies
    known = studies.get(connection, study)
    if known is None or known.hold_reason is None or series.identities(connection, study):
        return
    left = ", ".join(series.keys(connection, study))
    reason = f"{known.hold_reason} Its images are deleted by now, and results of {left} are left."
    connection.execute(
        update(table).where(table.c.study_instance_uid == study).values(hold_reason=reason)
    )


def prune_jobs(connection: Connection, before: Instant) -> int:
    """Delete jobs that were over before a moment; their fingerprints stay.

    Their events stay as long as their study. Of one that is not here, as one that was to be fetched
    and never came, they go with its last job.

    An analysis stays as long as a delivery of its results, or a job that replaces it; and so long
    as results are here what says whether they may leave and who has them: their job, the one that
    replaced it, and their deliveries.
    """
    jobs, instances = schema.jobs, schema.instances
    other = jobs.alias("other")
    # One by one: no index serves both.
    needed = (
        exists().where(hangs_on == jobs.c.id, other.c.state.in_(UNFINISHED))
        for hangs_on in (other.c.result_of, other.c.supersedes)
    )
    results = (
        exists().where(instances.c.job_id == made_by)
        for made_by in (jobs.c.id, jobs.c.supersedes, jobs.c.result_of)
    )
    over = jobs.c.finished_at < before, jobs.c.state.not_in(UNFINISHED)
    gone = delete(jobs).where(*over, *(~each for each in (*needed, *results)))
    of = connection.execute(gone.returning(jobs.c.study_instance_uid)).scalars().all()
    table, told = schema.studies, schema.events
    for uid in sorted(set(of)):
        here = (exists().where(each.c.study_instance_uid == uid) for each in (table, jobs))
        story = told.c.study_instance_uid == uid
        connection.execute(delete(told).where(story, *(~each for each in here)))
    return len(of)


def prune_rest(connection: Connection, before: Instant) -> int:
    """Delete what no study keeps: ended associations, events of the service as a whole, backfills.

    A study that was to be fetched for one purpose and never came is forgotten too, and a worker
    that was killed and could not say that it ends.
    """
    links, brought, told = schema.associations, schema.association_studies, schema.events
    still = exists().where(brought.c.association_id == links.c.id)
    ended = connection.execute(delete(links).where(links.c.ended_at < before, ~still))
    past = connection.execute(
        delete(told).where(told.c.study_instance_uid.is_(None), told.c.at < before)
    )
    apart, table, history = schema.studies_apart, schema.studies, schema.backfills
    here = exists().where(table.c.study_instance_uid == apart.c.study_instance_uid)
    connection.execute(delete(apart).where(apart.c.at < before, ~here))
    over = connection.execute(delete(history).where(history.c.finished_at < before))
    silent = connection.execute(delete(schema.workers).where(schema.workers.c.beat_at < before))
    return ended.rowcount + past.rowcount + over.rowcount + silent.rowcount


def delete_marked(engine: Engine, data: Path, now: Instant) -> int:
    """Delete every marked study, files first; returns how many. May be cut short and repeated.

    One whose file can't be removed stays marked, for the next time; the others go.
    """
    with reading(engine) as connection:
        marked = going(connection)
    return _delete(engine, data, marked, now)


def delete_expired(
    engine: Engine, data: Path, keep: Keep, now: Instant, go_on: Callable[[], bool] = lambda: True
) -> int:
    """Delete the studies whose time is over; returns how many.

    Parameters
    ----------
    go_on
        Asked before each study: there may be many. What is left then goes the next time.

    Raises
    ------
    TransientError
        The database or the archive is away.
    """
    with reading(engine) as connection:
        archive.require_kept(connection, data)
        left = going(connection)
    deleted = _delete(engine, data, takewhile(lambda _: go_on(), left), now)
    for origins, age in ((_RECEIVED, keep.received), (_PRODUCED, keep.produced)):
        before = Instant(now - age)
        while go_on() and (begun := _begin_expired(engine, origins, before, now)):
            deleted += _delete(engine, data, takewhile(lambda _: go_on(), begun), now)
    return deleted


def make_room(engine: Engine, data: Path, reserve_bytes: int, now: Instant) -> int:
    """Delete the oldest decided studies until the reserve is free; returns how many.

    On the archive's disk: where the data folder has another one, no study that goes makes room
    there.

    Raises
    ------
    TransientError
        The database or the archive is away.
    """
    deleted = 0
    disk = archive.disk(data)
    while free_bytes(disk) < reserve_bytes:
        with reading(engine) as connection:
            archive.require_kept(connection, data)
            # Many at once: the way to the first leads past all whose images went before.
            oldest = _older(connection, _RECEIVED, now, now, _STUDIES, statuses=_MAKE_ROOM)
        gone = 0
        for candidate, came_at in takewhile(lambda _: free_bytes(disk) < reserve_bytes, oldest):
            with writing(engine) as connection:
                # One that comes again meanwhile is the oldest no more.
                if not begin(connection, candidate, came_at, now, _MAKE_ROOM):
                    continue
            if not _delete(engine, data, (candidate,), now):
                return deleted + gone  # where nothing can be removed, no more is marked
            gone += 1
        if not gone:
            break
        deleted += gone
    return deleted


def _begin_expired(
    engine: Engine, origins: tuple[Origin, ...], before: Instant, now: Instant
) -> tuple[Candidate, ...]:
    """Mark the oldest studies of which nothing came after a moment; one commit for each."""
    with reading(engine) as connection:
        over = _older(connection, origins, before, now, _STUDIES)
    begun = []
    for candidate, _ in over:
        with writing(engine) as connection:
            if begin(connection, candidate, before, now):
                begun.append(candidate)
    return tuple(begun)


def _delete(engine: Engine, data: Path, marked: Iterable[Candidate], now: Instant) -> int:
    deleted = 0
    for candidate in marked:
        try:
            _unlink(engine, data, candidate)
        except OSError as trouble:
            _tell_stuck(engine, data, candidate, trouble, now)
            continue
        with writing(engine) as connection:
            deleted += complete(connection, candidate, now)
    return deleted


def _unlink(engine: Engine, data: Path, candidate: Candidate) -> None:
    """Unlink the files of what goes, durably, while it is marked.

    In the transaction that found it so: once another host is through with a study it may come
    again, under the same names, and ingest looks under the same lock that they are there.
    """
    folders: set[Path] = set()
    last = ""
    while True:
        with writing(engine) as connection:
            if not _is_marked(connection, candidate):
                return
            paths = files(connection, candidate, last, _FILES)
            for path in paths:
                archive.unlink(data, path)
        if not paths:
            break
        folders.update((data / path).parent for path in paths)
        last = str(paths[-1])
    # A power cut after its rows went must not bring a file back.
    archive.sync_remains(folders)


def _is_marked(connection: Connection, candidate: Candidate) -> bool:
    """Take a study's lock; tell whether these objects of it are still to go."""
    table = schema.studies
    marked = connection.execute(
        select(table.c.deleting)
        .where(table.c.study_instance_uid == candidate.study_instance_uid)
        .with_for_update()
    ).scalar_one_or_none()
    return marked == list(candidate.origins)


def _tell_stuck(
    engine: Engine, data: Path, candidate: Candidate, trouble: OSError, now: Instant
) -> None:
    """Tell why a study is not deleted, in its story once."""
    uid = candidate.study_instance_uid
    file = trouble.filename or data / archive.FOLDER
    reason = trouble.strerror or str(trouble)
    log.warning("study not deleted", study=uid, file=str(file), why=reason)
    sentence = (
        f"Study {uid}, retention: {file} can't be removed ({reason}). Look at its rights and its "
        "disk; it is tried again each hour."
    )
    with writing(engine) as connection:
        known = studies.lock(connection, uid) is not None
        if known and all(each.sentence != sentence for each in events.story(connection, uid)):
            events.record(connection, uid, "study not deleted", sentence, {"file": str(file)}, now)


def _older(
    connection: Connection,
    origins: tuple[Origin, ...],
    before: Instant,
    now: Instant,
    limit: int,
    statuses: tuple[StudyStatus, ...] = _GO,
) -> tuple[tuple[Candidate, Instant], ...]:
    """Return studies of which nothing came after a moment, and when the last did, oldest first.

    None has an unfinished job or a route that waits, or was promised to a node for longer. Of one
    that came in 1970, by the clock of its host, nobody knows when it did.
    """
    table, instances = schema.studies, schema.instances
    jobs, inputs = schema.jobs, schema.job_inputs
    of_study = (
        instances.c.study_instance_uid == table.c.study_instance_uid
    ) & instances.c.origin.in_(origins)
    works = exists().where(
        jobs.c.study_instance_uid == table.c.study_instance_uid, jobs.c.state.in_(UNFINISHED)
    )
    takes = exists().where(
        inputs.c.study_instance_uid == table.c.study_instance_uid,
        jobs.c.id == inputs.c.job_id,
        jobs.c.state.in_(UNFINISHED),
    )
    found = connection.execute(
        select(table.c.study_instance_uid, table.c.last_object_at)
        .where(
            table.c.status.in_(statuses),
            table.c.last_object_at.between(clocks.FIRST, before),
            exists().where(of_study),
            ~exists().where(of_study, instances.c.received_at > before),
            ~works,
            ~takes,
            # Of a study that is held no route looks at anything: it is decided on anew, or goes.
            (table.c.status != "decided") | ~waiting_routes.waits(table.c.study_instance_uid),
            ~promises.keeps(table.c.study_instance_uid, now),
        )
        .order_by(table.c.last_object_at)
        .limit(limit)
    )
    return tuple(
        (Candidate(study_instance_uid=uid, origins=origins), Instant(came_at))
        for uid, came_at in found
    )
