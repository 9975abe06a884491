"""A note withdraws just the results that it names; any other is refused."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomai.results.encode import written
from dicomai.results.gate import GateError
from dicomai.results.gate.rejection import check_rejection
from dicomai.results.rejection import encode_rejection

WHY = "The wrong series was analysed."


@pytest.fixture(scope="module")
def results(study: Any, found: Any) -> list[Dataset]:
    """A Segmentation, pictures and a report."""
    files = study.files(found.everything(study), ("SEG", "SR", "SC"))
    return [pydicom.dcmread(io.BytesIO(raw)) for raw in files]


def _note(study: Any, found: Any, results: list[Dataset]) -> bytes:
    return written(encode_rejection(results, found.job, WHY, study.context))


def test_a_note_rejects_all_results(study: Any, found: Any, results: list[Dataset]) -> None:
    octets = _note(study, found, results)
    check_rejection(octets, results, WHY)
    note = pydicom.dcmread(io.BytesIO(octets))
    kinds = [item.ValueType for item in note.ContentSequence if "ReferencedSOPSequence" in item]
    assert kinds == ["IMAGE"] * (len(results) - 1) + ["COMPOSITE"]
    assert (note.Modality, note.SeriesNumber) == ("KO", 3092)
    assert _note(study, found, results) == octets


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        setattr(dataset, keyword, value)

    change.__name__ = keyword
    return change


def _of_interest(note: Dataset) -> None:
    note.ConceptNameCodeSequence[0].CodeValue = "113000"


def _one_less(note: Dataset) -> None:
    note.ContentSequence.pop()


def _evidence_elsewhere(note: Dataset) -> None:
    study = note.CurrentRequestedProcedureEvidenceSequence[0]
    study.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def _one_of_them(note: Dataset) -> None:
    series = note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    note.SeriesInstanceUID = series.SeriesInstanceUID


def _silent(note: Dataset) -> None:
    next(item for item in note.ContentSequence if item.ValueType == "TEXT").TextValue = "Gone."


def _untitled(note: Dataset) -> None:
    del note.ConceptNameCodeSequence


def test_a_note_that_rejects_a_rejection_note_is_refused(
    study: Any, found: Any, results: list[Dataset]
) -> None:
    earlier = pydicom.dcmread(io.BytesIO(_note(study, found, results)))
    taken = [earlier, *results]
    octets = written(encode_rejection(taken, uuid.uuid4(), WHY, study.context))
    with pytest.raises(GateError, match="it rejects another rejection note") as refused:
        check_rejection(octets, taken, WHY)
    assert refused.value.rule == "content"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_untitled, "readable"),
        (_set("PatientID", "PID-9"), "identity"),
        (_set("StudyInstanceUID", "1.2.3"), "identity"),
        (_set("Modality", "SR"), "attributes"),
        (_one_of_them, "identity"),
        (_of_interest, "content"),
        (_one_less, "content"),
        (_silent, "content"),
        (_evidence_elsewhere, "references"),
    ],
)
def test_a_changed_note_is_refused(
    study: Any, found: Any, results: list[Dataset], change: Callable[[Dataset], None], rule: str
) -> None:
    note = pydicom.dcmread(io.BytesIO(_note(study, found, results)))
    change(note)
    out = io.BytesIO()
    note.save_as(out)
    with pytest.raises(GateError) as refused:
        check_rejection(out.getvalue(), results, WHY)
    assert refused.value.rule == rule, refused.value
