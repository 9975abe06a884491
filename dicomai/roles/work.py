"""The worker of a host: a supervisor with its runner for each device, who sends and who fetches."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Final

from sqlalchemy import Engine

from dicomai.dicom.dates import Instant
from dicomai.dicom.dates import now as present
from dicomai.errors import DatabaseError
from dicomai.inference.runner_process import RunnerProcess
from dicomai.models.device import has_gpu_driver
from dicomai.models.registry import open_registry
from dicomai.roles import database
from dicomai.roles.loops import Loop, keep
from dicomai.roles.tree import Life
from dicomai.service import deliver, retrieve, supervise
from dicomai.service.attempt import Worker
from dicomai.service.deliver import Deliverer
from dicomai.service.intake import LANES, Intake
from dicomai.service.retrieve import Fetching, Retriever
from dicomai.service.supervise import Supervisor
from dicomai.service.trouble import Trouble
from dicomai.settings import Settings
from dicomai.store import clocks, hosts
from dicomai.store.engine import open_engine, writing
from dicomai.store.states import JobKind

_COLLECT_AFTER: Final = (50_000, 20, 100)
"""Objects, younger and older generations: a series has hundreds of thousands, none of them garbage
while it is loaded, and after each job all is collected anyway."""
_TELL_EVERY_S: Final = 10.0


def work(settings: Settings, life: Life) -> None:
    """Do jobs until told to stop; then give back what runs."""
    gc.freeze()  # what was imported stays, and collections need not look at it
    gc.set_threshold(*_COLLECT_AFTER)
    engine = open_engine(settings.database.url)
    at = f"{socket.gethostname()}:{os.getpid()}"
    workers = {f"{at}:{device}": device for device in devices(settings.worker.device)}
    with ExitStack() as stack:
        loops = []
        for name, device in workers.items():
            process = RunnerProcess(device, warm_bytes=settings.worker.warm_bytes)
            runner, intake = stack.enter_context(process), Intake()
            lane = partial(_analysing, settings, engine, runner, intake, name, life.stop)
            trouble = Trouble()
            loops += [
                Loop(f"{name}:{number}", lane, life.stop, trouble=trouble)
                for number in range(LANES)
            ]
        fetcher, sender = f"{at}:retrieval", f"{at}:network"
        loops += fetchers(settings, engine, fetcher, life.stop)
        sending = partial(_sending, settings, engine, sender, life.stop)
        loops.append(Loop(sender, sending, life.stop))
        shown = [
            *((name, device, supervise.KINDS) for name, device in workers.items()),
            (sender, "network", deliver.KINDS),
            (fetcher, "network", retrieve.KINDS),
        ]
        telling = partial(_telling, settings, engine, shown, present())
        loops.append(Loop(f"{at}:presence", telling, life.stop, idle_s=_TELL_EVERY_S))
        loops.append(database.watch(engine, life.stop))
        keep(loops, life)
        give_up = time.monotonic() + settings.worker.stop_s
        for loop in loops:
            loop.join(max(0.0, give_up - time.monotonic()))
        with suppress(DatabaseError), writing(engine) as connection:
            for name, _, _ in shown:
                hosts.forget_worker(connection, name)


def devices(setting: str) -> tuple[str, ...]:
    """Return the devices to use: what the setting names, or with "auto" every GPU, else the CPU."""
    if setting != "auto":
        return (setting,)
    if not has_gpu_driver():
        return ("cpu",)
    # Only torch knows which of them it can use; asked in another process, for it stays in memory.
    # What it says of those it can't goes to our log.
    found = "from dicomai.models.runtimes.devices import gpus; print(*gpus())"
    asked = subprocess.run(
        [sys.executable, "-c", found], stdout=subprocess.PIPE, text=True, check=False
    )
    return tuple(asked.stdout.split()) or ("cpu",)


def fetchers(
    settings: Settings, engine: Engine, name: str, stop: threading.Event
) -> tuple[Loop, ...]:
    """Return the loops that fetch: the first takes history too, the others what is of today."""
    fetching, trouble = Fetching(), Trouble()
    return tuple(
        Loop(
            f"{name}:{number}",
            partial(_fetching, settings, engine, fetching, number == 0, name, stop),
            stop,
            trouble=trouble,
        )
        for number in range(retrieve.LANES)
    )


def worker_of(
    settings: Settings,
    engine: Engine,
    name: str,
    stop: threading.Event,
    pulse: Callable[[], None],
) -> Worker:
    """Return a worker with the lease and the deadline of the settings."""
    return Worker(
        name=name,
        engine=engine,
        lease_s=settings.worker.lease_s,
        deadline_s=settings.worker.deadline_s,
        clock=present,
        stop=stop,
        pulse=pulse,
        observe=lambda _stage, _job: None,
    )


def _analysing(
    settings: Settings,
    engine: Engine,
    runner: RunnerProcess,
    intake: Intake,
    name: str,
    stop: threading.Event,
    pulse: Callable[[], None],
) -> Callable[[], bool | None]:
    worker = worker_of(settings, engine, name, stop, pulse)
    return Supervisor(settings=settings, runner=runner, worker=worker, intake=intake).work_once


def _fetching(
    settings: Settings,
    engine: Engine,
    fetching: Fetching,
    history: bool,
    name: str,
    stop: threading.Event,
    pulse: Callable[[], None],
) -> Callable[[], bool]:
    worker = worker_of(settings, engine, name, stop, pulse)
    return Retriever(settings=settings, worker=worker, fetching=fetching, history=history).work_once


def _sending(
    settings: Settings,
    engine: Engine,
    name: str,
    stop: threading.Event,
    pulse: Callable[[], None],
) -> Callable[[], bool]:
    worker = worker_of(settings, engine, name, stop, pulse)
    return Deliverer(settings=settings, worker=worker).work_once


def _telling(
    settings: Settings,
    engine: Engine,
    shown: Sequence[tuple[str, str, tuple[JobKind, ...]]],
    started_at: Instant,
    _pulse: Callable[[], None],
) -> Callable[[], bool]:
    """Say in the catalogue which workers there are, and which models they serve."""

    def once() -> bool:
        models = open_registry(settings.folders.models).names
        with writing(engine) as connection:
            now = clocks.common(connection, present)
            for name, device, kinds in shown:
                worker = hosts.Worker(
                    name=name,
                    host=socket.gethostname(),
                    device=device,
                    kinds=kinds,
                    models=models if kinds == supervise.KINDS else (),
                    started_at=started_at,
                    beat_at=now,
                )
                hosts.note_worker(connection, worker)
        return False

    return once
