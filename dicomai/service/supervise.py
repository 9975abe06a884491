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
from typing import Final

from pydicom import Dataset
from sqlalchemy import Connection

from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.errors import ConfigError, CrashError, DicomaiError, DiskFull, IdentityError
from dicomai.findings import Findings
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.inputs import Source
from dicomai.inference.runner_process import RunnerDied, RunnerProcess
from dicomai.models.registry import Registry, open_registry
from dicomai.net.node import Node
from dicomai.process import release_memory
from dicomai.results import summary
from dicomai.routing.exclusion import kind_of, not_seen
from dicomai.routing.image import series_of
from dicomai.routing.route import ResultObject
from dicomai.service import analyse, originals
from dicomai.service.analyse import Loaded
from dicomai.service.asked import objects_of, tells_why_not
from dicomai.service.attempt import Attempt, Lost, Worker, work_once
from dicomai.service.intake import HANDS, Intake
from dicomai.service.received import Reading
from dicomai.service.whole import image_of
from dicomai.settings import Settings
from dicomai.spool.folder import free_bytes
from dicomai.store import analyses, instances, jobs, lacking, predecessors
from dicomai.store.engine import reading
from dicomai.store.instances import Instance
from dicomai.store.job import CRASHES, Job, JobRoute, policy
from dicomai.store.predecessors import Predecessor
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the catalogue says about a claimed job."""

    inputs: tuple[tuple[str, Instance], ...]
    node: Node | None
    """Who sent its input, if the configuration still knows."""
    predecessors: tuple[Predecessor, ...]
    routes: tuple[JobRoute, ...]
    """Who asked for it."""
    left_out: tuple[str, ...]
    """What shows the patient in the series of its first input and is none, one sentence each."""

    @property
    def first(self) -> tuple[Instance, ...]:
        """The images of the first input."""
        return tuple(row for name, row in self.inputs if name == self.inputs[0][0])

    @property
    def volume_bytes(self) -> int:
        """What its voxels take as float32."""
        return sum(
            4 * _count(row, "Rows") * _count(row, "Columns") * (_count(row, "NumberOfFrames") or 1)
            for _, row in self.inputs
        )

    @property
    def route_names(self) -> str:
        """The routes that asked, as results name them."""
        return ", ".join(each.route for each in self.routes)

    @property
    def charset_default(self) -> str:
        return self.node.charset_default if self.node else ""


def _left_out(connection: Connection, inputs: Sequence[tuple[str, Instance]]) -> tuple[str, ...]:
    """Return what a job's first input lacks of its series, one sentence each.

    Where an image of some kind is among the inputs, a route allows that kind.
    """
    if not inputs:
        return ()
    first, chosen = inputs[0][1], {row.sop_instance_uid for _, row in inputs}
    rows = instances.of_series(
        connection,
        StudyInstanceUID(first.study_instance_uid),
        SeriesInstanceUID(first.series_instance_uid),
    )
    images = [image_of(row) for row in rows]
    kinds = {kind_of(each) for each in images if each.sop_instance_uid in chosen}
    allowed = [kind for kind in kinds if kind is not None and kind != "no image"]
    return tuple(told for each in series_of(images) for told in not_seen(each, allowed))


def _is_suspect(job: Job) -> bool:
    """Whether a process was lost with it: with this job, or with another beside it."""
    return job.crashes > 0


def _count(row: Instance, keyword: str) -> int:
    """Return a number of the catalogue, which is what the header said; 0 where it is none."""
    said = row.attributes.get(keyword, 0)
    try:
        return max(0, int(said)) if isinstance(said, str | float | int) else 0
    except (ValueError, OverflowError):
        return 0


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
        # Reception stops at the whole reserve; the rest is for the database and retention.
        if free_bytes(data) < reserve / 2:
            raise DiskFull(
                f"The disk of {data} has less than {reserve // 2:,} bytes left, half of "
                "receiver.reserve_bytes. Analyses wait until there is room: make some.",
                subject=str(data),
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

    def _do_admitted(self, this: Attempt, facts: _Facts) -> None:
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
            # Results that these replace went out meanwhile: these must name them.
            facts = self._facts(this.job)

    def _tell_why_not(self, this: Attempt, facts: _Facts, reason: str) -> None:
        while not self._say_why_not(this, facts, reason):
            facts = self._facts(this.job)

    def _say_why_not(self, this: Attempt, facts: _Facts, reason: str) -> bool:
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
        self._check(this, facts, (made.report,), made.findings, headers, only)
        return self._finish(this, facts, (made.report,), f"not analysed: {reason}")

    def _to_be_told(self, job: Job, error: DicomaiError) -> bool:
        """Tell whether a route wants a report that this is why the job comes to its end."""
        if not tells_why_not(self.settings.routes, job.model):
            return False
        crashes = job.crashes + (error.kind == "crash")
        then = policy(error.kind, job.kind, attempts=job.attempts, crashes=crashes, jitter=0)
        return error.kind in _OF_THE_INPUT and then.state == "failed"

    def _objects(self, job: Job) -> tuple[ResultObject, ...]:
        return objects_of(self.settings.routes, job.model)

    def _commit(self, this: Attempt, facts: _Facts, source: Source, findings: Findings) -> bool:
        """Encode, check and commit; False when the report must name other predecessors.

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
        self._check(this, facts, results, findings, source.headers, objects)
        found = summary.line(findings)
        return self._finish(this, facts, results, found, findings.deviations)

    def _check(
        self,
        this: Attempt,
        facts: _Facts,
        results: tuple[bytes, ...],
        findings: Findings,
        headers: Sequence[Dataset],
        objects: Collection[ResultObject],
    ) -> None:
        """Hold results against the findings; what breaks a rule is kept for a look."""
        with self._by_itself(this, "check"):
            try:
                analyse.check(results, findings, headers, self._reading(facts), objects)
            except DicomaiError as error:
                quarantine, now = self.settings.folders.quarantine, self.worker.clock()
                raise analyse.kept(this.job, results, error, quarantine, now) from error

    def _finish(
        self,
        this: Attempt,
        facts: _Facts,
        results: tuple[bytes, ...],
        found: str,
        deviations: tuple[str, ...] = (),
    ) -> bool:
        data = self.settings.folders.data
        named = tuple(each.job.id for each in facts.predecessors)
        with this.stage("commit"):
            with HANDS:
                rows = analyse.placed(
                    this.job, results, data, self._reading(facts), self.worker.clock()
                )
            outcome = this.write(
                lambda c: analyses.finish(
                    c,
                    this.job.held,
                    rows,
                    this.stages_s,
                    {"found": found},
                    self.worker.clock(),
                    named,
                    deviations,
                )
            )
        if outcome == "other predecessor":
            return False
        if outcome != "done" and this.outcome() != "done":
            raise Lost
        return True

    def _facts(self, job: Job) -> _Facts:
        with reading(self.worker.engine) as connection:
            inputs = instances.inputs_of(connection, job.id)
            stray = lacking.strayed(connection, job.id)
            before = predecessors.of_job(connection, job.id)
            routes = jobs.routes_of(connection, job.id)
            left_out = _left_out(connection, inputs)
        if stray is not None:
            raise IdentityError(
                f"It compares with study {stray}, which may be another patient's. Find out whose "
                f"that is: dicomai study {stray}; then: dicomai retry {job.id}",
                subject=stray,
            )
        sender = inputs[0][1].node if inputs else ""
        node = next((each for each in self.settings.nodes if each.name == sender), None)
        return _Facts(
            inputs=inputs, node=node, predecessors=before, routes=routes, left_out=left_out
        )

    def _reading(self, facts: _Facts) -> Reading:
        return Reading(
            issuer_of_patient_id=facts.node.issuer_of_patient_id if facts.node else "",
            charset_default=facts.charset_default,
            placeholder_ids=self.settings.decide.placeholder_ids,
        )

    def _load(self, this: Attempt, facts: _Facts) -> Loaded:
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
