"""Probabilities of each voxel as Parametric Map (PS3.3 A.75)."""

from __future__ import annotations

from typing import Final

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as PydicomCode

from dicomai.dicom.codes import LEFT, OURS, RIGHT
from dicomai.findings import Segment
from dicomai.imaging.geometry import Grid
from dicomai.results import uids
from dicomai.results.functional_groups import leave_out_uneven_spacing
from dicomai.results.job import Job
from dicomai.results.provenance import code_item, complete, note_loss
from dicomai.results.seg import images_of, name_dimensions, name_sources, spread

PROBABILITY: Final = PydicomCode("PROBABILITY", OURS, "Probability of belonging to the segment")


def encode_pm(job: Job) -> tuple[Dataset, ...]:
    """Return a map of float32 from 0 to 1 for each segment whose probabilities the model gives.

    Outside its mask stands 0. None on a projection image: a map lies in the patient.
    """
    if not isinstance(job.findings.where, Grid):
        return ()
    likely = [
        (each, spread(each.mask, each.probability))
        for each in job.findings.segments
        if each.probability is not None and each.mask.any()
    ]
    return tuple(
        _map(job, segment, values, number)
        for number, (segment, values) in enumerate(likely, start=1)
    )


def _map(job: Job, segment: Segment, values: npt.NDArray[np.float32], number: int) -> Dataset:
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="PROBABILITY",
        lut_explanation=f"Probability of {segment.label}"[:64],
        unit=PydicomCode("1", "UCUM", "no units"),
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=PROBABILITY,
    )
    result = hd.pm.ParametricMap(
        source_images=images_of(job),
        pixel_array=values.astype(np.float32, copy=False),
        series_instance_uid=uids.series_uid(job.uuid, "PM"),
        series_number=job.series_number("PM"),
        sop_instance_uid=uids.instance_uid(job.uuid, "PM", number),
        instance_number=number,
        manufacturer=job.context.manufacturer,
        manufacturer_model_name=job.context.model_name,
        software_versions=job.context.software_version,
        device_serial_number=job.findings.algorithm.package_sha256,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="AI_PROBABILITY",
        content_description="AI result, unverified, not for primary diagnosis",
        content_qualification=hd.ContentQualificationValues.RESEARCH,
    )
    result.ContentCreatorName = ""  # type 2: no person made it
    result.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_anatomy(segment, job.side)]
    name_dimensions(result, uids.dimension_uid(job.uuid, "PM", number))
    leave_out_uneven_spacing(result, job.findings.where)
    name_sources(result, job.slices())
    note_loss(result, job)
    complete(result, job, "PM", number)
    return result


def _anatomy(segment: Segment, side: str) -> Dataset:
    """Return what a frame is of (C.7.6.16.2.8); dcmqi reads no map without it.

    On the side of the segment, else on that which the images show.
    """
    item = Dataset()
    item.AnatomicRegionSequence = [code_item(segment.type)]
    sides = {RIGHT.value: "R", LEFT.value: "L"}
    if segment.laterality is not None:
        side = sides.get(segment.laterality.value, "")
    item.FrameLaterality = side if side in {"R", "L", "B"} else "U"
    return item
