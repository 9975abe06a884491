"""Counts: how many objects of each series a node says that it has, and how many are here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select

from dicomai.dicom.dates import Instant
from dicomai.dicom.header import Attributes
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.routing.completeness import Counted
from dicomai.store import retrievals, schema
from dicomai.store.columns import LARGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesCount:
    """A series at a node, its number of objects there, and what the node tells of it."""

    series_instance_uid: SeriesInstanceUID
    objects: int
    attributes: Attributes


def note(
    connection: Connection,
    study: StudyInstanceUID,
    node: str,
    counts: Sequence[SeriesCount],
    now: Instant,
) -> None:
    """Keep what a node says of a study, instead of what it said before."""
    table = schema.series_counts
    connection.execute(
        delete(table).where(table.c.study_instance_uid == study, table.c.node == node)
    )
    for each in counts:
        connection.execute(
            insert(table).values(
                study_instance_uid=study,
                node=node,
                series_instance_uid=each.series_instance_uid,
                objects=min(each.objects, LARGEST),
                attributes=dict(each.attributes),
                counted_at=now,
            )
        )


def of_study(
    connection: Connection,
    study: StudyInstanceUID,
    wanted: Callable[[SeriesInstanceUID, Attributes, int], bool],
) -> tuple[Counted, ...]:
    """Return what nodes have of a study beside what is here of it, from others than us.

    Parameters
    ----------
    wanted
        Told a series, what the node says of it and how many objects it has there: whether a model
        may want it.
    """
    table = schema.series_counts
    here, ours = _here(connection, study)
    fetched_from = retrievals.fetched_from(connection, study)
    rows = connection.execute(
        select(table)
        .where(table.c.study_instance_uid == study)
        .order_by(table.c.node, table.c.series_instance_uid)
    )
    return tuple(
        Counted(
            node=row.node,
            series_instance_uid=row.series_instance_uid,
            there=row.objects,
            here=here.get(row.series_instance_uid, 0),
            wanted=wanted(row.series_instance_uid, row.attributes, row.objects),
            fetched=row.node in fetched_from and row.series_instance_uid not in ours,
        )
        for row in rows
    )


def lacking(
    connection: Connection, study: StudyInstanceUID, told: Sequence[SeriesCount]
) -> tuple[SeriesCount, ...]:
    """Return those series of which nothing is here, or less than a node tells; none of our own."""
    here, ours = _here(connection, study)
    return tuple(
        each
        for each in told
        if each.series_instance_uid not in ours
        and here.get(each.series_instance_uid, 0) < max(each.objects, 1)
    )


def _here(
    connection: Connection, study: StudyInstanceUID
) -> tuple[Mapping[str, int], frozenset[str]]:
    """Return how much is here of each series that others made, and the series that we made."""
    table = schema.instances
    ours = (table.c.origin == "produced").label("ours")
    rows = connection.execute(
        select(table.c.series_instance_uid, ours, func.count().label("number"))
        .where(table.c.study_instance_uid == study, table.c.newest)
        .group_by(table.c.series_instance_uid, ours)
    ).all()
    return (
        {row.series_instance_uid: row.number for row in rows if not row.ours},
        frozenset(row.series_instance_uid for row in rows if row.ours),
    )
