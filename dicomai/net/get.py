"""C-GET: a node sends in the association in which it is asked (PS3.4 C.4.3).

What comes goes into the spool, durably, before it is answered, exactly as at the receiver.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContext, StoragePresentationContexts, build_context

from dicomai.errors import InputError
from dicomai.net.calling import GoOn, NothingAccepted, associated
from dicomai.net.head import read_head
from dicomai.net.messages import MAX_OTHER_DATA_BYTES
from dicomai.net.node import Node
from dicomai.net.reception import DOES_NOT_MATCH, Reception, Request
from dicomai.net.suboperations import (
    MESSAGE_ID,
    Progress,
    Tally,
    Wanted,
    fetching,
    followed,
    not_offered,
    require,
)
from dicomai.net.tls import NO_FILES, TlsFiles
from dicomai.spool.entries import Ending

STUDY_ROOT_GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
NATIVE: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
# Lossless ones first. A context each: a node that has an object in one of them sends it as it is.
COMPRESSED: Final = (
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
)
_MAX_CONTEXTS: Final = 128


@dataclass(slots=True)
class Unasked:
    """How many objects came that were not asked for; none of them was kept."""

    count: int = field(default=0)


def get(
    node: Node,
    our_ae: str,
    wanted: Wanted,
    classes: Collection[str],
    reception: Reception,
    on_progress: Progress,
    go_on: GoOn,
    files: TlsFiles = NO_FILES,
    unasked: Unasked | None = None,
) -> Tally:
    """Fetch objects into the spool, and return what became of them, as the node counts.

    Parameters
    ----------
    node
        Whom to ask.
    our_ae
        What we call ourselves.
    wanted
        What to fetch.
    classes
        SOP classes of what is wanted; empty: unknown, then the usual ones are proposed.
    reception
        What keeps the objects; it is ended here.
    on_progress
        Told the count now and then.
    go_on
        Called often; raises to break off.
    unasked
        Counts what came of another study or series; it is refused.

    Raises
    ------
    TransientError, RefusedError
        It can't be reached, or failed as a whole; what came before is kept.
    """
    proposed = _contexts(sorted(classes))
    takes = sorted({str(context.abstract_syntax) for context in proposed})
    contexts = [build_context(STUDY_ROOT_GET), *proposed]
    tally = Tally()
    try:
        with (
            _ended(reception),
            associated(
                node, our_ae, contexts, files, takes, go_on, _largest(reception)
            ) as association,
            fetching(association, go_on),
        ):
            require(node, our_ae, association, STUDY_ROOT_GET, "C-GET")
            _keep_in(association, reception, wanted, unasked or Unasked())
            answers = association.send_c_get(wanted.identifier, STUDY_ROOT_GET, msg_id=MESSAGE_ID)
            tally = followed(node, "C-GET", "send what it was asked for", answers, on_progress)
    except NothingAccepted as trouble:
        raise not_offered(node, our_ae, "C-GET") from trouble
    return tally


def _largest(reception: Reception) -> int:
    """Return how large a message with an object may be, which its reception refuses by itself."""
    return reception.object_bytes + MAX_OTHER_DATA_BYTES


@contextmanager
def _ended(reception: Reception) -> Iterator[None]:
    how: Ending = "aborted"
    try:
        yield
        how = "released"
    finally:
        reception.end(how)


def _keep_in(
    association: Association, reception: Reception, wanted: Wanted, unasked: Unasked
) -> None:
    """Have what comes in an association kept; it is answered when it is durable."""

    def keep(event: evt.Event) -> int:
        request, context = event.request, event.context
        assert isinstance(request, C_STORE)
        assert request.DataSet is not None
        data_set = request.DataSet.getbuffer()
        if _is_unasked(data_set, str(context.transfer_syntax), wanted):
            unasked.count += 1
            return DOES_NOT_MATCH
        incoming = reception.begin(
            Request(
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                abstract_syntax=str(context.abstract_syntax),
                transfer_syntax=str(context.transfer_syntax),
                retrieved=True,
            )
        )
        incoming.write(data_set)
        status = incoming.finish().status
        incoming.answered()
        return status

    association.bind(evt.EVT_C_STORE, keep)


def _is_unasked(data_set: memoryview, transfer_syntax: str, wanted: Wanted) -> bool:
    try:
        head = read_head(data_set, transfer_syntax)
    except InputError:
        return False  # refused where it is kept, which says why
    if head.study_instance_uid != wanted.study_instance_uid:
        return True
    return bool(wanted.series) and head.series_instance_uid not in wanted.series


def _contexts(classes: Sequence[str]) -> list[PresentationContext]:
    """Return what to propose: native transfer syntaxes for all, compressed ones as room allows."""
    room = _MAX_CONTEXTS - 1
    known = list(classes) or [str(each.abstract_syntax) for each in StoragePresentationContexts]
    native = [build_context(uid, list(NATIVE)) for uid in known[:room]]
    compressed = [build_context(uid, syntax) for syntax in COMPRESSED for uid in (classes or ())]
    return [*native, *compressed][:room]
