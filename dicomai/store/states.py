"""The states that the catalogue knows, and the moves between them, as data.

The schema's CHECKs are written from these names; the functions that move a row take the states that
it may come from out of these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, get_args

Origin = Literal["received", "retrieved", "produced"]

StudyStatus = Literal[
    "open",  # something came that nobody has decided on
    "decided",
    "held",  # a person must say whose it is
    "deleting",  # its files are going; it takes nothing meanwhile
]

JobKind = Literal["analyse", "deliver", "retrieve"]
JobState = Literal["waiting", "queued", "running", "held", "done", "failed", "cancelled"]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)
UNFINISHED: Final[tuple[JobState, ...]] = ("waiting", "queued", "running", "held")

UNDER_WAY: Final[tuple[JobState, ...]] = ("waiting", "queued", "running")
"""Of what goes on by itself: it waits for nothing that a person must do."""

WaitingFor = Literal["back-off", "breaker", "commitment", "input"]
HeldBy = Literal[
    "study",  # the study is held
    "config",  # until the configuration changes
    "identity",  # the study is another patient's now
    "pause",  # its node, route or model was paused while it ran
    "person",  # a person must look
]
RouteMode = Literal["live", "shadow"]
DeliveryState = Literal[
    "sent",
    "warning",
    "transient",
    "refused",
    "committed",  # sent, and the node reported that it keeps it
    "uncommitted",  # sent, and the node reported that it does not
    "uncertain",  # it may be there: it was to go out, and what the node made of it is not known
]
STORED: Final[tuple[DeliveryState, ...]] = ("sent", "warning", "committed", "uncommitted")
"""Of an object that a node got, whatever it made of it."""
PERHAPS_STORED: Final[tuple[DeliveryState, ...]] = (*STORED, "uncertain")
"""Of one that a node got or may have got: it is taken back there, for nobody knows better."""
CommitmentState = Literal["asking", "asked", "committed", "failed", "over"]
PromiseState = Literal["asked", "judged", "reported", "given up"]
StepStatus = Literal["IN PROGRESS", "COMPLETED", "DISCONTINUED"]
PauseSubject = Literal["node", "route", "model"]
PauseMode = Literal["paused", "draining"]
Release = Literal["released", "aborted", "lost"]
BackfillState = Literal["running", "done", "cancelled"]
HistoryState = Literal[
    "found",  # at the node, and nothing was done about it yet
    "fetching",  # until it is here and whole
    "held",  # a person must say whose it is
    "analysis",  # a job analyses it, or has
    "left out",  # the route does not want it
    "failed",  # it did not come
    "cancelled",
]
HISTORY_STATES: tuple[HistoryState, ...] = get_args(HistoryState)

MOVES: Final[Mapping[JobState, frozenset[JobState]]] = MappingProxyType(
    {
        "waiting": frozenset({"queued", "held", "cancelled"}),
        "queued": frozenset({"running", "waiting", "held", "cancelled"}),
        "running": frozenset({"done", "failed", "cancelled", "queued", "waiting", "held"}),
        "held": frozenset({"queued", "cancelled"}),
        "failed": frozenset({"queued", "cancelled"}),
        "done": frozenset(),
        "cancelled": frozenset(),
    }
)

Breaker = Literal["closed", "open", "half-open"]
Outcome = Literal["delivered", "failed", "failed too often", "pause over"]

BREAKER: Final[Mapping[tuple[Breaker, Outcome], Breaker]] = MappingProxyType(
    {
        ("closed", "delivered"): "closed",
        ("closed", "failed"): "closed",
        ("closed", "failed too often"): "open",
        ("open", "pause over"): "half-open",
        ("open", "delivered"): "closed",  # an association that began before it opened
        ("open", "failed"): "open",
        ("half-open", "delivered"): "closed",
        ("half-open", "failed"): "open",
    }
)


def sources(target: JobState) -> tuple[JobState, ...]:
    """Return the states from which a job may move to `target`."""
    return tuple(state for state in JOB_STATES if target in MOVES[state])
