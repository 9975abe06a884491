"""The database as roles see it: it may come up later than they do, and be upgraded beneath them."""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog
from sqlalchemy import Engine

from dicomai.errors import DatabaseError
from dicomai.roles.loops import Loop
from dicomai.roles.tree import Life
from dicomai.settings import Settings
from dicomai.store.engine import open_engine
from dicomai.store.migrate import current, newest, require_current

_FIRST_PAUSE_S: Final = 1
_LONGEST_PAUSE_S: Final = 15
_LOOK_S: Final = 10.0
"""How often a role looks whether the database is still of its version."""

log = structlog.get_logger()


def wait_for(settings: Settings, life: Life) -> None:
    """Return when the database answers, however long that takes.

    What keeps it from answering is told when it begins and when it changes, not each time.

    Raises
    ------
    ConfigError
        It is not there or has another version; that is not waited for.
    """
    engine = open_engine(settings.database.url)
    pause_s = _FIRST_PAUSE_S
    told = ""
    try:
        while True:
            life.pulse()
            try:
                require_current(engine, settings.folders.data)
            except DatabaseError as away:
                if away.sentence != told:
                    told = away.sentence
                    log.warning("role waits for the database", why=told)
                    life.waits(told)
            else:
                if told:
                    log.info("database answers")
                    life.waits("")
                return
            for _ in range(pause_s):
                time.sleep(1.0)
                life.pulse()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    finally:
        engine.dispose()


def watch(engine: Engine, stop: threading.Event) -> Loop:
    """Return what ends a role when the database gets another version beneath it.

    An upgrade listens whether anybody is at work, and can't hear a machine that was suspended, or
    cut off, for so long. Its old program would go on with tables that it does not know; started
    again it refuses them, and says which version helps.
    """
    ours = newest()  # now: a newer program may be put in the place of this one while it runs

    def look() -> bool:
        found = current(engine)
        if found not in (None, ours):  # none: away, or lost, which others tell of
            log.error("role ends; the database has another version", found=found, ours=ours)
            stop.set()
        return False

    return Loop("version", lambda _: look, stop, idle_s=_LOOK_S)
