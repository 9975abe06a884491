"""TLS by PS3.15 B.12 between the receiver and peers that no one here wrote."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dicomai.net.node import Node
from dicomai.net.scu import echo, store_objects
from dicomai.net.tls import TlsFiles, _handshake, server_context
from dicomai.spool import reader
from tests.conftest import Authority, StorePeer

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
def pacs(storescp_with_tls: Callable[..., StorePeer]) -> Callable[..., Node]:
    """Start DCMTK's storescp over TLS; gives the node that it is."""

    def start(certificate: tuple[Path, Path], *options: str | Path) -> Node:
        peer = storescp_with_tls(certificate, *options)
        return Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=peer.port, tls=True)

    return start


def test_dcmtk_gets_what_we_send_over_tls(
    pacs: Callable[..., Node], authority: Authority, sample_data: Path, tmp_path: Path, scu: Scu
) -> None:
    ours, key = authority.issue("ours")
    files = TlsFiles(certificate=ours, key=key, authorities=authority.certificate)
    node = pacs(authority.issue("pacs"))
    folder = sample_data / "transfer-syntaxes"
    images = [
        folder / "ct-small" / "CT_small.dcm",
        folder / "ct512" / "ct512_implicit-le.dcm",  # more than a socket takes at once
    ]
    assert echo(node, "DICOMAI", files).ok
    outcomes = store_objects(node, "DICOMAI", images, lambda _: None, files)
    assert [each.kind for each in outcomes] == ["ok", "ok"], outcomes
    kept = {scu.data_set_of(path) for path in (tmp_path / "storescp-tls").iterdir()}
    assert scu.data_set_of(images[1]) in kept


def test_a_wait_for_an_answer_over_tls_can_be_called_off(
    pacs: Callable[..., Node], authority: Authority, sample_data: Path
) -> None:
    ours, key = authority.issue("ours")
    files = TlsFiles(certificate=ours, key=key, authorities=authority.certificate)
    node = pacs(authority.issue("pacs"), "--sleep-during", "60")
    image = sample_data / "transfer-syntaxes" / "ct-small" / "CT_small.dcm"
    established: list[float] = []

    class CalledOff(Exception):
        pass

    def go_on() -> None:
        if established and time.monotonic() > established[0] + 1.0:
            raise CalledOff

    with pytest.raises(CalledOff):
        store_objects(
            node,
            "DICOMAI",
            [image],
            lambda _: None,
            files,
            go_on=go_on,
            on_established=lambda: established.append(time.monotonic()),
        )
    assert time.monotonic() < established[0] + 20


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


def test_a_node_is_taken_with_its_own_certificate_only(
    secured: MakeSecured, peer: Peer, authority: Authority, scu: Scu
) -> None:
    to = secured(node={"certificate": "CN=ct1, O=Hospital"})
    trust = ("+cf", authority.certificate)

    def shows(name: str, subject: str = "", **facts: str) -> tuple[str | Path, ...]:
        certificate, key = authority.issue(name, subject=subject, **facts)
        return ("+tls", key, certificate, *trust)

    right = shows("ct1", "/O=Hospital/CN=ct1")
    assert to.call(peer("echoscu"), *right).returncode == 0
    for wrong in (("+tla", *trust), shows("ct2"), shows("ct1-elsewhere", "/O=Elsewhere/CN=ct1")):
        refused = to.call(peer("echoscu"), *wrong)
        assert refused.returncode != 0
        assert "Calling AE Title Not Recognized" in refused.stderr
    shown = [line["certificate"] for line in to.receiver.lines() if "certificate" in line]
    assert shown == ["O=Hospital, CN=ct1"]
    said = [str(line["reason"]) for line in to.receiver.lines() if "reason" in line]
    assert ["without a certificate" in each for each in said] == [True, False, False]
    assert "'CN=ct2'" in said[1]
    assert "'O=Elsewhere, CN=ct1'" in said[2]


def test_a_certificate_of_a_strange_authority_gets_no_further_than_the_handshake(
    secured: MakeSecured, peer: Peer, authority: Authority, tmp_path: Path, scu: Scu
) -> None:
    to = secured()
    (tmp_path / "strange").mkdir()
    stranger = replace(authority, folder=tmp_path / "strange").found()
    certificate, key = stranger.issue("ct1")
    call = to.call(peer("echoscu"), "+tls", key, certificate, "+cf", authority.certificate)
    assert call.returncode != 0
    (line,) = scu.eventually(to.receiver.lines)
    assert line["event"] == "connection closed"
    assert "tls.authorities" in str(line["reason"])


def test_without_authorities_no_certificate_is_asked_for(
    make_receiver: MakeReceiver,
    authority: Authority,
    peer: Peer,
    free_ports: Callable[[int], list[int]],
) -> None:
    certificate, key = authority.issue("receiver-ec")
    port = free_ports(2)[1]
    files = {"certificate": str(certificate), "key": str(key)}
    to = Secured(receiver=make_receiver(tls={"port": port, "files": files}), port=port)
    shown = ("+tls", key, certificate, "+cf", authority.certificate)
    assert to.call(peer("echoscu"), *shown).returncode == 0


def test_a_node_with_tls_is_not_taken_without(secured: MakeSecured, peer: Peer, scu: Scu) -> None:
    to = secured()
    plain = replace(to, port=to.receiver.port)
    assert "Calling AE Title Not Recognized" in plain.call(peer("echoscu")).stderr
    (line,) = scu.eventually(to.receiver.lines)
    assert "without TLS, and node ct1 has tls = true" in str(line["reason"])


def test_each_port_says_to_the_log_that_it_is_the_wrong_one(
    secured: MakeSecured, peer: Peer, authority: Authority, scu: Scu
) -> None:
    to = secured()
    assert to.call(peer("echoscu")).returncode != 0
    assert replace(to, port=to.receiver.port).call(peer("echoscu"), "+tla", "-ic").returncode != 0
    reasons = scu.eventually(lambda: [str(line["reason"]) for line in to.receiver.lines()][:2])
    assert reasons == [
        "It speaks no TLS, and this port does. Give it the port of [receiver].",
        "It speaks TLS, and this port does not. Give it the port of [tls].",
    ]


@pytest.mark.parametrize(
    ("version", "suite", "taken"),
    [
        (ssl.TLSVersion.TLSv1_1, "ALL", False),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-SHA384", False),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-CHACHA20-POLY1305", False),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384", True),
        (ssl.TLSVersion.TLSv1_3, "ALL", True),
    ],
    ids=lambda each: getattr(each, "name", each),
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TLS 1.1, which we ask for in vain
def test_only_what_the_profile_has_is_spoken(
    server: ssl.SSLContext, version: ssl.TLSVersion, suite: str, taken: bool
) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.minimum_version = client.maximum_version = version
    client.set_ciphers(f"{suite}:@SECLEVEL=0")
    if not taken:
        with pytest.raises(ssl.SSLError):
            _handshake(server, client)
        return
    end = _handshake(server, client)
    assert end.version() == version.name.replace("_", ".")


@pytest.fixture
def server(authority: Authority) -> ssl.SSLContext:
    """The context of our own port."""
    certificate, key = authority.issue("receiver-ec")
    return server_context(TlsFiles(certificate=certificate, key=key))


def test_who_says_nothing_keeps_nobody_waiting(
    secured: MakeSecured, peer: Peer, authority: Authority, scu: Scu
) -> None:
    to = secured(limits={"request_s": 2.0})
    with socket.create_connection(("127.0.0.1", to.port)) as silent:
        call = to.call(peer("echoscu"), "+tla", "+cf", authority.certificate)
        assert call.returncode == 0
        silent.settimeout(20)
        assert silent.recv(1) == b""
    lines = scu.eventually(
        lambda: [line for line in to.receiver.lines() if line["event"] == "connection closed"]
    )
    assert [line["reason"] for line in lines] == ["TLS: no handshake within 2 s."]


def test_a_receiver_may_take_nothing_but_tls(
    secured: MakeSecured, peer: Peer, authority: Authority
) -> None:
    to = secured(only_tls=True)
    assert to.call(peer("echoscu"), "+tla", "+cf", authority.certificate).returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", to.receiver.port)).close()
