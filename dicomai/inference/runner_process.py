"""The supervisor's hold on its runner: starts it, asks it, notices its death, kills it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dicomai.findings import Findings
from dicomai.inference.messages import Analyse, Done, Failed, Progress, Ready
from dicomai.inference.shared_memory import BadMessage, Channel, PeerGone
from dicomai.process import WAITING, in_words

if TYPE_CHECKING:
    from typing import Self

COMMAND: Final = (sys.executable, "-m", "dicomai.inference.runner")
START_S: Final = 120.0
"""Importing torch from a cold disk takes long."""
WARM_BYTES: Final = 4 * 2**30
DEVICE_FAULT: Final = 75
"""The exit code of a runner whose device failed."""
_TICK_S: Final = 0.1
_REAP_S: Final = 5.0


class RunnerDied(Exception):
    """The runner is gone; says how, as "was killed by signal 11 (SIGSEGV)"."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class _Stopped(Exception):
    """The runner was ended for the sake of another request, or died while it had several."""


class RunnerProcess:
    """A runner that is there when it is asked for, by several threads at once.

    While it works on several requests and dies, nobody knows which of them killed it: each is asked
    again, alone, and only one that kills it alone is said to.

    Parameters
    ----------
    device
        "auto", "cpu", "cuda:0", …
    command
        What starts a runner; descriptor, device, our process id and `warm_bytes` are appended.
    warm_bytes
        What the weights of the models that it keeps may take.
    """

    def __init__(
        self, device: str, *, command: Sequence[str] = COMMAND, warm_bytes: int = WARM_BYTES
    ) -> None:
        self._device = device
        self._command = tuple(command)
        self._warm_bytes = warm_bytes
        self._life: _Life | None = None
        self._numbers = itertools.count(1)
        self._starting = threading.Lock()
        self._door = threading.Condition()
        self._inside = 0
        self._alone = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int | None:
        """Its process id while it is there."""
        life = self._life
        return life.pid if life is not None else None

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
            Called with stage and fraction of it whenever the runner has got on; the stage is "wait"
            while another request has its device.
        go_on
            Called about ten times a second; what it raises kills the runner and is raised here.

        Raises
        ------
        RunnerDied
            It is gone, or makes no sense any more; the next request starts another.
        DicomaiError
            What the runner said.
        """
        alone = False
        while True:
            with self._let_in(alone=alone, on_progress=on_progress, go_on=go_on):
                try:
                    answer = self._ask(request, on_progress, go_on)
                except _Stopped as stopped:
                    # Ended for another's sake, or dead with several inside.
                    alone = alone or stopped.args == ("died",)
                    continue
            if isinstance(answer, Failed):
                raise answer.error()
            return answer.findings

    def kill(self) -> None:
        """End it at once; the next request starts another."""
        life, self._life = self._life, None
        if life is not None:
            life.end()

    @contextmanager
    def _let_in(
        self, *, alone: bool, on_progress: Callable[[str, float], None], go_on: Callable[[], None]
    ) -> Iterator[None]:
        """Wait until there is room: for all that have nothing against company, or for one alone."""
        with self._door:
            while self._alone or (alone and self._inside):
                self._door.wait(_TICK_S)
                on_progress("wait", 0.0)
                go_on()
            self._inside += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._door:
                self._inside -= 1
                self._alone = False
                self._door.notify_all()

    def _ask(
        self,
        request: Analyse,
        on_progress: Callable[[str, float], None],
        go_on: Callable[[], None],
    ) -> Done | Failed:
        number = next(self._numbers)
        life = self._started(go_on)
        if isinstance(life, Failed):
            return life
        try:
            life.send(replace(request, number=number))
            while True:
                message = life.next_for(number)
                if isinstance(message, Done | Failed):
                    life.forget(number)
                    return message
                if isinstance(message, Progress):
                    on_progress(message.stage, message.fraction)
                go_on()
        except (PeerGone, BadMessage) as error:
            company = life.company(number)
            how = life.how_it_died(error)
            self._drop(life)
            if company:
                raise _Stopped("died") from None
            raise RunnerDied(how) from None
        except _Stopped:
            raise
        except BaseException:
            # Or the runner would go on with what nobody waits for.
            life.stop()
            self._drop(life)
            raise

    def _drop(self, life: _Life) -> None:
        life.end()
        if self._life is life:
            self._life = None

    def _started(self, go_on: Callable[[], None]) -> _Life | Failed:
        """Return the runner that is there, or start one; one thread does while others wait."""
        while not self._starting.acquire(timeout=_TICK_S):
            go_on()
        try:
            if self._life is not None:
                if self._life.lives:
                    return self._life
                self._drop(self._life)
            self._life = life = _Life(self._command, self._device, self._warm_bytes)
            try:
                return life.ready(go_on) or life
            except (PeerGone, BadMessage) as error:
                how = life.how_it_died(error)
                self._drop(life)
                raise RunnerDied(how) from None
            except BaseException:
                self._drop(life)
                raise
        finally:
            self._starting.release()


class _Life:
    """A runner from its start to its death, and the answers that wait for those who asked."""

    def __init__(self, command: Sequence[str], device: str, warm_bytes: int) -> None:
        self._channel, theirs = Channel.pair()
        with theirs:
            handed = theirs.fileno()
            self._process = subprocess.Popen(
                [*command, str(handed), device, str(os.getpid()), str(warm_bytes)],
                pass_fds=[handed],
                stdin=subprocess.DEVNULL,
                env=WAITING | os.environ,
            )
        self._came = threading.Condition()
        self._answers: dict[int, deque[Done | Failed | Progress]] = {}
        self._listening = False
        self._over: BaseException | None = None
        self._company = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        return self._over is None and self._process.poll() is None

    def ready(self, go_on: Callable[[], None]) -> Failed | None:
        """Wait until it is up; return why it can't be."""
        give_up = time.monotonic() + START_S
        while time.monotonic() < give_up:
            message = self._channel.receive(_TICK_S)
            if isinstance(message, Ready):
                return None
            if isinstance(message, Failed):
                return message
            go_on()
        raise PeerGone(f"it was not ready {START_S:.0f} s after its start")

    def send(self, request: Analyse) -> None:
        with self._came:
            self._answers[request.number] = deque()
        try:
            self._channel.send(request)
        except PeerGone:
            with self._came:
                self._raise_if_over()
            raise

    def forget(self, number: int) -> None:
        with self._came:
            self._answers.pop(number, None)

    def next_for(self, number: int) -> Done | Failed | Progress | None:
        """Return the next message for a request, or None when none came in time.

        Whoever finds nobody listening listens, and hands on what is not his.
        """
        with self._came:
            if self._answers[number]:
                return self._answers[number].popleft()
            self._raise_if_over()
            if self._listening:
                self._came.wait(_TICK_S)
                return self._answers[number].popleft() if self._answers[number] else None
            self._listening = True
        try:
            message = self._channel.receive(_TICK_S)
        except (PeerGone, BadMessage) as error:
            with self._came:
                self._company = self._company or len(self._answers) > 1
                self._over = self._over or error
                self._raise_if_over()
            raise
        finally:
            with self._came:
                self._listening = False
                self._came.notify_all()
        if isinstance(message, Done | Failed | Progress):
            with self._came:
                if message.number == number:
                    return message
                if message.number in self._answers:
                    self._answers[message.number].append(message)
        return None

    def company(self, number: int) -> bool:
        """Tell whether others were inside when it ended."""
        with self._came:
            return self._company or any(each != number for each in self._answers)

    def stop(self) -> None:
        """End it because one who asked wants no answer any more; the others may ask again."""
        with self._came:
            self._over = self._over or _Stopped("stopped")
            self._came.notify_all()

    def how_it_died(self, error: Exception) -> str:
        try:
            code = self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            return f"made no sense: {error}"
        if code == DEVICE_FAULT:
            return "came upon a fault of its device, as its log says,"
        return in_words(code)

    def end(self) -> None:
        with self._came:
            self._over = self._over or PeerGone("it was ended")
            self._came.notify_all()
        self._process.kill()
        self._process.wait()
        with self._came:
            while self._listening:  # it hears of the end at once
                self._came.wait(_TICK_S)
        self._channel.close()

    def _raise_if_over(self) -> None:
        if isinstance(self._over, _Stopped):
            raise _Stopped(*self._over.args)
        if self._over is not None:
            raise PeerGone(str(self._over))
