"""Promises: what peers asked us to commit (PS3.4 annex J), and what they were told.

A promise is asked, judged, reported; who works on one claims it for a while by moving the time at
which it is due, and every later write names that claim.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, NewType

from sqlalchemy import Connection, Row, and_, delete, exists, func, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import SOPClassUID, SOPInstanceUID, StudyInstanceUID
from dicomai.store import schema
from dicomai.store.states import PromiseState

PromiseId = NewType("PromiseId", int)

LEASE: Final = seconds(180)
"""How long one who works on a promise keeps it without a sign; calling a node takes less."""

_UNFINISHED: Final[tuple[PromiseState, ...]] = ("asked", "judged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An object that a peer asked for; `reason`: why it is not committed (PS3.3 C.14.1.1), or 0."""

    sop_class_uid: SOPClassUID
    sop_instance_uid: SOPInstanceUID
    reason: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A request of a peer, and what became of it.

    Attributes
    ----------
    objects
        What it asked for; their reasons count once it is judged.
    kept_until
        How long what is committed is kept; None before that is known, or where nothing is.
    due_at
        When it is to be worked on; None when it is over.
    claim
        How often somebody began to.
    attempts
        How often the report was tried.
    """

    id: PromiseId
    node: str
    transaction_uid: str
    state: PromiseState
    objects: tuple[Asked, ...]
    received_at: Instant
    kept_until: Instant | None
    due_at: Instant | None
    claim: int
    attempts: int
    error_sentence: str

    @property
    def failed(self) -> tuple[Asked, ...]:
        """What is not committed."""
        return tuple(each for each in self.objects if each.reason)

    @property
    def committed(self) -> tuple[Asked, ...]:
        """What is."""
        return tuple(each for each in self.objects if not each.reason)


def note(
    connection: Connection,
    node: str,
    transaction_uid: str,
    objects: Sequence[Asked],
    received_at: Instant,
    duplicate: int,
    now: Instant,
) -> PromiseId:
    """Take over a request.

    The same one again is judged and answered again. Another one under a Transaction UID that its
    node used before fails as a whole.

    Parameters
    ----------
    duplicate
        The reason that says so.
    """
    table = schema.promises
    before = [
        _promise(row)
        for row in connection.execute(
            select(table)
            .where(table.c.transaction_uid == transaction_uid, table.c.node == node)
            .order_by(table.c.id)
            .with_for_update()
        )
    ]
    wanted = {(each.sop_class_uid, each.sop_instance_uid) for each in objects}
    for known in before:
        if {(each.sop_class_uid, each.sop_instance_uid) for each in known.objects} == wanted:
            if known.state not in _UNFINISHED:
                stands = all(each.reason == duplicate for each in known.objects)
                connection.execute(
                    update(table)
                    .where(table.c.id == known.id)
                    .values(
                        state="judged" if stands else "asked",
                        received_at=received_at,
                        due_at=now,
                        finished_at=None,
                        attempts=0,
                    )
                )
            return known.id
    number = connection.execute(
        insert(table)
        .values(
            node=node,
            transaction_uid=transaction_uid,
            state="judged" if before else "asked",
            objects=_written(
                [
                    Asked(
                        sop_class_uid=each.sop_class_uid,
                        sop_instance_uid=each.sop_instance_uid,
                        reason=duplicate if before else 0,
                    )
                    for each in objects
                ]
            ),
            received_at=received_at,
            due_at=now,
            claim=0,
            attempts=0,
            error_sentence="",
        )
        .returning(table.c.id)
    ).scalar_one()
    return PromiseId(number)


def is_due(connection: Connection, now: Instant) -> bool:
    """Tell whether there is one to claim, without a write transaction."""
    table = schema.promises
    return connection.execute(select(table.c.id).where(table.c.due_at <= now)).first() is not None


def claim(connection: Connection, now: Instant) -> Promise | None:
    """Claim the first promise that is due, or None."""
    table = schema.promises
    first = (
        select(table.c.id)
        .where(table.c.due_at <= now)
        .order_by(table.c.due_at, table.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    found = connection.execute(
        update(table)
        .where(table.c.id == first)
        .values(claim=table.c.claim + 1, due_at=now + LEASE)
        .returning(table)
    ).one_or_none()
    return None if found is None else _promise(found)


def keep(connection: Connection, promise: Promise, now: Instant) -> bool:
    """Show that a claimed promise is still worked on; False: it is ours no more."""
    return _set(connection, promise, due_at=now + LEASE)


def put_off(connection: Connection, promise: Promise, until: Instant) -> bool:
    """Give a claimed promise back, to be worked on later."""
    return _set(connection, promise, due_at=until)


def judge(
    connection: Connection,
    promise: Promise,
    objects: Sequence[Asked],
    studies: Collection[StudyInstanceUID],
    kept_until: Instant | None,
    now: Instant,
) -> bool:
    """Note what is committed, so that nothing of those studies goes before its time.

    Their locks are taken. False: the promise is ours no more, and no row was touched.
    """
    judged = _set(
        connection,
        promise,
        state="judged",
        objects=_written(objects),
        kept_until=kept_until,
        due_at=now,
    )
    links = schema.promise_studies
    if judged:
        connection.execute(delete(links).where(links.c.promise_id == promise.id))
    if judged and studies:
        connection.execute(
            insert(links),
            [{"study_instance_uid": uid, "promise_id": promise.id} for uid in sorted(studies)],
        )
    return judged


def failed_to_report(
    connection: Connection, promise: Promise, sentence: str, again_at: Instant | None, now: Instant
) -> bool:
    """Note that a report could not be given; without a next time it is given up."""
    over: dict[str, object] = (
        {"state": "given up", "finished_at": now} if again_at is None else {"state": "judged"}
    )
    attempts = promise.attempts + 1
    return _set(
        connection, promise, due_at=again_at, attempts=attempts, error_sentence=sentence, **over
    )


def reported(connection: Connection, promise: Promise, now: Instant) -> bool:
    """Note that the peer has its report."""
    return _set(
        connection, promise, state="reported", due_at=None, finished_at=now, error_sentence=""
    )


def studies_of(connection: Connection, promise: PromiseId) -> tuple[StudyInstanceUID, ...]:
    """Return the studies of which something is committed by a promise."""
    links = schema.promise_studies
    found = connection.execute(
        select(links.c.study_instance_uid)
        .where(links.c.promise_id == promise)
        .order_by(links.c.study_instance_uid)
    )
    return tuple(StudyInstanceUID(uid) for uid in found.scalars())


def kept_until(connection: Connection, study: StudyInstanceUID) -> Instant | None:
    """Return until when a study was promised to be kept; None: nobody asked for it."""
    table, links = schema.promises, schema.promise_studies
    found: int | None = connection.execute(
        select(func.max(table.c.kept_until))
        .join(links, links.c.promise_id == table.c.id)
        .where(links.c.study_instance_uid == study)
    ).scalar_one()
    return None if found is None else Instant(found)


def keeps(study: ColumnElement[str], now: Instant) -> ColumnElement[bool]:
    """The condition that a study is promised to be kept longer than now."""
    table, links = schema.promises, schema.promise_studies
    return exists().where(
        and_(
            links.c.study_instance_uid == study,
            table.c.id == links.c.promise_id,
            table.c.kept_until > now,
        )
    )


def unreported(connection: Connection) -> tuple[Promise, ...]:
    """Return the promises whose report failed until now, oldest first."""
    table = schema.promises
    found = connection.execute(
        select(table)
        .where(table.c.due_at.is_not(None), table.c.error_sentence != "")
        .order_by(table.c.id)
    )
    return tuple(_promise(row) for row in found)


def get(connection: Connection, promise: PromiseId) -> Promise | None:
    """Return a promise."""
    table = schema.promises
    found = connection.execute(select(table).where(table.c.id == promise)).one_or_none()
    return None if found is None else _promise(found)


def prune(connection: Connection, before: Instant, now: Instant) -> int:
    """Delete promises that were over before a moment and bind nobody any more."""
    table = schema.promises
    binds = table.c.kept_until.is_not(None) & (table.c.kept_until > now)
    return connection.execute(delete(table).where(table.c.finished_at < before, ~binds)).rowcount


def _set(connection: Connection, promise: Promise, **values: object) -> bool:
    table = schema.promises
    touched = connection.execute(
        update(table)
        .where(
            table.c.id == promise.id,
            table.c.claim == promise.claim,
            table.c.due_at.is_not(None),
        )
        .values(**values)
    )
    return touched.rowcount == 1


def _written(objects: Sequence[Asked]) -> list[list[object]]:
    return [[each.sop_class_uid, each.sop_instance_uid, each.reason] for each in objects]


def _promise(row: Row[Any]) -> Promise:
    return Promise(
        id=PromiseId(row.id),
        node=row.node,
        transaction_uid=row.transaction_uid,
        state=row.state,
        objects=tuple(
            Asked(sop_class_uid=sop_class, sop_instance_uid=sop, reason=reason)
            for sop_class, sop, reason in row.objects
        ),
        received_at=row.received_at,
        kept_until=row.kept_until,
        due_at=row.due_at,
        claim=row.claim,
        attempts=row.attempts,
        error_sentence=row.error_sentence,
    )
