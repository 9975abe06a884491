"""What the routes would do with a folder of DICOM: the same rules, no network, no database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from dicomai.dicom.identity import Agreed, Identity, judge
from dicomai.dicom.part10 import is_dicomdir
from dicomai.errors import InputError
from dicomai.routing.condition import CALLING_NODE
from dicomai.routing.image import Image, series_of
from dicomai.routing.matching import Matched, Unmatched, match
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs
from dicomai.service.received import Reading, ReceivedObject, read_object


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A file that ingest would set aside."""

    path: Path
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteExplained:
    """What one route would do with a study."""

    route: str
    model: str
    outcome: Matched | Unmatched


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyExplained:
    """What would become of one study.

    Attributes
    ----------
    held
        Why a person would be asked first; empty where the study is one patient's.
    """

    study_instance_uid: str
    series: tuple[str, ...]
    objects: int
    held: str
    routes: tuple[RouteExplained, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What would become of everything in a folder."""

    studies: tuple[StudyExplained, ...]
    unreadable: tuple[Unreadable, ...]


def explain(
    paths: Iterable[Path],
    routes: Iterable[Route],
    models: Mapping[str, ModelInputs],
    *,
    reading: Reading,
    today: date,
    calling_node: str = "",
) -> Explained:
    """Return which routes would match, what would be chosen, and why not.

    Parameters
    ----------
    paths
        Files, and folders that are searched whole.
    routes
        Of the configuration.
    models
        What each installed package needs, by name.
    reading
        How the files are read.
    today
        The date that `max_study_age_days` counts from.
    calling_node
        The node that the files are taken to come from; without it conditions on the calling node
        are taken to hold.
    """
    found: dict[str, list[tuple[Image, Identity]]] = {}
    unreadable: list[Unreadable] = []
    for path in _files(paths):
        try:
            read = read_object(path, reading)
        except InputError as error:
            unreadable.append(Unreadable(path=path, sentence=error.sentence))
            continue
        uid = read.identifiers.study_instance_uid
        found.setdefault(uid, []).append((_image(read, calling_node), read.identity))
    asked = [route if calling_node else _from_anywhere(route) for route in routes]
    return Explained(
        studies=tuple(
            _study(uid, {image.sop_instance_uid: (image, who) for image, who in objects},
                   asked, models, today)
            for uid, objects in sorted(found.items())
        ),
        unreadable=tuple(unreadable),
    )  # fmt: skip


def _study(
    uid: str,
    objects: Mapping[str, tuple[Image, Identity]],
    routes: Iterable[Route],
    models: Mapping[str, ModelInputs],
    today: date,
) -> StudyExplained:
    series = series_of(image for image, _ in objects.values())
    verdict = judge(who for _, who in objects.values())
    return StudyExplained(
        study_instance_uid=uid,
        series=tuple(f"{each.title}, {len(each.images)} objects" for each in series),
        objects=len(objects),
        held="" if isinstance(verdict, Agreed) else verdict.because,
        routes=tuple(
            RouteExplained(
                route=route.name,
                model=route.model,
                outcome=match(route, models[route.model], series, today=today)
                if route.model in models
                else Unmatched(because=f"no package {route.model} is installed"),
            )
            for route in routes
        ),
    )


def _from_anywhere(route: Route) -> Route:
    return replace(route, when=tuple(each for each in route.when if each.subject != CALLING_NODE))


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(
                each for each in path.rglob("*") if each.is_file() and not is_dicomdir(each)
            )
        else:
            yield path


def _image(read: ReceivedObject, node: str) -> Image:
    return Image(
        series_instance_uid=read.identifiers.series_instance_uid,
        sop_instance_uid=read.identifiers.sop_instance_uid,
        sop_class_uid=read.identifiers.sop_class_uid,
        header_digest=read.version.header,
        pixel_digest=read.version.pixels,
        origin="received",
        node=node,
        attributes=read.attributes,
    )
