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


def test_the_database_may_come_up_after_the_scheduler(
    open_one: Callable[..., Hospital], peer: Callable[[str], str]
) -> None:
    hospital = open_one(postgres=True, quiet_s=3.0)
    assert hospital.database is not None
    (modality, *_) = make_modalities(hospital, peer("storescu"), seed=15)
    hospital.database.stop()
    hospital.scheduler.kill(modality.chance)
    hospital.scheduler.start()
    pid = hospital.scheduler.pid
    assert not modality.send_part("2.25.1", modality.ae_title)
    log = hospital.parts.log
    eventually(lambda: "role waits for the database" in log.read_text(), 20, "it is waited for")

    hospital.database.start()
    hospital.wait_until_taken()
    assert hospital.scheduler.pid == pid
    assert log.read_text().count("role waits for the database") <= 2  # refused, then starting up
    counted = hospital.count([modality])
    assert counted.catalogued == counted.sent
