"""What both kinds of result must say outside their content: IOD, identity, references, text."""

from __future__ import annotations

import re
import struct
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicomai.dicom.codes import Code
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
_SAME: Final = (
    "StudyInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "ReferringPhysicianName",
)
_WHOSE: Final = (
    "StudyInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "SpecificCharacterSet",
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
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)+")
_OFFSET: Final = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]")


def _is_date(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")  # noqa: DTZ007  # a calendar day has no zone
    except ValueError:
        return False
    return len(text) == 8


def _is_time(text: str) -> bool:
    parts = re.fullmatch(r"([0-9]{2})([0-9]{2})?([0-9]{2})?(\.[0-9]{1,6})?", text)
    if parts is None or (parts[4] and not parts[3]):
        return False
    hours, minutes, seconds = (int(parts[each] or 0) for each in (1, 2, 3))
    return hours < 24 and minutes < 60 and seconds <= 60


def _is_plain(text: str) -> bool:
    return re.fullmatch(r"[\x20-\x7e]{1,64}", text) is not None


_DATES: Final = tuple(
    (f"{what}Date", f"{what}Time")
    for what in ("Series", "Content", "PresentationCreation", "StructureSet")
)
_TOGETHER: Final = ("InstanceCreationDate", "InstanceCreationTime", "TimezoneOffsetFromUTC")
# Of the patient at the study's time; left out where the source's break their representation.
_MAY_BE_LEFT_OUT: Final = ("PatientAge", "PatientSize", "PatientWeight")
_BODY_PART: Final = re.compile(r"[A-Z0-9_ ]{1,16}")
_DOCUMENTS: Final = frozenset({SR, ENHANCED_SR, TEXT_SR, KO})

# A value that breaks its representation can't be handed on; then nothing stands in its place.
_MUST_STAY_IF: Final[dict[str, Callable[[str], bool]]] = {
    "PatientBirthDate": _is_date,
    "PatientSex": lambda text: text in {"M", "F", "O"},
    "StudyDate": _is_date,
    "StudyTime": _is_time,
    "StudyDescription": _is_plain,
    "ReferringPhysicianName": _is_plain,
}
_LONGEST_SAID: Final = 1000  # of the 1024 characters of Short Text; what is cut, the SR says
_ISO_58: Final = "\x1b$)A"


def check_header(
    result: Dataset,
    others: Sequence[Dataset],
    findings: Findings,
    sources: Sequence[Dataset],
    charset_default: str,
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
    _identity(result, uid, sources, charset_default)
    _body_part(result, uid, sources)
    _zone(result, uid, sources)
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


def _identity(result: Dataset, uid: str, sources: Sequence[Dataset], default: str) -> None:
    for keyword in _SAME:
        theirs, ours = _theirs(sources[0], keyword, default), _plain(result, keyword, "")
        if theirs == ours:
            continue
        must_stay = _MUST_STAY_IF.get(keyword)
        if ours == "" and must_stay is not None and not must_stay(theirs):
            continue
        refuse("identity", uid, f"{keyword} differs from that of the source images")
    for keyword in _MAY_BE_LEFT_OUT:
        ours = _plain(result, keyword, "")
        if ours and ours != _theirs(sources[0], keyword, default):
            refuse("identity", uid, f"{keyword} differs from that of the source images")
    if strange := _other_ids(result) - _other_ids(sources[0]):
        refuse("identity", uid, f"it knows the patient as {min(strange)}, the source images don't")
    # Images that say the same in the same bytes need not be read each.
    distinct = {tuple(_unread(each, keyword) for keyword in _WHOSE): each for each in sources[1:]}
    for source in distinct.values():
        for keyword in ("StudyInstanceUID", "PatientID"):
            if _theirs(source, keyword, default) != _plain(result, keyword, ""):
                refuse("identity", uid, f"{keyword} differs from that of {source.SOPInstanceUID}")
        for keyword in ("IssuerOfPatientID", "PatientBirthDate"):  # where both are known
            theirs, ours = _theirs(source, keyword, default), _plain(result, keyword, "")
            if theirs and ours and theirs != ours:
                refuse("identity", uid, f"{keyword} differs from that of {source.SOPInstanceUID}")


def _other_ids(dataset: Dataset) -> set[str]:
    """Return further Patient IDs; those in another character set than ASCII can't be compared."""
    said = (
        str(each.get("PatientID") or "") for each in dataset.get("OtherPatientIDsSequence") or ()
    )
    return {each.strip(" \0") for each in said if each.isascii()} - {""}


def _body_part(result: Dataset, uid: str, sources: Sequence[Dataset]) -> None:
    """Check that a series is of the part and the side of its images (PS3.3 C.7.3.1)."""
    ours = _plain(result, "BodyPartExamined", "")
    theirs = _theirs(sources[0], "BodyPartExamined", "")
    document = result.SOPClassUID in _DOCUMENTS
    if ours != (theirs if _BODY_PART.fullmatch(theirs) and not document else ""):
        refuse("identity", uid, "BodyPartExamined differs from that of the source images")
    sides = {
        _theirs(each, "Laterality", "") or _theirs(each, "ImageLaterality", "") for each in sources
    }
    one_side = sides in ({"L"}, {"R"}) and bool(ours) and result.SOPClassUID != PM
    side = _plain(result, "Laterality", "")  # the frames of a map say theirs
    if {side} != (sides if one_side else {""}):
        refuse("identity", uid, "Laterality differs from that of the source images")


def _unread(source: Dataset, keyword: str) -> bytes | str:
    """Return a value as it stood in the file where nobody read it before."""
    if keyword not in source:
        return ""
    element = source.get_item(Tag(keyword))
    return bytes(element.value or b"") if element.is_raw else str(element.value)


def _zone(result: Dataset, uid: str, sources: Sequence[Dataset]) -> None:
    ours = str(result.TimezoneOffsetFromUTC)
    theirs = str(sources[0].get("TimezoneOffsetFromUTC") or "").strip()
    if not _OFFSET.fullmatch(ours):
        refuse("attributes", uid, f"its offset from UTC is {ours}")
    if _OFFSET.fullmatch(theirs) and theirs not in {ours, "-0000"}:
        refuse("identity", uid, "its times stand at another offset from UTC than the images'")


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


def _theirs(source: Dataset, keyword: str, default: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the source spells wrong is no fault of the result
        return _plain(source, keyword, default)


def _plain(dataset: Dataset, keyword: str, default: str) -> str:
    if keyword not in dataset:
        return ""
    text = str(dataset[keyword].value or "")
    declared = dataset.get("SpecificCharacterSet")
    if default and not (declared if isinstance(declared, str) else any(declared or ())):
        # pydicom took undeclared bytes for Latin-1; what they are, the node's configuration says.
        try:
            raw = text.encode("latin-1")
        except UnicodeEncodeError:
            return text
        text = decode_bytes(raw, convert_encodings(default.split("\\")), {0x5C, 0x5E, 0x3D})
    text = text.replace(_ISO_58, "").strip(" \0")
    return text.rstrip("=") if keyword.endswith("Name") else text


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


def code_of(item: Dataset) -> str:
    """Return the value of a coded concept, short or long (PS3.3 8.8)."""
    return str(item.get("CodeValue") or item.get("LongCodeValue") or "")


def is_coded(item: Dataset, code: Code) -> bool:
    """Tell whether an item is a code, its meaning too: that is what people read."""
    return (code_of(item), item.get("CodingSchemeDesignator"), item.get("CodeMeaning")) == (
        code.value,
        code.scheme,
        code.meaning,
    )


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
