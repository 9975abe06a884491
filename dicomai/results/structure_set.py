"""Masks as contours for planning systems: RT Structure Set (PS3.3 A.19, C.8.8.5, C.8.8.6)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicomai.imaging.attributes import numbers
from dicomai.imaging.geometry import Grid
from dicomai.results.job import Job
from dicomai.results.outline import Corners, outlines
from dicomai.results.provenance import complete, reference
from dicomai.results.request import evidence
from dicomai.results.seg import Drawn, drawn


def encode_rtstruct(job: Job) -> Dataset | None:
    """Return the contours of each mask on its slices; None where no mask has a place.

    They run along the sides of the pixels: who fills them gets the very voxels of the mask. A part
    with holes is one contour, joined to its holes by a channel of no width (the keyhole of
    C.8.8.6.3).
    """
    where, segments = job.findings.where, drawn(job.findings)
    if not isinstance(where, Grid) or not segments:
        return None
    slices = job.slices()
    result = Dataset()
    result.StructureSetLabel = "AI_RESULT"
    result.StructureSetName = "AI result, unverified"
    result.StructureSetDescription = "AI result, not for primary diagnosis or planning as it is"
    result.StructureSetDate, result.StructureSetTime = job.date_and_time
    result.InstanceNumber = 1
    result.OperatorsName = ""
    result.FrameOfReferenceUID = where.frame_of_reference_uid
    result.PositionReferenceIndicator = ""
    result.ApprovalStatus = "UNAPPROVED"
    result.ReferencedFrameOfReferenceSequence = [_frame_of_reference(job, where, slices)]
    result.StructureSetROISequence = [_region(each, where) for each in segments]
    result.ROIContourSequence = [_contours(each, slices) for each in segments]
    result.RTROIObservationsSequence = [_observation(each, job) for each in segments]
    complete(result, job, "RTSTRUCT")
    return result


def _frame_of_reference(job: Job, where: Grid, slices: tuple[Dataset, ...]) -> Dataset:
    item = Dataset()
    item.FrameOfReferenceUID = where.frame_of_reference_uid
    (listed,) = evidence(job.sources[:1])
    study = Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study, retired, but asked
    study.ReferencedSOPInstanceUID = listed.StudyInstanceUID
    series = Dataset()
    series.SeriesInstanceUID = listed.ReferencedSeriesSequence[0].SeriesInstanceUID
    series.ContourImageSequence = [reference(each) for each in slices]
    study.RTReferencedSeriesSequence = [series]
    item.RTReferencedStudySequence = [study]
    return item


def _region(segment: Drawn, where: Grid) -> Dataset:
    item = Dataset()
    item.ROINumber = segment.number
    item.ReferencedFrameOfReferenceUID = where.frame_of_reference_uid
    item.ROIName = segment.label[:64]
    item.ROIDescription = segment.tracking_id[:1024]
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    return item


def _observation(segment: Drawn, job: Job) -> Dataset:
    algorithm = job.findings.algorithm
    item = Dataset()
    item.ObservationNumber = segment.number
    item.ReferencedROINumber = segment.number
    item.ROIObservationDescription = f"{algorithm.name} {algorithm.version}, UNVERIFIED"[:1024]
    item.RTROIInterpretedType = ""
    item.ROIInterpreter = ""
    return item


def _contours(segment: Drawn, slices: tuple[Dataset, ...]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber = segment.number
    item.ROIDisplayColor = list(segment.display_rgb)
    item.ContourSequence = [
        _contour(_joined(part), image)
        for image, plane in zip(slices, segment.mask, strict=True)
        if plane.any()
        for part in outlines(plane)
    ]
    return item


def _joined(part: list[Corners]) -> Corners:
    """Return the outer edge and the holes of a part as one closed line."""
    outer, *holes = part
    if not holes:
        return outer
    pieces = [outer, outer[:1]]
    for hole in holes:
        pieces += [hole, hole[:1], outer[:1]]
    return np.concatenate(pieces[:-1] if len(pieces[-1]) == 1 else pieces)


def _contour(corners: Corners, image: Dataset) -> Dataset:
    points = _lps_mm(corners, image)
    item = Dataset()
    item.ContourImageSequence = [reference(image)]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    # A thousandth of a millimetre; more digits would only make the file long.
    data = [f"{each:.3f}" for each in points.ravel().tolist()]
    item.add(DataElement(0x30060050, "DS", data, already_converted=True))
    return item


def _lps_mm(corners: Corners, image: Dataset) -> npt.NDArray[np.float64]:
    """Return where corners of pixels lie: half a pixel from its centre (PS3.3 C.7.6.2.1.1)."""
    origin = np.array(numbers(image, "ImagePositionPatient", 3))
    cosines = np.array(numbers(image, "ImageOrientationPatient", 6))
    between_rows, between_columns = numbers(image, "PixelSpacing", 2)
    rows, columns = corners[:, :1] - 0.5, corners[:, 1:] - 0.5
    across, down = cosines[:3] * between_columns, cosines[3:] * between_rows
    placed: npt.NDArray[np.float64] = origin + columns * across + rows * down
    return placed
