"""Several real processes at one queue: each job once, whoever is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalogue_rows import NOW, add, arrive, claimed, finish, job, wanted
from sqlalchemy import Engine

from dicomai.store import leases
from dicomai.store.engine import writing
from dicomai.store.job import Held, JobId
from dicomai.store.leases import LeaseObserver

PROGRAM = Path(__file__).with_name("competitor.py")


class Processes:
    """Workers that wait for a word before they begin."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._all: list[subprocess.Popen[str]] = []

    def start(self, name: str, mode: str = "work") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), self._url, name, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._all.append(process)
        return process

    def go(self) -> None:
        for process in self._all:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in self._all:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.communicate()


@pytest.fixture
def processes(database_url: str) -> Iterator[Processes]:
    made = Processes(database_url)
    yield made
    made.end()


def test_competing_processes_do_each_job_once(engine: Engine, processes: Processes) -> None:
    numbers = set()
    workers = [processes.start(f"w{number}") for number in range(3)]
    for number in range(30):
        study = f"1.2.{number}"
        arrive(engine, study)
        numbers.add(add(engine, wanted(study, study)).job_id)
    processes.go()
    said = [line for worker in workers for line in worker.communicate(timeout=60)[0].splitlines()]
    assert sorted(said) == sorted(f"done {number}" for number in numbers)
    assert all(job(engine, number).attempts == 1 for number in numbers)


def test_a_killed_workers_job_is_done_by_another_once_and_its_late_finish_refused(
    engine: Engine, processes: Processes
) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    victim = processes.start("victim", "hang")
    processes.go()
    assert victim.stdout is not None
    word, claimed_id, claim = victim.stdout.readline().split()
    assert (word, int(claimed_id)) == ("claimed", number)
    victim.kill()
    victim.wait()
    observer = LeaseObserver(60.0)
    for at in (0.0, 20.0, 40.0, 60.0):
        with writing(engine) as connection:
            expired = leases.expire(connection, observer, at, NOW)
    assert [each.id for each in expired] == [number]
    second = claimed(engine)
    assert (second.attempts, second.crashes, second.claim) == (2, 1, int(claim) + 1)
    assert finish(engine, Held(JobId(number), int(claim))) == "lost"
    assert finish(engine, second.held) == "done"
