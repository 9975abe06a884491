"""Puts slices in their place: from the position and orientation of each to one grid, or a refusal.

Image Position and Image Orientation (Patient) decide (PS3.3 C.7.6.2.1.1), never file names,
Instance Number or Slice Location.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from dicomai.errors import InputError
from dicomai.imaging.geometry import OFF_GRID_MM, Grid, off_grid_mm

MIN_SLICES: Final = 3
"""With fewer there is no spacing to check, and nothing for a model of volumes."""
ORIENTATION_TOLERANCE: Final = 1e-3 + 1e-6
"""Of each direction cosine; 0.06 degrees, or one in the last of three decimals, to which a binary
number only comes near. What it makes at the far corner of a slice is held to `off_grid_mm`."""
_SQUARE: Final = 4 * ORIENTATION_TOLERANCE
"""How far squares and products of two directions may be from those of unit vectors at right angles:
as three decimals are that are one off in the last."""
_BINARY_MM: Final = 1e-4
"""For decimal fractions, which a binary number, of 32 bits on its way, only comes near to."""
POSITION_TOLERANCE_MM: Final = 0.06
"""How far a slice may lie from its place; see `_tolerance_mm`."""
_ROUNDED_MM: Final = 0.1
"""Some modalities write positions with one decimal, each coordinate up to 0.05 off."""
_LEAN: Final = math.sqrt(3) * ORIENTATION_TOLERANCE
"""How far directions of three decimals may let slices lean, for each mm: 0.1 degrees, no gantry."""
NOTED_MM: Final = 0.01
"""What is further from its place than this is told to the reader."""
SPACING_TOLERANCE: Final = 1e-4
"""Of pixel spacings, relative."""
MAX_TILT_DEGREES: Final = 35.0
"""Gantries tilt by up to 30; slices that lie further aside are no tilted stack."""

Vector: TypeAlias = npt.NDArray[np.float64]

_ACROSS: Final = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """Where one image says that it lies.

    Attributes
    ----------
    frame_number
        Of the frame in an enhanced multi-frame object, from 1; 0 for an image of one frame.
    position
        (3,) LPS mm of the centre of its first pixel.
    row, column
        (3,) direction in which the column index, the row index grows.
    spacing_ji_mm
        Between rows, between columns.
    localizer
        It calls itself one in Image Type.
    """

    sop_instance_uid: str
    frame_number: int = 0
    frame_of_reference_uid: str
    position: Vector
    row: Vector
    column: Vector
    spacing_ji_mm: tuple[float, float]
    shape_ji: tuple[int, int]
    localizer: bool = False

    @property
    def name(self) -> str:
        """How a sentence calls it."""
        said = f"object {self.sop_instance_uid}"
        return f"frame {self.frame_number} of {said}" if self.frame_number else said


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """The grid of slices, which slice stands at each k, and what a reader should know."""

    grid: Grid
    order: tuple[int, ...]
    warnings: tuple[str, ...]


def stack(slices: Sequence[Slice], series: str, uneven_mm: float = 0.0) -> Stack:
    """Return the grid that slices make, sorted along their normal.

    Slices of a tilted gantry make a sheared grid, unevenly spaced ones a grid with `slice_steps`.

    Parameters
    ----------
    slices
        In any order.
    series
        Series Instance UID, for sentences.
    uneven_mm
        By how much the distance between two slices may differ from the usual one.

    Raises
    ------
    InputError
        They don't make one grid; the sentence says where not.
    """
    refuse = _Refusal(series)
    _check_orientation(slices, refuse)
    _check_alike(slices, refuse)
    if len(slices) == 1:
        raise refuse("has only one slice, so nobody knows its spacing. Send the whole series.")
    row = _unit(np.mean([each.row for each in slices], axis=0))
    normal = _unit(np.cross(row, np.mean([each.column for each in slices], axis=0)))
    column = np.cross(normal, row)
    positions = np.array([each.position for each in slices])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    named = _Named(along[order] * _sign(normal), tuple(slices[k].name for k in order))
    _check_repeats(named, refuse)
    tolerance_mm = _tolerance_mm(positions, named)
    slope, tilted = _tilt(positions[order], normal, row, named, tolerance_mm, refuse)
    spacing = _spacing(named, uneven_mm, tolerance_mm, refuse)
    height, width = slices[0].shape_ji
    between_rows, between_columns = slices[0].spacing_ji_mm
    affine = np.eye(4)
    affine[:3, 0] = (normal + slope) * spacing.step_mm
    affine[:3, 1] = column * between_rows
    affine[:3, 2] = row * between_columns
    along_mm = np.array(spacing.steps or range(len(slices)))[:, None] * affine[:3, 0]
    affine[:3, 3] = (positions[order] - along_mm).mean(axis=0)  # so that rounding cancels out
    grid = Grid(
        shape_kji=(len(slices), height, width),
        index_to_lps=affine,
        frame_of_reference_uid=slices[0].frame_of_reference_uid,
        sop_instance_uids=tuple(slices[k].sop_instance_uid for k in order),
        frame_numbers=(
            tuple(slices[k].frame_number for k in order)
            if any(each.frame_number for each in slices)
            else ()
        ),
        slice_steps=spacing.steps,
    )
    turned = _check_corners([slices[k] for k in order], grid, refuse)
    return Stack(
        grid=grid,
        order=tuple(int(k) for k in order),
        warnings=(*tilted, *spacing.warnings, *turned),
    )


class _Refusal:
    """Makes the sentence that refuses a series."""

    def __init__(self, series: str) -> None:
        self.series = series

    def __call__(self, rest: str) -> InputError:
        return InputError(f"Series {self.series} {rest}", subject=self.series)


@dataclass(frozen=True, slots=True)
class _Named:
    """Slices in order, with the positions that sentences call them by.

    These grow towards left, posterior or head, whichever the normal is nearest to, so that for an
    axial series they are its table positions.
    """

    along: Vector
    slices: tuple[str, ...]


def _unit(vector: Vector) -> Vector:
    return vector / np.linalg.norm(vector)


def _sign(normal: Vector) -> float:
    return float(np.sign(normal[np.abs(normal).argmax()]))


def _plane_name(each: Slice) -> str:
    return _ACROSS[int(np.abs(np.cross(each.row, each.column)).argmax())]


def _turn_degrees(one: Slice, other: Slice) -> float:
    """Return the angle by which one has to be turned about some axis to lie like the other."""
    axes = [np.stack((s.row, s.column, np.cross(s.row, s.column))) for s in (one, other)]
    half = float(np.linalg.norm(axes[0] - axes[1])) / math.sqrt(8)  # its sine
    return math.degrees(2 * math.asin(min(half, 1.0)))


def _check_orientation(slices: Sequence[Slice], refuse: _Refusal) -> None:
    """All slices have one pair of directions: unit vectors at right angles."""
    for each in slices:
        pair = np.stack((each.row, each.column))
        if np.abs(pair @ pair.T - np.eye(2)).max() > _SQUARE:
            raise refuse(
                f"can't be placed: Image Orientation (Patient) of {each.name} "
                "is no pair of unit vectors at right angles."
            )
    groups: list[list[Slice]] = []
    for each in slices:
        for group in groups:
            turned = np.abs(
                np.concatenate((each.row - group[0].row, each.column - group[0].column))
            )
            if turned.max() <= ORIENTATION_TOLERANCE:
                group.append(each)
                break
        else:
            groups.append([each])
    if len(groups) == 1:
        return
    groups.sort(key=len, reverse=True)
    most, rarest = groups[0], groups[-1]
    if len(groups) == 2 and len(rarest) == 1 and _plane_name(rarest[0]) == _plane_name(most[0]):
        raise refuse(
            f"has one slice that is turned by {_turn_degrees(rarest[0], most[0]):.1f}° against "
            f"the other {len(most)}: {rarest[0].name}. Have the modality mend it, or send the "
            "series without it."
        )
    told = ", ".join(
        f"{len(group)} {_plane_name(group[0])}"
        + (" (a scout)" if all(each.localizer for each in group) else "")
        for group in groups[:4]
    )
    raise refuse(
        f"has slices in {len(groups)} orientations: {told}; "
        f"{rarest[0].name} is of the rarest. Send scouts and other planes as "
        "series of their own."
    )


def _check_alike(slices: Sequence[Slice], refuse: _Refusal) -> None:
    """One frame of reference, one size, one spacing."""
    first = slices[0]
    frames = Counter(each.frame_of_reference_uid for each in slices)
    if len(frames) > 1:
        raise refuse(
            f"has {len(frames)} frames of reference: "
            + ", ".join(f"{count} slices in {uid}" for uid, count in frames.most_common(3))
            + ". Positions in different frames can't be compared; send them as separate series."
        )
    for each in slices:
        if each.shape_ji != first.shape_ji:
            raise refuse(
                f"has slices of different size: {first.shape_ji[0]}×{first.shape_ji[1]} in "
                f"{first.name}, {each.shape_ji[0]}×{each.shape_ji[1]} in {each.name}. "
                "Send them as separate series."
            )
        if not np.allclose(each.spacing_ji_mm, first.spacing_ji_mm, rtol=SPACING_TOLERANCE, atol=0):
            raise refuse(
                "has slices of different Pixel Spacing: "
                f"{first.spacing_ji_mm[0]:g}×{first.spacing_ji_mm[1]:g} mm in "
                f"{first.name}, {each.spacing_ji_mm[0]:g}×{each.spacing_ji_mm[1]:g} mm "
                f"in {each.name}. Send them as separate series."
            )
    twice = [name for name, n in Counter(each.name for each in slices).items() if n > 1]
    if twice:
        raise refuse(f"names {twice[0]} twice.")


def _check_repeats(named: _Named, refuse: _Refusal) -> None:
    """No position is there twice, and none so near to another that nobody can tell."""
    widest = float(np.abs(np.diff(named.along)).max())
    if NOTED_MM < widest < POSITION_TOLERANCE_MM:
        raise refuse(
            f"has slices no more than {widest:.3f} mm apart, and below "
            f"{POSITION_TOLERANCE_MM:g} mm they can't be told from slices at one place. Have it "
            "reconstructed with a larger spacing."
        )
    together: list[list[int]] = []
    for index, position in enumerate(named.along):
        if together and abs(position - named.along[together[-1][0]]) < POSITION_TOLERANCE_MM:
            together[-1].append(index)
        else:
            together.append([index])
    repeats = {len(group) for group in together}
    if repeats == {1}:
        return
    if len(repeats) == 1 and len(together) > 1:
        raise refuse(
            f"is no single volume but {repeats.pop()}: each of its {len(together)} positions is "
            "there as often, as in time series, phases or diffusion. Send each as a series of its "
            "own."
        )
    group = next(group for group in together if len(group) > 1)
    raise refuse(
        f"has {len(group)} slices at {named.along[group[0]]:.1f} mm ({named.slices[group[0]]} and "
        f"{named.slices[group[1]]}). Send the series again with each slice once."
    )


def _tolerance_mm(positions: npt.NDArray[np.float64], named: _Named) -> float:
    """Return how far a slice may lie from the straight and even line from the first to the last.

    Where coordinates have one decimal, as far as that rounds the slice itself and that line; but
    no further than a third of a step, so that a missing slice is none that was rounded.
    """
    tenths = positions / _ROUNDED_MM
    rounded = np.abs(tenths - np.round(tenths)).max(axis=0) * _ROUNDED_MM < _BINARY_MM
    moved = np.ptp(positions, axis=0) > 0
    both_off = _ROUNDED_MM * math.sqrt(np.count_nonzero(rounded & moved)) + _BINARY_MM
    step = float(np.ptp(named.along)) / (len(named.along) - 1)
    return max(POSITION_TOLERANCE_MM, min(both_off, step / 3))


def _tilt(
    positions: npt.NDArray[np.float64],
    normal: Vector,
    row: Vector,
    named: _Named,
    tolerance_mm: float,
    refuse: _Refusal,
) -> tuple[Vector, tuple[str, ...]]:
    """Return how far slices are shifted in their plane for each mm along their normal.

    Without tilt they lie straight behind each other; with a tilted gantry each is shifted by the
    same. What else they do is refused. What rounded directions may make is told to nobody, but
    slices lie where their positions say.
    """
    moved = positions - positions[0]
    along = moved @ normal
    aside = moved - np.outer(along, normal)
    if np.linalg.norm(aside, axis=1).max() <= tolerance_mm:
        return np.zeros(3), ()
    centred = along - along.mean()
    slope = np.asarray(centred @ aside / (centred @ centred))
    off = np.linalg.norm(aside - aside.mean(axis=0) - np.outer(centred, slope), axis=1)
    if off.max() > tolerance_mm:
        worst = int(np.linalg.norm(aside - np.outer(along, aside[-1] / along[-1]), axis=1).argmax())
        raise refuse(
            f"is not stacked straight: the slice at {named.along[worst]:.1f} mm is shifted "
            f"{np.linalg.norm(aside[worst]):.1f} mm sideways against the first. Send the original "
            "series."
        )
    if np.linalg.norm(slope) * abs(along[-1]) <= tolerance_mm + _LEAN * abs(along[-1]):
        return slope, ()
    angle = math.degrees(math.atan(float(np.linalg.norm(slope))))
    way = "rows" if abs(float(slope @ row)) > 0.5 * float(np.linalg.norm(slope)) else "columns"
    told = f"was taken with a gantry tilt of {angle:.1f}°: each slice is shifted along its {way}"
    if angle > MAX_TILT_DEGREES:
        raise refuse(
            f"{told}. That is more than any gantry tilts; reconstruct the series without tilt."
        )
    return slope, (f"The series {told}. It was straightened for the model.",)


def _check_corners(ordered: Sequence[Slice], grid: Grid, refuse: _Refusal) -> tuple[str, ...]:
    """Each corner of each slice lies where its own image puts it; note what rounding may turn."""
    worst, farthest_mm = "", OFF_GRID_MM
    _, height, width = grid.shape_kji
    corners = [(j, i) for j in (0, height - 1) for i in (0, width - 1)]
    for k, each in enumerate(ordered):
        between_rows, between_columns = each.spacing_ji_mm
        own = [
            each.position + j * between_rows * each.column + i * between_columns * each.row
            for j, i in corners
        ]
        placed = grid.lps_mm([(k, j, i) for j, i in corners])
        off = float(np.linalg.norm(own - placed, axis=1).max())
        if off > off_grid_mm(np.concatenate((each.row, each.column)), grid):
            raise refuse(
                f"has slices that are turned against each other: a corner of "
                f"{each.name} lies {off:.2f} mm off the common grid. Send the original "
                "series."
            )
        if off > farthest_mm:
            worst, farthest_mm = each.name, off
    told = (
        "Directions of the slices are rounded, and turned against each other by what that makes: a "
        f"corner of {worst} lies {farthest_mm:.1f} mm off the grid that the model was given."
    )
    return (told,) if worst else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spacing:
    """The distance of slices, and how many of it each lies from the first where that is not k."""

    step_mm: float
    steps: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()


def _spacing(named: _Named, uneven_mm: float, tolerance_mm: float, refuse: _Refusal) -> _Spacing:
    """Return how slices are spaced, or say where they are not as they should."""
    line = np.abs(named.along - named.along[0])
    gaps = np.diff(line)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    told = _told_uneven(named, gaps, usual, tolerance_mm)
    even = float(gaps.mean())
    if not told:
        off = float(np.abs(line - even * np.arange(len(line))).max())
        noted = f"Slices lie up to {off:.3f} mm from an even spacing of {even:.3f} mm."
        return _Spacing(step_mm=even, warnings=(noted,) if off > NOTED_MM else ())
    differs = float(np.abs(gaps - usual).max())
    if differs > uneven_mm:
        allowed = f" The model allows {uneven_mm:g} mm of difference." if uneven_mm else ""
        raise refuse(told + allowed)
    steps = tuple((line / usual).tolist())
    noted = (
        f"Slices are unevenly spaced, {gaps.min():.2f} to {gaps.max():.2f} mm apart; they were "
        "resampled to an even spacing for the model."
    )
    return _Spacing(step_mm=usual, steps=steps, warnings=(noted,))


def _told_uneven(
    named: _Named, gaps: npt.NDArray[np.float64], usual: float, tolerance_mm: float
) -> str:
    """Return what is said of a series whose slices are not evenly spaced; "" of one that is."""
    for index, gap in enumerate(gaps):
        if gap - usual <= max(tolerance_mm * 2, usual * 0.02):
            continue
        low, high = sorted((named.along[index], named.along[index + 1]))
        missing = round(gap / usual) - 1
        if abs(gap / usual - missing - 1) > 0.1:
            return (
                f"is unevenly spaced: {gap:.2f} mm between the slices at {low:.1f} and "
                f"{high:.1f} mm, elsewhere {usual:.2f} mm. Send a series with even spacing."
            )
        where = f"at {low + usual:.1f} mm" if missing == 1 else f"for {missing} positions"
        return f"has no slice {where}, between {low:.1f} and {high:.1f} mm. Send the series again."
    even = float(gaps.mean())
    off = np.abs(np.abs(named.along - named.along[0]) - even * np.arange(len(named.along)))
    worst = int(off.argmax())
    if off[worst] <= tolerance_mm:
        return ""
    return (
        f"is unevenly spaced: the slice at {named.along[worst]:.2f} mm is {off[worst]:.2f} mm "
        f"away from an even spacing of {even:.3f} mm. Send a series with even spacing."
    )
