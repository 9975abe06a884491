"""The migrated catalogue is the one that the code knows, and any other is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine import make_url

from dicomai.errors import ConfigError
from dicomai.store import migrate, schema
from dicomai.store.engine import open_engine, writing

TRIES = {
    "sqlite": "SELECT type, name, sql FROM sqlite_master "
    "WHERE name NOT LIKE 'alembic%' AND name NOT LIKE 'sqlite_autoindex_alembic%'",
    "postgresql": "SELECT 'index', indexname, indexdef FROM pg_indexes "
    "WHERE schemaname = 'public' AND tablename <> 'alembic_version' "
    "UNION ALL SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) "
    "FROM pg_constraint WHERE connamespace = 'public'::regnamespace "
    "AND conrelid::regclass::text <> 'alembic_version' "
    "UNION ALL SELECT table_name, column_name, data_type || is_nullable FROM "
    "information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'",
}


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Engine, Engine]]:
    """Two empty databases."""
    if request.param == "sqlite":
        files = [tmp_path / f"{name}.db" for name in ("one", "two")]
        for file in files:
            file.touch()
        urls = [f"sqlite:///{file}" for file in files]
    else:
        cluster = request.getfixturevalue("postgresql_cluster")
        urls = []
        with psycopg.connect(cluster.replace("+psycopg", ""), autocommit=True) as maintenance:
            for number in ("one", "two"):
                name = f"{number}_{request.node.name.partition('[')[0]}"[:60]
                maintenance.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
                url = make_url(cluster).set(database=name)
                urls.append(url.render_as_string(hide_password=False))
    engines = (open_engine(urls[0]), open_engine(urls[1]))
    yield engines
    for engine in engines:
        engine.dispose()


def described(engine: Engine) -> set[tuple[str, ...]]:
    with engine.connect() as connection:
        rows = connection.execute(text(TRIES[engine.dialect.name])).all()
    return {tuple(" ".join(str(value).split()) for value in row) for row in rows}


def test_the_migrated_schema_is_the_one_of_the_code(empty: tuple[Engine, Engine]) -> None:
    migrated, made = empty
    migrate.upgrade(migrated)
    with writing(made) as connection:
        schema.metadata.create_all(connection)
    assert set(inspect(migrated).get_table_names()) == {
        *schema.metadata.tables,
        "alembic_version",
    }
    left, right = described(migrated), described(made)
    if migrated.dialect.name == "sqlite":  # the order of constraints in a statement has no meaning
        left, right = (
            {(kind, name, "".join(sorted(sql))) for kind, name, sql in each}
            for each in (left, right)
        )
    assert left == right


def test_another_version_is_refused_with_the_command_that_helps(
    empty: tuple[Engine, Engine],
) -> None:
    engine, _ = empty
    with pytest.raises(ConfigError, match="dicomai db upgrade") as refused:
        migrate.require_current(engine)
    assert refused.value.exit_code == 3
    assert migrate.current(engine) is None
    assert migrate.upgrade(engine) == migrate.newest() == migrate.current(engine)
    migrate.require_current(engine)
    migrate.upgrade(engine)  # again: nothing to do
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for use in (migrate.require_current, migrate.upgrade):
        with pytest.raises(ConfigError, match="9999"):
            use(engine)
