"""What studies are decided by, as the configuration and the packages say it now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

from dicomai.dicom.dates import Microseconds
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What studies are decided by.

    Attributes
    ----------
    models
        What each package needs that a route names, by name.
    missing
        Why a package that a route names can't be read just now, by name.
    patience, ageing
        See the tables [decide] and [worker] of the settings.
    zone
        Of the modalities: their today is the day that `max_study_age_days` counts from.
    fetch_missing
        The nodes from which what they count and did not send is fetched.
    """

    routes: tuple[Route, ...]
    models: Mapping[str, ModelInputs]
    patience: Microseconds
    ageing: Microseconds
    zone: ZoneInfo
    fetch_missing: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def blocked(self) -> tuple[str, ...]:
        """The routes that are on and whose model can't be read."""
        on = (route for route in self.routes if route.mode != "off")
        return tuple(route.name for route in on if route.model not in self.models)

    def why_missing(self, model: str) -> str:
        """Return why a model's package can't be read."""
        return self.missing.get(model, f"No package {model} is installed. See: dicomai models")
