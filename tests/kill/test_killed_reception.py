"""Whatever is killed, whenever: what was acknowledged is there, byte for byte, once.

``DICOMAI_TEST_KILLS`` says how many kills each of the two runs makes (22), ``DICOMAI_TEST_SEED``
repeats the choices of another run; both are printed.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from under_fire import Hospital, Modality, eventually, kill_at_random, open_hospital, sending

KILLS = int(os.environ.get("DICOMAI_TEST_KILLS", "22"))
SEED = int(os.environ.get("DICOMAI_TEST_SEED", "0")) or secrets.randbits(32)
NAMES = ["CT1", "CT2", "CT3"]

Open = Callable[[bool], Hospital]


@pytest.fixture
def open_one(tmp_path: Path, free_ports: Callable[[int], list[int]]) -> Iterator[Open]:
    opened: list[Hospital] = []

    def make(postgres: bool) -> Hospital:
        opened.append(open_hospital(tmp_path, free_ports(2), NAMES, postgres=postgres))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def _modalities(
    hospital: Hospital, storescu: str, folder: Path, seed: int, names: list[str]
) -> list[Modality]:
    over = threading.Event()
    made = []
    for name in names:
        (folder / name).mkdir()
        made.append(
            Modality(
                ae_title=name,
                ports=[part.port for part in hospital.receivers],
                folder=folder / name,
                chance=random.Random(f"{seed} {name}"),
                storescu=storescu,
                over=over,
            )
        )
    return made


@pytest.mark.slow
@pytest.mark.timeout(120 + 4 * KILLS)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_was_acknowledged_survives_kills_at_random_moments(
    database: str, open_one: Open, peer: Callable[[str], str], tmp_path: Path
) -> None:
    print(f"DICOMAI_TEST_SEED={SEED} DICOMAI_TEST_KILLS={KILLS}")
    storescu = peer("storescu")
    hospital = open_one(database == "postgresql")
    modalities = _modalities(hospital, storescu, tmp_path, SEED, NAMES)
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
