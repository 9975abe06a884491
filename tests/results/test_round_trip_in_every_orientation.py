"""Findings to objects to files to a reader: the same patient coordinates, however slices lie.

Where a voxel lies is worked out here from the headers of the images (PS3.3 C.7.6.2.1.1), and what
the files say is read by highdicom and pydicom.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomai.findings import Findings

ORIENTATIONS = ["axial", "coronal", "sagittal", "prone", "feet first", "decubitus", "oblique"]
FORMS = ("SEG", "SEG:LABELMAP", "SR", "PM", "RTSTRUCT", "PR")
NEAR_MM = 0.01
Points = npt.NDArray[np.float64]


class Lying:
    """A study in an orientation, what was found in it, and its results by class."""

    def __init__(self, study: Any, found: Any) -> None:
        self.headers: list[Dataset] = study.headers
        everything: Findings = found.everything(study)
        right, *others = everything.segments
        likely = np.linspace(0.25, 1, int(right.mask.sum()), dtype=np.float32)
        self.findings = replace(everything, segments=(replace(right, probability=likely), *others))
        self.results: dict[str, list[Dataset]] = {}
        for raw in study.files(self.findings, FORMS):
            read = pydicom.dcmread(io.BytesIO(raw))
            self.results.setdefault(read.SOPClassUID.name, []).append(read)

    def lps_mm(self, kji: npt.ArrayLike) -> Points:
        """Where (fractional) rows and columns of slices lie, from the images' headers."""
        index = np.asarray(kji, float).reshape(-1, 3)
        between = [np.array(each.ImagePositionPatient, float) for each in self.headers]
        k = np.clip(np.floor(index[:, 0]).astype(int), 0, len(between) - 2)
        origin = np.array(between)
        place = origin[k] + (index[:, :1] - k[:, None]) * (origin[k + 1] - origin[k])
        across, down = np.array(self.headers[0].ImageOrientationPatient, float).reshape(2, 3)
        rows, columns = (float(each) for each in self.headers[0].PixelSpacing)
        return np.asarray(place + index[:, 2:] * columns * across + index[:, 1:2] * rows * down)

    def one(self, name: str) -> Dataset:
        """Return the first object of a class."""
        return self.results[name][0]


@pytest.fixture(scope="module", params=ORIENTATIONS)
def lying(study_lying: Any, found: Any, request: pytest.FixtureRequest) -> Lying:
    return Lying(study_lying(request.param), found)


def same(ours: Points, theirs: Points) -> bool:
    """Tell whether two sets of points are the same, in whatever order."""
    if len(ours) != len(theirs):
        return False
    apart = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
    return bool(max(apart.min(axis=0).max(), apart.min(axis=1).max()) < NEAR_MM)


def placed(volume: Any, chosen: npt.NDArray[np.bool_]) -> Points:
    """Where the chosen voxels of a volume of highdicom lie."""
    index = np.argwhere(chosen)
    return np.asarray(np.column_stack([index, np.ones(len(index))]) @ volume.affine.T)[:, :3]


@pytest.mark.parametrize("name", ["Segmentation Storage", "1.2.840.10008.5.1.4.1.1.66.7"])
def test_each_voxel_of_a_mask(lying: Lying, name: str) -> None:
    masks = {
        each.tracking_id: each.mask
        for each in (*lying.findings.segments, *lying.findings.detections)
        if each.mask is not None and each.mask.any()
    }
    read = set()
    for seg in map(hd.seg.Segmentation.from_dataset, lying.results[name]):
        for number in seg.segment_numbers:
            tracking = seg.get_segment_description(number).tracking_id
            volume = seg.get_volume(segment_numbers=[number], combine_segments=False)
            theirs = placed(volume, volume.array[..., 0].astype(bool))
            assert same(lying.lps_mm(np.argwhere(masks[tracking])), theirs)
            read.add(tracking)
    assert read == {"right lung", "left lung", "nodule 1"}


def test_each_value_of_a_map(lying: Lying) -> None:
    volume = hd.pm.ParametricMap.from_dataset(lying.one("Parametric Map Storage")).get_volume()
    right = lying.findings.segments[0]
    assert right.probability is not None
    theirs = placed(volume, volume.array > 0)
    ours = lying.lps_mm(np.argwhere(right.mask))
    apart = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
    assert apart.min(axis=1).max() < NEAR_MM
    np.testing.assert_allclose(
        volume.array[volume.array > 0][apart.argmin(axis=1)], right.probability, atol=1e-6
    )


def test_balls_boxes_and_centres_of_a_report(lying: Lying) -> None:
    report = hd.sr.Comprehensive3DSR.from_dataset(lying.one("Comprehensive 3D SR Storage"))
    places = {}
    for group in report.content.get_volumetric_roi_measurement_groups():
        places[group.tracking_identifier] = [
            (item.ConceptNameCodeSequence[0].CodeMeaning, np.reshape(item.GraphicData, (-1, 3)))
            for item in group[0].ContentSequence
            if item.ValueType == "SCOORD3D"
        ]
    ball = dict(places["nodule 2"])
    middle = lying.lps_mm((6.0, 12.0, 24.5))
    ends = np.concatenate([middle + 3 * np.eye(3), middle - 3 * np.eye(3)])
    assert same(ball["Volume Surface"], ends)
    assert same(ball["Center"], middle)
    assert same(dict(places["nodule 1"])["Center"], lying.lps_mm((4.5, 9.0, 21.0)))
    surface = np.concatenate([xyz for name, xyz in places["nodule 3"] if name != "Center"])
    corners = [(k, j, i) for k in (2, 4) for j in (3, 8) for i in (4, 9)]
    assert same(np.unique(surface.round(3), axis=0), lying.lps_mm(corners))


def test_points_of_a_report_on_its_images(lying: Lying) -> None:
    """SCOORD counts from the outer corner of the first pixel (PS3.3 C.18.6.1.2)."""
    slices = {each.SOPInstanceUID: k for k, each in enumerate(lying.headers)}
    report = hd.sr.Comprehensive3DSR.from_dataset(lying.one("Comprehensive 3D SR Storage"))
    read = {}
    for group in report.content.get_volumetric_roi_measurement_groups():
        for item in group[0].ContentSequence:
            if item.ValueType == "SCOORD":
                x, y = item.GraphicData
                image = item.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
                k = slices[image]
                read[group.tracking_identifier] = lying.lps_mm((k, y - 0.5, x - 0.5))
    for each in lying.findings.segments[:2]:
        inside = lying.lps_mm(np.argwhere(each.mask))
        assert np.linalg.norm(inside - read[each.tracking_id], axis=1).min() < NEAR_MM
    ball = lying.lps_mm((6.0, 12.0, 24.5))
    assert np.linalg.norm(ball - read["nodule 2"]) < NEAR_MM


def test_contours_of_structures(lying: Lying) -> None:
    structures = lying.one("RT Structure Set Storage")
    names = [item.ROIName for item in structures.StructureSetROISequence]
    left = structures.ROIContourSequence[names.index("Left lung")]
    corners = [(j, i) for j in (5.5, 17.5) for i in (17.5, 30.5)]
    for k, contour in enumerate(left.ContourSequence, start=3):
        points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
        assert same(
            np.unique(points.round(3), axis=0), lying.lps_mm([(k, j, i) for j, i in corners])
        )
        (image,) = contour.ContourImageSequence
        assert image.ReferencedSOPInstanceUID == lying.headers[k].SOPInstanceUID
    assert len(left.ContourSequence) == 5


def test_contours_of_marks(lying: Lying) -> None:
    """Marks are in pixels, from the outer corner of the first (PS3.3 C.10.5.1.2)."""
    slices = {each.SOPInstanceUID: k for k, each in enumerate(lying.headers)}
    state = lying.one("Grayscale Softcopy Presentation State Storage")
    seen = set()
    for item in state.GraphicAnnotationSequence:
        if item.GraphicLayer != "FINDING2" or "GraphicObjectSequence" not in item:
            continue
        k = slices[item.ReferencedImageSequence[0].ReferencedSOPInstanceUID]
        (line,) = item.GraphicObjectSequence
        x, y = np.reshape(np.array(line.GraphicData, float), (-1, 2)).T - 0.5
        marked = np.unique(lying.lps_mm(np.column_stack([np.full(len(x), k), y, x])), axis=0)
        corners = [(k, j, i) for j in (5.5, 17.5) for i in (17.5, 30.5)]
        assert same(np.unique(marked.round(3), axis=0), lying.lps_mm(corners))
        seen.add(k)
    assert seen == {3, 4, 5, 6, 7}
