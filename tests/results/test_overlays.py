"""Pictures show things where they are, the right way round."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

from dicomai.imaging.geometry import Grid
from dicomai.results.drawing import Contour, with_contours
from dicomai.results.overlay import PICTURE_NAME, overlays, pictures
from dicomai.results.view import axis_towards, view


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal", "prone", "oblique"])
@pytest.mark.parametrize(
    ("patient_axis", "sides"),
    [(2, ("R", "L", "A", "P")), (1, ("R", "L", "H", "F")), (0, ("A", "P", "H", "F"))],
)
def test_views_hang_the_same_whatever_the_slices(
    study_lying: Any, orientation: str, patient_axis: Any, sides: tuple[str, ...]
) -> None:
    grid = study_lying(orientation).grid
    seen = view(grid, axis_towards(grid, patient_axis), 2)
    assert seen.sides == sides
    middle = np.array(grid.shape_kji) / 2
    down_mm = {"A": (0, 1, 0), "H": (0, 0, -1)}[sides[2]]
    across_mm = {"R": (1, 0, 0), "A": (0, 1, 0)}[sides[0]]
    here = seen.px(middle, grid.shape_kji)
    for step, axis in ((across_mm, 0), (down_mm, 1)):
        there = seen.px(grid.kji(grid.lps_mm(middle) + np.array(step)), grid.shape_kji)
        assert there[axis] > here[axis]


@settings(max_examples=60, deadline=None)
@given(quaternion=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01))
def test_each_edge_of_a_view_is_the_side_of_the_patient_that_it_names(
    quaternion: tuple[float, float, float, float],
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_quat(quaternion).as_matrix() * (3.0, 0.8, 0.7)
    grid = Grid(
        shape_kji=(9, 28, 34),
        index_to_lps=affine,
        frame_of_reference_uid="1.2.3",
        sop_instance_uids=tuple(f"1.2.3.{k}" for k in range(9)),
    )
    towards = {"L": (1, 0, 0), "P": (0, 1, 0), "H": (0, 0, 1)}
    towards |= {"R": (-1, 0, 0), "A": (0, -1, 0), "F": (0, 0, -1)}
    planes = set()
    for axis in (0, 1, 2):
        seen = view(grid, axis, 1)  # type: ignore[arg-type]  # it is one of the three
        planes.add(seen.plane)
        left, right, top, bottom = seen.sides
        assert (left + right, top + bottom) in {("RL", "AP"), ("RL", "HF"), ("AP", "HF")}
        shown = np.stack([seen.cut(each) for each in np.indices(grid.shape_kji)], axis=-1)
        first, across, down = shown[0, 0], shown[0, -1], shown[-1, 0]
        for there, side in ((across, right), (down, bottom)):
            step = grid.lps_mm(there) - grid.lps_mm(first)
            assert step @ np.array(towards[side]) > -1e-6 * np.linalg.norm(step)
    assert planes == {"axial", "coronal", "sagittal"}


@pytest.mark.parametrize("orientation", ["axial", "coronal", "prone", "oblique"])
def test_a_mask_and_a_ring_lie_where_the_voxels_are(
    study_lying: Any, found: Any, orientation: str, tmp_path: Path
) -> None:
    lying = study_lying(orientation)
    findings = found.everything(lying)
    bright = replace(
        findings,
        segments=(replace(findings.segments[0], display_rgb=(255, 0, 0)),),
        detections=(replace(found.ball(lying, "n", (4.0, 9.0, 21.0)), display_rgb=(0, 255, 0)),),
        classifications=(),
    )
    voxels = np.zeros(lying.grid.shape_kji, np.int16)
    paths = overlays(bright, voxels, tmp_path)
    names = [path.stem.removeprefix(f"{findings.algorithm.name}-") for path in paths]
    assert [name.split("-")[0] for name in names] == ["axial", "coronal", "detection"]
    assert all(re.fullmatch(PICTURE_NAME, name) for name in names)
    for path, name in zip(paths[:2], names, strict=False):
        axis = axis_towards(lying.grid, 2 if name.startswith("axial") else 1)
        seen = view(lying.grid, axis, int(name.split("-")[1]) - 1)
        pixels = _pixels(path)
        red = (pixels[..., 0] > 180) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
        red[:, seen.size_px[1] :] = False
        rows, columns = np.nonzero(red)
        mask = bright.segments[0].mask.take(seen.index, axis=axis)
        ends = np.column_stack(np.nonzero(mask))
        index = np.insert(ends, axis, seen.index, axis=1).astype(float)
        there = np.array([seen.px(each, lying.grid.shape_kji) for each in index])
        above = max(0, (pixels.shape[0] - seen.size_px[0]) // 2)
        low, high = there.min(axis=0), there.max(axis=0)
        voxel = max(seen.px_per_voxel)
        assert abs(columns.min() - low[0]) < voxel
        assert abs(columns.max() - high[0]) < voxel
        assert abs(rows.min() - above - low[1]) < voxel
        assert abs(rows.max() - above - high[1]) < voxel
    pixels = _pixels(paths[2])
    green = (pixels[..., 1] > 180) & (pixels[..., 0] < 60)
    axis = axis_towards(lying.grid, 2)
    seen = view(lying.grid, axis, int(paths[2].stem.split("-")[-1]) - 1)
    green[:, seen.size_px[1] :] = False
    centre = lying.grid.kji(bright.detections[0].region.centre_lps_mm)
    x, y = seen.px(centre, lying.grid.shape_kji)
    rows, columns = np.nonzero(green)
    above = max(0, (pixels.shape[0] - seen.size_px[0]) // 2)
    distance = np.hypot(columns - x, rows - above - y)
    ring = 3.0 * seen.px_per_mm + 7
    assert np.mean(np.abs(distance - ring) < 3) > 0.6  # the rest is its number


def test_a_millimetre_is_as_long_across_as_down(study_lying: Any) -> None:
    grid = study_lying("coronal").grid  # slices 3 mm apart, pixels 0.8 by 0.7 mm
    for axis in (0, 1, 2):
        seen = view(grid, axis, 1)  # type: ignore[arg-type]  # it is one of the three
        down, across = seen.size_px
        spacing, shape = grid.spacing_kji_mm, grid.shape_kji
        height_mm = shape[seen.down] * spacing[seen.down]
        width_mm = shape[seen.across] * spacing[seen.across]
        assert down / across == pytest.approx(height_mm / width_mm, rel=0.02)


@pytest.mark.parametrize("known", [True, False])
def test_an_xray_keeps_the_shape_of_its_pixels(
    known: bool, xray: Any, found: Any, tmp_path: Path
) -> None:
    findings = found.on_xray(xray)
    if not known:  # only how high a pixel is for its width: 2\\1
        where = replace(findings.where, spacing_ji_mm=None, spacing_at="", aspect_ji=(2.0, 1.0))
        findings = replace(findings, where=where)
    (path,) = overlays(findings, xray.voxels, tmp_path)
    name = path.stem.removeprefix(f"{findings.algorithm.name}-")
    assert re.fullmatch(PICTURE_NAME, name)
    with Image.open(path) as image:
        width = image.width - 344
        assert image.height / width == pytest.approx(28 * 0.4 / (34 * 0.2), rel=0.02)


def test_an_xray_has_the_sides_of_the_patient_at_its_edges(xray: Any, found: Any) -> None:
    def drawn(runs_to: tuple[str, str] | None) -> npt.NDArray[np.int16]:
        findings = replace(found.nothing(xray), where=replace(xray.grid, runs_to=runs_to))
        (picture,) = pictures(findings, xray.voxels)
        assert picture.sides == runs_to
        return np.asarray(picture.image, np.int16)

    bare = drawn(None)
    changed = np.argwhere((drawn(("L", "F")) != bare).any(axis=2))
    height, width = bare.shape[0], bare.shape[1] - 344
    middle = np.abs(changed / (height, width) - 0.5).min(axis=1)
    edge = np.minimum(changed, (height, width) - changed).min(axis=1)
    assert len(changed) > 40
    assert middle.max() < 0.1
    assert edge.max() < 40
    # Right and left change places: what is the patient's right is not always on the left.
    left = np.s_[:, : width // 2]
    assert (drawn(("R", "F"))[left] != drawn(("L", "F"))[left]).any()


def test_nothing_found_gives_pictures_too(study: Any, found: Any, tmp_path: Path) -> None:
    findings = found.nothing(study)
    paths = overlays(findings, study.voxels, tmp_path / "new")
    names = [path.stem.removeprefix(f"{findings.algorithm.name}-") for path in paths]
    assert [name.split("-")[0] for name in names] == ["axial", "coronal"]


@pytest.mark.parametrize("size", [(760, 760), (431, 522), (97, 60)])
@pytest.mark.parametrize(
    "part", [(20, 30, 33, 60), (0, 3, 0, 5), (70, 80, 99, 100), (41, 42, 7, 8), (0, 80, 0, 100)]
)
def test_a_mask_is_drawn_the_same_wherever_it_lies(
    size: tuple[int, int], part: tuple[int, int, int, int]
) -> None:
    """The whole screen, which takes longer, says what a part of it has to be."""
    mask = np.zeros((80, 100), bool)
    mask[part[0] : part[1], part[2] : part[3]] = True
    rgb, large = (255, 0, 0), (size[0] * 2, size[1] * 2)
    flat = Image.fromarray(mask.astype(np.uint8) * 255)
    inside = np.asarray(flat.resize(large, Image.Resampling.BILINEAR)) > 127
    core = binary_erosion(inside, iterations=4, border_value=1)
    alpha = np.where(inside, np.where(core, 38, 255), 0).astype(np.uint8)
    whole = np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BOX)).astype(int)
    drawn = with_contours(Image.new("RGB", size), [Contour(mask=mask, rgb=rgb)])
    off = np.abs(np.asarray(drawn)[..., 0].astype(int) - whole)
    assert (off > 1).mean() < 0.002  # a rounding here and there
