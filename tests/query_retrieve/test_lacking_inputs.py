"""A prior or a second series that a model takes is fetched while its job waits, or is missing."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from dicomai.cli.jobs import remark
from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import TransientError
from dicomai.net import find as finding
from dicomai.net.find import STUDY_ROOT_FIND
from dicomai.net.node import Node
from dicomai.routing.condition import parse
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs, parse_input
from dicomai.service.again import again
from dicomai.service.decide import Rules, accept, decide_due
from dicomai.service.lacking import Seeker
from dicomai.service.retrieve import Retriever
from dicomai.store import analyses, decisions, events, hosts, jobs, lacking, studies
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job

CT = parse_input("ct", "volume", ["Modality = CT"], [])
PRIOR = parse_input("prior", "volume", ["Modality = CT"], ["-instances"], source="prior")
NEW = "1.2.826.0.1.3680043.10.543.44"

on_sqlite = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clinic:
    """A site whose model takes something that another node has."""

    site: Any
    rules: Rules
    folder: Path

    def send(self, images: list[Any], **changes: object) -> None:
        """Have images come from a modality."""
        for image in images:
            for keyword, value in changes.items():
                setattr(image, keyword, value)
            path = self.folder / f"{image.SOPInstanceUID}.dcm"
            image.save_as(path, enforce_file_format=True)
            self.site.put(path)

    def seeker(self, later_s: float = 0.0) -> Seeker:
        return Seeker(
            settings=self.site.settings,
            engine=self.site.engine,
            clock=lambda: Instant(now() + seconds(later_s)),
            rules=lambda: self.rules,
        )

    def step(self) -> None:
        """A step of each that has a hand in it; each starts anew, as after a kill."""
        self.seeker().seek_once()
        Retriever(settings=self.site.settings, worker=self.site.worker()).work_once()
        self.decide()

    def decide(self) -> None:
        with reading(self.site.engine) as connection:
            reached = min(each.ingested_to for each in hosts.listing(connection))
        decide_due(self.site.engine, self.rules, reached)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.jobs(NEW)
            self.step()

    def jobs(self, study: str, kind: str = "analyse") -> list[Job]:
        with reading(self.site.engine) as connection:
            found = jobs.of_study(connection, StudyInstanceUID(study))
        return [each for each in found if each.kind == kind]

    def waiting(self, study: str) -> Job:
        """Decide on a study, and return the job that waits for an input."""
        deadline = time.monotonic() + 20
        while not self.jobs(study):
            assert time.monotonic() < deadline
            self.decide()
        (job,) = self.jobs(study)
        assert (job.state, job.waiting_for) == ("waiting", "input")
        return job

    def inputs(self, job: Job) -> dict[str, set[str]]:
        """The series that a job takes, by input."""
        found: dict[str, set[str]] = {}
        with reading(self.site.engine) as connection:
            for each in analyses.inputs(connection, job.id):
                found.setdefault(each.input, set()).add(each.series_instance_uid)
        return found


@pytest.fixture
def clinic(site: Callable[..., Any], tmp_path: Path) -> Callable[..., Clinic]:
    """Our side, with a live route for a model of two inputs."""

    def start(pacs: Any, spec: Any = PRIOR, when: str = "Modality = CT", **changes: Any) -> Clinic:
        modality = Node(name="CT1", ae_title="CT1", quiet_s=0.01)
        here = site(pacs.node(**{"retrieve": "get", "quiet_s": 0.01} | changes), modality)
        routes = (
            Route(
                name="compare", model="compare", when=(parse(when),), inputs_from="PACS1",
                destinations=("PACS1",),
            ),
        )  # fmt: skip
        model = ModelInputs(package_sha256="a" * 64, inputs=(CT, spec))
        return Clinic(
            site=replace(here, settings=replace(here.settings, routes=routes)),
            rules=Rules(
                routes=routes,
                models={"compare": model},
                patience=seconds(900),
                ageing=seconds(600),
                zone=ZoneInfo("UTC"),
            ),
            folder=tmp_path,
        )

    return start


@pytest.fixture
def today(made: Callable[[Any], list[Any]], mueller: Any) -> list[Any]:
    """A new study of the patient of whom the archives have a CT of 2026-03-01."""
    return made(replace(mueller, uid=NEW, accession="A44", date="20260601", images=(3,)))


@pytest.mark.parametrize(
    ("engine", "pacs", "how"),
    [("sqlite", "orthanc", "get"), ("postgresql", "dcmqrscp", "move")],
    indirect=["engine", "pacs"],
)
def test_a_prior_is_fetched_while_the_job_waits(
    clinic: Callable[..., Clinic], pacs: Any, today: list[Any], mueller: Any, how: str
) -> None:
    here = clinic(pacs, retrieve=how)
    here.send(today)
    job = here.waiting(NEW)
    assert remark(job) == "Waits for an input. PACS1 is asked for its input prior."
    assert here.inputs(job) == {"ct": {f"{NEW}.1"}}

    here.seeker().seek_once()

    (fetch,) = here.jobs(mueller.uid, "retrieve")
    (waits,) = here.jobs(NEW)
    assert f"Job {fetch.id} fetches 2 series of the study of 20260301 from PACS1" in remark(waits)
    assert not here.seeker().seek_once()  # it is under way
    here.until(lambda: here.jobs(NEW)[0].state == "queued")
    (whole,) = here.jobs(NEW)
    assert whole.id == job.id
    assert here.inputs(whole) == {"ct": {f"{NEW}.1"}, "prior": {mueller.series_uid(1)}}
    assert whole.error_sentence == ""
    assert here.jobs(mueller.uid) == []  # nobody asked for an analysis of the prior
    with reading(here.site.engine) as connection:
        known = studies.get(connection, StudyInstanceUID(mueller.uid))
        told = events.story(connection, StudyInstanceUID(NEW))
    assert known is not None
    assert f"It was fetched for job {job.id} alone" in known.decision
    assert any(each.kind == "job waits" for each in told)
    # An object that comes late changes nothing of it.
    here.send(today[:1], SeriesInstanceUID=f"{NEW}.9", SOPInstanceUID=f"{NEW}.9.1", Modality="MR")
    here.until(lambda: _decisions(here) == 2)
    assert [each.id for each in here.jobs(NEW)] == [job.id]


def _decisions(here: Clinic) -> int:
    with reading(here.site.engine) as connection:
        told = events.story(connection, StudyInstanceUID(NEW))
    return sum(each.kind == "study decided" for each in told)


@on_sqlite
def test_the_archive_is_looked_at_first(
    clinic: Callable[..., Clinic],
    full_orthanc: Any,
    today: list[Any],
    made: Callable[[Any], list[Any]],
    mueller: Any,
) -> None:
    here = clinic(full_orthanc)
    for uid, date in (("1.2.3.1", "20250101"), ("1.2.3.2", "20250301"), ("1.2.3.3", "20270101")):
        here.send(made(replace(mueller, uid=uid, date=date, images=(3,))))
        here.until(lambda uid=uid: here.jobs(uid))  # type: ignore[misc]  # bound at once
    here.send(today)
    deadline = time.monotonic() + 20
    while not here.jobs(NEW):
        assert time.monotonic() < deadline
        here.decide()
    (job,) = here.jobs(NEW)
    assert job.state == "queued"
    assert here.inputs(job)["prior"] == {"1.2.3.2.1"}  # the latest of those before it


@on_postgresql
def test_another_patients_study_is_never_a_prior(
    clinic: Callable[..., Clinic],
    full_dcmqrscp: Any,
    made: Callable[[Any], list[Any]],
    mueller: Any,
    study_files: Path,
) -> None:
    here = clinic(full_dcmqrscp, replace(PRIOR, max_age_days=500, optional=True))
    here.site.put(*(study_files / mueller.accession).iterdir())  # it is here as well
    here.until(lambda: here.jobs(mueller.uid))
    others = [
        {"PatientBirthDate": "19700102"},  # another person with the same ID
        {"PatientID": "P9"},
        {"PatientID": ""},  # a name alone is no identity to compare by
        {"StudyDate": "20260301", "StudyTime": "101500"},  # not before it
        {"StudyDate": "20290301"},  # too long ago
    ]
    uids = [f"{NEW}.{number}" for number, _ in enumerate(others)]
    for uid, changes in zip(uids, others, strict=True):
        here.send(made(replace(mueller, uid=uid, date="20260601", images=(3,))), **changes)
    for uid in uids:
        here.waiting(uid)

    here.seeker().seek_once()

    for uid in uids:
        (job,) = here.jobs(uid)
        assert here.inputs(job) == {"ct": {f"{uid}.1"}}
        assert job.state == "queued"
        assert lacking.missing_of(job) == {"prior": "PACS1 has nothing for input prior."}
    assert here.jobs(mueller.uid, "retrieve") == []


@on_sqlite
@pytest.mark.parametrize("born", ["00000000", "1960.01.02"])
def test_a_birth_date_that_is_none_or_written_otherwise_is_no_other_patients(
    clinic: Callable[..., Clinic], full_dcmqrscp: Any, today: list[Any], mueller: Any, born: str
) -> None:
    here = clinic(full_dcmqrscp)
    here.send(today, PatientBirthDate=born)
    here.waiting(NEW)

    here.seeker().seek_once()

    assert len(here.jobs(mueller.uid, "retrieve")) == 1


@on_sqlite
def test_a_second_series_is_fetched_and_the_same_job_gets_it(
    clinic: Callable[..., Clinic], full_dcmqrscp: Any, study_files: Path, mueller: Any
) -> None:
    second = parse_input("second", "volume", ["SeriesNumber = 2"], [])
    here = clinic(full_dcmqrscp, second, "SeriesNumber = 1")
    files = [study_files / "A1" / f"{mueller.sop_uid(1, image)}.dcm" for image in (1, 2, 3)]
    here.site.put(*files)
    job = here.waiting(mueller.uid)
    here.until(lambda: here.jobs(mueller.uid)[0].state == "queued")
    (whole,) = here.jobs(mueller.uid)
    assert whole.id == job.id
    assert here.inputs(whole) == {"ct": {mueller.series_uid(1)}, "second": {mueller.series_uid(2)}}


@on_sqlite
def test_what_does_not_come_in_time_is_gone_without(
    clinic: Callable[..., Clinic], full_orthanc: Any, today: list[Any]
) -> None:
    here = clinic(full_orthanc)
    here.send(today)
    job = here.waiting(NEW)
    gone = replace(here.site.settings, nodes=(replace(here.site.settings.nodes[0], port=1),))
    away = replace(here, site=replace(here.site, settings=gone))
    away.seeker().seek_once()
    (waits,) = here.jobs(NEW)
    assert "It is asked for again until" in remark(waits)
    assert "PACS1 can't be reached" in remark(waits)
    assert away.seeker(later_s=601).seek_once()
    (left,) = here.jobs(NEW)
    assert (left.id, left.state, left.error_sentence) == (job.id, "queued", "")
    assert "did not come within 0:10:00: PACS1 can't be reached" in lacking.missing_of(left)[""]


class CutShort:
    """A node that has one prior of two series; while `cut` says so it breaks off amid answers."""

    def __init__(self, port: int, patient: Any) -> None:
        self.cut = ""
        self.how = ""
        self._port = port
        self._patient = patient

    def node(self, **changes: Any) -> Node:
        return Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=self._port, **changes)

    def find(self, event: evt.Event) -> Iterator[Any]:
        level = str(event.identifier.QueryRetrieveLevel)
        for number in range(1 if level == "STUDY" else 2):
            match = Dataset()
            match.QueryRetrieveLevel = level
            match.StudyInstanceUID = self._patient.uid
            match.StudyDate, match.PatientID = "20260301", self._patient.patient_id
            if level == "SERIES":
                match.SeriesInstanceUID = f"{self._patient.uid}.{number + 1}"
                match.Modality, match.NumberOfSeriesRelatedInstances = "CT", 3
            yield 0xFF00, match
            if level == self.cut:
                if self.how == "aborted":
                    event.assoc.abort()
                else:
                    event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
                return


@on_sqlite
@pytest.mark.parametrize("how", ["aborted", "lost"])
@pytest.mark.parametrize("level", ["STUDY", "SERIES"])
def test_answers_that_are_cut_short_are_asked_for_again(
    clinic: Callable[..., Clinic],
    free_port: int,
    today: list[Any],
    mueller: Any,
    level: str,
    how: str,
) -> None:
    """What was told before says neither that there is a prior, nor that there is none."""
    pacs = CutShort(free_port, mueller)
    entity = AE("PACS1")
    entity.add_supported_context(STUDY_ROOT_FIND)
    server = entity.start_server(
        ("127.0.0.1", free_port), block=False, evt_handlers=[(evt.EVT_C_FIND, pacs.find)]
    )
    try:
        here = clinic(pacs)
        here.send(today)
        job = here.waiting(NEW)
        pacs.cut, pacs.how = level, how
        here.seeker().seek_once()
        (waits,) = here.jobs(NEW)
        assert (waits.state, waits.waiting_for) == ("waiting", "input")
        assert "It is asked for again until" in remark(waits)
        assert f"PACS1 gave no answer to a C-FIND for {level.lower()}, or broke off." in remark(
            waits
        )
        assert not here.jobs(mueller.uid, "retrieve")
        assert not lacking.missing_of(waits)
        pacs.cut = ""
        assert here.seeker().seek_once()
        (fetch,) = here.jobs(mueller.uid, "retrieve")
        (waits,) = here.jobs(NEW)
        assert waits.id == job.id
        assert f"Job {fetch.id} fetches 2 series of the study of 20260301" in remark(waits)
    finally:
        server.shutdown()


@on_sqlite
def test_what_comes_late_is_taken_when_a_person_asks_again(
    clinic: Callable[..., Clinic], full_dcmqrscp: Any, today: list[Any], mueller: Any
) -> None:
    here = clinic(full_dcmqrscp)
    here.send(today)
    job = here.waiting(NEW)
    assert here.seeker().seek_once()
    assert here.seeker(later_s=601).seek_once()
    (left,) = here.jobs(NEW)
    assert lacking.missing_of(left) == {"prior": "It did not come within 0:10:00."}
    here.until(lambda: _decided(here, mueller.uid))
    with writing(here.site.engine) as connection:
        jobs.cancel(connection, job.id, "Enough.", now())
        fresh = again(connection, job.id, now(), model=here.rules.models["compare"])
    taken = here.inputs(here.site.job(fresh))
    assert taken == {"ct": {f"{NEW}.1"}, "prior": {mueller.series_uid(1)}}


def _decided(here: Clinic, uid: str) -> bool:
    with reading(here.site.engine) as connection:
        known = studies.get(connection, StudyInstanceUID(uid))
    return known is not None and known.status == "decided"


@on_sqlite
def test_a_study_that_is_held_waits_on(
    clinic: Callable[..., Clinic], full_dcmqrscp: Any, today: list[Any]
) -> None:
    here = clinic(full_dcmqrscp)
    here.send(today)
    job = here.waiting(NEW)
    stray = {"SeriesInstanceUID": f"{NEW}.7", "SOPInstanceUID": f"{NEW}.7.1", "PatientID": "P7"}
    here.send(today[:1], **stray)
    here.until(lambda: not _decided(here, NEW))
    assert not here.seeker(later_s=601).seek_once()
    assert [(each.id, each.state) for each in here.jobs(NEW)] == [(job.id, "waiting")]
    accept(here.site.engine, StudyInstanceUID(NEW), IdentityKey("P1"), now())
    here.until(lambda: here.jobs(NEW)[-1].state == "queued")
    assert "prior" in here.inputs(here.jobs(NEW)[-1])


@on_sqlite
def test_a_study_that_is_held_while_a_node_is_asked_waits_on(
    clinic: Callable[..., Clinic],
    full_orthanc: Any,
    today: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = clinic(full_orthanc)
    here.send(today)
    job = here.waiting(NEW)

    def meanwhile(*_: Any, **__: Any) -> Any:
        with writing(here.site.engine) as connection:
            decisions.hold(connection, StudyInstanceUID(NEW), "Two patients.", now())
        raise TransientError("PACS1 can't be reached.")

    monkeypatch.setattr(finding, "find", meanwhile)
    assert not here.seeker(later_s=601).seek_once()
    assert [(each.id, each.state) for each in here.jobs(NEW)] == [(job.id, "waiting")]


@on_sqlite
def test_what_comes_and_does_not_fit_is_tried_once(
    clinic: Callable[..., Clinic], full_orthanc: Any, today: list[Any], mueller: Any
) -> None:
    # What a node tells of a series says nothing of its rows.
    here = clinic(full_orthanc, parse_input("prior", "volume", ["Rows = 7"], [], source="prior"))
    here.send(today)
    here.waiting(NEW)
    here.until(lambda: here.jobs(NEW)[0].state == "queued")
    (job,) = here.jobs(NEW)
    assert lacking.missing_of(job) == {
        "prior": "PACS1 has nothing for input prior besides what came and does not fit."
    }
    assert len(here.jobs(mueller.uid, "retrieve")) == 1


@on_sqlite
def test_one_of_two_may_be_missing(
    clinic: Callable[..., Clinic], full_dcmqrscp: Any, today: list[Any], mueller: Any
) -> None:
    here = clinic(full_dcmqrscp)
    model = here.rules.models["compare"]
    second = parse_input("second", "volume", ["SeriesNumber = 7"], [])
    both = replace(model, inputs=(CT, second, PRIOR))
    here = replace(here, rules=replace(here.rules, models={"compare": both}))
    here.send(today)
    here.waiting(NEW)
    here.until(lambda: here.jobs(NEW)[0].state == "queued")
    (job,) = here.jobs(NEW)
    assert here.inputs(job) == {"ct": {f"{NEW}.1"}, "prior": {mueller.series_uid(1)}}
    assert lacking.missing_of(job) == {"second": "PACS1 has nothing for input second."}


@on_postgresql
def test_a_job_that_waits_can_be_cancelled(
    clinic: Callable[..., Clinic], full_orthanc: Any, today: list[Any]
) -> None:
    here = clinic(full_orthanc)
    here.send(today)
    job = here.waiting(NEW)
    with writing(here.site.engine) as connection:
        jobs.cancel(connection, job.id, "Enough.", now())
    assert not here.seeker().seek_once()
    assert here.jobs(NEW)[0].state == "cancelled"
