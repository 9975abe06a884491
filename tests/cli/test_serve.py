"""A new service answers, and stops when it is told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.cli.conftest import Dicomai
from tests.conftest import wait_for_port


@pytest.fixture
def without_routes(service: Engine, tmp_path: Path, free_port: int) -> int:
    """The new service on a free port, with no model to load; gives the port."""
    file = tmp_path / "dicomai.toml"
    text = file.read_text().partition("[[routes]]")[0]
    file.write_text(text.replace("port = 11112", f"port = {free_port}"))
    return free_port


def end(process: subprocess.Popen[bytes], log: Path) -> None:
    """Tell it to stop, and see that each of its roles did; each has half a minute for that."""
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    said = log.read_text()
    assert code == 0, said
    assert "did not stop in time" not in said, said


@pytest.mark.parametrize("role", ["serve", "receive"])
def test_a_new_service_answers_echoscu_and_ends_at_sigterm(
    role: str, without_routes: int, dicomai: Dicomai, tmp_path: Path, peer: Callable[[str], str]
) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [sys.executable, "-m", "dicomai", role], stdout=out, stderr=out, cwd=tmp_path
        ) as process,
    ):
        try:
            wait_for_port(without_routes, process)
            subprocess.run(
                [peer("echoscu"), "-aec", "DICOMAI", "127.0.0.1", str(without_routes)], check=True
            )
            assert dicomai("echo").code == 0
            stranger = subprocess.run(
                [peer("echoscu"), "-aec", "ELSEWHERE", "127.0.0.1", str(without_routes)],
                capture_output=True,
                check=False,
            )
            assert stranger.returncode != 0
        finally:
            end(process, log)


def test_modules_in_the_current_folder_are_not_imported(
    without_routes: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It may hold anything, as what came with images; each process that is started looked there."""
    (tmp_path / "multiprocessing.py").write_text("open('imported', 'w')\n")
    installed = tmp_path_factory.mktemp("bin") / "dicomai"
    installed.write_text(
        "from dicomai.cli.main import main\nif __name__ == '__main__':\n    main()\n"
    )
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [sys.executable, installed, "serve"], stdout=out, stderr=out, cwd=tmp_path
        ) as process,
    ):
        try:
            until = time.monotonic() + 60
            while "service ready" not in log.read_text():
                assert not (tmp_path / "imported").exists()
                assert time.monotonic() < until
                time.sleep(0.02)
            wait_for_port(without_routes, process)
        finally:
            end(process, log)
    assert not (tmp_path / "imported").exists()


def test_a_receiver_that_takes_nothing_from_here_is_said_to_live(
    without_routes: int, dicomai: Dicomai, tmp_path: Path
) -> None:
    file = tmp_path / "dicomai.toml"
    file.write_text(file.read_text().replace('ae_title = "*"', 'ae_title = "CT1"'))
    with subprocess.Popen(
        [sys.executable, "-m", "dicomai", "receive"], stderr=subprocess.DEVNULL, cwd=tmp_path
    ) as process:
        try:
            wait_for_port(without_routes, process)
            answer = dicomai("echo")
        finally:
            process.send_signal(signal.SIGTERM)
    assert answer.code == 0
    assert answer.out.startswith("Our receiver lives, and takes nothing from this machine")


def test_reception_starts_at_once_while_the_database_is_waited_for(
    without_routes: int, tmp_path: Path
) -> None:
    """It accepts connections and says nothing."""
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as silent, log.open("wb") as out:
        port = silent.getsockname()[1]
        url = f"postgresql://dicomai@127.0.0.1:{port}/dicomai?connect_timeout=2"
        with subprocess.Popen(
            [sys.executable, "-m", "dicomai", "serve"],
            env={**os.environ, "DICOMAI_DATABASE__URL": url},
            stdout=out,
            stderr=out,
            cwd=tmp_path,
        ) as process:
            try:
                wait_for_port(without_routes, process)
                until = time.monotonic() + 30
                while log.read_text().count("role waits for the database") < 2:
                    assert process.poll() is None
                    assert time.monotonic() < until
                    time.sleep(0.02)
            finally:
                end(process, log)


def test_several_receiver_processes_share_the_port(
    without_routes: int, tmp_path: Path, peer: Callable[[str], str]
) -> None:
    file = tmp_path / "dicomai.toml"
    file.write_text(file.read_text().replace("[receiver]", "[receiver]\nprocesses = 2"))
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [sys.executable, "-m", "dicomai", "receive"], stdout=out, stderr=out, cwd=tmp_path
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 30
            while "service ready" not in log.read_text():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert '["receive", "receive 2"]' in log.read_text()
            echo = [peer("echoscu"), "-aec", "DICOMAI", "127.0.0.1", str(without_routes)]
            for _ in range(4):
                subprocess.run(echo, check=True)
        finally:
            end(process, log)


def test_it_does_not_start_on_a_wrong_configuration(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    file = tmp_path / "dicomai.toml"
    file.write_text(file.read_text() + "\n[receiverr]\n")
    answer = dicomai("serve")
    assert answer.code == 3
    assert "receiverr" in answer.err


def test_it_does_not_start_on_a_database_of_another_version(
    without_routes: int, service: Engine, dicomai: Dicomai
) -> None:
    with service.begin() as connection:
        connection.exec_driver_sql("DELETE FROM alembic_version")
    answer = dicomai("serve")
    assert answer.code == 3
    assert "dicomai db upgrade" in answer.err


# Denies memory that is written and then run, as MemoryDenyWriteExecute= does (PR_SET_MDWE).
_DENY = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit(77)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("role", ["receive", "schedule"])
def test_roles_start_where_memory_is_either_written_or_run(
    role: str, without_routes: int, tmp_path: Path
) -> None:
    """The units of receiver and scheduler say MemoryDenyWriteExecute=yes."""
    ready = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(ready))
        listening.settimeout(60)
        command = [sys.executable, "-c", _DENY, sys.executable, "-m", "dicomai", role]
        with subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "NOTIFY_SOCKET": str(ready)}
        ) as process:
            try:
                while (told := listening.recv(100)) != b"READY=1":
                    assert told != b"STOPPING=1"
            finally:
                process.terminate()
                code = process.wait(timeout=30)
        if code == 77:
            pytest.skip("this kernel has no PR_SET_MDWE")
        assert code == 0
