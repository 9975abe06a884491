"""A host is its spool: another hostname makes no other host, and a copy of it is another one."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ward import Ward, open_ward

from dicomai.roles import schedule
from dicomai.roles.schedule import ingest_of
from dicomai.settings import Settings
from dicomai.store import hosts
from dicomai.store.engine import reading
from dicomai.store.hosts import Host


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    monkeypatch.setattr(schedule, "_PUBLISH_S", 0.0)
    made = open_ward(tmp_path)
    yield made
    made.engine.dispose()


def listed(ward: Ward) -> dict[str, Host]:
    with reading(ward.engine) as connection:
        return {each.name: each for each in hosts.listing(connection)}


def test_a_new_container_on_the_same_spool_is_the_same_host(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    for container in ("3f2a9c0d11aa", "9be0417c55f2"):
        monkeypatch.setattr(socket, "gethostname", lambda name=container: name)
        once = schedule._ingesting(ward.settings, ward.engine, lambda: None)
        for _ in range(3):
            once()
    (name,) = listed(ward)
    assert name.startswith("3f2a9c0d11aa-")


def copied(ward: Ward, folder: Path) -> Settings:
    """Copy the data folder; return the settings of the copy."""
    shutil.copytree(ward.settings.folders.data, folder)
    service = ward.settings.service.model_copy(update={"data": folder})
    return replace(ward.settings, service=service)


def test_machines_of_one_hostname_are_hosts_of_their_own(ward: Ward, tmp_path: Path) -> None:
    other = copied(ward, tmp_path / "other")
    assert ingest_of(ward.settings).host != ingest_of(other).host


def test_a_copy_of_a_spool_is_a_host_of_its_own_and_is_told_of(
    ward: Ward, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = schedule._ingesting(ward.settings, ward.engine, lambda: None)
    first()
    (name,) = listed(ward)
    other = copied(ward, tmp_path / "copy")
    second = schedule._ingesting(other, ward.engine, lambda: None)
    second()
    assert set(listed(ward)) == {name}
    first()  # which had the name before
    said = capsys.readouterr().out
    assert f"Another scheduler goes by the name of host {name}" in said
    for _ in range(3):
        first()
        second()
    assert "host has a new name" not in capsys.readouterr().out
    before = listed(ward)
    assert len(before) == 2
    assert ingest_of(ward.settings).host in before.keys() - {name}
    first()
    second()
    assert all(each.beat_at > before[each.name].beat_at for each in listed(ward).values())
