"""A chest CT of a phantom: its grid, its noise, its DICOM files, and the truth beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import scipy.ndimage
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from dicomai.phantom.chest import ChestPhantom
from dicomai.phantom.shapes import Matrix
from dicomai.phantom.shell import Shell, UidSource, finished, patient_and_study, set_pixels

Orientation = Literal["axial", "coronal", "sagittal", "oblique"]

# Directions of a row (along which the column index grows) and of a column, in LPS.
_TILT: Final = np.array([[0.985, 0.17, 0.03], [-0.15, 0.93, -0.335]])
_DIRECTIONS: Final[dict[Orientation, npt.NDArray[np.float64]]] = {
    "axial": np.array([[1.0, 0, 0], [0, 1, 0]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, -1]]),
    "sagittal": np.array([[0, 1.0, 0], [0, 0, -1]]),
    "oblique": _TILT,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """How a patient is scanned.

    Attributes
    ----------
    row_lps, column_lps
        Unit vectors: where the column index grows, and where the row index grows
        (Image Orientation (Patient)).
    first_lps_mm
        Centre of the first voxel of the first slice.
    step_mm
        From slice to slice along the normal, which is `row_lps` × `column_lps`; negative runs
        against it.
    noise_hu
        Standard deviation in the middle of the patient.
    resolution_mm
        Width over which a surface is blurred.
    padding_hu
        Value outside the circle that was reconstructed; None fills the square.
    """

    shape_kji: tuple[int, int, int]
    spacing_ji_mm: tuple[float, float]
    step_mm: float
    thickness_mm: float
    row_lps: tuple[float, float, float]
    column_lps: tuple[float, float, float]
    first_lps_mm: tuple[float, float, float]
    noise_hu: float = 12.0
    resolution_mm: float = 1.1
    padding_hu: float | None = None
    kernel: str = "B30f"
    kvp: float = 120.0
    patient_position: Literal["HFS", "FFS"] = "HFS"

    @property
    def index_to_lps(self) -> Matrix:
        """(4, 4) float64: (k, j, i, 1) of a voxel's centre to LPS mm (PS3.3 C.7.6.2.1.1)."""
        row, column = np.asarray(self.row_lps), np.asarray(self.column_lps)
        matrix = np.eye(4)
        matrix[:3, 0] = np.cross(row, column) * self.step_mm
        matrix[:3, 1] = column * self.spacing_ji_mm[0]
        matrix[:3, 2] = row * self.spacing_ji_mm[1]
        matrix[:3, 3] = self.first_lps_mm
        return matrix


def chest_scan(
    phantom: ChestPhantom,
    *,
    matrix: int = 384,
    slice_spacing_mm: float = 2.5,
    orientation: Orientation = "axial",
    field_mm: float | None = None,
    from_head: bool = False,
    noise_hu: float = 12.0,
    resolution_mm: float = 1.1,
    padding_hu: float | None = None,
    kernel: str = "B30f",
    patient_position: Literal["HFS", "FFS"] = "HFS",
) -> Scan:
    """Return a scan that covers the whole lungs of a phantom.

    Parameters
    ----------
    matrix
        Rows and columns.
    field_mm
        Edge of a slice; None takes what covers the body's width, or its length where slices
        stand upright.
    from_head
        The first slice is the last along the normal.
    """
    row, column = _DIRECTIONS[orientation]
    row = row / np.linalg.norm(row)
    column = column - row * (row @ column)
    column = column / np.linalg.norm(column)
    normal = np.cross(row, column)
    extent = np.asarray(phantom.extent_mm)
    edge = float(field_mm or np.ceil(max(np.abs(row) @ extent, np.abs(column) @ extent) * 0.98))
    upright = orientation in ("coronal", "sagittal")
    depth = np.abs(normal) @ extent if not upright else np.abs(normal) @ (extent * 0.9)
    slices = int(np.ceil((depth + 12) / slice_spacing_mm))
    spacing = edge / matrix
    step = -slice_spacing_mm if from_head else slice_spacing_mm
    middle = np.asarray(phantom.centre_lps_mm)
    first = (
        middle
        - row * spacing * (matrix - 1) / 2
        - column * spacing * (matrix - 1) / 2
        - normal * step * (slices - 1) / 2
    )
    # Positions in files have a few decimals; the truth takes the same.
    first = np.round(first, 3)
    return Scan(
        shape_kji=(slices, matrix, matrix),
        spacing_ji_mm=(round(spacing, 6), round(spacing, 6)),
        step_mm=step,
        thickness_mm=slice_spacing_mm,
        row_lps=_triple(row),
        column_lps=_triple(column),
        first_lps_mm=_triple(first),
        noise_hu=noise_hu,
        resolution_mm=resolution_mm,
        padding_hu=padding_hu,
        kernel=kernel,
        patient_position=patient_position,
    )


def _triple(vector: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (round(float(each), 9) + 0.0 for each in vector)
    return (x, y, z)


def scanned(phantom: ChestPhantom, scan: Scan, seed: int = 0) -> npt.NDArray[np.int16]:
    """Return what a scanner would give, (K, J, I) int16 HU, with noise and padding.

    The noise has the grain of a reconstruction: white noise without its lowest frequencies,
    smoothed by the kernel, and stronger where the patient is thick.
    """
    edge = max(scan.resolution_mm, *scan.spacing_ji_mm)
    hu = phantom.hounsfield(scan.index_to_lps, scan.shape_kji, edge_mm=edge)
    if scan.noise_hu > 0:
        hu += _noise(scan, np.random.default_rng((phantom.seed, seed)), hu)
    values = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    if scan.padding_hu is not None:
        _, rows, columns = scan.shape_kji
        v = (np.arange(rows) - (rows - 1) / 2)[:, None] / (rows / 2)
        u = (np.arange(columns) - (columns - 1) / 2)[None, :] / (columns / 2)
        values[:, u * u + v * v > 1] = np.int16(scan.padding_hu)
    return values


def _noise(
    scan: Scan, rng: np.random.Generator, hu: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    grain = rng.standard_normal(scan.shape_kji, dtype=np.float32)
    fine = max(0.35, 0.42 * scan.resolution_mm / scan.spacing_ji_mm[0])
    for plane, values in zip(grain, hu, strict=True):
        smooth = scipy.ndimage.gaussian_filter(plane, fine, mode="wrap", truncate=2.5)
        smooth -= scipy.ndimage.uniform_filter(smooth, 9, mode="wrap")
        # Where more of the ray is dense, fewer photons arrive.
        thick = (values > -500).mean(dtype=np.float32)
        smooth *= np.float32(scan.noise_hu * (0.6 + 0.9 * thick) / max(float(smooth.std()), 1e-6))
        plane[:] = smooth
    return grain


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrittenCt:
    """A CT on disk, with what it shows.

    Attributes
    ----------
    files
        In the order of the slices, k from 0.
    truth
        `truth.json`, in the folder.
    """

    phantom: ChestPhantom
    scan: Scan
    files: tuple[Path, ...]
    truth: Path
    study_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str


def write_ct(
    folder: Path,
    seed: int = 1,
    *,
    phantom: ChestPhantom | None = None,
    scan: Scan | None = None,
    shell: Shell | None = None,
) -> WrittenCt:
    """Write a chest CT as DICOM files, and `truth.json` beside them.

    Parameters
    ----------
    folder
        Made if it is not there. Files are `IM000001.dcm` and on.
    seed
        Of patient and noise.
    phantom, scan
        None: `ChestPhantom(seed)`, and `chest_scan` of it.
    """
    shell = shell or Shell()
    phantom = phantom or ChestPhantom(seed)
    scan = scan or chest_scan(phantom)
    uids = UidSource(shell.uid_seed)
    voxels = scanned(phantom, scan, seed)
    folder.mkdir(parents=True, exist_ok=True)
    common = _series(scan, shell, uids)
    files = []
    for k, pixels in enumerate(voxels):
        ds = _slice(common, scan, shell, uids, k, pixels)
        path = folder / f"IM{k + 1:06d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        files.append(path)
    truth = folder / "truth.json"
    truth.write_text(json.dumps(_truth(phantom, scan, common), indent=2) + "\n")
    return WrittenCt(
        phantom=phantom,
        scan=scan,
        files=tuple(files),
        truth=truth,
        study_instance_uid=str(common.StudyInstanceUID),
        series_instance_uid=str(common.SeriesInstanceUID),
        frame_of_reference_uid=str(common.FrameOfReferenceUID),
    )


def _series(scan: Scan, shell: Shell, uids: UidSource) -> Dataset:
    ds = patient_and_study(shell, uids)
    ds.StudyDescription = shell.study_description or "CT chest"
    ds.Modality = "CT"
    ds.SOPClassUID = CTImageStorage
    ds.SeriesInstanceUID = uids.uid("ct series")
    ds.SeriesNumber = 2
    ds.SeriesDescription = f"Chest {scan.thickness_mm:.1f} mm {scan.kernel}"
    ds.ProtocolName = "Chest"
    ds.FrameOfReferenceUID = shell.frame_of_reference_uid or uids.uid("frame of reference")
    ds.PositionReferenceIndicator = ""
    upright = abs(scan.row_lps[2]) > 0.7 or abs(scan.column_lps[2]) > 0.7
    ds.ImageType = ["DERIVED", "SECONDARY", "MPR"] if upright else ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientPosition = scan.patient_position
    ds.KVP = f"{scan.kvp:g}"
    ds.XRayTubeCurrent = 180
    ds.ExposureTime = 500
    ds.ConvolutionKernel = scan.kernel
    ds.SliceThickness = f"{scan.thickness_mm:.4g}"
    ds.SpacingBetweenSlices = f"{abs(scan.step_mm):.4g}"
    ds.ReconstructionDiameter = f"{scan.spacing_ji_mm[1] * scan.shape_kji[2]:.6g}"
    ds.GantryDetectorTilt = "0"
    ds.AcquisitionNumber = 1
    ds.PixelSpacing = [f"{each:.8g}" for each in scan.spacing_ji_mm]
    ds.ImageOrientationPatient = [f"{each:.9f}" for each in (*scan.row_lps, *scan.column_lps)]
    ds.RescaleIntercept = "-1024"
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"
    ds.WindowCenter = ["-600", "40"]
    ds.WindowWidth = ["1500", "400"]
    return ds


def _slice(
    common: Dataset,
    scan: Scan,
    shell: Shell,
    uids: UidSource,
    k: int,
    pixels: npt.NDArray[np.int16],
) -> Dataset:
    ds = Dataset()
    ds.update(common)
    ds.SOPInstanceUID = uids.uid(f"ct slice {k}")
    ds.InstanceNumber = k + 1
    position = scan.index_to_lps @ [k, 0, 0, 1]
    ds.ImagePositionPatient = [f"{each:.6f}" for each in position[:3]]
    normal = np.cross(scan.row_lps, scan.column_lps)
    ds.SliceLocation = f"{float(normal @ position[:3]):.4f}"
    stored = pixels + 1024
    if scan.padding_hu is not None:
        ds.PixelPaddingValue = int(scan.padding_hu) + 1024
        ds["PixelPaddingValue"].VR = "SS"
    set_pixels(ds, stored.astype(np.int16), 16)
    return finished(ds, shell)


def _truth(phantom: ChestPhantom, scan: Scan, common: Dataset) -> dict[str, object]:
    return {
        "modality": "CT",
        "seed": phantom.seed,
        "study_instance_uid": str(common.StudyInstanceUID),
        "series_instance_uid": str(common.SeriesInstanceUID),
        "frame_of_reference_uid": str(common.FrameOfReferenceUID),
        "index_to_lps": scan.index_to_lps.tolist(),
        "shape_kji": list(scan.shape_kji),
        "lung_volume_ml": {
            side: round(volume, 2) for side, volume in phantom.lung_volume_ml.items()
        },
        "nodules": [
            {
                "centre_lps_mm": [round(each, 3) for each in nodule.centre_lps_mm],
                "diameter_mm": round(nodule.diameter_mm, 3),
                "volume_mm3": round(nodule.volume_mm3, 2),
                "side": nodule.side,
            }
            for nodule in phantom.nodules
        ],
    }
