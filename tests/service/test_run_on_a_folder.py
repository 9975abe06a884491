"""`dicomai run`: what it writes, what it takes away, and what it says where it can't.

It writes what the configuration knows of objects that don't say it themselves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pydicom
import pytest
from bodies import write_package, write_study
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from dicomai.cli.main import app
from dicomai.phantom import ChestPhantom, chest_exposure, write_xray
from dicomai.results.objects import KINDS
from dicomai.routing.route import RESULT_OBJECTS

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


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A study with nothing odd about it."""
    write_study(tmp_path / "plain", "P1")
    return tmp_path / "plain"


def _again(package: Path, study: Path, out: Path, *more: str) -> Result:
    arguments = ["run", str(package), str(study), "--out", str(out), "--device", "cpu", *more]
    return CliRunner().invoke(app, arguments)


def _blinded(package: Path) -> None:
    """Make a package find nothing."""
    weights = load_file(package / "weights.safetensors")
    weights["last.bias"] -= 100
    save_file(weights, package / "weights.safetensors")


def _names(out: Path) -> set[str]:
    return {path.name for path in out.rglob("*") if path.is_file()}


ALL = ",".join(each for each in RESULT_OBJECTS if not each.startswith("SEG:"))
FORMS = f"{ALL},SEG:LABELMAP"


def test_a_result_takes_the_place_of_the_one_before(tmp_path: Path, plain: Path) -> None:
    package, out = write_package(tmp_path / "models").folder, tmp_path / "out"
    assert _again(package, plain, out, "--objects", FORMS).exit_code == 0
    kinds = {f"bodies-{each.lower().replace(':', '-')}" for each in KINDS}
    before = _names(out)
    assert {name for name in kinds if not any(each.startswith(name) for each in before)} == set()
    _blinded(package)
    assert _again(package, plain, out).exit_code == 0
    (report,) = [pydicom.dcmread(path) for path in out.rglob("*.dcm")]
    assert report.Modality == "SR"
    fresh = tmp_path / "fresh"
    _again(package, plain, fresh)
    assert _names(out) == _names(fresh)


def test_what_is_not_of_this_model_stays(tmp_path: Path, plain: Path) -> None:
    package = write_package(tmp_path / "models").folder
    other = write_package(tmp_path / "models", "bodies-seg").folder
    out = tmp_path / "out"
    assert _again(other, plain, out).exit_code == 0
    (place,) = out.iterdir()
    of_others = {path: path.read_bytes() for path in place.iterdir()}
    assert {path.suffix for path in of_others} == {".dcm", ".png"}
    for name in ("notes.txt", "bodies-seg.txt", "bodies-mine.dcm", "old-bodies-seg.dcm"):
        (place / name).write_text("mine")
        of_others[place / name] = b"mine"
    elsewhere = out / "1.2.3" / "bodies-seg.dcm"  # of a series that is not looked at now
    elsewhere.parent.mkdir()
    elsewhere.write_text("other series")
    for _ in range(2):
        assert _again(package, plain, out).exit_code == 0
    assert {path: path.read_bytes() for path in of_others} == of_others
    assert elsewhere.exists()


def test_a_series_that_is_refused_now_keeps_no_earlier_result(tmp_path: Path, plain: Path) -> None:
    package, out = write_package(tmp_path / "models").folder, tmp_path / "out"
    assert _again(package, plain, out).exit_code == 0
    sorted(plain.iterdir())[3].unlink()  # a gap
    assert _again(package, plain, out).exit_code == 1
    assert _names(out) == set()


def test_a_series_that_is_left_out_now_keeps_no_earlier_result(tmp_path: Path, plain: Path) -> None:
    package, out = write_package(tmp_path / "models").folder, tmp_path / "out"
    assert _again(package, plain, out).exit_code == 0
    _derive(plain)
    assert _again(package, plain, out).exit_code == 1
    assert _names(out) == set()


def test_a_device_that_is_not_there_costs_no_earlier_result(tmp_path: Path, plain: Path) -> None:
    package, out = write_package(tmp_path / "models").folder, tmp_path / "out"
    assert _again(package, plain, out).exit_code == 0
    before = _names(out)
    answer = _again(package, plain, out, "--device", "cuda:9")
    assert answer.exit_code == 3
    assert "cuda:9 is not there" in answer.stderr
    assert "--device" in answer.stderr
    assert _names(out) == before


def test_a_series_that_fails_midway_has_no_part_of_a_result_and_the_others_are_told(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dicomai.results.overlay import overlays

    package, out = write_package(tmp_path / "models").folder, tmp_path / "out"
    for number in (2, 3):
        write_study(plain / str(number), f"P{number}")
    assert _again(package, plain, out).exit_code == 0

    def third_breaks(findings: object, image: object, folder: Path) -> list[Path]:
        if len(drawn) == 1:
            drawn.append(folder)
            raise ZeroDivisionError("secret")
        drawn.append(folder)
        return overlays(findings, image, folder)  # type: ignore[arg-type]  # passed on

    drawn: list[Path] = []
    monkeypatch.setattr("dicomai.service.folder.overlays", third_breaks)
    answer = _again(package, plain, out, "--json")
    assert answer.exit_code == 1
    told = json.loads(answer.stdout)
    assert [each["failed"] for each in told] == [False, True, False]
    assert [bool(each["objects"]) for each in told] == [True, False, True]
    assert "defect of dicomai" in told[1]["because"]
    Path(next(w for w in told[1]["because"].split() if "dicomai-error-" in w).rstrip(";")).unlink()
    assert _names(drawn[1]) == set()
    assert all(len(_names(place)) == 4 for place in (drawn[0], drawn[2]))


def test_a_disk_that_fills_leaves_no_half_a_result(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, out = write_package(tmp_path / "models").folder, tmp_path / "out"
    write = Path.write_bytes

    def full(path: Path, octets: bytes) -> int:
        if path.name.endswith("sr.dcm"):
            write(path, octets[:100])
            raise OSError(28, "No space left on device")  # as `write` says it, without the file
        return write(path, octets)

    monkeypatch.setattr(Path, "write_bytes", full)
    answer = _again(package, plain, out)
    assert answer.exit_code == 1
    assert re.search(rf"{re.escape(str(out))}/[0-9.]+: no space left on device", answer.stdout)
    assert _names(out) == set()


def test_what_else_the_system_says_is_kept_and_not_laid_to_the_folder_of_results(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, out = write_package(tmp_path / "models").folder, tmp_path / "out"

    def odd(*_: object) -> int:
        raise OSError("No such thing")

    monkeypatch.setattr(Path, "write_bytes", odd)
    (told,) = json.loads(_again(package, plain, out, "--json").stdout)
    assert told["because"] == "no such thing."


def _derive(study: Path) -> None:
    for path in study.iterdir():
        image = pydicom.dcmread(path)
        image.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
        image.save_as(path)


def test_derived_images_are_taken_where_it_is_said(tmp_path: Path, plain: Path) -> None:
    _derive(plain)
    package, out = write_package(tmp_path / "models").folder, tmp_path / "out"
    answer = _again(package, plain, out, "--json")
    assert answer.exit_code == 1
    (outcome,) = json.loads(answer.stdout)
    assert outcome["because"] == ("Left out: derived from other images; --allow derived takes it.")
    assert outcome["failed"] is False
    answer = _again(package, plain, out, "--allow", "Derived, localizer")
    assert answer.exit_code == 0, answer.output
    assert len(list(out.rglob("*.dcm"))) == 2


def test_images_that_are_left_out_beside_others_are_told(tmp_path: Path, plain: Path) -> None:
    last = max(plain.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    image = pydicom.dcmread(last)
    image.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    image.save_as(last)
    answer, results = _run(tmp_path, plain)
    (outcome,) = json.loads(answer.stdout)
    told = r" 1 of \d+ objects of .* left out: derived from other"
    assert re.search(told, outcome["found"])
    (report,) = (each for each in results if each.Modality == "SR")
    assert re.search(f"Warning:{told}", report.to_json())


def _two_views(folder: Path, first: str, second: str) -> Path:
    """Write a series of two chest X-rays, and return the file of the first."""
    patient = ChestPhantom(2, nodule_diameters_mm=())
    file = write_xray(folder, phantom=patient, exposure=chest_exposure(patient, rows=64)).file
    image = pydicom.dcmread(file)
    image.ViewPosition = first
    image.save_as(file)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "2.25.77"
    image.ViewPosition, image.InstanceNumber = second, 2
    image.save_as(file.with_name("second.dcm"))
    return file


def _chest_xray(tmp_path: Path, study: Path) -> tuple[Result, dict[str, Any]]:
    arguments = ["run", "chest-xray-nodule", str(study), "--out", str(tmp_path / "out"), "--json"]
    answer = CliRunner().invoke(app, arguments)
    (outcome,) = json.loads(answer.stdout)
    return answer, outcome


@pytest.mark.parametrize(("view", "told"), [("PA", "found"), ("LL", "because")])
def test_images_of_a_series_of_which_a_model_takes_one_are_told(
    tmp_path: Path, view: str, told: str
) -> None:
    first = _two_views(tmp_path / "study", view, view)
    answer, outcome = _chest_xray(tmp_path, first.parent)
    assert answer.exit_code == (1 if told == "because" else 0)
    assert outcome[told].endswith(
        f" Of the 2 images of the series only {first.name} was looked at, as the model takes one. "
        "For another give its file as PATH, with an --out of its own."
    )


@pytest.mark.parametrize("by_code", [False, True])
def test_a_frontal_chest_goes_before_a_lateral_one(tmp_path: Path, by_code: bool) -> None:
    first = _two_views(tmp_path / "study", "LL", "PA")
    if by_code:
        for file, code in ((first, "399173006"), (first.with_name("second.dcm"), "272479007")):
            image = pydicom.dcmread(file)
            del image.ViewPosition
            image.ViewCodeSequence[0].CodeValue = code  # left lateral, postero-anterior
            image.save_as(file)
    answer, outcome = _chest_xray(tmp_path, first.parent)
    assert answer.exit_code == 0, outcome
    assert "only second.dcm was looked at" in outcome["found"]


@pytest.mark.parametrize("option", ["--allow", "--objects"])
def test_a_word_that_no_option_knows_is_named(tmp_path: Path, plain: Path, option: str) -> None:
    package = write_package(tmp_path / "models").folder
    answer = _again(package, plain, tmp_path / "out", option, "derivd")
    assert answer.exit_code == 2
    assert "derivd" in answer.stderr


def test_a_result_that_goes_nowhere_is_told_before_anything_is_analysed(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr("dicomai.service.folder.read_folder", read)
    package = write_package(tmp_path / "models").folder
    file = tmp_path / "file"
    file.write_text("")
    assert _again(package, plain, file).exit_code == 2
    answer = _again(package, plain, file / "below")
    assert answer.exit_code == 1
    assert "not a directory" in answer.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("run", "chest-ct-lungs", "/nonexist", "--out", "out"),
        ("run", "/nonexist", ".", "--out", "out"),
        ("route", "test", "/nonexist"),
        ("send", "PACS1", "/nonexist"),
        ("demo", "/nonexist"),
    ],
)
def test_what_does_not_exist_is_4(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DICOMAI_CONFIG", raising=False)
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 4, answer.output
    assert "/nonexist" in answer.stderr


def test_an_object_that_is_there_with_two_contents_is_refused(tmp_path: Path, plain: Path) -> None:
    """Else the names of the files decide which one is looked at."""
    file = sorted(plain.iterdir())[2]
    shutil.copy(file, plain / "again.dcm")
    assert _run(tmp_path, plain)[0].exit_code == 0
    other = pydicom.dcmread(file)
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(plain / "other.dcm")
    (tmp_path / "new").mkdir()
    answer, results = _run(tmp_path / "new", plain)
    assert (answer.exit_code, results) == (1, [])
    assert "are the same object and differ. Leave the right one in the folder." in answer.output


def test_threads_of_a_network_spin_briefly_and_sleep(tmp_path: Path, plain: Path) -> None:
    package = write_package(tmp_path / "models").folder
    arguments = ["run", str(package), str(plain), "--out", str(tmp_path / "out"), "--device", "cpu"]
    answer = subprocess.run(
        [sys.executable, "-c", "from dicomai.cli.main import main; main()", *arguments],
        env=os.environ | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in answer.stderr
    assert "GOMP_SPINCOUNT = '5000'" in answer.stderr


def test_an_image_with_a_birth_date_that_is_none_is_of_the_same_patient(
    tmp_path: Path, plain: Path
) -> None:
    file = sorted(plain.iterdir())[2]
    image = pydicom.dcmread(file)
    with config.disable_value_validation():
        image.PatientBirthDate = "00000000"
        image.save_as(file)
    answer, results = _run(tmp_path, plain)
    assert answer.exit_code == 0, answer.output
    assert len(results) == 2


def test_ids_that_stand_for_none_are_one_patients_where_name_birth_date_and_sex_agree(
    tmp_path: Path, plain: Path
) -> None:
    for number, file in enumerate(sorted(plain.iterdir())):
        image = pydicom.dcmread(file)
        image.PatientID = ("", "0", "UNKNOWN")[number % 3]
        if image.PatientID:
            image.IssuerOfPatientID = image.PatientID
        image.save_as(file)
    answer, results = _run(tmp_path, plain)
    assert answer.exit_code == 0, answer.output
    assert len(results) == 2
    image.PatientName = "Other^Person"
    image.save_as(file)
    (tmp_path / "again").mkdir()
    answer, _ = _run(tmp_path / "again", plain)
    assert answer.exit_code == 1
    (outcome,) = json.loads(answer.stdout)
    assert "name no Patient ID, and not the same name, birth date and sex" in outcome["because"]


@pytest.mark.parametrize(("vr", "value"), [("US", 49), ("OB", b"P1")])
def test_an_id_that_is_no_text_is_named_before_anything_is_analysed(
    tmp_path: Path, plain: Path, vr: str, value: object
) -> None:
    file = sorted(plain.iterdir())[2]
    image = pydicom.dcmread(file)
    image["PatientID"] = DataElement(Tag("PatientID"), vr, value)
    image.save_as(file)
    answer, _ = _run(tmp_path, plain)
    assert answer.exit_code == 1
    (outcome,) = json.loads(answer.stdout)
    assert f"{image.SOPInstanceUID} gives its Patient ID as {vr}" in outcome["because"]
