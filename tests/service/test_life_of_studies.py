"""Whatever happens to a few studies, in any order, the promises of the catalogue hold.

DICOMAI_FUZZ=30 lives thirty times as many lives; see docs/development.md.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clinic import (
    ANSWERS,
    PACS_ANSWERS,
    Clinic,
    Hand,
    Killed,
    chosen_of,
    ct,
    moves_seen,
    opened_engine,
    sha256,
    store_objects,
    watch_moves,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from ward import open_ward

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import NotFound
from dicomai.net import scu
from dicomai.routing.fingerprint import fingerprint
from dicomai.service import duties
from dicomai.service.again import again
from dicomai.service.decide import accept
from dicomai.service.whole import image_of
from dicomai.service.withdraw import withdraw
from dicomai.spool import reader
from dicomai.store import (
    deliveries,
    events,
    instances,
    jobs,
    pauses,
    retention,
    schema,
    series,
    studies,
)
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job, JobId
from dicomai.store.jobs import NotNow
from dicomai.store.retention import Keep
from dicomai.store.states import MOVES, UNFINISHED
from dicomai.store.studies import Study

DAY_S = 86400
KEEP = Keep(received=seconds(7 * DAY_S), produced=seconds(30 * DAY_S), jobs=seconds(60 * DAY_S))
STUDIES = ("1.2.1", "1.2.2")
SUBJECTS = (("node", "PACS1"), ("node", "PACS2"), ("route", "first"), ("model", "bodies"))
_HANDS = st.integers(0, 1)
_ANY = st.integers(0, 11)
_KINDS = st.sampled_from(("analyse", "deliver"))
_ANSWER = st.integers(0, 19)
_UNTIL = st.sampled_from(("the end", "the end", "early", "called", "late"))


@dataclass(frozen=True, slots=True)
class Sent:
    """An object that was acknowledged: its file in the spool, and what that holds."""

    study: str
    path: Path
    sha256: str


class LifeOfStudies(RuleBasedStateMachine):
    """Two scanners, two studies, two workers, two nodes, a person, and the clock."""

    def __init__(self, clinic: Clinic) -> None:
        super().__init__()
        self.clinic = clinic
        self.sent: list[Sent] = []
        self.done: dict[str, JobId] = {}
        self.cancelled: set[JobId] = set()

    @initialize(under_way=st.booleans())
    def a_study_comes(self, under_way: bool) -> None:
        self.send(STUDIES[0], 1, (0, 1, 2), "as ever", "CT1")
        if under_way:
            self.quiet_comes(2)

    # What scanners do.

    @rule(
        study=st.sampled_from(STUDIES),
        number=st.integers(1, 2),
        slices=st.sampled_from(((0, 1, 2), (0, 1, 2, 3), (3,), (1,))),
        how=st.sampled_from(("as ever", "as ever", "changed", "other patient", "other study")),
        sender=st.sampled_from(("CT1", "CT2")),
    )
    def send(self, study: str, number: int, slices: tuple[int, ...], how: str, sender: str) -> None:
        patient = f"P{study[-1]}" if how != "other patient" else "P9"
        brightness = 2000 if how == "changed" else 1000
        under = study
        if how == "other study":
            (under,) = set(STUDIES) - {study}
        for k in slices:
            octets = ct(under, f"{study}.{number}", k, patient, brightness)
            path = self.clinic.send(sender, octets)
            self.sent.append(Sent(under, path, sha256(octets)))

    @precondition(lambda self: self.clinic.associations)
    @rule(which=_ANY, how=st.sampled_from(("released", "released", "aborted", "lost")))
    def end_of_association(self, which: int, how: Any) -> None:
        self.clinic.end(_one(sorted(self.clinic.associations), which), how)

    # What time and the scheduler do.

    @rule(s=st.sampled_from((1, 11, 61, 901, 3601, DAY_S, 8 * DAY_S, 31 * DAY_S)))
    def time_passes(self, s: int) -> None:
        self._later(s)
        duties.promote(self.clinic.engine, self.clinic.clock)

    @rule(killed_after=st.none() | st.integers(1, 30), decides=st.booleans())
    def scheduler_looks(self, killed_after: int | None, decides: bool) -> None:
        self.clinic.ingest(killed_after)
        if decides:
            self.clinic.decide()

    @rule(times=st.integers(0, 3))
    def quiet_comes(self, times: int) -> None:
        for sender in tuple(self.clinic.associations):
            self.clinic.end(sender, "released")
        self.clinic.ingest()
        self._later(61)
        self.clinic.ingest()
        self.clinic.decide()
        for _ in range(times):
            self.work(0, "deliver", 0, "the end")

    @rule(slow=_HANDS, alive=st.booleans(), kind=_KINDS, until=_UNTIL, goes_on=st.booleans())
    def lease_is_over(self, slow: int, alive: bool, kind: str, until: str, goes_on: bool) -> None:
        one, other = self.clinic.hands[slow], self.clinic.hands[1 - slow]
        self.clinic.end_leases([other] if alive else [])
        if not other.at:
            self.work(1 - slow, kind, 0, until)
        if one.at and goes_on:
            self._go_on(one, 0, "the end")

    @rule(killed_after=st.none() | st.integers(1, 6))
    def retention(self, killed_after: int | None) -> None:
        before = {each.study_instance_uid: each for each in self._studies()}
        worked_on = {uid for uid in before if self._unfinished(uid)}
        calls = iter(range(1, 1000))

        def go_on() -> bool:
            if next(calls) == killed_after:
                raise Killed
            return True

        clinic = self.clinic
        with suppress(Killed):
            retention.delete_expired(
                clinic.engine, clinic.settings.folders.data, KEEP, clinic.clock, go_on
            )
        after = {each.study_instance_uid: each for each in self._studies()}
        for uid, was in before.items():
            now = after.get(uid)
            if now is not None and (now.status, now.instances) == (was.status, was.instances):
                continue
            assert uid not in worked_on
            assert was.status in ("decided", "held", "deleting")
            assert was.last_object_at <= clinic.clock - KEEP.received
        self._forget_deleted()
        duties.prune(clinic.engine, KEEP, clinic.clock)

    @rule()
    def restart(self) -> None:
        for hand in self.clinic.hands:
            _end(hand)
        self.clinic.engine.dispose()
        self.clinic.engine = opened_engine(self.clinic.settings.database.url)

    # What workers do.

    @rule(number=_HANDS, kind=_KINDS, which=_ANSWER, until=_UNTIL)
    def work(self, number: int, kind: str, which: int, until: str) -> None:
        hand = self.clinic.hands[number]
        if hand.at:
            self._go_on(hand, which, until)
            return
        for each in (kind, "deliver", "analyse"):
            if not hand.at:
                hand.start(each)
        if hand.at and hand.at not in _STOPS[until]:
            self._go_on(hand, which, until)

    def _go_on(self, hand: Hand, which: int, until: str) -> None:
        """Bring an attempt to a later edge, or to its end; whoever lost its job writes nothing."""
        assert hand.job is not None
        job, ours = hand.job, self._is_ours(hand)
        before = self._written(job)
        hand.go_on(_one(_ANSWERS[hand.at], which))
        while hand.at and hand.at not in _STOPS[until]:
            which += 1 if which else 0  # 0 is the best at every edge
            hand.go_on(_one(_ANSWERS[hand.at], which))
        if not ours:
            assert self._written(job) == before, "a zombie wrote"

    # What a person does.

    @precondition(lambda self: self._jobs())
    @rule(which=_ANY, what=st.sampled_from(("retry", "again", "cancel", "withdraw")))
    def person_sees_to_a_job(self, which: int, what: str) -> None:
        clinic, job = self.clinic, _one(self._jobs(), which)
        with suppress(NotNow, NotFound):
            if what == "withdraw":
                withdraw(clinic.engine, clinic.settings, job.id, "It is wrong.", clinic.clock)
                return
            with writing(clinic.engine) as connection:
                if what == "retry":
                    jobs.retry(connection, job.id, clinic.clock)
                elif what == "again":
                    model = clinic.rules.models["bodies"]
                    again(connection, job.id, clinic.clock, model=model)
                else:
                    jobs.cancel(connection, job.id, "A person cancelled it.", clinic.clock)
                    self.cancelled.add(job.id)

    @precondition(lambda self: any(each.status == "held" for each in self._studies()))
    @rule(which=_ANY)
    def person_accepts(self, which: int) -> None:
        held = [each for each in self._studies() if each.status == "held"]
        self._accept(_one(held, which), which)

    @rule(subject=st.sampled_from(SUBJECTS), mode=st.sampled_from(("paused", "draining", None)))
    def person_pauses(self, subject: Any, mode: Any) -> None:
        with writing(self.clinic.engine) as connection:
            if mode is None:
                pauses.resume(connection, *subject, self.clinic.clock)
            else:
                pauses.pause(connection, *subject, mode, self.clinic.clock)

    # What always holds.

    @invariant()
    def nothing_that_was_acknowledged_is_lost(self) -> None:
        folders = self.clinic.settings.folders
        kept = {
            sha
            for sha, path in self._query("SELECT file_sha256, path FROM copies")
            if (folders.data / path).exists()
        }
        going = {each.study_instance_uid for each in self._studies() if each.status == "deleting"}
        lost = [
            each
            for each in self.sent
            if not each.path.exists() and each.sha256 not in kept and each.study not in going
        ]
        if lost:
            aside = {sha256(each.read_bytes()) for each in folders.quarantine.rglob("*.dcm")}
            assert {each.sha256 for each in lost} <= aside

    @invariant()
    def nodes_got_what_they_may_have_and_got_it_once(self) -> None:
        assert self.clinic.wrongs == []

    @invariant()
    def jobs_move_as_the_table_says(self) -> None:
        seen = self._query("SELECT was, became FROM moves_seen")
        assert [(was, became) for was, became in seen if became not in MOVES[was]] == []

    @invariant()
    def one_job_is_live_and_each_result_is_there_once(self) -> None:
        found = [each for each in self._jobs() if each.kind == "analyse"]
        live = [
            (each.study_instance_uid, each.choice) for each in found if each.state in UNFINISHED
        ]
        assert len(set(live)) == len(live)
        known = {each.study_instance_uid: each for each in self._studies()}
        for job in found:
            if job.state != "done" or job.is_withdrawal or self.done.get(str(job.uuid)):
                continue
            self.done[str(job.uuid)] = job.id
            assert job.fingerprint not in self.done
            self.done[job.fingerprint or ""] = job.id
            study = known[job.study_instance_uid]
            assert study.status != "held"
            assert study.patient_key == job.patient_key
            with reading(self.clinic.engine) as connection:
                assert len(instances.of_job(connection, job.id)) == 2

    def teardown(self) -> None:
        with self.clinic.closing():
            if sys.exc_info()[0] is None:
                self._settle()
                for study in (held := [e for e in self._studies() if e.status == "held"]):
                    self._accept(study, 0)
                if held:
                    self._settle()
        shutil.rmtree(self.clinic.settings.folders.data.parent)

    # How it ends: everything is healthy, and comes to rest.

    def _settle(self) -> None:
        clinic = self.clinic
        for sender in tuple(clinic.associations):
            clinic.end(sender, "lost")
        for hand in clinic.hands:
            _end(hand)
        clinic.end_leases()
        with writing(clinic.engine) as connection:
            for each in pauses.listing(connection):
                pauses.resume(connection, each.subject, each.name, clinic.clock)
        retention.delete_marked(clinic.engine, clinic.settings.folders.data, clinic.clock)
        self._forget_deleted()
        for turn in range(24):
            self._later(min(61 * 2**turn, DAY_S))
            clinic.ingest()
            clinic.decide()
            duties.promote(clinic.engine, clinic.clock)
            for kind in ("analyse", "deliver"):
                while any((each.kind, each.state) == (kind, "queued") for each in self._jobs()):
                    clinic.hands[0].start(kind)
                    if not clinic.hands[0].at:
                        break
                    while clinic.hands[0].at:
                        clinic.hands[0].go_on(_ANSWERS[clinic.hands[0].at][0])
            if turn > 1 and not self._restless():
                break
        assert self._restless() == []
        self.nothing_that_was_acknowledged_is_lost()
        self.nodes_got_what_they_may_have_and_got_it_once()
        self.jobs_move_as_the_table_says()
        self.one_job_is_live_and_each_result_is_there_once()
        for study in self._studies():
            self._is_accounted_for(study)

    def _restless(self) -> list[object]:
        going = [each for each in self._jobs() if each.state in ("waiting", "queued", "running")]
        opened = [each for each in self._studies() if each.status in ("open", "deleting")]
        return [*going, *opened, *reader.entries(self.clinic.settings.folders.spool)]

    def _is_accounted_for(self, study: Study) -> None:
        """The study has its results, of its images as they are now, or a sentence that says why."""
        uid = study.study_instance_uid
        with reading(self.clinic.engine) as connection:
            rows = instances.of_study(connection, uid)
            story = events.story(connection, uid)
            of_study = jobs.of_study(connection, uid)
        told = {each.kind for each in story}
        for job in of_study:
            if job.state in ("failed", "held"):
                assert job.error_sentence
        if study.status == "held":
            assert study.hold_reason
            return
        chosen = chosen_of(study, [each for each in rows if each.origin == "received"])
        if not chosen:
            assert {"route unmatched", "study thinned"} & told
            return
        sha, images = self.clinic.rules.models["bodies"].package_sha256, [*map(image_of, chosen)]
        prints = {fingerprint(sha, images, generation) for generation in range(30)}
        known = {
            number
            for print_, number in self._query("SELECT fingerprint, job_id FROM fingerprints")
            if print_ in prints
        }
        assert known, "nobody was asked to analyse it"
        of_images = [each for each in of_study if each.id in known]
        if not of_images:
            assert any("was deleted by retention" in each.sentence for each in story)
            return
        job = of_images[-1]
        if job.state == "cancelled":
            assert job.id in self.cancelled
        if job.state == "done":
            self._was_delivered(job)

    def _was_delivered(self, job: Job) -> None:
        with reading(self.clinic.engine) as connection:
            sent = {each.node: each for each in deliveries.of_analysis(connection, job.id)}
            made = {each.sop_instance_uid for each in instances.of_job(connection, job.id)}
        assert set(sent) == {"PACS1", "PACS2"}
        for node, delivery in sent.items():
            if delivery.state == "done":
                assert made <= {uid for name, uid in self.clinic.stored if name == node}
            elif delivery.state == "cancelled":
                assert delivery.id in self.cancelled or job.withdrawn_by is not None

    # What it looks at.

    def _later(self, s: float) -> None:
        self.clinic.clock = Instant(self.clinic.clock + seconds(s))

    def _query(self, statement: str) -> list[Any]:
        with reading(self.clinic.engine) as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def _jobs(self) -> list[Job]:
        with reading(self.clinic.engine) as connection:
            return list(jobs.listing(connection, 1000))[::-1]

    def _studies(self) -> tuple[Study, ...]:
        with reading(self.clinic.engine) as connection:
            return studies.listing(connection, 100)

    def _unfinished(self, study: StudyInstanceUID) -> bool:
        return any(
            each.study_instance_uid == study and each.state in UNFINISHED for each in self._jobs()
        )

    def _is_ours(self, hand: Hand) -> bool:
        assert hand.job is not None
        now = next((each for each in self._jobs() if each.id == hand.job.id), None)
        return now is not None and (now.state, now.claim) == ("running", hand.job.claim)

    def _written(self, job: Job) -> object:
        """What a worker that lost its job may not touch."""
        if job.kind == "analyse":
            tables = ("jobs", "instances", "events", "deliveries", "studies")
            return [self._query(f"SELECT * FROM {table}") for table in tables]
        return self._query(f"SELECT * FROM jobs WHERE id = {job.id}")

    def _accept(self, study: Study, which: int) -> None:
        uid = study.study_instance_uid
        with reading(self.clinic.engine) as connection:
            keys = {each.key for each in series.identities(connection, uid)}
        if keys:  # of a study whose images retention deleted none is left
            key = _one(sorted(each for each in keys if each), which)
            accept(self.clinic.engine, uid, key, self.clinic.clock)

    def _forget_deleted(self) -> None:
        here = {sha for (sha,) in self._query("SELECT file_sha256 FROM copies")}
        self.sent = [each for each in self.sent if each.path.exists() or each.sha256 in here]


_STOPS = {
    "the end": (),
    "early": ("infer", "send"),
    "called": ("called",),
    "late": ("commit", "stored"),
}
"""At which edges an attempt stops."""
_ANSWERS: dict[str, tuple[str, ...]] = {
    "infer": ("finds",) * 8 + (*ANSWERS, "stops", "dies"),
    "commit": ("finds",) * 15 + ("dies",),
    "send": ("goes on",) * 15 + ("dies",),
    "called": ("takes",) * 6 + (*PACS_ANSWERS, "dies"),
    "stored": ("told",) * 3 + ("loses", "dies"),
}
"""What may come at an edge, the best first."""


def _one(some: Iterable[Any], which: int) -> Any:
    listed = list(some)
    return listed[which % len(listed)]


def _end(hand: Hand) -> None:
    while hand.at:
        hand.go_on("dies")


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_lives_of_studies(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scu, "store_objects", store_objects)
    template = tmp_path / "template"
    template.mkdir()
    ward = open_ward(template, database=database)
    watch_moves(ward.engine)
    ward.engine.dispose()
    made = iter(range(10**9))

    def begin() -> LifeOfStudies:
        clinic = Clinic(template, tmp_path / str(next(made)), database)
        with writing(clinic.engine) as connection:
            for table in (*schema.metadata.sorted_tables[::-1], moves_seen):
                connection.execute(table.delete())
        return LifeOfStudies(clinic)

    usual = 3 if database else 20
    run_state_machine_as_test(
        begin,
        settings=settings(
            max_examples=int(usual * float(os.environ.get("DICOMAI_FUZZ", "1"))),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
