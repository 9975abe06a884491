"""However many classes a package has, neither all of them nor whole masks stand in memory."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomai.imaging.resample import resampling
from dicomai.imaging.volume import SourceVolume
from dicomai.inference import on_device
from dicomai.inference.inferers import SlidingWindowInferer
from dicomai.inference.postprocess import Choice, Region, regions

CLASSES = 104
SIZE = "DICOMAI_TEST_SLABS"
# "300 512 512 96" is the size that is meant, and takes 3 GB and some minutes.
*GIVEN, WINDOW = (int(each) for each in os.environ.get(SIZE, "104 192 192 0").split())
SHAPE = tuple(GIVEN)
GB = 4.0
"""For a source of 300×512×512; that of the test is smaller, and so is what it may take."""

RUN = """
import json, resource, sys
from pathlib import Path
import numpy as np
import torch
sys.path.insert(0, {here!r})
from conftest import TELLERS, Bands, body
from dicomai.inference.pipeline import analyse
from dicomai.models import package
from dicomai.models.runtimes import torch_runtime

class Sharp(Bands):
    def forward(self, x):
        return super().forward(x).mul_(100)

torch.set_num_threads(1)
networks = {{**TELLERS, "sharp": Sharp}}
model = torch_runtime.load(package.load(Path(sys.argv[1])), "cpu", networks=networks)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def source(shape):
    spacing = (1.0, 0.7, 0.7)
    out = body(lambda lps: lps[..., 2] * 0, spacing_kji=spacing, extent_mm=30.0)
    import dataclasses
    voxels = np.zeros(shape, np.int16)
    voxels[:] = (np.arange(shape[0]) * 1000 // shape[0])[:, None, None]
    grid = dataclasses.replace(
        out.grid, shape_kji=shape, sop_instance_uids=tuple(map(str, range(shape[0])))
    )
    return dataclasses.replace(out, grid=grid, voxels=voxels)

analyse(model, source((8, 48, 48)), (), lambda *_: None)
large = source({shape})
before = peak()
findings = analyse(model, large, (), lambda *_: None)
found = sum(int(each.mask.sum()) for each in findings.segments)
print(json.dumps([peak() - before, found, len(findings.segments)]))
"""


def many_classes(volume_manifest: str, head: str, folder: Path) -> Path:
    """Write a package of 104 bands of intensity, side by side."""
    edges = np.linspace(-10, 1010, CLASSES + 1)
    bands = [float(each) for pair in itertools.pairwise(edges) for each in pair]
    manifest = volume_manifest.replace("[4.0, 4.0, 4.0]", "[1.5, 1.5, 1.5]")
    manifest = manifest.replace("bands = [-2000.0, -380.0]", f"bands = {bands}")
    manifest = manifest.replace('network = "bands"', 'network = "sharp"')
    manifest = manifest.replace('activation = "sigmoid"', 'activation = "softmax"')
    manifest = manifest.replace(
        'inferer = "whole"',
        f'inferer = "sliding_window"\nwindow_kji = {[WINDOW] * 3 if WINDOW else [24, 32, 32]}',
    )
    manifest += '[postprocess]\ndecide = "argmax"\n'
    for channel in range(CLASSES):
        manifest += f"""
[[output]]
kind = "segment"
label = "Band {channel}"
channel = {channel}
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "123037004", scheme = "SCT", meaning = "Body structure" }}
"""
    package = folder / "bands"
    package.mkdir()
    (package / "model.toml").write_text(head + manifest)
    (package / "CARD.md").write_text("It has many classes.\n")
    from safetensors.numpy import save_file

    save_file({}, package / "weights.safetensors")
    return package


@pytest.mark.slow
@pytest.mark.timeout(1800 if WINDOW else 180)
def test_a_hundred_classes_take_no_more_than_a_few_slabs_of_them(
    volume_manifest: str, manifest_head: str, tmp_path: Path
) -> None:
    package = many_classes(volume_manifest, manifest_head, tmp_path)
    script = RUN.format(here=str(Path(__file__).parent), shape=SHAPE)
    said = subprocess.run(
        [sys.executable, "-c", script, str(package)], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    taken, found, segments = json.loads(said.stdout)
    print(f"{taken / 1e9:.2f} GB above what the imports take")  # with -s
    assert segments == CLASSES
    assert found == np.prod(SHAPE)
    assert taken < GB * 1e9 * np.prod(SHAPE) / np.prod((300, 512, 512))


@pytest.mark.parametrize("spacing", [None, (3.0, 2.5, 2.0)])
@pytest.mark.parametrize("axes", ["HPL", "FPL", "HAR", "PHL", "LHP"])
def test_slabs_hold_what_the_whole_holds(
    make_body: Callable[..., SourceVolume], axes: str, spacing: tuple[float, float, float] | None
) -> None:
    source = make_body(lambda lps: lps[..., 0], extent_mm=60.0)
    way = resampling(source.grid, axes, spacing)
    noise = np.random.default_rng(1).random((2, *way.model.shape_kji), dtype=np.float32)
    choices = [Choice(0, 0.55), Choice(1, 0.7), Choice(1, 0.999)]
    inferer = SlidingWindowInferer(window_kji=(7, 9, 64), overlap=0.3)
    inputs = torch.from_numpy(noise)
    whole = inferer(inputs, lambda batch: batch).numpy()
    for argmax in (False, True):
        slabs = (slab.numpy() for slab in inferer.slabs(inputs, lambda batch: batch))
        one = regions(slabs, way, choices, argmax=argmax)
        other = regions(whole, way, choices, argmax=argmax)
        for choice in choices:
            ours, theirs = one[choice], other[choice]
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert ours.cut == theirs.cut
                np.testing.assert_array_equal(ours.mask, theirs.mask)
                np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-5)


@pytest.mark.parametrize("way_back", [regions, on_device.regions])
def test_what_no_window_saw_is_of_no_class(
    make_body: Callable[..., SourceVolume], way_back: Callable[..., dict[Choice, Region | None]]
) -> None:
    source = make_body(lambda lps: lps[..., 0], extent_mm=60.0)
    way = resampling(source.grid, "HPL", None)
    depth = way.model.shape_kji[0]
    nothing = torch.zeros(1).expand(3, depth - 4, *way.model.shape_kji[1:])
    first = torch.zeros((3, 4, *way.model.shape_kji[1:]))
    first[0] = 1
    slabs = [nothing, first] if way_back is on_device.regions else [nothing.numpy(), first.numpy()]
    choices = [Choice(0, 0.5), Choice(1, 0.5)]
    found = way_back(iter(slabs), way, choices, argmax=True, scored=frozenset())
    one = found[choices[0]]
    assert one is not None
    assert one.everywhere is not None
    assert not one.everywhere[: depth - 4].any()
    assert one.everywhere[depth - 4 :].all()
    assert found[choices[1]] is None
