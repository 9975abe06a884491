"""What a model found: all that the engine and the encoders of results share.

Immutable, typed, free of torch and pydicom. Coordinates are LPS millimetres, or pixels of a
projection image; masks lie on the grid of the source images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dicomai.dicom.codes import Code
from dicomai.imaging.geometry import Grid, Plane

Mask: TypeAlias = npt.NDArray[np.bool_]
"""(K, J, I) bool on the grid of the source images; (1, J, I) on a projection image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """Who found it (TID 4019), and what it may be used for."""

    name: str
    version: str
    package_sha256: str
    """Digest of the model package, lower-case hex: weights and manifest."""
    manufacturer: str
    intended_use: str
    not_for: str
    """One sentence: what the result must not be used for."""
    family: Code
    """CID 7162."""

    @property
    def warning(self) -> str:
        """What it is not for, as a sentence that stands alone, whichever way its maker wrote it."""
        starts = self.not_for.casefold().startswith("not for ")
        return self.not_for if starts else f"Not for: {self.not_for}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """An image that the model saw."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A number with its meaning and unit."""

    name: Code
    value: float
    unit: Code
    method: Code | None = None
    derivation: Code | None = None
    uncertainty: float | None = None
    """How far the true value may lie to either side, in the same unit; None: nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """A labelled region on the source grid.

    `mask` is (K, J, I) bool; `tracking_id` is unique within the findings, and SEG and SR derive
    one Tracking UID from it.
    """

    label: str
    tracking_id: str
    category: Code
    type: Code
    laterality: Code | None = None
    mask: Mask
    probability: npt.NDArray[np.float32] | None = None
    """(n,) 0 to 1: how likely each voxel of the mask belongs to it, in the order of its indices;
    None: the model does not say."""
    measurements: tuple[Measurement, ...] = ()
    display_rgb: tuple[int, int, int] = (230, 60, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sphere:
    """A ball in the patient, in LPS millimetres."""

    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box along the axes of the source grid, by two opposite corners in LPS millimetres."""

    corner_lps_mm: tuple[float, float, float]
    opposite_lps_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelBox:
    """A box on a projection image: centres of its first and last pixel, row then column, from 0."""

    sop_instance_uid: str
    first_ji: tuple[float, float]
    last_ji: tuple[float, float]


Region: TypeAlias = Sphere | Box | PixelBox


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detection:
    """One thing found somewhere.

    `mask`, where the model gives one, is (K, J, I) bool on the source grid and becomes a segment
    with the same tracking id.
    """

    label: str
    tracking_id: str
    finding: Code
    site: Code | None = None
    laterality: Code | None = None
    region: Region
    probability: float
    """0 to 1, as the model says; not calibrated unless the findings say so."""
    measurements: tuple[Measurement, ...] = ()
    category: Code | None = None
    mask: Mask | None = None
    display_rgb: tuple[int, int, int] = (250, 200, 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """A yes or no about the whole input, with the probability of yes."""

    label: str
    tracking_id: str
    finding: Code
    site: Code | None = None
    present: bool
    probability: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """All that one run of a model found in one input.

    Attributes
    ----------
    where
        The grid of the source volume, or the plane of the source image.
    sought
        What the model looks for, in words; with nothing found this is what an SR says was not
        found, and above which threshold.
    not_analysed
        Why the model did not look, in words; then there is nothing else. Empty where it did.
    deviations
        What was done otherwise than the manifest says, one sentence each: they stand in every
        result.
    warnings
        What a reader should know, one sentence each.
    """

    algorithm: Algorithm
    where: Grid | Plane
    inputs: tuple[SourceImage, ...]
    sought: str
    segments: tuple[Segment, ...] = ()
    detections: tuple[Detection, ...] = ()
    classifications: tuple[Classification, ...] = ()
    not_analysed: str = ""
    deviations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    stages_s: dict[str, float] = field(default_factory=dict)

    @property
    def nothing_found(self) -> bool:
        """No segment has a voxel, no detection, no classification is positive."""
        return (
            not any(segment.mask.any() for segment in self.segments)
            and not self.detections
            and not any(each.present for each in self.classifications)
        )
