"""What is received in one association: each object checked, kept, answered; one line at the end.

The answer Success leaves only after the spool has the object durably (PS3.4 B.2.3 has the other
statuses).
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import structlog

from dicomai.dicom.dates import Instant, now
from dicomai.dicom.uid import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    StudyInstanceUID,
)
from dicomai.errors import DicomaiError, DiskFull, InputError, TransientError
from dicomai.net.admission import is_storage
from dicomai.net.head import Head, head_so_far, read_head
from dicomai.spool import entries
from dicomai.spool.entries import Ending, EntryKind
from dicomai.spool.folder import free_bytes

SUCCESS: Final = 0x0000
NOT_SUPPORTED: Final = 0x0122
OUT_OF_RESOURCES: Final = 0xA700
DOES_NOT_MATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000

# After so much of an object the room on the disk is looked at again.
_LOOK_BYTES: Final = 2**23

_UID_CHARACTERS: Final = 64
_PREAMBLE: Final = bytes(128) + b"DICM"

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
    retrieved
        We had asked for it.
    """

    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax: str
    transfer_syntax: str
    retrieved: bool = False


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
    object_bytes
        Largest data set that is kept.
    node, calling_ae, called_ae, address
        Who sends.
    started_at
        When it was accepted.
    certificate
        Which one the peer showed; empty where it showed none.
    """

    spool: Path
    reserve_bytes: int
    object_bytes: int
    node: str
    calling_ae: str
    called_ae: str
    address: str
    started_at: Instant
    certificate: str = ""
    _writer: entries.Writer | None = None
    _answers: Counter[int] = field(default_factory=Counter)
    _first_refusal: str = ""
    _bytes: int = 0
    _ended: bool = False
    _busy: threading.Lock = field(default_factory=threading.Lock)
    # Clear from the moment an object is in hand until its answer has left.
    _idle: threading.Event = field(default_factory=_set_event)

    def begin(self, request: Request) -> Incoming:
        """Return what takes the data set of a request."""
        self._idle.clear()
        return Incoming(self, request)

    def answered(self) -> None:
        """Note that the answer to the object in hand has left, or that none ever will."""
        self._idle.set()

    def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until no object is in hand, or its association has ended."""
        self._idle.wait(timeout_s)

    def settled(self, incoming: Incoming) -> Answer:
        """Keep an object that is whole, unless it was refused on the way; say what to answer."""
        with self._busy:
            if self._ended:
                answer = Answer(status=OUT_OF_RESOURCES, sentence="The receiver is stopping.")
            else:
                answer = incoming.kept()
            self._answers[answer.status] += 1
            if answer.status == SUCCESS:
                self._bytes += incoming.bytes
            elif not self._first_refusal:
                self._first_refusal = answer.sentence
            return answer

    def check_room(self) -> None:
        """Raise DiskFull when the reserve is reached."""
        left = free_bytes(self.spool)
        if left < self.reserve_bytes:
            raise DiskFull(
                f"{self.spool}: {left} bytes are left, and receiver.reserve_bytes is "
                f"{self.reserve_bytes}. Make room; the node will be served again by itself.",
                subject=str(self.spool),
            )

    def writer(self, *, retrieved: bool) -> entries.Writer:
        """Return the spool's side of this association, made with its first object.

        A node sends what it was asked for in an association for that alone, so that the first
        object speaks for all.
        """
        if self._writer is None:
            self._writer = entries.opened(
                self.spool,
                calling_ae=self.calling_ae,
                called_ae=self.called_ae,
                address=self.address,
                node=self.node,
                started_at=self.started_at,
                retrieved=retrieved,
            )
        return self._writer

    def keep(
        self, part: entries.Arriving, study: StudyInstanceUID | None, kind: EntryKind = "object"
    ) -> None:
        """Keep what is whole, durably; go on in another folder if a sync of this one fails.

        A sync that failed is not tried again, and the names that stand in the folder, and its own,
        are as uncertain as that of what is refused.
        """
        try:
            part.keep(study, kind)
        except (DiskFull, OSError):
            part.close()
            writer, self._writer = self._writer, None
            if writer is not None:
                with suppress(OSError):
                    writer.end("lost", now())
            raise

    def keep_message(self, kind: EntryKind, *chunks: bytes) -> None:
        """Keep a message that is no object, durably; may be acknowledged when this returns.

        Raises
        ------
        DiskFull, OSError
            Nothing of it is left.
        """
        with self._busy:
            if self._ended:
                raise TransientError("The receiver is stopping.")
            self.check_room()
            with self.writer(retrieved=False).begin() as arriving:
                for chunk in chunks:
                    arriving.write(chunk)
                self.keep(arriving, None, kind)

    def end(self, how: Ending, reason: str = "") -> None:
        """Write down how it ended and log it, with the reason if it was ours; once."""
        with self._busy:
            if self._ended:
                return
            self._ended = True
            self._idle.set()
            at = now()
            if self._writer is not None:
                # What was refused for want of room comes again: its study is not whole yet.
                clean = how != "released" or not self._answers[OUT_OF_RESOURCES]
                try:
                    self._writer.end(how if clean else "aborted", at)
                except (DiskFull, OSError) as trouble:
                    # It will count as lost, which is the careful way to be wrong.
                    _log.error("end of association not kept", node=self.node, reason=str(trouble))
            self._tell(how, reason, at)

    def _tell(self, how: Ending, reason: str, at: Instant) -> None:
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
        if self.certificate:
            facts["certificate"] = self.certificate
        if reason:
            facts["reason"] = reason
        if refused:
            facts |= {"refused": refused, "first_refusal": self._first_refusal}
        tell("association ended", **facts)


@dataclass(slots=True)
class Incoming:
    """One object, from its C-STORE request to the answer.

    Parameters
    ----------
    reception
        Of its association.
    request
        Which brought it.
    """

    reception: Reception
    request: Request
    bytes: int = field(default=0, init=False)
    _part: entries.Arriving | None = field(default=None, init=False)
    _head: Head | None = field(default=None, init=False)
    _refusal: Answer | None = field(default=None, init=False)
    _look_at: int = field(default=_LOOK_BYTES, init=False)

    def write(self, piece: memoryview) -> None:
        """Take the next bytes of the data set; what is refused is not written any further."""
        if not piece:  # nothing has begun yet, and nothing goes on
            return
        begins = self.bytes == 0
        self.bytes += len(piece)
        if self._refusal is not None:
            return
        try:
            if self.bytes > self.reception.object_bytes:
                raise DiskFull(
                    f"An object of {self.reception.node} has more than "
                    f"{self.reception.object_bytes} bytes, as many as the receiver takes.",
                    subject=self.reception.node,
                )
            if begins:
                self._begin(piece)
            elif self._part is not None:
                self._part.write(piece)
                if self.bytes >= self._look_at:
                    self._look_at += _LOOK_BYTES
                    self.reception.check_room()
        except (DicomaiError, OSError) as trouble:
            self._refuse(trouble)

    def finish(self) -> Answer:
        """Keep the object, which is whole; say what to answer."""
        try:
            return self.reception.settled(self)
        finally:
            self._close()

    def answered(self) -> None:
        """Note that the answer has left."""
        self.reception.answered()

    def drop(self) -> None:
        """Let go of an object that will never be whole."""
        self._close()
        self.reception.answered()

    def kept(self) -> Answer:
        """Keep the object durably, and say so, or why not; for its reception."""
        try:
            if self._refusal is None:
                self._keep()
        except (DicomaiError, OSError) as trouble:
            self._refuse(trouble)
        return self._refusal or Answer(status=SUCCESS)

    def _begin(self, piece: memoryview) -> None:
        request = self.request
        if not is_storage(request.abstract_syntax):  # and who has it may have no other
            raise _NotStorage(
                f"An object came in a context of {request.abstract_syntax}, which brings none."
            )
        self._know(head_so_far(piece, request.transfer_syntax))
        self._part = self.reception.writer(retrieved=request.retrieved).begin()
        meta = file_meta(
            _unpadded(request.sop_class_uid),
            _unpadded(request.sop_instance_uid),
            request.transfer_syntax,
        )
        self._part.write(meta, piece)

    def _know(self, head: Head | None) -> None:
        self._head = head
        if head is not None and (sentence := _mismatch(self.request, head)):
            raise _DoesNotMatch(sentence)

    def _keep(self) -> None:
        if self._part is None:
            read_head(memoryview(b""), self.request.transfer_syntax)
        assert self._part is not None
        if self._head is None:  # it did not fit into the first piece
            with self._part.mapped() as whole, whole[-self.bytes :] as data_set:
                self._know(read_head(data_set, self.request.transfer_syntax))
        assert self._head is not None
        self.reception.check_room()
        self.reception.keep(self._part, self._head.study_instance_uid)

    def _refuse(self, trouble: DicomaiError | OSError) -> None:
        sentence = trouble.sentence if isinstance(trouble, DicomaiError) else str(trouble)
        if isinstance(trouble, _NotStorage):
            status = NOT_SUPPORTED
        elif isinstance(trouble, _DoesNotMatch):
            status = DOES_NOT_MATCH
        elif isinstance(trouble, InputError):
            status = CANNOT_UNDERSTAND
        else:
            status = OUT_OF_RESOURCES
            _log.error("object not kept", node=self.reception.node, reason=sentence)
        self._refusal = Answer(status=status, sentence=sentence)
        self._close()

    def _close(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.close()


class _NotStorage(InputError):
    """Its context is for another service."""


class _DoesNotMatch(InputError):
    """The data set is another than the command says."""


def _unpadded(uid: str) -> str:
    return uid.rstrip("\0 ")


def _shown(said: str) -> str:
    """Return what a peer gave as a UID, fit for a log: a UID has at most 64 characters."""
    return f"{said[:_UID_CHARACTERS]!a}" + ("…" if len(said) > _UID_CHARACTERS else "")


def _mismatch(request: Request, head: Head) -> str:
    """Return how command set, presentation context and data set disagree, or nothing."""
    said = _unpadded(request.sop_class_uid)
    if said != request.abstract_syntax:
        return f"The command says class {_shown(said)} in a context of {request.abstract_syntax}."
    if said != head.sop_class_uid:
        return f"The command says class {_shown(said)}, the data set {head.sop_class_uid}."
    said = _unpadded(request.sop_instance_uid)
    if said != head.sop_instance_uid:
        return f"The command says instance {_shown(said)}, the data set {head.sop_instance_uid}."
    return ""


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str) -> bytes:
    """Return preamble and File Meta Information of a received object (PS3.10 7.1).

    It says nothing of who sent it or when: the same object from two nodes is the same file.
    """
    before, after = _around_instance(sop_class_uid, transfer_syntax)
    elements = before + _element(0x0003, b"UI", sop_instance_uid.encode("latin-1")) + after
    return _PREAMBLE + _element(0x0000, b"UL", struct.pack("<I", len(elements))) + elements


@lru_cache
def _around_instance(sop_class_uid: str, transfer_syntax: str) -> tuple[bytes, bytes]:
    """Return the elements before and after Media Storage SOP Instance UID."""
    before = _element(0x0001, b"OB", b"\0\1")
    before += _element(0x0002, b"UI", sop_class_uid.encode("latin-1"))
    after = _element(0x0010, b"UI", transfer_syntax.encode())
    after += _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode())
    after += _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode())
    return before, after


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    value += (b" " if vr == b"SH" else b"\0") * (len(value) % 2)
    if vr == b"OB":
        return struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value
