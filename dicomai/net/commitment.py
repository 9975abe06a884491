"""Storage commitment, push model: what is asked and what is reported (PS3.4 annex J)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomai.dicom.uid import SOPClassUID, SOPInstanceUID, validated
from dicomai.errors import InputError

INSTANCE: Final = "1.2.840.10008.1.20.1.1"
"""The one instance of the class, which all requests and reports are about."""
REQUEST: Final = 1
"""Action Type ID of a request."""
ALL_COMMITTED: Final = 1
SOME_FAILED: Final = 2
"""Event Type IDs of reports."""

PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_OBJECT: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119
DUPLICATE_TRANSACTION: Final = 0x0131
REASONS: Final[Mapping[int, str]] = MappingProxyType(
    {
        PROCESSING_FAILURE: "it failed while it looked for it",
        NO_SUCH_OBJECT: "it has no such object",
        0x0213: "it has no resources left",
        0x0122: "it does not support its SOP class",
        CLASS_CONFLICT: "it has it as another SOP class",
        DUPLICATE_TRANSACTION: "the Transaction UID was used before",
    }
)
"""Failure Reasons (PS3.3 C.14.1.1) in words, of what a node says of an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An object that is to be committed."""

    sop_class_uid: SOPClassUID
    sop_instance_uid: SOPInstanceUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An object that is not committed; `reason` is DICOM's (PS3.3 C.14.1.1)."""

    object: Reference
    reason: int

    @property
    def words(self) -> str:
        """Why, with its number."""
        words = REASONS.get(self.reason, "for a reason that the standard does not know")
        return f"{words} (0x{self.reason:04X})"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentRequest:
    """An N-ACTION: keep these."""

    transaction_uid: str
    objects: tuple[Reference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentReport:
    """An N-EVENT-REPORT: these are kept, and those are not."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[Failure, ...]

    @property
    def event_type(self) -> int:
        """Its Event Type ID (PS3.4 J.3.3.1)."""
        return SOME_FAILED if self.failed else ALL_COMMITTED


def read_request(message: Dataset) -> CommitmentRequest:
    """Return what the Action Information of an N-ACTION asks (PS3.4 J.3.2.1.1).

    Raises
    ------
    InputError
        It has no Transaction UID, or names no object.
    """
    with _in_words("request"):
        objects = tuple(_references(message.get("ReferencedSOPSequence") or ()))
        if not objects:
            raise InputError("A request for storage commitment names no object.")
        return CommitmentRequest(transaction_uid=_transaction(message), objects=objects)


def read_report(message: Dataset) -> CommitmentReport:
    """Return what the Event Information of an N-EVENT-REPORT says (PS3.4 J.3.3.1.1).

    An object that it names as committed and as failed counts as failed.

    Raises
    ------
    InputError
        It has no Transaction UID, or names an object wrongly.
    """
    with _in_words("report"):
        failures = message.get("FailedSOPSequence") or ()
        failed = tuple(
            Failure(object=named, reason=int(item.get("FailureReason") or PROCESSING_FAILURE))
            for item, named in zip(failures, _references(failures), strict=True)
        )
        out = {each.object.sop_instance_uid for each in failed}
        return CommitmentReport(
            transaction_uid=_transaction(message),
            committed=tuple(
                each
                for each in _references(message.get("ReferencedSOPSequence") or ())
                if each.sop_instance_uid not in out
            ),
            failed=failed,
        )


def written_request(request: CommitmentRequest) -> Dataset:
    """Return the Action Information of a request."""
    message = Dataset()
    message.TransactionUID = UID(request.transaction_uid)
    message.ReferencedSOPSequence = [_item(each) for each in request.objects]
    return message


def written_report(report: CommitmentReport) -> Dataset:
    """Return the Event Information of a report."""
    message = Dataset()
    message.TransactionUID = UID(report.transaction_uid)
    if report.committed:
        message.ReferencedSOPSequence = [_item(each) for each in report.committed]
    if report.failed:
        failures = []
        for each in report.failed:
            item = _item(each.object)
            item.FailureReason = each.reason
            failures.append(item)
        message.FailedSOPSequence = failures
    return message


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    """Say in a sentence what is wrong with a message, whatever it is."""
    try:
        yield
    except InputError:
        raise
    except Exception as trouble:
        raise InputError(f"A {what} on storage commitment can't be read: {trouble}") from trouble


def _transaction(message: Dataset) -> str:
    return validated(str(message.get("TransactionUID") or ""), "TransactionUID")


def _references(items: Iterable[Dataset]) -> Iterator[Reference]:
    for item in items:
        sop_class, sop = (
            validated(str(item.get(keyword) or ""), keyword)
            for keyword in ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
        )
        yield Reference(sop_class_uid=SOPClassUID(sop_class), sop_instance_uid=SOPInstanceUID(sop))


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = UID(reference.sop_class_uid)
    item.ReferencedSOPInstanceUID = UID(reference.sop_instance_uid)
    return item
