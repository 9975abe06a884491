"""The anatomy of one patient, drawn from a seed: sizes, places and Hounsfield units.

The body's frame: x to the patient's left, y to the back, z to the head; its origin lies in the
middle of the chest. Lengths are millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Side = Literal["right", "left"]
SIDES: Final[tuple[Side, Side]] = ("right", "left")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dome:
    """One half of the diaphragm: a paraboloid."""

    x: float
    y: float
    top_z: float
    drop: float
    width: float
    depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Apex:
    """The top of one lung: a half ellipsoid on a column."""

    x: float
    y: float
    base_z: float
    top_z: float
    width: float
    depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What makes one patient; see the comments for what each group of numbers is."""

    # cavity of the thorax: half width and depth, squareness, how it narrows to the head
    cavity_width: float
    cavity_depth: float
    squareness: float
    taper: float
    domes: dict[Side, Dome]
    apices: dict[Side, Apex]
    # mediastinum: half width in its middle, and its place
    mediastinum: float
    mediastinum_x: float
    heart_xyz: tuple[float, float, float]
    heart_radii: tuple[float, float, float]
    heart_turn: float
    # wall of the chest
    wall: float
    fat: float
    fat_front: float
    skin: float
    breast: float
    rib_spacing: float
    rib_slope: float
    rib_phase: float
    spine_y: float
    spine_radius: float
    vertebra_height: float
    arms: bool
    # abdomen
    stomach_gas: float
    bowel_gas: float
    # Hounsfield units
    hu_lung: float
    hu_gravity: float
    hu_texture: float
    emphysema: float
    hu_blood: float
    hu_muscle: float
    hu_fat: float
    hu_liver: float
    hu_bone: float
    hu_marrow: float
    # table under the patient: gap, and whether there is one
    table: bool
    table_gap: float
    # how the patient lies: turned about z (radians), and where the frame's origin is in LPS
    turn: float
    origin_lps_mm: tuple[float, float, float]
    texture_seed: int


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Return a patient, different for each state of the generator."""
    size = rng.uniform(0.84, 1.12)
    width = 134 * size * rng.uniform(0.94, 1.07)
    depth = 88 * size * rng.uniform(0.9, 1.12)
    tall = size * rng.uniform(0.85, 1.15)
    contrast = rng.random() < 0.45
    top = 130 * tall
    dome_z = -70 * tall + rng.uniform(-18, 18)
    dome_drop = rng.uniform(45, 85)
    domes: dict[Side, Dome] = {
        "right": Dome(
            x=-0.52 * width,
            y=rng.uniform(-30, -8),
            top_z=dome_z + rng.uniform(2, 14),
            drop=dome_drop * rng.uniform(0.85, 1.15),
            width=0.62 * width,
            depth=0.95 * depth,
        ),
        "left": Dome(
            x=0.55 * width,
            y=rng.uniform(-30, -8),
            top_z=dome_z - rng.uniform(2, 14),
            drop=dome_drop * rng.uniform(0.85, 1.15),
            width=0.58 * width,
            depth=0.95 * depth,
        ),
    }
    apices: dict[Side, Apex] = {
        side: Apex(
            x=sign * 0.37 * width,
            y=rng.uniform(5, 18),
            base_z=rng.uniform(0.1, 0.35) * top,
            top_z=top + rng.uniform(-8, 8),
            width=0.62 * width,
            depth=rng.uniform(0.9, 1.05) * depth,
        )
        for side, sign in zip(SIDES, (-1, 1), strict=True)
    }
    fat = float(np.clip(rng.gamma(2.0, 7.0), 3, 45))
    return Anatomy(
        cavity_width=width,
        cavity_depth=depth,
        squareness=rng.uniform(0.35, 0.75),
        taper=rng.uniform(0.0003, 0.0009),
        domes=domes,
        apices=apices,
        mediastinum=rng.uniform(15, 25) * size,
        mediastinum_x=rng.uniform(-3, 6),
        heart_xyz=(
            rng.uniform(12, 27) * size,
            rng.uniform(-36, -22) * size,
            dome_z + rng.uniform(22, 40),
        ),
        heart_radii=(
            rng.uniform(58, 72) * size,
            rng.uniform(40, 50) * size,
            rng.uniform(44, 56) * size,
        ),
        heart_turn=rng.uniform(0.4, 0.8),
        wall=rng.uniform(17, 26),
        fat=fat,
        fat_front=fat * rng.uniform(0.5, 1.3),
        skin=rng.uniform(1.5, 2.5),
        breast=float(rng.uniform(0, 55) if rng.random() < 0.5 else 0),
        rib_spacing=rng.uniform(21, 27) * size,
        rib_slope=rng.uniform(0.45, 0.75),
        rib_phase=rng.uniform(0, 1),
        spine_y=depth * rng.uniform(0.72, 0.84),
        spine_radius=rng.uniform(15, 20) * size,
        vertebra_height=rng.uniform(20, 25) * size,
        arms=bool(rng.random() < 0.2),
        stomach_gas=float(rng.uniform(0, 1)),
        bowel_gas=float(rng.uniform(0, 1)),
        hu_lung=rng.uniform(-905, -790),
        hu_gravity=rng.uniform(0.1, 0.9),
        hu_texture=rng.uniform(8, 30),
        emphysema=float(rng.uniform(30, 110) if rng.random() < 0.25 else 0),
        hu_blood=float(rng.uniform(90, 320) if contrast else rng.uniform(30, 55)),
        hu_muscle=rng.uniform(40, 70),
        hu_fat=rng.uniform(-115, -85),
        hu_liver=rng.uniform(90, 130) if contrast else rng.uniform(40, 70),
        hu_bone=rng.uniform(450, 900),
        hu_marrow=rng.uniform(100, 260),
        table=bool(rng.random() < 0.9),
        table_gap=rng.uniform(0, 14),
        turn=float(rng.normal(0, 0.04)),
        origin_lps_mm=(
            float(rng.uniform(-25, 25)),
            float(rng.uniform(-190, -60)),
            float(rng.uniform(-900, 300)),
        ),
        texture_seed=int(rng.integers(2**31)),
    )
