"""From the data sets of a series to a volume in modality units on a grid in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from dicomai.errors import InputError
from dicomai.imaging.attributes import name_of, numbers, text, whole
from dicomai.imaging.facts import Facts, facts_of
from dicomai.imaging.geometry import Grid
from dicomai.imaging.modality import ModalityTransform, modality_transform
from dicomai.imaging.pixels import (
    StoredPixels,
    check_greyscale,
    in_parallel,
    sop_class_name,
    stored_pixels,
)
from dicomai.imaging.stack import Slice, stack

if TYPE_CHECKING:
    import highdicom

Voxels: TypeAlias = npt.NDArray[np.int16] | npt.NDArray[np.float32]
"""(K, J, I) in modality units."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceVolume:
    """A series as a volume.

    Attributes
    ----------
    grid
        Where it lies, with the image of each slice.
    voxels
        (K, J, I) in modality units (Hounsfield for CT): int16 where that is exact, else float32.
        Padding has the lowest value of what is no padding.
    facts
        What the series says of patient and acquisition.
    series_instance_uid
        The series.
    headers
        The data sets, by k; empty where only voxels are needed, as in a runner.
    warnings
        What a reader should know, one sentence each.
    """

    grid: Grid
    voxels: Voxels
    facts: Facts
    series_instance_uid: str
    headers: tuple[Dataset, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def volume(self) -> highdicom.Volume:
        """The same as highdicom has it: index order (k, j, i), LPS millimetres."""
        import highdicom  # 0.4 s that only those pay who want it

        return highdicom.Volume(
            array=self.voxels,
            affine=self.grid.index_to_lps,
            coordinate_system="PATIENT",
            frame_of_reference_uid=self.grid.frame_of_reference_uid,
        )


def volume_of(datasets: Sequence[Dataset]) -> SourceVolume:
    """Return the volume that the images of one series make.

    Parameters
    ----------
    datasets
        Single-frame greyscale images with pixel data, in any order.

    Raises
    ------
    InputError
        They don't make one volume: a gap, a position twice, several orientations, spacings or
        frames of reference, gantry tilt, colour, several frames, a missing or absurd attribute,
        pixel data that can't be decoded. The sentence names the object or the position.
    """
    if not datasets:
        raise InputError("There is no image in the series.")
    series = text(datasets[0], "SeriesInstanceUID")
    for dataset in datasets:
        check_greyscale(dataset)
    placed = stack([slice_of(dataset) for dataset in datasets], series)
    headers = tuple(datasets[index] for index in placed.order)
    frames = [
        _Frame(k=k, pixels=stored_pixels(header), index=0, transform=modality_transform(header))
        for k, header in enumerate(headers)
    ]
    return SourceVolume(
        grid=placed.grid,
        voxels=_voxels(frames, placed.grid.shape_kji),
        facts=facts_of(headers[0]),
        series_instance_uid=series,
        headers=headers,
        warnings=placed.warnings,
    )


def slice_of(dataset: Dataset) -> Slice:
    """Return where an image says that it lies; raises InputError for what it does not say."""
    name, subject = name_of(dataset), text(dataset, "SOPInstanceUID")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
        if not text(dataset, keyword):
            raise InputError(
                f"{name} ({sop_class_name(dataset)}) has no {keyword}, so it has no place in the "
                "patient and is no slice of a volume. Leave it out of the series, or have the "
                "modality send it whole.",
                subject=subject,
            )
    position = numbers(dataset, "ImagePositionPatient", 3)
    cosines = np.array(numbers(dataset, "ImageOrientationPatient", 6))
    between_rows, between_columns = numbers(dataset, "PixelSpacing", 2)
    shape = (whole(dataset, "Rows"), whole(dataset, "Columns"))
    if min(between_rows, between_columns) <= 0 or min(shape) <= 0 or max(map(abs, position)) > 1e5:
        raise InputError(
            f"{name}: a spacing of {between_rows:g}×{between_columns:g} mm, {shape[0]}×{shape[1]} "
            f"pixels at {position} mm make no sense. Have the modality mend them.",
            subject=subject,
        )
    return Slice(
        sop_instance_uid=subject,
        frame_of_reference_uid=text(dataset, "FrameOfReferenceUID"),
        position=np.array(position),
        row=cosines[:3],
        column=cosines[3:],
        spacing_ji_mm=(between_rows, between_columns),
        shape_ji=shape,
        localizer="LOCALIZER" in text(dataset, "ImageType").split("\\"),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Frame:
    """What makes one slice of voxels."""

    k: int
    pixels: StoredPixels
    index: int
    transform: ModalityTransform


def _voxels(frames: Sequence[_Frame], shape_kji: tuple[int, int, int]) -> Voxels:
    """Each slice by its own rescale; int16 where every slice fits, else float32."""
    whole_numbers = np.empty(shape_kji, dtype=np.int16)
    info = np.iinfo(np.int16)
    too_large: dict[int, npt.NDArray[np.float32]] = {}
    paddings: dict[int, npt.NDArray[np.bool_]] = {}

    def decode(frame: _Frame) -> float:
        """Fill one slice; return the lowest of its values that are no padding."""
        values, padding = frame.transform.values(frame.pixels.frame(frame.index))
        kept = values
        if padding is not None:
            paddings[frame.k] = padding
            kept = values[~padding]
        low, high = (float(kept.min()), float(kept.max())) if kept.size else (np.inf, -np.inf)
        if values.dtype == np.int32 and low >= info.min and high <= info.max:
            whole_numbers[frame.k] = values
        else:
            too_large[frame.k] = values.astype(np.float32)
        return low

    lowest = min(in_parallel(decode, frames))
    if not np.isfinite(lowest):
        raise InputError(
            f"{frames[0].pixels.name} and all other slices of its series are nothing but padding."
        )
    out: Voxels = whole_numbers.astype(np.float32) if too_large else whole_numbers
    for k, values in too_large.items():
        out[k] = values
    for k, padding in paddings.items():
        out[k][padding] = lowest
    return out
