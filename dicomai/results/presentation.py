"""What was found as marks on the source images: Grayscale Softcopy Presentation State (A.33.1).

Coordinates are columns and rows in pixels from the outer corner of the first one, which is 0\\0
(PS3.3 C.10.5). A mask is drawn along the sides of its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DS

from dicomai.errors import InputError
from dicomai.findings import Box, Detection, Findings, PixelBox, Sphere
from dicomai.imaging.attributes import items_of, numbers, text
from dicomai.imaging.frame import header_of_only_frame
from dicomai.imaging.geometry import Grid, Plane
from dicomai.imaging.modality import lut_data
from dicomai.results import summary
from dicomai.results.drawing import NOT_FOR_DIAGNOSIS
from dicomai.results.job import Job
from dicomai.results.outline import outlines
from dicomai.results.overlay import window
from dicomai.results.provenance import complete, reference
from dicomai.results.source import decimal, is_sound, stated

# Graphic Data are FL, and an element in Explicit VR ends at 65534 bytes: longer lines are parted.
_LONGEST: Final = 8000
_CURVES: Final = ("LINEAR_EXACT", "SIGMOID")
_WORDS: Final = "RESULT"
_TOUCHES_MM: Final = 1e-3  # a slice that a ball only touches does not show it
_NEAR: Final = 1e-6  # rounding of a fractional index

_Line: TypeAlias = npt.NDArray[np.float64]
"""(N, 2): column, row."""
_Rescale: TypeAlias = tuple[str, str, str]
_Lut: TypeAlias = tuple[tuple[int, ...], bytes]
"""LUT Descriptor and LUT Data, 16 bits an entry."""
_Pixels: TypeAlias = tuple[_Rescale, _Lut | None, str, int, int]
_Marked: TypeAlias = "tuple[Dataset, list[_Mark]]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Mark:
    """What is drawn of one finding on one image: lines, closed or parts of closed ones."""

    layer: int
    name: str
    kind: str
    lines: tuple[_Line, ...]
    rgb: tuple[int, int, int]


def encode_pr(job: Job) -> tuple[Dataset, ...]:
    """Return the marks: one object for the images that share their way to grey and a size.

    There is none where nothing has a place, and none for images in colour.
    """
    slices = tuple(map(header_of_only_frame, job.slices()))
    if any(map(_in_colour, slices)):
        return ()
    groups: dict[_Pixels, list[_Marked]] = {}
    for image, marks in zip(slices, _marks(job.findings), strict=True):
        if marks:
            rescale = _rescale(image)
            lut = None if rescale[0] else _lut(image, "ModalityLUTSequence")
            key = (rescale, lut, _shape(image), int(image.Rows), int(image.Columns))
            groups.setdefault(key, []).append((image, marks))
    return tuple(
        _state(job, pixels, marked, number)
        for number, (pixels, marked) in enumerate(groups.items(), start=1)
    )


def _in_colour(image: Dataset) -> bool:
    return text(image, "PhotometricInterpretation") not in {"", "MONOCHROME1", "MONOCHROME2"}


def _marks(findings: Findings) -> Iterator[list[_Mark]]:
    """Yield what is drawn on each slice, or on the projection image."""
    where = findings.where
    slices = range(where.shape_kji[0]) if isinstance(where, Grid) else (0,)
    for k in slices:
        drawn = [
            _Mark(
                layer=layer,
                name=each.label,
                kind="POLYLINE",
                lines=_outlined(each.mask[k]),
                rgb=each.display_rgb,
            )
            for layer, each in enumerate(findings.segments)
            if each.mask[k].any()
        ]
        drawn += [
            mark
            for layer, each in enumerate(findings.detections, len(findings.segments))
            if (mark := _detected(layer, each, where, k)) is not None
        ]
        yield drawn


def _outlined(mask: npt.NDArray[np.bool_]) -> tuple[_Line, ...]:
    lines = []
    for part in outlines(mask):
        for corners in part:
            closed = np.vstack([corners, corners[:1]])[:, ::-1].astype(np.float64)
            lines += [
                closed[first : first + _LONGEST + 1] for first in range(0, len(corners), _LONGEST)
            ]
    return tuple(lines)


def _detected(layer: int, found: Detection, where: Grid | Plane, k: int) -> _Mark | None:
    """Return what a slice shows of a detection: its mask, else the cut of its region."""
    if found.mask is not None:
        kind, lines = "POLYLINE", _outlined(found.mask[k])
    elif isinstance(found.region, PixelBox):
        (top, left), (bottom, right) = found.region.first_ji, found.region.last_ji
        kind, lines = "POLYLINE", (_rectangle(left, top, right + 1, bottom + 1),)
    elif not isinstance(where, Grid):
        raise InputError("encode: a place in the patient can't be marked on a projection image.")
    elif isinstance(found.region, Sphere):
        kind, lines = "ELLIPSE", _cut(found.region, where, k)
    else:
        kind, lines = "POLYLINE", _crossed(found.region, where, k)
    if not lines:
        return None
    name = f"{found.label} {summary.percent(found.probability)}"
    return _Mark(layer=layer, name=name, kind=kind, lines=lines, rgb=found.display_rgb)


def _cut(ball: Sphere, grid: Grid, k: int) -> tuple[_Line, ...]:
    """Return the circle in which a slice cuts a ball: the ends of both axes of an ellipse."""
    _, between_rows, between_columns = grid.spacing_kji_mm
    at = float(grid.kji(ball.centre_lps_mm)[0])
    normal = np.cross(grid.index_to_lps[:3, 2], grid.index_to_lps[:3, 1])
    normal /= np.linalg.norm(normal)
    centre = np.array(ball.centre_lps_mm)
    from_slice = float((centre - grid.lps_mm((k, 0, 0))) @ normal)
    _, row, column = grid.kji(centre - from_slice * normal)  # straight down, whatever the tilt
    radius, away = ball.diameter_mm / 2, abs(from_slice)
    # A ball that is thinner than the slices is still shown on the nearest one.
    if away > radius - _TOUCHES_MM and abs(at - k) > 0.5 + _NEAR:
        return ()
    reach = np.sqrt(max(radius**2 - away**2, (0.5 * min(between_rows, between_columns)) ** 2))
    x, y = float(column) + 0.5, float(row) + 0.5
    across, down = reach / between_columns, reach / between_rows
    axes = [[(x - across, y), (x + across, y)], [(x, y - down), (x, y + down)]]
    if down > across:  # the major axis comes first (PS3.3 C.10.5.1.2)
        axes.reverse()
    return (np.array([*axes[0], *axes[1]], dtype=np.float64),)


def _crossed(box: Box, grid: Grid, k: int) -> tuple[_Line, ...]:
    one, other = grid.kji(box.corner_lps_mm), grid.kji(box.opposite_lps_mm)
    low, high = np.minimum(one, other), np.maximum(one, other)
    if not low[0] - 0.5 - _NEAR <= k <= high[0] + 0.5 + _NEAR:
        return ()
    left, top, right, bottom = (float(each) + 0.5 for each in (low[2], low[1], high[2], high[1]))
    return (_rectangle(left, top, right, bottom),)


def _rectangle(left: float, top: float, right: float, bottom: float) -> _Line:
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return np.array(corners, dtype=np.float64)


def _state(job: Job, pixels: _Pixels, marked: Sequence[_Marked], number: int) -> Dataset:
    images = [image for image, _ in marked]
    result = Dataset()
    result.PresentationCreationDate, result.PresentationCreationTime = job.date_and_time
    result.ContentLabel = "AI_RESULT"
    result.ContentDescription = "AI result, unverified, not for primary diagnosis"
    result.ContentCreatorName = ""  # type 2: no person made it
    series = Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ReferencedImageSequence = _references(images)
    result.ReferencedSeriesSequence = [series]
    result.DisplayedAreaSelectionSequence = [_area(images[0])]
    result.GraphicAnnotationSequence = [
        _annotation(mark, image) for image, marks in marked for mark in marks
    ]
    result.GraphicAnnotationSequence.append(_banner(job))
    shown = {mark.layer: mark for _, marks in marked for mark in marks}
    result.GraphicLayerSequence = [
        _layer(_layer_name(each), order, shown[each].rgb)
        for order, each in enumerate(sorted(shown), start=1)
    ]
    result.GraphicLayerSequence.append(_layer(_WORDS, len(shown) + 1, (255, 196, 84)))
    (intercept, slope, kind), lut, shape, _, _ = pixels
    if slope:
        result.RescaleIntercept, result.RescaleSlope = intercept, slope
        result.RescaleType = kind
    if lut is not None:
        modality = _table(lut)
        modality.ModalityLUTType = "US"  # unspecified
        result.ModalityLUTSequence = [modality]
    if levels := _levels_of_all(job, images):
        result.SoftcopyVOILUTSequence = levels
    result.PresentationLUTShape = shape
    complete(result, job, "PR", number)
    return result


def _shape(source: Dataset) -> str:
    """Return Presentation LUT Shape: low values are dark, or bright as on film (PS3.3 C.11.6)."""
    inverse = text(source, "PhotometricInterpretation") == "MONOCHROME1"
    return "INVERSE" if inverse else "IDENTITY"


def _rescale(source: Dataset) -> _Rescale:
    """Return Rescale Intercept, Slope and Type: the state's replaces the image's (C.11.6)."""
    slope, intercept = _first(source, "RescaleSlope"), _first(source, "RescaleIntercept")
    if not slope or not intercept:
        return ("", "", "")
    kind = text(source, "RescaleType")
    return (intercept, slope, kind if is_sound(kind, "LO") else "US")


def _first(source: Dataset, keyword: str) -> str:
    """Return the first of some numbers as a DS, "" where it is none."""
    return next(map(decimal, stated(source, keyword)), "")


def _lut(source: Dataset, keyword: str) -> _Lut | None:
    """Return the first table of a sequence, if it is whole."""
    try:
        item = next(iter(items_of(source, keyword)), Dataset())
    except InputError:
        return None
    descriptor, data = item.get("LUTDescriptor"), lut_data(item)
    if isinstance(descriptor, bytes):  # of an Implicit VR file, whose signedness the image says
        signed = source.get("PixelRepresentation") == 1
        descriptor = np.frombuffer(descriptor, "<i2" if signed else "<u2").tolist()
    if not isinstance(descriptor, MultiValue | list) or len(descriptor) != 3 or not data:
        return None
    octets = data if isinstance(data, bytes) else np.array(data).astype("<u2").tobytes()
    return tuple(int(each) for each in descriptor), octets


def _table(lut: _Lut) -> Dataset:
    """Return an item of a LUT sequence (PS3.3 C.11.1, C.11.2)."""
    descriptor, octets = lut
    item = Dataset()
    signed = min(descriptor) < 0
    item.add(DataElement(0x00283002, "SS" if signed else "US", list(descriptor)))
    item.add(DataElement(0x00283006, "OW", octets))
    return item


def _levels_of_all(job: Job, images: Sequence[Dataset]) -> list[Dataset]:
    """Return the window of all images, or each of several with the images that have it (C.11.8)."""
    groups: list[tuple[Dataset | None, list[Dataset]]] = []
    for image in images:
        levels = _levels(job, image)
        same = next((each for known, each in groups if known == levels), None)
        if same is None:
            groups.append((levels, [image]))
        else:
            same.append(image)
    found = [(levels, each) for levels, each in groups if levels is not None]
    if len(groups) > 1:
        for levels, each in found:
            levels.ReferencedImageSequence = _references(each)
    return [levels for levels, _ in found]


def _levels(job: Job, source: Dataset) -> Dataset | None:
    """Return the image's own first window, else its table, else the window of the pictures."""
    item = Dataset()
    centre, width = _first(source, "WindowCenter"), _first(source, "WindowWidth")
    where = job.findings.where
    if centre and width and float(width) > 0:
        item.WindowCenter, item.WindowWidth = centre, width
        function = text(source, "VOILUTFunction").partition("\\")[0].strip().upper()
        if function not in _CURVES and float(width) < 1:
            function = "LINEAR_EXACT"  # the other begins at 1 (C.11.2.1.2.1)
        if function in _CURVES:
            item.VOILUTFunction = function
    elif (lut := _lut(source, "VOILUTSequence")) is not None:
        item.VOILUTSequence = [_table(lut)]
    elif isinstance(where, Grid) and job.image is not None:
        low, high = window(job.findings, job.image, where)
        item.WindowCenter = f"{(low + high) / 2:.6g}"
        item.WindowWidth = f"{max(high - low, 1):.6g}"
    else:
        return None
    return item


def _area(image: Dataset) -> Dataset:
    """Return that the whole image is shown, fitted, in the proportions of its pixels (C.10.4)."""
    item = Dataset()
    item.DisplayedAreaTopLeftHandCorner = [1, 1]
    item.DisplayedAreaBottomRightHandCorner = [int(image.Columns), int(image.Rows)]
    item.PresentationSizeMode = "SCALE TO FIT"
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        if text(image, keyword):
            spacing = numbers(image, keyword, 2)
            item.PresentationPixelSpacing = [DS(each, auto_format=True) for each in spacing]
            return item
    ratio = text(image, "PixelAspectRatio").split("\\")
    known = len(ratio) == 2 and all(each.isdecimal() and int(each) for each in ratio)
    item.PresentationPixelAspectRatio = ratio if known else [1, 1]
    return item


def _references(images: Sequence[Dataset]) -> list[Dataset]:
    """Return each object once, with those of its frames that are marked (C.11.11)."""
    objects: dict[str, Dataset] = {}
    for image in images:
        item = reference(image)
        first = objects.setdefault(str(image.SOPInstanceUID), item)
        if first is not item:
            earlier = first.ReferencedFrameNumber
            frames = list(earlier) if isinstance(earlier, MultiValue) else [earlier]
            first.ReferencedFrameNumber = [*frames, item.ReferencedFrameNumber]
    return list(objects.values())


def _annotation(mark: _Mark, image: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedImageSequence = [reference(image)]
    item.GraphicLayer = _layer_name(mark.layer)
    item.GraphicObjectSequence = [_graphic(mark.kind, line) for line in mark.lines]
    words = Dataset()
    words.UnformattedTextValue = mark.name
    words.AnchorPointAnnotationUnits = "PIXEL"
    every = np.concatenate(mark.lines)
    words.AnchorPoint = [float(every[:, 0].max()), float(every[:, 1].min())]
    words.AnchorPointVisibility = "N"
    item.TextObjectSequence = [words]
    return item


def _graphic(kind: str, line: _Line) -> Dataset:
    item = Dataset()
    item.GraphicAnnotationUnits = "PIXEL"
    item.GraphicDimensions = 2
    item.NumberOfGraphicPoints = len(line)
    # As they are: what pydicom checks of each number takes longer than all the rest.
    data = line.ravel().tolist()
    item.add(DataElement(0x00700022, "FL", data, already_converted=True))
    item.GraphicType = kind
    item.GraphicFilled = "N"
    return item


def _banner(job: Job) -> Dataset:
    """Return what stands on every image, whatever is drawn on it."""
    algorithm = job.findings.algorithm
    words = Dataset()
    words.UnformattedTextValue = (
        f"{NOT_FOR_DIAGNOSIS}, UNVERIFIED: {algorithm.name} {algorithm.version}"
    )
    words.BoundingBoxAnnotationUnits = "DISPLAY"
    words.BoundingBoxTopLeftHandCorner = [0.02, 0.94]
    words.BoundingBoxBottomRightHandCorner = [0.98, 0.99]
    words.BoundingBoxTextHorizontalJustification = "LEFT"
    item = Dataset()
    item.GraphicLayer = _WORDS
    item.TextObjectSequence = [words]
    return item


def _layer_name(layer: int) -> str:
    return f"FINDING{layer + 1}"


def _layer(name: str, order: int, rgb: tuple[int, int, int]) -> Dataset:
    item = Dataset()
    item.GraphicLayer = name
    item.GraphicLayerOrder = order
    item.GraphicLayerRecommendedDisplayGrayscaleValue = 0xFFFF
    item.GraphicLayerRecommendedDisplayCIELabValue = list(hd.color.CIELabColor.from_rgb(*rgb).value)
    return item
