"""Samples made on the fly: phantoms on the grid of a model, as preprocessing would give them.

A voxel of a phantom holds the mean over its volume, and so does one that preprocessing resampled
from a finer series; so samples are drawn on the model's grid at once.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Plane
from dicomai.imaging.image import SourceImagePixels
from dicomai.inference.preprocess import prepare_image, scaled
from dicomai.models.steps import Preprocess
from dicomai.phantom.chest import ChestPhantom
from dicomai.phantom.xray import Exposure, attenuation, ball_attenuation, chest_exposure, developed

Array = npt.NDArray[np.float32]
_Patient = TypeVar("_Patient")

CELL: Final = 16
"""Edge of a cell of the map of an X-ray, in pixels of the network's input."""


_HILUM_MM: Final = 55.0
"""Lung this near to the midline holds the large vessels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What a network is shown, (C, …) float32, and what it should say, (C', …) float32."""

    inputs: Array
    targets: Array


def in_turns(
    draw: Callable[[], _Patient], patients: int, turns: int, rng: np.random.Generator
) -> Iterator[tuple[int, _Patient]]:
    """Give the number of a turn and one of the patients that are kept, without end.

    `patients` are kept, at least 1, and a new one takes the place of the oldest after every
    `turns`. The first of them come one by one, a turn each.
    """
    kept: deque[_Patient] = deque(maxlen=patients)
    for turn in itertools.count():
        if len(kept) < patients or turn % turns == 0:
            kept.append(draw())
        yield turn, kept[int(rng.integers(len(kept)))]


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
    patients: int = 32,
    turns: int = 100,
) -> Iterator[Sample]:
    """Give windows of torsos with the nodules as one channel, without end.

    Of six windows three lie about a nodule, one at a hilum, where vessels cross and look like
    nodules, one in a lung, one anywhere. `patients` are kept whole, and a new one takes the place
    of the oldest after every `turns` windows; each window is turned about and weathered in its own
    way.
    """
    rng = np.random.default_rng(seed)
    for turn, torso in in_turns(lambda: _torso(preprocess, rng), patients, turns, rng):
        if turn % 6 < 3:
            middle = torso.nodules_kji[int(rng.integers(len(torso.nodules_kji)))]
            middle = middle + rng.uniform(-0.35, 0.35, 3) * window_kji
        elif turn % 6 < 5:
            places = torso.hilum_kji if turn % 6 == 3 else torso.lung_kji
            middle = places[int(rng.integers(len(places)))]
        else:
            middle = rng.uniform(0, 1, 3) * torso.hu.shape
        most = np.subtract(torso.hu.shape, window_kji)
        first = np.clip(np.rint(middle - np.array(window_kji) / 2).astype(int), 0, most)
        window = tuple(
            slice(start, start + size) for start, size in zip(first, window_kji, strict=True)
        )
        hu, target = torso.hu[window].astype(np.float32), torso.mask[window].astype(np.float32)
        # A nodule looks alike from every side; no chest does, but a network needs no sides here.
        flipped = tuple(axis for axis in range(3) if rng.random() < 0.5)
        hu, target = np.flip(hu, flipped), np.flip(target, flipped)
        weathered = _weathered(np.ascontiguousarray(hu), rng, whole=False)
        yield Sample(
            inputs=scaled(weathered, preprocess)[None],
            targets=np.ascontiguousarray(target)[None],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Torso:
    """A whole phantom on a model's grid, and where to look."""

    hu: npt.NDArray[np.int16]
    mask: npt.NDArray[np.bool_]
    nodules_kji: npt.NDArray[np.float64]
    lung_kji: npt.NDArray[np.float64]
    hilum_kji: npt.NDArray[np.float64]


def _torso(preprocess: Preprocess, rng: np.random.Generator) -> _Torso:
    """Return a new patient with two to six nodules, seen in slices as thick as real ones."""
    diameters = np.exp(rng.uniform(np.log(5), np.log(28), int(rng.integers(2, 7))))
    phantom = ChestPhantom(
        int(rng.integers(2**40)),
        nodule_diameters_mm=diameters.tolist(),
        vessels=int(rng.integers(120, 300)),
    )
    assert preprocess.spacing_mm is not None
    spacing = preprocess.spacing_mm
    extent = np.array(phantom.extent_mm)[::-1]
    depth, height, width = (int(each) for each in np.ceil(extent / spacing))
    corner = (np.array(phantom.centre_lps_mm)[::-1] - extent / 2)[::-1]
    hu = _in_slices(phantom, corner, spacing, (depth, height, width), rng)
    truth = phantom.truth(_grid(corner, spacing), (depth, height, width))
    inside = np.argwhere(truth.right_lung | truth.left_lung)
    lung = inside[:: max(1, len(inside) // 20_000)].astype(np.float64)
    aside_mm = np.abs(lung[:, 2] - (width - 1) / 2) * spacing[2]
    return _Torso(
        hu=np.rint(hu).astype(np.int16),
        mask=np.logical_or.reduce(truth.nodules),
        nodules_kji=np.array([np.argwhere(each).mean(axis=0) for each in truth.nodules]),
        lung_kji=lung,
        hilum_kji=lung[aside_mm <= _HILUM_MM],
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
    seed: int, preprocess: Preprocess, patients: int = 32, turns: int = 24, strongest: float = 1.0
) -> Iterator[Sample]:
    """Give X-rays of phantoms, half with one nodule of 15 to 30 mm, without end.

    The target is the share of nodule in each cell of a coarse map, (1, J / 16, I / 16): a network
    that is told where learns in a tenth of the images. Whether there is one is its largest value.

    A patient is projected once, without nodules; a ball that takes the place of lung adds the
    difference of attenuation along each ray. So one patient gives several images: `patients` are
    kept, and a new one takes the place of the oldest after every `turns` images. A nodule absorbs
    up to `strongest` times what it should: what is faint is learned from what is plain.
    """
    rng = np.random.default_rng(seed)

    def projected() -> tuple[ChestPhantom, Exposure, Array]:
        phantom = ChestPhantom(
            int(rng.integers(2**40)), nodule_diameters_mm=(), vessels=int(rng.integers(80, 200))
        )
        exposure = chest_exposure(phantom, rows=256)
        return phantom, exposure, attenuation(phantom, exposure, step_mm=3.0)

    for turn, (phantom, exposure, lines) in in_turns(projected, patients, turns, rng):
        mark = np.zeros(exposure.shape_ji, dtype=np.float32)
        if turn % 2:
            placed = phantom.with_nodules([rng.uniform(15, 30)], int(rng.integers(2**40)))
            lung_hu = phantom.anatomy.hu_lung
            chords = ball_attenuation(placed.nodules[0], lung_hu, exposure)
            lines = lines + chords * np.float32(np.exp(rng.uniform(0, np.log(strongest))))
            mark[chords > 0.5 * chords.max()] = 1
        image = developed(lines, rng, photons=float(np.exp(rng.uniform(9, 11.5))))
        pixels = image.astype(np.float32) ** np.float32(rng.uniform(0.8, 1.25))
        yield Sample(
            inputs=prepare_image(image_of_phantom(pixels, exposure), preprocess),
            targets=_cells(mark, exposure, preprocess),
        )


def xray_crops(
    seed: int, preprocess: Preprocess, cells: int, images: int = 700, strongest: float = 1.0
) -> Iterator[Sample]:
    """Give square parts of X-rays, half turned round left to right, without end.

    The images are drawn once, and each is shown many times: projecting costs more than learning.

    Parameters
    ----------
    cells
        Edge of a part, in cells of the map; that of the whole map gives whole images.
    """
    rng = np.random.default_rng(seed)
    drawn = xray_samples(seed, preprocess, patients=min(30, images), turns=50, strongest=strongest)
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
    facts = Facts(modality="DX", body_part="CHEST", view_position="PA")
    return SourceImagePixels(plane=plane, pixels=pixels, facts=facts, series_instance_uid="")
