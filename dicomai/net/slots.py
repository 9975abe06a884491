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
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, Literal

FOLDER: Final = ".slots"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
Full = Literal["all", "node"]
"""Which limit is reached: that of the receiver, or that of the node."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A file that this process has locked."""

    name: str
    lock: int


class Slot:
    """The place of one association; free again when it is released, or its process has died."""

    def __init__(self, slots: Slots, places: tuple[_Place, ...]) -> None:
        self._slots = slots
        self._places = places

    def release(self) -> None:
        """Free the place; only the first call counts."""
        places, self._places = self._places, ()
        for place in places:
            self._slots.give_back(place)


class Slots:
    """The places below a folder that all receiver processes of this host share.

    Parameters
    ----------
    folder
        Made if it is missing; on a local disk.
    limit
        How many associations may be open in all.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        # Of this process: there is no use in trying them. Others are tried from a place on that is
        # likely to be ours alone, so most associations take a single try.
        self._held: set[str] = set()
        self._holding = Lock()
        self._first = os.getpid() * 7919

    def take(self, node: str, node_limit: int) -> Slot | Full:
        """Return a place for an association of a node, or which limit is reached.

        Parameters
        ----------
        node
            Its name.
        node_limit
            How many it may have; 0: as many as all.
        """
        places = []
        if node_limit:
            digest = hashlib.sha256(node.encode()).hexdigest()[:16]
            own = self._first_free(f"node-{digest}", node_limit)
            if own is None:
                return "node"
            places.append(own)
        try:
            general = self._first_free("all", self.limit)
        except BaseException:
            Slot(self, tuple(places)).release()
            raise
        if general is None:
            Slot(self, tuple(places)).release()
            return "all"
        return Slot(self, (*places, general))

    def give_back(self, place: _Place) -> None:
        """Free a place that this process holds."""
        with self._holding:
            self._held.discard(place.name)
            os.close(place.lock)

    def _first_free(self, kind: str, limit: int) -> _Place | None:
        with self._holding:
            for count in range(limit):
                name = f"{kind}-{(self._first + count) % limit:02d}"
                if name in self._held:
                    continue
                lock = self._opened(name)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    continue
                except BaseException:
                    os.close(lock)
                    raise
                self._held.add(name)
                return _Place(name, lock)
        return None

    def _opened(self, name: str) -> int:
        path = f"{self.folder}/{name}"
        try:
            return os.open(path, _FLAGS, 0o640)
        except FileNotFoundError:
            self.folder.mkdir(mode=0o750, exist_ok=True)
            return os.open(path, _FLAGS, 0o640)
