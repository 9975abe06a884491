"""Memory and processor time of a process and all that it started."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """Return a process and its descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_after_name(entry)[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    out, new = [], [pid]
    while new:
        out += new
        new = [child for each in new for child in children.get(each, ())]
    return out


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process and its descendants that live."""
    total = 0.0
    for each in family(pid):
        try:
            fields = _after_name(Path(f"/proc/{each}"))
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def proportional_bytes(pid: int) -> int:
    """Return the proportional set size of a process and its descendants."""
    total = 0
    for each in family(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _after_name(folder: Path) -> list[str]:
    """Return the fields of `stat` that follow the name of the process, from its state on."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


class Peak:
    """The most memory of a process and its descendants while the block runs."""

    def __init__(self, pid: int, every_s: float = 0.2) -> None:
        self._pid = pid
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self.bytes = max(self.bytes, proportional_bytes(self._pid))
