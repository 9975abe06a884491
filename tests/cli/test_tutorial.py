"""The tutorial's commands, as they stand there, from an empty folder to results at a PACS."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest

from tests.conftest import wait_for_port

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial" / "first-study.md"


def shell_blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorial_leads_to_results_at_the_pacs(
    tmp_path: Path, peer: Callable[[str], str]
) -> None:
    peer("storescp"), peer("storescu")
    blocks = shell_blocks(TUTORIAL)
    make, check, pacs, serve, echo, send, status, study = blocks
    ports = {number: _free_port() for number in ("11112", "11113")}
    # pynetdicom brings programs with the names of DCMTK's into the virtual environment.
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "dicomai").symlink_to(Path(sys.executable).parent / "dicomai")
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
    }

    def adapted(block: str) -> str:
        for usual, free in ports.items():
            block = block.replace(usual, str(free))
        # An X-ray takes a second where a CT takes a minute; the way is the same.
        block = block.replace("quiet_s = 10", "quiet_s = 1")
        return "set -e\n" + block.replace("phantom ct", "phantom xray")

    def run(block: str, folder: Path) -> str:
        done = subprocess.run(
            ["bash", "-c", adapted(block)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def terminal(block: str, folder: Path, port: int) -> Iterator[None]:
        with subprocess.Popen(
            ["bash", "-c", adapted(block)],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                wait_for_port(port, process, 60)
                yield
            finally:
                os.killpg(process.pid, signal.SIGTERM)

    run(make, tmp_path)
    folder = tmp_path / "first"
    file = folder / "dicomai.toml"
    file.write_text(adapted(file.read_text()).removeprefix("set -e\n"))
    assert "is right" in run(check, folder)
    with (
        terminal(pacs, tmp_path, ports["11113"]),
        terminal(serve, tmp_path, ports["11112"]),
    ):
        assert run(echo, folder).count("answers") == 2
        run(send, folder)
        results = tmp_path / "results"
        deadline = time.monotonic() + 120
        while not (reports := list(results.iterdir())):
            assert time.monotonic() < deadline, run(status, folder)
            time.sleep(0.2)
        report = pydicom.dcmread(reports[0])
        assert report.Modality == "SR"
        assert report.StudyInstanceUID in run(status, folder)
        told = run(study.replace("UID", report.StudyInstanceUID), folder)
        assert "chest-xray-nodule" in told
        assert "Route lungs does not match" in told


def test_the_readme_shows_the_tutorial_s_commands() -> None:
    tutorial = "".join(shell_blocks(TUTORIAL))
    section = (ROOT / "README.md").read_text().partition("## A first study of your own")[2]
    section = section.partition("\n## ")[0]
    for block in re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            command = line.partition("#")[0].strip().replace("-p ", "").replace(" FOLDER", " ct")
            assert command in tutorial, command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
