"""The supervisor's hold on its runner: starts it, asks it, notices its death, kills it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from dicomai.findings import Findings
from dicomai.inference.messages import Analyse, Done, Failed, Progress, Ready
from dicomai.inference.shared_memory import BadMessage, Channel, PeerGone
from dicomai.process import in_words

if TYPE_CHECKING:
    from typing import Self

COMMAND: Final = (sys.executable, "-m", "dicomai.inference.runner")
START_S: Final = 120.0
"""Importing torch from a cold disk takes long."""
_TICK_S: Final = 0.1
_REAP_S: Final = 5.0


class RunnerDied(Exception):
    """The runner is gone; says how, as "was killed by signal 11 (SIGSEGV)"."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class RunnerProcess:
    """A runner that is there when it is asked for.

    Parameters
    ----------
    device
        "auto", "cpu", "cuda:0", …
    command
        What starts a runner; descriptor, device and our process id are appended.
    """

    def __init__(self, device: str, *, command: Sequence[str] = COMMAND) -> None:
        self._device = device
        self._command = tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int | None:
        """Its process id while it is there."""
        return self._process.pid if self._process is not None else None

    def analyse(
        self,
        request: Analyse,
        *,
        on_progress: Callable[[str, float], None],
        go_on: Callable[[], None],
    ) -> Findings:
        """Return what the runner found.

        Parameters
        ----------
        request
            What to do.
        on_progress
            Called with stage and fraction of it whenever the runner has got on.
        go_on
            Called about ten times a second; what it raises kills the runner and is raised here.

        Raises
        ------
        RunnerDied
            It is gone, or makes no sense any more; the next request starts another.
        DicomaiError
            What the runner said.
        """
        try:
            answer = self._ask(request, on_progress, go_on)
        except (PeerGone, BadMessage) as error:
            raise self._died(error) from None
        except BaseException:
            # Or the next request would find the rest of this answer in the channel.
            self.kill()
            raise
        if isinstance(answer, Failed):
            raise answer.error()
        return answer.findings

    def _ask(
        self,
        request: Analyse,
        on_progress: Callable[[str, float], None],
        go_on: Callable[[], None],
    ) -> Done | Failed:
        started = self._start(go_on)
        if isinstance(started, Failed):
            return started
        started.send(request)
        while True:
            message = started.receive(_TICK_S)
            if isinstance(message, Done | Failed):
                return message
            if isinstance(message, Progress):
                on_progress(message.stage, message.fraction)
            go_on()

    def kill(self) -> None:
        """End it at once; the next request starts another."""
        process, self._process = self._process, None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()
            process.wait()

    def _start(self, go_on: Callable[[], None]) -> Channel | Failed:
        if self._channel is not None and self._process is not None:
            if self._process.poll() is None:
                return self._channel
            self.kill()
        channel, theirs = Channel.pair()
        self._channel = channel
        with theirs:
            handed = theirs.fileno()
            self._process = subprocess.Popen(
                [*self._command, str(handed), self._device, str(os.getpid())],
                pass_fds=[handed],
                stdin=subprocess.DEVNULL,
            )
        give_up = time.monotonic() + START_S
        while time.monotonic() < give_up:
            message = channel.receive(_TICK_S)
            if isinstance(message, Ready):
                return channel
            if isinstance(message, Failed):
                return message
            go_on()
        raise PeerGone(f"it was not ready {START_S:.0f} s after its start")

    def _died(self, error: Exception) -> RunnerDied:
        process = self._process
        assert process is not None
        try:
            how = in_words(process.wait(_REAP_S))
        except subprocess.TimeoutExpired:
            how = f"made no sense: {error}"
        self.kill()
        return RunnerDied(how)
