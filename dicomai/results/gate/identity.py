"""Whose a result is: patient, study, part, side and zone, held against the source images."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Final

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from dicomai.findings import Findings
from dicomai.results.gate.classes import ENHANCED_SR, KO, PM, SR, TEXT_SR
from dicomai.results.gate.elements import readable_items
from dicomai.results.gate.error import refuse
from dicomai.results.gate.planes import group, images_of

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
# Of the patient at the study's time; left out where the source's break their representation.
_MAY_BE_LEFT_OUT: Final = ("PatientAge", "PatientSize", "PatientWeight")
_BODY_PART: Final = re.compile(r"[A-Z0-9_ ]{1,16}")
_GROUPS: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_DOCUMENTS: Final = frozenset({SR, ENHANCED_SR, TEXT_SR, KO})
_OFFSET: Final = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]")
_ISO_58: Final = "\x1b$)A"


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


# A value that breaks its representation can't be handed on; then nothing stands in its place.
_MUST_STAY_IF: Final[dict[str, Callable[[str], bool]]] = {
    "PatientBirthDate": _is_date,
    "PatientSex": lambda text: text in {"M", "F", "O"},
    "StudyDate": _is_date,
    "StudyTime": _is_time,
    "StudyDescription": _is_plain,
    "ReferringPhysicianName": _is_plain,
}


def check_identity(
    result: Dataset,
    findings: Findings,
    sources: Sequence[Dataset],
    charset_default: str,
    placeholder_ids: Collection[str],
) -> None:
    """Check that a result is of the patient and the study of its images, and of their part."""
    uid = str(result.SOPInstanceUID)
    _identity(result, uid, sources, charset_default)
    _all_of_one(result, uid, sources, charset_default, placeholder_ids)
    _body_part(result, uid, sources, findings)
    _zone(result, uid, sources)


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


def _all_of_one(
    result: Dataset,
    uid: str,
    sources: Sequence[Dataset],
    default: str,
    placeholder_ids: Collection[str],
) -> None:
    """Check that all images are the result's patient's; an ID that stands for none is none."""
    none = {"", *placeholder_ids}
    # Images that say the same in the same bytes need not be read each.
    distinct = {tuple(_unread(each, keyword) for keyword in _WHOSE): each for each in sources[1:]}
    for source in distinct.values():
        for keyword in ("StudyInstanceUID", "PatientID"):
            theirs, ours = _theirs(source, keyword, default), _plain(result, keyword, "")
            if theirs != ours and not (keyword == "PatientID" and {theirs, ours} <= none):
                refuse("identity", uid, f"{keyword} differs from that of {source.SOPInstanceUID}")
        for keyword in ("IssuerOfPatientID", "PatientBirthDate"):  # where both are known
            theirs, ours = _theirs(source, keyword, default), _plain(result, keyword, "")
            if keyword == "PatientBirthDate" and not _is_date(theirs):
                continue  # 00000000 says nothing
            if keyword == "IssuerOfPatientID" and _plain(result, "PatientID", "") in none:
                continue  # of no ID
            if theirs and ours and theirs != ours:
                refuse("identity", uid, f"{keyword} differs from that of {source.SOPInstanceUID}")


def _other_ids(dataset: Dataset) -> set[str]:
    """Return further Patient IDs; those in another character set than ASCII can't be compared."""
    said = (
        str(each.get("PatientID") or "")
        for each in readable_items(dataset, "OtherPatientIDsSequence")
    )
    return {each.strip(" \0") for each in said if each.isascii()} - {""}


def _body_part(result: Dataset, uid: str, sources: Sequence[Dataset], findings: Findings) -> None:
    """Check that a series is of the part and the side of its images (PS3.3 C.7.3.1)."""
    ours = _plain(result, "BodyPartExamined", "")
    theirs = _theirs(sources[0], "BodyPartExamined", "")
    document = result.SOPClassUID in _DOCUMENTS
    if ours != (theirs if _BODY_PART.fullmatch(theirs) and not document else ""):
        refuse("identity", uid, "BodyPartExamined differs from that of the source images")
    by_uid = {str(each.SOPInstanceUID): each for each in sources}
    shown = [(by_uid[sop], frame) for sop, frame in images_of(findings) if sop in by_uid]
    sides = {_side(*each) for each in shown}
    one_side = sides in ({"L"}, {"R"}) and not document and result.SOPClassUID != PM
    side = _plain(result, "Laterality", "")  # the frames of a map say theirs
    if {side} != (sides if one_side else {""}):
        refuse("identity", uid, "Laterality differs from that of the source images")


def _side(source: Dataset, frame: int) -> str:
    """Return the side that an image, or a frame of one, says it shows, "" where it says two."""
    said = {
        _theirs(source, each, "") for each in ("Laterality", "ImageLaterality") if each in source
    }
    # An object of one frame may say it there too.
    if any(each in source for each in _GROUPS) and (
        anatomy := group(source, max(frame - 1, 0), "FrameAnatomySequence")
    ):
        said.add(_theirs(anatomy, "FrameLaterality", ""))
    said.discard("")
    return said.pop() if len(said) == 1 else ""


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


def _theirs(source: Dataset, keyword: str, default: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the source spells wrong is no fault of the result
        return _plain(source, keyword, default)


def _plain(dataset: Dataset, keyword: str, default: str) -> str:
    if keyword not in dataset:
        return ""
    value = dataset[keyword].value or ""
    text = "\\".join(map(str, value if isinstance(value, MultiValue) else [value]))
    declared = dataset.get("SpecificCharacterSet")
    if default and not (declared if isinstance(declared, str) else any(declared or ())):
        # pydicom took undeclared bytes for Latin-1; what they are, the node's configuration says.
        try:
            raw = text.encode("latin-1")
        except UnicodeEncodeError:
            return text
        text = decode_bytes(raw, convert_encodings(default.split("\\")), {0x5C, 0x5E, 0x3D})
    # Spaces mean nothing around any of several values (PS3.5 6.2), nor do values that are empty.
    values = [each.strip(" \0") for each in text.replace(_ISO_58, "").split("\\")]
    if keyword.endswith("Name"):
        values = [each.rstrip("=") for each in values]
    return "\\".join(values) if any(values) else ""
