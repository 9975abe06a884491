"""A chest of known truth: Hounsfield units, lungs and nodules on any grid of patient coordinates.

Nothing here comes from the code that it is a truth for: indices become LPS millimetres by the
formula of PS3.3 C.7.6.2.1.1 alone.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.spatial.transform

from dicomai.phantom.anatomy import SIDES, Anatomy, Side, draw_anatomy
from dicomai.phantom.organs import bones_and_arms, heart_parts
from dicomai.phantom.shapes import Ellipsoid, Field, Lattice, Matrix, Solid, Tube, filled
from dicomai.phantom.thorax import cavity, lung, pleural_space, tissue
from dicomai.phantom.vessels import (
    Points,
    airways,
    bronchial_tree,
    great_vessels,
    hilum,
    points_within,
    vessel_tree,
)

_TEXTURE_MM: Final = 4.0
_TEXTURE_SIZE: Final = 48
_SLAB_VOXELS: Final = 200_000
_VOLUME_STEP_MM: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodule:
    """A nodule in a lung, an ellipsoid that is almost a ball.

    Attributes
    ----------
    centre_lps_mm
        Where its centre is in the patient.
    diameter_mm
        Of the ball of the same volume.
    volume_mm3
        4/3 π times its three radii.
    """

    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float
    volume_mm3: float
    hu: float
    side: Side


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """What is where on a grid: (K, J, I) bool each.

    Lungs hold their vessels, bronchi and nodules, but neither the mediastinum nor the main bronchi
    outside them.
    """

    right_lung: npt.NDArray[np.bool_]
    left_lung: npt.NDArray[np.bool_]
    nodules: tuple[npt.NDArray[np.bool_], ...]


def _texture(seed: int) -> npt.NDArray[np.float32]:
    """Return smooth noise of mean 0 and deviation 1 that repeats itself at its borders."""
    rng = np.random.default_rng(seed)
    shape = (_TEXTURE_SIZE,) * 3
    total = np.zeros(shape, dtype=np.float32)
    for sigma, weight in ((0.8, 0.7), (3.0, 1.0)):
        field = scipy.ndimage.gaussian_filter(
            rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap"
        )
        total += weight * field / field.std()
    return np.asarray(total / total.std(), dtype=np.float32)


class ChestPhantom:
    """A patient's chest, drawn from a seed.

    Parameters
    ----------
    seed
        The same seed gives the same patient.
    nodule_diameters_mm
        One nodule for each; None draws how many (0 to 5) and how large (5 to 24 mm).
    vessels
        How many branches each of the four trees has.
    """

    def __init__(
        self,
        seed: int,
        *,
        nodule_diameters_mm: Sequence[float] | None = None,
        vessels: int = 200,
    ) -> None:
        anatomy_rng, vessel_rng, nodule_rng = (
            np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(3)
        )
        self.seed = seed
        self.anatomy: Anatomy = draw_anatomy(anatomy_rng)
        self._frame = _frame(self.anatomy)
        self._trees = self._draw_trees(vessels, vessel_rng)
        if nodule_diameters_mm is None:
            count = int(nodule_rng.integers(0, 6))
            nodule_diameters_mm = nodule_rng.uniform(5, 24, count).tolist()
        self._nodules = self._draw_nodules(nodule_diameters_mm, nodule_rng)

    # --- where things are

    @property
    def centre_lps_mm(self) -> tuple[float, float, float]:
        """The middle of the lungs in the patient."""
        low, high = self.lung_extent_z
        middle = self._frame @ [0.0, 0.0, (low + high) / 2, 1.0]
        return (float(middle[0]), float(middle[1]), float(middle[2]))

    @cached_property
    def lung_extent_z(self) -> tuple[float, float]:
        """Lowest and highest z of the lungs in the body's frame, mm, with a little to spare."""
        width, depth = 1.15 * self.anatomy.cavity_width, self.anatomy.cavity_depth
        top = max(apex.top_z for apex in self.anatomy.apices.values())
        axes = (np.arange(-width, width, 5), np.arange(-depth, depth, 5), np.arange(-260, top, 5))
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        inside = np.minimum(*(self._lung_at(side, points) for side in SIDES)) < 0
        heights = points[inside, 2]
        return (float(heights.min()) - 6, float(heights.max()) + 6)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Edges of the box around the torso and the length of the lungs: x, y, z."""
        anatomy = self.anatomy
        across = anatomy.wall + anatomy.fat + anatomy.skin + 14
        low, high = self.lung_extent_z
        return (
            2.05 * (1.16 * (anatomy.cavity_width + across)),
            2.05 * (anatomy.cavity_depth + across + anatomy.breast / 2),
            high - low,
        )

    @property
    def nodules(self) -> tuple[Nodule, ...]:
        """Every nodule, in the patient."""
        found = []
        for side, solid in self._nodules:
            place = self._frame @ [*solid.centre, 1.0]
            volume = 4 / 3 * np.pi * float(np.prod(solid.radii))
            found.append(
                Nodule(
                    centre_lps_mm=(float(place[0]), float(place[1]), float(place[2])),
                    diameter_mm=float(np.cbrt(volume * 6 / np.pi)),
                    volume_mm3=volume,
                    hu=solid.hu,
                    side=side,
                )
            )
        return tuple(found)

    @cached_property
    def lung_volume_ml(self) -> Mapping[Side, float]:
        """Volume of each lung, counted on a fine lattice of points."""
        low, high = self.lung_extent_z
        corner = np.array([1.15 * self.anatomy.cavity_width, self.anatomy.cavity_depth, 0])
        corner[2] = (high - low) / 2
        # Turned, so that no flat surface falls in step with the lattice.
        turned = scipy.spatial.transform.Rotation.from_euler("zyx", [0.3, 0.2, 0.15]).as_matrix()
        half = np.abs(turned.T) @ corner
        index_to_xyz: Matrix = np.eye(4)
        index_to_xyz[:3, :3] = turned * _VOLUME_STEP_MM
        index_to_xyz[:3, 3] = np.array([0, 0, (low + high) / 2]) - turned @ half
        count = np.ceil(2 * half / _VOLUME_STEP_MM).astype(int)
        lattice = Lattice(
            index_to_xyz=index_to_xyz, shape_kji=(int(count[0]), int(count[1]), int(count[2]))
        )
        masks = self._lungs(lattice)
        cell = _VOLUME_STEP_MM**3 / 1000
        return MappingProxyType({side: float(masks[side].sum()) * cell for side in SIDES})

    @property
    def upright(self) -> ChestPhantom:
        """The same patient before a detector: no table, the arms out of the way."""
        other = copy.copy(self)
        other.anatomy = dataclasses.replace(self.anatomy, table=False, arms=False)
        return other

    def with_nodules(self, diameters_mm: Sequence[float], seed: int) -> ChestPhantom:
        """Return the same patient with other nodules, whose places the seed draws."""
        other = copy.copy(self)
        other._nodules = self._draw_nodules(diameters_mm, np.random.default_rng(seed))
        return other

    # --- what is on a grid

    def hounsfield(
        self, index_to_lps: Matrix, shape_kji: tuple[int, int, int], *, edge_mm: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the patient on a grid, without noise: (K, J, I) float32 HU.

        Parameters
        ----------
        index_to_lps
            (4, 4) float64: (k, j, i, 1) of a voxel's centre to LPS mm.
        shape_kji
            Slices, rows, columns.
        edge_mm
            Width over which a surface is blurred in the plane; None takes a voxel's width. Less
            than that gives what interpolation in a finer volume would give.

        Notes
        -----
        A voxel holds the mean over its volume: in the plane by the distance of each surface,
        through the slice by sub-slices.
        """
        lattice = self._lattice(index_to_lps, shape_kji)
        steps = lattice.steps_mm
        edge = float((steps[1] + steps[2]) / 2 if edge_mm is None else edge_mm)
        parts = int(np.clip(round(steps[0] / max(edge, 1.2)), 1, 4))
        hu = np.empty(shape_kji, dtype=np.float32)
        thick = max(1, _SLAB_VOXELS // (shape_kji[1] * shape_kji[2]))
        for first in range(0, shape_kji[0], thick):
            slab = slice(first, min(first + thick, shape_kji[0]))
            hu[slab] = self._slab(lattice, slab, parts, edge)
        for solid in self._solids():
            _paint(hu, lattice, solid, parts, edge)
        return hu

    def truth(self, index_to_lps: Matrix, shape_kji: tuple[int, int, int]) -> Truth:
        """Return what each voxel's centre lies in, on a grid."""
        lattice = self._lattice(index_to_lps, shape_kji)
        lungs = self._lungs(lattice)
        nodules = []
        for _, solid in self._nodules:
            mask = np.zeros(shape_kji, dtype=bool)
            box = lattice.box_around(solid, 0.0)
            if box is not None:
                mask[box] = solid.field(*lattice.coordinates(box)) < 0
            nodules.append(mask)
        return Truth(right_lung=lungs["right"], left_lung=lungs["left"], nodules=tuple(nodules))

    # --- how it is drawn

    def _lattice(self, index_to_lps: Matrix, shape_kji: tuple[int, int, int]) -> Lattice:
        matrix = np.linalg.inv(self._frame) @ np.asarray(index_to_lps, dtype=np.float64)
        return Lattice(index_to_xyz=matrix.astype(np.float64), shape_kji=shape_kji)

    def _slab(self, lattice: Lattice, slab: slice, parts: int, edge: float) -> Field:
        anatomy = self.anatomy
        _, rows, columns = lattice.shape_kji
        box = (slab, slice(0, rows), slice(0, columns))
        found = tissue(anatomy, *lattice.coordinates(box, parts), edge)
        shape = (slab.stop - slab.start, parts, rows, columns)
        hu = found.hu.reshape(shape).mean(axis=1)
        lungs = (found.right + found.left).reshape(shape).mean(axis=1)
        body = found.body.reshape(shape).mean(axis=1)
        noise = self._texture_on(lattice, box)
        # Emphysema is patchy: where the texture is low, lung is missing.
        patchy = np.minimum(noise + np.float32(0.4), 0) * np.float32(anatomy.emphysema)
        hu += lungs * (noise * np.float32(anatomy.hu_texture) + patchy)
        hu += (body - lungs) * noise * np.float32(4)
        return np.asarray(hu, dtype=np.float32)

    def _texture_on(self, lattice: Lattice, box: tuple[slice, slice, slice]) -> Field:
        matrix = lattice.index_to_xyz[:3, :3] / _TEXTURE_MM
        first = np.array([each.start for each in box])
        offset = (lattice.index_to_xyz[:3, 3] / _TEXTURE_MM) + matrix @ first
        shape = tuple(each.stop - each.start for each in box)
        return np.asarray(
            scipy.ndimage.affine_transform(
                self._noise, matrix, offset, shape, order=1, mode="grid-wrap"
            )
        )

    @cached_property
    def _noise(self) -> npt.NDArray[np.float32]:
        return _texture(self.anatomy.texture_seed)

    def _lungs(self, lattice: Lattice) -> dict[Side, npt.NDArray[np.bool_]]:
        shape = lattice.shape_kji
        masks = {side: np.zeros(shape, dtype=bool) for side in SIDES}
        thick = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
        for first in range(0, shape[0], thick):
            slab = slice(first, min(first + thick, shape[0]))
            place = lattice.coordinates((slab, slice(0, shape[1]), slice(0, shape[2])))
            space = pleural_space(self.anatomy, *place, cavity(self.anatomy, *place))
            for side in SIDES:
                masks[side][slab] = lung(self.anatomy, side, *place, space) < 0
        for solid in self._great:
            box = lattice.box_around(solid, 0.0)
            if box is not None and solid.displaces_lung:
                outside = solid.field(*lattice.coordinates(box)) >= 0
                for side in SIDES:
                    masks[side][box] &= outside
        return masks

    @cached_property
    def _great(self) -> tuple[Tube, ...]:
        walls, lumina = airways(self.anatomy)
        return (*great_vessels(self.anatomy), *walls, *lumina)

    def _solids(self) -> tuple[Solid, ...]:
        """Return what is painted over the large parts, in this order."""
        walls: list[Tube] = []
        lumina: list[Tube] = []
        for side in SIDES:
            some = bronchial_tree(self.anatomy, side)
            walls += some[0]
            lumina += some[1]
        return (
            *bones_and_arms(self.anatomy),
            *heart_parts(self.anatomy),
            *walls,
            *self._trees,
            *lumina,
            *self._great,
            *(solid for _, solid in self._nodules),
        )

    def _lung_at(self, side: Side, points: Points) -> npt.NDArray[np.float32]:
        x, y, z = points.T.astype(np.float32)
        space = pleural_space(self.anatomy, x, y, z, cavity(self.anatomy, x, y, z))
        return lung(self.anatomy, side, x, y, z, space)

    def _lung_box(
        self, side: Side
    ) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        low, high = self.lung_extent_z
        width, depth = self.anatomy.cavity_width * 1.08, self.anatomy.cavity_depth
        left = (0.0, width) if side == "left" else (-width, 0.0)
        return (left[0], -depth, low), (left[1], depth, high)

    def _draw_trees(self, count: int, rng: np.random.Generator) -> tuple[Tube, ...]:
        trees: list[Tube] = []
        for side in SIDES:
            root = hilum(self.anatomy, side)
            low, high = self._lung_box(side)
            for shift, hu in ((0.0, 0.0), (-14.0, rng.uniform(-10, 10))):
                targets = points_within(
                    functools.partial(self._lung_at, side),
                    low,
                    high,
                    count,
                    3.0,
                    rng,
                )
                entry = (root[0], root[1] - shift / 4, root[2] + shift)
                trees += vessel_tree(
                    entry, targets, self.anatomy.hu_blood + hu, rng.uniform(0.75, 1.1), rng
                )
        return tuple(trees)

    def _draw_nodules(
        self, diameters_mm: Sequence[float], rng: np.random.Generator
    ) -> tuple[tuple[Side, Ellipsoid], ...]:
        placed: list[tuple[Side, Ellipsoid]] = []
        for diameter in diameters_mm:
            side: Side = "right" if rng.random() < 0.54 else "left"
            low, high = self._lung_box(side)
            stretch = np.exp(rng.normal(0, 0.07, 3))
            radii = diameter / 2 * stretch / np.cbrt(stretch.prod())
            depth = float(radii.max()) + rng.uniform(0.5, 4)
            for _ in range(200):
                centre = points_within(
                    functools.partial(self._lung_at, side),
                    low,
                    high,
                    1,
                    depth,
                    rng,
                )[0]
                clear = all(
                    np.linalg.norm(centre - other.centre) > diameter / 2 + max(other.radii) + 12
                    for _, other in placed
                ) and not any(_near(centre, tube, diameter / 2 + 3) for tube in self._thick_tubes)
                if clear:
                    break
            placed.append(
                (
                    side,
                    Ellipsoid(
                        centre_xyz=(float(centre[0]), float(centre[1]), float(centre[2])),
                        radii=(float(radii[0]), float(radii[1]), float(radii[2])),
                        axes=_random_axes(rng),
                        hu=float(rng.uniform(-20, 90)),
                    ),
                )
            )
        return tuple(placed)

    @cached_property
    def _thick_tubes(self) -> tuple[Tube, ...]:
        """Vessels that would swallow a nodule."""
        return (*self._great, *(tube for tube in self._trees if tube.thickness > 7))


def _near(point: Points, tube: Tube, distance: float) -> bool:
    x, y, z = point.astype(np.float32)
    return float(tube.field(x, y, z)) < distance


def _random_axes(rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return tuple((float(row[0]), float(row[1]), float(row[2])) for row in axes)


def _frame(anatomy: Anatomy) -> Matrix:
    """Return the body's frame in the patient's coordinates, (4, 4): (x, y, z, 1) to LPS mm."""
    turn = anatomy.turn
    frame = np.eye(4)
    frame[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    frame[:3, 3] = anatomy.origin_lps_mm
    return frame


def _paint(hu: Field, lattice: Lattice, solid: Solid, parts: int, edge: float) -> None:
    """Paint a solid into a volume, in place."""
    box = lattice.box_around(solid, edge)
    if box is None:
        return
    share = filled(solid.field(*lattice.coordinates(box, parts)), edge)
    if solid.thickness < edge:
        # What is thinner than the blur never fills it.
        share = share * np.float32((solid.thickness / edge) ** 1.5)
    if parts > 1:
        share = share.reshape(-1, parts, *share.shape[1:]).mean(axis=1)
    region = hu[box]
    region += (np.float32(solid.hu) - region) * share
