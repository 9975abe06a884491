"""What C-GET and C-MOVE have in common: what is asked for, and the count of what became of it.

PS3.4 C.4.2 and C.4.3, study root. A node may say nothing for minutes while it fetches from a tape,
so whoever waits can be called away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset
from pynetdicom.association import Association

from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.errors import RefusedError, TransientError
from dicomai.net.calling import GoOn, watched
from dicomai.net.find import failed
from dicomai.net.node import Node

MESSAGE_ID: Final = 1
SILENCE_S: Final = 1800.0
"""A node that says nothing for so long while it fetches has forgotten us."""
_PENDING: Final = 0xFF00
_WITH_FAILURES: Final = 0xB000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to fetch; `series` empty: the whole study."""

    study_instance_uid: StudyInstanceUID
    series: tuple[SeriesInstanceUID, ...] = ()

    @property
    def identifier(self) -> Dataset:
        """As a request says it (PS3.4 C.4.2.1.4)."""
        one = Dataset()
        one.QueryRetrieveLevel = "SERIES" if self.series else "STUDY"
        one.StudyInstanceUID = self.study_instance_uid
        if self.series:
            one.SeriesInstanceUID = list(self.series)
        return one


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many objects were sent, as the node counts them; None where it does not say.

    Attributes
    ----------
    failed
        Those that it could not send, or that were not taken.
    """

    remaining: int | None = None
    completed: int = 0
    failed: int = 0
    warnings: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            completed=self.completed + other.completed,
            failed=self.failed + other.failed,
            warnings=self.warnings + other.warnings,
        )

    @property
    def fraction(self) -> float:
        """How much of it is done, from 0 to 1."""
        done = self.completed + self.failed + self.warnings
        return done / (done + self.remaining) if self.remaining and done else 0.0


Progress = Callable[[Tally], None]


def require(node: Node, our_ae: str, association: Association, model: str, service: str) -> None:
    """Raise RefusedError where a node does not offer a service in this association."""
    if not any(context.abstract_syntax == model for context in association.accepted_contexts):
        raise not_offered(node, our_ae, service)


def not_offered(node: Node, our_ae: str, service: str) -> RefusedError:
    """Return the error for a service that a node lacks, or does not let us have."""
    other = "get" if service == "C-MOVE" else "move"
    return RefusedError(
        f"{node.name} takes no {service} (study root) from {our_ae}. Allow it there, or set "
        f'retrieve = "{other}" for it.',
        subject=node.name,
    )


def followed(
    node: Node,
    service: str,
    what: str,
    answers: Iterator[tuple[Dataset, Dataset | None]],
    on_progress: Progress,
) -> Tally:
    """Return the count of the last answer.

    Parameters
    ----------
    service, what
        Its name, and what the node is to do, for sentences.

    Raises
    ------
    TransientError, RefusedError
        The node broke off, or failed as a whole. That it failed for some objects is counted.
    """
    tally = Tally()
    for said, _ in answers:
        if "Status" not in said:
            raise TransientError(
                f"{node.name} gave no answer to a {service}, or broke off after "
                f"{tally.completed + tally.warnings} objects.",
                subject=node.name,
            )
        tally = _tally(said)
        if said.Status == _PENDING:
            on_progress(tally)
        elif said.Status not in (0x0000, _WITH_FAILURES):
            raise failed(node, what, said.Status, said)
    return tally


def _tally(said: Dataset) -> Tally:
    remaining = said.get("NumberOfRemainingSuboperations")
    return Tally(
        remaining=None if remaining is None else int(remaining),
        completed=int(said.get("NumberOfCompletedSuboperations") or 0),
        failed=int(said.get("NumberOfFailedSuboperations") or 0),
        warnings=int(said.get("NumberOfWarningSuboperations") or 0),
    )


@contextmanager
def fetching(association: Association, go_on: GoOn) -> Iterator[None]:
    """Wait for sub-operations as long as a tape may take; end it when `go_on` raises."""
    association.dimse_timeout = association.network_timeout = SILENCE_S
    with watched(association, go_on):
        yield
