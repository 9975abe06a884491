"""What objects do to their study in the catalogue, in one transaction: as they come, or later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from sqlalchemy import Connection

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.identity import Agreed, Ambiguous, judge
from dicomai.dicom.uid import SOPInstanceUID, StudyInstanceUID, TransferSyntaxUID
from dicomai.errors import counted
from dicomai.net.node import Node
from dicomai.routing.completeness import Quiet, Wait, after_object
from dicomai.service.decide import hold_sentence, shared_sentence
from dicomai.service.received import ReceivedObject
from dicomai.spool.entries import AssociationFacts, Entry
from dicomai.store import (
    arrivals,
    associations,
    decisions,
    events,
    instances,
    retrievals,
    series,
    studies,
)
from dicomai.store.arrivals import Arrival
from dicomai.store.associations import Association
from dicomai.store.events import JsonValue
from dicomai.store.instances import Added, InstanceRow
from dicomai.store.job import JobId
from dicomai.store.series import SeriesIdentity
from dicomai.store.states import Origin
from dicomai.store.studies import Study

_WORDS: Final = {
    "new": "came from {sender}.",
    "duplicate": "came again from {sender}, byte for byte: nothing changed.",
    "copy": "came again from {sender} with the same content, written otherwise.",
    "version": "came again from {sender} with other content: both are kept, the newest is used.",
    "overtaken": "came from {sender} with other content than one that was received later: both are "
    "kept, the later is used. If that is wrong, have the node that sent the later send the right "
    "one.",
    "returned": "came again from {sender} as before the last change: that is used again.",
    "passed over": "came again from {sender} as before a change, and the change stays in use. If "
    "that is wrong, have the node that sent it send the right one.",
}
_NO_NEWS: Final = ("duplicate", "passed over")
NAMED: Final = 20
"""SOP Instance UIDs that an event names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An object whose bytes lie in the archive, durably.

    Attributes
    ----------
    path
        Its place, relative to the data folder.
    job_id
        The analysis that made it; None for what was received.
    """

    read: ReceivedObject
    path: PurePosixPath
    received_at: Instant
    origin: Origin
    job_id: JobId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived(Stored):
    """One that has just come.

    Attributes
    ----------
    again
        Work on it began before: that it is known already may be our own doing.
    """

    entry: Entry
    again: bool


def wait_of(node: Node) -> Wait:
    """Return how long silence of a node must last."""
    return Wait(
        quiet=seconds(node.quiet_s),
        floor=seconds(node.floor_s),
        association_per_study=node.association_per_study,
    )


def note_arrived(
    connection: Connection,
    host: str,
    node: Node,
    arrived: Sequence[Arrived],
    now: Instant,
) -> tuple[Added, ...]:
    """Put objects of one study, that came through one association, into the catalogue.

    Rows, quiet time, association, identity, holds and events go together; the study's lock is
    taken first.

    Returns
    -------
    tuple
        What each object was to the catalogue.

    Raises
    ------
    StudyGoing
        Retention is deleting the study; nothing was written.
    """
    facts = arrived[0].entry.association
    study = _note_quiet(connection, node, arrived, now)
    for _ in arrived:
        associations.note(connection, _association(host, facts), study.study_instance_uid)
    if not facts.retrieved:
        retrievals.welcome(connection, study.study_instance_uid)
    added = note_stored(connection, node, study, arrived, now)
    _tell(connection, study.study_instance_uid, facts, arrived, added, now)
    return added


def note_stored(
    connection: Connection, node: Node, study: Study, stored: Sequence[Stored], now: Instant
) -> tuple[Added, ...]:
    """Add rows of objects of a locked study, and whose they are; hold what that puts in doubt.

    Returns
    -------
    tuple
        What each object was to the catalogue.
    """
    uid = study.study_instance_uid
    added = []
    for each in stored:
        added.append(instances.add(connection, _row(each, node), now))
        series.note_identity(connection, uid, _identity(each.read))
    _judge(connection, study, now)
    _hold_shared(connection, uid, stored, added, now)
    return tuple(added)


def _note_quiet(
    connection: Connection, node: Node, arrived: Sequence[Arrived], now: Instant
) -> Study:
    """Note the arrival of the first and the last of them, and move the quiet time."""
    wait = wait_of(node)
    for each in (arrived[0], arrived[-1]):
        study = arrivals.note_arrival(connection, arrival_of(each, node, each.received_at), now)
    facts = arrived[0].entry.association
    # A node may open an association for each object: none but the one that counts is read.
    released_before = wait.association_per_study and associations.was_released(
        connection, study.study_instance_uid, node.name, besides=facts.id
    )
    quiet = after_object(
        Quiet(until=study.quiet_until, full=study.full_quiet),
        wait,
        max(each.received_at for each in arrived),
        released_before=released_before,
    )
    if quiet.full != study.full_quiet:
        arrivals.set_quiet(connection, study.study_instance_uid, quiet.until, full_quiet=quiet.full)
    return study


def arrival_of(stored: Stored, node: Node, at: Instant) -> Arrival:
    """Return an object as what its study is told of it, where it came or counts as come."""
    return Arrival(
        study_instance_uid=stored.read.identifiers.study_instance_uid,
        node=node.name,
        received_at=at,
        quiet_until=after_object(None, wait_of(node), at, released_before=False).until,
        accession_number=_text(stored.read, "AccessionNumber"),
        study_date=_text(stored.read, "StudyDate"),
    )


def _association(host: str, facts: AssociationFacts) -> Association:
    return Association(
        id=facts.id,
        host=host,
        node=facts.node,
        calling_ae=facts.calling_ae,
        called_ae=facts.called_ae,
        address=facts.address,
        started_at=facts.started_at,
    )


def _row(stored: Stored, node: Node) -> InstanceRow:
    read = stored.read
    return InstanceRow(
        study_instance_uid=read.identifiers.study_instance_uid,
        series_instance_uid=read.identifiers.series_instance_uid,
        sop_instance_uid=read.identifiers.sop_instance_uid,
        sop_class_uid=read.identifiers.sop_class_uid,
        transfer_syntax_uid=TransferSyntaxUID(read.transfer_syntax_uid),
        header_digest=read.version.header,
        pixel_digest=read.version.pixels,
        file_sha256=read.file_sha256,
        origin=stored.origin,
        node=node.name,
        received_at=stored.received_at,
        size_bytes=read.size_bytes,
        path=stored.path,
        job_id=stored.job_id,
        attributes=read.attributes,
    )


def _identity(read: ReceivedObject) -> SeriesIdentity:
    return SeriesIdentity(
        series_instance_uid=read.identifiers.series_instance_uid,
        key=read.identity.key,
        patient_name=_text(read, "PatientName"),
        birth_date=read.identity.birth_date,
        sex=_text(read, "PatientSex"),
    )


def _text(read: ReceivedObject, keyword: str) -> str:
    value = read.attributes.get(keyword, "")
    return value if isinstance(value, str) else ""


def _judge(connection: Connection, study: Study, now: Instant) -> None:
    """Hold the study if it may be two patients', else note whose it is."""
    if study.accepted_key is not None:
        return  # a person decided; other patients' series are no input
    uid = study.study_instance_uid
    verdict = judge(each.identity for each in series.identities(connection, uid))
    if not isinstance(verdict, Agreed):
        decisions.hold(connection, uid, hold_sentence(uid, verdict), now)
    elif verdict.key != study.patient_key:
        # Of images that retention deleted the results are left, and know whose they were.
        made = series.results_of(connection, uid)
        if made and verdict.key not in made:
            others = Ambiguous(
                keys=series.keys(connection, uid),
                because=f"what came is of {verdict.key}, and results of {', '.join(made)} are here",
            )
            decisions.hold(connection, uid, hold_sentence(uid, others), now)
        else:
            studies.set_patient_key(connection, uid, verdict.key)


def _hold_shared(
    connection: Connection,
    study: StudyInstanceUID,
    stored: Sequence[Stored],
    added: Sequence[Added],
    now: Instant,
) -> None:
    """Hold every study that has an object which another one has too."""
    shared: dict[StudyInstanceUID, SOPInstanceUID] = {}
    for each, result in zip(stored, added, strict=True):
        if result.outcome == "new":
            sop = each.read.identifiers.sop_instance_uid
            others = set(instances.studies_of_sop(connection, sop)) - {study}
            shared.update(dict.fromkeys(others, sop))
    if not shared:
        return
    for uid in sorted({study, *shared}):
        elsewhere = ", ".join(sorted({study, *shared} - {uid}))
        studies.lock(connection, uid)
        keys = series.keys(connection, uid)
        sentence = shared_sentence(uid, elsewhere, next(iter(shared.values())), keys)
        decisions.hold(connection, uid, sentence, now)


def _tell(
    connection: Connection,
    study: StudyInstanceUID,
    facts: AssociationFacts,
    arrived: Sequence[Arrived],
    added: Sequence[Added],
    now: Instant,
) -> None:
    """Add an event for each thing that happened, not for each object."""
    sender = f"{facts.node} ({facts.calling_ae}, {facts.address})"
    for kind, words in _WORDS.items():
        sops = [
            each.read.identifiers.sop_instance_uid
            for each, result in zip(arrived, added, strict=True)
            if result.outcome == kind and not (each.again and kind in _NO_NEWS)
        ]
        if sops:
            text = f"{counted(sops)} {words.format(sender=sender)}"
            data: dict[str, JsonValue] = {
                "count": len(sops),
                "association": facts.id,
                "objects": tuple(sops[:NAMED]),
            }
            events.record(connection, study, f"objects {kind}", text, data, now)
    tell_remarks(connection, study, arrived, now)


def tell_remarks(
    connection: Connection, study: StudyInstanceUID, stored: Iterable[Stored], now: Instant
) -> None:
    """Add an event for each thing that is wrong with objects and does no harm."""
    for remark, uids in _remarks(stored).items():
        text = f"{counted(uids)} kept as received: {remark}"
        named: dict[str, JsonValue] = {"objects": tuple(uids[:NAMED])}
        events.record(connection, study, "objects remarked", text, named, now)


def _remarks(stored: Iterable[Stored]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in stored:
        for remark in each.read.remarks:
            found.setdefault(remark, []).append(each.read.identifiers.sop_instance_uid)
    return found
