"""What is deleted goes by a clock that does not leap, and that believes one that was right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url
from ward import Ward, open_ward

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.service import overview
from dicomai.service.steady_clock import SteadyClock
from dicomai.store import clocks, events, hosts, retention, schema
from dicomai.store.engine import open_engine, reading, writing
from dicomai.store.migrate import upgrade
from dicomai.store.retention import Keep

HOUR = seconds(3600)
DAY = seconds(86400)
KEEP = Keep(received=Instant(30 * DAY), produced=Instant(365 * DAY), jobs=DAY)


@dataclass(kw_only=True)
class Machine:
    """A machine's clocks."""

    wall: Instant
    monotonic_s: float = 1000.0

    def later(self, seconds_: float) -> None:
        """Let time pass."""
        self.wall = Instant(self.wall + seconds(seconds_))
        self.monotonic_s += seconds_

    def steady(self, ward: Ward, host: str = "h1") -> SteadyClock:
        """Have a scheduler start on it."""
        wall, monotonic = (lambda: self.wall), (lambda: self.monotonic_s)
        return SteadyClock(ward.engine, lambda: host, wall, monotonic)

    def beats(self, ward: Ward) -> None:
        """Have its host heard of."""
        with writing(ward.engine) as connection:
            hosts.note_ingested(connection, "h1", self.wall, self.wall)


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = open_ward(tmp_path)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def machine() -> Machine:
    return Machine(wall=now())


def remarks(ward: Ward, at: Instant) -> list[str]:
    with reading(ward.engine) as connection:
        said = overview.of_service(connection, ward.settings, at, 1).remarks
    return [each for each in said if "clock" in each]


def test_a_clock_that_leaps_deletes_nothing_until_it_was_even_for_a_day(
    ward: Ward, machine: Machine
) -> None:
    ward.study("P1")
    steady = machine.steady(ward)
    machine.later(600)
    before = machine.wall
    assert steady.now() == before
    machine.wall = Instant(before + 31 * DAY)
    data = ward.settings.folders.data
    assert retention.delete_expired(ward.engine, data, KEEP, steady.now()) == 0
    (sentence,) = remarks(ward, machine.wall)
    assert sentence.startswith("The clock of h1 went from ")
    machine.later(23 * 3600)
    assert steady.now() == before + 23 * HOUR
    machine.later(3600)
    assert steady.now() == machine.wall
    assert not remarks(ward, machine.wall)
    assert retention.delete_expired(ward.engine, data, KEEP, steady.now()) == 1


def test_a_restart_does_not_make_a_clock_that_leapt_right(ward: Ward, machine: Machine) -> None:
    steady = machine.steady(ward)
    before = machine.wall
    machine.wall = Instant(before + 400 * DAY)
    assert steady.now() == before
    machine.beats(ward)  # ingest tells of itself by that clock
    machine.later(3600)
    again = machine.steady(ward)
    assert again.now() == before + HOUR
    machine.later(23 * 3600)
    assert again.now() == machine.wall


def test_a_clock_that_is_set_back_is_believed_at_once(ward: Ward, machine: Machine) -> None:
    steady = machine.steady(ward)
    right = machine.wall
    machine.wall = Instant(right + 400 * DAY)
    steady.now()
    machine.wall = right
    assert steady.now() == right
    machine.wall = Instant(right - 400 * DAY)
    assert steady.now() == machine.wall
    assert machine.steady(ward).now() == machine.wall


def test_a_clock_that_was_behind_for_a_minute_has_not_leapt(ward: Ward, machine: Machine) -> None:
    steady = machine.steady(ward)
    right = machine.wall
    machine.wall = Instant(right - 400 * DAY)
    assert steady.now() == machine.wall
    machine.later(60)
    assert steady.now() == machine.wall
    machine.wall = Instant(right + seconds(60))
    assert steady.now() == machine.wall
    assert not remarks(ward, machine.wall)


@pytest.mark.parametrize("hours_off", [1, 8])
def test_a_machine_that_starts_in_1970_has_not_leapt_when_ntp_sets_it_right(
    ward: Ward, machine: Machine, hours_off: int
) -> None:
    machine.beats(ward)
    right = Instant(machine.wall + hours_off * HOUR)
    machine.wall = Instant(seconds(30))
    steady = machine.steady(ward)
    assert steady.now() == machine.wall
    machine.beats(ward)
    machine.later(60)
    machine.wall = right
    assert steady.now() == right
    assert not remarks(ward, right)


@pytest.mark.parametrize("is_set_right", [False, True])
def test_a_service_that_starts_again_in_1970_has_not_leapt_when_ntp_sets_it_right(
    ward: Ward, machine: Machine, is_set_right: bool
) -> None:
    """Meanwhile its host was heard of in 1970."""
    machine.beats(ward)
    right = Instant(machine.wall + 8 * HOUR)
    machine.wall = Instant(seconds(30))
    for _ in range(2):
        assert machine.steady(ward).now() == machine.wall
        machine.beats(ward)
        (sentence,) = remarks(ward, machine.wall)
        assert "have it set by ntp" in sentence.lower()
        machine.later(60)
    steady = machine.steady(ward)
    machine.wall = right
    if is_set_right:  # while the service is off
        steady = machine.steady(ward)
    assert steady.now() == right
    assert not remarks(ward, right)


@pytest.mark.parametrize("is_off", [False, True])
def test_what_came_by_a_clock_that_was_behind_is_kept_as_long_as_all_else(
    ward: Ward, machine: Machine, is_off: bool
) -> None:
    machine.beats(ward)
    right = machine.wall
    machine.wall = Instant(seconds(30))
    steady = machine.steady(ward)
    uid = StudyInstanceUID(ward.study("P1"))
    with writing(ward.engine) as connection:
        connection.execute(schema.studies.update().values(last_object_at=machine.wall))
        connection.execute(schema.instances.update().values(received_at=machine.wall))
    machine.beats(ward)
    assert steady.now() == machine.wall
    data = ward.settings.folders.data
    machine.later(600)
    machine.wall = Instant(right + HOUR)
    if is_off:
        steady = machine.steady(ward)
    assert retention.delete_expired(ward.engine, data, KEEP, steady.now()) == 0
    with reading(ward.engine) as connection:
        told = [each.sentence for each in events.story(connection, uid)]
    assert sum(" came by a clock that was behind" in each for each in told) == 1
    assert steady.now() == machine.wall
    with reading(ward.engine) as connection:
        assert len(events.story(connection, uid)) == len(told)
    machine.later(29 * 86400)
    assert retention.delete_expired(ward.engine, data, KEEP, steady.now()) == 0
    machine.later(2 * 86400)
    assert retention.delete_expired(ward.engine, data, KEEP, steady.now()) == 1


def test_a_clock_that_was_behind_by_hours_stamps_nothing_anew(ward: Ward, machine: Machine) -> None:
    uid = StudyInstanceUID(ward.study("P1"))
    with reading(ward.engine) as connection:
        told = events.story(connection, uid)
    steady = machine.steady(ward)
    for _ in range(3):
        machine.wall = Instant(machine.wall - 5 * HOUR)
        steady.now()
        machine.later(600)
        machine.wall = Instant(machine.wall + 5 * HOUR)
        assert steady.now() == machine.wall
        machine.later(7200)
    with reading(ward.engine) as connection:
        assert events.story(connection, uid) == told


def test_a_clock_that_leaps_after_1970_is_not_believed(ward: Ward, machine: Machine) -> None:
    machine.beats(ward)
    heard = machine.wall
    machine.wall = Instant(seconds(30))
    for _ in range(2):
        machine.steady(ward)
        machine.beats(ward)
    machine.wall = Instant(heard + 3 * DAY)
    assert machine.steady(ward).now() == heard


def test_a_host_with_a_new_name_has_the_clock_that_leapt(ward: Ward, machine: Machine) -> None:
    name = "h1"
    steady = SteadyClock(
        ward.engine, lambda: name, lambda: machine.wall, lambda: machine.monotonic_s
    )
    before = machine.wall
    machine.wall = Instant(before + 400 * DAY)
    assert steady.now() == before
    machine.later(3600)
    name = "h2"
    assert steady.now() == before + HOUR
    machine.beats(ward)
    again = machine.steady(ward, "h2")
    assert again.now() == before + HOUR
    machine.later(23 * 3600)
    assert again.now() == machine.wall


def test_a_leap_is_told_of_under_the_name_that_the_host_has(ward: Ward, machine: Machine) -> None:
    name = "h1"
    steady = SteadyClock(
        ward.engine, lambda: name, lambda: machine.wall, lambda: machine.monotonic_s
    )
    name = "h2"
    machine.wall = Instant(machine.wall + 400 * DAY)
    steady.now()
    (sentence,) = remarks(ward, machine.wall)
    assert sentence.startswith("The clock of h2 went from ")


def test_a_clock_that_leapt_and_was_set_back_is_not_believed_when_it_leaps_again(
    ward: Ward, machine: Machine
) -> None:
    steady = machine.steady(ward)
    right, leapt = machine.wall, Instant(machine.wall + 400 * DAY)
    machine.wall = leapt
    steady.now()
    machine.beats(ward)
    machine.wall = right
    for each in (steady, machine.steady(ward)):
        assert each.now() == right
        machine.wall = leapt
        assert each.now() == right
        machine.wall = right
    steady.now()
    machine.later(24 * 3600)
    machine.wall = Instant(leapt + DAY)
    assert steady.now() == right + DAY


@pytest.mark.parametrize("days_wrong", [0, 3])
def test_a_clock_that_was_ahead_and_was_set_right_may_leap_later(
    ward: Ward, machine: Machine, days_wrong: int
) -> None:
    right = machine.wall
    machine.wall = Instant(right + 400 * DAY)
    steady = machine.steady(ward)
    for _ in range(days_wrong):
        machine.later(86400)
        steady.now()
    machine.wall = Instant(machine.wall - 400 * DAY)
    for _ in range(30):
        assert steady.now() == machine.wall
        machine.later(86400)
    before = machine.wall
    machine.wall = Instant(before + 300 * DAY)
    assert steady.now() == before
    assert len(remarks(ward, machine.wall)) == 1


def test_a_clock_that_goes_from_one_wrong_time_to_another_has_leapt(
    ward: Ward, machine: Machine
) -> None:
    machine.wall = Instant(machine.wall + 400 * DAY)
    steady = machine.steady(ward)
    steady.now()
    machine.wall = right = Instant(machine.wall - 400 * DAY)
    assert steady.now() == right
    machine.wall = Instant(right + 300 * DAY)
    assert steady.now() == right


def test_a_clock_that_is_set_back_a_little_each_day_may_leap_later(
    ward: Ward, machine: Machine
) -> None:
    steady = machine.steady(ward)
    for _ in range(100):
        machine.later(3600)
        machine.wall = Instant(machine.wall - seconds(1800))
        assert steady.now() == machine.wall
    before = machine.wall
    machine.wall = Instant(before + 2 * HOUR)
    assert steady.now() == before


def test_a_machine_that_sleeps_at_night_has_not_leapt_in_the_morning(
    ward: Ward, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept_s = 0.0

    def gettime(clock: int) -> float:
        return machine.monotonic_s + (slept_s if clock == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(time, "clock_gettime", gettime)
    monkeypatch.setattr(time, "monotonic", lambda: gettime(time.CLOCK_MONOTONIC))
    steady = SteadyClock(ward.engine, lambda: "h1", lambda: machine.wall)
    machine.later(600)
    slept_s = 8 * 3600
    machine.wall = Instant(machine.wall + 8 * HOUR)
    assert steady.now() == machine.wall
    assert not remarks(ward, machine.wall)


def test_a_second_leap_begins_the_day_anew(ward: Ward, machine: Machine) -> None:
    steady = machine.steady(ward)
    before = machine.wall
    for _ in range(2):
        machine.wall = Instant(machine.wall + 100 * DAY)
        steady.now()
        machine.later(20 * 3600)
    assert steady.now() == before + 40 * HOUR


@pytest.mark.parametrize(("hours_off", "waits"), [(14, False), (30 * 24, True)])
def test_a_service_that_was_off_for_long_waits_a_day(
    ward: Ward, machine: Machine, hours_off: int, waits: bool
) -> None:
    machine.beats(ward)
    heard = machine.wall
    machine.wall = Instant(heard + hours_off * HOUR)
    steady = machine.steady(ward)
    assert steady.now() == (heard if waits else machine.wall)
    machine.beats(ward)
    machine.later(24 * 3600)
    assert steady.now() == machine.wall


def test_the_clock_of_the_database_counts_where_it_is_behind(
    ward: Ward, postgresql_cluster: str
) -> None:
    with psycopg.connect(
        postgresql_cluster.replace("+psycopg", ""), autocommit=True
    ) as maintenance:
        maintenance.execute("CREATE DATABASE steady_clock")
    url = make_url(postgresql_cluster).set(database="steady_clock")
    engine = open_engine(url.render_as_string(hide_password=False))
    try:
        upgrade(engine)
        ahead = Machine(wall=Instant(now() + 31 * DAY))
        steady = ahead.steady(replace(ward, engine=engine))
        assert abs(steady.now() - now()) < 60_000_000
        with reading(engine) as connection:
            (sentence,) = clocks.doubts(connection, ahead.wall)
            assert not clocks.doubts(connection, now())
        assert "This machine's clock says " in sentence
    finally:
        engine.dispose()
