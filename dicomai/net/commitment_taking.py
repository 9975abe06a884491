"""Requests for storage commitment and reports of it, taken into the spool (PS3.4 J.3).

The receiver has no database, so it takes each message that can be read, durably, in order with the
objects; what it means is found out when it is ingested, after all that came before it.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

import structlog
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT

from dicomai.errors import DicomaiError, DiskFull, InputError, RefusedError
from dicomai.net.admission import COMMITMENT
from dicomai.net.commitment import (
    ALL_COMMITTED,
    INSTANCE,
    REQUEST,
    SOME_FAILED,
    read_report,
    read_request,
)
from dicomai.net.decoding import decoded
from dicomai.net.node import Node
from dicomai.net.reception import Reception, file_meta
from dicomai.spool.entries import EntryKind

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
NO_SUCH_EVENT_TYPE: Final = 0x0113
INVALID_ARGUMENT: Final = 0x0115
NO_SUCH_CLASS: Final = 0x0118
NO_SUCH_ACTION: Final = 0x0123
NOT_AUTHORISED: Final = 0x0124
OUT_OF_RESOURCES: Final = 0x0213

_log = structlog.get_logger()


class _Wrong(Exception):
    """What came is not what this class takes; with the status that says so."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def take(event: evt.Event, reception: Reception, node: Node) -> int:
    """Keep the N-ACTION or N-EVENT-REPORT of an event, and return the status to answer.

    Parameters
    ----------
    event
        It.
    reception
        Of its association.
    node
        Who sends it: it may ask where `may` has "commit", and report where we ask it.
    """
    request = event.request
    syntax = str(event.context.transfer_syntax)
    try:
        if isinstance(request, N_ACTION):
            kind, raw = _request(request, node, syntax)
        else:
            assert isinstance(request, N_EVENT_REPORT)
            kind, raw = _report(request, node, syntax)
        if event.context.abstract_syntax != COMMITMENT:
            raise _Wrong(NO_SUCH_CLASS, "It came in a context of another class.")
        reception.keep_message(kind, file_meta(COMMITMENT, INSTANCE, syntax), raw)
    except _Wrong as wrong:
        return _refused(reception, wrong, wrong.status)
    except RefusedError as refusal:
        return _refused(reception, refusal, NOT_AUTHORISED)
    except InputError as wrong:
        return _refused(reception, wrong, INVALID_ARGUMENT)
    except DiskFull as full:
        return _refused(reception, full, OUT_OF_RESOURCES)
    except (DicomaiError, OSError) as trouble:
        return _refused(reception, trouble, PROCESSING_FAILURE)
    return SUCCESS


def _request(request: N_ACTION, node: Node, syntax: str) -> tuple[EntryKind, bytes]:
    _check_instance(request.RequestedSOPClassUID, request.RequestedSOPInstanceUID)
    if request.ActionTypeID != REQUEST:
        raise _Wrong(NO_SUCH_ACTION, f"There is no action of type {request.ActionTypeID}.")
    if "commit" not in node.may:
        raise RefusedError(
            f'{node.name} asks for storage commitment and may not. Add "commit" to its may.',
            subject=node.name,
        )
    raw = request.ActionInformation or BytesIO()
    read_request(decoded(raw, syntax))
    return "commit", raw.getvalue()


def _report(report: N_EVENT_REPORT, node: Node, syntax: str) -> tuple[EntryKind, bytes]:
    _check_instance(report.AffectedSOPClassUID, report.AffectedSOPInstanceUID)
    if report.EventTypeID not in (ALL_COMMITTED, SOME_FAILED):
        raise _Wrong(NO_SUCH_EVENT_TYPE, f"There is no event of type {report.EventTypeID}.")
    if not node.commitment:
        raise RefusedError(
            f"{node.name} reports on storage commitment, and it is not asked for any. If it shall "
            "be, set commitment = true for it.",
            subject=node.name,
        )
    raw = report.EventInformation or BytesIO()
    read_report(decoded(raw, syntax))
    return "report", raw.getvalue()


def _check_instance(sop_class: object, sop_instance: object) -> None:
    if str(sop_class) != COMMITMENT:
        raise _Wrong(NO_SUCH_CLASS, "It is about another class.")
    if str(sop_instance) != INSTANCE:
        raise _Wrong(NO_SUCH_INSTANCE, "It is about another instance than the well-known one.")


def _refused(reception: Reception, why: Exception, status: int) -> int:
    _log.warning(
        "storage commitment refused", node=reception.node, status=f"0x{status:04X}", reason=str(why)
    )
    return status
