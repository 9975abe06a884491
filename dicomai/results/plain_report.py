"""The report for who takes no Comprehensive 3D SR: Basic Text and Enhanced SR (PS3.3 A.35).

Both have the words; the Enhanced one has the numbers of each finding too. Neither has regions: they
stand in the report by TID 1500, which is always made too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from dicomai.dicom.codes import PERCENT, Code
from dicomai.findings import Classification, Detection, Findings, Measurement, Segment
from dicomai.results.content_item import container, item, observed_by, text_item
from dicomai.results.job import Job
from dicomai.results.provenance import code_item, complete
from dicomai.results.request import put_evidence, requests
from dicomai.results.sr import SUMMARY, inputs, measured_in_own_ways, own_scheme, words
from dicomai.results.sr_groups import CERTAINTY_OF_FINDING, UNCERTAINTY

REPORT: Final = Code("18748-4", "LN", "Diagnostic Imaging Report")
LANGUAGE: Final = Code("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH: Final = Code("en-US", "RFC5646", "English (United States)")
FINDINGS: Final = Code("121070", "DCM", "Findings")
FINDING: Final = Code("121071", "DCM", "Finding")
DERIVATION: Final = Code("121401", "DCM", "Derivation")
METHOD: Final = Code("370129005", "SCT", "Measurement Method")


def encode_plain(job: Job, kind: Literal["SR:ENHANCED", "SR:TEXT"]) -> Dataset:
    """Return the report in words; an Enhanced one with the numbers of each finding."""
    result = Dataset()
    result.ReferencedPerformedProcedureStepSequence = []
    result.PerformedProcedureCodeSequence = []
    result.CompletionFlag = "COMPLETE"
    result.VerificationFlag = "UNVERIFIED"
    result.PreliminaryFlag = "PRELIMINARY"
    put_evidence(result, inputs(job), str(job.sources[0].StudyInstanceUID))
    if asked := requests(job):
        result.ReferencedRequestSequence = asked
    result.ValueType = "CONTAINER"
    result.ConceptNameCodeSequence = [code_item(REPORT)]
    result.ContinuityOfContent = "SEPARATE"
    language = item("CODE", "HAS CONCEPT MOD", LANGUAGE)
    language.ConceptCodeSequence = [code_item(ENGLISH)]
    said = [text_item(concept, text) for concept, text in words(job)]
    sections = [container(SUMMARY, said)]
    if kind == "SR:ENHANCED" and (numbers := _numbers(job.findings)):
        sections.append(container(FINDINGS, numbers))
        if measured_in_own_ways(job.findings):
            result.CodingSchemeIdentificationSequence = [own_scheme()]
    result.ContentSequence = [language, *observed_by(job), *sections]
    complete(result, job, kind)
    return result


def _numbers(findings: Findings) -> list[Dataset]:
    found: Sequence[Segment | Detection | Classification] = (
        *(each for each in findings.segments if each.mask.any()),
        *findings.detections,
        *findings.classifications,
    )
    return [
        container(FINDING, [text_item(FINDING, _label(each)), *map(_number, numbers_of(each))])
        for each in found
    ]


def _label(found: Segment | Detection | Classification) -> str:
    if isinstance(found, Classification):
        return f"{found.label}: {'present' if found.present else 'not present'}"
    return found.label


def numbers_of(found: Segment | Detection | Classification) -> tuple[Measurement, ...]:
    """Return the numbers of a finding, its certainty first where it has one."""
    if isinstance(found, Segment):
        return found.measurements
    certainty = Measurement(
        name=CERTAINTY_OF_FINDING, value=float(found.probability) * 100, unit=PERCENT
    )
    return (certainty, *(found.measurements if isinstance(found, Detection) else ()))


def _number(measurement: Measurement) -> Dataset:
    number = item("NUM", "CONTAINS", measurement.name)
    number.MeasuredValueSequence = [_value(measurement.value, measurement.unit)]
    said = [
        _modifier(name, code)
        for name, code in ((METHOD, measurement.method), (DERIVATION, measurement.derivation))
        if code is not None
    ]
    if measurement.uncertainty is not None:
        range_of_it = item("NUM", "HAS PROPERTIES", UNCERTAINTY)
        range_of_it.MeasuredValueSequence = [_value(measurement.uncertainty, measurement.unit)]
        said.append(range_of_it)
    if said:
        number.ContentSequence = said
    return number


def _modifier(name: Code, value: Code) -> Dataset:
    modifier = item("CODE", "HAS CONCEPT MOD", name)
    modifier.ConceptCodeSequence = [code_item(value)]
    return modifier


def _value(number: float, unit: Code) -> Dataset:
    value = Dataset()
    value.NumericValue = format_number_as_ds(float(number))
    value.MeasurementUnitsCodeSequence = [code_item(unit)]
    return value
