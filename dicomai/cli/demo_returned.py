"""What came back to the PACS, read from the objects themselves: the check and the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset

from dicomai.dicom.codes import Code
from dicomai.errors import InputError
from dicomai.findings import (
    Classification,
    Detection,
    Findings,
    Mask,
    Measurement,
    Segment,
    Sphere,
)
from dicomai.imaging.geometry import Grid
from dicomai.imaging.image import SourceImagePixels
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.inputs import inputs_of
from dicomai.models.package import Package
from dicomai.results import gate
from dicomai.results.overlay import overlays
from dicomai.results.summary import line

_GROUP: Final = "125007"
_TRACKING: Final = "112039"
_FINDING: Final = "121071"
_CATEGORY: Final = "276214006"
_SITE: Final = "363698007"
_LATERALITY: Final = "272741003"
_CERTAINTY: Final = "111012"
_CENTRE: Final = "111010"
_PARAMETER: Final = "111002"
_METHOD: Final = "370129005"
_DERIVATION: Final = "121401"
_PRESENT: Final = "52101004"
_ABSENT: Final = "272519000"
_NOT_DETECTED: Final = "260415000"
_THRESHOLD: Final = "threshold: "

Source = SourceVolume | SourceImagePixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """One analysis as the PACS has it: in words, and in pictures."""

    found: str
    pictures: tuple[Path, ...]


def checked(objects: Sequence[Path], source: Source, package: Package, pictures: Path) -> Returned:
    """Check what came back of one analysis, and draw it.

    Parameters
    ----------
    objects
        The report and, if there is one, the Segmentation, as the PACS got them.
    source
        The images that were sent.
    package
        The model that looked at them.
    pictures
        The folder for the pictures.

    Raises
    ------
    GateError
        An object breaks a rule: another patient, another geometry, a reference to nowhere.
    InputError
        There is no report among them.
    """
    findings = read_back(objects, source, package)
    gate.check(list(objects), findings, source.headers)
    values = source.voxels if isinstance(source, SourceVolume) else source.grey
    return Returned(found=line(findings), pictures=tuple(overlays(findings, values, pictures)))


def read_back(objects: Sequence[Path], source: Source, package: Package) -> Findings:
    """Return the findings that a report and its Segmentation tell."""
    read = [pydicom.dcmread(path) for path in objects]
    report = next((each for each in read if each.Modality == "SR"), None)
    if report is None:
        raise InputError("No report came back.", subject=package.name)
    seg = next(
        (path for path, each in zip(objects, read, strict=True) if each.Modality == "SEG"), None
    )
    where = source.grid if isinstance(source, SourceVolume) else source.plane
    masks = _masks(seg, where) if seg is not None and isinstance(where, Grid) else {}
    outputs = package.manifest.output
    colours = {each.label: each.display_rgb for each in outputs if each.kind != "class"}
    found = [
        _found(group, masks, colours)
        for group in _walk(report)
        if _name(group) == _GROUP and _NOT_DETECTED not in _values(group, _FINDING)
    ]
    return Findings(
        algorithm=package.algorithm,
        where=where,
        inputs=inputs_of(source.headers),
        sought=package.manifest.sought,
        segments=tuple(each for each in found if isinstance(each, Segment)),
        detections=tuple(each for each in found if isinstance(each, Detection)),
        classifications=tuple(each for each in found if isinstance(each, Classification)),
    )


def _masks(path: Path, grid: Grid) -> dict[int, Mask]:
    """Return the mask of each segment on the source grid, by segment number."""
    seg = highdicom.seg.segread(path)
    voxels: npt.NDArray[np.generic] = seg.get_pixels_by_source_instance(
        source_sop_instance_uids=list(grid.sop_instance_uids),
        assert_missing_frames_are_empty=True,
    )
    return {
        number: np.ascontiguousarray(voxels[..., position].astype(np.bool_))
        for position, number in enumerate(seg.segment_numbers)
    }


def _found(
    group: Dataset, masks: dict[int, Mask], colours: dict[str, tuple[int, int, int]]
) -> Segment | Detection | Classification:
    tracking = next(str(each.TextValue) for each in _named(group, _TRACKING))
    label = next((each for each in colours if tracking.startswith(each)), tracking)
    rgb = colours.get(label, (230, 60, 60))
    numbers = tuple(_measurement(each) for each in _children(group) if each.ValueType == "NUM")
    certainty = next((each.value / 100 for each in numbers if each.name.value == _CERTAINTY), 0.0)
    measurements = tuple(each for each in numbers if each.name.value != _CERTAINTY)
    for item in _children(group):
        if item.ValueType == "CODE" and _value(item).value in (_PRESENT, _ABSENT):
            return Classification(
                label=tracking,
                tracking_id=tracking,
                finding=_code(item.ConceptNameCodeSequence[0]),
                site=_first(group, _SITE),
                present=_value(item).value == _PRESENT,
                probability=certainty,
                threshold=_threshold(group),
            )
    mask = next((masks[number] for number in _segments(group)), None)
    finding, category = _first(group, _FINDING), _first(group, _CATEGORY)
    if finding is None:
        raise InputError(f'The report does not say what "{tracking}" is.', subject=tracking)
    # In the patient: the centre on an image shows what the segment or this place says.
    centres = [each for each in _named(group, _CENTRE) if each.ValueType == "SCOORD3D"]
    if not centres:
        if mask is None or category is None:
            raise InputError(f'The report points to no segment for "{tracking}".', subject=tracking)
        return Segment(
            label=tracking,
            tracking_id=tracking,
            category=category,
            type=finding,
            laterality=_side(group),
            mask=mask,
            measurements=measurements,
            display_rgb=rgb,
        )
    return Detection(
        label=tracking,
        tracking_id=tracking,
        finding=finding,
        site=_first(group, _SITE),
        laterality=_side(group),
        region=_ball(centres[0], measurements),
        probability=certainty,
        measurements=measurements,
        category=category,
        mask=mask,
        display_rgb=rgb,
    )


def _ball(centre: Dataset, measurements: Sequence[Measurement]) -> Sphere:
    x, y, z = (float(each) for each in centre.GraphicData)
    diameter = next((each.value for each in measurements if each.unit.value == "mm"), 0.0)
    return Sphere(centre_lps_mm=(x, y, z), diameter_mm=diameter)


def _measurement(item: Dataset) -> Measurement:
    measured = item.MeasuredValueSequence[0]
    return Measurement(
        name=_code(item.ConceptNameCodeSequence[0]),
        value=float(measured.NumericValue),
        unit=_code(measured.MeasurementUnitsCodeSequence[0]),
        method=_first(item, _METHOD),
        derivation=_first(item, _DERIVATION),
    )


def _threshold(group: Dataset) -> float:
    said = [str(each.TextValue) for each in _named(group, _PARAMETER)]
    return next(
        (float(each.removeprefix(_THRESHOLD)) for each in said if each.startswith(_THRESHOLD)), 0.5
    )


def _segments(group: Dataset) -> Iterator[int]:
    for item in _children(group):
        if item.ValueType == "IMAGE":
            numbers = item.ReferencedSOPSequence[0].get("ReferencedSegmentNumber")
            if numbers is not None:
                yield int(numbers)


def _side(group: Dataset) -> Code | None:
    return next(
        (
            _value(each)
            for each in _walk(group)
            if each.ValueType == "CODE" and _name(each) == _LATERALITY
        ),
        None,
    )


def _children(holder: Dataset) -> Sequence[Dataset]:
    return holder.get("ContentSequence") or ()


def _walk(holder: Dataset) -> Iterator[Dataset]:
    for item in _children(holder):
        yield item
        yield from _walk(item)


def _name(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def _named(holder: Dataset, name: str) -> list[Dataset]:
    return [each for each in _children(holder) if _name(each) == name]


def _values(holder: Dataset, name: str) -> list[str]:
    return [_value(each).value for each in _named(holder, name)]


def _first(holder: Dataset, name: str) -> Code | None:
    return next((_value(each) for each in _named(holder, name)), None)


def _value(item: Dataset) -> Code:
    return _code(item.ConceptCodeSequence[0])


def _code(item: Dataset) -> Code:
    return Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))
