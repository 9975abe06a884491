"""A database that is away keeps no scanner waiting, and costs no object."""

from __future__ import annotations

from collections.abc import Callable

from under_fire import Hospital, eventually, make_modalities

from dicomai.dicom.dates import now, seconds
from dicomai.spool import reader


def test_the_database_may_be_away_for_a_whole_transfer(
    open_one: Callable[..., Hospital], peer: Callable[[str], str]
) -> None:
    storescu = peer("storescu")
    hospital = open_one(postgres=True, quiet_s=3.0)
    assert hospital.database is not None
    modalities = make_modalities(hospital, storescu, seed=14)
    studies = [f"2.25.{number + 1}" for number in range(len(modalities))]
    for study, each in zip(studies, modalities, strict=True):
        assert not each.send_part(study, each.ae_title)
    hospital.wait_until_ingested()
    hospital.database.stop()

    before = sum(len(each.objects) for each in modalities)
    for study, each in zip(studies, modalities, strict=True):
        assert not each.send_part(study, each.ae_title)
    assert (
        len(list((hospital.data / "spool").rglob("*.dcm")))
        == sum(len(each.objects) for each in modalities) - before
    )
    assert hospital.scheduler.lives
    quiet_at = max(each.received_at for each in reader.entries(hospital.data / "spool"))
    eventually(lambda: now() > quiet_at + seconds(hospital.quiet_s), 10, "all is quiet")

    hospital.database.start()
    hospital.wait_until_taken()
    counted = hospital.count(modalities)
    assert counted.catalogued == counted.sent
    assert counted.quarantined == 0
    assert hospital.early_decisions(modalities)[1] == []
    assert hospital.scheduler.lives
