"""Reports in words: for people, for who takes no other, and for what was not analysed."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomai.results import summary
from dicomai.results.gate import GateError, check

ALL = ("SEG", "SR", "SR:ENHANCED", "SR:TEXT")
ENHANCED = "Enhanced SR Storage"
TEXT = "Basic Text SR Storage"
ROOT = "Comprehensive 3D SR Storage"


def _read(raw: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(raw))


def _items(holder: Dataset) -> list[Dataset]:
    return [each for item in holder.get("ContentSequence", ()) for each in (item, *_items(item))]


def _written(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


@pytest.fixture(scope="module")
def made(study: Any, found: Any) -> dict[str, bytes]:
    """All reports of everything, by class, with the Segmentation."""
    findings = found.everything(study)
    files = study.files(findings, ALL)
    check(files, findings, study.headers, wanted=ALL)
    return {_read(raw).SOPClassUID.name: raw for raw in files}


@pytest.fixture(scope="module")
def refusal(study: Any, found: Any) -> Any:
    """What is said of images that the model did not look at."""
    return replace(found.nothing(study), not_analysed="Slices are 10 mm thick, and 5 is the most.")


def test_a_summary_is_in_whole_sentences(study: Any, found: Any) -> None:
    said = summary.plain(found.everything(study), "9 images of 1 series")
    assert said == (
        "A computer program (chest-ct-lungs 1.2.0) looked at 9 images of 1 series. It outlined: "
        "right lung (2,310 mL), left lung (1,980 mL). It did not find: accessory lobe. It marked "
        "3 places for a look; of the surest (nodule) it is 90 % certain. Of nodule it says: not "
        "present (12 %). It can be wrong, and no one has checked what it says."
    )
    assert "found nothing of what it looks for: nodules of 4 mm" in summary.plain(
        found.nothing(study), "1 image of 1 series"
    )


def test_the_words_are_the_same_in_all_reports(made: dict[str, bytes]) -> None:
    def words(name: str) -> list[str]:
        return [item.TextValue for item in _items(_read(made[name])) if item.ValueType == "TEXT"]

    assert [text for text in words(TEXT) if text not in words(ROOT)] == []
    assert any(text.startswith("A computer program") for text in words(TEXT))


def test_the_enhanced_report_has_the_numbers_and_the_basic_one_none(
    made: dict[str, bytes],
) -> None:
    numbers = [
        (item.ConceptNameCodeSequence[0].CodeMeaning, item.MeasuredValueSequence[0].NumericValue)
        for item in _items(_read(made[ENHANCED]))
        if item.ValueType == "NUM"
    ]
    assert ("Volume", 2310.4567) in numbers
    assert ("Certainty of Finding", 90) in numbers
    assert not any(item.ValueType == "NUM" for item in _items(_read(made[TEXT])))


def test_a_number_of_the_enhanced_report_says_how_it_was_measured(made: dict[str, bytes]) -> None:
    report = _read(made[ENHANCED])
    told = {
        tuple(each.ConceptCodeSequence[0].CodeValue for each in item.get("ContentSequence", ())[:2])
        for item in _items(report)
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Diameter"
    }
    assert told == {("EQUIVALENT-BALL", "373098007")}
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99DICOMAI"
    assert "CodingSchemeIdentificationSequence" not in _read(made[TEXT])


def test_a_refusal_says_why_and_nothing_else(study: Any, refusal: Any) -> None:
    (raw,) = study.files(refusal, ("SR",))
    check([raw], refusal, study.headers, wanted=("SR",))
    report = _read(raw)
    coded = [
        item.ConceptCodeSequence[0].CodeMeaning
        for item in _items(report)
        if item.ValueType == "CODE" and item.ConceptNameCodeSequence[0].CodeValue == "121071"
    ]
    assert coded == ["Not analysed"]
    texts = [item.TextValue for item in _items(report) if item.ValueType == "TEXT"]
    assert (
        "A computer program (chest-ct-lungs 1.2.0) could not look at these images: "
        "Slices are 10 mm thick, and 5 is the most."
    ) in texts
    assert "Was given: 9 images of 1 series" in texts
    assert not any(text.startswith("Looked") for text in texts)


def test_a_refusal_of_a_series_is_not_said_of_its_first_image(
    study: Any, xray: Any, refusal: Any
) -> None:
    """A series that makes no volume is a plane of its first image, for want of a grid."""

    def named(source: Any) -> list[str]:
        where = replace(xray.grid, sop_instance_uid=source.headers[0].SOPInstanceUID)
        told = replace(refusal, where=where, inputs=source.inputs)
        (raw,) = encoded = source.files(told, ("SR",))
        check(encoded, told, source.headers, wanted=("SR",))
        (group,) = (
            item
            for item in _items(_read(raw))
            if item.ConceptNameCodeSequence[0].CodeMeaning == "Measurement Group"
        )
        return [
            each.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            for each in group.ContentSequence
            if each.ValueType == "IMAGE"
        ]

    assert named(study) == []
    assert named(xray) == [xray.headers[0].SOPInstanceUID]


def test_peers_find_no_error(
    peer: Callable[[str], str],
    study: Any,
    made: dict[str, bytes],
    refusal: Any,
    tmp_path: Path,
) -> None:
    files = {**made, "refusal": study.files(refusal, ("SR",))[0]}
    for name, raw in files.items():
        path = tmp_path / "report.dcm"
        path.write_bytes(raw)
        said = subprocess.run([peer("dciodvfy"), "-new", path], capture_output=True, text=True)
        assert not [line for line in said.stderr.splitlines() if line.startswith("Error")], name
        if name != "Segmentation Storage":
            dump = subprocess.run([peer("dsrdump"), path], capture_output=True, text=True)
            assert dump.returncode == 0, name
            assert "E: " not in dump.stderr, name


@pytest.mark.parametrize("name", [ROOT, ENHANCED, TEXT])
def test_images_of_an_earlier_study_are_no_evidence_of_this_one(
    study: Any, found: Any, name: str
) -> None:
    prior = replace(
        study.inputs[0],
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.1",
        sop_instance_uid="1.2.3.1.1",
    )
    findings = replace(found.little(study), inputs=(*study.inputs, prior))
    files = study.files(findings, ALL)
    check(files, findings, study.headers, wanted=ALL)
    report = next(each for each in map(_read, files) if each.SOPClassUID.name == name)
    current = report.CurrentRequestedProcedureEvidenceSequence
    other = report.PertinentOtherEvidenceSequence
    assert [each.StudyInstanceUID for each in current] == [report.StudyInstanceUID]
    assert [each.StudyInstanceUID for each in other] == ["1.2.3"]
    report.CurrentRequestedProcedureEvidenceSequence = [*current, *other]
    del report.PertinentOtherEvidenceSequence
    others = [raw for raw in files if _read(raw).SOPClassUID.name != name]
    with pytest.raises(GateError, match="not of the studies that belong there"):
        check([*others, _written(report)], findings, study.headers, wanted=ALL)


def test_the_frame_of_reference_is_said_of_the_images_that_lie_in_it(
    study: Any, found: Any
) -> None:
    prior = replace(study.inputs[0], series_instance_uid="1.2.3.1", sop_instance_uid="1.2.3.1.1")
    findings = replace(found.little(study), inputs=(*study.inputs, prior))
    files = study.files(findings)
    check(files, findings, study.headers)
    groups = [
        each.ContentSequence
        for each in _items(_read(files[-1]))
        if each.ConceptNameCodeSequence[0].CodeMeaning == "Image Library Group"
    ]
    said = [
        ([each.UID for each in group if each.ValueType == "UIDREF"],
         [each.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
          for each in group if each.ValueType == "IMAGE"])
        for group in groups
    ]  # fmt: skip
    ours = [each.SOPInstanceUID for each in study.headers]
    assert said == [([study.grid.frame_of_reference_uid], ours), ([], ["1.2.3.1.1"])]


def _another_number(report: Dataset) -> None:
    number = next(item for item in _items(report) if item.ValueType == "NUM")
    number.MeasuredValueSequence[0].NumericValue = "1"


def _no_method(report: Dataset) -> None:
    diameter = next(
        item
        for item in _items(report)
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Diameter"
    )
    del diameter.ContentSequence[0]


def _verified(report: Dataset) -> None:
    report.VerificationFlag = "VERIFIED"


def _another_observer(report: Dataset) -> None:
    next(item for item in _items(report) if item.ValueType == "UIDREF").UID = "2.25.1"


def _less_said(report: Dataset) -> None:
    report.ContentSequence[-1].ContentSequence = report.ContentSequence[-1].ContentSequence[:1]


def _another_conclusion(report: Dataset) -> None:
    for item in _items(report):
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == "121077":
            item.TextValue = item.TextValue.replace("not present", "present")


def _less_evidence(report: Dataset) -> None:
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    del series.ReferencedSOPSequence[0]


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        (ENHANCED, _another_number, "content"),
        (ENHANCED, _no_method, "content"),
        (ENHANCED, _verified, "status"),
        (ENHANCED, _another_conclusion, "content"),
        (TEXT, _another_observer, "provenance"),
        (TEXT, _less_said, "provenance"),
        (TEXT, _less_evidence, "references"),
    ],
)
def test_a_changed_report_is_refused(
    study: Any,
    found: Any,
    made: dict[str, bytes],
    name: str,
    change: Callable[[Dataset], None],
    rule: str,
) -> None:
    broken = _read(made[name])
    change(broken)
    files = [raw for each, raw in made.items() if each != name]
    with pytest.raises(GateError) as refused:
        check([*files, _written(broken)], found.everything(study), study.headers, wanted=ALL)
    assert refused.value.rule == rule, refused.value


def test_a_refusal_that_says_something_else_is_refused(
    study: Any, found: Any, refusal: Any
) -> None:
    (nothing,) = study.files(found.nothing(study), ("SR",))
    with pytest.raises(GateError, match="rule of content"):
        check([nothing], refusal, study.headers, wanted=("SR",))
    (raw,) = study.files(refusal, ("SR",))
    with pytest.raises(GateError, match="rule of content"):
        check([raw], found.nothing(study), study.headers, wanted=("SR",))
    other = replace(refusal, not_analysed="Another reason.")
    with pytest.raises(GateError, match="rule of content"):
        check([raw], other, study.headers, wanted=("SR",))
