"""Series made in code, by the formula of PS3.3 C.7.6.2.1.1 and without our own geometry."""

from __future__ import annotations

import copy
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

from dicomai.imaging.series import scan

SLOPE: Final = 0.005
"""Millimetres per stored value."""

Vector = npt.NDArray[np.float64]


def made_series(
    values: Callable[[Vector], Vector] = lambda lps: lps[..., 2],
    *,
    row: Sequence[float] = (1, 0, 0),
    column: Sequence[float] = (0, 1, 0),
    first: Sequence[float] = (-40.0, -30.0, 100.0),
    spacing_kji: Sequence[float] = (2.5, 1.0, 1.5),
    shape_kji: Sequence[int] = (5, 6, 7),
    order: Sequence[int] | None = None,
    tilt_ji_mm: Sequence[float] = (0.0, 0.0),
    steps: Sequence[float] | None = None,
) -> list[Dataset]:
    """Return slices whose voxels hold a function of their patient coordinates.

    With a tilt each slice is shifted along its columns and along its rows by so much for each
    spacing; `steps` says how many spacings each slice lies from the first.

    Each element of `order` is the slice that stands at that place of the list; Instance Numbers
    follow the list, so they say nothing.
    """
    across, down = np.array(row, dtype=float), np.array(column, dtype=float)
    normal = np.cross(across, down)
    j, i = np.mgrid[: shape_kji[1], : shape_kji[2]]
    common = Dataset()
    common.SOPClassUID = CTImageStorage
    common.Modality = "CT"
    common.StudyInstanceUID, common.SeriesInstanceUID = generate_uid(), generate_uid()
    common.FrameOfReferenceUID = generate_uid()
    common.ImageOrientationPatient = [f"{part:.13f}"[:16] for part in (*row, *column)]
    common.PixelSpacing = [repr(float(spacing_kji[1]))[:16], repr(float(spacing_kji[2]))[:16]]
    common.Rows, common.Columns = shape_kji[1], shape_kji[2]
    common.SamplesPerPixel, common.PhotometricInterpretation = 1, "MONOCHROME2"
    common.BitsAllocated = common.BitsStored = 16
    common.HighBit, common.PixelRepresentation = 15, 1
    common.RescaleSlope, common.RescaleIntercept = SLOPE, 0
    out = []
    for number, k in enumerate(order if order is not None else range(shape_kji[0])):
        step = k if steps is None else steps[k]
        position = np.array(first) + step * (
            normal * spacing_kji[0] + down * tilt_ji_mm[0] + across * tilt_ji_mm[1]
        )
        lps = (
            position + across * spacing_kji[2] * i[..., None] + down * spacing_kji[1] * j[..., None]
        )
        ds = Dataset()
        ds.update(common)
        ds.SOPInstanceUID = generate_uid()
        ds.InstanceNumber = number + 1
        ds.ImagePositionPatient = [f"{part:.10f}"[:16] for part in position]
        stored = np.round(values(lps) / SLOPE).astype("<i2")
        ds.PixelData = stored.tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        out.append(ds)
    return out


def made_enhanced(
    slices: Sequence[Dataset], frame_groups: Sequence[dict[str, dict[str, object]]] = ()
) -> Dataset:
    """Return slices of `made_series` as the frames of one Enhanced MR object, in their order.

    What is the same for all frames stands in the shared functional groups. `frame_groups` holds
    for each frame what else its groups say, as `{"MREchoSequence": {"EffectiveEchoTime": 30.0}}`.
    """

    def group(**values: object) -> Items:
        item = Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        return Items([item])

    first = slices[0]
    out = Dataset()
    for element in first:
        if element.tag.group in (0x0008, 0x0028):
            out[element.tag] = copy.copy(element)
    out.StudyInstanceUID, out.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
    out.FrameOfReferenceUID = first.FrameOfReferenceUID
    out.SOPClassUID, out.SOPInstanceUID = EnhancedMRImageStorage, generate_uid()
    out.Modality, out.NumberOfFrames = "MR", len(slices)
    del out.PixelSpacing, out.RescaleSlope, out.RescaleIntercept
    shared = Dataset()
    shared.PixelMeasuresSequence = group(PixelSpacing=first.PixelSpacing)
    frames = []
    for number, each in enumerate(slices):
        frame = Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=each.ImagePositionPatient)
        frame.PlaneOrientationSequence = group(ImageOrientationPatient=each.ImageOrientationPatient)
        frame.PixelValueTransformationSequence = group(
            RescaleSlope=each.RescaleSlope, RescaleIntercept=each.RescaleIntercept
        )
        for keyword, values in frame_groups[number].items() if frame_groups else ():
            setattr(frame, keyword, group(**values))
        frames.append(frame)
    out.SharedFunctionalGroupsSequence = Items([shared])
    out.PerFrameFunctionalGroupsSequence = Items(frames)
    out.PixelData = b"".join(each.PixelData for each in slices)
    out["PixelData"].VR = "OW"
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return out


@pytest.fixture(scope="session")
def make_enhanced() -> Callable[..., Dataset]:
    """Gives `made_enhanced`."""
    return made_enhanced


@pytest.fixture(scope="session")
def make_series() -> Callable[..., list[Dataset]]:
    """Gives `made_series`."""
    return made_series


@pytest.fixture
def sample_series(sample_data: Path, tmp_path: Path) -> Callable[[str], tuple[Dataset, ...]]:
    """Gives the data sets of a sample in `modalities`, by its name; of several series the first."""

    def read(name: str) -> tuple[Dataset, ...]:
        path = sample_data / "modalities" / name
        if path.is_file():
            with tarfile.open(path) as archive:
                archive.extractall(tmp_path, filter="data")
            path = tmp_path
        found = scan(path, pixels=True)
        assert not found.unreadable
        datasets = found.series[0].datasets
        for dataset in datasets:
            # Frames of reference that anonymising took away: without one nothing can be placed.
            if "FrameOfReferenceUID" not in dataset:
                dataset.FrameOfReferenceUID = "1.2.3"
        return datasets

    return read
