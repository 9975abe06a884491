"""Images that still say what a person corrected give results of the corrected patient."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from reissuing import Pacs, corrected, deliver, states
from sqlalchemy import delete
from ward import Ward

from dicomai.dicom.dates import now
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.inference.runner_process import RunnerProcess
from dicomai.routing.route import Route
from dicomai.service import analyse
from dicomai.service.again import again
from dicomai.service.corrected import as_corrected
from dicomai.service.received import Reading
from dicomai.service.supervise import Supervisor
from dicomai.store import instances, jobs, schema
from dicomai.store.corrections import Corrections
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job, JobId

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

Analysed = Callable[..., tuple[Ward, StudyInstanceUID, JobId]]


def analysed_again(ward: Ward, runner: RunnerProcess, job: JobId) -> JobId:
    with writing(ward.engine) as connection:
        new = again(connection, job, now())
    Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()
    return new


def came_late(ward: Ward, study: StudyInstanceUID) -> JobId:
    """Have a series come under the old Patient ID, and its analysis be cancelled; return that."""
    ward.study("P1", into=study)
    late = ward.queue(study, mode="live", destinations=("PACS1",))
    with writing(ward.engine) as connection:
        jobs.cancel(connection, late, "A person cancelled it.", now())
    return late


@pytest.mark.parametrize("person", [{}, {"PatientName": "Beta^Bert", "PatientSex": "M"}])
def test_a_new_analysis_is_of_the_patient_that_a_person_gave(
    analysed: Analysed,
    runner: RunnerProcess,
    pacs: Pacs,
    peer: Callable[[str], str],
    tmp_path: Path,
    person: dict[str, str],
) -> None:
    ward, study, _ = analysed()
    pacs.patient_id, pacs.person = "P2", person
    (reissued,) = corrected(ward, study, patient_id="P2")
    assert deliver(ward)
    (before,) = (each for each in pacs.stored if each.Modality == "SR")
    pacs.stored.clear()
    new = analysed_again(ward, runner, reissued)
    assert (ward.job(new).state, ward.job(new).error_sentence) == ("done", "")
    assert deliver(ward)
    assert states(ward, new) == [("done", None)]
    names = {(each.PatientID, str(each.PatientName), each.PatientSex) for each in pacs.stored}
    assert names == {("P2", person.get("PatientName", ""), person.get("PatientSex", ""))}
    # They are of the same images, refer to each other, and name the report before.
    report, seg = (next(e for e in pacs.stored if e.Modality == each) for each in ("SR", "SEG"))
    named = {str(e.value) for e in report.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    with reading(ward.engine) as connection:
        everything = instances.of_study(connection, study)
    images = {each.sop_instance_uid for each in everything if each.origin == "received"}
    assert images & named
    assert named <= images | {seg.SOPInstanceUID, before.SOPInstanceUID}
    assert {seg.SOPInstanceUID, before.SOPInstanceUID} <= named
    for number, each in enumerate(pacs.stored):
        path = tmp_path / f"{number}.dcm"
        each.save_as(path, enforce_file_format=True)
        checked = subprocess.run([peer("dciodvfy"), "-new", path], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


def test_the_same_results_give_the_same_bytes_and_only_for_whom_a_person_gave(
    analysed: Analysed,
) -> None:
    ward, _, old = analysed()
    results = tuple(ward.file(row).read_bytes() for row in ward.results(old))
    job = replace(ward.job(old), patient_key=IdentityKey("P2@CLINIC"))

    def became(right: str) -> tuple[bytes, ...]:
        told = Corrections(keys={IdentityKey("P1"): IdentityKey(right)}, accession_numbers={})
        patient = {"IssuerOfPatientID": "CLINIC", "PatientBirthDate": "19600101"}
        return as_corrected(job, results, Reading(), told, patient)

    first = became("P2@CLINIC")
    assert first == became("P2@CLINIC")
    for each in map(pydicom.dcmread, map(BytesIO, first)):
        assert (each.PatientID, each.IssuerOfPatientID) == ("P2", "CLINIC")
    assert became("P3") == results  # they stay P1's, and are refused


def test_what_came_with_the_old_patient_id_after_it_was_corrected_is_held(
    analysed: Analysed, runner: RunnerProcess
) -> None:
    ward, study, _ = analysed()
    (reissued,) = corrected(ward, study, patient_id="P2")
    ward.study("P1", into=study)
    late = ward.queue(study, mode="live", destinations=("PACS1",))
    Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()
    job = ward.job(late)
    assert (job.patient_key, job.state, job.held_by) == ("P2", "held", "identity")
    assert "may be somebody else's" in job.error_sentence
    assert not ward.results(late)
    assert ward.job(analysed_again(ward, runner, reissued)).state == "done"  # of the others


def test_to_correct_a_correction_says_nothing_of_what_came_in_between(
    analysed: Analysed, runner: RunnerProcess
) -> None:
    ward, study, _ = analysed()
    (mistyped,) = corrected(ward, study, patient_id="P3")
    late = came_late(ward, study)
    (reissued,) = corrected(ward, study, patient_id="P2")
    assert ward.job(reissued).supersedes == mistyped
    job = ward.job(analysed_again(ward, runner, late))
    assert (job.patient_key, job.state, job.held_by) == ("P2", "held", "identity")
    assert ward.job(analysed_again(ward, runner, reissued)).state == "done"  # of the others


def test_what_came_after_a_correction_was_undone_is_made_the_next_ones(
    analysed: Analysed, runner: RunnerProcess
) -> None:
    ward, study, _ = analysed()
    corrected(ward, study, patient_id="P3")
    corrected(ward, study, patient_id="P1")
    late = came_late(ward, study)
    corrected(ward, study, patient_id="P2")
    job = ward.job(analysed_again(ward, runner, late))
    assert (job.patient_key, job.state) == ("P2", "done")


def test_another_order_makes_nothing_that_came_late_the_corrected_patients(
    analysed: Analysed, runner: RunnerProcess
) -> None:
    ward, study, old = analysed()
    (first,) = corrected(ward, study, patient_id="P2")
    late = came_late(ward, study)
    new = analysed_again(ward, runner, first)
    with writing(ward.engine) as connection:  # retention did
        gone = schema.instances.c.job_id.in_((old, first))
        connection.execute(delete(schema.instances).where(gone))
    corrected(ward, study, accession_number="A9")
    assert ward.job(new).patient_key == "P2"
    assert ward.job(analysed_again(ward, runner, late)).state == "held"


def test_a_new_analysis_answers_the_order_that_a_person_gave(
    analysed: Analysed, runner: RunnerProcess, pacs: Pacs
) -> None:
    ward, study, _ = analysed()
    (reissued,) = corrected(ward, study, accession_number="A9")
    new = analysed_again(ward, runner, reissued)
    assert ward.job(new).state == "done"
    pacs.accession_number = "A9"
    while deliver(ward):
        pass
    assert {(each.PatientID, each.AccessionNumber) for each in pacs.stored} == {("P1", "A9")}


def test_an_analysis_that_runs_when_a_person_gives_the_order_answers_it(
    analysed: Analysed, runner: RunnerProcess
) -> None:
    ward, study, _ = analysed()
    ward.study("P1", into=study)
    other = ward.queue(study, mode="live", destinations=("PACS1",))
    left = ["A9"]

    def correct(stage: str, _job: Job) -> None:
        if stage == "commit" and left:
            corrected(ward, study, accession_number=left.pop())

    worker = ward.worker(observe=correct)
    Supervisor(settings=ward.settings, runner=runner, worker=worker).work_once()
    assert (ward.job(other).state, left) == ("done", [])
    assert {row.attributes["AccessionNumber"] for row in ward.results(other)} == {"A9"}


def test_an_analysis_that_ends_while_others_are_reissued_is_reissued_too(
    analysed: Analysed, runner: RunnerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward, study, _ = analysed()
    ward.study("P1", into=study)
    other = ward.queue(study, mode="live", destinations=("PACS1",))
    place = analyse.placed
    left = [Supervisor(settings=ward.settings, runner=runner, worker=ward.worker())]

    def meanwhile(*given: Any) -> Any:
        if left:
            assert left.pop().work_once()
        return place(*given)

    monkeypatch.setattr(analyse, "placed", meanwhile)
    _, late = corrected(ward, study, accession_number="A9")
    assert ward.job(late).supersedes == other
    assert states(ward, other) == [("cancelled", None)]
    assert {row.attributes["AccessionNumber"] for row in ward.results(late)} == {"A9"}


def test_a_report_that_nothing_was_analysed_is_of_the_corrected_patient_too(
    analysed: Analysed, runner: RunnerProcess
) -> None:
    ward, study, _ = analysed()
    (reissued,) = corrected(ward, study, patient_id="P2")
    told = Route(name="all", model="bodies", objects=("SR", "NOT-ANALYSED"))
    ward = replace(ward, settings=replace(ward.settings, routes=(told,)))
    with writing(ward.engine) as connection:
        new = again(connection, reissued, now())
        (_, row), *_ = instances.inputs_of(connection, new)
    broken = ward.settings.folders.data / row.path
    broken.write_bytes(broken.read_bytes()[:-100])
    Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()
    assert str(ward.job(new).summary["found"]).startswith("not analysed: ")
    (report,) = ward.results(new)
    assert pydicom.dcmread(ward.file(report)).PatientID == "P2"
