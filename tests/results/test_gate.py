"""The gate lets true results pass and names the rule that anything else breaks."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from scipy.spatial.transform import Rotation

from dicomai.dicom.codes import LEFT, RIGHT, Code
from dicomai.results.gate import GateError, check


def _bytes(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def _refusal(files: list[bytes], findings: Any, headers: list[Dataset]) -> GateError:
    with pytest.raises(GateError) as refused:
        check(files, findings, headers)
    return refused.value


@pytest.fixture(scope="session")
def files(study: Any, found: Any) -> list[bytes]:
    """True results: SEG, SR."""
    return study.files(found.everything(study))


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal", "prone", "oblique"])
def test_true_results_pass_in_every_orientation(
    study_lying: Any, found: Any, orientation: str
) -> None:
    lying = study_lying(orientation)
    findings = found.everything(lying)
    check(lying.files(findings), findings, lying.headers)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(quaternion=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01))
def test_true_results_pass_in_any_orientation(
    study_lying: Any, found: Any, quaternion: tuple[float, float, float, float]
) -> None:
    turned = Rotation.from_quat(quaternion).as_matrix()
    lying = study_lying((tuple(turned[:, 0].tolist()), tuple(turned[:, 1].tolist())), (9, 20, 31))
    findings = found.everything(lying)
    check(lying.files(findings), findings, lying.headers)


def test_true_results_pass_from_files(
    study: Any, found: Any, files: list[bytes], tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("seg.dcm", "sr.dcm")]
    for path, raw in zip(paths, files, strict=True):
        path.write_bytes(raw)
    check(paths, found.everything(study), study.headers)


def test_true_results_with_long_codes_pass(study: Any, found: Any) -> None:
    long = Code("123456789012345678", "SCT", "Something rare")
    findings = found.everything(study)
    rare = replace(
        findings,
        segments=tuple(replace(each, type=long, laterality=long) for each in findings.segments),
        detections=tuple(replace(each, finding=long) for each in findings.detections),
        classifications=(replace(found.opacity(present=True), finding=long),),
    )
    check(study.files(rare), rare, study.headers)


@pytest.mark.parametrize(
    "label", ["Lung, left", "T1: 2 mm", "3 chamber; view", "No contrast", "Nothing found", "İris"]
)
def test_true_results_with_awkward_labels_pass(study: Any, found: Any, label: str) -> None:
    findings = found.everything(study)
    right, left, empty = findings.segments
    odd = replace(
        findings,
        segments=(replace(right, label="Lung"), left, replace(empty, label=label)),
        detections=tuple(
            replace(each, label=f"{label} {number}")
            for number, each in enumerate(findings.detections, start=1)
        ),
        classifications=(replace(found.opacity(present=True), label=label),),
    )
    check(study.files(odd), odd, study.headers)


def test_true_results_of_other_kinds_pass(study: Any, xray: Any, found: Any) -> None:
    check(study.files(found.nothing(study)), found.nothing(study), study.headers)
    boxed = found.on_xray(xray)
    check(xray.files(boxed), boxed, xray.headers)
    verdict = replace(found.nothing(xray), classifications=(found.opacity(present=True),))
    check(xray.files(verdict), verdict, xray.headers)


def _flip_a_voxel(seg: Dataset) -> None:
    pixels = bytearray(seg.PixelData)
    pixels[10] ^= 1
    seg.PixelData = bytes(pixels)


def _move_a_frame(seg: Dataset) -> None:
    position = seg.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    x, y, z = (float(each) for each in position.ImagePositionPatient)
    position.ImagePositionPatient = [x, y + 0.05, z]


def _exchange_frames(seg: Dataset) -> None:
    one, other = seg.PerFrameFunctionalGroupsSequence[0:2]
    one.PlanePositionSequence, other.PlanePositionSequence = (
        other.PlanePositionSequence,
        one.PlanePositionSequence,
    )


def _exchange_segments(seg: Dataset) -> None:
    for frame in seg.PerFrameFunctionalGroupsSequence:
        item = frame.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = {1: 2, 2: 1}.get(item.ReferencedSegmentNumber, 3)


def _exchange_spacings(seg: Dataset) -> None:
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = list(reversed(measures.PixelSpacing))


def _turn(seg: Dataset) -> None:
    plane = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    plane.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def _other_side(seg: Dataset) -> None:
    kind = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue = LEFT.value


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        setattr(dataset, keyword, value)

    change.__name__ = keyword
    return change


def _delete(keyword: str) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        delattr(dataset, keyword)

    change.__name__ = f"no_{keyword}"
    return change


def _other_version(seg: Dataset) -> None:
    item = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    item.AlgorithmVersion = "9.9"


def _other_device(result: Dataset) -> None:
    result.ContributingEquipmentSequence[1].DeviceSerialNumber = "00" * 32


def _silent(result: Dataset) -> None:
    del result.ContributingEquipmentSequence[1].ContributionDescription


def _other_source(seg: Dataset) -> None:
    frame = seg.PerFrameFunctionalGroupsSequence[0]
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = "1.2.3.4"


def _in_segment(keyword: str, value: object) -> Callable[[Dataset], None]:
    def change(seg: Dataset) -> None:
        setattr(seg.SegmentSequence[0], keyword, value)

    change.__name__ = keyword
    return change


def _other_words_for_a_side(seg: Dataset) -> None:
    kind = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning = "Left"


def _second_side(seg: Dataset) -> None:
    kind = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    sides = kind.SegmentedPropertyTypeModifierCodeSequence
    sides.append(copy.deepcopy(sides[0]))


def _other_category(seg: Dataset) -> None:
    seg.SegmentSequence[0].SegmentedPropertyCategoryCodeSequence[0].CodeValue = "85756007"


def _stretch(seg: Dataset) -> None:
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = 5


def _other_source_series(seg: Dataset) -> None:
    seg.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def _other_tracking(seg: Dataset) -> None:
    seg.SegmentSequence[0].TrackingUID = "2.25.1"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_flip_a_voxel, "geometry"),
        (_move_a_frame, "geometry"),
        (_exchange_frames, "references"),
        (_exchange_segments, "geometry"),
        (_exchange_spacings, "geometry"),
        (_turn, "geometry"),
        (_set("FrameOfReferenceUID", "1.2.3"), "geometry"),
        (_other_side, "content"),
        (_other_source, "references"),
        (_other_tracking, "tracking"),
        (_in_segment("SegmentLabel", "Left lung"), "content"),
        (_in_segment("SegmentAlgorithmType", "MANUAL"), "provenance"),
        (_in_segment("SegmentNumber", 9), "content"),
        (_other_words_for_a_side, "content"),
        (_second_side, "content"),
        (_other_category, "content"),
        (_stretch, "geometry"),
        (_other_source_series, "references"),
        (_set("Modality", "CT"), "attributes"),
        (_set("SegmentationType", "FRACTIONAL"), "attributes"),
        (_set("SeriesDescription", "AI SEG"), "status"),
        (_set("TimezoneOffsetFromUTC", "0200"), "attributes"),
        (_other_version, "provenance"),
        (_other_device, "provenance"),
        (_silent, "provenance"),
        (_set("PatientID", "PID-0816"), "identity"),
        (_set("PatientName", "Muster^Eva"), "identity"),
        (_set("PatientBirthDate", ""), "identity"),
        (_set("StudyInstanceUID", "1.2.3"), "identity"),
        (_set("SOPInstanceUID", "1.2.3"), "readable"),
        (_delete("SegmentSequence"), "attributes"),
        (_delete("AccessionNumber"), "attributes"),
    ],
)
def test_a_changed_seg_is_refused(
    study: Any, found: Any, files: list[bytes], change: Callable[[Dataset], None], rule: str
) -> None:
    seg = pydicom.dcmread(io.BytesIO(files[0]))
    change(seg)
    error = _refusal([_bytes(seg), files[1]], found.everything(study), study.headers)
    assert error.rule == rule
    assert f"rule of {rule}" in error.sentence
    assert error.subject


def _items(holder: Dataset) -> list[Dataset]:
    return [each for item in holder.get("ContentSequence", ()) for each in (item, *_items(item))]


def _first(report: Dataset, value_type: str, code: str) -> Dataset:
    return next(
        item
        for item in _items(report)
        if item.ValueType == value_type and item.ConceptNameCodeSequence[0].CodeValue == code
    )


def _in_item(value_type: str, code: str, keyword: str, value: object) -> Callable[[Dataset], None]:
    def change(report: Dataset) -> None:
        item = _first(report, value_type, code)
        if keyword == "ConceptCodeSequence":
            item.ConceptCodeSequence[0].CodeValue = value
        elif keyword == "NumericValue":
            item.MeasuredValueSequence[0].NumericValue = value
        elif keyword == "ReferencedSegmentNumber":
            item.ReferencedSOPSequence[0].ReferencedSegmentNumber = value
        else:
            setattr(item, keyword, value)

    change.__name__ = f"{keyword}_of_{code}"
    return change


def _move_a_region(code: str) -> Callable[[Dataset], None]:
    def change(report: Dataset) -> None:
        item = _first(report, "SCOORD3D", code)
        item.GraphicData = [each + 0.02 for each in item.GraphicData]

    change.__name__ = f"move_{code}"
    return change


def _mirror_a_region(report: Dataset) -> None:
    item = _first(report, "SCOORD3D", "111010")
    x, y, z = item.GraphicData
    item.GraphicData = [-x, y, z]


def _drop_a_group(report: Dataset) -> None:
    container = _first(report, "CONTAINER", "126010")
    del container.ContentSequence[0]


def _refer_elsewhere(report: Dataset) -> None:
    _first(report, "IMAGE", "260753009").ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _drop_evidence(report: Dataset) -> None:
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    del series.ReferencedSOPSequence[0]


def _forget_the_words(report: Dataset) -> None:
    report.ContentSequence[-1].ContentSequence = report.ContentSequence[-1].ContentSequence[:1]


def _question_mark(report: Dataset) -> None:
    for item in _items(report):
        if item.ValueType == "TEXT" and "thicker" in item.TextValue:
            item.TextValue = item.TextValue.replace("thicker", "t?icker")


def _other_words_for_a_code(name: str, meaning: str) -> Callable[[Dataset], None]:
    def change(report: Dataset) -> None:
        _first(report, "CODE", name).ConceptCodeSequence[0].CodeMeaning = meaning

    change.__name__ = f"words_of_{name}"
    return change


def _twice(value_type: str, code: str) -> Callable[[Dataset], None]:
    def change(report: Dataset) -> None:
        item = _first(report, value_type, code)
        for holder in (report, *_items(report)):
            if item in holder.get("ContentSequence", ()):
                holder.ContentSequence.append(copy.deepcopy(item))
                return

    change.__name__ = f"{value_type}_{code}_twice"
    return change


def _stray(report: Dataset) -> None:
    _first(report, "CONTAINER", "111028").ContentSequence.append(
        copy.deepcopy(_first(report, "NUM", "118565006"))
    )


def _other_unit(report: Dataset) -> None:
    value = _first(report, "NUM", "118565006").MeasuredValueSequence[0]
    value.MeasurementUnitsCodeSequence[0].CodeMeaning = "liter"


def _other_float(report: Dataset) -> None:
    _first(report, "NUM", "118565006").MeasuredValueSequence[0].FloatingPointValue = 1.0


def _conclude(old: str, new: str) -> Callable[[Dataset], None]:
    def change(report: Dataset) -> None:
        item = _first(report, "TEXT", "121077")
        assert old in item.TextValue
        item.TextValue = item.TextValue.replace(old, new)

    change.__name__ = f"conclude_{new}"
    return change


def _evidence(report: Dataset) -> list[Dataset]:
    return list(report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence)


def _evidence_in_another_series(report: Dataset) -> None:
    _evidence(report)[0].SeriesInstanceUID = "1.2.3"


def _evidence_of_another_study(report: Dataset) -> None:
    report.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID = "1.2.3"


def _another_seg_as_evidence(report: Dataset) -> None:
    strange = copy.deepcopy(_evidence(report)[-1].ReferencedSOPSequence[0])
    strange.ReferencedSOPInstanceUID = "1.2.3"
    strange.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    _evidence(report)[-1].ReferencedSOPSequence.append(strange)


def _tracked_as_one(report: Dataset) -> None:
    items = [
        item
        for item in _items(report)
        if item.ValueType == "UIDREF" and item.ConceptNameCodeSequence[0].CodeValue == "112040"
    ]
    items[-1].UID = items[-2].UID


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_other_words_for_a_code("121071", "Liver"), "content"),
        (_other_words_for_a_code("272741003", "Left"), "content"),
        (_other_words_for_a_code("363698007", "Liver"), "content"),
        (_other_words_for_a_code("276214006", "Tissue"), "content"),
        (_other_words_for_a_code("370129005", "Longest diameter"), "content"),
        (_other_words_for_a_code("121401", "Maximum"), "content"),
        (_twice("NUM", "118565006"), "content"),
        (_twice("NUM", "111012"), "content"),
        (_twice("CODE", "121071"), "content"),
        (_twice("CODE", "272741003"), "content"),
        (_twice("SCOORD3D", "111010"), "coordinates"),
        (_stray, "content"),
        (_other_unit, "content"),
        (_other_float, "content"),
        (_conclude("no accessory lobe", "accessory lobe 3 mL"), "content"),
        (_conclude("Right lung 2,310 mL", "no right lung"), "content"),
        (_conclude("Nodule not present", "Nodule present"), "content"),
        (_conclude("3 nodules", "2 nodules"), "content"),
        (_conclude("AI result, not for primary diagnosis", "Result"), "status"),
        (_evidence_in_another_series, "references"),
        (_evidence_of_another_study, "references"),
        (_another_seg_as_evidence, "references"),
        (_in_item("UIDREF", "121232", "UID", "1.2.3"), "references"),
        (_tracked_as_one, "tracking"),
        (_move_a_region("111010"), "coordinates"),
        (_move_a_region("121231"), "coordinates"),
        (_mirror_a_region, "coordinates"),
        (
            _in_item("SCOORD3D", "121231", "ReferencedFrameOfReferenceUID", "1.2.3"),
            "coordinates",
        ),
        (_in_item("UIDREF", "112040", "UID", "2.25.7"), "tracking"),
        (_in_item("IMAGE", "121191", "ReferencedSegmentNumber", 2), "references"),
        (_in_item("NUM", "118565006", "NumericValue", "231.0"), "content"),
        (_in_item("NUM", "111012", "NumericValue", "91"), "content"),
        (_in_item("CODE", "427359005", "ConceptCodeSequence", "52101004"), "content"),
        (_in_item("CODE", "272741003", "ConceptCodeSequence", LEFT.value), "content"),
        (_in_item("CODE", "121071", "ConceptCodeSequence", "1"), "content"),
        (_in_item("TEXT", "111003", "TextValue", "9.9"), "provenance"),
        (_drop_a_group, "content"),
        (_refer_elsewhere, "references"),
        (_drop_evidence, "references"),
        (_forget_the_words, "provenance"),
        (_question_mark, "provenance"),
        (_set("VerificationFlag", "VERIFIED"), "status"),
        (_set("PreliminaryFlag", "FINAL"), "status"),
        (_set("PatientID", "PID-0816"), "identity"),
        (_set("SeriesInstanceUID", "1.2.826.0.1.3680043.10.99.1"), "identity"),
        (_set("StudyDescription", "CT ch?st"), "identity"),
    ],
)
def test_a_changed_report_is_refused(
    study: Any, found: Any, files: list[bytes], change: Callable[[Dataset], None], rule: str
) -> None:
    report = pydicom.dcmread(io.BytesIO(files[1]))
    change(report)
    error = _refusal([files[0], _bytes(report)], found.everything(study), study.headers)
    assert error.rule == rule, error


def test_results_of_another_patient_are_refused(study: Any, found: Any, files: list[bytes]) -> None:
    other = copy.deepcopy(study.headers)
    for header in other:
        header.PatientID = "PID-9"
    assert _refusal(files, found.everything(study), other).rule == "identity"
    one = copy.deepcopy(study.headers)
    one[4].PatientID = "PID-9"  # a single slice of someone else
    assert _refusal(files, found.everything(study), one).rule == "identity"


@pytest.mark.parametrize(
    ("keyword", "value"), [("IssuerOfPatientID", "OTHER"), ("PatientBirthDate", "19601204")]
)
def test_a_single_slice_of_someone_else_is_refused(
    study: Any, found: Any, files: list[bytes], keyword: str, value: str
) -> None:
    headers = copy.deepcopy(study.headers)
    setattr(headers[4], keyword, value)
    assert _refusal(files, found.everything(study), headers).rule == "identity"
    setattr(headers[4], keyword, "")
    check(files, found.everything(study), headers)


def test_two_results_of_one_series_are_refused(study: Any, found: Any, files: list[bytes]) -> None:
    seg, report = (pydicom.dcmread(io.BytesIO(raw)) for raw in files)
    report.SeriesInstanceUID = seg.SeriesInstanceUID
    error = _refusal([files[0], _bytes(report)], found.everything(study), study.headers)
    assert error.rule == "identity"


def test_times_at_another_offset_than_the_images_are_refused(
    study: Any, found: Any, files: list[bytes]
) -> None:
    headers = copy.deepcopy(study.headers)
    headers[0].TimezoneOffsetFromUTC = "-0500"
    assert _refusal(files, found.everything(study), headers).rule == "identity"


def test_numbers_where_nothing_was_found_are_refused(study: Any, found: Any) -> None:
    findings = found.nothing(study)
    (raw,) = study.files(findings)
    report = pydicom.dcmread(io.BytesIO(raw))
    everything = pydicom.dcmread(io.BytesIO(study.files(found.everything(study))[1]))
    group = _first(report, "CONTAINER", "125007")
    group.ContentSequence.append(_first(everything, "NUM", "118565006"))
    assert _refusal([_bytes(report)], findings, study.headers).rule == "content"


def test_findings_that_moved_since_are_refused(study: Any, found: Any, files: list[bytes]) -> None:
    findings = found.everything(study)
    affine = study.grid.index_to_lps.copy()
    affine[0, 3] += 5
    moved = replace(findings, where=replace(study.grid, index_to_lps=affine))
    assert _refusal(files, moved, study.headers).rule == "geometry"
    mirrored = replace(
        findings,
        segments=(
            replace(findings.segments[0], mask=findings.segments[0].mask[:, :, ::-1]),
            *findings.segments[1:],
        ),
    )
    assert _refusal(files, mirrored, study.headers).rule == "geometry"


def test_left_and_right_exchanged_are_refused(study: Any, found: Any, files: list[bytes]) -> None:
    findings = found.everything(study)
    right, left, *rest = findings.segments
    exchanged = (replace(right, laterality=LEFT), replace(left, laterality=RIGHT), *rest)
    assert _refusal(files, replace(findings, segments=exchanged), study.headers).rule == "content"


def test_a_box_moved_on_its_image_is_refused(xray: Any, found: Any) -> None:
    findings = found.on_xray(xray)
    (raw,) = xray.files(findings)
    report = pydicom.dcmread(io.BytesIO(raw))
    outline = _first(report, "SCOORD", "111030")
    outline.GraphicData = [each + 0.5 for each in outline.GraphicData]
    assert _refusal([_bytes(report)], findings, xray.headers).rule == "coordinates"


def test_a_missing_or_a_strange_object_is_refused(
    study: Any, found: Any, files: list[bytes]
) -> None:
    findings = found.everything(study)
    assert _refusal(files[1:], findings, study.headers).rule == "content"
    assert _refusal(files[:1], findings, study.headers).rule == "content"
    assert _refusal([*files, files[1]], findings, study.headers).rule == "content"
    assert _refusal([files[0], files[1][:400]], findings, study.headers).rule == "readable"
    assert _refusal([b"nothing", files[1]], findings, study.headers).rule == "readable"


def test_text_that_cannot_be_read_back_is_refused(
    study: Any, found: Any, files: list[bytes]
) -> None:
    report = files[1].replace(b"thicker", b"t\xfcicker")
    assert _refusal([files[0], report], found.everything(study), study.headers).rule in {
        "text",
        "provenance",
    }
