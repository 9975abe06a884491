"""A study is whole when its node has no more of it: Orthanc and dcmqrscp are asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dicomai.dicom.dates import Instant, Microseconds, now, seconds
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.net.node import Node
from dicomai.routing.completeness import Counted, confirmed, lacking
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs, parse_input
from dicomai.service.count import Counter
from dicomai.service.decide import Rules, decide_study, wanted_by
from dicomai.service.retrieve import Retriever
from dicomai.store import events, jobs, studies
from dicomai.store.engine import reading


def rules(*fetch_missing: str, when: str = "Modality = CT") -> Rules:
    model = ModelInputs(package_sha256="a" * 64, inputs=(parse_input("ct", "volume", [when], []),))
    return Rules(
        routes=(Route(name="ct", model="ct", mode="shadow"),),
        models={"ct": model},
        patience=seconds(900),
        ageing=Microseconds(0),
        zone=ZoneInfo("UTC"),
        fetch_missing=frozenset(fetch_missing),
    )


def decided(
    site: Any,
    uid: StudyInstanceUID,
    outcome: str,
    *fetch_missing: str,
    later_s: float = 1,
    when: str = "Modality = CT",
) -> str:
    """Decide until it has an outcome, as it has when all that came is ingested; return why."""
    deadline = time.monotonic() + 10
    while True:
        at = Instant(now() + seconds(later_s))
        found = decide_study(site.engine, uid, rules(*fetch_missing, when=when), at)
        with reading(site.engine) as connection:
            study = studies.get(connection, uid)
        assert study is not None
        if found == outcome and "has not yet ingested" not in study.decision:
            return study.decision
        assert time.monotonic() < deadline, (found, study.decision)
        time.sleep(0.02)


def test_as_many_as_the_node_has_allows_the_floor(
    site: Callable[..., Any], pacs: Any, study_files: Path, mueller: Any
) -> None:
    here = site(pacs.node(answers_find=True, quiet_s=600, floor_s=0.05))
    uid = StudyInstanceUID(mueller.uid)
    here.put(*(study_files / mueller.accession).iterdir(), node="PACS1")
    decided(here, uid, "nothing to do")  # ten minutes of silence are wanted
    counter = Counter(settings=here.settings, engine=here.engine, clock=now, rules=rules)
    deadline = time.monotonic() + 10
    while not counter.count_once():
        assert time.monotonic() < deadline
    assert not counter.count_once()  # not again while nothing new comes
    assert "and PACS1 counts as many objects." in decided(here, uid, "decided")


def test_a_higher_count_vetoes_and_what_is_missing_is_fetched_in_the_end(
    site: Callable[..., Any], pacs: Any, study_files: Path, mueller: Any
) -> None:
    node = pacs.node(answers_find=True, quiet_s=0.05, floor_s=0.05, retrieve="get")
    here = site(node)
    uid = StudyInstanceUID(mueller.uid)
    missing = mueller.sop_uid(1, 3)
    files = [each for each in (study_files / "A1").iterdir() if each.stem != missing]
    here.put(*files, node="PACS1")
    counter = Counter(settings=here.settings, engine=here.engine, clock=now, rules=rules)
    deadline = time.monotonic() + 10
    while not counter.count_once():
        assert time.monotonic() < deadline
    sentence = f"PACS1 counts 3 objects of series {mueller.series_uid(1)}, and 2 are here"
    assert decided(here, uid, "not yet") == f"{sentence}."
    because = decided(here, uid, "decided", "PACS1", later_s=1000)
    assert f"although {sentence}" in because
    with reading(here.engine) as connection:
        (job,) = [each for each in jobs.of_study(connection, uid) if each.kind == "retrieve"]
    assert (job.kind, job.choice) == ("retrieve", mueller.series_uid(1))
    assert Retriever(settings=here.settings, worker=here.worker()).work_once()
    assert here.job(job.id).summary["completed"] >= 1
    assert "PACS1 counts as many" in decided(here, uid, "decided", later_s=2)


def test_a_node_that_cannot_be_asked_neither_confirms_nor_vetoes(
    site: Callable[..., Any], study_files: Path, mueller: Any
) -> None:
    away = Node(
        name="PACS1",
        ae_title="PACS1",
        host="127.0.0.1",
        port=1,
        answers_find=True,
        quiet_s=0.05,
        floor_s=0.05,
    )
    here = site(away)
    here.put(*(study_files / "A1").iterdir(), node="PACS1")
    assert not Counter(
        settings=here.settings, engine=here.engine, clock=now, rules=rules
    ).count_once()
    assert "counts" not in decided(here, StudyInstanceUID(mueller.uid), "decided")
    with reading(here.engine) as connection:
        story = events.story(connection, StudyInstanceUID(mueller.uid))
    assert any(each.kind == "study decided" for each in story)


def test_a_series_that_no_model_wants_is_not_waited_for(
    site: Callable[..., Any], pacs: Any, study_files: Path, mueller: Any
) -> None:
    here = site(pacs.node(answers_find=True, quiet_s=0.05, floor_s=0.05))
    uid = StudyInstanceUID(mueller.uid)
    # Of the first series an image is missing; the second is whole, and of the same modality.
    files = [each for each in (study_files / "A1").iterdir() if each.stem != mueller.sop_uid(1, 3)]
    here.put(*files, node="PACS1")
    second = "SeriesNumber = 2"
    counter = Counter(
        settings=here.settings, engine=here.engine, clock=now, rules=lambda: rules(when=second)
    )
    deadline = time.monotonic() + 10
    while not counter.count_once():
        assert time.monotonic() < deadline
    because = decided(here, uid, "decided", when=second)
    assert "and PACS1 counts as many objects" in because
    assert "and 2 are here" not in because


def test_a_series_that_did_not_come_is_judged_by_what_is_told_of_it() -> None:
    wanted = wanted_by(rules(when="SeriesDescription ~ (?i)thin"), ())
    uid = SeriesInstanceUID("1.2.3")
    assert wanted(uid, {"SeriesDescription": "Thin slices"}, 5)
    assert wanted(uid, {"Modality": "CT"}, 5)  # it may be
    assert not wanted(uid, {"SeriesDescription": "Scout"}, 5)
    many = wanted_by(rules(when="instances >= 20"), ())
    assert not many(uid, {}, 5)
    assert many(uid, {}, 20)
    assert many(uid, {}, 0)  # the node does not say how many


def count(
    series: str, there: int, here: int, *, wanted: bool = True, fetched: bool = False
) -> Counted:
    return Counted(
        node="PACS1",
        series_instance_uid=series,
        there=there,
        here=here,
        wanted=wanted,
        fetched=fetched,
    )


@pytest.mark.parametrize(
    ("counts", "fewer", "nodes"),
    [
        ([count("1", 3, 3), count("2", 2, 2)], [], ["PACS1"]),
        ([count("1", 3, 2), count("2", 2, 2)], ["1"], []),
        # One that has not begun to come: no veto, for it may be another's; and no confirmation.
        ([count("1", 3, 3), count("2", 2, 0)], [], []),
        # Of what was fetched nobody sends the rest.
        ([count("1", 3, 3), count("2", 2, 0, fetched=True)], ["2"], []),
        ([count("1", 3, 3), count("2", 2, 0, wanted=False, fetched=True)], [], ["PACS1"]),
        # Reports and results, ours or another system's.
        ([count("1", 3, 3), count("2", 2, 0, wanted=False)], [], ["PACS1"]),
        ([count("1", 3, 3), count("2", 2, 1, wanted=False)], [], ["PACS1"]),
        # More here than there: it has not stored all yet.
        ([count("1", 3, 4)], [], []),
        ([], [], []),
    ],
)
def test_what_a_count_means(counts: list[Counted], fewer: list[str], nodes: list[str]) -> None:
    assert [each.series_instance_uid for each in lacking(counts)] == fewer
    assert list(confirmed(counts)) == nodes
