"""What a GPU resamples is what the host does; where there is none, a device that stands in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from dicomai.imaging.resample import resampling
from dicomai.imaging.volume import SourceVolume
from dicomai.inference import on_device
from dicomai.inference.postprocess import Choice, regions
from dicomai.inference.preprocess import prepare_volume
from dicomai.models.steps import Infer, OnlyWhere, Preprocess
from tests.inference import own_memory

Body = Callable[..., SourceVolume]
DEVICES = [own_memory.DEVICE, *(["cuda:0"] if torch.cuda.is_available() else [])]
SPACINGS = [None, (3.0, 2.5, 2.0), (1.0, 4.0, 1.2)]


@pytest.fixture(autouse=True, scope="module")
def stand_in() -> None:
    own_memory.attached()


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "DEVICE_SLAB_VOXELS", 1 << 14)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("axes", ["HPL", "FAR", "PHL", "LHP"])
def test_a_device_prepares_what_the_host_prepares(
    make_body: Body, axes: str, spacing: tuple[float, float, float] | None, device: str
) -> None:
    one = make_body(lambda lps: lps[..., 0] * 3 + lps[..., 2] ** 2 / 9, extent_mm=60.0)
    source = replace(one, beside=(None, one.voxels[::-1, ::-1].astype(np.float32)))
    way = resampling(source.grid, axes, spacing)
    preprocess = Preprocess(clip=(-150, 200), scale_to=(-1, 1))
    infer = Infer(
        network="unet3d", inferer="sliding_window", window_kji=(9, 9, 9), activation="sigmoid",
        only_where=OnlyWhere(between=(-40.1234, 40.1234), fraction=0.1),
    )  # fmt: skip
    host = prepare_volume(source, way, preprocess, infer, None)
    there = prepare_volume(source, way, preprocess, infer, torch.device(device))
    assert str(there.inputs.device) == device
    np.testing.assert_allclose(there.inputs.cpu(), host.inputs, atol=1e-5)
    assert (host.inputs[1] == -1).all()
    assert host.wanted is not None
    assert there.wanted is not None
    assert 0 < host.wanted.mean() < 1
    assert np.mean(there.wanted != host.wanted) < 1e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("argmax", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("axes", ["HPL", "FAR", "PHL", "LHP"])
def test_a_device_finds_on_the_source_what_the_host_finds(
    make_body: Body,
    axes: str,
    spacing: tuple[float, float, float] | None,
    device: str,
    argmax: bool,
) -> None:
    way = resampling(make_body(lambda lps: lps[..., 0], extent_mm=60.0).grid, axes, spacing)
    noise = np.random.default_rng(1).random((3, *way.model.shape_kji), dtype=np.float32)
    choices = [Choice(0, 0.55), Choice(1, 0.7), Choice(2, 0.999)]
    depth = noise.shape[1]
    cuts = [slice(low, min(low + 7, depth)) for low in range(0, depth, 7)]

    def slabs() -> Iterator[torch.Tensor]:
        for cut in cuts:
            slab = torch.from_numpy(noise[:, cut].copy()).to(device)
            yield slab
            slab.fill_(1)  # it is valid until the next is asked for

    scored = frozenset(choices[:2])
    theirs = regions(noise, way, choices, argmax=argmax, scored=scored)
    ours = on_device.regions(slabs(), way, choices, argmax=argmax, scored=scored)
    assert list(ours) == list(theirs)
    for choice in choices:
        one, other = ours[choice], theirs[choice]
        assert (one is None) == (other is None)
        if one is None or other is None:
            continue
        assert one.everywhere is not None
        assert other.everywhere is not None
        assert np.mean(one.everywhere != other.everywhere) < 1e-4
        assert (one.values is None) == (choice not in scored)
        if one.values is not None and (one.everywhere == other.everywhere).all():
            np.testing.assert_allclose(one.values, other.values, atol=1e-5)


def test_what_is_shifted_or_unevenly_spaced_is_left_to_the_host(make_body: Body) -> None:
    grid = make_body(lambda lps: lps[..., 0], extent_mm=30.0).grid
    steps = tuple(float(k) + (k > 2) * 0.2 for k in range(grid.shape_kji[0]))
    assert on_device.takes(resampling(grid, "HPL", None))
    assert not on_device.takes(resampling(replace(grid, slice_steps=steps), "HPL", None))
