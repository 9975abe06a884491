"""What stands on every result: patient, study, request, series, equipment, time and text."""

from __future__ import annotations

import copy
import re
from typing import Final

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomai.dicom import charset
from dicomai.dicom.body_parts import UNPAIRED
from dicomai.dicom.codes import Code
from dicomai.dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.findings import Findings
from dicomai.imaging.attributes import text
from dicomai.results import uids
from dicomai.results.job import Job, came_with_loss
from dicomai.results.objects import KINDS
from dicomai.results.source import (
    REQUEST,
    decimal,
    is_sound,
    put,
    stated,
    texts,
)

ACQUISITION_EQUIPMENT: Final = Code("109101", "DCM", "Acquisition Equipment")
PROCESSING_EQUIPMENT: Final = Code("109102", "DCM", "Processing Equipment")
_UNVERIFIED: Final = " - unverified"
_DOCUMENTS: Final[frozenset[uids.Kind]] = frozenset({"SR", "KO", "SR:ENHANCED", "SR:TEXT"})
# Their modules have no Content Date and Time, but a date of their own.
_UNDATED: Final[frozenset[uids.Kind]] = frozenset({"PR", "RTSTRUCT"})


def reference(image: Dataset) -> Dataset:
    """Return a reference to an image, or to the frame that a header of `Job.slices` is of."""
    item = Dataset()
    item.ReferencedSOPClassUID = image.SOPClassUID
    item.ReferencedSOPInstanceUID = image.SOPInstanceUID
    if "ReferencedFrameNumber" in image:
        item.ReferencedFrameNumber = image.ReferencedFrameNumber
    return item


def _nobody() -> Dataset:
    """Return what highdicom wants of a patient and a study, empty."""
    empty = Dataset()
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyDate",
        "StudyTime",
    ):
        setattr(empty, keyword, "")
    return empty


_NOBODY: Final = _nobody()
_SHAPE: Final = tuple(
    Tag(keyword)
    for keyword in (
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "Rows",
        "Columns",
        "Modality",
        "ImageType",
    )
)


def stand_in(source: Dataset) -> Dataset:
    """Return the part of a source header that highdicom reads: geometry and UIDs, no text.

    Patient and study are put in place by `complete`: highdicom raises on character sets with an
    empty first value, on a Patient's Sex that is none, on dates with dots.
    """
    bare = Dataset()
    for tag in _SHAPE:
        if tag in source and (element := source[tag]).value is not None:
            bare.add(copy.copy(element))  # what is set on it is not set on the source
    indicator = text(source, "PositionReferenceIndicator")
    if indicator.isascii() and is_sound(indicator, "LO"):
        bare.PositionReferenceIndicator = indicator
    bare.update(_NOBODY)
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return bare


def complete(result: Dataset, job: Job, kind: uids.Kind, number: int = 1) -> None:
    """Put on a result what every result has, and choose its character set last.

    `number` is its Instance Number within its series.
    """
    # A document names its request in another way (PS3.3 C.17.2).
    left_out = REQUEST if kind in _DOCUMENTS else ""
    shared = [each for each in job.carried.dataset if each.keyword != left_out]
    # pydicom keeps the bytes that a name was first written as, and results differ in character set.
    put(result, copy.deepcopy(shared))
    result.SOPClassUID = KINDS[kind].sop_class_uid
    result.SOPInstanceUID = uids.instance_uid(job.uuid, kind, number)
    result.SeriesInstanceUID = uids.series_uid(job.uuid, kind)
    _series(result, job, kind, number)
    if kind not in _DOCUMENTS:
        _body_part(result, job)
    _equipment(result, job)
    result.TimezoneOffsetFromUTC = job.offset
    terms = charset.chosen_for(job.carried.terms, texts(result))
    if terms:
        result.SpecificCharacterSet = list(terms) if len(terms) > 1 else terms[0]
    elif "SpecificCharacterSet" in result:
        del result.SpecificCharacterSet
    file_meta(result)


def _series(result: Dataset, job: Job, kind: uids.Kind, number: int) -> None:
    result.Modality = KINDS[kind].modality
    result.SeriesNumber = job.series_number(kind)
    algorithm = job.findings.algorithm
    what = f"AI {KINDS[kind].words} {algorithm.name} {algorithm.version}"
    result.SeriesDescription = what[: 64 - len(_UNVERIFIED)] + _UNVERIFIED
    result.InstanceNumber = number
    date, time = job.date_and_time
    for keyword in ("Series", *(() if kind in _UNDATED else ("Content",)), "InstanceCreation"):
        setattr(result, f"{keyword}Date", date)
        setattr(result, f"{keyword}Time", time)


def _body_part(result: Dataset, job: Job) -> None:
    part = text(job.sources[0], "BodyPartExamined")
    if re.fullmatch(r"[A-Z0-9_ ]{1,16}", part) is not None:  # some write prose here
        result.BodyPartExamined = part
    if result.SOPClassUID == KINDS["PM"].sop_class_uid:
        return  # its frames say on which side they are, and then the series may not
    if job.side in {"L", "R"}:  # also where the part has only a code, which X-rays have
        result.Laterality = job.side
    elif part not in UNPAIRED and result.Modality in {"OT", "PR", "DOC"}:
        result.Laterality = ""  # of a body part that may be one of a pair (PS3.3 C.7.3.1)


def _equipment(result: Dataset, job: Job) -> None:
    algorithm, context = job.findings.algorithm, job.context
    result.Manufacturer = context.manufacturer
    result.ManufacturerModelName = context.model_name
    result.SoftwareVersions = context.software_version
    # What is in the place of a serial number: the digest of the package that found it.
    result.DeviceSerialNumber = algorithm.package_sha256
    result.DeviceUID = uids.device_uid(algorithm.package_sha256)
    if context.institution_name:
        result.InstitutionName = context.institution_name
    result.ContributingEquipmentSequence = [
        _acquisition(job.sources[0]),
        _contribution(
            PROCESSING_EQUIPMENT,
            {
                "Manufacturer": algorithm.manufacturer,
                "ManufacturerModelName": algorithm.name,
                "SoftwareVersions": algorithm.version,
                "DeviceSerialNumber": algorithm.package_sha256,
                "DeviceUID": uids.device_uid(algorithm.package_sha256),
                "ContributionDescription": _said(job.findings),
            },
        ),
        _contribution(
            PROCESSING_EQUIPMENT,
            {
                "Manufacturer": context.manufacturer,
                "ManufacturerModelName": context.model_name,
                "SoftwareVersions": context.software_version,
                "ContributionDescription": _ran(job),
            },
        ),
    ]


def _said(findings: Findings) -> str:
    """Return what a SEG, which has no words of its own, says of the model."""
    algorithm = findings.algorithm
    said = [
        "UNVERIFIED result of an AI model.",
        algorithm.warning,  # first, for what is too long is cut at its end
        f"Intended use: {algorithm.intended_use}",
        *(f"Deviation: {each}" for each in findings.deviations),
    ]
    return " ".join(said)


def _ran(job: Job) -> str:
    route = job.context.route
    asked = f", as route {route} asked" if route.isascii() and route.isprintable() and route else ""
    took = f" in {taken}" if (taken := time_taken(job.findings)) else ""
    return f"Ran the AI model and wrote its result{asked}{took}"


def time_taken(findings: Findings) -> str:
    """Return how long the model was at it, as `12.3 s: preprocess 2.1 s, infer 10.2 s`."""
    stages = findings.stages_s
    each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
    return f"{sum(stages.values()):.1f} s: {each}" if stages else ""


def _acquisition(source: Dataset) -> Dataset:
    known = {}
    for keyword in (
        "Manufacturer",
        "ManufacturerModelName",
        "StationName",
        "DeviceSerialNumber",
        "SoftwareVersions",
    ):
        first = text(source, keyword).partition("\\")[0]
        # Only plain words: how a scanner names itself is not worth another character set.
        if first and first.isascii() and first.isprintable() and len(first) <= 64:
            known[keyword] = first
    if len(known.get("StationName", "")) > 16:
        del known["StationName"]
    return _contribution(ACQUISITION_EQUIPMENT, {"Manufacturer": "unknown", **known})


def note_loss(result: Dataset, job: Job) -> None:
    """Hand on that images were once compressed with loss: it is never taken back."""
    lossy = job.compressed_with_loss
    if lossy is None:
        return
    result.LossyImageCompression = "01"
    ratios = [decimal(each) for each in stated(lossy, "LossyImageCompressionRatio")]
    if ratios and all(ratios):
        result.LossyImageCompressionRatio = ratios
    methods = stated(lossy, "LossyImageCompressionMethod")
    if methods and all(is_sound(each, "CS") for each in methods):
        result.LossyImageCompressionMethod = methods
    if came_with_loss(lossy) and "LossyImageCompressionMethod" not in result:
        result.LossyImageCompressionMethod = "ISO_10918_1"


def _contribution(purpose: Code, attributes: dict[str, str]) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(purpose)]
    put(item, (text_element(keyword, value) for keyword, value in attributes.items()))
    return item


def code_item(code: Code) -> Dataset:
    """Return a code sequence's item (PS3.3 8.8)."""
    item = Dataset()
    # Short String ends at 16 characters; some SNOMED codes are longer (PS3.3 8.8).
    if len(code.value) > 16:
        item.LongCodeValue = code.value
    else:
        item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = code.meaning
    return item


def text_element(keyword: str, value: str) -> DataElement:
    """Return an element of a result, cut to the length that its representation allows."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    vr = dictionary_VR(tag)
    longest = {"LO": 64, "SH": 16, "ST": 1024}.get(vr, len(value))
    return DataElement(tag, vr, value[:longest], validation_mode=config.IGNORE)


def file_meta(result: Dataset) -> None:
    """Put the File Meta Information on a result (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = result.SOPClassUID
    meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    # The data of one long contour do not fit into an element with an explicit representation.
    structures = result.SOPClassUID == KINDS["RTSTRUCT"].sop_class_uid
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if structures else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    result.file_meta = meta
    result.preamble = b"\0" * 128
