"""What both kinds of result must say outside their content: IOD, identity, references, text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Final

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.dataset import Dataset

from dicomai.findings import Findings
from dicomai.results.gate.error import refuse

SEG: Final = "1.2.840.10008.5.1.4.1.1.66.4"
SR: Final = "1.2.840.10008.5.1.4.1.1.88.34"
# Type 1 of the modules that are mandatory: PS3.3 A.51.3 and A.35.13.3.
_TYPE_1: Final = {
    "": (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "Modality",
        "InstanceNumber",
        "ContentDate",
        "ContentTime",
        "Manufacturer",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "SoftwareVersions",
        "DeviceUID",
        "ContributingEquipmentSequence",
        "TimezoneOffsetFromUTC",
    ),
    SEG: (
        "FrameOfReferenceUID",
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
        "CompletionFlag",
        "VerificationFlag",
        "ValueType",
        "ConceptNameCodeSequence",
        "ContentTemplateSequence",
        "ContentSequence",
        "CurrentRequestedProcedureEvidenceSequence",
    ),
}
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
# A value that breaks its representation can't be handed on; then nothing stands in its place.
_MAY_BE_LEFT_OUT: Final = {
    "PatientBirthDate": re.compile(r"\d{8}"),
    "PatientSex": re.compile(r"[MFO]"),
    "StudyDate": re.compile(r"\d{8}"),
    "StudyTime": re.compile(r"\d{2,6}(\.\d{1,6})?"),
    "StudyDescription": re.compile(r"[\x20-\x7e]{1,64}"),
    "ReferringPhysicianName": re.compile(r"[\x20-\x7e]{1,64}"),
}
_LONGEST_SAID: Final = 1000  # of the 1024 characters of Short Text; what is cut, the SR says
_ISO_58: Final = "\x1b$)A"


def check_header(
    result: Dataset, findings: Findings, sources: Sequence[Dataset], charset_default: str
) -> None:
    """Check what stands outside the content."""
    uid = str(result.SOPInstanceUID)
    for keyword in (*_TYPE_1[""], *_TYPE_1[str(result.SOPClassUID)]):
        if keyword not in result or result[keyword].is_empty:
            refuse("attributes", uid, f"{keyword} is missing or empty")
    for keyword in _TYPE_2:
        if keyword not in result:
            refuse("attributes", uid, f"{keyword} is missing")
    _identity(result, uid, sources, charset_default)
    _own_series(result, uid, sources)
    _references(result, uid, findings, sources)
    _text(result, uid)
    _provenance(result, uid, findings)


def _identity(result: Dataset, uid: str, sources: Sequence[Dataset], default: str) -> None:
    for keyword in _SAME:
        theirs, ours = _theirs(sources[0], keyword, default), _plain(result, keyword, "")
        if theirs == ours:
            continue
        shape = _MAY_BE_LEFT_OUT.get(keyword)
        if ours == "" and shape is not None and not shape.fullmatch(theirs):
            continue
        refuse("identity", uid, f"{keyword} differs from that of the source images")
    for source in sources[1:]:
        for keyword in ("StudyInstanceUID", "PatientID"):
            if _theirs(source, keyword, default) != _plain(result, keyword, ""):
                refuse("identity", uid, f"{keyword} differs from that of {source.SOPInstanceUID}")


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
        raw = text.encode("latin-1", errors="replace")
        text = decode_bytes(raw, convert_encodings(default.split("\\")), {0x5C, 0x5E, 0x3D})
    text = text.replace(_ISO_58, "").strip(" \0")
    return text.rstrip("=") if keyword.endswith("Name") else text


def _own_series(result: Dataset, uid: str, sources: Sequence[Dataset]) -> None:
    if any(source.SeriesInstanceUID == result.SeriesInstanceUID for source in sources):
        refuse("identity", uid, "it claims to belong to the series of its source images")
    if any(source.SOPInstanceUID == uid for source in sources):
        refuse("identity", uid, "it has the SOP Instance UID of a source image")


def code_of(item: Dataset) -> str:
    """Return the value of a coded concept, short or long (PS3.3 8.8)."""
    return str(item.get("CodeValue") or item.get("LongCodeValue") or "")


def known_instances(findings: Findings, sources: Sequence[Dataset]) -> set[str]:
    """Return the SOP Instance UIDs of what the model saw."""
    return {str(source.SOPInstanceUID) for source in sources} | {
        image.sop_instance_uid for image in findings.inputs
    }


def _references(result: Dataset, uid: str, findings: Findings, sources: Sequence[Dataset]) -> None:
    """Check that what the header lists is exactly what the model saw, and for an SR the SEG too."""
    known = known_instances(findings, sources)
    if result.SOPClassUID == SEG:
        listed = {
            str(each.ReferencedSOPInstanceUID)
            for series in result.ReferencedSeriesSequence
            for each in series.ReferencedInstanceSequence
        }
        if strange := listed - known:
            refuse("references", uid, f"it refers to {min(strange)}, which the model did not see")
        return
    evidence = {
        str(each.ReferencedSOPInstanceUID): str(each.ReferencedSOPClassUID)
        for keyword in (
            "CurrentRequestedProcedureEvidenceSequence",
            "PertinentOtherEvidenceSequence",
        )
        for study in result.get(keyword) or ()
        for series in study.ReferencedSeriesSequence
        for each in series.ReferencedSOPSequence
    }
    if missing := known - set(evidence):
        refuse("references", uid, f"its evidence lacks {min(missing)}")
    for each, sop_class in evidence.items():
        if each not in known and sop_class != SEG:
            refuse("references", uid, f"its evidence names {each}, which the model did not see")


def _text(result: Dataset, uid: str) -> None:
    for keyword, text in _texts(result):
        if "\ufffd" in text or "\x1b" in text:
            refuse("text", uid, f"{keyword} can't be read back in its character set")


def _texts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _texts(item)
        elif element.VR in {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}:
            yield element.keyword, str(element.value)


def _provenance(result: Dataset, uid: str, findings: Findings) -> None:
    algorithm = findings.algorithm
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
