"""Backfills: routes that run over what a node has kept, and how far each got.

A day of the node's is written down whole before the next one is asked for, and a study moves on
together with the job that it gets: who is killed between two steps goes on at the right one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal, cast

from sqlalchemy import Connection, Result, Row, exists, func, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import NotFound
from dicomai.store import jobs as queue
from dicomai.store import schema
from dicomai.store.job import JobId
from dicomai.store.states import (
    UNDER_WAY,
    UNFINISHED,
    BackfillState,
    HistoryState,
    JobState,
    RouteMode,
    StudyStatus,
)

backfills = schema.backfills
history = schema.backfill_studies
jobs = schema.jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBackfill:
    """A route that is to run over some days of a node's history."""

    node: str
    route: str
    mode: RouteMode
    first_day: date
    last_day: date
    studies_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill(NewBackfill):
    """A row of the catalogue.

    Attributes
    ----------
    next_day
        The one that the node is asked for next; None: all were asked for.
    next_at
        Nothing is fetched before.
    trouble
        Why it doesn't get on; empty where it does.
    """

    id: int
    state: BackfillState
    next_day: date | None
    next_at: Instant
    trouble: str
    created_at: Instant
    finished_at: Instant | None

    @property
    def title(self) -> str:
        """What a sentence calls it."""
        return f"Backfill {self.id} ({self.route} over {self.node})"

    @property
    def days(self) -> int:
        """How many there are in all."""
        return (self.last_day - self.first_day).days + 1

    @property
    def days_asked(self) -> int:
        """How many of them the node was asked for."""
        return self.days if self.next_day is None else (self.next_day - self.first_day).days


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A study of a node's history.

    Attributes
    ----------
    retrieval, analysis
        The jobs that it got.
    own
        The analysis was made for the backfill.
    """

    study_instance_uid: StudyInstanceUID
    study_date: str
    state: HistoryState
    retrieval: JobId | None
    analysis: JobId | None
    own: bool
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arriving:
    """A study that is on its way, and where what it waits for stands; None: that is gone."""

    past: Past
    retrieval: JobState | None
    retrieval_error: str
    status: StudyStatus | None
    hold_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How many studies stand where, and how many analyses."""

    studies: Mapping[HistoryState, int]
    analyses: Mapping[JobState, int]

    @property
    def found(self) -> int:
        """All that the node had until now."""
        return sum(self.studies.values())

    @property
    def left(self) -> int:
        """Those about which something is still to be done."""
        return self.studies.get("found", 0) + self.studies.get("fetching", 0)

    @property
    def analyses_left(self) -> int:
        """The analyses that are not over, and will be without a person."""
        return sum(number for state, number in self.analyses.items() if state in UNDER_WAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedBackfill:
    """What became of the wish for one: a new one, or the one that is under way."""

    outcome: Literal["started", "present"]
    backfill: Backfill


def add(connection: Connection, new: NewBackfill, now: Instant) -> AddedBackfill:
    """Start a backfill, unless the same one is under way."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    started = (
        insert(backfills)
        .values(
            node=new.node,
            route=new.route,
            mode=new.mode,
            first_day=new.first_day.isoformat(),
            last_day=new.last_day.isoformat(),
            studies_per_hour=new.studies_per_hour,
            state="running",
            next_day=new.first_day.isoformat(),
            next_at=now,
            trouble="",
            created_at=now,
        )
        .on_conflict_do_nothing()
        .returning(backfills.c.id)
    )
    while (number := connection.execute(started).scalar_one_or_none()) is None:
        there = connection.execute(
            select(backfills.c.id).where(
                backfills.c.node == new.node,
                backfills.c.route == new.route,
                backfills.c.mode == new.mode,
                backfills.c.first_day == new.first_day.isoformat(),
                backfills.c.last_day == new.last_day.isoformat(),
                backfills.c.state == literal_column("'running'"),
            )
        ).scalar_one_or_none()
        # On PostgreSQL it may be over by now, and no longer in the way.
        if there is not None:
            return AddedBackfill(outcome="present", backfill=existing(connection, there))
    return AddedBackfill(outcome="started", backfill=existing(connection, number))


def existing(connection: Connection, number: int) -> Backfill:
    """Return a backfill; NotFound says that there is none."""
    found = _all(connection.execute(select(backfills).where(backfills.c.id == number)))
    if not found:
        raise NotFound(
            f"There is no backfill {number}. See: dicomai backfills", subject=str(number)
        )
    return found[0]


def lock(connection: Connection, number: int) -> Backfill:
    """Return a backfill as nobody else changes it until the transaction ends."""
    query = select(backfills).where(backfills.c.id == number).with_for_update()
    return _all(connection.execute(query))[0]


def listing(connection: Connection, limit: int) -> tuple[Backfill, ...]:
    """Return the newest backfills."""
    return _all(connection.execute(select(backfills).order_by(backfills.c.id.desc()).limit(limit)))


def alive(connection: Connection) -> tuple[Backfill, ...]:
    """Return those that a scheduler has to look at, oldest first.

    What failed or was held may go on when a person has helped, in one that is done too.
    """
    waits = exists().where(
        history.c.backfill_id == backfills.c.id, history.c.state.in_(("held", "failed", "fetching"))
    )
    query = select(backfills).where(
        (backfills.c.state == "running") | ((backfills.c.state == "done") & waits)
    )
    return _all(connection.execute(query.order_by(backfills.c.id)))


def note_found(
    connection: Connection, backfill: Backfill, found: Iterable[tuple[StudyInstanceUID, str]]
) -> None:
    """Add studies with their dates, each once; the backfill is locked."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    rows = [
        {
            "backfill_id": backfill.id,
            "study_instance_uid": uid,
            "study_date": day,
            "state": "found",
            "own": False,
            "sentence": "",
        }
        for uid, day in found
    ]
    if rows:
        connection.execute(insert(history).on_conflict_do_nothing(), rows)


def set_asked(connection: Connection, backfill: Backfill, day: date, trouble: str) -> None:
    """Note that all that was told of a day is written down; the backfill is locked."""
    following = day + timedelta(days=1)
    _update(
        connection,
        backfill,
        next_day=following.isoformat() if following <= backfill.last_day else None,
        trouble=trouble,
    )


def set_trouble(connection: Connection, backfill: Backfill, sentence: str) -> None:
    """Note why a backfill doesn't get on, or with nothing that it does."""
    _update(connection, backfill, trouble=sentence)


def set_pace(connection: Connection, backfill: Backfill, now: Instant) -> None:
    """Note that a study was asked for now: the next one has its time."""
    _update(connection, backfill, next_at=now + seconds(3600 / backfill.studies_per_hour))


def set_done(connection: Connection, backfill: Backfill, now: Instant, trouble: str) -> None:
    """Note that nothing is left to be done."""
    _update(connection, backfill, state="done", finished_at=now, trouble=trouble)


def studies_of(
    connection: Connection, backfill: Backfill, states: Sequence[HistoryState], limit: int
) -> tuple[Past, ...]:
    """Return the studies in some states, oldest first."""
    query = (
        select(history)
        .where(history.c.backfill_id == backfill.id, history.c.state.in_(tuple(states)))
        .order_by(history.c.study_date, history.c.study_instance_uid)
        .limit(limit)
    )
    return tuple(_past(row) for row in connection.execute(query))


def arriving(connection: Connection, backfill: Backfill, limit: int) -> tuple[Arriving, ...]:
    """Return the studies that are on their way, and those that a person may have helped."""
    table = schema.studies
    query = (
        select(
            history,
            jobs.c.state.label("job_state"),
            jobs.c.error_sentence,
            table.c.status,
            table.c.hold_reason,
        )
        .outerjoin(jobs, jobs.c.id == history.c.retrieval)
        .outerjoin(table, table.c.study_instance_uid == history.c.study_instance_uid)
        .where(
            history.c.backfill_id == backfill.id,
            history.c.state.in_(("fetching", "held", "failed")),
            # Those that are being fetched, or held for a person, can't move, and may be many.
            ((history.c.state == "fetching") & func.coalesce(jobs.c.state, "").notin_(UNFINISHED))
            | ((history.c.state == "held") & func.coalesce(table.c.status, "").notin_(("held",)))
            | ((history.c.state == "failed") & jobs.c.state.not_in(("failed", "cancelled"))),
        )
        .order_by(history.c.study_date, history.c.study_instance_uid)
        .limit(limit)
    )
    return tuple(
        Arriving(
            past=_past(row),
            retrieval=row.job_state,
            retrieval_error=row.error_sentence or "",
            status=row.status,
            hold_reason=row.hold_reason or "",
        )
        for row in connection.execute(query)
    )


def move(
    connection: Connection,
    backfill: Backfill,
    study: Past,
    state: HistoryState,
    sentence: str = "",
    **values: Any,  # columns of the table, of their own types
) -> bool:
    """Move a study on; False: somebody else did. The backfill is locked."""
    moved = connection.execute(
        update(history)
        .where(
            history.c.backfill_id == backfill.id,
            history.c.study_instance_uid == study.study_instance_uid,
            history.c.state == study.state,
        )
        .values(state=state, sentence=sentence, **values)
    )
    return moved.rowcount == 1


def progress(connection: Connection, backfill: Backfill) -> Progress:
    """Return how far a backfill got."""
    of_it = history.c.backfill_id == backfill.id
    studies = connection.execute(
        select(history.c.state, func.count()).where(of_it).group_by(history.c.state)
    )
    analyses = connection.execute(
        select(jobs.c.state, func.count())
        .join(history, history.c.analysis == jobs.c.id)
        .where(of_it)
        .group_by(jobs.c.state)
    )
    return Progress(
        studies={cast("HistoryState", state): number for state, number in studies},
        analyses={cast("JobState", state): number for state, number in analyses},
    )


def fetching(connection: Connection, backfill: Backfill) -> int:
    """Return how many retrievals of a backfill are not over, and will be without a person."""
    return connection.execute(
        select(func.count())
        .select_from(history)
        .join(jobs, jobs.c.id == history.c.retrieval)
        .where(
            history.c.backfill_id == backfill.id,
            history.c.state == "fetching",
            jobs.c.state.in_(UNDER_WAY),
        )
    ).scalar_one()


def cancel(connection: Connection, number: int, now: Instant) -> int:
    """End a backfill, with the jobs that were made for it and have not begun; return how many.

    Raises
    ------
    NotFound, NotNow
        There is none, or it is over.
    """
    existing(connection, number)
    backfill = lock(connection, number)
    if backfill.state != "running":
        raise queue.NotNow(f"{backfill.title} is {backfill.state} already.", subject=str(number))
    because = f"A person cancelled {backfill.title}."
    routes = schema.job_routes
    another = exists().where(
        routes.c.job_id == jobs.c.id,
        (routes.c.route != backfill.route) | (routes.c.mode != backfill.mode),
    )
    fetched = select(history.c.retrieval).where(history.c.backfill_id == number)
    own = select(history.c.analysis).where(history.c.backfill_id == number, history.c.own)
    idle = jobs.c.state.in_(("waiting", "queued", "held"))
    mine = jobs.c.id.in_(fetched) | (jobs.c.id.in_(own) & ~another)
    ended = connection.execute(select(jobs.c.id).where(idle, mine)).scalars().all()
    for job in ended:
        queue.cancel(connection, JobId(job), because, now)
    connection.execute(
        update(history)
        .where(
            history.c.backfill_id == number,
            history.c.state.in_(("found", "fetching", "held")),
        )
        .values(state="cancelled", sentence=because)
    )
    _update(connection, backfill, state="cancelled", finished_at=now, trouble="")
    return len(ended)


def _past(row: Row[Any]) -> Past:
    return Past(**{name: row._mapping[name] for name in Past.__dataclass_fields__})


def _update(connection: Connection, backfill: Backfill, **values: object) -> None:
    connection.execute(update(backfills).where(backfills.c.id == backfill.id).values(**values))


def _all(rows: Result[Any]) -> tuple[Backfill, ...]:
    found = []
    for row in rows:
        values: dict[str, Any] = {n: row._mapping[n] for n in Backfill.__dataclass_fields__}
        for name in ("first_day", "last_day", "next_day"):
            values[name] = date.fromisoformat(values[name]) if values[name] else None
        found.append(Backfill(**values))
    return tuple(found)
