"""Both databases for every test of the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from dicomai.store import schema
from dicomai.store.engine import open_engine, writing
from dicomai.store.migrate import upgrade

sys.path.insert(0, str(Path(__file__).parent))  # for `catalogue_rows`


@pytest.fixture(scope="session")
def sqlite_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A migrated SQLite that each test finds empty."""
    file = tmp_path_factory.mktemp("catalogue") / "dicomai.db"
    engine = open_engine(f"sqlite:///{file}")
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def postgresql_engine(postgresql_cluster: str) -> Iterator[Engine]:
    """A migrated PostgreSQL that each test finds empty."""
    with psycopg.connect(
        postgresql_cluster.replace("+psycopg", ""), autocommit=True
    ) as maintenance:
        maintenance.execute("CREATE DATABASE store")
    url = make_url(postgresql_cluster).set(database="store").render_as_string(hide_password=False)
    engine = open_engine(url)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """A migrated, empty catalogue; the test runs on both databases.

    One engine for all tests: each new one would compile every statement again.
    """
    found: Engine = request.getfixturevalue(f"{request.param}_engine")
    with writing(found) as connection:
        # Faster than TRUNCATE, which makes a file per table; numbers go on.
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
    return found


@pytest.fixture
def database_url(engine: Engine) -> str:
    """Where other processes find the same catalogue."""
    return engine.url.render_as_string(hide_password=False)
