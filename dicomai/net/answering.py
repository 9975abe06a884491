"""C-FIND, C-GET and C-MOVE as we answer them (PS3.4 C.4).

The thread of an association does all of it: it asks the archive, sends, and in between looks
whether the peer cancels or has gone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import C_CANCEL, C_FIND, C_GET, C_MOVE, C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext

from dicomai.dicom.part10 import media
from dicomai.errors import DicomaiError, InputError, NotFound
from dicomai.net.decoding import decoded
from dicomai.net.find import UNIQUE_KEYS
from dicomai.net.identifier import ROOTS, Asked, read, written
from dicomai.net.status import meaning
from dicomai.net.suboperations import Tally
from dicomai.net.transcode import EXPLICIT, IMPLICIT, transcoded
from dicomai.net.upper_layer import Acceptor

if TYPE_CHECKING:
    from pynetdicom.dimse_primitives import DimseServiceType

SUCCESS: Final = 0x0000
PENDING: Final = 0xFF00
PENDING_WITHOUT_SOME_KEYS: Final = 0xFF01
CANCELLED: Final = 0xFE00
DOES_NOT_MATCH: Final = 0xA900
UNABLE_TO_PROCESS: Final = 0xC000
UNABLE_TO_SEND: Final = 0xA702
UNKNOWN_DESTINATION: Final = 0xA801
WITH_FAILURES_OR_WARNINGS: Final = 0xB000
_MAX_COMMENT: Final = 64
# Failed ones that a final answer names; more make it larger than some peers take.
_MOST_NAMED: Final = 1000

_log = structlog.get_logger()

Request = C_FIND | C_GET | C_MOVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An object of the archive."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str


OnSent = Callable[[Kept, int | None], None]
"""Told of each object and the status that it got; None: no answer came, or it could not be sent."""


class Archive(Protocol):
    """What is answered from."""

    @property
    def ae_title(self) -> str:
        """What we are called."""

    def heeds(self, asked: Asked) -> bool:
        """Tell whether all keys are matched that are asked for."""

    def search(self, asked: Asked) -> Iterator[Mapping[str, Sequence[str]]]:
        """Give each match: its values by keyword."""

    def objects(self, asked: Asked) -> Sequence[Kept]:
        """Return the objects that are meant."""

    def send(
        self, destination: str, objects: Sequence[Kept], originator: tuple[str, int], told: OnSent
    ) -> None:
        """Send objects to a node by its AE title; NotFound: there is no such node."""


class Gone(Exception):
    """The peer has gone, or ended the association."""


class _Cancels(dict[int, C_CANCEL]):
    """The requests that were cancelled; one that comes ends the wait for the next message."""

    def __init__(self, answerer: Answerer) -> None:
        super().__init__()
        self._answerer = answerer

    def __setitem__(self, message_id: int, cancel: C_CANCEL) -> None:
        super().__setitem__(message_id, cancel)
        self._answerer.dimse.msg_queue.put((None, None))


class Answerer(Acceptor):
    """An association whose peer asks; `archive` and `charset_default` are set at its admission."""

    archive: Archive
    charset_default: str = ""

    def _serve_request(self, msg: DimseServiceType, context_id: int) -> None:
        context = self._accepted_cx.get(context_id)
        model = ROOTS.get(str(context.abstract_syntax)) if context is not None else None
        if not isinstance(msg, C_FIND | C_GET | C_MOVE) or context is None or model is None:
            super()._serve_request(msg, context_id)
            return
        if not msg.is_valid_request:
            self.abort()
            return
        self._is_paused = True
        self.dimse.cancel_req = _Cancels(self)
        with suppress(Gone):
            _Service(self, msg, context).answer()

    def cancelled(self, message_id: int) -> bool:
        """Tell whether the peer has cancelled a request; raises Gone where it has gone."""
        while self._has_something():
            self.dul.turn()
            self._check()
        return message_id in self.dimse.cancel_req

    def next_answer(self) -> C_STORE:
        """Wait for the answer to a C-STORE; raises Gone where none comes."""
        while True:
            while self.dimse.msg_queue.empty():
                self._check()
                self.dul.turn()
            _, message = self.dimse.get_msg(block=False)
            if isinstance(message, C_STORE):
                return message

    def _check(self) -> None:
        if not self.is_established or not self.dul.is_alive() or self.acse.is_aborted():
            raise Gone

    def _has_something(self) -> bool:
        wire = self.dul.socket.socket if self.dul.socket is not None else None
        if wire is None or wire.fileno() < 0:
            raise Gone
        return self.dul.has_more


class _Service:
    """One request, from its identifier to the final answer."""

    def __init__(self, peer: Answerer, request: Request, context: PresentationContext) -> None:
        self._peer = peer
        self._request = request
        self._context = context
        assert context.context_id is not None
        self._context_id = context.context_id
        self._message_id = request.MessageID or 0
        self._name, self._root = ROOTS[str(context.abstract_syntax)]
        self._tally = Tally()
        self._failed: list[str] = []

    def answer(self) -> None:
        """Do what is asked, and send the final answer."""
        try:
            status, comment = self._done()
        except InputError as wrong:
            status, comment = DOES_NOT_MATCH, wrong.sentence
            _log.warning("request refused", service=self._name, why=wrong.sentence)
        except NotFound as unknown:
            status, comment = UNKNOWN_DESTINATION, unknown.sentence
        except (DicomaiError, OSError) as trouble:
            status, comment = UNABLE_TO_PROCESS, "Trouble at our side; see our log."
            _log.error("request failed", service=self._name, why=str(trouble))
        self._respond(status, comment=comment)

    def _done(self) -> tuple[int, str]:
        asked = read(self._identifier(), self._root, self._peer.charset_default)
        if isinstance(self._request, C_FIND):
            return self._find(asked)
        if not asked.uids(asked.level):
            # An empty key matches all, which nobody wants to be sent.
            raise InputError(f"{UNIQUE_KEYS[asked.level]} must say what is to be sent.")
        objects = self._peer.archive.objects(asked)
        self._tally = Tally(remaining=len(objects))
        if isinstance(self._request, C_GET):
            cancelled = self._get(objects)
        else:
            cancelled = self._move(objects, str(self._request.MoveDestination or "").strip())
        if cancelled:
            return CANCELLED, ""
        if not self._tally.failed and not self._tally.warnings:
            return SUCCESS, ""
        whole = self._tally.completed + self._tally.warnings == 0
        return (UNABLE_TO_SEND if whole else WITH_FAILURES_OR_WARNINGS), ""

    def _identifier(self) -> Dataset:
        raw = self._request.Identifier
        assert raw is not None
        return decoded(raw, str(self._context.transfer_syntax[0]))

    def _find(self, asked: Asked) -> tuple[int, str]:
        peer = self._peer
        pending = PENDING if peer.archive.heeds(asked) else PENDING_WITHOUT_SOME_KEYS
        for found in peer.archive.search(asked):
            if peer.cancelled(self._message_id):
                return CANCELLED, ""
            self._respond(pending, written(asked, found, peer.archive.ae_title))
        return SUCCESS, ""

    def _get(self, objects: Sequence[Kept]) -> bool:
        """Send objects in this association; return whether that was cancelled."""
        accepted: dict[str, dict[str, int]] = {}
        for context in self._peer.accepted_contexts:
            if context.as_scu and context.context_id is not None:
                syntaxes = accepted.setdefault(str(context.abstract_syntax), {})
                syntaxes[str(context.transfer_syntax[0])] = context.context_id
        for each in objects:
            if self._peer.cancelled(self._message_id):
                return True
            self._note(each, self._stored(each, accepted.get(each.sop_class_uid, {})))
            self._respond(PENDING)
        return False

    def _stored(self, kept: Kept, accepted: Mapping[str, int]) -> int | None:
        """Send an object in a transfer syntax that the peer takes; return its status."""
        if not accepted:
            return None
        with ExitStack() as scratch:
            path = kept.path
            try:
                syntax = str(media(path).transfer_syntax_uid)
                if syntax not in accepted:
                    syntax = str(EXPLICIT if EXPLICIT in accepted else IMPLICIT)
                    if syntax not in accepted:
                        return None
                    folder = tempfile.TemporaryDirectory(
                        prefix="dicomai-", ignore_cleanup_errors=True
                    )
                    path = Path(scratch.enter_context(folder)) / "transcoded.dcm"
                    transcoded(kept.path, path, syntax)
                data_set = path.read_bytes()[media(path).data_set_at :]
            except (InputError, OSError) as trouble:
                _log.warning("object not sent", object=kept.sop_instance_uid, why=str(trouble))
                return None
        request = C_STORE()
        request.MessageID = self._message_id % 65535 + 1
        request.AffectedSOPClassUID = UID(kept.sop_class_uid)
        request.AffectedSOPInstanceUID = UID(kept.sop_instance_uid)
        request.Priority = 2
        request.DataSet = BytesIO(data_set)
        self._peer.dimse.send_msg(request, accepted[syntax])
        return self._peer.next_answer().Status

    def _move(self, objects: Sequence[Kept], destination: str) -> bool:
        """Have objects sent to a node; return whether that was cancelled."""

        def told(kept: Kept, status: int | None) -> None:
            self._note(kept, status)
            if self._peer.cancelled(self._message_id):
                raise _Stop
            self._respond(PENDING)

        try:
            originator = (str(self._peer.requestor.ae_title).strip(), self._message_id)
            self._peer.archive.send(destination, objects, originator, told)
        except _Stop:
            return True
        return False

    def _note(self, kept: Kept, status: int | None) -> None:
        kind = meaning(status).kind if status is not None else "refused"
        before = self._tally
        assert before.remaining is not None
        self._tally = Tally(
            remaining=before.remaining - 1,
            completed=before.completed + (kind == "ok"),
            warnings=before.warnings + (kind == "warning"),
            failed=before.failed + (kind in ("transient", "refused")),
        )
        if kind in ("transient", "refused"):
            self._failed.append(kept.sop_instance_uid)

    def _respond(self, status: int, match: Dataset | None = None, comment: str = "") -> None:
        request = self._request
        response = type(request)()
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPClassUID = request.AffectedSOPClassUID
        response.Status = status
        if comment:
            plain = comment.replace("\\", "/").encode("ascii", "replace").decode()
            setattr(response, "ErrorComment", plain[:_MAX_COMMENT])  # noqa: B010  None, says its type
        if isinstance(response, C_GET | C_MOVE) and self._tally.remaining is not None:
            if status in (PENDING, CANCELLED):
                response.NumberOfRemainingSuboperations = self._tally.remaining
            response.NumberOfCompletedSuboperations = self._tally.completed
            response.NumberOfFailedSuboperations = self._tally.failed
            response.NumberOfWarningSuboperations = self._tally.warnings
            # Where none failed, there is no identifier (PS3.4 C.4.2.1.4.2).
            if self._failed and status not in (PENDING, SUCCESS):
                match = Dataset()
                match.FailedSOPInstanceUIDList = self._failed[:_MOST_NAMED]
        if match is not None:
            syntax = UID(str(self._context.transfer_syntax[0]))
            raw = encode(match, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
            assert raw is not None
            response.Identifier = BytesIO(raw)
        self._peer._check()
        self._peer.dimse.send_msg(response, self._context_id)


class _Stop(Exception):
    """The peer has cancelled what is being sent."""
