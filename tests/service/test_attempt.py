"""A worker that can't write what it has done waits for the database, and says so."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from ward import open_ward

from dicomai.dicom.dates import now
from dicomai.errors import ErrorKind
from dicomai.service.attempt import Attempt, work_once
from dicomai.service.heart import Heart
from dicomai.store import claims, jobs
from dicomai.store.engine import file_of, writing


def test_a_database_that_is_away_while_a_job_is_written_is_told_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomai.service.attempt._AWAY_S", 0.001)
    ward = open_ward(tmp_path)
    ward.queue(ward.study("P1"))
    with writing(ward.engine) as connection:
        job = claims.claim(connection, "tests", ("analyse",), ("bodies",), now())
    assert job is not None
    file = file_of(ward.engine)
    assert file is not None
    elsewhere, tries = file.with_suffix(".away"), count(1)

    def pulse() -> None:
        if next(tries) == 5:
            elsewhere.rename(file)

    worker = replace(ward.worker(), pulse=pulse)
    heart = Heart(lambda _stage, _fraction: True, lease_s=60, deadline_s=60)
    ward.engine.dispose()
    file.rename(elsewhere)
    held = job.held
    assert Attempt(worker, job, heart).write(lambda c: jobs.beat(c, held, "commit", 1.0, now()))
    assert capsys.readouterr().out.count("database away") == 1
    ward.engine.dispose()


def _full_disk(_: Attempt) -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"results")


def _closed(_: Attempt) -> None:
    os.statvfs(2**20)  # its error has a number where others have a name


def _no_room(_: Attempt) -> None:
    bytearray(sys.maxsize)


@pytest.mark.parametrize(
    ("do", "kind", "why"),
    [
        (_full_disk, "transient", "no space left on device"),
        (_closed, "transient", "bad file descriptor"),
        (_no_room, "resource", "memory of this host"),
    ],
)
def test_what_this_machine_lacks_is_no_defect_and_is_tried_again(
    tmp_path: Path, do: Callable[[Attempt], None], kind: ErrorKind, why: str
) -> None:
    ward = open_ward(tmp_path)
    job = ward.queue(ward.study("P1"))
    assert work_once(ward.worker(), ("analyse",), ("bodies",), do)
    after = ward.job(job)
    assert (after.state, after.error_kind, after.crashes) == ("waiting", kind, 0)
    assert why in after.error_sentence
    ward.engine.dispose()
