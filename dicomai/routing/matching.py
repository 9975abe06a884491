"""Does a route want a study, and what would its model be given? All reasons are sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from dicomai.dicom.header import Attributes
from dicomai.routing.exclusion import Excluded, exclude
from dicomai.routing.image import Image, Series
from dicomai.routing.route import Route
from dicomai.routing.selection import Choice, ModelInputs, choose


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmatched:
    """The route wants nothing of the study."""

    because: str
    excluded: tuple[Excluded, ...] = ()
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """The route's model gets one candidate for each of its inputs."""

    because: str
    excluded: tuple[Excluded, ...]
    choices: tuple[Choice, ...]

    @property
    def images(self) -> tuple[Image, ...]:
        """All that the model is given."""
        return tuple(
            image
            for choice in self.choices
            if choice.chosen is not None
            for image in choice.chosen.images
        )


def match(
    route: Route, model: ModelInputs, study: Sequence[Series], *, today: date
) -> Matched | Unmatched:
    """Return what a route wants of a study.

    Parameters
    ----------
    route
        The rule; its conditions are about the model's first input, the further inputs have only
        those of the model.
    model
        What its model needs.
    study
        All series of the study.
    today
        The date that `max_study_age_days` counts from.
    """
    if route.mode == "off":
        return Unmatched(because="it is off")
    if (reason := _too_old(route, study, today)) is not None:
        return Unmatched(because=reason)
    left: list[Series] = []
    excluded: list[Excluded] = []
    for series in study:
        remaining, out = exclude(series, route.allow)
        excluded += out
        if remaining is not None:
            left.append(remaining)
    choices = tuple(
        choose(spec, left, () if number else route.when) for number, spec in enumerate(model.inputs)
    )
    for choice in choices:
        if choice.chosen is None:
            reasons = [each.rstrip(".") for each in choice.rejected]
            reason = "; ".join(reasons) or "every series was left out"
            return Unmatched(
                because=f"nothing fits input {choice.input} of {route.model}: {reason}",
                excluded=tuple(excluded),
                choices=choices,
            )
    gets = ", ".join(
        f"{choice.input}: {choice.chosen.title}" for choice in choices if choice.chosen is not None
    )
    return Matched(because=f"{route.model} gets {gets}", excluded=tuple(excluded), choices=choices)


def _too_old(route: Route, study: Sequence[Series], today: date) -> str | None:
    oldest = route.since
    if route.max_study_age_days is not None:
        limit = today - timedelta(days=route.max_study_age_days)
        oldest = limit if oldest is None else max(oldest, limit)
    if oldest is None:
        return None
    dates = [
        at
        for series in study
        for image in series.images
        if (at := _study_date(image.attributes)) is not None
    ]
    if not dates:
        return f"it takes studies from {oldest} on, and this one has no Study Date"
    if max(dates) < oldest:
        return f"it takes studies from {oldest} on, and this one is of {max(dates)}"
    return None


def _study_date(attributes: Attributes) -> date | None:
    value = attributes.get("StudyDate")
    if not isinstance(value, str):
        return None
    try:
        return datetime.strptime(value.replace(".", "").strip(), "%Y%m%d").date()  # noqa: DTZ007  a date has no zone
    except ValueError:
        return None
