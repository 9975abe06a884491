"""The demonstration reads what came back from the objects themselves, and holds it to the rules."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicomai.cli.demo_returned import checked, read_back
from dicomai.dicom.codes import MILLIMETRE, RIGHT, Code, ucum
from dicomai.dicom.dates import Instant
from dicomai.findings import (
    Classification,
    Detection,
    Findings,
    Measurement,
    Segment,
    Sphere,
)
from dicomai.imaging.image import image_of
from dicomai.imaging.series import read_object
from dicomai.imaging.volume import SourceVolume, volume_of
from dicomai.inference.inputs import inputs_of
from dicomai.models import model_toml
from dicomai.models.package import Package
from dicomai.models.registry import BUILTIN
from dicomai.phantom.chest import ChestPhantom
from dicomai.phantom.ct import chest_scan, write_ct
from dicomai.phantom.xray import chest_exposure, write_xray
from dicomai.results.context import ResultContext
from dicomai.results.encode import encode, written
from dicomai.results.gate import GateError

LUNG = Code("39607008", "SCT", "Lung")
ORGAN = Code("91723000", "SCT", "Anatomical Structure")
NODULE = Code("27925004", "SCT", "Nodule")
VOLUME = Code("118565006", "SCT", "Volume")
DIAMETER = Code("81827009", "SCT", "Diameter")


def package(name: str) -> Package:
    """Return a package of the project; its weights are of no concern here."""
    folder = BUILTIN / name
    return Package(manifest=model_toml.read(folder / "model.toml"), sha256="ab" * 32, folder=folder)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> SourceVolume:
    phantom = ChestPhantom(4, vessels=2)
    scan = chest_scan(phantom, matrix=64, slice_spacing_mm=20.0)
    ct = write_ct(tmp_path_factory.mktemp("ct"), phantom=phantom, scan=scan)
    return volume_of([read_object(path) for path in ct.files])


@pytest.fixture
def findings(volume: SourceVolume) -> Findings:
    grid = volume.grid
    lung = np.zeros(grid.shape_kji, dtype=np.bool_)
    lung[3:8, 20:40, 12:25] = True
    nodule = np.zeros(grid.shape_kji, dtype=np.bool_)
    nodule[5, 30:32, 30:32] = True
    return Findings(
        algorithm=package("chest-ct-lungs").algorithm,
        where=grid,
        inputs=inputs_of(volume.headers),
        sought=package("chest-ct-lungs").manifest.sought,
        segments=(
            Segment(
                label="Right lung",
                tracking_id="Right lung",
                category=ORGAN,
                type=LUNG,
                laterality=RIGHT,
                mask=lung,
                measurements=(Measurement(name=VOLUME, value=2310.5, unit=ucum("mL")),),
            ),
        ),
        detections=(
            Detection(
                label="Nodule 1",
                tracking_id="Nodule 1",
                finding=NODULE,
                site=LUNG,
                region=Sphere(
                    centre_lps_mm=tuple(grid.lps_mm((5.0, 30.5, 30.5)).tolist()), diameter_mm=9.5
                ),
                probability=0.875,
                measurements=(Measurement(name=DIAMETER, value=9.5, unit=MILLIMETRE),),
                mask=nodule,
            ),
        ),
    )


def sent(findings: Findings, headers: tuple[pydicom.Dataset, ...], folder: Path) -> list[Path]:
    context = ResultContext(created_at=Instant(1_750_000_000_000_000), software_version="0")
    paths = []
    for number, each in enumerate(encode(findings, headers, uuid.uuid4(), context)):
        paths.append(folder / f"{number}.dcm")
        paths[-1].write_bytes(written(each))
    return paths


def test_findings_are_read_back_as_they_were(
    volume: SourceVolume, findings: Findings, tmp_path: Path
) -> None:
    objects = sent(findings, volume.headers, tmp_path)
    back = read_back(objects, volume, package("chest-ct-lungs"))
    (segment,), (detection,) = back.segments, back.detections
    assert np.array_equal(segment.mask, findings.segments[0].mask)
    assert (segment.type, segment.laterality) == (LUNG, RIGHT)
    assert segment.measurements[0].value == pytest.approx(2310.5)
    assert detection.mask is not None
    assert np.array_equal(detection.mask, findings.detections[0].mask)
    assert isinstance(detection.region, Sphere)
    assert detection.region.centre_lps_mm == pytest.approx(
        findings.detections[0].region.centre_lps_mm, abs=1e-3
    )
    assert detection.probability == pytest.approx(0.875)
    returned = checked(objects, volume, package("chest-ct-lungs"), tmp_path / "png")
    assert "2,31" in returned.found
    assert returned.pictures
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in returned.pictures)


def test_an_object_of_another_patient_is_no_success(
    volume: SourceVolume, findings: Findings, tmp_path: Path
) -> None:
    objects = sent(findings, volume.headers, tmp_path)
    report = pydicom.dcmread(objects[-1])
    report.PatientID = "SOMEONE-ELSE"
    report.save_as(objects[-1])
    with pytest.raises(GateError, match="Patient"):
        checked(objects, volume, package("chest-ct-lungs"), tmp_path / "png")


@pytest.mark.parametrize("present", [True, False])
def test_a_classification_is_read_back(present: bool, tmp_path: Path) -> None:
    phantom = ChestPhantom(4, vessels=2)
    exposure = chest_exposure(phantom, rows=96)
    xray = write_xray(tmp_path / "xr", phantom=phantom, exposure=exposure)
    image = image_of(read_object(xray.file))
    findings = Findings(
        algorithm=package("chest-xray-nodule").algorithm,
        where=image.plane,
        inputs=inputs_of(image.headers),
        sought=package("chest-xray-nodule").manifest.sought,
        classifications=(
            Classification(
                label="Lung nodule",
                tracking_id="Lung nodule",
                finding=NODULE,
                site=LUNG,
                present=present,
                probability=0.75 if present else 0.125,
                threshold=0.4,
            ),
        ),
    )
    objects = sent(findings, image.headers, tmp_path)
    returned = checked(objects, image, package("chest-xray-nodule"), tmp_path / "png")
    assert ("not present" in returned.found) is not present
    (back,) = read_back(objects, image, package("chest-xray-nodule")).classifications
    assert (back.present, back.threshold) == (present, pytest.approx(0.4))
