"""Procedure steps: what modalities say of their work on a study (MPPS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from sqlalchemy import Connection, Row, delete, insert, select, update

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import SOPInstanceUID, StudyInstanceUID
from dicomai.routing.completeness import StepTold
from dicomai.store import events, schema
from dicomai.store.states import StepStatus

_OVER = ("COMPLETED", "DISCONTINUED")
_STATES: Final[Mapping[StepStatus, Literal["in progress", "completed", "discontinued"]]] = {
    "IN PROGRESS": "in progress",
    "COMPLETED": "completed",
    "DISCONTINUED": "discontinued",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMessage:
    """An N-CREATE or N-SET; what it does not say is empty."""

    step: str
    node: str
    status: str
    studies: tuple[StudyInstanceUID, ...]
    objects: tuple[SOPInstanceUID, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A procedure step as it was told last; `objects`: what it made, known when it is over."""

    step: str
    node: str
    status: StepStatus
    objects: tuple[SOPInstanceUID, ...]
    reason: str


def note(connection: Connection, message: StepMessage, now: Instant) -> tuple[str, ...]:
    """Take over a message; return the studies that it is about.

    One that comes again changes nothing, and nothing changes a step that is over (PS3.4 F.7.2.2).
    """
    table, links = schema.procedure_steps, schema.procedure_step_studies
    known = connection.execute(
        select(table).where(table.c.step == message.step).with_for_update()
    ).one_or_none()
    if known is None:
        connection.execute(
            insert(table).values(
                step=message.step,
                node=message.node,
                status=message.status or "IN PROGRESS",
                objects=list(message.objects),
                reason=message.reason,
                changed_at=now,
            )
        )
    elif known.status not in _OVER:
        connection.execute(
            update(table)
            .where(table.c.step == message.step)
            .values(
                status=message.status or known.status,
                objects=list(message.objects or known.objects),
                reason=message.reason or known.reason,
                changed_at=now,
            )
        )
    there = set(
        connection.execute(
            select(links.c.study_instance_uid).where(links.c.step == message.step)
        ).scalars()
    )
    for study in set(message.studies) - there:
        connection.execute(insert(links).values(step=message.step, study_instance_uid=study))
    concerned = tuple(sorted({*there, *message.studies}))
    before = known.status if known is not None else ""
    status = before if before in _OVER else message.status or before or "IN PROGRESS"
    why = f": {message.reason}" if message.reason else ""
    for study in concerned:
        if status != before or study not in there:
            events.record(
                connection,
                StudyInstanceUID(study),
                "procedure step",
                f"{message.node} says that a procedure step is {status}{why}.",
                {"step": message.step, "status": status, "objects": len(message.objects)},
                now,
            )
    return concerned


def of_study(connection: Connection, study: StudyInstanceUID) -> tuple[Step, ...]:
    """Return the steps of a study."""
    table, links = schema.procedure_steps, schema.procedure_step_studies
    found = connection.execute(
        select(table)
        .join(links, links.c.step == table.c.step)
        .where(links.c.study_instance_uid == study)
        .order_by(table.c.step)
    )
    return tuple(_step(row) for row in found)


def told(connection: Connection, study: StudyInstanceUID) -> tuple[StepTold, ...]:
    """Return what modalities say of a study, beside what is here of it from others than us."""
    steps = of_study(connection, study)
    if not steps:
        return ()
    table = schema.instances
    here = set(
        connection.execute(
            select(table.c.sop_instance_uid).where(
                table.c.study_instance_uid == study,
                table.c.newest,
                table.c.origin != "produced",
            )
        ).scalars()
    )
    listed = {uid for each in steps for uid in each.objects}
    return tuple(
        StepTold(
            node=each.node,
            state=_STATES[each.status],
            made=len(each.objects),
            missing=len(set(each.objects) - here),
            unlisted=len(here - listed),
        )
        for each in steps
    )


def prune(connection: Connection, before: Instant) -> int:
    """Delete the steps of which nothing was heard since then; return how many."""
    table = schema.procedure_steps
    return connection.execute(delete(table).where(table.c.changed_at < before)).rowcount


def _step(row: Row[Any]) -> Step:
    return Step(
        step=row.step,
        node=row.node,
        status=cast("StepStatus", row.status),
        objects=tuple(row.objects),
        reason=row.reason,
    )
