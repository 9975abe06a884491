"""`dicomai phantom` writes DICOM that others can read."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Dicomai


@pytest.mark.slow
def test_an_x_ray_stands_in_the_folder_with_its_truth(
    dicomai: Dicomai, tmp_path: Path, peer: Callable[[str], str]
) -> None:
    answer = dicomai("phantom", "xray", tmp_path / "x", "--seed", "3")
    assert answer.code == 0
    assert "truth-xray.json" in answer.out
    assert json.loads((tmp_path / "x" / "truth-xray.json").read_text())
    (image,) = (tmp_path / "x").glob("*.dcm")
    shown = subprocess.run(
        [peer("dcmdump"), str(image)], capture_output=True, text=True, check=True
    )
    assert "DigitalXRayImageStorageForPresentation" in shown.stdout
