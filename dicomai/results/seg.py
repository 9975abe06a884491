"""Masks as a DICOM Segmentation, BINARY (PS3.3 A.51, C.8.20)."""

from __future__ import annotations

from dataclasses import dataclass
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
from dicomai.imaging.geometry import Grid
from dicomai.results import uids
from dicomai.results.provenance import Job, code_item, complete, note_loss, stand_in

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
        display_rgb=found.display_rgb,
    )


def encode_seg(job: Job, segments: tuple[Drawn, ...]) -> Dataset:
    """Return the segments as one SEG on the source images.

    Frames without a voxel are left out: each frame says itself where it lies, at the very
    position and orientation of its source image.

    Raises
    ------
    InputError
        A mask does not lie on the grid of the source images.
    """
    where, algorithm = job.findings.where, job.findings.algorithm
    if not isinstance(where, Grid):
        raise InputError(
            f"encode: {algorithm.name} gave masks on a projection image; they can't be placed."
        )
    by_uid = {str(source.SOPInstanceUID): source for source in job.sources}
    missing = [uid for uid in where.sop_instance_uids if uid not in by_uid]
    if missing or len(where.sop_instance_uids) != where.shape_kji[0]:
        raise InputError(
            f"encode: {algorithm.name} has masks on {where.shape_kji[0]} slices, but "
            f"{len(missing) or 'some'} of them have no source image. Analyse the series again.",
            subject=missing[0] if missing else "",
        )
    for segment in segments:
        if segment.mask.shape != where.shape_kji:
            raise InputError(
                f'encode: the mask of "{segment.label}" has shape {segment.mask.shape}, and the '
                f"source images {where.shape_kji}."
            )
    result = hd.seg.Segmentation(
        source_images=[_image(by_uid[uid], where) for uid in where.sop_instance_uids],
        pixel_array=_stacked(segments),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(segment, job) for segment in segments],
        series_instance_uid=uids.series_uid(job.uuid, "SEG"),
        series_number=job.series_number("SEG"),
        sop_instance_uid=uids.instance_uid(job.uuid, "SEG"),
        instance_number=1,
        manufacturer=job.context.manufacturer,
        manufacturer_model_name=job.context.model_name,
        software_versions=job.context.software_version,
        device_serial_number=algorithm.package_sha256,
        content_label="AI_SEGMENTATION",
        content_description="AI result, unverified, not for primary diagnosis",
        omit_empty_frames=True,
    )
    result.ContentCreatorName = ""  # type 2: no person made it
    _name_dimensions(result, uids.dimension_uid(job.uuid))
    for item, segment in zip(result.SegmentSequence, segments, strict=True):
        _mend_segment(item, segment)
    note_loss(result, job)
    complete(result, job, "SEG")
    return result


def _image(source: Dataset, where: Grid) -> Dataset:
    image = stand_in(source)
    between = f"{where.spacing_kji_mm[0]:.10g}"
    # Readers build a volume from it, and modalities write what they like; the positions decide.
    image.SpacingBetweenSlices = between
    try:
        (thickness,) = numbers(source, "SliceThickness", 1)
    except InputError:
        thickness = 0.0
    if thickness <= 0:  # highdicom wants it, though images may leave it empty
        image.SliceThickness = between
    return image


def _stacked(segments: tuple[Drawn, ...]) -> npt.NDArray[np.uint8]:
    """Return a label map (K, J, I) where no two segments share a voxel, else (K, J, I, S)."""
    shape = segments[0].mask.shape
    if len(segments) < 256:
        labels = np.zeros(shape, np.uint8)
        for segment in segments:
            if labels[segment.mask].any():
                break
            labels[segment.mask] = segment.number
        else:
            return labels
    return np.stack([segment.mask for segment in segments], axis=-1).astype(np.uint8)


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


def _name_dimensions(result: Dataset, dimension_uid: str) -> None:
    # highdicom draws this one at random, and an encoding has to be repeatable.
    for item in result.DimensionOrganizationSequence:
        item.DimensionOrganizationUID = dimension_uid
    for item in result.DimensionIndexSequence:
        item.DimensionOrganizationUID = dimension_uid


def _pydicom(code: Code) -> PydicomCode:
    return PydicomCode(code.value, code.scheme, code.meaning)
