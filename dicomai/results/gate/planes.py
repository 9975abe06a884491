"""Where the slices of the findings lie, read from the source images themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicomai.findings import Findings
from dicomai.imaging.frame import header_of_only_frame
from dicomai.imaging.geometry import Grid, off_grid_mm
from dicomai.results.gate.error import refuse

Corners = npt.NDArray[np.float64]
Image = tuple[str, int]
"""SOP Instance UID and frame from 1; 0 for an image of one frame."""

# What imaging allowed is allowed here too, rounding apart.
_ROUNDING_MM: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """What a source image, or a frame of one, says of itself.

    Attributes
    ----------
    image
        Which it is.
    source
        The object.
    corners
        The centres of four corner pixels, (4, 3) LPS mm; None for a projection image.
    off_grid_mm
        How far the farthest of them lies from where the grid of the findings has it.
    rescale
        Slope and intercept; None where it has none.
    thickness_mm
        How thick it is; 0 where it does not say.
    """

    image: Image
    source: Dataset
    corners: Corners | None
    off_grid_mm: float = 0.0
    rescale: tuple[float, float] | None
    thickness_mm: float


def images_of(findings: Findings) -> list[Image]:
    """Return the image of each slice, by k, or the projection image."""
    where = findings.where
    if not isinstance(where, Grid):
        return [(where.sop_instance_uid, 0)]
    frames = where.frame_numbers or (0,) * len(where.sop_instance_uids)
    return list(zip(where.sop_instance_uids, frames, strict=True))


def slices_of(uid: str, findings: Findings, sources: Sequence[Dataset]) -> list[Slice]:
    """Return each slice, having held it against the grid of the findings; `uid` is the result's."""
    by_uid = {str(source.SOPInstanceUID): source for source in sources}
    where = findings.where
    images = images_of(findings)
    depth, rows, columns = where.shape_kji if isinstance(where, Grid) else (1, *where.shape_ji)
    if len(images) != depth:
        refuse("geometry", uid, "the findings do not name the image of every slice")
    slices = []
    for k, (sop, frame) in enumerate(images):
        source = by_uid.get(sop)
        if source is None:
            refuse("references", uid, f"slice {k} lies on {sop}, which is no source image")
        if not isinstance(where, Grid):
            source = header_of_only_frame(source)
        if (source.Rows, source.Columns) != (rows, columns):
            refuse("geometry", uid, f"{sop} has another number of rows or columns than the masks")
        one = _slice(source, (sop, frame), flat=not isinstance(where, Grid))
        if isinstance(where, Grid):
            assert one.corners is not None
            away = float(np.linalg.norm(one.corners - expected_corners(where, k), axis=1).max())
            allowed = off_grid_mm(_cosines(source, frame), where) + _ROUNDING_MM
            if not away <= allowed:  # nor nan
                refuse("geometry", uid, f"the masks' grid does not lie on {sop} at slice {k}")
            one = replace(one, off_grid_mm=away)
        slices.append(one)
    return slices


def expected_corners(where: Grid, k: int) -> Corners:
    """Return where the findings have the corners of a slice, (4, 3) LPS mm."""
    step = where.slice_steps[k] if where.slice_steps else k
    _, rows, columns = where.shape_kji
    return np.array(
        [where.index_to_lps[:3] @ (step, j, i, 1) for j in (0, rows - 1) for i in (0, columns - 1)]
    )


def corners_of(
    position: object, orientation: object, spacing: object, rows: int, columns: int
) -> Corners:
    """Return where the centres of four corner pixels lie, (4, 3) LPS mm (PS3.3 C.7.6.2.1.1)."""
    origin = np.asarray(position, dtype=np.float64)
    cosines = np.asarray(orientation, dtype=np.float64)
    between_rows, between_columns = np.asarray(spacing, dtype=np.float64)
    along_row, along_column = cosines[:3] * between_columns, cosines[3:] * between_rows
    return np.array(
        [
            origin + column * along_row + row * along_column
            for row in (0, rows - 1)
            for column in (0, columns - 1)
        ]
    )


def group(holder: Dataset, number: int, keyword: str) -> Dataset | None:
    """Return what a functional group says of a frame, from 0: its own, else that of all frames.

    A group without an item says nothing.
    """
    frames = holder.get("PerFrameFunctionalGroupsSequence") or []
    per_frame = frames[number] if number < len(frames) else Dataset()
    shared = (holder.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    items = per_frame.get(keyword) or shared.get(keyword)
    return items[0] if items else None


def _thickness_mm(measures: Dataset) -> float:
    try:
        return float(measures.get("SliceThickness") or 0)
    except (TypeError, ValueError):  # some write prose here, or several
        return 0.0


def _said(source: Dataset, frame: int, sequence: str) -> Dataset:
    """Return what says it of an image, or of a frame of one."""
    return source if not frame else group(source, frame - 1, sequence) or Dataset()


def _cosines(source: Dataset, frame: int) -> npt.NDArray[np.float64]:
    said = _said(source, frame, "PlaneOrientationSequence").ImageOrientationPatient
    return np.asarray(said, dtype=np.float64)


def _slice(source: Dataset, image: Image, *, flat: bool) -> Slice:
    def said(sequence: str) -> Dataset:
        return _said(source, image[1], sequence)

    values = said("PixelValueTransformationSequence")
    slope, intercept = values.get("RescaleSlope"), values.get("RescaleIntercept")
    rescale = None if slope is None or intercept is None else (float(slope), float(intercept))
    corners = None
    if not flat:
        corners = corners_of(
            said("PlanePositionSequence").ImagePositionPatient,
            said("PlaneOrientationSequence").ImageOrientationPatient,
            said("PixelMeasuresSequence").PixelSpacing,
            int(source.Rows),
            int(source.Columns),
        )
    return Slice(
        image=image,
        source=source,
        corners=corners,
        rescale=rescale,
        thickness_mm=_thickness_mm(said("PixelMeasuresSequence")),
    )
