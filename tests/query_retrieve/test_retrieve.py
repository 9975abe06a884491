"""Studies fetched from Orthanc and dcmqrscp, by C-GET and C-MOVE, and from nodes that misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from typer.testing import CliRunner

from dicomai.cli.main import app
from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.errors import NotFound
from dicomai.net.find import STUDY_ROOT_FIND
from dicomai.net.get import STUDY_ROOT_GET
from dicomai.net.node import Node
from dicomai.service import retrieve, story
from dicomai.service.retrieve import Retriever
from dicomai.spool.host import name_of
from dicomai.store import hosts, instances, jobs, retrievals, schema, studies
from dicomai.store.engine import reading, writing
from dicomai.store.job import JobId
from dicomai.store.retrievals import NewRetrieval


def queue(site: Any, study: str, *series: str) -> JobId:
    wanted = NewRetrieval(
        node="PACS1",
        study_instance_uid=StudyInstanceUID(study),
        series=frozenset(map(SeriesInstanceUID, series)),
        ageing=seconds(600),
    )
    with writing(site.engine) as connection:
        return retrievals.queue(connection, wanted, now()).job_id


def fetch(site: Any, job: JobId) -> Any:
    assert Retriever(settings=site.settings, worker=site.worker()).work_once()
    return site.job(job)


def objects_of(site: Any, study: str) -> list[Any]:
    with reading(site.engine) as connection:
        return list(instances.of_study(connection, StudyInstanceUID(study)))


@pytest.mark.parametrize("how", ["get", "move"])
def test_a_study_is_fetched_whole_and_counted(
    site: Callable[..., Any], pacs: Any, mueller: Any, how: str
) -> None:
    here = site(pacs.node(retrieve=how))
    done = fetch(here, queue(here, mueller.uid))
    assert done.state == "done", done.error_sentence
    assert done.summary["found"] == "All 5 objects that PACS1 counts are here."
    assert (done.summary["counted"], done.summary["failed"]) == (5, 0)
    objects = objects_of(here, mueller.uid)
    assert [each.sop_instance_uid for each in objects] == [
        mueller.sop_uid(series, image)
        for series, count in enumerate(mueller.images, 1)
        for image in range(1, count + 1)
    ]
    assert {(each.origin, each.node) for each in objects} == {("retrieved", "PACS1")}
    assert objects[0].attributes["PatientName"] == "Müller^Jürgen"


def test_a_series_is_fetched_alone_and_the_rest_afterwards(
    site: Callable[..., Any], full_dcmqrscp: Any, mueller: Any
) -> None:
    here = site(full_dcmqrscp.node(retrieve="get"))
    one = fetch(here, queue(here, mueller.uid, mueller.series_uid(2)))
    assert one.summary["found"] == "All 2 objects that PACS1 counts are here."
    assert {each.series_instance_uid for each in objects_of(here, mueller.uid)} == {
        mueller.series_uid(2)
    }
    rest = fetch(here, queue(here, mueller.uid))
    assert rest.summary["completed"] == 3  # what is here is not asked for again
    again = fetch(here, queue(here, mueller.uid))
    assert again.summary["completed"] == 0
    assert len(objects_of(here, mueller.uid)) == 5
    # A result of ours that the node has by now is not asked for either.
    table = schema.instances
    with writing(here.engine) as connection:
        ours = table.c.sop_instance_uid == mueller.sop_uid(2, 1)
        connection.execute(table.update().where(ours).values(origin="produced", job_id=1))
    assert fetch(here, queue(here, mueller.uid)).summary["completed"] == 0


@pytest.mark.parametrize("was_there", [False, True])
def test_nothing_is_fetched_into_a_spool_that_no_scheduler_takes_in(
    site: Callable[..., Any],
    full_orthanc: Any,
    mueller: Any,
    monkeypatch: pytest.MonkeyPatch,
    was_there: bool,
) -> None:
    monkeypatch.setattr(retrieve, "SCHEDULED_S", 0.1)
    here = site(full_orthanc.node(retrieve="get"), receives=False)
    if was_there:
        long_ago = Instant(now() - seconds(3600))
        with writing(here.engine) as connection:
            hosts.note_ingested(
                connection, name_of(here.settings.folders.spool), long_ago, long_ago
            )
    waits = fetch(here, queue(here, mueller.uid))
    assert (waits.state, waits.error_kind) == ("waiting", "transient")
    assert "no scheduler takes it in there. Start one there" in waits.error_sentence
    assert not list(here.settings.folders.spool.glob("*/*.dcm"))


def test_the_same_retrieval_is_under_way_once(site: Callable[..., Any], full_orthanc: Any) -> None:
    here = site(full_orthanc.node())
    first = queue(here, "1.2.3")
    assert queue(here, "1.2.3") == first
    assert queue(here, "1.2.3", "1.2.3.4") != first
    with writing(here.engine) as connection:
        jobs.cancel(connection, first, "Enough.", now())
    assert queue(here, "1.2.3") != first


def test_what_retention_is_deleting_does_not_count_as_here(
    site: Callable[..., Any], pacs: Any, mueller: Any
) -> None:
    here = site(pacs.node())
    assert fetch(here, queue(here, mueller.uid)).state == "done"
    with writing(here.engine) as connection:
        studies.change(connection, mueller.uid, status="deleting", deleting=["retrieved"])
    waiting = fetch(here, queue(here, mueller.uid))
    assert (waiting.state, waiting.waiting_for) == ("waiting", "back-off")
    assert f"Retention is deleting study {mueller.uid}." in waiting.error_sentence


def test_a_study_that_the_node_lacks_fails_with_a_sentence(
    site: Callable[..., Any], full_orthanc: Any, mueller: Any
) -> None:
    here = site(full_orthanc.node())
    failed = fetch(here, queue(here, "1.2.3"))
    assert (failed.state, failed.error_kind) == ("failed", "input")
    assert "PACS1 has nothing of study 1.2.3." in failed.error_sentence
    with reading(here.engine) as connection, pytest.raises(NotFound) as caught:
        story.find(connection, "1.2.3")
    assert "is failed. Job" in caught.value.sentence
    failed = fetch(here, queue(here, mueller.uid, "1.2.4"))
    assert "PACS1 has no series 1.2.4 of study" in failed.error_sentence


def test_a_move_to_a_destination_that_the_node_does_not_know(
    site: Callable[..., Any], pacs: Any, doe: Any
) -> None:
    here = site(pacs.node(), ae_title="STRANGER")
    refused = fetch(here, queue(here, doe.uid))
    # Orthanc says no more than that it failed.
    why = (
        ": it does not know us as a destination" if pacs.name == "dcmqrscp" else " (status 0xC000)"
    )
    sentence = f"Job {refused.id} (from PACS1), fetch: PACS1 failed to send to STRANGER{why}"
    assert refused.error_sentence.startswith(sentence)
    assert "Look at its log." in refused.error_sentence


@contextmanager
def archive(
    port: int,
    studies: list[Dataset],
    on_get: Callable[[evt.Event], Iterator[Any]],
    *classes: str,
) -> Iterator[Node]:
    """A node that counts some objects, and sends what a test says."""

    def on_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        level = event.identifier.QueryRetrieveLevel
        for each in studies:
            one = Dataset()
            one.StudyInstanceUID = each.StudyInstanceUID
            one.SeriesInstanceUID = each.SeriesInstanceUID
            if level == "IMAGE":
                one.SOPInstanceUID = each.SOPInstanceUID
                one.SOPClassUID = each.SOPClassUID
            yield 0xFF00, one

    entity = AE("PACS1")
    entity.add_supported_context(STUDY_ROOT_FIND)
    entity.add_supported_context(STUDY_ROOT_GET)
    for each in {each.SOPClassUID for each in studies}:
        entity.add_supported_context(each, scu_role=True, scp_role=True)
    server = entity.start_server(
        ("127.0.0.1", port),
        block=False,
        evt_handlers=[(evt.EVT_C_FIND, on_find), (evt.EVT_C_GET, on_get)],
    )
    try:
        yield Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=port, retrieve="get")
    finally:
        server.shutdown()


def test_fewer_than_counted_are_tried_again_and_then_left_to_a_person(
    site: Callable[..., Any], free_port: int, made: Callable[[Any], list[Dataset]], doe: Any
) -> None:
    images = made(doe)

    def stingy(event: evt.Event) -> Iterator[Any]:
        yield 1
        yield 0xFF00, images[0]

    with archive(free_port, images, stingy) as node:
        here = site(node)
        job = queue(here, doe.uid)
        waiting = fetch(here, job)
        assert (waiting.state, waiting.waiting_for) == ("waiting", "back-off")
        assert "PACS1 counts 4 objects, and 1 are here" in waiting.error_sentence
        for _ in range(2):
            with writing(here.engine) as connection:
                jobs.promote_due(connection, site_clock_later())
            failed = fetch(here, job)
    assert (failed.state, failed.error_kind) == ("failed", "refused")
    assert f"then: dicomai retry {job}" in failed.error_sentence


def test_a_host_that_is_dead_is_not_waited_for(
    site: Callable[..., Any],
    free_port: int,
    made: Callable[[Any], list[Dataset]],
    doe: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = made(doe)

    def stingy(event: evt.Event) -> Iterator[Any]:
        yield 1
        yield 0xFF00, images[0]

    monkeypatch.setattr(retrieve, "ARRIVE_S", 5.0)
    with archive(free_port, images, stingy) as node:
        here = site(node)
        with writing(here.engine) as connection:
            dead_since = Instant(now() - seconds(2 * here.settings.decide.patience_s))
            hosts.note_ingested(connection, "dead", dead_since, dead_since)
        waiting = fetch(here, queue(here, doe.uid))
    assert "PACS1 counts 4 objects, and 1 are here" in waiting.error_sentence


def site_clock_later() -> Any:
    return now() + seconds(7 * 86400)


def test_what_nobody_asked_for_is_refused_and_told(
    site: Callable[..., Any],
    free_port: int,
    made: Callable[[Any], list[Dataset]],
    doe: Any,
    mueller: Any,
) -> None:
    images, others = made(doe), made(mueller)

    def generous(event: evt.Event) -> Iterator[Any]:
        yield len(images) + 1
        for each in (*images, others[0]):
            yield 0xFF00, each

    with archive(free_port, images, generous) as node:
        here = site(node)
        done = fetch(here, queue(here, doe.uid))
    assert done.state == "done", done.error_sentence
    assert done.summary["unasked"] == 1
    assert done.summary["found"] == (
        "All 4 objects that PACS1 counts are here. It says that 1 object could not be sent. "
        "1 object that nobody had asked for were refused."
    )
    assert not objects_of(here, mueller.uid)


def test_a_worker_that_is_told_to_stop_gives_the_job_back(
    site: Callable[..., Any], free_port: int, made: Callable[[Any], list[Dataset]], doe: Any
) -> None:
    asked, over, stop = threading.Event(), threading.Event(), threading.Event()

    def silent(event: evt.Event) -> Iterator[Any]:
        yield 4
        asked.set()
        over.wait(30)

    with archive(free_port, made(doe), silent) as node:
        here = site(node)
        job = queue(here, doe.uid)
        retriever = Retriever(settings=here.settings, worker=here.worker(stop))
        working = threading.Thread(target=retriever.work_once)
        working.start()
        assert asked.wait(20)
        stop.set()
        working.join(10)
        over.set()
        assert not working.is_alive()
        assert here.job(job).state == "queued"


def test_the_command_queues_what_an_accession_number_names(
    sqlite_engine: Any, full_orthanc: Any, tmp_path: Path, mueller: Any
) -> None:
    config = tmp_path / "dicomai.toml"
    config.write_text(
        '[service]\ndata = "data"\n[[nodes]]\nname = "PACS1"\nae_title = "ORTHANC"\n'
        f'host = "127.0.0.1"\nport = {full_orthanc.port}\n'
    )

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "-c", str(config)])

    (queued,) = json.loads(run("retrieve", "PACS1", "--accession", "A1", "--json").stdout)
    assert (queued["study"], queued["outcome"]) == (mueller.uid, "queued")
    again = run("retrieve", "PACS1", "--study", mueller.uid)
    assert "is under way already" in again.stdout
    assert "study from PACS1" in run("jobs").stdout
    assert run("retrieve", "PACS1", "--accession", "none").exit_code == 4
    assert run("retrieve", "PACS1").exit_code == 2
    assert run("retrieve", "PACS1", "--study", "not a uid").exit_code == 2
    assert run("retrieve", "PACS1", "--series", "1.2").exit_code == 2
