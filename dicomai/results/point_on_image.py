"""The point on an image at which a finding is shown.

A group of measurements may hold such a point beside its segment or its surface in the patient,
because TID 1410 and 1411 are extensible (PS3.16 6.1.1). It is for viewers that draw 2-D coordinates
alone, or that show nothing of a report with a group that has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt, find_objects

from dicomai.findings import Box, Detection, Mask, PixelBox, Segment, Sphere
from dicomai.imaging.geometry import Grid, Plane
from dicomai.imaging.mask import per_slice


@dataclass(frozen=True, slots=True, kw_only=True)
class PointOnImage:
    """A slice, and a point on it.

    Attributes
    ----------
    k
        The slice, from 0; 0 for a projection image.
    xy
        Column and row; the centre of the first pixel is at (0.5, 0.5) (PS3.3 C.18.6.1.2).
    """

    k: int
    xy: tuple[float, float]


def point_on_image(found: Segment | Detection, where: Grid | Plane) -> PointOnImage:
    """Return where a finding is shown.

    Of a mask that has a voxel, the pixel farthest from the edge on the slice with most of it: the
    middle of a ball, and never outside of a lung that bends. Of a place without mask, its centre,
    on the nearest slice.
    """
    if found.mask is not None and found.mask.any():
        return _in_mask(found.mask)
    assert isinstance(found, Detection)
    region = found.region
    if isinstance(region, PixelBox):
        row, column = np.mean([region.first_ji, region.last_ji], axis=0).tolist()
        return PointOnImage(k=0, xy=(column + 0.5, row + 0.5))
    assert isinstance(where, Grid)
    return _nearest(centre_lps_mm(region), where)


def centre_lps_mm(region: Sphere | Box) -> npt.NDArray[np.float64]:
    """Return the middle of a place in the patient, (3,) LPS mm."""
    if isinstance(region, Sphere):
        return np.array(region.centre_lps_mm, dtype=np.float64)
    ends = np.array([region.corner_lps_mm, region.opposite_lps_mm], dtype=np.float64)
    middle: npt.NDArray[np.float64] = ends.mean(axis=0)
    return middle


def _in_mask(mask: Mask) -> PointOnImage:
    k = int(per_slice(mask).argmax())
    ((rows, columns),) = find_objects(mask[k].astype(np.uint8))
    depth = distance_transform_edt(np.pad(mask[k, rows, columns], 1))
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return PointOnImage(
        k=k, xy=(float(column - 1 + columns.start) + 0.5, float(row - 1 + rows.start) + 0.5)
    )


def _nearest(centre: npt.NDArray[np.float64], grid: Grid) -> PointOnImage:
    depth, height, width = grid.shape_kji
    k = min(max(round(float(grid.kji(centre)[0])), 0), depth - 1)
    # Straight down to that slice, along its normal, whatever the tilt of the stack.
    normal = np.cross(grid.index_to_lps[:3, 2], grid.index_to_lps[:3, 1])
    normal /= np.linalg.norm(normal)
    below = centre - float((centre - grid.lps_mm((k, 0, 0))) @ normal) * normal
    _, row, column = (float(each) for each in grid.kji(below))
    return PointOnImage(
        k=k,
        xy=(min(max(column + 0.5, 0.0), float(width)), min(max(row + 0.5, 0.0), float(height))),
    )
