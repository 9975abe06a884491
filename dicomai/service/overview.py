"""What goes on, out of catalogue, spool and quarantine: what `dicomai status` shows."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from sqlalchemy import Connection

from dicomai.dicom.dates import Instant, Microseconds, as_datetime, seconds
from dicomai.errors import counted
from dicomai.service import pull
from dicomai.settings import Settings
from dicomai.spool import host, quarantine, reader
from dicomai.spool.folder import free_bytes
from dicomai.spool.quarantine import Quarantined
from dicomai.store import (
    archive,
    backfills,
    clocks,
    hosts,
    jobs,
    nodes,
    pauses,
    promises,
    studies,
)
from dicomai.store.hosts import Host, Worker
from dicomai.store.job import Job, JobId
from dicomai.store.nodes import NodeState
from dicomai.store.pauses import Pause
from dicomai.store.promises import Promise
from dicomai.store.states import HeldBy, JobKind, JobState
from dicomai.store.studies import Study

ALIVE = seconds(120)
_OVERDUE = seconds(25)
"""A worker tells of itself every ten seconds."""
_MOST_HELD = 100
_SHOWN = 5

# What holds a job with its study, or for a person, has sentences of its own.
_NEXT: Final[Mapping[tuple[JobState, HeldBy | None], str]] = MappingProxyType(
    {
        ("failed", None): "Failed: {jobs}. Why: dicomai job {job}. Mended: dicomai retry {job}. "
        "Nothing to mend: dicomai cancel {job}. All of them: dicomai jobs --state failed",
        ("held", "config"): "Held for the configuration: {jobs}. Why: dicomai job {job}. They go "
        "on when it is mended and the service started again.",
        ("held", "identity"): "Held, for whose they are is not clear: {jobs}. Why, and what "
        "helps: dicomai job {job}",
        ("held", "pause"): "Held by a pause: {jobs}. They go on when it ends.",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The service at one moment.

    Attributes
    ----------
    free_bytes
        Of the data folder's disk.
    archive_free_bytes
        Of the archive's disk; None where it is the same.
    oldest_in_spool
        When the oldest object came that is not in the catalogue yet.
    unscheduled
        No scheduler has ever taken in this spool, in which something has lain for long.
    open_associations
        Names of the nodes that are sending now.
    untold
        Requests for storage commitment whose peers could not be told what became of them.
    unserved
        Models of routes, and of analyses that are to be done, that no live worker serves.
    refused
        Analyses that are held because their results broke a rule of the gate, newest first.
    pulls
        What is wrong with pulls that don't hear of all that their nodes have.
    backfills
        Why backfills don't get on.
    outdated
        A worker of this host runs since before the configuration's file was changed.
    reserve_bytes
        With less room nothing more is received.
    unsettled
        The jobs that failed or are held, newest first, by what holds them.
    archive
        What is wrong with the archive as a whole.
    unknown
        How many studies lie in the archive where the catalogue knows none at all.
    clocks
        Why what is deleted does not go by a clock as it is.
    unwritable
        Why the database takes nothing new, though it answers.
    """

    now: Instant
    file: Path
    data: Path
    outdated: bool
    reserve_bytes: int
    unsettled: Mapping[tuple[JobState, HeldBy | None], tuple[JobId, ...]]
    free_bytes: int
    archive_free_bytes: int | None
    oldest_in_spool: Instant | None
    unscheduled: bool
    open_associations: tuple[str, ...]
    quarantined: tuple[Quarantined, ...]
    untold: tuple[Promise, ...]
    hosts: tuple[Host, ...]
    workers: tuple[Worker, ...]
    unserved: tuple[str, ...]
    jobs: Mapping[tuple[JobKind, JobState], int]
    nodes: tuple[NodeState, ...]
    pauses: tuple[Pause, ...]
    held: tuple[Study, ...]
    recent: tuple[Study, ...]
    refused: tuple[Job, ...]
    pulls: tuple[str, ...]
    backfills: tuple[str, ...]
    archive: tuple[str, ...]
    unknown: int
    clocks: tuple[str, ...]
    unwritable: str = ""

    def overdue(self, worker: Worker) -> Microseconds | None:
        """Return for how long a worker was not heard of that should have been, else None."""
        silent = Microseconds(self.now - worker.beat_at)
        return silent if silent > _OVERDUE else None

    @property
    def remarks(self) -> Sequence[str]:
        """What wants a person, one sentence each."""
        said = [self.unwritable] if self.unwritable else []
        said += [*self._rooms(), *self.archive]
        if self.outdated:
            said.append(
                f"{self.file} was changed after the service started here, which goes by what it "
                "said before. Start the service again."
            )
        said += [_away(each) for each in self.nodes if each.breaker != "closed"]
        if self.unserved:
            said.append(self._unserved())
        said += [
            f"Host {each.name} is silent since {as_datetime(each.beat_at):%Y-%m-%d %H:%M} UTC, and "
            "decisions wait for it. Start it: dicomai serve, or dicomai schedule. If it is gone "
            f"for good: dicomai forget {each.name}"
            for each in self.hosts
            if self.now - each.beat_at > ALIVE
        ]
        if self.unscheduled:
            said.append(
                "What came to this machine lies in its spool, and no scheduler takes it in, which "
                "only one here can do. Start it: dicomai serve, or dicomai schedule"
            )
        said += [_resting(each) for each in self.pauses]
        said += [
            _NEXT[key].format(jobs=_numbers(found), job=found[0])
            for key, found in sorted(self.unsettled.items(), key=str)
            if key in _NEXT
        ]
        said += [
            f"{each.title} is held: its results broke a rule of the gate, and were not sent. Why, "
            f"and what helps: dicomai job {each.id}"
            for each in self.refused
        ]
        if count := len(self.quarantined):
            objects = "1 object lies" if count == 1 else f"{count} objects lie"
            said.append(
                f"{objects} in the quarantine; nothing is deleted there. How to look at it, send "
                "it in again or discard it: docs/how-to/run-for-good.md, The quarantine"
            )
        said += [
            f"{each.node} asked to commit {counted(each.objects)} and can't be told what became of "
            f"it, tried {each.attempts} times: {each.error_sentence}"
            for each in self.untold
        ]
        if self.unknown and not self.unwritable:  # what was just placed has no rows then
            said.append(
                f"{archive.unknown_sentence(self.data, self.unknown)} To take them in: dicomai "
                "archive rescan, see docs/how-to/run-for-good.md, If the database was lost"
            )
        return [*said, *self.clocks, *self.pulls, *self.backfills]

    def _unserved(self) -> str:
        waits = f"No worker is there for {', '.join(self.unserved)}: jobs wait. "
        if any("analyse" in each.kinds for each in self.workers):
            return waits + (
                "Those that run had no such package, or none that may run, when they started: "
                "dicomai models. Mend that, and start the service again; what nobody wants: "
                "dicomai cancel JOB"
            )
        return waits + "Start one: dicomai serve, or dicomai work"

    def _rooms(self) -> Iterator[str]:
        """Tell of disks that are full."""
        full = "The disk of {} is full: {:,} MB are free, and receiver.reserve_bytes is {:,} MB."
        reserve_mb, goes_on = self.reserve_bytes // 10**6, "Make room; it goes on by itself."
        if self.free_bytes < self.reserve_bytes:
            waits = ", and analyses wait" if self.free_bytes < self.reserve_bytes / 2 else ""
            told = full.format(self.data, self.free_bytes // 10**6, reserve_mb)
            yield f"{told} Studies are refused{waits}. {goes_on}"
        there = self.archive_free_bytes
        if there is not None and there < self.reserve_bytes / 2:
            told = full.format(self.data / archive.FOLDER, there // 10**6, reserve_mb)
            yield f"{told} Analyses wait. {goes_on}"


def _away(node: NodeState) -> str:
    tried = (
        "are tried now"
        if node.retry_at is None
        else f"are tried again at {as_datetime(node.retry_at):%Y-%m-%d %H:%M} UTC"
    )
    return (
        f"{node.name} is away, and its deliveries {tried}: {node.last_error} To see whether it "
        f"answers: dicomai echo {node.name}"
    )


def _resting(pause: Pause) -> str:
    waits = "nothing new of it starts" if pause.mode == "draining" else "its jobs wait"
    return (
        f"{pause.subject.capitalize()} {pause.name} is {pause.state}: {waits}. To let it go on: "
        f"{pause.resume}"
    )


def _numbers(found: Sequence[JobId]) -> str:
    shown = ", ".join(map(str, found[:_SHOWN]))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{'job' if len(found) == 1 else 'jobs'} {shown}{more}"


def _of_archive(
    connection: Connection, data: Path, known: Sequence[Host], now: Instant
) -> Iterator[str]:
    if absent := archive.absence(connection, data):
        yield absent
        return
    for each in known:
        at_work = each.told_of is not None and now - each.beat_at <= ALIVE
        if at_work and not archive.has_host(data, each.name):
            yield (
                f"Host {each.name} has another archive than this one, {data / archive.FOLDER}: "
                "analyses fail where their images don't lie. Hosts that share a database share "
                "the archive too: see docs/how-to/run-for-good.md, On several machines"
            )


def of_service(connection: Connection, settings: Settings, now: Instant, recent: int) -> Overview:
    """Return the service as it is now, with this host's spool.

    Parameters
    ----------
    recent
        How many of the latest studies.
    """
    spool = settings.folders.spool
    machine, now = now, clocks.common(connection, lambda: now)
    data, known = settings.folders.data, hosts.listing(connection)
    workers = hosts.workers(connection, now, ALIVE)
    latest = studies.listing(connection, recent)
    changed_at = settings.file.stat().st_mtime_ns // 1000
    oldest = reader.oldest_received_at(spool) if spool.is_dir() else None
    wanted = {route.model for route in settings.routes if route.mode != "off"}
    return Overview(
        now=now,
        file=settings.file,
        data=data,
        outdated=any(
            each.host == socket.gethostname() and each.started_at < changed_at for each in workers
        ),
        reserve_bytes=settings.receiver.reserve_bytes,
        unsettled=jobs.unsettled(connection),
        free_bytes=free_bytes(data),
        archive_free_bytes=free_bytes(disk) if (disk := archive.apart(data)) else None,
        archive=tuple(_of_archive(connection, data, known, now)),
        oldest_in_spool=oldest,
        unscheduled=oldest is not None
        and machine - oldest > ALIVE
        and host.given(spool) not in {each.name for each in known},
        open_associations=tuple(each.facts.node for each in reader.open_associations(spool))
        if spool.is_dir()
        else (),
        quarantined=quarantine.listing(settings.folders.quarantine),
        untold=promises.unreported(connection),
        hosts=known,
        workers=workers,
        unserved=hosts.unserved(wanted | jobs.models_asked_for(connection), workers),
        jobs=jobs.counts(connection),
        nodes=nodes.listing(connection),
        pauses=pauses.listing(connection),
        held=studies.listing(connection, _MOST_HELD, ["held"]),
        recent=latest,
        refused=jobs.held_by(connection, "person", _MOST_HELD),
        backfills=tuple(
            f"{each.title} waits: {each.trouble}"
            for each in backfills.alive(connection)
            if each.trouble and each.state == "running"
        ),
        pulls=tuple(
            sentence
            for name, sentence in pull.failing(connection).items()
            if name in {each.name for each in settings.pulls}
        ),
        # Looked for only then: the archive may hold many.
        unknown=0 if latest else archive.unknown(connection, data),
        clocks=clocks.doubts(connection, machine),
    )
