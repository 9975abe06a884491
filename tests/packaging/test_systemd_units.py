"""The units as systemd reads them; a unit with an error would show first at a hospital."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
PROGRAM = "/opt/dicomai/bin/dicomai"

# systemd's own measure, 0 (closed) to 10; the worker has GPUs and memory that is code.
MOST_EXPOSED = {
    "dicomai-query.service": 15,
    "dicomai-receiver.service": 15,
    "dicomai-scheduler.service": 15,
}
WORKER_EXPOSED = 18


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, starting a program that is there, as verify wants it."""
    program = shutil.which("true")
    assert program is not None
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, program))
    return tmp_path


def test_there_is_a_unit_for_each_role_and_a_target() -> None:
    always = ["dicomai-receiver.service", "dicomai-scheduler.service", "dicomai-worker.service"]
    assert set(SERVICES) == {"dicomai-query.service", *always}
    wanted = (UNITS / "dicomai.target").read_text()
    assert all(service in wanted for service in always)
    # Without [query] there is nothing to listen on, so an administrator enables it.
    assert "dicomai-query.service" not in wanted
    assert "WantedBy=dicomai.target\n" in (UNITS / "dicomai-query.service").read_text()


def test_systemd_has_nothing_to_say_about_them(units: Path, peer: Callable[[str], str]) -> None:
    # It exits 0 on an unknown key, so silence is the test.
    done = subprocess.run(
        [peer("systemd-analyze"), "verify", *map(str, sorted(units.iterdir()))],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("service", SERVICES)
def test_they_are_hardened(service: str, units: Path, peer: Callable[[str], str]) -> None:
    threshold = MOST_EXPOSED.get(service, WORKER_EXPOSED)
    done = subprocess.run(
        [
            *(peer("systemd-analyze"), "security", "--offline=true", "--no-pager"),
            *(f"--threshold={threshold}", str(units / service)),
        ],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()


@pytest.mark.parametrize("service", SERVICES)
def test_they_are_started_again_however_often_they_ended(service: str) -> None:
    text = (UNITS / service).read_text()
    assert "Restart=on-failure\n" in text
    assert "StartLimitIntervalSec=0\n" in text
    assert "RestartPreventExitStatus=2 3\n" in text
    # systemd would end the whole unit where the kernel killed a runner for its memory.
    assert "OOMPolicy=continue\n" in text


@pytest.mark.parametrize("service", SERVICES)
def test_they_start_a_command_that_exists_and_wait_for_its_word(service: str) -> None:
    text = (UNITS / service).read_text()
    name = service.removeprefix("dicomai-").removesuffix(".service")
    role = {"receiver": "receive", "worker": "work", "scheduler": "schedule"}.get(name, name)
    assert f"ExecStart={PROGRAM} {role} --config /etc/dicomai/dicomai.toml\n" in text
    assert "Type=notify\n" in text
    assert "WatchdogSec=" in text
    assert "User=dicomai\n" in text
