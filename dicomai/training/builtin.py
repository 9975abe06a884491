"""How the project's own packages are made: `python -m dicomai.training.builtin lungs --into DIR`.

A recipe takes network and preprocessing from the `model.toml` of the package in that folder, trains
on phantoms and writes the weights beside it. With `--measure`, the weights that are there are held
against phantoms that training never saw, the card is written from what was measured, and the
package is pinned.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import structlog
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dicomai.errors import ConfigError, DicomaiError
from dicomai.models import trust
from dicomai.models.manifest import MANIFEST_NAME, Manifest
from dicomai.models.model_toml import read as read_manifest
from dicomai.models.package import CARD_NAME
from dicomai.models.package import load as load_package
from dicomai.models.runtimes.networks import Classifier2d, UNet3d, build
from dicomai.models.runtimes.torch_runtime import load as load_model
from dicomai.models.steps import Argument
from dicomai.training import card as cards
from dicomai.training.losses import WithMap
from dicomai.training.recipes import RECIPES, Recipe
from dicomai.training.trainer import train

_REPORT_EVERY: Final = 50
_RARE_LOGIT: Final = -4.0
_MODULE: Final = "python -m dicomai.training.builtin"
_UNFINISHED: Final = ".part"
_RUNS: Final = "dicomai.training.runs"
"""Key of what weights say about how they were trained."""
_NOT_MEASURED: Final = "Not measured yet.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training, as its command asked for it.

    Attributes
    ----------
    steps
        Of each stage; None are those of the recipe.
    from_stage
        The first stage of it, counted from 0.
    """

    steps: int | None = None
    from_stage: int = 0


WHOLE: Final = (Run(),)
"""A recipe from its beginning to its end."""


def _write_weights(network: torch.nn.Module, path: Path, runs: tuple[Run, ...]) -> None:
    """Write weights in half precision: they take half the room, and results stay what they are."""
    state = network.state_dict()
    half = {key: w.half() if w.is_floating_point() else w for key, w in state.items()}
    save_file(half, path, metadata={_RUNS: json.dumps([asdict(each) for each in runs])})


def runs_of(weights: Path) -> tuple[Run, ...]:
    """Return the trainings that made weights, in their order.

    Those that do not say are of before they did, and of a whole recipe.
    """
    with safe_open(weights, framework="pt") as file:
        said = (file.metadata() or {}).get(_RUNS)
    return tuple(Run(**each) for each in json.loads(said)) if said else WHOLE


def _check_is_taught(recipe: Recipe, manifest: Manifest, path: Path) -> None:
    """Raise ConfigError where a network would be taught other than the engine uses it.

    It would learn all the same: turned round, right and left change places.
    """
    says: Mapping[str, Argument | None] = {
        "preprocess.axes": manifest.preprocess.axes,
        "preprocess.shape_ji": manifest.preprocess.shape_ji,
        "infer.activation": manifest.infer.activation,
        "infer.arguments.pool": manifest.infer.arguments.get("pool"),
    }
    for key, taught in recipe.teaches.items():
        if says[key] != taught:
            raise ConfigError(
                f"{path}, {key}: the recipe of {recipe.package} trains for {taught!r} only, and "
                f"this is {says[key]!r}. Nothing was trained; write {taught!r} there.",
                subject=str(path),
            )


def train_package(
    recipe: Recipe, folder: Path, *, steps: int | None = None, from_stage: int = 0
) -> list[float]:
    """Train a package's network and write its weights into its folder; return the losses.

    What is learned so far lies beside the weights, which stay as they are until the end. So does
    the card: its figures are of the weights before.

    Parameters
    ----------
    folder
        Holds the `model.toml`.
    steps
        Of each stage, instead of those of the recipe.
    from_stage
        Start with this stage, counted from 0, and the weights that are there.

    Raises
    ------
    ConfigError
        The `model.toml` can't be read, or asks for what the recipe does not teach; or the weights
        to go on from can't be read, or are of another network.
    """
    log = structlog.get_logger("dicomai.training").bind(model=recipe.package)
    manifest = read_manifest(folder / MANIFEST_NAME)
    _check_is_taught(recipe, manifest, folder / MANIFEST_NAME)
    weights = folder / manifest.weights
    unfinished = folder / f"{manifest.weights}{_UNFINISHED}"
    torch.manual_seed(recipe.seed)
    network = build(manifest.infer.network, manifest.infer.arguments)
    if recipe.rare and isinstance(network, UNet3d):
        assert network.last.bias is not None
        torch.nn.init.constant_(network.last.bias, _RARE_LOGIT)
    runs: tuple[Run, ...] = (Run(steps=steps, from_stage=from_stage),)
    if from_stage:
        try:
            network.load_state_dict(load_file(weights))
            runs = (*runs_of(weights), *runs)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"{weights}: nothing can be learned on from it: {reason}. Leave --from-stage out.",
                subject=str(weights),
            ) from None
    taught = WithMap(network) if isinstance(network, Classifier2d) else network
    losses: list[float] = []

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % _REPORT_EVERY == 0:
            mean = sum(losses[-_REPORT_EVERY:]) / _REPORT_EVERY
            log.info("step", step=step + 1, loss=round(mean, 4))
            _write_weights(network, unfinished, runs)

    for stage in recipe.stages[from_stage:]:
        schedule = stage.schedule if steps is None else replace(stage.schedule, steps=steps)
        train(taught, stage.samples(manifest.preprocess, stage.seed), stage.loss, schedule, report)
    _write_weights(network, unfinished, runs)
    (folder / CARD_NAME).write_text(_NOT_MEASURED, encoding="utf-8")
    unfinished.replace(weights)
    return losses


def measure_package(recipe: Recipe, name: str, folder: Path, phantoms: int) -> None:
    """Measure a package on unseen phantoms, write its card, and pin it beside its folder.

    Parameters
    ----------
    name
        Of the recipe, for the commands in the card.
    folder
        Holds `model.toml` and weights.
    """
    log = structlog.get_logger("dicomai.training").bind(model=recipe.package)
    path = folder / CARD_NAME
    read_manifest(folder / MANIFEST_NAME)  # where there is none, there shall be no card
    if not path.exists():
        path.write_text(_NOT_MEASURED, encoding="utf-8")
    model = load_model(load_package(folder), "cpu")
    manifest = model.package.manifest
    figures = recipe.figures(model, phantoms, lambda line: log.info("phantom", measured=line))
    runs = runs_of(model.package.weights)
    path.write_text(card(recipe, name, manifest, phantoms, figures, runs), encoding="utf-8")
    pins = folder.parent / trust.PINS_NAME
    own = {manifest.name: frozenset({load_package(folder).sha256})}
    trust.write_pins(pins, {**trust.read_pins(pins), **own})


def card(
    recipe: Recipe,
    name: str,
    manifest: Manifest,
    phantoms: int,
    figures: str,
    runs: tuple[Run, ...] = WHOLE,
) -> str:
    """Return the card of a package of which some phantoms gave a table of figures.

    `runs` are those that made its weights.
    """
    command = f"{_MODULE} {name} --into FOLDER"
    made = f"{recipe.made} In numbers: {_steps(recipe, runs)} samples, first seed {recipe.seed}, "
    made += "on a CPU. "
    if runs != WHOLE:
        made += (
            f"The recipe, of which all this tells, asks for {_steps(recipe, WHOLE)}: these weights "
            "were made otherwise. "
        )
    return cards.card(
        manifest,
        drawn=recipe.drawn,
        made=f"{made}FOLDER holds a copy of this package:",
        train_command="\n".join(command + _options(each) for each in runs),
        measure_command=f"{command} --measure {phantoms}",
        phantoms=phantoms,
        shown=recipe.shown,
        figures=figures,
        remark=recipe.remark,
    )


def _steps(recipe: Recipe, runs: tuple[Run, ...]) -> str:
    """Return how many steps of how many samples there were, in words."""
    return " and ".join(
        f"{run.steps or stage.schedule.steps} steps of {stage.schedule.batch}"
        for run in runs
        for stage in recipe.stages[run.from_stage :]
    )


def _options(run: Run) -> str:
    steps = "" if run.steps is None else f" --steps {run.steps}"
    return steps + (f" --from-stage {run.from_stage}" if run.from_stage else "")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return count


def main(arguments: list[str] | None = None) -> None:
    """Train, or measure, one of the project's own packages."""
    parser = argparse.ArgumentParser(prog=_MODULE)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--into", type=Path, required=True, help="folder of the packages")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--steps", type=_count, help="instead of the recipe's")
    what.add_argument("--measure", type=_count, metavar="PHANTOMS", help="measure, don't train")
    parser.add_argument("--from-stage", type=int, default=0, help="keep the weights there")
    parser.add_argument("--threads", type=_count, default=1)
    given = parser.parse_args(arguments)
    recipe = RECIPES[given.model]
    if not 0 <= given.from_stage < len(recipe.stages):
        parser.error(f"--from-stage: {given.model} has the stages 0 to {len(recipe.stages) - 1}")
    torch.set_num_threads(given.threads)
    folder = given.into / recipe.package
    try:
        if given.measure is not None:
            measure_package(recipe, given.model, folder, given.measure)
        else:
            train_package(recipe, folder, steps=given.steps, from_stage=given.from_stage)
    except DicomaiError as error:
        parser.exit(error.exit_code, f"{error.sentence}\n")


if __name__ == "__main__":
    main()
