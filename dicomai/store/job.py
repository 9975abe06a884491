"""A job: its row as a value, what may be asked for, and what an error leads to."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NewType, assert_never

from sqlalchemy import Row

from dicomai.dicom.dates import Instant, Microseconds, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID, StudyInstanceUID
from dicomai.errors import ErrorKind
from dicomai.store.states import HeldBy, JobKind, JobState, RouteMode, WaitingFor

JobId = NewType("JobId", int)
InstanceId = NewType("InstanceId", int)

UNKNOWN: Final = JobId(0)
"""Made a result that a rescan of the archive found: its job went with a lost database."""

URGENT: Final = 0
NORMAL: Final = 1
BEHIND: Final = 1000
"""Steps of priority of history behind what is of today: about a week, by the usual ageing."""
HISTORY: Final = -BEHIND // 2
"""What has no more than this is of history, whatever the priority of its route adds."""
CRASHES: Final = 2
"""A job that killed its worker so often is failed, so that a poisonous study stops no worker."""

WITHDRAWN: Final = "withdrawn"
"""What the summary of a withdrawal says that it found."""
REISSUE_OF: Final = "reissue_of"
"""Key of the summary of reissued results: the job whose they are."""
WITHDRAWN_BY: Final = "withdrawn_by"
"""Key of the summary of an analysis whose results were taken back: the job that did."""


@dataclass(frozen=True, slots=True)
class Held:
    """A claim on a job: every write names it, so that a worker that lost it touches no row."""

    job_id: JobId
    claim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of the queue.

    Attributes
    ----------
    uuid
        Drawn when the row is made; the UIDs of its results derive from it.
    patient_key
        Whose study it was when the job was made; it may finish only while that holds.
    choice
        Names the series that were chosen, so that at most one job for them is live; of a
        retrieval the series that are wanted, empty for the whole study.
    supersedes
        The analysis whose input late images changed.
    result_of
        For a delivery: the analysis whose results go to `node`.
    claim, attempts
        How often it was claimed, ever; and how often since a person retried it, less what was
        given back and what came before its back-off was over.
    backs_off_until
        When the back-off that it had last is over, though it may be tried before.
    beat
        Raised by its worker; who sees it unchanged for the lease's length ends the lease.
    """

    id: JobId
    uuid: uuid.UUID
    kind: JobKind
    state: JobState
    study_instance_uid: StudyInstanceUID
    patient_key: IdentityKey
    model: str
    package_sha256: str
    choice: str
    fingerprint: str | None
    generation: int
    supersedes: JobId | None
    result_of: JobId | None
    node: str
    priority: int
    urgent: bool
    claim: int
    attempts: int
    crashes: int
    worker: str
    stage: str
    progress: float
    waiting_for: WaitingFor | None
    due_at: Instant | None
    backs_off_until: Instant | None
    held_by: HeldBy | None
    error_kind: ErrorKind | None
    error_sentence: str
    error_stage: str
    error_subject: str
    created_at: Instant
    started_at: Instant | None
    beat_at: Instant | None
    finished_at: Instant | None
    stages_s: Mapping[str, float]
    summary: Mapping[str, object]

    @property
    def held(self) -> Held:
        """The claim under which this row was read."""
        return Held(self.id, self.claim)

    @property
    def title(self) -> str:
        """What a sentence calls it."""
        if self.is_withdrawal:
            return f"Job {self.id} (withdrawal of job {self.supersedes})"
        if self.kind == "analyse":
            return f"Job {self.id} ({self.model})"
        return f"Job {self.id} ({'to' if self.kind == 'deliver' else 'from'} {self.node})"

    @property
    def is_withdrawal(self) -> bool:
        """It carries the note by which the results of the job that it supersedes are taken back."""
        return self.kind == "analyse" and self.summary.get("found") == WITHDRAWN

    @property
    def is_reissue(self) -> bool:
        """It holds the results of the job that it supersedes once more."""
        return REISSUE_OF in self.summary

    @property
    def withdrawn_by(self) -> object:
        """The job that took its results back, None where none did."""
        return self.summary.get(WITHDRAWN_BY)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInput:
    """One instance that a job took as input; `input` is the name in the model's manifest."""

    input: str
    instance_id: InstanceId
    study_instance_uid: StudyInstanceUID
    series_instance_uid: SeriesInstanceUID
    sop_instance_uid: SOPInstanceUID


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRoute:
    """A route that wants a job's results."""

    route: str
    mode: RouteMode
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAnalysis:
    """An analysis that a route asks for.

    Attributes
    ----------
    choice
        Names model inputs and chosen series, without their versions.
    fingerprint
        Digest of package, input versions and generation.
    supersedes
        An analysis that it replaces besides the last one of the same study, model and choice.
    waits
        Why it does not run yet: an input is looked for. Empty: it is queued.
    """

    study_instance_uid: StudyInstanceUID
    patient_key: IdentityKey
    model: str
    package_sha256: str
    choice: str
    fingerprint: str
    inputs: tuple[JobInput, ...]
    route: JobRoute
    priority: int = 0
    urgent: bool = False
    ageing: Microseconds
    generation: int = 0
    supersedes: JobId | None = None
    waits: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedJob:
    """What became of the wish for an analysis.

    "queued": a new row; "shared": the same analysis was asked for by another route, which now
    shares it; "present": nothing to do; "pruned": it was done, and its row is gone.
    """

    outcome: Literal["queued", "shared", "present", "pruned"]
    job_id: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """Where a job goes after an error, and when it is tried again."""

    state: Literal["queued", "waiting", "held", "failed"]
    held_by: HeldBy | None = None
    delay: Microseconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _BackOff:
    first_s: float
    longest_s: float
    attempts: int


_BACK_OFF: Final[Mapping[JobKind, _BackOff]] = {
    # About a day, and about a week: a PACS may be away over a long weekend.
    "analyse": _BackOff(first_s=30, longest_s=3600, attempts=30),
    "deliver": _BackOff(first_s=60, longest_s=86400, attempts=17),
    "retrieve": _BackOff(first_s=60, longest_s=86400, attempts=17),
}
_RESOURCE_ATTEMPTS: Final = 4  # rungs of the memory ladder
_RESOURCE_DELAY: Final = seconds(10)


def policy(error: ErrorKind, kind: JobKind, *, attempts: int, crashes: int, jitter: float) -> Next:
    """Return what follows from an error.

    Parameters
    ----------
    attempts
        Claims until now, this one too.
    crashes
        Leases and runners lost until now, this one too.
    jitter
        From 0 to below 1; spreads the retries of many jobs over time.
    """
    match error:
        case "refused" if kind == "analyse":  # by the gate: trying again gives the same bytes
            return Next(state="held", held_by="person")
        case "deadline" if kind == "analyse":
            return Next(state="failed")
        case "input" | "refused":
            return Next(state="failed")
        case "config":
            return Next(state="held", held_by="config")
        case "identity":
            return Next(state="held", held_by="identity")
        case "crash":
            return Next(state="failed" if crashes >= CRASHES else "queued")
        case "resource":
            if attempts >= _RESOURCE_ATTEMPTS:
                return Next(state="failed")
            return Next(state="waiting", delay=_RESOURCE_DELAY)
        case "transient" | "deadline":  # what went over is there, and the rest follows
            back_off = _BACK_OFF[kind]
            if attempts >= back_off.attempts:
                return Next(state="failed")
            longest = min(back_off.longest_s, back_off.first_s * 2.0 ** max(attempts - 1, 0))
            return Next(state="waiting", delay=seconds(longest * (0.5 + jitter / 2)))
        case _:
            assert_never(error)


def jitter_of(job: uuid.UUID, attempts: int) -> float:
    """Return a number from 0 to below 1 that differs from job to job and try to try."""
    digest = hashlib.sha256(f"{job}/{attempts}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def rank_of(created_at: Instant, priority: int, ageing: Microseconds) -> int:
    """Return the place in the queue: one step of priority is worth `ageing` of waiting."""
    return created_at - priority * ageing


def job_of(row: Row[tuple[object, ...]]) -> Job:
    """Return a row of the table as a value."""
    values = row._mapping
    return Job(
        **{
            name: values[name]
            for name in Job.__dataclass_fields__
            if name not in ("uuid", "urgent")
        },
        uuid=uuid.UUID(values["uuid"]),
        urgent=values["urgency"] == URGENT,
    )


def blank(
    unique: uuid.UUID, study: StudyInstanceUID, patient_key: IdentityKey, now: Instant
) -> dict[str, object]:
    """Return the columns that are the same for every new job; it is queued."""
    return {
        "uuid": str(unique),
        "state": "queued",
        "study_instance_uid": study,
        "patient_key": patient_key,
        "claim": 0,
        "attempts": 0,
        "crashes": 0,
        "worker": "",
        "beat": 0,
        "stage": "",
        "progress": 0.0,
        "error_sentence": "",
        "error_stage": "",
        "error_subject": "",
        "created_at": now,
        "stages_s": {},
        "summary": {},
    }
