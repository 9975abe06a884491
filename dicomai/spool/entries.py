"""What the spool holds and how: a folder per association, a file per object.

::

    spool/<association>/from-CT1,DICOMAI,...  who sends: calling and called AE, address, node,
                                              and that we had asked for it
                        lock                  held (flock) for as long as its receiver lives
                        NNNNNN-<µs>.dcm       object: its place in the association, its receipt
                        NNNNNN-<µs>.create    N-CREATE of a procedure step; .set: its N-SET
                        NNNNNN-<µs>.commit    request for storage commitment; .report: one on it
                        NNNNNN-<µs>.attempt1  an ingest that began on it
                        study-<UID>           a study that this association sent something of
                        end-<µs>-released     when and how it ended
    spool/.new-<association>/                 one that is being made
    spool/.old-<association>/                 one that is being removed
    spool/<association>/.NNNNNN.part          an object that is being written
    spool/<association>/.NNNNNN-<µs>.part     one that is whole, received not before then
    spool/host                                the name of the host that has this spool

The name of an association begins with the time of its start, so names sort as they came. All that
is known of it stands in names, links to the lock: a name is there whole or not at all, and is
durable with its folder, so an object is the only file that needs a sync of its own.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final, Literal, NewType
from urllib.parse import unquote

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.spool.folder import FOLDER_MODE, open_folder, sync_folder, sync_open_folder
from dicomai.spool.names import name_also
from dicomai.spool.part import PART_SUFFIX, Bytes, Part

AssociationId = NewType("AssociationId", str)
Ending = Literal["released", "aborted", "lost"]
EntryKind = Literal["object", "create", "set", "commit", "report"]

FACTS_PREFIX: Final = "from-"
RETRIEVED: Final = "retrieved"
LOCK: Final = "lock"
STUDY_PREFIX: Final = "study-"
NEW_PREFIX: Final = ".new-"
OLD_PREFIX: Final = ".old-"
ASSOCIATION: Final = re.compile(r"\d{16}-[0-9a-f]{8}", re.ASCII)
END: Final = re.compile(r"end-(\d{16})-(released|aborted|lost)", re.ASCII)
OBJECT: Final = re.compile(r"(\d{6,})-(\d{16})\.(dcm|create|set|commit|report)", re.ASCII)
PART: Final = re.compile(r"\.\d{6,}-(\d{16})\.part", re.ASCII)
_SUFFIXES: Final[Mapping[EntryKind, str]] = {
    "object": "dcm",
    "create": "create",
    "set": "set",
    "commit": "commit",
    "report": "report",
}
_KINDS: Final[Mapping[str, EntryKind]] = {f".{end}": kind for kind, end in _SUFFIXES.items()}
# What can't stand in a name of a file, or parts one fact from the next.
_QUOTED: Final = str.maketrans(
    {chr(code): f"%{code:02X}" for code in (*range(32), *map(ord, "%,/"), 127)}
)
# A folder that is being made is made within moments; what is older was left by a kill.
_MAKING: Final = seconds(3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationFacts:
    """Who sends, and since when.

    Attributes
    ----------
    node
        Name of the node in the configuration; empty where the spool does not say it any more.
    address
        IP address that it called from.
    retrieved
        It brings what we had asked for, by C-GET or C-MOVE.
    """

    id: AssociationId
    calling_ae: str
    called_ae: str
    address: str
    node: str
    started_at: Instant
    retrieved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """When an association ended, and how: lost is one whose peer, line or receiver went away."""

    at: Instant
    how: Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An object as received: a Part 10 file whose data set is byte for byte what the peer sent."""

    association: AssociationFacts
    counter: int
    received_at: Instant
    path: Path

    @property
    def kind(self) -> EntryKind:
        """An object, or a message about a procedure step or about storage commitment."""
        return _KINDS[self.path.suffix]


@dataclass(slots=True)
class Writer:
    """The spool's side of one association, held by its receiver; made with `opened`."""

    facts: AssociationFacts
    folder: Path
    _lock: int
    _descriptor: int
    _durable: bool = False
    _counter: int = 0
    _studies: set[StudyInstanceUID] = field(default_factory=set)
    _counting: Lock = field(default_factory=Lock)

    def begin(self) -> Arriving:
        """Begin with an object.

        Raises
        ------
        DiskFull, OSError
            It can't be begun.
        """
        with self._counting:
            self._counter += 1
            counter = self._counter
        return Arriving(self, counter)

    def add(self, study: StudyInstanceUID, chunks: Iterable[Bytes]) -> Entry:
        """Keep one object durably; may be acknowledged when this returns.

        Parameters
        ----------
        study
            Whose it is; validated, for it becomes a file's name.
        chunks
            The bytes of the file.

        Raises
        ------
        DiskFull, OSError
            Nothing of it is left.
        """
        with self.begin() as arriving:
            for chunk in chunks:
                arriving.write(chunk)
            arriving.keep(study)
            return arriving.entry

    def sync(self) -> None:
        """Make the names in its folder durable, and with the first object the folder's own."""
        sync_open_folder(self._descriptor, self.folder)
        if not self._durable:
            sync_folder(self.folder.parent)
            self._durable = True

    def note(self, study: StudyInstanceUID) -> None:
        """Let it be seen that this association sends something of a study."""
        with self._counting:
            if study not in self._studies:
                name_also(self.folder / LOCK, self.folder / f"{STUDY_PREFIX}{study}")
                self._studies.add(study)

    def end(self, how: Ending, at: Instant) -> None:
        """Write down how it ended, and let go of the lock; the writer is of no use afterwards."""
        try:
            # Not durable: after a power cut it counts as lost, the careful way to be wrong.
            name_also(self.folder / LOCK, self.folder / f"end-{at:016d}-{how}")
        finally:
            os.close(self._lock)
            os.close(self._descriptor)


class Arriving(Part):
    """An object that is being written into the spool.

    Parameters
    ----------
    writer
        Of its association.
    counter
        Its place there.
    """

    def __init__(self, writer: Writer, counter: int) -> None:
        # Names put together as texts: path objects were a fifth of what Python takes for an object.
        super().__init__(f"{writer.folder}/.{counter:06d}{PART_SUFFIX}")
        self._writer, self._counter = writer, counter
        self._received_at = writer.facts.started_at

    def __enter__(self) -> Arriving:
        return self

    def keep(self, study: StudyInstanceUID | None, kind: EntryKind = "object") -> None:
        """Keep it durably; may be acknowledged when this returns.

        Whoever asks how far the spool is ingested must see it from its time of receipt on, and not
        before: the end of what is still being written may be hours away. So it is called by a time
        first, and its receipt is not before that.

        Parameters
        ----------
        study
            Whose it is; validated, for it becomes a file's name. None: it is a message.
        kind
            What it is.

        Raises
        ------
        DiskFull, OSError
            Nothing of it is left.
        """
        writer = self._writer
        if study is not None:
            writer.note(study)
        whole_at = now()
        self.rename(f"{writer.folder}/.{self._counter:06d}-{whole_at:016d}{PART_SUFFIX}")
        self._received_at = max(now(), whole_at)
        name = f"{self._counter:06d}-{self._received_at:016d}.{_SUFFIXES[kind]}"
        self.settle(f"{writer.folder}/{name}", writer.sync)

    @property
    def entry(self) -> Entry:
        """What it is in the spool, once it is kept."""
        return Entry(
            association=self._writer.facts,
            counter=self._counter,
            received_at=self._received_at,
            path=Path(self._path),
        )


def opened(
    spool: Path,
    *,
    calling_ae: str,
    called_ae: str,
    address: str,
    node: str,
    started_at: Instant,
    retrieved: bool = False,
) -> Writer:
    """Make the folder of an association: it shows in the spool whole and locked, or not at all.

    It becomes durable with the first object.
    """
    association = AssociationId(f"{started_at:016d}-{secrets.token_hex(4)}")
    facts = AssociationFacts(
        id=association,
        calling_ae=calling_ae,
        called_ae=called_ae,
        address=address,
        node=node,
        started_at=started_at,
        retrieved=retrieved,
    )
    making = spool / f"{NEW_PREFIX}{association}"
    making.mkdir(FOLDER_MODE)
    try:
        lock = os.open(making / LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError:
        making.rmdir()
        raise
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name_also(making / LOCK, making / _facts_name(facts))
        folder = spool / association
        making.rename(folder)
        descriptor = open_folder(folder)
    except BaseException:
        os.close(lock)
        shutil.rmtree(making, ignore_errors=True)
        raise
    return Writer(facts, folder, lock, descriptor)


def _facts_name(facts: AssociationFacts) -> str:
    parts = [facts.calling_ae, facts.called_ae, facts.address, facts.node]
    parts += [RETRIEVED] if facts.retrieved else []
    return FACTS_PREFIX + ",".join(part.translate(_QUOTED) for part in parts)


def nobody(association: AssociationId) -> AssociationFacts:
    """Return the facts of an association whose folder does not say them any more."""
    return AssociationFacts(
        id=association,
        calling_ae="",
        called_ae="",
        address="",
        node="",
        started_at=Instant(int(association[:16])),
    )


def facts_of(association: AssociationId, name: str) -> AssociationFacts:
    """Return the facts that the name of a file says.

    Raises
    ------
    ValueError
        It was not made by us.
    """
    parts = list(map(unquote, name.removeprefix(FACTS_PREFIX).split(",")))
    calling_ae, called_ae, address, node = parts[:4]
    if parts[4:] not in ([], [RETRIEVED]):
        raise ValueError(f"{parts[4:]} after the node")
    return AssociationFacts(
        id=association,
        calling_ae=calling_ae,
        called_ae=called_ae,
        address=address,
        node=node,
        started_at=Instant(int(association[:16])),
        retrieved=len(parts) > 4,
    )


def receiver_lives(folder: Path) -> bool:
    """Tell whether the receiver of an association holds its lock."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def clean(spool: Path, at: Instant) -> None:
    """Take away what kills left half-made or half-removed: none of it is needed by anyone."""
    for folder in spool.iterdir():
        if folder.name.startswith(OLD_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.name.startswith(NEW_PREFIX):
            # Not by its name: an association may be hours old when its first object comes.
            with suppress(FileNotFoundError):
                if folder.stat().st_mtime_ns // 1000 < at - _MAKING:
                    shutil.rmtree(folder, ignore_errors=True)
        elif ASSOCIATION.fullmatch(folder.name) and not receiver_lives(folder):
            with suppress(FileNotFoundError):  # ingest may forget it meanwhile
                for name in folder.glob(f".*{PART_SUFFIX}"):
                    name.unlink(missing_ok=True)
