"""The frames of an object: one of a classic image, many of an enhanced multi-frame one.

An enhanced object says of each frame what a classic image says of itself, in functional groups
shared by all frames or of one frame (PS3.3 C.7.6.16). Laid out flat, a frame reads like an image of
its own, and everything after this need not know the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    XRay3DAngiographicImageStorage,
    XRay3DCraniofacialImageStorage,
)

from dicomai.errors import InputError
from dicomai.imaging.attributes import (
    items_of,
    name_of,
    numbers,
    sop_class_name,
    text,
    value_of,
    whole,
)
from dicomai.imaging.stack import Slice

ENHANCED: Final = frozenset(
    {
        EnhancedCTImageStorage,
        EnhancedMRImageStorage,
        EnhancedMRColorImageStorage,
        EnhancedPETImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
        LegacyConvertedEnhancedPETImageStorage,
        BreastTomosynthesisImageStorage,
        XRay3DAngiographicImageStorage,
        XRay3DCraniofacialImageStorage,
    }
)
"""SOP Classes whose frames are slices that say where they lie."""

_OF_THE_OBJECT: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "FrameOfReferenceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "Rows",
    "Columns",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PatientWeight",
    "TimezoneOffsetFromUTC",
    "AcquisitionDateTime",
    "DecayCorrected",
    "AttenuationCorrected",
    "DecayCorrectionDateTime",
    "RadiopharmaceuticalInformationSequence",
)
_GROUPS: Final = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "FrameContentSequence",
    "FrameAnatomySequence",
    "TemporalPositionSequence",
    "CardiacSynchronizationSequence",
    "CTImageFrameTypeSequence",
    "MRImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "XRay3DFrameTypeSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
)
_OF_SEVERAL_ITEMS: Final = "RealWorldValueMappingSequence"
"""A group that stays one: each item is another scale of the same stored values."""
_DIMENSIONS_OF_PLACE: Final = frozenset(
    Tag(keyword) for keyword in ("StackID", "InStackPositionNumber", "ImagePositionPatient")
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One slice of a series, wherever it stands.

    Attributes
    ----------
    source
        The object that holds its pixels.
    index
        Of the frame in the object, from 0.
    header
        What is said of it, as an image of one frame would; without pixels. For a classic image it
        is the object itself.
    place
        Where it lies.
    other_dimensions
        Its Dimension Index Values but those of its stack and its position in it (PS3.3 C.7.6.17).
    """

    source: Dataset
    index: int
    header: Dataset
    place: Slice
    other_dimensions: tuple[float, ...] = ()


def frames_of(dataset: Dataset) -> Iterator[Frame]:
    """Give the frames of an object that are slices.

    Raises
    ------
    InputError
        Its frames are no slices, or do not say where they lie.
    """
    if text(dataset, "SOPClassUID") not in ENHANCED:
        check_single_frame(dataset)
        yield Frame(source=dataset, index=0, header=dataset, place=slice_of(dataset))
        return
    per_frame = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    count = whole(dataset, "NumberOfFrames", 1)
    if len(per_frame) != count:
        raise InputError(
            f"{name_of(dataset)} ({sop_class_name(dataset)}) has {count} frames and says of "
            f"{len(per_frame)} where they lie. Have the modality send it whole.",
            subject=text(dataset, "SOPInstanceUID"),
        )
    shared = items_of(dataset, "SharedFunctionalGroupsSequence") or (Dataset(),)
    others = [
        at
        for at, item in enumerate(items_of(dataset, "DimensionIndexSequence"))
        if item.get("DimensionIndexPointer") not in _DIMENSIONS_OF_PLACE
    ]
    for index, groups in enumerate(per_frame):
        header = _flat(dataset, shared[0], groups)
        header.ReferencedFrameNumber = index + 1
        dimensions = len(text(header, "DimensionIndexValues").split("\\"))
        values = numbers(header, "DimensionIndexValues", dimensions, ())
        yield Frame(
            source=dataset,
            index=index,
            header=header,
            place=slice_of(header),
            other_dimensions=tuple(values[at] for at in others if at < len(values)),
        )


def header_of_only_frame(dataset: Dataset) -> Dataset:
    """Return what an object of one frame says of it, its functional groups laid out flat.

    So has a mammogram that was made of a tomosynthesis (PS3.3 A.55). Without pixels; what has no
    functional groups is its own header.
    """
    shared, per_frame = (
        next(iter(items_of(dataset, keyword)), Dataset())
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    )
    if not shared and not per_frame:
        return dataset
    out = Dataset()
    out.update(dataset)  # elements are shared: they are replaced, never changed
    out.pop("PixelData", None)
    out.update(_said_of_frame(dataset, shared, per_frame))
    return out


def check_single_frame(dataset: Dataset) -> None:
    """Raise InputError for a multi-frame object whose frames are no slices."""
    frames = whole(dataset, "NumberOfFrames", 1)
    if frames != 1:
        raise InputError(
            f"{name_of(dataset)} is a multi-frame object ({sop_class_name(dataset)}, {frames} "
            "frames) whose frames are no slices with a place in the patient. Choose a series of "
            "single images, or enhanced CT, MR or PET.",
            subject=text(dataset, "SOPInstanceUID"),
        )


def _flat(dataset: Dataset, shared: Dataset, per_frame: Dataset) -> Dataset:
    """Return what is said of a frame; its own groups go before shared ones."""
    out = Dataset()
    for keyword in _OF_THE_OBJECT:
        if keyword in dataset:
            value_of(dataset, keyword)  # which says so where it can't be read
            out[keyword] = dataset[keyword]
    out.update(_said_of_frame(dataset, shared, per_frame))
    return out


def _said_of_frame(dataset: Dataset, shared: Dataset, per_frame: Dataset) -> Dataset:
    """Return what functional groups say, in elements that are its own where they are set here.

    An image type set on that of the object would be that of the object, and of its other frames.
    """
    out = Dataset()
    for group in _GROUPS:
        items = items_of(per_frame, group, dataset) or items_of(shared, group, dataset)
        if not items:
            continue
        out.update(items[0])
        for inner in items_of(items[0], "DiffusionGradientDirectionSequence", dataset):
            out.update(inner)
    mappings = items_of(per_frame, _OF_SEVERAL_ITEMS, dataset) or items_of(
        shared, _OF_SEVERAL_ITEMS, dataset
    )
    if mappings:
        out.RealWorldValueMappingSequence = mappings
    if "FrameType" in out:
        out.ImageType = out.FrameType
    return out


def slice_of(dataset: Dataset) -> Slice:
    """Return where an image or a flat frame says that it lies.

    Raises
    ------
    InputError
        It does not say, or what it says makes no sense.
    """
    name, subject = name_of(dataset), text(dataset, "SOPInstanceUID")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
        if not text(dataset, keyword):
            raise InputError(
                f"{name} ({sop_class_name(dataset)}) has no {keyword}, so it has no place in the "
                "patient and is no slice of a volume. Leave it out of the series, or have the "
                "modality send it whole.",
                subject=subject,
            )
    position = numbers(dataset, "ImagePositionPatient", 3)
    cosines = np.array(numbers(dataset, "ImageOrientationPatient", 6))
    between_rows, between_columns = numbers(dataset, "PixelSpacing", 2)
    shape = (whole(dataset, "Rows"), whole(dataset, "Columns"))
    if min(between_rows, between_columns) <= 0 or min(shape) <= 0 or max(map(abs, position)) > 1e5:
        raise InputError(
            f"{name}: a spacing of {between_rows:g}×{between_columns:g} mm, {shape[0]}×{shape[1]} "
            f"pixels at {position} mm make no sense. Have the modality mend them.",
            subject=subject,
        )
    return Slice(
        sop_instance_uid=subject,
        frame_number=whole(dataset, "ReferencedFrameNumber", 0)
        if text(dataset, "SOPClassUID") in ENHANCED
        else 0,
        frame_of_reference_uid=text(dataset, "FrameOfReferenceUID"),
        position=np.array(position),
        row=cosines[:3],
        column=cosines[3:],
        spacing_ji_mm=(between_rows, between_columns),
        shape_ji=shape,
        localizer="LOCALIZER" in text(dataset, "ImageType").split("\\"),
    )
