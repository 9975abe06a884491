"""A sequence that is missing, empty, or none at all ends in results or in one sentence."""

from __future__ import annotations

import copy
import io
import json
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    EnhancedPETImageStorage,
    ExplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
    UltrasoundImageStorage,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "results"))  # for `every_series`
from every_series import findings_of, results

from dicomai.errors import InputError
from dicomai.imaging.image import image_of
from dicomai.imaging.intake import Intake
from dicomai.imaging.series import read_object
from dicomai.imaging.volume import volume_of
from dicomai.results.source import carried
from dicomai.routing.exclusion import exclude
from dicomai.routing.image import Image, series_of
from dicomai.routing.route import ResultObject
from dicomai.service import received
from dicomai.service.one_patient import check_one_patient
from dicomai.service.received import Reading

Maker = Callable[..., list[Dataset]]
Enhanced = Callable[..., Dataset]

SUV: Final = Intake(suv_body_weight=True)
SHOWN: Final = Intake(displayed=True)
FORMS: tuple[ResultObject, ...] = ("SEG", "SR")
OF_RESULTS: Final = frozenset(
    map(
        Tag,
        (
            "IssuerOfAccessionNumberSequence",
            "OtherPatientIDsSequence",
            "ProcedureCodeSequence",
            "RequestAttributesSequence",
        ),
    )
)
"""What results take over of an image."""


def item(**values: object) -> list[Dataset]:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return [made]


def code(value: str, scheme: str = "SCT") -> list[Dataset]:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning="Said")


def with_study(dataset: Dataset) -> Dataset:
    """Add what any image may say of patient, study, request and equipment."""
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "P1", "Doe^Jane", "19600131"
    dataset.PatientSex, dataset.StudyDate, dataset.StudyTime = "F", "20260301", "101500"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "A1", ""
    dataset.Manufacturer, dataset.SeriesNumber = "ACME", 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.OtherPatientIDsSequence = item(PatientID="P2", TypeOfPatientID="TEXT")
    dataset.IssuerOfPatientIDQualifiersSequence = item(
        UniversalEntityID="1.2", UniversalEntityIDType="ISO"
    )
    dataset.IssuerOfAccessionNumberSequence = item(LocalNamespaceEntityID="RIS")
    dataset.ProcedureCodeSequence = code("77477000")
    dataset.AnatomicRegionSequence = code("51185008")
    dataset.DeidentificationMethodCodeSequence = code("113100", "DCM")
    dataset.RequestAttributesSequence = item(
        RequestedProcedureID="R1",
        ScheduledProcedureStepID="S1",
        AccessionNumber="A1",
        RequestedProcedureCodeSequence=code("77477000"),
        IssuerOfAccessionNumberSequence=item(LocalNamespaceEntityID="RIS"),
        ReferencedStudySequence=[],
        ScheduledProtocolCodeSequence=code("77477000"),
    )
    dataset.ContributingEquipmentSequence = item(
        Manufacturer="ACME",
        ManufacturerModelName="One",
        PurposeOfReferenceCodeSequence=code("109101", "DCM"),
    )
    dataset.ReferencedImageSequence = item(
        ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID="1.3"
    )
    dataset.SourceImageSequence = item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID="1.3")
    dataset.IconImageSequence = item(Rows=1, Columns=1, SamplesPerPixel=1)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _lut(bits: int = 16) -> list[Dataset]:
    made = item(LUTDescriptor=[4096, 0, bits], LUTData=np.arange(4096, dtype="<u2").tobytes())
    made[0]["LUTDescriptor"].VR, made[0]["LUTData"].VR = "US", "OW"
    made[0].ModalityLUTType = "US"
    return made


def _ct(make: Maker, _: Enhanced) -> list[Dataset]:
    return [with_study(each) for each in make(shape_kji=(3, 4, 5))]


def _lut_ct(make: Maker, _: Enhanced) -> list[Dataset]:
    made = [with_study(each) for each in make(lambda lps: 0 * lps[..., 2], shape_kji=(3, 4, 5))]
    for each in made:
        each.Modality = "MR"
        del each.RescaleSlope, each.RescaleIntercept
        each.PixelRepresentation = 0
        each.ModalityLUTSequence = _lut()
    return made


def _pet(make: Maker, _: Enhanced) -> list[Dataset]:
    made = [with_study(each) for each in make(shape_kji=(3, 4, 5))]
    for each in made:
        each.SOPClassUID = PositronEmissionTomographyImageStorage
        each.Modality, each.Units, each.PatientWeight = "PT", "BQML", 70
        each.CorrectedImage, each.DecayCorrection = ["DECY", "ATTN"], "START"
        each.SeriesDate = each.AcquisitionDate = "20260301"
        each.SeriesTime = each.AcquisitionTime = "105000"
        each.RadiopharmaceuticalInformationSequence = item(
            RadionuclideTotalDose=350e6,
            RadionuclideHalfLife=6600.0,
            RadiopharmaceuticalStartTime="090000",
            RadionuclideCodeSequence=code("C-111A1"),
        )
    return made


def _groups() -> dict[str, dict[str, object]]:
    return {
        "FrameContentSequence": {
            "StackID": "1",
            "InStackPositionNumber": 1,
            "DimensionIndexValues": [1, 1],
            "FrameAcquisitionDateTime": "20260301105000",
        },
        "FrameAnatomySequence": {
            "FrameLaterality": "U",
            "AnatomicRegionSequence": code("51185008"),
        },
        "FrameVOILUTSequence": {"WindowCenter": 40, "WindowWidth": 400},
        "MRImageFrameTypeSequence": {"FrameType": ["ORIGINAL", "PRIMARY", "X", "NONE"]},
        "MREchoSequence": {"EffectiveEchoTime": 30.0},
        "MRDiffusionSequence": {
            "DiffusionBValue": 0.0,
            "DiffusionGradientDirectionSequence": item(DiffusionGradientOrientation=[1, 0, 0]),
        },
        "TemporalPositionSequence": {"TemporalPositionTimeOffset": 0.0},
        "CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": 0.0},
        "RealWorldValueMappingSequence": {
            "RealWorldValueSlope": 1.0,
            "RealWorldValueIntercept": 0.0,
            "RealWorldValueFirstValueMapped": 0,
            "RealWorldValueLastValueMapped": 32767,
            "MeasurementUnitsCodeSequence": code("Bq/ml", "UCUM"),
        },
    }


def _enhanced(make: Maker, whole: Enhanced) -> list[Dataset]:
    slices = make(shape_kji=(3, 4, 5))
    for each in slices:
        each.PixelRepresentation = 1
    made = whole(slices, [_groups() for _ in range(3)])
    made.DimensionOrganizationSequence = item(DimensionOrganizationUID="1.2.3")
    made.DimensionIndexSequence = [
        *item(DimensionIndexPointer=Tag("StackID"), DimensionOrganizationUID="1.2.3"),
        *item(DimensionIndexPointer=Tag("EffectiveEchoTime"), DimensionOrganizationUID="1.2.3"),
    ]
    return [with_study(made)]


def _enhanced_pet(make: Maker, whole: Enhanced) -> list[Dataset]:
    (made,) = _enhanced(make, whole)
    made.SOPClassUID, made.Modality, made.PatientWeight = EnhancedPETImageStorage, "PT", 70
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.DecayCorrected = made.AttenuationCorrected = "YES"
    made.DecayCorrectionDateTime = "20260301105000"
    for frame in made.PerFrameFunctionalGroupsSequence:
        mapping = frame.RealWorldValueMappingSequence[0]
        rescale = frame.PixelValueTransformationSequence[0]
        mapping.RealWorldValueSlope = float(rescale.RescaleSlope)
    made.RadiopharmaceuticalInformationSequence = item(
        RadionuclideTotalDose=350,
        RadionuclideHalfLife=6600.0,
        RadiopharmaceuticalStartDateTime="20260301090000",
    )
    return [made]


def _image(modality: str, sop_class: str) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = sop_class, "1.2.3.4.5"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    made.Modality = modality
    made.Rows, made.Columns, made.SamplesPerPixel = 16, 24, 1
    made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PatientOrientation = ["L", "F"]
    made.PixelData = np.arange(16 * 24, dtype="<u2").tobytes()
    made["PixelData"].VR = "OW"
    return with_study(made)


def _dx_image() -> Dataset:
    made = _image("DX", DigitalXRayImageStorageForPresentation)
    made.ViewCodeSequence = code("399348003")
    made.ViewCodeSequence[0].ViewModifierCodeSequence = code("399348003")
    made.VOILUTSequence = _lut(12)
    made.ModalityLUTSequence = _lut()
    return made


def _dx(_make: Maker, _: Enhanced) -> list[Dataset]:
    return [_dx_image()]


def _mg(_make: Maker, _: Enhanced) -> list[Dataset]:
    made = _image("MG", DigitalMammographyXRayImageStorageForPresentation)
    made.ViewCodeSequence = code("399368009")
    made.PatientOrientation = ["A", "R"]
    del made.AnatomicRegionSequence
    groups = _groups()
    shared = Dataset()
    for keyword in ("FrameAnatomySequence", "FrameVOILUTSequence", "RealWorldValueMappingSequence"):
        setattr(shared, keyword, item(**groups[keyword]))
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.1, 0.1])
    shared.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=0)
    made.SharedFunctionalGroupsSequence = [shared]
    frame = Dataset()
    frame.FrameContentSequence = item(FrameAcquisitionNumber=1)
    made.PerFrameFunctionalGroupsSequence = [frame]
    return [made]


def _us(_make: Maker, _: Enhanced) -> list[Dataset]:
    made = _image("US", UltrasoundImageStorage)
    made.SequenceOfUltrasoundRegions = item(
        PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=0.1, PhysicalDeltaY=0.1
    )
    return [made]


KINDS: Final = {
    "CT": (_ct, Intake()),
    "MR with a table": (_lut_ct, Intake()),
    "PET": (_pet, SUV),
    "enhanced MR": (_enhanced, Intake()),
    "enhanced PET": (_enhanced_pet, SUV),
    "DX": (_dx, SHOWN),
    "MG": (_mg, SHOWN),
    "US": (_us, Intake()),
}

FAULTS: Final[dict[str, Callable[[BaseTag], DataElement | None]]] = {
    "absent": lambda _: None,
    "without items": lambda tag: DataElement(tag, "SQ", []),
    "an empty item": lambda tag: DataElement(tag, "SQ", [Dataset()]),
    "a strange item": lambda tag: DataElement(tag, "SQ", item(ImageComments="nothing")),
    "UN": lambda tag: DataElement(tag, "OB", b"cut of"),  # see _written
    "UN, cut off": lambda tag: DataElement(tag, "OB", b"\xfe\xff\0\xe0\x40\0\0\0\x08\0"),
    "text": lambda tag: DataElement(tag, "LO", "CHEST"),
    "number": lambda tag: DataElement(tag, "US", 1),
}


Place = tuple[tuple[BaseTag, int], ...]


def _places(dataset: Dataset, above: Place = ()) -> Iterator[tuple[Place, BaseTag]]:
    for element in dataset:
        if element.VR == "SQ":
            yield above, element.tag
            for number, each in enumerate(element.value[:1]):
                yield from _places(each, (*above, (element.tag, number)))


def _broken(datasets: Sequence[Dataset], place: Place, tag: BaseTag, fault: str) -> list[Dataset]:
    out = copy.deepcopy(list(datasets))
    for dataset in out:
        there = dataset
        for above, number in place:
            there = there[above].value[number]
        element = FAULTS[fault](tag)
        if element is None:
            del there[tag]
        else:
            there[tag] = element
    return out


def _written(dataset: Dataset, unknown: BaseTag | None) -> bytes:
    """Return a file, in which an element that pydicom would read before it wrote it is UN."""
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        dataset.save_as(out, enforce_file_format=True)
    if unknown is None:
        return out.getvalue()
    tag = struct.pack("<HH", unknown.group, unknown.element)
    return out.getvalue().replace(tag + b"OB\0\0", tag + b"UN\0\0")


def _passes(
    datasets: Sequence[Dataset],
    intake: Intake,
    folder: Path,
    unknown: BaseTag | None = None,
    forms: tuple[ResultObject, ...] = FORMS,
) -> str:
    """Return what is said of objects on their way from the file to results; "" of results."""
    images, headers = [], []
    try:
        for number, dataset in enumerate(datasets):
            path = folder / f"{number}.dcm"
            path.write_bytes(_written(dataset, unknown))
            read = received.read_object(path, Reading())
            json.dumps(read.attributes, allow_nan=False)
            images.append(
                Image(
                    series_instance_uid=read.identifiers.series_instance_uid,
                    sop_instance_uid=read.identifiers.sop_instance_uid,
                    sop_class_uid=read.identifiers.sop_class_uid,
                    header_digest=read.version.header,
                    pixel_digest=read.version.pixels,
                    origin="received",
                    node="CT1",
                    attributes=read.attributes,
                )
            )
            headers.append(read_object(path))
        for series in series_of(images):
            exclude(series, ())
        check_one_patient(headers, ())
        if len(headers) > 1 or "NumberOfFrames" in headers[0]:
            source = volume_of(headers, intake)
        else:
            source = image_of(headers[0], intake)
        if forms:
            results(source, findings_of(source), forms)
    except InputError as error:
        return error.sentence
    return ""


def _tried(make: tuple[Maker, Enhanced], kind: str, folder: Path, *, whole: bool) -> Iterator[str]:
    """Yield what is said for each sequence of a kind of object and each fault of it."""
    builder, intake = KINDS[kind]
    plain = builder(*make)
    forms = FORMS if whole else ()
    assert _passes(plain, intake, folder, forms=forms) == ""
    of_any = {tag for at, tag in _places(_ct(*make)[0]) if not at} if kind != "CT" else set()
    for place, tag in _places(plain[0]):
        outermost = place[0][0] if place else tag
        if (whole and (place or tag not in OF_RESULTS)) or outermost in of_any:
            continue
        for fault in FAULTS:
            broken = _broken(plain, place, tag, fault)
            try:
                yield _passes(broken, intake, folder, tag, forms)
            except Exception as error:
                where = "/".join(keyword_for_tag(each) for each in (*(t for t, _ in place), tag))
                raise AssertionError(f"{kind}, {where}: {fault}") from error


@pytest.mark.parametrize("kind", KINDS)
def test_no_sequence_of_an_image_ends_in_a_defect(
    make_series: Maker, make_enhanced: Enhanced, kind: str, tmp_path: Path
) -> None:
    said = list(_tried((make_series, make_enhanced), kind, tmp_path, whole=False))
    assert said
    assert all(each == "" or (each.endswith(".") and len(each) < 500) for each in said)
    assert not any("\n" in each for each in said)


def test_no_sequence_that_results_repeat_holds_them_up(
    make_series: Maker, make_enhanced: Enhanced, tmp_path: Path
) -> None:
    said = _tried((make_series, make_enhanced), "CT", tmp_path, whole=True)
    assert set(said) == {""}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_table_that_is_none_is_left_out_of_the_presentation(fault: str, tmp_path: Path) -> None:
    tag = Tag("VOILUTSequence")
    broken = _broken([_dx_image()], (), tag, fault)
    assert _passes(broken, Intake(), tmp_path, tag, ("SR", "PR")) == ""


def test_a_sequence_that_can_not_be_repeated_is_told(make_series: Maker, tmp_path: Path) -> None:
    headers = []
    broken = _broken(_ct(make_series, make_series), (), Tag("ProcedureCodeSequence"), "UN")
    for number, each in enumerate(broken):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(_written(each, Tag("ProcedureCodeSequence")))
        headers.append(read_object(path))
    (note,) = carried(headers[0]).notes
    assert note.startswith("ProcedureCodeSequence of ")
    assert note.endswith("is no sequence that can be read, and is left out of the result.")


def test_a_group_of_a_frame_that_can_not_be_read_names_the_object(
    make_series: Maker, make_enhanced: Enhanced, tmp_path: Path
) -> None:
    plain = _enhanced(make_series, make_enhanced)
    groups = Tag("PerFrameFunctionalGroupsSequence")
    broken = _broken(plain, ((groups, 0),), Tag("FrameVOILUTSequence"), "text")
    said = _passes(broken, Intake(), tmp_path)
    assert said.startswith(f"Object {plain[0].SOPInstanceUID}: FrameVOILUTSequence is no sequence.")
