"""Images of several jobs that wait for the device are shown to the network together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Plane
from dicomai.imaging.image import SourceImagePixels
from dicomai.inference.messages import Analyse, Done, Failed, Progress
from dicomai.inference.runner import Runner
from dicomai.inference.shared_memory import Channel
from dicomai.models import package as packages
from tests.inference import own_memory

MANIFEST = """
format = 1
name = "brightest"
version = "1.0.0"
manufacturer = "dicomai"
licence = "Apache-2.0"
intended_use = "Tests."
not_for = "Patients."
sought = "Brightness"
[limits]
modality = ["DX"]
[[input]]
name = "image"
kind = "image"
[preprocess]
shape_ji = [8, 8]
clip = [-100, 100]
scale_to = [-1, 1]
[infer]
network = "brightest"
inferer = "whole"
activation = "sigmoid"
batch = 4
[[output]]
kind = "class"
label = "Bright"
finding = { value = "1", scheme = "99TEST", meaning = "Bright" }
"""


class Brightest(nn.Module):
    """Says how bright an image is; the first one keeps the device until it may go."""

    go: ClassVar[threading.Event] = threading.Event()
    seen: ClassVar[list[int]] = []
    sees = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "meta":
            return x.amax(dim=(2, 3))
        if x.device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        self.seen.append(len(x))
        self.sees.set()
        self.go.wait(60)
        if bool((x.amax(dim=(1, 2, 3)) > 0.95).any()):
            raise ZeroDivisionError("too bright")
        return x.amax(dim=(2, 3))


Two = tuple[Channel, Runner, packages.Package]


@pytest.fixture
def ends(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Two]:
    """A channel, a runner on the CPU or the device of a parameter, and a package."""
    own_memory.attached()
    Brightest.go.clear()
    Brightest.seen.clear()
    Brightest.sees.clear()
    folder = tmp_path / "brightest"
    folder.mkdir()
    (folder / "model.toml").write_text(MANIFEST)
    (folder / "CARD.md").write_text("# Brightest\n")
    save_file({}, folder / "weights.safetensors")
    ours, theirs = Channel.pair()
    at_other_end = Channel(theirs)
    device = getattr(request, "param", "cpu")
    yield ours, Runner(at_other_end, device, {"brightest": Brightest}), packages.load(folder)
    Brightest.go.set()
    ours.close()
    at_other_end.close()


def image(brightness: float) -> SourceImagePixels:
    return SourceImagePixels(
        plane=Plane(shape_ji=(8, 8), spacing_ji_mm=None, sop_instance_uid="1.2.3"),
        pixels=np.full((8, 8), brightness, np.float32),
        facts=Facts(modality="DX"),
        series_instance_uid="1.2",
        headers=(),
    )


def asked(runner: Runner, package: packages.Package, number: int, bright: float) -> Thread:
    """A thread that asks the runner about an image."""
    request = Analyse(
        package_folder=str(package.folder),
        package_sha256=package.sha256,
        source=image(bright),
        inputs=(),
        number=number,
    )
    thread = Thread(target=runner.answer, args=(request,))
    thread.start()
    return thread


def test_images_that_wait_are_shown_together_and_each_gets_its_own_answer(ends: Two) -> None:
    ours, runner, package = ends
    brightness = {1: 10.0, 2: -50.0, 3: 80.0, 4: 99.0, 5: 40.0}

    def ask(number: int) -> Thread:
        return asked(runner, package, number, brightness[number])

    def until(wanted: set[tuple[str, int]]) -> None:
        """Read progress until all of it was told."""
        while wanted:
            message = ours.receive(60)
            assert isinstance(message, Progress)
            wanted.discard((message.stage, message.number))

    threads = [ask(1)]
    until({("infer", 1)})
    assert Brightest.sees.wait(60)  # or the first would wait for company too
    threads += [ask(number) for number in (2, 3, 4, 5)]
    until({("wait", number) for number in (2, 3, 4, 5)})
    Brightest.go.set()
    answers: dict[int, Done | Failed] = {}
    while len(answers) < len(brightness):
        message = ours.receive(60)
        if isinstance(message, Done | Failed):
            answers[message.number] = message
    for thread in threads:
        thread.join()
    # Four together; one of them fails, so each by itself.
    assert Brightest.seen == [1, 4, 1, 1, 1, 1]
    failed = answers.pop(4)
    assert isinstance(failed, Failed)
    assert "too bright" in failed.sentence
    for number, answer in answers.items():
        assert isinstance(answer, Done)
        (found,) = answer.findings.classifications
        expected = 1 / (1 + np.exp(-brightness[number] / 100))
        assert found.probability == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ends", ["cpu", own_memory.DEVICE], indirect=True)
def test_an_image_that_takes_the_cpu_long_is_told_while_it_lasts(ends: Two) -> None:
    ours, runner, package = ends
    thread = asked(runner, package, 1, 10.0)
    assert Brightest.sees.wait(60)
    told = 0
    while told < 10:  # what was told before it began is not so much
        message = ours.receive(20)
        assert isinstance(message, Progress), "nothing is told"
        told += message.stage == "infer"
    Brightest.go.set()
    thread.join()
