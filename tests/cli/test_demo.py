"""The demonstration: a real service, a stand-in PACS, and what comes back, checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from dicomai.cli.demo_studies import make_phantoms
from dicomai.phantom.chest import ChestPhantom
from dicomai.phantom.shell import Shell
from dicomai.phantom.xray import chest_exposure, write_xray
from tests.cli.conftest import Dicomai


@pytest.mark.slow
def test_what_the_phantoms_hold_is_told_beside_what_was_found(tmp_path: Path) -> None:
    told = make_phantoms(tmp_path)
    assert told.startswith("The truth: right lung 3,757 mL, left lung 3,219 mL, and nodules of 12 ")
    assert "12 mm (left) and 17 mm (right) in the CT and the X-ray." in told
    xray = json.loads((tmp_path / "xray" / "truth-xray.json").read_text())
    shown = {(each["diameter_mm"], each["side"]) for each in xray["nodules"]}
    assert shown == {(12.0, "left"), (17.0, "right")}


@pytest.mark.slow
def test_a_folder_of_one_s_own_gets_results_or_a_sentence(tmp_path: Path) -> None:
    own = tmp_path / "own"
    phantom = ChestPhantom(4, vessels=20)
    exposure = chest_exposure(phantom, rows=320)
    image = write_xray(own / "xray", phantom=phantom, exposure=exposure, shell=Shell())
    scout = pydicom.dcmread(image.file)
    scout.SeriesInstanceUID, scout.SOPInstanceUID = "2.25.71", "2.25.72"
    scout.file_meta.MediaStorageSOPInstanceUID = "2.25.72"
    scout.SeriesDescription, scout.Modality, scout.StudyInstanceUID = "photo", "XC", "2.25.73"
    scout.save_as(own / "photo.dcm")
    (own / "broken.dcm").write_bytes(image.file.read_bytes()[:5000])
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "dicomai", "demo", str(own), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = (pydicom.dcmread(each) for each in (out / "pacs").glob("*.dcm"))
    assert (report.Modality, report.StudyInstanceUID) == ("SR", image.study_instance_uid)
    assert list((out / "pictures").rglob("*.png"))
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "chest-xray-nodule" in done.stdout
    assert "truncated" in lines["broken.dcm"]
    assert "Modality in DX, CR" in done.stdout  # why the photo has no result
    assert "listens on port" in done.stderr
    serving = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, check=False)
    assert serving.stdout == b""


def test_it_writes_into_no_folder_that_holds_something_else(
    dicomai: Dicomai, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    answer = dicomai("demo", "--out", tmp_path / "mine")
    assert answer.code == 1
    assert "is not empty" in answer.err
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_folder_without_dicom_is_a_sentence(dicomai: Dicomai, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = dicomai("demo", tmp_path / "empty", "--out", tmp_path / "out")
    assert answer.code == 1
    assert answer.err == f"dicomai: There is no DICOM in {tmp_path / 'empty'}.\n"
