"""A catalogue of the first version keeps its rows when it is brought up to date."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg.sql import SQL, Identifier
from sqlalchemy import Engine, TextClause, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from dicomai.dicom.dates import now
from dicomai.dicom.matching import key
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DatabaseError, DicomaiError
from dicomai.service import standstill
from dicomai.store import corrections, jobs, migrate, predecessors, search, series, studies
from dicomai.store import engine as store_engine
from dicomai.store.engine import open_engine, reading, writing
from dicomai.store.job import JobId

STUDY = "1.2.3"
ATTRIBUTES = {
    "StudyInstanceUID": STUDY,
    "SeriesInstanceUID": "1.2.3.1",
    "SOPInstanceUID": "1.2.3.1.1",
    "PatientID": "P1",
    "PatientName": "Müller^Jürgen",
    "StudyDate": "20260301",
    "AccessionNumber": "A1",
    "Modality": "CT",
    "Rows": 4.0,
}
ROWS = {
    "hosts": {"name": "h", "ingested_to": 5, "beat_at": 6},
    "studies": {
        "study_instance_uid": STUDY, "status": "decided", "accession_number": "A1",
        "study_date": "20260301", "nodes": '["CT1"]', "instances": 1, "first_object_at": 1,
        "last_object_at": 1, "quiet_until": 1, "full_quiet": False, "decide_at": 1, "decision": "",
    },
    "series": {
        "study_instance_uid": STUDY, "series_instance_uid": "1.2.3.1", "modality": "CT",
        "description": "", "instances": 1, "changed_at": 1,
    },
    "instances": {
        "study_instance_uid": STUDY, "series_instance_uid": "1.2.3.1",
        "sop_instance_uid": "1.2.3.1.1", "newest": True, "sop_class_uid": "1.2.4",
        "transfer_syntax_uid": "1.2.5", "header_digest": "h", "file_sha256": "f",
        "origin": "received", "node": "CT1", "received_at": 1, "size_bytes": 1, "path": "p",
        "attributes": json.dumps(ATTRIBUTES),
    },
    "jobs": {
        "id": 7, "uuid": "u", "kind": "analyse", "state": "queued", "study_instance_uid": STUDY,
        "patient_key": "P1", "model": "m", "package_sha256": "", "choice": "", "fingerprint": "f",
        "generation": 0, "node": "", "priority": 0, "urgency": 1, "ageing": 0, "rank": 0,
        "claim": 0, "attempts": 0, "crashes": 0, "worker": "", "beat": 0, "stage": "",
        "progress": 0.0, "error_sentence": "", "error_stage": "", "error_subject": "",
        "created_at": 1, "stages_s": "{}", "summary": "{}",
    },
    "job_inputs": {
        "job_id": 7, "position": 0, "input": "ct", "instance_id": 1, "study_instance_uid": STUDY,
        "series_instance_uid": "1.2.3.1", "sop_instance_uid": "1.2.3.1.1",
    },
}  # fmt: skip
IDENTITY = {
    "study_instance_uid": STUDY, "series_instance_uid": "1.2.3.1", "patient_key": "P1",
    "patient_name": "", "birth_date": "", "sex": "",
}  # fmt: skip


def inserting(table: str, row: Mapping[str, object]) -> TextClause:
    names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    return text(f"INSERT INTO {table} ({names}) VALUES ({values})")


@pytest.fixture(params=["sqlite", "postgresql"])
def first_version(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A catalogue as the first migration made it, with a row in each table that matters."""
    if request.param == "sqlite":
        (tmp_path / "dicomai.db").touch()
        url = f"sqlite:///{tmp_path / 'dicomai.db'}"
    else:
        cluster = request.getfixturevalue("postgresql_cluster")
        name = request.node.name.partition("[")[0][:60]
        with psycopg.connect(cluster.replace("+psycopg", ""), autocommit=True) as maintenance:
            maintenance.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        url = make_url(cluster).set(database=name).render_as_string(hide_password=False)
    engine = open_engine(url)
    with as_file(files("dicomai.migrations")) as folder, writing(engine) as connection:
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for table, row in ROWS.items():
            connection.execute(inserting(table, row), row)
    yield engine
    engine.dispose()


def test_rows_are_kept_and_new_kinds_of_jobs_are_allowed(first_version: Engine) -> None:
    engine = first_version
    retrieval = ROWS["jobs"] | {
        "id": 8, "uuid": "v", "kind": "retrieve", "fingerprint": None, "node": "PACS1",
    }  # fmt: skip
    insert = inserting("jobs", retrieval)
    with pytest.raises(IntegrityError), writing(engine) as connection:
        connection.execute(insert, retrieval)
    migrate.upgrade(engine)
    with reading(engine) as connection:
        for table in ROWS:
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() == 1, table
        if connection.dialect.name == "sqlite":
            assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    with writing(engine) as connection:
        connection.execute(insert, retrieval)
    for wrong in ({"node": ""}, {"kind": "other"}, {"result_of": 7}):
        row = retrieval | {"id": 9, "uuid": "w", "choice": "c"} | wrong
        with pytest.raises(IntegrityError), writing(engine) as connection:
            connection.execute(inserting("jobs", row), row)


def test_studies_that_were_there_before_are_found(first_version: Engine) -> None:
    engine = first_version
    migrate.upgrade(engine)
    with reading(engine) as connection:
        for keyword, value in (
            ("PatientName", "MÜLLER*"),
            ("PatientID", "P1"),
            ("AccessionNumber", "A1"),
            ("ModalitiesInStudy", "CT"),
            ("StudyDate", "20260201-20260331"),
        ):
            page = search.page(connection, "study", [key(keyword, value)], [keyword])
            assert [each["StudyInstanceUID"] for each in page.found] == [STUDY], keyword


def analysis(number: int, *, before: int | None = None, **changed: object) -> dict[str, object]:
    """Give a row of an analysis that is done, which took the place of another one."""
    return ROWS["jobs"] | {
        "id": number, "uuid": str(UUID(int=number)), "fingerprint": f"f{number}", "state": "done",
        "finished_at": 2, "supersedes": before,
    } | changed  # fmt: skip


def test_what_was_withdrawn_before_stays_withdrawn(first_version: Engine) -> None:
    engine = first_version
    with writing(engine) as connection:
        for row in (
            analysis(8, summary='{"found": "1 nodule"}'),
            analysis(9, before=8, summary='{"found": "withdrawn"}'),
            analysis(10, before=9),
        ):
            connection.execute(inserting("jobs", row), row)
    migrate.upgrade(engine)
    with reading(engine) as connection:
        taken_back, note, again = (jobs.get(connection, JobId(number)) for number in (8, 9, 10))
        assert predecessors.of_job(connection, JobId(10)) == ()
    assert taken_back is not None
    assert (taken_back.withdrawn_by, taken_back.summary["found"]) == (9, "1 nodule")
    assert (note and note.withdrawn_by, again and again.withdrawn_by) == (None, None)


def test_whose_a_study_was_said_to_be_before_stays_so(first_version: Engine) -> None:
    engine = first_version
    reissues = (
        analysis(8, before=7, patient_key="WRONG", summary='{"reissue_of": 7}'),
        analysis(9, before=8, patient_key="P2", summary='{"reissue_of": 8}'),
    )
    with writing(engine) as connection:
        connection.execute(inserting("series_identities", IDENTITY), IDENTITY)
        for row in reissues:
            connection.execute(inserting("jobs", row), row)
        connection.execute(
            text(
                "UPDATE studies SET patient_key = 'P2', accepted_key = 'P1', "
                "accession_number = 'A2'"
            )
        )
    migrate.upgrade(engine)
    with reading(engine) as connection:
        study = studies.get(connection, StudyInstanceUID(STUDY))
        (known,) = series.identities(connection, StudyInstanceUID(STUDY))
        number = corrections.accession_number(connection, StudyInstanceUID(STUDY), "A1")
    assert study is not None
    assert number == study.accession_number == "A2"
    assert (study.patient_key, study.accepted_key, known.key) == ("P2", "P2", "P2")


def test_what_was_undone_since_a_person_said_it_stays_undone(first_version: Engine) -> None:
    engine = first_version
    reissue = analysis(8, before=7, patient_key="P2", summary='{"reissue_of": 7}')
    with writing(engine) as connection:
        connection.execute(inserting("series_identities", IDENTITY), IDENTITY)
        connection.execute(inserting("jobs", reissue), reissue)
        connection.execute(text("UPDATE studies SET patient_key = 'P1'"))
    migrate.upgrade(engine)
    with reading(engine) as connection:
        for table in ("corrected_keys", "corrected_accession_numbers"):
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() == 0, table


def test_who_is_at_work_is_heard_in_a_catalogue_of_any_version(first_version: Engine) -> None:
    engine = first_version
    worker = {
        "name": "w", "host": "h", "device": "cpu", "kinds": "[]", "models": "[]",
        "started_at": 1, "beat_at": 1,
    }  # fmt: skip
    with writing(engine) as connection:
        connection.execute(inserting("workers", worker), worker)

    def beating(table: str, _: float) -> None:
        with writing(engine) as connection:
            connection.execute(text(f"UPDATE {table} SET beat_at = beat_at + 1"))

    listened: list[float] = []
    at = now()
    standstill.require_silence(engine, at, listened.append)
    assert listened == []  # whoever was heard of, was long ago
    with writing(engine) as connection:
        connection.execute(text(f"UPDATE workers SET beat_at = {at}"))
    standstill.require_silence(engine, at, listened.append)
    assert sum(listened) > 10  # seconds, after which each worker tells of itself
    for table in ("hosts", "workers"):
        with pytest.raises(DicomaiError, match="Stop the service on all hosts"):
            standstill.require_silence(engine, at, partial(beating, table))
    assert migrate.is_behind(engine)
    migrate.upgrade(engine)
    assert not migrate.is_behind(engine)


def test_an_upgrade_that_something_keeps_out_says_so_and_is_done_again(
    first_version: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_engine, "BUSY_TIMEOUT_S", 1)
    url = first_version.url.render_as_string(hide_password=False)
    engine, other = open_engine(url), open_engine(url)
    with writing(other) as connection:
        if connection.dialect.name == "postgresql":  # as pg_dump does; SQLite's writer is enough
            connection.execute(text("LOCK TABLE jobs IN ACCESS SHARE MODE"))
        with pytest.raises(DatabaseError, match="locked by somebody else") as kept_out:
            migrate.upgrade(engine)
    other.dispose()
    assert kept_out.value.sentence.endswith("Nothing was changed. Then, again: dicomai db upgrade")
    assert "by itself" not in kept_out.value.sentence  # nobody but a person tries it again
    assert migrate.current(engine) == "0001"
    migrate.upgrade(engine)
    engine.dispose()
