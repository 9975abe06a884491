"""How the project's own packages are made: `python -m dicomai.training.builtin lungs`.

A recipe takes network, preprocessing and window from the package's `model.toml`, trains on phantoms
and writes the weights beside it; `evaluate` then measures on phantoms that training never saw, and
writes the card.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dicomai.models.manifest import MANIFEST_NAME, Manifest
from dicomai.models.manifest import read as read_manifest
from dicomai.models.registry import BUILTIN
from dicomai.models.runtimes.networks import build
from dicomai.training.losses import dice_and_binary_cross_entropy, dice_and_cross_entropy
from dicomai.training.samples import Sample, lung_samples, nodule_samples, xray_samples
from dicomai.training.trainer import Loss, Schedule, train

_REPORT_EVERY: Final = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one package is trained."""

    package: str
    loss: Loss
    schedule: Schedule
    seed: int

    def samples(self, manifest: Manifest) -> Iterator[Sample]:
        """Give the samples of this package, without end."""
        window = manifest.infer.window_kji
        if self.package == "chest-xray-nodule":
            return xray_samples(self.seed, manifest.preprocess)
        assert window is not None
        if self.package == "chest-ct-lungs":
            return lung_samples(self.seed, manifest.preprocess, window)
        return nodule_samples(self.seed, manifest.preprocess, window)


def _nodule_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return dice_and_binary_cross_entropy(logits, targets, positive_weight=3.0)


RECIPES: Final[dict[str, Recipe]] = {
    "lungs": Recipe(
        package="chest-ct-lungs",
        loss=dice_and_cross_entropy,
        schedule=Schedule(steps=900, batch=1, learning_rate=4e-3),
        seed=11,
    ),
    "nodules": Recipe(
        package="chest-ct-nodules",
        loss=_nodule_loss,
        schedule=Schedule(steps=900, batch=3, learning_rate=4e-3),
        seed=12,
    ),
    "xray": Recipe(
        package="chest-xray-nodule",
        loss=nn.functional.binary_cross_entropy_with_logits,
        schedule=Schedule(steps=700, batch=16, learning_rate=2e-3),
        seed=13,
    ),
}


def train_package(
    recipe: Recipe, folder: Path, *, steps: int | None = None, resume: bool = False
) -> list[float]:
    """Train a package's network and write its weights into its folder; return the losses.

    Parameters
    ----------
    folder
        Holds the `model.toml`.
    steps
        Instead of those of the recipe.
    resume
        Start from the weights that are there, with other samples.
    """
    log = structlog.get_logger("dicomai.training").bind(model=recipe.package)
    manifest = read_manifest(folder / MANIFEST_NAME)
    weights = folder / manifest.weights
    torch.manual_seed(recipe.seed)
    network = build(manifest.infer.network, manifest.infer.arguments)
    seed = recipe.seed
    if resume:
        network.load_state_dict(load_file(weights))
        seed += 1000
    schedule = recipe.schedule
    if steps is not None:
        schedule = Schedule(steps=steps, batch=schedule.batch, learning_rate=schedule.learning_rate)
    recent: list[float] = []

    def report(step: int, loss: float) -> None:
        recent.append(loss)
        if (step + 1) % _REPORT_EVERY == 0:
            mean = sum(recent) / len(recent)
            log.info("step", step=step + 1, of=schedule.steps, loss=round(mean, 4))
            recent.clear()

    again = Recipe(package=recipe.package, loss=recipe.loss, schedule=schedule, seed=seed)
    losses = train(network, again.samples(manifest), recipe.loss, schedule, report)
    save_file(network.state_dict(), weights)
    return losses


def main(arguments: list[str] | None = None) -> None:
    """Train one of the project's own packages."""
    parser = argparse.ArgumentParser(prog="python -m dicomai.training.builtin")
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--into", type=Path, default=BUILTIN, help="folder of the packages")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--resume", action="store_true", help="start from the weights there")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    recipe = RECIPES[given.model]
    train_package(recipe, given.into / recipe.package, steps=given.steps, resume=given.resume)


if __name__ == "__main__":
    main()
