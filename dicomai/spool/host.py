"""The name of a host: made once, and kept in its spool, so that it outlives a container.

Decisions wait for every host that ever ingested. A container's hostname is another one after each
`docker run`, and several machines may have the same; the spool is what makes a host. Workers have
none, and are called after their machine.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from dicomai.spool.part import replace_durably

FILE: Final = "host"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


def name_of(spool: Path) -> str:
    """Return the name of the host that has a spool; the first time it is made.

    Raises
    ------
    DiskFull, OSError
        Its file can't be read or written.
    """
    return given(spool) or rename(spool)


def given(spool: Path) -> str:
    """Return the name of the host that has a spool; empty before it has one."""
    with suppress(FileNotFoundError):
        return (spool / FILE).read_text(encoding="utf-8").strip()
    return ""


def place_of(spool: Path) -> str:
    """Return where a spool is: the same for this very folder until its machine starts again.

    A copy has another, and so has the same folder on a clone of the machine.
    """
    folder = spool.stat()
    try:
        boot = _BOOT.read_text(encoding="ascii").strip()
    except OSError:  # nobody says: no two runs are in one place
        boot = secrets.token_hex(8)
    place = f"{boot}/{folder.st_dev}/{folder.st_ino}"
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def rename(spool: Path) -> str:
    """Give the host that has a spool a new name, and return it; raises as `name_of`."""
    name = f"{socket.gethostname()}-{secrets.token_hex(2)}"
    replace_durably(spool / FILE, f"{name}\n".encode())
    return name
