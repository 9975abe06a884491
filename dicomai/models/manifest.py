"""What a model package says of itself: `model.toml`, read and checked key by key.

Pydantic's models stand here because TOML comes in here. Nothing in a manifest is ever executed:
networks are chosen by name from a fixed table, conditions are parsed into values.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from dicomai.dicom.codes import LEFT, RIGHT, Code
from dicomai.errors import ConfigError
from dicomai.imaging.intake import Intake
from dicomai.routing.condition import parse as parse_condition
from dicomai.routing.selection import parse_preference

MANIFEST_NAME: Final = "model.toml"
FORMAT: Final = 1

Argument: TypeAlias = str | bool | int | float | tuple[int, ...] | tuple[float, ...]
"""What a network may be given."""

Side = Literal["left", "right"]
Fact = Literal["age", "sex", "body_part", "view_position", "spacing"]
SegmentMeasure = Literal["volume", "mean", "longest_diameter"]
DetectionMeasure = Literal["volume", "mean", "diameter", "longest_diameter"]


def _increasing(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError("the first number must be below the second")
    return value


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


def _file_name(value: str) -> str:
    if not value or Path(value).name != value or not value.endswith(".safetensors"):
        raise ValueError("must be the name of a .safetensors file in the package's folder")
    return value


def _condition(value: str) -> str:
    try:
        parse_condition(value)
    except ConfigError as error:
        raise ValueError(error.sentence.rstrip(".")) from None
    return value


def _preference(value: str) -> str:
    try:
        parse_preference(value)
    except ConfigError as error:
        raise ValueError(error.sentence.rstrip(".")) from None
    return value


Range: TypeAlias = Annotated[tuple[float, float], AfterValidator(_increasing)]
Probability: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Sentence: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024)]
Byte: TypeAlias = Annotated[int, Field(ge=0, le=255)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class CodeTable(_Table):
    """A coded concept: value, scheme, meaning."""

    value: Annotated[str, Field(min_length=1, max_length=16)]
    scheme: Annotated[str, Field(min_length=1, max_length=16)]
    meaning: Annotated[str, Field(min_length=1, max_length=64)]

    @property
    def code(self) -> Code:
        """The concept as the rest of the engine knows it."""
        return Code(self.value, self.scheme, self.meaning)


class Limits(_Table):
    """Outside these a study is not analysed; a value that is missing counts as outside.

    Ranges are closed. `allow_missing` names the facts that may be missing all the same.
    """

    modality: tuple[str, ...]
    age_years: Range | None = None
    sex: tuple[Literal["M", "F", "O"], ...] = ()
    body_part: tuple[str, ...] = ()
    view_position: tuple[str, ...] = ()
    slice_spacing_mm: Range | None = None
    pixel_spacing_mm: Range | None = None
    coverage_mm: PositiveFloat | None = None
    """How far the slices must reach, at least, along their normal."""
    uneven_spacing_mm: Annotated[float, Field(ge=0)] = 0.0
    """By how much the distance between two slices may differ from the usual one; the series is
    then resampled to an even spacing. 0 refuses every uneven series."""
    for_processing: bool = False
    """Whether X-rays meant for processing are taken, the raw values of a detector."""
    allow_missing: tuple[Fact, ...] = ()


class Input(_Table):
    """Which series, or which image, the model takes."""

    name: Annotated[str, Field(min_length=1)]
    kind: Literal["volume", "image"]
    when: tuple[Annotated[str, AfterValidator(_condition)], ...] = ()
    """Conditions, written as those of a route."""
    prefer: tuple[Annotated[str, AfterValidator(_preference)], ...] = ()
    """What to order by where several fit, as "-instances" or "SliceThickness"."""
    part: str = ""
    """Of a series of several volumes the one to take, as "b-value 0" or "time 1, echo time 10"."""
    values: Literal["modality", "suv_bw", "displayed"] = "modality"
    """As they are; of a PET series, standardised uptake values by body weight, g/mL; of an image,
    as it is shown by its VOI LUT or window, from 0 to 1."""
    colour: bool = False
    """Whether the network takes red, green and blue, each from 0 to 1; else greyscale."""
    source: Literal["study", "prior"] = "study"
    """Of the study that is analysed, or of an earlier one of the same patient, the latest that
    fits."""
    max_age_days: PositiveInt | None = None
    """A prior is at most so much older than the study."""
    optional: bool = False
    """Without it the model runs all the same, with the lower value of `preprocess.scale_to`."""
    align: Literal["patient", "centre"] = "patient"
    """How a further input comes onto the grid of the first: by the patient's coordinates, in one
    frame of reference, or with its centre on the other's. Nothing is registered."""

    def intake(self, uneven_mm: float) -> Intake:
        """How a series or an image becomes this input."""
        return Intake(
            part=self.part,
            uneven_mm=uneven_mm,
            suv_body_weight=self.values == "suv_bw",
            displayed=self.values == "displayed",
            colour=self.colour,
        )


class Preprocess(_Table):
    """The way from voxels in modality units to what the network takes, in this order.

    Turn to `axes`, resample to `spacing_mm` (volume) or `shape_ji` (image, kept in proportion and
    padded), clip, scale linearly from the clipped range to `scale_to`.
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


class OnlyWhere(_Table):
    """Windows without enough such voxels are not inferred, and count as probability 0."""

    between: Range
    """In modality units."""
    fraction: Annotated[float, Field(gt=0, le=1)]


class Infer(_Table):
    """The network and how it is led over the volume."""

    runtime: Literal["torch"] = "torch"
    network: str
    arguments: dict[str, Argument] = {}
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
        if self.only_where is not None and self.window_kji is None:
            raise ValueError("only_where belongs to the inferer sliding_window")
        return self


class Postprocess(_Table):
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


class _Output(_Table):
    label: Annotated[str, Field(min_length=1, max_length=64)]
    channel: Annotated[int, Field(ge=0)] = 0
    threshold: Probability = 0.5
    display_rgb: tuple[Byte, Byte, Byte] = (230, 60, 60)
    site: CodeTable | None = None
    laterality: Side | None = None

    @property
    def laterality_code(self) -> Code | None:
        """The side of the patient as a concept."""
        return None if self.laterality is None else LEFT if self.laterality == "left" else RIGHT


class SegmentOutput(_Output):
    """A mask with a name."""

    kind: Literal["segment"]
    category: CodeTable
    type: CodeTable


class DetectionOutput(_Output):
    """Each component of a mask is one thing found."""

    kind: Literal["detection"]
    finding: CodeTable
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


Output: TypeAlias = Annotated[
    SegmentOutput | DetectionOutput | ClassOutput, Field(discriminator="kind")
]


class Measure(_Table):
    """What is measured in each segment and in each detection."""

    segment: tuple[SegmentMeasure, ...] = ()
    detection: tuple[DetectionMeasure, ...] = ()


class Manifest(_Table):
    """A whole `model.toml`."""

    format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    manufacturer: Annotated[str, Field(min_length=1, max_length=64)]
    licence: Annotated[str, Field(min_length=1)]
    intended_use: Sentence
    not_for: Sentence
    sought: Sentence
    """What the model looks for, in words; an SR says it where nothing was found."""
    family: CodeTable = CodeTable(value="123110", scheme="DCM", meaning="Artificial Intelligence")
    """CID 7162."""
    weights: Annotated[str, AfterValidator(_file_name)] = "weights.safetensors"
    limits: Limits
    input: Annotated[tuple[Input, ...], Field(min_length=1, max_length=8)]
    preprocess: Preprocess
    infer: Infer
    postprocess: Postprocess = Postprocess()
    output: Annotated[tuple[Output, ...], Field(min_length=1)]
    measure: Measure = Measure()

    @property
    def intake(self) -> Intake:
        """How a series or an image becomes what the model takes."""
        return self.input[0].intake(self.limits.uneven_spacing_mm)

    @model_validator(mode="after")
    def _inputs_fit_together(self) -> Manifest:
        first, *further = self.input
        if first.source != "study" or first.optional or first.align != "patient":
            raise ValueError("the first input is of the study: no source, optional or align")
        if further and any(each.kind != "volume" for each in self.input):
            raise ValueError("a model of several inputs takes volumes only")
        names = [each.name for each in self.input]
        if len(set(names)) != len(names):
            raise ValueError("two inputs have the same name")
        for each in further:
            if each.source == "prior" and each.align == "patient":
                raise ValueError(
                    f"input {each.name}: a prior lies in a frame of reference of its own; say "
                    'align = "centre", which is how the model must have been trained'
                )
        if any(each.max_age_days is not None and each.source != "prior" for each in self.input):
            raise ValueError('max_age_days of an input belongs to source = "prior"')
        channels = self.infer.arguments.get("in_channels")
        if further and channels is not None and channels != len(self.input):
            raise ValueError(
                f"infer.arguments.in_channels is {channels}, and there are {len(self.input)} inputs"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        image = self.input[0].kind == "image"
        if image and any(each.kind != "class" for each in self.output):
            raise ValueError('an image takes outputs of kind "class" only')
        if not image and any(each.kind == "class" for each in self.output):
            raise ValueError('a volume takes outputs of kind "segment" and "detection" only')
        if image and (self.infer.inferer != "whole" or self.preprocess.shape_ji is None):
            raise ValueError("an image takes the inferer whole and preprocess.shape_ji")
        if not image and self.preprocess.shape_ji is not None:
            raise ValueError("preprocess.shape_ji belongs to an image")
        taken = self.input[0]
        if image and (taken.part or taken.values == "suv_bw"):
            raise ValueError('part and values = "suv_bw" of an input belong to a volume')
        if not image and (taken.colour or taken.values == "displayed"):
            raise ValueError('colour and values = "displayed" of an input belong to an image')
        if taken.colour and taken.values != "modality":
            raise ValueError("a colour image is as it is: leave values out")
        if image and self.preprocess.spacing_mm is not None:
            raise ValueError("preprocess.spacing_mm belongs to a volume")
        labels = [each.label for each in self.output]
        if len(set(labels)) != len(labels):
            raise ValueError("two outputs have the same label")
        if self.postprocess.split_sides and any(
            each.kind == "segment" and each.laterality is None for each in self.output
        ):
            raise ValueError("postprocess.split_sides needs a laterality in each segment")
        return self


def parse(text: str, where: str) -> Manifest:
    """Return the manifest that a TOML text holds.

    Parameters
    ----------
    text
        The content of a `model.toml`.
    where
        The file, for the sentence of an error.

    Raises
    ------
    ConfigError
        Names the file, the key, what is wrong and what to do.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}.", subject=where) from None
    try:
        return Manifest.model_validate(table)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_sentence(where, each) for each in error.errors(include_url=False)),
            subject=where,
        ) from None


def read(path: Path) -> Manifest:
    """Return the manifest in a file; raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: a model package is a folder with a {MANIFEST_NAME}.",
            subject=str(path),
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}.", subject=str(path)) from None
    return parse(text, str(path))


def _sentence(where: str, error: object) -> str:
    assert isinstance(error, dict)
    steps = [
        str(step)
        for step in error["loc"]
        if not (isinstance(step, str) and step in {"segment", "detection", "class"})
        or len(error["loc"]) <= 2
    ]
    key = "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps).lstrip(".")
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = "there is no such key; remove it or correct its spelling"
    elif kind == "missing":
        message = "is missing; add it"
    else:
        given = error.get("input")
        shown = "" if isinstance(given, dict | list) or given is None else f", not {given!r}"
        message = f"{message[:1].lower()}{message[1:]}{shown}"
    return f"{where}, {key}: {message}." if key else f"{where}: {message}."
