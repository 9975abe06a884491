"""Small CT studies with a bright body in them, and a model package that finds it, both in code."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from safetensors.torch import save_file

from dicomai.models import package as packages
from dicomai.models import trust
from dicomai.models.runtimes.networks import build

SHAPE = (6, 24, 32)
BODY = (slice(1, 5), slice(6, 18), slice(8, 20))
SPACING_MM = (3.0, 2.0, 2.0)

MANIFEST = """
format = 1
name = "{name}"
version = "1.0.0"
manufacturer = "dicomai"
licence = "Apache-2.0"
intended_use = "Tests of the service."
not_for = "Patients."
sought = "Bodies"

[limits]
modality = ["CT"]

[[input]]
name = "ct"
kind = "volume"
when = ["Modality = CT"]
prefer = ["-instances"]

[preprocess]
clip = [-1000, 1000]

[infer]
network = "{network}"
arguments = {{ channels = [1] }}
inferer = "whole"
activation = "sigmoid"

[[output]]
kind = "segment"
label = "Body"
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "123037004", scheme = "SCT", meaning = "Body structure" }}

[measure]
segment = ["volume"]
"""


def truth() -> np.ndarray:
    """(K, J, I) bool: where the body lies in each study."""
    mask = np.zeros(SHAPE, bool)
    mask[BODY] = True
    return mask


def ct_slice(k: int, study: str, series: str, patient: str, brightness: int) -> Dataset:
    """One slice, with what a CT image must have (PS3.3 A.3)."""
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = f"{series}.{k + 1}"
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.FrameOfReferenceUID = f"{series}.99"
    image.PatientID, image.PatientName = patient, f"Patient^{patient}"
    image.PatientBirthDate, image.PatientSex = "19600101", "O"
    image.StudyDate = image.SeriesDate = image.ContentDate = "20260301"
    image.StudyTime = image.SeriesTime = image.ContentTime = "101500"
    image.AccessionNumber, image.StudyID, image.ReferringPhysicianName = f"A{patient}", "1", ""
    image.Modality, image.Manufacturer, image.SeriesNumber = "CT", "Phantoms", 2
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.InstanceNumber, image.PositionReferenceIndicator = k + 1, ""
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.ImagePositionPatient = [-30, -20, SPACING_MM[0] * k]
    image.PixelSpacing, image.SliceThickness = list(SPACING_MM[1:]), SPACING_MM[0]
    image.Rows, image.Columns = SHAPE[1:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation, image.RescaleSlope, image.RescaleIntercept = 1, 1, -1000
    pixels = np.where(truth()[k], brightness, 0).astype("<i2")
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OW"
    return image


def write_study(
    folder: Path, patient: str, *, study: str | None = None, brightness: int = 1000
) -> list[Path]:
    """Write a study of one CT series and return its files."""
    study = study or new_uid()
    series = new_uid()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k in range(SHAPE[0]):
        image = ct_slice(k, study, series, patient, brightness)
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(folder / f"{patient}-{k:03}.dcm", enforce_file_format=True)
        files.append(folder / f"{patient}-{k:03}.dcm")
    return files


def write_package(models: Path, name: str = "bodies", network: str = "unet3d") -> packages.Package:
    """Write a package that finds what is brighter than the mean, trust it, and return it.

    The network is the project's own, of one level and one feature; its kernels pass each voxel on
    as it is, so that only the normalisation, which takes the mean off, and the threshold are left.
    """
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(MANIFEST.format(name=name, network=network))
    (folder / "CARD.md").write_text("# Bodies\n")
    weights = build("unet3d", {"channels": (1,)}).state_dict()
    for key, value in weights.items():
        if value.dim() == 5:
            kernel = torch.zeros_like(value)
            kernel[0, 0, value.shape[2] // 2, value.shape[3] // 2, value.shape[4] // 2] = 1.0
            weights[key] = kernel
    weights["last.weight"] = torch.full_like(weights["last.weight"], 20.0)
    weights["last.bias"] = torch.full_like(weights["last.bias"], -10.0)
    save_file(weights, folder / "weights.safetensors")
    package = packages.load(folder)
    trust.trust(models, package)
    return package


def new_uid() -> str:
    """A UID short enough to have numbers put after it."""
    return f"2.25.{uuid.uuid4().int}"
