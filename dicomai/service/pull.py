"""Pulls: nodes that can't send by themselves are asked for new studies, and these are fetched."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Final
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant, as_datetime, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DatabaseError, DicomaiError
from dicomai.net.calling import patience
from dicomai.routing.pull import Pull
from dicomai.service.listing import Untold, studies_at
from dicomai.settings import Settings
from dicomai.store import events, pulls, retrievals, studies
from dicomai.store.engine import reading, writing
from dicomai.store.events import Event
from dicomai.store.retrievals import NewRetrieval

ANSWER_S: Final = 600.0
"""How long a node may take to say what it has; other pulls wait meanwhile."""
_LOOK_BACK: Final = 1000

log = structlog.get_logger()


def failing(connection: Connection) -> Mapping[str, str]:
    """Return what is wrong with pulls that did not hear of all the last time, by name."""
    told = events.of_service(connection, ("pull failed", "pull goes on"), _LOOK_BACK)
    last: dict[str, Event] = {}
    for each in told:
        last.setdefault(str(each.data.get("pull")), each)
    return {name: each.sentence for name, each in last.items() if each.kind == "pull failed"}


@dataclass(slots=True, kw_only=True)
class Puller:
    """Asks nodes by their schedules, and queues what they have and we don't.

    Attributes
    ----------
    settings
        Pulls, nodes, our AE title.
    engine
        The catalogue.
    clock
        The present.
    pulse
        Called while it gets on.
    """

    settings: Settings
    engine: Engine
    clock: Callable[[], Instant]
    pulse: Callable[[], None] = lambda: None
    _asked: dict[str, float] = field(default_factory=dict)
    _trouble: dict[str, str] = field(default_factory=dict)
    _timeless: set[str] = field(default_factory=set)
    _grown: dict[StudyInstanceUID, int] = field(default_factory=dict)

    def pull_once(self) -> bool:
        """Ask for each pull that is due; return whether anything was queued."""
        queued = 0
        for pull in self.settings.pulls:
            asked = self._asked.get(pull.name)
            if asked is None or time.monotonic() - asked >= pull.every_s:
                self._asked[pull.name] = time.monotonic()
                queued += self._pull(pull)
        return bool(queued)

    def _pull(self, pull: Pull) -> int:
        zone = ZoneInfo(self.settings.service.timezone)
        today = as_datetime(self.clock()).astimezone(zone).date()
        with reading(self.engine) as connection:
            answered = pulls.answered(connection, pull.name)
        untold = Untold()
        try:
            found = self._found(pull, today, answered, untold)
            queued = sum(self._queued(pull, uid, there) for uid, there in found.items())
        except DatabaseError:
            raise
        except DicomaiError as error:
            self._tell(pull, f"Pull {pull.name} can't ask {pull.node}: {error.sentence}")
            return 0
        if untold.because:  # nor is it answered: what was not told is asked for again
            self._tell(pull, f"Pull {pull.name} does not hear of all studies: {untold.because}")
        else:
            self._note_answered(pull, today, answered)
        if untold.timeless:  # asked for again they are told of no better
            self._tell_of_timeless(pull, untold.timeless)
        if queued:
            log.info("studies to be fetched", pull=pull.name, node=pull.node, count=queued)
        return queued

    def _found(
        self, pull: Pull, today: date, answered: date | None, untold: Untold
    ) -> dict[StudyInstanceUID, int]:
        """Return the studies that match, the oldest first as far as the node tells.

        With each goes how many objects it has there; 0 where the node does not tell. Where it fails
        after it told some, those are taken, and `untold` says why there may be more: it may fail
        there each time.
        """
        node = self.settings.node(pull.node)
        go_on = patience(node, ANSWER_S, self.pulse)
        found: dict[StudyInstanceUID, tuple[str, str, int]] = {}
        keys = pull.asked(today, answered)
        try:
            for uid, match in studies_at(self.settings, node, keys, untold, go_on):
                told = match.text("NumberOfStudyRelatedInstances")
                there = int(told) if told.isdecimal() else 0
                found[uid] = match.text("StudyDate"), match.text("StudyTime"), there
        except DatabaseError:
            raise
        except DicomaiError as error:
            if not found:
                raise
            untold.because = error.sentence
        ordered = sorted(found, key=lambda uid: (found[uid][:2], uid))
        return {uid: found[uid][2] for uid in ordered}

    def _queued(self, pull: Pull, uid: StudyInstanceUID, there: int) -> bool:
        """Queue a study, unless it is here or was ever asked for, and has not grown since.

        One that was fetched for something else, perhaps in part, is fetched whole, and looked at by
        routes from now on.
        """
        grew = False
        with reading(self.engine) as connection:
            if not retrievals.purpose_of(connection, uid) and (
                studies.get(connection, uid) is not None or retrievals.asked(connection, uid)
            ):
                grew = retrievals.grew(connection, uid, pull.node, there)
                # A node may count what it does not give: each number is heeded once.
                if not grew or self._grown.get(uid) == there:
                    return False
        wanted = NewRetrieval(
            node=pull.node,
            study_instance_uid=uid,
            priority=pull.priority,
            ageing=seconds(self.settings.worker.ageing_s),
        )
        with writing(self.engine) as connection:
            queued = retrievals.queue(connection, wanted, self.clock()).outcome == "queued"
        if queued and grew:
            self._grown[uid] = there
        return queued

    def _note_answered(self, pull: Pull, today: date, answered: date | None) -> None:
        if answered != today:
            with writing(self.engine) as connection:
                pulls.note_answered(connection, pull.name, today)
        self._recover(pull)

    def _recover(self, pull: Pull) -> None:
        """Take back what was told of trouble, by this process or one before it."""
        if self._trouble.get(pull.name) == "":
            return
        with writing(self.engine) as connection:
            if pull.name in failing(connection):
                told = f"Pull {pull.name} asks {pull.node} again."
                data = {"pull": pull.name}
                events.record(connection, None, "pull goes on", told, data, self.clock())
        self._trouble[pull.name] = ""

    def _tell_of_timeless(self, pull: Pull, sentence: str) -> None:
        """Tell once, while this process lives, that studies may be left out."""
        if pull.name in self._timeless:
            return
        self._timeless.add(pull.name)
        told = f"Pull {pull.name} may leave out studies: {sentence}"
        log.warning("pull may leave out studies", pull=pull.name, why=sentence)
        with writing(self.engine) as connection:
            events.record(connection, None, "pull cut", told, {"pull": pull.name}, self.clock())

    def _tell(self, pull: Pull, sentence: str) -> None:
        """Tell of trouble once, not each time."""
        if self._trouble.get(pull.name) == sentence:
            return
        self._trouble[pull.name] = sentence
        log.warning("pull waits", pull=pull.name, node=pull.node, why=sentence)
        data = {"pull": pull.name}
        with writing(self.engine) as connection:
            events.record(connection, None, "pull failed", sentence, data, self.clock())
