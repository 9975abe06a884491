"""What a process owes its parent, its host and other users: its end, memory, the files it makes."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_KEPT_BYTES: Final = 1 << 30
_REST_S: Final = 60.0


WAITING: Final = MappingProxyType(
    {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "5000",
        "OPENBLAS_THREAD_TIMEOUT": "20",
    }
)
"""Variables that say how threads wait for more work, on cores that receiver and database want too.

Those of a network sleep, but not before so many turns: asleep at once a pass takes a tenth longer
beside what else a host does, and awake at all times twice as long where another process has one of
two cores. numpy's OpenBLAS counts cycles, two to this power; its own choice is some 50 ms
(benchmarks/inference.md). They hold for what is loaded after they are set.
"""


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Parameters
    ----------
    parent_pid
        Who started it: a parent that died before this call is noticed by comparing.

    Notes
    -----
    The signal follows the *thread* that started the process, so start children from a thread
    that lives as long as they shall.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def set_by_signals(event: threading.Event, numbers: Iterable[signal.Signals]) -> None:
    """Have signals set an event. Call it from the main thread.

    A handler runs between any two steps of the main thread, also while that has the lock of the
    event that it waits for: `set` would wait for the lock for ever. So a thread of its own sets it,
    and the handler does what the documentation of `queue` allows it to.
    """
    told: SimpleQueue[None] = SimpleQueue()

    def obey() -> None:
        told.get()
        event.set()

    threading.Thread(target=obey, name="signals", daemon=True).start()
    for number in numbers:
        signal.signal(number, lambda *_: told.put(None))


def reuse_memory() -> None:
    """Have the allocator keep what is freed, for all threads, until `release_memory`.

    Each layer of a network takes and frees tens of megabytes, which the allocator of glibc gets
    from the system and gives back each time: the kernel spends as long on these pages as the
    processor on the numbers (benchmarks/inference.md). To be called before threads are started.
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is not None:  # musl has none
        options(_M_ARENA_MAX, 1)
        options(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        options(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def release_memory() -> None:
    """Give back to the system what the allocator keeps of memory that was freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class SpareMemory:
    """What the allocator keeps while there is work, and for a while after: the next may come soon.

    Memory that was given back is slow to have again, most of all on a virtual machine, whose host
    must find it first: two seconds for an analysis of a CT (benchmarks/inference.md).

    Parameters
    ----------
    rest_s
        How long nothing was done when it is given back.
    give_back
        Gives it back; what an allocator of a device keeps too.
    """

    def __init__(
        self, rest_s: float = _REST_S, give_back: Callable[[], None] = release_memory
    ) -> None:
        self._rest_s = rest_s
        self._give_back = give_back
        self._lock = threading.Lock()
        self._inside = 0
        self._used_at = 0.0
        self._watched = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep it, whoever else does too."""
        with self._lock:
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                self._used_at = time.monotonic()
                if not self._watched:
                    self._watched = True
                    self._look_again_in(self._rest_s)

    def _look_again_in(self, seconds: float) -> None:
        later = threading.Timer(seconds, self._look)
        later.daemon = True
        later.start()

    def _look(self) -> None:
        with self._lock:
            left = self._used_at + self._rest_s - time.monotonic()
            if self._inside or left > 0:
                self._look_again_in(self._rest_s if self._inside else left)
            else:
                self._watched = False
                self._give_back()


def in_words(return_code: int) -> str:
    """Return how a process ended, as Popen and multiprocessing say it, for a sentence."""
    if return_code >= 0:
        return f"ended with exit code {return_code}"
    try:
        name = signal.Signals(-return_code).name
    except ValueError:
        name = "unknown"
    return f"was killed by signal {-return_code} ({name})"


def give_to_owner(descriptor: int, folder: Path) -> None:
    """Have a new file belong to whom its folder belongs, if we are root, as SQLite does.

    An administrator's command makes what the service, which is no root, must read and write. Root
    of a container without that right, or on a share that squashes it, leaves the file as it is.
    """
    if os.geteuid() == 0:
        status = folder.stat()
        with suppress(OSError):
            os.fchown(descriptor, status.st_uid, status.st_gid)
