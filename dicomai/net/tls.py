"""TLS by PS3.15 B.12, the BCP 195 RFC 8996, 9325 profile: contexts, certificates, pins.

TLS 1.2 or newer, and of TLS 1.2 only the cipher suites that RFC 9325 4.2 recommends.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from dicomai.errors import ConfigError

CIPHER_SUITES: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
# RFC 9325 4.5: RSA of 2048 bits or more, and what is as hard; some builds of OpenSSL allow less.
_STRENGTH: Final = "@SECLEVEL=2"
_TOO_WEAK: Final = frozenset({"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"})
PORT: Final = 2762
"""dicom-tls, as IANA has it (PS3.15 B.12)."""

_FINGERPRINT: Final = re.compile(r"sha256:((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE)
_SUBJECT_PART: Final = re.compile(
    r'\s*([A-Za-z]+)\s*=\s*(?:"((?:\\.|[^"\\])+)"|((?:\\.|[^,\\])+?))\s*(?:,|$)'
)
_ESCAPED: Final = re.compile(r"((?:\\[0-9A-Fa-f]{2})+)|\\(.)")  # bytes of UTF-8, or a character
# RFC 4514 3, and more that hospitals' certificates have, as openssl shortens them.
_SHORT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "COMMONNAME": "CN",
        "LOCALITYNAME": "L",
        "STATEORPROVINCENAME": "ST",
        "ORGANIZATIONNAME": "O",
        "ORGANIZATIONALUNITNAME": "OU",
        "COUNTRYNAME": "C",
        "STREETADDRESS": "STREET",
        "DOMAINCOMPONENT": "DC",
        "USERID": "UID",
        "EMAILADDRESS": "EMAIL",
        "GIVENNAME": "GN",
        "SURNAME": "SN",
    }
)
_ESCAPES: Final = str.maketrans({each: rf"\{each}" for each in ',"\\'})
_HAS_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_NOT_YET_VALID: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where our side of TLS lies; PEM, absolute.

    Attributes
    ----------
    certificate
        Ours, and after it those between it and its authority; None: we have none.
    key
        Its private key, without a password; None: it is in the file of the certificate.
    authorities
        Certificates of those whose certificates we trust; None: the system's.
    """

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None


NO_FILES: Final = TlsFiles()


class SubjectPart(NamedTuple):
    """One attribute of a name, as CN and ct1."""

    type: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What a peer showed, and its authority vouches for.

    Attributes
    ----------
    subject
        In the order of the certificate.
    sha256
        Of the whole, in lower-case hex.
    """

    subject: tuple[SubjectPart, ...]
    sha256: str

    @property
    def name(self) -> str:
        """The subject in one line."""
        return _name_of(self.subject) or f"sha256:{self.sha256}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Which certificate a node has: by its fingerprint, or by parts of its subject."""

    sha256: str = ""
    subject: frozenset[SubjectPart] = frozenset()

    def fits(self, certificate: Certificate) -> bool:
        """Tell whether a certificate is that one."""
        if self.sha256:
            return certificate.sha256 == self.sha256
        return self.subject <= set(certificate.subject)


def pin_of(text: str) -> Pin:
    """Return the pin that a text says.

    Parameters
    ----------
    text
        ``sha256:`` and 64 hex digits, with or without colons; or attributes of the subject as
        ``CN=ct1, O=Hospital``, where a comma within a value is written ``\\,``; or as openssl
        prints it: after ``subject=``, with a comma in quotes and letters as ``\\C3\\B6``.

    Raises
    ------
    ValueError
        It is neither.
    """
    if found := _FINGERPRINT.fullmatch(text.strip()):
        return Pin(sha256=found[1].replace(":", "").lower())
    text = text.strip().removeprefix("subject=")
    parts, at = [], 0
    while at < len(text) and (part := _SUBJECT_PART.match(text, at)):
        parts.append(SubjectPart(_short(part[1]), _ESCAPED.sub(_meant, part[2] or part[3])))
        at = part.end()
    if not parts or at < len(text):
        raise ValueError(
            f"{text!a} pins no certificate: write sha256: and its fingerprint, or parts of its "
            "subject as CN=ct1, O=Hospital"
        )
    return Pin(subject=frozenset(parts))


def _short(kind: str) -> str:
    return _SHORT.get(kind.upper(), kind.upper())


def _meant(escaped: re.Match[str]) -> str:
    if escaped[1] is None:
        return escaped[2]
    return bytes.fromhex(escaped[1].replace("\\", "")).decode("utf-8", "replace")


def peer_certificate(wire: object) -> Certificate | None:
    """Return the verified certificate at the other end, None where it showed none."""
    if not isinstance(wire, ssl.SSLSocket | ssl.SSLObject):
        return None
    encoded, decoded = wire.getpeercert(binary_form=True), wire.getpeercert()
    if not encoded or not decoded:
        return None
    return Certificate(
        subject=_subject(decoded.get("subject", ())), sha256=hashlib.sha256(encoded).hexdigest()
    )


def _subject(names: object) -> tuple[SubjectPart, ...]:
    assert isinstance(names, tuple)
    return tuple(SubjectPart(_short(kind), value) for name in names for kind, value in name)


def _name_of(subject: tuple[SubjectPart, ...]) -> str:
    """Return a subject as a pin may say it."""
    return ", ".join(f"{part.type}={part.value.translate(_ESCAPES)}" for part in subject)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of our TLS port.

    A certificate is asked for, and must be good if one comes, where we know authorities; whether
    one must come depends on the node, which is known only by the association request.

    Raises
    ------
    ConfigError
        A file is missing, or can't be used.
    """
    context = _profile(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    _load_own(context, files)
    if files.authorities is not None:
        _load_authorities(context, files.authorities)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(files: TlsFiles, *, pinned: bool) -> ssl.SSLContext:
    """Return the context of a call to a node.

    Parameters
    ----------
    files
        Ours.
    pinned
        We know which certificate the node has. If not, its certificate must name its host.

    Raises
    ------
    ConfigError
        A file is missing, or can't be used.
    """
    context = _profile(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = not pinned
    if files.certificate is not None:
        _load_own(context, files)
    if files.authorities is not None:
        _load_authorities(context, files.authorities)
    else:
        context.load_default_certs()
    return context


def _profile(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join((*CIPHER_SUITES, _STRENGTH)))
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context


def _load_own(context: ssl.SSLContext, files: TlsFiles) -> None:
    assert files.certificate is not None
    key = files.key or files.certificate
    for path, setting in ((files.certificate, "tls.certificate"), (key, "tls.key")):
        _readable(path, setting)

    def no_password() -> str:
        raise ConfigError(
            f"{key}: the key has a password, and the service starts by itself. Take it away: "
            f"openssl pkey -in {key} -out NEW; and keep NEW to the service's user. See tls.key.",
            subject="tls.key",
        )

    try:
        context.load_cert_chain(files.certificate, key, no_password)
    except ssl.SSLError as trouble:
        if trouble.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            raise ConfigError(
                f"{key} is not the key of {files.certificate}. Give the two that belong together: "
                "tls.certificate, tls.key.",
                subject="tls.key",
            ) from trouble
        if trouble.reason in _TOO_WEAK:
            raise ConfigError(
                _unfit(files.certificate, trouble), subject="tls.certificate"
            ) from trouble
        raise ConfigError(
            f"{files.certificate} and {key} are no certificate and its key in PEM. Look at them: "
            f"openssl x509 -in {files.certificate} -text; openssl pkey -in {key} -check.",
            subject="tls.certificate",
        ) from trouble


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    _readable(path, "tls.authorities")
    # Whoever is in the file is trusted for himself too: some peers sign their own certificates.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as trouble:
        raise ConfigError(
            f"{path} holds no certificates in PEM. Put those of the authorities into it, one after "
            "the other: tls.authorities.",
            subject="tls.authorities",
        ) from trouble


def _readable(path: Path, setting: str) -> None:
    try:
        path.open("rb").close()
    except OSError as trouble:
        raise ConfigError(
            f"{path} can't be read: {(trouble.strerror or str(trouble)).lower()}. Correct "
            f"{setting}, or let the service's user read it.",
            subject=setting,
        ) from trouble


def fingerprint(path: Path) -> str:
    """Return the pin of the first certificate in a file of PEM, by its fingerprint.

    Raises
    ------
    ConfigError
        The file can't be read.
    """
    _readable(path, "tls.certificate")
    text = path.read_text(encoding="ascii", errors="ignore")
    _, begin, rest = text.partition("-----BEGIN CERTIFICATE-----")
    body, end, _ = rest.partition("-----END CERTIFICATE-----")
    encoded = ssl.PEM_cert_to_DER_cert(f"{begin}{body}{end}")
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """Until when a certificate may be used."""

    path: Path
    name: str
    until: datetime


def checked(files: TlsFiles) -> tuple[Validity, ...]:
    """Return until when our certificate and those of the authorities are valid.

    Ours is tried in a handshake with ourselves, so whatever a peer would find, we find first.

    Raises
    ------
    ConfigError
        A file is missing or can't be used, the key is another's, or ours is not valid now.
    """
    found = []
    if files.certificate is not None:
        found.append(_rehearsed(files))
    if files.authorities is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_authorities(context, files.authorities)
        found += [
            Validity(path=files.authorities, name=_name(each), until=_until(each))
            for each in context.get_ca_certs()
        ]
    return tuple(found)


def _rehearsed(files: TlsFiles) -> Validity:
    path = files.certificate
    assert path is not None
    server = _profile(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    _load_own(server, files)
    client = _profile(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    client.check_hostname = False
    _load_authorities(client, path)  # trusted without its authority
    try:
        decoded = _handshake(server, client).getpeercert()
    except ssl.SSLCertVerificationError as trouble:
        raise ConfigError(_not_valid(path, trouble), subject="tls.certificate") from trouble
    except ssl.SSLError as trouble:
        raise ConfigError(_unfit(path, trouble), subject="tls.certificate") from trouble
    assert decoded
    return Validity(path=path, name=_name(decoded), until=_until(decoded))


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Return the client's end of a connection in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up)]
    while True:
        waiting = []
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting.append(end)
        if not waiting:
            return ends[1]


def _unfit(path: Path, trouble: ssl.SSLError) -> str:
    return (
        f"{path} is not fit for TLS 1.2 or newer: {_words(trouble)}. Have a certificate issued for "
        "an RSA key of 2048 bits or more, or for an elliptic curve: tls.certificate."
    )


def _not_valid(path: Path, trouble: ssl.SSLCertVerificationError) -> str:
    if trouble.verify_code == _HAS_EXPIRED:
        return f"{path} has expired. Put a renewed certificate there, and start again."
    if trouble.verify_code == _NOT_YET_VALID:
        return f"{path} is not valid yet. Is this machine's clock right?"
    return (
        f"{path} would be refused by peers: {trouble.verify_message}. Have one issued for a TLS "
        "server (and client): tls.certificate."
    )


def _until(decoded: Mapping[str, object]) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(decoded["notAfter"])), UTC)


def _name(decoded: Mapping[str, object]) -> str:
    return _name_of(_subject(decoded.get("subject", ())))


# What OpenSSL calls it, and what an administrator can do about it.
_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "UNSUPPORTED_PROTOCOL": "the peer has no TLS 1.2 or newer; update it",
        "TLSV1_ALERT_PROTOCOL_VERSION": "the peer has no TLS 1.2 or newer; update it",
        "NO_SHARED_CIPHER": "the peer has none of the cipher suites of PS3.15 B.12",
        "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer has none of the cipher suites of PS3.15 B.12, "
        "or wants a certificate of ours: tls.certificate",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate of ours: "
        "tls.certificate",
        "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the authority of our certificate; give "
        "it that one's",
        "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refuses our certificate; see its log",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refuses our certificate; see its log",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired; renew tls.certificate",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the peer refuses our certificate for its purpose",
        "WRONG_VERSION_NUMBER": "the other end speaks no TLS at this port",
        "HTTP_REQUEST": "the other end speaks HTTP, not DICOM",
        "RECORD_LAYER_FAILURE": "the other end speaks no TLS at this port",
    }
)


def why(trouble: OSError) -> str:
    """Return why a handshake failed, in an administrator's words, without a full stop."""
    if isinstance(trouble, ssl.SSLCertVerificationError):
        return (
            f"the peer's certificate is refused: {trouble.verify_message}. Its authority belongs "
            "into tls.authorities, and it must be valid now"
        )
    if isinstance(trouble, ssl.SSLError):
        return _words(trouble)
    return (trouble.strerror or str(trouble)).lower()


def _words(trouble: ssl.SSLError) -> str:
    reason = trouble.reason or ""
    return _REASONS.get(reason, (reason.replace("_", " ") or str(trouble)).lower())
