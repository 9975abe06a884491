"""Maps of probabilities, value by value, in the place of the slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from dicomai.findings import Findings, Segment
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.codes import is_coded
from dicomai.results.gate.error import refuse
from dicomai.results.gate.frames import check_dimensions, frames_of, lying_on
from dicomai.results.gate.planes import slices_of
from dicomai.results.gate.voxels import check_frame_of_reference

_NEAR: Final = 1e-6
_SIDES: Final = {"24028007": "R", "7771000": "L"}


def mapped(findings: Findings) -> list[Segment]:
    """Return the segments whose probabilities the model gives, in a volume."""
    if not isinstance(findings.where, Grid):
        return []
    return [each for each in findings.segments if each.probability is not None and each.mask.any()]


def check_maps(maps: Sequence[Dataset], findings: Findings, sources: Sequence[Dataset]) -> None:
    """Check that there is a map for each segment that has one, in the segments' order."""
    wanted = mapped(findings)
    if len(maps) != len(wanted):
        refuse("content", str(maps[0].SOPInstanceUID), f"there are {len(wanted)} maps to be made")
    ordered = sorted(maps, key=lambda each: int(each.InstanceNumber))
    for each, segment in zip(ordered, wanted, strict=True):
        _check(each, segment, findings, sources)


def _check(
    result: Dataset, segment: Segment, findings: Findings, sources: Sequence[Dataset]
) -> None:
    uid = str(result.SOPInstanceUID)
    check_frame_of_reference(result, uid, findings, sources)
    slices = slices_of(uid, findings, sources)
    rows, columns = int(slices[0].source.Rows), int(slices[0].source.Columns)
    count = int(result.NumberOfFrames)
    size = count * rows * columns
    frames = frames_of(result)
    if (
        (result.Rows, result.Columns) != (rows, columns)
        or len(result.FloatPixelData) != 4 * size
        or len(frames) != count
    ):
        refuse("readable", uid, "it does not hold the frames that it announces")
    values = np.frombuffer(result.FloatPixelData, "<f4").reshape(count, rows, columns)
    _meaning(result, uid, segment)
    assert segment.probability is not None
    wanted = np.zeros(segment.mask.shape)
    np.place(wanted, segment.mask, segment.probability)
    seen = set()
    found = lying_on(result, frames, slices, findings)
    for number, k in enumerate(found):
        seen.add(k)
        if not np.abs(values[number] - wanted[k]).max() <= _NEAR:  # nor nan
            refuse("geometry", uid, f"its values differ from the findings at slice {k}")
    if seen != set(range(len(slices))) or count != len(slices):
        refuse("geometry", uid, "it does not have each slice once")
    check_dimensions(result, frames, found, findings.where)


def _meaning(result: Dataset, uid: str, segment: Segment) -> None:
    """Check that its values are said to be probabilities without unit, as they stand."""
    shared = result.SharedFunctionalGroupsSequence[0]
    items = list(shared.get("RealWorldValueMappingSequence") or [])
    if len(items) != 1:
        refuse("content", uid, "it does not say what its values are")
    item = items[0]
    unit = item.MeasurementUnitsCodeSequence[0]
    said = (
        float(item.RealWorldValueSlope),
        float(item.RealWorldValueIntercept),
        unit.CodeValue,
        unit.CodingSchemeDesignator,
    )
    if said != (1.0, 0.0, "1", "UCUM") or segment.label[:40] not in item.LUTExplanation:
        refuse("content", uid, f"its values are not said to be probabilities of {segment.label}")
    (anatomy,) = shared.FrameAnatomySequence
    (region,) = anatomy.AnatomicRegionSequence
    side = _SIDES.get(segment.laterality.value) if segment.laterality else None
    if not is_coded(region, segment.type) or (side and anatomy.FrameLaterality != side):
        refuse("content", uid, f"its frames are not said to be of {segment.label}")
    if result.ContentQualification != "RESEARCH":
        refuse("status", uid, "it is not qualified as research")
