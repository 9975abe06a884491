"""TLS by PS3.15 B.12 between the receiver and peers that no one here wrote."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dicomai.spool import reader

Receiver = Any  # of conftest.py, which tests can't import
MakeReceiver = Callable[..., Receiver]
Authority = Any
Scu = Any
Peer = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class Secured:
    """A receiver that takes TLS, and the port where it does."""

    receiver: Receiver
    port: int

    def call(self, program: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
        """Call it by one of DCMTK's programs, as CT1."""
        files = [
            option for option in options if isinstance(option, Path) and option.suffix == ".dcm"
        ]
        others = [str(option) for option in options if option not in files]
        command = [program, *others, "-aet", "CT1", "-aec", "DICOMAI"]
        return subprocess.run(
            [*command, "127.0.0.1", str(self.port), *map(str, files)],
            capture_output=True,
            text=True,
            timeout=20,
        )


MakeSecured = Callable[..., Secured]


@pytest.fixture
def secured(
    make_receiver: MakeReceiver, authority: Authority, free_ports: Callable[[int], list[int]]
) -> MakeSecured:
    """Start a receiver that takes TLS."""

    def make(key: str = "ec", node: dict[str, object] | None = None, **settings: object) -> Secured:
        certificate, private = authority.issue(f"receiver-{key}", key=key)
        port = free_ports(2)[1]
        files = {"certificate": certificate, "key": private, "authorities": authority.certificate}
        receiver = make_receiver(
            tls={"port": port, "files": {name: str(path) for name, path in files.items()}},
            nodes=[{"name": "ct1", "ae_title": "CT1", "tls": True} | (node or {})],
            **settings,
        )
        return Secured(receiver=receiver, port=port)

    return make


@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_dcmtk_sends_over_tls(
    secured: MakeSecured, key: str, peer: Peer, authority: Authority, sample_data: Path, scu: Scu
) -> None:
    to = secured(key)
    image = sample_data / "transfer-syntaxes" / "ct512" / "ct512_jpegls-lossless-80.dcm"
    trust = ("+cf", authority.certificate)
    assert to.call(peer("echoscu"), "+tla", *trust).returncode == 0
    sent = to.call(peer("storescu"), "-xt", "+tla", *trust, image)
    assert sent.returncode == 0, sent.stderr
    (entry,) = reader.entries(to.receiver.spool)
    assert scu.data_set_of(entry.path) == scu.data_set_of(image)
