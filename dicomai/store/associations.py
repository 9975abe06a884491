"""Associations that brought objects: which are open, and how they ended."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import schema
from dicomai.store.states import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """One association; open while `ended_at` is None."""

    id: str
    host: str
    node: str
    calling_ae: str
    called_ae: str
    address: str
    started_at: Instant
    ended_at: Instant | None = None
    release: Release | None = None


def note(connection: Connection, association: Association, study: StudyInstanceUID) -> None:
    """Note that an association brought an object of a study."""
    table, brought = schema.associations, schema.association_studies
    if connection.execute(select(table.c.id).where(table.c.id == association.id)).first() is None:
        values = {field: getattr(association, field) for field in Association.__dataclass_fields__}
        connection.execute(insert(table).values(**values))
    this = brought.c.association_id == association.id, brought.c.study_instance_uid == study
    touched = connection.execute(update(brought).where(*this).values(objects=brought.c.objects + 1))
    if not touched.rowcount:
        connection.execute(
            insert(brought).values(
                association_id=association.id, study_instance_uid=study, objects=1
            )
        )


def end(connection: Connection, association: str, ended_at: Instant, release: Release) -> bool:
    """Note how an association ended; False: it is not known, or had ended."""
    table = schema.associations
    touched = connection.execute(
        update(table)
        .where(table.c.id == association, table.c.ended_at.is_(None))
        .values(ended_at=ended_at, release=release)
    )
    return touched.rowcount == 1


def lose(connection: Connection, host: str, at: Instant) -> tuple[StudyInstanceUID, ...]:
    """Note that the open associations of a host that is no more are lost: nobody will end them.

    Returns the studies that they brought objects of.
    """
    table, brought = schema.associations, schema.association_studies
    of_host = table.c.host == host, table.c.ended_at.is_(None)
    found = connection.execute(
        select(brought.c.study_instance_uid)
        .join(table, brought.c.association_id == table.c.id)
        .where(*of_host)
        .distinct()
        .order_by(brought.c.study_instance_uid)
    )
    studies = tuple(StudyInstanceUID(uid) for uid in found.scalars())
    connection.execute(update(table).where(*of_host).values(ended_at=at, release="lost"))
    return studies


def open_nodes(connection: Connection, study: StudyInstanceUID) -> tuple[str, ...]:
    """Return the nodes of the associations of a study that have not ended, oldest first."""
    table, brought = schema.associations, schema.association_studies
    found = connection.execute(
        select(table.c.node)
        .join(brought, brought.c.association_id == table.c.id)
        .where(brought.c.study_instance_uid == study, table.c.ended_at.is_(None))
        .order_by(table.c.started_at, table.c.id)
    )
    return tuple(found.scalars())


def was_released(connection: Connection, study: StudyInstanceUID, node: str, besides: str) -> bool:
    """Tell whether a node has cleanly released another association of a study than this one."""
    table, brought = schema.associations, schema.association_studies
    found = connection.execute(
        select(table.c.id)
        .join(brought, brought.c.association_id == table.c.id)
        .where(
            brought.c.study_instance_uid == study,
            table.c.node == node,
            table.c.release == "released",
            table.c.id != besides,
        )
        .limit(1)
    )
    return found.first() is not None


def node_of(connection: Connection, association: str) -> str:
    """Return the node of an association that is known."""
    table = schema.associations
    node: str = connection.execute(
        select(table.c.node).where(table.c.id == association)
    ).scalar_one()
    return node


def studies_of(connection: Connection, association: str) -> tuple[StudyInstanceUID, ...]:
    """Return the studies that an association brought."""
    brought = schema.association_studies
    found = connection.execute(
        select(brought.c.study_instance_uid)
        .where(brought.c.association_id == association)
        .order_by(brought.c.study_instance_uid)
    )
    return tuple(StudyInstanceUID(uid) for uid in found.scalars())
