"""Samples made on the fly: phantoms on the grid of a model, as preprocessing would give them.

A voxel of a phantom holds the mean over its volume, and so does one that preprocessing resampled
from a finer series; so samples are drawn on the model's grid at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Plane
from dicomai.imaging.image import SourceImagePixels
from dicomai.inference.preprocess import prepare_image, scaled
from dicomai.models.manifest import Preprocess
from dicomai.phantom.chest import ChestPhantom
from dicomai.phantom.xray import Exposure, attenuation, ball_attenuation, chest_exposure, developed

Array = npt.NDArray[np.float32]

CELL: Final = 16
"""Edge of a cell of the map of an X-ray, in pixels of the network's input."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What a network is shown, (C, …) float32, and what it should say, (C', …) float32."""

    inputs: Array
    targets: Array


def _grid(
    corner_lps_mm: npt.NDArray[np.float64], spacing_mm: tuple[float, float, float]
) -> npt.NDArray[np.float64]:
    """Return index_to_lps of a grid whose k, j, i grow to head, back and left."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2], matrix[3, 3] = *spacing_mm, 1
    matrix[:3, 3] = corner_lps_mm
    return matrix


def _weathered(hu: Array, rng: np.random.Generator, *, whole: bool) -> Array:
    """Return Hounsfield units as another scanner and another patient might give them.

    Values are bent a little, the lungs' more than the rest; noise of any grain is added. A
    view of the `whole` body may end with the circle that was reconstructed.
    """
    lung = np.clip((-450 - hu) / 350, 0, 1) * np.clip((hu + 1010) / 100, 0, 1)
    hu = hu * np.float32(rng.uniform(0.95, 1.05)) + np.float32(rng.normal(0, 12))
    hu += lung * np.float32(rng.normal(10, 45))
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    grain = rng.uniform(0, 0.9)
    if grain > 0.3:
        noise = scipy.ndimage.gaussian_filter(noise, grain, truncate=2.5)
        noise /= max(float(noise.std()), 1e-6)
    hu += noise * np.float32(np.exp(rng.uniform(np.log(2), np.log(55))))
    if whole and rng.random() < 0.35:
        _, rows, columns = hu.shape
        v = (np.arange(rows) - rows / 2)[:, None]
        u = (np.arange(columns) - columns / 2)[None, :]
        radius = rng.uniform(0.38, 0.75) * max(rows, columns)
        hu[:, u * u + v * v > radius * radius] = -1024
    return hu


def lung_samples(
    seed: int,
    preprocess: Preprocess,
    window_kji: tuple[int, int, int],
) -> Iterator[Sample]:
    """Give phantoms with background, right lung and left lung as channels, without end."""
    rng = np.random.default_rng(seed)
    assert preprocess.spacing_mm is not None
    spacing = np.array(preprocess.spacing_mm)
    while True:
        phantom = ChestPhantom(int(rng.integers(2**40)))
        size = spacing * window_kji
        middle = np.array(phantom.centre_lps_mm)[::-1] + rng.uniform(-1, 1, 3) * [90, 45, 45]
        grid = _grid((middle - size / 2)[::-1], preprocess.spacing_mm)
        hu = _weathered(phantom.hounsfield(grid, window_kji), rng, whole=True)
        truth = phantom.truth(grid, window_kji)
        lungs = np.stack([truth.right_lung, truth.left_lung]).astype(np.float32)
        yield Sample(
            inputs=scaled(hu, preprocess)[None],
            targets=np.concatenate([1 - lungs.sum(axis=0, keepdims=True), lungs]),
        )


def nodule_samples(
    seed: int,
    preprocess: Preprocess,
    window_kji: tuple[int, int, int],
    per_phantom: int = 4,
) -> Iterator[Sample]:
    """Give windows of lungs with the nodules as one channel, without end.

    Three of four windows hold a nodule. Slices are as thick as those of real series, and
    interpolated to the model's grid as preprocessing does.
    """
    rng = np.random.default_rng(seed)
    assert preprocess.spacing_mm is not None
    spacing = np.array(preprocess.spacing_mm)
    size = spacing * window_kji
    while True:
        count = int(rng.integers(1, 5))
        diameters = np.exp(rng.uniform(np.log(4.5), np.log(28), count))
        phantom = ChestPhantom(
            int(rng.integers(2**40)),
            nodule_diameters_mm=diameters.tolist(),
            vessels=int(rng.integers(120, 300)),
        )
        extent = np.array(phantom.extent_mm)[::-1]
        for turn in range(per_phantom):
            if turn % 4 < 3:
                chosen = phantom.nodules[int(rng.integers(count))]
                middle = np.array(chosen.centre_lps_mm)[::-1]
                middle = middle + rng.uniform(-0.38, 0.38, 3) * size
            else:
                reach = extent * [0.5, 0.42, 0.42]
                middle = np.array(phantom.centre_lps_mm)[::-1] + rng.uniform(-1, 1, 3) * reach
            corner = (middle - size / 2)[::-1]
            hu = _in_slices(phantom, corner, preprocess.spacing_mm, window_kji, rng)
            truth = phantom.truth(_grid(corner, preprocess.spacing_mm), window_kji)
            target = np.zeros(window_kji, dtype=np.float32)
            for mask in truth.nodules:
                target[mask] = 1
            yield Sample(
                inputs=scaled(_weathered(hu, rng, whole=False), preprocess)[None],
                targets=target[None],
            )


def _in_slices(
    phantom: ChestPhantom,
    corner: npt.NDArray[np.float64],
    spacing_mm: tuple[float, float, float],
    shape: tuple[int, int, int],
    rng: np.random.Generator,
) -> Array:
    """Return a phantom seen in slices of some thickness, on the model's grid."""
    thick = float(rng.choice([0.0, 2.0, 2.5, 3.0])) or spacing_mm[0]
    if thick <= spacing_mm[0]:
        return phantom.hounsfield(_grid(corner, spacing_mm), shape)
    offset = rng.uniform(0, 1)
    slices = int(np.ceil(shape[0] * spacing_mm[0] / thick)) + 2
    start = corner - [0, 0, thick * offset]
    hu = phantom.hounsfield(_grid(start, (thick, *spacing_mm[1:])), (slices, *shape[1:]))
    at = np.arange(shape[0]) * spacing_mm[0] / thick + offset
    low = at.astype(int)
    share = (at - low).astype(np.float32)[:, None, None]
    return np.asarray(hu[low] * (1 - share) + hu[low + 1] * share, dtype=np.float32)


def xray_samples(
    seed: int, preprocess: Preprocess, patients: int = 32, turns: int = 24
) -> Iterator[Sample]:
    """Give X-rays of phantoms, half with one nodule of 15 to 30 mm, without end.

    The target is the share of nodule in each cell of a coarse map, (1, J / 16, I / 16): a network
    that is told where learns in a tenth of the images. Whether there is one is its largest value.

    A patient is projected once, without nodules; a ball that takes the place of lung adds the
    difference of attenuation along each ray. So one patient gives several images: `patients` are
    kept, and a new one takes the place of one of them after every `turns` images.
    """
    rng = np.random.default_rng(seed)
    kept: list[tuple[ChestPhantom, Exposure, Array]] = []
    for turn in itertools.count():
        if len(kept) < patients or turn % turns == 0:
            phantom = ChestPhantom(int(rng.integers(2**40)), nodule_diameters_mm=())
            exposure = chest_exposure(phantom, rows=256)
            lines = attenuation(phantom, exposure, step_mm=3.0)
            kept = [*kept[-patients + 1 :], (phantom, exposure, lines)]
        phantom, exposure, lines = kept[int(rng.integers(len(kept)))]
        mark = np.zeros(exposure.shape_ji, dtype=np.float32)
        if turn % 2:
            placed = phantom.with_nodules([rng.uniform(15, 30)], int(rng.integers(2**40)))
            lung_hu = phantom.anatomy.hu_lung
            chords = ball_attenuation(placed.nodules[0], lung_hu, exposure)
            lines = lines + chords
            mark[chords > 0.5 * chords.max()] = 1
        image = developed(lines, rng, photons=float(np.exp(rng.uniform(8, 11.5))))
        pixels = image.astype(np.float32) ** np.float32(rng.uniform(0.8, 1.25))
        yield Sample(
            inputs=prepare_image(image_of_phantom(pixels, exposure), preprocess),
            targets=_cells(mark, exposure, preprocess),
        )


def xray_crops(
    seed: int, preprocess: Preprocess, cells: int, images: int = 1200
) -> Iterator[Sample]:
    """Give square parts of X-rays, half turned round left to right, without end.

    The images are drawn once, and each is shown many times: projecting costs more than learning.

    Parameters
    ----------
    cells
        Edge of a part, in cells of the map; that of the whole map gives whole images.
    """
    rng = np.random.default_rng(seed)
    drawn = xray_samples(seed, preprocess, patients=min(40, images), turns=12)
    pool = list(itertools.islice(drawn, images))
    while True:
        sample = pool[int(rng.integers(len(pool)))]
        _, rows, columns = sample.targets.shape
        corner = np.array([rng.integers(rows - cells + 1), rng.integers(columns - cells + 1)])
        if sample.targets.any() and rng.random() < 0.7:
            first = np.argwhere(sample.targets[0])[0]
            low = np.minimum(first - rng.integers(0, cells, 2), [rows - cells, columns - cells])
            corner = np.maximum(low, 0)
        turn = 1 if rng.random() < 0.5 else -1
        j, i = (slice(int(each), int(each) + cells) for each in corner)
        v, u = (slice(each.start * CELL, each.stop * CELL) for each in (j, i))
        yield Sample(
            inputs=np.ascontiguousarray(sample.inputs[:, v, u][:, :, ::turn]),
            targets=np.ascontiguousarray(sample.targets[:, j, i][:, :, ::turn]),
        )


def _cells(mark: Array, exposure: Exposure, preprocess: Preprocess) -> Array:
    """Return which cells of 16 by 16 pixels of the network's input a mark touches, 0 or 1."""
    # Pixels of 0 and 1 stay so: the mark takes the way of the image, but is not stretched.
    plain = preprocess.model_copy(update={"clip": (0.0, 1.0), "clip_percentiles": None})
    small = prepare_image(image_of_phantom(mark, exposure), plain)
    _, height, width = small.shape
    cells = small.reshape(1, height // CELL, CELL, width // CELL, CELL).max(axis=(2, 4))
    return np.asarray(cells > 0.5, dtype=np.float32)


def image_of_phantom(pixels: Array, exposure: Exposure) -> SourceImagePixels:
    """Return an image as the engine reads it from a file."""
    plane = Plane(
        shape_ji=exposure.shape_ji,
        spacing_ji_mm=(exposure.spacing_mm, exposure.spacing_mm),
        sop_instance_uid="",
    )
    facts = Facts(modality="DX", view_position="PA")
    return SourceImagePixels(plane=plane, pixels=pixels, facts=facts, series_instance_uid="")
