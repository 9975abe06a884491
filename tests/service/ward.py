"""A small service without its network: data folder, catalogue, a queued analysis of a study."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from bodies import new_uid, write_package, write_study
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.models.registry import open_registry
from dicomai.net.node import Node
from dicomai.service.attempt import Observe, Worker
from dicomai.service.received import Reading, read_object
from dicomai.settings import Settings, load
from dicomai.store import analyses, archive, arrivals, decisions, instances, jobs, series, studies
from dicomai.store.engine import file_of, open_engine, reading, writing
from dicomai.store.instances import Instance, InstanceRow
from dicomai.store.job import Job, JobId, JobInput, JobRoute, NewAnalysis
from dicomai.store.migrate import upgrade
from dicomai.store.series import SeriesIdentity
from dicomai.store.states import RouteMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """Where the tests of the worker play."""

    settings: Settings
    engine: Engine

    def study(
        self,
        patient: str,
        *,
        key: str | None = None,
        brightness: int = 1000,
        into: str | None = None,
    ) -> str:
        """Put a series of a patient into archive and catalogue; return its study's UID.

        `into` is a study that is there, and whose it is stays.
        """
        data = self.settings.folders.data
        files = write_study(
            data / "incoming" / new_uid(), patient, study=into, brightness=brightness
        )
        uid = ""
        for file in files:
            found = read_object(file, Reading())
            uids = found.identifiers
            uid = uids.study_instance_uid
            place = archive.place(
                data,
                file,
                uids.study_instance_uid,
                uids.series_instance_uid,
                uids.sop_instance_uid,
                found.file_sha256,
            )
            row = InstanceRow(
                study_instance_uid=uids.study_instance_uid,
                series_instance_uid=uids.series_instance_uid,
                sop_instance_uid=uids.sop_instance_uid,
                sop_class_uid=uids.sop_class_uid,
                transfer_syntax_uid=found.transfer_syntax_uid,
                header_digest=found.version.header,
                pixel_digest=found.version.pixels,
                file_sha256=found.file_sha256,
                origin="received",
                node="CT1",
                received_at=now(),
                size_bytes=found.size_bytes,
                path=place,
                attributes=found.attributes,
            )
            with writing(self.engine) as connection:
                arrivals.note_arrival(
                    connection,
                    arrivals.Arrival(
                        study_instance_uid=uids.study_instance_uid,
                        node="CT1",
                        received_at=row.received_at,
                        quiet_until=row.received_at,
                        accession_number=f"A{patient}",
                        study_date="20260301",
                    ),
                    now(),
                )
                instances.add(connection, row, now())
                whose = SeriesIdentity(
                    series_instance_uid=uids.series_instance_uid,
                    key=IdentityKey(key or patient),
                    patient_name=str(found.attributes.get("PatientName", "")),
                    birth_date=found.identity.birth_date,
                    sex="",
                )
                series.note_identity(connection, uids.study_instance_uid, whose)
        with writing(self.engine) as connection:
            decisions.set_decided(connection, StudyInstanceUID(uid), "Whole.", now())
            if into is None:
                whose_is = IdentityKey(key or patient)
                studies.set_patient_key(connection, StudyInstanceUID(uid), whose_is)
        return uid

    def queue(
        self,
        study: str,
        *,
        model: str = "bodies",
        mode: RouteMode = "shadow",
        destinations: tuple[str, ...] = (),
    ) -> JobId:
        """Queue an analysis of the series of a study that came last."""
        uid = StudyInstanceUID(study)
        package = open_registry(self.settings.folders.models).get(model)
        with writing(self.engine) as connection:
            current = studies.lock(connection, uid)
            assert current is not None
            assert current.patient_key is not None
            came = [row for row in instances.of_study(connection, uid) if row.origin == "received"]
            series_uid = max(came, key=lambda row: row.id).series_instance_uid
            rows = [row for row in came if row.series_instance_uid == series_uid]
            added = analyses.add_analysis(
                connection,
                NewAnalysis(
                    study_instance_uid=uid,
                    patient_key=current.patient_key,
                    model=model,
                    package_sha256=package.sha256,
                    choice=rows[0].series_instance_uid,
                    fingerprint=f"{model} {series_uid}",
                    inputs=tuple(
                        JobInput(
                            input="ct",
                            instance_id=row.id,
                            study_instance_uid=uid,
                            series_instance_uid=row.series_instance_uid,
                            sop_instance_uid=row.sop_instance_uid,
                        )
                        for row in rows
                    ),
                    route=JobRoute(route="all", mode=mode, destinations=destinations),
                    ageing=seconds(600),
                ),
                now(),
            )
        return added.job_id

    def worker(
        self,
        *,
        stop: threading.Event | None = None,
        observe: Observe = lambda _stage, _job: None,
        deadline_s: float = 60.0,
        lease_s: float = 10.0,
        clock: Callable[[], Instant] = now,
    ) -> Worker:
        """A worker with short times."""
        return Worker(
            name="tests",
            engine=self.engine,
            lease_s=lease_s,
            deadline_s=deadline_s,
            clock=clock,
            stop=stop or threading.Event(),
            pulse=lambda: None,
            observe=observe,
        )

    def job(self, job: JobId) -> Job:
        """Return a job as it is now."""
        with reading(self.engine) as connection:
            found = jobs.get(connection, job)
        assert found is not None
        return found

    def results(self, job: JobId) -> tuple[Instance, ...]:
        """Return what a job produced."""
        with reading(self.engine) as connection:
            return instances.of_job(connection, job)

    def file(self, row: Instance) -> Path:
        """Return the file of an instance, after a look at its bytes."""
        path = self.settings.folders.data / row.path
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row.file_sha256
        return path


@cache
def _empty_catalogue() -> bytes:
    """Return an SQLite file that was brought up to date, which takes an eighth of a second."""
    with TemporaryDirectory() as folder:
        engine = open_engine(f"sqlite:///{folder}/dicomai.db")
        upgrade(engine)
        engine.dispose()
        return Path(folder, "dicomai.db").read_bytes()


def open_ward(folder: Path, *nodes: Node, database: str = "") -> Ward:
    """Make a data folder with a model and an empty catalogue, or open one that is there.

    `database` is the URL of another than the SQLite of the folder.
    """
    config = folder / "dicomai.toml"
    if not config.exists():
        config.write_text('[service]\ndata = "data"\n[log]\nformat = "json"\n')
        data = folder / "data"
        for name in ("spool", "archive", "quarantine", "models"):
            (data / name).mkdir(parents=True)
        write_package(data / "models")
    environment = {"DICOMAI_DATABASE__URL": database} if database else {}
    settings = replace(load(config, environment), nodes=nodes)
    engine = open_engine(settings.database.url)
    if (file := file_of(engine)) is not None and not file.exists():
        file.write_bytes(_empty_catalogue())
    else:
        upgrade(engine)
    return Ward(settings=settings, engine=engine)
