"""Who changed what by a command: one JSON line each, in an append-only file of the data folder."""

from __future__ import annotations

import getpass
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dicomai.process import give_to_owner

AUDIT_NAME: Final = "audit.jsonl"


def record(data: Path, action: str, subject: str) -> None:
    """Append a line: when, who, what, and what it was done to.

    Parameters
    ----------
    data
        The data folder.
    action, subject
        As on the command line: ``retry``, ``341``.
    """
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "user": _user(),
        "action": action,
        "subject": subject,
    }
    # One write of less than a page to a file opened for appending: lines of two users don't mix.
    out = _opened(data)
    try:
        os.write(out, (json.dumps(line) + "\n").encode())
        os.fsync(out)
    finally:
        os.close(out)


def _opened(data: Path) -> int:
    appending = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    with suppress(FileExistsError):  # only what is made here is given away, not what a link names
        made = os.open(data / AUDIT_NAME, appending | os.O_EXCL, 0o640)
        give_to_owner(made, data)
        return made
    return os.open(data / AUDIT_NAME, appending, 0o640)


def _user() -> str:
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container may run us under a number that has no name
        return f"uid {os.getuid()}"
