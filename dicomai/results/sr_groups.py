"""Findings as the measurement groups of a report (PS3.16 TID 1410, 1411, 1501)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as PydicomCode

from dicomai.dicom.codes import OURS, PERCENT, Code
from dicomai.errors import InputError
from dicomai.findings import (
    Box,
    Classification,
    Detection,
    Findings,
    Measurement,
    PixelBox,
    Segment,
    Sphere,
)
from dicomai.imaging.geometry import Grid, Plane
from dicomai.results import uids
from dicomai.results.job import Job
from dicomai.results.known_class import known_class
from dicomai.results.point_on_image import point_on_image
from dicomai.results.provenance import reference
from dicomai.results.seg import MORPHOLOGICALLY_ABNORMAL, Encoded
from dicomai.results.uids import LABELMAP_STORAGE

# How sure a device is of what it found. PS3.16 defines it for CAD as a number from 0 to 100 %; a
# "probability of malignancy" (111047) would claim more than a detector says.
CERTAINTY_OF_FINDING: Final = Code("111012", "DCM", "Certainty of Finding")
UNCERTAINTY: Final = Code("371884006", "SCT", "+/-, range of measurement uncertainty")
FINDING: Final = Code("121071", "DCM", "Finding")
CENTRE: Final = Code("111010", "DCM", "Center")
LATERALITY: Final = Code("272741003", "SCT", "Laterality")
PRESENT: Final = Code("52101004", "SCT", "Present")
ABSENT: Final = Code("272519000", "SCT", "Absent")
NOT_DETECTED: Final = Code("260415000", "SCT", "Not detected")

NOT_ANALYSED: Final = Code("NOT-ANALYSED", OURS, "Not analysed")

_Points: TypeAlias = npt.NDArray[np.float64]
Group: TypeAlias = (
    sr.VolumetricROIMeasurementsAndQualitativeEvaluations
    | sr.PlanarROIMeasurementsAndQualitativeEvaluations
    | sr.MeasurementsAndQualitativeEvaluations
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Where:
    """The segment that shows a finding."""

    seg: Dataset
    number: int


def groups(job: Job, segs: Sequence[Encoded]) -> list[Group]:
    """Return a measurement group for each finding, in the order of the findings."""
    findings = job.findings
    places = {
        each.tracking_id: _Where(seg=seg.dataset, number=each.number)
        for seg in segs
        for each in seg.segments
    }
    slices = job.slices()
    by = algorithm_identification(findings)  # groups share its items, which nobody changes
    found: list[Group] = [
        _shown(_segment(each, job, places[each.tracking_id], by), each, job, slices)
        for each in findings.segments
        if each.tracking_id in places
    ]
    found += [
        _shown(_detection(each, job, places.get(each.tracking_id), by), each, job, slices)
        for each in findings.detections
    ]
    found += [_classification(each, job) for each in findings.classifications]
    return found or [_nothing_found(job)]


def _segment(
    segment: Segment, job: Job, place: _Where, algorithm: sr.AlgorithmIdentification
) -> Group:
    sites = None
    if segment.laterality is not None:
        sites = [sr.FindingSite(pydicom_code(segment.type), pydicom_code(segment.laterality))]
    if isinstance(job.findings.where, Plane):
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(job, segment.tracking_id),
            referenced_segment=_on_plane(job, place),
            finding_category=pydicom_code(segment.category),
            finding_type=pydicom_code(segment.type),
            finding_sites=sites,
            algorithm_id=algorithm,
            measurements=[_measurement(each) for each in segment.measurements] or None,
        )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(job, segment.tracking_id),
        referenced_segment=_referenced(job, place),
        finding_category=pydicom_code(segment.category),
        finding_type=pydicom_code(segment.type),
        finding_sites=sites,
        algorithm_id=algorithm,
        measurements=[_measurement(each) for each in segment.measurements] or None,
    )


def _detection(
    detection: Detection,
    job: Job,
    place: _Where | None,
    algorithm: sr.AlgorithmIdentification,
) -> Group:
    tracking = _tracking(job, detection.tracking_id)
    category = pydicom_code(detection.category or MORPHOLOGICALLY_ABNORMAL)
    measurements = [
        _certainty(detection.probability),
        *(_measurement(each) for each in detection.measurements),
    ]
    if isinstance(detection.region, PixelBox):
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=tracking,
            referenced_region=_pixel_region(detection.region, job) if place is None else None,
            referenced_segment=_on_plane(job, place) if place is not None else None,
            finding_category=category,
            finding_type=pydicom_code(detection.finding),
            finding_sites=_sites(detection),
            algorithm_id=algorithm,
            measurements=measurements,
            qualitative_evaluations=_side(detection),
        )
    surface = _surface(detection.region, job)
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        referenced_segment=_referenced(job, place) if place is not None else None,
        referenced_volume_surface=surface if place is None else None,
        finding_category=category,
        finding_type=pydicom_code(detection.finding),
        finding_sites=_sites(detection),
        algorithm_id=algorithm,
        measurements=measurements,
        qualitative_evaluations=_side(detection),
    )
    # A group may hold the segment or the surface, not both; the centre stands beside either, for
    # whoever reads no SEG.
    group[0].ContentSequence.append(_centre(detection.region, job))
    return group


def _shown(group: Group, found: Segment | Detection, job: Job, slices: Sequence[Dataset]) -> Group:
    """Return a group that has a point on an image, if it has no outline on one."""
    items = group[0].ContentSequence
    if any(item.ValueType == "SCOORD" for item in items):
        return group
    place = point_on_image(found, job.findings.where)
    image = reference(slices[place.k])
    point = sr.ScoordContentItem(
        name=pydicom_code(CENTRE),
        graphic_type=sr.GraphicTypeValues.POINT,
        graphic_data=np.array([place.xy]),
        relationship_type=sr.RelationshipTypeValues.CONTAINS,
    )
    frame = image.get("ReferencedFrameNumber")
    selected = sr.SourceImageForRegion(
        known_class(str(image.ReferencedSOPClassUID)),
        str(image.ReferencedSOPInstanceUID),
        referenced_frame_numbers=None if frame is None else [int(frame)],
    )
    point.ContentSequence = sr.ContentSequence([selected])
    # Before what lies in the patient: OHIF takes the first coordinates of a group for all of it.
    first = next((n for n, item in enumerate(items) if item.ValueType == "SCOORD3D"), len(items))
    items.insert(first, point)
    return group


def _classification(classification: Classification, job: Job) -> Group:
    site = classification.site
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(job, classification.tracking_id),
        finding_sites=[sr.FindingSite(pydicom_code(site))] if site else None,
        algorithm_id=algorithm_identification(
            job.findings, f"threshold: {classification.threshold:.6g}"
        ),
        measurements=[_certainty(classification.probability)],
        # Not as "Finding": a reader that looks at that item alone would take an absent one for
        # present.
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                pydicom_code(classification.finding),
                pydicom_code(PRESENT if classification.present else ABSENT),
            )
        ],
        source_images=_source_images(job),
    )


def _nothing_found(job: Job) -> Group:
    looked = not job.findings.not_analysed
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(job, "nothing found" if looked else "not analysed"),
        finding_type=pydicom_code(NOT_DETECTED if looked else NOT_ANALYSED),
        algorithm_id=algorithm_identification(job.findings),
        source_images=_source_images(job),
    )


def algorithm_identification(findings: Findings, *parameters: str) -> sr.AlgorithmIdentification:
    """Return TID 4019 for the model; the digest of its package is one of the parameters."""
    algorithm = findings.algorithm
    return sr.AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        parameters=[f"package_sha256: {algorithm.package_sha256}", *parameters],
        family=pydicom_code(algorithm.family),
        manufacturer=algorithm.manufacturer,
    )


def _tracking(job: Job, tracking_id: str) -> sr.TrackingIdentifier:
    return sr.TrackingIdentifier(uids.tracking_uid(job.uuid, tracking_id), tracking_id)


def _referenced(job: Job, place: _Where) -> sr.ReferencedSegment:
    return sr.ReferencedSegment(
        sop_class_uid=place.seg.SOPClassUID,
        sop_instance_uid=place.seg.SOPInstanceUID,
        segment_number=place.number,
        source_series=_series(job),
    )


def _on_plane(job: Job, place: _Where) -> sr.ReferencedSegmentationFrame:
    """Return the frame that shows a segment on a projection image, or its label in a label map."""
    where = job.findings.where
    assert isinstance(where, Plane)
    labels = place.seg.SOPClassUID == LABELMAP_STORAGE  # one frame for all segments
    frames = [
        number
        for number, frame in enumerate(place.seg.PerFrameFunctionalGroupsSequence, start=1)
        if labels
        or "SegmentIdentificationSequence" not in frame  # the only segment
        or frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == place.number
    ]
    region = sr.ReferencedSegmentationFrame(
        sop_class_uid=place.seg.SOPClassUID,
        sop_instance_uid=place.seg.SOPInstanceUID,
        frame_number=frames[0],
        segment_number=place.number,
        source_image=sr.SourceImageForSegmentation(*_source_of(job, where.sop_instance_uid)),
    )
    # A frame is named or a segment, not both (PS3.3 10.3).
    (named,) = region[0].ReferencedSOPSequence
    if labels:
        del named.ReferencedFrameNumber
    else:
        del named.ReferencedSegmentNumber
    return region


def _series(job: Job) -> sr.SourceSeriesForSegmentation:
    return sr.SourceSeriesForSegmentation(str(job.sources[0].SeriesInstanceUID))


def _source_images(job: Job) -> list[sr.SourceImageForMeasurementGroup] | None:
    """Return the image of a projection; those of a series stand in the image library.

    A series that was not analysed is a plane too, of its first image alone.
    """
    if not isinstance(job.findings.where, Plane) or len(job.sources) > 1:
        return None
    source = _source_of(job, job.findings.where.sop_instance_uid)
    return [sr.SourceImageForMeasurementGroup(*source)]


def _source_of(job: Job, sop_instance_uid: str) -> tuple[str, str]:
    for source in job.sources:
        if source.SOPInstanceUID == sop_instance_uid:
            return known_class(str(source.SOPClassUID)), str(source.SOPInstanceUID)
    raise InputError(
        f"encode: {job.findings.algorithm.name} found something on {sop_instance_uid}, which is "
        "no source image of this job.",
        subject=sop_instance_uid,
    )


def _sites(detection: Detection) -> list[sr.FindingSite] | None:
    if detection.site is None:
        return None
    side = pydicom_code(detection.laterality) if detection.laterality else None
    return [sr.FindingSite(pydicom_code(detection.site), side)]


def _side(detection: Detection) -> list[sr.QualitativeEvaluation] | None:
    if detection.laterality is None or detection.site is not None:
        return None
    return [sr.QualitativeEvaluation(pydicom_code(LATERALITY), pydicom_code(detection.laterality))]


def _pixel_region(box: PixelBox, job: Job) -> sr.ImageRegion:
    """Return the outline of whole pixels: SCOORD counts from the outer corner of the first one."""
    top, left = box.first_ji
    bottom, right = (edge + 1 for edge in box.last_ji)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array(corners, dtype=np.float64),
        source_image=sr.SourceImageForRegion(*_source_of(job, box.sop_instance_uid)),
    )


def _surface(region: Sphere | Box, job: Job) -> sr.VolumeSurface:
    where = job.findings.where
    if not isinstance(where, Grid):
        raise InputError(
            f"encode: {job.findings.algorithm.name} gave a place in the patient for a projection "
            "image, which has none."
        )
    if isinstance(region, Sphere):
        kind, data = sr.GraphicTypeValues3D.ELLIPSOID, [_axes(region)]
    else:
        kind, data = sr.GraphicTypeValues3D.POLYGON, _faces(region, where)
    return sr.VolumeSurface(
        graphic_type=kind,
        graphic_data=data,
        frame_of_reference_uid=where.frame_of_reference_uid,
        source_series=_series(job),
    )


def _centre(region: Sphere | Box, job: Job) -> sr.Scoord3DContentItem:
    if isinstance(region, Sphere):
        point = np.array([region.centre_lps_mm])
    else:
        point = np.mean([[region.corner_lps_mm, region.opposite_lps_mm]], axis=1)
    where = job.findings.where
    assert isinstance(where, Grid)
    return sr.Scoord3DContentItem(
        name=pydicom_code(CENTRE),
        graphic_type=sr.GraphicTypeValues3D.POINT,
        graphic_data=point,
        frame_of_reference_uid=where.frame_of_reference_uid,
        relationship_type=sr.RelationshipTypeValues.CONTAINS,
    )


def _axes(ball: Sphere) -> _Points:
    """Return the ends of three axes, (6, 3) LPS mm: what ELLIPSOID wants (PS3.3 C.18.9.1.2)."""
    centre, radius = np.array(ball.centre_lps_mm), ball.diameter_mm / 2
    return np.array([centre + sign * radius * axis for axis in np.eye(3) for sign in (-1, 1)])


def _faces(box: Box, grid: Grid) -> list[_Points]:
    """Return the first and the last face of a box along k, each a closed polygon, (5, 3) LPS mm."""
    one, other = grid.kji(box.corner_lps_mm), grid.kji(box.opposite_lps_mm)
    low, high = np.minimum(one, other), np.maximum(one, other)
    square = [(low[1], low[2]), (low[1], high[2]), (high[1], high[2]), (high[1], low[2])]
    return [grid.lps_mm([(k, j, i) for j, i in [*square, square[0]]]) for k in (low[0], high[0])]


def _certainty(probability: float) -> sr.Measurement:
    return sr.Measurement(
        name=pydicom_code(CERTAINTY_OF_FINDING),
        value=float(probability) * 100,
        unit=pydicom_code(PERCENT),
    )


def _measurement(measurement: Measurement) -> sr.Measurement:
    return sr.Measurement(
        name=pydicom_code(measurement.name),
        value=float(measurement.value),
        unit=pydicom_code(measurement.unit),
        method=pydicom_code(measurement.method) if measurement.method else None,
        derivation=pydicom_code(measurement.derivation) if measurement.derivation else None,
        properties=_properties(measurement),
    )


def _properties(measurement: Measurement) -> sr.MeasurementProperties | None:
    """Return TID 310, where a number says how uncertain it is."""
    if measurement.uncertainty is None:
        return None
    properties = sr.MeasurementProperties()
    properties.append(
        sr.NumContentItem(
            name=pydicom_code(UNCERTAINTY),
            value=float(measurement.uncertainty),
            unit=pydicom_code(measurement.unit),
            relationship_type=sr.RelationshipTypeValues.HAS_PROPERTIES,
        )
    )
    return properties


def pydicom_code(code: Code) -> PydicomCode:
    """Return a code as highdicom takes it."""
    return PydicomCode(code.value, code.scheme, code.meaning)
