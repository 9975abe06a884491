"""Each rule of the gate that other tests don't reach: what breaks it is refused in its words."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from dicomai.dicom.codes import LEFT
from dicomai.findings import Findings, Sphere
from dicomai.results.gate import GateError, check

ALL = ("SEG", "SR", "SC", "KO", "PR", "PM", "RTSTRUCT", "PDF")
SEG = "Segmentation Storage"
SR = "Comprehensive 3D SR Storage"
SR_UID = "1.2.840.10008.5.1.4.1.1.88.34"
SC = "Secondary Capture Image Storage"
KO = "Key Object Selection Document Storage"
PR = "Grayscale Softcopy Presentation State Storage"
PM = "Parametric Map Storage"
RT = "RT Structure Set Storage"
PDF = "Encapsulated PDF Storage"
Change = Callable[[Dataset], None]


def _read(raw: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(raw))


@cache
def _kind(raw: bytes) -> str:
    return str(_read(raw).SOPClassUID.name)


@pytest.fixture(scope="module")
def findings(study: Any, found: Any) -> Findings:
    """Everything, with probabilities."""
    everything: Findings = found.everything(study)
    right, *others = everything.segments
    likely = np.linspace(0.5, 1, int(right.mask.sum()), dtype=np.float32)
    return replace(everything, segments=(replace(right, probability=likely), *others))


@pytest.fixture(scope="module")
def files(study: Any, findings: Findings) -> list[bytes]:
    """True results of every kind."""
    result: list[bytes] = study.files(findings, ALL)
    return result


def _refused(
    files: list[bytes], kind: str, change: Change, findings: Findings, headers: list[Dataset],
    wanted: tuple[str, ...] = ALL,
) -> str:  # fmt: skip
    true = next(raw for raw in files if _kind(raw) == kind)
    broken = _read(true)
    change(broken)
    out = io.BytesIO()
    broken.save_as(out)
    others = [raw for raw in files if raw is not true]
    with pytest.raises(GateError) as refused:
        check([out.getvalue(), *others], findings, headers, wanted=wanted)
    return refused.value.sentence


def _items(holder: Dataset) -> list[Dataset]:
    return [each for item in holder.get("ContentSequence", ()) for each in (item, *_items(item))]


def _named(report: Dataset, code: str) -> list[Dataset]:
    return [
        item
        for item in _items(report)
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == code
    ]


def _group(report: Dataset, tracking_id: str) -> Dataset:
    return next(
        item
        for item in _named(report, "125007")
        if any(each.get("TextValue") == tracking_id for each in item.ContentSequence)
    )


def _drop(report: Dataset, tracking_id: str, code: str) -> None:
    group = _group(report, tracking_id)
    group.ContentSequence = [
        each for each in group.ContentSequence if each.ConceptNameCodeSequence[0].CodeValue != code
    ]


def _give(report: Dataset, to: str, code: str, of: str) -> None:
    items = [
        each
        for each in _group(report, of).ContentSequence
        if each.ConceptNameCodeSequence[0].CodeValue == code
    ]
    _group(report, to).ContentSequence.append(copy.deepcopy(items[-1]))


def _point(report: Dataset, tracking_id: str) -> Dataset:
    return next(
        each for each in _group(report, tracking_id).ContentSequence if each.ValueType == "SCOORD"
    )


def _shown_at(tracking_id: str, x: float, y: float) -> Change:
    def change(report: Dataset) -> None:
        _point(report, tracking_id).GraphicData = [x, y]

    return change


def _shown_on(tracking_id: str, number: int) -> Change:
    def change(report: Dataset) -> None:
        image = _point(report, tracking_id).ContentSequence[0].ReferencedSOPSequence[0]
        image.ReferencedSOPInstanceUID = f"1.2.826.0.1.3680043.10.99.1.{number}"

    return change


def _shown_nowhere(report: Dataset) -> None:
    group = _group(report, "right lung")
    group.ContentSequence = [each for each in group.ContentSequence if each.ValueType != "SCOORD"]


def _another_title(report: Dataset) -> None:
    report.ConceptNameCodeSequence[0].CodeValue = "126001"


def _colour_only(sc: Dataset) -> None:
    sc.PixelData = bytes((230, 60, 60)) * (sc.Rows * sc.Columns)


def _another_class(dataset: Dataset) -> None:
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"


def _frames_elsewhere(rt: Dataset) -> None:
    rt.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"


def _more_points(rt: Dataset) -> None:
    rt.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 99


def _no_slice(rt: Dataset) -> None:
    contour = rt.ROIContourSequence[0].ContourSequence[0]
    contour.ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _source_uid(ko: Dataset) -> None:
    uid = ko.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    name = uid.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    ko.SOPInstanceUID = ko.file_meta.MediaStorageSOPInstanceUID = name


def _no_uid(sc: Dataset) -> None:
    sc["SeriesInstanceUID"]._value = "2.25.x"


def _leading_zero(sc: Dataset) -> None:
    sc["SeriesInstanceUID"]._value = "2.25.0123"


def _lost_character(sr: Dataset) -> None:
    sr.SpecificCharacterSet = "ISO_IR 192"
    _named(sr, "121106")[0].TextValue += " \ufffd"


def _another_template(dataset: Dataset) -> None:
    dataset.ContentTemplateSequence[0].TemplateIdentifier = "1"


def _fewer_keys(ko: Dataset) -> None:
    gone = ko.ContentSequence.pop()
    uid = gone.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    series = ko.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence = [
        each for each in series.ReferencedSOPSequence if each.ReferencedSOPInstanceUID != uid
    ]


def _half_a_map(pm: Dataset) -> None:
    pm.FloatPixelData = pm.FloatPixelData[: len(pm.FloatPixelData) // 2]


def _slice_twice(pm: Dataset) -> None:
    frames = pm.PerFrameFunctionalGroupsSequence
    frames[1].PlanePositionSequence = frames[0].PlanePositionSequence
    frames[1].DerivationImageSequence = frames[0].DerivationImageSequence
    size = pm.Rows * pm.Columns * 4
    pm.FloatPixelData = pm.FloatPixelData[:size] * 2 + pm.FloatPixelData[2 * size :]


def _meaningless(pm: Dataset) -> None:
    del pm.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence


def _in_display_units(pr: Dataset) -> None:
    line = pr.GraphicAnnotationSequence[0].GraphicObjectSequence[0]
    line.GraphicAnnotationUnits = "DISPLAY"


def _marked_twice(pr: Dataset) -> None:
    pr.GraphicAnnotationSequence.append(copy.deepcopy(pr.GraphicAnnotationSequence[0]))


def _marked_too(pr: Dataset) -> None:
    item = copy.deepcopy(pr.GraphicAnnotationSequence[0])
    item.GraphicLayer = "FINDING3"  # the lobe that was not found
    pr.GraphicAnnotationSequence.append(item)


def _nothing_listed(pr: Dataset) -> None:
    pr.ReferencedSeriesSequence[0].ReferencedImageSequence = []


def _two_places(sr: Dataset) -> None:
    _give(sr, "nodule 2", "111010", "nodule 1")
    _group(sr, "nodule 2").ContentSequence[-1].ConceptNameCodeSequence[0].CodeValue = "111011"


def _ranges(sr: Dataset) -> list[Dataset]:
    return _named(sr, "371884006")


def _surer(sr: Dataset) -> None:
    _ranges(sr)[0].MeasuredValueSequence[0].NumericValue = "0.4"


def _in_another_unit(sr: Dataset) -> None:
    unit = _ranges(sr)[0].MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]
    unit.CodeValue, unit.CodeMeaning = "cm", "centimeter"


def _doubtful(sr: Dataset) -> None:
    _named(sr, "118565006")[0].ContentSequence = [_ranges(sr)[0]]


def _simply(sr: Dataset) -> None:
    number = _named(sr, "81827009")[0]
    number.ContentSequence = [each for each in number.ContentSequence if each.ValueType != "NUM"]


def _another_length(pdf: Dataset) -> None:
    pdf.EncapsulatedDocumentLength -= 10


def _no_image(sc: Dataset) -> None:
    sc.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _someone_verified(sr: Dataset) -> None:
    sr.VerifyingObserverSequence = [Dataset()]


def _checked(sr: Dataset) -> None:
    for item in _items(sr):
        if "UNVERIFIED" in str(item.get("TextValue", "")):
            item.TextValue = "Fine."


def _no_digest(sr: Dataset) -> None:
    for item in _named(sr, "111002"):
        item.TextValue = "none"


def _two_names(sr: Dataset) -> None:
    _give(sr, "right lung", "112039", "left lung")


def _all_said_to_be_mr(sr: Dataset) -> None:
    for item in _items(sr):
        for image in item.get("ReferencedSOPSequence", ()):
            image.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


def _two_images_in_the_library(sr: Dataset) -> None:
    library = _named(sr, "126200")[0]
    library.ContentSequence = library.ContentSequence[:3]


def _instead(study: str | None = None, **said: str) -> Change:
    """Name a report that this one replaces."""

    def change(sr: Dataset) -> None:
        before = copy.deepcopy(sr.CurrentRequestedProcedureEvidenceSequence[0])
        before.StudyInstanceUID = study or before.StudyInstanceUID
        series = before.ReferencedSeriesSequence[0]
        series.ReferencedSOPSequence = series.ReferencedSOPSequence[:1]
        for keyword, value in said.items():
            setattr(series.ReferencedSOPSequence[0], keyword, value)
        before.ReferencedSeriesSequence = [series]
        sr.PredecessorDocumentsSequence = [before]

    return change


def _malignant(sr: Dataset) -> None:
    group = _group(sr, "nodule 1")
    more = copy.deepcopy(_named(group, "121071")[0])
    more.ConceptNameCodeSequence[0].CodeValue = "86049000"
    more.ConceptNameCodeSequence[0].CodeMeaning = "Malignant neoplasm"
    group.ContentSequence.append(more)


def _outlined_as(graphic_type: str, tracking_id: str) -> Change:
    def change(sr: Dataset) -> None:
        for each in _named(_group(sr, tracking_id), "121231"):
            each.GraphicType = graphic_type

    return change


def _reordered(tracking_id: str, *order: int) -> Change:
    """Give the points of an outline in another order."""

    def change(sr: Dataset) -> None:
        outline = _named(_group(sr, tracking_id), "121231")[0]
        points = np.array(outline.GraphicData).reshape(-1, 3)
        outline.GraphicData = points[list(order)].ravel().tolist()

    return change


def _listed_elsewhere(rt: Dataset) -> None:
    rt.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3"


def _of_another_study(rt: Dataset) -> None:
    (listed,) = rt.ReferencedFrameOfReferenceSequence
    listed.RTReferencedStudySequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _one_observed_twice(rt: Dataset) -> None:
    rt.RTROIObservationsSequence[0].ReferencedROINumber = 2


def _a_tumour(rt: Dataset) -> None:
    rt.RTROIObservationsSequence[0].RTROIInterpretedType = "GTV"


def _tracked_as_another(rt: Dataset) -> None:
    rt.StructureSetROISequence[0].ROIDescription = "left lung"


def _anatomy(pm: Dataset) -> Dataset:
    anatomy: Dataset = pm.SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0]
    return anatomy


def _of_the_left(pm: Dataset) -> None:
    _anatomy(pm).FrameLaterality = "L"


def _of_the_liver(pm: Dataset) -> None:
    _anatomy(pm).AnatomicRegionSequence[0].CodeMeaning = "Liver"


def _hung_from_behind(sc: Dataset) -> None:
    sc.PatientOrientation = ["R", "P"]


def _of_another_slice(sc: Dataset) -> None:
    sc.SourceImageSequence = sc.SourceImageSequence[:1]
    sc.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.826.0.1.3680043.10.99.1.1"


def _thicker(seg: Dataset) -> None:
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = "99"


def _larger_frames(seg: Dataset) -> None:
    seg.Rows += 1


def _from_elsewhere(seg: Dataset) -> None:
    seg.SourceImageSequence[0].ReferencedSOPInstanceUID = "2.25.1.1"


def _more_frames(seg: Dataset) -> None:
    seg.NumberOfFrames += 1


def _nowhere(seg: Dataset) -> None:
    del seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


def _no_segment(seg: Dataset) -> None:
    del seg.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence


def _frame_twice(seg: Dataset) -> None:
    frames = seg.PerFrameFunctionalGroupsSequence
    for keyword in (
        "PlanePositionSequence",
        "SegmentIdentificationSequence",
        "DerivationImageSequence",
    ):
        frames[1][keyword] = frames[0][keyword]


def _of_no_class(seg: Dataset) -> None:
    del seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPClassUID


def _in_its_frames(old: bytes, new: bytes) -> Change:
    """Change the first such bytes in what frames say."""
    return _in_the_bytes("PerFrameFunctionalGroupsSequence", old, new)


def _in_the_bytes(keyword: str, old: bytes, new: bytes) -> Change:
    """Change the first such bytes of a sequence."""

    def change(seg: Dataset) -> None:
        said = seg.get_item(keyword)
        assert said.is_raw
        assert len(old) == len(new)
        assert old in said.value
        seg[said.tag] = RawDataElement(
            said.tag, "SQ", len(said.value), said.value.replace(old, new, 1), 0, False, True
        )

    return change


def _first(seg: Dataset) -> Dataset:
    """Return what the first frame says of itself."""
    frame: Dataset = seg.PerFrameFunctionalGroupsSequence[0]
    return frame


def _image(seg: Dataset) -> Dataset:
    """Return what the first frame says of its image."""
    image: Dataset = _first(seg).DerivationImageSequence[0].SourceImageSequence[0]
    return image


def _on_a_plane(seg: Dataset) -> None:
    place = _first(seg).PlanePositionSequence[0]
    place.ImagePositionPatient = place.ImagePositionPatient[:2]


def _in_two_places(seg: Dataset) -> None:
    _first(seg).PlanePositionSequence.append(Dataset())


def _from_one_image_twice(seg: Dataset) -> None:
    _first(seg).DerivationImageSequence[0].SourceImageSequence.append(_image(seg))


def _spaced_by_nothing(seg: Dataset) -> None:
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures["SpacingBetweenSlices"] = DataElement(
        "SpacingBetweenSlices", "DS", "nan", validation_mode=0
    )


def _of_two_segments(seg: Dataset) -> None:
    _first(seg).SegmentIdentificationSequence[0].ReferencedSegmentNumber = [1, 0]


def _of_two_frames(seg: Dataset) -> None:
    _image(seg).ReferencedFrameNumber = [1, 2]


def _of_frame_0(seg: Dataset) -> None:
    _image(seg).ReferencedFrameNumber = 0


def _image_of_another_class(seg: Dataset) -> None:
    _image(seg).ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


def _image_of_no_class(seg: Dataset) -> None:
    del _image(seg).ReferencedSOPClassUID


def _for_no_purpose(seg: Dataset) -> None:
    del _image(seg).PurposeOfReferenceCodeSequence


def _for_an_unnamed_purpose(seg: Dataset) -> None:
    _image(seg).PurposeOfReferenceCodeSequence[0].CodeMeaning = ""


def _derived_somehow(seg: Dataset) -> None:
    del _first(seg).DerivationImageSequence[0].DerivationCodeSequence


def _without_content(seg: Dataset) -> None:
    del _first(seg).FrameContentSequence


def _in_one_dimension(seg: Dataset) -> None:
    _first(seg).FrameContentSequence[0].DimensionIndexValues = 1


def _indexed_as_another_segment(seg: Dataset) -> None:
    _first(seg).FrameContentSequence[0].DimensionIndexValues[0] = 2


def _indexed_out_of_order(seg: Dataset) -> None:
    one, other = (each.FrameContentSequence[0] for each in seg.PerFrameFunctionalGroupsSequence[:2])
    one.DimensionIndexValues, other.DimensionIndexValues = (
        other.DimensionIndexValues,
        one.DimensionIndexValues,
    )


def _a_slice_not_listed(result: Dataset) -> None:
    uid = _image(result).ReferencedSOPInstanceUID
    series = result.ReferencedSeriesSequence[0]
    series.ReferencedInstanceSequence = [
        each for each in series.ReferencedInstanceSequence if each.ReferencedSOPInstanceUID != uid
    ]


def _no_slice_listed(result: Dataset) -> None:
    del result.ReferencedSeriesSequence[0].ReferencedInstanceSequence


def _no_evidence_listed(report: Dataset) -> None:
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    series.append(Dataset())


def _too_many_pixels(seg: Dataset) -> None:
    seg.PixelData += bytes(64)


def _no_value(pm: Dataset) -> None:
    pm.FloatPixelData = np.array([np.nan], "<f4").tobytes() + pm.FloatPixelData[4:]


def _centred_nowhere(sr: Dataset) -> None:
    point = next(
        each for each in _group(sr, "nodule 1").ContentSequence if each.ValueType == "SCOORD3D"
    )
    point.GraphicData = [float("nan")] * 3


def _underlined_in_latin(sr: Dataset) -> None:
    sr.SpecificCharacterSet = "ISO_IR 192"
    _named(sr, "121106")[0].TextValue += " \xfc"
    number = _named(sr, "81827009")[0].MeasuredValueSequence[0]
    underlined = f"0_{number.NumericValue}"  # the same number, to Python
    number["NumericValue"] = DataElement("NumericValue", "DS", underlined, validation_mode=0)


def _of_no_algorithm(seg: Dataset) -> None:
    del seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName


def _in_no_character_set(seg: Dataset) -> None:
    if "SpecificCharacterSet" in seg:
        del seg.SpecificCharacterSet
    seg.ContentDescription = "caf\xe9"


def _within_no_character_set(seg: Dataset) -> None:
    seg.SpecificCharacterSet = "ISO_IR 6"
    seg.SegmentSequence[0].SegmentDescription = "caf\xe9"


def _unknown_segment(seg: Dataset) -> None:
    seg.SegmentSequence[0].TrackingID = "liver"


def _a_segment_less(seg: Dataset) -> None:
    del seg.SegmentSequence[2]


def _another_type(seg: Dataset) -> None:
    seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Liver"


def _no_parameters(seg: Dataset) -> None:
    seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters = ""


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (SC, _colour_only, "it is blank"),
        (SC, _another_class, "names another class"),
        (SC, _no_image, "which the model did not see"),
        (SC, _no_uid, "is no UID"),
        (SC, _leading_zero, "is no UID"),
        (RT, _frames_elsewhere, "its frame of reference is not"),
        (RT, _more_points, "another number of points"),
        (RT, _no_slice, "lies on no slice"),
        (KO, _source_uid, "SOP Instance UID of a source image"),
        (KO, _another_template, "its root is not TID 2010"),
        (KO, _fewer_keys, "do not show all that was found"),
        (PM, _half_a_map, "does not hold the frames"),
        (PM, _slice_twice, "each slice once"),
        (PM, _meaningless, "does not say what its values are"),
        (PR, _in_display_units, "not in pixels of the images"),
        (PR, _marked_twice, "marks one thing twice"),
        (PR, _marked_too, "that lies elsewhere"),
        (PR, _nothing_listed, "it refers to no image"),
        (SR, _two_places, "has more places than one"),
        (PDF, _another_length, "another length than it says"),
        (SR, _lost_character, "can't be read back"),
        (SR, _someone_verified, "someone who verified it"),
        (SR, _another_template, "its root is not TID 1500"),
        (SR, _checked, "that no one has checked it"),
        (SR, _no_digest, "lacks the digest"),
        (SR, _two_names, "no tracking identifier of its own"),
        (SR, lambda sr: _drop(sr, "right lung", "112040"), "has no tracking UID"),
        (SR, lambda sr: _drop(sr, "right lung", "121191"), "does not refer to its segment"),
        (SR, lambda sr: _drop(sr, "right lung", "118565006"), "lacks its Volume"),
        (SR, lambda sr: _give(sr, "nodule 2", "121191", "nodule 1"), "segment that is not there"),
        (SR, lambda sr: _give(sr, "right lung", "111010", "nodule 1"), "place that was not found"),
        (SR, lambda sr: _give(sr, "nodule 1", "121231", "nodule 2"), "a segment and an outline"),
        (SR, _shown_nowhere, "not one point on an image"),
        (SR, lambda sr: _give(sr, "right lung", "111010", "right lung"), "not one point on an"),
        (SR, _shown_at("right lung", 20.5, 9.5), 'the point of "right lung" lies elsewhere'),
        (SR, _shown_on("right lung", 9), 'the point of "right lung" lies elsewhere'),
        (SR, _shown_at("nodule 2", 24.5, 12.5), 'the point of "nodule 2" lies elsewhere'),
        (SR, _shown_on("nodule 2", 6), 'the point of "nodule 2" lies elsewhere'),
        (SR, _another_title, "its title is"),
        (SR, _surer, 'Diameter of "nodule 1" is not what was measured'),
        (SR, _in_another_unit, 'Diameter of "nodule 1" is not what was measured'),
        (SR, _doubtful, 'Volume of "right lung" is not what was measured'),
        (SR, _simply, 'Diameter of "nodule 1" is not what was measured'),
        (SR, _all_said_to_be_mr, "it says another class of"),
        (SR, _two_images_in_the_library, "its image library is not"),
        (
            SR,
            _instead("1.2.3", ReferencedSOPClassUID=SR_UID, ReferencedSOPInstanceUID="1.2.3.4"),
            "1.2.3.4 is no report that it can replace",
        ),
        (SR, _instead(ReferencedSOPClassUID=SR_UID), "is no report that it can replace"),
        (SR, _instead(ReferencedSOPInstanceUID="1.2.3.4"), "is no report that it can replace"),
        (SR, _malignant, '"nodule 1" says Malignant neoplasm, which was not found'),
        (SR, _outlined_as("POLYLINE", "nodule 2"), 'the outline of "nodule 2" lies elsewhere'),
        (SR, _reordered("nodule 2", 0, 2, 1, 4, 3, 5), 'the outline of "nodule 2" lies elsewhere'),
        (SR, _outlined_as("POLYLINE", "nodule 3"), 'the outline of "nodule 3" lies elsewhere'),
        (SR, _reordered("nodule 3", 0, 2, 1, 3, 0), 'the outline of "nodule 3" lies elsewhere'),
        (RT, _listed_elsewhere, "said to lie in another frame of reference"),
        (RT, _of_another_study, "said to be of another study"),
        (RT, _one_observed_twice, "not one of each region"),
        (RT, _a_tumour, "said to have been interpreted"),
        (RT, _tracked_as_another, "is tracked as something else"),
        (PM, _of_the_left, "not said to be of Right lung"),
        (PM, _of_the_liver, "not said to be of Right lung"),
        (SC, _hung_from_behind, "it hangs otherwise than its plane"),
        (SC, _of_another_slice, "which it shows"),
        (SEG, _thicker, "its slices are 3.0 mm thick, and it says 99.0"),
        (SEG, lambda seg: setattr(seg, "SegmentsOverlap", "NO"), "share voxels"),
        (SEG, lambda seg: setattr(seg, "ContentDate", "19000101"), "ContentDate is not when it"),
        (RT, lambda rt: setattr(rt, "StructureSetTime", "000000"), "StructureSetDate is not when"),
        (KO, lambda ko: setattr(ko, "TimezoneOffsetFromUTC", "-1100"), "of the other results"),
        (SEG, _larger_frames, "another number of rows or columns"),
        (SEG, _from_elsewhere, "refers to 2.25.1.1, which the model did not see"),
        (SEG, _more_frames, "does not hold the"),
        (SEG, _nowhere, "does not say where it lies"),
        (SEG, _no_segment, "does not say which segment"),
        (SEG, _frame_twice, "has two frames"),
        (SEG, _in_its_frames(b"-61.25", b"nobody"), "ImagePositionPatient is written in no numb"),
        (SEG, _in_its_frames(b"-61.25", b"   nan"), "ImagePositionPatient is written in no numb"),
        (SEG, _in_its_frames(b"-48.5\\-179.0", b"-4_8.5\\-179."), "is written in no numbers"),
        (SEG, _in_two_places, "a functional group has 2 items"),
        (SEG, _from_one_image_twice, "names another image than lies there"),
        (SEG, _on_a_plane, "says where it lies in no numbers"),
        (SEG, _spaced_by_nothing, "SpacingBetweenSlices is written in no numbers"),
        (SEG, _in_its_frames(b"\x24\x91SQ", b"\x24\x91OB"), "DerivationImageSequence is no SQ"),
        (SEG, _in_its_frames(b"\x12\x21SQ", b"\x12\x21OW"), "SourceImageSequence is no SQ"),
        (SEG, _in_its_frames(b"\x13\x91SQ", b"\x13\x91OB"), "PlanePositionSequence is no SQ"),
        (SEG, _in_its_frames(b"\x32\0DS", b"\x32\0LO"), "ImagePositionPatient is no DS"),
        (SEG, _in_its_frames(b"\x32\0DS", b"\x32\0FD"), "ImagePositionPatient is no whole FD"),
        (SEG, _in_its_frames(b"\x55\x11UI", b"\x55\x11LO"), "ReferencedSOPInstanceUID is no UI"),
        (SEG, _in_its_frames(b"\x55\x11UI", b"\x55\x11EI"), "no value representation b'EI'"),
        (SEG, _in_its_frames(b"\x0b\0US", b"\x0b\0CS"), "ReferencedSegmentNumber is no US"),
        (SEG, _in_its_frames(b"\x0b\0US", b"\x0b\0FL"), "ReferencedSegmentNumber is no whole FL"),
        (SEG, _in_its_frames(b"\x50\x11UI", b"\x55\x11UI"), "or there twice"),
        (
            SEG,
            _in_the_bytes("ReferencedSeriesSequence", b"\x4a\x11SQ", b"\x4a\x11OB"),
            "ReferencedInstanceSequence is no SQ",
        ),
        (SEG, _of_two_segments, "ReferencedSegmentNumber has not one value"),
        (SEG, _of_two_frames, "it can't be read"),
        (SEG, _of_frame_0, "names no frame of its image"),
        (SEG, _of_no_algorithm, "it can't be read"),
        (SR, _underlined_in_latin, "NumericValue is written in no numbers"),
        (SEG, _image_of_another_class, "says another class of its image"),
        (SEG, _image_of_no_class, "says another class of its image"),
        (SEG, _for_no_purpose, "what its image was for"),
        (SEG, _for_an_unnamed_purpose, "what its image was for"),
        (SEG, _derived_somehow, "how it was derived"),
        (SEG, _without_content, "lacks its place in the dimensions"),
        (PM, _without_content, "lacks its place in the dimensions"),
        (SEG, _in_one_dimension, "lacks its place in the dimensions"),
        (SEG, _indexed_as_another_segment, "another place in the dimensions"),
        (SEG, _indexed_out_of_order, "another place in the dimensions"),
        (PM, _indexed_out_of_order, "another place in the dimensions"),
        (SEG, _a_slice_not_listed, "its Referenced Series Sequence lacks"),
        (PM, _a_slice_not_listed, "its Referenced Series Sequence lacks"),
        (SEG, _no_slice_listed, "ReferencedInstanceSequence is empty"),
        (PM, _no_slice_listed, "ReferencedInstanceSequence is empty"),
        (SR, _no_evidence_listed, "ReferencedSOPSequence is empty"),
        (SEG, _too_many_pixels, "does not hold the"),
        (PM, _no_value, "its values differ from the findings"),
        (SR, _centred_nowhere, 'the centre of "nodule 1" lies elsewhere'),
        (SEG, _in_no_character_set, "ContentDescription can't be read back"),
        (SEG, _within_no_character_set, "SegmentDescription can't be read back"),
        (SEG, _of_no_class, "another study, series or class"),
        (SEG, _in_its_frames(b"UI\x1a\0", b"UI\x1a\x7f"), "an element is longer than its item"),
        (SEG, _unknown_segment, "its segments are"),
        (SEG, _a_segment_less, "belong to nothing found"),
        (SEG, _another_type, "is not coded as"),
        (SEG, _no_parameters, "lacks the digest of its package"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_its_words(
    study: Any, findings: Findings, files: list[bytes], kind: str, change: Change, words: str
) -> None:
    assert words in _refused(files, kind, change, findings, study.headers)


@pytest.mark.parametrize("behind", [b"\0\0", bytes(8), b"\0\0\xff"])
def test_what_stands_behind_the_last_element_is_refused(
    study: Any, findings: Findings, files: list[bytes], behind: bytes
) -> None:
    seg = next(raw for raw in files if _kind(raw) == SEG)
    others = [raw for raw in files if raw is not seg]
    with pytest.raises(GateError) as refused:
        check([seg + behind, *others], findings, study.headers, wanted=ALL)
    assert refused.value.rule == "readable"


@pytest.fixture(scope="module")
def of_a_side(study: Any, findings: Findings) -> tuple[list[Dataset], list[bytes]]:
    """Images of the patient's left, and their results."""
    headers = copy.deepcopy(study.headers)
    for each in headers:
        each.BodyPartExamined, each.Laterality, each.PatientAge = "LUNG", "L", "066Y"
        other = Dataset()
        other.PatientID = "OLD-1"
        each.OtherPatientIDsSequence = [other]
    return headers, replace(study, headers=headers).files(findings, ALL)


def _known_by_another_id(result: Dataset) -> None:
    result.OtherPatientIDsSequence[0].PatientID = "STRANGER"


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (SEG, lambda each: setattr(each, "Laterality", "R"), "Laterality differs"),
        (RT, lambda each: delattr(each, "Laterality"), "Laterality differs"),
        (PM, lambda each: setattr(each, "Laterality", "L"), "Laterality differs"),
        (SEG, lambda each: setattr(each, "BodyPartExamined", "KNEE"), "BodyPartExamined differs"),
        (SR, lambda each: setattr(each, "BodyPartExamined", "LUNG"), "BodyPartExamined differs"),
        (SEG, lambda each: setattr(each, "PatientAge", "006Y"), "PatientAge differs"),
        (SC, _known_by_another_id, "it knows the patient as STRANGER"),
    ],
)
def test_side_and_patient_are_those_of_the_images(
    findings: Findings,
    of_a_side: tuple[list[Dataset], list[bytes]],
    kind: str,
    change: Change,
    words: str,
) -> None:
    headers, files = of_a_side
    assert words in _refused(files, kind, change, findings, headers)


def test_a_map_less_is_refused(study: Any, findings: Findings, files: list[bytes]) -> None:
    right, left, empty = findings.segments
    likely = replace(left, probability=np.full(int(left.mask.sum()), 0.5, np.float32))
    more = replace(findings, segments=(right, likely, empty))
    with pytest.raises(GateError, match="there are 2 maps to be made"):
        check(files, more, study.headers, wanted=ALL)


def test_findings_and_sources_that_do_not_fit_are_refused(
    study: Any, findings: Findings, files: list[bytes]
) -> None:
    def said(these: Findings, headers: list[Dataset]) -> str:
        with pytest.raises(GateError) as refused:
            check(files, these, headers, wanted=ALL)
        return refused.value.sentence

    short = replace(study.grid, sop_instance_uids=study.grid.sop_instance_uids[:-1])
    assert "do not name the image of every slice" in said(
        replace(findings, where=short), study.headers
    )
    strange = replace(study.grid, sop_instance_uids=("1.2.3", *study.grid.sop_instance_uids[1:]))
    assert "which is no source image" in said(replace(findings, where=strange), study.headers)
    nodule = replace(findings.detections[1], mask=findings.detections[0].mask)
    more = replace(findings, detections=(findings.detections[0], nodule, findings.detections[2]))
    assert "its segments are" in said(more, study.headers)
    lossy, larger, elsewhere = (copy.deepcopy(study.headers) for _ in range(3))
    lossy[3].LossyImageCompression = "01"
    assert "compressed with loss" in said(findings, lossy)
    larger[3].Rows += 1
    assert "rows or columns than the masks" in said(findings, larger)
    elsewhere[3].FrameOfReferenceUID = "1.2.3"
    assert "every source image" in said(findings, elsewhere)


def test_a_report_that_says_more_than_nothing_is_refused(study: Any, found: Any) -> None:
    nothing = found.nothing(study)

    def change(report: Dataset) -> None:
        _named(report, "121071")[0].ConceptCodeSequence[0].CodeValue = LEFT.value

    said = _refused(study.files(nothing), SR, change, nothing, study.headers, ("SEG", "SR"))
    assert "it does not say just that" in said


def test_a_report_of_nothing_names_the_model_that_looked(study: Any, found: Any) -> None:
    nothing = found.nothing(study)
    files = study.files(nothing)
    said = _refused(files, SR, _no_digest, nothing, study.headers, ("SEG", "SR"))
    assert "lacks the digest" in said


def test_a_picture_of_a_projection_hangs_as_that_does(xray: Any, found: Any) -> None:
    boxed = found.on_xray(xray)
    files = xray.made_anew(boxed, ALL)
    said = _refused(files, SC, _hung_from_behind, boxed, xray.headers)
    assert "it says that it hangs otherwise than its image" in said


def test_places_on_a_projection_are_held_against_it(xray: Any, found: Any) -> None:
    boxed = found.on_xray(xray)
    files = xray.files(boxed)

    def said(change: Change, these: Findings = boxed) -> str:
        return _refused(files, SR, change, these, xray.headers, ("SEG", "SR"))

    def no_outline(report: Dataset) -> None:
        _drop(report, "nodule 1", "111030")

    def another_image(report: Dataset) -> None:
        image = _named(report, "111030")[0].ContentSequence[0].ReferencedSOPSequence[0]
        image.ReferencedSOPInstanceUID = "1.2.826.0.1.3680043.10.99.1.2"

    def nowhere(report: Dataset) -> None:
        outline = _named(report, "111030")[0]
        outline.GraphicData = [float("nan")] * len(outline.GraphicData)

    def a_diagonal(report: Dataset) -> None:
        outline = _named(report, "111030")[0]
        left, top, _, _, right, bottom = outline.GraphicData[:6]
        outline.GraphicData = [left, top, right, bottom]

    def no_line(report: Dataset) -> None:
        _named(report, "111030")[0].GraphicType = "MULTIPOINT"

    assert "no outline, or several" in said(no_outline)
    assert "a box lies elsewhere" in said(a_diagonal)
    assert "a box lies elsewhere" in said(no_line)
    assert "a box lies elsewhere" in said(nowhere)
    two = replace(boxed, inputs=(*boxed.inputs, replace(boxed.inputs[0],
                  sop_instance_uid="1.2.826.0.1.3680043.10.99.1.2")))  # fmt: skip
    files = xray.files(two)
    assert "another image than the one" in said(another_image, two)
    ball = replace(
        boxed.detections[0], region=Sphere(centre_lps_mm=(0.0, 0.0, 0.0), diameter_mm=3.0)
    )
    assert "no place in a projection image" in said(
        lambda _: None, replace(two, detections=(ball,))
    )
