"""A host is its spool: another hostname makes no other host, and a copy of it is another one."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from bodies import new_uid, write_study
from pydicom import dcmread
from sqlalchemy.engine import make_url
from ward import Ward, open_ward

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DicomaiError
from dicomai.roles import schedule
from dicomai.roles.schedule import ingest_of
from dicomai.service.standstill import require_silence, require_stopped
from dicomai.settings import Settings
from dicomai.spool import host
from dicomai.spool.entries import opened
from dicomai.store import archive, clocks, hosts, schema, studies
from dicomai.store.engine import reading, writing
from dicomai.store.hosts import Host


@pytest.fixture(scope="module")
def database(postgresql_cluster: str) -> str:
    """A PostgreSQL for several hosts: an SQLite serves one."""
    with psycopg.connect(
        postgresql_cluster.replace("+psycopg", ""), autocommit=True
    ) as maintenance:
        maintenance.execute("CREATE DATABASE host_names")
    url = make_url(postgresql_cluster).set(database="host_names")
    return url.render_as_string(hide_password=False)


@pytest.fixture
def ward(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    monkeypatch.setattr(schedule, "_PUBLISH_S", 0.0)
    made = open_ward(tmp_path, database=database)
    # What tests before left in the catalogue is not here.
    (made.settings.folders.archive / "00").mkdir(parents=True, exist_ok=True)
    with writing(made.engine) as connection:
        connection.execute(schema.hosts.delete())
    yield made
    made.engine.dispose()


@dataclass
class Watch:
    """A clock that goes on as told."""

    said_s: float

    def __call__(self) -> float:
        return self.said_s


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The monotonic clock of all hosts."""
    made = Watch(time.monotonic())
    monkeypatch.setattr(time, "monotonic", made)
    return made


def boots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the machine start again, or be another one with the same disk."""
    boot = folder / "boot_id"
    boot.write_text(new_uid())
    monkeypatch.setattr(host, "_BOOT", boot)


def waits_a_silence(watch: Watch, once: Callable[[], object]) -> None:
    """Have a host look for so long that another one counts as silent."""
    until_s = watch.said_s + schedule._SILENT_S
    while watch.said_s < until_s:
        once()
        watch.said_s += 5.0


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


def test_hosts_of_one_archive_know_each_other_by_it(ward: Ward, tmp_path: Path) -> None:
    other = copied(ward, tmp_path / "other")
    for each in (ward.settings, other):
        (each.folders.spool / "host").unlink(missing_ok=True)
        schedule._ingesting(each, ward.engine, lambda: None)()
    names = [ingest_of(each).host for each in (ward.settings, other)]
    assert set(names) == set(listed(ward))
    data = ward.settings.folders.data
    assert [archive.has_host(data, name) for name in names] == [True, False]
    shutil.rmtree(other.folders.archive)
    other.folders.archive.symlink_to(ward.settings.folders.archive)
    schedule._ingesting(other, ward.engine, lambda: None)()
    assert archive.has_host(data, names[1])


def test_a_host_is_waited_for_before_it_has_ingested_anything(ward: Ward) -> None:
    with writing(ward.engine) as connection:
        hosts.take_name(connection, "h-1", hosts.run_on("h", "there"), now())
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
    """Under the same hostname too, as a clone has it: the one that lives keeps its name."""
    first = schedule._ingesting(ward.settings, ward.engine, lambda: None)
    first()
    (name,) = listed(ward)
    other = copied(ward, tmp_path / "copy")
    second = schedule._ingesting(other, ward.engine, lambda: None)
    second()
    assert set(listed(ward)) == {name}
    assert "host waits for its name" in capsys.readouterr().out
    first()
    second()
    assert f"goes by the name of host {name}" in capsys.readouterr().out
    for _ in range(3):
        first()
        second()
    assert "host has a new name" not in capsys.readouterr().out
    before = listed(ward)
    assert len(before) == 2
    assert ingest_of(ward.settings).host == name
    assert ingest_of(other).host in before.keys() - {name}
    first()
    second()
    assert all(each.beat_at > before[each.name].beat_at for each in listed(ward).values())


def test_a_second_scheduler_on_a_folder_is_told_of(
    ward: Ward, capsys: pytest.CaptureFixture[str]
) -> None:
    first = schedule._ingesting(ward.settings, ward.engine, lambda: None)
    first()
    (name,) = listed(ward)
    second = schedule._ingesting(ward.settings, ward.engine, lambda: None)
    second()
    told = listed(ward)
    assert set(told) == {name}
    first()  # which had the name before
    assert f"Another scheduler goes by the name of host {name}" in capsys.readouterr().out
    assert listed(ward) == told  # it tells nothing under a name that is another's
    first()
    assert len(listed(ward)) == 2


def test_a_machine_that_starts_again_has_its_name_when_nobody_else_was_heard_of(
    ward: Ward, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = schedule._ingesting(ward.settings, ward.engine, lambda: None)
    first()
    before = listed(ward)
    boots(tmp_path, monkeypatch)
    again = schedule._ingesting(ward.settings, ward.engine, lambda: None)
    waits_a_silence(watch, again)
    assert listed(ward) == before
    for _ in range(4):
        again()
        watch.said_s += 5.0
    (name,) = before
    assert listed(ward)[name].beat_at > before[name].beat_at


def test_a_clone_of_a_machine_takes_no_name_because_the_database_was_away(
    ward: Ward, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = schedule._ingesting(ward.settings, ward.engine, lambda: None)
    first()
    before = listed(ward)
    (name,) = before
    other = copied(ward, tmp_path / "clone")
    boots(tmp_path, monkeypatch)
    clone = schedule._ingesting(other, ward.engine, lambda: None)
    clone()
    watch.said_s += 2 * schedule._SILENT_S  # no one gets through
    clone()
    assert listed(ward) == before
    first()
    clone()
    clone()
    assert ingest_of(ward.settings).host == name
    assert set(listed(ward)) == {name, ingest_of(other).host}


def test_of_two_copies_that_wait_for_a_name_one_gets_it(
    ward: Ward, tmp_path: Path, watch: Watch
) -> None:
    schedule._ingesting(ward.settings, ward.engine, lambda: None)()
    told = listed(ward)
    (name,) = told
    others = [copied(ward, tmp_path / each) for each in "ab"]
    copies = [schedule._ingesting(each, ward.engine, lambda: None) for each in others]

    def both() -> None:
        for each in copies:
            each()

    waits_a_silence(watch, both)
    for _ in range(3):  # the one that gets it waits until the other one is waited for too
        both()
        assert listed(ward)[name] == told[name]
    assert len(listed(ward)) == 2
    watch.said_s += 5.0
    both()
    watch.said_s += 5.0
    both()
    assert listed(ward)[name].beat_at > told[name].beat_at
    assert {ingest_of(each).host for each in others} == set(listed(ward))
    assert len(listed(ward)) == 2
    assert name in listed(ward)


def test_two_that_take_a_new_name_at_the_same_moment_don_t_fail(ward: Ward) -> None:
    inserted, asked = threading.Event(), threading.Event()

    def take(run: str) -> bool:
        with writing(ward.engine) as connection:
            if run == "b/b/b":
                inserted.wait(10)
                asked.set()
            taken = hosts.take_name(connection, "h-1", run, now())
            if run == "a/a/a":
                inserted.set()
                asked.wait(10)
        return taken

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(take, ("a/a/a", "b/b/b"))) == [True, False]
    with reading(ward.engine) as connection:
        sign = hosts.sign_of(connection, "h-1")
    assert sign is not None
    assert sign.run == "a/a/a"
    with writing(ward.engine) as connection:
        assert hosts.take_name(connection, "h-1", "c/c/c", now(), sign)
        assert not hosts.take_name(connection, "h-1", "d/d/d", now(), sign)


def test_the_only_host_of_an_sqlite_has_its_name_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward = open_ward(tmp_path)
    told: list[Instant] = []
    for _ in range(2):
        boots(tmp_path, monkeypatch)
        schedule._ingesting(ward.settings, ward.engine, lambda: None)()
        (one,) = listed(ward).values()
        told.append(one.ingested_to)
    ward.engine.dispose()
    assert told[1] > told[0] > 0


def test_a_host_that_takes_in_a_backlog_tells_that_it_lives(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "_ALIVE_S", 0.0)
    beats: list[Instant] = []
    data = ward.settings.folders.data

    def look() -> None:
        beats.extend(each.beat_at for each in listed(ward).values())
        # Who sees it live and has not its name takes its archive for another.
        assert all(archive.has_host(data, name) for name in listed(ward))

    writer = opened(
        ward.settings.folders.spool,
        calling_ae="CT1",
        called_ae="DICOMAI",
        address="192.0.2.1",
        node="CT1",
        started_at=now(),
    )
    files = write_study(tmp_path / "sent", "P1")
    for file in files:
        writer.add(StudyInstanceUID(new_uid()), [file.read_bytes()])
    schedule._ingesting(ward.settings, ward.engine, look)()
    assert len(set(beats)) > 2 * len(files)  # one is placed after another, before any has a row


@pytest.fixture
def clock_is_ahead(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock of this machine, which is not that of the database."""
    right = time.time_ns

    def put(hours: float) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: right() + round(hours * 3.6e12))

    return put


def sends(ward: Ward, folder: Path) -> StudyInstanceUID:
    """Have a series come to a host, which takes it in; its node may send more of it."""
    files = write_study(folder, "P1")
    uid = StudyInstanceUID(dcmread(files[0]).StudyInstanceUID)
    spool = ward.settings.folders.spool
    facts = {"calling_ae": "CT1", "called_ae": "DICOMAI", "address": "192.0.2.1", "node": "CT1"}
    writer = opened(spool, started_at=now(), **facts)
    for file in files:
        writer.add(uid, [file.read_bytes()])
    writer.end("released", now())
    schedule._ingesting(ward.settings, ward.engine, lambda: None)()
    return uid


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_host_whose_clock_is_wrong_takes_no_study_for_whole_that_is_not(
    ward: Ward, tmp_path: Path, clock_is_ahead: Callable[[float], None], hours: float
) -> None:
    uid = sends(ward, tmp_path / "sent")
    with reading(ward.engine) as connection:
        before = studies.get(connection, uid)
    clock_is_ahead(hours)
    schedule._deciding(ward.settings, ward.engine, lambda: None)()
    with reading(ward.engine) as connection:
        assert studies.get(connection, uid) == before
    assert before is not None
    assert before.status == "open"


@pytest.mark.parametrize("hours", [-2, 2])
def test_what_a_host_tells_by_a_wrong_clock_counts_by_that_of_the_database(
    ward: Ward, tmp_path: Path, clock_is_ahead: Callable[[float], None], hours: float
) -> None:
    began = now()
    clock_is_ahead(hours)
    uid = sends(ward, tmp_path / "sent")
    (host,) = listed(ward).values()
    clock_is_ahead(0)
    with reading(ward.engine) as connection:
        study = studies.get(connection, uid)
        assert not clocks.apart(connection, now)
    assert study is not None
    for told in (host.beat_at, host.ingested_to, study.first_object_at, study.last_object_at):
        assert began - clocks.AHEAD < told < now() + clocks.AHEAD
    assert study.quiet_until - study.last_object_at == seconds(60)


def test_a_clock_that_is_ahead_does_not_have_an_upgrade_take_hosts_for_stopped(ward: Ward) -> None:
    schedule._ingesting(ward.settings, ward.engine, lambda: None)()
    listened: list[float] = []
    require_silence(ward.engine, Instant(now() + seconds(7200)), listened.append)
    assert listened


def test_a_clock_that_is_ahead_does_not_have_a_rescan_take_hosts_for_stopped(ward: Ward) -> None:
    schedule._ingesting(ward.settings, ward.engine, lambda: None)()
    with (
        reading(ward.engine) as connection,
        pytest.raises(DicomaiError, match="so the service runs there"),
    ):
        require_stopped(connection, Instant(now() + seconds(7200)))
