"""No side is told that can't be: a wrong one is worse than none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dicomai.errors import InputError
from dicomai.findings import Mask
from dicomai.imaging.geometry import Grid
from dicomai.imaging.mask import bounds
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.pipeline import analyse
from dicomai.inference.postprocess import Region
from dicomai.inference.sides import split
from dicomai.models.runtimes.torch_runtime import LoadedModel

SPACING_MM = 4.0
SHAPE_KJI = (60, 70, 90)
LEFT = (65.0, 0.0, 0.0), (40.0, 56.0, 100.0)
"""Of an ellipsoid like a lung: centre and half axes, x, y, z, mm; left is where x is positive."""
RIGHT = (-85.0, 0.0, 0.0), (55.0, 56.0, 100.0)
UPPER_LOBE = (-84.0, 0.0, 50.0), (56.0, 60.0, 52.0)
LOWER_LOBE = (-97.0, 10.0, -58.0), (52.0, 60.0, 52.0)
COLLAPSED = (90.0, 0.0, 0.0), (26.0, 26.0, 26.0)
NOTCHED = (-90.0, 0.0, 0.0), (55.0, 60.0, 105.0)
HILUM = (-34.0, 0.0, 0.0), (36.0, 40.0, 30.0)
MEDIAL, BRIDGE, LATERAL = (
    ((-45.0, 0.0, 0.0), (28.0, 50.0, 80.0)),
    ((-78.0, 0.0, 0.0), (20.0, 9.0, 9.0)),
    ((-112.0, 0.0, 0.0), (28.0, 50.0, 80.0)),
)
FOCUS = (45.0, 0.0, 0.0), (14.0, 14.0, 14.0)
LATERAL_FOCUS = (110.0, 0.0, 0.0), (14.0, 14.0, 14.0)
FOCI = tuple(((90.0, y, z), (14.0,) * 3) for y in (-60.0, 0.0, 60.0) for z in (-60.0, 0.0, 60.0))
Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]


def grid(off_mm: float = 0.0) -> Grid:
    """Slices whose middle lies so far to the left of the patient's."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[::-1] * SPACING_MM
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE_KJI) - 1) / 2)
    affine[0, 3] += off_mm
    return Grid(shape_kji=SHAPE_KJI, index_to_lps=affine, frame_of_reference_uid="1.2.3")


def ellipsoids(where: Grid, *shapes: Ellipsoid) -> Mask:
    lps = where.lps_mm(np.moveaxis(np.indices(SHAPE_KJI), 0, -1))
    inside = [np.linalg.norm((lps - at) / axes, axis=-1) <= 1 for at, axes in shapes]
    return np.any(inside, axis=0)


def sides(mask: Mask, where: Grid) -> tuple[Mask, Mask, tuple[str, ...]] | None:
    """The left and the right side, and warnings."""
    cut = bounds(mask)
    assert cut is not None
    found = split(Region(cut=cut, mask=mask[cut], values=None), where)
    if found is None:
        return None
    parts, told = found
    empty = np.zeros(SHAPE_KJI, dtype=bool)
    left, right = (
        empty if (part := parts[side]) is None else part.whole(where) for side in ("left", "right")
    )
    return left, right, told


@pytest.mark.parametrize("off_mm", [-60.0, -30.0, 0.0, 30.0, 60.0])
def test_two_lungs_are_told_wherever_the_images_have_their_middle(off_mm: float) -> None:
    where = grid(off_mm)
    left, right = ellipsoids(where, LEFT), ellipsoids(where, RIGHT)
    found = sides(left | right, where)
    assert found is not None
    np.testing.assert_array_equal(found[0], left)
    np.testing.assert_array_equal(found[1], right)
    assert found[2] == ()


@pytest.mark.parametrize(("columns", "told"), [(40, True), (60, False)])
def test_a_pair_in_narrow_images_comes_with_a_warning(columns: int, *, told: bool) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[::-1] * SPACING_MM
    where = Grid(
        shape_kji=(*SHAPE_KJI[:2], columns), index_to_lps=affine, frame_of_reference_uid="1.2.3"
    )
    mask = np.zeros(where.shape_kji, dtype=bool)
    mask[10:40, 10:40, 8:16] = mask[10:40, 10:40, columns - 16 : columns - 8] = True
    cut = bounds(mask)
    assert cut is not None
    found = split(Region(cut=cut, mask=mask[cut], values=None), where)
    assert found is not None
    parts, warnings = found
    assert all(part is not None for part in parts.values())
    assert any("narrow" in each for each in warnings) == told


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "lung",
    [
        pytest.param(lambda at: ellipsoids(at, UPPER_LOBE, LOWER_LOBE), id="in two lobes"),
        pytest.param(
            lambda at: ellipsoids(at, NOTCHED) & ~ellipsoids(at, HILUM), id="narrow at its hilum"
        ),
        pytest.param(lambda at: ellipsoids(at, MEDIAL, BRIDGE, LATERAL), id="narrow in its middle"),
    ],
)
def test_one_lung_is_no_pair(lung: Callable[[Grid], Mask], mirrored: bool) -> None:
    where = grid()
    whole = lung(where)[..., :: -1 if mirrored else 1]
    found = sides(whole, where)
    assert found is not None
    own, other = found[:2] if mirrored else (found[1], found[0])
    np.testing.assert_array_equal(own, whole)
    assert not other.any()
    assert found[2][0].startswith("Only one side was found")


def test_lobes_stay_together_beside_a_collapsed_lung() -> None:
    where = grid()
    left, right = ellipsoids(where, COLLAPSED), ellipsoids(where, UPPER_LOBE, LOWER_LOBE)
    found = sides(left | right, where)
    assert found is not None
    np.testing.assert_array_equal(found[0], left)
    np.testing.assert_array_equal(found[1], right)
    assert found[2][0].startswith("Left and right were told apart by the middle of the images")


@pytest.mark.parametrize(
    ("off_mm", "own"),
    [
        pytest.param(-10.0, False, id="most of it beyond the middle"),
        pytest.param(-30.0, True, id="most of it on the side of the other"),
    ],
)
def test_a_collapsed_lung_across_the_middle_is_no_crumb(off_mm: float, *, own: bool) -> None:
    where = grid(off_mm)
    left = ellipsoids(where, ((75.0, 0.0, 0.0), (65.0, 70.0, 110.0)))
    right = ellipsoids(where, ((-20.0, 20.0, -20.0), (25.0, 35.0, 45.0))) & ~left
    found = sides(left | right, where)
    assert found is not None
    np.testing.assert_array_equal(found[0], left | right if own else left)
    assert found[2][0].startswith("Left and right were told apart by the middle of the images")


@pytest.mark.parametrize(("side", "x_mm"), [(0, 80.0), (1, -80.0)])
def test_a_piece_of_the_trachea_makes_no_second_side(side: int, x_mm: float) -> None:
    where = grid()
    lung = ellipsoids(where, ((x_mm, 0.0, 0.0), (60.0, 70.0, 100.0)))
    whole = lung | ellipsoids(where, ((0.0, 0.0, 80.0), (9.0, 9.0, 18.0)))
    found = sides(whole, where)
    assert found is not None
    np.testing.assert_array_equal(found[side], whole)
    assert found[2][0].startswith("Only one side was found")


def test_unequal_lungs_are_told_where_a_plane_parts_them() -> None:
    where = grid(10.0)
    left = ellipsoids(where, ((40.0, 0.0, 0.0), (90.0, 50.0, 60.0)))
    right = ellipsoids(where, ((-64.0, 50.0, 0.0), (18.0, 50.0, 100.0)))
    found = sides(left | right, where)
    assert found is not None
    np.testing.assert_array_equal(found[0], left)
    np.testing.assert_array_equal(found[1], right)
    assert found[2] == ()


@pytest.mark.parametrize(
    ("left_x_mm", "right_x_mm", "told"),
    [
        pytest.param((70,) * 5, (-70,) * 5, "Left and right were told", id="many in both lungs"),
        pytest.param(range(45, 126, 10), (), "Only one side was found", id="many in one lung"),
        pytest.param((45, 110), (), "Only one side was found", id="two in one lung"),
        pytest.param((45, 110), (-70,), "Left and right were told", id="two, and one beside"),
    ],
)
def test_foci_go_by_the_middle(
    left_x_mm: Sequence[float], right_x_mm: Sequence[float], told: str
) -> None:
    where = grid()
    left, right = (
        ellipsoids(where, *(((x, 0.0, 22.0 * n - 90), (9.0,) * 3) for n, x in enumerate(places)))
        if places
        else np.zeros(SHAPE_KJI, dtype=bool)
        for places in (left_x_mm, right_x_mm)
    )
    found = sides(left | right, where)
    assert found is not None
    np.testing.assert_array_equal(found[0], left)
    np.testing.assert_array_equal(found[1], right)
    assert [each[: len(told)] for each in found[2]] == [told]


@pytest.mark.parametrize(
    ("off_mm", "shapes"),
    [
        pytest.param(-70.0, (RIGHT,), id="one lung in the middle"),
        pytest.param(-70.0, (UPPER_LOBE, LOWER_LOBE), id="its lobes in the middle"),
        pytest.param(-250.0, (RIGHT,), id="one lung at the end of the images"),
        pytest.param(230.0, (LEFT,), id="one lung at their other end"),
        pytest.param(-150.0, (RIGHT, LEFT), id="two on one side of the middle"),
        pytest.param(20.0, (FOCUS, LATERAL_FOCUS), id="two near the middle"),
        pytest.param(45.0, (*FOCI, FOCUS), id="many, and one across the middle"),
        pytest.param(0.0, (((0.0, 0.0, 0.0), (120.0, 50.0, 90.0)),), id="joined throughout"),
    ],
)
def test_what_nobody_can_tell_is_not_told(off_mm: float, shapes: tuple[Ellipsoid, ...]) -> None:
    where = grid(off_mm)
    assert sides(ellipsoids(where, *shapes), where) is None


def test_a_series_without_sides_that_can_be_told_is_refused(
    teller: Callable[[str], LoadedModel],
    make_body: Callable[..., SourceVolume],
    volume_manifest: str,
) -> None:
    def across(lps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(np.linalg.norm(lps, axis=-1) < 40, -800.0, 40.0)

    outputs = "".join(
        f"""
[[output]]
kind = "segment"
label = "{side} lung"
laterality = "{side}"
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "39607008", scheme = "SCT", meaning = "Lung" }}
"""
        for side in ("left", "right")
    )
    model = teller(f"{volume_manifest}[postprocess]\nsplit_sides = true\n{outputs}")
    with pytest.raises(InputError) as error:
        analyse(model, make_body(across), (), lambda stage, fraction: None)
    assert error.value.subject == "1.2.3.4"
    assert "Series 1.2.3.4 was not analysed by truth-teller" in error.value.sentence
    assert "the left from the right" in error.value.sentence
