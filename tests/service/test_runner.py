"""The runner answers, survives what can be survived, and takes nothing down when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bodies import truth, write_package, write_study

from dicomai.errors import ConfigError, CrashError, DeadlineError, InputError, ResourceError
from dicomai.imaging.series import read_series
from dicomai.imaging.volume import SourceVolume, volume_of
from dicomai.inference.inputs import inputs_of
from dicomai.inference.messages import Analyse
from dicomai.inference.runner_process import RunnerDied, RunnerProcess
from dicomai.models.package import Package

Make = Callable[..., Analyse]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> SourceVolume:
    (series,) = read_series(write_study(tmp_path_factory.mktemp("study"), "P1"))
    return volume_of(series.datasets)


@pytest.fixture
def request_of(volume: SourceVolume, tmp_path: Path) -> Make:
    def make(network: str, name: str = "bodies") -> Analyse:
        package: Package = write_package(tmp_path / network, name, network)
        return Analyse(
            package_folder=str(package.folder),
            package_sha256=package.sha256,
            source=replace(volume, headers=()),
            inputs=inputs_of(volume.headers),
        )

    return make


def ignore(*_: object) -> None:
    pass


def test_findings_come_back_with_progress_and_the_runner_stays_warm(
    runner: RunnerProcess, request_of: Make, volume: SourceVolume
) -> None:
    request = request_of("unet3d")
    told: list[str] = []
    findings = runner.analyse(
        request, on_progress=lambda stage, _: told.append(stage), go_on=ignore
    )
    assert np.array_equal(findings.segments[0].mask, truth())
    assert findings.inputs == inputs_of(volume.headers)
    assert list(dict.fromkeys(told)) == ["load", "preprocess", "infer", "postprocess", "measure"]
    assert set(findings.stages_s) == {"preprocess", "infer", "postprocess", "measure"}
    first = runner.pid
    runner.analyse(request, on_progress=ignore, go_on=ignore)
    assert runner.pid == first


def test_sigterm_and_ctrl_c_leave_the_runner_to_its_supervisor(
    runner: RunnerProcess, request_of: Make
) -> None:
    request = request_of("unet3d")
    runner.analyse(request, on_progress=ignore, go_on=ignore)
    first = runner.pid
    assert first is not None
    os.kill(first, signal.SIGTERM)
    os.kill(first, signal.SIGINT)
    runner.analyse(request, on_progress=ignore, go_on=ignore)
    assert runner.pid == first


@pytest.mark.parametrize("network", ["greedy", "hungry"])
def test_no_memory_is_a_resource_error_and_the_runner_lives_on(
    runner: RunnerProcess, request_of: Make, network: str
) -> None:
    with pytest.raises(ResourceError, match="does not suffice"):
        runner.analyse(request_of(network), on_progress=ignore, go_on=ignore)
    runner.analyse(request_of("unet3d"), on_progress=ignore, go_on=ignore)


def test_a_defect_in_a_network_is_a_crash_with_its_reason(
    runner: RunnerProcess, request_of: Make
) -> None:
    with pytest.raises(CrashError, match="ZeroDivisionError: division by zero"):
        runner.analyse(request_of("defective"), on_progress=ignore, go_on=ignore)


def test_a_device_that_failed_is_left_to_a_new_runner(
    runner: RunnerProcess, request_of: Make
) -> None:
    with pytest.raises(RunnerDied, match="came upon a fault of its device"):
        runner.analyse(request_of("faulty"), on_progress=ignore, go_on=ignore)
    assert runner.pid is None
    runner.analyse(request_of("unet3d"), on_progress=ignore, go_on=ignore)


def test_who_wants_no_answer_any_more_leaves_a_runner_that_another_starts(
    request_of: Make, tmp_path: Path
) -> None:
    late = (
        "import sys, time, pathlib\n"
        f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)\n"
        "from dicomai.inference.runner import main\nmain(sys.argv[1:])"
    )
    request = request_of("unet3d")

    def stop() -> None:
        raise DeadlineError("took too long")

    with (
        RunnerProcess("cpu", command=(sys.executable, "-c", late)) as starting,
        ThreadPoolExecutor(1) as first,
    ):
        answer = first.submit(starting.analyse, request, on_progress=ignore, go_on=ignore)
        while starting.pid is None:
            time.sleep(0.01)
        with pytest.raises(DeadlineError):
            starting.analyse(request, on_progress=ignore, go_on=stop)
        (tmp_path / "go").touch()
        assert np.array_equal(answer.result(60).segments[0].mask, truth())


ANSWERING = """
import socket, sys
from dicomai.inference.messages import Failed, Ready
from dicomai.inference.shared_memory import Channel
channel = Channel(socket.socket(fileno=int(sys.argv[1])))
channel.send(Ready(device="cpu"))
while True:
    request = channel.receive()
    if request.probabilities:
        channel.send(Failed(kind="input", sentence="seen", subject="", number=request.number))
"""


def test_a_runner_that_is_ended_for_another_while_a_request_goes_out_gets_it_anew(
    request_of: Make,
) -> None:
    goes_out = threading.Event()

    class SlowToSend(np.float64):
        def item(self) -> float:  # type: ignore[override]  # numpy takes an index too
            goes_out.set()
            while ending.pid == first:
                time.sleep(0.01)
            return 1.0

    def stop() -> None:
        if goes_out.is_set():
            raise DeadlineError("took too long")

    request = request_of("unet3d")
    slow = replace(request, probabilities=SlowToSend(1))  # type: ignore[arg-type]  # for a bool
    with (
        RunnerProcess("cpu", command=(sys.executable, "-c", ANSWERING)) as ending,
        ThreadPoolExecutor(1) as other,
    ):
        with pytest.raises(InputError, match="seen"):
            ending.analyse(request, on_progress=ignore, go_on=ignore)
        first = ending.pid
        answer = other.submit(ending.analyse, slow, on_progress=ignore, go_on=ignore)
        unanswered = replace(request, probabilities=False)
        with pytest.raises(DeadlineError):
            ending.analyse(unanswered, on_progress=ignore, go_on=stop)
        with pytest.raises(InputError, match="seen"):
            answer.result(60)


def test_an_input_outside_the_limits_keeps_its_kind_and_sentence(
    runner: RunnerProcess, request_of: Make
) -> None:
    request = request_of("unet3d")
    assert isinstance(request.source, SourceVolume)
    magnetic = replace(request.source, facts=replace(request.source.facts, modality="MR"))
    with pytest.raises(InputError, match="MR"):
        runner.analyse(replace(request, source=magnetic), on_progress=ignore, go_on=ignore)


def test_a_package_that_changed_since_it_was_trusted_does_not_run(
    runner: RunnerProcess, request_of: Make
) -> None:
    request = request_of("unet3d", "fresh")  # not one that is warm
    (Path(request.package_folder) / "CARD.md").write_text("# Other\n")
    with pytest.raises(ConfigError, match="has changed since the service read it"):
        runner.analyse(request, on_progress=ignore, go_on=ignore)


def test_a_runner_that_dies_says_by_which_signal_and_another_takes_over(
    runner: RunnerProcess, request_of: Make
) -> None:
    with pytest.raises(RunnerDied, match=r"was killed by signal 11 \(SIGSEGV\)"):
        runner.analyse(request_of("poison"), on_progress=ignore, go_on=ignore)
    assert runner.pid is None
    runner.analyse(request_of("unet3d"), on_progress=ignore, go_on=ignore)


def test_a_deadline_kills_a_runner_that_is_stuck(runner: RunnerProcess, request_of: Make) -> None:
    in_the_network = []

    def note(stage: str, _: float) -> None:
        if stage == "infer":
            in_the_network.append(runner.pid)

    def go_on() -> None:
        if in_the_network:
            raise DeadlineError("took too long")

    with pytest.raises(DeadlineError):
        runner.analyse(request_of("stuck"), on_progress=note, go_on=go_on)
    assert runner.pid is None
    assert not Path(f"/proc/{in_the_network[0]}").exists()


def test_threads_that_wait_leave_the_cores_to_those_that_work(
    runner: RunnerProcess, request_of: Make
) -> None:
    runner.analyse(request_of("unet3d"), on_progress=ignore, go_on=ignore)
    variables = set(Path(f"/proc/{runner.pid}/environ").read_bytes().split(b"\0"))
    network = {b"OMP_WAIT_POLICY=PASSIVE", b"GOMP_SPINCOUNT=5000"}
    assert {*network, b"OPENBLAS_THREAD_TIMEOUT=20"} <= variables


def test_a_device_that_is_not_there_is_an_error_of_the_configuration(request_of: Make) -> None:
    with (
        RunnerProcess("cuda:7") as runner,
        pytest.raises(ConfigError, match=r"cuda:7 is not there"),
    ):
        runner.analyse(request_of("unet3d"), on_progress=ignore, go_on=ignore)


SUPERVISOR = """
import os, sys
sys.path.insert(0, {here!r})
from dataclasses import replace
from pathlib import Path
from bodies import write_package, write_study
from dicomai.imaging.series import read_series
from dicomai.imaging.volume import volume_of
from dicomai.inference.messages import Analyse
from dicomai.inference.inputs import inputs_of
from dicomai.inference.runner_process import RunnerProcess

folder = Path(sys.argv[1])
package = write_package(folder / "models", "stuck", "stuck")
(series,) = read_series(write_study(folder / "study", "P1"))
volume = volume_of(series.datasets)
request = Analyse(package_folder=str(package.folder), package_sha256=package.sha256,
                  source=replace(volume, headers=()), inputs=inputs_of(volume.headers))
runner = RunnerProcess("cpu", command=(sys.executable, {here!r} + "/misbehaving_runner.py"))
def told(stage, _):
    if stage == "infer":
        print(runner.pid, flush=True)
runner.analyse(request, on_progress=told, go_on=lambda: None)
"""


def test_a_busy_runner_dies_with_its_supervisor(tmp_path: Path) -> None:
    program = textwrap.dedent(SUPERVISOR).format(here=str(Path(__file__).parent))
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        runner = int(supervisor.stdout.readline())
        supervisor.kill()
        supervisor.wait()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{runner}/cmdline").exists() and _running(runner):
            assert time.monotonic() < deadline, "the runner lives on"


def _running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_threads_of_a_runner_spin_briefly_and_sleep(
    request_of: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    with RunnerProcess("cpu") as runner:
        runner.analyse(request_of("unet3d"), on_progress=ignore, go_on=ignore)
    told = capfd.readouterr().err
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in told
    assert "GOMP_SPINCOUNT = '5000'" in told
