"""`dicomai backfill` and `dicomai backfills`: a route over what a node has kept."""

from __future__ import annotations

import sys
import time
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from dicomai.cli import audit
from dicomai.cli.catalogue import opened
from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import (
    iso,
    moment,
    print_json,
    progress,
    remarks,
    say,
    sheet,
    span,
    table,
    text,
)
from dicomai.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from dicomai.dicom.dates import Instant
    from dicomai.routing.route import Route
    from dicomai.settings import Settings
    from dicomai.store.backfills import Backfill, Past, Progress

_LOOKS: Final = {"running": "", "done": "good", "cancelled": "quiet"}
_WORDS: Final = {"found": "to do", "fetching": "on their way", "analysis": "given to the model"}
_SHOWN: Final = 50
_LOOK_S: Final = 1.0


def backfill(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name in the configuration.")],
    route: Annotated[str, typer.Option("--route", metavar="R", help="Its name there.")],
    first: Annotated[
        str, typer.Option("--from", metavar="DATE", help="The first Study Date, as 2025-01-31.")
    ],
    last: Annotated[str, typer.Option("--to", metavar="DATE", help="The last Study Date.")],
    mode: Annotated[
        Literal["shadow", "live"],
        typer.Option(
            "--mode", help="shadow: results stay here; live: they go out as of the route."
        ),
    ] = "shadow",
    per_hour: Annotated[
        float,
        typer.Option(
            "--studies-per-hour", min=0.1, max=36000, help="How many are fetched at most."
        ),
    ] = 60.0,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Run a route over the studies that a node has kept.

    The service does it in the background, behind the work of the day. The same command again
    finds the one that is under way. On a terminal its progress is shown; Ctrl-C ends that alone.
    """
    from dicomai.dicom.dates import now
    from dicomai.service.overview import ALIVE
    from dicomai.store import backfills, clocks, hosts
    from dicomai.store.backfills import NewBackfill
    from dicomai.store.engine import writing

    days = _day(first, "--from"), _day(last, "--to")
    settings, engine = opened(config)
    if days[0] > days[1]:
        raise typer.BadParameter(f"--from {days[0]} is after --to {days[1]}: that is no day.")
    if days[1] > datetime.now().astimezone().date():
        raise typer.BadParameter(f"--to {days[1]} lies in the future. History ends today.")
    if not settings.node(node).host:
        raise ConfigError(f"{settings.file}: node {node} has no host. Give it host and port.")
    _check(settings, route, mode)
    new = NewBackfill(
        node=node,
        route=route,
        mode=mode,
        first_day=days[0],
        last_day=days[1],
        studies_per_hour=per_hour,
    )
    with writing(engine) as connection:
        added = backfills.add(connection, new, now())
        at = clocks.common(connection, now)
        idle = all(at - each.beat_at > ALIVE for each in hosts.listing(connection))
    number = added.backfill.id
    audit.record(settings.service.data, "backfill", f"{node} {route} {days[0]} {days[1]} {mode}")
    if json:
        print_json({"backfill": number, "outcome": added.outcome})
        return
    state = "has begun" if added.outcome == "started" else "is under way already"
    say(f"Backfill {number} {state}. How far it is: dicomai backfills {number}")
    if idle:
        say("No scheduler runs, so nothing happens yet. Start one: dicomai serve")
    elif sys.stderr.isatty():
        _watch(engine, number)


def backfills(
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="ID", min=1, help="Only this one, with its studies.", show_default=False
        ),
    ] = None,
    cancel: Annotated[
        bool,
        typer.Option("--cancel", help="End it: what it queued and has not begun is cancelled."),
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List backfills, and how far each is."""
    from dicomai.store import backfills as past
    from dicomai.store.engine import reading

    if cancel:
        if number is None:
            raise typer.BadParameter("--cancel needs the ID of a backfill.")
        _cancel(number, config)
        return
    _, engine = opened(config)
    with reading(engine) as connection:
        wanted = (
            past.listing(connection, _SHOWN)
            if number is None
            else (past.existing(connection, number),)
        )
        known = [(each, past.progress(connection, each)) for each in wanted]
        troubled = (
            past.studies_of(connection, wanted[0], ("failed", "held", "left out"), _SHOWN)
            if number is not None
            else ()
        )
    if json:
        listed = [_facts(*each) for each in known]
        studies = {"studies": [_study_facts(each) for each in troubled]}
        print_json(listed if number is None else listed[0] | studies)
    elif number is None:
        _show_all(known)
    else:
        _show(*known[0], troubled)


def _day(value: str, option: str) -> date:
    for form in ("%Y-%m-%d", "%Y%m%d"):
        try:
            return datetime.strptime(value, form).date()  # noqa: DTZ007  a date has no zone
        except ValueError:
            continue
    raise typer.BadParameter(f"{option} {value!a} is no date. Write it as 2025-01-31.")


def _check(settings: Settings, name: str, mode: str) -> Route:
    """Return a route that may run over history in a mode, or say why it may not."""
    from dicomai.models.registry import open_registry

    known = {each.name: each for each in settings.routes}
    if name not in known:
        raise NotFound(
            f"{settings.file} has no route {name!a}. There are: {', '.join(known) or 'none'}.",
            subject=name,
        )
    route = known[name]
    if route.mode == "off":
        raise ConfigError(f'Route {name} is off. Give it mode = "shadow", or "live".')
    if mode == "live" and route.mode != "live":
        raise ConfigError(
            f"Route {name} is in shadow: its results go nowhere. Leave --mode live out, or give "
            'the route mode = "live".'
        )
    open_registry(settings.folders.models).get_trusted(route.model)
    return route


def _cancel(number: int, config: Path | None) -> None:
    from dicomai.dicom.dates import now
    from dicomai.store import backfills as past
    from dicomai.store.engine import writing

    settings, engine = opened(config)
    with writing(engine) as connection:
        ended = past.cancel(connection, number, now())
    audit.record(settings.service.data, "backfills --cancel", str(number))
    jobs = "no job" if not ended else "1 job" if ended == 1 else f"{ended} jobs"
    say(f"Backfill {number} is cancelled, and {jobs} that had not begun. What is done stays.")


def _watch(engine: Engine, number: int) -> None:
    """Show how a backfill gets on until it is over, or the person has seen enough."""
    from dicomai.store import backfills as past
    from dicomai.store.engine import reading

    try:
        with progress() as display:
            days, studies = display.add_task("days"), display.add_task("studies")
            while True:
                with reading(engine) as connection:
                    one = past.existing(connection, number)
                    far = past.progress(connection, one)
                display.update(days, total=one.days, completed=one.days_asked)
                display.update(
                    studies,
                    description=one.trouble or f"studies: {_counts(far)}",
                    total=max(far.found, 1),
                    completed=far.found - far.left,
                )
                if one.state != "running":
                    break
                time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        remarks().print(text(f"It goes on. See: dicomai backfills {number}"))
        return
    say(f"Backfill {number} is {one.state}: {_counts(far)}.")


def _counts(far: Progress) -> str:
    from dicomai.store.states import HISTORY_STATES

    said = [
        f"{far.studies[each]} {_WORDS.get(each, each)}"
        for each in HISTORY_STATES
        if far.studies.get(each)
    ]
    return ", ".join(said) or "none found yet"


def _analyses(far: Progress) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(far.analyses.items()))


def _remaining(one: Backfill, far: Progress, at: Instant) -> str:
    """Return how long what was found takes at least, at the pace that was given."""
    if one.state != "running" or not far.studies.get("found"):
        return ""
    wait = max(0.0, (one.next_at - at) / 1e6)
    rest = wait + (far.studies["found"] - 1) * 3600 / one.studies_per_hour
    more = "" if one.next_day is None else ", and the days to come"
    return f"{span(rest)} for what is found{more}"


def _show_all(known: list[tuple[Backfill, Progress]]) -> None:
    table(
        ["backfill#", "state", "route", "node", "days", "studies", "analyses", "remark"],
        [
            (
                one.id,
                text(one.state, _LOOKS[one.state]),
                f"{one.route} ({one.mode})",
                one.node,
                f"{one.days_asked} of {one.days}",
                _counts(far),
                _analyses(far),
                one.trouble,
            )
            for one, far in known
        ],
        empty="There is no backfill.",
    )


def _show(one: Backfill, far: Progress, troubled: tuple[Past, ...]) -> None:
    from dicomai.dicom.dates import now

    sheet(
        [
            ("backfill", f"{one.id}: route {one.route} ({one.mode}) over {one.node}"),
            ("state", text(one.state, _LOOKS[one.state])),
            ("remark", one.trouble or None),
            (
                "days",
                f"{one.first_day} to {one.last_day}: {one.days_asked} of {one.days} asked for",
            ),
            ("studies", _counts(far)),
            ("analyses", _analyses(far) or None),
            ("pace", f"{one.studies_per_hour:g} studies an hour"),
            ("still takes", _remaining(one, far, now()) or None),
            ("since", moment(one.created_at)),
            ("until", moment(one.finished_at) or None),
        ]
    )
    table(
        ["date", "state", "study", "why", "job#"],
        [
            (each.study_date, each.state, each.study_instance_uid, each.sentence,
             each.retrieval or "")
            for each in troubled
        ],
    )  # fmt: skip


def _facts(one: Backfill, far: Progress) -> dict[str, object]:
    return {
        "backfill": one.id,
        "state": one.state,
        "node": one.node,
        "route": one.route,
        "mode": one.mode,
        "from": one.first_day.isoformat(),
        "to": one.last_day.isoformat(),
        "studies_per_hour": one.studies_per_hour,
        "days": one.days,
        "days_asked": one.days_asked,
        "found": far.found,
        "studies": dict(far.studies),
        "analyses": dict(far.analyses),
        "trouble": one.trouble,
        "created_at": iso(one.created_at),
        "finished_at": iso(one.finished_at),
    }


def _study_facts(each: Past) -> dict[str, object]:
    return {
        "study": each.study_instance_uid,
        "date": each.study_date,
        "state": each.state,
        "retrieval": each.retrieval,
        "analysis": each.analysis,
        "sentence": each.sentence,
    }
