"""How well a package does its task on phantoms that training never saw.

Nothing is measured on the model's grid: phantoms are scanned as series, go through the engine as a
study would, and are held against their truth on the grid of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.special import expit, logit

from dicomai.findings import Findings, Mask, Sphere
from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Grid
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.pipeline import analyse
from dicomai.inference.run import Model
from dicomai.phantom.anatomy import SIDES
from dicomai.phantom.chest import ChestPhantom, Nodule
from dicomai.phantom.ct import Scan, chest_scan, scanned
from dicomai.phantom.xray import attenuation, chest_exposure, developed
from dicomai.training.samples import image_of_phantom

FIRST_UNSEEN_SEED: Final = 2**41
"""Training draws its patients from below 2**40."""
NEAR_MM: Final = 3.0
SURE_MM: Final = 8.0
_OUT_OF_REACH_MM: Final = 1e6
"""Farther than all distances in a chest together, so that as many as can be are matched."""

Progress = Callable[[str], None]


def dice(first: Mask, second: Mask) -> float:
    """Return the overlap of two masks, 0 to 1; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def area_under_curve(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """Return the probability that a positive scores above a negative; ties count half."""
    above = (positive[:, None] > negative[None, :]).mean()
    same = (positive[:, None] == negative[None, :]).mean()
    return float(above + same / 2)


def area_interval(
    positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]
) -> tuple[float, float] | None:
    """Return between which areas the true one may well lie, at 95 %.

    Two images of one patient are not as good as those of two: Obuchowski, Nonparametric analysis of
    clustered ROC curve data, Biometrics 1997; on the scale of the logit.

    Parameters
    ----------
    positive, negative : (N,) float64
        Each patient's own two, in one order.

    Returns
    -------
    tuple or None
        None where it can't be told: of one patient, or where the patients do not differ.
    """
    patients, area = len(positive), area_under_curve(positive, negative)
    above = np.sign(positive[:, None] - negative[None, :]) / 2 + 0.5
    own = above.mean(axis=1) + above.mean(axis=0) - 2 * area
    if patients < 2 or not own.any() or not 0 < area < 1:
        return None
    error = np.sqrt((own**2).sum() / (patients * (patients - 1)))
    reach = 1.96 * error / (area * (1 - area))
    low, high = (float(expit(logit(area) + each)) for each in (-reach, reach))
    return low, high


def unseen_scan(phantom: ChestPhantom, number: int) -> Scan:
    """Return one of four protocols: slices, pixels and noise differ."""
    spacing, matrix, noise = (
        (2.5, 256, 12.0),
        (1.5, 320, 25.0),
        (3.0, 256, 10.0),
        (2.0, 288, 35.0),
    )[number % 4]
    return chest_scan(
        phantom,
        matrix=matrix,
        slice_spacing_mm=spacing,
        noise_hu=noise,
        from_head=number % 2 == 1,
        padding_hu=-2000 if number % 3 == 2 else None,
    )


def unseen_diameters_mm(number: int) -> list[float]:
    """Return the nodules of a phantom: of four one has none, in each four under another protocol.

    Else what one protocol finds and misses would never be told.
    """
    if number % 4 == (3 - number // 4) % 4:
        return []
    rng = np.random.default_rng(number)
    diameters: list[float] = rng.uniform(5, 25, int(rng.integers(1, 5))).tolist()
    return diameters


def unseen_nodule(number: int) -> tuple[float, int]:
    """Return diameter of the nodule in an X-ray, 15 to 30 mm, and the seed that draws its place.

    Not the seed of the diameter: what is drawn first from both would be the same number, and large
    nodules would lie in one lung and small ones in the other.
    """
    rng = np.random.default_rng(number)
    return float(rng.uniform(15, 30)), int(rng.integers(2**40))


def source_of(phantom: ChestPhantom, scan: Scan) -> SourceVolume:
    """Return a phantom's scan as the engine reads it from files."""
    voxels = scanned(phantom, scan, seed=1)
    if scan.padding_hu is not None:
        voxels[voxels == int(scan.padding_hu)] = -1024
    return SourceVolume(
        grid=Grid(
            shape_kji=scan.shape_kji,
            index_to_lps=scan.index_to_lps,
            frame_of_reference_uid="2.25.1",
            sop_instance_uids=tuple(f"2.25.{k + 2}" for k in range(scan.shape_kji[0])),
        ),
        voxels=voxels,
        facts=Facts(modality="CT"),
        series_instance_uid="2.25.1",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LungScore:
    """Of one lung of one phantom; volumes in mL."""

    side: str
    dice: float
    volume_ml: float
    truth_ml: float

    @property
    def volume_error(self) -> float:
        """Relative, with its sign."""
        return self.volume_ml / self.truth_ml - 1


def score_lungs(findings: Findings, phantom: ChestPhantom) -> tuple[LungScore, ...]:
    """Hold the two segments against the phantom's lungs on the grid of the images."""
    assert isinstance(findings.where, Grid)
    grid = findings.where
    truth = phantom.truth(grid.index_to_lps, grid.shape_kji)
    masks = {"right": truth.right_lung, "left": truth.left_lung}
    found = {segment.label.split()[0].lower(): segment.mask for segment in findings.segments}
    return tuple(
        LungScore(
            side=side,
            dice=dice(found[side], masks[side]),
            volume_ml=float(found[side].sum()) * grid.voxel_mm3 / 1000,
            truth_ml=phantom.lung_volume_ml[side],
        )
        for side in SIDES
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoduleScore:
    """Of one phantom.

    Attributes
    ----------
    errors_mm
        For each nodule of `SURE_MM` or more: distance of the finding that is its own, infinite
        where none is.
    diameters_mm
        Of those nodules.
    false_findings
        Findings that are no nodule's own, however small it be: also a second one in the same.
    """

    diameters_mm: tuple[float, ...]
    errors_mm: tuple[float, ...]
    false_findings: int


def score_nodules(findings: Findings, nodules: Sequence[Nodule]) -> NoduleScore:
    """Hold detections against the phantom's nodules, one to one.

    A finding may be a nodule's own where its centre lies within it, or within `NEAR_MM` of its
    centre. As many as can be are matched, and of such ways the one with the least distance counts.
    """
    centres = np.array(
        [
            each.region.centre_lps_mm
            for each in findings.detections
            if isinstance(each.region, Sphere)
        ]
    ).reshape(-1, 3)
    places = np.array([each.centre_lps_mm for each in nodules]).reshape(-1, 3)
    reach = np.array([max(each.diameter_mm / 2, NEAR_MM) for each in nodules])
    away = np.linalg.norm(places[:, None] - centres[None], axis=2)
    away[away > reach[:, None]] = _OUT_OF_REACH_MM
    own = {
        int(nodule): float(away[nodule, finding])
        for nodule, finding in zip(*linear_sum_assignment(away), strict=True)
        if away[nodule, finding] < _OUT_OF_REACH_MM
    }
    sure = [number for number, each in enumerate(nodules) if each.diameter_mm >= SURE_MM]
    return NoduleScore(
        diameters_mm=tuple(nodules[number].diameter_mm for number in sure),
        errors_mm=tuple(own.get(number, float("inf")) for number in sure),
        false_findings=len(centres) - len(own),
    )


def evaluate_lungs(model: Model, phantoms: int, progress: Progress) -> list[LungScore]:
    """Return the scores of both lungs of some unseen phantoms."""
    scores: list[LungScore] = []
    for number in range(phantoms):
        phantom = ChestPhantom(FIRST_UNSEEN_SEED + number)
        source = source_of(phantom, unseen_scan(phantom, number))
        found = score_lungs(analyse(model, source, (), _silent), phantom)
        progress(
            " ".join(
                f"{each.side}: dice {each.dice:.4f}, volume {each.volume_error:+.2%}"
                for each in found
            )
        )
        scores += found
    return scores


def evaluate_nodules(model: Model, phantoms: int, progress: Progress) -> list[NoduleScore]:
    """Return the scores of some unseen phantoms; one in four has no nodule."""
    scores = []
    for number in range(phantoms):
        phantom = ChestPhantom(
            FIRST_UNSEEN_SEED + number, nodule_diameters_mm=unseen_diameters_mm(number)
        )
        source = source_of(phantom, unseen_scan(phantom, number))
        found = score_nodules(analyse(model, source, (), _silent), phantom.nodules)
        progress(
            f"nodules {[round(each, 1) for each in found.diameters_mm]} mm, "
            f"off by {[round(each, 1) for each in found.errors_mm]} mm, "
            f"{found.false_findings} false"
        )
        scores.append(found)
    return scores


def evaluate_xray(
    model: Model, phantoms: int, progress: Progress
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the probabilities of X-rays with a nodule of 15 to 30 mm, and of those without.

    Both are in the order of the patients. Each patient is projected twice, whole: nothing of
    training's shortcut is in it.
    """
    said: dict[bool, list[float]] = {True: [], False: []}
    for number in range(phantoms):
        diameter_mm, place = unseen_nodule(number)
        rng = np.random.default_rng((FIRST_UNSEEN_SEED, number))
        empty = ChestPhantom(FIRST_UNSEEN_SEED + number, nodule_diameters_mm=())
        for phantom in (empty, empty.with_nodules([diameter_mm], place)):
            exposure = chest_exposure(phantom, rows=512)
            pixels = developed(attenuation(phantom, exposure, step_mm=2.0), rng)
            image = image_of_phantom(pixels.astype(np.float32), exposure)
            (found,) = analyse(model, image, (), _silent).classifications
            said[bool(phantom.nodules)].append(found.probability)
        progress(f"without: {said[False][-1]:.3f}, with: {said[True][-1]:.3f}")
    return np.array(said[True]), np.array(said[False])


def _silent(_stage: str, _fraction: float) -> None: ...
