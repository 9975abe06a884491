"""The marks of a presentation state, filled again and held against masks and regions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicomai.findings import Box, Detection, Findings, PixelBox, Segment, Sphere
from dicomai.imaging.geometry import Grid
from dicomai.imaging.modality import lut_data
from dicomai.results.gate.elements import readable_items
from dicomai.results.gate.error import refuse
from dicomai.results.gate.planes import (
    Image,
    Slice,
    expected_corners,
    group,
    images_of,
    slices_of,
)

TOLERANCE_PX: Final = 0.01
_ROUNDING: Final = 1e-5
_DIGITS: Final = 1e-9  # a DS of a negative power of ten has ten of them
_NEAR: Final = 1e-3  # pixels of one series differ in size by a hair
_EDGE: Final = 0.01  # slices, or millimetres

_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
# What would hide, turn or replace what an image shows (PS3.3 C.10.6, C.7.6.11, C.11.4, C.11.13).
_HIDES: Final = (
    "ShutterShape",
    "ShutterOverlayGroup",
    "MaskSubtractionSequence",
    "PresentationLUTSequence",
)
_CURVES: Final = ("LINEAR_EXACT", "SIGMOID")
_Table = tuple[list[int], bytes]
_Lines = list[tuple[str, npt.NDArray[np.float64]]]


def has_marks(findings: Findings, sources: Sequence[Dataset]) -> bool:
    """Tell whether something has a place that can be marked on images in shades of grey."""
    shown = {sop for sop, _ in images_of(findings)}
    if any(
        str(each.get("PhotometricInterpretation") or "MONOCHROME2") not in _GREY
        for each in sources
        if each.SOPInstanceUID in shown
    ):
        return False
    return bool(findings.detections) or any(each.mask.any() for each in findings.segments)


def check_marks(states: Sequence[Dataset], findings: Findings, sources: Sequence[Dataset]) -> None:
    """Check that each image has the marks of what was found on it, and no others."""
    by_image = {each.image: each for each in slices_of("the presentation state", findings, sources)}
    drawn: dict[tuple[Image, int], tuple[str, _Lines]] = {}
    for state in states:
        uid = str(state.SOPInstanceUID)
        images = [
            image
            for series in state.ReferencedSeriesSequence
            for each in series.ReferencedImageSequence
            for image in _images(each)
        ]
        for image in images:
            if image not in by_image:
                refuse("references", uid, f"it marks {image[0]}, where nothing was looked for")
            _shown_right(state, uid, by_image[image])
            _window(state, uid, by_image[image])
        _banner(state, uid, findings)
        _gather(state, uid, set(images), drawn)
    uid = str(states[0].SOPInstanceUID)
    found: tuple[Segment | Detection, ...] = (*findings.segments, *findings.detections)
    for image, layer in drawn:
        if not 0 <= layer < len(found):
            refuse("content", uid, f"it marks something on {image[0]} that was not found")
    for layer, thing in enumerate(found):
        for image, wanted in _wanted(thing, findings).items():
            words, lines = drawn.pop((image, layer), ("", []))
            if not lines and image in _on_the_edge(thing, findings):
                continue
            if not _same(lines, wanted, by_image[image].source):
                refuse("geometry", uid, f"its marks of {thing.label} lie elsewhere on {image[0]}")
            if not words.startswith(thing.label):
                refuse("content", uid, f"its marks on {image[0]} are not called {thing.label}")
    if drawn:
        refuse("geometry", uid, f"it marks something on {min(drawn)[0][0]} that lies elsewhere")


def _gather(
    state: Dataset,
    uid: str,
    images: set[Image],
    drawn: dict[tuple[Image, int], tuple[str, _Lines]],
) -> None:
    for item in state.GraphicAnnotationSequence:
        layer = re.fullmatch(r"FINDING([0-9]+)", str(item.GraphicLayer))
        if layer is None:
            continue
        (image,) = _images(item.ReferencedImageSequence[0])
        if image not in images:
            refuse("references", uid, f"it marks {image[0]}, which it does not list")
        words = " ".join(str(each.UnformattedTextValue) for each in item.TextObjectSequence)
        lines = [
            (str(each.GraphicType), np.array(each.GraphicData, dtype=np.float64).reshape(-1, 2))
            for each in item.GraphicObjectSequence
        ]
        if any(each.GraphicAnnotationUnits != "PIXEL" for each in item.GraphicObjectSequence):
            refuse("geometry", uid, "its marks are not in pixels of the images")
        if (image, int(layer[1]) - 1) in drawn:
            refuse("content", uid, f"it marks one thing twice on {image[0]}")
        drawn[image, int(layer[1]) - 1] = (words, lines)


def _images(reference: Dataset) -> list[Image]:
    frames = reference.get("ReferencedFrameNumber")
    numbers = [0] if frames is None else [frames] if isinstance(frames, int) else list(frames)
    return [(str(reference.ReferencedSOPInstanceUID), int(each)) for each in numbers]


def _shown_right(state: Dataset, uid: str, shown: Slice) -> None:
    """Check that grey values come out as the image's own would (PS3.3 C.11.1, C.11.6, C.10.4)."""
    image, sop = shown.source, shown.image[0]
    slope, intercept = state.get("RescaleSlope"), state.get("RescaleIntercept")
    ours = None
    if slope is not None or intercept is not None:
        ours = tuple(np.nan if each is None else float(each) for each in (slope, intercept))
    if (ours is None) != (shown.rescale is None) or (
        ours is not None
        and shown.rescale is not None
        and not np.allclose(ours, shown.rescale, rtol=1e-9, atol=0)
    ):
        refuse("geometry", uid, f"its rescale is not that of {sop}")
    if _table(state, "ModalityLUTSequence") != (
        None if ours else _table(image, "ModalityLUTSequence")
    ):
        refuse("geometry", uid, f"its Modality LUT is not that of {sop}")
    if state.get("ImageHorizontalFlip", "N") != "N" or state.get("ImageRotation", 0) != 0:
        refuse("geometry", uid, "it turns the images")
    for keyword in _HIDES:
        if keyword in state:
            refuse("geometry", uid, f"it shows the images otherwise than they are: {keyword}")
    inverse = str(image.get("PhotometricInterpretation", "")) == "MONOCHROME1"
    if state.PresentationLUTShape != ("INVERSE" if inverse else "IDENTITY"):
        refuse("attributes", uid, "it turns dark into bright")
    (area,) = state.DisplayedAreaSelectionSequence
    corners = [*area.DisplayedAreaTopLeftHandCorner, *area.DisplayedAreaBottomRightHandCorner]
    if corners != [1, 1, int(image.Columns), int(image.Rows)]:
        refuse("geometry", uid, "it does not show the whole image")
    if area.PresentationSizeMode != "SCALE TO FIT" or not np.allclose(
        _proportions(area, "Presentation"), _proportions(_measures(shown), ""), rtol=_NEAR, atol=0
    ):
        refuse("geometry", uid, "it shows the image in other proportions")


def _measures(shown: Slice) -> Dataset:
    """Return what says how large the pixels of an image or of a frame are."""
    if not shown.image[1]:
        return shown.source
    return group(shown.source, shown.image[1] - 1, "PixelMeasuresSequence") or Dataset()


def _proportions(holder: Dataset, prefix: str) -> tuple[float, ...]:
    """Return whether pixels have a size or only a ratio, their height, their width."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        if f"{prefix}{keyword}" in holder and (said := holder[f"{prefix}{keyword}"].value):
            numbers = [float(each) for each in _values(said)]
            if keyword == "PixelAspectRatio" and (len(numbers) != 2 or min(numbers) <= 0):
                break  # as if it were not said
            return (float(keyword == "PixelAspectRatio"), *numbers)
    return (1.0, 1.0, 1.0)


def _table(holder: Dataset, keyword: str) -> _Table | None:
    """Return the first table of a sequence, if it is whole."""
    item = next(iter(readable_items(holder, keyword)), None)
    if item is None or not item.get("LUTDescriptor") or not item.get("LUTData"):
        return None
    words, data = item.LUTDescriptor, lut_data(item)
    if isinstance(words, bytes):
        words = np.frombuffer(words, "<u2").tolist()
    if len(_values(words)) != 3:
        return None
    octets = data if isinstance(data, bytes) else np.array(data).astype("<u2").tobytes()
    return [int(each) % 65536 for each in words], octets


def _window(state: Dataset, uid: str, shown: Slice) -> None:
    """Check that dark and bright begin where an image has it, if it says so (C.11.8)."""
    image = shown.source
    if shown.image[1]:
        image = group(image, shown.image[1] - 1, "FrameVOILUTSequence") or Dataset()
    items = [
        each
        for each in state.get("SoftcopyVOILUTSequence") or []
        if "ReferencedImageSequence" not in each
        or any(shown.image in _images(one) for one in each.ReferencedImageSequence)
    ]
    if len(items) > 1:
        refuse("geometry", uid, f"it has several windows for {shown.image[0]}")
    (item,) = items or [Dataset()]
    wanted = _levels(image)
    if wanted is not None:
        ours = _levels(item)
        same = (
            ours is not None
            and ours[2] == wanted[2]
            and np.allclose(ours[:2], wanted[:2], rtol=_DIGITS, atol=0)
        )
    else:
        table = _table(image, "VOILUTSequence")
        same = table is None or _table(item, "VOILUTSequence") == table
    if not same:
        refuse("geometry", uid, f"its window is not that of {shown.image[0]}")


def _levels(holder: Dataset) -> tuple[float, float, str] | None:
    """Return the first window and its function, LINEAR where that is none of the others.

    None where it has no window that can be (C.11.2.1.2.1); one that is too narrow for LINEAR counts
    as exact.
    """
    try:
        centre, width, function = (
            next(iter(_values(holder.get(each))), None)
            for each in ("WindowCenter", "WindowWidth", "VOILUTFunction")
        )
        low, wide = (np.nan if each in (None, "") else float(each) for each in (centre, width))
    except ValueError:  # words
        return None
    if not (np.isfinite(low) and np.isfinite(wide) and wide > 0):
        return None
    function = str(function).strip().upper()
    linear = "LINEAR" if wide >= 1 else "LINEAR_EXACT"
    return low, wide, function if function in _CURVES else linear


def _values(value: object) -> Sequence[Any]:
    return value if isinstance(value, MultiValue | list) else [value]


def _banner(state: Dataset, uid: str, findings: Findings) -> None:
    """Check that words which stand on every image say what they are of, and what not for."""
    said = " ".join(
        str(text.UnformattedTextValue)
        for item in state.GraphicAnnotationSequence
        if "ReferencedImageSequence" not in item
        for text in item.TextObjectSequence
    )
    algorithm = findings.algorithm
    for text in ("not for primary diagnosis", "UNVERIFIED", algorithm.name, algorithm.version):
        if text not in said:
            refuse("status", uid, f'it does not say "{text}" on every image')


def _wanted(found: Segment | Detection, findings: Findings) -> Mapping[Image, object]:
    """Return what must be on which image: a mask (J, I), or points as (N, 2) column, row."""
    where, images, mask = findings.where, images_of(findings), found.mask
    if mask is not None:
        return {image: plane for image, plane in zip(images, mask, strict=True) if plane.any()}
    if not isinstance(where, Grid):
        assert isinstance(found, Detection)
        assert isinstance(found.region, PixelBox)
        (top, left), (bottom, right) = found.region.first_ji, found.region.last_ji
        return {images[0]: _corners(left, top, right + 1, bottom + 1)}
    assert isinstance(found, Detection)
    if isinstance(found.region, Sphere):
        return _of_ball(found.region, where, images)
    assert isinstance(found.region, Box)
    return _of_box(found.region, where, images)


def _corners(left: float, top: float, right: float, bottom: float) -> npt.NDArray[np.float64]:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _index(where: Grid, point: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return slice, row, column of a point; slices may lie at uneven steps."""
    inverse = np.linalg.inv(where.index_to_lps)
    index = inverse[:3, :3] @ np.asarray(point, dtype=np.float64) + inverse[:3, 3]
    if where.slice_steps:
        steps = np.array(where.slice_steps)
        near = int(np.clip(np.searchsorted(steps, index[0]) - 1, 0, len(steps) - 2))
        index[0] = near + (index[0] - steps[near]) / (steps[near + 1] - steps[near])
    return np.asarray(index)


def _of_ball(ball: Sphere, where: Grid, images: list[Image]) -> dict[Image, object]:
    """Return the four ends of the axes of the circle on each slice; at least half a pixel wide."""
    _, down_mm, across_mm = np.linalg.norm(where.index_to_lps[:3, :3], axis=0)
    normal = np.cross(where.index_to_lps[:3, 1], where.index_to_lps[:3, 2])
    normal /= np.linalg.norm(normal)
    centre = np.array(ball.centre_lps_mm)
    k0 = float(_index(where, centre)[0])
    out: dict[Image, object] = {}
    for k, image in enumerate(images):
        away = float((centre - expected_corners(where, k)[0]) @ normal)
        if abs(away) > ball.diameter_mm / 2 and abs(k - k0) > 0.5 + _ROUNDING:
            continue
        squared = (ball.diameter_mm / 2) ** 2 - away**2
        radius = max(np.sqrt(max(squared, 0)), min(down_mm, across_mm) / 2)
        _, j, i = _index(where, centre - away * normal)
        x, y, across, down = i + 0.5, j + 0.5, radius / across_mm, radius / down_mm
        out[image] = np.array([(x - across, y), (x + across, y), (x, y - down), (x, y + down)])
    return out


def _of_box(box: Box, where: Grid, images: list[Image]) -> dict[Image, object]:
    ends = np.sort([_index(where, box.corner_lps_mm), _index(where, box.opposite_lps_mm)], axis=0)
    (k0, top, left), (k1, bottom, right) = ends
    shown = _corners(left + 0.5, top + 0.5, right + 0.5, bottom + 0.5)
    return {
        image: shown
        for k, image in enumerate(images)
        if k0 - 0.5 - _ROUNDING <= k <= k1 + 0.5 + _ROUNDING
    }


def _on_the_edge(found: Segment | Detection, findings: Findings) -> set[Image]:
    """Return the images that a region reaches just so: they may show it or not."""
    where = findings.where
    if not isinstance(where, Grid) or not isinstance(found, Detection) or found.mask is not None:
        return set()
    assert not isinstance(found.region, PixelBox)
    if isinstance(found.region, Sphere):
        k0 = k1 = float(_index(where, found.region.centre_lps_mm)[0])
        normal = np.cross(where.index_to_lps[:3, 1], where.index_to_lps[:3, 2])
        normal /= np.linalg.norm(normal)
        centre, radius = np.array(found.region.centre_lps_mm), found.region.diameter_mm / 2
        touched = {
            k
            for k in range(where.shape_kji[0])
            if abs(abs((centre - expected_corners(where, k)[0]) @ normal) - radius) < _EDGE
        }
    else:
        ends = (found.region.corner_lps_mm, found.region.opposite_lps_mm)
        k0, k1 = sorted(float(_index(where, each)[0]) for each in ends)
        touched = set()
    return {
        image
        for k, image in enumerate(images_of(findings))
        if k in touched or min(abs(k - k0 + 0.5), abs(k - k1 - 0.5)) < _EDGE
    }


def _same(lines: _Lines, wanted: object, image: Dataset) -> bool:
    assert isinstance(wanted, np.ndarray)
    if wanted.dtype == bool:
        filled = _filled([line for _, line in lines], int(image.Rows), int(image.Columns))
        return (
            filled is not None
            and all(kind == "POLYLINE" for kind, _ in lines)
            and np.array_equal(filled, wanted)
        )
    if len(lines) != 1:
        return False
    apart = np.linalg.norm(lines[0][1][:, None] - wanted[None], axis=2)
    return bool(apart.min(axis=0).max() < TOLERANCE_PX and apart.min(axis=1).max() < TOLERANCE_PX)


def _filled(
    lines: Sequence[npt.NDArray[np.float64]], rows: int, columns: int
) -> npt.NDArray[np.bool_] | None:
    """Return the pixels inside lines along sides of pixels: what an odd number of them encloses."""
    turns = np.zeros((rows, columns + 1), dtype=bool)
    for line in lines:
        corners = np.rint(line).astype(int)
        if not np.abs(line - corners).max() <= TOLERANCE_PX:  # nor nan
            return None
        for (x, y), (x2, y2) in pairwise(corners.tolist()):
            if x != x2 and y != y2:
                return None
            if x == x2:
                turns[min(y, y2) : max(y, y2), x] ^= True
    inside: npt.NDArray[np.bool_] = np.logical_xor.accumulate(turns, axis=1)[:, :-1]
    return inside
