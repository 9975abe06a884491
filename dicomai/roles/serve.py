"""The service: its roles, checked and started as one tree of processes."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from dicomai.errors import ConfigError, DatabaseError
from dicomai.process import set_by_signals
from dicomai.roles import logs
from dicomai.roles.notify import from_environment
from dicomai.roles.tree import Life, Role, Tree
from dicomai.settings import Settings

RoleName = Literal["receive", "query", "schedule", "work"]

# What a role needs is imported in its own process: the receiver loads no database, and only the
# runner loads torch.


def receive(settings: Settings, life: Life) -> None:
    """Take what nodes send into the spool."""
    from dicomai.net.receiver import ReceiverConfig, TlsPort
    from dicomai.net.receiver import receive as receiving

    gc.freeze()  # what was imported stays; looking at it took a sixth of a short association
    pulse = threading.Thread(target=_beat, args=(life,), name="pulse", daemon=True)
    pulse.start()
    config, tls = settings.receiver, settings.tls
    receiving(
        ReceiverConfig(
            ae_title=config.ae_title,
            host=config.host,
            port=None if tls.only else config.port,
            tls=TlsPort(port=tls.port, files=tls.files) if tls.certificate else None,
            limits=config.limits,
            nodes=settings.nodes,
            spool=settings.folders.spool,
            reserve_bytes=config.reserve_bytes,
            max_associations=config.max_associations,
            shares_port=config.processes > 1,
        ),
        life.ready,
        life.stop,
    )


def query(settings: Settings, life: Life) -> None:
    """Answer what peers ask of the archive."""
    from dicomai.roles import database
    from dicomai.roles.query import query as querying

    database.wait_for(settings, life)
    querying(settings, life)


def schedule(settings: Settings, life: Life) -> None:
    """Ingest, decide, keep house."""
    from dicomai.roles import database
    from dicomai.roles.schedule import schedule as scheduling

    database.wait_for(settings, life)
    scheduling(settings, life)


def work(settings: Settings, life: Life) -> None:
    """Analyse and deliver."""
    from dicomai.roles import database
    from dicomai.roles.work import work as working

    database.wait_for(settings, life)
    working(settings, life)


ROLES: Final[Mapping[RoleName, Role]] = MappingProxyType(
    {"receive": receive, "query": query, "schedule": schedule, "work": work}
)


def serve(settings: Settings, roles: Collection[RoleName] | None = None) -> int:
    """Run roles until SIGTERM or SIGINT; return an exit code.

    Without names all that the configuration has a use for.

    Everything is checked before anything starts; a database that does not answer is waited for by
    the roles that need it, and the receiver needs none. Call it from the main thread.

    Raises
    ------
    ConfigError
        The database is not there or of another version, a model is missing or not trusted, or a
        certificate can't be used.
    """
    logs.configure(settings.log.format, settings.log.level)
    if roles is None:
        unused = {"query"} if settings.query.port is None else set()
        roles = [name for name in ROLES if name not in unused]
    check(settings, roles)
    stop = threading.Event()
    with _stopped_by_signals(stop):
        chosen: dict[str, Role] = {name: ROLES[name] for name in ROLES if name in roles}
        if "receive" in chosen:
            more = range(2, settings.receiver.processes + 1)
            chosen |= {f"receive {number}": receive for number in more}
        return Tree(settings, chosen, from_environment()).run(stop)


def _unwritable(folder: Path, settings: Settings) -> str:
    with suppress(OSError):
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return (
                f"{folder} can't be written: it is read-only here. The units of systemd let only "
                "/var/lib/dicomai be written: ReadWritePaths= names another data folder, "
                f"{settings.folders.data}, see docs/how-to/run-for-good.md, With systemd. Without "
                "them see how its file system is mounted."
            )
    return f"{folder} can't be written by this user. Give it to the user that runs dicomai."


def check(settings: Settings, roles: Collection[RoleName]) -> None:
    """Look at all that the roles need, and is there; raises as `serve`."""
    for folder in (settings.folders.spool, settings.folders.archive, settings.folders.quarantine):
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} is not there. If its disk is mounted, make the folders: dicomai init "
                f"{settings.folders.data}",
                subject=str(folder),
            )
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(_unwritable(folder, settings), subject=str(folder))
    from dicomai.settings import SettingsError, check_tls

    if problems := check_tls(settings):
        raise SettingsError(problems)
    if set(roles) == {"query"} and settings.query.port is None:
        raise ConfigError(
            f"{settings.file}, query.port: there is none, so nobody can ask. Add it under [query].",
            subject="query.port",
        )
    if set(roles) == {"receive"}:
        return
    _check_models(settings)
    from dicomai.store.engine import open_engine
    from dicomai.store.migrate import require_current

    engine = open_engine(settings.database.url)
    try:
        with suppress(DatabaseError):
            require_current(engine, settings.folders.data)
    finally:
        engine.dispose()


def _check_models(settings: Settings) -> None:
    from dicomai.models.registry import open_registry
    from dicomai.settings import SettingsError, check_models

    registry = open_registry(settings.folders.models)
    problems = check_models(settings, registry.names)
    if problems:
        raise SettingsError(problems)
    for name in sorted({route.model for route in settings.routes if route.mode != "off"}):
        registry.get_trusted(name)


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    set_by_signals(stop, numbers)
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _beat(life: Life) -> None:
    while not life.stop.wait(1.0):
        life.pulse()
