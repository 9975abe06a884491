"""Nothing starts before everything was looked at, and what is wrong is said with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ward import Ward, open_ward

from dicomai.errors import ConfigError
from dicomai.roles.serve import ROLES, check
from dicomai.routing.route import Route
from dicomai.settings.tables import DatabaseSettings
from dicomai.store.engine import writing


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = open_ward(tmp_path)
    yield opened
    opened.engine.dispose()


def test_a_whole_configuration_passes(ward: Ward) -> None:
    check(replace(ward.settings, routes=(Route(name="all", model="bodies"),)), set(ROLES))


def test_a_database_of_another_version_is_refused_with_the_command_that_helps(ward: Ward) -> None:
    with writing(ward.engine) as connection:
        connection.exec_driver_sql("DELETE FROM alembic_version")
    with pytest.raises(ConfigError, match="dicomai db upgrade"):
        check(ward.settings, {"work"})
    check(ward.settings, {"receive"})  # the receiver needs no database


def test_a_database_that_does_not_answer_is_left_to_the_roles(ward: Ward, free_port: int) -> None:
    away = DatabaseSettings(url=f"postgresql://dicomai@127.0.0.1:{free_port}/dicomai")
    check(replace(ward.settings, database=away), set(ROLES))


def test_a_model_that_nobody_trusted_is_refused(ward: Ward) -> None:
    (ward.settings.folders.models / "trusted.toml").unlink()
    with pytest.raises(ConfigError, match="dicomai models trust bodies"):
        check(replace(ward.settings, routes=(Route(name="all", model="bodies"),)), {"schedule"})


def test_a_model_that_is_not_there_is_refused_with_the_nearest_name(ward: Ward) -> None:
    with pytest.raises(ConfigError, match=r'route "all", model: no package "bodie".*"bodies"'):
        check(replace(ward.settings, routes=(Route(name="all", model="bodie"),)), {"schedule"})


def test_a_folder_that_is_not_there_is_refused(ward: Ward) -> None:
    ward.settings.folders.quarantine.rmdir()
    with pytest.raises(ConfigError, match="dicomai init"):
        check(ward.settings, {"receive"})


def test_a_folder_that_is_read_only_is_not_a_matter_of_its_owner(
    ward: Ward, mounted: Callable[[str], Path]
) -> None:
    # As most file systems are for a service in a unit of systemd.
    spool = ward.settings.folders.spool
    spool.rmdir()
    spool.symlink_to(mounted("ro"))
    with pytest.raises(ConfigError, match=r"read-only here.* ReadWritePaths=.*With systemd"):
        check(ward.settings, {"receive"})
