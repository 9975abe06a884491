"""A runner keeps freed memory for the next study, and gives it back when none comes."""

from __future__ import annotations

import subprocess
import sys

import pytest

RUN = """
import os, sys, time
import numpy as np
from dicomai.process import SpareMemory, reuse_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def work():
    np.ones(96 << 20, np.uint8)

reuse_memory()
rest_s = float(sys.argv[1])
spare = SpareMemory(rest_s)
before = resident()
if sys.argv[2] == "alone":
    with spare.in_use():
        work()
    print(resident() - before >= 90 << 20)  # kept
    give_up = time.monotonic() + 20
    while resident() - before > 20 << 20 and time.monotonic() < give_up:
        time.sleep(0.02)
    print(resident() - before <= 20 << 20)  # given back
    with spare.in_use():
        work()
    time.sleep(10 * rest_s)
    print(resident() - before <= 20 << 20)  # and again
else:
    with spare.in_use():
        with spare.in_use():
            work()
        time.sleep(10 * rest_s)
        print(resident() - before >= 90 << 20)  # another is at work
"""


@pytest.mark.parametrize(
    ("company", "told"), [("alone", ["True"] * 3), ("in company", ["True"])], ids=str
)
def test_freed_memory_is_kept_while_there_is_work_and_for_a_while_after(
    company: str, told: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, "0.3", company],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == told
