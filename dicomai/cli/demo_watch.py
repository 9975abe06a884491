"""The demonstration's eyes: each event of the studies as it happens, until all is over."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Final

from rich.table import Table
from sqlalchemy import Connection

from dicomai.cli.demo_site import Site
from dicomai.cli.demo_studies import SentStudy
from dicomai.cli.terminal import remarks, text
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import TransientError
from dicomai.spool import reader
from dicomai.store import events, jobs, studies
from dicomai.store.engine import open_engine, reading
from dicomai.store.events import Event
from dicomai.store.job import Job
from dicomai.store.states import UNFINISHED

_TIME_WIDTH: Final = 7
_TITLE_WIDTH: Final = 14
_MOST_SHOWN: Final = 400
"""Characters; `dicomai study` has the whole sentence."""
_POLL_S: Final = 0.3
_STALLED_S: Final = 900.0
_UID: Final = re.compile(r"\b[0-2](?:\.[0-9]+){5,}\b|\b2\.25\.[0-9]{10,}\b")


def watch(site: Site, sent: Sequence[SentStudy]) -> None:
    """Show what happens to the studies, and return when nothing more will.

    Raises
    ------
    TransientError
        The service ended, or nothing has happened for a quarter of an hour.
    """
    console = remarks()
    engine = open_engine(site.settings.database.url)
    shown: dict[str, int] = {}
    last, changed_at = "", time.monotonic()
    began = time.monotonic()
    with console.status("waiting for the first study") as status:
        while True:
            site.check_alive()
            with reading(engine) as connection:
                for study in sent:
                    told = events.story(connection, StudyInstanceUID(study.study_instance_uid))
                    for event in told[shown.get(study.study_instance_uid, 0) :]:
                        console.print(_line(time.monotonic() - began, study.title, event))
                    shown[study.study_instance_uid] = len(told)
                over, now = _state(site, connection, sent)
            if over:
                return
            if (state := f"{now} {sum(shown.values())}") != last:
                last, changed_at = state, time.monotonic()
            elif time.monotonic() - changed_at > _STALLED_S:
                raise TransientError(
                    f"Nothing has happened for {_STALLED_S / 60:.0f} minutes; the service's log is "
                    f"{site.log}."
                )
            status.update(text(now))
            time.sleep(_POLL_S)


def _state(site: Site, connection: Connection, sent: Sequence[SentStudy]) -> tuple[bool, str]:
    """Tell whether all is over, and what goes on, in words."""
    over, now = True, []
    for study in sent:
        uid = StudyInstanceUID(study.study_instance_uid)
        row = studies.get(connection, uid)
        if row is None and not any(reader.entries(site.settings.folders.spool)):
            continue  # all of it was set aside
        if row is None or row.status == "open":
            over = False
            now.append(f"{study.title}: arriving")
            continue
        for job in jobs.of_study(connection, uid):
            if job.state in UNFINISHED and job.state != "held":
                over = False
                now.append(_doing(job))
    return over, ", ".join(now)


def _doing(job: Job) -> str:
    what = job.model or f"sending to {job.node}"
    if job.state == "running" and job.stage:
        return f"{what}: {job.stage} {job.progress:.0%}"
    return f"{what}: {job.state}"


def _line(since_s: float, title: str, event: Event) -> Table:
    """Return an event as a line that hangs where it folds."""
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=_TIME_WIDTH, justify="right")
    line.add_column(width=_TITLE_WIDTH, overflow="ellipsis", no_wrap=True)
    line.add_column(overflow="fold")
    said = shortened(event.sentence)
    if len(said) > _MOST_SHOWN:
        said = f"{said[:_MOST_SHOWN]}…"
    line.add_row(text(f"{since_s:.1f} s", "quiet"), text(title), text(said))
    return line


def shortened(sentence: str) -> str:
    """Return a sentence whose UIDs are cut to their last digits."""
    return _UID.sub(lambda match: f"…{match[0][-6:]}", sentence)
