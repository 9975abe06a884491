"""Backfills: a route over a node's history, day by day, study by study, at a pace that spares it.

Each step is one transaction, so whoever is killed loses nothing and does nothing twice: a day
counts as asked when all its studies are written down, a study moves on together with its job.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import ConfigError, DatabaseError, DicomaiError
from dicomai.net import find as finding
from dicomai.net.calling import patience
from dicomai.net.find import Cut
from dicomai.net.node import Node
from dicomai.routing.matching import Unmatched, over_history
from dicomai.routing.route import Mode, Route
from dicomai.routing.wanted import may_want
from dicomai.service.applied import held_against, queued, wanted
from dicomai.service.count import series_at
from dicomai.service.listing import Untold, studies_at
from dicomai.service.pull import ANSWER_S
from dicomai.service.rules import Rules
from dicomai.service.whole import whole
from dicomai.settings import Settings
from dicomai.spool.folder import free_bytes
from dicomai.store import (
    analyses,
    archive,
    backfills,
    counts,
    events,
    pauses,
    retrievals,
    studies,
)
from dicomai.store.backfills import Arriving, Backfill, Past
from dicomai.store.before import was_pruned
from dicomai.store.counts import SeriesCount
from dicomai.store.engine import reading, writing
from dicomai.store.job import BEHIND
from dicomai.store.retrievals import NewRetrieval
from dicomai.store.states import UNFINISHED, HistoryState

AGAIN_S: Final = 30.0
"""How long a node that gave no answer is left in peace, and a study of which it told nothing."""
TRIES: Final = 3
"""Refusals after which a study is a person's, as long as its node answers otherwise."""
LONG_S: Final = 3600.0
"""A limit that lets no study through for so long is told of."""
MOST_FETCHED: Final = 4
"""Retrievals of a backfill at a time: a node that is slow or away is not asked for ever more."""
MOST_WAITING: Final = 50
"""Analyses of a backfill that are not over: images that nobody looks at only fill the disk."""
_CHUNK: Final = 500
_FOUND: Final[tuple[HistoryState, ...]] = ("found",)
_LOOK: Final = 100
_LOOK_BACK: Final = 1000
_CUT: Final = "backfill cut"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """How often a node told nothing of a study, and until when it is not asked again."""

    times: int
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a backfill needs of the configuration."""

    node: Node
    route: Route
    rules: Rules

    def wants(self, told: SeriesCount) -> bool:
        """Tell whether the model may get a series."""
        model = self.rules.models[self.route.model]
        return may_want(self.route, model, told.attributes, told.objects)

    def begins_with(self, told: SeriesCount) -> bool:
        """Tell whether its first input may get it: without that the route wants nothing."""
        model = self.rules.models[self.route.model]
        first = replace(model, inputs=model.inputs[:1])
        return may_want(self.route, first, told.attributes, told.objects)

    def may_want_any_of(self, modalities: str) -> bool:
        """Tell whether a study may be wanted, by its modalities as a node tells them."""
        model = self.rules.models[self.route.model]
        return not modalities or any(
            may_want(self.route, model, {"Modality": each}, 0) for each in modalities.split("\\")
        )


@dataclass(slots=True, kw_only=True)
class Backfiller:
    """Moves backfills on.

    Attributes
    ----------
    settings
        Nodes, routes, our AE title.
    engine
        The catalogue.
    clock
        The present.
    rules
        What studies are decided by.
    pulse
        Called while it gets on.
    """

    settings: Settings
    engine: Engine
    clock: Callable[[], Instant]
    rules: Callable[[], Rules]
    pulse: Callable[[], None] = lambda: None
    _not_before: dict[int, float] = field(default_factory=dict)
    _full_since: dict[int, float] = field(default_factory=dict)
    _refused: dict[tuple[int, StudyInstanceUID], _Refused] = field(default_factory=dict)

    def backfill_once(self) -> bool:
        """Move each backfill on by a step; return whether any moved."""
        with reading(self.engine) as connection:
            alive = backfills.alive(connection)
        moved = False
        for each in alive:
            if time.monotonic() < self._not_before.get(each.id, 0.0):
                continue
            try:
                moved |= self._step(each)
            except DatabaseError:
                raise
            except DicomaiError as error:
                self._not_before[each.id] = time.monotonic() + AGAIN_S
                self._tell_trouble(each, error.sentence)
        return moved

    def _step(self, backfill: Backfill) -> bool:
        plan = self._plan(backfill)
        with reading(self.engine) as connection:
            arriving = backfills.arriving(connection, backfill, _LOOK)
        moved = False
        for each in arriving:
            self.pulse()
            moved |= self._settle(backfill, plan, each)
        if backfill.state != "running" or self._rests(backfill):
            return moved
        with reading(self.engine) as connection:
            found = backfills.studies_of(connection, backfill, _FOUND, _LOOK)
        if found:
            due = next((each for each in found if self._is_due(backfill, each)), None)
            return (due is not None and self._fetch_next(backfill, plan, due)) or moved
        if backfill.next_day is not None:
            return self._ask(backfill, plan, backfill.next_day)
        return self._finish(backfill) or moved

    def _plan(self, backfill: Backfill) -> _Plan:
        """Return what a backfill needs, or raise ConfigError where that is no more."""
        end = f"Put it back, or: dicomai backfills {backfill.id} --cancel"
        node = next((each for each in self.settings.nodes if each.name == backfill.node), None)
        route = next((each for each in self.settings.routes if each.name == backfill.route), None)
        if node is None or not node.host:
            raise ConfigError(f"No node {backfill.node} with a host is configured. {end}")
        if route is None or route.mode == "off":
            what = "configured" if route is None else "on"
            raise ConfigError(f"Route {backfill.route} is not {what} any more. {end}")
        rules = self.rules()
        if route.model not in rules.models:
            raise ConfigError(f"{rules.why_missing(route.model)} {end}")
        # What was set to shadow since stays here.
        mode: Mode = "live" if backfill.mode == route.mode == "live" else "shadow"
        return _Plan(
            node=node, route=over_history(route, mode, route.priority - BEHIND), rules=rules
        )

    def _rests(self, backfill: Backfill) -> bool:
        """Tell whether a person paused it, or there is no room."""
        with reading(self.engine) as connection:
            resting = {(each.subject, each.name) for each in pauses.listing(connection)}
        for subject, name in (("node", backfill.node), ("route", backfill.route)):
            if (subject, name) in resting:
                self._tell_trouble(
                    backfill,
                    f"{subject.capitalize()} {name} is paused. To go on: dicomai resume {subject} "
                    f"{name}",
                )
                return True
        least = max(self.settings.retention.reserve_bytes, self.settings.receiver.reserve_bytes)
        data = self.settings.folders.data
        for folder in (data, archive.disk(data)):
            if free_bytes(folder) < least:
                self._tell_trouble(
                    backfill,
                    f"Less than {least:,} bytes are free in {folder}. History must not take the "
                    "room of today's studies; it goes on when there is more.",
                )
                return True
        return False

    def _ask(self, backfill: Backfill, plan: _Plan, day: date) -> bool:
        """Write down what the node has of a day, in parts; the day counts when all are there."""
        untold = Untold()
        matches = self._matches(plan, day, untold)
        while part := list(itertools.islice(matches, _CHUNK)):
            with writing(self.engine) as connection:
                current = backfills.lock(connection, backfill.id)
                if current.state != "running" or current.next_day != day:
                    return False  # cancelled, or another scheduler was faster
                backfills.note_found(connection, current, part)
        with writing(self.engine) as connection:
            current = backfills.lock(connection, backfill.id)
            if current.state == "running" and current.next_day == day:
                why = untold.because or untold.timeless
                trouble = self._tell_cut(connection, current, day, why) if why else ""
                backfills.set_asked(connection, current, day, trouble)
        return True

    def _tell_cut(self, connection: Connection, backfill: Backfill, day: date, why: str) -> str:
        """Tell that a node does not tell all of a day, for it would not another time either."""
        sentence = f"Of {day} not all studies are told of: {why}"
        log.warning("day cut", backfill=backfill.id, why=sentence)
        data = {"backfill": backfill.id}
        told = f"{backfill.title} leaves studies out. {sentence}"
        events.record(connection, None, _CUT, told, data, self.clock())
        return sentence

    def _matches(
        self, plan: _Plan, day: date, untold: Untold
    ) -> Iterator[tuple[StudyInstanceUID, str]]:
        keys = {"StudyDate": f"{day:%Y%m%d}"}
        go_on = patience(plan.node, ANSWER_S, self.pulse)
        for uid, match in studies_at(self.settings, plan.node, keys, untold, go_on):
            if match.text("StudyDate") not in ("", f"{day:%Y%m%d}"):
                continue  # a careless node answers with more than was asked for
            if plan.may_want_any_of(match.text("ModalitiesInStudy")):
                yield uid, f"{day:%Y%m%d}"

    def _is_due(self, backfill: Backfill, past: Past) -> bool:
        refused = self._refused.get((backfill.id, past.study_instance_uid))
        return refused is None or time.monotonic() >= refused.until

    def _is_full(self, backfill: Backfill) -> bool:
        """Tell whether as much of it is under way as may be; where that lasts, tell of it."""
        with reading(self.engine) as connection:
            under_way = backfills.fetching(connection, backfill)
            waiting = backfills.progress(connection, backfill).analyses_left
        if under_way < MOST_FETCHED and waiting < MOST_WAITING:
            self._full_since.pop(backfill.id, None)
            return False
        since = self._full_since.setdefault(backfill.id, time.monotonic())
        if time.monotonic() - since >= LONG_S:
            many, what = (
                (MOST_FETCHED, "studies are being fetched")
                if under_way >= MOST_FETCHED
                else (MOST_WAITING, "analyses are not over")
            )
            self._tell_trouble(
                backfill,
                f"{many} of its {what}, and have been for more than {LONG_S / 60:g} minutes. It "
                "goes on when one is. See: dicomai jobs",
            )
        return True

    def _fetch_next(self, backfill: Backfill, plan: _Plan, past: Past) -> bool:
        if self.clock() < backfill.next_at or self._is_full(backfill):
            return False
        uid = past.study_instance_uid
        try:
            go_on = patience(plan.node, ANSWER_S, self.pulse)
            told = series_at(self.settings, plan.node, uid, go_on)
        except DatabaseError:
            raise
        except DicomaiError as error:
            return self._refuse(backfill, plan, past, error.sentence)
        self._refused.pop((backfill.id, uid), None)
        fits = any(map(plan.begins_with, told))
        with reading(self.engine) as connection:
            here = retrievals.is_here(connection, uid)
            # What was fetched for something else may be a part: that route's own series. Of what
            # was not, nothing is fetched: each route would look at it again.
            apart = retrievals.purpose_of(connection, uid) or not here
            lacking = counts.lacking(connection, uid, [each for each in told if plan.wants(each)])
        if here and not (apart and fits and lacking):
            return self._fetch(backfill, plan, past, ())
        if not fits:
            why = (
                f"By what {plan.node.name} tells of its series, none fits route {backfill.route}."
                if told
                else f"{plan.node.name} has no series of it any more."
            )
            return self._move(backfill, past, "left out", why)
        return self._fetch(backfill, plan, past, lacking)

    def _refuse(self, backfill: Backfill, plan: _Plan, past: Past, sentence: str) -> bool:
        """Leave a study for later of which a node that answers tells nothing; in the end it failed.

        Where the node gives no other answer either, the trouble is not the study's, and is raised.
        """
        key = backfill.id, past.study_instance_uid
        asked = finding.query("study", {"StudyInstanceUID": past.study_instance_uid})
        our_ae, files = self.settings.receiver.ae_title, self.settings.tls.files
        go_on = patience(plan.node, ANSWER_S, self.pulse)
        list(finding.find(plan.node, our_ae, asked, files, limit=1, cut=Cut(), go_on=go_on))
        before = self._refused.pop(key, None)
        times = 1 + (before.times if before else 0)
        log.warning("study refused", backfill=backfill.id, study=past.study_instance_uid)
        if times >= TRIES:
            return self._move(backfill, past, "failed", sentence)
        self._refused[key] = _Refused(times=times, until=time.monotonic() + AGAIN_S)
        return True

    def _fetch(
        self, backfill: Backfill, plan: _Plan, past: Past, series: Sequence[SeriesCount]
    ) -> bool:
        """Have series fetched that are not here; where all are, the study is looked at as it is."""
        retrieval = NewRetrieval(
            node=plan.node.name,
            study_instance_uid=past.study_instance_uid,
            series=frozenset(each.series_instance_uid for each in series),
            purpose=f"backfill {backfill.id}",
            priority=-BEHIND,
            ageing=plan.rules.ageing,
        )
        with writing(self.engine) as connection:
            now = self.clock()
            current = backfills.lock(connection, backfill.id)
            if current.state != "running":
                return False
            if not backfills.move(connection, current, past, "fetching"):
                return False
            if series:
                job = retrievals.queue(connection, retrieval, now).job_id
                fetched = replace(past, state="fetching")
                backfills.move(connection, current, fetched, "fetching", retrieval=job)
                backfills.set_pace(connection, current, now)
            backfills.set_trouble(connection, current, "")
        return True

    def _settle(self, backfill: Backfill, plan: _Plan, arriving: Arriving) -> bool:
        """Move a study on that is on its way, as far as what it waits for has come."""
        past = arriving.past
        if arriving.retrieval in UNFINISHED:
            return past.state != "fetching" and self._move(backfill, past, "fetching")
        if arriving.retrieval in ("failed", "cancelled"):
            why = arriving.retrieval_error or f"Job {past.retrieval} was {arriving.retrieval}."
            return self._move(backfill, past, "failed", why)
        if arriving.status is None or arriving.status == "deleting":
            return self._move(backfill, past, "left out", "Retention deleted it meanwhile.")
        if arriving.status == "held":
            return self._move(backfill, past, "held", arriving.hold_reason)
        if arriving.status == "open":
            return past.state != "fetching" and self._move(backfill, past, "fetching")
        return self._apply(backfill, plan, past)

    def _apply(self, backfill: Backfill, plan: _Plan, past: Past) -> bool:
        """Hold the route against a study that is here and whole."""
        with writing(self.engine) as connection:
            now = self.clock()
            current = backfills.lock(connection, backfill.id)
            study = studies.lock(connection, past.study_instance_uid)
            if current.state == "cancelled" or study is None or study.status != "decided":
                return False
            seen = whole(connection, study)
            outcome = held_against(connection, seen, plan.route, plan.rules, now)
            if isinstance(outcome, Unmatched):
                why = f"Route {backfill.route} does not match: {outcome.because}."
                return backfills.move(connection, current, past, "left out", why)
            new = wanted(seen, plan.route, outcome, plan.rules)
            if plan.route.mode == "shadow":
                other = analyses.in_the_way(connection, new)
                if other is not None:
                    why = f"Job {other} does it live already."
                    return backfills.move(connection, current, past, "left out", why)
            added = queued(connection, seen, plan.route, outcome, new, now)
            if added.outcome == "pruned":
                why = was_pruned(added.job_id, plan.route.model)
                return backfills.move(connection, current, past, "left out", why)
            own = added.outcome == "queued"
            return backfills.move(
                connection, current, past, "analysis", analysis=added.job_id, own=own
            )

    def _move(
        self, backfill: Backfill, past: Past, state: HistoryState, sentence: str = ""
    ) -> bool:
        with writing(self.engine) as connection:
            current = backfills.lock(connection, backfill.id)
            if current.state == "cancelled":
                return False
            return backfills.move(connection, current, past, state, sentence)

    def _finish(self, backfill: Backfill) -> bool:
        with writing(self.engine) as connection:
            current = backfills.lock(connection, backfill.id)
            left = backfills.progress(connection, current).left
            if current.state != "running" or current.next_day is not None or left:
                return False
            now = self.clock()
            cut = sum(
                each.data.get("backfill") == current.id
                for each in events.of_service(connection, (_CUT,), _LOOK_BACK)
            )
            days = "1 day" if cut == 1 else f"{cut} days"
            trouble = f"Of {days} {current.node} did not tell all studies." if cut else ""
            backfills.set_done(connection, current, now, trouble)
            sentence = f"{current.title} has looked at all that {current.node} told."
            data = {"backfill": current.id}
            told = f"{sentence} {trouble}".strip()
            events.record(connection, None, "backfill done", told, data, now)
        return True

    def _tell_trouble(self, backfill: Backfill, sentence: str) -> None:
        """Tell of trouble once, not each time."""
        if backfill.trouble == sentence or backfill.state != "running":
            return
        log.warning("backfill waits", backfill=backfill.id, why=sentence)
        with writing(self.engine) as connection:
            current = backfills.lock(connection, backfill.id)
            if current.state == "running" and current.trouble != sentence:
                backfills.set_trouble(connection, current, sentence)
                told = f"{current.title} waits: {sentence}"
                data = {"backfill": current.id}
                events.record(connection, None, "backfill waits", told, data, self.clock())
