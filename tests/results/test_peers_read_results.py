"""Other people's software reads the results, and finds no error in them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from dicomai.findings import Detection, Findings

ORIENTATIONS = ["axial", "coronal", "sagittal", "prone", "oblique"]
PIXELMED = Path("/usr/share/java/pixelmed.jar")
NOT_INFERRED = (
    '"+/-, range of measurement uncertainty"): Incorrect relationship - expected INFERRED FROM - '
    "found HAS PROPERTIES"
)


@pytest.fixture(scope="module")
def written(study: Any, xray: Any, found: Any, tmp_path_factory: Any) -> dict[str, Path]:
    """Results of every kind as files."""
    folder = tmp_path_factory.mktemp("results")
    verdict = replace(found.nothing(xray), classifications=(found.opacity(present=True),))
    regions = replace(found.everything(study), classifications=())
    refusal = replace(found.nothing(study), not_analysed="Slices are thicker than 5 mm.")
    sets = {
        "refusal": study.files(refusal, ("SR",)),
        "regions": study.files(_certain(regions)),
        "uncertain": study.files(regions),
        "everything": study.files(found.everything(study)),
        "nothing": study.files(found.nothing(study)),
        "box": xray.files(found.on_xray(xray)),
        "verdict": xray.files(verdict),
    }
    paths = {}
    for name, files in sets.items():
        for kind, raw in zip(("sr", "seg"), reversed(files), strict=False):
            paths[f"{name}-{kind}"] = folder / f"{name}-{kind}.dcm"
            paths[f"{name}-{kind}"].write_bytes(raw)
    return paths


def _certain(findings: Findings) -> Findings:
    """Return findings whose numbers don't say how uncertain they are."""

    def certain(found: Detection) -> Detection:
        numbers = tuple(replace(each, uncertainty=None) for each in found.measurements)
        return replace(found, measurements=numbers)

    return replace(findings, detections=tuple(map(certain, findings.detections)))


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(each) for each in command],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    return done.stdout + done.stderr


def test_dciodvfy_finds_no_error(peer: Callable[[str], str], written: dict[str, Path]) -> None:
    for name, path in written.items():
        said = _run(peer("dciodvfy"), "-new", path)
        errors = [line for line in said.splitlines() if line.startswith("Error")]
        assert not errors, (name, errors)
        assert ("Segmentation" if name.endswith("seg") else "Comprehensive3DSR") in said


def test_dsrdump_reads_every_report(peer: Callable[[str], str], written: dict[str, Path]) -> None:
    for name, path in written.items():
        if name.endswith("sr"):
            said = _run(peer("dsrdump"), "+Pl", path)
            assert "Verification Flag   : UNVERIFIED" in said
            assert "Not for diagnosis or therapy." in said
            assert "Not for: Not" not in said
            assert "E: " not in said, name


def _under_their_title(path: Path) -> Path:
    report = pydicom.dcmread(path)
    (title,) = report.ConceptNameCodeSequence
    title.CodeValue, title.CodingSchemeDesignator = "126000", "DCM"
    title.CodeMeaning = "Imaging Measurement Report"
    copy = path.with_suffix(".126000.dcm")
    report.save_as(copy)
    return copy


@pytest.mark.slow
def test_pixelmed_finds_no_error(peer: Callable[[str], str], written: dict[str, Path]) -> None:
    """Its rules know one template for all groups of a report, so each kind stands by itself.

    They know the titles of CID 7021 alone, though that may be extended, and check nothing of a
    report with another: what has ours is checked under theirs.
    """
    java = Path(peer("java")).resolve()
    if not PIXELMED.exists():
        pytest.skip("libpixelmed-java is not installed")
    names = ("regions-sr", "nothing-sr", "box-sr", "verdict-sr", "refusal-sr", "uncertain-sr")
    theirs = {name: _under_their_title(written[name]) for name in names}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("pixelmed_process.py")),
         *map(str, theirs.values())],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "JAVA_HOME": str(java.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])
    for name in names:
        said = reports[str(theirs[name])]
        assert "IOD validation complete" in said, name
        assert "Root Template Validation Complete" in said, name
        errors = [line for line in said.splitlines() if line.startswith("Error")]
        # TID 310 gives a number its range as a property. That is a number in a number, and its row
        # 13 of TID 1419 takes any such for one that the outer was inferred from.
        if name == "uncertain-sr":
            assert errors
            errors = [line for line in errors if not line.endswith(NOT_INFERRED)]
        assert not errors, name


def test_tid1500reader_reads_findings_numbers_and_references(
    peer: Callable[[str], str], study: Any, found: Any, written: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    said = _run(
        peer("tid1500reader"),
        "--inputDICOM",
        written["everything-sr"],
        "--outputMetadata",
        out,
    )
    assert out.exists(), said
    read = json.loads(out.read_text())
    assert (read["VerificationFlag"], read["SeriesNumber"]) == ("UNVERIFIED", "3002")
    groups = {each["TrackingIdentifier"]: each for each in read["Measurements"]}
    right = groups["right lung"]
    assert right["ReferencedSegment"] == 1
    assert right["Laterality"]["CodeMeaning"] == "Right"
    assert right["measurementItems"][0]["units"]["CodeValue"] == "mL"
    assert float(right["measurementItems"][0]["value"]) == 2310.4567
    assert right["measurementAlgorithmIdentification"]["AlgorithmVersion"] == "1.2.0"
    nodule = groups["nodule 1"]
    assert nodule["ReferencedSegment"] == 3
    assert float(nodule["measurementItems"][0]["value"]) == 90.0
    assert set(read["imageLibrary"]) == {each.SOPInstanceUID for each in study.headers}


def _nrrd(path: Path) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]:
    """Return the voxels, by (k, j, i) of the file, and the affine of (i, j, k) to LPS mm."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    said = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line[:24])
    assert (said["type"], said["encoding"], said["space"]) == (
        "short",
        "gzip",
        "left-posterior-superior",
    )
    sizes = [int(each) for each in said["sizes"].split()]
    voxels = np.frombuffer(gzip.decompress(body), "<i2").reshape(sizes[::-1])
    vectors = [
        [float(part) for part in each.strip("()").split(",")]
        for each in [*said["space directions"].split(), said["space origin"]]
    ]
    affine = np.eye(4)
    affine[:3] = np.array(vectors).T
    return voxels, affine


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_segimage2itkimage_reads_the_masks_voxel_for_voxel(
    peer: Callable[[str], str],
    study_lying: Any,
    found: Any,
    orientation: str,
    tmp_path: Path,
) -> None:
    lying = study_lying(orientation)
    findings = found.everything(lying)
    path = tmp_path / "seg.dcm"
    path.write_bytes(lying.files(findings)[0])
    _run(
        peer("segimage2itkimage"), "--inputDICOM", path, "--outputDirectory", tmp_path, "-t", "nrrd"
    )
    masks = [findings.segments[0].mask, findings.segments[1].mask, findings.detections[0].mask]
    for number, mask in enumerate(masks, 1):
        voxels, affine = _nrrd(tmp_path / f"{number}.nrrd")
        k, j, i = np.nonzero(voxels)
        theirs = np.column_stack([i, j, k, np.ones(len(i))]) @ affine.T
        ours = lying.grid.lps_mm(np.column_stack(np.nonzero(mask)))
        assert len(theirs) == len(ours)
        index = np.round(lying.grid.kji(theirs[:, :3])).astype(int)
        np.testing.assert_allclose(lying.grid.lps_mm(index), theirs[:, :3], atol=0.01)
        assert {tuple(each) for each in index} == {
            tuple(each) for each in np.column_stack(np.nonzero(mask))
        }


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_highdicom_reads_the_masks_voxel_for_voxel(
    study_lying: Any, found: Any, orientation: str, tmp_path: Path
) -> None:
    lying = study_lying(orientation)
    findings = found.everything(lying)
    path = tmp_path / "seg.dcm"
    path.write_bytes(lying.files(findings)[0])
    seg = hd.seg.segread(path)
    masks = [findings.segments[0].mask, findings.segments[1].mask, findings.detections[0].mask]
    read = seg.get_pixels_by_source_instance(
        [str(uid) for uid in lying.grid.sop_instance_uids],
        assert_missing_frames_are_empty=True,
    )
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(read[..., number].astype(bool), mask)
    volume = seg.get_volume(segment_numbers=[1], combine_segments=False)
    index = np.column_stack(np.nonzero(volume.array[..., 0]))
    theirs = np.column_stack([index, np.ones(len(index))]) @ volume.affine.T
    ours = lying.grid.lps_mm(np.column_stack(np.nonzero(masks[0])))
    apart = np.linalg.norm(theirs[:, None, :3] - ours[None], axis=2)
    assert apart.min(axis=0).max() < 0.01
    assert apart.min(axis=1).max() < 0.01
