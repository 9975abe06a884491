"""A loop of a role waits for what passes, and ends its role with a defect."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from dicomai.errors import DatabaseError
from dicomai.roles.loops import Loop, keep
from dicomai.roles.tree import Life


def life_of(stop: threading.Event) -> Life:
    return Life(ready=lambda: None, pulse=lambda: None, stop=stop)


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

    keep([Loop("work", build, stop)], life_of(stop))
    said = capsys.readouterr().out
    assert len(tries) == 4
    assert said.count("The database is away.") == 1
    assert "loop goes on" in said


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
