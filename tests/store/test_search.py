"""What peers look for is found page by page, however much there is of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from catalogue_rows import NOW, PATIENT, add, arrive, claimed, finish, instance, wanted
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.matching import key
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import (
    decisions,
    instances,
    jobs,
    retention,
    schema,
    search,
    studies,
    withdrawals,
)
from dicomai.store.engine import reading, writing
from dicomai.store.job import JobId


def images(engine: Engine, study: str, count: int) -> Mapping[str, str]:
    """Put a series into the catalogue; return where it is."""
    where = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1"}
    arrive(engine, study, count=0)
    with writing(engine) as connection:
        for number in range(count):
            uid = f"{study}.1.{number}"
            row = instance(study, uid, file=uid)
            attributes = {**where, "SOPInstanceUID": uid}
            instances.add(connection, replace(row, attributes=attributes), NOW)
    return where


def test_the_images_of_a_series_come_in_pages(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PAGE", 10)
    where = images(engine, "1.2.3", 25)
    images(engine, "1.2.4", 3)
    pages: list[list[str]] = []
    after: str | None = ""
    while after is not None:
        with reading(engine) as connection:
            keys = [key(*each) for each in where.items()]
            page = search.page(connection, "image", keys, [], after)
        pages.append([str(each["SOPInstanceUID"]) for each in page.found])
        after = page.after
    assert [len(each) for each in pages] == [10, 10, 5]
    found = {uid for each in pages for uid in each}
    assert found == {f"1.2.3.1.{number}" for number in range(25)}


def test_where_nothing_is_named_there_are_no_objects(engine: Engine) -> None:
    images(engine, "1.2.3", 2)
    with reading(engine) as connection:
        assert not list(search.objects(connection))
        assert not list(search.objects(connection, series=["1.2.3.1"], images=["1.2.3.1.0"]))


def analysed(engine: Engine, study: str, fingerprint: str, mode: str = "live") -> JobId:
    """Analyse a study; its result is a series of its own."""
    add(engine, wanted(study, fingerprint, mode=mode))
    job = claimed(engine)
    series = f"{study}.9{job.id}"
    row = instance(study, f"{series}.1", file=series, origin="produced", series=series)
    attributes = {
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "SOPInstanceUID": f"{series}.1",
        "Modality": "SEG",
    }
    assert finish(engine, job.held, (replace(row, attributes=attributes),)) == "done"
    return job.id


def seen(engine: Engine, study: str) -> dict[str, object]:
    """What a peer is told of the results of a study, each in its way."""
    with reading(engine) as connection:
        sops = {
            each.sop_instance_uid
            for each in search.objects(connection, studies=[study])
            if each.origin == "produced"
        }
        told = {
            level: search.page(connection, level, keys, search.COUNTED).found
            for level, keys in {
                "patient": [key("PatientID", "P1")],
                "study": [key("StudyInstanceUID", study)],
                "series": [key("StudyInstanceUID", study), key("Modality", "SEG")],
            }.items()
        }
        by_modality = [key("StudyInstanceUID", study), key("ModalitiesInStudy", "SEG")]
        matches = search.page(connection, "study", by_modality, []).found
        images = [
            one["SOPInstanceUID"]
            for each in told["series"]
            for one in search.page(
                connection,
                "image",
                [
                    key("StudyInstanceUID", study),
                    key("SeriesInstanceUID", str(each["SeriesInstanceUID"])),
                ],
                [],
            ).found
        ]
    (patient,), (one,) = told["patient"], told["study"]
    assert patient["NumberOfPatientRelatedStudies"] == 1
    assert set(images) == sops
    assert [each["NumberOfSeriesRelatedInstances"] for each in told["series"]] == [1] * len(sops)
    assert len(matches) == (1 if sops else 0)
    assert ("SEG" in one["ModalitiesInStudy"]) is bool(sops)  # type: ignore[operator]  # a list here
    for level in ("Patient", "Study"):
        told_of = patient if level == "Patient" else one
        assert told_of[f"NumberOf{level}RelatedInstances"] == 2 + len(sops)
        assert told_of[f"NumberOf{level}RelatedSeries"] == 1 + len(sops)
    return {"results": sops}


@pytest.fixture
def shown(engine: Engine) -> Callable[[], set[JobId]]:
    """Put a study of two images in; tell which of its analyses have results that peers see."""
    arrive(engine, "1.2.3", count=0)
    with writing(engine) as connection:
        for number in range(2):
            row = instance("1.2.3", f"1.2.3.1.{number}", file=str(number))
            where = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1"}
            attributes = {**where, "PatientID": "P1", "Modality": "CT"}
            instances.add(connection, replace(row, attributes=attributes), NOW)

    def jobs_of() -> set[JobId]:
        sops = seen(engine, "1.2.3")["results"]
        assert isinstance(sops, set)
        return {JobId(int(sop.split(".")[3][1:])) for sop in sops}

    return jobs_of


def test_results_of_a_route_in_shadow_are_neither_found_nor_given(
    engine: Engine, shown: Callable[[], set[JobId]]
) -> None:
    assert shown() == set()
    analysed(engine, "1.2.3", "f1", "shadow")
    assert shown() == set()
    other = wanted("1.2.3", "f1", route="other")
    assert add(engine, other).outcome == "shared"  # live now
    assert len(shown()) == 1


def test_what_took_the_place_of_results_is_found_alone(
    engine: Engine, shown: Callable[[], set[JobId]]
) -> None:
    first = analysed(engine, "1.2.3", "f1")
    assert shown() == {first}
    second = analysed(engine, "1.2.3", "f2")
    assert shown() == {second}
    # Pruning brings nothing back.
    with writing(engine) as connection:
        retention.prune_jobs(connection, Instant(NOW + 1))
    assert shown() == {second}
    with writing(engine) as connection:
        old = jobs.existing(connection, second)
        withdrawals.add(connection, old, "withdrawal", NOW)
    assert shown() == set()


def test_results_of_a_study_that_is_held_or_anothers_are_kept_back(
    engine: Engine, shown: Callable[[], set[JobId]]
) -> None:
    done = analysed(engine, "1.2.3", "f1")
    study = StudyInstanceUID("1.2.3")
    with writing(engine) as connection:
        decisions.hold(connection, study, "Whose is it?", NOW)
    assert shown() == set()
    with writing(engine) as connection:
        decisions.release(connection, study, PATIENT, NOW)
    assert shown() == {done}
    with writing(engine) as connection:
        studies.set_patient_key(connection, study, IdentityKey("OTHER"))
    assert shown() == set()


def test_a_study_of_which_only_shadow_results_are_left_is_not_found(
    engine: Engine, shown: Callable[[], set[JobId]]
) -> None:
    analysed(engine, "1.2.3", "f1", "shadow")
    with writing(engine) as connection:
        for table in (schema.instances, schema.series):
            images = table.c.series_instance_uid == "1.2.3.1"
            connection.execute(table.delete().where(images))
        for level, one in (
            ("study", key("StudyInstanceUID", "1.2.3")),
            ("patient", key("PatientID", "P1")),
        ):
            found = search.page(connection, level, [one], []).found  # type: ignore[arg-type]  # a level
            assert found == (), level
