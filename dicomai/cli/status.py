"""`dicomai status`: what goes on, and what wants a person."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dicomai.cli.catalogue import opened
from dicomai.cli.jobs import LOOKS
from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.study import facts as study_facts
from dicomai.cli.study import show_studies
from dicomai.cli.terminal import clock, iso, moment, print_json, say, size, span, table, text

if TYPE_CHECKING:
    from rich.text import Text

    from dicomai.dicom.dates import Instant
    from dicomai.service.overview import Overview
    from dicomai.settings import Settings
    from dicomai.store.nodes import NodeState


def status(
    limit: Annotated[int, typer.Option(min=1, help="How many of the latest studies.")] = 10,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show what goes on, and what wants a person."""
    from dicomai.dicom.dates import now
    from dicomai.service import overview
    from dicomai.store.engine import reading, unwritable

    settings, engine = opened(config)
    at = now()
    with reading(engine) as connection:
        seen = overview.of_service(connection, settings, at, limit)
    seen = replace(seen, unwritable=unwritable(engine))
    if json:
        print_json(_facts(seen))
    else:
        _show(seen, settings, at)


def _show(seen: Overview, settings: Settings, now: Instant) -> None:
    show_studies(seen.recent)
    table(
        ["jobs", "state", "number#"],
        [
            (kind, text(state, LOOKS.get(state, "")), number)
            for (kind, state), number in sorted(seen.jobs.items())
        ],
    )
    table(
        ["node", "state", "last contact", "remark"],
        [
            (
                each.name,
                _state_of(each),
                clock(each.last_contact_at),
                each.last_error if each.failures else "",
            )
            for each in seen.nodes
        ],
    )
    table(
        ["resting", "name", "state", "since"],
        [
            (
                each.subject,
                each.name,
                "drained" if each.drained else f"{each.mode}, {each.running} running",
                clock(each.since),
            )
            for each in seen.pauses
        ],
    )
    table(
        ["quarantine", "from", "came", "why"],
        [(each.name, each.node, clock(each.at), each.reason) for each in seen.quarantined],
    )
    for worker in seen.workers:
        silent = seen.overdue(worker)
        doubt = "." if silent is None else f"; not heard of for {span(silent / 1e6)}, does it run?"
        say(f"Worker {worker.name} on {worker.device}, since {moment(worker.started_at)}{doubt}")
    if seen.open_associations:
        say(f"Sending now: {', '.join(sorted(seen.open_associations))}.")
    if seen.oldest_in_spool is not None:
        behind = span((now - seen.oldest_in_spool) / 1e6)
        say(f"The spool holds objects that came {behind} ago and are not in the catalogue yet.")
    say(f"{size(seen.free_bytes)} free in {settings.service.data}.")
    if seen.archive_free_bytes is not None:
        say(f"{size(seen.archive_free_bytes)} free in {settings.folders.archive}.")
    for held in seen.held:
        say(f"Held: {held.hold_reason}")
    for remark in seen.remarks:
        say(remark)


def _state_of(node: NodeState) -> Text:
    if node.breaker != "closed":
        return text("away", "bad")
    if node.failures:
        return text("failing", "warn")
    return text("answers", "good")


def _facts(seen: Overview) -> dict[str, object]:
    return {
        "studies": [study_facts(each) for each in seen.recent],
        "held": [study_facts(each) for each in seen.held],
        "jobs": [
            {"kind": kind, "state": state, "number": number}
            for (kind, state), number in sorted(seen.jobs.items())
        ],
        "nodes": [
            {
                "name": each.name,
                "breaker": each.breaker,
                "failures": each.failures,
                "last_contact_at": iso(each.last_contact_at),
                "last_error": each.last_error,
                "retry_at": iso(each.retry_at),
            }
            for each in seen.nodes
        ],
        "pauses": [
            {
                "subject": each.subject,
                "name": each.name,
                "mode": each.mode,
                "running": each.running,
                "drained": each.drained,
                "since": iso(each.since),
            }
            for each in seen.pauses
        ],
        "quarantine": [
            {"name": each.name, "node": each.node, "at": iso(each.at), "reason": each.reason}
            for each in seen.quarantined
        ],
        "hosts": [
            {"name": each.name, "ingested_to": iso(each.told_of), "beat_at": iso(each.beat_at)}
            for each in seen.hosts
        ],
        "workers": [
            {
                "name": each.name,
                "host": each.host,
                "device": each.device,
                "models": list(each.models),
                "beat_at": iso(each.beat_at),
            }
            for each in seen.workers
        ],
        "open_associations": list(seen.open_associations),
        "oldest_in_spool": iso(seen.oldest_in_spool),
        "free_bytes": seen.free_bytes,
        "archive_free_bytes": seen.archive_free_bytes,
        "remarks": list(seen.remarks),
    }
