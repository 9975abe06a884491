"""Files that no row names, as after an older copy of the database was put back."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.results.uids import series_uid
from dicomai.service import leavings
from dicomai.settings import Folders
from dicomai.spool import quarantine, reader
from dicomai.spool.entries import AssociationFacts, AssociationId
from dicomai.store import archive, jobs, schema
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job

Hospital = Any  # conftest's: importlib mode has no package to import it from
MakeCT = Callable[..., Any]

DAY = seconds(86400)
Sweep = Callable[[], int]


@pytest.fixture
def folders(hospital: Hospital) -> Folders:
    folders: Folders = hospital.folders
    return folders


@pytest.fixture
def sweep(hospital: Hospital, folders: Folders) -> Sweep:
    """Sweep a day after the last object came."""

    def swept() -> int:
        hospital.clock = Instant(now() + DAY + seconds(60))
        hospital.ingest()  # which tells that all is in the catalogue
        return leavings.sweep(hospital.engine, folders, hospital.clock)

    return swept


def archived(folders: Folders) -> list[Path]:
    return sorted(folders.archive.rglob("*.dcm"))


def lose(hospital: Hospital, sop: str) -> None:
    """Have the catalogue be a copy from before an object came."""
    table = schema.instances
    with writing(hospital.engine) as connection:
        connection.execute(delete(table).where(table.c.sop_instance_uid == sop))


def result_of(job: Job, folders: Folders) -> Path:
    """Place a result of an analysis that no row names."""
    fan = next(path.parent.parent for path in archived(folders))
    result = fan / series_uid(job.uuid, "SEG") / "1.2.3.01234567.dcm"
    result.parent.mkdir()
    result.write_text("a result")
    return result


def test_an_object_that_came_after_the_backup_is_set_aside(
    hospital: Hospital, make_ct: MakeCT, folders: Folders, sweep: Sweep
) -> None:
    hospital.send(make_ct(number=1), make_ct(number=2))
    hospital.ingest()
    lost = next(path for path in archived(folders) if path.name.startswith("1.2.3.1.2."))
    octets = lost.read_bytes()
    lose(hospital, "1.2.3.1.2")
    assert leavings.sweep(hospital.engine, folders, now()) == 0  # it is not a day old

    assert sweep() == 1

    (kept,) = quarantine.listing(folders.quarantine)
    assert (folders.quarantine / kept.name).read_bytes() == octets
    assert "the catalogue did not know it: an older copy of the database" in kept.reason
    assert [path.name.split(".dcm")[0][:9] for path in archived(folders)] == ["1.2.3.1.1"]
    (told,) = hospital.story("object set aside")
    assert kept.name in told
    assert sweep() == 0
    hospital.send(folders.quarantine / kept.name)
    hospital.ingest()
    assert [row.sop_instance_uid for row in hospital.rows()] == ["1.2.3.1.1", "1.2.3.1.2"]


def test_an_object_that_comes_again_while_it_is_set_aside_stays(
    hospital: Hospital,
    make_ct: MakeCT,
    folders: Folders,
    sweep: Sweep,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hospital.send(make_ct(number=1), make_ct(number=2))
    hospital.ingest()
    lose(hospital, "1.2.3.1.2")
    put = quarantine.put

    def put_as_it_comes_again(*arguments: Any) -> str:
        hospital.send(make_ct(number=2))
        hospital.ingest()
        return put(*arguments)

    monkeypatch.setattr(quarantine, "put", put_as_it_comes_again)
    assert sweep() == 0
    assert [row.sop_instance_uid for row in hospital.rows()] == ["1.2.3.1.1", "1.2.3.1.2"]
    assert {folders.data / row.path for row in hospital.rows()} == set(archived(folders))


def test_an_object_that_a_host_has_in_its_spool_yet_stays(
    hospital: Hospital, make_ct: MakeCT, folders: Folders
) -> None:
    hospital.send(make_ct(number=1))
    hospital.ingest()
    hospital.send(make_ct(number=2))
    # Killed when both have their place; then the machine is off over the weekend.
    steps = ("marked", "read", "placed", "settled")
    assert hospital.ingest_until_killed(len(steps))
    assert len(archived(folders)) == 2
    later = Instant(now() + 3 * DAY)
    assert leavings.sweep(hospital.engine, folders, later) == 0
    assert not quarantine.listing(folders.quarantine)
    assert len(archived(folders)) == 2


def test_files_of_a_study_that_the_catalogue_does_not_know_stay(
    hospital: Hospital, make_ct: MakeCT, folders: Folders, sweep: Sweep
) -> None:
    hospital.send(make_ct(), make_ct(study="1.2.4", series="1.2.4.1"))
    hospital.ingest()
    with writing(hospital.engine) as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
    assert sweep() == 0
    with reading(hospital.engine) as connection:
        assert archive.unknown(connection, folders.data) == 2
    assert len(archived(folders)) == 2


def test_only_what_nobody_was_told_of_is_deleted(
    hospital: Hospital, make_ct: MakeCT, folders: Folders, sweep: Sweep
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    (named,) = archived(folders)
    half = named.with_name(".1.01234567.part")
    result = folders.archive / archive.RESULTS / str(uuid.uuid4()) / "0.dcm"
    result.parent.mkdir(parents=True)
    notes = [folders.archive / "README", named.with_suffix(".damaged")]
    for file in (half, result, *notes):
        file.write_text("not DICOM")
    assert sweep() == 2
    assert [file.exists() for file in (half, result, named, *notes)] == [False, False] + 3 * [True]
    assert not quarantine.listing(folders.quarantine)


def test_what_an_attempt_at_an_analysis_left_goes_when_it_is_over(
    hospital: Hospital, make_ct: MakeCT, folders: Folders, sweep: Sweep
) -> None:
    hospital.send(*(make_ct(number=number) for number in range(1, 9)))
    assert hospital.ingest_and_decide() == "decided"
    (job,) = hospital.jobs()
    left = result_of(job, folders)
    assert sweep() == 0  # it may be about to be committed
    with writing(hospital.engine) as connection:
        jobs.cancel(connection, job.id, "No longer wanted.", hospital.clock)
    assert sweep() == 1
    assert not left.exists()
    assert not quarantine.listing(folders.quarantine)


def test_a_result_that_is_later_than_the_end_of_its_job_is_set_aside(
    hospital: Hospital, make_ct: MakeCT, folders: Folders, sweep: Sweep
) -> None:
    """The job was retried after the backup, and what came of it was delivered."""
    hospital.send(*(make_ct(number=number) for number in range(1, 9)))
    assert hospital.ingest_and_decide() == "decided"
    (job,) = hospital.jobs()
    with writing(hospital.engine) as connection:
        jobs.cancel(connection, job.id, "No longer wanted.", Instant(now() - seconds(60)))
    delivered = result_of(job, folders)
    assert sweep() == 1
    assert not delivered.exists()
    (kept,) = quarantine.listing(folders.quarantine)
    assert (folders.quarantine / kept.name).read_text() == "a result"
    assert kept.reason.startswith(f"It is a result of {job.title}, which is cancelled, and counts")


@pytest.mark.parametrize("copied", [False, True])
def test_what_ingest_set_aside_is_not_set_aside_again(
    hospital: Hospital, make_ct: MakeCT, folders: Folders, sweep: Sweep, copied: bool
) -> None:
    hospital.send(make_ct(number=1))
    hospital.ingest()
    hospital.send(make_ct(number=2))
    for _ in range(reader.MAX_ATTEMPTS):
        assert hospital.ingest_until_killed(len(("marked", "read", "placed")))
    assert hospital.ingest().set_aside == 1
    (kept,) = quarantine.listing(folders.quarantine)
    if copied:  # as where the quarantine is on another disk
        file = folders.quarantine / kept.name
        octets = file.read_bytes()
        file.unlink()
        file.write_bytes(octets)
    assert len(archived(folders)) == 2
    assert sweep() == 1
    assert len(archived(folders)) == 1
    assert quarantine.listing(folders.quarantine) == (kept,)
    (told,) = hospital.story("file removed")
    assert f"its bytes are in the quarantine as {kept.name}" in told


def test_what_was_set_aside_and_taken_away_is_not_deleted(
    hospital: Hospital, make_ct: MakeCT, folders: Folders
) -> None:
    hospital.send(make_ct())
    hospital.ingest()
    (file,) = archived(folders)
    facts = AssociationFacts(
        id=AssociationId("1"), calling_ae="", called_ae="", address="", node="", started_at=now()
    )
    name = quarantine.put(folders.quarantine, file, "For a test.", now(), facts)
    kept = quarantine.Contents(folders.quarantine, but=AssociationId("archive"))
    assert kept.name_of(file) == name
    (folders.quarantine / name).unlink()
    assert kept.name_of(file) is None
