"""A chest X-ray of a phantom: what is left of the rays behind it, as DICOM, and the truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import scipy.ndimage
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation

from dicomai.phantom.chest import ChestPhantom, Nodule
from dicomai.phantom.shell import Shell, UidSource, finished, patient_and_study, set_pixels

SOURCE_TO_DETECTOR_MM: Final = 1800.0
_WATER_PER_MM: Final = 0.0195
_SLAB_PLANES: Final = 6
_SCATTER: Final = 0.12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exposure:
    """Where source and detector stand: the patient faces the detector (view PA).

    Attributes
    ----------
    middle_lps_mm
        Where the central ray meets the plane of the detector.
    shape_ji, spacing_mm
        Rows and columns, and the pitch of the detector; row 0 is at the head, column 0 at the
        patient's right.
    """

    middle_lps_mm: tuple[float, float, float]
    shape_ji: tuple[int, int]
    spacing_mm: float

    def magnification(self, y_lps_mm: float) -> float:
        """Return how much larger than life a plane at this depth is shown."""
        return SOURCE_TO_DETECTOR_MM / (SOURCE_TO_DETECTOR_MM - (y_lps_mm - self.middle_lps_mm[1]))

    def pixel_ji(self, point_lps_mm: tuple[float, float, float]) -> tuple[float, float]:
        """Return row and column, from 0 at the first pixel's centre, where a point is shown."""
        x, y, z = point_lps_mm
        scale = self.magnification(y) / self.spacing_mm
        row = (self.shape_ji[0] - 1) / 2 - (z - self.middle_lps_mm[2]) * scale
        column = (self.shape_ji[1] - 1) / 2 + (x - self.middle_lps_mm[0]) * scale
        return (row, column)


def chest_exposure(phantom: ChestPhantom, *, rows: int = 1024) -> Exposure:
    """Return an exposure that shows the whole lungs of a phantom."""
    x, y, z = phantom.centre_lps_mm
    width, depth, height = phantom.extent_mm
    spacing = (height + 90) * 1.1 / rows
    columns = int(np.ceil(min(width * 0.96, 430) * 1.1 / spacing / 2)) * 2
    # A few centimetres of air lie between breast bone and detector.
    return Exposure(
        middle_lps_mm=(x, y - depth / 2 - 25, z - 5),
        shape_ji=(rows, columns),
        spacing_mm=round(spacing, 5),
    )


def attenuation(
    phantom: ChestPhantom, exposure: Exposure, *, step_mm: float = 1.2
) -> npt.NDArray[np.float32]:
    """Return the line integral of attenuation behind each pixel, (J, I) float32, no unit.

    Rays leave the source as a fan. The body is cut into thin coronal slabs; within one, all planes
    are shown at the magnification of its middle, so a ray is off by less than a tenth of a
    millimetre.
    """
    body = phantom.upright
    rows, columns = exposure.shape_ji
    coarse = max(1, round(step_mm / exposure.spacing_mm))
    shape = (-(-rows // coarse) + 1, -(-columns // coarse) + 1)
    pitch = exposure.spacing_mm * coarse
    depth = phantom.extent_mm[1] + 10
    plane_mm = 2.5 * step_mm
    slabs = int(np.ceil(depth / (plane_mm * _SLAB_PLANES)))
    total = np.zeros(shape, dtype=np.float32)
    middle_y = phantom.centre_lps_mm[1]
    for slab in range(slabs):
        first = middle_y - depth / 2 + plane_mm * (slab * _SLAB_PLANES + 0.5)
        scale = 1 / exposure.magnification(first + plane_mm * (_SLAB_PLANES - 1) / 2)
        matrix = np.zeros((4, 4))
        matrix[1, 0] = plane_mm
        matrix[2, 1] = -pitch * scale
        matrix[0, 2] = pitch * scale
        matrix[:, 3] = (
            exposure.middle_lps_mm[0] - (columns - 1) / 2 * exposure.spacing_mm * scale,
            first,
            exposure.middle_lps_mm[2] + (rows - 1) / 2 * exposure.spacing_mm * scale,
            1,
        )
        hu = body.hounsfield(matrix, (_SLAB_PLANES, *shape))
        # Bone absorbs more of an X-ray's softer spectrum than of a CT's.
        density = np.maximum(hu / 1000 + 1, 0) + np.maximum(hu - 150, 0) * np.float32(4e-4)
        total += density.sum(axis=0) * np.float32(plane_mm)
    total *= np.float32(_WATER_PER_MM)
    if coarse == 1:
        return total[:rows, :columns]
    where = np.meshgrid(np.arange(rows) / coarse, np.arange(columns) / coarse, indexing="ij")
    return np.asarray(
        scipy.ndimage.map_coordinates(total, where, order=3, mode="nearest"), dtype=np.float32
    )


def ball_attenuation(nodule: Nodule, lung_hu: float, exposure: Exposure) -> npt.NDArray[np.float32]:
    """Return what a nodule adds to the line integrals by taking the place of lung, (J, I) float32.

    Each ray crosses a ball of the nodule's volume along a chord.
    """
    row, column = exposure.pixel_ji(nodule.centre_lps_mm)
    pitch = exposure.spacing_mm / exposure.magnification(nodule.centre_lps_mm[1])
    v = (np.arange(exposure.shape_ji[0], dtype=np.float32) - np.float32(row))[:, None]
    u = (np.arange(exposure.shape_ji[1], dtype=np.float32) - np.float32(column))[None, :]
    away2 = (u * u + v * v) * np.float32(pitch**2)
    chord = 2 * np.sqrt(np.maximum(np.float32(nodule.diameter_mm / 2) ** 2 - away2, 0))
    return np.asarray(chord * np.float32(_WATER_PER_MM * (nodule.hu - lung_hu) / 1000))


def developed(
    line_integrals: npt.NDArray[np.float32], rng: np.random.Generator, *, photons: float = 3e4
) -> npt.NDArray[np.uint16]:
    """Return the image that is shown, (J, I) uint16 of 12 bits, bright where little came through.

    Photon noise and scatter, then the logarithm, then the curve and the lift of details that
    detectors apply for presentation.
    """
    direct = np.exp(-line_integrals)
    wide = max(line_integrals.shape[0] / 18, 2)
    scatter = scipy.ndimage.gaussian_filter(direct, wide) * np.float32(_SCATTER)
    expected = (direct + scatter) * np.float32(photons)
    counted = expected + np.sqrt(expected + 4) * rng.standard_normal(
        expected.shape, dtype=np.float32
    )
    dense = -np.log(np.maximum(counted, 1) / np.float32(photons * (1 + _SCATTER)))
    coarse = scipy.ndimage.gaussian_filter(dense, wide / 2)
    lifted = dense + np.float32(0.45) * (dense - coarse)
    low, high = np.percentile(lifted, [1.5, 99.5])
    curve = np.clip((lifted - low) / (high - low), 0, 1)
    return np.asarray(np.rint(4095 * curve ** np.float32(1.05)), dtype=np.uint16)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrittenXray:
    """A chest X-ray on disk, with what it shows."""

    phantom: ChestPhantom
    exposure: Exposure
    file: Path
    truth: Path
    study_instance_uid: str


def write_xray(
    folder: Path,
    seed: int = 1,
    *,
    phantom: ChestPhantom | None = None,
    exposure: Exposure | None = None,
    shell: Shell | None = None,
    modality: Literal["DX", "CR"] = "DX",
) -> WrittenXray:
    """Write a PA chest X-ray as DICOM, and `truth-xray.json` beside it.

    Parameters
    ----------
    folder
        Made if it is not there. The file is `XR000001.dcm`.
    seed
        Of patient and noise.
    phantom, exposure
        None: `ChestPhantom(seed)`, and `chest_exposure` of it.
    """
    shell = shell or Shell()
    phantom = phantom or ChestPhantom(seed)
    exposure = exposure or chest_exposure(phantom)
    uids = UidSource(shell.uid_seed)
    pixels = developed(
        attenuation(phantom, exposure), np.random.default_rng((phantom.seed, seed, 7))
    )
    ds = _image(exposure, shell, uids, modality)
    set_pixels(ds, pixels, 12)
    finished(ds, shell)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "XR000001.dcm"
    ds.save_as(path, enforce_file_format=True)
    truth = folder / "truth-xray.json"
    truth.write_text(json.dumps(_truth(phantom, exposure, ds), indent=2) + "\n")
    return WrittenXray(
        phantom=phantom,
        exposure=exposure,
        file=path,
        truth=truth,
        study_instance_uid=str(ds.StudyInstanceUID),
    )


def _image(
    exposure: Exposure, shell: Shell, uids: UidSource, modality: Literal["DX", "CR"]
) -> Dataset:
    ds = patient_and_study(shell, uids)
    ds.StudyDescription = shell.study_description or "Chest PA"
    ds.Modality = modality
    ds.SOPClassUID = (
        DigitalXRayImageStorageForPresentation
        if modality == "DX"
        else ComputedRadiographyImageStorage
    )
    ds.SOPInstanceUID = uids.uid("x-ray image")
    ds.SeriesInstanceUID = uids.uid("x-ray series")
    ds.SeriesNumber = 1
    ds.InstanceNumber = 1
    ds.AcquisitionNumber = 1
    ds.SeriesDescription = "Chest PA"
    ds.ProtocolName = "Chest PA"
    ds.ViewPosition = "PA"
    ds.PatientOrientation = ["L", "F"]
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.KVP = "120"
    ds.ExposureInuAs = 2000
    ds.DistanceSourceToDetector = f"{SOURCE_TO_DETECTOR_MM:g}"
    ds.ImagerPixelSpacing = [f"{exposure.spacing_mm:.8g}"] * 2
    ds.WindowCenter = "2048"
    ds.WindowWidth = "4096"
    if modality == "DX":
        _dx(ds)
    else:
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.CassetteOrientation = "PORTRAIT"
    return ds


def _dx(ds: Dataset) -> None:
    """Add what the DX modules ask for beyond a CR (PS3.3 C.8.11)."""
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = -1
    ds.RescaleIntercept = "0"
    ds.RescaleSlope = "1"
    ds.RescaleType = "US"
    ds.PresentationLUTShape = "IDENTITY"
    ds.LossyImageCompression = "00"
    ds.BurnedInAnnotation = "NO"
    ds.ImageLaterality = "U"
    ds.DetectorType = "DIRECT"
    ds.PositionerType = "NONE"
    ds.AnatomicRegionSequence = [_code("51185008", "Thorax")]
    ds.ViewCodeSequence = [_code("272479007", "postero-anterior")]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    ds.AcquisitionContextSequence = []


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "SCT"
    item.CodeMeaning = meaning
    return item


def _shown(exposure: Exposure, nodule: Nodule) -> dict[str, object]:
    row, column = exposure.pixel_ji(nodule.centre_lps_mm)
    scale = exposure.magnification(nodule.centre_lps_mm[1]) / exposure.spacing_mm
    return {
        "centre_ji": [round(row, 2), round(column, 2)],
        "diameter_pixels": round(nodule.diameter_mm * scale, 2),
        "diameter_mm": round(nodule.diameter_mm, 3),
        "side": nodule.side,
    }


def _truth(phantom: ChestPhantom, exposure: Exposure, ds: Dataset) -> dict[str, object]:
    return {
        "modality": str(ds.Modality),
        "seed": phantom.seed,
        "study_instance_uid": str(ds.StudyInstanceUID),
        "sop_instance_uid": str(ds.SOPInstanceUID),
        "nodule": bool(phantom.nodules),
        "nodules": [_shown(exposure, nodule) for nodule in phantom.nodules],
    }
