"""Retrievals: a study or some of its series fetched from a node, and counted.

The node says what it has (C-FIND); what the catalogue lacks is asked for, by series once a part is
here; and when all that came is ingested, what is here is held against what the node had said.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from dicomai.dicom.dates import seconds
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID
from dicomai.errors import InputError, RefusedError, TransientError
from dicomai.net import find as finding
from dicomai.net.find import Cut, Level, Match
from dicomai.net.get import Unasked, get
from dicomai.net.move import move
from dicomai.net.node import Node
from dicomai.net.reception import Reception
from dicomai.net.suboperations import Tally, Wanted
from dicomai.routing.completeness import Host, silent
from dicomai.service.attempt import Attempt, Lost, Worker, attempt, node_of
from dicomai.service.overview import ALIVE
from dicomai.settings import Settings
from dicomai.spool.host import name_of
from dicomai.store import claims, clocks, hosts, retrievals, studies
from dicomai.store.engine import reading, writing
from dicomai.store.job import HISTORY, Job
from dicomai.store.states import JobKind

KINDS: Final[tuple[JobKind, ...]] = ("retrieve",)
LANES: Final = 3
"""Retrievers of a host, of which one takes history: a silent node keeps one more at most."""
TRIES: Final = 3
"""Attempts after which a study that did not come whole is a person's."""
ARRIVE_S: Final = 300.0
"""How long ingest may take over what came."""
SCHEDULED_S: Final = 10.0
"""How long the scheduler of a host may take to begin, whose worker has begun."""
_LOOK_S: Final = 0.2

Counted: TypeAlias = Mapping[SeriesInstanceUID, Mapping[SOPInstanceUID, str]]
"""What a node has: the SOP class of each object, by series; the class is empty if it says none."""


class Fetching:
    """The nodes from which the retrievers of a host fetch what is of today, each one thing.

    A node that says nothing for half an hour keeps one of them so long, and not the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: set[str] = set()

    def claimed(self, claim: Callable[[frozenset[str]], Job | None]) -> Job | None:
        """Return what `claim` gets, which is told the nodes; its own is one of them from now on."""
        with self._lock:
            job = claim(frozenset(self._nodes))
            if job is not None and not _is_history(job):
                self._nodes.add(job.node)
        return job

    def over(self, job: Job) -> None:
        """Note that a job is fetched no more."""
        with self._lock:
            if not _is_history(job):
                self._nodes.discard(job.node)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Retriever:
    """Fetches from nodes, one job at a time.

    Attributes
    ----------
    settings
        Data folder, nodes, our AE title.
    worker
        Who claims.
    fetching
        What it shares with others of its host.
    history
        Whether it takes what waits behind the work of the day; that may keep it for long.
    """

    settings: Settings
    worker: Worker
    fetching: Fetching = field(default_factory=Fetching)
    history: bool = True

    def work_once(self) -> bool:
        """Claim the next retrieval and bring the attempt to its end; False when none is due.

        Raises
        ------
        DatabaseError
            The database is away, and nothing was claimed.
        """
        job = self.fetching.claimed(self._claimed)
        if job is None:
            return False
        try:
            attempt(self.worker, job, self._do)
        finally:
            self.fetching.over(job)
        return True

    def _claimed(self, besides: frozenset[str]) -> Job | None:
        worker = self.worker
        with writing(worker.engine) as connection:
            return claims.claim(
                connection,
                worker.name,
                KINDS,
                (),
                worker.clock(),
                besides=besides,
                history=self.history,
            )

    def _do(self, this: Attempt) -> None:
        job = this.job
        node = node_of(job, self.settings.nodes)
        with this.stage("count"):
            counted, uncounted = self._counted(this, node)
            missing = self._missing(job, counted)
        tally, unasked = Tally(), Unasked()
        if counted is None or missing:
            if node.retrieve == "get":
                self._await_scheduler(this, node)
            with this.stage("fetch"):
                for wanted in _requests(job, counted, missing):
                    tally += self._fetch(this, node, wanted, counted, unasked)
            with this.stage("arrive"):
                self._await_ingest(this, counted)
        still = self._missing(job, counted)
        self._settle(this, node, tally, unasked, counted, still, uncounted)

    def _counted(self, this: Attempt, node: Node) -> tuple[Counted | None, str]:
        """Return what the node has of it, or None and why it does not say."""
        job = this.job
        study = {"StudyInstanceUID": job.study_instance_uid}
        wanted = retrievals.series_of(job)
        try:
            found = {
                SeriesInstanceUID(match.text("SeriesInstanceUID"))
                for match in self._find(this, node, "series", study)
            }
            chosen = sorted(found & wanted if wanted else found)
            counted = {
                series: {
                    SOPInstanceUID(match.text("SOPInstanceUID")): match.text("SOPClassUID")
                    for match in self._find(
                        this, node, "image", {**study, "SeriesInstanceUID": series}
                    )
                    if match.text("SOPInstanceUID")
                }
                for series in chosen
            }
        except RefusedError as refused:
            return None, refused.sentence
        if not chosen or wanted - found:
            what = f"no series {min(wanted - found)}" if wanted and found else "nothing"
            raise InputError(
                f"{node.name} has {what} of study {job.study_instance_uid}. See what it has: "
                f"dicomai find {node.name} --level series "
                f"StudyInstanceUID={job.study_instance_uid}",
                subject=job.study_instance_uid,
            )
        return counted, ""

    def _find(
        self, this: Attempt, node: Node, level: Level, keys: Mapping[str, str]
    ) -> list[Match]:
        """Return the matches; a careless node answers with more than was asked for.

        A part of them would make a study whole that is not: RefusedError says that there are more.
        """
        asked, cut = finding.query(level, keys), Cut()
        our_ae, files = self.settings.receiver.ae_title, self.settings.tls.files
        found = finding.find(node, our_ae, asked, files, cut=cut, go_on=this.go_on)
        matches = [
            match
            for match in found
            if all(match.text(keyword) in ("", value) for keyword, value in keys.items())
        ]
        if cut.happened:
            raise RefusedError(cut.because, subject=node.name)
        return matches

    def _missing(
        self, job: Job, counted: Counted | None
    ) -> Mapping[SeriesInstanceUID, frozenset[SOPInstanceUID]]:
        """Return what the catalogue lacks of what the node has, by series.

        Raises
        ------
        TransientError
            Retention is deleting what the catalogue has: that is neither here nor lacking.
        """
        with reading(self.worker.engine) as connection:
            study = studies.get(connection, job.study_instance_uid)
            here = retrievals.here(connection, job.study_instance_uid)
        if study is not None and study.status == "deleting":
            raise TransientError(
                f"Retention is deleting study {job.study_instance_uid}. It is fetched when that is "
                "done.",
                subject=job.study_instance_uid,
            )
        lacking = {series: frozenset(objects) - here for series, objects in (counted or {}).items()}
        return {series: objects for series, objects in lacking.items() if objects}

    def _fetch(
        self,
        this: Attempt,
        node: Node,
        wanted: Wanted,
        counted: Counted | None,
        unasked: Unasked,
    ) -> Tally:
        our_ae, files = self.settings.receiver.ae_title, self.settings.tls.files

        def on_progress(tally: Tally) -> None:
            this.heart.progress("fetch", tally.fraction)

        if node.retrieve == "move":
            return move(node, our_ae, wanted, on_progress, this.go_on, files)
        classes = {
            sop_class
            for series, objects in (counted or {}).items()
            if not wanted.series or series in wanted.series
            for sop_class in objects.values()
        }
        reception = Reception(
            spool=self.settings.folders.spool,
            reserve_bytes=self.settings.receiver.reserve_bytes,
            object_bytes=self.settings.receiver.max_object_bytes,
            node=node.name,
            calling_ae=node.ae_title,
            called_ae=our_ae,
            address=node.host,
            started_at=self.worker.clock(),
        )
        known = set() if "" in classes else classes
        return get(node, our_ae, wanted, known, reception, on_progress, this.go_on, files, unasked)

    def _await_scheduler(self, this: Attempt, node: Node) -> None:
        """Return when a scheduler takes in what comes into the spool of this host.

        By C-GET nothing comes to a receiver, which another host may have. What no scheduler takes
        in is not waited for by anybody, and is asked for again at each attempt.
        """
        spool = self.settings.folders.spool
        give_up = time.monotonic() + SCHEDULED_S
        while time.monotonic() < give_up:
            this.go_on()
            with reading(self.worker.engine) as connection:
                sign = hosts.sign_of(connection, name_of(spool))
                now = clocks.common(connection, self.worker.clock)
            if sign is not None and now - sign.beat_at <= ALIVE:
                return
            time.sleep(_LOOK_S)
        raise TransientError(
            f"What {node.name} sends by C-GET comes into the spool of the worker's machine, "
            f"{spool} on {socket.gethostname()}, and no scheduler takes it in there. Start one "
            'there, dicomai schedule, or have it sent to a receiver: retrieve = "move".',
            subject=node.name,
        )

    def _await_ingest(self, this: Attempt, counted: Counted | None) -> None:
        """Return when all that came until now is in the catalogue.

        A host that stays silent is waited for as long as by a decision.
        """
        patience = seconds(self.settings.decide.patience_s)
        with reading(self.worker.engine) as connection:
            until = clocks.common(connection, self.worker.clock)
        give_up = time.monotonic() + ARRIVE_S
        while time.monotonic() < give_up:
            this.go_on()
            if counted is not None and not self._missing(this.job, counted):
                return
            with reading(self.worker.engine) as connection:
                known = [
                    Host(name=each.name, ingested_to=each.ingested_to, beat_at=each.beat_at)
                    for each in hosts.listing(connection)
                ]
            late = [host for host in known if host.ingested_to < until]
            if known and (not late or silent(late, known, patience)):
                return
            time.sleep(_LOOK_S)
        raise TransientError(
            f"What came is not in the catalogue after {ARRIVE_S:.0f} s. Does a scheduler run on "
            "each host (dicomai schedule)?",
            subject=this.job.study_instance_uid,
        )

    def _settle(
        self,
        this: Attempt,
        node: Node,
        tally: Tally,
        unasked: Unasked,
        counted: Counted | None,
        missing: Mapping[SeriesInstanceUID, frozenset[SOPInstanceUID]],
        uncounted: str,
    ) -> None:
        """Finish the job, or say what did not come; a person gets what tries don't help."""
        job = this.job
        sentence = outcome_sentence(node, tally, unasked, counted, missing, uncounted)
        if missing or (counted is None and tally.failed):
            sentence = f"{sentence} Look at its log, and at ours; then: dicomai retry {job.id}"
            error = RefusedError if job.attempts >= TRIES else TransientError
            raise error(sentence, subject=job.study_instance_uid)
        total = sum(map(len, counted.values())) if counted is not None else None
        summary = {
            "counted": total,
            "completed": tally.completed,
            "failed": tally.failed,
            "warnings": tally.warnings,
            "unasked": unasked.count,
        }
        done = this.write(
            lambda c: retrievals.finish(
                c, job.held, this.stages_s, summary, sentence, self.worker.clock()
            )
        )
        if not done and this.outcome() != "done":
            raise Lost


def _is_history(job: Job) -> bool:
    return job.priority <= HISTORY


def _requests(
    job: Job,
    counted: Counted | None,
    missing: Mapping[SeriesInstanceUID, frozenset[SOPInstanceUID]],
) -> list[Wanted]:
    """Return what to ask for: the whole study while nothing of it is here, else by series."""
    study = job.study_instance_uid
    wanted = sorted(retrievals.series_of(job))
    if counted is None:
        return [Wanted(study_instance_uid=study, series=(each,)) for each in wanted] or [
            Wanted(study_instance_uid=study)
        ]
    if not wanted and all(
        missing.get(series) == frozenset(objects) for series, objects in counted.items()
    ):
        return [Wanted(study_instance_uid=study)]
    return [Wanted(study_instance_uid=study, series=(series,)) for series in missing]


def outcome_sentence(
    node: Node,
    tally: Tally,
    unasked: Unasked,
    counted: Counted | None,
    missing: Mapping[SeriesInstanceUID, frozenset[SOPInstanceUID]],
    uncounted: str,
) -> str:
    """Return what became of a retrieval, for an administrator."""
    name = node.name
    parts = []
    if counted is None:
        parts.append(
            f"{_objects(tally.completed + tally.warnings)} came, as {name} counts; what it has it "
            f"does not say: {uncounted}"
        )
    else:
        total = sum(map(len, counted.values()))
        lacking = [uid for objects in missing.values() for uid in sorted(objects)]
        if not lacking:
            parts.append(f"All {_objects(total)} that {name} counts are here.")
        else:
            parts.append(
                f"{name} counts {_objects(total)}, and {total - len(lacking)} are here: "
                f"{lacking[0]}{' and others are' if len(lacking) > 1 else ' is'} missing."
            )
    if tally.failed:
        parts.append(f"It says that {_objects(tally.failed)} could not be sent.")
    if unasked.count:
        parts.append(f"{_objects(unasked.count)} that nobody had asked for were refused.")
    return " ".join(parts)


def _objects(number: int) -> str:
    return "1 object" if number == 1 else f"{number} objects"
