"""The Dockerfile, as far as a machine without an engine can tell."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_hadolint_has_nothing_to_say(peer: Callable[[str], str]) -> None:
    done = subprocess.run(
        [peer("hadolint"), "--no-color", str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_whatever_it_copies_exists_and_is_not_ignored() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [
        name
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    ]
    sent = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert name in sent


def test_it_runs_as_an_ordinary_user_and_tells_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text()
    user = [line.split()[1] for line in text.splitlines() if line.startswith("USER ")][-1]
    assert user.split(":")[0].isdigit()
    assert int(user.split(":")[0]) > 0
    assert "HEALTHCHECK" in text


def test_it_holds_no_address_of_a_registry() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()

    assert "ARG TORCH_INDEX=" in lines
    assert [line for line in lines if "://" in line] == []
