"""What tests of the service share."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import structlog
from sqlalchemy.engine import make_url

from dicomai.dicom.uid import StudyInstanceUID
from dicomai.inference.runner_process import RunnerProcess
from dicomai.net.node import Node
from dicomai.service.supervise import Supervisor
from dicomai.store import schema
from dicomai.store.engine import open_engine, writing
from dicomai.store.job import JobId
from dicomai.store.migrate import upgrade

sys.path.insert(0, str(Path(__file__).parent))  # for `bodies` and `faulty_pacs`

from faulty_pacs import FaultyPeer
from reissuing import Pacs
from ward import Ward, open_ward


@pytest.fixture(scope="session")
def runner() -> Iterator[RunnerProcess]:
    """The real runner, which also knows networks that misbehave; it starts anew when it died."""
    script = str(Path(__file__).with_name("misbehaving_runner.py"))
    with RunnerProcess("cpu", command=(sys.executable, script)) as process:
        yield process


@pytest.fixture(scope="session")
def _postgresql(postgresql_cluster: str) -> str:
    with psycopg.connect(
        postgresql_cluster.replace("+psycopg", ""), autocommit=True
    ) as maintenance:
        maintenance.execute("CREATE DATABASE service")
    url = make_url(postgresql_cluster).set(database="service").render_as_string(hide_password=False)
    engine = open_engine(url)
    upgrade(engine)
    engine.dispose()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """URL of an empty catalogue in each of the databases; empty: SQLite in the data folder."""
    if request.param == "sqlite":
        return ""
    url: str = request.getfixturevalue("_postgresql")
    engine = open_engine(url)
    with writing(engine) as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
    engine.dispose()
    return url


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Return when a condition holds; fail when it doesn't in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.01)


@pytest.fixture
def faulty() -> Iterator[Callable[..., FaultyPeer]]:
    peers: list[FaultyPeer] = []

    def make(
        *script: int | str,
        identity: tuple[str, str] | None = None,
        knows: tuple[str, ...] = (),
    ) -> FaultyPeer:
        peers.append(FaultyPeer(list(script), identity, knows))
        return peers[-1]

    yield make
    for each in peers:
        each.close()


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait for a condition."""
    return eventually


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what is not looked at here, and takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("PATH", "")  # dciodvfy
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    gc.freeze()


@pytest.fixture
def pacs(free_port: int) -> Iterator[Pacs]:
    made = Pacs(free_port)
    yield made
    made.close()


@pytest.fixture
def analysed(
    tmp_path: Path, runner: RunnerProcess, pacs: Pacs, database: str
) -> Iterator[Callable[..., tuple[Ward, StudyInstanceUID, JobId]]]:
    """A study, of P1 unless it is said, with its results, queued for the node."""
    opened = []

    def make(
        patient: str = "P1", key: str | None = None, **node: bool
    ) -> tuple[Ward, StudyInstanceUID, JobId]:
        peer = Node(
            name="PACS1",
            ae_title="PACS1",
            host="127.0.0.1",
            port=pacs.port,
            answers_find=True,
            **node,
        )
        ward = open_ward(tmp_path, peer, database=database)
        opened.append(ward)
        study = StudyInstanceUID(ward.study(patient, key=key))
        job = ward.queue(study, mode="live", destinations=("PACS1",))
        Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()
        assert ward.job(job).state == "done"
        return ward, study, job

    yield make
    for each in opened:
        each.engine.dispose()
