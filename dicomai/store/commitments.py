"""Commitments: what we asked nodes to commit of what was delivered, and what they reported.

A transaction is written down before the node hears of it, for its report may be faster than its
answer; the report finds it by its Transaction UID.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, update

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import SOPInstanceUID
from dicomai.store import events, schema
from dicomai.store.events import JsonValue
from dicomai.store.job import Held, Job, JobId, job_of
from dicomai.store.jobs import ours, tell
from dicomai.store.moves import move
from dicomai.store.states import STORED, CommitmentState, DeliveryState

jobs = schema.jobs
_NAMED: Final = 20
"""Objects that an event names."""
_OPEN: Final[tuple[CommitmentState, ...]] = ("asking", "asked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One request to a node.

    Attributes
    ----------
    state
        "asking" until the node has taken it, then "asked"; "committed", or "failed" for some of
        them, when its report came; "over" when nothing follows from it any more.
    """

    transaction_uid: str
    job_id: JobId
    node: str
    state: CommitmentState
    objects: tuple[SOPInstanceUID, ...]
    asked_at: Instant
    answered_at: Instant | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A report; `failed` has a sentence for each object that is not committed."""

    node: str
    transaction_uid: str
    committed: frozenset[SOPInstanceUID]
    failed: Mapping[SOPInstanceUID, str]


def begin(
    connection: Connection,
    held: Held,
    node: str,
    transaction_uid: str,
    objects: Sequence[SOPInstanceUID],
    now: Instant,
) -> bool:
    """Write down a request that is about to be sent; False: the job is ours no more."""
    still = connection.execute(
        select(jobs.c.id).where(*ours(held), jobs.c.state == "running").with_for_update()
    ).first()
    if still is None:
        return False
    connection.execute(
        insert(schema.commitments).values(
            transaction_uid=transaction_uid,
            job_id=held.job_id,
            node=node,
            state="asking",
            objects=list(objects),
            asked_at=now,
        )
    )
    return True


def of_job(connection: Connection, job: JobId) -> tuple[Transaction, ...]:
    """Return the requests for a delivery, oldest first."""
    table = schema.commitments
    found = connection.execute(
        select(table)
        .where(table.c.job_id == job)
        .order_by(table.c.asked_at, table.c.transaction_uid)
    )
    return tuple(_transaction(row) for row in found)


def await_report(
    connection: Connection,
    held: Held,
    transaction_uid: str,
    until: Instant,
    sentence: str,
    stages_s: Mapping[str, float],
    now: Instant,
) -> Literal["waits", "reported", "lost"]:
    """Let a delivery wait for a report that its node owes; "reported": it has come, go on.

    Parameters
    ----------
    until
        When it is not waited for any longer.
    sentence
        What a person reads meanwhile.
    stages_s
        How long each stage has taken until now.
    """
    table = schema.commitments
    state = connection.execute(
        select(table.c.state).where(table.c.transaction_uid == transaction_uid).with_for_update()
    ).scalar_one()
    taken = dict(stages_s)
    if state not in _OPEN:
        moved = move(
            connection,
            ("running",),
            "queued",
            *ours(held),
            attempts=jobs.c.attempts - 1,
            stages_s=taken,
        )
        return "reported" if moved else "lost"
    connection.execute(
        update(table).where(table.c.transaction_uid == transaction_uid).values(state="asked")
    )
    moved = move(
        connection,
        ("running",),
        "waiting",
        *ours(held),
        waiting_for="commitment",
        due_at=until,
        attempts=jobs.c.attempts - 1,
        stages_s=taken,
        error_kind=None,
        error_sentence="",
        error_stage="",
        error_subject="",
    )
    for job in moved:
        tell(connection, job, "commitment asked", f"{job.title}: {sentence}", now)
    return "waits" if moved else "lost"


def note(connection: Connection, told: Told, now: Instant) -> None:
    """Take over a report: what became of each object, and the delivery goes on.

    One that comes again changes nothing. One that nobody waits for is an event of the service.
    """
    table = schema.commitments
    row = connection.execute(
        select(table).where(table.c.transaction_uid == told.transaction_uid).with_for_update()
    ).one_or_none()
    if row is None or row.node != told.node:
        _tell_unknown(connection, told, now)
        return
    transaction = _transaction(row)
    if transaction.state not in _OPEN:
        return
    job = job_of(
        connection.execute(
            select(jobs).where(jobs.c.id == transaction.job_id).with_for_update()
        ).one()
    )
    silent = f"{told.node} does not say in its report whether it has committed it."
    failed = {
        uid: told.failed.get(uid, silent)
        for uid in transaction.objects
        if uid not in told.committed
    }
    kept = f"{told.node} has committed it."
    committed = {uid: kept for uid in transaction.objects if uid not in failed}
    _set_objects(connection, job.id, committed, "committed", now)
    _set_objects(connection, job.id, failed, "uncommitted", now)
    connection.execute(
        update(table)
        .where(table.c.transaction_uid == told.transaction_uid)
        .values(state="failed" if failed else "committed", answered_at=now)
    )
    # What was asked before it in vain is of no interest any more.
    connection.execute(
        update(table)
        .where(
            table.c.job_id == job.id,
            table.c.state.in_(_OPEN),
            table.c.asked_at <= transaction.asked_at,
        )
        .values(state="over")
    )
    if job.state == "done":
        _correct(connection, job)
    _tell(connection, job, transaction, told, failed, now)
    move(
        connection,
        ("waiting",),
        "queued",
        jobs.c.id == job.id,
        jobs.c.waiting_for != "breaker",
    )


def close(connection: Connection, job: JobId) -> None:
    """Let nothing follow any more from the reports that a delivery got until now."""
    table = schema.commitments
    connection.execute(
        update(table).where(table.c.job_id == job, table.c.state == "failed").values(state="over")
    )


def _correct(connection: Connection, job: Job) -> None:
    """Have a delivery that ended without its report say what came of it after all."""
    table = schema.deliveries
    left: int = connection.execute(
        select(func.count())
        .select_from(table)
        .where(table.c.job_id == job.id, table.c.state.in_(STORED), table.c.state != "committed")
    ).scalar_one()
    found = str(job.summary.get("found", ""))
    if not left:
        found = f"{job.node} has stored and committed all objects, and reported so late."
    summary = {**job.summary, "uncommitted": left, "found": found}
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(summary=summary))


def _set_objects(
    connection: Connection,
    job: JobId,
    sentences: Mapping[SOPInstanceUID, str],
    state: DeliveryState,
    now: Instant,
) -> None:
    table = schema.deliveries
    if sentences:
        connection.execute(
            update(table)
            .where(
                table.c.job_id == job,
                table.c.sop_instance_uid == bindparam("sop"),
                or_(*(table.c.state == each for each in STORED)),
            )
            .values(state=state, sentence=bindparam("said"), at=now),
            [{"sop": uid, "said": sentence} for uid, sentence in sentences.items()],
        )


def _tell(
    connection: Connection,
    job: Job,
    transaction: Transaction,
    told: Told,
    failed: Mapping[SOPInstanceUID, str],
    now: Instant,
) -> None:
    asked = len(transaction.objects)
    if failed:
        first = next(iter(failed.values()))
        sentence = f"{told.node} has not committed {len(failed)} of {asked} objects: {first}"
    else:
        sentence = f"{told.node} has committed all objects that it was asked about, {asked} in all."
    if strangers := len({*told.committed, *told.failed} - {*transaction.objects}):
        sentence += f" Its report names {strangers} objects that it was not asked about."
    if job.state in ("done", "failed", "cancelled"):
        sentence += f" This came when the delivery was {job.state}, and changes it no more."
    data: dict[str, JsonValue] = {
        "node": told.node,
        "transaction": told.transaction_uid,
        "committed": asked - len(failed),
        "failed": sorted(failed)[:_NAMED],
    }
    kind = "not committed" if failed else "committed"
    events.record(connection, job.study_instance_uid, kind, sentence, data, now, job.id)


def _tell_unknown(connection: Connection, told: Told, now: Instant) -> None:
    sentence = (
        f"{told.node} reports on storage commitment of {len(told.committed) + len(told.failed)} "
        f"objects under the Transaction UID {told.transaction_uid}, for which it was not asked; "
        "nothing was changed. If the delivery was deleted since, its report came too late."
    )
    data: dict[str, JsonValue] = {
        "node": told.node,
        "transaction": told.transaction_uid,
        "committed": sorted(told.committed)[:_NAMED],
        "failed": sorted(told.failed)[:_NAMED],
    }
    events.record(connection, None, "unknown commitment", sentence, data, now)


def _transaction(row: Row[Any]) -> Transaction:
    return Transaction(
        transaction_uid=row.transaction_uid,
        job_id=JobId(row.job_id),
        node=row.node,
        state=row.state,
        objects=tuple(SOPInstanceUID(uid) for uid in row.objects),
        asked_at=row.asked_at,
        answered_at=row.answered_at,
    )
