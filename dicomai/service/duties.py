"""What is done from time to time: leases, back-offs, breakers, retention, pruning, sweeping."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.dates import now as present
from dicomai.errors import DicomaiError
from dicomai.routing.route import Route
from dicomai.service import leavings
from dicomai.service.asked import tells_why_not
from dicomai.service.steady_clock import SteadyClock
from dicomai.service.trouble import SETTLED_S, Trouble
from dicomai.settings import Folders, Settings
from dicomai.spool import host, quarantine
from dicomai.store import jobs, leases, nodes, promises, retention, steps
from dicomai.store.engine import writing
from dicomai.store.leases import LeaseObserver
from dicomai.store.retention import Keep

LOOKS_PER_LEASE: Final = 6
_PROMOTE_S: Final = 2.0
_ROOM_S: Final = 60.0
_HOUR_S: Final = 3600.0
_SWEEP_S: Final = 6 * 3600.0
"""What is swept lay there for a day; each time all names in the archive are read."""
_DAY_S: Final = 86400.0
_SET_BACK_S: Final = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """Something that is done when the scheduler starts, and every so often.

    Attributes
    ----------
    slow
        It may take long, as a walk through the archive does, and must not keep leases waiting.
    """

    name: str
    every_s: float
    do: Callable[[], object]
    slow: bool = False


class Every(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Fires so many seconds after it last did, and makes up for nothing.

    A clock that is set forward, by the 26 years of an empty battery, has APScheduler's interval
    list each round that was missed: more than a machine has memory for.
    """

    def __init__(self, every_s: float) -> None:
        self._pause = timedelta(seconds=every_s)

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        """Return when it is to fire next; see APScheduler."""
        return now + self._pause


def started(settings: Settings, engine: Engine, stop: threading.Event) -> BackgroundScheduler:
    """Return a running clock of all duties; whoever called shuts it down.

    Parameters
    ----------
    stop
        Set when that is near: what takes long comes to its end.
    """
    clock = BackgroundScheduler(
        timezone=UTC,
        executors={"quick": ThreadPoolExecutor(1), "slow": ThreadPoolExecutor(1)},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    # It tells of each run that was left out because the last one took longer.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    for duty in duties(settings, engine, stop):
        clock.add_job(
            partial(_do, duty, Trouble(0.0 if duty.every_s > SETTLED_S else SETTLED_S)),
            Every(duty.every_s),
            id=duty.name,
            executor="slow" if duty.slow else "quick",
            # What a kill cut short goes on at once: starting is recovering.
            next_run_time=datetime.now(UTC),
        )
    clock.start()
    return clock


def going_on(clock: BackgroundScheduler) -> Callable[[], bool]:
    """Return what has the duties done anew where the clock of the machine was set back.

    APScheduler goes by it: no lease would end, and no back-off, until it has come round again.
    """
    ahead_s = time.time() - time.monotonic()

    def once() -> bool:
        nonlocal ahead_s
        was, ahead_s = ahead_s, time.time() - time.monotonic()
        if ahead_s < was - _SET_BACK_S:
            for job in clock.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))
        return False

    return once


def duties(settings: Settings, engine: Engine, stop: threading.Event) -> tuple[Duty, ...]:
    """Return the duties of a scheduler; those that delete go by a clock that does not leap."""
    data = settings.folders.data
    steady = SteadyClock(engine, partial(host.name_of, settings.folders.spool))
    observer = LeaseObserver(settings.worker.lease_s)
    kept = settings.retention
    keep = Keep(
        received=seconds(kept.received_days * _DAY_S),
        produced=seconds(kept.produced_days * _DAY_S),
        jobs=seconds(kept.jobs_days * _DAY_S),
    )
    return (
        Duty(
            name="leases",
            every_s=settings.worker.lease_s / LOOKS_PER_LEASE,
            do=lambda: expire(engine, observer, settings.routes, present()),
        ),
        Duty(name="back-offs", every_s=_PROMOTE_S, do=lambda: promote(engine, present())),
        Duty(
            name="retention",
            every_s=_HOUR_S,
            do=lambda: retention.delete_expired(
                engine, data, keep, steady.now(), lambda: not stop.is_set()
            ),
            slow=True,
        ),
        Duty(
            name="room",
            every_s=_ROOM_S,
            do=lambda: retention.make_room(engine, data, kept.reserve_bytes, steady.now()),
            slow=True,
        ),
        Duty(
            name="pruning",
            every_s=_HOUR_S,
            do=lambda: prune(engine, keep, steady.now()),
            slow=True,
        ),
        Duty(
            name="sweeping",
            every_s=_SWEEP_S,
            do=lambda: sweep(engine, settings.folders, steady.now()),
            slow=True,
        ),
    )


def expire(engine: Engine, observer: LeaseObserver, routes: tuple[Route, ...], now: Instant) -> int:
    """Take jobs from workers that show no progress; return how many.

    One that fails so is queued once more where a route wants to be told why there is no result.
    """
    with writing(engine) as connection:
        over = leases.expire(connection, observer, time.monotonic(), now)
        for job in over:
            if job.kind == "analyse" and tells_why_not(routes, job.model):
                jobs.queue_report(connection, job.id, now)
    for job in over:
        log.warning("lease over", job=job.id, study=job.study_instance_uid, state=job.state)
    return len(over)


def promote(engine: Engine, now: Instant) -> int:
    """Queue what has waited long enough, and let one job try each node whose pause is over."""
    with writing(engine) as connection:
        return len(jobs.promote_due(connection, now)) + len(nodes.probe(connection, now))


def sweep(engine: Engine, folders: Folders, now: Instant) -> int:
    """Take what nobody knows out of archive and quarantine; return how many files."""
    return leavings.sweep(engine, folders, now) + quarantine.sweep(folders.quarantine, now)


def prune(engine: Engine, keep: Keep, now: Instant) -> int:
    """Delete jobs and what no study keeps, when they were over long ago; return how many."""
    before = Instant(now - keep.jobs)
    with writing(engine) as connection:
        pruned = retention.prune_jobs(connection, before) + steps.prune(connection, before)
        pruned += promises.prune(connection, before, now)
        return pruned + retention.prune_rest(connection, before)


def _do(duty: Duty, trouble: Trouble) -> None:
    """Do a duty; what goes wrong with it must not keep the others from being done."""
    try:
        done = duty.do()
    except (DicomaiError, OSError) as error:
        if trouble.begins(why := str(error)):
            log.warning("duty waits", duty=duty.name, why=why)
    except Exception:
        log.exception("defect", duty=duty.name)
    else:
        if trouble.ends():
            log.info("duty goes on", duty=duty.name)
        if done:
            log.info("duty done", duty=duty.name, count=done)
