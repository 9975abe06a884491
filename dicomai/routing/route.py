"""A route: which series a model should see, how much it matters, and where results go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal, get_args

from dicomai.routing.condition import Condition

Mode = Literal["off", "shadow", "live"]
Exclusion = Literal["localizer", "secondary", "derived", "produced"]
EXCLUSIONS: tuple[Exclusion, ...] = get_args(Exclusion)
ResultObject = Literal[
    "SEG",
    "SEG:ALL-FRAMES",
    "SEG:FRACTIONAL",
    "SEG:LABELMAP",
    "SR",
    "SC",
    "KO",
    "PR",
    "PM",
    "RTSTRUCT",
    "PDF",
    "SR:ENHANCED",
    "SR:TEXT",
    "NOT-ANALYSED",
]
"""A form of a result: Segmentation, Structured Report, Secondary Capture, Key Object Selection,
Grayscale Softcopy Presentation State, Parametric Map, RT Structure Set, Encapsulated PDF."""
RESULT_OBJECTS: tuple[ResultObject, ...] = get_args(ResultObject)
SEG_FORMS: tuple[ResultObject, ...] = ("SEG", "SEG:ALL-FRAMES", "SEG:FRACTIONAL")
"""Of these an analysis gives one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A rule of the configuration.

    Attributes
    ----------
    name
        How events, tables and `dicomai pause route` call it.
    model
        The model package, or the ensemble, that runs.
    mode
        "off": looked at by nobody; "shadow": runs and never delivers; "live": runs and delivers.
    when
        Conditions on the series of the model's first input; all must hold for each of its images.
    destinations
        Nodes that get the results.
    objects
        What they get: "SEG" masks (or one of "SEG:ALL-FRAMES" with its empty frames,
        "SEG:FRACTIONAL" probabilities), "SEG:LABELMAP" masks as labels, "SR" the report, "SC"
        pictures, "KO" the key images, "PR" contours and boxes to show on the images, "PM"
        probabilities as Parametric Map, "RTSTRUCT" contours, "PDF" a page that sums up,
        "SR:ENHANCED" and "SR:TEXT" reports for who takes no Comprehensive 3D SR. There is always
        an "SR", and where something was outlined the "SEG" that it refers to. With "NOT-ANALYSED"
        it says why when the model can't take a study.
    priority
        Higher runs earlier; waiting jobs rise with time, so that none starves.
    urgent
        Runs before everything that is not urgent.
    since
        Studies of an earlier Study Date are left alone, so that a PACS migration starts nothing.
    max_study_age_days
        Studies whose Study Date is longer ago are left alone.
    inputs_from
        The node that is asked for a prior, or for a further series of the study, that the model
        takes and that is not here. Empty: what is here must do.
    allow
        Images that are never input unless a route says so: "localizer", "secondary", "derived",
        "produced".
    """

    name: str
    model: str
    mode: Mode = "live"
    when: tuple[Condition, ...] = ()
    destinations: tuple[str, ...] = ()
    objects: tuple[ResultObject, ...] = ("SEG", "SR")
    priority: int = 0
    urgent: bool = False
    since: date | None = None
    max_study_age_days: int | None = None
    inputs_from: str = ""
    allow: tuple[Exclusion, ...] = ()
