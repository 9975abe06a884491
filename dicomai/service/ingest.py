"""From the spool into archive and catalogue: safe to be killed between any two steps, and repeated.

Each entry is marked, read, linked into the archive; rows and events of a small batch are committed
together; then the entries go. An entry that was marked before is done by itself, so that one that
kills takes nobody along; an entry that killed twice is set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant
from dicomai.errors import InputError, TransientError
from dicomai.net.node import ANY_NODE, Node
from dicomai.routing.completeness import Quiet, after_release
from dicomai.service.arrival import Arrived, note_arrived, wait_of
from dicomai.service.received import Reading, read_object
from dicomai.spool import reader
from dicomai.spool.entries import AssociationId, End, Entry
from dicomai.store import archive, associations, events, hosts, studies
from dicomai.store.engine import writing
from dicomai.store.studies import StudyGoing

log = structlog.get_logger(__name__)

BATCH: Final = 50
"""Objects whose rows are committed together: leases and other writers get through in between."""

AfterStep = Callable[[str], None]
"""Called after each step that a kill may follow, with its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """What ingest needs of the configuration.

    Attributes
    ----------
    data, spool, quarantine
        The data folder and two of those in it; the archive is another.
    host
        This machine's name: it publishes how far its spool has been ingested.
    nodes
        By name.
    placeholder_ids
        Patient IDs that stand for none.
    """

    data: Path
    spool: Path
    quarantine: Path
    host: str
    nodes: Mapping[str, Node]
    placeholder_ids: tuple[str, ...] = ()

    def node(self, name: str) -> Node:
        """Return the node that sent something; one that was removed meanwhile has the defaults."""
        return self.nodes.get(name) or Node(name=name, ae_title=ANY_NODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What one pass over the spool did."""

    catalogued: int = 0
    set_aside: int = 0
    postponed: int = 0

    def __add__(self, other: Ingested) -> Ingested:
        return Ingested(
            catalogued=self.catalogued + other.catalogued,
            set_aside=self.set_aside + other.set_aside,
            postponed=self.postponed + other.postponed,
        )


def ingest(
    engine: Engine,
    config: Ingest,
    now: Callable[[], Instant],
    after_step: AfterStep = lambda _: None,
) -> Ingested:
    """Take what is in the spool into archive and catalogue, once over.

    Parameters
    ----------
    now
        The clock.
    after_step
        For tests that kill.

    Raises
    ------
    TransientError, OSError
        The database is away, or the disk is full: nothing is lost, and a later pass goes on.
    """
    done = Ingested()
    waiting: list[_Marked] = []
    try:
        for entry in reader.entries(config.spool):
            waiting.append(_Marked(entry=entry, attempt=reader.mark(entry)))
            if waiting[-1].attempt > 1:  # it may have killed: by itself, at once
                done += _take(engine, config, [waiting.pop()], now, after_step)
            elif len(waiting) == BATCH:
                batch, waiting = waiting, []
                done += _take(engine, config, batch, now, after_step)
        batch, waiting = waiting, []
        done += _take(engine, config, batch, now, after_step)
    except (TransientError, OSError):
        _unmark(each.entry for each in waiting)
        raise
    _end_associations(engine, config, after_step)
    _publish(engine, config, now)
    after_step("published")
    if done != Ingested():
        log.info(
            "objects ingested",
            catalogued=done.catalogued,
            set_aside=done.set_aside,
            postponed=done.postponed,
        )
    return done


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marked:
    entry: Entry
    attempt: int


def _take(
    engine: Engine,
    config: Ingest,
    batch: Sequence[_Marked],
    now: Callable[[], Instant],
    after_step: AfterStep,
) -> Ingested:
    """Take over marked entries; what only failed for now is unmarked, and left for a later pass."""
    if not batch:
        return Ingested()
    try:
        after_step("marked")
        arrived = _placed(engine, config, batch, now, after_step)
        catalogued, damaged, postponed = _committed(engine, config, arrived, now(), after_step)
    except (TransientError, OSError):
        _unmark(each.entry for each in batch)
        raise
    return Ingested(
        catalogued=catalogued,
        set_aside=len(batch) - len(arrived) + damaged,
        postponed=postponed,
    )


def _placed(
    engine: Engine,
    config: Ingest,
    batch: Sequence[_Marked],
    now: Callable[[], Instant],
    after_step: AfterStep,
) -> list[Arrived]:
    """Read objects and link them into the archive; set aside what can't be read."""
    arrived: list[Arrived] = []
    for marked in batch:
        try:
            if marked.attempt > reader.MAX_ATTEMPTS:
                raise InputError(
                    f"Ingest ended {reader.MAX_ATTEMPTS} times while it worked on this object. "
                    "It is kept here; please report it."
                )
            arrived.append(_place(config, marked, after_step))
        except InputError as error:
            _set_aside(engine, config, marked.entry, error.sentence, now())
            after_step("set aside")
    return arrived


def _place(config: Ingest, marked: _Marked, after_step: AfterStep) -> Arrived:
    entry = marked.entry
    node = config.node(entry.association.node)
    read = read_object(
        entry.path,
        Reading(
            issuer_of_patient_id=node.issuer_of_patient_id,
            charset_default=node.charset_default,
            placeholder_ids=config.placeholder_ids,
        ),
    )
    after_step("read")
    path = archive.place(
        config.data,
        entry.path,
        read.identifiers.study_instance_uid,
        read.identifiers.series_instance_uid,
        read.identifiers.sop_instance_uid,
        read.file_sha256,
    )
    after_step("placed")
    return Arrived(entry=entry, read=read, path=path, again=marked.attempt > 1)


def _committed(
    engine: Engine,
    config: Ingest,
    arrived: Sequence[Arrived],
    now: Instant,
    after_step: AfterStep,
) -> tuple[int, int, int]:
    """Commit rows and events, then take the entries out of the spool.

    Returns how many were catalogued, set aside since our own file of them is damaged, postponed.
    """
    done: list[Arrived] = []
    damaged: list[Arrived] = []
    # In the order of their UIDs, so that two hosts never wait for each other's locks.
    with writing(engine) as connection:
        for _, group in groupby(sorted(arrived, key=_group), key=_group):
            objects = tuple(group)
            node = config.node(objects[0].entry.association.node)
            try:
                added = note_arrived(connection, config.host, node, objects, now)
            except StudyGoing as going:
                log.info("study is being deleted", sentence=going.sentence)
                _unmark(each.entry for each in objects)
                continue
            for each, result in zip(objects, added, strict=True):
                # A duplicate is dropped only if what we have is there.
                size = _size(config.data / result.path)
                (done if size == each.read.size_bytes else damaged).append(each)
    after_step("committed")
    for each in done:
        reader.remove(each.entry)
        after_step("removed")
    for each in damaged:
        reason = "The archive's file of this object is damaged or gone; these are its bytes."
        _set_aside(engine, config, each.entry, reason, now)
    return len(done), len(damaged), len(arrived) - len(done) - len(damaged)


def _group(arrived: Arrived) -> tuple[str, str]:
    return arrived.read.identifiers.study_instance_uid, arrived.entry.association.id


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _unmark(entries: Iterable[Entry]) -> None:
    for entry in entries:
        reader.unmark(entry)


def _set_aside(engine: Engine, config: Ingest, entry: Entry, reason: str, now: Instant) -> None:
    name = reader.set_aside(entry, config.quarantine, reason, now)
    log.warning("object set aside", file=name, sentence=reason)
    with writing(engine) as connection:
        sentence = f"An object from {entry.association.node} was set aside as {name}: {reason}"
        events.record(connection, None, "object set aside", sentence, {"file": name}, now)


def _end_associations(engine: Engine, config: Ingest, after_step: AfterStep) -> None:
    """Note the end of each association all of whose objects are in the catalogue."""
    ends = {
        facts.id: end
        for facts in reader.associations(config.spool)
        if (end := reader.ended(config.spool, facts.id)) is not None
    }
    # Looked for after the ends: nothing comes after an end.
    waiting = {entry.association.id for entry in reader.entries(config.spool)}
    for association, end in ends.items():
        if association in waiting:
            continue
        with writing(engine) as connection:
            _note_end(connection, config, association, end)
        after_step("ended")
        reader.forget(config.spool, association)
        after_step("forgotten")


def _note_end(connection: Connection, config: Ingest, association: AssociationId, end: End) -> None:
    """Note an end, and what a clean release says of the studies."""
    for uid in associations.studies_of(connection, association):
        studies.lock(connection, uid)
    if not associations.end(connection, association, end.at, end.how):
        return
    for uid in associations.studies_of(connection, association):
        study = studies.get(connection, uid)
        assert study is not None
        brought = associations.of_study(connection, uid)
        node = config.node(next(each.node for each in brought if each.id == association))
        quiet = Quiet(until=study.quiet_until, full=study.full_quiet)
        if end.how == "released":
            alone = study.nodes == (node.name,) and all(each.ended_at for each in brought)
            quiet = after_release(quiet, wait_of(node), end.at, alone=alone)
        # Whatever it says, the study is looked at again: one veto less.
        studies.set_quiet(connection, uid, quiet.until, full_quiet=quiet.full)


def _publish(engine: Engine, config: Ingest, now: Callable[[], Instant]) -> None:
    """Publish up to when everything that this host took is in the catalogue."""
    before = now()
    oldest = reader.oldest_received_at(config.spool)
    with writing(engine) as connection:
        hosts.note_ingested(connection, config.host, oldest or before, before)
