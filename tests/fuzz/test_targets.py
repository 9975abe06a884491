"""Malformed input of every kind: nothing breaks, nothing stays, nothing grows without end.

DICOMAI_FUZZ=1000 tries a thousand times as much; see docs/development.md.
"""

from __future__ import annotations

import tracemalloc

import pytest
from fuzz_material import conversations, examples, mutated, seeds
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, settings

USUAL = {"association_requests": 150, "command_sets": 300, "heads": 100, "files": 150}
QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large)
# What a target may take for inputs of a few kilobytes; inflating alone may take 16 MiB.
MAX_BYTES = 48 * 2**20


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_was_found_before_stays_mended(target: str) -> None:
    for data in seeds(target):
        TARGETS[target](data)
        for size in range(0, len(data), 37):  # and each breaks off somewhere
            TARGETS[target](data[:size])


@pytest.mark.parametrize("target", sorted(USUAL))
def test_bytes_that_are_nearly_right(target: str) -> None:
    @settings(max_examples=examples(USUAL[target]), deadline=None, suppress_health_check=QUIET)
    @given(mutated(seeds(target)))
    def run(data: bytes) -> None:
        tracemalloc.start()
        try:
            TARGETS[target](data)
            assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
        finally:
            tracemalloc.stop()

    run()


@settings(max_examples=examples(60), deadline=None, suppress_health_check=QUIET)
@given(conversations())
def test_conversations_that_are_nearly_right(said: bytes) -> None:
    TARGETS["connections"](said)
