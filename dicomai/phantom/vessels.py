"""Trees of vessels that fill a lung, and the large vessels and airways of the mediastinum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from dicomai.phantom.anatomy import Anatomy, Side
from dicomai.phantom.shapes import Tube

Points = npt.NDArray[np.float64]

HU_LUMEN: Final = -990.0


def _path(
    points: list[tuple[float, float, float]], radii: list[float], hu: float
) -> tuple[Tube, ...]:
    """Return tubes from point to point, which displace the lung."""
    return tuple(
        Tube(
            start=points[n],
            end=points[n + 1],
            start_radius=radii[n],
            end_radius=radii[n + 1],
            hu=hu,
            displaces_lung=True,
        )
        for n in range(len(points) - 1)
    )


def hilum(anatomy: Anatomy, side: Side) -> tuple[float, float, float]:
    """Return where the vessels enter a lung."""
    sign = -1 if side == "right" else 1
    x = anatomy.mediastinum_x + sign * (anatomy.mediastinum + 10)
    return (x, 8.0, 8.0 if side == "right" else 16.0)


def great_vessels(anatomy: Anatomy) -> tuple[Tube, ...]:
    """Return aorta, vena cava and the pulmonary trunk with its two branches.

    What leaves the chest runs on beyond it, and the branches narrow to where the trees begin: a
    blunt end within the lung would look like a nodule.
    """
    hx, hy, hz = anatomy.heart_xyz
    blood = anatomy.hu_blood
    back = anatomy.spine_y - anatomy.spine_radius - 8
    arch = 62.0
    right, left = hilum(anatomy, "right"), hilum(anatomy, "left")
    return (
        *_path(
            [
                (hx - 16, hy + 8, hz + 30),
                (-8, -28, 25),
                (-4, -22, arch - 10),
                (6, -5, arch),
                (18, 18, arch - 6),
                (22, back, arch - 26),
                (21, back + 4, -60),
                (14, back + 2, -190),
                (12, back + 2, -500),
            ],
            [15, 15, 14.5, 13.5, 12.5, 12, 11.5, 10.5, 10],
            blood,
        ),
        *_path([(-20, -12, 85), (-21, -12, 20), (-19, -14, hz + 15)], [8.5, 9, 10], blood),
        *_path([(hx - 12, hy, hz + 34), (12, -24, 22), (10, -8, 18)], [14, 13, 12.5], blood),
        *_path([(10, -8, 18), (-10, -4, 12), right], [12, 10.5, 5], blood),
        *_path([(10, -8, 18), (20, 2, 20), left], [12, 10.5, 5], blood),
        *_path([(-34, -10, 300), (-30, -10, 120), (-20, -14, 88)], [6, 6, 7], blood),
        *_path(
            [(6, -5, arch), (20, 0, 105), (30, -5, 150), (34, -5, 300)], [5, 4.5, 4.5, 4.5], blood
        ),
        *_path(
            [(0, -14, arch), (-12, -14, 95), (-22, -6, 150), (-30, -5, 300)],
            [6, 5, 4.5, 4.5],
            blood,
        ),
    )


def airways(anatomy: Anatomy) -> tuple[tuple[Tube, ...], tuple[Tube, ...]]:
    """Return walls and lumina of the trachea, the main bronchi and the oesophagus."""
    carina = (anatomy.mediastinum_x - 1, 14.0, 38.0)
    top = (anatomy.mediastinum_x - 2, -4.0, 260.0)
    ends = {
        "right": (anatomy.mediastinum_x - anatomy.mediastinum - 14, 18.0, 10.0),
        "left": (anatomy.mediastinum_x + anatomy.mediastinum + 16, 20.0, 6.0),
    }
    walls: list[Tube] = []
    lumina: list[Tube] = []
    courses = [([top, carina], [9.0, 8.5])]
    courses += [([carina, end], [7.2, 3.8]) for end in ends.values()]
    for points, radii in courses:
        walls += _path(points, [radius + 1.8 for radius in radii], 35.0)
        lumina += _path(points, radii, HU_LUMEN)
    gullet = anatomy.spine_y - anatomy.spine_radius - 10
    walls += _path([(5, 16, 260), (4, gullet - 6, 40), (6, gullet - 8, -60)], [7, 8, 8], 40.0)
    lumina += _path([(5, gullet - 7, 70), (4, gullet - 6, 50)], [2.5, 2.0], -700.0)
    return tuple(walls), tuple(lumina)


def bronchial_tree(anatomy: Anatomy, side: Side) -> tuple[tuple[Tube, ...], tuple[Tube, ...]]:
    """Return walls and lumina of the first branches within a lung."""
    sign = -1 if side == "right" else 1
    x0 = anatomy.mediastinum_x + sign * (anatomy.mediastinum + 14)
    root = (x0, 18.0, 9.0)
    ends = [
        (x0 + sign * 30, 10.0, 55.0),
        (x0 + sign * 32, -30.0, -5.0),
        (x0 + sign * 28, 45.0, -45.0),
        (x0 + sign * 38, 15.0, -40.0),
    ]
    walls: list[Tube] = []
    lumina: list[Tube] = []
    for end in ends:
        for shell, hu, into in ((1.3, -150.0, walls), (0.0, HU_LUMEN, lumina)):
            into.append(
                Tube(start=root, end=end, start_radius=3.8 + shell, end_radius=1.2 + shell, hu=hu)
            )
    return tuple(walls), tuple(lumina)


def vessel_tree(
    root: tuple[float, float, float],
    targets: Points,
    hu: float,
    leaf_radius: float,
    rng: np.random.Generator,
) -> tuple[Tube, ...]:
    """Return a tree from the hilum that reaches every target.

    Each target joins the nearest point that the tree has, near ones first; radii follow from the
    leaves by Murray's law (the cube of a parent is the sum of the cubes of its children).

    Parameters
    ----------
    targets
        (N, 3) float64, points within the lung.
    leaf_radius
        Radius of the last branches, mm.
    """
    start = np.asarray(root)
    order = np.argsort(np.linalg.norm(targets - start, axis=1))
    count = 2 * len(order) + 1
    nodes = np.empty((count, 3))
    nodes[0] = start
    parents = np.full(count, -1)
    reach = np.zeros(count)
    used = 1
    for target in targets[order]:
        gaps = np.linalg.norm(nodes[:used] - target, axis=1)
        # Prefer a parent that does not make the way from the hilum much longer.
        parent = int(np.argmin(gaps + 0.25 * reach[:used]))
        step = target - nodes[parent]
        bend = rng.normal(0, 0.08, 3) * np.linalg.norm(step)
        for point in (nodes[parent] + step * 0.5 + bend, target):
            nodes[used] = point
            parents[used] = parent
            reach[used] = reach[parent] + np.linalg.norm(point - nodes[parent])
            parent = used
            used += 1
    cubes = np.zeros(used)
    has_child = np.zeros(used, dtype=bool)
    has_child[parents[1:used]] = True
    cubes[~has_child] = leaf_radius**3
    for node in range(used - 1, 0, -1):
        cubes[parents[node]] += cubes[node]
    radii = np.minimum(np.cbrt(cubes), 8.0)
    return tuple(
        Tube(
            start=_triple(nodes[parents[node]]),
            end=_triple(nodes[node]),
            start_radius=float(min(radii[parents[node]], radii[node] * 1.5)),
            end_radius=float(radii[node]),
            hu=hu,
        )
        for node in range(1, used)
    )


def _triple(point: Points) -> tuple[float, float, float]:
    return (float(point[0]), float(point[1]), float(point[2]))


def points_within(
    field: Callable[[Points], npt.NDArray[np.float32]],
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    count: int,
    depth_mm: float,
    rng: np.random.Generator,
) -> Points:
    """Return (count, 3) points at least `depth_mm` inside a field, evenly spread in its box."""
    found = np.empty((0, 3))
    while len(found) < count:
        tried = rng.uniform(low, high, (4 * count, 3))
        found = np.concatenate([found, tried[field(tried) < -depth_mm]])
    return found[:count]
