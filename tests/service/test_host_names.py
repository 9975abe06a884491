"""A host is its spool: another hostname makes no other host, and a copy of it is another one."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ward import Ward, open_ward

from dicomai.dicom.dates import now
from dicomai.roles import schedule
from dicomai.roles.schedule import ingest_of
from dicomai.settings import Settings
from dicomai.store import hosts, schema
from dicomai.store.engine import reading, writing
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
    monkeypatch.setattr(schedule, "_SILENT_S", 0.0)
    for container in ("3f2a9c0d11aa", "9be0417c55f2"):
        monkeypatch.setattr(socket, "gethostname", lambda name=container: name)
        once = schedule._ingesting(ward.settings, ward.engine, lambda: None)
        for _ in range(3):
            once()
    (name,) = listed(ward)
    assert name.startswith("3f2a9c0d11aa-")


def test_a_host_is_waited_for_before_it_has_ingested_anything(ward: Ward) -> None:
    with writing(ward.engine) as connection:
        hosts.take_name(connection, "h-1", hosts.run_on("h"), now())
    assert listed(ward)["h-1"].ingested_to == 0


def test_the_row_that_a_machine_had_by_its_hostname_goes_when_it_has_another(ward: Ward) -> None:
    machine = socket.gethostname()
    with writing(ward.engine) as connection:
        for name in (machine, "another"):
            connection.execute(
                schema.hosts.insert().values(name=name, run="", ingested_to=1, beat_at=1)
            )
    schedule._ingesting(ward.settings, ward.engine, lambda: None)()
    assert set(listed(ward)) == {"another", ingest_of(ward.settings).host}


def test_a_copy_on_another_machine_takes_no_name_that_is_in_use(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = schedule._ingesting(ward.settings, ward.engine, lambda: None)
    first()
    (name,) = listed(ward)
    other = copied(ward, tmp_path / "copy")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    second = schedule._ingesting(other, ward.engine, lambda: None)
    before = listed(ward)[name]
    second()
    assert listed(ward) == {name: before}  # what the first one has not ingested is waited for
    first()
    for _ in range(3):
        second()
    assert ingest_of(ward.settings).host == name
    assert set(listed(ward)) == {name, ingest_of(other).host}
    assert ingest_of(other).host.startswith("elsewhere-")


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
