"""Messages about storage commitment out of the spool, put into the catalogue."""

from __future__ import annotations

from pydicom import dcmread
from sqlalchemy import Connection

from dicomai.dicom.dates import Instant
from dicomai.errors import InputError
from dicomai.net.commitment import (
    DUPLICATE_TRANSACTION,
    CommitmentReport,
    CommitmentRequest,
    read_report,
    read_request,
)
from dicomai.spool.entries import Entry
from dicomai.store import commitments, promises
from dicomai.store.commitments import Told
from dicomai.store.promises import Asked


def read(entry: Entry) -> CommitmentRequest | CommitmentReport:
    """Return what a message says.

    Raises
    ------
    InputError
        It can't be read.
    """
    if not entry.association.node:
        raise InputError(
            f"{entry.path.parent} does not say any more who sent this message about storage "
            "commitment. Look at its disk.",
            subject=str(entry.path),
        )
    try:
        message = dcmread(entry.path)
        return read_request(message) if entry.kind == "commit" else read_report(message)
    except InputError:
        raise
    except Exception as trouble:
        raise InputError(
            f"This message about storage commitment can't be read: {trouble}",
            subject=str(entry.path),
        ) from trouble


def note(
    connection: Connection,
    entry: Entry,
    message: CommitmentRequest | CommitmentReport,
    now: Instant,
) -> None:
    """Take over what a peer asks of us, or reports on what we asked of it."""
    node = entry.association.node
    if isinstance(message, CommitmentRequest):
        asked = [
            Asked(sop_class_uid=each.sop_class_uid, sop_instance_uid=each.sop_instance_uid)
            for each in message.objects
        ]
        promises.note(
            connection,
            node,
            message.transaction_uid,
            asked,
            entry.received_at,
            DUPLICATE_TRANSACTION,
            now,
        )
        return
    told = Told(
        node=node,
        transaction_uid=message.transaction_uid,
        committed=frozenset(each.sop_instance_uid for each in message.committed),
        failed={
            each.object.sop_instance_uid: f"{node} has not committed it: {each.words}."
            for each in message.failed
        },
    )
    commitments.note(connection, told, now)
