"""`dicomai run` writes what the configuration knows of objects that don't say it themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from bodies import write_package, write_study
from pydicom.dataset import Dataset
from typer.testing import CliRunner, Result

from dicomai.cli.main import app

CONFIGURATION = """
[service]
data = "."
timezone = "Asia/Kolkata"

[[nodes]]
name = "CT1"
ae_title = "CT1"
host = "127.0.0.1"
port = 104
charset_default = "ISO_IR 100"
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study that says neither its zone nor its character set, and has a name beyond ASCII."""
    for path in write_study(tmp_path / "study", "Mueller"):
        image = pydicom.dcmread(path)
        image.PatientName = "Müller^Jörg"
        image.SpecificCharacterSet = "ISO_IR 100"
        image.save_as(path)
        raw = path.read_bytes()
        declared = bytes.fromhex("08000500") + b"CS\x0a\x00ISO_IR 100"
        assert declared in raw
        path.write_bytes(raw.replace(declared, b""))
    return tmp_path / "study"


def _run(tmp_path: Path, study: Path, *more: str) -> tuple[Result, list[Dataset]]:
    package = write_package(tmp_path / "models").folder
    out = tmp_path / "out"
    arguments = ["run", str(package), str(study), "--out", str(out), "--device", "cpu", "--json"]
    answer = CliRunner().invoke(app, [*arguments, *more])
    return answer, [pydicom.dcmread(path) for path in sorted(out.rglob("*.dcm"))]


def test_a_configuration_says_what_objects_do_not(tmp_path: Path, study: Path) -> None:
    configuration = tmp_path / "dicomai.toml"
    configuration.write_text(CONFIGURATION)
    answer, results = _run(tmp_path, study, "--config", str(configuration))
    assert answer.exit_code == 0, answer.output
    assert [each.Modality for each in results] == ["SEG", "SR"]
    for each in results:
        assert each.PatientName == "Müller^Jörg"
        assert each.TimezoneOffsetFromUTC == "+0530"
    assert "There is no configuration" not in answer.stderr


def test_without_a_configuration_the_zone_of_the_machine_counts_and_is_told(
    tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DICOMAI_CONFIG", raising=False)
    monkeypatch.setenv("TZ", "America/New_York")
    answer, results = _run(tmp_path, study)
    assert "machine's zone, America/New_York" in " ".join(answer.stderr.split())
    assert (answer.exit_code, results) == (1, [])  # nobody says what the name's bytes mean
    (outcome,) = json.loads(answer.stdout)
    assert "charset_default" in outcome["because"]
    for path in study.iterdir():
        image = pydicom.dcmread(path)
        image.PatientName = "Mueller^Joerg"
        image.save_as(path)
    out = tmp_path / "again"
    answer, results = _run(out, study)
    assert answer.exit_code == 0, answer.output
    assert {each.TimezoneOffsetFromUTC for each in results} == {"-0500"}
