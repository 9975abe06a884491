"""The source images that matter, as Key Object Selection (PS3.3 A.35.4, PS3.16 TID 2010)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.findings import Box, Findings, PixelBox, Sphere
from dicomai.imaging.geometry import Grid
from dicomai.imaging.mask import per_slice
from dicomai.results import summary
from dicomai.results.content_item import observed_by, text_item
from dicomai.results.job import Job
from dicomai.results.provenance import code_item, complete, reference
from dicomai.results.request import evidence, requests

OF_INTEREST: Final = Code("113000", "DCM", "Of Interest")
DESCRIPTION: Final = Code("113012", "DCM", "Key Object Description")
MOST_DETECTIONS: Final = 20


def key_slices(findings: Findings) -> tuple[int, ...]:
    """Return the slices that matter, in order; 0 for a projection image.

    Of each segment the slice with most of it, of each of the surest detections the slice through
    its centre; a projection image where something is on it. None where nothing was found.
    """
    where = findings.where
    if not isinstance(where, Grid):
        return () if findings.nothing_found else (0,)
    slices = {
        int(per_slice(segment.mask).argmax()) for segment in findings.segments if segment.mask.any()
    }
    surest = sorted(findings.detections, key=lambda each: -each.probability)[:MOST_DETECTIONS]
    for each in surest:
        centre = _centre(each.region)
        if centre is not None:
            k = round(float(where.kji(centre)[0]))
            slices.add(min(max(k, 0), where.shape_kji[0] - 1))
    return tuple(sorted(slices))


def _centre(region: Sphere | Box | PixelBox) -> tuple[float, ...] | None:
    if isinstance(region, Sphere):
        return region.centre_lps_mm
    if isinstance(region, Box):
        return tuple(np.mean([region.corner_lps_mm, region.opposite_lps_mm], axis=0).tolist())
    return None


def encode_ko(job: Job) -> Dataset | None:
    """Return the selection of the images that matter; None where none does."""
    keys = key_slices(job.findings)
    if not keys:
        return None
    slices = job.slices()
    images = [slices[k] for k in keys]
    algorithm = job.findings.algorithm
    said = (
        f"AI result, not for primary diagnosis, UNVERIFIED. {algorithm.name} {algorithm.version}: "
        f"{summary.line(job.findings)}"
    )
    result = selection(job, OF_INTEREST, said, images)
    complete(result, job, "KO")
    return result


def selection(job: Job, title: Code, said: str, images: Sequence[Dataset]) -> Dataset:
    """Return the document of a selection, without what every result has."""
    result = Dataset()
    result.ReferencedPerformedProcedureStepSequence = []
    result.ValueType = "CONTAINER"
    result.ConceptNameCodeSequence = [code_item(title)]
    result.ContinuityOfContent = "SEPARATE"
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "2010"
    result.ContentTemplateSequence = [template]
    whole = {str(each.SOPInstanceUID): each for each in job.sources}
    result.CurrentRequestedProcedureEvidenceSequence = evidence(
        whole[uid] for uid in dict.fromkeys(str(each.SOPInstanceUID) for each in images)
    )
    if asked := requests(job):
        result.ReferencedRequestSequence = asked
    result.ContentSequence = [*observed_by(job), text_item(DESCRIPTION, said), *map(_image, images)]
    return result


def _image(image: Dataset) -> Dataset:
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    item.ValueType = "IMAGE"
    item.ReferencedSOPSequence = [reference(image)]
    return item
