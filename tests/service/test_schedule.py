"""The loops of a scheduler: what they do when there is much, little or nothing to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event
from ward import Ward, open_ward

from dicomai.dicom.dates import now
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DatabaseError, TransientError
from dicomai.roles import schedule
from dicomai.roles.tree import Life
from dicomai.routing.route import Route
from dicomai.service.spool_pass import Stopped
from dicomai.spool.entries import Writer, opened
from dicomai.store import decisions, jobs, schema, studies, waiting_routes
from dicomai.store.engine import reading, writing
from dicomai.store.waiting_routes import WaitingRoute


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    made = open_ward(tmp_path)
    yield made
    made.engine.dispose()


def test_one_broken_package_leaves_the_others_their_rules(ward: Ward) -> None:
    routes = (Route(name="all", model="bodies"), Route(name="hearts", model="heart"))
    broken = ward.settings.folders.models / "heart"
    broken.mkdir()
    (broken / "model.toml").write_text("name = ")

    rules = schedule.rules_of(replace(ward.settings, routes=routes))

    assert list(rules.models) == ["bodies"]
    assert str(broken / "model.toml") in rules.missing["heart"]


def test_pins_that_cannot_be_read_have_routes_wait_and_nothing_else(ward: Ward) -> None:
    pins = ward.settings.folders.models / "trusted.toml"
    pins.write_text("bodies = ")

    rules = schedule.rules_of(replace(ward.settings, routes=(Route(name="all", model="bodies"),)))

    assert rules.blocked == ("all",)
    assert str(pins) in rules.why_missing("bodies")


def test_routes_that_waited_hold_up_no_decision(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(ward.settings, routes=(Route(name="all", model="bodies"),))
    waits, arrives = (StudyInstanceUID(ward.study(patient)) for patient in ("P1", "P2"))
    with writing(ward.engine) as connection:
        decisions.set_decided(connection, waits, "Whole.", now())
        waiting = WaitingRoute(study_instance_uid=waits, route="all", because="No weights.")
        waiting_routes.add(connection, waiting, now())
        connection.execute(
            schema.studies.update()
            .where(schema.studies.c.study_instance_uid == arrives)
            .values(status="open", decide_at=now())
        )

    def away(*_: object) -> bool:
        raise TransientError("The database went away.")

    monkeypatch.setattr(schedule, "take_up", away)
    once = schedule._deciding(settings, ward.engine, lambda: None)
    with pytest.raises(TransientError):
        once()
    with reading(ward.engine) as connection:
        found = studies.get(connection, arrives)
    assert found is not None
    assert found.status == "decided"
    monkeypatch.undo()
    assert once()
    with reading(ward.engine) as connection:
        assert not waiting_routes.some(connection)


def test_a_database_that_takes_nothing_at_the_start_is_waited_for(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ward.queue(ward.study("P1"))
    held = schema.jobs.update().values(state="held", held_by="config")
    with writing(ward.engine) as connection:
        connection.execute(held)

    def full(*_: object) -> int:
        raise DatabaseError("The disk is full.")

    monkeypatch.setattr(jobs, "release_held", full)
    once = schedule._deciding(ward.settings, ward.engine, lambda: None)
    with pytest.raises(DatabaseError):
        once()
    monkeypatch.undo()
    once()
    assert ward.job(job).state == "queued"
    with writing(ward.engine) as connection:
        connection.execute(held)
    once()
    assert ward.job(job).state == "held", "it is released at the start alone"


def _associated(spool: Path) -> Writer:
    return opened(
        spool,
        calling_ae="CT1",
        called_ae="DICOMAI",
        address="192.0.2.1",
        node="CT1",
        started_at=now(),
    )


def test_a_long_ingest_shows_that_it_gets_on(ward: Ward) -> None:
    pulses: list[str] = []
    once = schedule._ingesting(ward.settings, ward.engine, lambda: pulses.append("on"))
    once()
    idle = len(pulses)
    writer = _associated(ward.settings.folders.spool)
    for _ in range(3):
        writer.add(StudyInstanceUID("1.2.3"), (b"no DICOM",))

    assert once()
    assert len(pulses) >= idle + 3


def test_what_ingest_has_in_hand_when_it_is_told_to_stop_is_not_marked_any_more(
    ward: Ward, until: Callable[..., None]
) -> None:
    """Marks that outlive two processes say that an entry ended them."""
    spool, stop = ward.settings.folders.spool, threading.Event()
    writer = _associated(spool)
    for _ in range(200):
        writer.add(StudyInstanceUID("1.2.3"), (b"no DICOM",))
    life = Life(ready=lambda: None, waits=lambda _: None, pulse=lambda: None, stop=stop)
    role = threading.Thread(target=schedule.schedule, args=(ward.settings, life))
    role.start()
    try:
        until(lambda: any(spool.rglob("*.attempt1")))
    finally:
        stop.set()
        role.join()
    assert not list(spool.rglob("*.attempt*"))


def test_a_scheduler_that_stops_tells_ingest_and_waits_for_it(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, stop, ended = threading.Event(), threading.Event(), threading.Event()

    def ingest(*given: object) -> None:
        go_on = given[-1]
        assert callable(go_on)
        begun.set()
        stop.wait()
        time.sleep(0.5)
        with pytest.raises(Stopped):
            go_on()
        ended.set()
        raise Stopped("")

    monkeypatch.setattr(schedule, "ingest", ingest)
    life = Life(ready=lambda: None, waits=lambda _: None, pulse=lambda: None, stop=stop)
    role = threading.Thread(target=schedule.schedule, args=(ward.settings, life))
    role.start()
    assert begun.wait(20)
    stop.set()
    role.join()
    assert ended.is_set()


def test_an_association_that_only_stands_open_costs_no_writes(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = schedule._ingesting(ward.settings, ward.engine, lambda: None)
    once()
    monkeypatch.setattr(schedule, "_PUBLISH_S", 3600.0)
    statements: list[str] = []
    event.listen(
        ward.engine, "before_cursor_execute", lambda *said: statements.append(str(said[2]))
    )
    _associated(ward.settings.folders.spool)

    assert not once()
    assert statements == []
