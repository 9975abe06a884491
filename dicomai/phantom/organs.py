"""Bones outside the ribs, arms, and the heart, as solids that are painted over the large parts."""

from __future__ import annotations

import numpy as np

from dicomai.phantom.anatomy import Anatomy
from dicomai.phantom.shapes import Ellipsoid, Tube
from dicomai.phantom.thorax import heart


def bones_and_arms(anatomy: Anatomy) -> tuple[Tube | Ellipsoid, ...]:
    """Return collar bones, shoulder blades, breast bone, and arms where they lie at the sides."""
    front = -anatomy.cavity_depth - 8
    wide = anatomy.cavity_width
    top = max(apex.top_z for apex in anatomy.apices.values())
    parts: list[Tube | Ellipsoid] = [
        Ellipsoid(centre_xyz=(0, front - 1, 20), radii=(17, 7, 82), hu=anatomy.hu_bone * 0.5),
        Ellipsoid(centre_xyz=(0, front - 1, 20), radii=(15, 4.5, 80), hu=anatomy.hu_marrow),
    ]
    for sign in (-1, 1):
        inner = (sign * 22.0, front + 28, top - 24)
        outer = (sign * 0.98 * wide, front + 62, top + 10)
        blade = (sign * 0.82 * wide, 0.82 * anatomy.cavity_depth + 22, top - 75)
        tilt = 0.6 * sign
        axes = (
            (float(np.cos(tilt)), -float(np.sin(tilt)), 0.0),
            (float(np.sin(tilt)), float(np.cos(tilt)), 0.0),
            (0.0, 0.0, 1.0),
        )
        for radius, hu in ((6.5, anatomy.hu_bone), (4.2, anatomy.hu_marrow)):
            parts.append(
                Tube(start=inner, end=outer, start_radius=radius, end_radius=radius, hu=hu)
            )
        parts.append(
            Ellipsoid(centre_xyz=blade, radii=(38, 3.6, 62), axes=axes, hu=anatomy.hu_bone * 0.7)
        )
        if anatomy.arms:
            reach = 1.16 * (wide + anatomy.wall + anatomy.fat + 30) + 32
            shoulder, hand = (sign * reach, 15.0, 140.0), (sign * (reach + 12), 20.0, -400.0)
            for radius, hu in (
                (46.0, anatomy.hu_fat),
                (38.0, anatomy.hu_muscle),
                (12.0, anatomy.hu_bone),
                (7.0, anatomy.hu_marrow),
            ):
                parts.append(
                    Tube(start=shoulder, end=hand, start_radius=radius, end_radius=radius, hu=hu)
                )
    return tuple(parts)


def heart_parts(anatomy: Anatomy) -> tuple[Ellipsoid, ...]:
    """Return the heart's muscle and its chambers, brighter where contrast is in the blood."""
    whole = heart(anatomy)
    x, y, z = whole.centre_xyz
    muscle = 45 + 0.25 * max(anatomy.hu_blood - 45, 0)
    parts = [Ellipsoid(centre_xyz=whole.centre_xyz, radii=whole.radii, axes=whole.axes, hu=muscle)]
    for shift, scale in (((16, 4, -8), 0.48), ((-18, -6, -2), 0.46), ((-8, 20, 14), 0.4)):
        parts.append(
            Ellipsoid(
                centre_xyz=(x + shift[0], y + shift[1], z + shift[2]),
                radii=(
                    whole.radii[0] * scale,
                    whole.radii[1] * scale,
                    whole.radii[2] * scale * 1.1,
                ),
                axes=whole.axes,
                hu=anatomy.hu_blood,
            )
        )
    return tuple(parts)
