"""From the spool into archive and catalogue: safe to be killed between any two steps, and repeated.

Each entry is marked, read, linked into the archive; rows and events of a small batch are committed
together; then the entries go. An entry that was marked before is done by itself, so that one that
kills takes nobody along; an entry that killed twice is set aside, and one whose values the database
can't hold. One that fails for now is left for a later pass, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant
from dicomai.dicom.part10 import Scratch
from dicomai.errors import DiskFull, InputError, TransientError
from dicomai.routing.completeness import Quiet, after_release
from dicomai.service.arrival import Arrived, note_arrived, wait_of
from dicomai.service.messages import take_message
from dicomai.service.received import Reading, ReceivedObject, read_object
from dicomai.service.setting_aside import given_back, set_aside
from dicomai.service.spool_pass import AfterStep, GoOn, Ingest, Ingested, Marked, Pass
from dicomai.spool import reader
from dicomai.spool.entries import AssociationId, End, Entry
from dicomai.spool.folder import free_bytes
from dicomai.spool.names import Names
from dicomai.spool.part import sync_bytes
from dicomai.store import archive, arrivals, associations, studies
from dicomai.store.arrivals import StudyGoing
from dicomai.store.engine import Unstorable, reading, writing
from dicomai.store.instances import Added

log = structlog.get_logger(__name__)

BATCH: Final = 50
"""Objects whose rows are committed together: leases and other writers get through in between."""


def ingest(
    engine: Engine,
    config: Ingest,
    now: Callable[[], Instant],
    after_step: AfterStep = lambda _: None,
    go_on: GoOn = lambda: None,
) -> Ingested:
    """Take what is in the spool into archive and catalogue, once over.

    Parameters
    ----------
    now
        The clock.
    after_step
        To show that it gets on, and for tests that kill.
    go_on
        Raises `Stopped` to end it before the next entry.

    Raises
    ------
    TransientError, OSError
        The database or the archive is away, the disk is full, or work on an entry failed, which the
        sentence names after all else was done: nothing is lost, and a later pass goes on.
    """
    # A database that is away is asked each second, and the spool may hold more and more by then.
    with reading(engine) as connection:
        archive.require_kept(connection, config.data)
    this = Pass(
        engine=engine,
        config=config,
        now=now,
        after_step=after_step,
        go_on=go_on,
        reached=_reached(config, now()),
    )
    done = Ingested()
    waiting: list[Marked] = []
    try:
        for entry in reader.entries(config.spool):
            go_on()
            waiting.append(Marked(entry=entry, attempt=reader.mark(entry)))
            if entry.kind != "object":  # after what came before it
                batch, waiting = waiting[:-1], waiting[-1:]
                done += _take(this, batch)
                done += take_message(this, waiting.pop())
            elif waiting[-1].attempt > 1:  # it may have killed: by itself, at once
                done += _take(this, [waiting.pop()])
            elif len(waiting) == BATCH:
                batch, waiting = waiting, []
                done += _take(this, batch)
        batch, waiting = waiting, []
        done += _take(this, batch)
    except (TransientError, OSError):
        _unmark(each.entry for each in waiting)
        raise
    _end_associations(this)
    _publish(this)
    after_step("published")
    if done != Ingested():
        # A series comes over many passes. What was received the receiver tells once for each
        # association, and whoever sets something aside or puts it off tells of that.
        log.debug(
            "objects ingested",
            catalogued=done.catalogued,
            set_aside=done.set_aside,
            postponed=done.postponed,
        )
    if this.failed:
        raise this.failed[0]
    return done


class _FileGone(TransientError):
    """The file of an object went between its placing and its row."""


def _take(this: Pass, batch: Sequence[Marked]) -> Ingested:
    """Take over marked entries; what only failed for now is unmarked, and left for a later pass."""
    if not batch:
        return Ingested()
    try:
        this.after_step("marked")
        arrived, aside = _placed(this, batch)
        done = _recorded(this, arrived)
    except (TransientError, OSError):
        _unmark(each.entry for each in batch)
        raise
    failed = len(batch) - len(arrived) - aside
    return done + Ingested(set_aside=aside, postponed=failed)


def _placed(this: Pass, batch: Sequence[Marked]) -> tuple[list[Arrived], int]:
    """Read objects and link them into the archive; set aside what can't be read, and count it."""
    arrived: list[Arrived] = []
    aside = 0
    names = Names(this.config.data)
    for marked in batch:
        this.go_on()
        with this.going_on(marked.entry):
            try:
                arrived.append(_place(this, marked, names))
            except InputError as error:
                set_aside(this, marked.entry, error.sentence)
                aside += 1
                this.after_step("set aside")
    names.settle()
    this.after_step("settled")
    return arrived, aside


def _place(this: Pass, marked: Marked, names: Names) -> Arrived:
    entry = marked.entry
    if marked.attempt > reader.MAX_ATTEMPTS:
        raise InputError(
            f"Ingest ended {reader.MAX_ATTEMPTS} times while it worked on this object. "
            "It is kept here; please report it."
        )
    read = _read(this, entry)
    this.after_step("read")
    path = archive.place(
        this.config.data,
        entry.path,
        read.identifiers.study_instance_uid,
        read.identifiers.series_instance_uid,
        read.identifiers.sop_instance_uid,
        read.file_sha256,
        names,
        this.received_at(entry),
    )
    this.after_step("placed")
    return Arrived(
        entry=entry,
        read=read,
        path=path,
        received_at=this.received_at(entry),
        origin="retrieved" if entry.association.retrieved else "received",
        again=marked.attempt > 1,
    )


def _read(this: Pass, entry: Entry) -> ReceivedObject:
    """Read an object and have it on the disk."""
    if not entry.association.node:
        raise InputError(
            f"{entry.path.parent} does not say any more who sent it, so whose it is can't be told. "
            "Look at its disk, and send the object again."
        )
    node = this.config.node(entry.association.node)
    reserve = this.config.reserve_bytes
    free = free_bytes(entry.path.parent)
    reading = Reading(
        issuer_of_patient_id=node.issuer_of_patient_id,
        charset_default=node.charset_default,
        placeholder_ids=this.config.placeholder_ids,
        # Beside it: the system's temporary folder may be small. Half of the reserve is left, for
        # the database.
        scratch=Scratch(folder=entry.path.parent, room_bytes=max(0, free - reserve // 2)),
    )
    with given_back(entry):
        try:
            read = read_object(entry.path, reading)
        except DiskFull as trouble:
            if free < reserve:  # a full disk is waited for; what fills one that is not, is not
                raise
            raise InputError(f"{trouble.sentence} Make room, and send the object again.") from None
        # Its receiver may have named it and not synced it yet: a row must not be there before its
        # bytes, or the sender's next try would be taken for a duplicate of what a power cut took.
        sync_bytes(entry.path)
        return read


def _recorded(this: Pass, arrived: Sequence[Arrived]) -> Ingested:
    """Commit rows and events; set an object aside of which the catalogue can't hold something."""
    try:
        return _committed(this, arrived)
    except Unstorable as wrong:
        why = wrong.sentence
    if len(arrived) > 1:  # which one it is shows when each is by itself
        return sum((_recorded(this, [each]) for each in arrived), Ingested())
    (one,) = arrived
    aside = 0
    with this.going_on(one.entry):
        set_aside(this, one.entry, f"Its values don't fit into the catalogue. {why}")
        aside += 1
    return Ingested(set_aside=aside, postponed=1 - aside)


def _committed(this: Pass, arrived: Sequence[Arrived]) -> Ingested:
    """Commit rows and events, then take the entries out of the spool.

    What our own file of is damaged is set aside.
    """
    now = this.now()
    done: list[Arrived] = []
    damaged: list[tuple[Arrived, PurePosixPath]] = []
    # In the order of their UIDs, so that two hosts never wait for each other's locks.
    with writing(this.engine) as connection:
        # A host that works off a backlog is late, and not silent.
        this.note_ingested(connection, this.reached, now)
        for _, group in groupby(sorted(arrived, key=_group), key=_group):
            objects = tuple(group)
            node = this.config.node(objects[0].entry.association.node)
            try:
                added = note_arrived(connection, this.config.host, node, objects, now)
            except StudyGoing as going:
                log.info("study is being deleted", sentence=going.sentence)
                _unmark(each.entry for each in objects)
                continue
            for each, result in zip(objects, added, strict=True):
                if not _is_whole(this.config, each, result):
                    damaged.append((each, result.path))
                    continue
                done.append(each)
                if result.counts_from is not None:
                    archive.note_received(this.config.data, result.path, result.counts_from)
    this.after_step("committed")
    for each in done:
        reader.remove(each.entry)
        this.after_step("removed")
    aside = 0
    for each, path in damaged:
        reason = (
            f"It came before, and the archive's file of it, {path}, is damaged or can't be read. "
            "These are its bytes: move that file away, then send the study again."
        )
        with this.going_on(each.entry):
            set_aside(this, each.entry, reason)
            aside += 1
    return Ingested(
        catalogued=len(done), set_aside=aside, postponed=len(arrived) - len(done) - aside
    )


def _is_whole(config: Ingest, arrived: Arrived, result: Added) -> bool:
    """Tell whether the archive has what a row names; what is damaged was so before.

    Raises
    ------
    _FileGone
        It was placed a moment ago and is gone: retention deletes the study. No row may stay.
    """
    if result.path != arrived.path:
        return False  # placing gives equal bytes the same place, unless another file is there
    try:
        return (config.data / result.path).stat().st_size == arrived.read.size_bytes
    except FileNotFoundError as gone:
        raise _FileGone(
            f"Study {arrived.read.identifiers.study_instance_uid}, ingest: {result.path} went "
            "while its object was taken into the catalogue, as when its study is deleted. The "
            "object is still in the spool, and is taken in again.",
            subject=str(result.path),
        ) from gone


def _group(arrived: Arrived) -> tuple[str, str]:
    return arrived.read.identifiers.study_instance_uid, arrived.entry.association.id


def _unmark(entries: Iterable[Entry]) -> None:
    for entry in entries:
        reader.unmark(entry)


def _end_associations(this: Pass) -> None:
    """Note the end of each association all of whose objects are in the catalogue."""
    spool = this.config.spool
    ends = {
        facts.id: end
        for facts in reader.associations(spool)
        if (end := reader.ended(spool, facts.id)) is not None
    }
    # Looked for after the ends: nothing comes after an end.
    waiting = {entry.association.id for entry in reader.entries(spool)}
    for association, end in ends.items():
        if association in waiting:
            continue
        with writing(this.engine) as connection:
            _note_end(connection, this.config, association, end)
        this.after_step("ended")
        reader.forget(spool, association)
        this.after_step("forgotten")


def _note_end(connection: Connection, config: Ingest, association: AssociationId, end: End) -> None:
    """Note an end, and what a clean release says of the studies."""
    at = Instant(end.at - config.ahead)
    for uid in associations.studies_of(connection, association):
        studies.lock(connection, uid)
    if not associations.end(connection, association, at, end.how):
        return
    node = config.node(associations.node_of(connection, association))
    for uid in associations.studies_of(connection, association):
        study = studies.get(connection, uid)
        assert study is not None
        quiet, wait = Quiet(until=study.quiet_until, full=study.full_quiet), wait_of(node)
        if end.how == "released" and wait.association_per_study:
            # Both may have come before anyone looked: one was not the last, whatever it said.
            before = associations.was_released(connection, uid, node.name, besides=association)
            alone = (
                not before
                and study.nodes == (node.name,)
                and not associations.open_nodes(connection, uid)
            )
            quiet = after_release(quiet, wait, at, alone=alone, released_before=before)
        # Whatever it says, the study is looked at again: one veto less.
        arrivals.set_quiet(connection, uid, quiet.until, full_quiet=quiet.full)


def _publish(this: Pass) -> None:
    """Publish up to when everything that this host took is in the catalogue."""
    now = this.now()
    reached = _reached(this.config, now)
    with writing(this.engine) as connection:
        this.note_ingested(connection, reached, now)


def _reached(config: Ingest, now: Instant) -> Instant:
    """Return up to when everything is in the catalogue; the clock was read before the spool is."""
    oldest = reader.oldest_received_at(config.spool)
    # One that began after the clock was read says nothing of what came between, and was not seen.
    return now if oldest is None else min(Instant(oldest - config.ahead), now)
