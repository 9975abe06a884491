"""OHIF over Orthanc, in a real browser: what it shows lies where the phantom put it.

`DICOMAI_TEST_PICTURES=FOLDER` keeps the pictures of the screen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image

from dicomai.dicom.codes import LEFT, MILLILITRE, MILLIMETRE, RIGHT, Code
from dicomai.dicom.dates import Instant
from dicomai.findings import (
    Algorithm,
    Detection,
    Findings,
    Measurement,
    Segment,
    SourceImage,
    Sphere,
)
from dicomai.imaging.geometry import Grid
from dicomai.phantom.chest import ChestPhantom, Truth
from dicomai.phantom.ct import chest_scan, write_ct
from dicomai.results import gate
from dicomai.results.context import ResultContext
from dicomai.results.encode import encode, written

ROOT = Path(__file__).resolve().parents[2]
RED, BLUE = (230, 60, 60), (60, 120, 230)
LUNG = Code("39607008", "SCT", "Lung")
ALGORITHM = Algorithm(
    name="phantom-chest",
    version="1.0",
    package_sha256="0f" * 32,
    manufacturer="dicomai",
    intended_use="Shows what a viewer does with results.",
    not_for="Not for patients.",
    family=Code("123110", "DCM", "Artificial Intelligence"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the browser had on its screen, and the phantom that it should be."""

    screen: dict[str, Any]
    pictures: Path
    truth: Truth
    findings: Findings


@pytest.fixture(scope="session")
def ohif() -> Path:
    """The built pages of OHIF, or a skip that says how to get them."""
    dist = Path(os.environ.get("DICOMAI_TEST_OHIF", ROOT / ".ohif" / "package" / "dist"))
    if not (dist / "index.html").exists():
        pytest.skip(f"OHIF is not in {dist}: make ohif")
    return dist


def _found(folder: Path) -> tuple[Findings, Truth, list[Path]]:
    """Return a chest CT with its lungs and two nodules: one with a mask, one a ball alone."""
    phantom = ChestPhantom(3, nodule_diameters_mm=[14.0, 9.0], vessels=40)
    scan = chest_scan(phantom, matrix=192, slice_spacing_mm=8.0)
    ct = write_ct(folder, 3, phantom=phantom, scan=scan)
    truth = phantom.truth(scan.index_to_lps, scan.shape_kji)
    headers = [pydicom.dcmread(each, stop_before_pixels=True) for each in ct.files]
    millilitres = abs(float(np.linalg.det(scan.index_to_lps[:3, :3]))) / 1000
    segments = tuple(
        Segment(
            label=label,
            tracking_id=label.lower(),
            category=Code("91723000", "SCT", "Anatomical Structure"),
            type=LUNG,
            laterality=side,
            mask=mask,
            display_rgb=colour,
            measurements=(
                Measurement(
                    name=Code("118565006", "SCT", "Volume"),
                    value=float(mask.sum() * millilitres),
                    unit=MILLILITRE,
                ),
            ),
        )
        for label, side, mask, colour in (
            ("Right lung", RIGHT, truth.right_lung, RED),
            ("Left lung", LEFT, truth.left_lung, BLUE),
        )
    )
    detections = tuple(
        Detection(
            label=f"Nodule {number}",
            tracking_id=f"nodule {number}",
            finding=Code("427359005", "SCT", "Solitary nodule of lung"),
            site=LUNG,
            region=Sphere(centre_lps_mm=nodule.centre_lps_mm, diameter_mm=nodule.diameter_mm),
            probability=0.9,
            measurements=(
                Measurement(
                    name=Code("81827009", "SCT", "Diameter"),
                    value=nodule.diameter_mm,
                    unit=MILLIMETRE,
                ),
            ),
            mask=truth.nodules[0] if number == 1 else None,
        )
        for number, nodule in enumerate(phantom.nodules, start=1)
    )
    findings = Findings(
        algorithm=ALGORITHM,
        where=Grid(
            shape_kji=scan.shape_kji,
            index_to_lps=scan.index_to_lps,
            frame_of_reference_uid=ct.frame_of_reference_uid,
            sop_instance_uids=tuple(str(each.SOPInstanceUID) for each in headers),
        ),
        inputs=tuple(
            SourceImage(
                study_instance_uid=str(each.StudyInstanceUID),
                series_instance_uid=str(each.SeriesInstanceUID),
                sop_class_uid=str(each.SOPClassUID),
                sop_instance_uid=str(each.SOPInstanceUID),
            )
            for each in headers
        ),
        sought="lungs, and nodules of 4 mm or more",
        segments=segments,
        detections=detections,
    )
    return findings, truth, list(ct.files)


def _results(findings: Findings, files: list[Path]) -> list[bytes]:
    """Return SEG and SR of the findings, and the report of another model that found nothing."""
    headers = [pydicom.dcmread(each, stop_before_pixels=True) for each in files]
    context = ResultContext(
        created_at=Instant(1_784_628_000_123_456),
        software_version="0.1.0",
        timezone="Europe/Berlin",
    )
    nothing = replace(
        findings,
        algorithm=replace(ALGORITHM, name="phantom-nothing"),
        segments=(),
        detections=(),
    )
    out = []
    for each in (findings, nothing):
        made = [written(one) for one in encode(each, headers, uuid.uuid4(), context)]
        gate.check(made, each, headers)
        out += made
    return out


@pytest.fixture
def shown(peer: Callable[[str], str], orthanc: Any, ohif: Path, tmp_path: Path) -> Shown:
    """Have a phantom with its results in Orthanc, and look at it with OHIF."""
    chromium = peer("chromium")
    findings, truth, files = _found(tmp_path / "ct")
    address = f"http://127.0.0.1:{orthanc.http_port}"
    with urllib.request.urlopen(f"{address}/plugins") as answer:
        if "dicom-web" not in json.load(answer):
            pytest.skip("Orthanc has no DICOMweb: apt install orthanc-dicomweb")
    for raw in [*(each.read_bytes() for each in files), *_results(findings, files)]:
        urllib.request.urlopen(f"{address}/instances", data=raw).close()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ohif_process.py")), str(ohif),
         str(orthanc.http_port), findings.inputs[0].study_instance_uid, str(pictures), chromium],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if kept := os.environ.get("DICOMAI_TEST_PICTURES"):
        for picture in pictures.glob("ohif-*.png"):
            shutil.copy(picture, kept)
    assert done.returncode == 0, done.stderr
    return Shown(screen=json.loads(done.stdout), pictures=pictures, truth=truth, findings=findings)


def _on_canvas(
    xy: npt.NDArray[np.float64], canvas: list[float], side: int
) -> npt.NDArray[np.float64]:
    """Return where columns and rows of a square image lie on the canvas that it is fitted into."""
    size = np.array(canvas[2:])
    scale = size.min() / side
    return np.asarray(xy * scale + (size - side * scale) / 2)


def _k(corner: str) -> int:
    """Return the slice: "I:23 (20/42)" is instance number 23, the first one is number 1."""
    return int(corner.removeprefix("I:").split()[0]) - 1


@pytest.mark.slow
@pytest.mark.timeout(400)  # drawn without a graphics card, beside other tests
def test_a_study_shows_its_segments_and_measurements_where_they_are(shown: Shown) -> None:
    _segments_lie_on_the_lungs(shown)
    _measurements_are_listed_and_point_at_their_findings(shown)
    assert shown.screen["series"][0].startswith("CT\n")
    text = shown.screen["text"]
    assert "Conclusion: AI result, not for primary diagnosis: nothing found" in text
    assert shown.screen["isolated"] is True


def _segments_lie_on_the_lungs(shown: Shown) -> None:
    seen, truth = shown.screen["seg"], shown.truth
    assert [each.split("\n")[-1] for each in seen["segments"]] == [
        "Right lung",
        "Left lung",
        "Nodule 1",
    ]
    k = _k(seen["slice"])
    assert truth.left_lung[k].any()
    assert seen["sides"] == ["A", "R"]  # above and on the left
    drawn, plain = (
        np.asarray(Image.open(shown.pictures / f"{name}.png").convert("RGB"), dtype=np.int16)
        for name in ("ohif-seg", "plain")
    )
    added = drawn - plain
    side = truth.left_lung.shape[1]
    rows, columns = np.indices((side, side))
    centres = np.stack([columns.ravel(), rows.ravel()], axis=-1) + 0.5
    places = _on_canvas(centres, seen["canvas"], side) + seen["canvas"][:2]
    x, y = np.floor(places).astype(int).T
    reddish = (added[..., 0] - added[..., 2])[y, x].reshape(side, side)
    # The lung on the patient's right is red and the one on the left is blue, pixel for pixel.
    nodule = truth.nodules[0][k]
    right, left = (each[k] & ~nodule for each in (truth.right_lung, truth.left_lung))
    assert right.any()
    assert ((reddish > 20) == right)[~nodule].mean() > 0.998
    assert ((reddish < -20) == left)[~nodule].mean() > 0.998


def _measurements_are_listed_and_point_at_their_findings(shown: Shown) -> None:
    findings, side = shown.findings, shown.truth.left_lung.shape[1]
    right, left = (f"Volume: {each.measurements[0].value:.2f} mL" for each in findings.segments)
    seen = shown.screen["measurements"]
    assert [each["lines"][:-1] for each in seen] == [
        [right],
        [left],
        ["Certainty of Finding: 90.00 %", "Diameter: 14.00 mm"],
        ["Certainty of Finding: 90.00 %", "Diameter: 9.00 mm"],
    ]
    truth = shown.truth
    masks = (truth.right_lung, truth.left_lung, *truth.nodules)
    for each, mask in zip(seen, masks, strict=True):
        corner, next_one = _on_canvas(np.array([[0.0, 0.0], [1.0, 1.0]]), each["canvas"], side)
        column, row = np.floor((np.array(each["tip"]) - corner) / (next_one - corner)).astype(int)
        assert mask[_k(each["slice"]), row, column], each
