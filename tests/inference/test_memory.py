"""Memory is predicted, and where it does not suffice the run goes down a ladder and says so."""

from __future__ import annotations

import errno
import gc
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dicomai.errors import ResourceError
from dicomai.imaging.geometry import Grid
from dicomai.imaging.mask import blank_mask
from dicomai.imaging.resample import resampling
from dicomai.imaging.volume import SourceVolume
from dicomai.inference import ladder, memory, on_device, runner
from dicomai.inference.memory import need
from dicomai.inference.messages import Analyse, Done, Failed, Progress
from dicomai.inference.pipeline import analyse
from dicomai.inference.runner import Runner
from dicomai.inference.runner_process import RunnerProcess
from dicomai.inference.shared_memory import Channel
from dicomai.models import package as packages
from dicomai.models.runtimes import torch_runtime
from dicomai.models.runtimes.networks import NETWORKS, build, copied
from dicomai.models.runtimes.rehearsal import rehearsed_bytes
from dicomai.models.runtimes.torch_runtime import LoadedModel
from dicomai.process import SpareMemory
from tests.inference import own_memory

Load = Callable[[str], LoadedModel]
Body = Callable[..., SourceVolume]

DEVICES = [own_memory.DEVICE, *(["cuda:0"] if torch.cuda.is_available() else [])]
SEGMENT = """
[[output]]
kind = "segment"
label = "Body"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "123037004", scheme = "SCT", meaning = "Body structure" }
"""
WINDOWS = 'inferer = "sliding_window"\nwindow_kji = [12, 12, 12]\nbatch = 8'


def in_windows(volume_manifest: str, network: str) -> str:
    manifest = volume_manifest.replace('inferer = "whole"', WINDOWS)
    return manifest.replace('network = "bands"', f'network = "{network}"') + SEGMENT


def test_fewer_windows_at_a_time_give_the_same_mask_and_the_result_says_so(
    teller: Load, make_body: Body, volume_manifest: str, windows_seen: list[int]
) -> None:
    source = make_body(lambda lps: np.where(np.abs(lps[..., 0]) < 40, -1000, 0))
    ample = analyse(teller(in_windows(volume_manifest, "bands")), source, (), lambda *_: None)
    narrow = analyse(teller(in_windows(volume_manifest, "narrow")), source, (), lambda *_: None)
    assert windows_seen[:3] == [8, 4, 2]
    assert set(windows_seen[2:]) <= {1, 2}
    assert ample.deviations == ()
    assert narrow.deviations == (
        "The memory of the host did not suffice for 8 windows at a time; the network saw 4.",
        "The memory of the host did not suffice for 4 windows at a time; the network saw 2.",
    )
    assert narrow.segments[0].mask.any()
    np.testing.assert_array_equal(narrow.segments[0].mask, ample.segments[0].mask)


@pytest.fixture(autouse=True, scope="module")
def stand_in() -> None:
    own_memory.attached()


class OnADevice:
    """A model on a device with memory of its own, so much of which is free."""

    def __init__(
        self, model: LoadedModel, free_bytes: int, device: str = own_memory.DEVICE
    ) -> None:
        self.device, self.make_room = torch.device(device), model.make_room
        network = copied(model.network, device)
        self._model = replace(model, device=self.device, network=network)
        self.package, self.pass_bytes = model.package, self._model.pass_bytes
        self.on_cpu = self._model.on_cpu
        self._free_bytes = free_bytes
        self.is_on_cpu, self.silent = False, None

    def free_bytes(self) -> int:
        return self._free_bytes

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._model(inputs)


def test_a_device_goes_down_the_ladder_step_by_step(
    teller: Load, make_body: Body, volume_manifest: str
) -> None:
    source = make_body(lambda lps: np.where(np.abs(lps[..., 0]) < lps[..., 2], -1000, 0))
    model = teller(in_windows(volume_manifest, "bands"))
    shape = (1, 1, 12, 12, 12)
    way = resampling(source.grid, "HPL", (4.0, 4.0, 4.0))
    memory = need(way, inputs=1, channels=1, depth=12, masks=1).with_window(model.pass_bytes(shape))
    plain = analyse(model, source, (), lambda *_: None)

    def told(free_bytes: int) -> tuple[str, ...]:
        found = analyse(OnADevice(model, free_bytes), source, (), lambda *_: None)
        np.testing.assert_array_equal(found.segments[0].mask, plain.segments[0].mask)
        return found.deviations

    short = "The memory of pretended:0 did not suffice"
    fewer = tuple(
        f"{short} for {2 * now} windows at a time; the network saw {now}." for now in (4, 2, 1)
    )
    on_the_host = f"{short}; windows were gathered on the host."
    on_the_cpu = f"{short}; the network ran on the CPU."
    assert told(8 * memory.window + memory.gathered) == ()
    assert told(2 * memory.window + memory.gathered) == fewer[:2]
    assert told(memory.window + memory.gathered - 1) == (*fewer, on_the_host)
    assert told(memory.window - 1) == (*fewer, on_the_host, on_the_cpu)


def test_a_host_that_is_short_is_not_helped_by_a_device_that_does_less(
    teller: Load, make_body: Body, volume_manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnADevice(teller(in_windows(volume_manifest, "bands")), 2**40)
    model.on_cpu = lambda: pytest.fail("The host has no memory for that.")
    asked = iter([2**40, 2**40, *([0] * 20)])  # enough at first, then another process takes it
    monkeypatch.setattr(ladder, "host_free_bytes", lambda: next(asked))
    with pytest.raises(ResourceError, match="the memory of the host"):
        analyse(model, make_body(lambda lps: lps[..., 0]), (), lambda *_: None)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
)
def test_what_the_host_lacks_while_the_network_is_on_a_device_is_said_of_the_host(
    teller: Load,
    make_body: Body,
    volume_manifest: str,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(on_device, "regions", full)  # masks are the host's
    model = OnADevice(teller(in_windows(volume_manifest, "bands")), 2**40)
    model.on_cpu = lambda: pytest.fail("That takes more of the host.")
    with pytest.raises(ResourceError, match="the memory of the host does not suffice"):
        analyse(model, make_body(lambda lps: lps[..., 0]), (), lambda *_: None)


def group(folder: Path, **said: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in said.items():
        (folder / f"memory.{name}").write_text(text)


def test_files_that_the_kernel_keeps_do_not_count_against_the_limit_of_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    own = tmp_path / "own"
    monkeypatch.setattr(memory, "_OWN_GROUP", own)
    own.write_text("4:memory:/old\n0::/system.slice/dicomai.service\n")
    stat = "anon 1000000\nshmem 500000\nactive_file 6000000\ninactive_file 9000000\n"
    inner = tmp_path / "system.slice" / "dicomai.service"
    group(inner, max="16000000\n", current="15900000\n", stat=stat)
    assert memory.host_free_bytes() == 15_100_000
    group(inner.parent, max="9000000\n", current="8000000\n", stat="inactive_file 2000000\n")
    assert memory.host_free_bytes() == 3_000_000
    group(inner, max="max\n", current="15900000\n", stat=stat)
    assert memory.host_free_bytes() == 3_000_000
    own.write_text("0::/../beyond/what/a/container/sees\n")
    assert memory.host_free_bytes() > 16_000_000


def test_slices_of_a_tilted_gantry_are_predicted_to_take_what_they_take() -> None:
    affine = np.array([[0, 0, 1.0, 0], [0.5, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0]])
    grid = Grid(shape_kji=(300, 224, 224), index_to_lps=affine, frame_of_reference_uid="1.2.3")
    tilted = resampling(grid, "HPL", (4.0, 4.0, 4.0))
    assert tilted.upright is not None
    affine[1, 0] = 0
    straight = resampling(replace(grid, index_to_lps=affine), "HPL", (4.0, 4.0, 4.0))
    tracemalloc.start()
    tilted.to_model(np.zeros(grid.shape_kji, np.int16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert need(tilted, inputs=1, channels=1, depth=8, masks=1).host > peak
    assert need(straight, inputs=1, channels=1, depth=8, masks=1).host < peak


def test_a_copy_for_another_device_shares_nothing_with_the_network() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
    elsewhere = copied(network, "meta")
    assert {each.device.type for each in elsewhere.state_dict().values()} == {"meta"}
    assert {each.device.type for each in network.state_dict().values()} == {"cpu"}
    assert elsewhere.state_dict().keys() == network.state_dict().keys()


def narrow_bytes(model: LoadedModel, source: SourceVolume) -> int:
    """So little that windows are gathered on the host."""
    way = resampling(source.grid, "HPL", None)
    memory = need(way, inputs=1, channels=1, depth=32, masks=1)
    return memory.with_window(model.pass_bytes((1, 1, 32, 32, 32))).gathered


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ["plain", "clipped by percentiles", "uneven", "short of memory"])
def test_a_device_finds_what_the_host_finds(
    make_body: Body, tmp_path: Path, device: str, case: str
) -> None:
    source = make_body(lambda lps: np.where(np.abs(lps[..., 0]) < lps[..., 2], -1000, 0))
    if case == "uneven":
        steps = tuple(float(k) + (k > 40) * 0.2 for k in range(source.grid.shape_kji[0]))
        source = replace(source, grid=replace(source.grid, slice_steps=steps))
    clip = "clip_percentiles = [0, 100]" if "percentiles" in case else "clip = [-1000, 1000]"
    package = small_package(tmp_path, "one", clip)
    here = torch_runtime.load(package, "cpu")
    free_bytes = narrow_bytes(here, source) if case == "short of memory" else 2**40
    there = OnADevice(torch_runtime.load(package, device), free_bytes, device)
    one, other = (analyse(model, source, (), lambda *_: None) for model in (here, there))
    assert one.segments[0].mask.any()
    assert np.mean(one.segments[0].mask != other.segments[0].mask) < 1e-3
    assert [each.endswith("gathered on the host.") for each in other.deviations] == [True] * (
        case == "short of memory"
    )


def test_what_a_pass_takes_is_known_without_taking_it() -> None:
    # Input, eight features, float32 each; both live at once, and so do logits and their exponent.
    voxels = 64**3
    found = rehearsed_bytes(nn.Conv3d(1, 8, 3, padding=1), (1, 1, 64, 64, 64))
    assert 4 * voxels * (1 + 8) <= found <= 4 * voxels * (1 + 8 + 8)
    assert rehearsed_bytes(nn.Conv3d(1, 8, 3, padding=1), (2, 1, 64, 64, 64)) == 2 * found


def test_what_is_predicted_for_a_hundred_classes_is_what_they_take(make_body: Body) -> None:
    source = make_body(lambda lps: lps[..., 0] * 0, spacing_kji=(1.0, 0.7, 0.7), extent_mm=30.0)
    grid = replace(source.grid, shape_kji=(300, 512, 512))
    way = resampling(grid, "HPL", (1.5, 1.5, 1.5))
    predicted = need(way, inputs=1, channels=104, depth=96, masks=104).host
    # 2.28 GB are measured (benchmarks/inference.md).
    assert 2.28e9 < predicted < 4e9


def test_a_run_that_will_not_fit_is_refused_before_it_starts(
    teller: Load, make_body: Body, volume_manifest: str
) -> None:
    model = teller(volume_manifest + SEGMENT)
    source = make_body(lambda lps: lps[..., 0] * 0)
    large = replace(
        source, grid=replace(source.grid, shape_kji=(100_000, 4096, 4096)), voxels=source.voxels
    )
    with pytest.raises(ResourceError, match=r"GB will be needed, .* GB are free"):
        analyse(model, large, (), lambda *_: None)


def test_memory_that_an_earlier_run_left_spare_is_there_for_the_next(
    teller: Load, make_body: Body, volume_manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = [64 * 2**30]  # all that the host has
    monkeypatch.setattr(ladder, "host_free_bytes", lambda: 64 * 2**30 - spare[0])
    monkeypatch.setattr(ladder, "release_memory", lambda: None)
    model = teller(in_windows(volume_manifest, "bands"))
    source = make_body(lambda lps: lps[..., 0] * 0)
    with pytest.raises(ResourceError, match=r"0\.0 GB are free"):
        analyse(model, source, (), lambda *_: None)
    monkeypatch.setattr(ladder, "release_memory", lambda: spare.__setitem__(0, 0))
    assert analyse(model, source, (), lambda *_: None).deviations == ()


LIMITED = """
import resource, sys
import torch  # its own share is not what is limited
from dicomai.inference.runner import main
from pathlib import Path
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + {room}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_host_without_memory_is_an_error_of_the_job_and_the_runner_lives_on(
    make_body: Body, tmp_path: Path
) -> None:
    package = small_package(tmp_path, "one")
    source = make_body(lambda lps: lps[..., 0])
    grid = replace(
        source.grid, shape_kji=(512, 512, 512), sop_instance_uids=tuple(map(str, range(512)))
    )
    large = replace(source, grid=grid, voxels=np.zeros((512, 512, 512), np.int16))
    command = (sys.executable, "-c", LIMITED.format(room=1500 * 2**20))

    def ask(runner: RunnerProcess, volume: SourceVolume) -> None:
        request = Analyse(
            package_folder=str(package.folder),
            package_sha256=package.sha256,
            source=volume,
            inputs=(),
        )
        runner.analyse(request, on_progress=lambda *_: None, go_on=lambda: None)

    with RunnerProcess("cpu", command=command) as runner:
        ask(runner, source)
        first = runner.pid
        with pytest.raises(ResourceError, match="does not suffice"):
            ask(runner, large)
        ask(runner, source)
        assert runner.pid == first


def small_package(folder: Path, name: str, clip: str = "clip = [-1000, 1000]") -> packages.Package:
    place = folder / name
    place.mkdir()
    head = f'''
format = 1
name = "{name}"
version = "1.0.0"
manufacturer = "dicomai"
licence = "Apache-2.0"
intended_use = "Tests."
not_for = "Patients."
sought = "Nothing"
[limits]
modality = ["CT"]
uneven_spacing_mm = 1.0
[[input]]
name = "ct"
kind = "volume"
[preprocess]
{clip}
[infer]
network = "unet3d"
arguments = {{ channels = [1] }}
inferer = "sliding_window"
window_kji = [32, 32, 32]
activation = "sigmoid"
'''
    (place / "model.toml").write_text(head + SEGMENT)
    (place / "CARD.md").write_text(f"# {name}\n")
    torch.manual_seed(0)
    save_file(build("unet3d", {"channels": (1,)}).state_dict(), place / "weights.safetensors")
    return packages.load(place)


class Ends:
    """A runner in this process, and what it says to its supervisor."""

    def __init__(
        self, warm_bytes: int = 2**30, answer_bytes: int = 2**30, device: str = "cpu"
    ) -> None:
        self.ours, theirs = Channel.pair()
        self._theirs = Channel(theirs, max_bytes=answer_bytes)
        self.runner = Runner(self._theirs, device, NETWORKS, warm_bytes=warm_bytes)
        self.told: list[str] = []

    def ask(self, package: packages.Package, source: SourceVolume) -> Done | Failed:
        """Return the answer; what was told before lies in `told`."""
        request = Analyse(
            package_folder=str(package.folder),
            package_sha256=package.sha256,
            source=source,
            inputs=(),
        )
        with ThreadPoolExecutor(1) as other:
            other.submit(self.runner.answer, request)
            while True:
                message = self.ours.receive(30)
                if isinstance(message, Done | Failed):
                    return message
                assert isinstance(message, Progress)
                self.told.append(message.stage)

    def close(self) -> None:
        self.ours.close()
        self._theirs.close()


@pytest.fixture
def small_source(make_body: Body) -> SourceVolume:
    return make_body(lambda lps: lps[..., 0], extent_mm=30.0)


def test_models_stay_warm_within_a_budget_and_the_least_recently_used_goes_first(
    small_source: SourceVolume, tmp_path: Path
) -> None:
    one, two, three = (small_package(tmp_path, name) for name in ("one", "two", "three"))
    weights = build("unet3d", {"channels": (1,)}).state_dict().values()
    ends = Ends(warm_bytes=2 * sum(each.numel() * each.element_size() for each in weights))
    for package in (one, two, one):
        assert isinstance(ends.ask(package, small_source), Done)
    assert ends.runner.warm == ("two", "one")
    assert isinstance(ends.ask(three, small_source), Done)
    assert ends.runner.warm == ("one", "three")
    ends.close()


def test_a_model_that_finds_no_memory_takes_that_of_those_that_are_kept(
    small_source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (small_package(tmp_path, name) for name in ("one", "two"))
    ends = Ends()
    fill = torch_runtime.fill

    half_loaded: list[weakref.ref[nn.Module]] = []

    def room_for_one(network: nn.Module, package: packages.Package) -> None:
        assert not any(each() for each in half_loaded), "it still takes memory"
        if ends.runner.warm:
            weights = nn.Linear(1, 1)
            half_loaded.append(weakref.ref(weights))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        fill(network, package)

    monkeypatch.setattr(torch_runtime, "fill", room_for_one)
    assert isinstance(ends.ask(one, small_source), Done)
    assert isinstance(ends.ask(two, small_source), Done)
    assert ends.runner.warm == ("two",)
    assert half_loaded

    def none(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(torch_runtime, "fill", none)
    failed = ends.ask(one, small_source)
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.subject) == ("resource", "the host")
    assert failed.sentence == (
        "Model one: the memory of the host does not suffice: CUDA out of memory. Tried to allocate "
        "20.00 MiB. Give it more."
    )
    ends.close()


def test_a_model_that_finds_no_memory_on_its_device_runs_on_the_cpu_until_it_does(
    small_source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, full = small_package(tmp_path, "one"), True
    to = nn.Module.to

    def moved(network: nn.Module, *to_what: Any, **named: Any) -> nn.Module:
        if full and to_what == (torch.device(own_memory.DEVICE),):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return to(network, *to_what, **named)

    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(LoadedModel, "free_bytes", lambda model: None if model.is_on_cpu else 2**40)
    ends = Ends(device=own_memory.DEVICE)
    short = ends.ask(package, small_source)
    assert isinstance(short, Done)
    assert short.findings.deviations == (
        "The memory of pretended:0 did not suffice; the network ran on the CPU.",
    )
    assert ends.runner.warm == ()
    full = False
    ample = ends.ask(package, small_source)
    assert isinstance(ample, Done)
    assert ample.findings.deviations == ()
    assert ends.runner.warm == ("one",)
    ends.close()


def test_what_holds_a_network_in_circles_leaves_its_memory_to_others(
    small_source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (small_package(tmp_path, name) for name in ("one", "two"))
    fill, kept = torch_runtime.fill, []

    def room_for_one(network: nn.Module, package: packages.Package) -> None:
        if any(each() for each in kept):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        fill(network, package)
        network.circle = [network]  # as an error that refers to the frames that it came through
        kept.append(weakref.ref(network))

    monkeypatch.setattr(torch_runtime, "fill", room_for_one)
    ends = Ends()
    gc.disable()
    try:
        assert isinstance(ends.ask(one, small_source), Done)
        assert isinstance(ends.ask(two, small_source), Done)
    finally:
        gc.enable()
        ends.close()


@pytest.mark.parametrize(
    "full",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_a_host_without_memory_for_a_network_is_not_told_as_its_device_s(
    full: Exception, small_source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, tries = small_package(tmp_path, "one"), []

    def once(network: nn.Module, package: packages.Package) -> None:
        tries.append(package.name)
        if len(tries) == 1:
            raise full

    monkeypatch.setattr(torch_runtime, "fill", once)
    ends = Ends(device=own_memory.DEVICE)
    failed = ends.ask(package, small_source)
    assert isinstance(failed, Failed), failed.findings.deviations
    assert (failed.kind, failed.subject) == ("resource", "the host")
    assert tries == ["one"]
    ends.close()


def test_a_gpu_s_spare_memory_is_given_back_when_no_study_comes(
    small_source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Event()
    monkeypatch.setattr(torch.cuda, "empty_cache", given_back.set)
    monkeypatch.setattr(runner, "SpareMemory", partial(SpareMemory, 0.05))
    ends = Ends()
    assert isinstance(ends.ask(small_package(tmp_path, "one"), small_source), Done)
    assert given_back.wait(20)
    ends.close()


@pytest.mark.parametrize("stage", ["load", "infer"])
def test_what_takes_long_and_is_not_stuck_is_told_while_it_lasts(
    small_source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    package, ends, load = small_package(tmp_path, "one"), Ends(), torch_runtime.load

    def told_again() -> None:
        give_up = time.monotonic() + 20
        while ends.told.count(stage) < 3:
            assert time.monotonic() < give_up, "it was not told"
            time.sleep(0.01)

    def slow(*args: Any, **named: Any) -> LoadedModel:
        model = load(*args, **named)
        if stage == "load":
            told_again()
            return model

        def compiled(shown: torch.Tensor) -> torch.Tensor:
            told_again()
            return torch.Tensor(model.network(shown))

        return replace(model, compiled=compiled)

    monkeypatch.setattr(torch_runtime, "load", slow)
    assert isinstance(ends.ask(package, small_source), Done)
    ends.close()


def test_an_answer_that_cannot_be_sent_is_told_in_words(
    small_source: SourceVolume, tmp_path: Path
) -> None:
    ends = Ends(answer_bytes=2000)
    failed = ends.ask(small_package(tmp_path, "one"), small_source)
    assert isinstance(failed, Failed)
    assert "at most 2000 are allowed" in failed.sentence
    ends.close()


def test_a_mask_beyond_all_memory_is_a_want_of_memory() -> None:
    with pytest.raises(MemoryError):
        blank_mask((2**21, 2**13, 2**13))
