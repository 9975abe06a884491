"""What happens between a model's inputs and its outputs: preprocess, infer, postprocess."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from dicomai.models.table import Range, Table

Argument: TypeAlias = str | bool | int | float | tuple[int, ...] | tuple[float, ...]
"""What a network may be given."""


def _patient_axes(value: str) -> str:
    if sorted({"R": "L", "A": "P", "F": "H"}.get(letter, letter) for letter in value) != [
        "H",
        "L",
        "P",
    ]:
        raise ValueError(
            "give the direction in which k, j and i grow: one of H or F, one of A or P, "
            'one of R or L, as "HPL"'
        )
    return value


class Preprocess(Table):
    """The way from voxels in modality units to what the network takes.

    Of a volume in this order: turn to `axes`, resample to `spacing_mm`, clip, scale linearly from
    the clipped range to `scale_to`. Of an image: clip, scale, resample to `shape_ji`, kept in
    proportion, and pad.
    """

    axes: Annotated[str, AfterValidator(_patient_axes)] = "HPL"
    """Direction of the patient in which k, j and i grow. Axes are exchanged and turned round, to
    those that lie nearest; the volume is never rotated."""
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Along k, j, i of the model; None keeps the source's."""
    shape_ji: tuple[PositiveInt, PositiveInt] | None = None
    clip: Range | None = None
    """In modality units, Hounsfield for CT."""
    clip_percentiles: Range | None = None
    """Of all pixels of the image, where modality units mean nothing; excludes `clip`."""
    scale_to: Range = (0.0, 1.0)

    @model_validator(mode="after")
    def _one_clip(self) -> Preprocess:
        if (self.clip is None) == (self.clip_percentiles is None):
            raise ValueError("give either clip or clip_percentiles")
        if (
            self.clip_percentiles
            and not 0 <= self.clip_percentiles[0] < (self.clip_percentiles[1]) <= 100
        ):
            raise ValueError("clip_percentiles lie between 0 and 100")
        return self


class OnlyWhere(Table):
    """Windows without enough such voxels are not inferred, and count as probability 0."""

    between: Range
    """In modality units."""
    fraction: Annotated[float, Field(gt=0, le=1)]


class Infer(Table):
    """The network and how it is led over the volume."""

    runtime: Literal["torch"] = "torch"
    network: str
    arguments: Annotated[dict[str, Argument], Field(default_factory=dict)]
    inferer: Literal["sliding_window", "whole"]
    window_kji: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    blend: Literal["gaussian", "constant"] = "gaussian"
    activation: Literal["sigmoid", "softmax"]
    """Probabilities are what is blended in the overlap of windows, and what is resampled."""
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    """Whether torch may compile the network for a GPU: the first analysis after a start then takes
    a minute more, and later ones less. A host without a compiler runs it as it is."""
    batch: PositiveInt = 1
    only_where: OnlyWhere | None = None

    @model_validator(mode="after")
    def _window(self) -> Infer:
        if (self.inferer == "sliding_window") != (self.window_kji is not None):
            raise ValueError("window_kji belongs to the inferer sliding_window, which needs it")
        for key in ("overlap", "blend", "only_where"):
            if self.window_kji is None and key in self.model_fields_set:
                raise ValueError(f"{key} belongs to the inferer sliding_window; remove it")
        return self


class Postprocess(Table):
    """The way from probabilities on the source grid to masks, in this order.

    `decide`, `fill_holes`, drop components under `min_volume_ml`, keep the `largest`, split into
    sides.
    """

    decide: Literal["threshold", "argmax"] = "threshold"
    """`argmax` gives each voxel to its most probable channel, whatever the thresholds."""
    fill_holes: bool = False
    """Fill what a mask closes in, within each slice of the source."""
    min_volume_ml: Annotated[float, Field(ge=0)] = 0.0
    largest: PositiveInt | None = None
    """How many components to keep, by volume."""
    split_sides: bool = False
    """A mask is both lungs: each output takes the side that its `laterality` says."""
    max_findings: PositiveInt = 20
    """Detections beyond this number, the least probable, are left out with a warning."""
