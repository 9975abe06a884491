"""The migrated catalogue is the one that the code knows, and any other is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import psycopg
import pytest
from alembic.script import ScriptDirectory
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


def test_the_versions_are_those_of_the_migrations() -> None:
    with as_file(files("dicomai.migrations")) as folder:
        scripts = ScriptDirectory(str(folder))
        known = {script.revision for script in scripts.walk_revisions()}
        assert migrate.newest() == scripts.get_current_head()
    assert all(migrate.newest() >= each for each in known)
    assert len(known) == int(migrate.newest())


def test_a_command_that_looks_at_a_catalogue_loads_neither_alembic_nor_psycopg(
    tmp_path: Path,
) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'dicomai.db'}")
    migrate.upgrade(engine)
    engine.dispose()
    look = (
        "import sys; from dicomai.store import engine, migrate; "
        f"migrate.require_current(engine.open_engine({str(engine.url)!r})); "
        "sys.exit(bool({'alembic', 'psycopg'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
