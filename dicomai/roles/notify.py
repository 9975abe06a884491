"""What systemd is told of a service: sd_notify(3), on the socket that it names."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["READY=1", "STOPPING=1", "WATCHDOG=1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifier:
    """Tells systemd; does nothing where none listens.

    Attributes
    ----------
    address
        Path of the socket, or an abstract name that starts with "@"; empty: nobody listens.
    watchdog_s
        A service that is silent for so long is killed and started again; 0: never.
    """

    address: str = ""
    watchdog_s: float = 0.0

    def tell(self, state: State) -> None:
        """Send one state; systemd may be gone, and that is no reason to stop."""
        self._send(state)

    def say(self, sentence: str) -> None:
        """Have `systemctl status` show a sentence; an empty one takes the last away."""
        self._send(f"STATUS={' '.join(sentence.split())}")

    def _send(self, text: str) -> None:
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        # Neither a systemd that doesn't listen must stop us, nor that no file can be opened.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), address)


def from_environment(environ: Mapping[str, str] = os.environ) -> Notifier:
    """Return the notifier that systemd asks for: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID."""
    ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    watchdog_us = int(environ.get("WATCHDOG_USEC", "0")) if ours else 0
    return Notifier(address=environ.get("NOTIFY_SOCKET", ""), watchdog_s=watchdog_us / 1e6)
