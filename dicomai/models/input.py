"""What a model takes: its inputs, and the limits outside which a study is not analysed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from dicomai.errors import ConfigError
from dicomai.imaging.intake import Intake
from dicomai.models.table import NOT_EMPTY, Extent, Listed, Table
from dicomai.routing.condition import parse as parse_condition
from dicomai.routing.selection import parse_preference

Fact = Literal["age", "sex", "body_part", "view_position", "spacing"]


def _parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    """Return what has a text refused, with the sentence of its parser."""

    def checked(value: str) -> str:
        try:
            parse(value)
        except ConfigError as error:
            raise ValueError(error.sentence.rstrip(".")) from None
        return value

    return AfterValidator(checked)


class Limits(Table):
    """Outside these a study is not analysed; a value that is missing counts as outside.

    Ranges are closed. `allow_missing` names the facts that may be missing all the same.
    """

    modality: Annotated[tuple[Listed, ...], NOT_EMPTY]
    age_years: Extent | None = None
    sex: tuple[Literal["M", "F", "O"], ...] = ()
    body_part: tuple[Listed, ...] = ()
    view_position: tuple[Listed, ...] = ()
    slice_spacing_mm: Extent | None = None
    pixel_spacing_mm: Extent | None = None
    coverage_mm: PositiveFloat | None = None
    """How far the slices must reach, at least, along their normal."""
    uneven_spacing_mm: Annotated[float, Field(ge=0)] = 0.0
    """By how much the distance between two slices may differ from the usual one; the series is
    then resampled to an even spacing. 0 refuses every uneven series."""
    for_processing: bool = False
    """Whether X-rays meant for processing are taken, the raw values of a detector."""
    allow_missing: tuple[Fact, ...] = ()


class Input(Table):
    """Which series, or which image, the model takes."""

    name: Annotated[str, Field(min_length=1)]
    kind: Literal["volume", "image"]
    when: tuple[Annotated[str, _parsed_by(parse_condition)], ...] = ()
    """Conditions, written as those of a route."""
    prefer: tuple[Annotated[str, _parsed_by(parse_preference)], ...] = ()
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
