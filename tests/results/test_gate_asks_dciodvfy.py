"""Where dciodvfy is installed, the gate asks it too, and hears what is the results' own fault."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomai.results.gate import GateError, check_with_dciodvfy

ALL = ("SEG", "SEG:LABELMAP", "SR", "SC", "KO", "PR", "PM", "RTSTRUCT", "PDF", "SR:TEXT")


def _changed(raw: bytes, change: Callable[[Dataset], None]) -> bytes:
    read = pydicom.dcmread(io.BytesIO(raw))
    change(read)
    out = io.BytesIO()
    read.save_as(out)
    return out.getvalue()


def _no_orientation(seg: Dataset) -> None:
    del seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence


def _an_age(seg: Dataset) -> None:
    seg.PatientAge = "060Y"
    seg["PatientAge"]._value = "60"  # as some modality writes it


def test_true_results_of_every_kind_pass(
    peer: Callable[[str], str], study: Any, found: Any
) -> None:
    results = study.files(found.everything(study), ALL)
    assert check_with_dciodvfy(results, peer("dciodvfy")) == ()


def test_an_object_that_takes_it_too_long_is_named_and_the_others_are_looked_at(
    study: Any, found: Any, tmp_path: Path
) -> None:
    seg, report = study.files(found.everything(study))
    slow = tmp_path / "dciodvfy"
    slow.write_text(
        "#!/bin/sh\n"
        "if [ -e \"$0.once\" ]; then echo 'Error - late' >&2; exit 1; fi\n"
        'touch "$0.once"; exec sleep 60\n'
    )
    slow.chmod(0o755)
    uid = pydicom.dcmread(io.BytesIO(seg)).SOPInstanceUID
    assert check_with_dciodvfy([seg], str(slow), 0.5) == (uid,)
    with pytest.raises(GateError, match="dciodvfy says: late"):
        check_with_dciodvfy([report], str(slow), 30)


def test_an_error_is_refused_with_its_words(
    peer: Callable[[str], str], study: Any, found: Any
) -> None:
    seg, report = study.files(found.everything(study))
    with pytest.raises(GateError, match=r"dciodvfy says: .*PatientOrientation") as refused:
        check_with_dciodvfy([_changed(seg, _no_orientation), report], peer("dciodvfy"))
    assert refused.value.rule == "attributes"


def test_a_fault_of_the_images_is_not_the_results(
    peer: Callable[[str], str], study: Any, found: Any
) -> None:
    seg, report = study.files(found.everything(study))
    check_with_dciodvfy([_changed(seg, _an_age), report], peer("dciodvfy"))


def test_dcentvfy_finds_that_all_results_are_of_one_patient_and_study(
    peer: Callable[[str], str], study: Any, found: Any, tmp_path: Path
) -> None:
    files = study.files(found.everything(study), ALL)
    paths = [tmp_path / f"{number}.dcm" for number in range(len(files))]
    for path, raw in zip(paths, files, strict=True):
        path.write_bytes(raw)
    said = subprocess.run(
        [peer("dcentvfy"), *paths], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Error" not in said.stdout + said.stderr


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_uids_of_the_images_are_repeated_as_they_are(
    peer: Callable[[str], str], study: Any, found: Any
) -> None:
    def zeros(seg: Dataset) -> None:
        seg.StudyInstanceUID, seg.FrameOfReferenceUID = "1.2.840.0123.5", "1.2.840.0123.5.09"

    seg, report = study.files(found.everything(study))
    assert check_with_dciodvfy([_changed(seg, zeros), report], peer("dciodvfy")) == ()
