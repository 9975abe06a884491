"""Places for associations, counted over all receiver processes of a host.

A place is a file under flock. The kernel frees it when its process dies, whatever ended that, so
nothing has to be counted, cleared or repaired::

    spool/.slots/all-07             one of all
                 node-1a2b3c4d-02   one of a node's own (by a digest: names are not for paths)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

FOLDER: Final = ".slots"
Full = Literal["all", "node"]
"""Which limit is reached: that of the receiver, or that of the node."""


@dataclass(slots=True)
class Slot:
    """The place of one association; free again when it is released, or its process has died."""

    _locks: tuple[int, ...]

    def release(self) -> None:
        """Free the place; only the first call counts."""
        locks, self._locks = self._locks, ()
        for lock in locks:
            os.close(lock)


@dataclass(frozen=True, slots=True)
class Slots:
    """The places below a folder that all receiver processes of this host share.

    Parameters
    ----------
    folder
        Made if it is missing; on a local disk.
    limit
        How many associations may be open in all.
    """

    folder: Path
    limit: int

    def take(self, node: str, node_limit: int) -> Slot | Full:
        """Return a place for an association of a node, or which limit is reached.

        Parameters
        ----------
        node
            Its name.
        node_limit
            How many it may have; 0: as many as all.
        """
        self.folder.mkdir(mode=0o750, exist_ok=True)
        locks = []
        if node_limit:
            digest = hashlib.sha256(node.encode()).hexdigest()[:16]
            own = self._first_free(f"node-{digest}", node_limit)
            if own is None:
                return "node"
            locks.append(own)
        general = self._first_free("all", self.limit)
        if general is None:
            Slot(tuple(locks)).release()
            return "all"
        return Slot((*locks, general))

    def _first_free(self, kind: str, limit: int) -> int | None:
        for number in range(limit):
            path = self.folder / f"{kind}-{number:02d}"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            os.close(lock)
        return None
