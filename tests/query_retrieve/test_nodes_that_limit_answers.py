"""Nodes that tell no more than so many matches: what they have is asked for in smaller parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import TransientError
from dicomai.net.calling import patience
from dicomai.net.find import STUDY_ROOT_FIND
from dicomai.net.node import Node
from dicomai.routing.pull import Pull
from dicomai.service.listing import Span, Untold, span_of, studies_at
from dicomai.service.overview import of_service
from dicomai.service.pull import Puller
from dicomai.service.retrieve import Retriever
from dicomai.store import events, instances, jobs, pulls, retrievals
from dicomai.store.engine import reading, writing
from dicomai.store.retrievals import NewRetrieval

LIMIT = 3
DAY = "20260301"
BEGIN = datetime(2026, 1, 1)  # noqa: DTZ001  a node's own time


@pytest.fixture
def engine(sqlite_engine: Any) -> Any:
    """One database is enough: what is told here lies above it."""
    return sqlite_engine


def instant(day: str) -> Instant:
    return Instant(int(datetime.fromisoformat(f"{day}T120000+00:00").timestamp() * 1e6))


def in_range(value: str, asked: str) -> bool:
    first, hyphen, last = asked.partition("-")
    return not asked or (first <= value <= last if hyphen else value == first)


@contextmanager
def limiting(
    port: int,
    studies: dict[str, tuple[str, str]],
    queries: list[Dataset],
    heeds: str = "all",
    refuses: Callable[[], bool] = lambda: False,
) -> Iterator[Node]:
    """A node with studies of days and times, which tells three in one answer, or then none."""

    def find(event: evt.Event) -> Iterator[Any]:
        asked = event.identifier
        queries.append(asked)
        told = [
            (uid, day, at)
            for uid, (day, at) in studies.items()
            if heeds == "nothing"
            or (
                in_range(day, asked.StudyDate)
                and (heeds == "days" or in_range(at, asked.get("StudyTime", "")))
            )
        ]
        if len(told) > LIMIT and refuses():
            yield 0xA700, None
            return
        for uid, day, at in told[:LIMIT]:
            match = Dataset()
            match.StudyInstanceUID, match.StudyDate, match.StudyTime = uid, day, at
            yield 0xFF00, match
        yield (0xFE00 if len(told) > LIMIT else 0x0000), None

    entity = AE("PACS1")
    entity.add_supported_context(STUDY_ROOT_FIND)
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, find)]
    )
    try:
        yield Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=port)
    finally:
        server.shutdown()


def told(site: Any, keys: dict[str, str]) -> tuple[list[str], Untold]:
    (node,), untold = site.settings.nodes, Untold()
    go_on = patience(node, 20.0, lambda: None)
    return [uid for uid, _ in studies_at(site.settings, node, keys, untold, go_on)], untold


def of_day(count: int, day: str = DAY) -> dict[str, tuple[str, str]]:
    """Studies at moments of a day, some within one hour; the first at its first moment."""
    apart = [number * 86399.9 / count if number % 2 else number * 60 for number in range(count)]
    moments = [BEGIN + timedelta(seconds=each) for each in apart]
    return {f"1.2.{day}.{n}": (day, f"{at:%H%M%S.%f}") for n, at in enumerate(moments)}


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("keys", [{"StudyDate": DAY}, {"StudyDate": "20260228-20260303"}])
def test_all_studies_of_days_are_told_each_once(
    site: Callable[..., Any], free_port: int, keys: dict[str, str], *, refuses: bool
) -> None:
    studies = of_day(20) | ({} if "-" not in keys["StudyDate"] else of_day(5, "20260303"))
    with limiting(free_port, studies, [], refuses=lambda: refuses) as node:
        found, untold = told(site(node, receives=False), keys)
    assert sorted(found) == sorted(studies)
    assert not untold.because


def test_what_is_of_one_minute_can_be_told_no_better(
    site: Callable[..., Any], free_port: int
) -> None:
    at_once = {f"1.2.{number}": (DAY, "101500") for number in range(4)}
    with limiting(free_port, at_once, queries := []) as node:
        found, untold = told(site(node, receives=False), {"StudyDate": DAY})
    assert found == ["1.2.0", "1.2.1", "1.2.2"]
    assert "PACS1 has more than it tells in one answer" in untold.because
    assert len(queries) < 30


def test_a_node_that_does_not_heed_times_is_not_asked_for_ever_less(
    site: Callable[..., Any], free_port: int
) -> None:
    with limiting(free_port, of_day(20), queries := [], heeds="days") as node:
        found, untold = told(site(node, receives=False), {"StudyDate": DAY})
    assert (len(found), bool(untold.because), len(queries)) == (LIMIT, True, 3)


@pytest.mark.parametrize("keys", [{}, {"StudyDate": DAY}, {"StudyDate": "20260201-20260302"}])
def test_a_node_that_refuses_all_is_asked_little_and_is_in_trouble(
    site: Callable[..., Any], free_port: int, keys: dict[str, str]
) -> None:
    with limiting(
        free_port, of_day(4), queries := [], heeds="nothing", refuses=lambda: True
    ) as node:
        here = site(node, receives=False)
        with pytest.raises(TransientError, match=r"PACS1 failed to look for study \(status 0xA700"):
            told(here, keys)
    assert len(queries) < 40  # of more than a thousand minutes a day


def test_a_node_that_refuses_one_minute_is_not_taken_to_have_told_all(
    site: Callable[..., Any], free_port: int
) -> None:
    at_once = {f"1.2.{number}": (DAY, "101500") for number in range(4)}
    timeless = {"1.2.9": (DAY, "")}
    studies = of_day(7) | at_once | of_day(3, "20260305")
    with limiting(free_port, studies | timeless, [], refuses=lambda: True) as node:
        found, untold = told(site(node, receives=False), {"StudyDate": f"{DAY}-20260306"})
    assert sorted(found) == sorted(set(studies) - set(at_once))
    assert untold.because == (
        "PACS1 tells nothing of 2026-03-01 10:15 to 2026-03-01 10:16, for it has more studies then "
        "than it tells in one answer. Raise the limit of its answers to C-FIND."
    )
    assert "of all studies of 2026-03-01 at once, and studies without a Study Time" in (
        untold.timeless
    )


def test_a_node_that_refuses_parts_of_what_it_told_some_of_is_in_trouble(
    site: Callable[..., Any], free_port: int
) -> None:
    with limiting(
        free_port, of_day(20), queries := [], heeds="days", refuses=lambda: len(queries) > 1
    ) as node:
        here = site(node, receives=False)
        with pytest.raises(TransientError, match="status 0xA700"):
            told(here, {"StudyDate": DAY})


@given(days=st.integers(1, 400), path=st.lists(st.booleans(), max_size=30))
def test_halves_make_up_their_span_down_to_a_minute(days: int, path: list[bool]) -> None:
    span = Span(begin=BEGIN, end=BEGIN + timedelta(days=days))
    for second in path:
        if not span.halves:
            assert span.end - span.begin == timedelta(minutes=1)
            break
        first, last = span.halves
        assert (first.begin, first.end, last.end) == (span.begin, last.begin, span.end)
        span = last if second else first
        whole = span.begin.time() == span.end.time() == time.min
        assert whole or span.begin.date() == (span.end - timedelta(microseconds=1)).date()
        assert ("StudyTime" in span.keys) != whole


def test_a_span_is_asked_for_in_dicom_s_words() -> None:
    two = span_of({"StudyDate": "20260228-20260301", "Modality": "CT"})
    assert two is not None
    assert two.keys == {"StudyDate": "20260228-20260301"}
    assert [each.keys for each in two.halves] == [
        {"StudyDate": "20260228"},
        {"StudyDate": "20260301"},
    ]
    assert [each.keys["StudyTime"] for each in two.halves[0].halves] == [
        "000000-115959.999999",
        "120000-235959.999999",
    ]
    for other in ({}, {"StudyDate": "20260301-"}, {"StudyDate": DAY, "StudyTime": "10-11"}):
        assert span_of(other) is None


def test_a_pull_asks_by_parts_of_its_days(
    site: Callable[..., Any], orthanc_that_limits: Any, mueller: Any, yamada: Any, doe: Any
) -> None:
    here = site(orthanc_that_limits.node(), receives=False)
    spring = Pull(name="spring", node="PACS1", days=100, keys=("PatientID=P*",))
    settings = replace(here.settings, pulls=(spring,))
    puller = Puller(settings=settings, engine=here.engine, clock=lambda: instant("20260520"))
    assert puller.pull_once()
    with reading(here.engine) as connection:
        queued = {each.study_instance_uid for each in jobs.listing(connection, 10)}
        assert of_service(connection, settings, now(), 1).pulls == ()
        assert pulls.answered(connection, "spring") is not None
    assert queued == {mueller.uid, yamada.uid, doe.uid}


def test_a_pull_that_does_not_hear_of_all_takes_what_it_hears_of_and_says_so(
    site: Callable[..., Any], orthanc_that_limits: Any
) -> None:
    here = site(orthanc_that_limits.node(), receives=False)
    ever = Pull(name="ever", node="PACS1", days=0, keys=("PatientID=P*",))
    settings = replace(here.settings, pulls=(ever,))
    assert Puller(settings=settings, engine=here.engine, clock=now).pull_once()
    with reading(here.engine) as connection:
        assert len(jobs.listing(connection, 10)) == 2
        (remark,) = of_service(connection, settings, now(), 1).pulls
        assert pulls.answered(connection, "ever") is None
    assert remark.startswith("Pull ever does not hear of all studies: PACS1 has more than it tells")


def test_a_pull_tells_once_of_studies_that_no_part_of_a_day_can_tell(
    site: Callable[..., Any], free_port: int
) -> None:
    with limiting(free_port, of_day(7), [], refuses=lambda: True) as node:
        here = site(node, receives=False)
        week = Pull(name="week", node="PACS1", days=7, every_s=0)
        settings = replace(here.settings, pulls=(week,))
        puller = Puller(settings=settings, engine=here.engine, clock=lambda: instant("20260303"))
        puller.pull_once()
        puller.pull_once()
    with reading(here.engine) as connection:
        assert len(jobs.listing(connection, 20)) == 7
        (told,) = events.of_service(connection, ["pull cut"], 20)
    assert told.sentence.startswith("Pull week may leave out studies: PACS1 refuses to tell of all")


def test_a_series_of_more_images_than_are_told_is_fetched_uncounted(
    site: Callable[..., Any], orthanc_that_limits: Any, mueller: Any
) -> None:
    here = site(orthanc_that_limits.node(retrieve="get"))
    study = StudyInstanceUID(mueller.uid)
    with writing(here.engine) as connection:
        wanted = NewRetrieval(node="PACS1", study_instance_uid=study, ageing=seconds(600))
        job = retrievals.queue(connection, wanted, now()).job_id
    assert Retriever(settings=here.settings, worker=here.worker()).work_once()
    done = here.job(job)
    assert done.state == "done", done.error_sentence
    assert str(done.summary["found"]).startswith(
        "5 objects came, as PACS1 counts; what it has it does not say: PACS1 has more than it tells"
    )
    with reading(here.engine) as connection:
        assert len(instances.of_study(connection, study)) == 5
