"""Instances: a row per version of an object, and the copies of each version.

The same bytes again are a duplicate. Bytes that differ in nothing that the version digest covers
are another copy of the same version; a lossless copy is used before a lossy one. Anything else is a
new version: both are kept, the newest is used. That is the one that was received last, whichever
was taken in last: two associations, and the spools of two hosts, are not worked off in order.

An older version that comes again is used again when it comes from the node that sent the newer one,
which has taken that back. From another node it changes nothing: who sends what he has once more, as
a scanner does, undoes no correction of the PACS.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import Connection, Row, Select, and_, insert, select, update

from dicomai.dicom.dates import Instant
from dicomai.dicom.header import Attributes
from dicomai.dicom.uid import (
    SeriesInstanceUID,
    SOPClassUID,
    SOPInstanceUID,
    StudyInstanceUID,
    TransferSyntaxUID,
)
from dicomai.dicom.version import VersionDigest, with_identity
from dicomai.store import headers, schema
from dicomai.store.clocks import received_before
from dicomai.store.columns import LARGEST
from dicomai.store.job import InstanceId, JobId
from dicomai.store.states import Origin

_LOSSY: Final = frozenset(
    f"1.2.840.10008.1.2.4.{number}"
    for number in (50, 51, 81, 91, 93, 100, 101, 102, 103, 104, 105, 106, 107, 108, 112, 203)
)
"""Transfer syntaxes (PS3.5 chapter 10) whose pixels may have lost something."""

_CHUNK: Final = 500

Outcome: TypeAlias = Literal[
    "new", "duplicate", "copy", "version", "overtaken", "passed over", "returned"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRow:
    """One version of an object.

    Attributes
    ----------
    header_digest, pixel_digest
        See `dicomai.dicom.version`; the second is None where pixels are not native.
    file_sha256, transfer_syntax_uid, size_bytes, path
        Of the copy that is used; the path is relative to the data folder.
    job_id
        The analysis that made it; None for what was received.
    attributes
        The short header, see `dicomai.dicom.header`.
    """

    study_instance_uid: StudyInstanceUID
    series_instance_uid: SeriesInstanceUID
    sop_instance_uid: SOPInstanceUID
    sop_class_uid: SOPClassUID
    transfer_syntax_uid: TransferSyntaxUID
    header_digest: str
    pixel_digest: str | None
    file_sha256: str
    origin: Origin
    node: str
    received_at: Instant
    size_bytes: int
    path: PurePosixPath
    attributes: Attributes
    job_id: JobId | None = None

    @property
    def version(self) -> VersionDigest:
        """Its version digest."""
        header = with_identity(self.header_digest, self.attributes)
        return VersionDigest(header=header, pixels=self.pixel_digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance(InstanceRow):
    """A version as the catalogue holds it; `newest` is the one that is used."""

    id: InstanceId
    newest: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What an object was to the catalogue.

    `path` is where its bytes lie: for a duplicate, where they already lay. A duplicate may be
    dropped only if that file has its size. A new version was overtaken where the one in use was
    received after it. An older version, as a duplicate or a copy, was passed over or returned: it
    is used again. `counts_from` is then when its version counts as received: a rescan, which knows
    nothing else, orders versions by the times of their files.
    """

    outcome: Outcome
    instance_id: InstanceId
    path: PurePosixPath
    counts_from: Instant | None = None


def add(connection: Connection, row: InstanceRow, now: Instant) -> Added:
    """Add an object whose file is durable; the study is locked, its row is there.

    What is new, or a new version, opens the study to decide on it again, unless we produced it.
    """
    known = _versions(connection, row.study_instance_uid, row.sop_instance_uid)
    for instance in known:
        copies = schema.copies
        path = connection.execute(
            select(copies.c.path).where(
                copies.c.instance_id == instance.id, copies.c.file_sha256 == row.file_sha256
            )
        ).scalar_one_or_none()
        if path is not None:
            duplicate = Added(
                outcome="duplicate", instance_id=instance.id, path=PurePosixPath(path)
            )
            return _came_again(connection, row, now, known, duplicate)
    same = next((each for each in known if each.version.same_version(row.version)), None)
    if same is not None:
        _add_copy(connection, same.id, row)
        if same.transfer_syntax_uid in _LOSSY and row.transfer_syntax_uid not in _LOSSY:
            _use_copy(connection, same.id, row)
        copy = Added(outcome="copy", instance_id=same.id, path=row.path)
        return _came_again(connection, row, now, known, copy)
    used = next((each for each in known if each.newest), None)
    late = used is not None and received_before(row.received_at, used.received_at, now)
    _note_change(connection, row, now, newcomer=not known, used=not late)
    instances = schema.instances
    if not late:
        connection.execute(
            update(instances)
            .where(
                instances.c.study_instance_uid == row.study_instance_uid,
                instances.c.sop_instance_uid == row.sop_instance_uid,
            )
            .values(newest=False)
        )
    number = connection.execute(
        insert(instances).values(**_columns(row), newest=not late).returning(instances.c.id)
    ).scalar_one()
    _add_copy(connection, InstanceId(number), row)
    outcome: Outcome = "overtaken" if late else "version" if known else "new"
    return Added(outcome=outcome, instance_id=InstanceId(number), path=row.path)


def get(connection: Connection, instance: InstanceId) -> Instance | None:
    """Return one version."""
    instances = schema.instances
    found = connection.execute(select(instances).where(instances.c.id == instance)).one_or_none()
    return None if found is None else _instance(found)


def newest(connection: Connection, study: StudyInstanceUID, sop: SOPInstanceUID) -> Instance | None:
    """Return the version of an object that is used."""
    return next((each for each in _versions(connection, study, sop) if each.newest), None)


def of_study(connection: Connection, study: StudyInstanceUID) -> tuple[Instance, ...]:
    """Return the newest version of each object of a study, by series and SOP Instance UID."""
    instances = schema.instances
    return _listed(
        connection,
        select(instances).where(instances.c.study_instance_uid == study, instances.c.newest),
    )


def of_series(
    connection: Connection, study: StudyInstanceUID, series: SeriesInstanceUID
) -> tuple[Instance, ...]:
    """Return the newest version of each object of a series, by SOP Instance UID."""
    instances = schema.instances
    return _listed(
        connection,
        select(instances).where(
            instances.c.study_instance_uid == study,
            instances.c.series_instance_uid == series,
            instances.c.newest,
        ),
    )


def of_job(connection: Connection, job: JobId) -> tuple[Instance, ...]:
    """Return what an analysis produced."""
    instances = schema.instances
    return _listed(connection, select(instances).where(instances.c.job_id == job))


def inputs_of(connection: Connection, job: JobId) -> tuple[tuple[str, Instance], ...]:
    """Return what a job takes as input, in order: the name of the model's input, the version.

    They are the versions that were chosen, whether or not newer ones have come since.
    """
    instances, inputs = schema.instances, schema.job_inputs
    found = connection.execute(
        select(inputs.c.input.label("input_name"), instances)
        .join(instances, instances.c.id == inputs.c.instance_id)
        .where(inputs.c.job_id == job)
        .order_by(inputs.c.position)
    )
    return tuple((row.input_name, _instance(row)) for row in found)


def studies_of_sop(connection: Connection, sop: SOPInstanceUID) -> tuple[StudyInstanceUID, ...]:
    """Return the studies that hold an object of this SOP Instance UID; two are one too many."""
    instances = schema.instances
    found = connection.execute(
        select(instances.c.study_instance_uid)
        .where(instances.c.sop_instance_uid == sop)
        .distinct()
        .order_by(instances.c.study_instance_uid)
    )
    return tuple(StudyInstanceUID(uid) for uid in found.scalars())


def of_sops(
    connection: Connection, sops: Collection[SOPInstanceUID]
) -> dict[SOPInstanceUID, tuple[Instance, ...]]:
    """Return the newest version of each of these objects, in every study that holds it."""
    instances = schema.instances
    found: dict[SOPInstanceUID, tuple[Instance, ...]] = {}
    wanted = sorted(sops)
    for at in range(0, len(wanted), _CHUNK):
        some = wanted[at : at + _CHUNK]
        query = select(instances).where(instances.c.sop_instance_uid.in_(some), instances.c.newest)
        for each in _listed(connection, query):
            found[each.sop_instance_uid] = (*found.get(each.sop_instance_uid, ()), each)
    return found


def several_versions(connection: Connection, study: StudyInstanceUID) -> tuple[Instance, ...]:
    """Return all versions of the objects that have more than one, by object.

    That which was added last comes first; another may be used, which has come again since.
    """
    instances = schema.instances
    older = select(instances.c.sop_instance_uid).where(
        instances.c.study_instance_uid == study, instances.c.newest.is_(False)
    )
    return _listed(
        connection,
        select(instances).where(
            instances.c.study_instance_uid == study, instances.c.sop_instance_uid.in_(older)
        ),
    )


def _versions(
    connection: Connection, study: StudyInstanceUID, sop: SOPInstanceUID
) -> Sequence[Instance]:
    instances = schema.instances
    return _listed(
        connection,
        select(instances).where(
            instances.c.sop_instance_uid == sop, instances.c.study_instance_uid == study
        ),
    )


def _listed(connection: Connection, query: Select[Any]) -> tuple[Instance, ...]:
    instances = schema.instances
    ordered = query.order_by(
        instances.c.series_instance_uid, instances.c.sop_instance_uid, instances.c.id.desc()
    )
    return tuple(_instance(row) for row in connection.execute(ordered))


def _instance(row: Row[Any]) -> Instance:
    columns = row._mapping
    values = {name: columns[name] for name in Instance.__dataclass_fields__}
    return Instance(**{**values, "path": PurePosixPath(values["path"])})


def _columns(row: InstanceRow) -> dict[str, object]:
    values = {name: getattr(row, name) for name in InstanceRow.__dataclass_fields__}
    return {**values, "path": str(row.path), "attributes": dict(row.attributes)}


def _add_copy(connection: Connection, instance: InstanceId, row: InstanceRow) -> None:
    connection.execute(
        insert(schema.copies).values(
            instance_id=instance,
            file_sha256=row.file_sha256,
            transfer_syntax_uid=row.transfer_syntax_uid,
            node=row.node,
            received_at=row.received_at,
            size_bytes=row.size_bytes,
            path=str(row.path),
        )
    )


def _came_again(
    connection: Connection, row: InstanceRow, now: Instant, known: Sequence[Instance], added: Added
) -> Added:
    """Return what an older version was that came again; it is used where its sender took one back.

    What was received before the newer one, and is taken in only now, takes nothing back.
    """
    used = next(each for each in known if each.newest)
    version = next(each for each in known if each.id == added.instance_id)
    if version.id == used.id:
        return added
    at, theirs = row.received_at, used.received_at
    if row.node != used.node or at == theirs or received_before(at, theirs, now):
        return replace(added, outcome="passed over", counts_from=version.received_at)
    _note_change(connection, row, now, newcomer=False)
    _use(connection, version, node=row.node, received_at=row.received_at)
    return replace(added, outcome="returned", counts_from=row.received_at)


def _use(connection: Connection, version: Instance, **changed: object) -> None:
    instances = schema.instances
    versions = (
        instances.c.study_instance_uid == version.study_instance_uid,
        instances.c.sop_instance_uid == version.sop_instance_uid,
    )
    connection.execute(update(instances).where(*versions).values(newest=False))
    connection.execute(
        update(instances).where(instances.c.id == version.id).values(newest=True, **changed)
    )


def _use_copy(connection: Connection, instance: InstanceId, row: InstanceRow) -> None:
    # The digests stay those of the first copy: jobs were made from them.
    connection.execute(
        update(schema.instances)
        .where(schema.instances.c.id == instance)
        .values(
            file_sha256=row.file_sha256,
            transfer_syntax_uid=row.transfer_syntax_uid,
            size_bytes=row.size_bytes,
            path=str(row.path),
        )
    )


def _note_change(
    connection: Connection, row: InstanceRow, now: Instant, *, newcomer: bool, used: bool = True
) -> None:
    """Have series and study know of an object; what is not used changes nothing that routes see."""
    series, studies = schema.series, schema.studies
    ours = row.origin == "produced"
    if used:
        headers.note(connection, row.study_instance_uid, row.attributes, ours=ours)
    changes = used and not ours
    this_series = and_(
        series.c.study_instance_uid == row.study_instance_uid,
        series.c.series_instance_uid == row.series_instance_uid,
    )
    changed: dict[str, object] = {"changed_at": now, "decided_at": None} if changes else {}
    touched = connection.execute(
        update(series)
        .where(this_series)
        .values(instances=series.c.instances + int(newcomer), **changed)
    )
    if not touched.rowcount:
        connection.execute(
            insert(series).values(
                study_instance_uid=row.study_instance_uid,
                series_instance_uid=row.series_instance_uid,
                modality=_text(row, "Modality"),
                series_number=_number(row, "SeriesNumber"),
                description=_text(row, "SeriesDescription"),
                instances=1,
                changed_at=now,
                decided_at=None if changes else now,
            )
        )
    this_study = studies.c.study_instance_uid == row.study_instance_uid
    connection.execute(
        update(studies).where(this_study).values(instances=studies.c.instances + int(newcomer))
    )
    if changes:
        connection.execute(
            update(studies)
            .where(this_study, studies.c.status == "decided")
            .values(status="open", decide_at=studies.c.quiet_until)
        )


def _number(row: InstanceRow, keyword: str) -> int | None:
    """Return a number of the header; one that no column takes is none."""
    value = row.attributes.get(keyword)
    if not isinstance(value, int | float) or abs(value) > LARGEST:
        return None
    return int(value)


def _text(row: InstanceRow, keyword: str) -> str:
    value = row.attributes.get(keyword, "")
    return value if isinstance(value, str) else ""
