"""The large parts of a chest as fields: cavity, lungs, heart, wall, ribs, spine, diaphragm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from dicomai.phantom.anatomy import SIDES, Anatomy, Side
from dicomai.phantom.shapes import Ellipsoid, Field, filled, smooth_max

HU_AIR: Final = -1000.0
HU_SKIN: Final = 10.0
HU_CARTILAGE: Final = 110.0
HU_ABDOMEN: Final = 35.0
PLEURA_MM: Final = 2.0


def _rounded(x: Field, y: Field, width: float, depth: float, squareness: float) -> Field:
    """Return the squared radius of a rounded rectangle that is 1 on its edge."""
    u = x * np.float32(1 / width)
    v = y * np.float32(1 / depth)
    u *= u
    v *= v
    # On the edge u and v are at most 1; far beyond it the product would take over and turn inward.
    corner = np.minimum(u, np.float32(1.5)) * np.minimum(v, np.float32(1.5))
    return np.asarray(u + v - np.float32(squareness**2) * corner)


def cavity(anatomy: Anatomy, x: Field, y: Field, z: Field) -> Field:
    """Return the field of the cavity within the ribs, open to the abdomen."""
    width = anatomy.cavity_width
    narrowed = x / (1 - np.float32(anatomy.taper) * z)
    squared = _rounded(narrowed, y, width, anatomy.cavity_depth, anatomy.squareness)
    top = anatomy.apices["right"].top_z + 22
    rise = np.maximum(z - np.float32(0.1 * top), 0) * np.float32(1 / (0.9 * top))
    scale = np.float32(np.sqrt(width * anatomy.cavity_depth))
    return np.asarray((np.sqrt(np.maximum(squared + rise**3, 0)) - 1) * scale)


def torso(anatomy: Anatomy, x: Field, y: Field, z: Field) -> Field:
    """Return the field of the body's surface without arms and breasts."""
    shoulders = np.clip((z - np.float32(70)) * np.float32(1 / 70), 0, 1)
    shoulders = shoulders * shoulders * (3 - 2 * shoulders)
    across = anatomy.wall + anatomy.fat + anatomy.skin
    width = anatomy.cavity_width + across + 14
    depth = anatomy.cavity_depth + anatomy.wall + (anatomy.fat + anatomy.fat_front) / 2 + 2
    shift = (anatomy.fat - anatomy.fat_front) / 2 + 4
    stretched = x / (1 + np.float32(0.16) * shoulders)
    flattened = (y - np.float32(shift)) / (1 - np.float32(0.14) * shoulders)
    squared = _rounded(stretched, flattened, width, depth, 0.55)
    return (np.sqrt(squared) - 1) * np.float32(np.sqrt(width * depth))


def heart(anatomy: Anatomy) -> Ellipsoid:
    """Return the heart, on the patient's left."""
    turn = anatomy.heart_turn
    along = np.array([np.cos(turn) * 0.9, -np.sin(turn) * 0.75, -0.45])
    along /= np.linalg.norm(along)
    across = np.cross(along, [0.0, 0.0, 1.0])
    across /= np.linalg.norm(across)
    third = np.cross(along, across)
    axes = tuple((float(row[0]), float(row[1]), float(row[2])) for row in (along, across, third))
    return Ellipsoid(
        centre_xyz=anatomy.heart_xyz,
        radii=anatomy.heart_radii,
        axes=axes,
        hu=anatomy.hu_blood,
        displaces_lung=True,
    )


def diaphragm(anatomy: Anatomy, side: Side, x: Field, y: Field, z: Field) -> Field:
    """Return the field of what lies above one dome: negative on the side of the lung."""
    dome = anatomy.domes[side]
    away = ((x - np.float32(dome.x)) * np.float32(1 / dome.width)) ** 2 + (
        (y - np.float32(dome.y)) * np.float32(1 / dome.depth)
    ) ** 2
    surface = np.float32(dome.top_z) - np.float32(dome.drop) * away
    return (surface - z) * np.float32(0.8)


def pleural_space(anatomy: Anatomy, x: Field, y: Field, z: Field, cavity_field: Field) -> Field:
    """Return the field of what is left of the cavity by spine and heart, for both lungs."""
    # The spine bulges into the cavity, with a gutter beside it.
    spine = np.float32(anatomy.spine_radius + 9) - np.sqrt(
        x * x + (y - np.float32(anatomy.spine_y)) ** 2
    )
    field = smooth_max(cavity_field + np.float32(PLEURA_MM), spine, 8)
    whole = heart(anatomy)
    # Beyond this it bears on no surface, not even through the rounding of edges.
    reach = whole.half_extent[2] + 30
    if (
        abs(float(z.min()) + float(z.max()) - 2 * whole.centre[2]) / 2
        > reach + (float(z.max()) - float(z.min())) / 2
    ):
        return field
    return smooth_max(field, 3 - whole.field(x, y, z), 5)


def lung(anatomy: Anatomy, side: Side, x: Field, y: Field, z: Field, space: Field) -> Field:
    """Return the field of one lung, before vessels of the mediastinum displace it.

    Parameters
    ----------
    space
        What `pleural_space` gives at the same points.
    """
    sign = np.float32(-1 if side == "right" else 1)
    apex = anatomy.apices[side]
    field = space
    if float(z.max()) > apex.base_z - 100:
        squared = _rounded(
            x - np.float32(apex.x), y - np.float32(apex.y), apex.width, apex.depth, 0.4
        )
        rise = np.maximum(z - np.float32(apex.base_z), 0) * np.float32(
            1 / (apex.top_z - apex.base_z)
        )
        top = (np.sqrt(np.maximum(squared + rise * rise, 0)) - 1) * np.float32(
            np.sqrt(apex.width * apex.depth)
        )
        # Lower down the column gives way, and the cavity alone bounds the lung.
        field = smooth_max(field, top - np.maximum(np.float32(apex.base_z) - z, 0), 6)

    # The mediastinum is thinner where the lungs meet before the great vessels.
    front = np.clip((np.float32(-25) - y) * np.float32(1 / 45), 0, 1)
    half = np.float32(anatomy.mediastinum) * (1 - np.float32(0.65) * front)
    field = smooth_max(field, half - sign * (x - np.float32(anatomy.mediastinum_x)), 10)
    return np.maximum(field, diaphragm(anatomy, side, x, y, z))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tissue:
    """Hounsfield units, and the share of each voxel that is lung.

    All are float32 of the shape of the coordinates; `body` is the share within the skin.
    """

    hu: Field
    right: Field
    left: Field
    body: Field


def _over(hu: Field, value: Field | np.float32 | float, share: Field) -> Field:
    """Paint a value over what is there."""
    return hu + (np.asarray(value, dtype=np.float32) - hu) * share


def _ribs(anatomy: Anatomy, hu: Field, shell: Field, place: tuple[Field, Field, Field]) -> Field:
    """Paint ribs, bands in the wall that fall to the front, and their cartilage."""
    x, y, z = place
    edge = 1.5
    # Ribs bend down to the front; the first lie flatter.
    level = z - np.float32(anatomy.rib_slope) * y + np.float32(2e-3) * x * x
    turns = level * np.float32(1 / anatomy.rib_spacing) + np.float32(anatomy.rib_phase)
    height = (turns - np.floor(turns) - np.float32(0.5)) * np.float32(anatomy.rib_spacing)
    middle = shell - np.float32(7)
    radius = np.sqrt((middle * np.float32(1.5)) ** 2 + (height * np.float32(0.95)) ** 2)
    off_spine = np.abs(x) > np.float32(anatomy.spine_radius + 4)
    behind = y > np.float32(-0.55 * anatomy.cavity_depth)
    away = np.where(off_spine, radius, np.float32(50))
    bone = np.where(behind, np.float32(anatomy.hu_bone), np.float32(HU_CARTILAGE))
    core = np.where(behind, np.float32(anatomy.hu_marrow), np.float32(HU_CARTILAGE - 15))
    hu = _over(hu, bone, filled(away - np.float32(6.2), edge))
    return _over(hu, core, filled(away - np.float32(4.0), edge))


def _spine(anatomy: Anatomy, hu: Field, place: tuple[Field, Field, Field], edge: float) -> Field:
    """Paint vertebral bodies with discs, the canal, and the processes behind them."""
    x, y, z = place
    back = y - np.float32(anatomy.spine_y)
    radius = np.sqrt(x * x + (back * np.float32(1.15)) ** 2)
    turns = z * np.float32(1 / anatomy.vertebra_height) + np.float32(anatomy.rib_phase)
    within = np.abs(turns - np.floor(turns) - np.float32(0.5)) * np.float32(2)
    waist = np.float32(anatomy.spine_radius) * (
        np.float32(0.92) + np.float32(0.08) * within * within
    )
    bone = filled((within - np.float32(0.84)) * np.float32(anatomy.vertebra_height / 2), edge)
    plate = filled((np.float32(0.72) - within) * np.float32(anatomy.vertebra_height / 2), edge)
    marrow = np.float32(anatomy.hu_marrow) + plate * np.float32(anatomy.hu_bone * 0.5)
    disc = np.float32(75)
    hu = _over(
        hu,
        disc + (np.float32(anatomy.hu_bone * 0.8) - disc) * bone,
        filled(radius - waist, edge),
    )
    hu = _over(hu, disc + (marrow - disc) * bone, filled(radius - waist + 1.8, edge))

    behind = back - np.float32(anatomy.spine_radius + 8)
    ring = np.sqrt(x * x + behind * behind)
    lamina = np.float32(anatomy.hu_bone * 0.55)
    arch = np.where(within < np.float32(0.75), np.float32(13), np.float32(10.5))
    hu = _over(hu, lamina, filled(ring - arch, edge))
    hu = _over(hu, 30.0, filled(ring - np.float32(8.5), edge))
    tip = back - np.float32(anatomy.spine_radius + 28)
    process = np.maximum(np.sqrt((x * 3) ** 2 + (tip * np.float32(0.7)) ** 2) - 10, 0) / 2 - 1
    process = np.maximum(process, (within - np.float32(0.6)) * 9)
    across = np.abs(behind - np.float32(4)) + np.maximum(np.abs(x) - np.float32(32), 0)
    wings = np.maximum(across - np.float32(5), (within - np.float32(0.45)) * 12)
    wings = np.maximum(wings, np.float32(9) - ring)
    return _over(hu, lamina, filled(np.minimum(process, wings), edge))


def _abdomen(anatomy: Anatomy, hu: Field, place: tuple[Field, Field, Field], edge: float) -> Field:
    """Paint liver, spleen, and stomach and bowel with gas on top of their fluid."""
    x, y, z = place
    low = anatomy.domes["left"].top_z
    liver = np.maximum(x - np.float32(30) - np.float32(0.3) * (z - np.float32(low)), -y - 200)
    hu = _over(hu, anatomy.hu_liver, filled(liver, edge))
    stomach = Ellipsoid(centre_xyz=(62, -18, low - 42), radii=(42, 40, 34), hu=0).field(x, y, z)
    hu = _over(hu, 25.0, filled(stomach, edge))
    # The patient lies on the back, so gas rises to the front.
    level = np.float32(-18 + 40 * (2 * anatomy.stomach_gas - 1))
    gas = filled(np.maximum(stomach + 4, y - level), edge)
    hu = _over(hu, HU_AIR, gas)
    spleen = Ellipsoid(centre_xyz=(88, 45, low - 38), radii=(32, 38, 40), hu=0).field(x, y, z)
    hu = _over(hu, anatomy.hu_liver - 5, filled(spleen, edge))
    for n in range(4):
        place_x = 95 - 55 * n
        if n > 1 and place_x < 20:
            continue
        loop = Ellipsoid(
            centre_xyz=(place_x, -50 - 4 * n, low - 92 - 7 * n), radii=(30, 22, 20), hu=0
        ).field(x, y, z)
        hu = _over(hu, 20.0, filled(loop, edge))
        air = np.maximum(loop + 3, y - np.float32(-50 - 22 * (1 - 2 * anatomy.bowel_gas)))
        hu = _over(hu, HU_AIR, filled(air, edge))
    return hu


def _table(anatomy: Anatomy, x: Field, y: Field, edge: float) -> Field:
    """Return the HU of air with the table in it: a shell of carbon around foam, a little curved."""
    under = anatomy.cavity_depth + anatomy.wall + anatomy.fat + 8 + anatomy.table_gap
    rise = y - np.float32(under) + np.float32(5e-4) * x * x
    slab = np.maximum(np.abs(rise - 14) - 14, np.abs(x) - np.float32(205))
    hu = _over(np.full_like(slab, HU_AIR), -60.0, filled(slab, edge))
    return _over(hu, -900.0, filled(slab + 2.5, edge))


def tissue(anatomy: Anatomy, x: Field, y: Field, z: Field, edge: float) -> Tissue:
    """Return what a patient is made of at points of the body's frame.

    Parameters
    ----------
    x, y, z
        Coordinates, float32, that broadcast against each other.
    edge
        Width of the blur of each surface, mm.
    """
    shape = np.broadcast_shapes(x.shape, y.shape, z.shape)
    place = (x, y, z)
    outer = torso(anatomy, x, y, z)
    if anatomy.breast:
        for side_x in (-1, 1):
            centre = (side_x * 75.0, -anatomy.cavity_depth - anatomy.wall, -10.0)
            breast = Ellipsoid(centre_xyz=centre, radii=(62, 22 + anatomy.breast, 66), hu=0).field(
                x, y, z
            )
            outer = np.minimum(outer, breast)
    inner = cavity(anatomy, x, y, z)
    body = filled(outer, edge)
    hu = np.full(shape, HU_AIR, dtype=np.float32)
    if anatomy.table:
        hu = hu + (_table(anatomy, x, y, edge) - np.float32(HU_AIR))
    hu = _over(hu, HU_SKIN, body)
    hu = _over(hu, anatomy.hu_fat, filled(outer + np.float32(anatomy.skin), edge))
    # Muscle lies around the ribs, and fills the shoulders.
    shoulders = np.clip((z - np.float32(20)) * np.float32(1 / 110), 0, 1)
    thicker = shoulders * shoulders * (3 - 2 * shoulders) * np.float32(80)
    muscle = np.maximum(
        inner - np.float32(anatomy.wall) - thicker,
        outer + np.float32(0.5 * anatomy.fat) * np.minimum(thicker * np.float32(1 / 30), 1),
    )
    muscle = np.maximum(muscle, outer + np.float32(anatomy.skin + 1.5))
    hu = _over(hu, anatomy.hu_muscle, filled(muscle, edge))
    hu = _over(hu, anatomy.hu_fat, filled(np.abs(inner - np.float32(2)) - 1, 2.5) * np.float32(0.6))
    hu = _ribs(anatomy, hu, inner, place)
    within = filled(inner, edge)
    hu = _over(hu, anatomy.hu_fat + 35, within)
    below = np.minimum(-diaphragm(anatomy, "right", x, y, z), -diaphragm(anatomy, "left", x, y, z))
    belly = filled(np.maximum(inner + 1, below + 3), edge)
    hu = _over(hu, HU_ABDOMEN, filled(np.maximum(inner + 1, below), edge))
    lowest = min(dome.top_z for dome in anatomy.domes.values())
    if float(z.min()) < lowest + 5 + anatomy.domes["right"].top_z - lowest:
        organs = _abdomen(anatomy, np.full(shape, anatomy.hu_fat, dtype=np.float32), place, edge)
        hu = _over(hu, organs, belly)
    hu = _spine(anatomy, hu, place, edge)

    lungs = {}
    space = pleural_space(anatomy, x, y, z, inner)
    for side in SIDES:
        field = lung(anatomy, side, x, y, z, space)
        share = filled(field, edge)
        depth = np.clip((y + 60) * np.float32(1 / 120), 0, 1)
        value = np.float32(anatomy.hu_lung - 25) + np.float32(70 * anatomy.hu_gravity) * depth
        hu = _over(hu, value, share)
        lungs[side] = share
    return Tissue(hu=hu, right=lungs["right"], left=lungs["left"], body=body)
