"""A route runs over what Orthanc and dcmqrscp have kept: once, at a pace, and nothing else does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from typer.testing import CliRunner

from dicomai.cli.main import app
from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.net.find import STUDY_ROOT_FIND
from dicomai.routing.condition import parse
from dicomai.routing.pull import Pull
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs, parse_input
from dicomai.service import backfill, overview, rescan
from dicomai.service.backfill import TRIES, Backfiller
from dicomai.service.decide import Rules, decide_due
from dicomai.service.pull import Puller
from dicomai.service.received import Reading, read_object
from dicomai.service.rescan import Rescan
from dicomai.service.retrieve import Retriever
from dicomai.store import (
    archive,
    backfills,
    claims,
    clocks,
    events,
    hosts,
    instances,
    jobs,
    retrievals,
    studies,
)
from dicomai.store.backfills import Backfill, NewBackfill
from dicomai.store.engine import reading, writing
from dicomai.store.job import BEHIND, Job
from dicomai.store.retrievals import NewRetrieval
from dicomai.store.states import HISTORY_STATES
from tests.query_retrieve.conftest import Pacs

MODEL = ModelInputs(
    package_sha256="a" * 64, inputs=(parse_input("ct", "volume", ["Modality = CT"], []),)
)
LUNGS = Route(
    name="lungs",
    model="lungs",
    mode="live",
    when=(parse("calling_node = CT1"),),
    destinations=("PACS1",),
    since=date(2026, 11, 1),
    priority=3,
    urgent=True,
)
EVERYTHING = Route(name="everything", model="nodules", mode="live", destinations=("PACS1",))


on_sqlite = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
"""What hangs on no database is tried on one."""
on_postgresql = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A site with a node that has a history, and what moves its work on."""

    site: Any
    rules: Rules

    def backfiller(self) -> Backfiller:
        return Backfiller(
            settings=self.site.settings,
            engine=self.site.engine,
            clock=now,
            rules=lambda: self.rules,
        )

    def start(self, first: str, last: str, **changes: Any) -> Backfill:
        new = NewBackfill(
            node="PACS1",
            route="lungs",
            mode="shadow",
            first_day=date.fromisoformat(first),
            last_day=date.fromisoformat(last),
            studies_per_hour=36000,
        )
        with writing(self.site.engine) as connection:
            return backfills.add(connection, replace(new, **changes), now()).backfill

    def step(self) -> None:
        """A step of each that has a hand in it; each starts anew, as after a kill."""
        self.backfiller().backfill_once()
        Retriever(settings=self.site.settings, worker=self.site.worker()).work_once()
        decide_due(self.site.engine, self.rules, now())

    def backfill(self, times: int) -> None:
        """Move backfills on by so many steps, by one backfiller that remembers what was refused."""
        backfiller = self.backfiller()
        for _ in range(times):
            backfiller.backfill_once()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.told()
            self.step()

    def finish(self, number: int) -> Backfill:
        self.until(lambda: self.now(number).state == "done")
        return self.now(number)

    def now(self, number: int) -> Backfill:
        with reading(self.site.engine) as connection:
            return backfills.existing(connection, number)

    def told(self) -> list[Any]:
        with reading(self.site.engine) as connection:
            return [
                (each, backfills.studies_of(connection, each, HISTORY_STATES, 100))
                for each in backfills.listing(connection, 10)
            ]

    def studies(self, number: int) -> dict[str, Any]:
        with reading(self.site.engine) as connection:
            backfill = backfills.existing(connection, number)
            found = backfills.studies_of(connection, backfill, HISTORY_STATES, 100)
        return {each.study_instance_uid: each for each in found}

    def jobs(self, study: str, kind: str = "analyse") -> list[Job]:
        with reading(self.site.engine) as connection:
            found = jobs.of_study(connection, StudyInstanceUID(study))
        return [each for each in found if each.kind == kind]

    def modes(self, job: Job) -> dict[str, str]:
        with reading(self.site.engine) as connection:
            return {each.route: each.mode for each in jobs.routes_of(connection, job.id)}

    def study(self, uid: str) -> Any:
        with reading(self.site.engine) as connection:
            return studies.get(connection, StudyInstanceUID(uid))

    def objects(self, uid: str) -> list[str]:
        with reading(self.site.engine) as connection:
            found = instances.of_study(connection, StudyInstanceUID(uid))
        return [each.sop_instance_uid for each in found]


@pytest.fixture
def past(site: Callable[..., Any]) -> Callable[..., Past]:
    """Our side, with two live routes, of which one takes studies of any age."""

    def start(pacs: Any, *routes: Route, receives: bool = True, **changes: Any) -> Past:
        node = pacs.node(**{"retrieve": "get", "quiet_s": 0.01, "floor_s": 0.01} | changes)
        here = site(node, receives=receives)
        known = routes or (LUNGS, EVERYTHING)
        rules = Rules(
            routes=known,
            models={"lungs": MODEL, "nodules": replace(MODEL, package_sha256="b" * 64)},
            patience=seconds(900),
            ageing=seconds(600),
            zone=ZoneInfo("UTC"),
        )
        return Past(site=replace(here, settings=replace(here.settings, routes=known)), rules=rules)

    return start


@pytest.mark.parametrize(
    ("engine", "pacs", "how"),
    [("sqlite", "orthanc", "get"), ("postgresql", "dcmqrscp", "move")],
    indirect=["engine", "pacs"],
)
def test_a_route_runs_over_history_and_no_other_does(
    past: Callable[..., Past], pacs: Any, doe: Any, how: str
) -> None:
    here = past(pacs, retrieve=how)
    begun = here.start("2026-05-19", "2026-05-21")

    done = here.finish(begun.id)

    assert (done.days, done.days_asked, done.trouble) == (3, 3, "")
    found = here.studies(begun.id)
    assert {uid: each.state for uid, each in found.items()} == {doe.uid: "analysis"}
    (job,) = here.jobs(doe.uid)  # of "everything", which takes studies of any age, there is none
    assert (job.id, job.model, job.urgent) == (found[doe.uid].analysis, "lungs", False)
    assert here.modes(job) == {"lungs": "shadow"}  # so that nothing of it leaves
    assert job.priority == LUNGS.priority - BEHIND
    (fetched,) = here.jobs(doe.uid, "retrieve")
    assert fetched.priority == -BEHIND
    assert len(here.objects(doe.uid)) == 4
    because = f"It was fetched for backfill {begun.id} alone, so no route was looked at."
    assert here.study(doe.uid).decision.endswith(because)
    again = here.start("2026-05-19", "2026-05-21")
    here.finish(again.id)
    assert here.studies(again.id)[doe.uid].analysis == job.id
    assert [each.id for each in here.jobs(doe.uid)] == [job.id]


@on_sqlite
def test_only_series_that_the_model_may_get_are_fetched(
    past: Callable[..., Past], pacs: Any, mueller: Any, yamada: Any
) -> None:
    second = replace(LUNGS, when=(parse("SeriesNumber = 2"),))
    here = past(pacs, second)
    ct, mr = here.start("2026-03-01", "2026-03-01"), here.start("2026-04-10", "2026-04-10")

    here.finish(ct.id)
    here.finish(mr.id)

    assert here.objects(mueller.uid) == [mueller.sop_uid(2, 1), mueller.sop_uid(2, 2)]
    assert here.study(yamada.uid) is None
    assert [each.state for each in here.studies(mr.id).values()] in ([], ["left out"])


def by_series(here: Past, number: int) -> Past:
    """The same with a route that wants another series."""
    other = replace(LUNGS, when=(parse(f"SeriesNumber = {number}"),))
    settings = replace(here.site.settings, routes=(other,))
    site = replace(here.site, settings=settings)
    return replace(here, site=site, rules=replace(here.rules, routes=(other,)))


@on_sqlite
def test_a_study_of_which_a_part_is_here_is_fetched_as_far_as_the_route_wants_it(
    past: Callable[..., Past], pacs: Any, mueller: Any
) -> None:
    here = past(pacs)
    first, second = by_series(here, 1), by_series(here, 2)
    first.finish(first.start("2026-03-01", "2026-03-01").id)
    assert len(here.objects(mueller.uid)) == 3
    begun = second.start("2026-03-01", "2026-03-01")
    second.finish(begun.id)
    assert here.studies(begun.id)[mueller.uid].state == "analysis"
    assert len(here.objects(mueller.uid)) == 5
    assert len(here.jobs(mueller.uid)) == len(here.jobs(mueller.uid, "retrieve")) == 2
    again = second.start("2026-02-28", "2026-03-01")
    second.finish(again.id)
    assert here.studies(again.id)[mueller.uid].state == "analysis"
    assert len(here.jobs(mueller.uid, "retrieve")) == 2  # all that it wants is here


@on_sqlite
def test_nothing_is_fetched_of_a_study_that_routes_look_at(
    past: Callable[..., Past], full_orthanc: Any, study_files: Path, doe: Any
) -> None:
    here = past(full_orthanc)
    here.site.put(min((study_files / doe.accession).iterdir()), node="PACS1")
    here.until(lambda: bool(here.jobs(doe.uid)))
    (live,) = here.jobs(doe.uid)

    here.finish(here.start("2026-05-20", "2026-05-20").id)

    assert here.jobs(doe.uid, "retrieve") == []
    assert len(here.objects(doe.uid)) == 1
    (same,) = [each for each in here.jobs(doe.uid) if each.model == live.model]
    assert (same.id, same.state) == (live.id, live.state)


@on_postgresql
def test_a_study_that_is_here_and_gone_at_the_node_is_looked_at_as_it_is(
    past: Callable[..., Past], full_orthanc: Any, made: Any, mueller: Any, tmp_path: Path
) -> None:
    here = past(full_orthanc)
    for image in made(replace(mueller, uid=f"{mueller.uid}.77")):
        image.save_as(tmp_path / "one.dcm", enforce_file_format=True)
        here.site.put(tmp_path / "one.dcm", node="PACS1")
    begun = here.start("2026-03-01", "2026-03-01")
    with writing(here.site.engine) as connection:
        backfills.note_found(
            connection, begun, [(StudyInstanceUID(f"{mueller.uid}.77"), "20260301")]
        )
    here.finish(begun.id)
    assert here.studies(begun.id)[f"{mueller.uid}.77"].state == "analysis"
    assert here.jobs(f"{mueller.uid}.77", "retrieve") == []


@on_sqlite
def test_a_study_that_was_rebuilt_from_the_archive_is_looked_at_as_it_is(
    past: Callable[..., Past], full_orthanc: Any, study_files: Path, doe: Any
) -> None:
    here = past(full_orthanc, receives=False)
    settings = here.site.settings
    for file in (study_files / doe.accession).iterdir():
        read = read_object(file, Reading())
        uids = read.identifiers
        study, series = uids.study_instance_uid, uids.series_instance_uid
        data, digest = settings.folders.data, read.file_sha256
        archive.place(data, file, study, series, uids.sop_instance_uid, digest)
    plan = Rescan(folders=settings.folders, node=settings.node("PACS1"))
    folders = rescan.folders_of(settings.folders.data, ())
    (rebuilt,) = rescan.rescan(here.site.engine, plan, folders, now)
    assert rebuilt.objects == 4
    here.site.ingest()
    assert decide_due(here.site.engine, here.rules, now()) == {}
    assert here.jobs(doe.uid) == []

    begun = here.start("2026-05-20", "2026-05-20")
    here.finish(begun.id)

    assert here.studies(begun.id)[doe.uid].state == "analysis"
    (job,) = here.jobs(doe.uid)
    with reading(here.site.engine) as connection:
        assert len(instances.inputs_of(connection, job.id)) == 4
    assert here.jobs(doe.uid, "retrieve") == []


@on_sqlite
def test_live_results_of_history_have_destinations(
    past: Callable[..., Past], full_orthanc: Any, doe: Any
) -> None:
    here = past(full_orthanc)
    begun = here.start("2026-05-20", "2026-05-20", mode="live")
    here.finish(begun.id)
    (job,) = here.jobs(doe.uid)
    assert here.modes(job) == {"lungs": "live"}


@on_sqlite
def test_a_route_that_was_set_to_shadow_meanwhile_sends_nothing(
    past: Callable[..., Past], full_orthanc: Any, doe: Any
) -> None:
    here = past(full_orthanc, replace(LUNGS, mode="shadow"))
    begun = here.start("2026-05-20", "2026-05-20", mode="live")
    here.finish(begun.id)
    (job,) = here.jobs(doe.uid)
    assert here.modes(job) == {"lungs": "shadow"}


@on_postgresql
def test_what_is_live_already_is_left_as_it_is(
    past: Callable[..., Past], full_orthanc: Any, study_files: Path, doe: Any
) -> None:
    here = past(full_orthanc, replace(LUNGS, since=None, when=()))
    here.site.put(*(study_files / doe.accession).iterdir(), node="PACS1")
    here.until(lambda: bool(here.jobs(doe.uid)))
    (job,) = here.jobs(doe.uid)

    begun = here.start("2026-05-20", "2026-05-20")
    here.finish(begun.id)

    (study,) = here.studies(begun.id).values()
    assert (study.state, study.sentence) == ("left out", f"Job {job.id} does it live already.")
    assert here.modes(job) == {"lungs": "live"}
    assert here.jobs(doe.uid, "retrieve") == []  # it was here


@on_sqlite
def test_a_study_that_is_sent_as_well_is_looked_at_by_all_routes(
    past: Callable[..., Past], full_orthanc: Any, study_files: Path, doe: Any
) -> None:
    here = past(full_orthanc)
    with writing(here.site.engine) as connection:
        wanted = NewRetrieval(
            node="PACS1",
            study_instance_uid=StudyInstanceUID(doe.uid),
            purpose="backfill 1",
            ageing=seconds(600),
        )
        retrievals.queue(connection, wanted, now())
    here.site.put(*(study_files / doe.accession).iterdir(), node="PACS1")
    here.until(lambda: bool(here.jobs(doe.uid)))
    assert [each.model for each in here.jobs(doe.uid)] == ["nodules"]


@on_sqlite
@pytest.mark.parametrize("by", ["sending", "fetching", "a schedule"])
def test_a_study_that_history_brought_first_is_looked_at_when_it_is_sent_or_wanted(
    past: Callable[..., Past], full_dcmqrscp: Any, study_files: Path, doe: Any, by: str
) -> None:
    here = past(full_dcmqrscp)
    here.finish(here.start("2026-05-20", "2026-05-20").id)
    assert [each.model for each in here.jobs(doe.uid)] == ["lungs"]
    uid = StudyInstanceUID(doe.uid)
    if by == "sending":
        here.site.put(*(study_files / doe.accession).iterdir(), node="PACS1")
    elif by == "fetching":
        with writing(here.site.engine) as connection:
            wanted = NewRetrieval(node="PACS1", study_instance_uid=uid, ageing=seconds(600))
            retrievals.queue(connection, wanted, now())
    else:
        pull = Pull(name="ct", node="PACS1", days=0, keys=("PatientID=P3",))
        pulling = replace(here.site.settings, pulls=(pull,))
        Puller(settings=pulling, engine=here.site.engine, clock=now).pull_once()
    here.until(lambda: len(here.jobs(doe.uid)) == 2)
    assert [each.model for each in here.jobs(doe.uid)] == ["lungs", "nodules"]


def test_who_is_killed_between_two_steps_goes_on(
    past: Callable[..., Past],
    full_dcmqrscp: Any,
    mueller: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = past(full_dcmqrscp)
    begun = here.start("2026-03-01", "2026-03-02")
    for module, step in (
        (backfills, "note_found"),
        (backfills, "set_asked"),
        (backfills, "set_pace"),
        (retrievals, "queue"),
        (backfills, "move"),
        (backfills, "set_done"),
    ):
        real, killed = getattr(module, step), []

        def kill(*args: Any, real: Any = real, killed: list[int] = killed, **others: Any) -> Any:
            found = real(*args, **others)
            if not killed:
                killed.append(1)
                raise ZeroDivisionError
            return found

        monkeypatch.setattr(module, step, kill)
        deadline = time.monotonic() + 20
        while not killed:
            assert time.monotonic() < deadline, (step, here.told())
            try:
                here.step()
            except ZeroDivisionError:
                break
        monkeypatch.setattr(module, step, real)
    here.finish(begun.id)
    assert [each.state for each in here.studies(begun.id).values()] == ["analysis"]
    assert len(here.jobs(mueller.uid)) == len(here.jobs(mueller.uid, "retrieve")) == 1


@on_postgresql
def test_two_schedulers_do_nothing_twice(
    past: Callable[..., Past], full_dcmqrscp: Any, mueller: Any
) -> None:
    here = past(full_dcmqrscp)
    begun = here.start("2026-02-27", "2026-03-02")
    over = threading.Event()

    def other() -> None:
        while not over.is_set():
            here.backfiller().backfill_once()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        here.finish(begun.id)
    finally:
        over.set()
        thread.join(20)
    assert len(here.jobs(mueller.uid)) == len(here.jobs(mueller.uid, "retrieve")) == 1


@on_sqlite
def test_a_node_that_is_away_is_told_of_and_waited_for(
    past: Callable[..., Past], full_dcmqrscp: Any, mueller: Any
) -> None:
    here = past(full_dcmqrscp)
    begun = here.start("2026-03-01", "2026-03-01")
    (node,) = here.site.settings.nodes
    gone = replace(here.site.settings, nodes=(replace(node, port=1),))
    away = replace(here, site=replace(here.site, settings=gone))
    backfiller = away.backfiller()
    backfiller.backfill_once()
    assert here.now(begun.id).trouble.startswith("PACS1 can't be reached")
    with reading(here.site.engine) as connection:
        seen = overview.of_service(connection, here.site.settings, now(), 1)
    assert any("over PACS1) waits: PACS1 can't be reached" in each for each in seen.remarks)
    backfiller.backfill_once()  # it is left in peace for a while
    here.until(lambda: bool(here.studies(begun.id)))
    assert here.now(begun.id).trouble == ""
    away.backfiller().backfill_once()  # away again, in the middle
    assert here.now(begun.id).trouble
    here.finish(begun.id)
    assert [each.state for each in here.studies(begun.id).values()] == ["analysis"]


@on_postgresql
def test_what_is_gone_or_does_not_come_has_a_sentence_and_may_come_later(
    past: Callable[..., Past], full_dcmqrscp: Any, mueller: Any
) -> None:
    here = past(full_dcmqrscp)
    begun = here.start("2026-03-01", "2026-03-01")
    with writing(here.site.engine) as connection:
        gone = [(StudyInstanceUID("1.2.3"), "20260301")]
        backfills.note_found(connection, begun, gone)
    here.until(lambda: here.studies(begun.id)["1.2.3"].state != "found")
    left = here.studies(begun.id)["1.2.3"]
    assert (left.state, left.sentence) == ("left out", "PACS1 has no series of it any more.")
    while not here.jobs(mueller.uid, "retrieve"):
        here.backfiller().backfill_once()
    with writing(here.site.engine) as connection:
        job = claims.claim(connection, "tests", ("retrieve",), (), now())
        assert job is not None
        jobs.fail(connection, job.held, "refused", "It says no.", "fetch", "", now())
    here.backfiller().backfill_once()
    failed = here.studies(begun.id)[mueller.uid]
    assert (failed.state, failed.sentence) == ("failed", "It says no.")
    here.until(lambda: here.now(begun.id).state == "done")
    with writing(here.site.engine) as connection:
        jobs.retry(connection, job.id, now())
    here.until(lambda: bool(here.jobs(mueller.uid)))


@contextmanager
def telling(port: int, on_find: Callable[[Dataset], Iterator[Any]]) -> Iterator[Pacs]:
    """A node of which a test says what it tells."""
    entity = AE("PACS1")
    entity.add_supported_context(STUDY_ROOT_FIND)
    handlers = [(evt.EVT_C_FIND, lambda event: on_find(event.identifier))]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield Pacs(name="odd", ae_title="PACS1", port=port)
    finally:
        server.shutdown()


def match(**attributes: str) -> tuple[int, Dataset]:
    one = Dataset()
    for keyword, value in attributes.items():
        setattr(one, keyword, value)
    return 0xFF00, one


def a_study(asked: Dataset, uid: str) -> tuple[int, Dataset]:
    """Tell of a study, or of a series of it."""
    if asked.QueryRetrieveLevel == "STUDY":
        return match(StudyInstanceUID=uid, StudyDate="20260301", ModalitiesInStudy="CT")
    return match(
        StudyInstanceUID=uid,
        SeriesInstanceUID=f"{uid}.1",
        Modality="CT",
        NumberOfSeriesRelatedInstances="1",
    )


@on_sqlite
def test_a_study_of_which_its_node_tells_nothing_holds_up_no_other(
    past: Callable[..., Past], free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "AGAIN_S", 0.0)
    asked_of = []

    def tell(asked: Dataset) -> Iterator[Any]:
        if asked.QueryRetrieveLevel == "STUDY":
            for uid in ("1.2.1", "1.2.2"):
                yield a_study(asked, uid)
            return
        asked_of.append(str(asked.StudyInstanceUID))
        if asked_of[-1] == "1.2.1":
            yield 0xC001, None
        else:
            yield a_study(asked, "1.2.2")

    with telling(free_port, tell) as node:
        here = past(node)
        begun = here.start("2026-03-01", "2026-03-01")
        here.backfill(10)
    found = here.studies(begun.id)
    assert {uid: each.state for uid, each in found.items()} == {
        "1.2.1": "failed",
        "1.2.2": "fetching",
    }
    assert "PACS1 failed to look for series (status 0xC001)" in found["1.2.1"].sentence
    assert asked_of == ["1.2.1"] * TRIES + ["1.2.2"]


@on_sqlite
def test_a_node_that_tells_of_other_days_brings_none_of_them(
    past: Callable[..., Past], free_port: int
) -> None:
    days = {"1.2.1": "20260301", "1.2.2": "20250301", "1.2.3": ""}

    def tell(asked: Dataset) -> Iterator[Any]:
        if asked.QueryRetrieveLevel == "STUDY":
            for uid, day in days.items():
                yield match(StudyInstanceUID=uid, StudyDate=day, ModalitiesInStudy="CT")

    with telling(free_port, tell) as node:
        here = past(node)
        begun = here.start("2026-03-01", "2026-03-01")
        here.finish(begun.id)
    assert set(here.studies(begun.id)) == {"1.2.1", "1.2.3"}


@on_sqlite
def test_what_ends_while_its_node_is_asked_fetches_nothing(
    past: Callable[..., Past], free_port: int
) -> None:
    def tell(asked: Dataset) -> Iterator[Any]:
        if asked.QueryRetrieveLevel == "SERIES":
            with writing(here.site.engine) as connection:
                backfills.cancel(connection, begun.id, now())
        yield a_study(asked, "1.2.1")

    with telling(free_port, tell) as node:
        here = past(node)
        begun = here.start("2026-03-01", "2026-03-01")
        here.backfill(4)
    assert here.now(begun.id).state == "cancelled"
    assert here.jobs("1.2.1", "retrieve") == []


@on_sqlite
def test_a_node_that_is_in_trouble_as_a_whole_fails_no_study(
    past: Callable[..., Past], free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "AGAIN_S", 0.0)
    well = True

    def tell(asked: Dataset) -> Iterator[Any]:
        nonlocal well
        yield a_study(asked, "1.2.1") if well else (0xC001, None)
        well = False

    with telling(free_port, tell) as node:
        here = past(node)
        begun = here.start("2026-03-01", "2026-03-01")
        here.backfill(10)
    assert [each.state for each in here.studies(begun.id).values()] == ["found"]
    assert "PACS1 failed to look for" in here.now(begun.id).trouble


@on_sqlite
def test_a_day_of_which_not_all_is_told_is_gone_on_from_and_told_of(
    past: Callable[..., Past], free_port: int
) -> None:
    def tell(asked: Dataset) -> Iterator[Any]:
        if asked.QueryRetrieveLevel == "STUDY" and asked.StudyDate == "20260301":
            yield a_study(asked, "1.2.1")
            yield 0xA700, None

    with telling(free_port, tell) as node:
        here = past(node)
        begun = here.start("2026-02-28", "2026-03-02")
        done = here.finish(begun.id)
    assert (done.days_asked, done.trouble) == (3, "Of 1 day PACS1 did not tell all studies.")
    assert {uid: each.state for uid, each in here.studies(begun.id).items()} == {
        "1.2.1": "left out"
    }
    with reading(here.site.engine) as connection:
        (cut,) = events.of_service(connection, ("backfill cut",), 10)
        (over,) = events.of_service(connection, ("backfill done",), 10)
    assert "leaves studies out. Of 2026-03-01 not all studies are told of: PACS1" in cut.sentence
    assert over.sentence.endswith("told. Of 1 day PACS1 did not tell all studies.")


@on_postgresql
def test_analyses_that_wait_for_a_person_hold_up_no_backfill(
    past: Callable[..., Past],
    full_orthanc: Any,
    mueller: Any,
    doe: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backfill, "MOST_WAITING", 1)
    here = past(full_orthanc)
    begun = here.start("2026-03-01", "2026-03-01")
    with writing(here.site.engine) as connection:
        backfills.note_found(connection, begun, [(StudyInstanceUID(doe.uid), "20260520")])
    here.until(lambda: mueller.uid in here.studies(begun.id))  # when the first one is dealt with
    here.step()
    assert not here.jobs(mueller.uid, "retrieve")
    with writing(here.site.engine) as connection:
        job = claims.claim(connection, "tests", ("analyse",), ("lungs",), now())
        assert job is not None
        jobs.fail(connection, job.held, "refused", "The gate refused it.", "check", "", now())
    here.until(lambda: bool(here.jobs(mueller.uid)))
    assert [each.state for each in here.jobs(doe.uid)] == ["held"]


@on_sqlite
@pytest.mark.parametrize(
    ("limit", "words"),
    [("MOST_WAITING", "analyses are not over"), ("MOST_FETCHED", "studies are being fetched")],
)
def test_a_limit_that_lets_nothing_through_is_told_of(
    past: Callable[..., Past],
    full_orthanc: Any,
    mueller: Any,
    doe: Any,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    words: str,
) -> None:
    monkeypatch.setattr(backfill, limit, 1)
    here = past(full_orthanc)
    begun = here.start("2026-03-01", "2026-03-01", studies_per_hour=1e9)
    with writing(here.site.engine) as connection:
        backfills.note_found(connection, begun, [(StudyInstanceUID(doe.uid), "20260520")])
    if limit == "MOST_WAITING":
        here.until(lambda: bool(here.jobs(doe.uid)))
    backfiller = here.backfiller()
    for _ in range(4):  # the first one is dealt with, the day is asked for, the next one waits
        backfiller.backfill_once()
    assert here.studies(begun.id)[mueller.uid].state == "found"
    assert here.now(begun.id).trouble == ""  # that is usual
    monkeypatch.setattr(backfill, "LONG_S", 0.0)
    backfiller.backfill_once()
    assert here.now(begun.id).trouble.startswith(f"1 of its {words}, and have been for more than")


@on_sqlite
def test_a_pace_is_kept(past: Callable[..., Past], full_dcmqrscp: Any) -> None:
    here = past(full_dcmqrscp)
    begun = here.start("2026-03-01", "2026-03-01", studies_per_hour=1.0)
    with writing(here.site.engine) as connection:
        other = [(StudyInstanceUID("1.2.999"), "20260302")]
        backfills.note_found(connection, begun, other)
        backfills.set_pace(connection, begun, now())
    for _ in range(3):
        here.step()
    assert {each.state for each in here.studies(begun.id).values()} == {"found"}
    assert here.now(begun.id).next_at > now() + seconds(3000)


@on_postgresql
def test_what_has_not_begun_ends_with_its_backfill(
    past: Callable[..., Past], full_dcmqrscp: Any, mueller: Any
) -> None:
    here = past(full_dcmqrscp)
    begun = here.start("2026-03-01", "2026-03-05")
    here.until(lambda: bool(here.jobs(mueller.uid)))
    with writing(here.site.engine) as connection:
        assert backfills.cancel(connection, begun.id, now()) == 1
    assert [each.state for each in here.jobs(mueller.uid)] == ["cancelled"]
    for _ in range(3):
        here.step()
    assert here.now(begun.id).state == "cancelled"
    assert here.now(begun.id).days_asked < 5
    fresh = here.start("2026-03-01", "2026-03-05")
    assert fresh.id != begun.id


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["NOBODY", "--route", "lungs"], 4, "has no node 'NOBODY'"),
        (["PACS1", "--route", "lung"], 4, "has no route 'lung'. There are: lungs, rests."),
        (["PACS1", "--route", "rests"], 3, "Route rests is off."),
        (["PACS1", "--route", "lungs", "--mode", "live"], 3, "Route lungs is in shadow"),
        (["PACS1", "--route", "lungs", "--to", "2025-01-01"], 2, "that is no day"),
        (["PACS1", "--route", "lungs", "--to", "2199-01-01"], 2, "lies in the future"),
        (["PACS1", "--route", "lungs", "--to", "May"], 2, "is no date. Write it as"),
        (["CT1", "--route", "lungs"], 3, "node CT1 has no host"),
    ],
)
def test_a_backfill_that_cannot_be_is_refused(
    configured: Callable[..., tuple[int, str]], arguments: list[str], code: int, words: str
) -> None:
    last = [] if "--to" in arguments else ["--to", "2026-02-01"]
    found, said = configured("backfill", *arguments, "--from", "2026-01-01", *last)
    assert (found, words in " ".join(said.split())) == (code, True), said


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str]]:
    """Run `dicomai` with a configuration, and an empty catalogue."""
    folder = tmp_path_factory.mktemp("configured")
    file = folder / "dicomai.toml"
    file.write_text(
        '[service]\ndata = "data"\n'
        '[[nodes]]\nname = "PACS1"\nae_title = "PACS1"\nhost = "127.0.0.1"\nport = 1\n'
        '[[nodes]]\nname = "CT1"\nae_title = "CT1"\n'
        '[[routes]]\nname = "lungs"\nmodel = "chest-ct-lungs"\nmode = "shadow"\n'
        '[[routes]]\nname = "rests"\nmodel = "chest-ct-lungs"\nmode = "off"\n'
    )
    (folder / "data").mkdir()

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["--config", str(file), *arguments])
        return done.exit_code, done.output

    assert run("db", "upgrade")[0] == 0
    return run


def test_backfills_are_listed_and_ended(
    configured: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = ("backfill", "PACS1", "--route", "lungs", "--from", "2026-01-01", "--to", "20260131")
    assert json.loads(configured(*begin, "--json")[1]) == {"backfill": 1, "outcome": "started"}
    said = configured(*begin)[1]
    assert "Backfill 1 is under way already" in said
    assert "No scheduler runs, so nothing happens yet." in said
    with monkeypatch.context() as ahead:  # a host that tells of itself by the database's clock
        told = Instant(now() - seconds(7200))
        alive = hosts.Host(name="here", ingested_to=told, beat_at=told)
        ahead.setattr(clocks, "of_server", lambda _: told)
        ahead.setattr(hosts, "listing", lambda _: (alive,))
        assert "No scheduler runs" not in configured(*begin)[1]
    (listed,) = json.loads(configured("backfills", "--json")[1])
    assert (listed["state"], listed["mode"], listed["days"], listed["days_asked"]) == (
        "running",
        "shadow",
        31,
        0,
    )
    assert "0 of 31" in configured("backfills")[1]
    assert "60 studies an hour" in configured("backfills", "1")[1]
    assert configured("backfills", "7")[0] == 4
    assert configured("backfills", "--cancel")[0] == 2
    assert "Backfill 1 is cancelled, and no job" in configured("backfills", "1", "--cancel")[1]
    assert configured("backfills", "1", "--cancel")[0] == 1
    assert json.loads(configured("backfills", "1", "--json")[1])["studies"] == []
