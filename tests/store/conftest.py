"""Both databases for every test of the store."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from dicomai.store import schema
from dicomai.store.engine import open_engine
from dicomai.store.migrate import upgrade

sys.path.insert(0, str(Path(__file__).parent))  # for `catalogue_rows`


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "dicomai.db"
    engine = open_engine(f"sqlite:///{file}")
    upgrade(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return file


@pytest.fixture(scope="session")
def postgresql_url(postgresql_cluster: str) -> str:
    """A migrated database that each test finds empty."""
    with psycopg.connect(
        postgresql_cluster.replace("+psycopg", ""), autocommit=True
    ) as maintenance:
        maintenance.execute("CREATE DATABASE store")
    url = make_url(postgresql_cluster).set(database="store").render_as_string(hide_password=False)
    engine = open_engine(url)
    upgrade(engine)
    engine.dispose()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated, empty catalogue; the test runs on both databases."""
    if request.param == "sqlite":
        template = request.getfixturevalue("sqlite_template")
        shutil.copy(template, tmp_path / "dicomai.db")
        return f"sqlite:///{tmp_path / 'dicomai.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    engine = open_engine(url)
    with engine.begin() as connection:
        # Faster than TRUNCATE, which makes a file per table; numbers go on.
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
    engine.dispose()
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()
