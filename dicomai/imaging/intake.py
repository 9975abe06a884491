"""What a model takes of a series, and in which form, as its manifest says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """How a series becomes the input of a model.

    Attributes
    ----------
    part
        Of a series of several volumes the one to take, as `SourceVolume.part` calls it: all that
        stands here between commas stands there too. Empty: a series of several is refused.
    uneven_mm
        By how much the distance between two slices may differ from the usual one.
    suv_body_weight
        PET in standardised uptake values by body weight, g/mL, instead of modality units.
    displayed
        A projection image as it is shown, by its VOI LUT or window, instead of modality units.
    colour
        An image in colour, instead of greyscale.
    """

    part: str = ""
    uneven_mm: float = 0.0
    suv_body_weight: bool = False
    displayed: bool = False
    colour: bool = False


PLAIN = Intake()
"""One volume of evenly spaced slices, or one greyscale image, in modality units."""
