"""What the gate refuses is kept with the reason and never committed; its job waits for a person."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from bodies import write_study
from ward import Ward, open_ward

from dicomai.dicom.dates import now
from dicomai.errors import IdentityError, InputError
from dicomai.findings import Findings
from dicomai.imaging.series import read_series
from dicomai.imaging.volume import SourceVolume, volume_of
from dicomai.inference.inputs import inputs_of
from dicomai.inference.messages import Analyse
from dicomai.inference.runner_process import RunnerProcess
from dicomai.models.registry import open_registry
from dicomai.results.gate import GateError
from dicomai.routing.route import Route
from dicomai.service import analyse, overview
from dicomai.service.received import Reading
from dicomai.service.supervise import Supervisor
from dicomai.spool import quarantine
from dicomai.store import jobs
from dicomai.store.engine import writing
from dicomai.store.job import Job


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = open_ward(tmp_path)
    yield opened
    opened.engine.dispose()


def asked_of(ward: Ward, folder: Path) -> tuple[SourceVolume, Analyse]:
    (series,) = read_series(write_study(folder, "P1"))
    source = volume_of(series.datasets)
    package = open_registry(ward.settings.folders.models).get("bodies")
    return source, Analyse(
        package_folder=str(package.folder),
        package_sha256=package.sha256,
        source=replace(source, headers=()),
        inputs=inputs_of(source.headers),
    )


def found_in(ward: Ward, runner: RunnerProcess, folder: Path) -> tuple[SourceVolume, Findings]:
    source, request = asked_of(ward, folder)
    return source, runner.analyse(request, on_progress=lambda *_: None, go_on=lambda: None)


def test_an_answer_of_other_images_or_of_another_model_is_an_error_of_identity(
    ward: Ward, runner: RunnerProcess, tmp_path: Path
) -> None:
    _, request = asked_of(ward, tmp_path / "study")
    findings = runner.analyse(request, on_progress=lambda *_: None, go_on=lambda: None)
    analyse.check_answer(findings, request)
    for other in (
        replace(findings, inputs=findings.inputs[1:]),
        replace(findings, inputs=findings.inputs[::-1]),
        replace(findings, algorithm=replace(findings.algorithm, package_sha256="0" * 64)),
    ):
        with pytest.raises(IdentityError):
            analyse.check_answer(other, request)


def changed(octets: bytes, keyword: str, value: str) -> bytes:
    result = pydicom.dcmread(io.BytesIO(octets))
    setattr(result, keyword, value)
    out = io.BytesIO()
    result.save_as(out)
    return out.getvalue()


def test_a_result_of_another_patient_is_an_error_of_identity_and_any_other_of_the_gate(
    ward: Ward, runner: RunnerProcess, tmp_path: Path
) -> None:
    source, findings = found_in(ward, runner, tmp_path / "study")
    job = ward.job(ward.queue(ward.study("P1")))
    results = analyse.encoded(
        job, findings, source, timezone="UTC", charset_default="", predecessors=()
    )
    again = analyse.encoded(
        job, findings, source, timezone="UTC", charset_default="", predecessors=()
    )
    assert results == again  # a repeated job gives the same bytes
    analyse.check(results, findings, source.headers, Reading())
    with pytest.raises(IdentityError):
        analyse.check(
            (results[0], changed(results[1], "PatientID", "P2")),
            findings,
            source.headers,
            Reading(),
        )
    with pytest.raises(GateError):
        analyse.check(
            (results[0], changed(results[1], "VerificationFlag", "VERIFIED")),
            findings,
            source.headers,
            Reading(),
        )


def verified(octets: bytes) -> bytes:
    return changed(octets, "VerificationFlag", "VERIFIED")


def test_what_may_not_be_sent_is_kept_and_its_job_held_until_there_is_a_fix(
    ward: Ward,
    runner: RunnerProcess,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    job = ward.queue(ward.study("P1"))
    encoded = analyse.encoded

    def mistaken(job: Job, findings: Findings, *rest: object, **named: object) -> tuple[bytes, ...]:
        results = encoded(job, findings, *rest, **named)
        return (*results[:-1], verified(results[-1]))

    supervisor = Supervisor(settings=ward.settings, runner=runner, worker=ward.worker())
    with monkeypatch.context() as broken:
        broken.setattr(analyse, "encoded", mistaken)
        supervisor.work_once()
    held = ward.job(job)
    assert (held.state, held.held_by, held.error_stage) == ("held", "person", "check")
    assert "breaks the rule of status: VerificationFlag is VERIFIED" in held.error_sentence
    assert held.error_sentence.endswith(f"dicomai retry {job}")
    assert f"quarantine on {socket.gethostname()} (dicomai status there)" in held.error_sentence
    kept = quarantine.listing(ward.settings.folders.quarantine)
    assert len(kept) == 2
    assert all(each.reason in held.error_sentence for each in kept)
    assert all(each.at <= now() for each in kept)
    assert not ward.results(job)
    with writing(ward.engine) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM instances").scalar_one() == 6
        seen = overview.of_service(connection, ward.settings, now(), 10)
    assert any(f"Job {job} (bodies) is held: its results broke" in each for each in seen.remarks)
    # Nobody is kept waiting by it, and it does not come again by itself.
    other = ward.queue(ward.study("P2"))
    assert supervisor.work_once()
    assert not supervisor.work_once()
    assert (ward.job(other).state, ward.job(job).state) == ("done", "held")
    with writing(ward.engine) as connection:
        jobs.retry(connection, job, now())
    until(supervisor.work_once)
    assert ward.job(job).state == "done"
    assert len(ward.results(job)) == 2


def test_a_report_of_what_was_not_analysed_is_checked_and_kept_too(
    ward: Ward, runner: RunnerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = analyse.refusal

    def mistaken(*given: Any) -> analyse.Refusal:
        made = refusal(*given)
        return replace(made, report=verified(made.report))

    monkeypatch.setattr(analyse, "refusal", mistaken)
    monkeypatch.setattr(analyse, "load", _too_few)
    routes = (Route(name="all", model="bodies", objects=("SEG", "SR", "NOT-ANALYSED")),)
    settings = replace(ward.settings, routes=routes)
    job = ward.queue(ward.study("P1"))
    Supervisor(settings=settings, runner=runner, worker=ward.worker()).work_once()
    assert (ward.job(job).state, ward.job(job).held_by) == ("held", "person")
    assert len(quarantine.listing(ward.settings.folders.quarantine)) == 1


def _too_few(*_: object) -> None:
    raise InputError("Series 1.2.3 has only 2 slices.")
