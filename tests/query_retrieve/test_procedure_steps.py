"""What a modality says of its work (MPPS): spooled by the receiver, used when its study is decided.

The modality is a small one on pynetdicom: neither DCMTK nor Orthanc sends these messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE

from dicomai.dicom.dates import Instant, Microseconds, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.net.admission import MPPS
from dicomai.net.node import Node
from dicomai.routing.route import Route
from dicomai.service.count import Counter
from dicomai.service.decide import Rules, decide_study
from dicomai.spool import reader
from dicomai.store import events, hosts, steps, studies
from dicomai.store.engine import reading

STEP = "1.2.826.0.1.3680043.10.543.77"
CT1 = Node(name="CT1", ae_title="CT1", quiet_s=0.05, floor_s=0.05)


RULES = Rules(
    routes=(Route(name="all", model="none"),),
    models={},
    patience=seconds(900),
    ageing=Microseconds(0),
    zone=ZoneInfo("UTC"),
)


def decided(site: Any, uid: StudyInstanceUID, outcome: str) -> str:
    """Decide until it has an outcome, as it has when all that came is ingested; return why."""
    deadline = time.monotonic() + 10
    while True:
        with reading(site.engine) as connection:
            study = studies.get(connection, uid)
            reached = [each.ingested_to for each in hosts.listing(connection)]
        assert study is not None
        # Before that it waits for ingest, and its last decision stands.
        if all(each >= study.quiet_until for each in reached):
            found = decide_study(site.engine, uid, RULES, Instant(now() + seconds(1)))
            with reading(site.engine) as connection:
                study = studies.get(connection, uid)
            assert study is not None
            if found == outcome:
                return study.decision
        assert time.monotonic() < deadline, study.decision
        time.sleep(0.02)


class Modality:
    """A CT that says what it does."""

    def __init__(self, port: int) -> None:
        entity = AE("CT1")
        entity.add_requested_context(MPPS)
        self._association = entity.associate("127.0.0.1", port, ae_title="DICOMAI")
        assert self._association.is_established

    def create(self, study: str, status: str = "IN PROGRESS", step: str | None = STEP) -> int:
        message = Dataset()
        scheduled = Dataset()
        scheduled.StudyInstanceUID = study
        message.ScheduledStepAttributesSequence = [scheduled]
        message.PerformedProcedureStepStatus = status
        message.PerformedProcedureStepID = "1"
        message.Modality = "CT"
        said, _ = self._association.send_n_create(message, MPPS, step)
        return int(said.Status)

    def end(self, status: str, objects: list[str], reason: str = "") -> int:
        message = Dataset()
        message.PerformedProcedureStepStatus = status
        series = Dataset()
        series.ReferencedImageSequence = []
        for uid in objects:
            image = Dataset()
            image.ReferencedSOPInstanceUID = uid
            series.ReferencedImageSequence.append(image)
        message.PerformedSeriesSequence = [series]
        if reason:
            code = Dataset()
            code.CodeMeaning = reason
            message.PerformedProcedureStepDiscontinuationReasonCodeSequence = [code]
        said, _ = self._association.send_n_set(message, MPPS, STEP)
        return int(said.Status)

    def release(self) -> None:
        self._association.release()


@pytest.fixture
def modality(our_port: int) -> Iterator[Callable[[], Modality]]:
    """Call our receiver, once it is there."""
    made = []

    def call() -> Modality:
        made.append(Modality(our_port))
        return made[-1]

    yield call
    for each in made:
        each.release()


def told(site: Any, uid: StudyInstanceUID, status: str) -> None:
    """Return when ingest has taken over that a step has a status."""
    deadline = time.monotonic() + 10
    while True:
        with reading(site.engine) as connection:
            found = [each.status for each in steps.of_study(connection, uid)]
        if found == [status]:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_a_step_in_progress_vetoes_and_so_do_objects_that_are_missing(
    site: Callable[..., Any], modality: Callable[[], Modality], study_files: Path, doe: Any
) -> None:
    here = site(CT1)
    uid = StudyInstanceUID(doe.uid)
    ct = modality()
    assert ct.create(doe.uid) == 0
    told(here, uid, "IN PROGRESS")
    files = sorted((study_files / doe.accession).iterdir())
    here.put(*files[:3])
    because = decided(here, uid, "not yet")
    assert because == "CT1 says that a procedure step of it is in progress."
    assert ct.end("COMPLETED", [path.stem for path in files]) == 0
    told(here, uid, "COMPLETED")
    here.put(files[2])  # again: it is looked at anew
    because = decided(here, uid, "not yet")
    assert because == "CT1 made 4 objects, and 1 of them are missing."
    assert ct.end("DISCONTINUED", []) == 0  # it is over: nothing changes it
    here.put(files[3])
    assert "and it is all that the modality made." in decided(here, uid, "decided")


def test_a_completed_step_allows_the_floor(
    site: Callable[..., Any], modality: Callable[[], Modality], study_files: Path, doe: Any
) -> None:
    here = site(replace(CT1, quiet_s=600))
    uid = StudyInstanceUID(doe.uid)
    ct = modality()
    files = sorted((study_files / doe.accession).iterdir())
    assert ct.create(doe.uid) == 0
    here.put(*files)
    counter = Counter(settings=here.settings, engine=here.engine, clock=now, rules=lambda: RULES)
    assert not counter.count_once()
    assert ct.end("COMPLETED", [path.stem for path in files]) == 0
    told(here, uid, "COMPLETED")
    assert counter.count_once()
    assert "and it is all that the modality made." in decided(here, uid, "decided")


def test_a_discontinued_step_is_a_reason_not_to_run(
    site: Callable[..., Any], modality: Callable[[], Modality], study_files: Path, doe: Any
) -> None:
    here = site(CT1)
    uid = StudyInstanceUID(doe.uid)
    ct = modality()
    assert ct.create(doe.uid) == 0
    here.put(*sorted((study_files / doe.accession).iterdir())[:1])
    assert ct.end("DISCONTINUED", [], "Patient allergic to contrast") == 0
    told(here, uid, "DISCONTINUED")
    because = decided(here, uid, "decided")
    assert because.endswith("CT1 broke off its procedure, so no route was looked at.")
    with reading(here.engine) as connection:
        story = events.story(connection, uid)
    assert not [each for each in story if each.kind.startswith("route")]
    (said,) = [each for each in story if "DISCONTINUED" in each.sentence]
    assert said.sentence == (
        "CT1 says that a procedure step is DISCONTINUED: Patient allergic to contrast."
    )


def test_a_message_that_cannot_be_is_refused_and_leaves_nothing(
    site: Callable[..., Any], modality: Callable[[], Modality]
) -> None:
    here = site(CT1)
    ct = modality()
    assert ct.create("1.2.3", status="COMPLETED") == 0x0106
    assert ct.create("1.2.3", status="") == 0x0106
    assert ct.end("FINISHED", []) == 0x0106
    assert not list(reader.entries(here.settings.folders.spool))
