"""Which forms of a result are made, and which go where: what the routes ask for."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dicomai.results.objects import DEFAULT, classes_of
from dicomai.routing.route import ResultObject, Route


def objects_of(routes: Iterable[Route], model: str) -> tuple[ResultObject, ...]:
    """Return all that any route of a model asks for: routes share an analysis and its objects."""
    asked = [kind for route in routes if route.model == model for kind in route.objects]
    return tuple(dict.fromkeys(asked)) or DEFAULT


def tells_why_not(routes: Iterable[Route], model: str) -> bool:
    """Tell whether any route of a model asks for a report where it can't take its images."""
    return "NOT-ANALYSED" in objects_of(routes, model)


def classes_for(routes: Iterable[Route], names: Collection[str]) -> frozenset[str]:
    """Return the SOP classes that go to a node for the routes of these names.

    A route that the configuration has no more asked for what routes ask for unless they say.
    """
    known = {route.name: route.objects for route in routes}
    return classes_of(kind for name in names for kind in known.get(name, DEFAULT))


def still_live(routes: Iterable[Route], names: Collection[str]) -> frozenset[str]:
    """Return which routes of these names send results yet.

    So does one that the configuration has no more: it may have another name by now.
    """
    quiet = {route.name for route in routes if route.mode != "live"}
    return frozenset(names) - quiet
