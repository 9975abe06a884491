"""What we ask of a node: are you there, take this."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from dicomai.dicom.part10 import media
from dicomai.errors import ConfigError, DicomaiError, InputError, RefusedError, TransientError
from dicomai.net.admission import VERIFICATION
from dicomai.net.calling import (
    DIMSE_TIMEOUT_S,
    GoOn,
    NothingAccepted,
    Rejected,
    associated,
    watched,
)
from dicomai.net.node import Node
from dicomai.net.status import StoreKind, meaning, store_sentence
from dicomai.net.storing import BrokenOff, Empty, NoAnswer, Request, Storer, Unreadable, storing
from dicomai.net.tls import NO_FILES, TlsFiles
from dicomai.net.transcode import EXPLICIT, IMPLICIT, transcoded

_MAX_CONTEXTS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoAnswer:
    """What came of a C-ECHO.

    Attributes
    ----------
    ok
        The node answered with Success.
    sentence
        What happened, and what to do where it failed.
    seconds
        How long it took, connection included.
    """

    ok: bool
    sentence: str
    seconds: float


def echo(node: Node, our_ae: str, files: TlsFiles = NO_FILES) -> EchoAnswer:
    """Ask a node whether it is there (PS3.4 A.4).

    Raises
    ------
    ConfigError
        The node has no host or port, or a file of TLS can't be used.
    """
    began = time.monotonic()

    def answer(*, ok: bool, sentence: str) -> EchoAnswer:
        return EchoAnswer(ok=ok, sentence=sentence, seconds=time.monotonic() - began)

    try:
        with associated(node, our_ae, [build_context(VERIFICATION)], files) as association:
            said = association.send_c_echo()
    except NothingAccepted:
        return answer(
            ok=False, sentence=f"{node.name} takes no C-ECHO from {our_ae}. Allow it there."
        )
    except ConfigError:
        raise
    except DicomaiError as trouble:
        return answer(ok=False, sentence=trouble.sentence)
    if "Status" not in said:
        return answer(ok=False, sentence=f"{node.name} took the association and never answered.")
    if said.Status != 0:
        return answer(ok=False, sentence=f"{node.name} answered with status 0x{said.Status:04X}.")
    return answer(ok=True, sentence=f"{node.name} answers at {node.host} port {node.port}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOutcome:
    """What became of one object.

    Attributes
    ----------
    path
        The file.
    sop_instance_uid
        Empty where the file can't be read.
    status
        Of the C-STORE response (PS3.4 B.2.3); None where there was none.
    kind
        ok, warning (stored, with a remark), transient (try again) or refused (for good).
    sentence
        What happened, and what to do.
    ours
        The trouble is on this machine, and the node has no part in it.
    unanswered
        It went out, or some of it, and no answer came: the node may have it.
    """

    path: Path
    sop_instance_uid: str
    status: int | None
    kind: StoreKind
    sentence: str
    ours: bool = False
    unanswered: bool = False


class _Unanswered(TransientError):
    """An object went out, and no answer came."""


class _DiskTrouble(TransientError):
    """A file could not be read or written here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    path: Path
    data_set_at: int
    sop_class: UID
    sop_instance_uid: str
    transfer_syntax: UID

    @property
    def name(self) -> str:
        return f"{_class_name(self.sop_class)} {self.sop_instance_uid}"

    def outcome(
        self,
        kind: StoreKind,
        sentence: str,
        code: int | None = None,
        *,
        ours: bool = False,
        unanswered: bool = False,
    ) -> StoreOutcome:
        return StoreOutcome(
            path=self.path,
            sop_instance_uid=self.sop_instance_uid,
            status=code,
            kind=kind,
            sentence=sentence,
            ours=ours,
            unanswered=unanswered,
        )


def store_objects(
    node: Node,
    our_ae: str,
    objects: Sequence[Path],
    on_each: Callable[[StoreOutcome], None],
    files: TlsFiles = NO_FILES,
    originator: tuple[str, int] | None = None,
    go_on: GoOn = lambda: None,
    on_established: Callable[[], None] = lambda: None,
) -> tuple[StoreOutcome, ...]:
    """Send objects to a node in one association (in several where they need over 128 contexts).

    Where the node lacks the transfer syntax of an object, it is sent in Explicit or Implicit VR
    Little Endian, if it can be decoded.

    Parameters
    ----------
    node
        Where to.
    our_ae
        What we call ourselves.
    objects
        Part 10 files.
    on_each
        Told of each outcome as it is known.
    files
        For TLS, where the node speaks it.
    originator
        AE title of who asked for them by C-MOVE, and its Message ID; None: nobody.
    go_on
        Called often, from another thread too; raises to break off, whatever is waited for.
    on_established
        Called when an association is there, before anything is sent in it.

    Returns
    -------
    tuple of StoreOutcome
        One for each object; in order, but for those that can't be read, which come first.

    Raises
    ------
    ConfigError
        The node has no host or port.
    """
    outcomes: list[StoreOutcome] = []

    def tell(outcome: StoreOutcome) -> None:
        outcomes.append(outcome)
        on_each(outcome)

    readable = []
    for path in objects:
        try:
            readable.append(_read(path))
        except (InputError, _DiskTrouble) as trouble:
            tell(
                StoreOutcome(
                    path=path,
                    sop_instance_uid="",
                    status=None,
                    kind="refused" if isinstance(trouble, InputError) else "transient",
                    sentence=trouble.sentence,
                    ours=True,
                )
            )
    for batch, contexts in _batches(readable):
        told = len(outcomes)
        go_on()
        try:
            with (
                associated(node, our_ae, contexts, files, go_on=go_on) as association,
                watched(association, go_on),
                storing(association, DIMSE_TIMEOUT_S) as storer,
            ):
                on_established()
                sender = _Sender(node, our_ae, association, storer, originator)
                for each in batch:
                    tell(sender.send(each))
        except NothingAccepted:
            for each in batch:
                tell(each.outcome("refused", _not_taken(node, our_ae, each)))
        except (TransientError, RefusedError) as trouble:
            # Who rejects us has not refused an object: it may take all when it knows us again.
            for_good = trouble.kind == "refused" and not isinstance(trouble, Rejected)
            kind: StoreKind = "refused" if for_good else "transient"
            ours, unanswered = isinstance(trouble, _DiskTrouble), isinstance(trouble, _Unanswered)
            for each in batch[len(outcomes) - told :]:
                tell(each.outcome(kind, trouble.sentence, ours=ours, unanswered=unanswered))
                unanswered = False  # those that follow did not go out
    return tuple(outcomes)


def _read(path: Path) -> _Object:
    try:
        found = media(path)
    except (FileNotFoundError, InputError) as trouble:
        reason = trouble.strerror if isinstance(trouble, OSError) else trouble.sentence
        raise InputError(
            f"{path} is no DICOM file that can be sent: {reason}", subject=str(path)
        ) from trouble
    except OSError as trouble:
        raise _disk_trouble(path, trouble.strerror or str(trouble)) from trouble
    return _Object(
        path=path,
        data_set_at=found.data_set_at,
        sop_class=_uid(found.sop_class_uid),
        sop_instance_uid=found.sop_instance_uid,
        transfer_syntax=_uid(found.transfer_syntax_uid),
    )


def _disk_trouble(path: Path, reason: str) -> _DiskTrouble:
    return _DiskTrouble(f"{path} can't be read: {reason}. Look at its disk.", subject=str(path))


@lru_cache(maxsize=256)  # pydicom looks at each character, and objects come in series
def _uid(uid: str) -> UID:
    return UID(uid)


def _batches(
    objects: Sequence[_Object],
) -> Iterator[tuple[list[_Object], list[PresentationContext]]]:
    """Give the objects, and what to propose for them, in as few associations as can be."""
    batch: list[_Object] = []
    wanted: dict[tuple[UID, UID], None] = {}
    for each in objects:
        needs = [(each.sop_class, uid) for uid in (each.transfer_syntax, EXPLICIT, IMPLICIT)]
        if len({*wanted, *needs}) > _MAX_CONTEXTS:
            yield batch, [build_context(*pair) for pair in wanted]
            batch, wanted = [], {}
        batch.append(each)
        wanted |= dict.fromkeys(needs)
    if batch:
        yield batch, [build_context(*pair) for pair in wanted]


class _Sender:
    """Sends objects in one association, each in a transfer syntax that the node takes."""

    def __init__(
        self,
        node: Node,
        our_ae: str,
        association: Association,
        storer: Storer,
        originator: tuple[str, int] | None,
    ) -> None:
        self._node = node
        self._our_ae = our_ae
        self._originator = originator
        self._storer = storer
        self._contexts: dict[str, dict[str, int]] = {}
        for context in association.accepted_contexts:
            assert context.context_id is not None
            syntaxes = self._contexts.setdefault(str(context.abstract_syntax), {})
            syntaxes[str(context.transfer_syntax[0])] = context.context_id

    def send(self, each: _Object) -> StoreOutcome:
        """Send an object as it is, or else as the node takes it."""
        node = self._node
        accepted = self._contexts.get(each.sop_class)
        if not accepted:
            return each.outcome("refused", _not_taken(node, self._our_ae, each))
        if each.transfer_syntax in accepted:
            return self._sent(each, each, accepted[each.transfer_syntax])
        target = next((uid for uid in (EXPLICIT, IMPLICIT) if uid in accepted), None)
        if target is None:  # it takes others of that class, in theirs
            return each.outcome(
                "refused",
                f"{node.name} takes {each.name} neither in {each.transfer_syntax.name} nor in "
                "Explicit or Implicit VR Little Endian. Allow one of them there.",
            )
        with ExitStack() as scratch:
            try:
                folder = tempfile.TemporaryDirectory(prefix="dicomai-", ignore_cleanup_errors=True)
                path = Path(scratch.enter_context(folder)) / "transcoded.dcm"
                transcoded(each.path, path, target)
                as_sent = replace(each, path=path, data_set_at=media(path).data_set_at)
            except InputError as trouble:
                return each.outcome(
                    "refused",
                    f"{node.name} does not take {each.name} in {each.transfer_syntax.name}, and it "
                    f"can't be sent in another: {trouble.sentence} Allow that transfer syntax "
                    "there.",
                )
            except OSError as trouble:
                return each.outcome(
                    "transient",
                    f"{each.path} could not be written in a transfer syntax that {node.name} "
                    f"takes: {trouble.strerror or trouble}. Look at its disk, and at the room for "
                    "temporary files.",
                    ours=True,
                )
            return self._sent(each, as_sent, accepted[target])

    def _sent(self, each: _Object, as_sent: _Object, context_id: int) -> StoreOutcome:
        node = self._node
        request = Request(
            path=as_sent.path,
            data_set_at=as_sent.data_set_at,
            sop_class_uid=each.sop_class,
            sop_instance_uid=each.sop_instance_uid,
            context_id=context_id,
            originator=self._originator,
        )
        try:
            said = self._storer.store(request)
        except NoAnswer as trouble:
            raise _Unanswered(
                f"{node.name} gave no answer to {each.name}: it ended the association, or took "
                "longer than it may.",
                subject=node.name,
            ) from trouble
        except BrokenOff as trouble:
            raise _DiskTrouble(
                f"{each.path} could not be read to its end ({trouble}), so the association with "
                f"{node.name} was aborted. Look at its disk.",
                subject=str(each.path),
            ) from trouble
        except Unreadable as trouble:
            reason = _disk_trouble(each.path, str(trouble)).sentence
            return each.outcome("transient", reason, ours=True)
        except Empty:
            return each.outcome(
                "refused", f"{each.path} has no data set. Look at its disk.", ours=True
            )
        return each.outcome(
            meaning(said.status).kind,
            store_sentence(node.name, each.name, said.status, said.comment),
            said.status,
        )


def _not_taken(node: Node, our_ae: str, each: _Object) -> str:
    return f"{node.name} takes no {_class_name(each.sop_class)} from {our_ae}. Allow it there."


def _class_name(sop_class: UID) -> str:
    return f"private class {sop_class}" if sop_class.name == sop_class else sop_class.name
