"""Studies that a node has, all of them, though it may tell no more than a number of its own.

Where it tells fewer than it has, or refuses to tell so many, the halves of the days that were asked
for are asked for, the later one first, and of a day its hours and minutes; a study without a time
is then found only among what was told first.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from typing import Final, TypeAlias

import structlog

from dicomai.dicom.uid import StudyInstanceUID, validated
from dicomai.errors import InputError, TransientError
from dicomai.net import find as finding
from dicomai.net.calling import GoOn
from dicomai.net.find import Cut, Match
from dicomai.net.node import Node
from dicomai.routing.matching import study_day
from dicomai.settings import Settings

_DAY: Final = timedelta(days=1)
_MINUTE: Final = timedelta(minutes=1)
_REFUSED: Final = 3
"""Minutes that a node refuses one after the other: then it is in trouble, whatever it told."""

_Told: TypeAlias = Generator[tuple[StudyInstanceUID, Match], None, str]
"""Studies as they come; at the end why there are more, or nothing."""

log = structlog.get_logger()


@dataclass(slots=True)
class Untold:
    """What a node may have beyond the studies that it told of.

    Attributes
    ----------
    because
        Why there are more, however little is asked for; empty: there are not.
    timeless
        Why studies without a Study Time may be among them; empty: they are not.
    """

    because: str = ""
    timeless: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Whole days, or whole minutes of one day.

    Attributes
    ----------
    end
        The first moment after it.
    """

    begin: datetime
    end: datetime

    @property
    def keys(self) -> Mapping[str, str]:
        """What asks for it (PS3.4 C.2.2.2.5)."""
        last = self.end - timedelta(microseconds=1)
        if self.end - self.begin > _DAY:
            return {"StudyDate": f"{self.begin:%Y%m%d}-{last:%Y%m%d}"}
        day = {"StudyDate": f"{self.begin:%Y%m%d}"}
        if self.end - self.begin == _DAY:
            return day
        return {**day, "StudyTime": f"{self.begin:%H%M%S}-{last:%H%M%S.%f}"}

    def __str__(self) -> str:
        if self.end - self.begin == _DAY:
            return f"{self.begin:%Y-%m-%d}"
        return f"{self.begin:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M}"

    @property
    def halves(self) -> tuple[Span, ...]:
        """The two of it; none where it is as short as may be asked for."""
        unit = _DAY if self.end - self.begin > _DAY else _MINUTE
        parts = (self.end - self.begin) // unit
        if parts < 2:
            return ()
        middle = self.begin + parts // 2 * unit
        return Span(begin=self.begin, end=middle), Span(begin=middle, end=self.end)


def span_of(keys: Mapping[str, str]) -> Span | None:
    """Return the days that a query asks for; None: it has none, or asks for times already."""
    first, hyphen, last = keys.get("StudyDate", "").partition("-")
    begin, end = study_day(first), study_day(last if hyphen else first)
    if begin is None or end is None or begin > end or keys.get("StudyTime"):
        return None
    return Span(begin=datetime.combine(begin, time.min), end=datetime.combine(end, time.min) + _DAY)


def studies_at(
    settings: Settings, node: Node, keys: Mapping[str, str], untold: Untold, go_on: GoOn
) -> Iterator[tuple[StudyInstanceUID, Match]]:
    """Give the studies that a node has, each once, as they come.

    Parameters
    ----------
    keys
        What must match, by keyword.
    untold
        Says at the end what it may have beyond them.
    go_on
        Called often; raises to break off.

    Raises
    ------
    DicomaiError
        It gives no answer, or none that can be used, or refuses one minute after the other.
    """
    search = _Search(settings=settings, node=node, keys=keys, go_on=go_on, untold=untold)
    untold.because = yield from search.all_of(span_of(keys))


@dataclass(slots=True, kw_only=True)
class _Search:
    """What all queries of one search share, and the studies that were told.

    Attributes
    ----------
    refused
        Minutes that were refused since the node last answered; at first it has to.
    """

    settings: Settings
    node: Node
    keys: Mapping[str, str]
    go_on: GoOn
    untold: Untold
    known: set[StudyInstanceUID] = field(default_factory=set)
    refused: int = _REFUSED

    def all_of(self, span: Span | None) -> _Told:
        """Ask for a span, or without one, and then for less."""
        cut = yield from self._asked(span)
        return (yield from self._narrowed(span, cut)) if cut.happened else ""

    def _narrowed(self, span: Span | None, cut: Cut) -> _Told:
        """Ask for the halves of what was cut.

        A node that refuses all is asked down one path alone, for that raises at its first minute.
        """
        halves, before = span.halves if span is not None else (), len(self.known)
        if not halves:
            return self._of_one_minute(span, cut) if cut.refused else cut.because
        parts = []
        for half in reversed(halves):
            part = yield from self._asked(half)
            if part.happened:
                parts.append((half, part))
        # One that does not heed what is asked for says the same again and again; who says nothing
        # may heed it.
        all_told = not any(each.refused for each in (cut, *(part for _, part in parts)))
        if all_told and len(parts) == len(halves) and len(self.known) == before:
            return cut.because
        if cut.refused and span is not None and span.end - span.begin == _DAY:
            self.untold.timeless = (
                f"{self.node.name} refuses to tell of all studies of {span} at once, and studies "
                "without a Study Time are told of in no other way. Raise the limit of its answers "
                "to C-FIND."
            )
        left = ""
        for half, part in parts:
            left = (yield from self._narrowed(half, part)) or left
        return left

    def _of_one_minute(self, span: Span | None, cut: Cut) -> str:
        """Return what is left out where a node refuses the least that can be asked for."""
        self.refused += 1
        if span is None or self.refused > _REFUSED:
            raise TransientError(cut.because, subject=self.node.name)
        return (
            f"{self.node.name} tells nothing of {span}, for it has more studies then than it tells "
            "in one answer. Raise the limit of its answers to C-FIND."
        )

    def _asked(self, span: Span | None) -> Generator[tuple[StudyInstanceUID, Match], None, Cut]:
        cut = Cut(refusals=True)
        matches = finding.find(
            self.node,
            self.settings.receiver.ae_title,
            finding.query("study", {**self.keys, **(span.keys if span else {})}),
            self.settings.tls.files,
            cut=cut,
            go_on=self.go_on,
        )
        for match in matches:
            try:
                uid = StudyInstanceUID(
                    validated(match.text("StudyInstanceUID"), "StudyInstanceUID")
                )
            except InputError as error:
                log.warning("study passed over", node=self.node.name, why=error.sentence)
                continue
            if uid not in self.known:
                self.known.add(uid)
                yield uid, match
        if not cut.refused:
            self.refused = 0
        return cut
