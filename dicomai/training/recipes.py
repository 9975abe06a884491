"""The recipes of the project's own packages: samples, losses, stages, and what their cards say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from dicomai.models.runtimes.torch_runtime import LoadedModel
from dicomai.models.steps import Argument, Preprocess
from dicomai.training import card as cards
from dicomai.training.evaluation import evaluate_lungs, evaluate_nodules, evaluate_xray
from dicomai.training.losses import (
    cells,
    dice_and_binary_cross_entropy,
    dice_and_cross_entropy,
    whole_and_cells,
)
from dicomai.training.samples import CELL, Sample, lung_samples, nodule_samples, xray_crops
from dicomai.training.trainer import Loss, Schedule

_CT_SERIES: Final = (
    "as CT series of four protocols (slices 1.5 to 3 mm apart, 256 to 320 pixels across, noise of "
    "10 to 35 HU), taken through the whole engine, and measured where the images lie"
)

Progress = Callable[[str], None]


def _lungs(preprocess: Preprocess, seed: int) -> Iterator[Sample]:
    return lung_samples(seed, preprocess, (48, 80, 80))


def _nodules(preprocess: Preprocess, seed: int) -> Iterator[Sample]:
    return nodule_samples(seed, preprocess, (32, 32, 32))


def _plain_parts(preprocess: Preprocess, seed: int) -> Iterator[Sample]:
    return xray_crops(seed, preprocess, cells=4, strongest=6.0)


def _xray_parts(preprocess: Preprocess, seed: int) -> Iterator[Sample]:
    return xray_crops(seed, preprocess, cells=6, strongest=2.0)


def _xrays(preprocess: Preprocess, seed: int) -> Iterator[Sample]:
    return xray_crops(seed, preprocess, cells=12)


def _lung_figures(model: LoadedModel, phantoms: int, progress: Progress) -> str:
    return cards.lung_figures(evaluate_lungs(model, phantoms, progress))


def _nodule_figures(model: LoadedModel, phantoms: int, progress: Progress) -> str:
    return cards.nodule_figures(evaluate_nodules(model, phantoms, progress))


def _xray_figures(model: LoadedModel, phantoms: int, progress: Progress) -> str:
    positive, negative = evaluate_xray(model, phantoms, progress)
    threshold = model.package.manifest.output[0].threshold
    return cards.xray_figures(positive, negative, threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a training: what is shown, what is made small, how long and how fast.

    `samples` gives samples without end, for a preprocessing and a seed.
    """

    samples: Callable[[Preprocess, int], Iterator[Sample]]
    loss: Loss
    schedule: Schedule
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one package is trained and measured.

    Attributes
    ----------
    seed
        Of the first weights.
    rare
        Hardly a voxel holds what is sought, so the last layer starts by saying so.
    teaches
        What its samples and losses are made for, by key of the manifest.
    figures
        Measures a model on so many phantoms, and gives the table for its card.
    drawn, made, shown, remark
        What the card says: of the samples, of training, of the images that were measured, and
        beyond the figures.
    """

    package: str
    seed: int
    teaches: Mapping[str, Argument]
    stages: tuple[Stage, ...]
    figures: Callable[[LoadedModel, int, Progress], str]
    drawn: str
    made: str
    shown: str
    remark: str
    rare: bool = False


RECIPES: Final[dict[str, Recipe]] = {
    "lungs": Recipe(
        package="chest-ct-lungs",
        seed=11,
        teaches={"preprocess.axes": "HPL", "infer.activation": "softmax"},
        stages=(
            Stage(
                samples=_lungs,
                loss=dice_and_cross_entropy,
                schedule=Schedule(steps=900, batch=1, learning_rate=4e-3, bfloat16=True),
                seed=11,
            ),
        ),
        figures=_lung_figures,
        drawn="analytic chests. Each sample is a new patient with a size, shape, tissue, vessels "
        "and contrast of its own, seen elsewhere in the chest, with noise of another strength and "
        "grain; about a third of them end with a circle, as a reconstruction does. They are drawn "
        "on the grid of the model: slice thickness and kernel are always the same.",
        made="A small 3-D U-Net learned to tell background, right and left lung in windows of "
        "4 mm voxels.",
        shown=_CT_SERIES,
        remark="A lung holds its vessels, bronchi and nodules, but not the mediastinum or the main "
        "bronchi outside it. On the one chest CT of a patient that was looked at (LIDC-IDRI-0001, "
        "not used in training) both lungs are found on their sides and end where they end; a "
        "piece of the trachea above its fork is taken for right lung, and the lowest tip of the "
        "left lung is missed.",
    ),
    "nodules": Recipe(
        package="chest-ct-nodules",
        seed=12,
        teaches={"preprocess.axes": "HPL", "infer.activation": "sigmoid"},
        stages=(
            Stage(
                samples=_nodules,
                loss=dice_and_binary_cross_entropy,
                schedule=Schedule(steps=1000, batch=6, learning_rate=5e-3, bfloat16=True),
                seed=12,
            ),
            Stage(
                samples=_nodules,
                loss=partial(dice_and_binary_cross_entropy, hardest=0.003),
                schedule=Schedule(steps=600, batch=6, learning_rate=2e-3, bfloat16=True),
                seed=1012,
            ),
        ),
        figures=_nodule_figures,
        drawn="analytic chests. 32 patients are kept, seen in slices of 2, 2.5 or 3 mm, and after "
        "every 100 windows a new one takes the place of the oldest: 158 in all. Each window lies "
        "elsewhere, is mirrored in its own way, and has noise of another strength and grain; "
        "kernel and field of view are always the same.",
        made="A small 3-D U-Net learned to mark nodules in windows of 2 mm voxels, half of which "
        "lay about one; then it looked more at what it got wrong.",
        shown=_CT_SERIES,
        remark="The phantoms' nodules are solid, almost round, and surrounded by lung: nothing was "
        "learned of ground glass, of nodules that touch the pleura, or of spiculation. The "
        "interval of the nodules takes those of one patient for as many patients, so it is "
        "narrow.",
        rare=True,
    ),
    "xray": Recipe(
        package="chest-xray-nodule",
        seed=13,
        teaches={
            "preprocess.shape_ji": (12 * CELL, 12 * CELL),
            "infer.arguments.pool": "max",
            "infer.activation": "sigmoid",
        },
        stages=(
            Stage(
                samples=_plain_parts,
                loss=cells,
                schedule=Schedule(steps=800, batch=32, learning_rate=3e-3),
                seed=13,
            ),
            Stage(
                samples=_xray_parts,
                loss=cells,
                schedule=Schedule(steps=800, batch=24, learning_rate=2e-3),
                seed=1013,
            ),
            Stage(
                samples=_xrays,
                loss=whole_and_cells,
                schedule=Schedule(steps=400, batch=16, learning_rate=1e-3),
                seed=2013,
            ),
        ),
        figures=_xray_figures,
        drawn="analytic chests, projected. Each of the three stages draws 700 images of 43 "
        "patients once, half of them with one nodule, and shows them many times: parts of them, "
        "or all, half of them mirrored. Of the images of one patient, nodule, noise and contrast "
        "differ; the way of the rays is always the same.",
        made="A small residual network learned to tell projected chests with a nodule of 15 to "
        "30 mm from those without: first in parts of images with plain nodules, told where they "
        "are, then in whole images with faint ones.",
        shown="each as one X-ray without a nodule and one with, all of one geometry, "
        "taken through the whole engine",
        remark="A nodule may lie behind heart or diaphragm, where little of it shows. The "
        "probability is not calibrated.",
    ),
}
