"""A receiver as a process of its own: prints a line when it listens, ends at SIGTERM."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import structlog

from dicomai.net.limits import Limits
from dicomai.net.node import Node
from dicomai.net.receiver import ReceiverConfig, TlsPort, receive
from dicomai.net.tls import TlsFiles
from dicomai.process import set_by_signals


def tls_port(said: dict[str, Any]) -> TlsPort:
    paths = {name: Path(path) for name, path in said["files"].items()}
    return TlsPort(port=said["port"], files=TlsFiles(**paths))


def main() -> None:
    said = json.loads(sys.argv[1])
    nodes = tuple(
        Node(**{**node, "addresses": tuple(node.get("addresses", ()))}) for node in said["nodes"]
    )
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    stop = threading.Event()
    set_by_signals(stop, (signal.SIGTERM,))
    receive(
        ReceiverConfig(
            ae_title=said["ae_title"],
            host="127.0.0.1",
            port=None if said.get("only_tls") else said["port"],
            nodes=nodes,
            spool=Path(said["spool"]),
            reserve_bytes=said["reserve_bytes"],
            max_associations=said["max_associations"],
            shares_port=said.get("shares_port", False),
            tls=tls_port(said["tls"]) if "tls" in said else None,
            limits=Limits(**said.get("limits", {})),
        ),
        ready=lambda: print("ready", flush=True),
        stop=stop,
    )


if __name__ == "__main__":
    main()
