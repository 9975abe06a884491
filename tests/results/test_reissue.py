"""Results made once more name the corrected patient and order, and nothing of the wrong ones."""

from __future__ import annotations

import copy
import io
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomai.dicom.dates import Instant
from dicomai.results.encode import written
from dicomai.results.gate import GateError
from dicomai.results.gate.reissue import check_reissued
from dicomai.results.reissue import Correction, Person, reissued

NEW = uuid.UUID("0d5f3a52-29d5-4c3c-9d0a-4a6a1a1f7f00")
NOW = Instant(1_784_700_000_000_000)
ERIKA = Person(name="MUSTER^ERIKA^", birth_date="19600412", issuer_of_patient_id="CLINIC")
ANNA = Person(name="Alpha^Anna", birth_date="19710203", sex="F", issuer_of_patient_id="CLINIC")
WRONG = (
    "OtherPatientIDsSequence",
    "TypeOfPatientID",
    "EthnicGroup",
    "PatientAge",
    "PatientWeight",
    "AdmissionID",
    "RequestAttributesSequence",
)


@pytest.fixture(scope="module")
def old(study: Any, found: Any) -> list[Dataset]:
    """A Segmentation, a picture and a report that say a lot of their patient and order."""
    made = [pydicom.dcmread(io.BytesIO(raw)) for raw in study.files(found.everything(study))]
    code, request, other, issuer = Dataset(), Dataset(), Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "P1", "99X", "Chest"
    request.AccessionNumber, request.RequestedProcedureID = "ACC-1", "RP-1"
    other.PatientID, issuer.LocalNamespaceEntityID = "A-OLD", "RIS"
    for each in made:
        each.OtherPatientIDsSequence, each.TypeOfPatientID = [other], "TEXT"
        each.EthnicGroup, each.PatientAge, each.PatientWeight = "X", "066Y", 70
        each.AdmissionID, each.ProcedureCodeSequence = "ADM-1", [code]
        each.IssuerOfAccessionNumberSequence = [issuer]
        if "ValueType" in each:
            each.ReferencedRequestSequence[0].RequestedProcedureID = "RP-1"
        else:
            each.RequestAttributesSequence = [request]
    return [pydicom.dcmread(io.BytesIO(written(each))) for each in made]


def _known(person: Person) -> dict[str, str]:
    return {
        "PatientName": person.name,
        "PatientBirthDate": person.birth_date,
        "PatientSex": person.sex,
        "IssuerOfPatientID": person.issuer_of_patient_id,
    }


def _made(old: list[Dataset], correction: Correction) -> list[Dataset]:
    octets = [written(each) for each in reissued(old, correction, NEW, NOW)]
    check_reissued(octets, old, correction.attributes, _known(correction.person))
    return [pydicom.dcmread(io.BytesIO(raw)) for raw in octets]


@pytest.mark.parametrize("person", [Person(), ANNA], ids=["unknown", "known"])
def test_nothing_of_the_wrong_patient_stays(old: list[Dataset], person: Person) -> None:
    for each in _made(old, Correction(patient_id="B-4711", person=person)):
        said = (each.PatientName, each.PatientBirthDate, each.PatientSex)
        assert said == (person.name, person.birth_date, person.sex)
        assert each.PatientID == "B-4711"
        assert each.get("IssuerOfPatientID", "") == person.issuer_of_patient_id
        assert not [keyword for keyword in WRONG if keyword in each]
        assert each.AccessionNumber == "ACC-1"
        for request in each.get("ReferencedRequestSequence", ()):
            assert (request.AccessionNumber, request.RequestedProcedureID) == ("ACC-1", "")


def test_of_a_wrong_id_alone_the_person_stays(old: list[Dataset]) -> None:
    for each in _made(old, Correction(patient_id="B-4711", person=ERIKA)):
        said = (each.PatientName, each.PatientBirthDate, each.PatientSex, each.AdmissionID)
        assert said == ("Muster^Erika", "19600412", "F", "ADM-1")
        assert (each.PatientID, each.IssuerOfPatientID) == ("B-4711", "CLINIC")
        assert "OtherPatientIDsSequence" not in each
        for request in each.get("ReferencedRequestSequence", ()):
            assert request.RequestedProcedureID == "RP-1"


@pytest.mark.parametrize(
    "person",
    [replace(ERIKA, birth_date=""), replace(ERIKA, birth_date="19610412"), replace(ERIKA, sex="M")],
)
def test_a_name_alone_makes_no_same_person(old: list[Dataset], person: Person) -> None:
    for each in _made(old, Correction(patient_id="B-4711", person=person)):
        assert (each.PatientBirthDate, each.PatientSex) == (person.birth_date, person.sex)
        assert "AdmissionID" not in each


@pytest.mark.parametrize(
    ("was", "known", "same"),
    [
        ("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎", "ヤマダ^タロウ", True),
        ("Mu\u0308ller^Anna", "MÜLLER^ANNA^", True),
        ("=山田^太郎", "=鈴木^一郎", False),
        ("=山田^太郎", "=山田^太郎", False),
        ("^^", "^", False),
    ],
)
def test_the_same_name_spelt_otherwise_is_the_same_person(
    old: list[Dataset], was: str, known: str, *, same: bool
) -> None:
    before = [copy.deepcopy(each) for each in old]
    for each in before:
        each.SpecificCharacterSet, each.PatientName = "ISO_IR 192", was
    person = replace(ERIKA, name=known)
    for each in _made(before, Correction(patient_id="B-4711", person=person)):
        assert str(each.PatientName) == (was if same else known)
        assert ("AdmissionID" in each) == same


def test_nothing_of_the_wrong_order_stays(old: list[Dataset]) -> None:
    for each in _made(old, Correction(accession_number="A9")):
        assert (each.PatientName, each.PatientID) == ("Muster^Erika", "PID-0815")
        assert (each.AccessionNumber, each.StudyID) == ("A9", "")
        for keyword in ("IssuerOfAccessionNumberSequence", "ProcedureCodeSequence", "AdmissionID"):
            assert keyword not in each
        assert "RequestAttributesSequence" not in each
        for request in each.get("ReferencedRequestSequence", ()):
            assert (request.AccessionNumber, request.RequestedProcedureID) == ("A9", "")
            assert "IssuerOfAccessionNumberSequence" not in request


def _code(value: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "99X", "Chest"
    return code


def _with_orders(study: Any, found: Any, *performed: str) -> list[Dataset]:
    """Return results on images that were made for two orders, of which the first is the study's."""
    headers = copy.deepcopy(study.headers)
    for header in headers:
        header.ProcedureCodeSequence = [_code(each) for each in performed]
        header.RequestAttributesSequence = [Dataset(), Dataset()]
        for number, request in enumerate(header.RequestAttributesSequence, start=1):
            request.AccessionNumber = f"ACC-{number}"
            request.RequestedProcedureID = f"RP-{number}"
            request.RequestedProcedureCodeSequence = [_code(f"R{number}")]
    source = replace(study, headers=headers)
    made = source.made_anew(found.everything(source))
    return [pydicom.dcmread(io.BytesIO(raw)) for raw in made]


def _orders(result: Dataset) -> list[str]:
    keyword = "ReferencedRequestSequence" if "ValueType" in result else "RequestAttributesSequence"
    return [str(each.AccessionNumber) for each in result.get(keyword, ())]


def _procedures(report: Dataset) -> list[str]:
    return [
        item.ConceptCodeSequence[0].CodeValue
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "121058"
    ]


def test_of_several_orders_the_wrong_one_alone_goes(study: Any, found: Any) -> None:
    old = _with_orders(study, found)
    assert (_procedures(old[-1]), _orders(old[0])) == (["R1", "R2"], ["ACC-1", "ACC-2"])
    seg, report = _made(old, Correction(accession_number="A9"))
    assert (_orders(seg), _orders(report)) == (["ACC-2"], ["A9", "ACC-2"])
    assert _procedures(report) == ["R2"]


def test_of_another_patient_s_orders_none_stays(study: Any, found: Any) -> None:
    old = _with_orders(study, found)
    seg, report = _made(old, Correction(patient_id="B-4711", person=ANNA))
    assert (_orders(seg), _orders(report)) == ([], ["ACC-1"])
    assert _procedures(report) == ["363679005"]


def test_another_order_of_another_patient_is_refused(study: Any, found: Any) -> None:
    old = _with_orders(study, found)
    correction = Correction(patient_id="B-4711", person=ANNA)
    new = reissued(old, correction, NEW, NOW)
    new[0].RequestAttributesSequence = [copy.deepcopy(old[0].RequestAttributesSequence[1])]
    with pytest.raises(GateError, match="names an order that is not the corrected one"):
        check_reissued(
            [written(each) for each in new], old, correction.attributes, _known(correction.person)
        )


def test_an_order_that_nobody_named_is_refused(study: Any, found: Any) -> None:
    old = _with_orders(study, found)
    correction = Correction(accession_number="A9")
    new = reissued(old, correction, NEW, NOW)
    new[0].RequestAttributesSequence[0].AccessionNumber = "ACC-3"
    with pytest.raises(GateError, match="names an order that is not the corrected one"):
        check_reissued([written(each) for each in new], old, correction.attributes, {})


def test_a_report_tells_of_no_procedure_that_the_wrong_order_asked_for(
    study: Any, found: Any
) -> None:
    old = _with_orders(study, found, "P1", "P2")
    (_, report) = _made(old, Correction(accession_number="A9"))
    assert (_procedures(old[-1]), _procedures(report)) == (["P1", "P2"], ["363679005"])
    (_, report) = _made(old, Correction(patient_id="B-4711", person=ANNA))
    assert _procedures(report) == ["P1", "P2"]  # what the images show


def test_codes_of_a_procedure_that_lack_their_scheme_keep_no_correction_back(
    study: Any, found: Any
) -> None:
    old = _with_orders(study, found, "P1")
    for each in old:
        del each.ProcedureCodeSequence[0].CodingSchemeDesignator
    (_, report) = _made(old, Correction(patient_id="B-4711", person=ANNA))
    assert _procedures(report) == ["363679005"]


def test_a_procedure_of_the_wrong_order_is_refused(study: Any, found: Any) -> None:
    old = _with_orders(study, found)
    correction = Correction(accession_number="A9")
    for change, rule in (
        (lambda content: content.extend(old[-1].ContentSequence[-1:]), "content"),
        (lambda content: content.pop(0), "content"),
        (lambda content: _report_on("R1", content), "request"),
        (lambda content: _report_on("", content), "request"),
    ):
        new = reissued(old, correction, NEW, NOW)
        change(new[-1].ContentSequence)
        with pytest.raises(GateError) as refused:
            check_reissued([written(each) for each in new], old, correction.attributes, {})
        assert refused.value.rule == rule, refused.value


def _report_on(value: str, content: Any) -> None:
    for item in list(content):
        if item.ConceptNameCodeSequence[0].CodeValue == "121058":
            if value:
                item.ConceptCodeSequence = [_code(value)]
            else:
                content.remove(item)


def test_a_reissued_object_is_made_when_it_is_reissued(old: list[Dataset]) -> None:
    for was, now in zip(old, _made(old, Correction(accession_number="A9")), strict=True):
        assert now.InstanceCreationDate + now.InstanceCreationTime > (
            was.InstanceCreationDate + was.InstanceCreationTime
        )


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        setattr(dataset, keyword, value)

    change.__name__ = keyword
    return change


def _other_pixels(dataset: Dataset) -> None:
    dataset.PixelData = bytes(len(dataset.PixelData))


def _no_frame(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[-1]


def _no_birth_date(dataset: Dataset) -> None:
    del dataset.PatientBirthDate


def _old_reference(dataset: Dataset) -> None:
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def _old_order(dataset: Dataset) -> None:
    request = Dataset()
    request.AccessionNumber, request.RequestedProcedureID = "ACC-1", "RP-1"
    dataset.RequestAttributesSequence = [request]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_set("PatientID", "PID-0815"), "identity"),
        (_set("PatientName", "Muster^Erika"), "identity"),
        (_set("IssuerOfPatientID", "HOSPITAL"), "identity"),
        (_set("PatientAge", "066Y"), "identity"),
        (_no_birth_date, "attributes"),
        (_old_order, "request"),
        (_set("StudyDate", "20260721"), "content"),
        (_set("SeriesDescription", "AI"), "content"),
        (_other_pixels, "content"),
        (_no_frame, "content"),
        (_old_reference, "content"),
    ],
)
def test_what_differs_in_more_than_the_correction_is_refused(
    old: list[Dataset], change: Callable[[Dataset], None], rule: str
) -> None:
    correction = Correction(patient_id="B-4711", person=ANNA)
    new = reissued(old, correction, NEW, NOW)
    change(new[0])
    octets = [written(each) for each in new]
    with pytest.raises(GateError) as refused:
        check_reissued(octets, old, correction.attributes, _known(ANNA))
    assert refused.value.rule == rule, refused.value


def test_an_object_under_its_old_name_is_refused(old: list[Dataset]) -> None:
    correction = Correction(accession_number="A9")
    new = reissued(old, correction, NEW, NOW)
    new[0].SOPInstanceUID = new[0].file_meta.MediaStorageSOPInstanceUID = old[0].SOPInstanceUID
    with pytest.raises(GateError, match="its UIDs are not its own"):
        check_reissued([written(each) for each in new], old, correction.attributes, {})
