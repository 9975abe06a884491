"""What IHE's AI Results asks of an Evidence Creator, as docs/air.md goes through it."""

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

from dicomai.results.encode import encode, written
from dicomai.results.gate import GateError, check


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _issuer(name: str) -> Dataset:
    item = Dataset()
    item.LocalNamespaceEntityID = name
    return item


@pytest.fixture(scope="module")
def ordered(study: Any) -> list[Dataset]:
    """Headers of a study that was ordered, with codes for what was asked and what was done."""
    headers: list[Dataset] = copy.deepcopy(study.headers)
    for header in headers:
        header.IssuerOfAccessionNumberSequence = [_issuer("RIS")]
        header.ProcedureCodeSequence = [_code("24627-2", "LN", "CT Chest")]
        request = header.RequestAttributesSequence[0]
        request.RequestedProcedureCodeSequence = [_code("CTTHX", "99KIS", "CT Thorax nativ")]
    return headers


def _read(raw: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(raw))


def _results(study: Any, findings: Any, headers: list[Dataset]) -> list[Dataset]:
    context = replace(study.context, route="chest")
    files = [written(each) for each in encode(findings, headers, JOB, context)]
    check(files, findings, headers)
    return [_read(raw) for raw in files]


JOB = uuid.UUID("5b2c0c1e-97a5-4a52-8a5f-3a4f6c1d2e70")


def _named(report: Dataset, value: str) -> list[Dataset]:
    return [
        item
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == value
    ]


def test_the_procedure_reported_is_the_one_that_made_the_images(
    study: Any, found: Any, ordered: list[Dataset]
) -> None:
    def said(headers: list[Dataset]) -> list[str]:
        (report,) = _results(study, found.nothing(study), headers)
        return [item.ConceptCodeSequence[0].CodeValue for item in _named(report, "121058")]

    assert said(ordered) == ["24627-2"]
    only_requested = copy.deepcopy(ordered)
    for header in only_requested:
        del header.ProcedureCodeSequence
    assert said(only_requested) == ["CTTHX"]
    assert said(study.headers) == ["25045-6"]  # nobody says: CT


def test_the_order_stands_on_every_result(study: Any, found: Any, ordered: list[Dataset]) -> None:
    seg, report = _results(study, found.everything(study), ordered)
    for result in (seg, report):
        assert result.AccessionNumber == "ACC-1"
        assert result.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "RIS"
    (asked,) = seg.RequestAttributesSequence
    assert (asked.RequestedProcedureID, asked.ScheduledProcedureStepID) == ("RP-1", "SPS-1")
    (request,) = report.ReferencedRequestSequence
    assert request.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "RIS"
    assert request.RequestedProcedureCodeSequence[0].CodeValue == "CTTHX"


def test_a_result_says_which_route_asked_and_how_long_it_took(
    study: Any, found: Any, ordered: list[Dataset]
) -> None:
    findings = replace(found.everything(study), stages_s={"preprocess": 1.04, "infer": 2.0})
    seg, report = _results(study, findings, ordered)
    took = "3.0 s: preprocess 1.0 s, infer 2.0 s"
    for result in (seg, report):
        service = result.ContributingEquipmentSequence[2]
        assert service.ContributionDescription == (
            f"Ran the AI model and wrote its result, as route chest asked in {took}"
        )
    words = [item.TextValue for item in report.ContentSequence[-1].ContentSequence]
    assert f"Processing time: {took}" in words


def test_another_package_is_another_device(study: Any, found: Any) -> None:
    findings = found.everything(study)
    retrained = replace(findings, algorithm=replace(findings.algorithm, package_sha256="1f" * 32))
    one, other = (
        {each.DeviceUID for each in _results(study, each, study.headers)}
        for each in (findings, retrained)
    )
    assert len(one) == len(other) == 1
    assert one != other


def _issuer_of_another(result: Dataset) -> None:
    result.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID = "OTHER"


def _another_device(result: Dataset) -> None:
    for holder in (result, result.ContributingEquipmentSequence[1]):
        holder.DeviceUID = "2.25.1"


def _another_request(result: Dataset) -> None:
    if "RequestAttributesSequence" in result:
        result.RequestAttributesSequence[0].RequestedProcedureID = "RP-2"
    else:
        result.ReferencedRequestSequence[0].RequestedProcedureID = "RP-2"


def _no_step(seg: Dataset) -> None:
    del seg.RequestAttributesSequence[0].ScheduledProcedureStepID


def _no_accession(report: Dataset) -> None:
    report.ReferencedRequestSequence[0].AccessionNumber = ""


def _no_request(report: Dataset) -> None:
    del report.ReferencedRequestSequence


def _no_procedure(report: Dataset) -> None:
    report.ContentSequence.remove(_named(report, "121058")[0])


def test_a_report_says_its_procedure_though_no_image_does(study: Any, found: Any) -> None:
    findings = found.nothing(study)
    (raw,) = study.files(findings)
    report = _read(raw)
    _no_procedure(report)
    with pytest.raises(GateError, match="does not say which procedure"):
        check([written(report)], findings, study.headers)


def _what_was_done_afterwards(report: Dataset) -> None:
    item = _named(report, "121058")[0].ConceptCodeSequence[0]
    item.CodeValue, item.CodeMeaning = "AI", "Nodule detection"


def _another_observer(report: Dataset) -> None:
    _named(report, "121012")[0].UID = "2.25.1"


@pytest.mark.parametrize(
    ("which", "change", "rule"),
    [
        (0, _issuer_of_another, "request"),
        (1, _issuer_of_another, "request"),
        (0, _another_request, "request"),
        (1, _another_request, "request"),
        (0, _no_step, "request"),
        (1, _no_accession, "request"),
        (1, _no_request, "request"),
        (1, _no_procedure, "request"),
        (1, _what_was_done_afterwards, "request"),
        (0, _another_device, "provenance"),
        (1, _another_device, "provenance"),
        (1, _another_observer, "provenance"),
    ],
)
def test_a_result_of_another_order_or_device_is_refused(
    study: Any,
    found: Any,
    ordered: list[Dataset],
    which: int,
    change: Callable[[Dataset], None],
    rule: str,
) -> None:
    findings = found.everything(study)
    files = [written(each) for each in encode(findings, ordered, JOB, study.context)]
    changed = _read(files[which])
    change(changed)
    out = io.BytesIO()
    changed.save_as(out)
    files[which] = out.getvalue()
    with pytest.raises(GateError) as refused:
        check(files, findings, ordered)
    assert refused.value.rule == rule, refused.value
