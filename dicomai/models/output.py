"""What a model gives: segments, detections, classes, and what is measured in them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from dicomai.dicom.codes import LEFT, RIGHT, Code
from dicomai.models.table import ONCE, Byte, CodeTable, Probability, Table

Side = Literal["left", "right"]
SegmentMeasure = Literal["volume", "mean", "longest_diameter"]
DetectionMeasure = Literal["volume", "mean", "diameter", "longest_diameter"]


class _Output(Table):
    label: Annotated[str, Field(min_length=1, max_length=64)]
    channel: Annotated[int, Field(ge=0)] = 0
    """Of the network; said in words where that gives several."""
    threshold: Probability = 0.5


class _MaskOutput(_Output):
    display_rgb: tuple[Byte, Byte, Byte] = (230, 60, 60)
    laterality: Side | None = None

    @property
    def laterality_code(self) -> Code | None:
        """The side of the patient as a concept."""
        return None if self.laterality is None else LEFT if self.laterality == "left" else RIGHT


class SegmentOutput(_MaskOutput):
    """A mask with a name."""

    kind: Literal["segment"]
    category: CodeTable
    type: CodeTable


class DetectionOutput(_MaskOutput):
    """Each component of a mask is one thing found."""

    kind: Literal["detection"]
    finding: CodeTable
    site: CodeTable | None = None
    category: CodeTable | None = None
    score: Literal["max", "mean"] = "max"
    """How a component's probability comes from those of its voxels."""
    min_diameter_mm: Annotated[float, Field(ge=0)] = 0.0
    """Of the ball of equal volume."""
    mask: bool = True
    """Whether the component becomes a segment too."""


class ClassOutput(_Output):
    """A yes or no about the whole input."""

    kind: Literal["class"]
    finding: CodeTable
    site: CodeTable | None = None


Output: TypeAlias = Annotated[
    SegmentOutput | DetectionOutput | ClassOutput, Field(discriminator="kind")
]


class Measure(Table):
    """What is measured in each segment and in each detection."""

    segment: Annotated[tuple[SegmentMeasure, ...], ONCE] = ()
    detection: Annotated[tuple[DetectionMeasure, ...], ONCE] = ()
