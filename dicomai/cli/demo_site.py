"""The site of a demonstration: a service with a configuration of its own, and a stand-in PACS."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicomai.cli import stand_in_pacs as pacs_module
from dicomai.cli.stand_in_pacs import StandInPacs, stand_in_pacs
from dicomai.errors import TransientError
from dicomai.net.node import Node
from dicomai.settings import PREFIX, Settings, load
from dicomai.store.engine import open_engine
from dicomai.store.migrate import upgrade

MODALITY_AE: Final = "MODALITY"
_START_S: Final = 120.0
_STOP_S: Final = 40.0

# Short quiet times: the demonstration knows that it sends each study in one association.
_CONFIG: Final = """# The configuration of a demonstration; see docs/reference/settings.md.
[service]
data = "."

[receiver]
host = "127.0.0.1"
port = {port}
reserve_bytes = 200_000_000

[decide]
patience_s = 15

[retention]
reserve_bytes = 0

[log]
format = "json"

[[nodes]]
name = "MODALITY"
ae_title = "{modality}"
addresses = ["127.0.0.1"]
quiet_s = 3
association_per_study = true
floor_s = 1

[[nodes]]
name = "PACS"
ae_title = "{pacs}"
host = "127.0.0.1"
port = {pacs_port}

[[routes]]
name = "lungs"
model = "chest-ct-lungs"
when = ["Modality = CT"]
destinations = ["PACS"]

[[routes]]
name = "nodules"
model = "chest-ct-nodules"
when = ["Modality = CT"]
destinations = ["PACS"]

[[routes]]
name = "x-ray"
model = "chest-xray-nodule"
when = ["Modality in DX, CR"]
destinations = ["PACS"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A service that runs, and its PACS."""

    settings: Settings
    pacs: StandInPacs
    receiver: Node
    log: Path
    process: subprocess.Popen[bytes]

    def check_alive(self) -> None:
        """Raise a TransientError with the service's last words if it has ended."""
        if self.process.poll() is not None:
            raise TransientError(
                f"The service ended: {_last_words(self.log)} Its whole log is {self.log}."
            )


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Set a site up in a folder, and run it for as long as the block lasts."""
    data = folder / "service"
    data.mkdir(parents=True, exist_ok=True)
    with stand_in_pacs(folder / "pacs") as pacs:
        port = _free_port()
        file = data / "dicomai.toml"
        file.write_text(
            _CONFIG.format(
                port=port,
                modality=MODALITY_AE,
                pacs=pacs_module.AE_TITLE,
                pacs_port=pacs.port,
            ),
            encoding="utf-8",
        )
        settings = load(file, {})
        for each in (
            settings.folders.spool,
            settings.folders.archive,
            settings.folders.quarantine,
            settings.folders.models,
        ):
            each.mkdir(exist_ok=True)
        upgrade(open_engine(settings.database.url))
        log = data / "service.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "dicomai", "serve", "--config", str(file)],
                stdout=out,
                stderr=out,
                env={key: each for key, each in os.environ.items() if not key.startswith(PREFIX)},
                start_new_session=True,  # Ctrl-C reaches us, and we end it in order
            )
        running = Site(
            settings=settings,
            pacs=pacs,
            receiver=Node(
                name="dicomai",
                ae_title=settings.receiver.ae_title,
                host="127.0.0.1",
                port=port,
            ),
            log=log,
            process=process,
        )
        before = signal.signal(signal.SIGTERM, _exit)
        try:
            _wait_for(running)
            yield running
        finally:
            _stop(process)
            signal.signal(signal.SIGTERM, before)


def _exit(number: int, _frame: object) -> None:
    # Unwinds, so that the service does not outlive the demonstration.
    sys.exit(128 + number)


def _wait_for(running: Site) -> None:
    give_up = time.monotonic() + _START_S
    while time.monotonic() < give_up:
        running.check_alive()
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex((running.receiver.host, running.receiver.port)) == 0:
                return
        time.sleep(0.05)
    raise TransientError(
        f"The service did not listen within {_START_S:.0f} s: {_last_words(running.log)} "
        f"Its whole log is {running.log}."
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    for line in reversed(lines):
        try:
            said = json.loads(line)
        except ValueError:
            return line
        if said.get("level") in ("error", "critical", "warning"):
            return str(said.get("why") or said.get("event"))
    return lines[-1] if lines else "it said nothing."


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
