"""What modalities write wrong does no harm in a result, and never silently."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

from dicomai.dicom.charset import UnreadableText
from dicomai.dicom.codes import LEFT, RIGHT
from dicomai.dicom.dates import utc_offset
from dicomai.dicom.identity import identity_of
from dicomai.errors import InputError
from dicomai.results.encode import encode, written
from dicomai.results.gate import GateError, check, check_with_dciodvfy
from dicomai.routing.route import ResultObject


@pytest.fixture(scope="module")
def study(study_lying: Any) -> Any:
    """A CT of three slices: its headers are what matters."""
    return study_lying("axial", (3, 17, 13))


def _results(study: Any, found: Any, **values: object) -> tuple[Dataset, Dataset]:
    """Return SEG and SR, read back after the gate, of a source whose headers say this."""
    headers = copy.deepcopy(study.headers)
    for header in headers:
        for keyword, value in values.items():
            tag = tag_for_keyword(keyword)
            assert tag is not None
            header[keyword] = DataElement(tag, dictionary_VR(tag), value, validation_mode=0)
    findings = found.little(study)
    files = [written(each) for each in encode(findings, headers, found.job, study.context)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about what the source spells wrong
        check(files, findings, headers)
        seg, report = (pydicom.dcmread(io.BytesIO(raw)) for raw in files)
    return seg, report


def _words(report: Dataset) -> str:
    return "\n".join(item.TextValue for item in report.ContentSequence[-1].ContentSequence)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "00000000"),
        ("PatientBirthDate", "19601341"),
        ("PatientBirthDate", "1960.01.31"),
        ("StudyDate", "20230231"),
        ("StudyTime", "250000"),
        ("StudyTime", "12:30:10"),
        ("StudyDescription", "two\nlines"),
        ("ReferringPhysicianName", "A" * 65),
        ("PatientWeight", "71.2345678901234567"),
    ],
)
def test_what_breaks_its_representation_is_left_out_and_told(
    study: Any, found: Any, keyword: str, value: str
) -> None:
    seg, report = _results(study, found, **{keyword: value})
    assert not seg.get(keyword)
    assert not report.get(keyword)
    assert f"{keyword} of" in _words(report)


@pytest.mark.parametrize("born", ["17990101", "00010101", "19000101"])
def test_a_strange_but_possible_birth_date_stays(study: Any, found: Any, born: str) -> None:
    assert [each.PatientBirthDate for each in _results(study, found, PatientBirthDate=born)] == [
        born
    ] * 2


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "A" * 200),
        ("PatientName", "Muster\n^Erika"),
        ("PatientID", "7" * 90),
        ("StudyID", "long study id of 40 characters, and more"),
        ("AccessionNumber", "9" * 30),
    ],
)
@pytest.mark.filterwarnings("ignore:.*length:UserWarning")  # pydicom's, rightly
@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")
def test_identity_stays_as_it_stands_in_the_images_and_is_told(
    study: Any, found: Any, keyword: str, value: str
) -> None:
    seg, report = _results(study, found, **{keyword: value})
    assert [str(seg[keyword].value), str(report[keyword].value)] == [value, value]
    assert f"{keyword} of" in _words(report)
    assert value not in _words(report)


@pytest.mark.parametrize(
    ("keyword", "value", "told"),
    [
        ("StudyDescription", b"CT chest\\ abdomen ", ["CT chest", "abdomen"]),
        ("ReferringPhysicianName", b"Arzt^Anna \\ Arzt^Bert", ["Arzt^Anna", "Arzt^Bert"]),
        ("AccessionNumber", b"A1 \\ A2", ["A1", "A2"]),
        ("StudyID", b" \\ ", ""),
    ],
)
def test_spaces_beside_a_backslash_are_no_difference(
    study: Any, found: Any, keyword: str, value: bytes, told: object
) -> None:
    headers = copy.deepcopy(study.headers)
    tag = Tag(keyword)
    for header in headers:
        header._dict[tag] = RawDataElement(
            tag, dictionary_VR(tag), len(value), value, 0, False, True, True
        )
    findings = found.little(study)
    files = [written(each) for each in encode(findings, headers, found.job, study.context)]
    check(files, findings, headers)
    assert [pydicom.dcmread(io.BytesIO(raw))[keyword].value for raw in files] == [told] * 2


@pytest.mark.parametrize("vr", ["SH", "UN", "IS", "CS"])
@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")  # pydicom's, rightly
def test_an_id_is_a_text_whatever_its_file_takes_it_for(study: Any, found: Any, vr: str) -> None:
    headers = copy.deepcopy(study.headers)
    tag = Tag("PatientID")
    for header in headers:
        header._dict[tag] = RawDataElement(tag, vr, 8, b"0001-aa ", 0, False, True, True)
    findings = found.little(study)
    files = [written(each) for each in encode(findings, headers, found.job, study.context)]
    check(files, findings, headers)
    for raw in files:
        read = pydicom.dcmread(io.BytesIO(raw))["PatientID"]
        assert (read.VR, read.value) == ("LO", "0001-aa")


def test_a_character_that_was_lost_before_is_not_passed_on(study: Any, found: Any) -> None:
    lost = "M\ufffdller".encode()
    headers = copy.deepcopy(study.headers)
    for header in headers:
        header.SpecificCharacterSet = "ISO_IR 192"
        tag = Tag("StudyDescription")
        header._dict[tag] = RawDataElement(tag, "LO", len(lost), lost, 0, False, True, True)
    _, report = encode(found.little(study), headers, found.job, study.context)
    assert "StudyDescription" not in report
    assert "StudyDescription of" in _words(report)
    for header in headers:
        tag = Tag("PatientName")
        header._dict[tag] = RawDataElement(tag, "PN", len(lost), lost, 0, False, True, True)
    with pytest.raises(UnreadableText, match=r"PatientName .* Correct it at the modality"):
        encode(found.little(study), headers, found.job, study.context)


def test_an_object_of_several_patient_ids_is_nobodys(study: Any, found: Any) -> None:
    with pytest.raises(InputError, match=r"PatientID of .* has 2 values"):
        _results(study, found, PatientID=["PID-1", "PID-2"])


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "00000000"),
        ("PatientBirthDate", "1960.01.31"),
        ("PatientSex", "f"),
        ("PatientName", "Muster ^ Erika^^="),
    ],
)
def test_results_of_a_patient_without_an_id_are_of_the_same_patient(
    study: Any, found: Any, keyword: str, value: str
) -> None:
    def key(dataset: Dataset) -> str | None:
        said = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
        told = {each: str(dataset.get(each) or "") for each in said}
        return identity_of(told, issuer_of_node="", placeholders=()).key

    source = copy.deepcopy(study.headers[0])
    source.PatientID = ""
    source[keyword] = DataElement(
        Tag(keyword), dictionary_VR(Tag(keyword)), value, validation_mode=0
    )
    results = _results(study, found, PatientID="", **{keyword: value})
    assert [key(each) for each in results] == [key(source)] * 2


def test_undeclared_text_beyond_latin_1_is_no_question_mark(study: Any, found: Any) -> None:
    with pytest.raises(UnreadableText, match="PatientName"):
        _results(study, found, PatientName="山田^太郎")


@pytest.mark.parametrize("number", [b"abc ", b"1.5 ", b"99999999999999"])
def test_a_series_number_that_is_none_gives_the_usual_one(
    study: Any, found: Any, number: bytes
) -> None:
    headers = copy.deepcopy(study.headers)
    tag = Tag("SeriesNumber")
    headers[0]._dict[tag] = RawDataElement(tag, "IS", len(number), number, 0, False, True, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (report,) = encode(found.nothing(study), headers, found.job, study.context)
    assert report.SeriesNumber == 9002


@pytest.mark.parametrize("said", [7.5, 0.0, -3.0, None])
def test_a_seg_says_the_distance_that_the_positions_have(
    study: Any, found: Any, said: float | None
) -> None:
    values = {} if said is None else {"SpacingBetweenSlices": said}
    seg, _ = _results(study, found, **values)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("said", "told"), [("-1", 3.0), ("0", 3.0), ("", 3.0), (["3", "4"], 3.0), ("5", 5.0)]
)
def test_a_slice_has_a_thickness(study: Any, found: Any, said: object, told: float) -> None:
    seg, _ = _results(study, found, SliceThickness=said)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == told


@pytest.mark.parametrize("kind", ["SEG", "SEG:LABELMAP", "PM"])
def test_a_first_slice_of_another_thickness_stands_for_no_other(
    study: Any, found: Any, kind: str
) -> None:
    headers = copy.deepcopy(study.headers)
    headers[0].SliceThickness = 10.0
    findings = found.little(study)
    (segment,) = findings.segments
    likely = np.full(int(segment.mask.sum()), 0.5, np.float32)
    findings = replace(findings, segments=(replace(segment, probability=likely),))
    made = encode(findings, headers, found.job, study.context, ("SEG", kind))
    (result,) = (
        each
        for each in made
        if each.SeriesNumber == {"SEG": 3001, "SEG:LABELMAP": 3006, "PM": 3007}[kind]
    )
    measures = result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == 3.0


def test_loss_is_never_taken_back(study: Any, found: Any) -> None:
    seg, report = _results(
        study,
        found,
        LossyImageCompression="01",
        LossyImageCompressionRatio="10",
        LossyImageCompressionMethod="ISO_15444_1",
    )
    assert (seg.LossyImageCompression, seg.LossyImageCompressionRatio) == ("01", 10)
    assert "compressed with loss" in _words(report)
    seg, report = _results(study, found)
    assert seg.LossyImageCompression == "00"
    assert "compressed with loss" not in _words(report)


def test_what_holds_of_one_image_holds_of_what_was_made_of_all(study: Any, found: Any) -> None:
    """Loss, and who can be known by a picture."""
    headers = copy.deepcopy(study.headers)
    headers[1].LossyImageCompression = "01"
    headers[-1].RecognizableVisualFeatures = headers[-1].BurnedInAnnotation = "YES"
    wanted = ("SEG", "SR", "SC", "PDF")
    source, findings = replace(study, headers=headers), found.little(study)
    made = source.by_modality(findings, wanted)
    seg, picture, page, report = (
        pydicom.dcmread(io.BytesIO(made[kind][0])) for kind in ("SEG", "OT", "DOC", "SR")
    )
    assert (seg.LossyImageCompression, picture.LossyImageCompression) == ("01", "01")
    assert "compressed with loss" in _words(report)
    assert (picture.RecognizableVisualFeatures, page.BurnedInAnnotation) == ("YES", "YES")


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_loss_shows_in_the_transfer_syntax_too(study: Any, found: Any, syntax: str) -> None:
    headers = copy.deepcopy(study.headers)
    for header in headers:
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = syntax
    kinds: tuple[ResultObject, ...] = ("SEG", "SR", "SC")
    source, findings = replace(study, headers=headers), found.little(study)
    made = source.by_modality(findings, kinds)
    for kind in ("SEG", "OT"):
        result = pydicom.dcmread(io.BytesIO(made[kind][0]))
        assert result.LossyImageCompression == "01"
        assert result.LossyImageCompressionMethod == "ISO_10918_1"
    assert "compressed with loss" in _words(pydicom.dcmread(io.BytesIO(made["SR"][0])))
    said = [written(each) for each in encode(findings, study.headers, found.job, study.context)]
    with pytest.raises(GateError, match="its images were compressed with loss"):
        check(said, findings, headers)


@pytest.mark.parametrize(
    ("ratio", "method", "told", "how"),
    [
        (b"10:1", b"jpeg lossy", None, None),
        (b"10\\2.5", b"ISO_10918_1\\ISO_15444_1", [10, 2.5], ["ISO_10918_1", "ISO_15444_1"]),
        (b"10.333333333333333333", b"JPEG COMPRESSION METHOD", 10.3333333333333, None),
        (b"", b"", None, None),
    ],
)
def test_what_is_said_badly_of_loss_is_left_out(
    peer: Callable[[str], str],
    study: Any,
    found: Any,
    ratio: bytes,
    method: bytes,
    told: object,
    how: object,
) -> None:
    headers = copy.deepcopy(study.headers)
    for header in headers:
        header.LossyImageCompression = "01"
        for keyword, value in (
            ("LossyImageCompressionRatio", ratio),
            ("LossyImageCompressionMethod", method),
            ("PositionReferenceIndicator", b"far too long for an LO" * 4),
        ):
            tag = Tag(keyword)
            header._dict[tag] = RawDataElement(
                tag, dictionary_VR(tag), len(value), value, 0, False, True, True
            )
    source = replace(study, headers=headers)
    findings = found.little(source)
    files = source.made_anew(findings, ("SEG", "SR", "SC"))
    check(files, findings, headers, wanted=("SEG", "SR", "SC"))
    check_with_dciodvfy(files, peer("dciodvfy"))
    for result in (pydicom.dcmread(io.BytesIO(raw)) for raw in files[:2]):
        assert result.LossyImageCompression == "01"
        assert result.get("LossyImageCompressionRatio") == told
        assert result.get("LossyImageCompressionMethod") == how


def test_a_scanner_of_several_versions_is_named_by_its_first(study: Any, found: Any) -> None:
    seg, _ = _results(study, found, SoftwareVersions=["VA1", "VB2"])
    assert seg.ContributingEquipmentSequence[0].SoftwareVersions == "VA1"


def test_the_side_goes_with_the_body_part(study: Any, found: Any) -> None:
    seg, _ = _results(study, found, BodyPartExamined="KNEE", Laterality="L")
    assert (seg.BodyPartExamined, seg.Laterality) == ("KNEE", "L")
    seg, _ = _results(study, found, BodyPartExamined="KNEE", Laterality="B")
    assert "Laterality" not in seg
    seg, _ = _results(study, found, BodyPartExamined="BREAST", ImageLaterality="R")
    assert seg.Laterality == "R"
    for part in ("", "Knie, beide Seiten im Stehen"):
        seg, _ = _results(study, found, BodyPartExamined=part, ImageLaterality="R")
        assert "BodyPartExamined" not in seg
        assert seg.Laterality == "R"
    headers = copy.deepcopy(study.headers)
    for number, header in enumerate(headers):
        header.BodyPartExamined, header.Laterality = "KNEE", "LR"[number % 2]
    seg, _ = encode(found.little(study), headers, found.job, study.context)
    assert "Laterality" not in seg


@pytest.mark.parametrize("said", ["L", "R", "B", "U", None])
@pytest.mark.parametrize("segment", ["L", "R", ""])
def test_a_map_is_of_the_side_of_its_segment_else_of_its_images(
    study: Any, found: Any, said: str | None, segment: str
) -> None:
    headers = copy.deepcopy(study.headers)
    for header in headers:
        header.BodyPartExamined, header.Laterality = "KNEE", said
    findings = found.little(study)
    (only,) = findings.segments
    likely = np.full(int(only.mask.sum()), 0.5, np.float32)
    side = {"L": LEFT, "R": RIGHT, "": None}[segment]
    findings = replace(findings, segments=(replace(only, probability=likely, laterality=side),))
    made = encode(findings, headers, found.job, study.context, ("SEG", "PM"))
    check([written(each) for each in made], findings, headers, wanted=("SEG", "PM"))
    (anatomy,) = made[1].SharedFunctionalGroupsSequence[0].FrameAnatomySequence
    assert anatomy.FrameLaterality == (segment or said or "U")


def test_no_side_is_named_where_an_image_says_two(study: Any, found: Any) -> None:
    two = {"BodyPartExamined": "BREAST", "Laterality": "L", "ImageLaterality": "R"}
    seg, report = _results(study, found, **two)
    assert "Laterality" not in seg
    assert "shows the side L (Laterality) and R (Image Laterality)" in _words(report)
    for second in ("L", ""):
        seg, report = _results(study, found, **two | {"ImageLaterality": second})
        assert seg.Laterality == "L"
        assert "shows the side" not in _words(report)


@pytest.mark.parametrize("frames", [[], [Dataset()]])
def test_the_only_frame_of_a_mammogram_says_its_side(
    xray: Any, found: Any, frames: list[Dataset]
) -> None:
    headers = copy.deepcopy(xray.headers)
    anatomy, shared = Dataset(), Dataset()
    anatomy.FrameLaterality = "R"
    shared.FrameAnatomySequence = [anatomy]
    headers[0].Modality, headers[0].BodyPartExamined = "MG", "BREAST"
    headers[0].SharedFunctionalGroupsSequence = [shared]
    headers[0].PerFrameFunctionalGroupsSequence = frames
    source = replace(xray, headers=headers)
    made = source.by_modality(found.on_xray(source), ("SR", "SC"))
    assert pydicom.dcmread(io.BytesIO(made["OT"][0])).Laterality == "R"


def test_the_issuer_goes_with_the_accession_number(study: Any, found: Any) -> None:
    issuer = Dataset()
    issuer.LocalNamespaceEntityID = "RIS"
    _, report = _results(study, found, IssuerOfAccessionNumberSequence=[issuer])
    (request,) = report.ReferencedRequestSequence
    assert request.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "RIS"


def test_a_long_name_takes_no_word_of_unverified_away(study: Any, found: Any) -> None:
    findings = found.nothing(study)
    long = replace(findings, algorithm=replace(findings.algorithm, name="x" * 63))
    (report,) = encode(long, study.headers, found.job, study.context)
    assert report.SeriesDescription.endswith(" - unverified")
    assert len(report.SeriesDescription) == 64


def test_codes_of_our_own_say_whose_they_are(study: Any, xray: Any, found: Any) -> None:
    _, report = _results(study, found)
    (nothing,) = encode(found.nothing(study), study.headers, found.job, study.context)
    for each in (report, nothing):
        (scheme,) = each.CodingSchemeIdentificationSequence
        assert scheme.CodingSchemeDesignator == "99DICOMAI"
    (report,) = encode(found.on_xray(xray), xray.headers, found.job, xray.context)
    assert "CodingSchemeIdentificationSequence" not in report


def test_a_leap_second_does_not_move_the_zone() -> None:
    assert utc_offset("", "Europe/Berlin", "20260720", "235960") == "+0200"


@pytest.mark.parametrize(
    "sop_class",
    [
        "1.2.840.10008.5.1.4.1.1.5",
        "1.3.12.2.1107.5.9.1",
        "1.2.840.10008.5.1.4.1.1.7.2",  # Multi-frame Grayscale Byte Secondary Capture
        "1.2.840.10008.5.1.4.1.1.77.1.5.1",  # Ophthalmic Photography 8 Bit
    ],
)
def test_images_of_a_retired_private_or_multi_frame_class_have_results_that_refer_to_it(
    study: Any, xray: Any, found: Any, sop_class: str
) -> None:
    wanted = ("SEG", "SEG:LABELMAP", "SR", "KO", "PR", "RTSTRUCT")
    for source, findings in (
        (study, found.little(study)),
        (xray, found.on_xray(xray)),
        (xray, _with_a_mask(xray, found)),
    ):
        headers = copy.deepcopy(source.headers)
        for header in headers:
            header.SOPClassUID = sop_class
            header.NumberOfFrames = 1
        seen = tuple(replace(each, sop_class_uid=sop_class) for each in findings.inputs)
        these = replace(findings, inputs=seen)
        made = encode(these, headers, found.job, source.context, wanted)
        check([written(each) for each in made], these, headers, wanted=wanted)
        for each in made:
            assert "UI: CT Image Storage" not in str(each), each.SOPClassUID
            assert "UI: Secondary Capture Image Storage" not in str(each), each.SOPClassUID


def _with_a_mask(xray: Any, found: Any) -> Any:
    mask = np.zeros((1, *xray.grid.shape_ji), bool)
    mask[0, 5:9, 4:20] = True
    (box,) = found.on_xray(xray).detections
    return replace(found.on_xray(xray), detections=(replace(box, mask=mask),))


def test_a_projection_of_several_frames_is_refused_in_words(xray: Any, found: Any) -> None:
    headers = copy.deepcopy(xray.headers)
    headers[0].SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.2"
    headers[0].NumberOfFrames = 3
    with pytest.raises(InputError, match="is a multi-frame object"):
        encode(_with_a_mask(xray, found), headers, found.job, xray.context)


@pytest.mark.parametrize("objects", [("SEG",), ("SEG:LABELMAP",), ("PR",), ("RTSTRUCT",), ("PM",)])
def test_slices_of_two_series_are_refused_in_words(
    study: Any, found: Any, objects: tuple[ResultObject, ...]
) -> None:
    headers = copy.deepcopy(study.headers)
    headers[2].SeriesInstanceUID = "1.2.826.0.1.3680043.10.99.77"
    with pytest.raises(InputError, match=r"slices of 2 series .* by itself"):
        encode(found.little(study), headers, found.job, study.context, objects)


def test_a_projection_has_no_place_whatever_it_says(xray: Any, found: Any) -> None:
    headers = copy.deepcopy(xray.headers)
    headers[0].FrameOfReferenceUID = "1.2.3"
    headers[0].ImagePositionPatient = [0, 0, 0]
    headers[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    findings = _with_a_mask(xray, found)
    made = encode(findings, headers, found.job, xray.context)
    check([written(each) for each in made], findings, headers)
    assert "FrameOfReferenceUID" not in made[0]
    made[0].FrameOfReferenceUID = "1.2.3"
    with pytest.raises(GateError, match="no place in one"):
        check([written(each) for each in made], findings, headers)
