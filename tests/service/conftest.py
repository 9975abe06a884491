"""What tests of the service share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `bodies`

MISBEHAVING_RUNNER = (sys.executable, str(Path(__file__).parent / "misbehaving_runner.py"))


@pytest.fixture
def misbehaving_runner() -> tuple[str, ...]:
    """The command of a runner that knows networks which misbehave."""
    return MISBEHAVING_RUNNER


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
