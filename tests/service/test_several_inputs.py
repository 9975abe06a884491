"""A model sees a prior on the grid of the study, and the same patient's or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bodies
import highdicom
import numpy as np
import pydicom
import pytest
import torch
from bodies import MANIFEST, new_uid, truth, write_study
from pydicom import config
from pydicom.dataelem import DataElement
from safetensors.torch import save_file
from typer.testing import CliRunner
from ward import Ward, open_ward

from dicomai.cli.main import app
from dicomai.dicom.dates import now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import ConfigError
from dicomai.inference.runner_process import RunnerProcess
from dicomai.models import model_toml, trust
from dicomai.models import package as packages
from dicomai.models.runtimes.networks import build
from dicomai.service.supervise import Supervisor
from dicomai.store import analyses, decisions, instances, lacking, schema, studies
from dicomai.store.engine import writing
from dicomai.store.job import Job, JobId, JobInput, JobRoute, NewAnalysis

PRIOR = """
[[input]]
name = "prior"
kind = "volume"
when = ["Modality = CT"]
source = "prior"
max_age_days = 700
optional = {optional}
align = "centre"

[preprocess]
"""


def written(models: Path, name: str, *, optional: bool) -> packages.Package:
    """Write a package whose network passes on what is bright in the prior."""
    folder = models / name
    folder.mkdir(parents=True)
    text = MANIFEST.format(name=name, network="unet3d")
    text = text.replace("[preprocess]\n", PRIOR.format(optional=str(optional).lower()))
    text = text.replace("channels = [1]", "channels = [1], in_channels = 2")
    (folder / "model.toml").write_text(text)
    (folder / "CARD.md").write_text("# Priors\n")
    weights = build("unet3d", {"channels": (1,), "in_channels": 2}).state_dict()
    for key, value in weights.items():
        if value.dim() == 5:
            kernel = torch.zeros_like(value)
            middle = tuple(size // 2 for size in value.shape[2:])
            kernel[(0, value.shape[1] - 1, *middle)] = 1.0
            weights[key] = kernel
    weights["last.weight"] = torch.full_like(weights["last.weight"], 20.0)
    weights["last.bias"] = torch.full_like(weights["last.bias"], -10.0)
    save_file(weights, folder / "weights.safetensors")
    package = packages.load(folder)
    trust.trust(models, package)
    return package


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = open_ward(tmp_path)
    written(opened.settings.folders.models, "compares", optional=False)
    written(opened.settings.folders.models, "may-compare", optional=True)
    yield opened
    opened.engine.dispose()


def queue(ward: Ward, model: str, study: str, prior: str = "") -> JobId:
    """Queue an analysis of a study, and of a prior beside it."""
    from dicomai.models.registry import open_registry

    taken = []
    with writing(ward.engine) as connection:
        for name, uid in (("ct", study), ("prior", prior)):
            taken += [
                JobInput(
                    input=name,
                    instance_id=row.id,
                    study_instance_uid=row.study_instance_uid,
                    series_instance_uid=row.series_instance_uid,
                    sop_instance_uid=row.sop_instance_uid,
                )
                for row in instances.of_study(connection, StudyInstanceUID(uid))
            ]
        owner = studies.get(connection, StudyInstanceUID(study))
        assert owner is not None
        assert owner.patient_key is not None
        new = NewAnalysis(
            study_instance_uid=owner.study_instance_uid,
            patient_key=owner.patient_key,
            model=model,
            package_sha256=open_registry(ward.settings.folders.models).get(model).sha256,
            choice="ct",
            fingerprint=f"{model} {study} {prior}",
            inputs=tuple(taken),
            route=JobRoute(route="all", mode="live", destinations=("PACS1",)),
            ageing=seconds(600),
        )
        return analyses.add_analysis(connection, new, now()).job_id


def worked(ward: Ward, runner: RunnerProcess, job: JobId, **options: object) -> Job:
    worker = ward.worker(**options)
    assert Supervisor(settings=ward.settings, runner=runner, worker=worker).work_once()
    return ward.job(job)


def texts(report: pydicom.Dataset) -> str:
    """What a report says in words."""
    return "\n".join(each.value for each in report.iterall() if each.keyword == "TextValue")


def test_the_prior_is_seen_on_the_grid_of_the_study_and_named(
    ward: Ward, runner: RunnerProcess
) -> None:
    study, prior = ward.study("P1", brightness=0), ward.study("P1", brightness=1000)
    job = queue(ward, "compares", study, prior)

    done = worked(ward, runner, job)

    assert (done.state, done.error_sentence) == ("done", "")
    rows = {row.sop_class_uid: row for row in ward.results(job)}
    seg = highdicom.seg.segread(ward.file(rows["1.2.840.10008.5.1.4.1.1.66.4"]))
    assert seg.StudyInstanceUID == study
    found = seg.get_volume(combine_segments=True, rescale_fractional=False).array
    assert np.array_equal(
        np.asarray(found) > 0, truth()[truth().any(axis=(1, 2))]
    ) or np.array_equal(np.asarray(found) > 0, truth())
    report = pydicom.dcmread(ward.file(rows["1.2.840.10008.5.1.4.1.1.88.34"]))
    (other,) = report.PertinentOtherEvidenceSequence
    assert other.StudyInstanceUID == prior
    said = texts(report)
    assert "The input prior is series" in said
    assert "of the study of 20260301, laid centre on centre, and not registered." in said


def test_without_an_optional_prior_the_report_says_so(ward: Ward, runner: RunnerProcess) -> None:
    job = queue(ward, "may-compare", ward.study("P1", brightness=0))
    done = worked(ward, runner, job)
    assert (done.state, done.error_sentence) == ("done", "")
    (report,) = [row for row in ward.results(job) if row.sop_class_uid.endswith("88.34")]
    said = texts(pydicom.dcmread(ward.file(report)))
    assert "The input prior is missing, and the model ran without it. There is none." in said


def test_without_a_prior_that_it_needs_nothing_is_analysed(
    ward: Ward, runner: RunnerProcess
) -> None:
    job = queue(ward, "compares", ward.study("P1"))
    why = {"summary": {lacking.MISSING: {"prior": "PACS1 has nothing for input prior."}}}
    with writing(ward.engine) as connection:
        connection.execute(schema.jobs.update().values(**why))
    failed = worked(ward, runner, job)
    assert (failed.state, failed.error_kind) == ("failed", "input")
    assert failed.error_sentence.endswith(
        "compares needs its input prior, and that is missing. PACS1 has nothing for input prior."
    )


def test_another_patients_images_are_never_compared_with(ward: Ward, runner: RunnerProcess) -> None:
    study = ward.study("P1")
    known = worked(ward, runner, queue(ward, "compares", study, ward.study("P2")))
    assert (known.state, known.held_by) == ("held", "identity")
    assert "which may be another patient's" in known.error_sentence
    # The catalogue takes it for the same patient's, its images don't.
    mistaken = worked(ward, runner, queue(ward, "may-compare", study, ward.study("P2", key="P1")))
    assert (mistaken.state, mistaken.held_by) == ("held", "identity")
    assert "has another PatientID than the study" in mistaken.error_sentence


@pytest.mark.parametrize("born", ["", "00000000", "1960.01.01"])
def test_a_prior_whose_birth_date_is_not_known_or_written_otherwise_is_compared_with(
    ward: Ward, runner: RunnerProcess, monkeypatch: pytest.MonkeyPatch, born: str
) -> None:
    study, slice_of = ward.study("P1"), bodies.ct_slice

    def undated(*args: Any) -> pydicom.Dataset:
        image = slice_of(*args)
        image.add(DataElement("PatientBirthDate", "DA", born, validation_mode=config.IGNORE))
        return image

    monkeypatch.setattr(bodies, "ct_slice", undated)
    job = worked(ward, runner, queue(ward, "compares", study, ward.study("P1")))
    assert (job.state, job.error_sentence) == ("done", "")


def test_a_prior_that_is_doubted_meanwhile_holds_the_result(
    ward: Ward, runner: RunnerProcess
) -> None:
    study, prior = ward.study("P1"), ward.study("P1")
    job = queue(ward, "compares", study, prior)

    def doubt(stage: str, _job: Job) -> None:
        if stage == "encode":
            with writing(ward.engine) as connection:
                studies.lock(connection, StudyInstanceUID(prior))
                decisions.hold(connection, StudyInstanceUID(prior), "Two patients.", now())

    held = worked(ward, runner, job, observe=doubt)
    assert (held.state, held.held_by) == ("held", "identity")
    assert ward.results(job) == ()


def test_a_folder_has_the_prior_too(tmp_path: Path) -> None:
    package = written(tmp_path / "models", "compares", optional=False)
    write_study(tmp_path / "images" / "new", "P1", brightness=0)
    arguments = ["run", str(package.folder), str(tmp_path / "images"), "--json"]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    alone = CliRunner().invoke(app, [*arguments, *out])
    assert "needs its input prior" in alone.output
    for patient, date in (("P2", "20250301"), ("P1", "20240201"), ("P1", "20250301")):
        for path in write_study(tmp_path / "images" / f"{patient}{date}", patient):
            image = pydicom.dcmread(path)
            image.StudyDate = date
            image.save_as(path)
    told = json.loads(CliRunner().invoke(app, [*arguments, *out]).stdout)
    reports = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").rglob("*sr.dcm"))]
    compared = [each for each in reports if "PertinentOtherEvidenceSequence" in each]
    assert len(compared) == 2, told  # the new one with 2025's, and that with 2024's; P2 has none
    assert {"20250301", "20240201"} == {
        texts(each).partition("of the study of ")[2][:8] for each in compared
    }
    assert {each.PatientID for each in compared} == {"P1"}


@pytest.mark.parametrize(
    ("issuers", "analysed"), [(("WARD", "ELSEWHERE"), 0), (("WARD", ""), 2), (("", ""), 2)]
)
def test_a_folder_lays_no_series_of_another_issuers_patient_beside_one(
    tmp_path: Path, issuers: tuple[str, str], analysed: int
) -> None:
    package = written(tmp_path / "models", "compares", optional=False)
    manifest = package.folder / "model.toml"
    manifest.write_text(manifest.read_text().replace('source = "prior"\nmax_age_days = 700\n', ""))
    study = new_uid()
    for number, issuer in enumerate(issuers):
        for path in write_study(tmp_path / "images" / str(number), "P1", study=study):
            image = pydicom.dcmread(path)
            image.IssuerOfPatientID = issuer
            image.save_as(path)
    arguments = ["run", str(package.folder), str(tmp_path / "images"), "--device", "cpu"]
    told = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").rglob("*sr.dcm"))) == analysed, told.output
    assert told.output.count("another IssuerOfPatientID than the study") == 2 - analysed


@pytest.mark.parametrize(
    ("born", "compared"),
    [(("19600101", ""), 1), (("", "19600101"), 1), (("", ""), 1), (("19600101", "19600102"), 0)],
)
def test_a_folder_has_a_prior_whose_birth_date_is_not_known_but_none_of_another_day(
    tmp_path: Path, born: tuple[str, str], compared: int
) -> None:
    package = written(tmp_path / "models", "compares", optional=False)
    for day, birth_date in zip(("20260301", "20250301"), born, strict=True):
        for path in write_study(tmp_path / "images" / day, "P1"):
            image = pydicom.dcmread(path)
            image.StudyDate, image.PatientBirthDate = day, birth_date
            image.save_as(path)
    arguments = ["run", str(package.folder), str(tmp_path / "images"), "--device", "cpu"]
    told = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert told.output.count("needs its input prior") == 2 - compared
    reports = [pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*sr.dcm")]
    assert sum("PertinentOtherEvidenceSequence" in each for each in reports) == compared


@pytest.mark.parametrize("whose", [("ANONYMOUS", ""), ("P1", "ELSEWHERE"), ("", "")])
def test_a_folder_has_no_prior_of_a_patient_who_may_be_another(
    tmp_path: Path, whose: tuple[str, str]
) -> None:
    package = written(tmp_path / "models", "compares", optional=False)
    for day, issuer in (("20260301", ""), ("20250301", whose[1])):
        for path in write_study(tmp_path / "images" / day, whose[0]):
            image = pydicom.dcmread(path)
            image.StudyDate, image.IssuerOfPatientID = day, issuer
            image.save_as(path)
    arguments = ["run", str(package.folder), str(tmp_path / "images"), "--device", "cpu"]
    told = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert told.output.count("needs its input prior") == 2


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('align = "centre"', "", "a prior lies in a frame of reference of its own"),
        ('source = "prior"\n', "", "max_age_days of an input belongs to"),
        ('name = "prior"', 'name = "ct"', "two inputs have the same name"),
        ("in_channels = 2", "in_channels = 1", "in_channels is 1, and there are 2 inputs"),
        ('kind = "volume"\nwhen = ["Modality = CT"]\nsource', 'kind = "image"\nsource', "volumes"),
        ('name = "ct"', 'name = "ct"\noptional = true', "the first input is of the study"),
    ],
)
def test_inputs_that_cannot_be_are_refused(
    tmp_path: Path, before: str, after: str, words: str
) -> None:
    folder = written(tmp_path / "models", "compares", optional=False).folder
    text = (folder / "model.toml").read_text()
    assert before in text
    with pytest.raises(ConfigError, match=words):
        model_toml.parse(text.replace(before, after, 1), "model.toml")


def test_what_a_route_would_give_is_explained_with_priors(tmp_path: Path) -> None:
    written(tmp_path / "models", "compares", optional=False)
    written(tmp_path / "models", "may-compare", optional=True)
    (tmp_path / "dicomai.toml").write_text(
        '[service]\ndata = "."\n'
        + "".join(
            f'[[routes]]\nname = "{name}"\nmodel = "{name}"\nwhen = ["Modality = CT"]\n'
            for name in ("compares", "may-compare")
        )
    )
    study = bodies.new_uid()
    for _ in "12":  # another series of the same study is no prior
        write_study(tmp_path / "study" / bodies.new_uid(), "P1", study=study)
    answer = CliRunner().invoke(
        app,
        ["route", "test", str(tmp_path / "study"), "--config", str(tmp_path / "dicomai.toml"),
         "--json"],
    )  # fmt: skip
    (explained,) = json.loads(answer.stdout)["studies"]
    compares, may = explained["routes"]
    assert compares["because"].endswith(
        "prior of compares: no earlier study of the patient is here"
    )
    assert "prior: nothing" in may["because"]
    assert [each["matches"] for each in (compares, may)] == [False, True]
