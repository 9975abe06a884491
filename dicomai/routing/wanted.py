"""May a model want a series of which not all is known? What can't be judged is taken to fit."""

from __future__ import annotations

from collections.abc import Iterable

from dicomai.dicom.header import Attributes
from dicomai.routing.condition import CALLING_NODE, INSTANCES, Condition, Seen, holds, values_of
from dicomai.routing.exclusion import exclude
from dicomai.routing.image import Series
from dicomai.routing.route import Route
from dicomai.routing.selection import InputSpec, ModelInputs


def may_want(route: Route, model: ModelInputs, told: Attributes, instances: int) -> bool:
    """Tell whether a route's model may want a series that a node only tells of.

    Parameters
    ----------
    route, model
        The rule, and what its model needs.
    told
        What is said of the series; what is not said may be anything.
    instances
        How many objects it has; 0: not said.
    """
    return any(may_fit(conditions, told, instances) for _, conditions in _conditions(route, model))


def may_fit(conditions: Iterable[Condition], told: Attributes, instances: int) -> bool:
    """Tell whether a series may fulfil conditions, as `may_want` does."""
    return all(_may_hold(each, told, instances) for each in conditions)


def may_get(route: Route, model: ModelInputs, series: Series, instances: int) -> bool:
    """Tell whether a route's model may get a series of which some images are here.

    Parameters
    ----------
    route, model
        The rule, and what its model needs.
    series
        What is here of it.
    instances
        How many objects it has where it comes from.
    """
    left, _ = exclude(series, route.allow)
    if left is None:
        return False
    seen = [
        Seen(attributes=image.attributes, instances=instances, calling_node=image.node)
        for image in left.images
    ]
    return any(
        (all if spec.kind == "volume" else any)(
            all(holds(each, image) for each in conditions) for image in seen
        )
        for spec, conditions in _conditions(route, model)
    )


def _conditions(
    route: Route, model: ModelInputs
) -> tuple[tuple[InputSpec, tuple[Condition, ...]], ...]:
    """Return the inputs that come from the study, and what each asks of a series."""
    return tuple(
        (spec, (*spec.when, *(() if number else route.when)))
        for number, spec in enumerate(model.inputs)
        if spec.source == "study"
    )


def _may_hold(condition: Condition, told: Attributes, instances: int) -> bool:
    if condition.subject == CALLING_NODE:
        return True
    known = instances if condition.subject == INSTANCES else values_of(told, condition.subject)
    seen = Seen(attributes=told, instances=instances, calling_node="")
    return not known or holds(condition, seen)
