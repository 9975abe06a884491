"""One try at a claimed job: it beats, may be lost or given back, and its row says how it went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant
from dicomai.errors import (
    ConfigError,
    CrashError,
    DatabaseError,
    DeadlineError,
    DicomaiError,
    ResourceError,
    SystemTrouble,
)
from dicomai.net.node import Node
from dicomai.service.heart import Heart
from dicomai.store import claims, jobs
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job
from dicomai.store.states import JobKind

Observe: TypeAlias = Callable[[str, Job], None]
"""Told each stage of each job when it begins."""
Clock: TypeAlias = Callable[[], Instant]

_T = TypeVar("_T")
_AWAY_S: Final = 1.0
_NO_MEMORY: Final = (
    "The memory of this host does not suffice for the study. Give the host more, or let fewer jobs "
    "run beside it."
)

log = structlog.get_logger()


class GivenBack(Exception):
    """We are to stop: somebody else shall do the job."""


class Waits(Exception):
    """The job waits for its peer, as its row says; whoever claims it then goes on."""


class Lost(Exception):
    """The job is ours no more: nothing of it may be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What all attempts of a worker share.

    Attributes
    ----------
    name
        How the queue calls it.
    engine
        The catalogue.
    lease_s, deadline_s
        How long a job without a beat stays ours, and how long it may take in all.
    clock
        The present.
    stop
        Set when the worker shall end: jobs are given back.
    pulse
        Called often while it lives.
    observe
        Told each stage.
    """

    name: str
    engine: Engine
    lease_s: float
    deadline_s: float
    clock: Clock
    stop: threading.Event
    pulse: Callable[[], None]
    observe: Observe


class Attempt:
    """A claimed job while its worker has it."""

    def __init__(self, worker: Worker, job: Job, heart: Heart) -> None:
        self.job = job
        self.heart = heart
        self._worker = worker

    def go_on(self) -> None:
        """Raise when the work should not go on: Lost, GivenBack, DeadlineError."""
        self._worker.pulse()
        if self.heart.lost:
            raise Lost
        if self._worker.stop.is_set():
            raise GivenBack
        if self.heart.overdue:
            raise DeadlineError(
                f"It took longer than {self._worker.deadline_s:g} s (worker.deadline_s). Raise "
                "that, or give the route less to do.",
                subject=self.job.study_instance_uid,
            )

    def observe(self, stage: str) -> None:
        """Tell that a stage begins."""
        self._worker.observe(stage, self.job)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Do a stage of the job in this process, timed."""
        self.go_on()
        with self.heart.in_stage(name):
            self.observe(name)
            yield

    def write(self, statement: Callable[[Connection], _T]) -> _T:
        """Write as soon as the database lets us; what is done meanwhile is held."""
        return _write(self._worker, statement, self.go_on)

    def outcome(self) -> Literal["ours", "done", "lost"]:
        """Read what became of the job: a commit whose answer was lost may have been one."""
        with reading(self._worker.engine) as connection:
            return jobs.outcome(connection, self.job.held)

    @property
    def stages_s(self) -> dict[str, float]:
        """Seconds that each stage took until now, before the job waited for its peer too."""
        before = self.job.stages_s
        return {
            name: round(taken + before.get(name, 0.0), 3)
            for name, taken in {**dict.fromkeys(before, 0.0), **self.heart.stages_s}.items()
        }


def work_once(
    worker: Worker,
    kinds: Collection[JobKind],
    models: Collection[str],
    do: Callable[[Attempt], None],
) -> bool:
    """Claim the next job that is due and bring the attempt to its end; False when none is due.

    Parameters
    ----------
    worker
        Who claims.
    kinds, models
        What it does; models only of jobs that have one.
    do
        Does a job and finishes it, or raises.

    Raises
    ------
    DatabaseError
        The database is away, and nothing was claimed.
    """
    with writing(worker.engine) as connection:
        job = claims.claim(connection, worker.name, kinds, models, worker.clock())
    if job is None:
        return False
    attempt(worker, job, do)
    return True


def node_of(job: Job, nodes: Sequence[Node]) -> Node:
    """Return the node that a job is for.

    Raises
    ------
    ConfigError
        The configuration has it no more.
    """
    for node in nodes:
        if node.name == job.node:
            return node
    raise ConfigError(
        f"The configuration has no node {job.node} any more. Add it again, or: dicomai cancel "
        f"{job.id}",
        subject=job.node,
    )


def attempt(worker: Worker, job: Job, do: Callable[[Attempt], None]) -> None:
    """Do a claimed job, and say in its row how it went, whatever happens.

    Parameters
    ----------
    worker
        Who claimed it.
    job
        Its row as claimed.
    do
        Does it and finishes it, or raises.
    """
    heart = Heart(
        lambda stage, fraction: _beat(worker, job, stage, fraction),
        lease_s=worker.lease_s,
        deadline_s=worker.deadline_s,
    )
    facts = {"job": job.id, "study": job.study_instance_uid, "model": job.model, "node": job.node}
    with structlog.contextvars.bound_contextvars(**facts), heart:
        this = Attempt(worker, job, heart)
        try:
            do(this)
            seconds = {f"{name}_s": taken for name, taken in this.stages_s.items()}
            log.info("job", outcome="done", kind=job.kind, **seconds)
        except GivenBack:
            _give_back(worker, job, heart)
        except Waits:
            log.info("job", outcome="waits", kind=job.kind, stage=heart.stage)
        except Lost:
            log.warning("job lost", kind=job.kind, stage=heart.stage)
        except DicomaiError as error:
            _fail(worker, job, heart, error)
        except OSError as trouble:
            log.warning("trouble of this machine", stage=heart.stage, exc_info=True)
            _fail(worker, job, heart, SystemTrouble.of(trouble))
        except MemoryError:
            log.warning("memory ran out", stage=heart.stage, exc_info=True)
            _fail(worker, job, heart, ResourceError(_NO_MEMORY, subject=job.study_instance_uid))
        except Exception as defect:
            log.exception("defect", stage=heart.stage)
            reason = f"A defect of dicomai: {type(defect).__name__}: {defect}"
            _fail(worker, job, heart, CrashError(f"{reason}. The log has the stack."))


def _beat(worker: Worker, job: Job, stage: str, fraction: float) -> bool:
    with writing(worker.engine) as connection:
        return jobs.beat(connection, job.held, stage, fraction, worker.clock())


def _give_back(worker: Worker, job: Job, heart: Heart) -> None:
    # A database that is away is not waited for: then the lease decides.
    with suppress(DatabaseError), writing(worker.engine) as connection:
        jobs.give_back(connection, job.held, worker.clock())
    log.info("job given back", kind=job.kind, stage=heart.stage)


def _fail(worker: Worker, job: Job, heart: Heart, error: DicomaiError) -> None:
    stage = heart.stage
    where = f"{job.title}, {stage}" if stage else job.title
    sentence = f"{where}: {error.sentence}"

    def worth_it() -> None:
        if heart.lost or worker.stop.is_set():
            raise Lost

    with suppress(Lost):
        _write(
            worker,
            lambda c: jobs.fail(
                c, job.held, error.kind, sentence, stage, error.subject, worker.clock()
            ),
            worth_it,
        )
    log.warning("job", outcome="failed", kind=job.kind, error=error.kind, stage=stage)


def _write(worker: Worker, statement: Callable[[Connection], _T], go_on: Callable[[], None]) -> _T:
    told = ""
    while True:
        try:
            with writing(worker.engine) as connection:
                return statement(connection)
        except DatabaseError as error:
            if error.sentence != told:
                told = error.sentence
                log.warning("database away", why=told)
            go_on()
            time.sleep(_AWAY_S)
