"""Promises: what peers asked us to commit is judged by the files, and they are told.

A request is judged only when everything that was acknowledged before it is ingested, on each host.
Every file is read again and held against its digest.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant, as_datetime, seconds
from dicomai.dicom.uid import SOPInstanceUID, StudyInstanceUID
from dicomai.errors import ConfigError, DatabaseError, DicomaiError, counted
from dicomai.net import commitment_calling
from dicomai.net.commitment import (
    CLASS_CONFLICT,
    DUPLICATE_TRANSACTION,
    NO_SUCH_OBJECT,
    PROCESSING_FAILURE,
    CommitmentReport,
    Failure,
    Reference,
)
from dicomai.net.node import Node
from dicomai.routing.completeness import Host, silent
from dicomai.settings import Settings
from dicomai.spool import quarantine
from dicomai.store import archive, events, hosts, instances, pauses, promises, studies
from dicomai.store.engine import reading, writing
from dicomai.store.events import JsonValue
from dicomai.store.instances import Instance
from dicomai.store.job import jitter_of, policy
from dicomai.store.promises import Asked, Promise

KEEP_S: Final = 0.5
_LOOK: Final = seconds(1)
"""How soon it is looked again whether all that came before is ingested."""
_PAUSED: Final = seconds(10)
_BEAT: Final = seconds(10)
_DAY_S: Final = 86400.0
_NAMED: Final = 20
WHY: Final[Mapping[int, str]] = {
    NO_SUCH_OBJECT: "not here",
    CLASS_CONFLICT: "here as another SOP class",
    PROCESSING_FAILURE: "in the quarantine or damaged in the archive",
    DUPLICATE_TRANSACTION: "asked for under a Transaction UID that was used before",
}
"""Why an object is not committed, by the reason that its peer is told."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """Judges requests for storage commitment, and reports.

    Attributes
    ----------
    settings
        Data folder, nodes, our AE title, how long what is committed is kept.
    engine
        The catalogue.
    clock
        The present.
    pulse
        Called often while files are read.
    """

    settings: Settings
    engine: Engine
    clock: Callable[[], Instant]
    pulse: Callable[[], None] = lambda: None

    def keep_once(self) -> bool:
        """Work on the next promise that is due; False: nothing could be done.

        Raises
        ------
        DatabaseError
            The database is away.
        """
        with reading(self.engine) as connection:
            if not promises.is_due(connection, self.clock()):
                return False
        with writing(self.engine) as connection:
            promise = promises.claim(connection, self.clock())
        if promise is None:
            return False
        if promise.state == "judged":
            self._report(promise)
        elif self._has_archive() and self._is_ingested(promise):
            self._judge(promise)
        else:
            with writing(self.engine) as connection:
                promises.put_off(connection, promise, Instant(self.clock() + _LOOK))
            return False
        return True

    def _has_archive(self) -> bool:
        """Tell whether files can be read: of one that is away each would be told to be damaged."""
        with reading(self.engine) as connection:
            return not archive.absence(connection, self.settings.folders.data)

    def _is_ingested(self, promise: Promise) -> bool:
        """Tell whether each host has ingested what it acknowledged before this was asked.

        One that stays silent is waited for as long as by a decision. What it has is then said not
        to be here, which is the careful way to be wrong.
        """
        with reading(self.engine) as connection:
            known = [
                Host(name=each.name, ingested_to=each.ingested_to, beat_at=each.beat_at)
                for each in hosts.listing(connection)
            ]
        # Not later by less: what came in the same microsecond may still be in the spool.
        late = [each for each in known if each.ingested_to <= promise.received_at]
        return not late or silent(late, known, seconds(self.settings.decide.patience_s))

    def _judge(self, promise: Promise) -> None:
        """Read what is asked for, and promise what is whole."""
        wanted = [each.sop_instance_uid for each in promise.objects]
        with reading(self.engine) as connection:
            found = instances.of_sops(connection, wanted)
        reader = _Reader(self, promise, quarantine.received(self.settings.folders.quarantine))
        reasons = {
            each: reader.reason(each, found.get(each.sop_instance_uid, ()))
            for each in dict.fromkeys(promise.objects)
        }
        now = self.clock()
        kept_until = Instant(now + seconds(self.settings.retention.committed_days * _DAY_S))
        with writing(self.engine) as connection:
            going = _locked(connection, found)
            # To read files takes long, and retention may have been and gone.
            here = instances.of_sops(connection, wanted)
            judged = tuple(
                replace(each, reason=reason or _gone(each, found, here, going))
                for each, reason in reasons.items()
            )
            kept = {
                row.study_instance_uid
                for each in judged
                if not each.reason
                for row in found[each.sop_instance_uid]
            }
            until = kept_until if kept else None
            if promises.judge(connection, promise, judged, kept, until, now):
                _tell(connection, promise, judged, found, until, now)
        log.info(
            "storage commitment judged",
            node=promise.node,
            transaction=promise.transaction_uid,
            objects=len(judged),
            failed=sum(1 for each in judged if each.reason),
        )

    def _report(self, promise: Promise) -> None:
        """Tell the peer; what keeps us from it is tried again."""
        report = CommitmentReport(
            transaction_uid=promise.transaction_uid,
            committed=tuple(_reference(each) for each in promise.committed),
            failed=tuple(
                Failure(object=_reference(each), reason=each.reason) for each in promise.failed
            ),
        )
        with reading(self.engine) as connection:
            resting = {each.name for each in pauses.listing(connection) if each.subject == "node"}
        if promise.node in resting:
            with writing(self.engine) as connection:
                promises.put_off(connection, promise, Instant(self.clock() + _PAUSED))
            return
        try:
            node = self._node(promise)
            commitment_calling.report(
                node, self.settings.receiver.ae_title, report, self.settings.tls.files
            )
        except DatabaseError:
            raise
        except DicomaiError as trouble:
            self._failed_to_report(promise, trouble)
            return
        with writing(self.engine) as connection:
            promises.reported(connection, promise, self.clock())
        log.info(
            "storage commitment reported", node=promise.node, transaction=promise.transaction_uid
        )

    def _node(self, promise: Promise) -> Node:
        for node in self.settings.nodes:
            if node.name == promise.node:
                return node
        raise ConfigError(
            f"The configuration has no node {promise.node} any more, so it can't be told.",
            subject=promise.node,
        )

    def _failed_to_report(self, promise: Promise, trouble: DicomaiError) -> None:
        now = self.clock()
        # Whatever it is, a person may have mended it by then, there or here.
        attempts = promise.attempts + 1
        jitter = jitter_of(uuid.uuid5(uuid.NAMESPACE_OID, promise.transaction_uid), attempts)
        then = policy("transient", "deliver", attempts=attempts, crashes=0, jitter=jitter)
        again_at = None if then.delay is None else Instant(now + then.delay)
        with writing(self.engine) as connection:
            promises.failed_to_report(connection, promise, trouble.sentence, again_at, now)
            if again_at is None:
                sentence = (
                    f"{promise.node} could not be told what of {counted(promise.objects)} is "
                    f"committed, and is not told any more: {trouble.sentence} Have it ask again."
                )
                data: dict[str, JsonValue] = {
                    "node": promise.node,
                    "transaction": promise.transaction_uid,
                }
                kind = "commitment not reported"
                for study in (*promises.studies_of(connection, promise.id), None):
                    events.record(connection, study, kind, sentence, data, now)
        log.warning("storage commitment not reported", node=promise.node, why=trouble.sentence)


class _Reader:
    """Reads files again, and shows meanwhile that it gets on."""

    def __init__(self, keeper: Keeper, promise: Promise, aside: Mapping[str, Instant]) -> None:
        self._keeper = keeper
        self._promise = promise
        self._aside = aside
        self._shown_at = keeper.clock()

    def reason(self, asked: Asked, rows: Collection[Instance]) -> int:
        """Return why an object can't be committed (PS3.3 C.14.1.1); 0: it can."""
        self._show()
        aside = self._aside.get(asked.sop_instance_uid)
        if aside is not None and all(aside >= row.received_at for row in rows):
            return PROCESSING_FAILURE
        if not rows:
            return NO_SUCH_OBJECT
        if any(row.sop_class_uid != asked.sop_class_uid for row in rows):
            return CLASS_CONFLICT
        data = self._keeper.settings.folders.data
        whole = all(_is_whole(data / row.path, row.file_sha256) for row in rows)
        return 0 if whole else PROCESSING_FAILURE

    def _show(self) -> None:
        keeper = self._keeper
        keeper.pulse()
        if keeper.clock() - self._shown_at >= _BEAT:
            self._shown_at = keeper.clock()
            with writing(keeper.engine) as connection:
                promises.keep(connection, self._promise, self._shown_at)


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError as trouble:
        log.error("file of the archive can't be read", file=str(path), why=str(trouble))
        return False


def _locked(
    connection: Connection, found: Mapping[SOPInstanceUID, Collection[Instance]]
) -> frozenset[StudyInstanceUID]:
    """Take the locks of the studies; return those that retention deletes, or has."""
    concerned = {row.study_instance_uid for rows in found.values() for row in rows}
    known = {uid: studies.lock(connection, uid) for uid in sorted(concerned)}
    return frozenset(
        uid for uid, study in known.items() if study is None or study.status == "deleting"
    )


def _gone(
    asked: Asked,
    found: Mapping[SOPInstanceUID, Collection[Instance]],
    here: Mapping[SOPInstanceUID, Collection[Instance]],
    going: Collection[StudyInstanceUID],
) -> int:
    """Return why an object whose files were read isn't committed after all; 0: it is."""
    were, are = (
        {row.study_instance_uid for row in rows.get(asked.sop_instance_uid, ())}
        for rows in (found, here)
    )
    return 0 if were <= are - set(going) else NO_SUCH_OBJECT


def _tell(
    connection: Connection,
    promise: Promise,
    judged: Iterable[Asked],
    found: Mapping[SOPInstanceUID, Collection[Instance]],
    until: Instant | None,
    now: Instant,
) -> None:
    """Add an event to each study of which something was asked for; the rest is the service's."""
    by_study: dict[StudyInstanceUID | None, list[Asked]] = {}
    for each in judged:
        rows = found.get(each.sop_instance_uid, ())
        concerned: set[StudyInstanceUID | None] = {row.study_instance_uid for row in rows}
        for uid in concerned or {None}:
            by_study.setdefault(uid, []).append(each)
    for study, asked in by_study.items():
        failed = [each for each in asked if each.reason]
        data: dict[str, JsonValue] = {
            "node": promise.node,
            "transaction": promise.transaction_uid,
            "objects": len(asked),
            "failed": [each.sop_instance_uid for each in failed][:_NAMED],
        }
        kind = "commitment refused" if failed else "committed to a node"
        sentence = _sentence(promise.node, asked, failed, until)
        events.record(connection, study, kind, sentence, data, now)


def _sentence(
    node: str, asked: Sequence[Asked], failed: Sequence[Asked], until: Instant | None
) -> str:
    kept = f"{as_datetime(until):%Y-%m-%d}" if until is not None else ""
    whole = f"{node} asked to commit {counted(asked)}"
    if not failed:
        return f"{whole}: {'it is' if len(asked) == 1 else 'all are'} kept until {kept} at least."
    reasons = {each.reason: 0 for each in failed}
    for each in failed:
        reasons[each.reason] += 1
    why = ", ".join(f"{number} {WHY[reason]}" for reason, number in sorted(reasons.items()))
    rest = f" The others are kept until {kept} at least." if len(failed) < len(asked) else ""
    number = "1 is" if len(failed) == 1 else f"{len(failed)} are"
    return (
        f"{whole}: {number} not committed ({why}), and it is told so; it should keep them and send "
        f"them again.{rest}"
    )


def _reference(asked: Asked) -> Reference:
    return Reference(sop_class_uid=asked.sop_class_uid, sop_instance_uid=asked.sop_instance_uid)
