"""Asking a node for storage commitment, and reporting to one that asked (PS3.4 J.3)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.presentation import build_context

from dicomai.errors import DicomaiError, RefusedError, TransientError
from dicomai.net import commitment_taking
from dicomai.net.admission import COMMITMENT
from dicomai.net.calling import GoOn, NothingAccepted, associated, watched
from dicomai.net.commitment import (
    INSTANCE,
    REQUEST,
    CommitmentReport,
    CommitmentRequest,
    written_report,
    written_request,
)
from dicomai.net.node import Node
from dicomai.net.reception import Reception
from dicomai.net.tls import NO_FILES, TlsFiles
from dicomai.spool.entries import Ending

LISTEN_S: Final = 1.0
"""How long we stay after a request: some nodes report in the same association."""
_LOOK_S: Final = 0.1
# It does not know the class, the action, or us (PS3.7 annex C): another try says the same.
_FOR_GOOD: Final = frozenset({0x0105, 0x0112, 0x0118, 0x0119, 0x0122, 0x0123, 0x0124, 0x0211})


class NotOffered(RefusedError):
    """The node takes no requests for storage commitment, or none of ours."""


def ask(
    node: Node,
    our_ae: str,
    request: CommitmentRequest,
    reception: Callable[[], Reception],
    listen: Callable[[], bool],
    go_on: GoOn,
    files: TlsFiles = NO_FILES,
) -> None:
    """Ask a node to commit objects; its report may come long after, at our receiver.

    Parameters
    ----------
    node
        Whom.
    our_ae
        What we call ourselves.
    request
        What it is to commit.
    reception
        Makes what keeps a report that comes in the same association.
    listen
        Called often while we stay for a moment; False: there is nothing to listen for.
    go_on
        Called often until the node has answered; raises to break off.
    files
        For TLS, where the node speaks it.

    Raises
    ------
    NotOffered
        The node does not do it.
    TransientError, RefusedError, ConfigError
        It can't be reached, rejects us, or failed.
    """
    taken, answered = threading.Event(), threading.Event()
    receptions: list[Reception] = []

    def take(event: evt.Event) -> tuple[int, None]:
        receptions.append(reception())
        status = commitment_taking.take(event, receptions[-1], node)
        taken.set()
        return status, None

    def sent(_: evt.Event) -> None:
        if taken.is_set():  # before that we must not release
            answered.set()

    how: Ending = "aborted"
    try:
        with associated(
            node, our_ae, [build_context(COMMITMENT)], files, go_on=go_on
        ) as association:
            association.bind(evt.EVT_N_EVENT_REPORT, take)
            association.bind(evt.EVT_PDU_SENT, sent)
            with watched(association, go_on):
                said, _ = association.send_n_action(
                    written_request(request), REQUEST, COMMITMENT, INSTANCE
                )
            _check(node, said, "a request for storage commitment")
            until = time.monotonic() + LISTEN_S
            while association.is_established and time.monotonic() < until and listen():
                if answered.wait(_LOOK_S):
                    break
        how = "released"
    except NothingAccepted as trouble:
        raise NotOffered(
            f"{node.name} takes no request for storage commitment from {our_ae}. Allow it there, "
            "or set commitment = false for it.",
            subject=node.name,
        ) from trouble
    finally:
        for each in receptions:
            each.end(how)


def report(node: Node, our_ae: str, told: CommitmentReport, files: TlsFiles = NO_FILES) -> None:
    """Tell a node that had asked what of it is committed, in an association of its own.

    We call as the SCP, which the negotiation of roles says (PS3.4 J.3.3, PS3.7 D.3.3.4). Many nodes
    answer nothing to that and take the report all the same.

    Raises
    ------
    TransientError, RefusedError, ConfigError
        It can't be reached, or does not take the report.
    """
    contexts = [build_context(COMMITMENT)]
    try:
        with associated(node, our_ae, contexts, files, takes=(COMMITMENT,)) as association:
            said, _ = association.send_n_event_report(
                written_report(told), told.event_type, COMMITMENT, INSTANCE
            )
    except NothingAccepted as trouble:
        raise NotOffered(
            f"{node.name} takes no report on storage commitment from {our_ae}. Allow it there.",
            subject=node.name,
        ) from trouble
    _check(node, said, "a report on storage commitment")


def _check(node: Node, said: Dataset, what: str) -> None:
    if "Status" not in said:
        raise TransientError(f"{node.name} gave no answer to {what}.", subject=node.name)
    if said.Status == 0:
        return
    error: type[DicomaiError] = NotOffered if said.Status in _FOR_GOOD else TransientError
    own = f', "{said.ErrorComment}"' if said.get("ErrorComment") else ""
    raise error(
        f"{node.name} refused {what} (status 0x{said.Status:04X}{own}). Look at its log.",
        subject=node.name,
    )
