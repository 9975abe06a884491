"""A database that is away keeps no scanner waiting, and costs no object."""

from __future__ import annotations

from collections.abc import Callable

from under_fire import Hospital, make_modalities


def test_the_database_may_be_away_for_a_whole_transfer(
    open_one: Callable[..., Hospital], peer: Callable[[str], str]
) -> None:
    storescu = peer("storescu")
    hospital = open_one(postgres=True)
    assert hospital.database is not None
    hospital.wait_until_it_works()
    hospital.database.stop()

    modalities = make_modalities(hospital, storescu, seed=14)
    for number, each in enumerate(modalities):
        each.send_study(f"2.25.{number + 1}", f"P{number}")
    assert all(each.acknowledged.keys() == each.objects.keys() for each in modalities)
    assert len(list((hospital.data / "spool").rglob("*.dcm"))) == sum(
        len(each.objects) for each in modalities
    )
    assert hospital.scheduler.lives

    hospital.database.start()
    hospital.wait_until_taken()
    counted = hospital.count(modalities)
    assert counted.catalogued == counted.sent
    assert counted.quarantined == 0
    assert hospital.early_decisions(modalities) == (len(modalities), [])
    assert hospital.scheduler.lives
