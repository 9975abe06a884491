"""Whether an input is one that the model was made for."""

from __future__ import annotations

from dicomai.errors import InputError
from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Grid, Plane
from dicomai.models.input import Fact, Limits


def check(limits: Limits, facts: Facts, where: Grid | Plane, model: str, subject: str) -> None:
    """Raise InputError with all that lies outside a package's limits.

    Parameters
    ----------
    facts, where
        What the input says of itself; a value that is missing counts as outside, unless
        `limits.allow_missing` names it.
    model, subject
        Name of the package and UID of the series, for the sentence.
    """
    outside = [
        *_of_the_patient(limits, facts),
        *_listed("modality", facts.modality, limits.modality, limits),
        *_listed("body_part", facts.body_part, limits.body_part, limits),
        *_listed("view_position", facts.view_position, limits.view_position, limits),
        *_of_the_grid(limits, where),
    ]
    if facts.presentation_intent == "FOR PROCESSING" and not limits.for_processing:
        outside.append("it holds the raw values of the detector, meant for processing")
    if outside:
        raise InputError(
            f"Series {subject} was not analysed by {model}, because it lies outside its limits: "
            f"{'; '.join(outside)}.",
            subject=subject,
        )


def _of_the_patient(limits: Limits, facts: Facts) -> list[str]:
    out = _listed("sex", facts.sex, limits.sex, limits)
    if limits.age_years is None:
        return out
    low, high = limits.age_years
    if facts.age_years is None:
        return out if "age" in limits.allow_missing else [*out, "the patient's age is not known"]
    # Ages are told in whole years, so someone of 18 is 18 until he is 19.
    if not low <= facts.age_years < high + 1:
        out.append(f"the patient is {facts.age_years:.0f} years old, allowed {low:g} to {high:g}")
    return out


def _listed(fact: Fact | str, value: str, allowed: tuple[str, ...], limits: Limits) -> list[str]:
    if not allowed or value.upper() in {each.upper() for each in allowed}:
        return []
    name = fact.replace("_", " ")
    if not value:
        return [] if fact in limits.allow_missing else [f"the {name} is not stated"]
    return [f"the {name} is {value}, allowed {', '.join(allowed)}"]


def _of_the_grid(limits: Limits, where: Grid | Plane) -> list[str]:
    out = []
    if isinstance(where, Plane):
        spacings = where.spacing_ji_mm
        if spacings is None:
            if limits.pixel_spacing_mm is None or "spacing" in limits.allow_missing:
                return []
            return ["the pixel spacing is not stated"]
    else:
        between_slices, *in_plane = where.spacing_kji_mm
        spacings = (in_plane[0], in_plane[1])
        if limits.slice_spacing_mm and not _within(between_slices, limits.slice_spacing_mm):
            out.append(_told("slice spacing", between_slices, limits.slice_spacing_mm))
        reach = between_slices * where.shape_kji[0]
        if limits.coverage_mm is not None and reach < limits.coverage_mm:
            out.append(f"it covers {reach:.0f} mm, needed {limits.coverage_mm:g} mm")
    if limits.pixel_spacing_mm:
        out += [
            _told("pixel spacing", spacing, limits.pixel_spacing_mm)
            for spacing in sorted(set(spacings))
            if not _within(spacing, limits.pixel_spacing_mm)
        ]
    return out


def _within(value: float, limit: tuple[float, float]) -> bool:
    return limit[0] - 1e-3 <= value <= limit[1] + 1e-3


def _told(name: str, value: float, limit: tuple[float, float]) -> str:
    return f"the {name} is {value:.2f} mm, allowed {limit[0]:g} to {limit[1]:g} mm"
