"""`dicomai doctor`: is everything that the service needs all right, and if not, what helps."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import typer

from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import print_json, size, table, text
from dicomai.errors import ConfigError, DicomaiError

if TYPE_CHECKING:
    from pathlib import Path

    from dicomai.net.node import Node
    from dicomai.settings import Settings

Verdict = Literal["good", "warn", "bad"]

_MARKS: Final = {"good": "ok", "warn": "look", "bad": "wrong"}
_RENEW_DAYS: Final = 30
# SQLite's locks and its shared memory don't work there.
_NETWORK_FILE_SYSTEMS: Final = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "glusterfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    remedy
        What to do about it; empty where nothing is to be done.
    """

    of: str
    verdict: Verdict
    found: str
    remedy: str = ""


def doctor(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Look whether all is right, and say what helps.

    Looks at configuration, models, disk, database, port, devices, peers, and at what wants a
    person in the service. Nothing is changed. The exit code is 1 if anything is wrong; what is
    only to be looked at, as a pause or a failed job, leaves it 0.
    """
    from dicomai.settings import SettingsError, load

    checks: list[Check] = []
    try:
        settings = load(config)
    except SettingsError as error:
        checks += [
            Check(
                of="configuration",
                verdict="bad",
                found=f"{each.where}: {each.reason}",
                remedy=each.remedy,
            )
            for each in error.problems
        ]
    else:
        checks += _seen("models", _models(settings))
        checks += _seen("data folder", _disk(settings))
        checks += _seen("database", _database(settings))
        checks += _certificates(settings)
        checks += _receiver(settings)
        checks += [*_device(settings), *_peers(settings)]
    if json:
        print_json(
            [
                {"of": each.of, "verdict": each.verdict, "found": each.found}
                | {"remedy": each.remedy}
                for each in checks
            ]
        )
    else:
        table(
            ["what", "", "found", "what helps"],
            [
                (each.of, text(_MARKS[each.verdict], each.verdict), each.found, each.remedy)
                for each in checks
            ],
        )
    if any(each.verdict == "bad" for each in checks):
        raise typer.Exit(1)


def _good(of: str, found: str) -> Check:
    return Check(of=of, verdict="good", found=found)


def _seen(of: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Give checks; what this user may not look at is one of them, and ends no others."""
    try:
        yield from checks
    except OSError as error:
        yield Check(
            of=of,
            verdict="bad",
            found=f"{error.filename}: {error.strerror}",
            remedy="Run this as the service's user, or give that user the file."
            if isinstance(error, PermissionError)
            else "",
        )


def _models(settings: Settings) -> Iterator[Check]:
    from dicomai.cli.config import model_problems

    problems = model_problems(settings)
    for each in problems:
        yield Check(of="models", verdict="bad", found=each.reason, remedy=each.remedy)
    if not problems:
        yield _good("configuration", f"{settings.file} is right, and its models may run")


def _disk(settings: Settings) -> Iterator[Check]:
    from dicomai.store import archive

    data = settings.service.data
    yield from _room(settings, "data folder", data)
    if not data.is_dir():
        return
    if apart := archive.apart(data):
        yield from _room(settings, "archive", apart)
    if settings.database.url.startswith("sqlite") and (kind := _file_system(data)) in (
        _NETWORK_FILE_SYSTEMS
    ):
        yield Check(
            of="disk",
            verdict="bad",
            found=f"{data} lies on a network file system ({kind}), and SQLite needs a local disk",
            remedy="Move the data folder to a local disk, or use PostgreSQL.",
        )


def _room(settings: Settings, of: str, folder: Path) -> Iterator[Check]:
    """Look whether a folder can be written, and how much goes into it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"dicomai")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Run this as the service's user, or give that user the folder."
        if full:
            remedy = "Make room: delete or move other files, or raise the quota."
        elif error.errno == errno.ENOENT:
            remedy = f"dicomai init {shlex.quote(str(folder))}"
        yield Check(
            of=of,
            verdict="bad",
            found=f"{folder} can't be written: {error.strerror}",
            remedy=remedy,
        )
        if not full:
            return
    free, reserve = shutil.disk_usage(folder).free, settings.receiver.reserve_bytes
    stops, remedy = "reception stops", "Make room: studies are refused until there is some."
    if of == "archive":
        reserve //= 2
        stops, remedy = "analyses stop", "Make room: analyses wait until there is some."
    found = f"{size(free)} free in {folder}; {stops} below {size(reserve)}"
    if free < reserve:
        yield Check(of="disk", verdict="bad", found=found, remedy=remedy)
    elif free < 2 * reserve:
        yield Check(of="disk", verdict="warn", found=found, remedy="Make room soon.")
    else:
        yield _good("disk", found)


def _file_system(path: os.PathLike[str]) -> str:
    """Return the type of the file system that a path lies on, as the kernel names it."""
    here = os.stat(path).st_dev  # noqa: PTH116 - any path-like
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:  # noqa: PTH123 - no file
        for line in mounts:
            fields, _, tail = line.partition(" - ")
            if fields.split()[2] == f"{os.major(here)}:{os.minor(here)}":
                return tail.split()[0]
    return ""


def _database(settings: Settings) -> Iterator[Check]:
    from dicomai.dicom.dates import now
    from dicomai.service import overview
    from dicomai.store import archive
    from dicomai.store.engine import open_engine, reading, shown, unwritable
    from dicomai.store.migrate import require_current

    try:
        engine = open_engine(settings.database.url)
        require_current(engine, settings.folders.data)
        with reading(engine) as connection:
            unknown = archive.unknown(connection, settings.folders.data)
            seen = overview.of_service(connection, settings, now(), recent=1)
    except DicomaiError as error:
        yield Check(of="database", verdict="bad", found=error.sentence)
        return
    if refused := unwritable(engine):
        yield Check(of="database", verdict="bad", found=refused)
    else:
        yield _good(
            "database", f"{shown(settings.database.url)} answers, and has this version's tables"
        )
    if unknown and not refused:  # what was just placed has no rows then
        yield Check(
            of="archive",
            verdict="warn",
            found=archive.unknown_sentence(settings.folders.data, unknown),
            remedy="Take them in: dicomai archive rescan. See docs/how-to/run-for-good.md, If the "
            "database was lost.",
        )
    wants = [each.hold_reason or "" for each in seen.held] + [*replace(seen, unknown=0).remarks]
    for sentence in wants:
        yield Check(of="service", verdict="warn", found=sentence)


def _certificates(settings: Settings) -> Iterator[Check]:
    from dicomai.net.tls import checked

    try:
        found = checked(settings.tls.files)
    except DicomaiError as error:
        yield Check(of="certificate", verdict="bad", found=error.sentence)
        return
    for each in found:
        days = (each.until - datetime.now(UTC)).days
        until = f"{each.path} ({each.name}) is valid until {each.until:%Y-%m-%d}"
        if days < 0:
            yield Check(
                of="certificate",
                verdict="bad",
                found=f"{each.path} ({each.name}) expired on {each.until:%Y-%m-%d}",
                remedy="Renew it, and start the receiver again.",
            )
        elif days < _RENEW_DAYS:
            yield Check(
                of="certificate",
                verdict="warn",
                found=f"{until}, {days} days from now",
                remedy="Renew it before, and start the receiver again.",
            )
        else:
            yield _good("certificate", until)


def _receiver(settings: Settings) -> Iterator[Check]:
    receiver = settings.receiver
    port = settings.tls.port if settings.tls.only else receiver.port
    where = f"{receiver.host}, port {port}"
    address = "127.0.0.1" if receiver.host in ("0.0.0.0", "") else receiver.host  # noqa: S104 - compared only
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.settimeout(3)
            listens = probe.connect_ex((address, port)) == 0
        if listens:
            yield _own_echo(settings, port)
            return
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((receiver.host, port))
    except OSError as error:
        low = error.errno == errno.EACCES
        yield Check(
            of="port",
            verdict="bad",
            found=f"{where}: {error.strerror}",
            remedy="Ports below 1024 need CAP_NET_BIND_SERVICE: see docs/how-to/run-for-good.md."
            if low
            else "Choose another receiver.host or receiver.port.",
        )
        return
    yield Check(
        of="port",
        verdict="warn",
        found=f"{where} is free: no receiver runs here",
        remedy="dicomai serve. If the service runs with an older configuration, start it again.",
    )


def _own_echo(settings: Settings, port: int) -> Check:
    from dicomai.cli.nodes import echo_own_receiver

    receiver = settings.receiver
    answer = echo_own_receiver(settings)
    if answer.ok:
        return _good("port", f"{receiver.ae_title} answers on port {port}")
    return Check(
        of="port",
        verdict="bad",
        found=f"something listens on {receiver.host}, port {port}, and is not our "
        f"receiver: {answer.sentence}",
        remedy=f"End that program, or choose another {'tls' if settings.tls.only else 'receiver'}"
        ".port.",
    )


def _device(settings: Settings) -> Iterator[Check]:
    import torch

    from dicomai.models.device import has_gpu_driver
    from dicomai.models.runtimes.devices import gpu_count, gpu_trouble, gpus

    wanted, seen = settings.worker.device, gpu_count()
    used = set(gpus()) if wanted == "auto" else {"cuda:0" if wanted == "cuda" else wanted}
    sees = f"PyTorch {torch.__version__} sees {seen or 'no'} GPU{'s' if seen > 1 else ''}"
    for number in range(seen):
        facts = torch.cuda.get_device_properties(number)
        found = f"cuda:{number} {facts.name}, {size(facts.total_memory)}"
        if trouble := gpu_trouble(torch.device("cuda", number)):
            yield Check(
                of="device",
                verdict="bad" if f"cuda:{number}" in used else "warn",
                found=f"{found}, does not compute with PyTorch {torch.__version__}: {trouble}",
                remedy="Look at nvidia-smi; or install a PyTorch that is made for this GPU.",
            )
        else:
            yield _good("device", found)
    if wanted.startswith("cuda") and int(wanted.partition(":")[2] or 0) >= seen:
        yield Check(
            of="device",
            verdict="bad",
            found=f"worker.device is {wanted}, and {sees}",
            remedy='Look at nvidia-smi; or set worker.device = "cpu".',
        )
    elif wanted == "cpu" and seen:
        yield Check(
            of="device",
            verdict="warn",
            found="worker.device is cpu, though there is a GPU",
            remedy='Set worker.device = "auto".',
        )
    elif wanted == "auto" and not seen and has_gpu_driver():
        yield Check(
            of="device",
            verdict="warn",
            found=f"A GPU's driver is there, and {sees}: models run on {os.cpu_count()} CPU cores",
            remedy="Look at nvidia-smi; install PyTorch for CUDA, or a driver as new as it wants. "
            'To leave the GPU out: worker.device = "cpu".',
        )
    elif not seen:
        yield _good("device", f"no GPU; models run on {os.cpu_count()} CPU cores")


def _peers(settings: Settings) -> Iterator[Check]:
    for node in settings.nodes:
        if node.host:
            yield _peer(node, settings)


def _peer(node: Node, settings: Settings) -> Check:
    from dicomai.net.scu import echo

    try:
        answer = echo(node, settings.receiver.ae_title, settings.tls.files)
    except ConfigError as error:
        return Check(of=f"node {node.name}", verdict="bad", found=error.sentence)
    verdict: Verdict = "good" if answer.ok else "bad"
    return Check(of=f"node {node.name}", verdict=verdict, found=answer.sentence)
