"""A loop of a role waits for what passes, and ends its role with a defect."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from dicomai.errors import DatabaseError, DiskFull
from dicomai.roles.loops import Loop, keep
from dicomai.roles.tree import Life
from dicomai.service.trouble import Trouble


def life_of(stop: threading.Event) -> Life:
    return Life(ready=lambda: None, waits=lambda _: None, pulse=lambda: None, stop=stop)


def test_a_loop_waits_while_the_database_is_away_and_says_so_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomai.roles.loops.AWAY_S", 0.01)
    stop = threading.Event()
    tries: list[int] = []

    def build(_: Callable[[], None]) -> Callable[[], bool]:
        def once() -> bool:
            tries.append(1)
            if len(tries) < 4:
                raise DatabaseError("The database is away.")
            stop.set()
            return False

        return once

    keep([Loop("work", build, stop, trouble=Trouble(settled_s=0.0))], life_of(stop))
    said = capsys.readouterr().out
    assert len(tries) == 4
    assert said.count("The database is away.") == 1
    assert "loop goes on" in said


def test_a_trouble_of_all_lanes_of_a_device_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomai.roles.loops.AWAY_S", 0.01)
    stop, tries, lanes = threading.Event(), itertools.count(), itertools.count()

    def build(_: Callable[[], None]) -> Callable[[], bool | None]:
        looks = next(lanes) < 2

        def once() -> bool | None:
            if not looks:
                return None
            if next(tries) < 20:
                raise DiskFull("No room.")
            stop.set()
            return False

        return once

    trouble = Trouble(settled_s=0.0)
    names = ("first", "second", "third")
    loops = [Loop(name, build, stop, idle_s=0.001, trouble=trouble) for name in names]
    keep(loops, life_of(stop))
    for loop in loops:
        loop.join()
    said = capsys.readouterr().out
    assert (said.count("loop waits"), said.count("loop goes on")) == (1, 1)


def test_a_trouble_that_comes_and_goes_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomai.roles.loops.AWAY_S", 0.001)
    stop, tries = threading.Event(), itertools.count()

    def build(_: Callable[[], None]) -> Callable[[], bool]:
        def once() -> bool:
            number = next(tries)
            if number >= 100:
                stop.set()
            if number % 2:
                raise DatabaseError("It takes no more connections.")
            return True

        return once

    keep([Loop("work", build, stop)], life_of(stop))
    said = capsys.readouterr().out
    assert (said.count("loop waits"), said.count("loop goes on")) == (1, 0)


def test_a_defect_in_one_loop_stops_the_role_so_that_it_is_started_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = threading.Event()

    def broken(_: Callable[[], None]) -> Callable[[], bool]:
        def once() -> bool:
            raise ZeroDivisionError

        return once

    keep([Loop("broken", broken, stop), Loop("fine", lambda _: lambda: False, stop)], life_of(stop))
    assert stop.is_set()
    said = capsys.readouterr().out
    assert "ZeroDivisionError" in said
    assert "loop ended" in said
