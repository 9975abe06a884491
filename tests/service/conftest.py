"""What tests of the service share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicomai.inference.runner_process import RunnerProcess

sys.path.insert(0, str(Path(__file__).parent))  # for `bodies`


@pytest.fixture(scope="session")
def runner() -> Iterator[RunnerProcess]:
    """The real runner, which also knows networks that misbehave; it starts anew when it died."""
    script = str(Path(__file__).with_name("misbehaving_runner.py"))
    with RunnerProcess("cpu", command=(sys.executable, script)) as process:
        yield process


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Return when a condition holds; fail when it doesn't in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.01)


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait for a condition."""
    return eventually
