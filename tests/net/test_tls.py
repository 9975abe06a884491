"""TLS by PS3.15 B.12 between the receiver and peers that no one here wrote."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dicomai.net.node import Node
from dicomai.net.scu import echo, store_objects
from dicomai.net.tls import TlsFiles
from dicomai.spool import reader
from tests.conftest import Authority, wait_for_port

Receiver = Any  # of conftest.py, which tests can't import
MakeReceiver = Callable[..., Receiver]
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


@pytest.fixture
def pacs(
    peer: Peer, authority: Authority, tmp_path: Path, free_port: int
) -> Iterator[Callable[..., Node]]:
    """Start DCMTK's storescp over TLS; gives the node that it is."""
    running = []

    def start(certificate: tuple[Path, Path], *options: str | Path, **facts: object) -> Node:
        folder = tmp_path / "pacs"
        folder.mkdir(exist_ok=True)
        chain, key = certificate
        command = [peer("storescp"), "+tls", key, chain, "+cf", authority.certificate, *options]
        process = subprocess.Popen(
            [*map(str, command), "+B", "-od", str(folder), str(free_port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        running.append(process)
        wait_for_port(free_port, process)
        usual = {"name": "PACS1", "ae_title": "PACS1", "host": "127.0.0.1", "tls": True}
        return Node(**usual | {"port": free_port} | facts)

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_dcmtk_gets_what_we_send_over_tls(
    pacs: Callable[..., Node], authority: Authority, sample_data: Path, tmp_path: Path
) -> None:
    ours, key = authority.issue("ours")
    files = TlsFiles(certificate=ours, key=key, authorities=authority.certificate)
    node = pacs(authority.issue("pacs"))
    image = sample_data / "transfer-syntaxes" / "ct-small" / "CT_small.dcm"
    assert echo(node, "DICOMAI", files).ok
    (outcome,) = store_objects(node, "DICOMAI", [image], lambda _: None, files)
    assert outcome.kind == "ok", outcome.sentence
    assert len(list((tmp_path / "pacs").iterdir())) == 1


def test_we_send_nothing_to_a_node_that_we_do_not_believe(
    pacs: Callable[..., Node], authority: Authority, tmp_path: Path
) -> None:
    ours, key = authority.issue("ours")
    files = TlsFiles(certificate=ours, key=key, authorities=authority.certificate)
    node = pacs(authority.issue("pacs", extensions="subjectAltName=DNS:pacs.example"), "-ic")

    def said(node: Node, files: TlsFiles = files) -> str:
        answer = echo(node, "DICOMAI", files)
        assert not answer.ok
        return answer.sentence

    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in said(node)
    assert echo(replace(node, certificate="CN=pacs"), "DICOMAI", files).ok
    assert "has the certificate 'CN=pacs'" in said(replace(node, certificate="CN=other"))
    assert "tls.authorities" in said(node, TlsFiles(certificate=ours, key=key, authorities=ours))
    assert "TLS" in said(replace(node, tls=False))


def test_a_node_that_wants_our_certificate_says_so(
    pacs: Callable[..., Node], authority: Authority
) -> None:
    node = pacs(authority.issue("pacs"))
    answer = echo(node, "DICOMAI", TlsFiles(authorities=authority.certificate))
    assert not answer.ok
    assert "tls.certificate" in answer.sentence
