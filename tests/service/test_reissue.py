"""Results of a study whose images have a wrong Patient ID: reissued, delivered, withdrawn."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bodies
import pytest
from bodies import write_package
from pydicom.dataset import Dataset
from reissuing import Pacs, corrected, deliver, states
from typer.testing import CliRunner
from ward import Ward

from dicomai.cli.main import app
from dicomai.dicom.dates import now
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import InputError, NotFound, TransientError
from dicomai.inference.runner_process import RunnerProcess
from dicomai.results.gate.error import GateError
from dicomai.results.reissue import reissued
from dicomai.routing.route import Route
from dicomai.service import reissue as reissue_service
from dicomai.service import withdraw as withdraw_service
from dicomai.service.analyse import placed
from dicomai.service.deliver import Deliverer
from dicomai.service.supervise import Supervisor
from dicomai.service.withdraw import withdraw
from dicomai.store import deliveries, events, instances, reissues, studies
from dicomai.store.engine import reading
from dicomai.store.job import Job, JobId
from dicomai.store.jobs import NotNow


def test_a_delivery_that_is_held_for_its_patient_goes_out_when_it_is_reissued(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]],
    pacs: Pacs,
    tmp_path: Path,
    peer: Callable[[str], str],
) -> None:
    ward, study, old = analysed()
    pacs.patient_id = "P2"
    assert deliver(ward)
    assert states(ward, old) == [("held", "identity")]
    (new,) = corrected(ward, study, patient_id="P2")
    assert states(ward, old) == [("cancelled", None)]
    assert deliver(ward)
    assert states(ward, new) == [("done", None)]
    before = {row.sop_instance_uid for row in ward.results(old)}
    after = {str(each.SOPInstanceUID) for each in pacs.stored}
    assert {each.PatientID for each in pacs.stored} == {"P2"}
    assert len(after) == len(before)
    assert not after & before
    # They refer to each other, and to the images, by names that exist.
    report = next(each for each in pacs.stored if each.Modality == "SR")
    named = {
        str(element.value)
        for element in report.iterall()
        if element.keyword == "ReferencedSOPInstanceUID"
    }
    with reading(ward.engine) as connection:
        images = {each.sop_instance_uid for each in instances.of_study(connection, study)} - before
        assert studies.get(connection, study).patient_key == "P2"
    assert named <= images
    assert named & after
    for number, each in enumerate(pacs.stored):
        path = tmp_path / f"{number}.dcm"
        each.save_as(path, enforce_file_format=True)
        checked = subprocess.run([peer("dciodvfy"), "-new", path], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("takes_notes", [False, True])
def test_what_left_before_is_withdrawn_where_the_node_takes_notes(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]],
    pacs: Pacs,
    tmp_path: Path,
    peer: Callable[[str], str],
    takes_notes: bool,
) -> None:
    ward, study, _ = analysed(rejection_notes=takes_notes)
    assert deliver(ward)
    withdrawn = {str(each.SOPInstanceUID) for each in pacs.stored}
    pacs.stored.clear()
    pacs.patient_id = "P2"
    (new,) = corrected(ward, study, patient_id="P2")
    assert deliver(ward)
    assert states(ward, new) == [("done", None)]
    notes = [each for each in pacs.stored if each.Modality == "KO"]
    assert bool(notes) is takes_notes
    with reading(ward.engine) as connection:
        story = " ".join(each.sentence for each in events.of_job(connection, new))
    assert ("PACS1 has the old ones and no rejection_notes" in story) is not takes_notes
    for note in notes:
        assert note.ConceptNameCodeSequence[0].CodeValue == "113038"
        assert named_by(note) == withdrawn
        assert (note.PatientID, note.StudyInstanceUID) == ("P2", study)
        note.save_as(tmp_path / "note.dcm", enforce_file_format=True)
        checked = subprocess.run(
            [peer("dciodvfy"), "-new", tmp_path / "note.dcm"], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("went_out", [False, True])
def test_corrected_results_go_where_the_wrong_ones_are_though_their_route_is_in_shadow_by_now(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]], pacs: Pacs, went_out: bool
) -> None:
    ward, study, _ = analysed()
    if went_out:
        deliver(ward)
    pacs.patient_id = "P2"
    (new,) = corrected(ward, study, patient_id="P2")
    quiet = Route(name="all", model="bodies", mode="shadow")
    pacs.stored.clear()
    deliver(replace(ward, settings=replace(ward.settings, routes=(quiet,))))
    assert states(ward, new) == [("done", None) if went_out else ("held", "config")]
    assert bool(pacs.stored) is went_out


def test_a_delivery_that_is_held_for_its_accession_number_goes_out_when_it_is_reissued(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]], pacs: Pacs
) -> None:
    ward, study, old = analysed()
    pacs.accession_number = "A9"
    assert deliver(ward)
    assert states(ward, old) == [("held", "identity")]
    with reading(ward.engine) as connection:
        (held,) = deliveries.of_analysis(connection, old)
    assert f"If PACS1 is right: dicomai study {study} --accession NUMBER" in held.error_sentence
    (new,) = corrected(ward, study, accession_number="A9")
    assert deliver(ward)
    assert states(ward, new) == [("done", None)]
    assert {(each.PatientID, each.AccessionNumber) for each in pacs.stored} == {("P1", "A9")}
    (report,) = (each for each in pacs.stored if each.Modality == "SR")
    assert [each.AccessionNumber for each in report.ReferencedRequestSequence] == ["A9"]
    with reading(ward.engine) as connection:
        (found,) = studies.find_by_accession(connection, "A9")
    assert (found.study_instance_uid, found.patient_key) == (study, "P1")
    for number, words in (
        ("A9", "have that Accession Number"),
        ("A" * 17, "is no Accession Number: 1 to 16 characters"),
    ):
        with pytest.raises(InputError, match=words):
            corrected(ward, study, accession_number=number)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_patient_without_an_id_stays_the_same_when_the_accession_number_is_corrected(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]], pacs: Pacs
) -> None:
    ward, study, _ = analysed(patient="", key="@Patient|19600101|O")
    (new,) = corrected(ward, study, accession_number="A9")
    assert deliver(ward)
    assert states(ward, new) == [("done", None)]
    assert ward.job(new).patient_key == "@Patient|19600101|O"
    assert {(each.PatientID, each.AccessionNumber) for each in pacs.stored} == {("", "A9")}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "person",
    [
        {},
        {"PatientName": "Beta^Bert", "PatientBirthDate": "19710203", "PatientSex": "M"},
        {"PatientName": "PATIENT^P1", "PatientBirthDate": "19600101", "IssuerOfPatientID": "RIS"},
    ],
    ids=["nobody says", "another person", "the same person"],
)
def test_reissued_results_name_whom_the_node_names(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]],
    pacs: Pacs,
    person: dict[str, str],
) -> None:
    ward, study, _ = analysed()
    pacs.patient_id, pacs.person = "P2", person
    (new,) = corrected(ward, study, patient_id="P2")
    assert deliver(ward)
    same = person.get("PatientBirthDate") == "19600101"
    wanted = {"PatientID": "P2", "PatientName": "", "PatientBirthDate": "", "PatientSex": ""}
    wanted |= person | ({"PatientName": "Patient^P1", "PatientSex": "O"} if same else {})
    for each in pacs.stored:
        assert {keyword: str(each.get(keyword, "")) for keyword in wanted} == wanted
    with reading(ward.engine) as connection:
        story = " ".join(each.sentence for each in events.of_job(connection, new))
    assert ("without name, birth date and sex" in story) == (not person)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_delivery_that_is_held_for_the_issuer_goes_out_when_it_is_reissued(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]],
    pacs: Pacs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slice_of = bodies.ct_slice

    def of_hospital(*args: Any) -> Dataset:
        image = slice_of(*args)
        image.IssuerOfPatientID = "HOSPITAL"
        return image

    monkeypatch.setattr(bodies, "ct_slice", of_hospital)
    ward, study, old = analysed(key="P1@HOSPITAL")
    pacs.patient_id = "P1"
    pacs.person = {"IssuerOfPatientID": "CLINIC", "PatientName": "Roe^Ann"}
    assert deliver(ward)
    assert states(ward, old) == [("held", "identity")]
    corrected(ward, study, patient_id="P1")
    assert deliver(ward)
    assert {
        (each.PatientID, each.IssuerOfPatientID, str(each.PatientName)) for each in pacs.stored
    } == {("P1", "CLINIC", "Roe^Ann")}
    with reading(ward.engine) as connection:
        known = studies.get(connection, study)
    assert known is not None
    assert known.patient_key == "P1@CLINIC"
    with pytest.raises(InputError, match="have that Patient ID"):
        corrected(ward, study, patient_id="P1")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_results_that_name_the_wrong_patient_still_are_not_reissued(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ward, study, old = analysed()
    before = states(ward, old)

    def half(results: Sequence[Dataset], *args: Any) -> tuple[Dataset, ...]:
        made = reissued(results, *args)
        for each in made:
            each.PatientName = results[0].PatientName
        return made

    monkeypatch.setattr(reissue_service, "reissued", half)
    with pytest.raises(GateError, match="PatientName"):
        corrected(ward, study, patient_id="P9")
    with reading(ward.engine) as connection:
        known = studies.get(connection, study)
    assert known is not None
    assert (str(known.patient_key), states(ward, old)) == ("P1", before)


def test_nothing_is_reissued_while_the_node_that_may_know_the_patient_gives_no_answer(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]], pacs: Pacs
) -> None:
    ward, study, job = analysed()
    pacs.busy = True
    with pytest.raises(TransientError, match="PACS1 failed to look for study"):
        corrected(ward, study, patient_id="P2")
    assert states(ward, job) == [("queued", None)]


def test_what_left_is_withdrawn_even_when_the_first_correction_never_did(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]], pacs: Pacs
) -> None:
    ward, study, _ = analysed(rejection_notes=True)
    assert deliver(ward)
    withdrawn = {str(each.SOPInstanceUID) for each in pacs.stored}
    pacs.stored.clear()
    corrected(ward, study, patient_id="P2")
    (last,) = corrected(ward, study, patient_id="P3", accession_number="A3")
    while deliver(ward):
        pass
    assert states(ward, last) == [("done", None)]
    (note,) = (each for each in pacs.stored if each.Modality == "KO")
    assert named_by(note) == withdrawn
    assert {(each.PatientID, each.AccessionNumber) for each in pacs.stored} == {("P3", "A3")}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_results_that_are_being_delivered_are_reissued_when_that_is_over(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]], pacs: Pacs
) -> None:
    ward, study, _ = analysed(rejection_notes=True)
    refused = []

    def correct(stage: str, _job: Job) -> None:
        if stage == "send":
            with pytest.raises(NotNow, match="is being delivered just now") as caught:
                corrected(ward, study, patient_id="P2")
            refused.append(caught.value.sentence)

    worker = ward.worker(observe=correct)
    assert Deliverer(settings=ward.settings, worker=worker).work_once()
    assert len(refused) == 1
    assert {each.PatientID for each in pacs.stored} == {"P1"}
    (new,) = corrected(ward, study, patient_id="P2")
    assert deliver(ward)
    assert states(ward, new) == [("done", None)]
    assert [each.Modality for each in pacs.stored].count("KO") == 1


@pytest.mark.parametrize("withdrawn", [False, True])
def test_what_leaves_while_it_is_corrected_or_withdrawn_is_in_the_note(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]],
    pacs: Pacs,
    monkeypatch: pytest.MonkeyPatch,
    withdrawn: bool,
) -> None:
    ward, study, _ = analysed(rejection_notes=True)
    assert deliver(ward)
    (wrong,) = corrected(ward, study, patient_id="P2")

    def take_back() -> None:
        if withdrawn:
            withdraw(ward.engine, ward.settings, wrong, "It is somebody else's.", now())
        else:
            corrected(ward, study, patient_id="P3")

    def meanwhile(*given: Any) -> Any:
        assert deliver(ward)
        return placed(*given)

    module = withdraw_service if withdrawn else reissue_service.analyse
    with monkeypatch.context() as patched:
        patched.setattr(module, "placed", meanwhile)
        with pytest.raises(NotNow, match="is being delivered just now"):
            take_back()
    # Those of P1 are named in the note that has come with those of P2.
    there = {str(each.SOPInstanceUID): each.PatientID for each in pacs.stored}
    notes = {str(each.SOPInstanceUID) for each in pacs.stored if each.Modality == "KO"}
    pacs.stored.clear()
    take_back()
    assert deliver(ward)
    (note,) = (each for each in pacs.stored if each.Modality == "KO")
    assert {uid for uid in there if there[uid] == "P2"} - notes <= named_by(note)
    assert bool(named_by(note) & {uid for uid in there if there[uid] == "P1"}) is not withdrawn


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_results_that_were_withdrawn_are_not_reissued(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]],
) -> None:
    ward, study, job = analysed()
    withdraw(ward.engine, ward.settings, job, "Left and right were exchanged.", now())
    with pytest.raises(NotFound, match="has no results that could be reissued"):
        corrected(ward, study, patient_id="P2")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("takes_notes", [False, True])
def test_what_left_is_withdrawn_with_the_reissue_that_never_did(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]], pacs: Pacs, takes_notes: bool
) -> None:
    ward, study, _ = analysed(rejection_notes=takes_notes)
    assert deliver(ward)
    left = {str(each.SOPInstanceUID) for each in pacs.stored}
    pacs.stored.clear()
    pacs.patient_id = "P2"
    (new,) = corrected(ward, study, patient_id="P2")
    taken = withdraw(ward.engine, ward.settings, new, "Left and right were exchanged.", now())
    assert (taken.nodes, taken.by_hand)[not takes_notes] == ("PACS1",)
    assert deliver(ward) is takes_notes
    for note in pacs.stored:
        assert note.ConceptNameCodeSequence[0].CodeValue == "113037"
        assert (note.PatientID, note.StudyInstanceUID) == ("P2", study)
        assert left < named_by(note)
    assert len(pacs.stored) == takes_notes


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_neither_a_note_nor_what_it_hides_is_withdrawn_again(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]], pacs: Pacs
) -> None:
    ward, study, _ = analysed(rejection_notes=True)
    assert deliver(ward)
    pacs.patient_id = "P2"
    (new,) = corrected(ward, study, patient_id="P2")
    assert deliver(ward)
    results = {
        str(each.SOPInstanceUID)
        for each in pacs.stored
        if each.Modality != "KO" and each.PatientID == "P2"
    }
    withdraw(ward.engine, ward.settings, new, "Left and right were exchanged.", now())
    assert deliver(ward)
    assert named_by(pacs.stored[-1]) == results


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_command_reissues_for_both_at_once_and_is_audited(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]], pacs: Pacs, tmp_path: Path
) -> None:
    ward, study, _ = analysed()
    command = ["study", study, "--patient", "P2", "--accession", "A2"]
    done = CliRunner().invoke(app, [*command, "-c", str(tmp_path / "dicomai.toml")])
    assert done.exit_code == 0, done.stderr
    assert "its results are reissued and queued for delivery, as job" in done.stdout
    lines = (ward.settings.folders.data / "audit.jsonl").read_text().splitlines()
    assert [(each["action"], each["subject"]) for each in map(json.loads, lines)] == [
        ("study --patient", f"{study} P2"),
        ("study --accession", f"{study} A2"),
    ]
    assert deliver(ward)
    assert {(each.PatientID, each.AccessionNumber) for each in pacs.stored} == {("P2", "A2")}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_correction_that_was_cut_short_is_done_to_its_end_by_the_same_command(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]],
    runner: RunnerProcess,
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
) -> None:
    ward, study, first = analysed()
    write_package(ward.settings.folders.models, "limbs")
    second = ward.queue(study, model="limbs")
    assert Supervisor(settings=ward.settings, runner=runner, worker=ward.worker()).work_once()

    def cut_short(job: Job, *rest: Any) -> Any:
        if job.model == "limbs":
            raise KeyboardInterrupt
        return placed(job, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(reissue_service.analyse, "placed", cut_short)
        with pytest.raises(KeyboardInterrupt):
            corrected(ward, study, accession_number="A9")
    (new,) = corrected(ward, study, accession_number="A9")
    assert ward.job(new).supersedes == second
    with reading(ward.engine) as connection:
        numbers = {
            str(each.attributes["AccessionNumber"])
            for job in reissues.current(connection, study)
            for each in instances.of_job(connection, job.id)
        }
        assert first not in {job.id for job in reissues.current(connection, study)}
    assert numbers == {"A9"}
    with pytest.raises(InputError, match="have that Accession Number"):
        corrected(ward, study, accession_number="A9")


def named_by(note: Dataset) -> set[str]:
    return {
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in note.ContentSequence
        if "ReferencedSOPSequence" in item
    }


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_cannot_be_reissued_is_said(
    analysed: Callable[..., tuple[Ward, StudyInstanceUID, JobId]],
) -> None:
    ward, study, _ = analysed()
    for patient, words in (
        ("P1", "have that Patient ID"),
        ("山田", "does not fit the results' character set"),
        ("a\\b", "is no Patient ID"),
        ("UNKNOWN ", "stands for no patient"),
    ):
        with pytest.raises(InputError, match=words):
            corrected(ward, study, patient_id=patient)
    with pytest.raises(NotFound, match="has no results"):
        corrected(ward, "1.2.3", patient_id="P2")
    assert len(corrected(ward, study, patient_id="P2")) == 1
    assert len(corrected(ward, study, patient_id="P3")) == 1
