"""The whole way of a study, its database lost, and all of it known again from the archive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from clinic import Clinic, ct, store_objects
from sqlalchemy import text
from ward import open_ward

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.net import scu
from dicomai.service import story
from dicomai.service.rescan import Rebuilt, Rescan, folders_of, rescan
from dicomai.service.story import StudyStory
from dicomai.store import instances, jobs, schema, studies
from dicomai.store.engine import reading, writing

STUDY = StudyInstanceUID("1.2.1")
ON = {"infer": "finds", "commit": "commits", "send": "sends", "called": "takes", "stored": "told"}
"""What comes at each edge where all goes well."""


@pytest.fixture
def clinic(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    monkeypatch.setattr(scu, "store_objects", store_objects)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("PATH", "")  # dciodvfy
    template = tmp_path / "template"
    template.mkdir()
    open_ward(template, database=database).engine.dispose()
    return Clinic(template, tmp_path / "clinic", database)


def send(clinic: Clinic, *numbers: int) -> None:
    for number in numbers:
        clinic.send("CT1", ct(STUDY, f"{STUDY}.1", number, "P1", 1000))
    clinic.end("CT1", "released")
    serve(clinic)


def serve(clinic: Clinic) -> None:
    """Let the service run for a while."""
    clinic.ingest()
    clinic.clock = Instant(clinic.clock + seconds(1000))
    clinic.ingest()
    clinic.decide()


def work(clinic: Clinic) -> int:
    """Do all jobs; return how many there were."""
    hand = clinic.hands[0]
    done = 0
    for kind in ("analyse", "deliver", "deliver", "deliver"):
        hand.start(kind)
        done += bool(hand.at)
        while hand.at:
            hand.go_on(ON[hand.at])
    return done


def told(clinic: Clinic) -> StudyStory:
    with reading(clinic.engine) as connection:
        found = studies.get(connection, STUDY)
        assert found is not None
        return story.of_study(connection, found)


def rebuild(clinic: Clinic) -> list[Rebuilt]:
    folders = clinic.settings.folders
    plan = Rescan(folders=folders, node=clinic.settings.node("CT1"))
    found = folders_of(folders.data, ())
    return list(rescan(clinic.engine, plan, found, lambda: clinic.clock))


def test_a_study_and_its_results_are_known_again_and_nothing_runs_or_leaves_again(
    clinic: Clinic,
) -> None:
    with clinic.closing():
        send(clinic, 0, 1, 2)
        assert work(clinic) == 3  # an analysis, and a delivery to each PACS
        before, stored = told(clinic), dict(clinic.stored)
        assert any(each.produced for each in before.series)
        assert stored
        with writing(clinic.engine) as connection:
            for table in reversed(schema.metadata.sorted_tables):
                connection.execute(table.delete())
            assert connection.execute(text("SELECT count(*) FROM events")).scalar_one() == 0
        clinic.clock = Instant(clinic.clock + seconds(7200))

        (rebuilt,) = rebuild(clinic)

        after = told(clinic)
        assert rebuilt.objects == before.study.instances == after.study.instances
        assert (rebuilt.unfit, after.study.status) == ((), "decided")
        assert after.study.patient_key == before.study.patient_key
        assert [
            (each.series_instance_uid, each.instances, each.produced) for each in after.series
        ] == [(each.series_instance_uid, each.instances, each.produced) for each in before.series]
        serve(clinic)
        assert (work(clinic), told(clinic).jobs, clinic.stored) == (0, (), stored)

        # A late image is decided on as any, and our earlier results are no input then.
        send(clinic, 3)
        with reading(clinic.engine) as connection:
            (job,) = jobs.of_study(connection, STUDY)
            inputs = instances.inputs_of(connection, job.id)
        assert [row.sop_instance_uid for _, row in inputs] == [
            f"{STUDY}.1.{number + 1}" for number in range(4)
        ]
        assert clinic.wrongs == []
