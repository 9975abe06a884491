"""A body that is a function of place, through every form of series, to the bytes of its SEG.

Load, resample, threshold, take back, encode: read by the standard's formula, each voxel of the SEG
lies in the body, or no further from its surface than half a voxel.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import Dataset
from scipy.spatial.transform import Rotation

from dicomai.dicom.codes import Code
from dicomai.dicom.dates import Instant
from dicomai.findings import Algorithm, Findings, Segment
from dicomai.imaging.intake import Intake
from dicomai.imaging.resample import resampling
from dicomai.imaging.volume import SourceVolume, volume_of
from dicomai.inference.inputs import inputs_of
from dicomai.inference.postprocess import Choice, regions
from dicomai.results import gate
from dicomai.results.context import ResultContext
from dicomai.results.encode import encode, written

Maker = Callable[..., list[Dataset]]
Enhanced = Callable[..., Dataset]
Vector = npt.NDArray[np.float64]

TISSUE = Code("85756007", "SCT", "Tissue")
ASKEW = Rotation.from_euler("zyx", (25, -17, 8), degrees=True).as_matrix()
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "axial feet first": ((-1, 0, 0), (0, 1, 0)),
    "axial prone": ((-1, 0, 0), (0, -1, 0)),
    "axial decubitus": ((0, 1, 0), (-1, 0, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "double oblique": (tuple(ASKEW[:, 0]), tuple(ASKEW[:, 1])),
}
SHAPE, SPACING = (14, 24, 28), (2.5, 1.3, 1.2)
FORMS = ("classic", "enhanced", "tilted", "uneven", "enhanced tilted and uneven")
UNEVEN = (0.0, 1.0, 2.0, 2.6, 3.4, 4.4, 5.4, 6.4, 7.4, 9.0, 10.0, 11.0, 12.0, 13.0)


def outside_mm(lps: Vector, centre: Vector) -> Vector:
    """How far a point lies outside the body, below 0 inside: a ball, and a smaller one at its left,
    in front and towards the head, so that no turned or mirrored body is the same."""
    large = np.linalg.norm(lps - centre, axis=-1) - 8.0
    small = np.linalg.norm(lps - centre - (6.0, -4.0, 5.0), axis=-1) - 4.0
    return np.minimum(large, small)


def made(
    form: str, orientation: str, make_series: Maker, make_enhanced: Enhanced
) -> tuple[list[Dataset], Vector]:
    """A series with the body in its middle, and where that is."""
    row, column = (np.array(each, dtype=float) for each in ORIENTATIONS[orientation])
    tilt = (0.9, -0.2) if "tilted" in form else (0.0, 0.0)
    steps = UNEVEN if "uneven" in form else None
    centre = np.array([12.0, -34.0, 250.0])
    middle = (
        np.cross(row, column) * SPACING[0] * 6.5
        + column * (SPACING[1] * 11.5 + tilt[0] * 6.5)
        + row * (SPACING[2] * 13.5 + tilt[1] * 6.5)
    )
    slices = make_series(
        # 60 within, 0 without, and linear around the surface, as a scanner blurs it.
        lambda lps: np.clip(30 - 15 * outside_mm(lps, centre), 0, 60),
        row=row,
        column=column,
        first=centre - middle,
        spacing_kji=SPACING,
        shape_kji=SHAPE,
        order=tuple(np.random.default_rng(5).permutation(SHAPE[0])),
        tilt_ji_mm=tilt,
        steps=steps,
    )
    series = [make_enhanced(slices)] if "enhanced" in form else slices
    for each in series:
        each.PatientName, each.PatientID, each.PatientSex = "PHANTOM^BODY", "P1", "O"
        each.PatientBirthDate, each.StudyDate, each.StudyTime = "19700101", "20260301", "080000"
        each.StudyID, each.AccessionNumber, each.ReferringPhysicianName = "1", "A1", ""
        each.SeriesNumber, each.BodyPartExamined, each.Manufacturer = 1, "CHEST", "ACME"
        each.SliceThickness = SPACING[0]
    return series, centre


def found(volume: SourceVolume, axes: str, spacing_mm: tuple[float, float, float]) -> Findings:
    """What a model finds that says of each voxel how much of the body it holds."""
    way = resampling(volume.grid, axes, spacing_mm)
    probabilities = way.to_model(volume.voxels)[None] / 60
    choice = Choice(0, 0.5)
    region = regions(probabilities, way, [choice], argmax=False)[choice]
    assert region is not None
    return Findings(
        algorithm=Algorithm(
            name="echo",
            version="1.0.0",
            package_sha256="a" * 64,
            manufacturer="ACME",
            intended_use="Tests.",
            not_for="Not for patients.",
            family=Code("123110", "DCM", "Artificial Intelligence"),
        ),
        where=volume.grid,
        inputs=inputs_of(volume.headers),
        sought="the body",
        segments=(
            Segment(
                label="Body",
                tracking_id="Body",
                category=TISSUE,
                type=TISSUE,
                mask=region.whole(volume.grid),
            ),
        ),
        warnings=volume.warnings,
    )


def centres(position: Vector, orientation: Vector, spacing: Vector, shape: Vector) -> Vector:
    """Where the pixels of a plane lie (PS3.3 C.7.6.2.1.1), (J, I, 3)."""
    j, i = np.mgrid[: shape[0], : shape[1]]
    across, down = orientation[:3] * spacing[1], orientation[3:] * spacing[0]
    return position + i[..., None] * across + j[..., None] * down


def planes_of(series: list[Dataset]) -> dict[tuple[str, int], Vector]:
    """Where the pixels of each image, or frame, lie; frames count from 1, images have 0."""
    out = {}
    for each in series:
        shape = np.array([each.Rows, each.Columns])
        if "PerFrameFunctionalGroupsSequence" not in each:
            out[each.SOPInstanceUID, 0] = centres(
                np.array(each.ImagePositionPatient, float),
                np.array(each.ImageOrientationPatient, float),
                np.array(each.PixelSpacing, float),
                shape,
            )
            continue
        (shared,) = each.SharedFunctionalGroupsSequence
        for number, frame in enumerate(each.PerFrameFunctionalGroupsSequence, start=1):
            out[each.SOPInstanceUID, number] = centres(
                np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float),
                np.array(frame.PlaneOrientationSequence[0].ImageOrientationPatient, float),
                np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float),
                shape,
            )
    return out


def drawn_on(seg: Dataset) -> dict[tuple[str, int], tuple[Vector, npt.NDArray[np.bool_]]]:
    """By source image: where the pixels of its frame lie, and which are set."""
    (shared,) = seg.SharedFunctionalGroupsSequence
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns).astype(bool)
    out = {}
    for frame, mask in zip(seg.PerFrameFunctionalGroupsSequence, pixels, strict=True):

        def group(name: str, frame: Dataset = frame) -> Dataset:
            return (frame if name in frame else shared)[name][0]

        (image,) = group("DerivationImageSequence").SourceImageSequence
        where = centres(
            np.array(group("PlanePositionSequence").ImagePositionPatient, float),
            np.array(group("PlaneOrientationSequence").ImageOrientationPatient, float),
            np.array(group("PixelMeasuresSequence").PixelSpacing, float),
            np.array([seg.Rows, seg.Columns]),
        )
        key = (image.ReferencedSOPInstanceUID, int(image.get("ReferencedFrameNumber", 0)))
        assert key not in out
        out[key] = where, mask
    return out


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_the_voxels_of_a_seg_are_those_of_the_body(
    form: str, orientation: str, make_series: Maker, make_enhanced: Enhanced
) -> None:
    series, centre = made(form, orientation, make_series, make_enhanced)
    volume = volume_of(series, Intake(uneven_mm=5.0))
    spacing = (1.5, 1.5, 1.5)
    findings = found(volume, "HPL", spacing)
    context = ResultContext(
        created_at=Instant(1_784_628_000_123_456), software_version="0.1.0", timezone="UTC"
    )
    files = [written(each) for each in encode(findings, volume.headers, uuid.uuid4(), context)]
    gate.check(files, findings, volume.headers)
    seg = next(
        each
        for each in (pydicom.dcmread(io.BytesIO(octets)) for octets in files)
        if each.Modality == "SEG"
    )
    drawn = drawn_on(seg)
    half_a_voxel = max(*spacing, *volume.grid.spacing_kji_mm) / 2
    total = 0
    planes = planes_of(series)
    assert set(drawn) <= set(planes)
    for key, where in planes.items():
        place, mask = drawn.get(key, (where, np.zeros(where.shape[:2], dtype=bool)))
        assert np.abs(place - where).max() < 0.01
        outside = outside_mm(where, centre)
        wrong = mask != (outside < 0)
        assert np.abs(outside[wrong]).max(initial=0) < half_a_voxel
        total += int(mask.sum())
    assert total > 100
