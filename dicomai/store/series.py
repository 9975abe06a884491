"""Series: whose they are, and whether they changed since the last decision."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, and_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dicomai.dicom.dates import Instant
from dicomai.dicom.identity import Identity, IdentityKey
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.store import schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A row of the catalogue; `changed` since the last decision on its study."""

    study_instance_uid: StudyInstanceUID
    series_instance_uid: SeriesInstanceUID
    modality: str
    series_number: int | None
    description: str
    instances: int
    changed_at: Instant
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesIdentity:
    """Whose some objects of a series are; the key is None where nobody can say."""

    series_instance_uid: SeriesInstanceUID
    key: IdentityKey | None
    patient_name: str
    birth_date: str
    sex: str

    @property
    def identity(self) -> Identity:
        """As `dicomai.dicom.identity.judge` takes it."""
        return Identity(key=self.key, birth_date=self.birth_date)


def of_study(connection: Connection, study: StudyInstanceUID) -> tuple[Series, ...]:
    """Return the series of a study, by Series Number, then UID."""
    series = schema.series
    found = connection.execute(
        select(series)
        .where(series.c.study_instance_uid == study)
        .order_by(series.c.series_number, series.c.series_instance_uid)
    )
    return tuple(
        Series(
            study_instance_uid=study,
            series_instance_uid=row.series_instance_uid,
            modality=row.modality,
            series_number=row.series_number,
            description=row.description,
            instances=row.instances,
            changed_at=Instant(row.changed_at),
            changed=row.decided_at is None,
        )
        for row in found
    )


def note_identity(
    connection: Connection, study: StudyInstanceUID, identity: SeriesIdentity
) -> None:
    """Add whose an object is, once; its series is in the catalogue."""
    # The two dialects write the same clause, and share no name for it.
    upsert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(
        upsert(schema.series_identities)
        .values(
            study_instance_uid=study,
            series_instance_uid=identity.series_instance_uid,
            patient_key=identity.key or "",
            patient_name=identity.patient_name,
            birth_date=identity.birth_date,
            sex=identity.sex,
        )
        .on_conflict_do_nothing()
    )


def identities(connection: Connection, study: StudyInstanceUID) -> tuple[SeriesIdentity, ...]:
    """Return every identity that the objects of a study gave, with the key that a person corrected.

    Birth dates stay as they came: objects of two still raise the question whose they are.
    """
    table, corrected = schema.series_identities, schema.corrected_keys
    found = connection.execute(
        select(table, corrected.c.corrected_key)
        .outerjoin(
            corrected,
            and_(
                corrected.c.study_instance_uid == table.c.study_instance_uid,
                corrected.c.patient_key == table.c.patient_key,
            ),
        )
        .where(table.c.study_instance_uid == study)
        .order_by(table.c.series_instance_uid, table.c.patient_key, table.c.birth_date)
    )
    return tuple(
        SeriesIdentity(
            series_instance_uid=row.series_instance_uid,
            key=row.corrected_key or row.patient_key or None,
            patient_name=row.patient_name,
            birth_date=row.birth_date,
            sex=row.sex,
        )
        for row in found
    )


def keys(connection: Connection, study: StudyInstanceUID) -> tuple[IdentityKey, ...]:
    """Return the keys of patients of which a person may accept one for a study.

    Results that are left of deleted images have theirs, where what is here has another.
    """
    said = {each.key for each in identities(connection, study) if each.key}
    made = set(results_of(connection, study))
    return tuple(sorted(said | made if said.isdisjoint(made) else said))


def results_of(connection: Connection, study: StudyInstanceUID) -> tuple[IdentityKey, ...]:
    """Return the keys of patients for whom the results of a study were made that are here."""
    jobs, instances = schema.jobs, schema.instances
    made = connection.execute(
        select(jobs.c.patient_key)
        .join(instances, instances.c.job_id == jobs.c.id)
        .where(instances.c.study_instance_uid == study)
        .distinct()
        .order_by(jobs.c.patient_key)
    )
    return tuple(IdentityKey(key) for key in made.scalars())


def mark_decided(
    connection: Connection,
    study: StudyInstanceUID,
    series: Collection[SeriesInstanceUID],
    now: Instant,
) -> None:
    """Note that these series were decided on; what comes later changes them again."""
    table = schema.series
    connection.execute(
        update(table)
        .where(table.c.study_instance_uid == study, table.c.series_instance_uid.in_(tuple(series)))
        .values(decided_at=now)
    )
