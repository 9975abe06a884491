"""A tree of processes, one per role: started, watched, started again, stopped; no orphan is left.

Which role does what says `roles`; here only its life counts. A child dies with its parent, whatever
ended that.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Final, Literal, TypeAlias

import structlog

from dicomai.errors import DatabaseError, DicomaiError
from dicomai.process import die_with_parent, in_words, set_by_signals
from dicomai.roles import logs
from dicomai.roles.notify import Notifier
from dicomai.settings import Settings

_TICK_S: Final = 0.2
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 60.0
_LONG_LIFE_S: Final = 60.0
"""A child that lived so long starts again without delay."""
_SILENT_S: Final = 300.0
"""A child that gave no sign of life for so long is stuck, as a loop of it would be."""
_STOOD_STILL_S: Final = 5.0
"""After so long without a look we were not there ourselves to hear one."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What a role is given besides its settings.

    Attributes
    ----------
    ready
        To be called once, from the main thread, when the role does its work.
    waits
        To be called with a sentence when the role waits for something before it can do its work,
        and with none when it goes on.
    pulse
        To be called at least every few seconds while it gets on; a watchdog listens.
    stop
        Set when the role shall end, within `worker.stop_s`.
    """

    ready: Callable[[], None]
    waits: Callable[[str], None]
    pulse: Callable[[], None]
    stop: threading.Event


Role: TypeAlias = Callable[[Settings, Life], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waits:
    why: str


_Word: TypeAlias = Literal["ready", "pulse"] | _Waits


@dataclass(slots=True, kw_only=True)
class _Child:
    name: str
    process: SpawnProcess
    words: connection.Connection
    started_at: float = field(default_factory=time.monotonic)
    ready: bool = False
    waits: str = ""
    pulse_at: float = field(default_factory=time.monotonic)


class Tree:
    """The processes of some roles.

    Parameters
    ----------
    settings
        Handed to each role.
    roles
        By name; module-level functions, since each is imported anew in its process.
    notifier
        Told when all are ready, when they stop, that they live, and what they wait for.
    """

    def __init__(self, settings: Settings, roles: Mapping[str, Role], notifier: Notifier) -> None:
        self._settings = settings
        self._roles = roles
        self._notifier = notifier
        self._children: dict[str, _Child] = {}
        self._pause_s: dict[str, float] = {}
        self._start_at: dict[str, float] = {}
        self._fed_at = 0.0
        self._looked_at = time.monotonic()
        self._said = ""

    def run(self, stop: threading.Event) -> int:
        """Keep the roles alive until `stop` is set; return an exit code.

        A role that ends before all were ready once ends the whole: what is wrong then, a port that
        is taken or a wrong setting, is for whoever started it, but for a database that went away in
        that moment. The exit code says whether another start may help. One that waits for what may
        come holds up no other, and counts as ready.
        """
        started = False
        exit_code = 0
        try:
            for name in self._roles:
                self._start(name)
            while not stop.is_set():
                self._listen()
                self._kill_silent()
                failed = self._reap(started=started)
                if failed and not started:
                    exit_code = failed
                    break
                self._start_again()
                children = self._children.values()
                at_work = not self._start_at and all(each.ready or each.waits for each in children)
                if not started and at_work:
                    started = True
                    waiting = sorted(each.name for each in children if each.waits)
                    log.info("service ready", roles=sorted(self._roles), waiting=waiting)
                    self._notifier.tell("READY=1")
                if started:
                    self._say_what_is_waited_for()
                    self._feed_watchdog()
        finally:
            self._notifier.tell("STOPPING=1")
            self._end()
        return exit_code

    def _start(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_live,
            args=(name, self._roles[name], self._settings, theirs, os.getpid()),
            name=f"dicomai-{name}",
        )
        try:
            process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._children[name] = _Child(name=name, process=process, words=ours)

    def _listen(self) -> None:
        """Wait a tick, less when a child says something or ends."""
        words = {each.words: each for each in self._children.values() if not each.words.closed}
        ends = [each.process.sentinel for each in self._children.values()]
        for spoken in connection.wait([*words, *ends], _TICK_S):
            if isinstance(spoken, connection.Connection):
                child = words[spoken]
                try:
                    word: _Word = spoken.recv()
                except EOFError:
                    spoken.close()
                    continue
                if isinstance(word, _Waits):
                    child.waits = word.why
                child.ready = child.ready or word == "ready"
                child.pulse_at = time.monotonic()

    def _kill_silent(self) -> None:
        """Kill who gives no sign of life, so that it is started again as any that ended."""
        now = time.monotonic()
        stood_still = now - self._looked_at > _STOOD_STILL_S
        self._looked_at = now
        for child in self._children.values():
            if stood_still:
                child.pulse_at = now
            elif child.ready and now - child.pulse_at > _SILENT_S:
                log.error("role gives no sign of life and is killed", role=child.name)
                child.process.kill()
                child.pulse_at = now

    def _reap(self, *, started: bool) -> int:
        """Bury the children that have ended; return the exit code of one, 0 for none.

        None too of one whose database went away. Before all have `started`, such a one alone is
        started again.
        """
        exit_code = 0
        for name, child in list(self._children.items()):
            code = child.process.exitcode
            if code is None:
                continue
            how = in_words(code)
            if code != DatabaseError.exit_code:
                exit_code = code if code > 0 else 1
            if exit_code and not started:
                log.error("role ended", role=name, how=how)
            else:
                pause_s = self._put_off(name, time.monotonic() - child.started_at)
                log.error("role ended", role=name, how=how, again_in_s=pause_s)
            child.words.close()
            child.process.close()
            del self._children[name]
        return exit_code

    def _put_off(self, name: str, lived_s: float) -> float:
        """Have a role started again after a pause, which grows; return it."""
        pause_s = self._pause_s.get(name, 0.0)
        pause_s = (
            0.0
            if lived_s >= _LONG_LIFE_S
            else min(max(pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        )
        self._pause_s[name] = pause_s
        self._start_at[name] = time.monotonic() + pause_s
        return pause_s

    def _start_again(self) -> None:
        for name, at in list(self._start_at.items()):
            if time.monotonic() >= at:
                del self._start_at[name]
                try:
                    self._start(name)
                except OSError as trouble:  # the others live, and there may be room later
                    pause_s = self._put_off(name, 0.0)
                    why = trouble.strerror or str(trouble)
                    log.error("role not started", role=name, why=why, again_in_s=pause_s)

    def _say_what_is_waited_for(self) -> None:
        waits = sorted({each.waits for each in self._children.values()} - {""})
        if (sentence := " ".join(waits)) != self._said:
            self._said = sentence
            self._notifier.say(sentence)

    def _feed_watchdog(self) -> None:
        patience_s = self._notifier.watchdog_s / 2
        now = time.monotonic()
        if not patience_s or now - self._fed_at < patience_s / 2:
            return
        if all(now - each.pulse_at < patience_s for each in self._children.values()):
            self._fed_at = now
            self._notifier.tell("WATCHDOG=1")

    def _end(self) -> None:
        give_up = time.monotonic() + self._settings.worker.stop_s
        for child in self._children.values():
            child.process.terminate()
        for name, child in self._children.items():
            child.process.join(max(0.0, give_up - time.monotonic()))
            if child.process.exitcode is None:
                log.error("role did not stop in time and was killed", role=name)
                child.process.kill()
                child.process.join()
            child.words.close()
        self._children.clear()


def _live(
    name: str, role: Role, settings: Settings, words: connection.Connection, parent_pid: int
) -> None:
    """Be a child: do the role until it ends or is told to.

    Then end at once: a thread that waits for a database that never answers would keep the process.
    Told before it is ready, amid its imports, it ends on the spot: it has nothing in hand.
    """
    die_with_parent(parent_pid)
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which tells us
    logs.configure(settings.log.format, settings.log.level)
    structlog.contextvars.bind_contextvars(role=name)
    speaking = threading.Lock()

    def say(word: _Word) -> None:
        with speaking:
            words.send(word)

    def ready() -> None:
        set_by_signals(stop, (signal.SIGTERM,))
        say("ready")

    life = Life(
        ready=ready,
        waits=lambda why: say(_Waits(why=why)),
        pulse=lambda: say("pulse"),
        stop=stop,
    )
    exit_code = 0
    try:
        role(settings, life)
    except DicomaiError as error:
        log.error("role failed", why=error.sentence, kind=error.kind)
        exit_code = error.exit_code
    except Exception:
        log.exception("role failed")
        exit_code = 1
    else:
        if not stop.is_set():
            log.error("role ended by itself")
            exit_code = 1
    logging.shutdown()
    os._exit(exit_code)
