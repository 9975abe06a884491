"""Masks as DICOM Segmentations: BINARY, FRACTIONAL, LABELMAP (PS3.3 A.51, A.90, C.8.20)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as PydicomCode

from dicomai.dicom.codes import Code
from dicomai.errors import InputError
from dicomai.findings import Detection, Findings, Mask, Segment
from dicomai.imaging.attributes import numbers
from dicomai.imaging.frame import check_single_frame
from dicomai.imaging.geometry import Grid, Plane
from dicomai.imaging.mask import per_slice
from dicomai.results import uids
from dicomai.results.frames import Layer, adjoining, lay_out, overlap
from dicomai.results.functional_groups import (
    are_turned,
    leave_orientation_to_frames,
    leave_out_uneven_spacing,
    orientation_of,
    slices_of,
)
from dicomai.results.job import Job
from dicomai.results.known_class import CAPTURE, is_of_one_frame
from dicomai.results.provenance import code_item, complete, note_loss, reference, stand_in
from dicomai.routing.route import SEG_FORMS, ResultObject

# highdicom takes the frames of an enhanced object only whole and in their order; a volume takes
# those that it wants, of several objects too. So each frame is given as an image of its own, as
# is an image of a class that it does not know, or that may have several frames.
_STUDY: Final = "2.25.1"
_SINGLE_FRAME: Final = MappingProxyType(
    {
        "CT": "1.2.840.10008.5.1.4.1.1.2",
        "MR": "1.2.840.10008.5.1.4.1.1.4",
        "PT": "1.2.840.10008.5.1.4.1.1.128",
    }
)
MORPHOLOGICALLY_ABNORMAL: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A mask that has voxels, and what its segment says: of a segment or of a detection."""

    number: int
    label: str
    tracking_id: str
    category: Code
    type: Code
    laterality: Code | None
    mask: Mask
    probability: npt.NDArray[np.float32] | None
    display_rgb: tuple[int, int, int]


def drawn(findings: Findings) -> tuple[Drawn, ...]:
    """Return what becomes a segment, numbered from 1: every mask that has a voxel."""
    full: list[Segment | Detection] = [each for each in findings.segments if each.mask.any()]
    full += [each for each in findings.detections if each.mask is not None and each.mask.any()]
    return tuple(_drawn(number, each) for number, each in enumerate(full, 1))


def _drawn(number: int, found: Segment | Detection) -> Drawn:
    assert found.mask is not None
    return Drawn(
        number=number,
        label=found.label,
        tracking_id=found.tracking_id,
        category=found.category or MORPHOLOGICALLY_ABNORMAL,
        type=found.type if isinstance(found, Segment) else found.finding,
        laterality=found.laterality,
        mask=found.mask,
        probability=found.probability if isinstance(found, Segment) else None,
        display_rgb=found.display_rgb,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """A Segmentation, and the segments in it by their number there."""

    dataset: Dataset
    segments: tuple[Drawn, ...]


def encode_segs(
    job: Job, segments: tuple[Drawn, ...], objects: Collection[ResultObject]
) -> tuple[Encoded, ...]:
    """Return the Segmentations that are asked for; what a report refers to comes first.

    A BINARY one where nothing else is asked for. Labels can't say that a voxel belongs to two
    segments: those that share one go to label maps of their own.

    Raises
    ------
    InputError
        A mask does not lie on the grid of the source images.
    """
    if not segments:
        return ()
    for each in segments:
        shape = _shape(job)
        if each.mask.shape != shape:
            raise InputError(
                f'encode: the mask of "{each.label}" has shape {each.mask.shape}, and the '
                f"source images {shape}."
            )
    made = []
    form = next((each for each in SEG_FORMS if each in objects), None)
    if form is not None or "SEG:LABELMAP" not in objects:
        made.append(_encoded(job, segments, form or "SEG", 1))
    if "SEG:LABELMAP" in objects:
        made += [
            _encoded(job, each, "SEG:LABELMAP", number)
            for number, each in enumerate(_apart(segments), start=1)
        ]
    return tuple(made)


def _shape(job: Job) -> tuple[int, int, int]:
    where = job.findings.where
    return where.shape_kji if isinstance(where, Grid) else (1, *where.shape_ji)


def _apart(segments: tuple[Drawn, ...]) -> list[tuple[Drawn, ...]]:
    """Return the segments in groups in which no two share a voxel, each numbered from 1."""
    groups: list[tuple[list[Drawn], Mask]] = []
    for each in segments:
        for members, taken in groups:
            if not (taken & each.mask).any():
                members.append(each)
                taken |= each.mask
                break
        else:
            groups.append(([each], each.mask.copy()))
    return [
        tuple(replace(each, number=number) for number, each in enumerate(members, start=1))
        for members, _ in groups
    ]


def _encoded(job: Job, segments: tuple[Drawn, ...], form: ResultObject, number: int) -> Encoded:
    """Return segments as one object on the source images.

    Each frame lies at the very position and orientation of its source image.
    """
    algorithm = job.findings.algorithm
    kind: uids.Kind = "LABELMAP" if form == "SEG:LABELMAP" else "SEG"
    slices = job.slices()
    labels = kind == "LABELMAP"
    described = [_description(segment, job) for segment in segments]
    # For masks highdicom lays out the first two segments on the first two slices.
    images = images_of(job, len(slices) if labels else 2)
    shown = described if labels else described[:2]
    result = hd.seg.Segmentation(
        source_images=images,
        pixel_array=_stacked(segments) if labels else _nothing(images),
        segmentation_type="LABELMAP" if labels else "BINARY",
        segment_descriptions=shown,
        series_instance_uid=uids.series_uid(job.uuid, kind),
        series_number=job.series_number(kind),
        sop_instance_uid=uids.instance_uid(job.uuid, kind, number),
        instance_number=number,
        manufacturer=job.context.manufacturer,
        manufacturer_model_name=job.context.model_name,
        software_versions=job.context.software_version,
        device_serial_number=algorithm.package_sha256,
        content_label="AI_SEGMENTATION",
        content_description="AI result, unverified, not for primary diagnosis",
        omit_empty_frames=labels,
    )
    if not labels:
        result.SegmentSequence = described
    result.ContentCreatorName = ""  # type 2: no person made it
    name_dimensions(result, uids.dimension_uid(job.uuid, kind, number))
    leave_out_uneven_spacing(result, job.findings.where)
    items = [item for item in result.SegmentSequence if item.SegmentNumber != 0]
    for item, segment in zip(items, segments, strict=True):
        _mend_segment(item, segment)
    if labels:
        name_sources(result, slices)
        filled = np.flatnonzero(np.sum([per_slice(each.mask) for each in segments], axis=0))
        if not adjoining(filled.tolist()):
            result.pop("DimensionOrganizationType", None)
    if isinstance(job.findings.where, Plane):
        result.PatientOrientation = list(job.findings.where.runs_to or ())
    note_loss(result, job)
    complete(result, job, kind, number)
    if not labels:  # after what reads all text: of frames there is none but codes
        _fill(result, segments, form, slices)
    return Encoded(dataset=result, segments=segments)


def images_of(job: Job, first: int | None = None) -> list[Dataset]:
    """Return the (first) slices as highdicom takes them: images of one frame each, without text."""
    slices, where = job.slices(), job.findings.where
    images = [_image(each, where, k) for k, each in enumerate(slices[:first])]
    if isinstance(where, Grid):
        for each in images:  # highdicom says that of the first of all
            each.SliceThickness = _thickness(slices, where)
    for each in images[1:]:  # highdicom takes no other; what differs by a hair is said by frames
        if "ImageOrientationPatient" in each:
            each.ImageOrientationPatient = images[0].ImageOrientationPatient
    return images


def _nothing(images: Sequence[Dataset]) -> npt.NDArray[np.uint8]:
    return np.zeros((len(images), images[0].Rows, images[0].Columns), np.uint8)


def _image(source: Dataset, where: Grid | Plane, k: int) -> Dataset:
    check_single_frame(source)
    image = stand_in(source)
    if _stood_for(source):
        image.SOPInstanceUID = _stand_in_uid(k)
        image.SOPClassUID = _class_in_place(source, where)
        image.StudyInstanceUID = _STUDY
    if not isinstance(where, Grid):
        # It has no place in the patient, whatever it says. And of a spacing without a thickness
        # highdicom makes Pixel Measures that it then refuses to read.
        for keyword in (
            "FrameOfReferenceUID",
            "ImagePositionPatient",
            "ImageOrientationPatient",
            *(() if "SliceThickness" in image else ("PixelSpacing",)),
        ):
            if keyword in image:
                delattr(image, keyword)
        return image
    if not where.slice_steps:
        # Readers build a volume from it, and modalities write what they like; positions decide.
        image.SpacingBetweenSlices = f"{where.spacing_kji_mm[0]:.10g}"
    return image


def _thickness(slices: Sequence[Dataset], where: Grid) -> str:
    """Return the usual Slice Thickness, which all have in most series.

    The distance of slices where they leave it empty, as they may: highdicom wants one.
    """
    said = []
    for each in slices:
        with suppress(InputError):
            said += [mm for mm in numbers(each, "SliceThickness", 1) if mm > 0]
    usual = sorted(said)[(len(said) - 1) // 2] if said else where.spacing_kji_mm[0]
    return f"{usual:.10g}"


def _class_in_place(source: Dataset, where: Grid | Plane) -> str:
    """Return the class of the image that highdicom is given; only slices have to have a place."""
    if not isinstance(where, Grid):
        return CAPTURE
    return _SINGLE_FRAME.get(str(source.get("Modality", "")), _SINGLE_FRAME["CT"])


def _stood_for(image: Dataset) -> bool:
    """Tell whether highdicom is given another image in the place of a slice."""
    return "ReferencedFrameNumber" in image or not is_of_one_frame(image)


def _stand_in_uid(k: int) -> str:
    """Return the UID of the image that highdicom is given."""
    return f"{_STUDY}.{k + 1}"


def name_sources(result: Dataset, slices: tuple[Dataset, ...]) -> None:
    """Put what objects and frames say in the place of what the images of `images_of` do."""
    turned = are_turned(slices)
    if not turned and not any(map(_stood_for, slices)):
        return
    images = {
        _stand_in_uid(k) if _stood_for(each) else str(each.SOPInstanceUID): each
        for k, each in enumerate(slices)
    }
    for frame in result.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        image = images[str(source.ReferencedSOPInstanceUID)]
        source.update(reference(image))
        if turned:
            frame.PlaneOrientationSequence = [orientation_of(image)]
    if turned:
        leave_orientation_to_frames(result)
    _list_sources(result, slices)


def _list_sources(result: Dataset, slices: tuple[Dataset, ...]) -> None:
    """Name each object that a slice came from, as one that the result was derived from."""
    (series,) = result.ReferencedSeriesSequence
    objects = {str(each.SOPInstanceUID): each for each in slices}
    listed = [_whole(each) for each in objects.values()]
    series.ReferencedInstanceSequence = listed
    if "SourceImageSequence" in result:
        result.SourceImageSequence = listed


def _whole(image: Dataset) -> Dataset:
    item = reference(image)
    if "ReferencedFrameNumber" in item:
        del item.ReferencedFrameNumber
    return item


def spread(mask: Mask, probability: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (K, J, I) float32: the probabilities of the voxels of a mask, 0 outside."""
    out = np.zeros(mask.shape, np.float32)
    out[mask] = np.clip(probability, 0, 1)
    return out


def _fill(
    result: Dataset,
    segments: tuple[Drawn, ...],
    form: ResultObject,
    slices: tuple[Dataset, ...],
) -> None:
    """Put the masks, or the probabilities, in the place of what highdicom laid out."""
    _list_sources(result, slices)
    planes = slices_of(result, slices)
    layers = [
        Layer(number=each.number, mask=each.mask, probability=each.probability) for each in segments
    ]
    fractional = form == "SEG:FRACTIONAL"
    if fractional:
        result.SegmentationType = "FRACTIONAL"
        result.SegmentationFractionalType = "PROBABILITY"
        result.MaximumFractionalValue = 255
        result.BitsAllocated, result.BitsStored, result.HighBit = 8, 8, 7
    lay_out(result, planes, layers, fractional=fractional, whole=form == "SEG:ALL-FRAMES")
    several = len(segments) > 1
    if several and fractional and any(each.probability is not None for each in segments):
        result.SegmentsOverlap = "UNDEFINED"
    else:
        result.SegmentsOverlap = "YES" if several and overlap(layers) else "NO"


def _stacked(segments: tuple[Drawn, ...]) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Return a label map (K, J, I) of segments of which no two share a voxel."""
    labels = np.zeros(segments[0].mask.shape, np.uint8 if len(segments) < 256 else np.uint16)
    for segment in segments:
        labels[segment.mask] = segment.number
    return labels


def _description(segment: Drawn, job: Job) -> hd.seg.SegmentDescription:
    algorithm = job.findings.algorithm
    return hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.label[:64],
        segmented_property_category=_pydicom(segment.category),
        segmented_property_type=_pydicom(segment.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name,
            family=_pydicom(algorithm.family),
            version=algorithm.version,
            source=algorithm.manufacturer,
            parameters={"package_sha256": algorithm.package_sha256},
        ),
        tracking_uid=uids.tracking_uid(job.uuid, segment.tracking_id),
        tracking_id=segment.tracking_id,
        display_color=hd.color.CIELabColor.from_rgb(*segment.display_rgb),
    )


def _mend_segment(item: Dataset, segment: Drawn) -> None:
    item.SegmentDescription = segment.label[:64]
    if segment.laterality is not None:
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            code_item(segment.laterality)
        ]


def name_dimensions(result: Dataset, dimension_uid: str) -> None:
    """Give the dimensions of an object their UID."""
    # highdicom draws this one at random, and an encoding has to be repeatable.
    for item in result.DimensionOrganizationSequence:
        item.DimensionOrganizationUID = dimension_uid
    for item in result.DimensionIndexSequence:
        item.DimensionOrganizationUID = dimension_uid


def _pydicom(code: Code) -> PydicomCode:
    return PydicomCode(code.value, code.scheme, code.meaning)
