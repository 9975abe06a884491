"""A pass over the spool: what it needs, what it did, and what it leaves for a later one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant, Microseconds
from dicomai.errors import DiskFull, TransientError
from dicomai.net.node import ANY_NODE, Node
from dicomai.spool import reader
from dicomai.spool.entries import Entry
from dicomai.store import hosts

_NOT_AHEAD: Final = Microseconds(0)
_MOST_FAILED: Final = 100
"""In a pass: where more fail the machine does, a full disk, and the whole spool is not read again
and again for that."""

AfterStep = Callable[[str], None]
"""Called after each step that a kill may follow, with its name."""
GoOn = Callable[[], None]
"""Called before each entry; raises `Stopped` when no more shall be begun."""


class Stopped(TransientError):
    """Ingest was told to stop; what it had not taken in yet is in the spool, without a mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """What ingest needs of the configuration.

    Attributes
    ----------
    data, spool, quarantine
        The data folder and two of those in it; the archive is another.
    host, run
        The host's name, under which it publishes how far its spool has been ingested, and which
        run of its scheduler this is.
    nodes
        By name.
    placeholder_ids
        Patient IDs that stand for none.
    reserve_bytes
        Free space that reception leaves; inflating an object takes half of it at most.
    ahead
        By how much the clock of this host, by which objects were received, is ahead of the one
        that all hosts go by, see `dicomai.store.clocks.apart`.
    """

    data: Path
    spool: Path
    quarantine: Path
    host: str
    nodes: Mapping[str, Node]
    run: str = ""
    placeholder_ids: tuple[str, ...] = ()
    reserve_bytes: int = 0
    ahead: Microseconds = _NOT_AHEAD

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over the spool; all received before `reached` was in the catalogue as it began.

    Attributes
    ----------
    failed
        Why entries were left for a later pass.
    """

    engine: Engine
    config: Ingest
    now: Callable[[], Instant]
    after_step: AfterStep
    go_on: GoOn
    reached: Instant
    failed: list[TransientError] = field(default_factory=list)

    def received_at(self, entry: Entry) -> Instant:
        """Return when an entry was received, by the clock that all hosts go by."""
        return Instant(entry.received_at - self.config.ahead)

    def note_ingested(self, connection: Connection, ingested_to: Instant, now: Instant) -> None:
        """Publish up to when everything is in the catalogue; raises as `hosts.note_ingested`."""
        hosts.note_ingested(connection, self.config.host, ingested_to, now, self.config.run)

    @contextmanager
    def going_on(self, entry: Entry) -> Iterator[None]:
        """Leave an entry for a later pass if work on it fails: it must not hold up the others."""
        try:
            yield
        except (TransientError, OSError) as trouble:
            reader.unmark(entry)
            of_one = isinstance(trouble, OSError | DiskFull)
            if not of_one or len(self.failed) == _MOST_FAILED:
                raise
            reason = trouble.sentence if isinstance(trouble, DiskFull) else f"{trouble}."
            self.failed.append(
                TransientError(
                    f"{entry.path}, ingest: {reason} It stays there and is tried again, and the "
                    "others go on; no study is decided until it is in the catalogue.",
                    subject=str(entry.path),
                )
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """An entry that is worked on; it may have killed where this is not its first attempt."""

    entry: Entry
    attempt: int
