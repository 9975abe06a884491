"""The point on an image at which a report shows a finding, held against where it was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicomai.findings import Box, Detection, PixelBox, Segment, Sphere
from dicomai.results.gate.content import name
from dicomai.results.gate.error import refuse
from dicomai.results.gate.planes import Image, Slice

TOLERANCE_MM: Final = 0.01
_CENTRE: Final = "111010"
_MEASUREMENTS: Final = ("126000", "DCM")  # Imaging Measurement Report, CID 7021
_RESULTS: Final = ("AI-RESULTS", "99DICOMAI")


def check_title(report: Dataset, uid: str, groups: Iterable[Dataset]) -> None:
    """Check that it is called a report of measurements if each group has a place on an image."""
    placed = all(
        any(item.ValueType == "SCOORD" for item in each.ContentSequence) for each in groups
    )
    (title,) = report.ConceptNameCodeSequence
    said = (str(title.CodeValue), str(title.CodingSchemeDesignator))
    if said != (_MEASUREMENTS if placed else _RESULTS):
        refuse("content", uid, f'its title is "{title.CodeMeaning}"')


def check_point(
    uid: str,
    group: Dataset,
    found: Segment | Detection,
    slices: Sequence[Slice],
) -> None:
    """Check that a group's one point lies on its finding, where no outline on an image says more.

    The outline of a box on an image is checked with the regions.
    """
    flat = isinstance(found, Detection) and isinstance(found.region, PixelBox)
    has_mask = found.mask is not None and bool(found.mask.any())
    if flat and not has_mask:
        return
    on_images = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
    if len(on_images) != 1 or name(on_images[0]) != _CENTRE or on_images[0].GraphicType != "POINT":
        refuse("coordinates", uid, f'"{found.tracking_id}" has not one point on an image')
    (point,) = on_images
    image = _image(point)
    k = next((k for k, each in enumerate(slices) if each.image == image), None)
    if k is None:
        refuse("references", uid, f'"{found.tracking_id}" is shown on {image[0]}, no slice of it')
    x, y = (float(each) for each in point.GraphicData)
    if has_mask:
        assert found.mask is not None
        row, column = int(np.floor(y)), int(np.floor(x))
        _, rows, columns = found.mask.shape
        inside = 0 <= row < rows and 0 <= column < columns and bool(found.mask[k, row, column])
    else:
        assert isinstance(found, Detection)
        assert not isinstance(found.region, PixelBox)
        inside = _is_nearest((x, y), k, _middle(found.region), slices)
    if not inside:
        refuse("coordinates", uid, f'the point of "{found.tracking_id}" lies elsewhere')


def _image(point: Dataset) -> Image:
    said = point.ContentSequence[0].ReferencedSOPSequence[0]
    return str(said.ReferencedSOPInstanceUID), int(said.get("ReferencedFrameNumber") or 0)


def _middle(region: Sphere | Box) -> npt.NDArray[np.float64]:
    if isinstance(region, Sphere):
        return np.array(region.centre_lps_mm, dtype=np.float64)
    ends = np.array([region.corner_lps_mm, region.opposite_lps_mm], dtype=np.float64)
    return np.asarray(ends.mean(axis=0))


def _is_nearest(
    point: tuple[float, float], k: int, middle: npt.NDArray[np.float64], slices: Sequence[Slice]
) -> bool:
    """Tell whether a point is, of all on the images, the one nearest to a place in the patient."""
    stack = np.array([each.corners for each in slices], dtype=np.float64)
    normals = np.cross(stack[:, 1] - stack[:, 0], stack[:, 2] - stack[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    away = np.abs(((middle - stack[:, 0]) * normals).sum(axis=1))
    # Findings lie on a grid, which runs through images that are rounded, or turned by a hair.
    tolerance_mm = TOLERANCE_MM + 2 * max(each.off_grid_mm for each in slices)
    if not away[k] <= away.min() + tolerance_mm:
        return False
    corners = stack[k]
    rows, columns = int(slices[k].source.Rows), int(slices[k].source.Columns)
    across = (corners[1] - corners[0]) / max(columns - 1, 1)
    down = (corners[2] - corners[0]) / max(rows - 1, 1)
    # Columns and rows are at right angles; (0.5, 0.5) is the centre of the first pixel.
    moved = middle - corners[0]
    wanted = (
        np.clip(moved @ across / (across @ across) + 0.5, 0, columns),
        np.clip(moved @ down / (down @ down) + 0.5, 0, rows),
    )
    off = (point[0] - wanted[0]) * across + (point[1] - wanted[1]) * down
    return float(np.linalg.norm(off)) <= tolerance_mm
