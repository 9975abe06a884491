"""Places for associations hold across processes, and a death frees them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicomai.net.slots import Slot, Slots

TAKER = """
import sys
from pathlib import Path
from dicomai.net.slots import Slots
taken = [Slots(Path(sys.argv[1]), 3).take(node, 2) for node in sys.argv[2:]]
print(*[each if isinstance(each, str) else "taken" for each in taken], flush=True)
sys.stdin.read()
"""


@contextmanager
def other_process(folder: Path, *nodes: str) -> Iterator[list[str]]:
    """Take places in a process of its own; give what it got; then kill it."""
    with subprocess.Popen(
        [sys.executable, "-c", TAKER, str(folder), *nodes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()
        process.kill()


def test_limits_hold_over_processes_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 3)
    mine = slots.take("ct1", 2)
    assert isinstance(mine, Slot)
    with other_process(slots.folder, "ct1", "ct1", "mr1", "xr1") as got:
        assert got == ["taken", "node", "taken", "all"]
        assert slots.take("ct1", 2) == "node"
        assert slots.take("mr1", 2) == "all"
    found = [slots.take("ct1", 2), slots.take("mr1", 0), slots.take("mr1", 0)]
    assert [isinstance(each, Slot) for each in found] == [True, True, False]


def test_a_place_is_free_once_it_is_released(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 1)
    for _ in range(3):
        place = slots.take("ct1", 1)
        assert isinstance(place, Slot)
        assert slots.take("mr1", 1) == "all"
        place.release()
        place.release()


def test_a_rejected_call_keeps_no_place_of_its_node(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 1)
    first = slots.take("mr1", 0)
    assert isinstance(first, Slot)
    assert slots.take("ct1", 1) == "all"
    first.release()
    assert isinstance(slots.take("ct1", 1), Slot)


def test_names_of_nodes_are_no_paths(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 1)
    assert isinstance(slots.take("../../etc/passwd\0", 1), Slot)
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [slots.folder] * 2


def test_a_place_that_could_not_be_taken_is_free_again(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 3)
    first = slots.take("ct1", 1)
    assert isinstance(first, Slot)
    first.release()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    # Room for the node's own place, and none for that of all.
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            slots.take("ct1", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert isinstance(slots.take("ct1", 1), Slot)
