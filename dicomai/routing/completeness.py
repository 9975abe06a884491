"""Is a study whole? What is known of its arrival, as values, and the decision on them.

Each object moves the end of the quiet time. A clean release shortens it for a node that sends each
study in an association of its own, until it proves otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

import numpy as np

from dicomai.dicom.dates import Instant, Microseconds, as_datetime, seconds
from dicomai.imaging.stack import ORIENTATION_TOLERANCE
from dicomai.routing.image import Image

GAP_FACTOR: Final = 1.5
"""A step between slices of so many usual ones misses a slice."""
SAME_PLACE_MM: Final = 0.01
LOOK_AGAIN: Final = seconds(1)
"""When a host is behind."""
ORDINARY: Final = seconds(30)
"""A host may be so far behind before anybody has to hear of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """How long silence of a node must last; see `dicomai.net.node.Node`."""

    quiet: Microseconds
    floor: Microseconds
    association_per_study: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """Until when silence of a study must last.

    Attributes
    ----------
    full
        Objects followed a clean release: a release shortens nothing for this study any more.
    """

    until: Instant
    full: bool = False


def after_object(quiet: Quiet | None, wait: Wait, at: Instant, *, released_before: bool) -> Quiet:
    """Return the quiet time after an object; with several nodes the latest wins.

    Parameters
    ----------
    quiet
        The one until now; None for the first object.
    wait
        Of the node that sent it.
    at
        Its receipt.
    released_before
        The same node had cleanly released an association that carried objects of the study.
    """
    until = Instant(at + wait.quiet)
    if quiet is None:
        return Quiet(until=until)
    return Quiet(
        until=max(quiet.until, until),
        full=quiet.full or (wait.association_per_study and released_before),
    )


def after_release(
    quiet: Quiet, wait: Wait, at: Instant, *, alone: bool, released_before: bool
) -> Quiet:
    """Return the quiet time after a clean release.

    Parameters
    ----------
    alone
        No other node sent objects of the study, and no other association of it is open.
    released_before
        The same node had cleanly released another association that carried objects of the study.
    """
    if not wait.association_per_study:
        return quiet
    if quiet.full or released_before:
        return Quiet(until=quiet.until, full=True)
    if not alone:
        return quiet
    return Quiet(until=Instant(at + wait.floor))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A series as a node counts it, and as it is here.

    Attributes
    ----------
    there, here
        Objects at the node, and those that came here from others than us.
    wanted
        A model may want it: what none wants is not waited for, as what is made of the images.
    fetched
        The study was fetched from the node: nobody else sends what of it is not here.
    """

    node: str
    series_instance_uid: str
    there: int
    here: int
    wanted: bool
    fetched: bool = False

    @property
    def sentence(self) -> str:
        """What is missing."""
        return (
            f"{self.node} counts {self.there} objects of series {self.series_instance_uid}, and "
            f"{self.here} are here"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTold:
    """What a modality says of a procedure step.

    Attributes
    ----------
    made, missing
        The objects that it lists, and those of them that are not here.
    unlisted
        How many of this study are here that no step lists.
    """

    node: str
    state: Literal["in progress", "completed", "discontinued"]
    made: int = 0
    missing: int = 0
    unlisted: int = 0

    @property
    def veto(self) -> str:
        """Why the study may not be whole, or nothing."""
        if self.state == "in progress":
            return f"{self.node} says that a procedure step of it is in progress"
        if self.state == "completed" and self.missing:
            return f"{self.node} made {self.made} objects, and {self.missing} of them are missing"
        return ""


def completed(steps: Sequence[StepTold]) -> bool:
    """Tell whether the modalities list exactly what is here."""
    return (
        any(each.state == "completed" and each.made for each in steps)
        and all(each.state != "in progress" for each in steps)
        and all(not each.missing and not each.unlisted for each in steps)
    )


def discontinued(steps: Sequence[StepTold]) -> bool:
    """Tell whether all work on a study was broken off: nobody wants it analysed."""
    return bool(steps) and all(each.state == "discontinued" for each in steps)


def lacking(counted: Iterable[Counted]) -> tuple[Counted, ...]:
    """Return the wanted series that came, or would have to be fetched, and are larger at a node."""
    return tuple(
        each
        for each in counted
        if each.wanted and each.here < each.there and (each.here or each.fetched)
    )


def confirmed(counted: Iterable[Counted]) -> tuple[str, ...]:
    """Return the nodes that have of each wanted series as much as is here."""
    nodes: dict[str, bool] = {}
    for each in counted:
        if each.wanted:
            nodes[each.node] = nodes.get(each.node, True) and each.here == each.there
    return tuple(sorted(node for node, equal in nodes.items() if equal))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """What is known of a study's arrival.

    Attributes
    ----------
    last_at
        When the last object came.
    quiet_until
        Before that it is not whole.
    open_at
        The nodes that have an association open that carried objects of it.
    gaps
        A sentence for each changed series that misses slices, see `gaps_of`.
    counted
        What nodes say that they have of it.
    steps
        What modalities say of their work on it.
    """

    last_at: Instant
    quiet_until: Instant
    open_at: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    counted: tuple[Counted, ...] = ()
    steps: tuple[StepTold, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """How far the spool of a host has been ingested, and when it last said so."""

    name: str
    ingested_to: Instant
    beat_at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class NotYet:
    """The study may not be whole.

    Attributes
    ----------
    ordinary
        Every study waits so for a moment: no event of its story.
    """

    because: str
    again_at: Instant
    ordinary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The study counts as whole."""

    because: str


def decide(
    arrived: Arrived, hosts: Sequence[Host], *, patience: Microseconds, now: Instant
) -> NotYet | Whole:
    """Tell whether a study is whole, and why.

    Parameters
    ----------
    arrived
        What came, and what is still open.
    hosts
        All that may hold objects of the study in their spools.
    patience
        After the last object nothing holds a decision up for longer but the quiet time, and a host
        that is behind and not silent: one that works off what came in an outage.
    now
        This host's clock.
    """
    quiet_until = arrived.quiet_until
    if now < quiet_until:
        return NotYet(
            because=f"Objects may still arrive: it must be quiet until {_clock(quiet_until)}.",
            again_at=quiet_until,
            ordinary=True,
        )
    late = [host for host in hosts if host.ingested_to < quiet_until]
    behind = [
        # The same words until it has: each new reason is an event.
        f"host {host.name} has not yet ingested all that came until {_clock(quiet_until)}"
        for host in late
    ]
    open_at = [
        f"an association of {node} that sent objects of it is open"
        for node in sorted(set(arrived.open_at))
    ]
    fewer = [each.sentence for each in lacking(arrived.counted)]
    at_work = [each.veto for each in arrived.steps if each.veto]
    vetoes = [*behind, *open_at, *arrived.gaps, *fewer, *at_work]
    if not vetoes:
        as_many = confirmed(arrived.counted)
        more = f", and {', '.join(as_many)} counts as many objects" if as_many else ""
        more += ", and it is all that the modality made" if completed(arrived.steps) else ""
        return Whole(because=f"Nothing more came until {_clock(quiet_until)}{more}.")
    reasons = "; ".join(vetoes)
    until = Instant(arrived.last_at + patience)
    if now < until or not silent(late, hosts, patience):
        again_at = Instant(now + LOOK_AGAIN)
        if not behind:
            again_at = until
        return NotYet(
            because=f"{reasons[0].upper()}{reasons[1:]}.",
            again_at=again_at,
            ordinary=bool(behind) and now - quiet_until < ORDINARY,
        )
    waited = timedelta(microseconds=patience)
    return Whole(because=f"Nothing more came for {waited}, although {reasons}.")


def silent(late: Sequence[Host], hosts: Sequence[Host], patience: Microseconds) -> bool:
    """Tell whether every host that is behind has stopped saying how far it is.

    The time is the others', not ours: in an outage of the database all fall silent together.
    """
    heard_at = max((host.beat_at for host in hosts), default=Instant(0))
    return all(heard_at - host.beat_at >= patience for host in late)


def gaps_of(images: Iterable[Image]) -> tuple[float, ...]:
    """Return where slices are missing between others, (n,) mm along the normal.

    Images are grouped by orientation, which some modalities round; three or more different
    positions have a usual step, and a step of half as much again misses a slice in its middle.
    """
    stacks: dict[tuple[float, ...], list[tuple[float, ...]]] = {}
    alike: dict[tuple[float, ...], tuple[float, ...]] = {}
    for image in images:
        orientation = _numbers(image, "ImageOrientationPatient", 6)
        position = _numbers(image, "ImagePositionPatient", 3)
        if orientation and position:
            if orientation not in alike:
                known = (each for each in stacks if _is_alike(each, orientation))
                alike[orientation] = next(known, orientation)
            stacks.setdefault(alike[orientation], []).append(position)
    missing: list[float] = []
    for orientation, positions in stacks.items():
        normal = np.cross(orientation[:3], orientation[3:])
        along = np.unique(np.round(np.asarray(positions) @ normal / SAME_PLACE_MM) * SAME_PLACE_MM)
        steps = np.diff(along)
        if len(steps) < 2:
            continue
        wide = np.flatnonzero(steps > GAP_FACTOR * np.median(steps))
        missing += [float(round((along[at] + along[at + 1]) / 2, 2)) for at in wide]
    return tuple(missing)


def _is_alike(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(abs(a - b) <= ORIENTATION_TOLERANCE for a, b in zip(one, other, strict=True))


def _numbers(image: Image, keyword: str, count: int) -> tuple[float, ...]:
    value = image.attributes.get(keyword)
    if value is None or isinstance(value, str | float | int) or len(value) != count:
        return ()
    numbers = tuple(each for each in value if isinstance(each, float | int))
    return numbers if len(numbers) == count and max(map(abs, numbers)) < 1e6 else ()


def _clock(at: Instant) -> str:
    return as_datetime(at).strftime("%Y-%m-%d %H:%M:%S UTC")
