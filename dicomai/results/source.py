"""What a result takes over from its source image: patient, study, request, with text decoded.

Identity that can't be read stops the result; any other text that can't be read is left out, and
the result says so. Values that break their value representation are left out in the same way,
rather than handed on to a PACS that would refuse the whole object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pydicom import config
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName, format_number_as_ds

from dicomai.dicom import charset
from dicomai.dicom.charset import TEXT_VRS, Terms, UndeclaredText, UnreadableText
from dicomai.dicom.dates import is_day
from dicomai.errors import InputError
from dicomai.imaging.attributes import items_of, text

IDENTITY: Final = frozenset(
    {"PatientName", "PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID"}
)
PATIENT: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientSpeciesDescription",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
)
STUDY: Final = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    "ProcedureCodeSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "AdmissionID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
REQUEST: Final = "RequestAttributesSequence"
# Type 2 in the Patient and General Study Modules (PS3.3 C.7.1.1, C.7.2.1): there, if empty.
_NEVER_ABSENT: Final = (
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
_LENGTH: Final = MappingProxyType({"LO": 64, "SH": 16, "PN": 64 * 3 + 2, "ST": 1024, "LT": 10240})
# C0 and DEL have no place in a line of text; texts of several lines may have these (PS3.5 6.1.3).
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_IN_LINES: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_SHAPE: Final = MappingProxyType(
    {
        "AS": re.compile(r"\d{3}[DWMY]"),
        "CS": re.compile(r"[A-Z0-9_ ]{1,16}"),
        "DA": re.compile(r"\d{8}"),
        "DS": re.compile(r"(?=.{1,16}\Z)[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"),
        "DT": re.compile(r"\d{4,14}(?:\.\d{1,6})?(?:[+-]\d{4})?"),
        "IS": re.compile(r"[+-]?\d{1,11}"),
        "TM": re.compile(r"(?:[01]\d|2[0-3])(?:[0-5]\d(?:(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?"),
        "UI": re.compile(r"[0-9.]{1,64}"),
        "UR": re.compile(r"\S+"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Carried:
    """What goes from the source into its results.

    Attributes
    ----------
    dataset
        Patient, study and request attributes; every text a str, no character set of its own.
    terms
        The character set that the source's text is in.
    notes
        What was left out or read otherwise than declared, one sentence each.
    """

    dataset: Dataset
    terms: Terms
    notes: tuple[str, ...]


def carried(source: Dataset, charset_default: str = "") -> Carried:
    """Return what results take over from a source image.

    Parameters
    ----------
    source
        Its header.
    charset_default
        What undeclared bytes above 127 are in, as the node's configuration says.

    Raises
    ------
    UndeclaredText
        Part of the identity has bytes above 127, and nothing says what they mean.
    UnreadableText
        Part of the identity can't be read in the declared character set.
    InputError
        It names several Patient IDs.
    """
    reader = _Reader(source, charset_default)
    dataset = Dataset()
    for keyword in (*PATIENT, *STUDY, REQUEST):
        tag = tag_for_keyword(keyword)
        assert tag is not None
        if (element := reader.element(source, tag, keyword)) is not None:
            dataset.add(element)
        elif keyword in _NEVER_ABSENT:
            dataset.add(_element(tag, dictionary_VR(tag), ""))
    if sides_of(source) == {"L", "R"}:
        reader.notes.append(
            f"{source.get('SOPInstanceUID', '?')} says that it shows the side "
            f"{text(source, 'Laterality')} (Laterality) and {text(source, 'ImageLaterality')} "
            "(Image Laterality). The result names none; look at the image for its side."
        )
    return Carried(dataset=dataset, terms=reader.terms, notes=tuple(reader.notes))


def sides_of(image: Dataset) -> frozenset[str]:
    """Return the sides that an image or a flat frame says it shows, or its series (C.7.3.1)."""
    keywords = ("Laterality", "ImageLaterality", "FrameLaterality")
    said = (text(image, keyword) for keyword in keywords)
    return frozenset(each for each in said if each)


def stated(image: Dataset, keyword: str) -> list[str]:
    """Return the values of an attribute as an image spells them, none where they can't be read."""
    try:
        return text(image, keyword).split("\\")
    except (InputError, ValueError):
        return []


def is_sound(value: str, vr: str) -> bool:
    """Tell whether a value that stands for something keeps to its representation."""
    return value != "" and _sound(value, vr, "")


def decimal(value: str) -> str:
    """Return a number as a DS, rounded where it has too many digits; "" for what is none."""
    if is_sound(value, "DS"):
        return value
    try:
        number = float(value)
    except ValueError:
        return ""
    return format_number_as_ds(number) if math.isfinite(number) else ""


def texts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yield (value representation, text) of every text in a data set, its sequences too."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from texts(item)
        elif element.VR in TEXT_VRS and element.value is not None:
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            for value in values:
                yield str(element.VR), str(value)


class _Reader:
    """Reads the elements of one source, with what was declared and configured about its text."""

    def __init__(self, source: Dataset, charset_default: str) -> None:
        self.notes: list[str] = []
        self._uid = str(source.get("SOPInstanceUID", "?"))
        self._default = charset.terms_of(charset_default.split("\\"))
        declared = _declared(source)
        self.terms = declared or self._default

    def element(self, holder: Dataset, tag: int, path: str) -> DataElement | None:
        """Return a copy of an element with its text decoded; None where nothing usable stands."""
        if tag not in holder:
            return None
        raw = holder.get_item(tag)
        # What its file says may be wrong, and would be so in the result.
        vr = dictionary_VR(tag)
        if vr == "SQ":
            read = [self._item(item, path) for item in self._items(holder, tag, path)]
            items = [item for item in read if len(item)]
            return _element(tag, "SQ", items) if items else None
        try:
            value = self._text(raw, vr, path)
        except (UndeclaredText, UnreadableText) as trouble:
            if path in IDENTITY:
                raise
            self.notes.append(f"{trouble.sentence} It is left out of the result.")
            return None
        values = [part.strip(" \0") for part in _parts(value, vr)]
        if vr == "PN":
            values = [part.rstrip("=") for part in values]
        if not any(values):
            return _element(tag, vr, "")
        if path == "PatientID" and len(values) > 1:
            raise InputError(
                f"{path} of {self._uid} has {len(values)} values, so nobody can say whose it is. "
                "Correct it at the modality or in the PACS, and send the study again.",
                subject=self._uid,
            )
        if not all(_sound(part, vr, path) for part in values):
            if path in IDENTITY and vr in TEXT_VRS:  # but it is what the images say everywhere
                self.notes.append(
                    f"{path} of {self._uid} is too long for {vr} or has control characters; it "
                    "stands in the result as it stands in the images."
                )
                return _element(tag, vr, values if len(values) > 1 else values[0])
            self.notes.append(
                f"{path} of {self._uid} is no valid {vr}, and is left out of the result."
            )
            return None
        return _element(tag, vr, values if len(values) > 1 else values[0])

    def _items(self, holder: Dataset, tag: int, path: str) -> Sequence[Dataset]:
        try:
            return items_of(holder, keyword_for_tag(tag))
        except InputError:
            self.notes.append(
                f"{path} of {self._uid} is no sequence that can be read, and is left out of the "
                "result."
            )
            return ()

    def _item(self, item: Dataset, path: str) -> Dataset:
        # An item may declare its own set; else it is in that of what holds it (PS3.5 7.5.3).
        outer, self.terms = self.terms, _declared(item) or self.terms
        copy = Dataset()
        for tag in sorted(item.keys()):
            keyword = keyword_for_tag(tag)
            if tag.is_private or not keyword or keyword == "SpecificCharacterSet":
                continue
            element = self.element(item, tag, f"{path}.{keyword}")
            # Of a request, what is empty may not be there (PS3.3 10.6); elsewhere it is of type 2.
            if element is not None and (element.value or not path.startswith(REQUEST)):
                copy.add(element)
        self.terms = outer
        return copy

    def _text(self, element: DataElement | RawDataElement | None, vr: str, path: str) -> str:
        """Return the value as one text, several values between backslashes."""
        raw = _bytes(element)
        if isinstance(raw, str):  # decoded before it came here; what was lost then shows
            text = raw.replace("\x1b$)A", "")
            if "\ufffd" in text or "\x1b" in text:
                raise UnreadableText(self._unreadable(path), subject=self._uid)
            if self.terms or text.isascii():
                return text
            try:
                raw = text.encode("latin-1")  # undeclared: pydicom took Latin-1
            except UnicodeEncodeError:
                raise UnreadableText(self._unreadable(path), subject=self._uid) from None
        if vr not in TEXT_VRS:
            return raw.decode("ascii", errors="replace")
        try:
            text = charset.decode(raw, self.terms, vr)
            if "\ufffd" in text:
                raise UnicodeError("it was lost before it came here")
            return text
        except UnicodeError as trouble:
            if not self.terms:
                raise UndeclaredText(
                    f"{path} of {self._uid} has bytes above 127, and the image declares no "
                    "character set. Set charset_default of its node, as "
                    'charset_default = "ISO_IR 100", and try again.',
                    subject=self._uid,
                ) from trouble
            raise UnreadableText(self._unreadable(path), subject=self._uid) from trouble

    def _unreadable(self, path: str) -> str:
        declared = "\\".join(self.terms) or "none"
        return (
            f"{path} of {self._uid} can't be read in the character set that the image declares "
            f"({declared}). Correct it at the modality or in the PACS, and send the study again."
        )


def _declared(dataset: Dataset) -> Terms:
    raw = dataset.get_item("SpecificCharacterSet") if "SpecificCharacterSet" in dataset else None
    value = raw.value if raw is not None else None
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace").split("\\")
    return charset.terms_of(value)


def _bytes(element: DataElement | RawDataElement | None) -> bytes | str:
    """Return a value as it stood in the file where pydicom still has it, else as it read it."""
    value = element.value if element is not None else None
    if isinstance(value, PersonName):
        return value.original_string if isinstance(value.original_string, bytes) else str(value)
    if isinstance(value, MultiValue | list):
        return "\\".join(str(part) for part in value)
    if value is None or isinstance(value, bytes):
        return value or b""
    return str(value)


def _parts(text: str, vr: str) -> Sequence[str]:
    return [text] if vr in {"LT", "ST", "UT", "UR"} else text.split("\\")


def _sound(text: str, vr: str, path: str) -> bool:
    if path == "PatientSex":
        return text in {"", "M", "F", "O"}
    if vr in _SHAPE:
        return text == "" or (
            _SHAPE[vr].fullmatch(text) is not None and (vr != "DA" or is_day(text))
        )
    controls = _CONTROL_IN_LINES if vr in {"LT", "ST", "UT"} else _CONTROL
    if controls.search(text):
        return False
    if vr == "PN" and any(len(group) > 64 for group in text.split("=")):
        return False
    return len(text) <= _LENGTH.get(vr, 2**31)


def _element(tag: int, vr: str, value: object) -> DataElement:
    return DataElement(tag, vr, value, validation_mode=config.IGNORE)


def put(result: Dataset, elements: Iterable[DataElement]) -> None:
    """Set elements of a result, in the place of those that stand there."""
    for element in elements:
        result.add(element)
