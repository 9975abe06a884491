"""Images of several jobs that wait for the device are shown to the network together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import Tensor, nn

from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Plane
from dicomai.imaging.image import SourceImagePixels
from dicomai.inference.messages import Analyse, Done, Failed, Progress
from dicomai.inference.runner import Runner
from dicomai.inference.shared_memory import Channel
from dicomai.models import package as packages

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
        self.seen.append(len(x))
        self.sees.set()
        self.go.wait(60)
        if bool((x.amax(dim=(1, 2, 3)) > 0.95).any()):
            raise ZeroDivisionError("too bright")
        return x.amax(dim=(2, 3))


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[Channel, Runner, packages.Package]]:
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
    yield ours, Runner(at_other_end, "cpu", {"brightest": Brightest}), packages.load(folder)
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


def test_images_that_wait_are_shown_together_and_each_gets_its_own_answer(
    ends: tuple[Channel, Runner, packages.Package],
) -> None:
    ours, runner, package = ends
    brightness = {1: 10.0, 2: -50.0, 3: 80.0, 4: 99.0, 5: 40.0}

    def ask(number: int) -> threading.Thread:
        request = Analyse(
            package_folder=str(package.folder),
            package_sha256=package.sha256,
            source=image(brightness[number]),
            inputs=(),
            number=number,
        )
        thread = threading.Thread(target=runner.answer, args=(request,))
        thread.start()
        return thread

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
