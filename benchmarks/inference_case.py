"""A CT of known truth as files, U-Nets that find it by arithmetic, and a queue of analyses."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from safetensors.torch import save_file
from sqlalchemy import Engine

from dicomai.dicom.dates import now, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.models import package as packages
from dicomai.models import trust
from dicomai.models.package import Package
from dicomai.models.runtimes.networks import build
from dicomai.service.received import Reading, read_object
from dicomai.store import analyses, archive, arrivals, decisions, instances, studies
from dicomai.store.engine import reading, writing
from dicomai.store.instances import InstanceRow
from dicomai.store.job import JobId, JobInput, JobRoute, NewAnalysis

SPACING_MM: Final = (1.0, 0.7, 0.7)
_AIR, _TISSUE, _BONE = -1000.0, 50.0, 700.0
_EDGE_MM: Final = 1.4
"""Over which a surface is blurred, as a scanner does."""
THRESHOLDS_HU: Final = ((_AIR + _TISSUE) / 2, (_TISSUE + _BONE) / 2)
_CLIP: Final = (-1024.0, 1024.0)
_SLOPE: Final = 60.0

MANIFEST: Final = """
format = 1
name = "{name}"
version = "1.0.0"
manufacturer = "dicomai"
licence = "Apache-2.0"
intended_use = "Benchmarks."
not_for = "Patients."
sought = "Body and balls"
[limits]
modality = ["CT"]
[[input]]
name = "ct"
kind = "volume"
when = ["Modality = CT"]
[preprocess]
axes = "HPL"
{spacing}
clip = [-1024, 1024]
[infer]
network = "unet3d"
arguments = {{ out_channels = 2, channels = {channels}, norm = "batch" }}
inferer = "sliding_window"
window_kji = {window}
overlap = 0.25
activation = "sigmoid"
precision = "{precision}"
batch = {batch}
[[output]]
kind = "segment"
label = "Body"
channel = 0
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "123037004", scheme = "SCT", meaning = "Body structure" }}
[[output]]
kind = "segment"
label = "Balls"
channel = 1
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "272673000", scheme = "SCT", meaning = "Bone structure" }}
[measure]
segment = ["volume", "mean"]
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Body:
    """Voxels of a CT, and where its two structures lie by their formula.

    Attributes
    ----------
    hu : (K, J, I) int16
    truth
        Of each output of the models, (K, J, I) bool: whose voxel centres lie inside.
    """

    hu: npt.NDArray[np.int16]
    truth: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


def body(shape_kji: tuple[int, int, int]) -> Body:
    """Return an ellipsoid of soft tissue with balls of bone in it, in air."""
    k, j, i = (
        ((np.arange(size) - (size - 1) / 2) * step).astype(np.float32)
        for size, step in zip(shape_kji, SPACING_MM, strict=True)
    )
    reach = [float(axis[-1]) for axis in (k, j, i)]
    smallest = min(reach)
    plane_j, plane_i = j[:, None], i[None, :]
    noise = np.random.default_rng(1).normal(0, 8, shape_kji[1:]).astype(np.float32)
    hu = np.empty(shape_kji, np.int16)
    inside = np.empty(shape_kji, bool)
    balls = np.zeros(shape_kji, bool)
    radii = [0.9 * reach[0], 0.7 * reach[1], 0.85 * reach[2]]
    for number, z in enumerate(k):
        scaled = np.sqrt(
            (z / radii[0]) ** 2 + (plane_j / radii[1]) ** 2 + (plane_i / radii[2]) ** 2
        )
        depth = (1 - scaled) * min(radii)  # near enough to millimetres where it matters: at 0
        inside[number] = depth > 0
        plane = _AIR + (_TISSUE - _AIR) * np.clip(0.5 + depth / _EDGE_MM, 0, 1)
        for turn in range(8):
            angle = 2 * np.pi * turn / 8
            centre = (
                0.4 * reach[0] * np.cos(3 * angle),
                0.4 * reach[1] * np.sin(angle),
                0.45 * reach[2] * np.cos(angle),
            )
            radius = smallest * (0.05 + 0.015 * turn)
            away = np.sqrt(
                (z - centre[0]) ** 2 + (plane_j - centre[1]) ** 2 + (plane_i - centre[2]) ** 2
            )
            balls[number] |= away < radius
            share = np.clip(0.5 + (radius - away) / _EDGE_MM, 0, 1)
            plane += (_BONE - _TISSUE) * share
        hu[number] = np.rint(np.clip(plane, _AIR, _BONE) + noise)
    return Body(hu=hu, truth=(inside, balls))


def write_study(folder: Path, voxels: npt.NDArray[np.int16], patient: str) -> list[Path]:
    """Write a study of one uncompressed series and return its files, by slice."""
    study, series = (f"2.25.{uuid.uuid4().int}" for _ in range(2))
    folder.mkdir(parents=True)
    files = []
    for k, plane in enumerate(voxels):
        image = _image(plane, k, study, series, patient)
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        files.append(folder / f"{k:04}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    return files


def _image(plane: npt.NDArray[np.int16], k: int, study: str, series: str, patient: str) -> Dataset:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, f"{series}.{k + 1}"
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.FrameOfReferenceUID = f"{series}.999"
    image.PatientID, image.PatientName = patient, f"Bench^{patient}"
    image.PatientBirthDate, image.PatientSex = "19600101", "O"
    image.StudyDate = image.SeriesDate = image.ContentDate = "20260301"
    image.StudyTime = image.SeriesTime = image.ContentTime = "101500"
    image.AccessionNumber, image.StudyID, image.ReferringPhysicianName = "", "1", ""
    image.Modality, image.Manufacturer, image.SeriesNumber = "CT", "Phantoms", 2
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.InstanceNumber, image.PositionReferenceIndicator = k + 1, ""
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.ImagePositionPatient = [-150, -140, SPACING_MM[0] * k]
    image.PixelSpacing, image.SliceThickness = list(SPACING_MM[1:]), SPACING_MM[0]
    image.Rows, image.Columns = plane.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation, image.RescaleSlope, image.RescaleIntercept = 1, 1, -1024
    image.PixelData = (plane + np.int16(1024)).astype("<i2").tobytes()
    image["PixelData"].VR = "OW"
    return image


def write_package(
    models: Path,
    name: str,
    channels: Sequence[int],
    *,
    window: Sequence[int],
    spacing_mm: float | None,
    batch: int,
    precision: str,
) -> Package:
    """Write a package, pin it, and return it.

    Its network passes the intensity of a voxel through to two logits, one for each structure, and
    computes all that a U-Net of its size computes beside it.
    """
    folder = models / name
    folder.mkdir(parents=True)
    spacing = f"spacing_mm = {[spacing_mm] * 3}" if spacing_mm else ""
    (folder / "model.toml").write_text(
        MANIFEST.format(
            name=name,
            spacing=spacing,
            channels=list(channels),
            window=list(window),
            batch=batch,
            precision=precision,
        )
    )
    (folder / "CARD.md").write_text(f"# {name}\n\nFinds what is denser than two thresholds.\n")
    torch.manual_seed(1)
    arguments = {"out_channels": 2, "channels": tuple(channels), "norm": "batch"}
    weights = build("unet3d", arguments).state_dict()
    for key, value in weights.items():
        passes = key.startswith(("first", "up")) and value.dim() == 5
        if value.dim() == 5 and not key.startswith("last"):
            value.normal_(0, 0.5 / float(np.sqrt(value[0].numel())))
        if passes:
            value[0] = 0
            value[0, 0, 1, 1, 1] = 1
    weights["last.weight"].zero_()
    for channel, threshold in enumerate(THRESHOLDS_HU):
        weights["last.weight"][channel, 0] = _SLOPE
        weights["last.bias"][channel] = -_SLOPE * (threshold - _CLIP[0]) / (_CLIP[1] - _CLIP[0])
    save_file(weights, folder / "weights.safetensors")
    package = packages.load(folder)
    trust.trust(models, package)
    return package


def parameters(channels: Sequence[int]) -> int:
    """Return how many weights such a network has."""
    network = build("unet3d", {"out_channels": 2, "channels": tuple(channels), "norm": "batch"})
    return sum(each.numel() for each in network.parameters())


def archived(engine: Engine, data: Path, files: Sequence[Path], patient: str) -> StudyInstanceUID:
    """Put the files of a study into archive and catalogue, and return its UID."""
    rows = []
    for file in files:
        found = read_object(file, Reading())
        uids = found.identifiers
        place = archive.place(
            data,
            file,
            uids.study_instance_uid,
            uids.series_instance_uid,
            uids.sop_instance_uid,
            found.file_sha256,
        )
        rows.append(
            InstanceRow(
                study_instance_uid=uids.study_instance_uid,
                series_instance_uid=uids.series_instance_uid,
                sop_instance_uid=uids.sop_instance_uid,
                sop_class_uid=uids.sop_class_uid,
                transfer_syntax_uid=found.transfer_syntax_uid,
                header_digest=found.version.header,
                pixel_digest=found.version.pixels,
                file_sha256=found.file_sha256,
                origin="received",
                node="CT1",
                received_at=now(),
                size_bytes=found.size_bytes,
                path=place,
                attributes=found.attributes,
            )
        )
    uid = StudyInstanceUID(rows[0].study_instance_uid)
    with writing(engine) as connection:
        for row in rows:
            arrival = arrivals.Arrival(
                study_instance_uid=uid,
                node="CT1",
                received_at=row.received_at,
                quiet_until=row.received_at,
                accession_number="",
                study_date="20260301",
            )
            arrivals.note_arrival(connection, arrival, now())
            instances.add(connection, row, now())
        decisions.set_decided(connection, uid, "Whole.", now())
        studies.set_patient_key(connection, uid, IdentityKey(patient))
    return uid


def queued(
    engine: Engine, studies_uids: Sequence[StudyInstanceUID], package: Package
) -> set[JobId]:
    """Queue an analysis of each study, all at once, and return the jobs."""
    with reading(engine) as connection:
        taken = {uid: instances.of_study(connection, uid) for uid in studies_uids}
    out = set()
    with writing(engine) as connection:
        for uid, found in taken.items():
            rows = [row for row in found if row.origin == "received"]
            current = studies.lock(connection, uid)
            assert current is not None
            assert current.patient_key is not None
            new = NewAnalysis(
                study_instance_uid=uid,
                patient_key=current.patient_key,
                model=package.name,
                package_sha256=package.sha256,
                choice=rows[0].series_instance_uid,
                fingerprint=f"{package.name} {uid}",
                inputs=tuple(
                    JobInput(
                        input="ct",
                        instance_id=row.id,
                        study_instance_uid=uid,
                        series_instance_uid=row.series_instance_uid,
                        sop_instance_uid=row.sop_instance_uid,
                    )
                    for row in rows
                ),
                route=JobRoute(route="all", mode="shadow", destinations=()),
                ageing=seconds(600),
            )
            out.add(analyses.add_analysis(connection, new, now()).job_id)
    return out
