"""Who may associate, and for what: decided from values, before anything is accepted."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom._uid_dict import UID_dictionary

from dicomai.dicom.uid import validated
from dicomai.errors import InputError
from dicomai.net.node import ANY_NODE, Node
from dicomai.net.slots import Full
from dicomai.net.tls import Certificate, pin_of

VERIFICATION: Final = "1.2.840.10008.1.1"
MPPS: Final = "1.2.840.10008.3.1.2.3.3"
"""Modality Performed Procedure Step, which says how far the objects are."""
COMMITMENT: Final = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model: requests to keep objects, and reports that they are kept."""

RECEIVING: Final = ("echo", "store", "commit")
ANSWERING: Final = ("echo", "query")
"""What a node may at the port of the receiver, and at that of queries, in words of `may`."""
_QUERY_MODELS: Final = "1.2.840.10008.5.1.4.1.2."
"""What the UIDs of C-FIND, C-MOVE and C-GET begin with (PS3.4 C.6)."""

# SOP classes of PS3.6 that have the word Storage in their names and are of other services.
_OTHER_SERVICES: Final = ("Storage Commitment", "Media Storage Directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An A-ASSOCIATE-RJ and why it is sent, for the log.

    Attributes
    ----------
    code
        Result, source and reason (PS3.8 9.3.4).
    """

    code: tuple[int, int, int]
    sentence: str


CALLED_UNKNOWN: Final = (1, 1, 7)
CALLING_UNKNOWN: Final = (1, 1, 3)
LOCAL_LIMIT_EXCEEDED: Final = (2, 3, 2)
LOCAL_FAILURE: Final = (2, 2, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """An association request: who calls whom, from where, over what.

    Attributes
    ----------
    called_ae, calling_ae
        As the request says; padding is insignificant (PS3.8 7.1.1.3, 7.1.1.4).
    address
        IP address that the connection comes from.
    secured
        It came over TLS.
    certificate
        What the caller showed, if our authorities vouch for it; else none.
    """

    called_ae: str
    calling_ae: str
    address: str
    secured: bool
    certificate: Certificate | None


def caller(nodes: Sequence[Node], our_ae: str, call: Call) -> Node | Rejection:
    """Return the node that calls, or the rejection that it gets.

    Parameters
    ----------
    nodes
        Those of the configuration.
    our_ae
        What we are called.
    call
        The request.
    """
    called_ae, calling_ae, address = call.called_ae, call.calling_ae, call.address
    if called_ae.strip() != our_ae:
        return _rejection(
            CALLED_UNKNOWN,
            f"{calling_ae!a} at {address} called {called_ae!a}, and we are {our_ae!a}. Correct the "
            "AE title there, or receiver.ae_title here.",
        )
    titled = [node for node in nodes if node.ae_title == calling_ae.strip()]
    titled = titled or [node for node in nodes if node.ae_title == ANY_NODE]
    if not titled:
        return _rejection(
            CALLING_UNKNOWN,
            f"No node has the AE title {calling_ae!a}, which {address} calls itself. Add it to "
            "[[nodes]] if it may send.",
        )
    at_home = [node for node in titled if _comes_from(node, address)]
    if not at_home:
        return _rejection(
            CALLING_UNKNOWN,
            f"{calling_ae!a} called from {address}, which is none of the addresses of node "
            f"{titled[0].name}. Add it there if it may.",
        )
    doubts = [_doubt(node, call) for node in at_home]
    for node, doubt in zip(at_home, doubts, strict=True):
        if not doubt:
            return node
    return _rejection(CALLING_UNKNOWN, doubts[0])


def _doubt(node: Node, call: Call) -> str:
    """Return why a caller is not believed to be a node, or nothing."""
    who = f"{call.calling_ae.strip()!a} called from {call.address}"
    if node.tls and not call.secured:
        return (
            f"{who} without TLS, and node {node.name} has tls = true. Let it call the port of "
            "[tls]."
        )
    if not (node.certificate_required or node.certificate):
        return ""
    if call.certificate is None:
        return f"{who} without a certificate, and node {node.name} needs one. Give it one there."
    if node.certificate and not pin_of(node.certificate).fits(call.certificate):
        return (
            f"{who} with the certificate {call.certificate.name!a} "
            f"(sha256:{call.certificate.sha256}), and node {node.name} has another. If it was "
            "renewed, correct certificate of that node."
        )
    return ""


def too_many(
    node: Node, full: Full, limit: int, setting: str = "receiver.max_associations"
) -> Rejection:
    """Return the rejection, for now, of a node that calls when a limit is reached."""
    if full == "node":
        sentence = (
            f"{node.name} has {limit} associations, as many as its max_associations allows, and "
            "wanted one more; it was rejected for now."
        )
    else:
        sentence = (
            f"{limit} associations are open, as many as {setting} allows; "
            f"{node.name} was rejected for now."
        )
    return _rejection(LOCAL_LIMIT_EXCEEDED, sentence)


def _rejection(code: tuple[int, int, int], sentence: str) -> Rejection:
    return Rejection(code=code, sentence=sentence)


def _comes_from(node: Node, address: str) -> bool:
    if not node.addresses:
        return True
    at = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(at, ipaddress.IPv6Address) and at.ipv4_mapped is not None:
        at = at.ipv4_mapped
    return any(at in ipaddress.ip_network(each, strict=False) for each in node.addresses)


def is_storage(abstract_syntax: str) -> bool:
    """Tell whether an abstract syntax is a storage SOP class, as far as one can know.

    Private classes and those that are newer than our dictionary count as storage: nothing else is
    ever proposed to a storage SCP in earnest, and what a C-STORE brings can always be kept.
    """
    known = UID_dictionary.get(abstract_syntax)
    if known is None:
        return True
    name, kind = known[0], known[1]
    if kind != "SOP Class" or any(word in name for word in _OTHER_SERVICES):
        return False
    return "Storage" in name


def allowed(node: Node, abstract_syntax: str) -> bool:
    """Tell whether a node may have a presentation context at a port that receives."""
    right = _right(abstract_syntax)
    if right == "commit":  # it asks us, or reports on what we asked
        return "commit" in node.may or node.commitment
    return right in RECEIVING and right in node.may


def in_vain(node: Node, call: Call, proposed: Iterable[str], here: Collection[str]) -> str:
    """Return why a node got nothing of what it proposed, and what helps; for the log.

    Parameters
    ----------
    proposed
        The abstract syntaxes; none of them was accepted.
    here
        What a node may that this port serves, as `may` says it.
    """
    rights = {_right(each) for each in proposed}
    who = f"{call.calling_ae.strip()!a} at {call.address}, node {node.name},"
    sentences = [f"{who} got nothing of what it proposed."]
    for right in sorted(rights - {""}):
        if right not in here:
            port = "query.port" if right == "query" else "receiver.port"
            sentences.append(f'"{right}" is for another port: {port}.')
        elif right not in node.may:
            sentences.append(f'If it may, add "{right}" to `may` of that node.')
    if rights <= {""}:
        sentences.append("That is no service of ours.")
    return " ".join(sentences)


def _right(abstract_syntax: str) -> str:
    """Return the word of `may` for an abstract syntax; nothing for a service that is not ours."""
    if not _is_uid(abstract_syntax):
        return ""
    if abstract_syntax.startswith(_QUERY_MODELS):
        return "query"
    if abstract_syntax == VERIFICATION:
        return "echo"
    if abstract_syntax == COMMITMENT:
        return "commit"
    return "store" if abstract_syntax == MPPS or is_storage(abstract_syntax) else ""


def roles(node: Node, proposed: Mapping[str, tuple[bool, bool]]) -> dict[str, tuple[bool, bool]]:
    """Return the roles that a node may have of those that it proposes (PS3.7 D.3.3.4).

    Who reports on storage commitment calls as its SCP; for all else the default is enough.

    Parameters
    ----------
    proposed
        As SCU and as SCP, for each SOP class that it names.
    """
    scu, scp = proposed.get(COMMITMENT, (False, False))
    granted = (scu and "commit" in node.may, scp and node.commitment)
    return {COMMITMENT: granted} if any(granted) else {}


def chosen_syntaxes(proposals: Iterable[tuple[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Return the transfer syntaxes to take for each abstract syntax, the first wish first.

    Parameters
    ----------
    proposals
        (abstract syntax, transfer syntaxes) of each presentation context.

    Notes
    -----
    All are taken, for nothing is decoded on the way in. Within a context the sender's order
    holds, except that what PS3.6 knows goes before what it doesn't: others must read it too.
    """
    chosen: dict[str, dict[str, None]] = {}
    for abstract_syntax, syntaxes in proposals:
        own = chosen.setdefault(abstract_syntax, {})
        own |= dict.fromkeys(syntax for syntax in syntaxes if _is_uid(syntax))
    return {
        abstract_syntax: sorted(syntaxes, key=lambda syntax: syntax not in UID_dictionary)
        for abstract_syntax, syntaxes in chosen.items()
        if syntaxes
    }


def _is_uid(value: str) -> bool:
    try:
        return validated(value, "UID") == value
    except InputError:
        return False
