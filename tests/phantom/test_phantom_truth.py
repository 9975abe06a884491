"""The truth of a phantom, held against what can be counted and computed without it."""

from __future__ import annotations

import numpy as np
import pytest

from dicomai.phantom import ChestPhantom, chest_scan

FAR_SEED = 2**41 + 4


def upright(
    phantom: ChestPhantom, spacing_mm: float, shape: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A grid around the lungs: k to the head, j to the back, i to the left."""
    matrix = np.zeros((4, 4))
    matrix[2, 0] = matrix[1, 1] = matrix[0, 2] = spacing_mm
    matrix[3, 3] = 1
    size = np.array(shape)[::-1] * spacing_mm
    matrix[:3, 3] = np.array(phantom.centre_lps_mm) - size / 2
    return matrix, shape


def test_the_same_seed_gives_the_same_patient() -> None:
    one, two = ChestPhantom(8), ChestPhantom(8)
    grid = upright(one, 8.0, (30, 40, 50))
    assert np.array_equal(one.hounsfield(*grid), two.hounsfield(*grid))
    assert one.nodules == two.nodules


def test_another_seed_gives_another_patient() -> None:
    assert ChestPhantom(8).lung_volume_ml != ChestPhantom(9).lung_volume_ml


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_lungs_have_the_volume_that_the_truth_says(seed: int) -> None:
    phantom = ChestPhantom(seed)
    matrix, shape = upright(phantom, 3.1, (124, 84, 116))
    truth = phantom.truth(matrix, shape)
    for side, mask in (("right", truth.right_lung), ("left", truth.left_lung)):
        counted = mask.sum() * 3.1**3 / 1000
        assert counted == pytest.approx(phantom.lung_volume_ml[side], rel=0.008)
        assert 900 < counted < 6000


def test_the_right_lung_lies_at_the_patients_right() -> None:
    phantom = ChestPhantom(3)
    matrix, shape = upright(phantom, 6.0, (56, 50, 60))
    truth = phantom.truth(matrix, shape)
    right = (matrix @ [*np.argwhere(truth.right_lung).mean(axis=0), 1])[0]
    left = (matrix @ [*np.argwhere(truth.left_lung).mean(axis=0), 1])[0]
    assert right < phantom.centre_lps_mm[0] < left


def test_nodules_have_centre_and_volume_of_the_truth(patient: ChestPhantom) -> None:
    for number, nodule in enumerate(patient.nodules):
        spacing = 0.5
        edge = 64
        matrix = np.diag([0.0, 0.0, 0.0, 1.0])
        matrix[2, 0] = matrix[1, 1] = matrix[0, 2] = spacing
        matrix[:3, 3] = np.array(nodule.centre_lps_mm) - edge / 2 * spacing + 0.13
        mask = patient.truth(matrix, (edge, edge, edge)).nodules[number]
        assert mask.sum() * spacing**3 == pytest.approx(nodule.volume_mm3, rel=0.02)
        assert nodule.volume_mm3 == pytest.approx(np.pi / 6 * nodule.diameter_mm**3)
        centre = (matrix @ [*np.argwhere(mask).mean(axis=0), 1])[:3]
        assert np.linalg.norm(centre - nodule.centre_lps_mm) < 0.1


def test_nodules_lie_in_the_lung_that_they_name(patient: ChestPhantom) -> None:
    for nodule in patient.nodules:
        matrix = np.eye(4)
        matrix[:3, 3] = nodule.centre_lps_mm
        truth = patient.truth(matrix, (1, 1, 1))
        assert getattr(truth, f"{nodule.side}_lung").all()


def test_nodules_are_as_dense_as_tissue_within_dark_lung(patient: ChestPhantom) -> None:
    for nodule in patient.nodules:
        matrix = np.eye(4)
        matrix[:3, 3] = nodule.centre_lps_mm
        assert patient.hounsfield(matrix, (1, 1, 1)).item() == pytest.approx(nodule.hu, abs=25)


def test_nodules_do_not_change_the_patient_around_them(patient: ChestPhantom) -> None:
    other = patient.with_nodules([], 0)
    matrix, shape = upright(patient, 6.0, (50, 40, 55))
    changed = patient.hounsfield(matrix, shape) != other.hounsfield(matrix, shape)
    places = (np.argwhere(changed) @ matrix[:3, :3].T) + matrix[:3, 3]
    away = np.min(
        [np.linalg.norm(places - each.centre_lps_mm, axis=1) for each in patient.nodules], axis=0
    )
    assert changed.any()
    assert away.max() < 14 / 2 + 12  # its radius, and the edge of a voxel that it touches


@pytest.mark.parametrize("orientation", ["coronal", "sagittal", "oblique"])
def test_a_point_is_the_same_tissue_in_every_orientation(
    patient: ChestPhantom, orientation: str
) -> None:
    axial = chest_scan(patient, matrix=96, slice_spacing_mm=5.0)
    other = chest_scan(
        patient,
        matrix=96,
        slice_spacing_mm=5.0,
        orientation=orientation,
    )
    masks = patient.truth(other.index_to_lps, other.shape_kji)
    volume = masks.right_lung.sum() * abs(np.linalg.det(other.index_to_lps[:3, :3])) / 1000
    assert volume == pytest.approx(patient.lung_volume_ml["right"], rel=0.02)

    # Carry voxels of one grid to the other by nothing but the two affines.
    truth = patient.truth(axial.index_to_lps, axial.shape_kji)
    there = np.linalg.inv(axial.index_to_lps) @ other.index_to_lps
    inside = np.argwhere(masks.left_lung)
    carried = np.rint(inside @ there[:3, :3].T + there[:3, 3]).astype(int)
    within = ((carried >= 0) & (carried < axial.shape_kji)).all(axis=1)
    assert within.mean() > 0.95
    assert truth.left_lung[tuple(carried[within].T)].mean() > 0.93


def test_partial_volume_keeps_the_mean(patient: ChestPhantom) -> None:
    nodule = patient.nodules[0]
    coarse = np.diag([0.0, 0.0, 0.0, 1.0])
    coarse[2, 0] = coarse[1, 1] = coarse[0, 2] = 6.0
    coarse[:3, 3] = np.array(nodule.centre_lps_mm) - 15.0
    fine = coarse.copy()
    fine[:3, :3] /= 4
    fine[:3, 3] -= 6.0 / 2 - 6.0 / 8
    few = patient.hounsfield(coarse, (6, 6, 6))
    many = patient.hounsfield(fine, (24, 24, 24)).reshape(6, 4, 6, 4, 6, 4).mean(axis=(1, 3, 5))
    assert float(few.mean()) == pytest.approx(float(many.mean()), abs=25)


def test_far_from_the_body_there_is_air() -> None:
    phantom = ChestPhantom(FAR_SEED)
    matrix, shape = upright(phantom, 20.0, (20, 60, 60))
    hu = phantom.hounsfield(matrix, shape)
    assert np.array_equal(np.unique(hu[:, [0, 0, -1, -1], [0, -1, 0, -1]]), [-1000.0])
