"""The roles live in one tree: watched, started again, stopped in time, and never orphaned."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROLES = """
import os, signal, sys, threading, time
from pathlib import Path
from dicomai.errors import ConfigError, DatabaseError
from dicomai.process import set_by_signals
from dicomai.roles import logs, tree
from dicomai.roles.notify import from_environment
from dicomai.roles.tree import Tree
from dicomai.settings import load

HERE = Path(__file__).parent

def steady(settings, life):
    (HERE / "steady.pid").write_text(str(os.getpid()))
    life.ready()
    while not life.stop.wait(0.05):
        life.pulse()
    (HERE / "steady.stopped").touch()

def frail(settings, life):
    with (HERE / "frail.log").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    life.ready()
    while not life.stop.wait(0.05):
        life.pulse()

def silent(settings, life):
    life.ready()
    life.stop.wait()

def deaf(settings, life):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    life.ready()
    while True:
        time.sleep(60)

def locking(settings, life):
    life.ready()
    while not life.stop.is_set():
        with life.stop._cond:  # as each `wait` has it for a moment
            time.sleep(0.1)
        time.sleep(0.01)

def importing(settings, life):
    (HERE / "steady.pid").write_text(str(os.getpid()))
    time.sleep(600)

def patient(settings, life):
    life.waits("The database\\nis away.")
    while not (HERE / "database").exists():
        life.pulse()
        life.stop.wait(0.05)
    life.waits("")
    frail(settings, life)

def stuck(settings, life):
    with (HERE / "frail.log").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    life.ready()
    threading.Thread(target=time.sleep, args=(600,)).start()

def unlucky(settings, life):
    if not (HERE / "frail.log").exists():
        (HERE / "frail.log").touch()
        raise DatabaseError("It went away as the role looked.")
    frail(settings, life)

def wrong(settings, life):
    raise ConfigError("models: nobody trusted it.")

if __name__ == "__main__":
    logs.configure("json", "info")
    stop = threading.Event()
    set_by_signals(stop, (signal.SIGTERM,))
    roles = {name: globals()[name] for name in sys.argv[1:]}
    tree._SILENT_S = float(os.environ["SILENT_S"])
    sys.exit(Tree(load(HERE / "dicomai.toml", {}), roles, from_environment()).run(stop))
"""


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """What a service says on NOTIFY_SOCKET, one word a call."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(20)
        yield lambda: ear.recv(100).decode()


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "roles.py").write_text(ROLES)
    (tmp_path / "dicomai.toml").write_text("[worker]\nstop_s = 1.0\n")
    started = []

    def start(*roles: str, silent_s: str = "300") -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "2000000",
            "SILENT_S": silent_s,
        }
        started.append(
            subprocess.Popen(
                [sys.executable, str(tmp_path / "roles.py"), *roles],
                env=environment,
                stderr=subprocess.PIPE,
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()
        assert each.stderr is not None
        each.stderr.close()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def ready(systemd: Callable[[], str]) -> None:
    assert systemd() == "READY=1"


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def pid_of(file: Path) -> int:
    until(lambda: file.exists() and file.read_text().strip() != "")
    return int(file.read_text().split()[-1])


def test_sigterm_ends_every_role_in_order(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    service = tree("steady", "frail")
    ready(systemd)
    assert systemd() == "WATCHDOG=1"
    service.terminate()
    assert service.wait(10) == 0
    assert (tmp_path / "steady.stopped").exists()
    assert not alive(pid_of(tmp_path / "frail.log"))
    said = systemd()
    while said == "WATCHDOG=1":
        said = systemd()
    assert said == "STOPPING=1"


def test_a_role_that_says_nothing_starves_the_watchdog(
    tree: Start, systemd: Callable[[], str]
) -> None:
    service = tree("steady", "silent")
    ready(systemd)
    time.sleep(3)
    service.terminate()
    fed = 0
    while (said := systemd()) == "WATCHDOG=1":
        fed += 1
    assert said == "STOPPING=1"
    assert fed <= 3  # within the first second; it is fed twice a second while all is well


def test_a_role_that_is_killed_is_started_again_and_the_others_live_on(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    tree("steady", "frail")
    ready(systemd)
    steady = pid_of(tmp_path / "steady.pid")
    os.kill(pid_of(tmp_path / "frail.log"), signal.SIGKILL)
    until(lambda: len((tmp_path / "frail.log").read_text().split()) == 2)
    assert pid_of(tmp_path / "steady.pid") == steady
    assert alive(steady)


def test_a_role_that_hangs_is_killed_and_started_again(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    service = tree("steady", "frail", silent_s="4")
    ready(systemd)
    steady = pid_of(tmp_path / "steady.pid")
    os.kill(pid_of(tmp_path / "frail.log"), signal.SIGSTOP)
    until(lambda: len((tmp_path / "frail.log").read_text().split()) == 2)
    assert alive(steady)
    service.terminate()
    said = service.communicate(timeout=10)[1].decode()
    assert said.count("no sign of life") == 1


def test_a_service_that_stood_still_itself_kills_nobody_for_it(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    service = tree("steady", "frail", silent_s="4")
    ready(systemd)
    processes = [
        service.pid,
        pid_of(tmp_path / "steady.pid"),
        pid_of(tmp_path / "frail.log"),
    ]
    for each in processes:
        os.kill(each, signal.SIGSTOP)
    time.sleep(6)
    os.kill(service.pid, signal.SIGCONT)
    time.sleep(1)
    for each in processes:
        os.kill(each, signal.SIGCONT)
    service.terminate()
    said = service.communicate(timeout=10)[1].decode()
    assert "no sign of life" not in said


def test_a_role_that_can_not_be_started_for_now_takes_no_other_down(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    service = tree("steady", "frail")
    ready(systemd)
    steady = pid_of(tmp_path / "steady.pid")
    limits = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (6, limits[1]))
    os.kill(pid_of(tmp_path / "frail.log"), signal.SIGKILL)
    assert service.stderr is not None
    assert any(b"role not started" in line for line in service.stderr)
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, limits)
    until(lambda: len((tmp_path / "frail.log").read_text().split()) == 2)
    assert alive(steady)


def test_a_role_that_waits_holds_up_no_other_and_says_for_what(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    service = tree("steady", "patient")
    ready(systemd)
    assert systemd() == "STATUS=The database is away."
    assert systemd() == "WATCHDOG=1"
    assert not (tmp_path / "frail.log").exists()
    (tmp_path / "database").touch()
    until(lambda: (tmp_path / "frail.log").exists())
    said = systemd()
    while said == "WATCHDOG=1":
        said = systemd()
    assert said == "STATUS="
    assert service.poll() is None


def test_a_role_that_ends_is_started_again_whatever_its_threads_wait_for(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    tree("stuck")
    ready(systemd)
    until(lambda: len((tmp_path / "frail.log").read_text().split()) >= 2)


def test_no_role_outlives_a_killed_service(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    service = tree("steady", "deaf")
    ready(systemd)
    steady = pid_of(tmp_path / "steady.pid")
    service.kill()
    service.wait()
    until(lambda: not alive(steady))
    assert service.communicate()[1] is not None  # the pipe closes when the last of them is gone


def test_a_role_that_does_not_stop_is_killed_within_the_stop_time(
    tree: Start, systemd: Callable[[], str]
) -> None:
    service = tree("deaf")
    ready(systemd)
    service.terminate()
    said = service.communicate(timeout=10)[1].decode()
    assert "did not stop in time" in said


def test_a_role_stops_whatever_it_did_when_it_was_told_to(
    tree: Start, systemd: Callable[[], str]
) -> None:
    """A handler that waits for what its own thread holds waits for ever."""
    service = tree("locking")
    ready(systemd)
    service.terminate()
    said = service.communicate(timeout=10)[1].decode()
    assert service.returncode == 0
    assert "did not stop in time" not in said


def test_a_role_that_is_not_ready_yet_ends_at_once(tree: Start, tmp_path: Path) -> None:
    service = tree("importing")
    starting = pid_of(tmp_path / "steady.pid")
    service.terminate()
    said = service.communicate(timeout=10)[1].decode()
    assert service.returncode == 0
    assert "did not stop in time" not in said
    assert not alive(starting)


def test_a_role_that_cannot_start_ends_the_service_with_its_exit_code(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    service = tree("wrong", "frail")
    said = service.communicate(timeout=20)[1].decode()
    assert service.returncode == 3
    assert "nobody trusted it" in said
    assert said.count("role ended") == 1
    assert "again_in_s" not in said
    assert not (tmp_path / "frail.log").exists() or not alive(pid_of(tmp_path / "frail.log"))


def test_a_database_that_goes_away_as_a_role_starts_ends_no_service(
    tree: Start, systemd: Callable[[], str], tmp_path: Path
) -> None:
    service = tree("steady", "unlucky")
    ready(systemd)
    assert alive(pid_of(tmp_path / "frail.log"))
    assert service.poll() is None
