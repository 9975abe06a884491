"""Whatever is killed, whenever: what was acknowledged is there, byte for byte, once.

``DICOMAI_TEST_KILLS`` says how many kills each of the two runs makes (22), ``DICOMAI_TEST_SEED``
repeats the choices of another run; both are printed.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable

import pytest
from under_fire import Hospital, eventually, kill_at_random, make_modalities, sending

KILLS = int(os.environ.get("DICOMAI_TEST_KILLS", "22"))
SEED = int(os.environ.get("DICOMAI_TEST_SEED", "0")) or secrets.randbits(32)

Open = Callable[..., Hospital]


@pytest.mark.slow
@pytest.mark.timeout(120 + 4 * KILLS)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_was_acknowledged_survives_kills_at_random_moments(
    database: str, open_one: Open, peer: Callable[[str], str]
) -> None:
    print(f"DICOMAI_TEST_SEED={SEED} DICOMAI_TEST_KILLS={KILLS}")
    storescu = peer("storescu")
    hospital = open_one(postgres=database == "postgresql")
    modalities = make_modalities(hospital, storescu, SEED)
    with sending(hospital, modalities):
        eventually(lambda: all(each.acknowledged for each in modalities), 30, "all send")
        killed = kill_at_random(hospital, KILLS, random.Random(SEED))
    hospital.wait_until_taken()

    counted = hospital.count(modalities)
    decisions, early = hospital.early_decisions(modalities)
    associations = sum(each.associations for each in modalities)
    print(f"killed {killed}; {associations} associations; {counted}; {decisions} decisions")
    assert not early
    assert sum(killed.values()) == KILLS
    assert decisions > 3
    assert counted.acknowledged > KILLS
    assert counted.quarantined <= counted.acknowledged / 20
