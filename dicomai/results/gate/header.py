"""What each result must say outside its content: IOD, times, series, text, model."""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicomai.findings import Findings
from dicomai.results.gate.classes import (
    ENHANCED_SR,
    KO,
    LABELMAP,
    PDF,
    PM,
    PR,
    RTSTRUCT,
    SC,
    SEG,
    SR,
    TEXT_SR,
)
from dicomai.results.gate.elements import is_plain
from dicomai.results.gate.error import refuse
from dicomai.results.gate.identity import check_identity
from dicomai.results.gate.references import check_references, known_instances
from dicomai.results.gate.request import check_request

_CONTENT_DATE: Final = ("ContentDate", "ContentTime")
# Type 1 of the modules that are mandatory: PS3.3 A.51.3, A.35.13.3, A.8.1.3, A.35.4.3, A.33.1.3.
_TYPE_1: Final = {
    "": (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "Modality",
        "InstanceNumber",
        "Manufacturer",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "SoftwareVersions",
        "DeviceUID",
        "ContributingEquipmentSequence",
        "TimezoneOffsetFromUTC",
    ),
    SEG: (
        *_CONTENT_DATE,
        "ImageType",
        "SegmentationType",
        "ContentLabel",
        "SegmentSequence",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "NumberOfFrames",
        "DimensionOrganizationSequence",
        "DimensionIndexSequence",
        "ReferencedSeriesSequence",
        "BitsAllocated",
        "Rows",
        "Columns",
        "PixelData",
        "LossyImageCompression",
    ),
    SR: (
        *_CONTENT_DATE,
        "CompletionFlag",
        "VerificationFlag",
        "ValueType",
        "ConceptNameCodeSequence",
        "ContentTemplateSequence",
        "ContentSequence",
        "CurrentRequestedProcedureEvidenceSequence",
    ),
    SC: (
        *_CONTENT_DATE,
        "ConversionType",
        "ImageType",
        "SourceImageSequence",
        "BurnedInAnnotation",
        "Rows",
        "Columns",
        "PixelData",
    ),
    KO: (
        *_CONTENT_DATE,
        "ValueType",
        "ConceptNameCodeSequence",
        "ContentTemplateSequence",
        "ContentSequence",
        "CurrentRequestedProcedureEvidenceSequence",
    ),
    PR: (
        "PresentationCreationDate",
        "PresentationCreationTime",
        "ContentLabel",
        "ReferencedSeriesSequence",
        "DisplayedAreaSelectionSequence",
        "GraphicAnnotationSequence",
        "GraphicLayerSequence",
        "PresentationLUTShape",
    ),
}
_TYPE_1[ENHANCED_SR] = _TYPE_1[TEXT_SR] = tuple(
    each for each in _TYPE_1[SR] if each != "ContentTemplateSequence"
)
_TYPE_1[PM] = (
    *_CONTENT_DATE,
    "ImageType",
    "ContentLabel",
    "ContentQualification",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "NumberOfFrames",
    "DimensionOrganizationSequence",
    "ReferencedSeriesSequence",
    "FloatPixelData",
)
_TYPE_1[RTSTRUCT] = (
    "StructureSetLabel",
    "StructureSetDate",
    "FrameOfReferenceUID",
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
    "ROIContourSequence",
    "RTROIObservationsSequence",
)
_TYPE_1[PDF] = (
    *_CONTENT_DATE,
    "ConversionType",
    "BurnedInAnnotation",
    "SourceInstanceSequence",
    "DocumentTitle",
    "MIMETypeOfEncapsulatedDocument",
    "EncapsulatedDocument",
)
_TYPE_1[LABELMAP] = _TYPE_1[SEG]
# Type 2: may be empty, must be there.
_TYPE_2: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_MODALITY: Final = {
    SEG: "SEG",
    LABELMAP: "SEG",
    PM: "OT",
    RTSTRUCT: "RTSTRUCT",
    PDF: "DOC",
    ENHANCED_SR: "SR",
    TEXT_SR: "SR",
    SR: "SR",
    SC: "OT",
    KO: "KO",
    PR: "PR",
}
_DEVICES: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://dicomai.org/devices")
_UID: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+")
_DATES: Final = tuple(
    (f"{what}Date", f"{what}Time")
    for what in ("Series", "Content", "PresentationCreation", "StructureSet")
)
_TOGETHER: Final = ("InstanceCreationDate", "InstanceCreationTime", "TimezoneOffsetFromUTC")
_LONGEST_SAID: Final = 1000  # of the 1024 characters of Short Text; what is cut, the SR says


def check_header(
    result: Dataset,
    others: Sequence[Dataset],
    findings: Findings,
    sources: Sequence[Dataset],
    charset_default: str,
    placeholder_ids: Collection[str],
) -> None:
    """Check what stands outside the content; `others` are the other results of the analysis."""
    uid = str(result.SOPInstanceUID)
    for keyword in (*_TYPE_1[""], *_TYPE_1[str(result.SOPClassUID)]):
        if _is_empty(result, keyword):
            refuse("attributes", uid, f"{keyword} is missing or empty")
    for keyword in _TYPE_2:
        if keyword not in result:
            refuse("attributes", uid, f"{keyword} is missing")
    if result.Modality != _MODALITY[str(result.SOPClassUID)]:
        refuse("attributes", uid, f"its modality is {result.Modality}")
    if "unverified" not in str(result.get("SeriesDescription", "")):
        refuse("status", uid, "its series does not say that it is unverified")
    check_identity(result, findings, sources, charset_default, placeholder_ids)
    _dated(result, uid, others)
    check_request(result, uid, sources)
    _own_series(result, uid, others, findings, sources)
    check_references(result, uid, others, findings, sources)
    _text(result, uid)
    _provenance(result, uid, findings)


def _is_empty(result: Dataset, keyword: str) -> bool:
    if keyword not in result:
        return True
    element = result.get_item(Tag(keyword))
    if element.is_raw and element.VR == "SQ":
        return not element.value
    return bool(result[keyword].is_empty)


def _dated(result: Dataset, uid: str, others: Sequence[Dataset]) -> None:
    """Check that it is of the time at which all results of the analysis are."""
    for day, time in _DATES:
        if day in result and (result[day].value, result[time].value) != (
            result.InstanceCreationDate,
            result.InstanceCreationTime,
        ):
            refuse("attributes", uid, f"{day} is not when it was made")
    for other in others:
        for keyword in _TOGETHER:
            if other.get(keyword) != result[keyword].value:
                refuse("attributes", uid, f"{keyword} is not that of the other results")


def _own_series(
    result: Dataset,
    uid: str,
    others: Sequence[Dataset],
    findings: Findings,
    sources: Sequence[Dataset],
) -> None:
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        value = str(result[keyword].value)
        if len(value) > 64 or not _UID.fullmatch(value):
            refuse("attributes", uid, f"{keyword} is no UID")
        for other in others:
            # Objects of one kind share a series.
            kin = keyword == "SeriesInstanceUID" and other.SOPClassUID == result.SOPClassUID
            if other[keyword].value == value and not kin:
                refuse("identity", uid, f"another result of this analysis has its {keyword}")
    series = {str(source.SeriesInstanceUID) for source in sources}
    series |= {image.series_instance_uid for image in findings.inputs}
    if str(result.SeriesInstanceUID) in series:
        refuse("identity", uid, "it claims to belong to the series of its source images")
    if uid in known_instances(findings, sources):
        refuse("identity", uid, "it has the SOP Instance UID of a source image")


def _text(result: Dataset, uid: str) -> None:
    declared = _declares(result)
    for tag in sorted(result.keys()):
        element = result.get_item(tag)
        if element.is_raw and element.VR == "SQ":
            try:
                if is_plain(bytes(element.value or b"")):
                    continue
            except (ValueError, struct.error) as trouble:
                refuse("readable", uid, f"{keyword_for_tag(tag)}: {trouble}")
        for keyword, text, in_a_set in _texts(result[tag], declared=declared):
            if "\ufffd" in text or "\x1b" in text or not (in_a_set or text.isascii()):
                refuse("text", uid, f"{keyword} can't be read back in its character set")


def _declares(holder: Dataset) -> bool:
    """Tell whether texts there may have other characters than ASCII (PS3.5 6.1.2.1)."""
    said = holder.get("SpecificCharacterSet") or ""
    terms = {said} if isinstance(said, str) else set(said)
    return bool(terms - {"", "ISO_IR 6", "ISO 2022 IR 6"})


def _texts(element: DataElement, *, declared: bool) -> Iterator[tuple[str, str, bool]]:
    """Yield keyword and text of each, and whether a character set is declared for it."""
    if element.VR == "SQ":
        for item in element.value:
            inside = _declares(item) if "SpecificCharacterSet" in item else declared
            for each in item:
                yield from _texts(each, declared=inside)
    elif element.VR in {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}:
        yield element.keyword, str(element.value), declared


def _provenance(result: Dataset, uid: str, findings: Findings) -> None:
    algorithm = findings.algorithm
    # The same model has the same Device UID wherever it runs, and another package another one.
    device = uuid.uuid5(_DEVICES, algorithm.package_sha256)
    if result.DeviceUID != f"2.25.{device.int}":
        refuse("provenance", uid, "its Device UID is not that of the model's package")
    named = [
        item
        for item in result.ContributingEquipmentSequence
        if item.get("ManufacturerModelName") == algorithm.name[:64]
        and item.get("SoftwareVersions") == algorithm.version[:64]
        and item.get("DeviceSerialNumber") == algorithm.package_sha256
        and item.get("DeviceUID") == result.DeviceUID
        and item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    ]
    if not named:
        refuse(
            "provenance",
            uid,
            f"its Contributing Equipment does not name {algorithm.name} {algorithm.version} with "
            "the digest of its package",
        )
    said = str(named[0].get("ContributionDescription", ""))
    for text in ("UNVERIFIED", algorithm.intended_use, algorithm.not_for, *findings.deviations):
        if text not in said and len(said) < _LONGEST_SAID:
            refuse("provenance", uid, f'its Contributing Equipment does not say "{text}"')
