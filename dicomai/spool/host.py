"""The name of a host: made once, and kept in its spool, so that it outlives a container.

Decisions wait for every host that ever ingested. A container's hostname is another one after each
`docker run`, and several machines may have the same; the spool is what makes a host. Workers have
none, and are called after their machine.
"""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from dicomai.spool.part import replace_durably

FILE: Final = "host"


def name_of(spool: Path) -> str:
    """Return the name of the host that has a spool; the first time it is made.

    Raises
    ------
    DiskFull, OSError
        Its file can't be read or written.
    """
    with suppress(FileNotFoundError):
        if name := (spool / FILE).read_text(encoding="utf-8").strip():
            return name
    return rename(spool)


def rename(spool: Path) -> str:
    """Give the host that has a spool a new name, and return it; raises as `name_of`."""
    name = f"{socket.gethostname()}-{secrets.token_hex(2)}"
    replace_durably(spool / FILE, f"{name}\n".encode())
    return name
