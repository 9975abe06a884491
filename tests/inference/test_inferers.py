"""Windows cover everything once blended, and are passed over only where nothing is to be seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dicomai.inference import inferers, memory
from dicomai.inference.inferers import SlidingWindowInferer, WholeInferer, importance, windows_of


def double(batch: Tensor) -> Tensor:
    return torch.cat((batch * 2, batch + 1), dim=1)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 13)] * 3),
    window=st.tuples(*[st.integers(1, 9)] * 3),
    overlap=st.floats(0, 0.9),
    blend=st.sampled_from(["gaussian", "constant"]),
    batch=st.integers(1, 4),
)
def test_windows_say_what_the_whole_says(
    shape: tuple[int, int, int],
    window: tuple[int, int, int],
    overlap: float,
    blend: str,
    batch: int,
) -> None:
    inputs = torch.rand((1, *shape), generator=torch.Generator().manual_seed(1))
    inferer = SlidingWindowInferer(window_kji=window, overlap=overlap, blend=blend, batch=batch)
    np.testing.assert_allclose(
        inferer(inputs, double), WholeInferer()(inputs, double), rtol=1e-4, atol=1e-5
    )


def test_every_network_sees_whole_windows() -> None:
    seen: list[tuple[int, ...]] = []

    def network(batch: Tensor) -> Tensor:
        seen.append(tuple(batch.shape))
        return batch

    inferer = SlidingWindowInferer(window_kji=(4, 8, 8), overlap=0.5, batch=3)
    inferer(torch.zeros((1, 3, 20, 9)), network)
    assert {shape[1:] for shape in seen} == {(1, 4, 8, 8)}
    assert max(shape[0] for shape in seen) <= 3


def test_what_is_told_of_a_gpu_is_one_pass_ahead_of_it_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[int] = []
    told: list[tuple[int, int]] = []
    lead, gpu = inferers._Lead, torch.device("cuda:1")

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            assert blocking  # or the processor would spin

        def record(self, stream: torch.device) -> None:
            assert stream == gpu
            self.number = len(told) + 1

        def synchronize(self) -> None:
            passes.append(self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    monkeypatch.setattr(inferers, "_Lead", lambda _: lead(gpu))
    inferer = SlidingWindowInferer(
        window_kji=(4, 4, 4),
        overlap=0.0,
        batch=2,
        progress=lambda _: told.append((len(told) + 1, len(passes))),
    )
    inferer(torch.zeros((1, 4, 8, 16)), lambda batch: batch)
    assert told == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert passes == [1, 2, 3]


def test_windows_without_what_is_wanted_are_passed_over() -> None:
    wanted = np.zeros((8, 8, 32), dtype=np.bool_)
    wanted[:, :, :8] = True
    count = 0

    def network(batch: Tensor) -> Tensor:
        nonlocal count
        count += len(batch)
        return torch.ones_like(batch)

    inputs = torch.zeros((1, 8, 8, 32))
    out = SlidingWindowInferer(window_kji=(8, 8, 8), overlap=0, wanted=wanted, fraction=0.5)(
        inputs, network
    )
    assert count == 1
    assert out[..., :8].min() == 1
    assert out[..., 8:].max() == 0
    nothing = SlidingWindowInferer(
        window_kji=(8, 8, 8), wanted=np.zeros_like(wanted), fraction=0.5, channels=3
    )(inputs, network)
    assert nothing.shape == (3, 8, 8, 32)
    assert not nothing.any()


def test_the_last_window_ends_with_the_volume() -> None:
    windows = list(windows_of((10, 4, 4), (4, 4, 4), 0.25))
    assert [(part.start, part.stop) for part, *_ in windows] == [(0, 4), (3, 7), (6, 10)]


@pytest.mark.parametrize("size", [(7, 7, 7), (8, 6, 4)])
def test_gaussian_weights_are_even_and_never_nothing(size: tuple[int, int, int]) -> None:
    weight = importance(size, "gaussian").numpy()
    np.testing.assert_allclose(weight, weight[::-1, ::-1, ::-1])
    assert weight.max() == 1
    assert weight.min() >= 1e-3


def test_progress_ends_at_one() -> None:
    told: list[float] = []
    inferer = SlidingWindowInferer(window_kji=(4, 4, 4), batch=2, progress=told.append)
    inferer(torch.zeros((1, 9, 9, 9)), double)
    assert told == sorted(told)
    assert told[-1] == 1


@pytest.mark.parametrize("seen", [slice(20, 26), slice(0, 6), slice(0, 0)])
def test_slices_that_no_window_reached_have_as_many_channels_as_the_others(seen: slice) -> None:
    wanted = np.zeros((26, 8, 8), dtype=np.bool_)
    wanted[seen] = True
    inferer = SlidingWindowInferer(window_kji=(6, 8, 8), wanted=wanted, fraction=0.1, channels=2)
    slabs = [
        slab.clone()
        for slab in inferer.slabs(
            torch.zeros(1, 26, 8, 8), lambda batch: batch.expand(-1, 3, -1, -1, -1) + 1
        )
    ]
    assert {len(slab) for slab in slabs} == {3 if wanted.any() else 2}
    whole = torch.cat(slabs, dim=1)
    assert whole.shape[1:] == (26, 8, 8)
    assert (whole[:, seen] == 1).all()
    assert whole.sum() <= 3 * 8 * 8 * 12


def test_sums_in_half_precision_are_nearly_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.rand((1, 20, 17, 30), generator=torch.Generator().manual_seed(1))
    inferer = SlidingWindowInferer(window_kji=(8, 8, 8), overlap=0.5)
    exact = inferer(inputs, lambda batch: batch)
    monkeypatch.setattr(memory, "_WHOLE_PRECISION_BYTES", 0)
    (slab, *_) = inferer.slabs(inputs, lambda batch: batch)
    assert slab.dtype == torch.float16
    torch.testing.assert_close(inferer(inputs, lambda batch: batch), exact, atol=4e-3, rtol=0)
