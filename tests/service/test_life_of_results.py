"""Whatever changes after results went out, a PACS ends with those of what is current.

Images, packages, routes, nodes, patients and people's minds change, in any order.
DICOMAI_FUZZ=30 lives thirty times as many lives; see docs/development.md.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pydicom
import pytest
from clinic import ANSWERS, PACS, ROUTES, Clinic, Hand, chosen_of, ct, store_objects
from pydicom.uid import KeyObjectSelectionDocumentStorage
from sqlalchemy import Engine
from ward import open_ward

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DicomaiError, NotFound
from dicomai.models import package as packages
from dicomai.models import trust
from dicomai.net import scu
from dicomai.net.find import Match
from dicomai.net.node import Node
from dicomai.results.reissue import Correction
from dicomai.routing.selection import ModelInputs
from dicomai.service import backfill as backfilling
from dicomai.service import duties
from dicomai.service.again import again
from dicomai.service.backfill import Backfiller
from dicomai.service.decide import accept, decide_again
from dicomai.service.reissue import reissue
from dicomai.service.withdraw import withdraw
from dicomai.spool import reader
from dicomai.store import (
    analyses,
    backfills,
    deliveries,
    events,
    instances,
    jobs,
    pauses,
    retention,
    series,
    studies,
)
from dicomai.store.backfills import NewBackfill
from dicomai.store.engine import reading, writing
from dicomai.store.instances import Instance
from dicomai.store.job import Job, JobId
from dicomai.store.jobs import NotNow
from dicomai.store.retention import Keep
from dicomai.store.states import UNFINISHED
from dicomai.store.studies import Study

DAY_S = 86400
KEEP = Keep(received=seconds(7 * DAY_S), produced=seconds(30 * DAY_S), jobs=seconds(60 * DAY_S))
STUDY = StudyInstanceUID("1.2.1")
NODES = ("PACS1", "PACS2")
SUBJECTS = (("node", "PACS1"), ("node", "PACS2"), ("route", "first"), ("model", "bodies"))
_EVIDENCE = "CurrentRequestedProcedureEvidenceSequence"
SR = "1.2.840.10008.5.1.4.1.1.88.34"
_COMMAND = re.compile(
    r"dicomai (retry|cancel|withdraw|study|resume|job|send|status)((?: [\w.^-]+)*)"
)


class Watched(Clinic):
    """A clinic that remembers in which order its PACS got whose results, and what these name."""

    def __init__(self, template: Path, folder: Path, database: str) -> None:
        super().__init__(template, folder, database)
        self.away: set[str] = set()
        self.got: dict[str, list[JobId]] = {}
        self.rejected: dict[str, set[str]] = {}
        self.reports: dict[JobId, str] = {}
        self.before: dict[str, set[str]] = {}

    def _look_at_patient(self, job: Job, objects: Sequence[Path]) -> None:
        super()._look_at_patient(job, objects)
        if is_stale(self.engine, job):
            self.wrongs.append(f"{job.title} sends what was withdrawn or replaced")

    def _keep(self, job: Job, node: Node, uid: str) -> None:
        super()._keep(job, node, uid)
        assert job.result_of is not None
        with reading(self.engine) as connection:
            (row,) = (
                each
                for each in instances.of_job(connection, job.result_of)
                if each.sop_instance_uid == uid
            )
        found = pydicom.dcmread(self.settings.folders.data / row.path)
        if found.SOPClassUID == KeyObjectSelectionDocumentStorage:
            self.rejected.setdefault(node.name, set()).update(_named(found, _EVIDENCE))
            return
        if found.SOPClassUID == SR:
            self.reports[job.result_of] = uid
            self.before.setdefault(uid, set()).update(_named(found, "PredecessorDocumentsSequence"))
        got = self.got.setdefault(node.name, [])
        if job.result_of in got:
            got.remove(job.result_of)
        got.append(job.result_of)


def is_stale(engine: Engine, delivery: Job) -> bool:
    """Tell whether results were withdrawn, or others took their place; a note is never."""
    assert delivery.result_of is not None
    with reading(engine) as connection:
        analysis = jobs.existing(connection, delivery.result_of)
        later = jobs.of_study(connection, analysis.study_instance_uid)
    replaced = any(each.supersedes == analysis.id for each in later)
    return replaced and not analysis.is_withdrawal


def _named(found: pydicom.Dataset, where: str) -> set[str]:
    """Return the objects that one names in a sequence."""
    return {
        str(one.ReferencedSOPInstanceUID)
        for study in found.get(where, ())
        for each in study.ReferencedSeriesSequence
        for one in each.ReferencedSOPSequence
    }


class LifeOfResults:
    """A study, whose images, package, routes, patient and nodes change, and a person."""

    def __init__(self, clinic: Watched, packages_: Sequence[Path]) -> None:
        self.clinic = clinic
        self.packages = packages_
        self.cancelled: set[JobId] = set()

    def live(self, steps: Iterable[Step]) -> None:
        """Take the steps of a life, and come to rest."""
        with self.clinic.closing():
            self.install(0)
            self.send(1, (0, 1, 2), 1000, "CT1", "P1")
            for name, how in steps:
                getattr(self, name)(**how)
                self._holds()
            self._settle()
            self._accept(0)
            self._settle()
            self._stands_still()
            self._is_right()
            self._has_a_way_out()
        shutil.rmtree(self.clinic.settings.folders.data.parent)

    def _holds(self) -> None:
        self.nodes_got_what_they_may_have_and_got_it_once()
        self.one_job_is_live()

    # What comes.

    def send(
        self, number: int, slices: Sequence[int], brightness: int, sender: str, patient: str
    ) -> None:
        for k in slices:
            self.clinic.send(sender, ct(STUDY, f"{STUDY}.{number}", k, patient, brightness))

    def time_passes(self, s: int) -> None:
        self._later(s)
        duties.promote(self.clinic.engine, self.clinic.clock)

    def comes_to_rest(self, delivers: bool, analyses_too: bool = True) -> None:
        for sender in tuple(self.clinic.associations):
            self.clinic.end(sender, "released")
        self.clinic.ingest()
        self._later(61)
        self.clinic.ingest()
        self.clinic.decide()
        for kind in ("analyse",) * analyses_too + ("deliver",) * delivers:
            self._work_off(kind)

    def retention(self) -> None:
        clinic = self.clinic
        retention.delete_expired(clinic.engine, clinic.settings.folders.data, KEEP, clinic.clock)
        duties.prune(clinic.engine, KEEP, clinic.clock)

    # What changes.

    def install(self, which: int) -> None:
        clinic = self.clinic
        folder = clinic.settings.folders.models / "bodies"
        shutil.rmtree(folder)
        shutil.copytree(self.packages[which], folder)
        package = packages.load(folder)
        trust.trust(clinic.settings.folders.models, package)
        model = ModelInputs(package_sha256=package.sha256, inputs=package.inputs)
        clinic.rules = replace(clinic.rules, models={"bodies": model})

    def route(self, which: int, mode: Any, nodes: tuple[str, ...]) -> None:
        clinic = self.clinic
        left = [each for each in clinic.rules.routes if each.name != ROUTES[which].name]
        if mode is not None:
            left.append(replace(ROUTES[which], mode=mode, destinations=nodes))
        self._configure(routes=tuple(sorted(left, key=lambda each: each.name)))

    def node_is_configured(self, which: int, here: bool) -> None:
        known = [each for each in self.clinic.settings.nodes if each.name != NODES[which]]
        if here:
            known.append(PACS[which])
        self._configure(nodes=tuple(known))

    def _configure(self, **changed: Any) -> None:
        """Change the configuration and start anew, as its change demands."""
        clinic = self.clinic
        clinic.settings = replace(clinic.settings, **changed)
        clinic.rules = replace(clinic.rules, routes=clinic.settings.routes)
        with writing(clinic.engine) as connection:
            jobs.release_held(connection, "config", clinic.clock)

    def node_goes(self, node: str, away: bool) -> None:
        (self.clinic.away.add if away else self.clinic.away.discard)(node)

    # What workers do.

    def work(self, number: int, kind: str, which: int) -> None:
        hand = self.clinic.hands[number]
        if not hand.at:
            hand.start(kind)
        if hand.at:
            self._answer(hand, which)

    def lease_is_over(self, number: int) -> None:
        one, other = self.clinic.hands[number], self.clinic.hands[1 - number]
        self.clinic.end_leases([other])
        while one.at:
            one.go_on(_ANSWERS[one.at][0])

    def _answer(self, hand: Hand, which: int) -> None:
        assert hand.job is not None
        answers = _ANSWERS[hand.at]
        if hand.at == "called" and hand.job.node in self.clinic.away:
            answers = ("away",)
        hand.go_on(answers[which % len(answers)])

    def _work_off(self, kind: str) -> None:
        hand = next((each for each in self.clinic.hands if not each.at), None)
        while hand is not None:
            hand.start(kind)
            if not hand.at:
                break
            while hand.at:
                self._answer(hand, 0)

    # What a person does.

    def person_decides_again(self) -> None:
        with suppress(DicomaiError):
            decide_again(self.clinic.engine, STUDY, self.clinic.clock)
        self.clinic.decide()

    def person_sees_to_a_job(self, which: int, what: str) -> None:
        listed = self._jobs()[::-1]
        if not listed:
            return
        with suppress(NotNow, NotFound):
            self._do(listed[which % len(listed)].id, what)

    def _do(self, job: JobId, what: str) -> None:
        clinic = self.clinic
        if what == "withdraw":
            withdraw(clinic.engine, clinic.settings, job, "It is wrong.", clinic.clock)
            return
        with writing(clinic.engine) as connection:
            if what == "retry":
                jobs.retry(connection, job, clinic.clock)
            elif what == "again":
                again(connection, job, clinic.clock, model=clinic.rules.models["bodies"])
            else:
                jobs.cancel(connection, job, "A person cancelled it.", clinic.clock)
                self.cancelled.add(job)

    def person_corrects(self, patient: str, accession: str) -> None:
        correction = Correction(patient_id=patient, accession_number=accession)
        clinic = self.clinic
        with suppress(DicomaiError):
            reissue(clinic.settings, clinic.engine, STUDY, correction, lambda: clinic.clock)

    def person_accepts(self, which: int) -> None:
        study = self._study()
        if study is not None and study.status == "held":
            self._accept(which)

    def person_pauses(self, subject: Any, mode: Any) -> None:
        with writing(self.clinic.engine) as connection:
            if mode is None:
                pauses.resume(connection, *subject, self.clinic.clock)
            else:
                pauses.pause(connection, *subject, mode, self.clinic.clock)

    def backfill(self, name: str, mode: Any) -> None:
        clinic, day = self.clinic, date(2026, 3, 1)
        with writing(clinic.engine) as connection:
            backfills.add(
                connection,
                NewBackfill(
                    node="PACS1",
                    route=name,
                    mode=mode,
                    first_day=day,
                    last_day=day,
                    studies_per_hour=3600,
                ),
                clinic.clock,
            )
        one = Backfiller(
            settings=clinic.settings,
            engine=clinic.engine,
            clock=lambda: clinic.clock,
            rules=lambda: clinic.rules,
        )
        for _ in range(5):
            one.backfill_once()
            self._later(2)

    def person_does_what_it_says(self, which: int) -> None:
        stuck = [each for each in self._jobs() if each.state in ("held", "failed")]
        if stuck:
            self._follow(stuck[which % len(stuck)])

    # What always holds.

    def nodes_got_what_they_may_have_and_got_it_once(self) -> None:
        assert self.clinic.wrongs == []

    def one_job_is_live(self) -> None:
        live = [
            each.choice
            for each in self._jobs()
            if each.kind == "analyse" and each.state in UNFINISHED
        ]
        assert len(set(live)) == len(live)

    # How it ends.

    def _settle(self) -> None:
        clinic = self.clinic
        for sender in tuple(clinic.associations):
            clinic.end(sender, "lost")
        for hand in clinic.hands:
            while hand.at:
                hand.go_on("dies")
        clinic.end_leases()
        clinic.away.clear()
        others = [each for each in clinic.settings.nodes if each.name not in NODES]
        self._configure(nodes=(*others, *PACS))
        with writing(clinic.engine) as connection:
            for each in pauses.listing(connection):
                pauses.resume(connection, each.subject, each.name, clinic.clock)
        retention.delete_marked(clinic.engine, clinic.settings.folders.data, clinic.clock)
        self._calm()
        if self._reopen():
            self._calm()

    def _reopen(self) -> bool:
        study = self._study()
        if study is None or study.status == "held":
            return False
        decide_again(self.clinic.engine, STUDY, self.clinic.clock)
        return True

    def _calm(self) -> None:
        for turn in range(24):
            self._later(min(61 * 2**turn, DAY_S))
            self.clinic.ingest()
            self.clinic.decide()
            duties.promote(self.clinic.engine, self.clinic.clock)
            for kind in ("analyse", "deliver"):
                self._work_off(kind)
            if turn > 1 and not self._restless():
                break
        assert self._restless() == []
        left = [each for each in self._jobs() if (each.kind, each.state) == ("deliver", "held")]
        assert [each for each in left if is_stale(self.clinic.engine, each)] == []
        self.nodes_got_what_they_may_have_and_got_it_once()

    def _restless(self) -> list[object]:
        going = [each for each in self._jobs() if each.state in ("waiting", "queued", "running")]
        study = self._study()
        opened = [study] if study is not None and study.status in ("open", "deleting") else []
        return [*going, *opened, *reader.entries(self.clinic.settings.folders.spool)]

    def _stands_still(self) -> None:
        """Nothing changes, so nothing is done, however often routes look."""
        before = [each.id for each in self._jobs()]
        for _ in range(2):
            if self._reopen():
                self._calm()
        assert [each.id for each in self._jobs()] == before

    def _is_right(self) -> None:
        study = self._study()
        if study is None or study.status == "held" or study.patient_key == "P7":
            return  # no image says P7, and so none of those that come late gives results
        with reading(self.clinic.engine) as connection:
            rows = [e for e in instances.of_study(connection, STUDY) if e.origin == "received"]
        chosen = chosen_of(study, rows)
        routes = [each for each in self.clinic.rules.routes if each.mode != "off"]
        if not chosen or not routes:
            return
        choice = f"ct={chosen[0].series_instance_uid}"
        of_choice = [e for e in self._jobs() if e.kind == "analyse" and e.choice == choice]
        if self._was_pruned():
            return
        assert of_choice, "nobody was asked to analyse it"
        last = _standing(of_choice)
        assert self._is_of(last, chosen), f"{last.title} is of other images, or another package"
        if last.state != "done":
            assert last.state in ("failed", "held") or last.id in self.cancelled
            return
        if last.is_withdrawal:
            return
        with reading(self.clinic.engine) as connection:
            sent = {each.node: each for each in deliveries.of_analysis(connection, last.id)}
            made = {each.sop_instance_uid for each in instances.of_job(connection, last.id)}
        if not made:  # deleted by retention
            return
        for route in routes:
            for node in route.destinations if route.mode == "live" else ():
                assert node in sent, f"{node} of route {route.name} gets nothing of {last.title}"
                if sent[node].state == "done":
                    self._ends_with(node, last, of_choice)
                else:
                    assert sent[node].state in ("failed", "held") or sent[node].id in self.cancelled

    def _ends_with(self, node: str, last: Job, of_choice: Sequence[Job]) -> None:
        """The node got these results last, and they name all of those before."""
        clinic = self.clinic
        ids = {each.id for each in of_choice}
        got = [each for each in clinic.got.get(node, ()) if each in ids]
        assert got, f"{node} has nothing of {last.title}"
        assert got[-1] == last.id, f"{node} got {got[-1]} last, and not {last.id}"
        if last.is_reissue:
            return  # its note, or a person, takes back what it was before
        here = {clinic.reports[each]: each for each in got if each in clinic.reports}
        named, left = set[str](), [clinic.reports[last.id]]
        while left:
            for each in clinic.before.get(left.pop(), set()) & here.keys() - named:
                named.add(each)
                left.append(each)
        over = clinic.rejected.get(node, set()) | named
        over |= {uid for uid, older in here.items() if self._taken_back(older, of_choice)}
        unnamed = [older for uid, older in here.items() if older != last.id and uid not in over]
        assert unnamed == [], f"{node} has {unnamed}, which {last.id} does not name"

    def _taken_back(self, number: JobId, of_choice: Sequence[Job]) -> bool:
        """Tell whether results were withdrawn, reissued, or deleted here: they need no successor.

        Where no note goes a person sees to those that were; of what retention deleted no name is
        left.
        """
        (job,) = (each for each in of_choice if each.id == number)
        with reading(self.clinic.engine) as connection:
            deleted = not instances.of_job(connection, number)
        return (deleted or job.withdrawn_by is not None) or any(
            each.is_reissue and each.supersedes == number for each in of_choice
        )

    def _is_of(self, job: Job, chosen: Sequence[Instance]) -> bool:
        package = self.clinic.rules.models["bodies"].package_sha256
        with reading(self.clinic.engine) as connection:
            taken = {
                each.sop_instance_uid: each.instance_id
                for each in analyses.inputs(connection, job.id)
            }
            gone = {uid for uid, row in taken.items() if instances.get(connection, row) is None}
        here = {each.sop_instance_uid: each.id for each in chosen}
        return (
            job.package_sha256 == package
            and taken.keys() == here.keys()
            and all(uid in gone or taken[uid] == here[uid] for uid in here)
        )

    def _was_pruned(self) -> bool:
        with reading(self.clinic.engine) as connection:
            story = events.story(connection, STUDY)
        return any("was deleted by retention" in each.sentence for each in story)

    def _has_a_way_out(self) -> None:
        for job in self._jobs():
            now = next((e for e in self._jobs() if e.id == job.id), None)
            if now is not None and now.state == "held":
                self._follow(now)

    def _follow(self, job: Job) -> None:
        """Do what its sentence says, and what is said then, until something moves."""
        with reading(self.clinic.engine) as connection:
            stopped = pauses.stopping(connection, [job])
        if stopped:
            return
        before = self._picture()
        said = job.error_sentence
        if job.state == "failed" or said.endswith(_SAYS):
            said = f"dicomai retry {job.id}"
        tried: list[str] = [f"{job.title}: {said}"]
        for _ in range(6):
            commands = [(m[1], m[2].strip()) for m in _COMMAND.finditer(said)]
            assert commands, f"no way out: {tried}"
            said = self._obey(*commands[-1], job)
            if self._picture() != before:
                return
            tried.append(f"{commands[-1]}: {said}")
            if said == "over":
                return
        raise AssertionError(f"nothing moves: {tried}")

    def _obey(self, command: str, rest: str, job: Job) -> str:
        """Do a command, and return what it says: over, where it is a person's to judge."""
        words = rest.split()
        if command == "study":
            return "" if "--patient" not in words and self._accept(0) else "over"
        if command not in ("retry", "cancel", "withdraw", "job"):
            return "over"
        number = JobId(int(words[0]))
        if command == "job":
            found = next((each for each in self._jobs() if each.id == number), None)
            stuck = found is not None and found.state in ("held", "failed")
            assert number != job.id, f"{job.title} sends in a circle"
            return found.error_sentence if found is not None and stuck else "over"
        try:
            self._do(number, "again" if "--again" in words else command)
        except DicomaiError as error:
            return error.sentence
        return ""

    def _picture(self) -> object:
        study = self._study()
        return [(e.id, e.state) for e in self._jobs()], study and study.status

    # What it looks at.

    def _later(self, s: float) -> None:
        self.clinic.clock = Instant(self.clinic.clock + seconds(s))

    def _jobs(self) -> list[Job]:
        with reading(self.clinic.engine) as connection:
            return list(jobs.listing(connection, 1000))[::-1]

    def _study(self) -> Study | None:
        with reading(self.clinic.engine) as connection:
            return studies.get(connection, STUDY)

    def _accept(self, which: int) -> bool:
        study = self._study()
        if study is None or study.status != "held":
            return False
        with reading(self.clinic.engine) as connection:
            keys = sorted(each for each in series.keys(connection, STUDY) if each)
        if keys:
            accept(self.clinic.engine, STUDY, keys[which % len(keys)], self.clinic.clock)
        return bool(keys)


Step = tuple[str, dict[str, Any]]
_WHICH = tuple(range(12))
_STEPS: tuple[tuple[int, str, dict[str, tuple[Any, ...]]], ...] = (
    (
        8,
        "send",
        {
            "number": (1, 1, 1, 1, 1, 2),
            "slices": ((0, 1, 2),) * 8 + ((0, 1, 2, 3), (3,), (1,)),
            "brightness": (1000, 2000),
            "sender": ("CT1",) * 4 + ("CT2",),
            "patient": ("P1",) * 24 + ("P9",),
        },
    ),
    (
        10,
        "comes_to_rest",
        {"delivers": (True, True, False), "analyses_too": (True, True, True, False)},
    ),
    (2, "time_passes", {"s": (61, 901, 3601, DAY_S, DAY_S, 8 * DAY_S, 31 * DAY_S)}),
    (1, "retention", {}),
    (4, "install", {"which": (0, 1)}),
    (
        4,
        "route",
        {
            "which": (0, 1),
            "mode": ("live", "live", "live", "shadow", "off", None),
            "nodes": (("PACS1",), ("PACS2",), NODES, NODES),
        },
    ),
    (1, "node_is_configured", {"which": (0, 1), "here": (True, False)}),
    (2, "node_goes", {"node": NODES, "away": (True, False)}),
    (8, "work", {"number": (0, 0, 1), "kind": ("analyse", "deliver", "deliver"), "which": _WHICH}),
    (1, "lease_is_over", {"number": (0, 1)}),
    (5, "person_decides_again", {}),
    (
        6,
        "person_sees_to_a_job",
        {"which": _WHICH, "what": ("retry", "again", "again", "cancel", "withdraw", "withdraw")},
    ),
    (2, "person_corrects", {"patient": ("", "P1", "P7"), "accession": ("", "A7", "A8")}),
    (1, "person_accepts", {"which": (0, 1)}),
    (1, "person_pauses", {"subject": SUBJECTS, "mode": ("paused", "draining", None)}),
    (1, "backfill", {"name": ("first", "second"), "mode": ("shadow", "live")}),
    (2, "person_does_what_it_says", {"which": _WHICH}),
)
"""What may happen, how often, and how."""


def _steps(chance: random.Random) -> list[Step]:
    """Return a life."""
    weights = [often for often, *_ in _STEPS]
    return [
        (name, {key: chance.choice(some) for key, some in how.items()})
        for _, name, how in chance.choices(_STEPS, weights, k=40)
    ]


_ANSWERS: dict[str, tuple[str, ...]] = {
    "infer": ("finds",) * 6 + (*ANSWERS,),
    "commit": ("finds",) * 15 + ("dies",),
    "send": ("goes on",) * 15 + ("dies",),
    "called": ("takes",) * 6 + ("warns", "refuses", "no room", "away", "mute", "mute, kept"),
    "stored": ("told",) * 5 + ("loses",),
}
"""What may come at an edge, the best first."""
_SAYS = tuple(str(each) for each in ANSWERS.values())


def _standing(of_choice: Sequence[Job]) -> Job:
    """Return the last analysis; one that was replaced before it was withdrawn stands for none."""
    replaced = {each.supersedes for each in of_choice if not each.is_withdrawal}
    return next(
        each
        for each in of_choice[::-1]
        if not each.is_withdrawal or each.supersedes not in replaced
    )


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_lives_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scu, "store_objects", store_objects)
    monkeypatch.setattr(backfilling, "studies_at", lambda *_: _told())
    monkeypatch.setattr(backfilling, "series_at", lambda *_: ())
    template = tmp_path / "template"
    template.mkdir()
    open_ward(template).engine.dispose()
    one, other = template / "data" / "models" / "bodies", tmp_path / "newer"
    shutil.copytree(one, other)
    manifest = other / "model.toml"
    manifest.write_text(manifest.read_text().replace('"1.0.0"', '"2.0.0"'))
    older = shutil.copytree(one, tmp_path / "older")
    first = int(os.environ.get("DICOMAI_SEED", "0"))
    for seed in range(first, first + int(6 * float(os.environ.get("DICOMAI_FUZZ", "1")))):
        clinic = Watched(template, tmp_path / str(seed), "")
        steps = _steps(random.Random(seed))
        try:
            LifeOfResults(clinic, (older, other)).live(steps)
        except Exception as wrong:
            wrong.add_note(f"This was life {seed}: {steps}")
            raise


def _told() -> Iterable[tuple[StudyInstanceUID, Match]]:
    return [(STUDY, Match(attributes={"StudyDate": "20260301"}))]
