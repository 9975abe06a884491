"""Who may associate: by title, address, TLS and certificate, decided from values."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomai.net.admission import ANSWERING, RECEIVING, Call, Rejection, caller, in_vain
from dicomai.net.node import Node
from dicomai.net.tls import Certificate, SubjectPart, _subject, pin_of

SHA256 = "ab" * 32
CERTIFICATE = Certificate(
    subject=(SubjectPart("O", "Hospital, Inc"), SubjectPart("CN", "ct1")), sha256=SHA256
)
CALL = Call(
    called_ae="DICOMAI",
    calling_ae="CT1",
    address="192.0.2.20",
    secured=True,
    certificate=CERTIFICATE,
)
CT1 = Node(name="ct1", ae_title="CT1", addresses=("192.0.2.0/24",), tls=True)


def admitted(node: Node, call: Call) -> bool:
    found = caller([node], "DICOMAI", call)
    if isinstance(found, Rejection):
        # PS3.8 9.3.4: for good, by the service user, calling AE title not recognized.
        assert found.code == (1, 1, 3)
        assert found.sentence.count("192.0.2.20") == 1
        return False
    return found is node


def test_a_node_that_speaks_tls_is_taken_over_tls_only() -> None:
    assert admitted(CT1, CALL)
    assert not admitted(CT1, replace(CALL, secured=False, certificate=None))
    assert admitted(replace(CT1, tls=False), replace(CALL, secured=False, certificate=None))


def test_a_certificate_is_needed_only_where_it_is_required() -> None:
    without = replace(CALL, certificate=None)
    assert admitted(CT1, without)
    assert not admitted(replace(CT1, certificate_required=True), without)
    assert not admitted(replace(CT1, certificate="CN=ct1"), without)
    assert admitted(replace(CT1, certificate_required=True), CALL)


@pytest.mark.parametrize(
    ("pin", "fits"),
    [
        ("CN=ct1", True),
        (r"CN=ct1, O=Hospital\, Inc", True),
        (CERTIFICATE.name, True),  # as the log says it
        ("sha256:" + SHA256, True),
        ("SHA256:" + ":".join(["AB"] * 32), True),
        ('subject=O = "Hospital, Inc", CN = ct1', True),  # as openssl 3.0 prints it
        ('subject=O="Hospital, Inc", CN=ct1', True),  # as openssl 3.2 does
        ("CN=ct2", False),
        ("CN=ct1, O=Hospital", False),
        ("CN=ct1, OU=Radiology", False),
        ("sha256:" + "ac" * 32, False),
    ],
)
def test_a_node_is_known_by_fingerprint_or_subject(pin: str, fits: bool) -> None:
    assert admitted(replace(CT1, certificate=pin), CALL) is fits


def test_who_calls_by_any_title_is_told_apart_by_certificate() -> None:
    nodes = [
        replace(CT1, name="vendor", ae_title="*", certificate="O=Vendor"),
        replace(CT1, name="ours", ae_title="*", certificate="CN=ct1"),
    ]
    assert caller(nodes, "DICOMAI", CALL) is nodes[1]


def test_the_log_says_which_certificate_a_rejected_caller_has() -> None:
    found = caller([replace(CT1, certificate="CN=ct2")], "DICOMAI", CALL)
    assert isinstance(found, Rejection)
    assert CERTIFICATE.name.replace("\\", "\\\\") in found.sentence
    assert f"sha256:{SHA256}" in found.sentence


def test_what_openssl_prints_of_a_certificate_pins_it(
    tmp_path: Path, peer: Callable[[str], str]
) -> None:
    file = tmp_path / "odd.pem"
    subject = '/O=A, "B" C/OU=Röntgen/street=Weg 1/emailAddress=a@b.example/UID=u/CN=山 1'
    made = ["req", "-x509", "-newkey", "ed25519", "-nodes", "-utf8", "-subj", subject]
    shown = ["x509", "-noout", "-subject", "-in", file]
    openssl = peer("openssl")
    subprocess.run([openssl, *made, "-keyout", tmp_path / "key", "-out", file], check=True)
    printed = subprocess.check_output([openssl, *shown], encoding="utf-8")
    trust = ssl.create_default_context(cafile=str(file))
    (decoded,) = trust.get_ca_certs()

    pin = pin_of(printed)
    assert len(pin.subject) == 6
    assert pin.fits(Certificate(subject=_subject(decoded["subject"]), sha256=SHA256))


@pytest.mark.parametrize("text", ["ct1", "CN=", "sha256:ab", "CN=a,,", "=ct1", "CN=a, b", "CN=a\\"])
def test_what_pins_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="pins no certificate"):
        pin_of(text)


values = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).filter(
    lambda text: text == text.strip()
)


@given(st.lists(st.builds(SubjectPart, st.sampled_from(["CN", "O", "OU"]), values), min_size=1))
def test_the_name_of_any_certificate_pins_it(subject: list[SubjectPart]) -> None:
    certificate = Certificate(subject=tuple(subject), sha256=SHA256)
    assert pin_of(certificate.name).fits(certificate)


@pytest.mark.parametrize(
    ("proposed", "here", "advice"),
    [
        ("1.2.840.10008.5.1.4.1.2.2.1", ANSWERING, 'If it may, add "query" to `may` of that node.'),
        ("1.2.840.10008.5.1.4.1.2.2.1", RECEIVING, '"query" is for another port: query.port.'),
        ("1.2.840.10008.5.1.4.1.1.2", ANSWERING, '"store" is for another port: receiver.port.'),
        ("1.2.840.10008.1.20.1", RECEIVING, 'If it may, add "commit" to `may` of that node.'),
        ("1.2.840.10008.5.1.4.31", RECEIVING, "That is no service of ours."),
        ("not a UID", RECEIVING, "That is no service of ours."),
    ],
)
def test_who_gets_nothing_is_told_of_with_what_helps(
    proposed: str, here: tuple[str, ...], advice: str
) -> None:
    told = in_vain(CT1, CALL, [proposed], here)

    assert told == f"'CT1' at 192.0.2.20, node ct1, got nothing of what it proposed. {advice}"
