"""The database as roles wait for it: after a power cut it may come up later than they do."""

from __future__ import annotations

import time
from typing import Final

import structlog

from dicomai.errors import DatabaseError
from dicomai.roles.tree import Life
from dicomai.settings import Settings
from dicomai.store.engine import open_engine
from dicomai.store.migrate import require_current

_FIRST_PAUSE_S: Final = 1
_LONGEST_PAUSE_S: Final = 15

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
