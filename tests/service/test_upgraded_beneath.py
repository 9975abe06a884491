"""A role ends when the database is upgraded beneath it, as while its machine was suspended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from ward import Ward, open_ward

from dicomai.roles import database
from dicomai.roles.serve import ROLES, RoleName
from dicomai.roles.tree import Life
from dicomai.settings.tables import QuerySettings
from dicomai.store import migrate
from dicomai.store.engine import writing


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = open_ward(tmp_path)
    yield opened
    opened.engine.dispose()


@pytest.mark.parametrize("role", ["schedule", "work", "query"])
def test_a_role_ends_when_the_database_gets_another_version(
    ward: Ward,
    role: RoleName,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(database, "_LOOK_S", 0.05)
    settings = replace(ward.settings, query=QuerySettings(port=free_port))
    at_work, stop = threading.Event(), threading.Event()
    life = Life(ready=at_work.set, waits=lambda _: None, pulse=lambda: None, stop=stop)
    living = threading.Thread(target=ROLES[role], args=(settings, life), daemon=True)
    living.start()
    try:
        assert at_work.wait(60)
        assert not stop.wait(0.5)
        # A newer program is put in the place of this one, which goes on, and then upgrades.
        monkeypatch.setattr(migrate, "_known", lambda: {"0001", "9999"})
        assert not stop.wait(0.5)
        with writing(ward.engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        living.join(60)
        assert not living.is_alive()
        assert "the database has another version" in capsys.readouterr().out
    finally:
        stop.set()
        living.join(60)
