"""Modality Performed Procedure Step as its SCP: messages into the spool, judged when they are read.

PS3.4 F.7. The receiver has no database, so it takes each message that can be read, durably, in
order with the objects; what a message means for its step is found out at ingest.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

import structlog
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_CREATE, N_SET

from dicomai.dicom.uid import validated
from dicomai.errors import DicomaiError, InputError
from dicomai.net.admission import MPPS
from dicomai.net.decoding import decoded
from dicomai.net.reception import Reception, file_meta
from dicomai.spool.entries import EntryKind

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
INVALID_ATTRIBUTE: Final = 0x0106
INVALID_INSTANCE: Final = 0x0117
NO_SUCH_CLASS: Final = 0x0118
_IN_PROGRESS: Final = "IN PROGRESS"
_STATUSES: Final = (_IN_PROGRESS, "COMPLETED", "DISCONTINUED")

_log = structlog.get_logger()


def take(event: evt.Event, reception: Reception) -> int:
    """Keep the N-CREATE or N-SET of an event, and return the status to answer."""
    request = event.request
    if event.context.abstract_syntax != MPPS:
        wrong = InputError("A message about a procedure step came in a context of another class.")
        return _refused(reception, wrong, NO_SUCH_CLASS)
    if isinstance(request, N_CREATE):
        kind: EntryKind = "create"
        instance, raw = request.AffectedSOPInstanceUID, request.AttributeList
    else:
        assert isinstance(request, N_SET)
        kind = "set"
        instance, raw = request.RequestedSOPInstanceUID, request.ModificationList
    try:
        uid = validated(str(instance or ""), "SOP Instance UID of the procedure step")
    except InputError as wrong:
        return _refused(reception, wrong, INVALID_INSTANCE)
    if raw is None:
        raw = BytesIO()
    syntax = event.context.transfer_syntax
    try:
        _check(kind, decoded(raw, str(syntax)))
    except InputError as wrong:
        return _refused(reception, wrong, INVALID_ATTRIBUTE)
    try:
        reception.keep_message(kind, file_meta(MPPS, uid, str(syntax)), raw.getvalue())
    except (DicomaiError, OSError) as trouble:
        return _refused(reception, trouble, PROCESSING_FAILURE)
    return SUCCESS


def _check(kind: EntryKind, message: Dataset) -> None:
    status = str(message.get("PerformedProcedureStepStatus") or "").strip()
    if kind == "create" and status != _IN_PROGRESS:
        raise InputError(f"A new procedure step has the status {status!a}, not {_IN_PROGRESS!a}.")
    if status and status not in _STATUSES:
        raise InputError(f"No procedure step has the status {status!a}.")


def _refused(reception: Reception, why: DicomaiError | OSError, status: int) -> int:
    _log.warning("procedure step not kept", node=reception.node, reason=str(why))
    return status
