"""What stands in SEG and SR, read back from their bytes."""

from __future__ import annotations

import copy
import io
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomai.errors import InputError
from dicomai.results.context import PredecessorSR
from dicomai.results.encode import encode, written
from dicomai.results.gate import check


def _read(raw: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(raw))


def _items(holder: Dataset) -> Iterator[Dataset]:
    for item in holder.get("ContentSequence", ()):
        yield item
        yield from _items(item)


def _texts(report: Dataset) -> str:
    return "\n".join(item.TextValue for item in _items(report) if item.ValueType == "TEXT")


def _named(report: Dataset, value: str) -> list[Dataset]:
    return [
        item
        for item in _items(report)
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == value
    ]


def test_encoding_again_gives_the_same_bytes(study: Any, found: Any) -> None:
    findings = found.everything(study)
    assert study.made_anew(findings) == study.made_anew(findings)


def test_another_job_has_other_uids_and_the_same_model_the_same_device(
    study: Any, found: Any
) -> None:
    findings = found.everything(study)
    ours = encode(findings, study.headers, found.job, study.context)
    other = encode(findings, study.headers, uuid.UUID(int=1), study.context)
    for one, two in zip(ours, other, strict=True):
        assert one.SOPInstanceUID != two.SOPInstanceUID
        assert one.SeriesInstanceUID != two.SeriesInstanceUID
        assert one.DeviceUID == two.DeviceUID


def test_a_seg_is_made_only_of_masks_that_have_voxels(study: Any, found: Any) -> None:
    seg, report = map(_read, study.files(found.everything(study)))
    assert [item.SegmentLabel for item in seg.SegmentSequence] == [
        "Right lung",
        "Left lung",
        "Nodule",
    ]
    assert "Nothing found: Accessory lobe" in _texts(report)
    assert len(study.files(found.nothing(study))) == 1


def test_a_detection_is_of_the_category_that_its_model_gives(study: Any, found: Any) -> None:
    findings = found.everything(study)
    category = findings.segments[0].category  # not the one that detections have unless told
    findings = replace(
        findings,
        segments=(),
        detections=tuple(replace(each, category=category) for each in findings.detections),
    )
    files = study.made_anew(findings)
    check(files, findings, study.headers)
    seg, report = map(_read, files)
    said = [item.SegmentedPropertyCategoryCodeSequence[0] for item in seg.SegmentSequence]
    said += [item.ConceptCodeSequence[0] for item in _named(report, "276214006")]
    assert [each.CodeValue for each in said] == [category.value] * 4


def test_a_report_says_what_was_sought_where_nothing_was_found(study: Any, found: Any) -> None:
    findings = found.nothing(study)
    report = _read(study.files(findings)[0])
    said = _texts(report)
    assert findings.sought in said
    assert "nothing found" in said
    assert "9 images of 1 series" in said
    (finding,) = _named(report, "121071")
    assert finding.ConceptCodeSequence[0].CodeMeaning == "Not detected"


def test_every_report_says_what_it_is_for_and_that_no_one_checked_it(
    study: Any, found: Any
) -> None:
    findings = found.everything(study)
    report = _read(study.files(findings)[1])
    said = _texts(report)
    for text in (
        findings.algorithm.intended_use,
        findings.algorithm.not_for,
        findings.algorithm.package_sha256,
        *findings.deviations,
        *findings.warnings,
        "UNVERIFIED",
    ):
        assert text in said
    assert report.VerificationFlag == "UNVERIFIED"
    assert report.PreliminaryFlag == "PRELIMINARY"
    assert "unverified" in report.SeriesDescription


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Not for diagnosis.", "Not for diagnosis."),
        ("NOT FOR diagnosis.", "NOT FOR diagnosis."),
        ("Patients.", "Not for: Patients."),
        ("Nothing but research is served.", "Not for: Nothing but research is served."),
    ],
)
def test_what_a_model_is_not_for_is_said_once(
    study: Any, found: Any, written: str, said: str
) -> None:
    findings = found.everything(study)
    findings = replace(findings, algorithm=replace(findings.algorithm, not_for=written))
    report = _read(study.files(findings)[1])
    assert said in _texts(report).splitlines()


def test_seg_and_sr_track_the_same_things(study: Any, found: Any) -> None:
    seg, report = map(_read, study.files(found.everything(study)))
    in_seg = {item.TrackingID: item.TrackingUID for item in seg.SegmentSequence}
    ids = [item.TextValue for item in _named(report, "112039")]
    in_sr = dict(zip(ids, [item.UID for item in _named(report, "112040")], strict=True))
    assert in_seg.items() <= in_sr.items()
    assert set(in_sr) - set(in_seg) == {"nodule 2", "nodule 3", "nodule at all"}


def test_the_side_stands_on_the_segment_and_on_the_finding(study: Any, found: Any) -> None:
    seg, report = map(_read, study.files(found.everything(study)))
    sides = [
        item.SegmentedPropertyTypeCodeSequence[0]
        .SegmentedPropertyTypeModifierCodeSequence[0]
        .CodeMeaning
        for item in seg.SegmentSequence
    ]
    assert sides == ["Right", "Left", "Left"]
    assert [item.ConceptCodeSequence[0].CodeMeaning for item in _named(report, "272741003")] == [
        "Right",
        "Left",
        "Left",
        "Left",
        "Right",
    ]


def test_both_objects_name_model_version_and_digest(study: Any, found: Any) -> None:
    for raw in study.files(found.everything(study)):
        result = _read(raw)
        model = result.ContributingEquipmentSequence[1]
        assert model.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert (model.ManufacturerModelName, model.SoftwareVersions) == ("chest-ct-lungs", "1.2.0")
        assert model.DeviceSerialNumber == "0f" * 32
        assert model.DeviceUID == result.DeviceUID
        assert (result.Manufacturer, result.SoftwareVersions) == ("dicomai", "0.1.0")


def test_a_sphere_is_an_ellipsoid_in_the_patient(study: Any, found: Any) -> None:
    findings = replace(
        found.nothing(study), detections=(found.ball(study, "nodule 1", (4.0, 9.0, 21.0)),)
    )
    report = _read(study.files(findings)[0])
    (surface,) = _named(report, "121231")
    points = np.array(surface.GraphicData).reshape(6, 3)
    centre = np.array(findings.detections[0].region.centre_lps_mm)
    assert surface.GraphicType == "ELLIPSOID"
    np.testing.assert_allclose(points.mean(axis=0), centre, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(points - centre, axis=1), 3.0, atol=1e-4)
    (certainty,) = _named(report, "111012")
    assert certainty.MeasuredValueSequence[0].NumericValue == 62.5
    assert surface.ReferencedFrameOfReferenceUID == study.grid.frame_of_reference_uid


def test_a_number_says_how_it_was_measured_and_how_uncertain_it_is(study: Any, found: Any) -> None:
    """TID 300: method and derivation as modifiers, TID 310 for the range, in the same unit."""
    findings = found.everything(study)
    report = _read(study.files(findings)[1])
    diameter, _ = _named(report, "81827009")
    said = {
        (each.RelationshipType, each.ConceptNameCodeSequence[0].CodeMeaning): each
        for each in diameter.ContentSequence
    }
    assert [name for name, _ in said] == ["HAS CONCEPT MOD", "HAS CONCEPT MOD", "HAS PROPERTIES"]
    uncertain = said["HAS PROPERTIES", "+/-, range of measurement uncertainty"]
    (value,) = uncertain.MeasuredValueSequence
    assert (value.NumericValue, value.MeasurementUnitsCodeSequence[0].CodeValue) == (0.5, "mm")
    (certain,) = _named(report, "111012")[:1]
    assert "ContentSequence" not in certain  # who says nothing of it gets no zero
    assert "6 +/- 0.5 mm" in _texts(report)


@pytest.mark.parametrize("present", [True, False])
def test_a_classification_is_a_finding_present_or_absent(
    study: Any, found: Any, present: bool
) -> None:
    findings = replace(found.nothing(study), classifications=(found.opacity(present=present),))
    report = _read(study.files(findings)[0])
    (said,) = _named(report, found.opacity(present=present).finding.value)
    assert said.ConceptCodeSequence[0].CodeMeaning == ("Present" if present else "Absent")
    assert not _named(report, "121071")


def test_a_box_on_an_xray_reaches_half_a_pixel_beyond_its_pixels_centres(
    xray: Any, found: Any
) -> None:
    report = _read(xray.files(found.on_xray(xray))[0])
    (outline,) = _named(report, "111030")
    points = np.array(outline.GraphicData).reshape(-1, 2)
    assert points.min(axis=0).tolist() == [8.0, 5.0]  # column, row; the pixel's centre is at .5
    assert points.max(axis=0).tolist() == [21.0, 10.0]


def test_a_report_names_the_one_it_replaces(study: Any, found: Any) -> None:
    before = PredecessorSR(
        study_instance_uid=study.headers[0].StudyInstanceUID,
        series_instance_uid="1.2.3.1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance_uid="1.2.3.2",
    )
    context = replace(study.context, predecessors=(before,))
    (report,) = encode(found.nothing(study), study.headers, found.job, context)
    (named,) = _read(written(report)).PredecessorDocumentsSequence
    assert named.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == (
        "1.2.3.2"
    )


def test_series_are_numbered_behind_their_source(study: Any, found: Any) -> None:
    seg, report = encode(found.everything(study), study.headers, found.job, study.context)
    assert (seg.SeriesNumber, report.SeriesNumber) == (3001, 3002)


def test_every_input_stands_in_the_evidence(study: Any, found: Any) -> None:
    report = _read(study.files(found.everything(study))[1])
    listed = {
        each.ReferencedSOPInstanceUID
        for series in report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for each in series.ReferencedSOPSequence
    }
    assert {each.SOPInstanceUID for each in study.headers} < listed
    assert len(listed) == len(study.headers) + 1


def test_masks_on_images_that_are_not_there_are_refused(study: Any, found: Any) -> None:
    with pytest.raises(InputError, match="no source image"):
        encode(found.everything(study), study.headers[:-1], found.job, study.context)
    with pytest.raises(InputError, match="no source image"):
        encode(found.nothing(study), [], found.job, study.context)


def test_images_without_optional_attributes_give_results_all_the_same(
    study: Any, found: Any
) -> None:
    bare = copy.deepcopy(study.headers)
    for header in bare:
        for keyword in ("SliceThickness", "AccessionNumber", "StudyID", "PatientSex", "StudyTime"):
            delattr(header, keyword)
    findings = found.everything(study)
    results = encode(findings, bare, found.job, study.context)
    check([written(each) for each in results], findings, bare)
    assert results[0].AccessionNumber == ""
