"""Pictures of what was found, for people: key slices, contours, circles, a legend.

They carry no patient's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicomai.findings import Box, Detection, Findings, Measurement, PixelBox, Sphere
from dicomai.imaging.geometry import Grid, Plane
from dicomai.imaging.mask import Mask, per_slice
from dicomai.results import summary
from dicomai.results.drawing import (
    Contour,
    Entry,
    Frame,
    Legend,
    Ring,
    grey,
    sheet,
    with_contours,
    with_marks,
    with_sides,
)
from dicomai.results.view import View, axis_towards, view

MOST_DETECTIONS: Final = 6
PICTURE_NAME: Final = r"(detection-\d+-)?(axial|coronal|sagittal)-\d+|image"
"""Every name of a picture, as a regular expression."""
Counts = npt.NDArray[np.int64]
_LUNG_WINDOW: Final = (-1350.0, 150.0)
_SOFT_WINDOW: Final = (-160.0, 240.0)
_AIR_HU: Final = -500.0
_INSET_MM: Final = 50.0
_RING_GAP_PX: Final = 7.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A sheet for people.

    Attributes
    ----------
    name
        What it shows; its file is called so, after the model.
    image
        RGB.
    slice
        The one slice that it shows; None where it cuts through all of them.
    sides
        The patient's side at its right and at its lower edge; empty where nobody knows.
    """

    name: str
    image: Image.Image
    slice: int | None
    sides: tuple[str, str] | None


def pictures(findings: Findings, image: npt.NDArray[np.generic]) -> tuple[Picture, ...]:
    """Return pictures of the findings.

    Parameters
    ----------
    findings
        What was found.
    image
        The voxels (K, J, I) or pixels (J, I) that the model saw, in the modality's units.

    Returns
    -------
    tuple of Picture
        For a volume: the axial and the coronal plane that show most of the segments, and a plane
        through each of the surest detections; for a projection: the image.
    """
    where = findings.where
    if isinstance(where, Plane):
        drawn = _projection(findings, image, where)
        return (Picture(name="image", image=drawn, slice=0, sides=where.runs_to),)
    return tuple(
        Picture(
            name=name,
            image=drawn,
            slice=seen.index if seen.normal == 0 else None,
            sides=(seen.sides[1], seen.sides[3]),
        )
        for name, drawn, seen in _of_volume(findings, image, where)
    )


def overlays(findings: Findings, image: npt.NDArray[np.generic], folder: Path) -> list[Path]:
    """Write the pictures of the findings into a folder as PNG, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in pictures(findings, image):
        path = folder / f"{findings.algorithm.name}-{picture.name}.png"
        picture.image.save(path)
        written.append(path)
    return written


def _of_volume(
    findings: Findings, voxels: npt.NDArray[np.generic], grid: Grid
) -> list[tuple[str, Image.Image, View]]:
    drawn = []
    levels = window(findings, voxels, grid)
    axial, coronal = axis_towards(grid, 2), axis_towards(grid, 1)
    masks = [each.mask for each in findings.segments if each.mask.any()]
    if masks or not findings.detections:
        counts = _counts(masks, grid.shape_kji)
        for axis in (axial, coronal):
            fullest = int(counts[axis].argmax()) if masks else grid.shape_kji[axis] // 2
            seen = view(grid, axis, fullest)
            name = f"{seen.plane}-{seen.index + 1:03d}"
            drawn.append((name, _plane(findings, voxels, grid, seen, levels), seen))
    surest = sorted(findings.detections, key=lambda each: -each.probability)[:MOST_DETECTIONS]
    for number, detection in enumerate(surest, 1):
        index = round(float(_centre_kji(detection, grid)[axial]))
        index = min(max(index, 0), grid.shape_kji[axial] - 1)
        seen = view(grid, axial, index)
        name = f"detection-{number}-{seen.plane}-{seen.index + 1:03d}"
        drawn.append((name, _plane(findings, voxels, grid, seen, levels, detection), seen))
    return drawn


def _counts(masks: list[Mask], shape_kji: tuple[int, int, int]) -> tuple[Counts, Counts, Counts]:
    """Return how many voxels of masks lie on each plane across k, j, i; where two share, both."""
    along_k = np.zeros(shape_kji[0], np.int64)
    of_all = np.zeros(shape_kji[1:], np.int64)
    for mask in masks:
        voxels = per_slice(mask)
        along_k += voxels
        slices = np.flatnonzero(voxels)  # an organ lies on a part of them
        for first in range(int(slices[0]), int(slices[-1]) + 1, 255):
            few = mask[first : min(first + 255, int(slices[-1]) + 1)].view(np.uint8)
            of_all += np.add.reduce(few, axis=0, dtype=np.uint8)  # as fast as memory is
    return along_k, of_all.sum(axis=1), of_all.sum(axis=0)


def _plane(
    findings: Findings,
    voxels: npt.NDArray[np.generic],
    grid: Grid,
    seen: View,
    levels: tuple[float, float],
    subject: Detection | None = None,
) -> Image.Image:
    bare = grey(seen.cut(voxels), levels, seen.size_px)
    contours = [Contour(mask=_cut(seen, s.mask), rgb=s.display_rgb) for s in findings.segments]
    contours += [
        Contour(mask=_cut(seen, d.mask), rgb=d.display_rgb)
        for d in findings.detections
        if d.mask is not None
    ]
    picture = with_contours(bare.copy(), contours)
    numbers = _numbers(findings)
    rings = [
        ring
        for detection in findings.detections
        if (ring := _ring(detection, grid, seen, numbers)) is not None
    ]
    picture = with_sides(with_marks(picture, rings, ()), seen.sides)
    inset = None
    if subject is not None:
        x, y = seen.px(_centre_kji(subject, grid), grid.shape_kji)
        half = _INSET_MM / 2 * seen.px_per_mm
        inset = bare.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    return sheet(picture, _legend(findings, _place(grid, seen, levels, inset is not None)), inset)


def _cut(seen: View, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return seen.cut(mask).astype(bool)


def _centre_kji(detection: Detection, grid: Grid) -> npt.NDArray[np.float64]:
    region = detection.region
    if isinstance(region, Sphere):
        return grid.kji(region.centre_lps_mm)
    assert isinstance(region, Box)
    return grid.kji(np.mean([region.corner_lps_mm, region.opposite_lps_mm], axis=0))


def _numbers(findings: Findings) -> dict[str, int]:
    ordered = sorted(findings.detections, key=lambda each: -each.probability)
    return {each.tracking_id: number for number, each in enumerate(ordered, 1)}


def _ring(detection: Detection, grid: Grid, seen: View, numbers: dict[str, int]) -> Ring | None:
    """Return the circle in which a plane cuts the region; None where it doesn't."""
    region, centre = detection.region, _centre_kji(detection, grid)
    if isinstance(region, Sphere):
        radius_mm = region.diameter_mm / 2
    else:
        assert isinstance(region, Box)
        diagonal = np.subtract(region.opposite_lps_mm, region.corner_lps_mm)
        radius_mm = float(np.linalg.norm(diagonal)) / 2
    spacing = grid.spacing_kji_mm[seen.normal]
    away_mm = abs(float(centre[seen.normal]) - seen.index) * spacing
    if away_mm > max(radius_mm, spacing):
        return None
    x, y = seen.px(centre, grid.shape_kji)
    return Ring(
        x=x,
        y=y,
        radius=radius_mm * seen.px_per_mm + _RING_GAP_PX,
        name=f"{numbers[detection.tracking_id]}",
        rgb=detection.display_rgb,
    )


def window(findings: Findings, voxels: npt.NDArray[np.generic], grid: Grid) -> tuple[float, float]:
    """Return what is black and what is white: lung or soft tissue for CT, else what is there."""
    few = tuple(slice(None, None, max(1, n // 96)) for n in grid.shape_kji)
    thin = np.ascontiguousarray(voxels[few])
    if float(thin.min()) > _AIR_HU:
        low, high = np.percentile(thin, (1, 99.5))
        return float(low), float(high)
    inside = [
        # Of a large one a part says the same.
        _median(thin[part] if part.any() else voxels[each.mask])
        for each in findings.segments
        if (part := np.ascontiguousarray(each.mask[few])).any() or each.mask.any()
    ]
    inside += [_around(detection, voxels, grid) for detection in findings.detections]
    in_air = bool(inside) and min(inside) < -300
    return _LUNG_WINDOW if in_air or not inside else _SOFT_WINDOW


def _around(detection: Detection, voxels: npt.NDArray[np.generic], grid: Grid) -> float:
    """Return the median of 4 cm around a detection."""
    centre = np.round(_centre_kji(detection, grid)).astype(int)
    reach = [max(1, round(20 / spacing)) for spacing in grid.spacing_kji_mm]
    block = voxels[
        tuple(slice(max(0, c - r), max(1, c + r + 1)) for c, r in zip(centre, reach, strict=True))
    ]
    return _median(block)


def _median(values: npt.NDArray[np.generic]) -> float:
    return float(np.median(np.asarray(values, dtype=np.float32))) if values.size else 0.0


def _place(
    grid: Grid, seen: View, levels: tuple[float, float], with_inset: bool
) -> tuple[str, ...]:
    middle = [n / 2 for n in grid.shape_kji]
    middle[seen.normal] = seen.index
    names = {"sagittal": ("x", 0), "coronal": ("y", 1), "axial": ("z", 2)}
    letter, axis = names[seen.plane]
    position = grid.lps_mm(middle)[axis]
    depth = grid.shape_kji[seen.normal]
    level, width = (levels[0] + levels[1]) / 2, levels[1] - levels[0]
    lines = [
        f"{seen.plane} {seen.index + 1} of {depth}, {letter} = {position:.1f} mm",
        f"window {width:.0f}, level {level:.0f}",
    ]
    if with_inset:
        lines.insert(0, f"detail: {_INSET_MM / 10:.0f} cm, without marks")
    return tuple(lines)


def _legend(findings: Findings, place: tuple[str, ...]) -> Legend:
    numbers = _numbers(findings)
    entries = [
        Entry(
            label=each.label,
            value=_values(each.measurements) if each.mask.any() else "not found",
            rgb=each.display_rgb,
        )
        for each in findings.segments
    ]
    entries += [
        Entry(
            label=f"{numbers[each.tracking_id]}  {summary.kind(each)}",
            value=", ".join(
                text
                for text in (summary.percent(each.probability), _values(each.measurements))
                if text
            ),
            rgb=each.display_rgb,
            share=each.probability,
        )
        for each in sorted(findings.detections, key=lambda each: -each.probability)
    ]
    entries += [
        Entry(
            label=f"{each.label}: {'present' if each.present else 'not present'}",
            value=f"{summary.percent(each.probability)}, threshold "
            f"{summary.percent(each.threshold)}",
            rgb=(250, 200, 40) if each.present else (120, 170, 130),
            share=each.probability,
        )
        for each in findings.classifications
    ]
    algorithm = findings.algorithm
    line = summary.line(findings)
    return Legend(
        model=f"{algorithm.name} {algorithm.version}",
        entries=tuple(entries),
        conclusion=line[:1].upper() + line[1:],
        place=place,
    )


def _values(measurements: tuple[Measurement, ...]) -> str:
    return ", ".join(summary.measured(each) for each in measurements[:2])


def _projection(findings: Findings, pixels: npt.NDArray[np.generic], plane: Plane) -> Image.Image:
    low, high = np.percentile(np.asarray(pixels, dtype=np.float32), (0.5, 99.5))
    high_per_row, wide_per_column = plane.pixel_ji
    rows, columns = plane.shape_ji
    height, width = rows * high_per_row, columns * wide_per_column
    scale = 760 / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    per_row, per_column = size[0] / rows, size[1] / columns
    numbers = _numbers(findings)
    frames = [
        Frame(
            corners=(
                each.region.first_ji[1] * per_column,
                each.region.first_ji[0] * per_row,
                (each.region.last_ji[1] + 1) * per_column,
                (each.region.last_ji[0] + 1) * per_row,
            ),
            name=f"{numbers[each.tracking_id]}",
            rgb=each.display_rgb,
        )
        for each in findings.detections
        if isinstance(each.region, PixelBox)
    ]
    picture = with_marks(grey(pixels, (float(low), float(high)), size), (), frames)
    if plane.sides is not None:
        picture = with_sides(picture, plane.sides)
    return sheet(picture, _legend(findings, (f"{columns} x {rows} pixels",)))
