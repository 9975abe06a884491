"""Counting at the nodes: how much they have of what they send, asked before a study is whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID, validated
from dicomai.errors import DatabaseError, DicomaiError
from dicomai.net import find as finding
from dicomai.net.calling import GoOn, patience
from dicomai.net.find import Match
from dicomai.net.node import Node
from dicomai.routing.completeness import completed, confirmed
from dicomai.service.decide import wanted_by
from dicomai.service.rules import Rules
from dicomai.service.whole import whole
from dicomai.settings import Settings
from dicomai.store import arrivals, counts, events, steps, studies
from dicomai.store.counts import SeriesCount
from dicomai.store.engine import reading, writing
from dicomai.store.studies import Study

COUNT_S: Final = 2.0
AGAIN_S: Final = 30.0
"""How long a node is left in peace, for a study of which nothing new came."""
ANSWER_S: Final = 60.0
"""How long a node may take to say what it has of a study; others wait meanwhile."""
_MOST: Final = 100
_ALSO: Final = ("BodyPartExamined", "ProtocolName", "Laterality")
"""What is asked of each series besides the usual: models and routes have conditions on it."""

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Counter:
    """Asks nodes that answer C-FIND what they have of the studies that are arriving.

    Attributes
    ----------
    settings
        Nodes, our AE title.
    engine
        The catalogue.
    clock
        The present.
    rules
        What studies are decided by: they say which series are wanted.
    pulse
        Called while it gets on.
    """

    settings: Settings
    engine: Engine
    clock: Callable[[], Instant]
    rules: Callable[[], Rules]
    pulse: Callable[[], None] = lambda: None
    _asked: dict[tuple[StudyInstanceUID, str], tuple[Instant, float]] = field(default_factory=dict)
    _failed: dict[str, float] = field(default_factory=dict)
    _told: dict[tuple[StudyInstanceUID, str], str] = field(default_factory=dict)

    def count_once(self) -> bool:
        """Ask for each study that is due; return whether any was counted.

        A node that gives no answer confirms nothing and vetoes nothing.
        """
        asking = {
            node.name: node for node in self.settings.nodes if node.answers_find and node.host
        }
        with reading(self.engine) as connection:
            arriving = studies.arriving(connection, _MOST)
        known = {study.study_instance_uid for study in arriving}
        self._asked = {key: asked for key, asked in self._asked.items() if key[0] in known}
        self._told = {key: said for key, said in self._told.items() if key[0] in known}
        worked = False
        for study in arriving:
            self.pulse()
            worked |= self._is_completed(study)
            for name in study.nodes:
                node = asking.get(name)
                if node is not None and self._is_due(study, node):
                    self._asked[study.study_instance_uid, name] = (
                        study.last_object_at,
                        time.monotonic(),
                    )
                    worked |= self._count(study, node)
        return worked

    def _is_completed(self, study: Study) -> bool:
        """Wait no longer than the floor where the modality says that it has sent all."""
        uid = study.study_instance_uid
        with reading(self.engine) as connection:
            if len(study.nodes) != 1 or not completed(steps.told(connection, uid)):
                return False
        with writing(self.engine) as connection:
            current = studies.lock(connection, uid)
            if current is None or current.status != "open" or current.nodes != study.nodes:
                return False
            whole = completed(steps.told(connection, uid))
            return whole and self._shorten(connection, current)

    def _shorten(self, connection: Connection, study: Study) -> bool:
        """Move the end of the quiet time to the floor; False: it is there, or may not be."""
        node = next((each for each in self.settings.nodes if each.name == study.nodes[0]), None)
        if node is None or study.full_quiet:
            return False
        floor = Instant(study.last_object_at + seconds(node.floor_s))
        if floor >= study.quiet_until:
            return False
        arrivals.set_quiet(connection, study.study_instance_uid, floor, full_quiet=False)
        return True

    def _is_due(self, study: Study, node: Node) -> bool:
        if self.clock() < study.last_object_at + seconds(min(node.floor_s, node.quiet_s)):
            return False
        # One that is away costs each who asks ten seconds, and the next study the same.
        failed = self._failed.get(node.name)
        if failed is not None and time.monotonic() - failed < AGAIN_S:
            return False
        asked = self._asked.get((study.study_instance_uid, node.name))
        if asked is None:
            return True
        return asked[0] < study.last_object_at or time.monotonic() - asked[1] >= AGAIN_S

    def _count(self, study: Study, node: Node) -> bool:
        uid = study.study_instance_uid
        try:
            found = series_at(self.settings, node, uid, patience(node, ANSWER_S, self.pulse))
        except DatabaseError:
            raise
        except DicomaiError as error:
            self._tell(study, node, error.sentence)
            return False
        self._failed.pop(node.name, None)
        rules = self.rules()
        with writing(self.engine) as connection:
            now = self.clock()
            current = studies.lock(connection, uid)
            if current is None or current.status != "open":
                return False
            counts.note(connection, uid, node.name, found, now)
            # All that it has is here: no more than the floor is waited for.
            here = whole(connection, current).series
            if current.nodes == (node.name,) and node.name in confirmed(
                counts.of_study(connection, uid, wanted_by(rules, here))
            ):
                self._shorten(connection, current)
        return True

    def _tell(self, study: Study, node: Node, sentence: str) -> None:
        """Tell once that a node was not counted at: its study is judged without."""
        uid = study.study_instance_uid
        self._failed[node.name] = time.monotonic()
        if self._told.get((uid, node.name)) == sentence:
            return
        self._told[uid, node.name] = sentence
        log.warning("not counted", node=node.name, study=uid, why=sentence)
        told = f"What {node.name} has of it could not be counted: {sentence}"
        with writing(self.engine) as connection:
            events.record(connection, uid, "not counted", told, {"node": node.name}, self.clock())


def series_at(
    settings: Settings, node: Node, study: StudyInstanceUID, go_on: GoOn = lambda: None
) -> tuple[SeriesCount, ...]:
    """Return the series of a study that a node has, with what it tells of each.

    Parameters
    ----------
    go_on
        Called often; raises to break off.

    Raises
    ------
    DicomaiError
        It gives no answer, or none that can be used.
    """
    wanted = finding.query("series", {"StudyInstanceUID": study, **dict.fromkeys(_ALSO, "")})
    our_ae, files = settings.receiver.ae_title, settings.tls.files
    matches = [
        match
        for match in finding.find(node, our_ae, wanted, files, go_on=go_on)
        if match.text("StudyInstanceUID") in ("", study)
    ]
    return tuple(
        SeriesCount(
            series_instance_uid=SeriesInstanceUID(
                validated(match.text("SeriesInstanceUID"), "SeriesInstanceUID")
            ),
            objects=_objects(settings, node, study, match, go_on),
            attributes=match.attributes,
        )
        for match in matches
    )


def _objects(
    settings: Settings, node: Node, study: StudyInstanceUID, series: Match, go_on: GoOn
) -> int:
    """Return the number that the node tells, or else count its objects."""
    told = series.text("NumberOfSeriesRelatedInstances")
    if told.isdecimal():
        return int(told)
    keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series.text("SeriesInstanceUID")}
    asked = finding.query("image", keys)
    our_ae, files = settings.receiver.ae_title, settings.tls.files
    matches = finding.find(node, our_ae, asked, files, go_on=go_on)
    return sum(1 for _ in matches)
