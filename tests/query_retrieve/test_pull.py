"""Studies that are fetched by a schedule, from archives that don't send by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.net.node import Node
from dicomai.routing.completeness import lacking
from dicomai.routing.pull import Pull
from dicomai.service.overview import of_service
from dicomai.service.pull import Puller
from dicomai.service.retrieve import Retriever
from dicomai.settings import SettingsError, load
from dicomai.store import counts, instances, jobs, retrievals, schema
from dicomai.store.counts import SeriesCount
from dicomai.store.engine import reading, writing
from dicomai.store.retrievals import NewRetrieval

MARCH = Pull(name="march", node="PACS1", every_s=1, keys=("PatientID=P*",))


def at(day: str) -> Instant:
    return Instant(int(datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC).timestamp() * 1e6))


def puller(site: Any, day: str, *pulls: Pull) -> Puller:
    settings = replace(site.settings, pulls=pulls)
    return Puller(settings=settings, engine=site.engine, clock=lambda: at(day))


def queued(site: Any) -> list[str]:
    with reading(site.engine) as connection:
        return sorted(job.study_instance_uid for job in jobs.listing(connection, 100))


def test_what_is_new_at_the_node_is_fetched_once(
    site: Callable[..., Any], pacs: Any, mueller: Any, yamada: Any, doe: Any
) -> None:
    here = site(pacs.node(retrieve="get"))
    assert puller(here, "20260301", MARCH).pull_once()
    assert queued(here) == [mueller.uid]  # the others are of other days
    assert Retriever(settings=here.settings, worker=here.worker()).work_once()
    with reading(here.engine) as connection:
        assert len(instances.of_study(connection, StudyInstanceUID(mueller.uid))) == 5
    assert not puller(here, "20260301", MARCH).pull_once()  # it is here
    spring = replace(MARCH, days=100)
    assert puller(here, "20260520", spring).pull_once()
    assert queued(here) == [mueller.uid, yamada.uid, doe.uid]
    with writing(here.engine) as connection:
        for job in jobs.listing(connection, 2):
            jobs.cancel(connection, job.id, "Enough.", now())
    assert not puller(here, "20260520", spring).pull_once()  # a person said no


def test_a_study_of_which_a_part_was_fetched_for_something_else_is_fetched_whole(
    site: Callable[..., Any], pacs: Any, mueller: Any
) -> None:
    here = site(pacs.node(retrieve="get"))
    study = StudyInstanceUID(mueller.uid)
    some = frozenset({SeriesInstanceUID(mueller.series_uid(1))})
    part = NewRetrieval(
        node="PACS1", study_instance_uid=study, series=some, purpose="backfill 1", ageing=seconds(1)
    )
    with writing(here.engine) as connection:
        retrievals.queue(connection, part, now())
    fetching = Retriever(settings=here.settings, worker=here.worker())
    assert fetching.work_once()
    with reading(here.engine) as connection:
        assert 0 < len(instances.of_study(connection, study)) < 5
    assert puller(here, "20260301", MARCH).pull_once()
    assert fetching.work_once()
    with reading(here.engine) as connection:
        assert len(instances.of_study(connection, study)) == 5
        assert retrievals.purpose_of(connection, study) == ""
    assert not puller(here, "20260301", MARCH).pull_once()


def forget(site: Any, *sops: str) -> None:
    """Have objects not be here, as if they had not been at the node yet."""
    with writing(site.engine) as connection:
        table = schema.instances
        connection.execute(table.delete().where(table.c.sop_instance_uid.in_(sops)))


def fetched(site: Callable[..., Any], full_orthanc: Any, mueller: Any) -> tuple[Any, Any]:
    """Return a site that has fetched a study whole, and the study."""
    here = site(full_orthanc.node(retrieve="get"))
    assert puller(here, "20260301", MARCH).pull_once()
    assert Retriever(settings=here.settings, worker=here.worker()).work_once()
    return here, StudyInstanceUID(mueller.uid)


def test_a_study_that_grows_at_the_node_is_fetched_again(
    site: Callable[..., Any], full_orthanc: Any, mueller: Any
) -> None:
    here = site(full_orthanc.node(retrieve="get"))
    study = StudyInstanceUID(mueller.uid)
    fetching = Retriever(settings=here.settings, worker=here.worker())
    assert puller(here, "20260301", MARCH).pull_once()
    assert fetching.work_once()
    second = [mueller.sop_uid(2, image) for image in (1, 2)]
    forget(here, *second)
    pulling = puller(here, "20260301", replace(MARCH, every_s=0))
    assert pulling.pull_once()
    assert not pulling.pull_once()  # it is under way
    assert fetching.work_once()
    with reading(here.engine) as connection:
        assert len(instances.of_study(connection, study)) == 5
        last = jobs.listing(connection, 1)[0]
    assert last.summary["completed"] == 2
    forget(here, *second)
    assert not pulling.pull_once()  # as many as it had counted before
    forget(here, *(mueller.sop_uid(1, image) for image in (1, 2, 3)))
    assert not puller(here, "20260301", MARCH).pull_once()  # retention deleted it


def test_results_that_a_node_did_not_get_hide_no_growth_there(
    site: Callable[..., Any], full_orthanc: Any, mueller: Any
) -> None:
    here, study = fetched(site, full_orthanc, mueller)
    with writing(here.engine) as connection:
        first = instances.of_study(connection, study)[0]
        connection.execute(
            schema.instances.update()
            .where(schema.instances.c.id == first.id)
            .values(origin="produced", job_id=jobs.listing(connection, 1)[0].id)
        )
        assert retrievals.grew(connection, study, "PACS1", 5)
        assert not retrievals.grew(connection, study, "PACS1", 4)


def test_a_fetched_study_waits_for_series_that_the_node_has_by_now(
    site: Callable[..., Any], full_orthanc: Any, mueller: Any
) -> None:
    here, study = fetched(site, full_orthanc, mueller)
    forget(here, *(mueller.sop_uid(2, image) for image in (1, 2)))
    there = [
        SeriesCount(
            series_instance_uid=SeriesInstanceUID(mueller.series_uid(one)), objects=n, attributes={}
        )
        for one, n in ((1, 3), (2, 2))
    ]
    with writing(here.engine) as connection:
        counts.note(connection, study, "PACS1", there, now())
        counted = counts.of_study(connection, study, lambda *_: True)
    assert [each.series_instance_uid for each in lacking(counted)] == [mueller.series_uid(2)]


def test_a_schedule_is_kept_and_trouble_is_told_once(
    site: Callable[..., Any], full_orthanc: Any, mueller: Any
) -> None:
    away = Node(name="AWAY", ae_title="AWAY", host="127.0.0.1", port=1)
    here = site(full_orthanc.node(), away)
    pulls = (
        Pull(name="away", node="AWAY", every_s=1000),
        Pull(name="ct", node="PACS1", every_s=1000, days=0, keys=("ModalitiesInStudy=CT",)),
    )
    pulling = puller(here, "20260301", *pulls)
    assert pulling.pull_once()
    assert mueller.uid in queued(here)
    assert len(queued(here)) == 2
    assert not pulling.pull_once()  # not due yet
    with reading(here.engine) as connection:
        kinds = connection.execute(schema.events.select()).all()
    (told,) = [each.sentence for each in kinds if each.kind == "pull failed"]
    assert told.startswith("Pull away can't ask AWAY: AWAY can't be reached")


def test_the_status_tells_of_a_pull_that_cannot_ask_until_it_can(
    site: Callable[..., Any], full_orthanc: Any
) -> None:
    here = site(full_orthanc.node(), receives=False)
    pulls = (Pull(name="ct", node="PACS1", every_s=1, keys=("ModalitiesInStudy=CT",)),)
    settings = replace(here.settings, pulls=pulls)
    away = replace(settings, nodes=(replace(settings.nodes[0], port=1),))

    def remarks() -> str:
        with reading(here.engine) as connection:
            return "\n".join(of_service(connection, settings, now(), 1).remarks)

    for asked, told in ((settings, False), (away, True), (away, True), (settings, False)):
        # Each is another process, as after a restart.
        Puller(settings=asked, engine=here.engine, clock=now).pull_once()
        assert ("Pull ct can't ask PACS1: PACS1 can't be reached" in remarks()) is told
    with reading(here.engine) as connection:
        told = schema.events.select().order_by(schema.events.c.id)
        kinds = [each.kind for each in connection.execute(told).all()]
    assert [each for each in kinds if each.startswith("pull")] == [
        "pull failed",
        "pull failed",
        "pull goes on",
    ]


def test_days_count_today_and_always_yesterday() -> None:
    pull = Pull(name="ct", node="PACS1", keys=("Modality=CT",))
    day = date(2026, 3, 1)
    assert pull.asked(day, None) == {"StudyDate": "20260228-20260301", "Modality": "CT"}
    assert replace(pull, days=1).asked(day, day)["StudyDate"] == "20260228-20260301"
    assert replace(pull, days=3).asked(day, day)["StudyDate"] == "20260227-20260301"
    assert replace(pull, days=10**9).asked(day, day)["StudyDate"] == "10000101-20260301"
    assert replace(pull, days=0).asked(day, None) == {"Modality": "CT"}


def test_days_count_from_the_last_answer() -> None:
    pull = Pull(name="ct", node="PACS1")
    day = date(2026, 3, 10)
    assert pull.asked(day, date(2026, 3, 5))["StudyDate"] == "20260304-20260310"
    # A clock that was ahead, and a pull that was taken out for a year.
    for other in (date(2026, 3, 12), date(2025, 3, 10)):
        assert pull.asked(day, other)["StudyDate"] == "20260309-20260310"


def test_a_study_that_came_after_the_last_query_of_its_day_is_fetched(
    site: Callable[..., Any], full_orthanc: Any, mueller: Any, yamada: Any
) -> None:
    here = site(full_orthanc.node(), receives=False)
    assert puller(here, "20260302", MARCH).pull_once()
    assert queued(here) == [mueller.uid]
    # The PACS is away from then on until a week after the next study.
    away = replace(here.settings, nodes=(replace(here.settings.nodes[0], port=1),), pulls=(MARCH,))
    later = ("20260409", here.settings), ("20260411", away), ("20260418", here.settings)
    for day, settings in later:
        site_then = replace(here, settings=settings)
        puller(site_then, day, MARCH).pull_once()
    assert queued(here) == [mueller.uid, yamada.uid]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ('node = "PACS2"', 'pull "ct", node: no node "PACS2"; "PACS1"?'),
        ('node = "CT1"', 'pull "ct", node: node "CT1" has no host'),
        ('node = "PACS1"\nkeys = ["Modalty=CT"]', "'Modalty=CT' is no KEYWORD=VALUE"),
        ('node = "PACS1"\nevery_s = 0', "every_s must be 1 or more"),
    ],
)
def test_a_pull_that_cannot_be_is_an_error_of_the_configuration(
    tmp_path: Path, wrong: str, words: str
) -> None:
    file = tmp_path / "dicomai.toml"
    file.write_text(
        '[[nodes]]\nname = "PACS1"\nae_title = "P"\nhost = "h"\nport = 1\n'
        '[[nodes]]\nname = "CT1"\nae_title = "C"\n'
        f'[[pulls]]\nname = "ct"\n{wrong}\n'
    )
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    assert words in caught.value.sentence
