"""The source images that matter, as Key Object Selection (PS3.3 A.35.4, PS3.16 TID 2010)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.findings import Box, Findings, PixelBox, Sphere
from dicomai.imaging.geometry import Grid
from dicomai.results import summary
from dicomai.results.provenance import Job, code_item, complete
from dicomai.results.request import evidence, requests

OF_INTEREST: Final = Code("113000", "DCM", "Of Interest")
DESCRIPTION: Final = Code("113012", "DCM", "Key Object Description")
OBSERVER_TYPE: Final = Code("121005", "DCM", "Observer Type")
DEVICE: Final = Code("121007", "DCM", "Device")
DEVICE_UID: Final = Code("121012", "DCM", "Device Observer UID")
MOST_DETECTIONS: Final = 20


def key_images(findings: Findings) -> tuple[str, ...]:
    """Return the SOP Instance UIDs of the images that matter, in the order of the source.

    Of each segment the slice with most of it, of each of the surest detections the slice through
    its centre; a projection image where something is on it. None where nothing was found.
    """
    where = findings.where
    if not isinstance(where, Grid):
        return () if findings.nothing_found else (where.sop_instance_uid,)
    slices = {
        int(segment.mask.sum(axis=(1, 2)).argmax())
        for segment in findings.segments
        if segment.mask.any()
    }
    surest = sorted(findings.detections, key=lambda each: -each.probability)[:MOST_DETECTIONS]
    for each in surest:
        centre = _centre(each.region)
        if centre is not None:
            k = round(float(where.kji(centre)[0]))
            slices.add(min(max(k, 0), where.shape_kji[0] - 1))
    return tuple(where.sop_instance_uids[k] for k in sorted(slices))


def _centre(region: Sphere | Box | PixelBox) -> tuple[float, ...] | None:
    if isinstance(region, Sphere):
        return region.centre_lps_mm
    if isinstance(region, Box):
        return tuple(np.mean([region.corner_lps_mm, region.opposite_lps_mm], axis=0).tolist())
    return None


def encode_ko(job: Job) -> Dataset | None:
    """Return the selection of the images that matter; None where none does."""
    keys = set(key_images(job.findings))
    images = [each for each in job.sources if str(each.SOPInstanceUID) in keys]
    if not images:
        return None
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
    result.CurrentRequestedProcedureEvidenceSequence = evidence(images)
    if asked := requests(job):
        result.ReferencedRequestSequence = asked
    observer = _item("CODE", "HAS OBS CONTEXT", OBSERVER_TYPE)
    observer.ConceptCodeSequence = [code_item(DEVICE)]
    device = _item("UIDREF", "HAS OBS CONTEXT", DEVICE_UID)
    device.UID = job.device_uid
    text = _item("TEXT", "CONTAINS", DESCRIPTION)
    text.TextValue = said
    result.ContentSequence = [observer, device, text, *(_image(each) for each in images)]
    return result


def _item(value_type: str, relationship: str, name: Code) -> Dataset:
    item = Dataset()
    item.RelationshipType = relationship
    item.ValueType = value_type
    item.ConceptNameCodeSequence = [code_item(name)]
    return item


def _image(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    item.ValueType = "IMAGE" if "Rows" in image else "COMPOSITE"
    item.ReferencedSOPSequence = [reference]
    return item
