"""`dicomai run`: a model on a folder of DICOM, with no network and no database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from dicomai.cli.config import local_zone
from dicomai.cli.models import found, opened
from dicomai.cli.options import ConfigOption, JsonOption, must_exist, no_dicom
from dicomai.cli.terminal import print_json, progress, remarks, say, span, table, text
from dicomai.cli.trouble import sentence_of
from dicomai.errors import NotFound
from dicomai.models.device import DEVICE_PATTERN

if TYPE_CHECKING:
    from dicomai.models.package import Package
    from dicomai.models.registry import Registry
    from dicomai.models.runtimes.torch_runtime import LoadedModel
    from dicomai.routing.image import Series
    from dicomai.routing.route import ResultObject
    from dicomai.service.folder import Folder, Outcome, Site
    from dicomai.settings import Settings

Word = TypeVar("Word", bound=str)


def _device(value: str) -> str:
    if not re.fullmatch(DEVICE_PATTERN, value):
        raise typer.BadParameter(f"{value!r} is no device for models. Give auto, cpu or cuda:0.")
    return value


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model package's name, or its folder.")
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of DICOM, or a file.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="Where the results go."),
    ],
    allow: Annotated[
        str,
        typer.Option(
            metavar="KINDS",
            help="Take localizer,secondary,derived,produced too; see allow of a route.",
        ),
    ] = "",
    objects: Annotated[
        str,
        typer.Option(
            metavar="KINDS", help="Forms of the result, as SEG,SR,SC; see objects of a route."
        ),
    ] = "SEG,SR",
    device: Annotated[str, typer.Option(help="auto, cpu, or cuda:0.", callback=_device)] = "auto",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Run a model on a folder of DICOM.

    Every series that it takes gives DICOM objects and PNG; what earlier runs of this model left
    there about a series in PATH is removed first. Needs no network, no database and no
    configuration; the package need not be trusted. Where objects don't say their time zone or
    character set, those of the configuration count, else this machine's zone. The exit code is
    1 when a series that the model takes has no result, or when it takes none, and 4 when there is
    no PATH or no DICOM in it.
    """
    from dicomai.models.manifest import MANIFEST_NAME
    from dicomai.models.runtimes.torch_runtime import load
    from dicomai.routing.route import EXCLUSIONS, RESULT_OBJECTS
    from dicomai.service import folder as folders

    wanted = _named(objects, RESULT_OBJECTS, "--objects")
    allowed = _named(allow, EXCLUSIONS, "--allow") if allow else ()
    must_exist(path)
    settings, registry = opened(config)
    package = _package(model, registry)
    out.mkdir(parents=True, exist_ok=True)  # where it can't be, nothing is analysed in vain
    site = _site(settings)
    if settings is None:
        remarks().print(
            f"There is no configuration: where objects don't say, times are those of this "
            f"machine's zone, {site.timezone}."
        )
    folder = folders.read_folder(path, site, allowed)
    if not folder.images and not folder.unreadable:
        raise NotFound(no_dicom(path), subject=str(path))
    taken, others = folders.takes(package, folder)
    loaded = load(package, device) if taken else None
    folders.remove_earlier(package, folder, out)
    outcomes = [] if loaded is None else _analysed(loaded, taken, folder, out, wanted)
    outcomes += [*others, *folder.unreadable]
    if json:
        print_json([_facts(outcome) for outcome in outcomes])
    else:
        is_listed = package.folder.parent in registry.folders
        shows = (
            f"dicomai models show {package.name}"
            if is_listed
            else str(package.folder / MANIFEST_NAME)
        )
        _show(package, outcomes, out, shows)
    if not any(each.objects for each in outcomes) or any(each.failed for each in outcomes):
        raise typer.Exit(1)


def _analysed(
    model: LoadedModel,
    taken: Sequence[Series],
    folder: Folder,
    out: Path,
    wanted: Sequence[ResultObject],
) -> list[Outcome]:
    """Analyse one series after the other; one that fails leaves the others what they have."""
    from dicomai.service import folder as folders

    outcomes = []
    with progress() as shown:
        for number, series in enumerate(taken, start=1):
            task = shown.add_task("load", total=1.0)
            of = f"{number}/{len(taken)} "

            def report(stage: str, fraction: float) -> None:
                shown.update(task, description=of + stage, completed=fraction)  # noqa: B023 - called at once

            try:
                outcome = folders.analysed(model, series, folder, out, report, wanted)
            except Exception as error:  # noqa: BLE001 - told in the table, beside what was done
                outcome = folders.without(series, sentence_of(error), failed=True)
            outcomes.append(outcome)
            shown.remove_task(task)
    return outcomes


def _named(given: str, known: tuple[Word, ...], option: str) -> tuple[Word, ...]:
    """Return those of the known words that an option names, in whatever case."""
    asked = {each.strip().casefold() for each in given.split(",")}
    if unknown := sorted(asked - {each.casefold() for each in known}):
        raise typer.BadParameter(
            f"there is no {', '.join(unknown)}. There are {', '.join(known)}.", param_hint=option
        )
    return tuple(each for each in known if each.casefold() in asked)


def _package(model: str, registry: Registry) -> Package:
    from dicomai.models.manifest import MANIFEST_NAME
    from dicomai.models.package import load

    folder = Path(model)
    is_package = (folder / MANIFEST_NAME).is_file()
    named = model in registry.names or not folder.exists()
    return found(registry, model) if named and not is_package else load(folder)


def _site(settings: Settings | None) -> Site:
    """Return what the configuration knows of the objects; a folder comes from no node."""
    from dicomai.service.folder import Site

    if settings is None:
        return Site(timezone=local_zone())
    sets = {node.charset_default for node in settings.nodes}
    return Site(
        timezone=settings.service.timezone,
        charset_default=sets.pop() if len(sets) == 1 else "",  # only where all nodes agree
        placeholder_ids=settings.decide.placeholder_ids,
    )


def _facts(outcome: Outcome) -> dict[str, object]:
    return {
        "study": outcome.study_instance_uid,
        "series": outcome.series_instance_uid,
        "title": outcome.title,
        "found": outcome.found,
        "because": outcome.because,
        "failed": outcome.failed,
        "stages_s": dict(outcome.stages_s),
        "objects": [str(each) for each in outcome.objects],
        "pictures": [str(each) for each in outcome.pictures],
    }


def _show(package: Package, outcomes: Sequence[Outcome], out: Path, shows: str) -> None:
    analysed = [each for each in outcomes if each.objects]
    table(
        ["series", f"{package.name} {package.manifest.version} found", "took"],
        [(each.title, each.found, span(sum(each.stages_s.values()))) for each in analysed],
        empty="There is no result.",
    )
    table(
        ["without result", "because"],
        [
            (each.title, text(each.because, "bad" if each.failed else ""))
            for each in outcomes
            if not each.objects
        ],
    )
    if any(not each.objects and each.series_instance_uid for each in outcomes):
        say(f"What the model wants: {shows}.")
    if analysed:
        objects = sum(len(each.objects) for each in analysed)
        pictures = sum(len(each.pictures) for each in analysed)
        say(
            f"{objects} DICOM object{'' if objects == 1 else 's'} and {pictures} "
            f"picture{'' if pictures == 1 else 's'} of them lie in {out}."
        )
