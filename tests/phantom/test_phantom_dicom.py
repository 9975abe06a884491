"""What a phantom writes, read by pydicom alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomai.phantom import (
    ChestPhantom,
    Shell,
    WrittenCt,
    chest_exposure,
    chest_scan,
    write_ct,
    write_xray,
)


def lps_mm(ds: pydicom.Dataset, row: float, column: float) -> np.ndarray:
    """PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1, written out once more."""
    x = np.array(ds.ImageOrientationPatient[:3], dtype=float)
    y = np.array(ds.ImageOrientationPatient[3:], dtype=float)
    between_rows, between_columns = (float(each) for each in ds.PixelSpacing)
    origin = np.array(ds.ImagePositionPatient, dtype=float)
    return origin + x * between_columns * column + y * between_rows * row


def hounsfield(ds: pydicom.Dataset) -> np.ndarray:
    return ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


def brightest_lung_spot(files: tuple[Path, ...], near_mm: list[float], within: float) -> np.ndarray:
    """The centre of what is denser than -500 HU about a place, by headers and pixels alone."""
    places = []
    for path in files:
        ds = pydicom.dcmread(path)
        rows, columns = np.nonzero(hounsfield(ds) > -500)
        for row, column in zip(rows, columns, strict=True):
            place = lps_mm(ds, row, column)
            if np.linalg.norm(place - near_mm) < within:
                places.append(place)
    return np.mean(places, axis=0)


def test_each_nodule_lies_where_the_truth_says(small_ct: WrittenCt) -> None:
    truth = json.loads(small_ct.truth.read_text())
    assert len(truth["nodules"]) == 2
    for nodule in truth["nodules"]:
        centre = np.array(nodule["centre_lps_mm"])
        near = [
            path
            for path in small_ct.files
            if abs(float(pydicom.dcmread(path).ImagePositionPatient[2]) - centre[2])
            < nodule["diameter_mm"] / 2 + 4
        ]
        found = brightest_lung_spot(tuple(near), centre, nodule["diameter_mm"] / 2 + 2)
        assert np.linalg.norm(found - centre) < 1.5


@pytest.mark.parametrize("from_head", [False, True])
@pytest.mark.parametrize("orientation", ["coronal", "oblique"])
def test_nodules_lie_right_in_other_orientations(
    patient: ChestPhantom, tmp_path: Path, orientation: str, from_head: bool
) -> None:
    scan = chest_scan(
        patient,
        matrix=128,
        slice_spacing_mm=4.0,
        noise_hu=0.0,
        orientation=orientation,
        from_head=from_head,
        patient_position="FFS",
    )
    centre = np.array(patient.nodules[0].centre_lps_mm)
    k, row, column = np.linalg.inv(scan.index_to_lps)[:3] @ [*centre, 1]
    written = write_ct(tmp_path, 5, phantom=patient, scan=scan)
    ds = pydicom.dcmread(written.files[round(k)])
    assert ds.PatientPosition == "FFS"
    assert np.linalg.norm(lps_mm(ds, row, column) - centre) <= 2.01  # half a slice
    assert hounsfield(ds)[round(row), round(column)] > -200


def test_slices_follow_each_other_along_the_normal(small_ct: WrittenCt) -> None:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in small_ct.files]
    orientation = np.array(headers[0].ImageOrientationPatient, dtype=float)
    normal = np.cross(orientation[:3], orientation[3:])
    along = [float(normal @ np.array(each.ImagePositionPatient, dtype=float)) for each in headers]
    assert np.allclose(np.diff(along), 4.0)
    assert len({each.SOPInstanceUID for each in headers}) == len(headers)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({each[keyword].value for each in headers}) == 1


def test_a_seed_for_uids_gives_the_same_ones(small_ct: WrittenCt, tmp_path: Path) -> None:
    patient = ChestPhantom(1)
    scan = chest_scan(patient, matrix=32, slice_spacing_mm=20.0, noise_hu=0.0)
    same = Shell(uid_seed="small")
    first = write_ct(tmp_path / "a", phantom=patient, scan=scan, shell=same)
    other = write_ct(tmp_path / "b", phantom=patient, scan=scan)
    again = write_ct(tmp_path / "c", phantom=patient, scan=scan)
    assert first.study_instance_uid == small_ct.study_instance_uid
    assert other.study_instance_uid != again.study_instance_uid


def test_the_shell_puts_text_and_attributes_in(tmp_path: Path) -> None:
    patient = ChestPhantom(1)
    scan = chest_scan(patient, matrix=32, slice_spacing_mm=25.0, noise_hu=0.0)
    shell = Shell(
        patient_name="Müller^Jörg",
        patient_id="77",
        issuer="CLINIC",
        character_set="ISO_IR 192",
        extra=(("ContrastBolusAgent", "Iohexol"),),
    )
    written = write_ct(tmp_path, phantom=patient, scan=scan, shell=shell)
    ds = pydicom.dcmread(written.files[0])
    assert str(ds.PatientName) == "Müller^Jörg"
    assert (ds.PatientID, ds.IssuerOfPatientID) == ("77", "CLINIC")
    assert ds.ContrastBolusAgent == "Iohexol"


def test_padding_lies_outside_the_circle_only(tmp_path: Path) -> None:
    patient = ChestPhantom(2)
    scan = chest_scan(patient, matrix=48, slice_spacing_mm=30.0, padding_hu=-2000.0)
    ds = pydicom.dcmread(write_ct(tmp_path, phantom=patient, scan=scan).files[2])
    assert ds.PixelPaddingValue == -2000 + 1024
    assert (hounsfield(ds)[0, 0], ds.pixel_array[0, 0]) == (-2000, ds.PixelPaddingValue)
    assert hounsfield(ds)[24, 24] > -1100


def test_a_nodule_is_projected_where_the_truth_says(patient: ChestPhantom, tmp_path: Path) -> None:
    bare = patient.with_nodules([], 0)
    exposure = chest_exposure(patient, rows=200)
    with_them = write_xray(
        tmp_path / "with",
        phantom=patient,
        exposure=exposure,
        modality="CR",
    )
    without = write_xray(tmp_path / "without", phantom=bare, exposure=exposure)
    truth = json.loads(with_them.truth.read_text())
    assert truth["nodule"] is True
    assert json.loads(without.truth.read_text())["nodule"] is False
    ds = pydicom.dcmread(with_them.file)
    assert list(ds.PatientOrientation) == ["L", "F"]
    more = ds.pixel_array.astype(float) - pydicom.dcmread(without.file).pixel_array
    nodule = truth["nodules"][0]
    row, column = nodule["centre_ji"]
    v, u = np.mgrid[: more.shape[0], : more.shape[1]]
    near = np.hypot(v - row, u - column) < nodule["diameter_pixels"] / 2 + 3
    weight = np.where(near, np.maximum(more, 0), 0)
    found = np.array([(v * weight).sum(), (u * weight).sum()]) / weight.sum()
    assert np.hypot(*(found - [row, column])) < 1.0
    assert more[near].mean() > 3 * abs(more[~near].mean())


def test_an_x_ray_shows_the_heart_on_the_patients_left(tmp_path: Path) -> None:
    patient = ChestPhantom(3, nodule_diameters_mm=())
    exposure = chest_exposure(patient, rows=128)
    image = pydicom.dcmread(write_xray(tmp_path, phantom=patient, exposure=exposure).file)
    x, y, z = patient.anatomy.heart_xyz
    ox, oy, oz = patient.anatomy.origin_lps_mm
    row, _ = exposure.pixel_ji((x + ox, y + oy, z + oz))
    _, middle = exposure.pixel_ji(patient.centre_lps_mm)
    line = image.pixel_array[round(row)].astype(float)
    reach = round(70 / exposure.spacing_mm)
    centre = round(middle)
    assert line[centre : centre + reach].mean() > 1.1 * line[centre - reach : centre].mean()


def test_an_xray_says_its_view_and_its_code_alike(patient: ChestPhantom, tmp_path: Path) -> None:
    exposure = chest_exposure(patient, rows=64)
    image = pydicom.dcmread(write_xray(tmp_path, phantom=patient, exposure=exposure).file)
    (view,) = image.ViewCodeSequence
    assert image.ViewPosition == "PA"
    assert Code(view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning) == (
        codes.cid4010.PosteroAnterior
    )


@pytest.mark.parametrize("kind", ["ct", "xray"])
def test_dciodvfy_finds_no_error(
    peer: Callable[[str], str],
    small_ct: WrittenCt,
    patient: ChestPhantom,
    tmp_path: Path,
    kind: str,
) -> None:
    if kind == "ct":
        path = small_ct.files[3]
    else:
        exposure = chest_exposure(patient, rows=64)
        path = write_xray(tmp_path, phantom=patient, exposure=exposure).file
    run = subprocess.run([peer("dciodvfy"), "-new", path], capture_output=True, text=True)
    errors = [line for line in run.stderr.splitlines() if line.startswith("Error")]
    assert not errors
