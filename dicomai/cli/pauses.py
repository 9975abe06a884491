"""`dicomai pause`, `resume`, `drain`: a node, a route or a model that shall rest."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dicomai.cli import audit
from dicomai.cli.catalogue import opened
from dicomai.cli.options import ConfigOption
from dicomai.cli.terminal import say
from dicomai.errors import NotFound

if TYPE_CHECKING:
    from dicomai.settings import Settings
    from dicomai.store.states import PauseMode


class Subject(StrEnum):
    """What can rest."""

    node = "node"
    route = "route"
    model = "model"


SubjectArgument: TypeAlias = Annotated[Subject, typer.Argument(metavar="node|route|model")]
NameArgument: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="Of it.")]


def pause(subject: SubjectArgument, name: NameArgument, config: ConfigOption = None) -> None:
    """Stop a node, route or model until resume; what runs is given back."""
    _pause(subject, name, "paused", config)
    say(f"{subject.capitalize()} {name} is paused. To go on: dicomai resume {subject} {name}")


def drain(subject: SubjectArgument, name: NameArgument, config: ConfigOption = None) -> None:
    """Let a node, route or model finish what runs, and start nothing new until resume."""
    _pause(subject, name, "draining", config)
    say(
        f"{subject.capitalize()} {name} takes nothing new; dicomai status says when it is drained. "
        f"To go on: dicomai resume {subject} {name}"
    )


def resume(subject: SubjectArgument, name: NameArgument, config: ConfigOption = None) -> None:
    """Let a node, route or model that was paused or drained go on."""
    from dicomai.dicom.dates import now
    from dicomai.store import pauses
    from dicomai.store.engine import writing

    settings, engine = opened(config)
    with writing(engine) as connection:
        rested = pauses.resume(connection, subject.value, name, now())
    if not rested:
        raise NotFound(f"{subject.capitalize()} {name!a} is not paused.", subject=name)
    audit.record(settings.service.data, "resume", f"{subject} {name}")
    say(f"{subject.capitalize()} {name} goes on.")


def _pause(subject: Subject, name: str, mode: PauseMode, config: Path | None) -> None:
    from dicomai.dicom.dates import now
    from dicomai.store import pauses
    from dicomai.store.engine import writing

    settings, engine = opened(config)
    known = _names(settings, subject)
    if name not in known:
        raise NotFound(
            f"There is no {subject} {name!a}. There are: {', '.join(sorted(known)) or 'none'}.",
            subject=name,
        )
    with writing(engine) as connection:
        pauses.pause(connection, subject.value, name, mode, now())
    audit.record(
        settings.service.data, "pause" if mode == "paused" else "drain", f"{subject} {name}"
    )


def _names(settings: Settings, subject: Subject) -> Collection[str]:
    if subject is Subject.node:
        return {node.name for node in settings.nodes}
    if subject is Subject.route:
        return {route.name for route in settings.routes}
    from dicomai.models.registry import open_registry

    return open_registry(settings.folders.models).names
