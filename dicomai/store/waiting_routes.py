"""Routes that were not held against a study yet: the package of their model could not be read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, exists, insert, select, update

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import schema


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRoute:
    """A route that waits for its model; `because`: the sentence that says so."""

    study_instance_uid: StudyInstanceUID
    route: str
    because: str


def add(connection: Connection, waiting: WaitingRoute, now: Instant) -> None:
    """Note that a route waits; its study is locked."""
    remove(connection, waiting)
    connection.execute(
        insert(schema.waiting_routes).values(
            study_instance_uid=waiting.study_instance_uid,
            route=waiting.route,
            because=waiting.because,
            due_at=now,
        )
    )


def some(connection: Connection) -> bool:
    """Tell whether any route waits."""
    return connection.execute(select(schema.waiting_routes.c.route).limit(1)).first() is not None


def due(
    connection: Connection, blocked: Collection[str], now: Instant, limit: int = 100
) -> tuple[WaitingRoute, ...]:
    """Return some routes that wait, of studies that are decided, the longest due first.

    Parameters
    ----------
    blocked
        The routes whose model still can't be read.
    """
    table, studies = schema.waiting_routes, schema.studies
    found = connection.execute(
        select(table.c.study_instance_uid, table.c.route, table.c.because)
        .join(studies, studies.c.study_instance_uid == table.c.study_instance_uid)
        .where(
            table.c.due_at <= now,
            table.c.route.not_in(tuple(blocked)),
            studies.c.status == "decided",
        )
        .order_by(table.c.due_at, table.c.study_instance_uid, table.c.route)
        .limit(limit)
    )
    return tuple(
        WaitingRoute(
            study_instance_uid=StudyInstanceUID(row.study_instance_uid),
            route=row.route,
            because=row.because,
        )
        for row in found
    )


def of_study(connection: Connection, study: StudyInstanceUID) -> tuple[str, ...]:
    """Return the names of the routes that have yet to look at a study."""
    table = schema.waiting_routes
    found = connection.execute(select(table.c.route).where(table.c.study_instance_uid == study))
    return tuple(found.scalars())


def postpone(connection: Connection, waiting: WaitingRoute, until: Instant) -> None:
    """Let a route wait until a moment at least."""
    connection.execute(
        update(schema.waiting_routes)
        .where(*_same(waiting.study_instance_uid, waiting.route))
        .values(due_at=until)
    )


def remove(connection: Connection, waiting: WaitingRoute) -> bool:
    """Note that a route waits no more; False: it did not."""
    return bool(
        connection.execute(
            delete(schema.waiting_routes).where(*_same(waiting.study_instance_uid, waiting.route))
        ).rowcount
    )


def clear(connection: Connection, study: StudyInstanceUID) -> None:
    """Forget what waits of a study: all routes are held against it anew."""
    table = schema.waiting_routes
    connection.execute(delete(table).where(table.c.study_instance_uid == study))


def waits(study: ColumnElement[str]) -> ColumnElement[bool]:
    """The condition, on a column of studies, that a route has yet to look at one."""
    return exists().where(schema.waiting_routes.c.study_instance_uid == study)


def _same(study: StudyInstanceUID, route: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    table = schema.waiting_routes
    return table.c.study_instance_uid == study, table.c.route == route
