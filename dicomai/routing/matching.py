"""Does a route want a study, and what would its model be given? All reasons are sentences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Final, TypeAlias

from dicomai.dicom.dates import days_before
from dicomai.routing.condition import CALLING_NODE
from dicomai.routing.exclusion import Excluded, exclude
from dicomai.routing.image import Image, Series
from dicomai.routing.route import Exclusion, Mode, Route
from dicomai.routing.selection import Choice, InputKind, InputSpec, ModelInputs, choose

Earlier: TypeAlias = Callable[[InputSpec], Iterable[Sequence[Series]]]
"""Gives the earlier studies that an input may come from, the latest first, each as its series."""
_KINDS: Final[tuple[InputKind, ...]] = ("volume", "image")


def _no_studies(_: InputSpec) -> Iterable[Sequence[Series]]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmatched:
    """The route wants nothing of the study."""

    because: str
    excluded: tuple[Excluded, ...] = ()
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """The route's model gets one candidate for each of its inputs.

    Attributes
    ----------
    lacking
        Inputs that are not here, and that a node may have.
    """

    because: str
    excluded: tuple[Excluded, ...]
    choices: tuple[Choice, ...]
    lacking: tuple[InputSpec, ...] = ()

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
    route: Route,
    model: ModelInputs,
    study: Sequence[Series],
    *,
    today: date,
    earlier: Earlier = _no_studies,
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
    earlier
        The same patient's earlier studies.
    """
    if (reason := _left_alone(route, study, today)) is not None:
        return Unmatched(because=reason)
    left: list[Series] = []
    excluded: list[Excluded] = []
    for series in study:
        remaining, out = exclude(series, route.allow)
        excluded += out
        if remaining is not None:
            left.append(remaining)
    first = choose(model.inputs[0], left, route.when)
    chosen = first.chosen.series if first.chosen is not None else None
    choices = (first, *beside(model.inputs[1:], chosen, left, earlier, route.allow))
    lacking = []
    for number, (spec, choice) in enumerate(zip(model.inputs, choices, strict=True)):
        if choice.chosen is not None:
            continue
        if number and route.inputs_from:
            lacking.append(spec)
        elif not spec.optional:
            return Unmatched(
                because=f"nothing fits input {spec.name} of {route.model}: {_reason(spec, choice)}",
                excluded=tuple(excluded),
                choices=choices,
            )
    nothing = f"nothing yet, {route.inputs_from} may have it" if lacking else "nothing"
    gets = ", ".join(
        f"{choice.input}: {nothing if choice.chosen is None else choice.chosen.title}"
        for choice in choices
    )
    return Matched(
        because=f"{route.model} gets {gets}",
        excluded=tuple(excluded),
        choices=choices,
        lacking=tuple(lacking),
    )


def ruled_out(route: Route, study: Sequence[Series], *, today: date) -> Unmatched | None:
    """Return why a route wants nothing of a study, whatever its model takes; None: it may want it.

    Parameters
    ----------
    route, study, today
        As of `match`.
    """
    if (reason := _left_alone(route, study, today)) is not None:
        return Unmatched(because=reason)
    left = [kept for each in study if (kept := exclude(each, route.allow)[0]) is not None]
    series, image = (choose(InputSpec(name="", kind=kind), left, route.when) for kind in _KINDS)
    if series.chosen is not None or image.chosen is not None:
        return None
    return Unmatched(
        because=f"nothing fits it: {_reason(InputSpec(name='', kind='volume'), series)}"
    )


def without_age(route: Route) -> Route:
    """Return a route as it looks at a study that was young enough when it came."""
    return replace(route, since=None, max_study_age_days=None)


def beside(
    specs: Sequence[InputSpec],
    first: Series | None,
    left: Sequence[Series],
    earlier: Earlier,
    allow: Collection[Exclusion] = (),
) -> tuple[Choice, ...]:
    """Return what further inputs get beside the first; no series is given to two of them.

    Parameters
    ----------
    specs
        The further inputs.
    first
        What the first one gets, if anything.
    left
        What exclusions left of the study.
    earlier
        The same patient's earlier studies.
    allow
        Exclusions that are lifted in those.
    """
    taken = {first.series_instance_uid} if first is not None else set()
    choices = []
    for spec in specs:
        if spec.source == "prior":
            choice = _of_earlier(spec, earlier(spec), allow)
        else:
            free = [each for each in left if each.series_instance_uid not in taken]
            choice = choose(spec, free)
        if choice.chosen is not None:
            taken.add(choice.chosen.series.series_instance_uid)
        choices.append(choice)
    return tuple(choices)


def over_history(route: Route, mode: Mode, priority: int) -> Route:
    """Return a route as it looks at studies of any age and from anywhere.

    What it leaves alone by date, or since another node sends it, is what history consists of.
    """
    return replace(
        without_age(route),
        mode=mode,
        when=tuple(each for each in route.when if each.subject != CALLING_NODE),
        priority=priority,
        urgent=False,
    )


def _of_earlier(
    spec: InputSpec, studies: Iterable[Sequence[Series]], allow: Collection[Exclusion]
) -> Choice:
    """Return what the latest of some studies has for an input."""
    choice = Choice(input=spec.name, chosen=None)
    for study in studies:
        left = [kept for each in study if (kept := exclude(each, allow)[0]) is not None]
        found = choose(spec, left)
        if found.chosen is not None:
            return found
        choice = replace(choice, misfits=(*choice.misfits, *found.misfits))
    return choice


def _reason(spec: InputSpec, choice: Choice) -> str:
    if choice.rejected:
        return "; ".join(each.rstrip(".") for each in choice.rejected)
    prior = "no earlier study of the patient is here"
    return prior if spec.source == "prior" else "every series was left out"


def _left_alone(route: Route, study: Sequence[Series], today: date) -> str | None:
    return "it is off" if route.mode == "off" else _too_old(route, study, today)


def _too_old(route: Route, study: Sequence[Series], today: date) -> str | None:
    oldest = route.since
    if route.max_study_age_days is not None:
        limit = days_before(today, route.max_study_age_days)
        oldest = limit if oldest is None else max(oldest, limit)
    if oldest is None:
        return None
    dates = [
        at
        for series in study
        for image in series.images
        if (at := study_day(image.attributes.get("StudyDate"))) is not None
    ]
    if not dates:
        return f"it takes studies from {oldest} on, and this one has no Study Date"
    if max(dates) < oldest:
        return f"it takes studies from {oldest} on, and this one is of {max(dates)}"
    return None


def study_day(value: object) -> date | None:
    """Return the day that a Study Date says, None where it says none."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.strptime(value.replace(".", "").strip(), "%Y%m%d").date()  # noqa: DTZ007  a date has no zone
    except ValueError:
        return None
