"""Probabilities as Parametric Map, masks as contours, a page that sums up."""

from __future__ import annotations

import copy
import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from dicomai.findings import Findings
from dicomai.results.gate import GateError, check

ALL = ("SEG", "SR", "PM", "RTSTRUCT", "PDF")


def _read(raw: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(raw))


def _by_class(files: list[bytes]) -> dict[str, list[bytes]]:
    out: dict[str, list[bytes]] = {}
    for raw in files:
        out.setdefault(_read(raw).SOPClassUID.name, []).append(raw)
    return out


MAP = "Parametric Map Storage"
CONTOURS = "RT Structure Set Storage"
PAGE = "Encapsulated PDF Storage"


def likely(findings: Findings) -> Findings:
    """Return findings whose first two segments have probabilities."""
    rng = np.random.default_rng(5)
    return replace(
        findings,
        segments=tuple(
            replace(each, probability=rng.random(int(each.mask.sum()), np.float32))
            if each.mask.any()
            else each
            for each in findings.segments
        ),
    )


@pytest.fixture(scope="module", params=["axial", "oblique"])
def made(
    study_lying: Any, found: Any, request: Any
) -> tuple[Any, Findings, dict[str, list[bytes]]]:
    """A study, what was found in it, and its results by class."""
    study = study_lying(request.param)
    findings = likely(found.everything(study))
    files = study.files(findings, ALL)
    check(files, findings, study.headers, wanted=ALL)
    return study, findings, _by_class(files)


def test_a_map_has_the_probability_of_each_voxel_in_its_place(made: Any) -> None:
    study, findings, results = made
    assert len(results[MAP]) == 2
    for raw, segment in zip(results[MAP], findings.segments, strict=False):
        volume = hd.pm.ParametricMap.from_dataset(_read(raw)).get_volume()
        values = volume.array
        there = volume.affine @ np.array([2, 6, 8, 1])
        index = tuple(np.rint(study.grid.kji(there[:3])).astype(int))
        wanted = np.zeros(segment.mask.shape)
        wanted[segment.mask] = segment.probability
        assert values[2, 6, 8] == pytest.approx(wanted[index])
        assert np.sort(values.ravel()) == pytest.approx(np.sort(wanted.ravel()))


def test_paramap2itkimage_reads_a_map(
    peer: Callable[[str], str], made: Any, tmp_path: Path
) -> None:
    _, _, results = made
    (tmp_path / "map.dcm").write_bytes(results[MAP][0])
    subprocess.run(
        [peer("paramap2itkimage"), "--inputDICOM", tmp_path / "map.dcm", "--outputDirectory",
         tmp_path, "-t", "nrrd"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (tmp_path / "pmap.nrrd").stat().st_size > 0


def test_contours_enclose_the_voxels_of_each_mask_where_they_lie(made: Any) -> None:
    study, findings, results = made
    structures = _read(results[CONTOURS][0])
    assert [item.ROIName for item in structures.StructureSetROISequence] == [
        "Right lung",
        "Left lung",
        "Nodule",
    ]
    masks = [findings.segments[0].mask, findings.segments[1].mask, findings.detections[0].mask]
    for item, mask in zip(structures.ROIContourSequence, masks, strict=True):
        drawn = np.zeros(mask.shape, bool)
        for contour in item.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            kji = study.grid.kji(points)
            k = round(float(kji[0, 0]))
            np.testing.assert_allclose(kji[:, 0], k, atol=0.001)  # in the plane of its slice
            uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            assert uid == study.headers[k].SOPInstanceUID
            # Enlarged, so that the centres of pixels are well inside or outside.
            large = Image.new("1", (mask.shape[2] * 8, mask.shape[1] * 8))
            line = [((i + 0.5) * 8, (j + 0.5) * 8) for _, j, i in kji]
            ImageDraw.Draw(large).polygon(line, fill=1)
            drawn[k] ^= np.asarray(large)[4::8, 4::8]
        np.testing.assert_array_equal(drawn, mask)


def test_a_hole_is_reached_by_a_keyhole(made: Any) -> None:
    _, _, results = made
    structures = _read(results[CONTOURS][0])
    longest = max(
        (each for each in structures.ROIContourSequence[0].ContourSequence),
        key=lambda each: each.NumberOfContourPoints,
    )
    # Four corners, back to the first, four corners of the hole and its first again.
    assert longest.NumberOfContourPoints == 10
    assert longest.ContourGeometricType == "CLOSED_PLANAR"


def test_a_page_is_a_pdf_with_the_words_of_the_report_on_it(
    peer: Callable[[str], str], made: Any, tmp_path: Path
) -> None:
    _, _, results = made
    (tmp_path / "page.dcm").write_bytes(results[PAGE][0])
    subprocess.run(
        [peer("dcm2pdf"), tmp_path / "page.dcm", tmp_path / "page.pdf"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    octets = (tmp_path / "page.pdf").read_bytes()
    assert octets.startswith(b"%PDF-")
    assert octets.rstrip(b"\0\n").endswith(b"%%EOF")


def test_pages_and_contours_encoded_again_are_the_same_bytes(study: Any, found: Any) -> None:
    findings = likely(found.everything(study))
    assert study.made_anew(findings, ALL) == study.made_anew(findings, ALL)


def test_a_projection_has_a_page_and_no_contours(xray: Any, found: Any) -> None:
    files = xray.files(found.on_xray(xray), ALL)
    check(files, found.on_xray(xray), xray.headers, wanted=ALL)
    assert sorted(_by_class(files)) == ["Comprehensive 3D SR Storage", PAGE]


@pytest.mark.parametrize(
    ("modality", "said", "page", "picture"),
    [
        ("CR", None, "NO", "NO"),
        ("CR", "YES", "YES", "YES"),
        ("US", None, "YES", None),
        ("US", "NO", "NO", "NO"),
        ("XC", "YES", "YES", "YES"),
    ],
)
def test_a_page_and_a_picture_say_who_can_be_known_by_them(
    xray: Any, found: Any, modality: str, said: str | None, page: str, picture: str | None
) -> None:
    headers = copy.deepcopy(xray.headers)
    for each in headers:
        each.Modality = modality
        if said is not None:
            each.BurnedInAnnotation = each.RecognizableVisualFeatures = said
    source = replace(xray, headers=headers)
    files = source.made_anew(found.on_xray(source), ("SR", "SC", "PDF"))
    check(files, found.on_xray(source), headers, wanted=("SR", "SC", "PDF"))
    results = _by_class(files)
    assert _read(results[PAGE][0]).BurnedInAnnotation == page
    shown = _read(results["Secondary Capture Image Storage"][0])
    assert shown.get("RecognizableVisualFeatures") == picture


def test_a_page_that_hides_whom_it_names_is_refused(xray: Any, found: Any) -> None:
    files = xray.files(found.on_xray(xray), ("SR", "PDF"))
    headers = copy.deepcopy(xray.headers)
    headers[0].BurnedInAnnotation = "YES"
    with pytest.raises(GateError, match="the patient is burnt into what it shows"):
        check(files, found.on_xray(xray), headers, wanted=("SR", "PDF"))


def test_dciodvfy_finds_no_error(peer: Callable[[str], str], made: Any, tmp_path: Path) -> None:
    _, _, results = made
    for name, (raw, *_) in results.items():
        (tmp_path / "object.dcm").write_bytes(raw)
        command = [peer("dciodvfy"), "-new", tmp_path / "object.dcm"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        lines = said.stderr.splitlines()
        assert not [line for line in lines if line.startswith("Error")], (name, lines)


def _another_value(result: Dataset) -> None:
    values = np.frombuffer(result.FloatPixelData, np.float32).copy()
    values[100] += 0.01
    result.FloatPixelData = values.tobytes()


def _another_unit(result: Dataset) -> None:
    mapping = result.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    mapping.RealWorldValueSlope = 100.0


def _for_the_clinic(result: Dataset) -> None:
    result.ContentQualification = "PRODUCT"


def _another_place(result: Dataset) -> None:
    one, other = result.PerFrameFunctionalGroupsSequence[:2]
    one.PlanePositionSequence, other.PlanePositionSequence = (
        other.PlanePositionSequence,
        one.PlanePositionSequence,
    )


def _moved(result: Dataset) -> None:
    contour = result.ROIContourSequence[0].ContourSequence[0]
    data = [float(each) for each in contour.ContourData]
    data[0] += 0.1
    contour.ContourData = [f"{each:.3f}" for each in data]


def _without_a_contour(result: Dataset) -> None:
    del result.ROIContourSequence[0].ContourSequence[0]


def _on_another_slice(result: Dataset) -> None:
    one, other = result.ROIContourSequence[0].ContourSequence[:2]
    one.ContourImageSequence, other.ContourImageSequence = (
        other.ContourImageSequence,
        one.ContourImageSequence,
    )


def _approved(result: Dataset) -> None:
    result.ApprovalStatus = "APPROVED"


def _exchanged(result: Dataset) -> None:
    one, other = result.StructureSetROISequence[:2]
    one.ROIName, other.ROIName = other.ROIName, one.ROIName


def _by_hand(result: Dataset) -> None:
    result.StructureSetROISequence[0].ROIGenerationAlgorithm = "MANUAL"


def _cut(result: Dataset) -> None:
    result.EncapsulatedDocument = result.EncapsulatedDocument[:2000]
    result.EncapsulatedDocumentLength = 2000


def _verified(result: Dataset) -> None:
    result.VerificationFlag = "VERIFIED"


def _other_kind(result: Dataset) -> None:
    result.MIMETypeOfEncapsulatedDocument = "text/xml"


def _other_model(result: Dataset) -> None:
    result.DocumentTitle = "AI result, unverified"


@pytest.mark.parametrize(
    ("kind", "change", "rule"),
    [
        (MAP, _another_value, "geometry"),
        (MAP, _another_unit, "content"),
        (MAP, _for_the_clinic, "status"),
        (MAP, _another_place, "references"),
        (CONTOURS, _moved, "geometry"),
        (CONTOURS, _without_a_contour, "geometry"),
        (CONTOURS, _on_another_slice, "geometry"),
        (CONTOURS, _approved, "status"),
        (CONTOURS, _exchanged, "content"),
        (CONTOURS, _by_hand, "provenance"),
        (PAGE, _cut, "readable"),
        (PAGE, _verified, "status"),
        (PAGE, _other_kind, "attributes"),
        (PAGE, _other_model, "provenance"),
    ],
)
def test_a_changed_object_is_refused(
    made: Any, kind: str, change: Callable[[Dataset], None], rule: str
) -> None:
    study, findings, results = made
    broken = _read(results[kind][0])
    change(broken)
    out = io.BytesIO()
    broken.save_as(out)
    files = [raw for raws in results.values() for raw in raws if raw is not results[kind][0]]
    with pytest.raises(GateError) as refused:
        check([*files, out.getvalue()], findings, study.headers, wanted=ALL)
    assert refused.value.rule == rule, refused.value
