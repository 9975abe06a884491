"""`dicomai jobs`, `job`: the queue, and the story of a job."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from dicomai.cli.catalogue import opened
from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import (
    clock,
    iso,
    moment,
    print_json,
    sheet,
    span,
    table,
    text,
)
from dicomai.errors import NotFound, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from dicomai.service.story import JobStory
    from dicomai.store.events import Event
    from dicomai.store.job import Job
    from dicomai.store.pauses import Pause

LOOKS: Final = {"done": "good", "failed": "bad", "held": "warn", "cancelled": "quiet"}
_TAIL: Final = 12

JobArgument: TypeAlias = Annotated[
    int, typer.Argument(metavar="ID", min=1, help="Its number in `dicomai jobs`.")
]


def jobs(
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            help="waiting, queued, running, held, done, failed or cancelled; may be repeated.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 30,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List the newest jobs: analyses, deliveries."""
    from dicomai.service.story import SHORTENED
    from dicomai.store import jobs as queue
    from dicomai.store import pauses
    from dicomai.store.engine import reading
    from dicomai.store.states import JOB_STATES

    wanted = [each for each in JOB_STATES if each in (state or ())]
    if len(wanted) != len(set(state or ())):
        raise typer.BadParameter(f"states are {', '.join(JOB_STATES)}", param_hint="--state")
    _, engine = opened(config)
    with reading(engine) as connection:
        found = queue.listing(connection, limit, wanted)
        stopped = pauses.stopping(connection, found)
    if json:
        print_json([facts(job, stopped.get(job.id)) for job in found])
        return
    table(
        ["job#", "state", "what", "study", "since", "remark"],
        [
            (
                job.id,
                state_of(job),
                what(job),
                f"{SHORTENED}{job.study_instance_uid[-_TAIL:]}",
                clock(job.finished_at or job.started_at or job.created_at),
                remark(job, stopped.get(job.id)),
            )
            for job in found
        ],
        empty="There is no job.",
    )


def job(number: JobArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show one job.

    Its state, attempts, error, time per stage and results, and what happened to it.
    """
    from dicomai.service import story
    from dicomai.store import events, instances
    from dicomai.store import jobs as queue
    from dicomai.store.engine import reading
    from dicomai.store.job import JobId

    _, engine = opened(config)
    with reading(engine) as connection:
        known = story.of_job(connection, queue.existing(connection, JobId(number)))
        happened = events.of_job(connection, JobId(number))
        inputs = instances.inputs_of(connection, JobId(number))
        superseded = known.job.supersedes
        before = None if superseded is None else queue.get(connection, superseded)
    if json:
        print_json(facts_of_story(known) | {"events": [event_facts(each) for each in happened]})
        return
    one = known.job
    sheet(
        [
            ("job", f"{one.id}: {what(one)}"),
            ("state", state_of(one)),
            ("found" if one.state == "done" else "why", remark(one, known.pause)),
            ("study", one.study_instance_uid),
            ("input", counted(inputs) if inputs else ""),
            ("routes", ", ".join(f"{each.route} ({each.mode})" for each in known.routes)),
            ("attempts", one.attempts),
            ("error", _error(one)),
            ("seconds", ", ".join(f"{stage} {s:.1f}" for stage, s in one.stages_s.items())),
            ("worker", one.worker),
            ("replaces", _replaced(one, before)),
            ("results", "\n".join(str(each.path) for each in known.results)),
            ("objects", "\n".join(f"{each.state}: {each.sentence}" for each in known.objects)),
        ],
    )
    show_events(happened)


def _replaced(job: Job, before: Job | None) -> str:
    """Name the analysis that a job takes the place of, if any: a withdrawal leaves none."""
    if job.supersedes is None or job.is_withdrawal or (before and before.is_withdrawal):
        return ""
    return f"job {job.supersedes}"


def _error(job: Job) -> str:
    if not job.error_kind:
        return ""
    return f"{job.error_kind}, at {job.error_stage or 'start'}: {job.error_subject}"


def what(job: Job) -> str:
    """Return what a job does."""
    if job.is_withdrawal:
        return f"withdrawal of {job.supersedes}"
    if job.kind == "analyse":
        return job.model
    if job.kind == "deliver":
        return f"results of {job.result_of} to {job.node}"
    return f"{f'{len(job.choice.split())} series' if job.choice else 'study'} from {job.node}"


def state_of(job: Job) -> Text:
    """Return a job's state, with the stage of a running one."""
    shown: str = job.state
    if job.state == "done" and job.summary.get("uncommitted"):
        return text("stored, uncommitted", LOOKS["held"])
    if job.state == "running" and job.stage:
        shown = f"running: {job.stage} {job.progress:.0%}"
    elif job.state == "held":
        shown = f"held: {job.held_by}"
    return text(shown, LOOKS.get(job.state, ""))


def remark(job: Job, pause: Pause | None = None) -> str:
    """Return what a person should know of a job: its error, what it waits for, what it found."""
    if pause is not None:
        return (
            f"Waits: {pause.subject} {pause.name} is {pause.state}. To let it go on: {pause.resume}"
        )
    if job.state == "waiting" and job.waiting_for == "commitment":
        return (
            f"{job.node} has it, and is to report until {moment(job.due_at)} that it keeps it; "
            "after that it counts as stored, uncommitted."
        )
    if job.state == "waiting" and job.waiting_for == "breaker":
        return f"{job.node} does not answer; goes on when it does. {job.error_sentence}".strip()
    if job.state == "waiting" and job.waiting_for == "input":
        return f"Waits for an input. {job.error_sentence}"
    if job.state == "waiting":
        return f"{job.error_sentence} Next try {moment(job.due_at)}."
    if job.error_sentence:
        return job.error_sentence
    found = str(job.summary.get("found", ""))
    if job.withdrawn_by is not None:
        return f"Withdrawn by job {job.withdrawn_by}. It had found: {found}"
    return "" if job.is_withdrawal else found


def facts(job: Job, pause: Pause | None) -> dict[str, object]:
    """Return a job as scripts read it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "study": job.study_instance_uid,
        "model": job.model,
        "node": job.node or None,
        "result_of": job.result_of,
        "supersedes": job.supersedes,
        "attempts": job.attempts,
        "stage": job.stage,
        "progress": job.progress,
        "waiting_for": job.waiting_for,
        "due_at": iso(job.due_at),
        "held_by": job.held_by,
        "paused": None if pause is None else {"subject": pause.subject, "name": pause.name},
        "error_kind": job.error_kind,
        "error": job.error_sentence,
        "error_stage": job.error_stage,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "stages_s": dict(job.stages_s),
        "summary": dict(job.summary),
    }


def facts_of_story(known: JobStory) -> dict[str, object]:
    """Return a job with its routes, results and objects, as scripts read it."""
    return facts(known.job, known.pause) | {
        "routes": [
            {"route": each.route, "mode": each.mode, "destinations": list(each.destinations)}
            for each in known.routes
        ],
        "results": [
            {"sop_instance_uid": each.sop_instance_uid, "path": str(each.path)}
            for each in known.results
        ],
        "objects": [
            {
                "sop_instance_uid": each.sop_instance_uid,
                "state": each.state,
                "status": each.status,
                "sentence": each.sentence,
                "at": iso(each.at),
            }
            for each in known.objects
        ],
    }


def event_facts(event: Event) -> dict[str, object]:
    """Return an event as scripts read it."""
    return {
        "at": iso(event.at),
        "kind": event.kind,
        "job": event.job_id,
        "sentence": event.sentence,
        "data": dict(event.data),
    }


def show_events(happened: tuple[Event, ...]) -> None:
    """Print events in their order, each with its moment; arrivals in a row as one line."""
    table(
        ["when", "job#", "what happened"],
        [(moment(each.at), each.job_id or "", sentence) for each, sentence in _gathered(happened)],
        empty="Nothing has happened yet.",
    )


def _gathered(happened: tuple[Event, ...]) -> Iterator[tuple[Event, str]]:
    """Give events with their sentences; of objects that came alike in a row the last, with all."""
    for (kind, rest), alike in itertools.groupby(happened, _alike):
        row = tuple(alike)
        if kind != "objects new" or len(row) == 1:
            yield from ((each, each.sentence) for each in row)
        else:
            number = sum(int(each.sentence.split(" ", 1)[0]) for each in row)
            yield row[-1], f"{number} objects {rest}"


def _alike(event: Event) -> tuple[str, str]:
    """Return the kind of an event and, of an arrival, what follows the number of objects."""
    if event.kind != "objects new":
        return event.kind, ""
    return event.kind, event.sentence.split(" ", 2)[2]


def took(job: Job) -> str:
    """Return how long a finished job took in all, empty before."""
    return span(sum(job.stages_s.values())) if job.stages_s else ""


def not_found(what_it_is: str, name: str) -> NotFound:
    """Return the error for something that was named and is not there."""
    return NotFound(f"There is no {what_it_is} {name!a}.", subject=name)
