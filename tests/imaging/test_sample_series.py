"""Series of many vendors: a volume that lies where others say that it lies, or a sentence."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut

from dicomai.errors import InputError
from dicomai.imaging.image import image_of
from dicomai.imaging.modality import modality_values
from dicomai.imaging.pixels import stored_values
from dicomai.imaging.volume import SourceVolume, volume_of, volumes_of

Sample = Callable[[str], tuple[Dataset, ...]]
VOLUMES = [
    "bad-slice-count",
    "ct-nonisotropic",
    "made-double-oblique",
    "made-4d-ct-phase",
    "made-instance-numbers-reversed",
    "made-position-jitter",
    "made-prone-feet-first",
    "made-slope-per-slice",
    "mr-decubitus-HFDL.tar.xz",
    "mr-decubitus-HFDR.tar.xz",
    "mr-decubitus-HFP.tar.xz",
    "mr-decubitus-HFS.tar.xz",
    "mr-enhanced-philips-dti.tar.xz",
    "mr-enhanced-philips-fieldmap.tar.xz",
    "mr-enhanced-philips-fmri",
    "mr-enhanced-siemens-xa10",
    "mr-feet-first.tar.xz",
    "mr-ge-4d-dti",
    "mr-ge-4d-fmri",
    "mr-ge-oblique",
    "mr-philips-4d-dti",
    "mr-philips-anatomical",
    "mr-siemens-dti-classic.tar.xz",
    "mr-sts-002.tar.xz",
    "pet-sts-002.tar.xz",
]
PARTS = {
    "made-4d-ct-phase": 2,
    "mr-enhanced-philips-dti.tar.xz": 4,
    "mr-enhanced-philips-fieldmap.tar.xz": 2,
    "mr-enhanced-philips-fmri": 4,
    "mr-enhanced-siemens-xa10": 4,
    "mr-feet-first.tar.xz": 5,
    "mr-ge-4d-dti": 2,
    "mr-ge-4d-fmri": 2,
    "mr-philips-4d-dti": 4,
    "mr-siemens-dti-classic.tar.xz": 2,
}
"""Volumes in a series, where there are several."""
REFUSED = {
    "bad-not-a-volume.tar.xz": "4 slices at 61.5 mm",
    "bad-orientation-mixed.tar.xz": "orientations: ",
    "bad-slice-count": "has only 2 slices",
    "bad-uneven-spacing.tar.xz": "no slice at 33.1 mm, between 28.1 and 38.1 mm",
    "ct-highdicom": "has only one slice",
    "ct-rgb-series": "is a colour image (RGB)",
    "enhanced-ct": "has only 2 slices",
    "made-4d-ct-phase": "no single volume but 2: heart phase 0; heart phase 100",
    "made-duplicate-position": "has 2 slices at 4.0 mm",
    "made-missing-slice": "has no slice at 6.0 mm, between 4.0 and 8.0 mm",
    "made-mixed-frame-of-reference": "has 2 frames of reference",
    "made-mixed-spacing": "slices of different Pixel Spacing: 2×2 mm",
    "made-uneven": "unevenly spaced: 3.00 mm between the slices at 4.0 and 7.0 mm",
    "mr-enhanced-philips-dti.tar.xz": "no single volume but 4: b-value 0; b-value 1300",
    "mr-enhanced-siemens-xa10": "no single volume but 4: time 1; time 2; time 3; time 4",
    "mr-feet-first.tar.xz": "no single volume but 5: time 1; time 2;",
    "mr-ge-4d-dti": "no single volume but 2: b-value 0; b-value 1000",
    "mr-ge-4d-fmri": "no single volume but 2: turn 1; turn 2",
    "mr-philips-4d-dti": "no single volume but 4: b-value 0; b-value 1000, direction",
    "mr-siemens-dti-classic.tar.xz": "no single volume but 2: b-value 0; b-value 1000",
    "mr-siemens-mosaic.tar.xz": "is a mosaic",
    "nm": "Nuclear Medicine Image Storage, 4 frames",
    "photo": "is a colour image",
    "dx": "has no ImagePositionPatient",
    "wsi": "VL Whole Slide Microscopy Image Storage, 25 frames",
}


def corners(affine: npt.NDArray[np.float64], shape: Sequence[int]) -> npt.NDArray[np.float64]:
    indices = np.array(list(itertools.product(*((0, size - 1) for size in shape))))
    return indices @ affine[:3, :3].T + affine[:3, 3]


def truths(manifest: Path, name: str) -> list[npt.NDArray[np.float64]]:
    """The corners that dcm2niix and the reference NIfTI give, in LPS millimetres."""
    entries = json.loads(manifest.read_text())
    (entry,) = (
        each for each in entries["series"] + entries["files"] if each["path"].strip("/") == name
    )
    told = [entry["geometry_truth"]["volumes"]]
    if "reference_truth" in entry:
        told += [[each] for each in entry["reference_truth"]]
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    return [
        np.concatenate(
            [corners(lps @ np.array(each["affine_ras"]), each["shape"][:3]) for each in volumes]
        )
        for volumes in told
    ]


@pytest.mark.parametrize("name", VOLUMES)
def test_corners_lie_where_other_programs_put_them(
    name: str, sample_series: Sample, sample_data: Path
) -> None:
    volumes = volumes_of(sample_series(name))
    found = truths(sample_data / "modalities" / "manifest.json", name)
    assert found
    assert len(volumes) == PARTS.get(name, 1)
    for volume, truth in itertools.product(volumes, found):
        ours = corners(volume.grid.index_to_lps, volume.grid.shape_kji)
        distance = np.linalg.norm(ours[:, None] - truth[None], axis=-1)
        # Each of our corners is one of theirs, and theirs go no further than ours.
        assert distance.min(axis=1).max() < 0.01
        assert np.abs(truth.min(axis=0) - ours.min(axis=0)).max() < 0.01
        assert np.abs(truth.max(axis=0) - ours.max(axis=0)).max() < 0.01


@pytest.mark.parametrize(("name", "words"), REFUSED.items(), ids=REFUSED)
def test_what_is_no_volume_is_refused_in_a_sentence(
    name: str, words: str, sample_series: Sample
) -> None:
    with pytest.raises(InputError) as error:
        volume_of(sample_series(name))
    assert words in error.value.sentence
    assert error.value.subject
    assert error.value.sentence.endswith(".")


@pytest.mark.parametrize("name", [name for name in VOLUMES if name.startswith("made-")])
def test_made_voxels_have_the_values_of_their_places(name: str, sample_series: Sample) -> None:
    for volume in volumes_of(sample_series(name)):
        check_made_values(volume, name)


def check_made_values(volume: SourceVolume, name: str) -> None:
    """Hold voxels against the formula of the folder's README: z counts the files."""
    j, i = np.indices(volume.voxels.shape[1:])
    number = np.array([int(header.InstanceNumber) for header in volume.headers]) - 1
    if name == "made-instance-numbers-reversed":
        number = len(number) - 1 - number
    z = number[:, None, None]
    values = 256 * z + 16 * j + i
    if name == "made-slope-per-slice":
        slopes = np.array([float(header.RescaleSlope) for header in volume.headers])
        intercepts = np.array([float(header.RescaleIntercept) for header in volume.headers])
        assert len(set(slopes)) > 1
        stored = np.stack([stored_values(header) for header in volume.headers])
        values = stored * slopes[:, None, None] + intercepts[:, None, None]
    else:
        first = volume.headers[0]
        values = values * float(first.RescaleSlope) + float(first.RescaleIntercept)
    np.testing.assert_allclose(volume.voxels, values, rtol=1e-6)


def test_unused_bits_do_not_count(sample_data: Path) -> None:
    path = sample_data / "modalities" / "mr-12bit-overlay-bits" / "12bitUnsigned_0x0F0F.dcm"
    dataset = dcmread(path)
    raw = np.frombuffer(dataset.PixelData, "<u2")
    assert raw.max() > 4095
    np.testing.assert_array_equal(stored_values(dataset).ravel(), raw & 0x0FFF)


def test_a_monochrome1_radiograph_is_turned_round(sample_data: Path) -> None:
    dataset = dcmread(sample_data / "modalities" / "cr" / "cr_monochrome1.dcm")
    pixels = image_of(dataset).pixels
    stored = dataset.pixel_array.astype(np.float32)
    np.testing.assert_allclose(pixels + stored, pixels.max() + stored.min())
    dataset.PhotometricInterpretation = "MONOCHROME2"
    np.testing.assert_array_equal(image_of(dataset).pixels, stored)


def test_a_radiograph_on_its_side_is_refused(sample_data: Path) -> None:
    path = sample_data / "modalities" / "cr" / "cr_rotated_patient_orientation.dcm"
    with pytest.raises(InputError, match=r"turned or mirrored \(Patient Orientation F\\L"):
        image_of(dcmread(path))


def test_a_radiograph_tells_its_spacing(sample_data: Path) -> None:
    dataset = dcmread(sample_data / "modalities" / "dx" / "dx_image.dcm")
    dataset.PixelSpacing = [0.5, 0.25]
    assert image_of(dataset).plane.spacing_ji_mm == (0.5, 0.25)
    del dataset.PixelSpacing
    between_rows, between_columns = (float(each) for each in dataset.ImagerPixelSpacing)
    assert image_of(dataset).plane.spacing_ji_mm == (between_rows, between_columns)
    del dataset.ImagerPixelSpacing
    assert image_of(dataset).plane.spacing_ji_mm is None


def test_a_slice_is_no_radiograph(sample_data: Path) -> None:
    dataset = dcmread(sample_data / "modalities" / "ct-highdicom" / "ct_image.dcm")
    with pytest.raises(InputError, match="no projection X-ray"):
        image_of(dataset)


def test_a_modality_lut_gives_what_pydicom_makes_of_it(sample_data: Path) -> None:
    dataset = dcmread(sample_data / "modalities" / "mr-mlut" / "mlut_18.dcm")
    values, padding = modality_values(dataset)
    np.testing.assert_array_equal(values, apply_modality_lut(dataset.pixel_array, dataset))
    assert padding is None
