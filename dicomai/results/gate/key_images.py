"""The images that a Key Object Selection picks out, held against where the findings are."""

from __future__ import annotations

from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from dicomai.findings import Findings, PixelBox, Sphere
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.codes import code_of
from dicomai.results.gate.error import refuse
from dicomai.results.gate.planes import Image, expected_corners, images_of

_MOST_DETECTIONS: Final = 20
_ROUNDING_MM: Final = 1e-4


def has_keys(findings: Findings) -> bool:
    """Tell whether an image matters: something was found that has a place, or on a projection."""
    return bool(_wanted(findings))


def check_key_images(result: Dataset, findings: Findings) -> None:
    """Check a selection: its title, its words, and that it has these images and no others."""
    uid = str(result.SOPInstanceUID)
    title = result.ConceptNameCodeSequence[0]
    if (code_of(title), title.get("CodingSchemeDesignator")) != ("113000", "DCM"):
        refuse("content", uid, "its title is not that its images are of interest")
    template = result.ContentTemplateSequence[0]
    if (template.MappingResource, template.TemplateIdentifier) != ("DCMR", "2010"):
        refuse("attributes", uid, "its root is not TID 2010")
    said = " ".join(
        str(item.TextValue) for item in result.ContentSequence if item.ValueType == "TEXT"
    )
    algorithm = findings.algorithm
    for text in ("not for primary diagnosis", "UNVERIFIED", algorithm.name, algorithm.version):
        if text not in said:
            refuse("status", uid, f'its description does not say "{text}"')
    devices = [str(item.UID) for item in result.ContentSequence if item.ValueType == "UIDREF"]
    if devices != [str(result.DeviceUID)]:
        refuse("provenance", uid, "its observer is not the device that its header names")
    picked = [
        (
            str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID),
            int(item.ReferencedSOPSequence[0].get("ReferencedFrameNumber") or 0),
        )
        for item in result.ContentSequence
        if item.ValueType == "IMAGE"
    ]
    choices = _wanted(findings)
    if len(picked) != len(set(picked)) or not set(picked) <= set().union(*choices):
        refuse("content", uid, "it picks out an image that does not show what was found")
    if not all(choice & set(picked) for choice in choices):
        refuse("content", uid, "its images do not show all that was found")
    listed = {
        str(each.ReferencedSOPInstanceUID)
        for study in result.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for each in series.ReferencedSOPSequence
    }
    if listed != {sop for sop, _ in picked}:
        refuse("references", uid, "its evidence is not the images that it picks out")


def _wanted(findings: Findings) -> list[set[Image]]:
    """Return for each thing found the images of which one shows it best; two where it lies between.

    A thing that has no image is left out.
    """
    where, images = findings.where, images_of(findings)
    if not isinstance(where, Grid):
        some = findings.detections or any(each.present for each in findings.classifications)
        some = some or any(each.mask.any() for each in findings.segments)
        return [set(images)] if some else []
    choices = []
    for segment in findings.segments:
        areas = np.count_nonzero(segment.mask, axis=(1, 2))
        if areas.any():
            largest = np.flatnonzero(areas == areas.max())
            choices.append({images[k] for k in largest})
    surest = sorted(findings.detections, key=lambda each: -each.probability)[:_MOST_DETECTIONS]
    normal = np.cross(where.index_to_lps[:3, 1], where.index_to_lps[:3, 2])
    normal /= np.linalg.norm(normal)
    planes = np.array([expected_corners(where, k)[0] @ normal for k in range(where.shape_kji[0])])
    for each in surest:
        region = each.region
        if isinstance(region, PixelBox):
            continue
        if isinstance(region, Sphere):
            middle = np.array(region.centre_lps_mm)
        else:
            middle = (np.array(region.corner_lps_mm) + np.array(region.opposite_lps_mm)) / 2
        away = np.abs(planes - middle @ normal)
        choices.append({images[k] for k in np.flatnonzero(away < away.min() + _ROUNDING_MM)})
    return choices
