"""The scheduler of a host: ingests its spool, decides on studies, and keeps house."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final
from zoneinfo import ZoneInfo

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.dates import now as present
from dicomai.errors import ConfigError
from dicomai.models.registry import open_registry
from dicomai.roles import database
from dicomai.roles.loops import Loop, keep
from dicomai.roles.tree import Life
from dicomai.routing.selection import ModelInputs
from dicomai.service import duties
from dicomai.service.backfill import Backfiller
from dicomai.service.count import COUNT_S, Counter
from dicomai.service.decide import are_due, decide_due
from dicomai.service.ingest import ingest
from dicomai.service.lacking import Seeker
from dicomai.service.promise import KEEP_S, Keeper
from dicomai.service.pull import Puller
from dicomai.service.rules import Rules
from dicomai.service.spool_pass import GoOn, Ingest, Stopped
from dicomai.service.waiting_routes import take_up
from dicomai.settings import Settings
from dicomai.spool import host, reader
from dicomai.store import archive, clocks, hosts, jobs, waiting_routes
from dicomai.store.engine import open_engine, reading, writing
from dicomai.store.hosts import NameTaken, Sign

_PUBLISH_S: Final = 2.0
"""How often idleness is told of: decisions wait for it, and each time costs a sync."""
_ALIVE_S: Final = 10.0
"""How often a host tells that it lives while it takes in what came."""
_SILENT_S: Final = 120.0
"""Another run that tells nothing for so long goes by its host's name no more. A connection to the
database that hangs is given up after a minute, so after an outage a living one is heard of."""
_GAP_S: Final = 10.0
"""Looks at another run that are further apart don't count as one: the database was away, and
nobody could tell of himself. So long a name is ours before we tell anything by it."""
_PULL_S: Final = 1.0
"""How often the schedules of pulls are looked at."""
_SEEK_S: Final = 1.0
"""How often it is looked whether a job waits for an input."""
_BACKFILL_S: Final = 1.0
"""How often backfills are moved on that have nothing to do."""
_CLOCK_S: Final = 1.0
"""How often it is looked whether the machine's clock was set back."""
_RELOAD_S: Final = 30.0
"""How long packages are taken to lie as they were read: each look digests their weights."""

log = structlog.get_logger()


def schedule(settings: Settings, life: Life) -> None:
    """Ingest, decide and keep house until told to stop."""
    engine = open_engine(settings.database.url)
    clock = duties.started(settings, engine, life.stop)
    ingesting = partial(_ingesting, settings, engine, go_on=partial(_go_on, life.stop))
    ingest_loop = Loop("ingest", ingesting, life.stop)
    try:
        keep(
            (
                ingest_loop,
                Loop("count", partial(_counting, settings, engine), life.stop, idle_s=COUNT_S),
                Loop("pull", partial(_pulling, settings, engine), life.stop, idle_s=_PULL_S),
                Loop("lacking", partial(_seeking, settings, engine), life.stop, idle_s=_SEEK_S),
                Loop(
                    "backfill",
                    partial(_backfilling, settings, engine),
                    life.stop,
                    idle_s=_BACKFILL_S,
                ),
                Loop("decide", partial(_deciding, settings, engine), life.stop),
                Loop("clock", lambda _: duties.going_on(clock), life.stop, idle_s=_CLOCK_S),
                database.watch(engine, life.stop),
                Loop(
                    "commitment",
                    partial(_promising, settings, engine),
                    life.stop,
                    idle_s=KEEP_S,
                ),
            ),
            life,
        )
    finally:
        give_up = time.monotonic() + settings.worker.stop_s
        if ingest_loop.is_alive():
            # What it has in hand is marked, and an entry whose marks outlived two processes is
            # taken for what ended them.
            ingest_loop.join(settings.worker.stop_s / 2)  # a database may hang
        shut_down(clock, max(0.0, give_up - time.monotonic()))


def shut_down(clock: BackgroundScheduler, within_s: float) -> None:
    """Let the duty that is being done end, unless it takes longer: a database may never answer."""
    ending = threading.Thread(target=clock.shutdown, name="duties end", daemon=True)
    ending.start()
    ending.join(within_s)


def ingest_of(settings: Settings) -> Ingest:
    """Return what ingest of this host needs; the host has a name from then on."""
    return Ingest(
        data=settings.folders.data,
        spool=settings.folders.spool,
        quarantine=settings.folders.quarantine,
        host=host.name_of(settings.folders.spool),
        nodes={node.name: node for node in settings.nodes},
        placeholder_ids=settings.decide.placeholder_ids,
        reserve_bytes=settings.receiver.reserve_bytes,
    )


def rules_of(settings: Settings) -> Rules:
    """Return what studies are decided by, with the packages as they lie now."""
    models, missing = models_of(settings)
    return Rules(
        routes=settings.routes,
        models=models,
        missing=missing,
        patience=seconds(settings.decide.patience_s),
        ageing=seconds(settings.worker.ageing_s),
        zone=ZoneInfo(settings.service.timezone),
        fetch_missing=frozenset(node.name for node in settings.nodes if node.fetch_missing),
    )


def models_of(settings: Settings) -> tuple[Mapping[str, ModelInputs], Mapping[str, str]]:
    """Return what each model needs that a route names, unless the route is off.

    Beside that, why the package of one can't be read: that keeps nothing back but its own routes.
    """
    models: dict[str, ModelInputs] = {}
    missing: dict[str, str] = {}
    for name in sorted({route.model for route in settings.routes if route.mode != "off"}):
        try:
            package = open_registry(settings.folders.models).get(name)
            models[name] = ModelInputs(package_sha256=package.sha256, inputs=package.inputs)
        except ConfigError as error:
            missing[name] = f"{error.sentence[0].upper()}{error.sentence[1:]}"
        except OSError as error:
            missing[name] = f"Model package {name} can't be read: {error}. Mend that."
    return models, missing


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped("Ingest was told to stop.")


def _ingesting(
    settings: Settings,
    engine: Engine,
    pulse: Callable[[], None],
    go_on: GoOn = lambda: None,
) -> Callable[[], bool]:
    config: Ingest | None = None
    published = 0.0
    noted = ""
    named = _naming(settings, engine)

    def once() -> bool:
        nonlocal config, published, noted
        config = config or named()
        if config is None:
            return False
        idle = not reader.waits(config.spool)
        if idle and time.monotonic() - published < _PUBLISH_S:
            return False
        host_name, run = config.host, config.run
        with reading(engine) as connection:
            ahead = clocks.apart(connection, present)
        if noted != host_name:  # before it tells that it lives, which others hold against it
            with reading(engine) as connection:
                archive.require_kept(connection, config.data)
            archive.note_host(config.data, host_name)
            noted = host_name

        def clock() -> Instant:
            return Instant(present() - ahead)

        def after_step(_: str) -> None:
            # What came in an outage may take long: each step shows that it gets on.
            nonlocal published
            pulse()
            if time.monotonic() - published >= _ALIVE_S:
                with writing(engine) as connection:
                    hosts.note_alive(connection, host_name, clock(), run)
                published = time.monotonic()

        try:
            done = ingest(engine, replace(config, ahead=ahead), clock, after_step, go_on)
        except Stopped:
            return False
        except NameTaken as taken:
            name, config = host.rename(config.spool), None
            log.warning("host has a new name", name=name, why=taken.sentence)
            return True
        published = time.monotonic()
        return bool(done.catalogued or done.set_aside)

    return once


def _naming(settings: Settings, engine: Engine) -> Callable[[], Ingest | None]:
    """Return what gives this host its name; None while it is not known whose that is.

    It may stand in a copy of another host's spool. Where that host goes on telling of itself by
    it, this one takes another; where it does not, as when its machine started again, it is ours.
    """
    machine = socket.gethostname()
    run = ""
    seen: Sign | None = None
    since_s = looked_s = 0.0

    def named() -> Ingest | None:
        nonlocal run, seen, since_s, looked_s
        config = ingest_of(settings)
        run = run or hosts.run_on(machine, host.place_of(config.spool))
        new = replace(config, run=run)
        with writing(engine) as connection:
            now = clocks.common(connection, present)
            sign = hosts.sign_of(connection, new.host)
            now_s = time.monotonic()
            if now_s - looked_s > _GAP_S:
                seen, since_s = None, now_s
            looked_s = now_s
            if sign is not None and sign.run == run:
                # Who waited for it too has seen that, and is a host of its own by now.
                return new if now_s - since_s >= _GAP_S else None
            if hosts.is_free(connection, sign, run):
                taken = hosts.take_name(connection, new.host, run, now, sign)
                return new if taken else None
            if sign == seen and now_s - since_s >= _SILENT_S:
                hosts.take_name(connection, new.host, run, now, sign)
                since_s = now_s
                return None
        assert sign is not None
        if seen is None:
            seen, since_s = sign, now_s
            why = (
                f"Host {new.host} was last told of on {sign.machine}, from another spool or before "
                "a restart of the machine. If it is not told of from there, this is that host. "
                "Until then what comes is kept in the spool."
            )
            log.warning("host waits for its name", name=new.host, why=why, longest_s=_SILENT_S)
        elif sign != seen:
            seen = None
            name = host.rename(new.spool)
            why = (
                f"Another scheduler, on {sign.machine}, goes by the name of host {new.host}: this "
                "is a copy of its spool. If this one is not meant to run, stop it, and then: "
                f"dicomai forget {name}"
            )
            log.warning("host has a new name", name=name, why=why)
        return None

    return named


def _rules(settings: Settings) -> Callable[[], Rules]:
    """Return what reads the rules, and reads them anew when they may have changed."""
    known: Rules | None = None
    read_at = 0.0

    def current() -> Rules:
        nonlocal known, read_at
        if known is None or time.monotonic() - read_at >= _RELOAD_S:
            known, read_at = rules_of(settings), time.monotonic()
        return known

    return current


def _promising(settings: Settings, engine: Engine, pulse: Callable[[], None]) -> Callable[[], bool]:
    keeper = Keeper(settings=settings, engine=engine, clock=present, pulse=pulse)
    return keeper.keep_once


def _counting(settings: Settings, engine: Engine, pulse: Callable[[], None]) -> Callable[[], bool]:
    return Counter(
        settings=settings, engine=engine, clock=present, rules=_rules(settings), pulse=pulse
    ).count_once


def _pulling(settings: Settings, engine: Engine, pulse: Callable[[], None]) -> Callable[[], bool]:
    return Puller(settings=settings, engine=engine, clock=present, pulse=pulse).pull_once


def _seeking(settings: Settings, engine: Engine, pulse: Callable[[], None]) -> Callable[[], bool]:
    return Seeker(
        settings=settings, engine=engine, clock=present, rules=_rules(settings), pulse=pulse
    ).seek_once


def _backfilling(
    settings: Settings, engine: Engine, pulse: Callable[[], None]
) -> Callable[[], bool]:
    backfiller = Backfiller(
        settings=settings, engine=engine, clock=present, rules=_rules(settings), pulse=pulse
    )

    def once() -> bool:
        backfiller.backfill_once()
        return False  # a step at a time: the node has other things to do

    return once


def _deciding(settings: Settings, engine: Engine, pulse: Callable[[], None]) -> Callable[[], bool]:
    rules = _rules(settings)
    told: Mapping[str, str] = {}
    released = False

    def once() -> bool:
        nonlocal told, released
        if not released:
            with writing(engine) as connection:
                # What waited for another configuration: this may be it.
                jobs.release_held(connection, "config", present())
            released = True
        with reading(engine) as connection:
            some_wait = waiting_routes.some(connection)
            now = clocks.common(connection, present)
        due = are_due(engine, seconds(settings.decide.patience_s), now)
        if not due and not some_wait:
            return False
        current = rules()
        for model, why in current.missing.items():
            if told.get(model) != why:
                log.warning("routes wait for their model", model=model, why=why)
        told = current.missing
        worked = "decided" in decide_due(engine, current, now).values()
        with reading(engine) as connection:
            waiting = waiting_routes.due(connection, current.blocked, now) if some_wait else ()
        for each in waiting:
            pulse()
            worked |= take_up(engine, each, current, now)
        return worked

    return once
