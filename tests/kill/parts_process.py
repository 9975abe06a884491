"""Forks the parts of the service that tests kill: imported once, a part lives within milliseconds.

Each line of stdin, ``ROLE CONFIG PORT``, starts one and is answered with its process id. Children
die with this process, and this process ends with its stdin.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from dicomai.net import receiver
from dicomai.process import die_with_parent, set_by_signals
from dicomai.roles import logs, schedule
from dicomai.roles.serve import ROLES
from dicomai.roles.tree import Life
from dicomai.settings import load

IMPORTED_ONCE = (receiver, schedule)


def live(role: str, config: str, port: str, parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stop = threading.Event()
    settings = load(Path(config), {"DICOMAI_RECEIVER__PORT": port})
    logs.configure("json", "info")
    life = Life(
        ready=lambda: set_by_signals(stop, (signal.SIGTERM,)),
        waits=lambda _: None,
        pulse=lambda: None,
        stop=stop,
    )
    ROLES[role](settings, life)  # type: ignore[index]  # a test that names another fails here


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    us = os.getpid()
    for line in sys.stdin:
        role, config, port = line.split()
        pid = os.fork()
        if pid == 0:
            os.close(0)
            os.dup2(2, 1)
            try:
                live(role, config, port, us)
            except BaseException:  # noqa: BLE001  the process ends here, whatever it was
                traceback.print_exc()
            finally:
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
