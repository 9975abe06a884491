"""What the tests that kill share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `under_fire`
from under_fire import Hospital, open_hospital


@pytest.fixture
def open_one(
    tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> Iterator[Callable[..., Hospital]]:
    """Open a hospital, on SQLite or on a PostgreSQL of its own."""
    opened: list[Hospital] = []

    def make(**settings: Any) -> Hospital:
        opened.append(open_hospital(tmp_path, free_ports(2), **settings))
        return opened[-1]

    yield make
    for each in opened:
        each.close()
