"""Rows for tests of the store, and a worker that other processes can be."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

from sqlalchemy import Connection, Engine, select

from dicomai.dicom.dates import Instant, Microseconds, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import (
    SeriesInstanceUID,
    SOPClassUID,
    SOPInstanceUID,
    StudyInstanceUID,
    TransferSyntaxUID,
)
from dicomai.store import analyses, arrivals, claims, instances, jobs, schema, studies
from dicomai.store.arrivals import Arrival
from dicomai.store.associations import Association
from dicomai.store.engine import reading, writing
from dicomai.store.instances import Added, InstanceRow
from dicomai.store.job import (
    AddedJob,
    Held,
    InstanceId,
    Job,
    JobId,
    JobInput,
    JobRoute,
    NewAnalysis,
)

NOW = Instant(1_800_000_000_000_000)
PATIENT = IdentityKey("12345@HOSPITAL")
AGEING = seconds(600)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def instance(
    study: str,
    sop: str,
    *,
    header: str = "header",
    pixels: str | None = "pixels",
    file: str = "file",
    syntax: str = "1.2.840.10008.1.2.1",
    received_at: Instant = NOW,
    origin: str = "received",
    series: str | None = None,
) -> InstanceRow:
    in_series = series or f"{study}.1"
    return InstanceRow(
        study_instance_uid=StudyInstanceUID(study),
        series_instance_uid=SeriesInstanceUID(in_series),
        sop_instance_uid=SOPInstanceUID(sop),
        sop_class_uid=SOPClassUID("1.2.840.10008.5.1.4.1.1.2"),
        transfer_syntax_uid=TransferSyntaxUID(syntax),
        header_digest=sha256(header),
        pixel_digest=None if pixels is None else sha256(pixels),
        file_sha256=sha256(file),
        origin=origin,
        node="CT1",
        received_at=received_at,
        size_bytes=100,
        path=PurePosixPath("archive", "00", study, in_series, f"{sop}.{sha256(file)[:8]}.dcm"),
        attributes={"Modality": "CT", "SeriesNumber": 2.0, "ImageType": ["ORIGINAL", "PRIMARY"]},
    )


def arrive(
    engine: Engine,
    study: str = "1.2.3",
    count: int = 1,
    received_at: Instant = NOW,
    key: IdentityKey = PATIENT,
) -> tuple[Added, ...]:
    """Take a study of one patient into the catalogue."""
    uid = StudyInstanceUID(study)
    with writing(engine) as connection:
        arrivals.note_arrival(
            connection,
            Arrival(
                study_instance_uid=uid,
                node="CT1",
                received_at=received_at,
                quiet_until=Instant(received_at + seconds(60)),
                accession_number="A1",
                study_date="20260301",
            ),
            received_at,
        )
        studies.set_patient_key(connection, uid, key)
        return tuple(
            instances.add(
                connection,
                instance(study, f"{study}.1.{k}", file=f"{study}/{k}", received_at=received_at),
                received_at,
            )
            for k in range(count)
        )


def wanted(
    study: str = "1.2.3",
    fingerprint: str = "f1",
    *,
    model: str = "lungs",
    choice: str = "ct",
    route: str = "lungs",
    mode: str = "live",
    destinations: tuple[str, ...] = ("PACS1",),
    priority: int = 0,
    urgent: bool = False,
    ageing: Microseconds = AGEING,
    key: IdentityKey = PATIENT,
    inputs: tuple[InstanceId, ...] = (),
    generation: int = 0,
) -> NewAnalysis:
    uid = StudyInstanceUID(study)
    return NewAnalysis(
        study_instance_uid=uid,
        patient_key=key,
        model=model,
        package_sha256=sha256(model),
        choice=choice,
        fingerprint=fingerprint,
        inputs=tuple(
            JobInput(
                input="ct",
                instance_id=number,
                study_instance_uid=uid,
                series_instance_uid=SeriesInstanceUID(f"{study}.1"),
                sop_instance_uid=SOPInstanceUID(f"{study}.1.{number}"),
            )
            for number in inputs
        ),
        route=JobRoute(route=route, mode=mode, destinations=destinations),
        priority=priority,
        urgent=urgent,
        ageing=ageing,
        generation=generation,
    )


def add(engine: Engine, new: NewAnalysis, now: Instant = NOW) -> AddedJob:
    with writing(engine) as connection:
        studies.lock(connection, new.study_instance_uid)
        return analyses.add_analysis(connection, new, now)


def claim(
    engine: Engine, kind: str = "analyse", models: tuple[str, ...] = ("lungs",)
) -> Job | None:
    with writing(engine) as connection:
        return claims.claim(connection, "w1", (kind,), models, NOW)


def claimed(engine: Engine, kind: str = "analyse") -> Job:
    job = claim(engine, kind)
    assert job is not None
    return job


def finish(
    engine: Engine,
    held: Held,
    produced: tuple[InstanceRow, ...] = (),
    *predecessors: JobId,
) -> str:
    with writing(engine) as connection:
        return analyses.finish(
            connection, held, produced, {"infer": 1.0}, {"found": 1}, NOW, predecessors
        )


def analysed(engine: Engine) -> JobId:
    """Have a study arrive and be analysed; return the job, whose results are to be delivered."""
    arrive(engine)
    number = add(engine, wanted()).job_id
    finish(engine, claimed(engine).held)
    return number


def job(engine: Engine, number: JobId) -> Job:
    with reading(engine) as connection:
        found = jobs.get(connection, number)
    assert found is not None
    return found


def associations_of(connection: Connection, study: str) -> tuple[Association, ...]:
    """Return the associations that brought objects of a study, oldest first."""
    table, brought = schema.associations, schema.association_studies
    found = connection.execute(
        select(table)
        .join(brought, brought.c.association_id == table.c.id)
        .where(brought.c.study_instance_uid == study)
        .order_by(table.c.started_at, table.c.id)
    )
    return tuple(
        Association(**{field: row._mapping[field] for field in Association.__dataclass_fields__})
        for row in found
    )
