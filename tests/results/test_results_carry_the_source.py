"""Results belong to the patient and study of their source, and their text came through."""

from __future__ import annotations

import copy
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomai.dicom.charset import UndeclaredText, UnreadableText
from dicomai.errors import InputError
from dicomai.results.encode import encode, written
from dicomai.results.gate import check
from dicomai.routing.route import ResultObject


def _read(raw: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(raw))


def _with_name_of(path: Path, headers: list[Dataset]) -> list[Dataset]:
    """Transplant name and character set, as bytes, into headers of a CT, through files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about terms that it doesn't know
        odd = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    moved = []
    for each in headers:
        dataset = copy.deepcopy(each)
        for keyword in ("SpecificCharacterSet", "PatientName"):
            if keyword in dataset:
                del dataset[keyword]
            if keyword in odd:
                dataset[keyword] = odd.get_item(keyword)
        moved.append(dataset)
    return moved


def _plain(name: object) -> str:
    return str(name).replace("\x1b$)A", "").strip().rstrip("=")


def test_patient_and_study_are_those_of_the_source(study: Any, found: Any) -> None:
    for raw in study.files(found.everything(study)):
        result = _read(raw)
        for keyword in (
            "PatientName",
            "PatientID",
            "IssuerOfPatientID",
            "PatientBirthDate",
            "PatientSex",
            "StudyInstanceUID",
            "StudyDate",
            "StudyTime",
            "StudyID",
            "AccessionNumber",
            "ReferringPhysicianName",
            "StudyDescription",
        ):
            assert result[keyword].value == study.headers[0][keyword].value, keyword
        assert result.SeriesInstanceUID != study.headers[0].SeriesInstanceUID


@pytest.mark.parametrize("read_before", [True, False])
def test_several_values_stay_several(study: Any, found: Any, *, read_before: bool) -> None:
    headers = copy.deepcopy(study.headers)
    headers[0].OtherPatientNames = ["Alpha^Anna", "Beta^Berta"]
    headers[0].DeidentificationMethod = ["names", "dates"]
    if not read_before:  # as it comes from a file
        headers[0] = _read(written(_part10(headers[0])))
    seg, report = map(_read, replace(study, headers=headers).made_anew(found.little(study)))
    for result in (seg, report):
        assert [str(each) for each in result.OtherPatientNames] == ["Alpha^Anna", "Beta^Berta"]
        assert list(result.DeidentificationMethod) == ["names", "dates"]


def _part10(header: Dataset) -> Dataset:
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    return header


def test_the_request_is_carried_over(study: Any, found: Any) -> None:
    seg, report = map(_read, study.files(found.everything(study)))
    assert seg.RequestAttributesSequence[0].ScheduledProcedureStepID == "SPS-1"
    (request,) = report.ReferencedRequestSequence
    assert (request.AccessionNumber, request.RequestedProcedureID) == ("ACC-1", "RP-1")
    assert request.StudyInstanceUID == report.StudyInstanceUID


def test_what_a_request_leaves_empty_is_left_out(study: Any, found: Any) -> None:
    headers = copy.deepcopy(study.headers)
    for header in headers:
        header.RequestAttributesSequence[0].RequestedProcedureID = ""
        header.RequestAttributesSequence.append(Dataset())
        header.RequestAttributesSequence[1].ScheduledProcedureStepID = ""
    seg, _ = encode(found.little(study), headers, found.job, study.context)
    (request,) = seg.RequestAttributesSequence
    assert "RequestedProcedureID" not in request
    assert request.ScheduledProcedureStepID == "SPS-1"
    for header in headers:
        del header.RequestAttributesSequence[0].ScheduledProcedureStepID
        del header.RequestAttributesSequence[0].RequestedProcedureDescription
    seg, report = encode(found.little(study), headers, found.job, study.context)
    assert "RequestAttributesSequence" not in seg
    assert report.ReferencedRequestSequence[0].AccessionNumber == "ACC-1"


def test_every_character_set_goes_through_seg_and_sr(
    study_lying: Any, found: Any, sample_data: Path
) -> None:
    expected = json.loads((sample_data / "odd" / "charsets.json").read_text("utf-8"))
    study = study_lying("axial", (3, 17, 13))
    whole = found.everything(study)
    findings = replace(whole, segments=whole.segments[:1], detections=(), classifications=())
    names = {n: truth["patient_name"] for n, truth in expected.items() if truth["patient_name"]}
    assert len(names) >= 30
    wrong = {}
    for name, truth in names.items():
        headers = _with_name_of(sample_data / "odd" / name, study.headers)
        results = encode(findings, headers, found.job, study.context)
        files = [written(each) for each in results]
        check(files, findings, headers)
        read = [_read(raw) for raw in files]
        if [_plain(each.PatientName) for each in read] != [truth.rstrip("=")] * 2:
            wrong[name] = [str(each.PatientName) for each in read]
    assert not wrong


def test_a_result_keeps_the_sources_set_only_while_all_text_fits(
    study: Any, found: Any, sample_data: Path
) -> None:
    latin = _with_name_of(sample_data / "odd" / "charsets" / "chrGerm.dcm", study.headers)
    findings = found.little(study)
    kept = encode(findings, latin, found.job, study.context)
    assert {str(each.SpecificCharacterSet) for each in kept} == {"ISO_IR 100"}
    greek = replace(findings, sought="nodules of ≥ 4 mm")
    seg, report = encode(greek, latin, found.job, study.context)
    assert (seg.SpecificCharacterSet, report.SpecificCharacterSet) == ("ISO_IR 100", "ISO_IR 192")
    read = _read(written(report))
    assert read.PatientName == "Äneas^Rüdiger"
    words = read.ContentSequence[-1].ContentSequence
    assert words[1].TextValue == "Looked for: nodules of ≥ 4 mm"


@pytest.mark.parametrize(
    ("declared", "name"), [("ISO_IR 100", "Müller^Zoë"), ("ISO_IR 144", "Люкс^Ян")]
)
def test_names_are_written_in_the_set_of_each_result(
    study: Any, found: Any, declared: str, name: str
) -> None:
    headers = copy.deepcopy(study.headers)
    for header in headers:
        header.SpecificCharacterSet, header.PatientName = declared, name
        header.RequestAttributesSequence[0].RequestingPhysician = name
    whole = found.little(study)
    chinese = tuple(replace(each, label="肺") for each in whole.segments)
    findings = replace(whole, segments=chinese)
    wanted: tuple[ResultObject, ...] = ("SEG", "SC", "KO", "RTSTRUCT", "PDF", "SR:TEXT", "SR")
    made = encode(findings, headers, found.job, study.context, wanted, study.voxels)
    files = [written(each) for each in made]
    check(files, findings, headers, wanted=wanted)
    read = [_read(raw) for raw in files]
    assert {str(each.SpecificCharacterSet) for each in read} == {declared, "ISO_IR 192"}
    assert {str(each.PatientName) for each in read} == {name}
    asked = [
        each.RequestAttributesSequence[0] for each in read if "RequestAttributesSequence" in each
    ]
    assert {str(each.RequestingPhysician) for each in asked} == {name}


def test_a_character_that_does_not_fit_is_an_error_not_a_question_mark(
    study: Any, found: Any
) -> None:
    (report,) = encode(found.nothing(study), study.headers, found.job, study.context)
    report.SpecificCharacterSet = "ISO_IR 100"
    report.StudyDescription = "≥ 4 mm"
    with pytest.raises(InputError, match=r"character set lacks: StudyDescription: \w"):
        written(report)
    report.StudyDescription = ""
    report.ContentSequence[0].PersonName = "山田^太郎"
    with pytest.raises(InputError, match="character set lacks: PersonName"):
        written(report)


def test_no_traceback_is_in_the_sentence_of_a_character_that_does_not_fit(
    study: Any, found: Any
) -> None:
    wanted: tuple[ResultObject, ...] = ("SEG", "RTSTRUCT", "SR")
    made = encode(found.little(study), study.headers, found.job, study.context, wanted)
    contours = next(each for each in made if each.Modality == "RTSTRUCT")
    contours.SpecificCharacterSet = "ISO_IR 100"
    contours.StructureSetROISequence[0].ROIName = "肺"
    with pytest.raises(InputError, match="character set lacks: ") as refused:
        written(contours)
    assert "\n" not in refused.value.sentence


def test_undeclared_bytes_are_held_until_the_node_says_what_they_are(
    study: Any, found: Any, sample_data: Path
) -> None:
    odd = sample_data / "odd" / "charsets-made" / "undeclared-latin1.dcm"
    findings = found.little(study)
    with pytest.raises(UndeclaredText, match="charset_default") as refused:
        encode(findings, _with_name_of(odd, study.headers), found.job, study.context)
    assert refused.value.kind == "config"
    context = replace(study.context, charset_default="ISO_IR 100")
    headers = _with_name_of(odd, study.headers)
    files = [written(each) for each in encode(findings, headers, found.job, context)]
    assert {str(_read(raw).PatientName) for raw in files} == {"Müller^Jörg"}
    check(files, findings, headers, charset_default="ISO_IR 100")


@pytest.mark.parametrize(
    "name", ["declared-utf8-is-latin1", "unknown-term", "escape-not-declared", "escape-cut"]
)
def test_a_name_that_cannot_be_read_gives_no_result(
    study: Any, found: Any, sample_data: Path, name: str
) -> None:
    odd = sample_data / "odd" / "charsets-made" / f"{name}.dcm"
    headers = _with_name_of(odd, study.headers)
    with pytest.raises(UnreadableText, match=r"PatientName of .* can't be read"):
        encode(found.nothing(study), headers, found.job, study.context)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("misspelt-term", "ISO_IR 192"),
        ("utf8-with-extension", "ISO_IR 192"),
        ("declared-latin1-is-utf8", "ISO_IR 100"),  # false, but as the images show it everywhere
    ],
)
def test_a_declaration_that_is_wrong_but_readable_is_taken_at_its_word(
    study: Any, found: Any, sample_data: Path, name: str, terms: str
) -> None:
    headers = _with_name_of(sample_data / "odd" / "charsets-made" / f"{name}.dcm", study.headers)
    findings = found.little(study)
    files = [written(each) for each in encode(findings, headers, found.job, study.context)]
    check(files, findings, headers)
    for raw in files:
        assert _read(raw).SpecificCharacterSet == terms
        assert _read(raw).PatientName == (
            "Müller^Jörg" if terms == "ISO_IR 192" else "MÃ¼ller^JÃ¶rg"
        )


def test_an_unknown_character_set_is_not_passed_on(study: Any, found: Any) -> None:
    headers = copy.deepcopy(study.headers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for header in headers:
            header.SpecificCharacterSet = "ISO_IR 999"
        findings = found.nothing(study)
        files = [written(each) for each in encode(findings, headers, found.job, study.context)]
        check(files, findings, headers)
    assert "SpecificCharacterSet" not in _read(files[0])


def test_a_name_that_pydicom_has_decoded_before_is_read_just_the_same(
    study: Any, found: Any, sample_data: Path
) -> None:
    for name, truth in (
        ("gb2312-2022-58", "Zhang^XiaoDong=张^小东"),
        ("jp-empty-first-87", "Yamada^Tarou=山田^太郎"),
    ):
        headers = _with_name_of(
            sample_data / "odd" / "charsets-made" / f"{name}.dcm", study.headers
        )
        assert str(headers[0].PatientName)  # decodes, and keeps no raw element
        (report,) = encode(found.nothing(study), headers, found.job, study.context)
        assert str(report.PatientName) == truth


def test_text_that_is_no_identity_is_left_out_with_a_warning(study: Any, found: Any) -> None:
    headers = copy.deepcopy(study.headers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        headers[0].PatientSex = "WOMAN?"
        headers[0].PatientBirthDate = "12.4.1960"
        headers[0].StudyDescription = "x" * 80
        headers[0].BodyPartExamined = "Thorax/Abdomen"
    files = [
        written(each) for each in encode(found.little(study), headers, found.job, study.context)
    ]
    report = _read(files[-1])
    assert (report.PatientSex, report.PatientBirthDate) == ("", "")
    assert "BodyPartExamined" not in _read(files[0])
    words = [item.TextValue for item in report.ContentSequence[-1].ContentSequence]
    for keyword in ("PatientSex", "PatientBirthDate", "StudyDescription"):
        assert any(keyword in text and "left out" in text for text in words)
    check(files, found.little(study), headers)


def test_the_sources_are_not_changed(study: Any, found: Any) -> None:
    before = [each.to_json() for each in study.headers]
    study.files(found.little(study))
    assert [each.to_json() for each in study.headers] == before


def test_times_stand_at_the_offset_of_the_study(study: Any, found: Any) -> None:
    (report,) = encode(found.nothing(study), study.headers, found.job, study.context)
    assert report.TimezoneOffsetFromUTC == "+0200"
    assert (report.ContentDate, report.ContentTime) == ("20260721", "120000.123456")
    headers = copy.deepcopy(study.headers)
    headers[0].TimezoneOffsetFromUTC = "-0500"
    (report,) = encode(found.nothing(study), headers, found.job, study.context)
    assert (report.TimezoneOffsetFromUTC, report.ContentTime) == ("-0500", "050000.123456")
