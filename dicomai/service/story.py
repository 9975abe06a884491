"""The story of a study, out of the catalogue: what came, what was decided, ran and went out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from dicomai.dicom.dates import Instant
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import NotFound
from dicomai.store import deliveries, events, instances, jobs, pauses, promises, series, studies
from dicomai.store.deliveries import DeliveryObject
from dicomai.store.events import Event
from dicomai.store.instances import Instance
from dicomai.store.job import Job, JobRoute
from dicomai.store.pauses import Pause
from dicomai.store.studies import Study

SHORTENED: Final = "…"
"""Before the end of a UID that is too long for a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesStory:
    """What came of one series, or was made of it.

    Attributes
    ----------
    nodes
        Who sent it; empty for our own results.
    """

    series_instance_uid: str
    number: int | None
    modality: str
    description: str
    instances: int
    nodes: tuple[str, ...]
    produced: bool
    first_at: Instant
    last_at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStory:
    """What became of one job.

    Attributes
    ----------
    routes
        Those that want its results.
    results
        What an analysis made.
    objects
        What became of each object of a delivery.
    pause
        What keeps a queued job from being claimed.
    """

    job: Job
    routes: tuple[JobRoute, ...]
    results: tuple[Instance, ...]
    objects: tuple[DeliveryObject, ...]
    pause: Pause | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStory:
    """Everything that the catalogue knows of one study.

    Attributes
    ----------
    keys
        Of the patients whose its objects say they are; more than one holds the study.
    versions
        Of the objects that came with other content under the same SOP Instance UID: all of each,
        the one that is used first.
    kept_until
        How long retention leaves it, as a node was promised that asked for storage commitment.
    """

    study: Study
    keys: tuple[IdentityKey, ...]
    series: tuple[SeriesStory, ...]
    versions: tuple[Instance, ...]
    jobs: tuple[JobStory, ...]
    events: tuple[Event, ...]
    kept_until: Instant | None


def find(connection: Connection, name: str) -> tuple[Study, ...]:
    """Return the studies that a Study Instance UID, its end or an accession number names.

    The end of a UID is written as tables show it, `…323263405059`.

    Raises
    ------
    NotFound
        There is none.
    """
    name = name.strip()
    study = studies.get(connection, StudyInstanceUID(name))
    if study is not None:
        return (study,)
    end = name.removeprefix(SHORTENED)
    found = (
        studies.find_by_end(connection, end)
        if end and end != name
        else studies.find_by_accession(connection, name)
    )
    if not found and (fetched := jobs.of_study(connection, StudyInstanceUID(name))):
        last = fetched[-1]
        raise NotFound(
            f"Nothing of study {name} is here. {last.title} is {last.state}. "
            f"{last.error_sentence}".strip()
            + f" See: dicomai job {last.id}",
            subject=name,
        )
    if not found:
        raise NotFound(
            f"No study has the UID or the accession number {name!r}. It was never received, or "
            "retention deleted it. See: dicomai studies",
            subject=name,
        )
    return found


def of_study(connection: Connection, study: Study) -> StudyStory:
    """Return the story of a study."""
    uid = study.study_instance_uid
    return StudyStory(
        study=study,
        keys=series.keys(connection, uid),
        series=_series(series.of_study(connection, uid), instances.of_study(connection, uid)),
        versions=instances.several_versions(connection, uid),
        jobs=tuple(of_job(connection, job) for job in jobs.of_study(connection, uid)),
        events=events.story(connection, uid),
        kept_until=promises.kept_until(connection, uid),
    )


def of_job(connection: Connection, job: Job) -> JobStory:
    """Return the story of a job, without its events."""
    return JobStory(
        job=job,
        routes=jobs.routes_of(connection, job.id),
        results=instances.of_job(connection, job.id),
        objects=deliveries.objects(connection, job.id),
        pause=pauses.stopping(connection, [job]).get(job.id),
    )


def _series(known: Iterable[series.Series], members: Iterable[Instance]) -> tuple[SeriesStory, ...]:
    by_series: dict[str, list[Instance]] = {}
    for instance in members:
        by_series.setdefault(instance.series_instance_uid, []).append(instance)
    return tuple(
        SeriesStory(
            series_instance_uid=each.series_instance_uid,
            number=each.series_number,
            modality=each.modality,
            description=each.description,
            instances=each.instances,
            nodes=tuple(sorted({one.node for one in by_series[each.series_instance_uid]} - {""})),
            produced=all(one.origin == "produced" for one in by_series[each.series_instance_uid]),
            first_at=min(one.received_at for one in by_series[each.series_instance_uid]),
            last_at=max(one.received_at for one in by_series[each.series_instance_uid]),
        )
        for each in known
        if each.series_instance_uid in by_series
    )
