"""Counts: how many objects of each series a node says that it has, and how many are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.routing.completeness import Counted
from dicomai.store import schema


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesCount:
    """A series at a node, and its number of objects there."""

    series_instance_uid: SeriesInstanceUID
    modality: str
    objects: int


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
                modality=each.modality,
                objects=each.objects,
                counted_at=now,
            )
        )


def of_study(connection: Connection, study: StudyInstanceUID) -> tuple[Counted, ...]:
    """Return what nodes have of a study beside what is here of it, from others than us."""
    table = schema.series_counts
    here = _here(connection, study)
    modalities = _modalities(connection, study)
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
            of_a_kind=row.modality in modalities,
        )
        for row in rows
    )


def _here(connection: Connection, study: StudyInstanceUID) -> Mapping[str, int]:
    table = schema.instances
    rows = connection.execute(
        select(table.c.series_instance_uid, func.count().label("number"))
        .where(table.c.study_instance_uid == study, table.c.newest, table.c.origin != "produced")
        .group_by(table.c.series_instance_uid)
    )
    return {row.series_instance_uid: row.number for row in rows}


def _modalities(connection: Connection, study: StudyInstanceUID) -> frozenset[str]:
    """Return the modalities that came, our own results apart."""
    series, instances = schema.series, schema.instances
    came = (
        select(instances.c.series_instance_uid)
        .where(instances.c.study_instance_uid == study, instances.c.origin != "produced")
        .distinct()
    )
    found = connection.execute(
        select(series.c.modality).where(
            series.c.study_instance_uid == study, series.c.series_instance_uid.in_(came)
        )
    )
    return frozenset(found.scalars())
