"""Deliveries: the results of one analysis to one node, once, to the patient that they are of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from dicomai.dicom.identity import IdentityKey, issuer_in
from dicomai.dicom.uid import SOPInstanceUID
from dicomai.errors import (
    ConfigError,
    DatabaseError,
    IdentityError,
    InputError,
    RefusedError,
    TransientError,
)
from dicomai.net import scu
from dicomai.net.calling import GoOn, PutOff, Rejected
from dicomai.net.find import Match
from dicomai.net.node import Node
from dicomai.net.scu import StoreOutcome
from dicomai.net.status import meaning
from dicomai.net.study_identity import StudyIdentity, find_study_identity
from dicomai.results.objects import KEY_OBJECT_STORAGE, referred_to
from dicomai.results.reissue import note_uid
from dicomai.service.asked import classes_for, still_live
from dicomai.service.attempt import Attempt, Lost, Worker, node_of, work_once
from dicomai.service.confirm import Confirmer, Settled
from dicomai.settings import Settings
from dicomai.store import archive, deliveries, events, instances, jobs, nodes, reissues
from dicomai.store.deliveries import DeliveryObject
from dicomai.store.engine import reading
from dicomai.store.instances import Instance
from dicomai.store.job import Job
from dicomai.store.states import PERHAPS_STORED, STORED, DeliveryState, JobKind

KINDS: Final[tuple[JobKind, ...]] = ("deliver",)
_STATES: Final[dict[str, DeliveryState]] = {
    "ok": "sent",
    "warning": "warning",
    "transient": "transient",
    "refused": "refused",
}
_NOTE_S: Final = 0.5
_LOOK_S: Final = 1.0
_ITS_OWN: Final = (
    ". The images name no issuer: if that is what {0} says of all such, set issuer_of_patient_id "
    "for {0} to what it says, and retry."
)
_THERE: Final[tuple[DeliveryState, ...]] = ("sent", "warning", "committed")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Wanted:
    """What the catalogue says about a delivery: of what, for whom, and who has what it corrects."""

    analysis: Job
    corrected_at: frozenset[str]
    routes: frozenset[str]
    objects: tuple[Instance, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deliverer:
    """Sends results to nodes, one job at a time.

    Attributes
    ----------
    settings
        Data folder, nodes, our AE title.
    worker
        Who claims.
    """

    settings: Settings
    worker: Worker

    def work_once(self) -> bool:
        """Claim the next delivery and bring the attempt to its end; False when none is due.

        Raises
        ------
        DatabaseError
            The database is away, and nothing was claimed.
        """
        return work_once(self.worker, KINDS, (), self._do)

    def _do(self, this: Attempt) -> None:
        job = this.job
        node = node_of(job, self.settings.nodes)
        with this.stage("compare"):
            wanted = self._wanted(job)
            objects = self._objects(job, node, wanted)
        confirmer = Confirmer(settings=self.settings, worker=self.worker)
        if settled := confirmer.settled(this, node, objects):
            self._finish(this, objects, settled)
            return
        self._require_live(job, node, wanted, len(objects))
        try:
            with this.stage("compare"):
                if node.answers_find:
                    self._compare(this, node, objects)
            with this.stage("send"):
                self._begin(this)
                outcomes = self._send(this, node, job, objects)
        except DatabaseError:
            raise  # ours, not the node's
        except PutOff:
            # Of one object or study that it can't take, the others need not wait.
            this.write(lambda c: nodes.delivered(c, node.name, self.worker.clock()))
            raise
        except (TransientError, Rejected) as error:
            sentence = error.sentence
            this.write(lambda c: nodes.failed(c, node.name, sentence, self.worker.clock()))
            if isinstance(error, TransientError):
                raise
            # Somebody corrects it there or here; then all that waited goes on by itself.
            raise TransientError(sentence, subject=error.subject) from error
        except (RefusedError, IdentityError):
            # It answered what it was asked, so the others need not wait.
            this.write(lambda c: nodes.delivered(c, node.name, self.worker.clock()))
            raise
        if node.answers_find or any(not each.ours for each in outcomes):
            this.write(lambda c: nodes.delivered(c, node.name, self.worker.clock()))
        _check(outcomes, objects)
        self._finish(this, objects, confirmer.ask(this, node, objects) if node.commitment else None)

    def _wanted(self, job: Job) -> _Wanted:
        assert job.result_of is not None
        with reading(self.worker.engine) as connection:
            analysis = jobs.existing(connection, job.result_of)
            return _Wanted(
                analysis=analysis,
                corrected_at=reissues.withdrawn_at(connection, analysis),
                routes=frozenset(each.route for each in jobs.routes_of(connection, job.id)),
                objects=instances.of_job(connection, job.result_of),
            )

    def _objects(self, job: Job, node: Node, wanted: _Wanted) -> tuple[Instance, ...]:
        """Return what the node gets; a note that withdraws results only who has those."""
        archive.require(self.settings.folders.data)
        objects, asked = wanted.objects, wanted.routes
        if not objects:
            raise InputError(
                f"The results of job {job.result_of} are not in the archive any more. For a new "
                f"run: dicomai retry {job.result_of} --again",
                subject=job.study_instance_uid,
            )
        if _only_withdraws(objects):
            return objects
        live = still_live(self.settings.routes, asked)
        # A report without the segments that its groups refer to says less than was found.
        segmented = referred_to({each.sop_class_uid for each in objects})
        classes = classes_for(self.settings.routes, live or asked) | {segmented}
        note, takes_note = (
            note_uid(wanted.analysis.uuid),
            node.rejection_notes and node.name in wanted.corrected_at,
        )
        return tuple(
            each
            for each in objects
            if (takes_note if each.sop_instance_uid == note else each.sop_class_uid in classes)
        )

    def _require_live(self, job: Job, node: Node, wanted: _Wanted, count: int) -> None:
        """Send nothing for routes that were all set to shadow, or off, since results waited.

        What takes back or corrects results that a node has goes there whatever routes say.
        """
        if node.name in wanted.corrected_at or wanted.analysis.is_withdrawal:
            return
        if not wanted.routes or still_live(self.settings.routes, wanted.routes):
            return
        with reading(self.worker.engine) as connection:
            known = deliveries.objects(connection, job.id)
        there = sum(each.state in PERHAPS_STORED for each in known)
        names = " and ".join(sorted(wanted.routes))
        had = "Nothing goes out now. They go"
        otherwise = f"if they shall not: dicomai cancel {job.id}"
        if there:
            had = (
                f"{node.name} has, or may have, {there} of {count} objects, and gets no more now. "
                "The others go"
            )
            otherwise = f"to take back what is there: dicomai withdraw {job.result_of}"
        raise ConfigError(
            f"Route {names} is in shadow or off since these results waited to go out. {had} once "
            f"it is live again and dicomai was started anew; {otherwise}",
            subject=job.study_instance_uid,
        )

    def _compare(self, this: Attempt, node: Node, objects: tuple[Instance, ...]) -> None:
        """Hold results whose patient or accession number is another one at the destination."""
        job = this.job
        there = find_study_identity(
            node,
            self.settings.receiver.ae_title,
            job.study_instance_uid,
            self.settings.tls.files,
            this.go_on,
        )
        if there is None:
            return
        ours = _identity(objects[0])
        different = [
            (name, option)
            for name, option, differs in (
                ("Patient ID", "--patient ID", _differ(ours.patient_id, there.patient_id)),
                (
                    "Issuer of Patient ID",
                    "--patient ID",
                    is_other_issuer(node, job.patient_key, ours, there),
                ),
                (
                    "Accession Number",
                    "--accession NUMBER",
                    _differ(ours.accession_number, there.accession_number),
                ),
            )
            if differs
        ]
        if different and _only_withdraws(objects):
            raise IdentityError(
                f"{node.name} has this study under another {different[0][0]} than the results that "
                "the note takes back, and the note was not sent. Delete those results there by "
                f"hand, and then: dicomai cancel {job.id}",
                subject=job.study_instance_uid,
            )
        if different:
            names, options = zip(*different, strict=True)
            unnamed = "Issuer of Patient ID" in names and not ours.issuer_of_patient_id
            else_own = _ITS_OWN.format(node.name) if unnamed else ""
            raise IdentityError(
                f"{node.name} has this study under another {' and another '.join(names)} than "
                "the images that came here. Nothing was sent. Find out which is right; when the "
                f"images were corrected and have come again, or {node.name} was: dicomai retry "
                f"{job.id}. If {node.name} is right: dicomai study {job.study_instance_uid} "
                f"{' '.join(dict.fromkeys(options))}{else_own}",
                subject=job.study_instance_uid,
            )

    def _begin(self, this: Attempt) -> None:
        """Go no further where the study is held or another patient's by now."""
        if (
            this.write(lambda c: deliveries.start(c, this.job.held, self.worker.clock()))
            is not None
        ):
            raise Lost

    def _send(
        self, this: Attempt, node: Node, job: Job, objects: tuple[Instance, ...]
    ) -> tuple[StoreOutcome, ...]:
        """Send what the node does not have yet in one association, and return what became of it.

        That is noted at most moments later, for a commit for each would cost more than the object.
        What a kill leaves unnoted is sent again, the same bytes under the same UID.

        Raises
        ------
        TransientError
            The node could not be reached, or broke off.
        """
        with reading(self.worker.engine) as connection:
            known = deliveries.objects(connection, job.id)
        before = {each.sop_instance_uid: each.state for each in known}
        left = [each for each in objects if before.get(each.sop_instance_uid) not in _THERE]
        if not left:
            return ()
        data = self.settings.folders.data
        by_path = {data / each.path: each.sop_instance_uid for each in left}
        told = 0
        unnoted: list[DeliveryObject] = []
        noted_at = time.monotonic()

        def on_each(outcome: StoreOutcome) -> None:
            nonlocal told, noted_at
            told += 1
            this.heart.progress("send", told / len(left))
            uid = by_path[outcome.path]
            unnoted.append(
                DeliveryObject(
                    sop_instance_uid=uid,
                    state=_state(outcome, before.get(uid)),
                    status=outcome.status,
                    sentence=outcome.sentence,
                    at=self.worker.clock(),
                )
            )
            if time.monotonic() - noted_at >= _NOTE_S:
                note()
                noted_at = time.monotonic()

        def note() -> None:
            noting = tuple(unnoted)
            unnoted.clear()
            self._note(this, noting)

        try:
            outcomes = scu.store_objects(
                node,
                self.settings.receiver.ae_title,
                tuple(by_path),
                on_each,
                self.settings.tls.files,
                go_on=self._while_ours(this),
                on_established=lambda: self._begin_objects(this, tuple(by_path.values())),
            )
        finally:
            note()
        for each in outcomes:
            if each.kind == "transient" and each.status is None and not each.ours:
                raise TransientError(each.sentence, subject=each.sop_instance_uid)
        return outcomes

    def _while_ours(self, this: Attempt) -> GoOn:
        """Return what ends the sending soon after the job was taken from us."""
        looked_at = time.monotonic()

        def go_on() -> None:
            nonlocal looked_at
            this.go_on()
            if time.monotonic() - looked_at >= _LOOK_S:
                looked_at = time.monotonic()
                with suppress(DatabaseError):  # while it is away, nobody can take it
                    if this.outcome() != "ours":
                        raise Lost

        return go_on

    def _begin_objects(self, this: Attempt, uids: Sequence[SOPInstanceUID]) -> None:
        """Write down that the node may have objects, before it gets the first of them.

        To reach it may have taken long, so the study is looked at once more.
        """

        def begin(connection: Connection) -> bool:
            held, at = this.job.held, self.worker.clock()
            free = deliveries.start(connection, held, at) is None
            return free and deliveries.begin_objects(connection, held, uids, at)

        if not this.write(begin):
            raise Lost

    def _note(self, this: Attempt, told: Sequence[DeliveryObject]) -> None:
        job = this.job

        def note(connection: Connection) -> bool:
            if not deliveries.note_objects(connection, job.held, told):
                return False
            for each in told:
                if each.state == "warning":
                    events.record(
                        connection,
                        job.study_instance_uid,
                        "delivered with a warning",
                        each.sentence,
                        {"node": job.node, "object": each.sop_instance_uid, "status": each.status},
                        each.at,
                        job.id,
                    )
            return True

        if not this.write(note):
            raise Lost

    def _finish(
        self, this: Attempt, objects: tuple[Instance, ...], settled: Settled | None
    ) -> None:
        with reading(self.worker.engine) as connection:
            known = deliveries.objects(connection, this.job.id)
        warnings = [each for each in known if meaning(each.status or 0).kind == "warning"]
        summary: dict[str, object] = {"objects": len(objects), "warnings": len(warnings)}
        sentence = ""
        if settled is not None:
            sentence = settled.sentence
            summary |= {"uncommitted": settled.uncommitted, "found": sentence}
        done = this.write(
            lambda c: deliveries.finish(
                c, this.job.held, this.stages_s, summary, self.worker.clock(), sentence
            )
        )
        if not done and this.outcome() != "done":
            raise Lost


def _state(outcome: StoreOutcome, before: DeliveryState | None) -> DeliveryState:
    """Return what is known of an object; what the node got before, or may have, it has still."""
    state = "uncertain" if outcome.unanswered else _STATES[outcome.kind]
    return before if before in PERHAPS_STORED and state not in STORED else state


def _check(outcomes: Sequence[StoreOutcome], objects: Sequence[Instance]) -> None:
    """Raise what keeps a delivery from its end, though the node answers."""
    for each in outcomes:
        if each.kind == "transient":
            error = TransientError if each.ours else PutOff
            raise error(each.sentence, subject=each.sop_instance_uid)
    refused = [each for each in outcomes if each.kind == "refused"]
    if refused:
        more = f" ({len(refused)} of {len(objects)} objects)" if len(objects) > 1 else ""
        raise RefusedError(f"{refused[0].sentence}{more}", subject=refused[0].sop_instance_uid)


def _only_withdraws(objects: Sequence[Instance]) -> bool:
    """Tell whether a note that takes results back is all there is."""
    return all(each.sop_class_uid == KEY_OBJECT_STORAGE for each in objects)


def _differ(here: str, at_node: str) -> bool:
    """Tell whether a node says another value; one that it does not say is none."""
    return bool(at_node) and here != at_node


def is_other_issuer(
    node: Node, key: IdentityKey, ours: StudyIdentity, there: StudyIdentity
) -> bool:
    """Tell whether the same Patient ID is another issuer's, and so another patient's, at a node.

    Where the images name no issuer, that of the node that sent them counts as ours. A node may give
    such images an issuer of its own, and will give it to the results too: one that the
    configuration knows as its own is no other.
    """
    stated, at_node = ours.issuer_of_patient_id, there.issuer_of_patient_id
    if not ours.patient_id or ours.patient_id != there.patient_id:
        return False
    if not stated and at_node == node.issuer_of_patient_id.strip(" "):
        return False
    here = stated or issuer_in(key)
    return bool(here) and _differ(here, at_node)


def _identity(instance: Instance) -> StudyIdentity:
    said = Match(attributes=instance.attributes)
    return StudyIdentity(
        patient_id=said.text("PatientID"),
        issuer_of_patient_id=said.text("IssuerOfPatientID"),
        accession_number=said.text("AccessionNumber"),
    )
