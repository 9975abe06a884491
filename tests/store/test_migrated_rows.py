"""A catalogue of the first version keeps its rows when it is brought up to date."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg.sql import SQL, Identifier
from sqlalchemy import Engine, TextClause, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from dicomai.dicom.matching import key
from dicomai.store import migrate, search
from dicomai.store.engine import open_engine, reading, writing

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
