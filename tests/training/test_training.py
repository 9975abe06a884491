"""Training in small: losses fall, scores are what they say, packages come out whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomai.errors import ConfigError, InputError
from dicomai.findings import Detection, Findings, Segment, Sphere
from dicomai.imaging.geometry import Grid
from dicomai.models import trust
from dicomai.models.package import load
from dicomai.models.registry import BUILTIN
from dicomai.models.runtimes.networks import build
from dicomai.models.steps import Preprocess
from dicomai.phantom import ChestPhantom, Nodule
from dicomai.training import builtin
from dicomai.training.card import nodule_figures, xray_figures
from dicomai.training.evaluation import (
    NoduleScore,
    area_interval,
    area_under_curve,
    dice,
    score_lungs,
    score_nodules,
    unseen_diameters_mm,
    unseen_nodule,
    unseen_scan,
)
from dicomai.training.losses import dice_and_binary_cross_entropy, dice_and_cross_entropy
from dicomai.training.recipes import RECIPES
from dicomai.training.samples import (
    Sample,
    in_turns,
    lung_samples,
    nodule_samples,
    xray_crops,
    xray_samples,
)
from dicomai.training.trainer import Schedule, train
from tests.conftest import ROOT

COARSE = Preprocess(spacing_mm=(9.0, 9.0, 9.0), clip=(-1024, 300))
# In bfloat16 torch 2.13 fills gradients of what is 2 voxels wide with what was in memory before.
IN_SMALL = Schedule(steps=1, batch=1, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_loss_falls_within_a_few_steps() -> None:
    torch.manual_seed(1)
    network = build("unet3d", {"out_channels": 3, "channels": (4, 8)})
    samples = lung_samples(1, COARSE, (20, 24, 24))
    seen: list[int] = []
    losses = train(
        network,
        samples,
        dice_and_cross_entropy,
        Schedule(steps=12, batch=1, learning_rate=1e-2),
        lambda step, loss: seen.append(step),
    )
    assert seen == list(range(12))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert not network.training


def test_the_same_seeds_train_the_same_network() -> None:
    def trained() -> list[float]:
        torch.manual_seed(2)
        network = build("unet3d", {"out_channels": 3, "channels": (4, 8)})
        schedule = Schedule(steps=2, batch=1, learning_rate=1e-2)
        samples = lung_samples(4, COARSE, (12, 16, 16))
        return train(network, samples, dice_and_cross_entropy, schedule, lambda step, loss: None)

    assert trained() == trained()


# In a process of its own: gradients know the devices there were when the first one was taken.
ELSEWHERE = """
import torch
from dicomai.models.runtimes.networks import copied
from dicomai.models.runtimes.networks import build
from tests.inference import own_memory
from tests.training.test_training import COARSE, Schedule
from tests.training.test_training import dice_and_cross_entropy, lung_samples, train

own_memory.attached()
for device in (own_memory.DEVICE, "cpu"):
    torch.manual_seed(2)
    network = build("unet3d", {"out_channels": 3, "channels": (4, 8)})
    network = copied(network, device)
    samples = lung_samples(4, COARSE, (12, 16, 16))
    schedule = Schedule(steps=2, batch=1, learning_rate=1e-2)
    print(*train(network, samples, dice_and_cross_entropy, schedule, lambda step, loss: None))
"""


def test_a_network_is_trained_on_the_device_where_it_lies() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    there, here = (list(map(float, line.split())) for line in done.stdout.splitlines())
    assert np.allclose(there, here, atol=1e-4)


def test_lung_samples_name_each_voxel_once() -> None:
    (sample,) = islice(lung_samples(3, COARSE, (24, 32, 32)), 1)
    assert sample.inputs.shape == (1, 24, 32, 32)
    assert sample.targets.shape == (3, 24, 32, 32)
    assert np.array_equal(sample.targets.sum(axis=0), np.ones((24, 32, 32)))
    assert 0 <= sample.inputs.min() <= sample.inputs.max() <= 1
    # Columns grow to the left: the right lung (1) lies before the left one (2).
    right, left = (np.argwhere(sample.targets[each])[:, 2].mean() for each in (1, 2))
    assert right < left


def test_nodule_samples_mark_what_is_bright() -> None:
    preprocess = Preprocess(spacing_mm=(2.0, 2.0, 2.0), clip=(-1024, 300))
    samples = list(islice(nodule_samples(5, preprocess, (32, 32, 32), patients=3), 6))
    marked = [each for each in samples if each.targets.any()]
    assert len(marked) >= 3
    for each in marked:
        assert each.inputs[each.targets > 0].mean() > 0.55


@pytest.mark.parametrize("patients", [1, 2, 5])
def test_no_more_patients_are_kept_than_said(patients: int) -> None:
    drawn: list[int] = []

    def draw() -> int:
        drawn.append(len(drawn))
        return drawn[-1]

    shown = in_turns(draw, patients, 4, np.random.default_rng(1))
    ages = {drawn[-1] - patient for turn, patient in islice(shown, 400)}
    assert ages == set(range(patients))
    assert len(drawn) >= 100


def test_as_many_patients_are_drawn_as_the_cards_say() -> None:
    def drawn(patients: int, turns: int, shown: int) -> int:
        numbers = count()
        rng = np.random.default_rng(1)
        for _ in islice(in_turns(lambda: next(numbers), patients, turns, rng), shown):
            pass
        return next(numbers)

    nodules, xray = (RECIPES[each] for each in ("nodules", "xray"))
    windows = [each.schedule.steps * each.schedule.batch for each in nodules.stages]
    assert f"{sum(drawn(32, 100, each) for each in windows)} in all" in nodules.drawn
    assert f"700 images of {drawn(30, 50, 700)} patients" in xray.drawn


def test_x_ray_samples_take_turns() -> None:
    preprocess = Preprocess(shape_ji=(64, 64), clip_percentiles=(1, 99))
    samples = list(islice(xray_samples(6, preprocess, patients=1, turns=8), 4))
    assert [float(each.targets.max()) for each in samples] == [0, 1, 0, 1]
    assert all(each.targets.shape == (1, 4, 4) for each in samples)
    assert all(each.inputs.shape == (1, 64, 64) for each in samples)


def test_parts_of_x_rays_keep_their_map() -> None:
    preprocess = Preprocess(shape_ji=(64, 64), clip_percentiles=(1, 99))
    samples = list(islice(xray_crops(6, preprocess, cells=2, images=1), 4))
    assert all(each.inputs.shape == (1, 32, 32) for each in samples)
    assert all(each.targets.shape == (1, 2, 2) for each in samples)


def test_losses_are_small_for_what_is_right_and_large_for_what_is_wrong() -> None:
    truth = torch.zeros(1, 3, 4, 4, 4)
    truth[:, 0, :2], truth[:, 1, 2], truth[:, 2, 3] = 1, 1, 1
    sure = 20 * (truth - 0.5)
    assert float(dice_and_cross_entropy(sure, truth)) < 1e-3
    assert float(dice_and_cross_entropy(-sure, truth)) > 1
    one = truth[:, 1:2]
    assert float(dice_and_binary_cross_entropy(20 * (one - 0.5), one)) < 1e-3
    assert float(dice_and_binary_cross_entropy(20 * (0.5 - one), one)) > 1


def test_dice_and_area_under_the_curve_have_their_known_values() -> None:
    a = np.array([True, True, False, False])
    assert dice(a, np.array([True, False, True, False])) == 0.5
    assert dice(~a & a, ~a & a) == 1
    assert area_under_curve(np.array([0.9, 0.4]), np.array([0.4, 0.1])) == 0.875


def test_the_interval_of_an_area_is_that_of_patients_drawn_again() -> None:
    rng = np.random.default_rng(5)
    patients = 60
    own = rng.normal(0, 2, patients)  # the two images of a patient are alike
    negative = own + rng.normal(size=patients)
    positive = own + rng.normal(2.5, 1, patients)
    again = rng.integers(patients, size=(2000, patients))
    areas = [area_under_curve(positive[each], negative[each]) for each in again]
    interval = area_interval(positive, negative)
    assert interval == pytest.approx(np.percentile(areas, [2.5, 97.5]), abs=0.015)
    assert interval == pytest.approx(area_interval(positive[::-1], negative[::-1]))
    # As if all were other patients', it would be another.
    mixed = area_interval(positive, np.roll(negative, 7))
    assert mixed is not None
    assert interval is not None
    assert mixed[1] - mixed[0] > 1.2 * (interval[1] - interval[0])


@pytest.mark.parametrize("scores", [([0.9], [0.1]), ([0.9, 0.8], [0.1, 0.2]), ([1, 1], [1, 1])])
def test_no_interval_is_told_where_none_can_be(scores: tuple[list[float], list[float]]) -> None:
    positive, negative = (np.array(each, dtype=float) for each in scores)
    assert area_interval(positive, negative) is None
    figures = xray_figures(positive, negative, 0.5)
    assert re.search(r"over patients \| [01]\.[05]00 \|", figures)


def test_lungs_that_are_exactly_right_score_so() -> None:
    phantom = ChestPhantom(4)
    matrix = np.zeros((4, 4))
    matrix[2, 0] = matrix[1, 1] = matrix[0, 2] = 4.0
    matrix[3, 3] = 1
    shape = (100, 76, 110)
    matrix[:3, 3] = np.array(phantom.centre_lps_mm) - np.array(shape)[::-1] * 2
    truth = phantom.truth(matrix, shape)
    findings = _findings(matrix, shape)
    code = findings.algorithm.family
    segments = tuple(
        Segment(label=label, tracking_id=label, category=code, type=code, mask=mask)
        for label, mask in (("Right lung", truth.right_lung), ("Left lung", truth.left_lung))
    )
    right, left = score_lungs(
        Findings(
            algorithm=findings.algorithm,
            where=findings.where,
            inputs=(),
            sought="lungs",
            segments=segments,
        ),
        phantom,
    )
    assert (right.side, left.side) == ("right", "left")
    assert right.dice == left.dice == 1
    assert abs(right.volume_error) < 0.01


def _scored(found_at: list[float], *nodules: tuple[float, float]) -> NoduleScore:
    """Score findings along a line against nodules there, each with its place and diameter."""
    findings = _findings(np.eye(4), (2, 2, 2))
    code = findings.algorithm.family
    detections = tuple(
        Detection(
            label="Nodule",
            tracking_id=str(x),
            finding=code,
            region=Sphere(centre_lps_mm=(x, 0.0, 0.0), diameter_mm=5.0),
            probability=0.9,
        )
        for x in found_at
    )
    return score_nodules(
        replace(findings, detections=detections),
        [
            Nodule(
                centre_lps_mm=(x, 0.0, 0.0),
                diameter_mm=diameter,
                volume_mm3=np.pi / 6 * diameter**3,
                hu=30.0,
                side="left",
            )
            for x, diameter in nodules
        ],
    )


def test_each_protocol_shows_chests_with_nodules_and_without() -> None:
    phantom = ChestPhantom(4)
    noise = [unseen_scan(phantom, number).noise_hu for number in range(16)]
    shown = {(each, bool(unseen_diameters_mm(n))) for n, each in enumerate(noise)}
    assert shown == {(each, some) for each in (10, 12, 25, 35) for some in (True, False)}
    # The card tells of eight: each protocol has its nodules in them.
    assert {noise[n] for n in range(8) if unseen_diameters_mm(n)} == set(noise)


def test_nodules_of_all_sizes_lie_in_both_lungs_of_x_rays() -> None:
    phantom = ChestPhantom(4, nodule_diameters_mm=(), vessels=5)
    drawn = [phantom.with_nodules([size], place) for size, place in map(unseen_nodule, range(24))]
    large = {(each.nodules[0].side, each.nodules[0].diameter_mm > 22.5) for each in drawn}
    assert large == {("left", True), ("left", False), ("right", True), ("right", False)}


def test_a_missed_nodule_is_infinitely_far() -> None:
    score = _scored([], (0.0, 10.0))
    assert score.errors_mm == (float("inf"),)
    assert score.false_findings == 0
    score = _scored([30.0], (0.0, 10.0))
    assert score.errors_mm == (float("inf"),)
    assert score.false_findings == 1


def test_one_finding_between_two_nodules_finds_one_of_them() -> None:
    score = _scored([2.0], (0.0, 10.0), (5.0, 10.0))
    assert score.errors_mm == (2.0, float("inf"))
    assert score.false_findings == 0


def test_of_several_findings_in_one_nodule_one_is_right() -> None:
    score = _scored([0.0, 4.0, 8.0, -4.0, -8.0], (0.0, 25.0))
    assert score.errors_mm == (0.0,)
    assert score.false_findings == 4


def test_as_many_nodules_as_can_be_have_a_finding_of_their_own() -> None:
    # The nearest to the first is the only one that the second may have.
    score = _scored([4.0, -4.5], (0.0, 10.0), (8.0, 10.0))
    assert score.errors_mm == (4.5, 4.0)
    assert score.false_findings == 0


def test_a_finding_in_a_nodule_too_small_to_count_is_not_false() -> None:
    score = _scored([2.0], (0.0, 5.0))
    assert (score.errors_mm, score.false_findings) == ((), 0)


def test_a_card_says_where_nothing_was_found() -> None:
    missed = NoduleScore(diameters_mm=(10.0,), errors_mm=(float("inf"),), false_findings=3)
    table = nodule_figures([missed])
    assert "| 0 of 1 (0.00 to 0.79) |" in table
    assert table.count("none found") == 2
    nothing = NoduleScore(diameters_mm=(), errors_mm=(), false_findings=0)
    assert "| 0 of 0 |" in nodule_figures([nothing])


def test_a_card_says_of_how_many_images_a_share_is() -> None:
    positive = np.array([0.9] * 22 + [0.1] * 2)
    negative = np.array([0.1] * 20 + [0.9] * 4)
    table = xray_figures(positive, negative, 0.5)
    # Wilson (1927): (22 + z²/2 ± z √(22 · 2 / 24 + z²/4)) / (24 + z²), z = 1.96.
    assert "| 22 of 24 (0.74 to 0.98) |" in table
    assert "| 20 of 24 (0.64 to 0.93) |" in table


def _findings(matrix: np.ndarray, shape: tuple[int, int, int]) -> Findings:
    package = load(BUILTIN / "chest-ct-lungs")
    return Findings(
        algorithm=package.algorithm,
        where=Grid(shape_kji=shape, index_to_lps=matrix, frame_of_reference_uid="2.25.1"),
        inputs=(),
        sought="lungs",
    )


def test_a_recipe_makes_a_package_with_card_and_pin(tmp_path: Path) -> None:
    recipe = RECIPES["lungs"]
    folder = tmp_path / recipe.package
    folder.mkdir()
    manifest = (BUILTIN / recipe.package / "model.toml").read_text()
    small = manifest.replace("[4.0, 4.0, 4.0]", "[12.0, 12.0, 12.0]")
    small = small.replace("[48, 80, 112]", "[16, 24, 24]")
    assert small != manifest
    (folder / "model.toml").write_text(small)
    arguments = ["lungs", "--into", str(tmp_path)]
    builtin.main([*arguments, "--steps", "2"])
    builtin.main([*arguments, "--measure", "1"])
    package = load(folder)
    text = package.card.read_text()
    assert "| right |" in text
    assert "In numbers: 2 steps of 1 samples" in " ".join(text.split())
    assert "made otherwise" in " ".join(text.split())
    assert "lungs --into FOLDER --steps 2\n" in text
    assert "--measure 1" in text
    assert "Not for" in text
    assert trust.trusts(trust.read_pins(tmp_path / "pins.toml"), package)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--measure", "0", "--steps", "1"],
        ["--measure", "0"],
        ["--measure", "1", "--steps", "1"],
        ["--steps", "0"],
        ["--steps", "-1"],
        ["--threads", "0"],
        ["--from-stage", "1"],
        ["--from-stage", "-1"],
    ],
)
def test_what_would_spoil_weights_is_no_command(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "chest-ct-lungs"
    shutil.copytree(BUILTIN / "chest-ct-lungs", folder)
    before = load(folder)
    with pytest.raises(SystemExit):
        builtin.main(["lungs", "--into", str(tmp_path), *arguments])
    assert load(folder) == before


@pytest.mark.parametrize("what", [["--steps", "1"], ["--measure", "1"], ["--from-stage", "1"]])
def test_what_can_not_be_trained_or_measured_is_told_in_a_sentence(
    what: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "chest-ct-nodules"
    arguments = ["nodules", "--into", str(tmp_path), *what]
    with pytest.raises(SystemExit) as ended:
        builtin.main(arguments)
    assert ended.value.code == 3
    assert "model.toml" in capsys.readouterr().err
    shutil.copytree(BUILTIN / "chest-ct-nodules", folder)
    if what[0] == "--steps":
        return
    (folder / "weights.safetensors").write_bytes(b"cut off")
    with pytest.raises(SystemExit) as ended:
        builtin.main(arguments)
    assert ended.value.code == 3
    assert "weights.safetensors" in capsys.readouterr().err


def test_a_command_that_says_no_folder_touches_none() -> None:
    before = load(BUILTIN / "chest-ct-lungs")
    with pytest.raises(SystemExit):
        builtin.main(["lungs", "--steps", "1"])
    assert load(BUILTIN / "chest-ct-lungs") == before


def test_weights_stay_until_training_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPES["lungs"]
    folder = tmp_path / recipe.package
    shutil.copytree(BUILTIN / recipe.package, folder)
    before = load(folder)
    ends = replace(
        recipe.stages[0],
        samples=lambda preprocess, seed: islice(lung_samples(seed, preprocess, (16, 16, 16)), 1),
        schedule=IN_SMALL,
    )
    monkeypatch.setattr(builtin, "_REPORT_EVERY", 1)
    with pytest.raises(ValueError, match="need at least one array"):
        builtin.train_package(replace(recipe, stages=(ends,)), folder, steps=2)
    assert load(folder) == before
    assert (folder / "weights.safetensors.part").exists()


@pytest.mark.parametrize(
    ("name", "says", "instead"),
    [
        ("lungs", 'axes = "HPL"', 'axes = "HPR"'),
        ("nodules", 'axes = "HPL"', 'axes = "PHL"'),
        ("nodules", 'activation = "sigmoid"', 'activation = "softmax"'),
        ("xray", 'pool = "max"', 'pool = "mean"'),
        ("xray", 'pool = "max", ', ""),
        ("xray", "[192, 192]", "[128, 128]"),
    ],
)
def test_nothing_is_taught_that_the_engine_uses_otherwise(
    name: str, says: str, instead: str, tmp_path: Path
) -> None:
    recipe = RECIPES[name]
    folder = tmp_path / recipe.package
    shutil.copytree(BUILTIN / recipe.package, folder)
    manifest = (folder / "model.toml").read_text()
    assert says in manifest
    manifest = manifest.replace(says, instead)
    if "softmax" in instead:
        manifest = manifest.replace("out_channels = 1", "out_channels = 2")
        manifest = manifest.replace("threshold = 0.5", "threshold = 0.5\nchannel = 1")
    (folder / "model.toml").write_text(manifest)
    before = load(folder)
    with pytest.raises(ConfigError, match=r"Nothing was trained; write"):
        builtin.train_package(recipe, folder, steps=1)
    assert load(folder) == before


@pytest.mark.parametrize("spoilt", ["inputs", "targets"])
def test_training_ends_where_a_loss_is_no_number(spoilt: str, tmp_path: Path) -> None:
    recipe = RECIPES["lungs"]
    folder = tmp_path / recipe.package
    shutil.copytree(BUILTIN / recipe.package, folder)
    before = load(folder)

    def samples(preprocess: Preprocess, seed: int) -> Iterator[Sample]:
        first, second = islice(lung_samples(seed, preprocess, (16, 16, 16)), 2)
        yield first
        getattr(second, spoilt)[:, 3] = np.nan
        yield second

    stage = replace(recipe.stages[0], samples=samples, schedule=IN_SMALL)
    with pytest.raises(InputError, match=r"step 2 of 2: the loss is nan"):
        builtin.train_package(replace(recipe, stages=(stage,)), folder, steps=2)
    assert load(folder) == before


def test_weights_that_were_trained_anew_keep_no_figures_of_others(tmp_path: Path) -> None:
    recipe = RECIPES["lungs"]
    folder = tmp_path / recipe.package
    shutil.copytree(BUILTIN / recipe.package, folder)
    stage = replace(
        recipe.stages[0],
        samples=lambda preprocess, seed: lung_samples(seed, preprocess, (16, 16, 16)),
        schedule=IN_SMALL,
    )
    recipe = replace(recipe, stages=(stage, stage))
    assert "| right |" in load(folder).card.read_text()
    builtin.train_package(recipe, folder, steps=1)
    builtin.train_package(recipe, folder, steps=2, from_stage=1)
    package = load(folder)
    assert "| right |" not in package.card.read_text()
    runs = builtin.runs_of(package.weights)
    text = builtin.card(recipe, "lungs", package.manifest, 1, "", runs)
    assert "1 steps of 1 and 1 steps of 1 and 2 steps of 1 samples" in " ".join(text.split())
    assert "FOLDER --steps 1\n" in text
    assert "FOLDER --steps 2 --from-stage 1\n" in text
    builtin.train_package(recipe, folder, steps=1)  # from the beginning
    assert len(builtin.runs_of(package.weights)) == 1


def test_the_cards_say_what_the_recipes_say() -> None:
    for name, recipe in RECIPES.items():
        package = load(BUILTIN / recipe.package)
        text = package.card.read_text()
        phantoms = re.search(r"On (\d+) phantoms", text)
        assert phantoms
        figures = "\n".join(line for line in text.splitlines() if line.startswith("|"))
        runs = builtin.runs_of(package.weights)
        written = builtin.card(recipe, name, package.manifest, int(phantoms[1]), figures, runs)
        assert runs == builtin.WHOLE
        assert text == written, f"measure {package.name} again"


def test_the_cards_belong_to_the_weights() -> None:
    pins = trust.read_pins(BUILTIN / "pins.toml")
    for recipe in RECIPES.values():
        package = load(BUILTIN / recipe.package)
        assert trust.trusts(pins, package), f"measure {package.name} again"
        assert package.weights.stat().st_size < 2_000_000
