"""A first service, its configuration, and what the doctor says of it."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sqlalchemy import Engine

from dicomai.models import device
from dicomai.models.runtimes import devices
from dicomai.settings import load
from dicomai.store.engine import open_engine
from dicomai.store.migrate import current, newest
from tests.cli.conftest import Dicomai
from tests.conftest import StorePeer


def test_init_makes_folders_database_and_a_configuration_that_is_right(
    dicomai: Dicomai, tmp_path: Path
) -> None:
    answer = dicomai("init", "first")
    assert answer.code == 0
    assert "dicomai serve --config first/dicomai.toml" in answer.out
    folder = tmp_path / "first"
    names = {each.name for each in folder.iterdir()}
    assert {"spool", "archive", "quarantine", "models", "dicomai.db", "dicomai.toml"} <= names
    assert (folder / "archive").stat().st_mode & 0o007 == 0
    assert current(open_engine(f"sqlite:///{folder / 'dicomai.db'}")) == newest()
    checked = dicomai("config", "check", "--config", folder / "dicomai.toml")
    assert (checked.code, checked.err) == (0, "")
    assert "DICOMAI on 0.0.0.0, port 11112" in checked.out


def test_init_again_keeps_what_an_administrator_wrote(dicomai: Dicomai, tmp_path: Path) -> None:
    dicomai("init", "first")
    file = tmp_path / "first" / "dicomai.toml"
    file.write_text(file.read_text() + "# mine\n")
    answer = dicomai("init", "first")
    assert answer.code == 0
    assert answer.out.startswith("Kept")
    assert file.read_text().endswith("# mine\n")


def test_init_puts_the_configuration_elsewhere(dicomai: Dicomai, tmp_path: Path) -> None:
    file = tmp_path / "etc" / "dicomai.toml"
    assert dicomai("init", "var", "--config", file).code == 0
    assert tomllib.loads(file.read_text())["service"]["data"] == str(tmp_path / "var")
    assert not (tmp_path / "var" / "dicomai.toml").exists()


ODD_FOLDERS = (
    "two words",
    "who?",
    "50%25",
    "50%",
    "a#b",
    "it's",
    'say "ah"',
    "back\\slash",
    "Röntgen",
)


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_a_folder_may_have_any_name(dicomai: Dicomai, tmp_path: Path, name: str) -> None:
    answer = dicomai("init", name)
    assert (answer.code, answer.err) == (0, "")
    assert shlex.split(answer.out)[-2:] == ["--config", f"{name}/dicomai.toml"]
    assert {each.name for each in tmp_path.iterdir()} == {name}
    assert (tmp_path / name / "dicomai.db").is_file()
    assert dicomai("status", "--config", f"{name}/dicomai.toml").code == 0


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_a_configuration_elsewhere_names_a_folder_of_any_name(
    dicomai: Dicomai, tmp_path: Path, name: str
) -> None:
    assert dicomai("init", name, "--config", "dicomai.toml").code == 0
    assert load(tmp_path / "dicomai.toml", {}).service.data == tmp_path / name
    assert (tmp_path / name / "dicomai.db").is_file()


def test_a_folder_whose_name_is_no_utf_8_is_refused_in_words(
    dicomai: Dicomai, tmp_path: Path
) -> None:
    answer = dicomai("init", os.fsdecode(b"R\xf6ntgen"))
    assert answer.code == 3
    assert "service.data" in answer.err
    assert "is no UTF-8" in answer.err
    assert not list(tmp_path.iterdir())


def test_a_locale_that_is_not_utf_8_is_refused_where_the_folder_needs_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dicomai", "init", tmp_path / "Röntgen"],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 3
    assert b"locale" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", ["Europe/Berlin", ":Europe/Berlin", ":{}/localtime"])
def test_init_takes_the_machine_s_time_zone(
    dicomai: Dicomai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    (tmp_path / "localtime").symlink_to("/usr/share/zoneinfo/Europe/Berlin")
    monkeypatch.setenv("TZ", named.format(tmp_path))
    dicomai("init", "first")
    written = tomllib.loads((tmp_path / "first" / "dicomai.toml").read_text())
    assert written["service"]["timezone"] == "Europe/Berlin"


def test_each_error_of_a_configuration_has_its_key_and_remedy(
    dicomai: Dicomai, tmp_path: Path
) -> None:
    dicomai("init", ".")
    file = tmp_path / "dicomai.toml"
    broken = file.read_text().replace("port = 11112", "prot = 11112")
    file.write_text(broken.replace('model = "chest-ct-lungs"', 'model = "chest-ct-lung"', 1))
    answer = dicomai("config", "check")
    assert answer.code == 3
    assert "receiver.prot" in answer.err
    (problem, *_) = dicomai("config", "check", "--json").json
    assert set(problem) == {"file", "key", "reason", "remedy"}
    assert problem["key"] == "receiver.prot"
    file.write_text(file.read_text().replace("prot = 11112", "port = 11112"))
    answer = dicomai("config", "check")
    assert answer.code == 3
    assert 'route "lungs", model: no package "chest-ct-lung"; "chest-ct-lungs"?' in answer.err


def test_without_a_configuration_a_command_says_where_it_looked(dicomai: Dicomai) -> None:
    answer = dicomai("status")
    assert answer.code == 3
    assert "dicomai init FOLDER" in answer.err


def test_the_doctor_has_a_verdict_and_a_remedy_for_each_thing(
    service: Engine,
    dicomai: Dicomai,
    tmp_path: Path,
    free_ports: Callable[[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, pacs = free_ports(2)
    monkeypatch.setenv("DICOMAI_RECEIVER__PORT", str(ours))
    file = tmp_path / "dicomai.toml"
    file.write_text(file.read_text().replace("port = 11113", f"port = {pacs}"))
    answer = dicomai("doctor", "--json")
    checks = {each["of"]: each for each in answer.json}
    assert checks["database"]["verdict"] == "good"
    assert checks["port"]["verdict"] == "warn"
    assert checks["port"]["remedy"].startswith("dicomai serve. If the service runs")
    assert checks["node PACS1"]["verdict"] == "bad"
    assert "can't be reached" in checks["node PACS1"]["found"]
    assert answer.code == 1


def test_the_doctor_finds_a_port_that_another_program_has(
    service: Engine, dicomai: Dicomai, storescp: StorePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMAI_RECEIVER__PORT", str(storescp.port))
    monkeypatch.setenv("DICOMAI_RECEIVER__AE_TITLE", "OTHER")
    checks = {each["of"]: each for each in dicomai("doctor", "--json").json}
    # storescp answers whatever it is called: a C-ECHO that is answered is all that can be asked.
    assert "answers" in checks["port"]["found"]


def test_the_doctor_finds_a_host_that_is_none_of_this_machine(
    service: Engine, dicomai: Dicomai, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMAI_RECEIVER__HOST", "nosuch.invalid")
    checks = {each["of"]: each for each in dicomai("doctor", "--json").json}
    assert checks["port"]["verdict"] == "bad"
    assert checks["port"]["found"].startswith("nosuch.invalid, port 11112: ")
    assert checks["port"]["remedy"] == "Choose another receiver.host or receiver.port."


def test_a_full_disk_and_a_missing_folder_are_named(
    service: Engine, dicomai: Dicomai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMAI_RECEIVER__RESERVE_BYTES", str(10**18))
    checks = {each["of"]: each for each in dicomai("doctor", "--json").json}
    assert checks["disk"]["verdict"] == "bad"
    assert checks["disk"]["remedy"].startswith("Make room")
    monkeypatch.setenv("DICOMAI_SERVICE__DATA", str(tmp_path / "gone"))
    checks = {each["of"]: each for each in dicomai("doctor", "--json").json}
    assert checks["data folder"]["remedy"] == f"dicomai init {tmp_path / 'gone'}"


def test_a_disk_without_a_byte_left_wants_room(
    service: Engine, dicomai: Dicomai, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    checks = {each["of"]: each for each in dicomai("doctor", "--json").json}
    assert checks["data folder"]["remedy"].startswith("Make room")
    assert "free in" in checks["disk"]["found"]


def test_what_may_not_be_read_is_a_row_and_ends_no_others(
    service: Engine, dicomai: Dicomai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A test that runs as root reads whatever the mode says.
    read_text = Path.read_text

    def denied(path: Path, *arguments: str, **options: str) -> str:
        if path.name == "trusted.toml":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", denied)
    answer = dicomai("doctor", "--json")
    assert answer.code == 1
    checks = {each["of"]: each for each in answer.json}
    assert checks["models"]["verdict"] == "bad"
    assert f"{tmp_path}/models/trusted.toml" in checks["models"]["found"]
    assert "service's user" in checks["models"]["remedy"]
    assert {"disk", "database", "port", "device", "node PACS1"} <= set(checks)


@pytest.mark.parametrize(
    ("wanted", "said", "verdict", "found"),
    [
        ("auto", "", "good", "cuda:0 A2, 16 GB"),
        ("auto", "is busy", "bad", "does not compute with PyTorch"),
        ("cuda", "is busy", "bad", "does not compute with PyTorch"),
        ("cuda:0", "no kernel image", "bad", "does not compute with PyTorch"),
        # No worker uses it, so nothing is wrong.
        ("auto", "no kernel image", "warn", "does not compute with PyTorch"),
        ("cuda:1", "is busy", "warn", "does not compute with PyTorch"),
        ("cpu", "no kernel image", "warn", "does not compute with PyTorch"),
        ("cuda:0", "", "good", "cuda:0 A2, 16 GB"),
        ("cuda:1", "", "bad", "sees 1 GPU"),
        ("cpu", "", "warn", "worker.device is cpu, though there is a GPU"),
    ],
)
def test_the_doctor_has_each_gpu_compute(
    service: Engine,
    dicomai: Dicomai,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    said: str,
    verdict: str,
    found: str,
) -> None:
    facts = SimpleNamespace(name="A2", total_memory=16 * 10**9)
    monkeypatch.setattr(devices, "gpu_trouble", lambda _: said)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setenv("DICOMAI_WORKER__DEVICE", wanted)
    checks = [each for each in dicomai("doctor", "--json").json if each["of"] == "device"]
    assert [each["verdict"] for each in checks if found in each["found"]] == [verdict]


def test_the_doctor_tells_of_a_gpu_that_torch_does_not_see(
    service: Engine, dicomai: Dicomai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "_DRIVERS", (tmp_path,))
    checks = {each["of"]: each for each in dicomai("doctor", "--json").json}
    assert checks["device"]["verdict"] == "warn"
    assert "A GPU's driver is there" in checks["device"]["found"]
    monkeypatch.setattr(device, "_DRIVERS", ())
    checks = {each["of"]: each for each in dicomai("doctor", "--json").json}
    assert checks["device"]["found"].startswith("no GPU")


def test_the_doctor_finds_a_lost_database_and_makes_none(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    service.dispose()
    lost = tmp_path / "dicomai.db"
    lost.unlink()
    (tmp_path / "archive" / "a0" / "1.2.3").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    checks = {each["of"]: each for each in dicomai("doctor", "--json").json}
    assert sorted(tmp_path.rglob("*")) == before
    assert checks["database"]["verdict"] == "bad"
    assert f"{lost} does not exist" in checks["database"]["found"]
    answer = dicomai("db", "upgrade")
    assert (answer.code, answer.out) == (0, f"The database {lost} is up to date.\n")
    checks = {each["of"]: each for each in dicomai("doctor", "--json").json}
    assert checks["database"]["verdict"] == "good"
    assert checks["archive"]["verdict"] == "warn"
    unknown = f"1 study lies in {tmp_path / 'archive'} that the catalogue does not know"
    assert unknown in checks["archive"]["found"]
    assert unknown in dicomai("status").out


def test_echo_and_send_reach_a_peer(
    service: Engine,
    dicomai: Dicomai,
    storescp: StorePeer,
    sample_data: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "dicomai.toml"
    file.write_text(file.read_text().replace("port = 11113", f"port = {storescp.port}"))
    assert "PACS1 answers" in dicomai("echo", "PACS1").out
    assert dicomai("echo", "PACS1", "--json").json["ok"] is True
    images = sorted((sample_data / "odd").rglob("*.dcm"))[:2]
    answer = dicomai("send", "PACS1", *images)
    assert answer.code == 0, answer.err
    assert answer.out == f"PACS1 has {len(images)} of {len(images)} objects.\n"
    assert len(storescp.files()) == len(images)


def test_what_is_cut_off_or_no_dicom_is_left_out_and_said(
    service: Engine, dicomai: Dicomai, storescp: StorePeer, sample_data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "dicomai.toml"
    file.write_text(file.read_text().replace("port = 11113", f"port = {storescp.port}"))
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "readme.txt").write_text("No DICOM.")
    truncated = sample_data / "odd" / "made" / "truncated"
    shutil.copy(truncated / "cut-half-pixels.dcm", folder / "a.dcm")
    shutil.copy(min((sample_data / "odd" / "pixel").rglob("*.dcm")), folder / "b.dcm")
    answer = dicomai("send", "PACS1", folder)
    assert answer.code == 1
    assert re.search(r"a\.dcm +Not sent\. It is truncated: PixelData", answer.out), answer.out
    assert "Get it again from where it came from." in answer.out
    assert "PACS1 has 1 of 2 objects.\nLeft out, for it is no DICOM: 1 file.\n" in answer.out
    assert len(storescp.files()) == 1


@pytest.mark.parametrize(
    "command",
    [("send", "PACS1"), ("route", "test"), ("run", "chest-ct-lungs", "--out", "results")],
)
def test_a_folder_without_dicom_is_code_4(
    service: Engine, dicomai: Dicomai, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("No DICOM.")
    answer = dicomai(*command, tmp_path / "empty")
    assert answer.code == 4
    assert "There is no DICOM in" in answer.err


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("DICOMDIR", "give the folder that it lies in"),
        ("study.zip", "unpack it, and give the folder"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [("send", "PACS1"), ("route", "test"), ("run", "chest-ct-lungs", "--out", "results")],
)
def test_a_dicomdir_or_a_zip_archive_is_told_what_to_give(
    service: Engine,
    dicomai: Dicomai,
    tmp_path: Path,
    command: tuple[str, ...],
    name: str,
    advice: str,
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" if name.endswith("zip") else b"")
    answer = dicomai(*command, tmp_path / name)
    assert answer.code != 0
    assert advice in answer.out + answer.err


@pytest.mark.parametrize("command", [("echo", "HERE"), ("send", "HERE")])
def test_a_node_that_can_not_be_called_is_code_3(
    service: Engine, dicomai: Dicomai, sample_data: Path, command: tuple[str, ...]
) -> None:
    image = min((sample_data / "odd").rglob("*.dcm"))
    answer = dicomai(*command, *([image] if command[0] == "send" else []))
    assert answer.code == 3
    assert "Node HERE has no host and port" in answer.err


def test_a_configuration_that_may_not_be_read_is_code_3(
    service: Engine, dicomai: Dicomai, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A test that runs as root reads whatever the mode says.
    def denied(*_: object, **__: object) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "read_bytes", denied)
    answer = dicomai("-c", "dicomai.toml", "config", "check")
    assert answer.code == 3
    assert "can't be read by this user. Run this as the service's user." in answer.err


def test_completion_is_offered(peer: Callable[[str], str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dicomai"],
        env={"_DICOMAI_COMPLETE": "complete_bash", "COMP_WORDS": "dicomai pa", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["pause"]


def test_trust_says_when_a_restart_is_needed(service: Engine, dicomai: Dicomai) -> None:
    first, again = (dicomai("models", "trust", "chest-ct-lungs").out for _ in range(2))
    assert "Start the service again if it ran while files of the package changed." in first
    assert "is trusted already. Start the service again if it ran" in again
