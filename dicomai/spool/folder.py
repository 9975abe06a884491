"""Folders that outlive a power cut: their names, and the names in them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from dicomai.errors import DiskFull

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DAMAGED: Final = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EACCES})
"""What a disk says of one file; anything else is said of the machine, and passes."""
FOLDER_MODE: Final = 0o750


def make_folders(path: Path, root: Path) -> None:
    """Make the folders from a root down to a path, each durable in the one above.

    Folders that exist are synced too: who made them may have been killed before it did.

    Parameters
    ----------
    path
        The root, or a folder below it.
    root
        Where to begin; must exist.
    """
    folder = root
    for name in path.relative_to(root).parts:
        parent, folder = folder, folder / name
        make_folder(folder)
        sync_folder(parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = open_folder(path)
    try:
        sync_open_folder(descriptor, path)
    finally:
        os.close(descriptor)


def open_folder(path: Path) -> int:
    """Return a descriptor of a folder, for `sync_open_folder`."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_open_folder(descriptor: int, path: Path) -> None:
    """Make the names in a folder durable, whose descriptor is at hand."""
    try:
        os.fsync(descriptor)
    except OSError as trouble:
        raise worded(trouble, path) from trouble


def free_bytes(path: Path) -> int:
    """Return the room that is left to an ordinary user on the file system of a path."""
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


def make_folder(folder: Path) -> None:
    """Make a folder whose parent exists, unless it is there; it is not durable yet."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(FOLDER_MODE)
    except OSError as trouble:
        raise worded(trouble, folder) from trouble


def worded(trouble: OSError, path: Path | str) -> OSError | DiskFull:
    """Return a failure, as DiskFull with a sentence where there is no room."""
    if trouble.errno in _NO_ROOM:
        return DiskFull(
            f"{path} could not be written: {os.strerror(trouble.errno or 0).lower()}. Make room on "
            "its disk, or move the data folder to a larger one.",
            subject=str(path),
        )
    return trouble
