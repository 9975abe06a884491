"""C-MOVE: a node is asked to send to our receiver (PS3.4 C.4.2)."""

from __future__ import annotations

from typing import Final

from pynetdicom.presentation import build_context

from dicomai.net.calling import GoOn, NothingAccepted, associated
from dicomai.net.node import Node
from dicomai.net.suboperations import (
    MESSAGE_ID,
    Progress,
    Tally,
    Wanted,
    fetching,
    followed,
    not_offered,
)
from dicomai.net.tls import NO_FILES, TlsFiles

STUDY_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"


def move(
    node: Node,
    our_ae: str,
    wanted: Wanted,
    on_progress: Progress,
    go_on: GoOn,
    files: TlsFiles = NO_FILES,
) -> Tally:
    """Have a node send to our receiver, and return what became of it.

    Parameters
    ----------
    node
        Whom to ask; it knows our AE title as a destination, with our address and port.
    our_ae
        What we call ourselves, and what our receiver is called.
    wanted
        What to send.
    on_progress
        Told the count now and then.
    go_on
        Called often; raises to break off.

    Raises
    ------
    TransientError, RefusedError
        It can't be reached, does not know the destination, or failed as a whole.
    """
    tally = Tally()
    try:
        with (
            associated(
                node, our_ae, [build_context(STUDY_ROOT_MOVE)], files, go_on=go_on
            ) as association,
            fetching(association, go_on),
        ):
            answers = association.send_c_move(
                wanted.identifier, our_ae, STUDY_ROOT_MOVE, msg_id=MESSAGE_ID
            )
            tally = followed(node, "C-MOVE", f"send to {our_ae}", answers, on_progress)
    except NothingAccepted as trouble:
        raise not_offered(node, our_ae, "C-MOVE") from trouble
    return tally
