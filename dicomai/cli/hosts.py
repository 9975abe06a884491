"""`dicomai hosts` and `forget`: the machines that take objects, and one that is no more."""

from __future__ import annotations

from typing import Annotated

import typer

from dicomai.cli import audit
from dicomai.cli.catalogue import opened
from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import iso, moment, print_json, say, span, table, text
from dicomai.errors import DicomaiError, NotFound


def hosts(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the hosts whose objects decisions wait for, and when each was heard of."""
    from dicomai.dicom.dates import now
    from dicomai.service.overview import ALIVE
    from dicomai.store import clocks
    from dicomai.store import hosts as known
    from dicomai.store.engine import reading

    _, engine = opened(config)
    with reading(engine) as connection:
        at = clocks.common(connection, now)
        listed = known.listing(connection)
    if json:
        print_json(
            [
                {
                    "name": each.name,
                    "ingested_to": iso(each.told_of),
                    "beat_at": iso(each.beat_at),
                    "silent": at - each.beat_at > ALIVE,
                }
                for each in listed
            ]
        )
        return
    table(
        ["host", "ingested to", "heard of", "state"],
        [
            (
                each.name,
                moment(each.told_of) or "nothing yet",
                moment(each.beat_at),
                text("silent", "bad") if at - each.beat_at > ALIVE else text("alive", "good"),
            )
            for each in listed
        ],
        empty="No host has taken an object yet.",
    )


def forget(
    name: Annotated[str, typer.Argument(metavar="HOST", help="As dicomai hosts names it.")],
    config: ConfigOption = None,
) -> None:
    """Forget a host that is gone for good: decisions wait for it no more.

    What its spool still holds is taken only if it starts again.
    """
    from dicomai.dicom.dates import now
    from dicomai.service.overview import ALIVE
    from dicomai.store import clocks
    from dicomai.store import hosts as known
    from dicomai.store.engine import writing

    settings, engine = opened(config)
    with writing(engine) as connection:
        at = clocks.common(connection, now)
        host = next((each for each in known.listing(connection) if each.name == name), None)
        if host is None:
            raise NotFound(f"There is no host {name!a}. See: dicomai hosts", subject=name)
        if at - host.beat_at <= ALIVE:
            heard = span((at - host.beat_at) / 1e6)
            raise DicomaiError(
                f"Host {name} was heard of {heard} ago, so it lives, and would be back at once. "
                f"Stop the service there, wait {span(ALIVE / 1e6)}, then: dicomai forget {name}",
                subject=name,
            )
        known.forget_host(connection, name, at)
    audit.record(settings.service.data, "forget", name)
    say(f"Host {name} is forgotten: decisions wait for it no more.")
