"""The work of one device: claim, load, let the runner analyse, encode, check, commit.

Everything here may be killed at any moment: files are durable before the one transaction that makes
them count, and whoever claims the job next does it again, with the same UIDs and the same bytes.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from pydicom import Dataset
from sqlalchemy import Connection

from dicomai.errors import ConfigError, CrashError, DicomaiError, DiskFull
from dicomai.findings import Findings
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.inputs import Source
from dicomai.inference.runner_process import RunnerDied, RunnerProcess
from dicomai.models.registry import Registry, open_registry
from dicomai.process import release_memory
from dicomai.results import summary
from dicomai.routing.route import ResultObject
from dicomai.service import analyse, originals
from dicomai.service.analyse import Loaded
from dicomai.service.asked import objects_of, tells_why_not
from dicomai.service.attempt import Attempt, Lost, Worker, work_once
from dicomai.service.corrected import as_corrected
from dicomai.service.facts import Facts, facts_of, told_of
from dicomai.service.intake import HANDS, Intake
from dicomai.settings import Settings
from dicomai.spool.folder import free_bytes
from dicomai.store import analyses, archive, studies
from dicomai.store.analyses import FinishOutcome
from dicomai.store.job import CRASHES, Job, policy
from dicomai.store.states import JobKind

_TICK_S: Final = 0.1
KINDS: Final[tuple[JobKind, ...]] = ("analyse",)
STAGES: Final = (
    "load",
    "preprocess",
    "infer",
    "postprocess",
    "measure",
    "encode",
    "check",
    "commit",
)
"""What each analysis goes through, in order; each is timed in the job."""
# What comes of the images; that a model is not trusted, or a disk away, says nothing of them.
_OF_THE_INPUT: Final = frozenset({"input", "resource", "crash"})
_TWICE: Final = "Twice the program ended, or came to a standstill, while it worked on them."


def _is_suspect(job: Job) -> bool:
    """Whether a process was lost with it: with this job, or with another beside it."""
    return job.crashes > 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Supervisor:
    """Does the analyses of one device, one after the other; several lanes overlap.

    Attributes
    ----------
    settings
        Data folder with its models, nodes, time zone.
    runner
        The runner of the device.
    worker
        Who claims.
    intake
        Shared with the other lanes of the device.
    """

    settings: Settings
    runner: RunnerProcess
    worker: Worker
    intake: Intake = field(default_factory=Intake)

    def work_once(self) -> bool | None:
        """Claim the next analysis and bring the attempt to its end; False when none is due.

        None: it did not look, for another lane gets a job ready for the device, or has just found
        that none is due.

        Raises
        ------
        DatabaseError, DiskFull
            The database is away, or less room is left than half of what reception leaves; nothing
            was claimed.
        """
        if not self.intake.enter():
            return None
        worked = False
        try:
            self._check_room()
            worked = work_once(self.worker, KINDS, self._registry().names, self._do)
        finally:
            self.intake.leave(nothing_due=not worked)
        if worked:
            gc.collect()  # data sets refer to each other in circles
            release_memory()
        return worked

    def _wait_for(self, held: threading.Lock | threading.Semaphore, this: Attempt) -> None:
        while not held.acquire(timeout=_TICK_S):
            this.heart.waits()
            this.go_on()

    @contextmanager
    def _by_itself(self, this: Attempt, stage: str) -> Iterator[None]:
        """Do a stage while no other lane does such a one."""
        self._wait_for(HANDS, this)
        try:
            with this.stage(stage):
                yield
        finally:
            HANDS.release()

    def _check_room(self) -> None:
        data, reserve = self.settings.folders.data, self.settings.receiver.reserve_bytes
        for folder in (data, archive.disk(data)):
            # Reception stops at the whole reserve; the rest is for the database and retention.
            if free_bytes(folder) < reserve / 2:
                raise DiskFull(
                    f"The disk of {folder} has less than {reserve // 2:,} bytes left, half of "
                    "receiver.reserve_bytes. Analyses wait until there is room: make some.",
                    subject=str(folder),
                )

    def _registry(self) -> Registry:
        # Read anew for each job: what an administrator pins meanwhile counts at once.
        return open_registry(self.settings.folders.models)

    def _do(self, this: Attempt) -> None:
        this.go_on()
        with this.heart.in_stage("load"):
            facts = self._facts(this.job)
        if this.job.crashes >= CRASHES and tells_why_not(self.settings.routes, this.job.model):
            self._tell_why_not(this, facts, _TWICE)  # no pixel is looked at
            return
        volume_bytes = 0 if self._takes_image(this.job) else max(1, facts.volume_bytes)
        while not self.intake.admit(volume_bytes, _TICK_S, alone=_is_suspect(this.job)):
            this.heart.waits()
            this.go_on()
        try:
            self._do_admitted(this, facts)
        finally:
            self.intake.dismiss(volume_bytes)

    def _takes_image(self, job: Job) -> bool:
        try:
            return self._registry().get(job.model).manifest.input[0].kind == "image"
        except ConfigError:  # loading says so, in its stage
            return True

    def _do_admitted(self, this: Attempt, facts: Facts) -> None:
        try:
            with self._by_itself(this, "load"):
                loaded = self._load(this, facts)
                release_memory()
            findings = self._run(this, loaded)
            source = analyse.for_results(loaded.source, self._objects(this.job))
            del loaded
        except DicomaiError as error:
            if not self._to_be_told(this.job, error):
                raise
            self._tell_why_not(this, facts, error.sentence)
            return
        while not self._commit(this, facts, source, findings):
            # Results that these replace went out meanwhile, and these must name them; or a person
            # corrected what the images say.
            facts = self._facts(this.job)

    def _tell_why_not(self, this: Attempt, facts: Facts, reason: str) -> None:
        while not self._say_why_not(this, facts, reason):
            facts = self._facts(this.job)

    def _say_why_not(self, this: Attempt, facts: Facts, reason: str) -> bool:
        """Commit a report that says why the model can't take the input; False as `_commit`."""
        with self._by_itself(this, "encode"):
            context = analyse.context_of(
                this.job,
                self.settings.service.timezone,
                facts.charset_default,
                analyse.reports_of(facts.predecessors),
                facts.route_names,
            )
            package = self._registry().get_trusted(this.job.model)
            headers = originals.readable(facts.first, self.settings.folders.data)
            made = analyse.refusal(package, headers, reason, this.job.uuid, context)
        only = analyse.ONLY_A_REPORT
        results = self._check(this, facts, (made.report,), made.findings, headers, only)
        return self._finish(this, facts, results, f"not analysed: {reason}")

    def _to_be_told(self, job: Job, error: DicomaiError) -> bool:
        """Tell whether a route wants a report that this is why the job comes to its end."""
        if not tells_why_not(self.settings.routes, job.model):
            return False
        crashes = job.crashes + (error.kind == "crash")
        then = policy(error.kind, job.kind, attempts=job.attempts, crashes=crashes, jitter=0)
        return error.kind in _OF_THE_INPUT and then.state == "failed"

    def _objects(self, job: Job) -> tuple[ResultObject, ...]:
        return objects_of(self.settings.routes, job.model)

    def _commit(self, this: Attempt, facts: Facts, source: Source, findings: Findings) -> bool:
        """Encode, check and commit; False when the report must say something else by now.

        Raises
        ------
        Lost
            The job is ours no more, or its study is held or another patient's now.
        """
        objects = self._objects(this.job)
        with self._by_itself(this, "encode"):
            results = analyse.encoded(
                this.job,
                findings,
                source,
                timezone=self.settings.service.timezone,
                charset_default=facts.charset_default,
                predecessors=analyse.reports_of(facts.predecessors),
                route=facts.route_names,
                objects=objects,
            )
        results = self._check(this, facts, results, findings, source.headers, objects)
        found = summary.line(findings)
        return self._finish(this, facts, results, found, findings.deviations)

    def _check(
        self,
        this: Attempt,
        facts: Facts,
        results: tuple[bytes, ...],
        findings: Findings,
        headers: Sequence[Dataset],
        objects: Collection[ResultObject],
    ) -> tuple[bytes, ...]:
        """Hold results against the findings, and return them as a person corrected their images.

        What breaks a rule is kept for a look.
        """
        with self._by_itself(this, "check"):
            how = facts.reading(self.settings)
            try:
                analyse.check(results, findings, headers, how, objects)
                return as_corrected(this.job, results, how, facts.corrections, facts.patient)
            except DicomaiError as error:
                quarantine, now = self.settings.folders.quarantine, self.worker.clock()
                raise analyse.kept(this.job, results, error, quarantine, now) from error

    def _finish(
        self,
        this: Attempt,
        facts: Facts,
        results: tuple[bytes, ...],
        found: str,
        deviations: tuple[str, ...] = (),
    ) -> bool:
        data = self.settings.folders.data
        named = tuple(each.job.id for each in facts.predecessors)
        with this.stage("commit"):
            with HANDS:
                how = facts.reading(self.settings)
                rows = analyse.placed(this.job, results, data, how, self.worker.clock())

            def finish(connection: Connection) -> FinishOutcome | Literal["other correction"]:
                studies.lock(connection, this.job.study_instance_uid)
                if told_of(connection, this.job, facts.inputs) != facts.corrections:
                    return "other correction"
                return analyses.finish(
                    connection,
                    this.job.held,
                    rows,
                    this.stages_s,
                    {"found": found},
                    self.worker.clock(),
                    named,
                    deviations,
                )

            outcome = this.write(finish)
        if outcome in ("other predecessor", "other correction"):
            return False
        if outcome != "done" and this.outcome() != "done":
            raise Lost
        return True

    def _facts(self, job: Job) -> Facts:
        return facts_of(self.worker.engine, self.settings.nodes, job)

    def _load(self, this: Attempt, facts: Facts) -> Loaded:
        job = this.job
        package = self._registry().get_trusted(job.model)
        if package.sha256 != job.package_sha256:
            raise ConfigError(
                f"Model {job.model} is another package now than the job was made for. Bring back "
                f"the one it was made for, or ask for a new analysis: dicomai retry {job.id} "
                "--again",
                subject=job.model,
            )

        def on_read(fraction: float) -> None:
            this.heart.progress("load", fraction)
            this.go_on()

        data, objects = self.settings.folders.data, self._objects(job)
        return analyse.load(
            job,
            facts.inputs,
            package,
            data,
            on_read,
            objects,
            facts.left_out,
            self.settings.decide.placeholder_ids,
        )

    def _run(self, this: Attempt, loaded: Loaded) -> Findings:
        told = "load"

        def let_others_in() -> None:
            if not _is_suspect(this.job):
                self.intake.leave()

        def on_progress(stage: str, fraction: float) -> None:
            nonlocal told
            if stage == "wait":
                this.heart.waits()
                return
            this.heart.progress(stage, fraction)
            if stage == "infer":
                let_others_in()
            if stage != told:
                told = stage
                this.observe(stage)

        series = loaded.source.series_instance_uid
        if not isinstance(loaded.source, SourceVolume):
            let_others_in()  # to be shown to the network together
        try:
            findings = self.runner.analyse(
                loaded.request, on_progress=on_progress, go_on=this.go_on
            )
        except RunnerDied as death:
            raise CrashError(
                f"The runner {death.how} while it worked on series {series}. Another one takes "
                "its place.",
                subject=series,
            ) from death
        this.heart.took(findings.stages_s)
        analyse.check_answer(findings, loaded.request)
        return findings
