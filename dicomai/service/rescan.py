"""Rows rebuilt from the files of the archive: the catalogue was lost, or an older copy put back.

What is rebuilt counts as decided on, in the transaction of its rows: its results went out long ago.
So the service is stopped meanwhile, for what ingest has placed and not committed yet nobody has
decided on. Each batch is one transaction, and only files that no row names are looked at: a rescan
may be killed between any two steps, and done again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant
from dicomai.dicom.part10 import Scratch
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DicomaiError, DiskFull, InputError, NotFound, counted
from dicomai.net.node import Node
from dicomai.routing.exclusion import made_by_us
from dicomai.service.arrival import (
    NAMED,
    Stored,
    arrival_of,
    note_stored,
    tell_remarks,
)
from dicomai.service.ingest import BATCH
from dicomai.service.nameless import NamelessFile, Unfit, nameless_in, require_place, unreadable
from dicomai.service.received import Reading, read_object
from dicomai.service.spool_pass import AfterStep
from dicomai.service.standstill import in_spool, require_stopped
from dicomai.settings import Folders
from dicomai.spool.folder import free_bytes
from dicomai.spool.names import Names
from dicomai.spool.part import sync_bytes
from dicomai.store import (
    archive,
    arrivals,
    decisions,
    events,
    hosts,
    retrievals,
    series,
    studies,
)
from dicomai.store.arrivals import StudyGoing
from dicomai.store.engine import Unstorable, reading, writing
from dicomai.store.events import JsonValue
from dicomai.store.hosts import Sign
from dicomai.store.instances import Added
from dicomai.store.job import UNKNOWN
from dicomai.store.studies import Study

_UNDECIDED: Final = "no route was looked at. To have them look at it: dicomai study {} --decide"
_COMING: Final = (
    "Study {0} is left out: the spool holds objects of it that are not in the catalogue yet. Start "
    "the service, wait until dicomai status shows the study, stop it, and within a day: dicomai "
    "archive rescan {0} --node {1} --decide"
)
_TAKEN_BACK: Final = (
    "A note of study {0} is left out: it takes back what job {1} had found, and the database, "
    "which is older, does not know that. So these results count again, and peers who ask get them. "
    "Take them back once more: dicomai withdraw {1} --reason TEXT"
)
_GOING: Final = (
    "Study {} is left out: retention is deleting it. That goes on when the service has started; "
    "what it leaves can be taken in after that, within a day."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescan:
    """What a rescan goes by.

    Attributes
    ----------
    node
        Counts as who sent the objects.
    placeholder_ids
        Patient IDs that stand for none.
    reserve_bytes
        Free space that reception leaves; inflating an object takes half of it at most.
    decide
        Routes look at what is rebuilt, as if it had just come.
    """

    folders: Folders
    node: Node
    placeholder_ids: tuple[str, ...] = ()
    reserve_bytes: int = 0
    decide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What became of a study's files that no row named.

    Attributes
    ----------
    objects
        How many are in the catalogue now.
    held
        A person must say whose the study is.
    left_out
        Why the others were not looked at, in sentences; empty where all were.
    """

    study_instance_uid: StudyInstanceUID
    objects: int = 0
    held: bool = False
    left_out: str = ""
    unfit: tuple[Unfit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One rescan; `signs` are those of hosts as it began, and no other may come meanwhile."""

    engine: Engine
    config: Rescan
    now: Callable[[], Instant]
    after_step: AfterStep
    reading: Reading
    signs: Mapping[str, Sign]
    in_spool: frozenset[StudyInstanceUID]


@dataclass(slots=True, kw_only=True)
class _Study:
    """A study as a rescan gets on with it.

    Attributes
    ----------
    analysed
        Results of it are among the files, so that it was decided on, whatever a backup knows.
    """

    uid: StudyInstanceUID
    analysed: bool = False
    objects: int = 0
    held: bool = False
    left_out: str = ""
    unfit: list[Unfit] = field(default_factory=list)

    def leave_out(self, sentence: str) -> None:
        """Note why something was not looked at; once, of how many files it may be true."""
        if sentence not in self.left_out:
            self.left_out = f"{self.left_out} {sentence}".strip()


def folders_of(data: Path, wanted: Collection[StudyInstanceUID]) -> tuple[PurePosixPath, ...]:
    """Return the folders of some studies in the archive, or of all, the oldest first.

    Raises
    ------
    NotFound
        One is not there.
    TransientError
        The archive is not.
    """
    archive.require(data)
    named = [archive.folder_of(uid) for uid in wanted]
    there = [each for each in named or archive.folders(data) if (data / each).is_dir()]
    for folder in named:
        if folder not in there:
            uid = folder.name
            raise NotFound(f"No study {uid} lies in {data / archive.FOLDER}.", subject=uid)
    # Where the disk is full the first to be rebuilt are the first to go.
    return tuple(sorted(there, key=lambda each: ((data / each).stat().st_mtime_ns, each)))


def rescan(
    engine: Engine,
    config: Rescan,
    folders: Sequence[PurePosixPath],
    now: Callable[[], Instant],
    after_step: AfterStep = lambda _: None,
) -> Iterator[Rebuilt]:
    """Take each object that no row names into the catalogue; give what became of each study.

    Parameters
    ----------
    folders
        Of the studies, see `folders_of`.
    now
        The clock.
    after_step
        For tests that kill.

    Raises
    ------
    DicomaiError
        A host lives, or began to; or the clock is wrong.
    TransientError, OSError
        The database is away, or names can't be made durable: to be done again.
    """
    with reading(engine) as connection:
        signs = require_stopped(connection, now())
    data = config.folders.data
    room = max(0, free_bytes(data) - config.reserve_bytes // 2)
    scratch = Scratch(folder=data, room_bytes=room)
    this = _Pass(
        engine=engine,
        config=config,
        now=now,
        after_step=after_step,
        reading=Reading(
            issuer_of_patient_id=config.node.issuer_of_patient_id,
            charset_default=config.node.charset_default,
            placeholder_ids=config.placeholder_ids,
            scratch=scratch,
        ),
        signs=signs,
        in_spool=in_spool(config.folders.spool, scratch),
    )
    for folder in folders:
        yield _rebuilt(this, folder)


def _rebuilt(this: _Pass, folder: PurePosixPath) -> Rebuilt:
    study = _Study(uid=StudyInstanceUID(folder.name))
    found = nameless_in(this.engine, this.config.folders.data, folder)
    files = found.files
    study.unfit += found.unfit
    for job in found.taken_back:
        study.leave_out(_TAKEN_BACK.format(study.uid, job))
    if files and study.uid in this.in_spool:
        study.leave_out(_COMING.format(study.uid, this.config.node.name))
    else:
        _take_in(this, study, files)
    with reading(this.engine) as connection:
        left = archive.nameless(connection, [each.path for each in files])
    for path in left:
        # Its study may be known by now, and no sweep is to come before the person who is told.
        archive.touch(this.config.folders.data, path)
    return Rebuilt(
        study_instance_uid=study.uid,
        objects=study.objects,
        held=study.held,
        left_out=study.left_out,
        unfit=tuple(study.unfit),
    )


def _take_in(this: _Pass, study: _Study, files: Sequence[NamelessFile]) -> None:
    with reading(this.engine) as connection:
        known = studies.get(connection, study.uid)
    if known is not None and known.status == "open":
        study.analysed = any(_is_result(this, each) for each in files)
    try:
        for at in range(0, len(files), BATCH):
            _record(this, study, _readable(this, study, files[at : at + BATCH]))
    except StudyGoing:
        study.leave_out(_GOING.format(study.uid))


def _readable(this: _Pass, study: _Study, files: Sequence[NamelessFile]) -> list[Stored]:
    """Read objects, and have their bytes and their names on the disk; note what can't be read."""
    data = this.config.folders.data
    stored = []
    names = Names(data)
    for file in files:
        try:
            stored.append(_read(this, file))
        except (InputError, DiskFull) as wrong:
            study.unfit.append(Unfit(path=file.path, because=wrong.sentence))
        except OSError as trouble:
            study.unfit.append(Unfit(path=file.path, because=unreadable(trouble)))
        this.after_step("read")
    for each in stored:
        # An ingest that was killed, or who copied the archive, may not have synced it.
        names.make_folders((data / each.path).parent)
        names.note(data / each.path)
    names.settle()
    this.after_step("settled")
    return stored


def _read(this: _Pass, file: NamelessFile) -> Stored:
    path = this.config.folders.data / file.path
    read = read_object(path, this.reading)
    require_place(file.path, read)
    sync_bytes(path)
    ours = made_by_us(read.attributes)
    return Stored(
        read=read,
        path=file.path,
        received_at=Instant(min(max(0, file.written_ns // 1000), this.now())),
        origin="produced" if ours else "received",
        job_id=UNKNOWN if ours else None,
    )


def _is_result(this: _Pass, file: NamelessFile) -> bool:
    with suppress(InputError, DiskFull, OSError):
        return _read(this, file).origin == "produced"
    return False


def _record(this: _Pass, study: _Study, stored: Sequence[Stored]) -> None:
    """Commit rows and events; note an object of which the catalogue can't hold something."""
    if not stored:
        return
    try:
        _commit(this, study, stored)
    except Unstorable as wrong:
        if len(stored) == 1:
            because = f"Its values don't fit into the catalogue. {wrong.sentence}"
            study.unfit.append(Unfit(path=stored[0].path, because=because))
            return
        for each in stored:  # which one it is shows when each is by itself
            _record(this, study, [each])


def _commit(this: _Pass, study: _Study, stored: Sequence[Stored]) -> None:
    now = this.now()
    with writing(this.engine) as connection:
        if hosts.signs(connection) != this.signs:
            raise DicomaiError(
                "The service was started while the archive was read. What is in the catalogue by "
                "now stays. Stop the service on all hosts, and do this again: systemctl stop "
                "dicomai.target"
            )
        before = studies.lock(connection, study.uid)
        added = _note(connection, this.config, stored, now)
        _settle(connection, this.config, study, before, stored, now)
        after = studies.get(connection, study.uid)
    this.after_step("committed")
    study.held = after is not None and after.status == "held"
    for each, result in zip(stored, added, strict=True):
        if result.path == each.path:
            study.objects += 1
        else:
            because = f"The catalogue has the same bytes as {result.path}: this file is too much."
            study.unfit.append(Unfit(path=each.path, because=because))


def _note(
    connection: Connection, config: Rescan, stored: Sequence[Stored], now: Instant
) -> tuple[Added, ...]:
    """Put objects of one study into the catalogue, in the order in which they came."""
    first, last = stored[0], stored[-1]
    arrivals.note_arrival(connection, arrival_of(first, config.node, first.received_at), now)
    # Retention counts from now: what kept it here until today, as a promise, is not known any more.
    study = arrivals.note_arrival(connection, arrival_of(last, config.node, now), now)
    return note_stored(connection, config.node, study, stored, now)


def _settle(
    connection: Connection,
    config: Rescan,
    this: _Study,
    before: Study | None,
    stored: Sequence[Stored],
    now: Instant,
) -> None:
    """Have a study count as decided on, unless routes are to look at it, and tell of it."""
    uid = this.uid
    if config.decide:
        retrievals.welcome(connection, uid)
        what = "routes look at the study as if it had just come."
    elif before is not None and before.status == "open" and not this.analysed:
        what = "the study was not decided on before, so routes look at it."
    else:
        what = _UNDECIDED.format(uid)
        decision = f"Rebuilt from the archive: {what}"
        changed = {each.read.identifiers.series_instance_uid for each in stored}
        if this.analysed:
            changed = {each.series_instance_uid for each in series.of_study(connection, uid)}
        series.mark_decided(connection, uid, changed, now)
        said = before.decision if before is not None else ""
        because = said if decision in said else f"{said} {decision}".strip()
        decisions.count_as_decided(connection, uid, because, now)
    sops = [each.read.identifiers.sop_instance_uid for each in stored]
    text = f"{counted(sops)} rebuilt from the archive, as sent by {config.node.name}: {what}"
    data: dict[str, JsonValue] = {
        "count": len(sops),
        "node": config.node.name,
        "objects": tuple(sops[:NAMED]),
    }
    events.record(connection, uid, "objects rebuilt", text, data, now)
    tell_remarks(connection, uid, stored, now)
