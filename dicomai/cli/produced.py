"""What dicomai writes, for its conformance statement: objects, their attributes, their codes.

The attributes are those of objects that are encoded here, from a small CT in which something of
every kind was found.
"""

from __future__ import annotations

import pkgutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Final, TypeAlias

import numpy as np
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import UID

from dicomai import results
from dicomai.dicom.codes import MILLILITRE, OURS, RIGHT, Code
from dicomai.dicom.dates import Instant
from dicomai.findings import (
    Algorithm,
    Classification,
    Detection,
    Findings,
    Measurement,
    Segment,
    SourceImage,
    Sphere,
)
from dicomai.imaging.geometry import Grid
from dicomai.inference import measure
from dicomai.results.context import ResultContext
from dicomai.results.encode import encode
from dicomai.results.objects import KEY_OBJECT_STORAGE, KINDS, kind_of
from dicomai.results.rejection import encode_rejection
from dicomai.results.source import PATIENT, REQUEST, STUDY
from dicomai.results.uids import LABELMAP_STORAGE
from dicomai.routing.route import RESULT_OBJECTS, ResultObject

Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[object]]]
"""Head and rows."""
_EXAMPLE: Final = uuid.UUID(int=1)
_SHAPE: Final = (4, 16, 16)
_ROOT: Final = "2.25.1"
_LUNG: Final = Code("39607008", "SCT", "Lung")
_NODULE: Final = Code("427359005", "SCT", "Solitary nodule of lung")
_NOTE: Final = "Rejection note"
_NEWER: Final = {LABELMAP_STORAGE: "Label Map Segmentation Storage"}
"""SOP classes that pydicom's dictionary lacks."""


def objects() -> Table:
    """Return the kinds of objects that are written."""
    rows = [
        (
            f"`{'SEG:LABELMAP' if kind == 'LABELMAP' else kind}`",
            _NEWER.get(each.sop_class_uid) or UID(each.sop_class_uid).name,
            each.sop_class_uid,
            each.modality,
            _syntax(kind),
        )
        for kind, each in KINDS.items()
    ]
    note = _note()
    rows.append(
        (_NOTE, UID(KEY_OBJECT_STORAGE).name, KEY_OBJECT_STORAGE, note.Modality, _written_in(note))
    )
    return ("`objects` of a route", "SOP class", "UID", "modality", "written in"), rows


def carried() -> Table:
    """Return the attributes that results take over from the images."""
    rows = [
        (f"`{keyword}`", _tag(keyword), dictionary_VR(keyword), level)
        for keywords, level in ((PATIENT, "patient"), (STUDY, "study"), ((REQUEST,), "request"))
        for keyword in keywords
    ]
    return ("attribute", "tag", "VR", "of"), rows


def attributes() -> Table:
    """Return which attribute stands at the top level of which object."""
    columns: dict[str, Dataset] = {}
    for each in _encoded():
        columns.setdefault(kind_of(each.SOPClassUID), each)
    columns[_NOTE] = _note()
    images = {*PATIENT, *STUDY, REQUEST}
    tags = sorted({tag for each in columns.values() for tag in each.keys()})  # noqa: SIM118  a data set gives elements
    rows = []
    for tag in tags:
        keyword = keyword_for_tag(tag)
        mark = "I" if keyword in images else "D"
        cells = (mark if tag in each else "" for each in columns.values())
        rows.append((f"`{keyword}`", _shown(tag), *cells))
    return ("attribute", "tag", *columns), rows


def codes() -> Table:
    """Return the coded terms that are written, whatever a model adds to them."""
    found = {
        (each.scheme, each.value, each.meaning)
        for module in _modules()
        for each in _constants(module)
    }
    found |= {
        (each.role.scheme, each.role.value, each.role.meaning)
        for each in KINDS.values()
        if each.role is not None
    }
    ordered = sorted(found, key=lambda each: (each[0] == OURS, *each))
    return ("scheme", "code", "meaning"), [(a, f"`{b}`", c) for a, b, c in ordered]


def _modules() -> Iterator[ModuleType]:
    yield measure
    for found in pkgutil.iter_modules(results.__path__, "dicomai.results."):
        if not found.ispkg:
            yield import_module(found.name)


def _constants(module: ModuleType) -> Iterator[Code]:
    for each in vars(module).values():
        if isinstance(each, Code):
            yield each
        elif isinstance(each, PydicomCode):
            yield Code(each.value, each.scheme_designator, each.meaning)
        elif isinstance(each, Mapping):
            yield from (value for value in each.values() if isinstance(value, Code))


def _tag(keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return _shown(tag)


def _shown(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _syntax(kind: str) -> str:
    return next(_written_in(each) for each in _encoded() if kind_of(each.SOPClassUID) == kind)


def _written_in(result: Dataset) -> str:
    return str(result.file_meta.TransferSyntaxUID.name)


@cache
def _encoded() -> tuple[Dataset, ...]:
    """Return every kind of object that an analysis can give."""
    forms: tuple[ResultObject, ...] = ("SEG", "SEG:LABELMAP")
    others = [each for each in RESULT_OBJECTS if not each.startswith(("SEG", "NOT"))]
    voxels = np.zeros(_SHAPE, np.int16)
    return encode(_findings(), _images(), _EXAMPLE, _context(), (*forms, *others), voxels)


@cache
def _note() -> Dataset:
    return encode_rejection(_encoded(), _EXAMPLE, "An example.", _context())


def _context() -> ResultContext:
    return ResultContext(
        created_at=Instant(0), software_version="", institution_name="Hospital", route="example"
    )


def _findings() -> Findings:
    mask = np.zeros(_SHAPE, np.bool_)
    mask[1:3, 4:12, 4:12] = True
    images = _images()
    grid = Grid(
        shape_kji=_SHAPE,
        index_to_lps=np.diag([2.0, 1.0, 1.0, 1.0])[:, [2, 1, 0, 3]],
        frame_of_reference_uid=f"{_ROOT}.3",
        sop_instance_uids=tuple(each.SOPInstanceUID for each in images),
    )
    return Findings(
        algorithm=Algorithm(
            name="example",
            version="1",
            package_sha256="0" * 64,
            manufacturer="dicomai",
            intended_use="Example.",
            not_for="Patients.",
            family=Code("123110", "DCM", "Artificial Intelligence"),
        ),
        where=grid,
        inputs=tuple(
            SourceImage(
                study_instance_uid=each.StudyInstanceUID,
                series_instance_uid=each.SeriesInstanceUID,
                sop_class_uid=each.SOPClassUID,
                sop_instance_uid=each.SOPInstanceUID,
            )
            for each in images
        ),
        sought="examples",
        segments=(
            Segment(
                label="Right lung",
                tracking_id="right lung",
                category=Code("91723000", "SCT", "Anatomical Structure"),
                type=_LUNG,
                laterality=RIGHT,
                mask=mask,
                probability=np.ones(int(mask.sum()), np.float32),
                measurements=(Measurement(name=measure.VOLUME, value=1.0, unit=MILLILITRE),),
            ),
        ),
        detections=(
            Detection(
                label="Nodule",
                tracking_id="nodule",
                finding=_NODULE,
                site=_LUNG,
                region=Sphere(centre_lps_mm=(8.0, 8.0, 4.0), diameter_mm=3.0),
                probability=0.9,
            ),
        ),
        classifications=(
            Classification(
                label="Nodule",
                tracking_id="nodule at all",
                finding=_NODULE,
                present=True,
                probability=0.9,
                threshold=0.5,
            ),
        ),
    )


def _images() -> list[Dataset]:
    """Return headers of a CT that say all that results take over."""
    return [_image(number) for number in range(_SHAPE[0])]


def _image(number: int) -> Dataset:
    image = Dataset()
    for keyword in (*PATIENT, *STUDY):
        if dictionary_VR(keyword) != "SQ":
            setattr(image, keyword, _VALUES.get(dictionary_VR(keyword), "EXAMPLE"))
    image.PatientSex = "O"
    image.OtherPatientIDsSequence = [Dataset()]
    image.OtherPatientIDsSequence[0].PatientID = "EXAMPLE"
    image.IssuerOfPatientIDQualifiersSequence = [Dataset()]
    image.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID = "EXAMPLE"
    image.IssuerOfAccessionNumberSequence = [Dataset()]
    image.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID = "EXAMPLE"
    image.ProcedureCodeSequence = [_code(Code("25045-6", "LN", "CT unspecified body region"))]
    image.DeidentificationMethodCodeSequence = [_code(Code("113100", "DCM", "Basic Profile"))]
    image.RequestAttributesSequence = [Dataset()]
    image.RequestAttributesSequence[0].RequestedProcedureID = "EXAMPLE"
    image.StudyInstanceUID, image.SeriesInstanceUID = f"{_ROOT}.1", f"{_ROOT}.2"
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{_ROOT}.4.{number}"
    image.FrameOfReferenceUID = f"{_ROOT}.3"
    image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, number + 1
    image.BodyPartExamined, image.Manufacturer = "CHEST", "EXAMPLE"
    image.Rows, image.Columns = _SHAPE[1:]
    image.PixelSpacing, image.SliceThickness = [1.0, 1.0], 2.0
    image.ImagePositionPatient = [0.0, 0.0, 2.0 * number]
    image.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return image


_VALUES: Final[Mapping[str, str]] = {
    "AS": "050Y",
    "CS": "YES",
    "DA": "20260301",
    "DS": "1",
    "TM": "101500",
    "UI": f"{_ROOT}.9",
}


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme
    item.CodeMeaning = code.meaning
    return item
