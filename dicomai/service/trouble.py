"""What keeps something that is done again and again from being done: told once, not each time."""

from __future__ import annotations

import threading
import time
from typing import Final

SETTLED_S: Final = 10.0
"""How long nothing may go wrong before a trouble is over. Where every other try fails, as with a
database that takes no more connections, it is one trouble and not one each second."""


class Trouble:
    """Tells when a trouble begins and when it is over.

    Those that share their work share it too, for it is one trouble.

    Parameters
    ----------
    settled_s
        How long nothing goes wrong before it is over; 0 where tries are far apart.
    """

    def __init__(self, settled_s: float = SETTLED_S) -> None:
        self._settled_s = settled_s
        self._lock = threading.Lock()
        self._why = ""
        self._well_since: float | None = None

    def begins(self, why: str) -> bool:
        """Note that it was met; False: that is known already."""
        with self._lock:
            before, self._why = self._why, why
            self._well_since = None
        return why != before

    def ends(self) -> bool:
        """Note that none was met; True: the last one is over by that."""
        with self._lock:
            if not self._why:
                return False
            now = time.monotonic()
            if self._well_since is None:
                self._well_since = now
            if now - self._well_since < self._settled_s:
                return False
            self._why = ""
        return True
