"""Further names of durable files, made durable together."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import Final

from dicomai.errors import DiskFull
from dicomai.spool.folder import make_folder, sync_folder, worded
from dicomai.spool.part import FILE_MODE, write_durably

# Another file system, one that has no links, or a file with as many as it can have.
_NO_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})
_CHUNK_BYTES: Final = 2**20


def link_durably(source: Path, target: Path) -> None:
    """Give a durable file a second name; where a link can't reach, copy it durably.

    A target that is already a link to the source is fine, so that a step that was killed can be
    repeated.

    Raises
    ------
    FileExistsError
        Another file has that name.
    DiskFull, OSError
        As `write_durably`.
    """
    names = Names(target.parent)
    names.link(source, target)
    names.settle()


def name_also(source: Path, name: Path) -> None:
    """Let a name be there for what it says: a link, or an empty file where a link can't reach.

    A new file takes ten times as long as a link. It is durable once its folder is.

    Raises
    ------
    FileExistsError
        It is there.
    DiskFull, OSError
        It can't be.
    """
    try:
        name.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError as trouble:
        if trouble.errno not in _NO_LINK:
            raise worded(trouble, name) from trouble
        name.touch(FILE_MODE, exist_ok=False)


class Names:
    """New names of durable files below a root, made durable together: each folder is synced once.

    Nothing of it counts before it is settled. Where that fails the new names are gone, and all is
    to be done again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[Path, None] = {}
        self._made: list[Path] = []

    def make_folders(self, path: Path) -> None:
        """Make the folders from the root down to a path below it."""
        folder = self.root
        for name in path.relative_to(self.root).parts:
            parent, folder = folder, folder / name
            make_folder(folder)
            # Those that exist too: who made them may have been killed before it synced.
            self._folders[parent] = None

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, as `link_durably`; its folder exists."""
        try:
            target.hardlink_to(source)
            self._made.append(target)
        except FileExistsError:
            if not target.samefile(source):
                raise
        except OSError as trouble:
            if trouble.errno not in _NO_LINK:
                raise worded(trouble, target) from trouble
            with source.open("rb") as file:
                write_durably(target, iter(lambda: file.read(_CHUNK_BYTES), b""))
            return
        self.note(target)

    def note(self, target: Path) -> None:
        """Have a name that exists settled with the others: who made it may not have synced it."""
        self._folders[target.parent] = None

    def settle(self) -> None:
        """Make all of them durable.

        Raises
        ------
        DiskFull, OSError
            The new names are gone.
        """
        try:
            for folder in self._folders:
                sync_folder(folder)
        except (OSError, DiskFull):
            for name in self._made:
                with suppress(OSError):
                    name.unlink()
            raise
