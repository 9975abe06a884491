"""Storage commitment of what was delivered: asked for, awaited, and what follows from the reports.

A delivery to a node that offers it is done when the node has reported that it keeps every object.
What it reports not to keep is sent again, some times; what it does not report on in time is stored,
uncommitted, which is a warning.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from dicomai.dicom.dates import Instant, as_datetime, seconds
from dicomai.dicom.uid import of_uuid
from dicomai.errors import RefusedError, TransientError, counted
from dicomai.net import commitment_calling
from dicomai.net.calling import Rejected
from dicomai.net.commitment import CommitmentRequest, Reference
from dicomai.net.commitment_calling import NotOffered
from dicomai.net.node import Node
from dicomai.net.reception import Reception
from dicomai.service.attempt import Attempt, Lost, Waits, Worker
from dicomai.settings import Settings
from dicomai.store import commitments, deliveries
from dicomai.store.commitments import Transaction
from dicomai.store.engine import reading
from dicomai.store.instances import Instance

ROUNDS: Final = 3
"""Reports that something is not kept, after which a delivery is a person's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How a delivery ended; `uncommitted`: how many objects nobody promised to keep."""

    sentence: str
    uncommitted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmer:
    """Has nodes commit what a worker delivers.

    Attributes
    ----------
    settings
        Data folder, our AE title.
    worker
        Who delivers.
    """

    settings: Settings
    worker: Worker

    def settled(self, this: Attempt, node: Node, objects: Collection[Instance]) -> Settled | None:
        """Return how a delivery ended by what its node reported; None: there is more to send.

        Raises
        ------
        Waits
            A report is still to come.
        RefusedError
            The node did not keep what it got, however often it was sent.
        """
        with reading(self.worker.engine) as connection:
            transactions = commitments.of_job(connection, this.job.id)
        if not transactions:
            return None
        with this.stage("commit"):
            return self._followed(this, node, objects, transactions)

    def _followed(
        self,
        this: Attempt,
        node: Node,
        objects: Collection[Instance],
        transactions: Sequence[Transaction],
    ) -> Settled | None:
        left = self._uncommitted(this, objects)
        if not left:
            return _whole(node, objects)
        owed = _owed(transactions)
        if owed and self._until(node, owed) <= self.worker.clock():
            return Settled(
                sentence=f"Stored, uncommitted: {node.name} has not reported within "
                f"{node.commitment_s:g} s (commitment_s) that it keeps {counted(left)}. They are "
                "stored there; ask its administrator what became of the request.",
                uncommitted=len(left),
            )
        if owed and owed[-1].state == "asked":
            raise self._waiting(this, node, owed)
        if sum(each.state == "failed" for each in transactions) >= ROUNDS:
            raise self._given_up(this, node, left)
        return None

    def ask(self, this: Attempt, node: Node, objects: Collection[Instance]) -> Settled:
        """Ask a node to commit what it has stored; return how it ended if there is no more to come.

        Raises
        ------
        Waits
            It will report.
        TransientError
            It gave no answer, could not do it now, or rejects every association.
        """
        left = self._uncommitted(this, objects)
        if not left:
            return _whole(node, objects)
        request = CommitmentRequest(
            transaction_uid=of_uuid(uuid.uuid4()),
            objects=tuple(
                Reference(sop_class_uid=each.sop_class_uid, sop_instance_uid=each.sop_instance_uid)
                for each in left
            ),
        )
        with this.stage("commit"):
            try:
                self._send(this, node, request)
            except NotOffered as refusal:
                return Settled(
                    sentence=f"Stored, uncommitted: {refusal.sentence}", uncommitted=len(left)
                )
            except Rejected as rejected:
                # Somebody corrects it there or here, as where nothing was sent yet.
                raise TransientError(rejected.sentence, subject=rejected.subject) from rejected
        with reading(self.worker.engine) as connection:
            transactions = commitments.of_job(connection, this.job.id)
        raise self._waiting(this, node, _owed(transactions) or transactions[-1:])

    def _send(self, this: Attempt, node: Node, request: CommitmentRequest) -> None:
        uids = [each.sop_instance_uid for each in request.objects]
        if not this.write(
            lambda c: commitments.begin(
                c, this.job.held, node.name, request.transaction_uid, uids, self.worker.clock()
            )
        ):
            raise Lost
        commitment_calling.ask(
            node,
            self.settings.receiver.ae_title,
            request,
            lambda: self._reception(node),
            lambda: self._is_owed(this, request),
            this.go_on,
            self.settings.tls.files,
        )

    def _is_owed(self, this: Attempt, request: CommitmentRequest) -> bool:
        this.go_on()
        with reading(self.worker.engine) as connection:
            owed = _owed(commitments.of_job(connection, this.job.id))
        return any(each.transaction_uid == request.transaction_uid for each in owed)

    def _reception(self, node: Node) -> Reception:
        """Return what keeps a report that comes in our own association."""
        return Reception(
            spool=self.settings.folders.spool,
            reserve_bytes=self.settings.receiver.reserve_bytes,
            object_bytes=self.settings.receiver.max_object_bytes,
            node=node.name,
            calling_ae=node.ae_title,
            called_ae=self.settings.receiver.ae_title,
            address=node.host,
            started_at=self.worker.clock(),
        )

    def _waiting(
        self, this: Attempt, node: Node, owed: Sequence[Transaction]
    ) -> type[Waits] | type[Lost]:
        """Let the job wait for its report, and return how this attempt ends."""
        until = self._until(node, owed)
        sentence = (
            f"{node.name} was asked to commit {counted(owed[-1].objects)}, and is to report until "
            f"{as_datetime(until):%Y-%m-%d %H:%M} UTC."
        )
        outcome = this.write(
            lambda c: commitments.await_report(
                c,
                this.job.held,
                owed[-1].transaction_uid,
                until,
                sentence,
                this.stages_s,
                self.worker.clock(),
            )
        )
        return Lost if outcome == "lost" else Waits

    def _given_up(self, this: Attempt, node: Node, left: Sequence[Instance]) -> RefusedError:
        with reading(self.worker.engine) as connection:
            known = {
                each.sop_instance_uid: each.sentence
                for each in deliveries.objects(connection, this.job.id)
                if each.state == "uncommitted"
            }
        # From here on a person's retry counts anew.
        this.write(lambda c: commitments.close(c, this.job.id))
        first = next((each for each in left if each.sop_instance_uid in known), left[0])
        why = known.get(first.sop_instance_uid, "It did not say why.")
        return RefusedError(
            f"{node.name} stored {counted(left)} {ROUNDS} times and did not commit them, as "
            f"{first.sop_instance_uid}: {why} Ask its administrator what its log says of them, "
            f"then: dicomai retry {this.job.id}",
            subject=first.sop_instance_uid,
        )

    def _uncommitted(self, this: Attempt, objects: Collection[Instance]) -> tuple[Instance, ...]:
        with reading(self.worker.engine) as connection:
            known = deliveries.objects(connection, this.job.id)
        kept = {each.sop_instance_uid for each in known if each.state == "committed"}
        return tuple(each for each in objects if each.sop_instance_uid not in kept)

    def _until(self, node: Node, owed: Sequence[Transaction]) -> Instant:
        return Instant(owed[0].asked_at + seconds(node.commitment_s))


def _owed(transactions: Sequence[Transaction]) -> tuple[Transaction, ...]:
    """Return the requests that were not reported on, oldest first."""
    return tuple(each for each in transactions if each.state in ("asking", "asked"))


def _whole(node: Node, objects: Collection[Instance]) -> Settled:
    return Settled(
        sentence=f"{node.name} has stored and committed all objects, {len(objects)} in all."
    )
