"""What is received in one association: each object checked, kept, answered; one line at the end.

The answer Success leaves only after the spool has the object durably (PS3.4 B.2.3 has the other
statuses).
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from dicomai.dicom.dates import Instant, now
from dicomai.dicom.uid import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    SOPClassUID,
    SOPInstanceUID,
)
from dicomai.errors import DicomaiError, DiskFull, InputError
from dicomai.net.head import Head, read_head
from dicomai.spool import entries
from dicomai.spool.durable import free_bytes
from dicomai.spool.entries import Ending

SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
DOES_NOT_MATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000

_log = structlog.get_logger()


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A C-STORE request.

    Attributes
    ----------
    sop_class_uid, sop_instance_uid
        As the command set says.
    abstract_syntax, transfer_syntax
        Of the presentation context that it came in.
    data_set
        As it was sent.
    """

    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax: str
    transfer_syntax: str
    data_set: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status, and for a refusal the reason."""

    status: int
    sentence: str = ""


@dataclass(slots=True, kw_only=True)
class Reception:
    """One association that was accepted, from its start to its end.

    Attributes
    ----------
    spool
        The folder that takes the objects.
    reserve_bytes
        Free space that must be left.
    node, calling_ae, called_ae, address
        Who sends.
    started_at
        When it was accepted.
    """

    spool: Path
    reserve_bytes: int
    node: str
    calling_ae: str
    called_ae: str
    address: str
    started_at: Instant
    _writer: entries.Writer | None = None
    _answers: Counter[int] = field(default_factory=Counter)
    _first_refusal: str = ""
    _bytes: int = 0
    _ended: bool = False
    _busy: threading.Lock = field(default_factory=threading.Lock)
    # Clear from the moment an object is in hand until its answer has left.
    _idle: threading.Event = field(default_factory=_set_event)

    def store(self, request: Request) -> Answer:
        """Check and keep one object; say what to answer."""
        self._idle.clear()
        with self._busy:
            answer = self._stored(request)
            self._answers[answer.status] += 1
            if answer.status == SUCCESS:
                self._bytes += request.data_set.nbytes
            elif not self._first_refusal:
                self._first_refusal = answer.sentence
            return answer

    def answered(self) -> None:
        """Note that the answer to the object in hand has left."""
        self._idle.set()

    def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until no object is in hand, or its association has ended."""
        self._idle.wait(timeout_s)

    def _stored(self, request: Request) -> Answer:
        if self._ended:
            return Answer(status=OUT_OF_RESOURCES, sentence="The receiver is stopping.")
        try:
            head = read_head(request.data_set, request.transfer_syntax)
        except InputError as trouble:
            return Answer(status=CANNOT_UNDERSTAND, sentence=trouble.sentence)
        if sentence := _mismatch(request, head):
            return Answer(status=DOES_NOT_MATCH, sentence=sentence)
        try:
            self._keep(request, head)
        except (DiskFull, OSError) as trouble:
            sentence = trouble.sentence if isinstance(trouble, DicomaiError) else str(trouble)
            _log.error("object not kept", node=self.node, reason=sentence)
            return Answer(status=OUT_OF_RESOURCES, sentence=sentence)
        return Answer(status=SUCCESS)

    def _keep(self, request: Request, head: Head) -> None:
        left = free_bytes(self.spool) - request.data_set.nbytes
        if left < self.reserve_bytes:
            raise DiskFull(
                f"{self.spool}: {left} bytes would be left, and receiver.reserve_bytes is "
                f"{self.reserve_bytes}. Make room; the node will be served again by itself.",
                subject=str(self.spool),
            )
        if self._writer is None:
            self._writer = entries.opened(
                self.spool,
                calling_ae=self.calling_ae,
                called_ae=self.called_ae,
                address=self.address,
                node=self.node,
                started_at=self.started_at,
            )
        meta = file_meta(head.sop_class_uid, head.sop_instance_uid, request.transfer_syntax)
        self._writer.add(head.study_instance_uid, (meta, request.data_set))

    def end(self, how: Ending) -> None:
        """Write down how it ended and log it; only the first call counts."""
        with self._busy:
            if self._ended:
                return
            self._ended = True
            self._idle.set()
            at = now()
            if self._writer is not None:
                try:
                    self._writer.end(how, at)
                except (DiskFull, OSError) as trouble:
                    # It will count as lost, which is the careful way to be wrong.
                    _log.error("end of association not kept", node=self.node, reason=str(trouble))
            self._tell(how, at)

    def _tell(self, how: Ending, at: Instant) -> None:
        refused = {
            f"0x{status:04X}": count
            for status, count in sorted(self._answers.items())
            if status != SUCCESS
        }
        tell = _log.warning if refused or how != "released" else _log.info
        facts: dict[str, object] = {
            "association": self._writer.facts.id if self._writer is not None else "",
            "node": self.node,
            "calling_ae": self.calling_ae,
            "address": self.address,
            "ended": how,
            "stored": self._answers[SUCCESS],
            "bytes": self._bytes,
            "seconds": round((at - self.started_at) / 1_000_000, 3),
        }
        if refused:
            facts |= {"refused": refused, "first_refusal": self._first_refusal}
        tell("association ended", **facts)


def _mismatch(request: Request, head: Head) -> str:
    """Return how command set, presentation context and data set disagree, or nothing."""
    said = request.sop_class_uid.rstrip("\0 ")
    if said != request.abstract_syntax:
        return f"The command says class {said!a} in a context of {request.abstract_syntax}."
    if said != head.sop_class_uid:
        return f"The command says class {said}, the data set {head.sop_class_uid}."
    said = request.sop_instance_uid.rstrip("\0 ")
    if said != head.sop_instance_uid:
        return f"The command says instance {said!a}, the data set {head.sop_instance_uid}."
    return ""


def file_meta(
    sop_class_uid: SOPClassUID, sop_instance_uid: SOPInstanceUID, transfer_syntax: str
) -> bytes:
    """Return preamble and File Meta Information of a received object (PS3.10 7.1).

    It says nothing of who sent it or when: the same object from two nodes is the same file.
    """
    elements = b"".join(
        (
            _element(0x0001, b"OB", b"\0\1"),
            _element(0x0002, b"UI", sop_class_uid.encode()),
            _element(0x0003, b"UI", sop_instance_uid.encode()),
            _element(0x0010, b"UI", transfer_syntax.encode()),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode()),
        )
    )
    length = _element(0x0000, b"UL", struct.pack("<I", len(elements)))
    return bytes(128) + b"DICM" + length + elements


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    value += (b" " if vr == b"SH" else b"\0") * (len(value) % 2)
    if vr == b"OB":
        return struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value
