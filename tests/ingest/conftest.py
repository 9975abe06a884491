"""Small CTs in every transfer syntax that pydicom writes by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

MakeCT = Callable[..., Dataset]


def ct(
    *, study: str = "1.2.3", series: str = "1.2.3.1", number: int = 1, **attributes: object
) -> Dataset:
    """Return a 16 by 16 CT at 2.5 mm times its number; keywords replace or (None) remove."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"{series}.{number}"
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series
    dataset.PatientID = "P1"
    dataset.PatientName = "DOE^JANE"
    dataset.PatientBirthDate = "19600131"
    dataset.PatientSex = "F"
    dataset.StudyDate = "20261120"
    dataset.AccessionNumber = "A1"
    dataset.Modality = "CT"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = number
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.BodyPartExamined = "CHEST"
    dataset.SliceThickness = 2.5
    dataset.ConvolutionKernel = "B30f"
    dataset.FrameOfReferenceUID = f"{study}.9"
    dataset.ImagePositionPatient = [-100.0, -100.0, 2.5 * number]
    dataset.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    dataset.PixelSpacing = [0.7, 0.7]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024.0, 1.0
    pixels = (np.arange(256, dtype="<i2") + 256 * number) % 3000
    dataset.PixelData = pixels.tobytes()
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def written(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a data set as Part 10; RLE and deflated too."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2")
    dataset.file_meta.TransferSyntaxUID = syntax
    implicit = syntax == ImplicitVRLittleEndian
    if syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, "1.2.840.10008.1.2.1.99"):
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
    return path


@pytest.fixture
def make_ct() -> MakeCT:
    """The function `ct` of this file."""
    return ct


@pytest.fixture
def write() -> Callable[..., Path]:
    """The function `written` of this file."""
    return written
