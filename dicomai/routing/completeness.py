"""Is a study whole? What is known of its arrival, as values, and the decision on them.

Each object moves the end of the quiet time. A clean release shortens it for nodes that send each
study in an association of its own, until one of them proves otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np

from dicomai.dicom.dates import Instant, Microseconds, as_datetime
from dicomai.routing.image import Image

GAP_FACTOR = 1.5
"""A step between slices of so many usual ones misses a slice."""
SAME_PLACE_MM = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """How long silence of a node must last; see `dicomai.net.node.Node`."""

    quiet: Microseconds
    floor: Microseconds
    association_per_study: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeArrival:
    """What one node sent of a study.

    Attributes
    ----------
    released_at
        When it released cleanly after its last object; None since an object came.
    came_back
        Objects followed a clean release: its releases are no evidence for this study.
    """

    last_at: Instant
    released_at: Instant | None = None
    came_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What is known of a study's arrival: by node, and which associations are open."""

    nodes: Mapping[str, NodeArrival] = field(default_factory=dict)
    open_associations: Mapping[str, str] = field(default_factory=dict)
    """Node by id of the association."""

    @property
    def last_at(self) -> Instant:
        """When the last object came."""
        return max((each.last_at for each in self.nodes.values()), default=Instant(0))

    def received(self, node: str, association: str, at: Instant) -> Arrival:
        """Return what is known after an object."""
        before = self.nodes.get(node, NodeArrival(last_at=at))
        after = NodeArrival(
            last_at=max(before.last_at, at),
            released_at=None,
            came_back=before.came_back or before.released_at is not None,
        )
        return Arrival(
            nodes={**self.nodes, node: after},
            open_associations={**self.open_associations, association: node},
        )

    def ended(self, association: str, at: Instant, *, released: bool) -> Arrival:
        """Return what is known after the end of an association that carried the study."""
        node = self.open_associations.get(association)
        if node is None:
            return self
        rest = {key: name for key, name in self.open_associations.items() if key != association}
        nodes = dict(self.nodes)
        if released and node not in rest.values():
            nodes[node] = replace(nodes[node], released_at=at)
        return Arrival(nodes=nodes, open_associations=rest)

    def quiet_until(self, waits: Mapping[str, Wait]) -> Instant:
        """Return when silence has lasted long enough for every node; the latest wins."""
        return max(
            (_quiet_until(each, waits[node]) for node, each in self.nodes.items()),
            default=Instant(0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """How far the spool of a host has been ingested."""

    name: str
    ingested_to: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class NotYet:
    """The study may not be whole."""

    because: str
    again_at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The study counts as whole."""

    because: str


def decide(
    arrival: Arrival,
    gaps: Sequence[str],
    hosts: Sequence[Host],
    *,
    quiet_until: Instant,
    patience: Microseconds,
    now: Instant,
) -> NotYet | Whole:
    """Tell whether a study is whole, and why.

    Parameters
    ----------
    arrival
        What came, and what is still open.
    gaps
        A sentence for each changed series that misses slices, see `gaps_of`.
    hosts
        All that may hold objects of the study in their spools.
    quiet_until
        When silence has lasted long enough.
    patience
        After the last object nothing but the quiet time holds a decision up for longer.
    now
        This host's clock.
    """
    until = Instant(arrival.last_at + patience)
    if now < quiet_until:
        return NotYet(
            because=f"objects may still arrive: quiet until {_clock(quiet_until)}",
            again_at=quiet_until,
        )
    vetoes = [
        *(f"host {host.name} has ingested only what came until {_clock(host.ingested_to)}"
          for host in hosts if host.ingested_to < quiet_until),
        *(f"an association of {node} that sent objects of it is open"
          for node in sorted(set(arrival.open_associations.values()))),
        *gaps,
    ]  # fmt: skip
    if not vetoes:
        return Whole(because=f"nothing more came until {_clock(quiet_until)}")
    reasons = "; ".join(vetoes)
    if now < until:
        return NotYet(because=reasons, again_at=until)
    waited = timedelta(microseconds=patience)
    return Whole(because=f"nothing more came for {waited}, although {reasons}")


def gaps_of(images: Iterable[Image]) -> tuple[float, ...]:
    """Return where slices are missing between others, (n,) mm along the normal.

    Images are grouped by orientation; three or more different positions have a usual step, and a
    step of half as much again misses a slice in its middle.
    """
    stacks: dict[tuple[float, ...], list[tuple[float, ...]]] = {}
    for image in images:
        orientation = _numbers(image, "ImageOrientationPatient", 6)
        position = _numbers(image, "ImagePositionPatient", 3)
        if orientation and position:
            key = tuple(round(each, 3) + 0.0 for each in orientation)
            stacks.setdefault(key, []).append(position)
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


def _quiet_until(arrival: NodeArrival, wait: Wait) -> Instant:
    trusted = wait.association_per_study and not arrival.came_back
    if trusted and arrival.released_at is not None:
        return Instant(arrival.released_at + wait.floor)
    return Instant(arrival.last_at + wait.quiet)


def _numbers(image: Image, keyword: str, count: int) -> tuple[float, ...]:
    value = image.attributes.get(keyword)
    if value is None or isinstance(value, str | float | int) or len(value) != count:
        return ()
    numbers = tuple(each for each in value if isinstance(each, float | int))
    return numbers if len(numbers) == count and max(map(abs, numbers)) < 1e6 else ()


def _clock(at: Instant) -> str:
    return as_datetime(at).strftime("%Y-%m-%d %H:%M:%S UTC")
