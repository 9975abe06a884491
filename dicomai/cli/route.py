"""`dicomai route test`: what the routes would do with a folder of DICOM."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomai.cli.options import ConfigOption, JsonOption, must_exist, no_dicom
from dicomai.cli.terminal import print_json, say, table, text
from dicomai.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicomai.routing.matching import Matched, Unmatched
    from dicomai.routing.selection import ModelInputs
    from dicomai.service.route_test import Explained, RouteExplained, StudyExplained
    from dicomai.settings import Settings

app = typer.Typer(help="The routes.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The routes: which series a model sees, and who gets its results."""


@app.command("test")
def route_test(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of DICOM, or a file.")],
    calling_node: Annotated[
        str,
        typer.Option(
            "--from", metavar="NODE", help="As if this node had sent it; else: as if any had."
        ),
    ] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Say for each study in a folder which routes match, what is chosen, and why not the rest.

    Nothing is sent, stored or run.
    """
    from dicomai.cli.config import load_checked
    from dicomai.service.received import Reading
    from dicomai.service.route_test import explain

    must_exist(path)
    settings = load_checked(config)
    node = settings.node(calling_node) if calling_node else None
    explained = explain(
        [path],
        settings.routes,
        _models(settings),
        reading=Reading(
            issuer_of_patient_id=node.issuer_of_patient_id if node else "",
            charset_default=node.charset_default if node else "",
            placeholder_ids=settings.decide.placeholder_ids,
        ),
        today=datetime.now(UTC).astimezone().date(),
        calling_node=calling_node,
    )
    if json:
        print_json(
            {
                "studies": [_facts(study) for study in explained.studies],
                "unreadable": [
                    {"path": str(each.path), "because": each.sentence}
                    for each in explained.unreadable
                ],
            }
        )
    else:
        _show_all(explained)
    if not explained.studies:
        raise NotFound(no_dicom(path), subject=str(path))


def _show_all(explained: Explained) -> None:
    for study in explained.studies:
        _show(study)
    table(
        ["not readable", "because"],
        [(each.path, text(each.sentence, "warn")) for each in explained.unreadable],
    )
    if any(not _matches(each.outcome) for study in explained.studies for each in study.routes):
        say("What a model wants: dicomai models show MODEL; what a route wants: its `when`.")


def _models(settings: Settings) -> Mapping[str, ModelInputs]:
    from dicomai.models.registry import open_registry
    from dicomai.routing.selection import ModelInputs

    registry = open_registry(settings.folders.models)
    packages = {route.model: registry.get(route.model) for route in settings.routes}
    return {
        name: ModelInputs(package_sha256=package.sha256, inputs=package.inputs)
        for name, package in packages.items()
    }


def _facts(study: StudyExplained) -> dict[str, object]:
    return {
        "study": study.study_instance_uid,
        "objects": study.objects,
        "series": list(study.series),
        "held": study.held,
        "routes": [
            {
                "route": each.route,
                "model": each.model,
                "matches": _matches(each.outcome),
                "because": each.outcome.because,
                "chosen": [choice.chosen.title for choice in each.outcome.choices if choice.chosen],
                "runners_up": [
                    sentence for choice in each.outcome.choices for sentence in choice.runners_up
                ],
                "rejected": [
                    sentence for choice in each.outcome.choices for sentence in choice.rejected
                ],
                "excluded": [excluded.sentence for excluded in each.outcome.excluded],
            }
            for each in study.routes
        ],
    }


def _matches(outcome: Matched | Unmatched) -> bool:
    from dicomai.routing.matching import Matched

    return isinstance(outcome, Matched)


def _show(study: StudyExplained) -> None:
    say(f"Study {study.study_instance_uid}, {study.objects} objects")
    for series in study.series:
        say(f"  {series}")
    if study.held:
        say(f"It would be held: {study.held}")
    table(
        ["route", "matches", "why"],
        [
            (
                each.route,
                text("yes", "good") if _matches(each.outcome) else text("no", "quiet"),
                "\n".join(_reasons(each)),
            )
            for each in study.routes
        ],
        empty="There is no route.",
    )


def _reasons(explained: RouteExplained) -> list[str]:
    outcome = explained.outcome
    said = [f"{outcome.because}."]
    if _matches(outcome):
        # What does not fit stands in `because` already where nothing does.
        said += [sentence for choice in outcome.choices for sentence in choice.rejected]
    said += [sentence for choice in outcome.choices for sentence in choice.runners_up]
    return said + [excluded.sentence for excluded in outcome.excluded]
