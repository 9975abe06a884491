"""Values that no column takes keep no object from the others, and end no role."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from sqlalchemy import select

from dicomai.dicom.dates import now
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.spool import quarantine
from dicomai.store import counts, events, schema, series
from dicomai.store.counts import SeriesCount
from dicomai.store.engine import reading, writing

Hospital = Any  # conftest's: importlib mode has no package to import it from
MakeCT = Callable[..., Dataset]

_CHANCE = random.Random(5)
# Four bytes each, and in no order that could be compressed.
_LONG = "".join(chr(0x20000 + _CHANCE.randrange(42000)) for _ in range(5000)).encode()
_HOSTILE = {
    "a Series Number of 34 bits": ("SeriesNumber", "UN", b"9999999999"),
    "a Series Number one too large": ("SeriesNumber", "UN", b"2147483648"),
    "a Series Number far below zero": ("SeriesNumber", "UN", b"-99999999999 "),
    "a Series Number beyond all integers": ("SeriesNumber", "UN", b"1e300 "),
    "a Series Number beyond all numbers": ("SeriesNumber", "UN", b"1e999 "),
    "a Series Number that is none": ("SeriesNumber", "UN", b"nan "),
    "a Series Number as a double": ("SeriesNumber", "FD", 1.7e308),
    "an Instance Number beyond all integers": ("InstanceNumber", "UN", b"1e300 "),
    "a Number of Frames beyond all integers": ("NumberOfFrames", "UN", b"1e300 "),
    "a number of 64 bits": ("SelectorUVValue", "UV", 2**64 - 1),
    "an age of a million": ("PatientAge", "UN", b"9999999Y"),
    "a day that never was": ("StudyDate", "UN", b"99999999"),
    "a birthday before all": ("PatientBirthDate", "UN", b"00000000"),
    "a birthday after all": ("PatientBirthDate", "UN", b"202001" + b"9" * 40),
    "a day with NULs": ("StudyDate", "UN", b"2026\x0001\x0001"),
    "a NUL in a text": ("AccessionNumber", "UN", b"A\x001 "),
    "half a character": ("StudyDescription", "UN", b"\xed\xa0\x80 "),
    "a text without end": ("StudyDescription", "UN", b"x" * 60000),
    "an accession number without end": ("AccessionNumber", "UN", _LONG),
    "a Patient ID without end": ("PatientID", "UN", _LONG),
    "a name without end": ("PatientName", "UN", _LONG),
    "a sex without end": ("PatientSex", "UN", b"\x01" * 5000),
}


@pytest.fixture(autouse=True)
def _written_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pydicom write an element as UN that it knows to be of another VR."""
    monkeypatch.setattr(config, "replace_un_with_known_vr", False)


def put(dataset: Dataset, keyword: str, vr: str, value: object) -> Dataset:
    """Give an attribute a value; as UN any bytes, which are read as its own VR says."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset[keyword] = DataElement(keyword, vr, value)
    return dataset


def test_each_hostile_value_is_kept_with_its_object(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    studies = {f"1.2.5.{number}": case for number, case in enumerate(_HOSTILE, 1)}
    for study, case in studies.items():
        hostile = make_ct(study=study, series=f"{study}.1")
        any_hospital.send(put(hostile, *_HOSTILE[case]))

    done = any_hospital.ingest()

    assert {case for study, case in studies.items() if any_hospital.rows(study)} == set(_HOSTILE)
    assert done.set_aside == 0
    any_hospital.later(1000)
    any_hospital.ingest()
    for study, case in studies.items():
        assert any_hospital.decide(study) in ("decided", "held"), case


@pytest.mark.parametrize(("number", "kept"), [("2147483647", 2147483647), ("2147483648", None)])
def test_a_series_number_that_its_column_takes_is_kept_in_it(
    any_hospital: Hospital, make_ct: MakeCT, number: str, kept: int | None
) -> None:
    any_hospital.send(put(make_ct(), "SeriesNumber", "UN", number.encode()))
    any_hospital.ingest()
    with reading(any_hospital.engine) as connection:
        (found,) = series.of_study(connection, StudyInstanceUID("1.2.3"))
    assert found.series_number == kept


def test_an_object_that_does_not_fit_is_set_aside_and_the_others_are_taken(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    """Its texts are together too long for an index of PostgreSQL; SQLite has no such limit."""
    hostile = make_ct()
    for keyword in ("PatientID", "IssuerOfPatientID", "PatientName"):
        put(hostile, keyword, "UN", _LONG)
    any_hospital.send(make_ct(number=2), hostile, make_ct(number=3))

    done = any_hospital.ingest()

    fits = any_hospital.engine.dialect.name == "sqlite"
    assert (done.catalogued, done.set_aside) == ((3, 0) if fits else (2, 1))
    reasons = [each.reason for each in quarantine.listing(any_hospital.config.quarantine)]
    assert len(reasons) == done.set_aside
    assert all("don't fit into the catalogue" in each for each in reasons)
    assert any_hospital.ingest().set_aside == 0


def test_a_node_that_counts_more_than_a_column_takes_is_believed_as_far(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    any_hospital.send(make_ct())
    any_hospital.ingest()
    study = StudyInstanceUID("1.2.3")
    told = SeriesCount(
        series_instance_uid=SeriesInstanceUID("1.2.3.1"), objects=10**300, attributes={}
    )
    with writing(any_hospital.engine) as connection:
        counts.note(connection, study, "CT1", (told,), now())
        (counted,) = counts.of_study(connection, study, lambda *_: True)
    assert counted.there == 2**31 - 1


def test_a_sentence_that_quotes_a_peer_is_kept_without_what_no_text_holds(
    any_hospital: Hospital,
) -> None:
    with writing(any_hospital.engine) as connection:
        events.record(connection, None, "told", "It says A\x00B\ud800.", {"said": "\x00"}, now())
        said = connection.execute(select(schema.events.c.sentence)).scalar_one()
    assert said == r"It says A\x00B\ud800."
