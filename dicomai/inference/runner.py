"""The process that runs models on one device: warm networks, requests in, findings out.

`python -m dicomai.inference.runner DESCRIPTOR DEVICE PARENT WARM_BYTES`, as `RunnerProcess` starts
it. It ignores SIGTERM and SIGINT, because its supervisor decides when it ends, and dies with it.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from dicomai.errors import ConfigError, DicomaiError, ResourceError
from dicomai.inference.messages import Analyse, Done, Failed, Progress, Ready
from dicomai.inference.runner_process import DEVICE_FAULT, WARM_BYTES
from dicomai.inference.shared_memory import Channel, PeerGone
from dicomai.process import SpareMemory, die_with_parent, release_memory, reuse_memory

if TYPE_CHECKING:
    from torch import Tensor

    from dicomai.findings import Findings
    from dicomai.inference.run import Model, Stage
    from dicomai.models.runtimes.networks import Builder
    from dicomai.models.runtimes.torch_runtime import LoadedModel

_REPORT_EVERY_S: Final = 0.2
_THREADS_BESIDE_A_GPU: Final = 4
_REQUESTS: Final = 16
"""At once; a supervisor sends fewer."""
_Result = TypeVar("_Result")


class Runner:
    """Answers requests on one device, and keeps the networks it has loaded.

    Parameters
    ----------
    channel
        The way to its supervisor.
    device
        "cpu", "cuda:0", …
    networks
        Those that a manifest may name.
    warm_bytes
        What the weights of the models that it keeps may take; the least recently used go first.
    """

    def __init__(
        self,
        channel: Channel,
        device: str,
        networks: Mapping[str, Builder],
        warm_bytes: int = WARM_BYTES,
    ) -> None:
        self._channel = channel
        self._device = device
        self._networks = networks
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()  # the last used one last
        self._warm_bytes = warm_bytes
        self._loading, self._keeping = threading.Lock(), threading.Lock()
        # One thread, so that requests have the device in the order in which they are ready for it.
        self._on_device = ThreadPoolExecutor(1, "device")
        self._batches = _Batches()
        self._spare_memory = SpareMemory(give_back=_give_back_memory)

    def answer(self, request: Analyse) -> None:
        """Run one request and send what came of it; a defect of ours is an answer too.

        Several may run at once, in threads: one has the device, others come to it or go from it.
        """
        with self._spare_memory.in_use(), suppress(PeerGone):  # then nobody waits for it
            try:
                self._channel.send(Done(findings=self._analyse(request), number=request.number))
            except PeerGone:
                raise
            except Exception as error:  # noqa: BLE001  # the supervisor decides, the job keeps it
                self._channel.send(replace(self._failed(request, error), number=request.number))

    def _failed(self, request: Analyse, error: Exception) -> Failed:
        from dicomai.models.runtimes.devices import is_device_fault, is_out_of_memory

        if isinstance(error, DicomaiError):
            return Failed(kind=error.kind, sentence=error.sentence, subject=error.subject)
        if is_out_of_memory(error):
            places = {"cpu": "this host"}.get(self._device, f"{self._device} or of this host")
            return Failed(
                kind=ResourceError.kind,
                sentence=f"The memory of {places} does not suffice for {request.package_folder}. "
                "Give it more, or the model a smaller window.",
                subject=request.package_folder,
            )
        traceback.print_exc()
        if is_device_fault(error):
            # What the process has there is lost, and each later request would fail for it.
            os._exit(DEVICE_FAULT)
        reason = f"{type(error).__name__}: {error}"
        return Failed(
            kind="crash",
            sentence=f"The runner came upon a defect: {reason}. Its log has the stack.",
            subject=request.package_folder,
        )

    def _analyse(self, request: Analyse) -> Findings:
        from dicomai.inference import pipeline
        from dicomai.inference.ladder import on_the_cpu

        turns = _Turns(self._on_device, self._batches, _Teller(self._channel, request.number))
        model = self._model(request, turns)
        findings = pipeline.analyse(
            model,
            request.source,
            request.inputs,
            turns.tell,
            turns,
            probabilities=request.probabilities,
        )
        if model.is_on_cpu and self._device != "cpu":
            told = on_the_cpu(self._device)
            return replace(findings, deviations=(told, *findings.deviations))
        return findings

    def _model(self, request: Analyse, turns: _Turns) -> LoadedModel:
        turns.tell("load", 0.0)
        with self._keeping:
            found = self._loaded.get(request.package_sha256)
            if found is not None:
                self._loaded.move_to_end(request.package_sha256)
                return found
        # A thread that ends: as long as it lives, the team of threads that it looks at weights with
        # counts for libgomp, which then lets those of the device sleep between layers.
        with ThreadPoolExecutor(1, "load") as loader:
            place = Path(request.package_folder)
            result = loader.submit(self._load, place, request.package_sha256)
            turns.wait_for(result, "load")
            return result.result()

    def _load(self, folder: Path, sha256: str) -> LoadedModel:
        with self._loading:
            return self._loaded.get(sha256) or self._loaded_anew(folder, sha256)

    def _loaded_anew(self, folder: Path, sha256: str) -> LoadedModel:
        from dicomai.models import package as packages
        from dicomai.models.runtimes import torch_runtime
        from dicomai.models.runtimes.devices import HOST

        package = packages.load(folder)
        if package.sha256 != sha256:
            raise ConfigError(
                f"Package {package.name} in {folder} has changed since the service read it. "
                "Restore it; or trust the new one, dicomai models trust "
                f"{package.name}, and start the service again.",
                subject=package.name,
            )

        def load(device: str) -> LoadedModel | ResourceError:
            try:
                return torch_runtime.load(package, device, networks=self._networks)
            except ResourceError as error:
                return error.with_traceback(None)  # or its frames would keep what they hold

        loaded = load(self._device)
        if isinstance(loaded, ResourceError) and self._only(sha256):
            loaded = load(self._device)
        if isinstance(loaded, ResourceError):
            # For this request alone: the next one asks the device again.
            loaded = loaded if loaded.subject == HOST else load("cpu")
            if isinstance(loaded, ResourceError):
                raise loaded
            return loaded
        loaded = replace(loaded, make_room=partial(self._only, sha256))
        with self._keeping:
            self._loaded[sha256] = loaded
            while len(self._loaded) > 1 and self.warm_bytes > self._warm_bytes:
                self._loaded.popitem(last=False)
        return loaded

    @property
    def warm(self) -> tuple[str, ...]:
        """The packages whose networks it keeps, the last used one last."""
        return tuple(each.package.name for each in self._loaded.values())

    @property
    def warm_bytes(self) -> int:
        """What the weights of the models take that it keeps."""
        return sum(each.weights_bytes for each in self._loaded.values())

    def _only(self, kept: str) -> bool:
        """Make room: keep no other model than this in memory; False where there is none."""
        import torch

        with self._keeping:
            others = [each for each in self._loaded if each != kept]
            for each in others:
                del self._loaded[each]
        gc.collect()  # what it was asked and could not do holds a network in circles
        torch.cuda.empty_cache()
        return bool(others)


def _give_back_memory() -> None:
    """Give back what is spare of the host's memory, and of a GPU's, which others may share."""
    import torch

    release_memory()
    torch.cuda.empty_cache()


class _Teller:
    """Tells the supervisor how a request gets on, not too often."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._told = ("", 0.0)

    def tell(self, stage: str, fraction: float) -> None:
        told, when = self._told
        if stage != told or time.monotonic() - when >= _REPORT_EVERY_S:
            self._told = (stage, time.monotonic())
            self._channel.send(Progress(stage=stage, fraction=fraction, number=self._number))


class _Batches:
    """Images that wait for a network, and are shown to it together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By the network itself, for that of a package may be on the device and on the CPU.
        self._waiting: dict[Model, list[tuple[Tensor, Future[tuple[Tensor, float]]]]] = {}

    def add(self, model: Model, image: Tensor) -> Future[tuple[Tensor, float]]:
        """Have an image wait."""
        answer: Future[tuple[Tensor, float]] = Future()
        with self._lock:
            self._waiting.setdefault(model, []).append((image, answer))
        return answer

    def show(self, model: Model) -> None:
        """Show a network the images that wait for it, as many at a time as its manifest says."""
        import torch

        most = model.package.manifest.infer.batch
        with self._lock:
            waiting = self._waiting.pop(model, [])
            some, rest = waiting[:most], waiting[most:]
            if rest:
                self._waiting[model] = rest
        if not some:
            return  # they were shown with an earlier one
        start = time.monotonic()
        try:
            answers = model(torch.stack([image for image, _ in some])).cpu()
        except Exception as error:  # noqa: BLE001  # whose fault it is shows each by itself
            if len(some) == 1:
                some[0][1].set_exception(error)
                return
            for image, answer in some:
                try:
                    (alone,) = model(image[None]).cpu()
                    answer.set_result((alone, time.monotonic() - start))
                except Exception as its_own:  # noqa: BLE001  # raised where it is waited for
                    answer.set_exception(its_own)
            return
        for (_, answer), said in zip(some, answers, strict=True):
            answer.set_result((said, time.monotonic() - start))


class _Turns:
    """One request's way to the device."""

    def __init__(self, device: ThreadPoolExecutor, batches: _Batches, teller: _Teller) -> None:
        self._device = device
        self._batches = batches
        self.tell = teller.tell

    def alone(self, work: Callable[[], _Result], silent: Stage | None = None) -> _Result:
        """Return what the work returns, when its turn has come."""
        result = self._device.submit(work)
        self.wait_for(result, silent)
        try:
            return result.result()
        finally:
            del result  # an error in it refers to this frame, and would keep what its own hold

    def together(self, model: Model, image: Tensor) -> tuple[Tensor, float]:
        """Return what a network says of an image, shown with those that wait for it too."""
        answer = self._batches.add(model, image)
        # The CPU may take a minute and more for an image, and is not stuck.
        silent: Stage | None = "infer" if model.is_on_cpu else model.silent
        self.wait_for(self._device.submit(self._batches.show, model), silent)
        return answer.result()

    def wait_for(self, result: Future[_Result], silent: Stage | None) -> None:
        """Tell that we wait, until it is our turn; then of the stage that tells nothing itself."""
        while (silent or not result.running()) and wait((result,), _REPORT_EVERY_S).not_done:
            if not result.running():
                self.tell("wait", 0.0)
            elif silent:
                self.tell(silent, 0.0)


def serve(
    channel: Channel,
    device: str,
    networks: Mapping[str, Builder] | None = None,
    warm_bytes: int = WARM_BYTES,
) -> None:
    """Answer requests until the supervisor is gone.

    Parameters
    ----------
    channel, device, warm_bytes
        As for `Runner`.
    networks
        Those that a manifest may name; None: the project's own.
    """
    import torch

    from dicomai.models.runtimes.devices import resolve_device
    from dicomai.models.runtimes.networks import NETWORKS

    cores = len(os.sched_getaffinity(0))
    try:
        try:
            found = resolve_device(device)
        except DicomaiError as error:
            channel.send(Failed(kind=error.kind, sentence=error.sentence, subject=error.subject))
            return
        if "OMP_NUM_THREADS" not in os.environ:  # Who set it shares the cores on purpose.
            on_cpu = found.type == "cpu"
            torch.set_num_threads(cores if on_cpu else min(cores, _THREADS_BESIDE_A_GPU))
        known = NETWORKS if networks is None else networks
        runner = Runner(channel, str(found), known, warm_bytes)
        channel.send(Ready(device=str(found)))
        requests = ThreadPoolExecutor(_REQUESTS, "request")
        while True:
            request = channel.receive()
            if isinstance(request, Analyse):
                requests.submit(runner.answer, request)
            del request  # its memory is the request's alone
    except PeerGone:
        return


def main(arguments: list[str], networks: Mapping[str, Builder] | None = None) -> None:
    """Be the runner that `RunnerProcess` started with these arguments."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    descriptor, device, parent, warm_bytes = arguments
    die_with_parent(int(parent))
    reuse_memory()
    # Where memory runs out the kernel shall take the runner, not the receiver or the database.
    Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    channel = Channel(socket.socket(fileno=int(descriptor)))
    serve(channel, device, networks, int(warm_bytes))
    os._exit(0)  # threads may still work on what nobody waits for


if __name__ == "__main__":
    main(sys.argv[1:])
