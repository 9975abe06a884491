"""A peer: who it is, where it is, what it may do, and how it sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Permission = Literal["echo", "store", "query", "commit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A DICOM application entity as the configuration knows it.

    Attributes
    ----------
    name
        How routes and the command line call it.
    ae_title
        Its AE title, at most 16 characters (PS3.8 7.1.1.4).
    addresses
        IP addresses or networks it may call from; empty: any.
    host, port
        Where it listens; without them nothing can be sent to it or fetched from it.
    tls
        It speaks TLS: it may call over TLS only, and is called over TLS.
    certificate_required
        When it calls, it must show a certificate that tls.authorities vouch for.
    certificate
        Which one it has, in both directions: `sha256:` and the fingerprint, or parts of the
        subject, as `CN=ct1, O=Hospital`.
    max_associations
        At a time, of this node; 0: as many as the receiver takes in all.
    may
        What it may ask of us: `echo`, `store`, `query` (C-FIND, C-GET and C-MOVE at the port of
        [query]), and `commit` (storage commitment: that we keep what it sent, see
        retention.committed_days).
    quiet_s
        A study is whole when this node has sent nothing of it for so long.
    association_per_study
        It sends each study in one association of its own, so that a clean release is evidence.
    floor_s
        What is waited even then.
    issuer_of_patient_id
        Issuer of its Patient IDs where the object does not say.
    charset_default
        Specific Character Set of undeclared bytes above 127; empty: unknown.
    answers_find
        It answers C-FIND, so identity is compared there before a delivery, and what it sends is
        counted there before a study is taken for whole.
    fetch_missing
        What it counts and has not sent when `decide.patience_s` is over is fetched from it.
    rejection_notes
        It takes the notes that withdraw results: those reissued for another patient, and those that
        a person withdraws (IHE IOCM).
    commitment
        It is asked to commit what is delivered to it (storage commitment), and a delivery is done
        when it has reported that it keeps all of it.
    commitment_s
        How long its report is waited for; then the delivery is done as "stored, uncommitted".
    retrieve
        How studies are fetched from it: `move`, C-MOVE to our receiver, which it must know as a
        destination; or `get`, C-GET.
    """

    name: str
    ae_title: str
    addresses: tuple[str, ...] = ()
    host: str = ""
    port: int = 0
    tls: bool = False
    certificate_required: bool = False
    certificate: str = ""
    max_associations: int = 0
    may: tuple[Permission, ...] = ("echo", "store")
    quiet_s: float = 60.0
    association_per_study: bool = False
    floor_s: float = 10.0
    issuer_of_patient_id: str = ""
    charset_default: str = ""
    answers_find: bool = False
    fetch_missing: bool = False
    rejection_notes: bool = False
    commitment: bool = False
    commitment_s: float = 86400.0
    retrieve: Literal["move", "get"] = "move"


ANY_NODE: Final = "*"
