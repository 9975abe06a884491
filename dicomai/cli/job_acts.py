"""`dicomai retry`, `cancel`, `withdraw`: what a person does with jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dicomai.cli import audit
from dicomai.cli.catalogue import opened
from dicomai.cli.jobs import JobArgument
from dicomai.cli.options import ConfigOption
from dicomai.cli.terminal import complain, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicomai.store.job import JobId

JobsArgument: TypeAlias = Annotated[
    list[int],
    typer.Argument(metavar="ID", min=1, help="Their numbers in `dicomai jobs`; one or several."),
]


def retry(
    numbers: JobsArgument,
    again: Annotated[
        bool, typer.Option("--again", help="A job that is over: analyse once more, as a new job.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Try failed or held jobs again."""
    from dicomai.dicom.dates import now
    from dicomai.models.registry import open_registry
    from dicomai.routing.selection import ModelInputs
    from dicomai.service import again as generations
    from dicomai.store import jobs as queue
    from dicomai.store.engine import writing

    settings, engine = opened(config)
    registry = open_registry(settings.folders.models)
    models: dict[str, ModelInputs | None] = {}

    def installed(name: str) -> ModelInputs | None:
        if name not in models:
            package = registry.get(name) if name in registry.names else None
            models[name] = (
                None
                if package is None
                else ModelInputs(package_sha256=package.sha256, inputs=package.inputs)
            )
        return models[name]

    def one(number: JobId) -> None:
        with writing(engine) as connection:
            if again:
                model = installed(queue.existing(connection, number).model)
                queued = generations.again(connection, number, now(), model=model)
            else:
                queued = queue.retry(connection, number, now()).id
        audit.record(settings.service.data, "retry --again" if again else "retry", str(number))
        say(f"Job {queued} is queued.")

    _each(numbers, one)


def cancel(numbers: JobsArgument, config: ConfigOption = None) -> None:
    """Cancel jobs that are not done.

    A running one stops and leaves nothing behind. One that failed counts as seen to: dicomai status
    tells of it no more.
    """
    from dicomai.dicom.dates import now
    from dicomai.store import jobs as queue
    from dicomai.store.engine import writing

    settings, engine = opened(config)

    def one(number: JobId) -> None:
        with writing(engine) as connection:
            known = queue.existing(connection, number)
            cancelled = queue.cancel(
                connection, number, f"A person cancelled {known.title}.", now()
            )
        audit.record(settings.service.data, "cancel", str(number))
        say(f"{cancelled.title} is cancelled.")

    _each(numbers, one)


def _each(numbers: list[int], do: Callable[[JobId], None]) -> None:
    """Do something with each job; what can't be done with one is said, and harms no other."""
    from dicomai.errors import DatabaseError, DicomaiError
    from dicomai.store.job import JobId

    code = 0
    for number in dict.fromkeys(numbers):
        try:
            do(JobId(number))
        except DatabaseError:
            raise  # nor would the others be any better
        except DicomaiError as error:
            complain(error.sentence)
            code = code or error.exit_code
    if code:
        raise typer.Exit(code)


def withdraw(
    number: JobArgument,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why, for who reads the note.")
    ],
    config: ConfigOption = None,
) -> None:
    """Take back the results of an analysis.

    A rejection note (Key Object Selection, "Rejected for Patient Safety Reasons") goes to each node
    that has, or may have, something of them and takes such notes (rejection_notes); what had not
    been sent stays here. The results stay in the archive.
    """
    from dicomai.dicom.dates import now
    from dicomai.service.withdraw import withdraw as take_back
    from dicomai.store.job import JobId

    if not reason.strip():
        raise typer.BadParameter(
            "it is empty; say why, for those who read the note", param_hint="--reason"
        )
    settings, engine = opened(config)
    done = take_back(engine, settings, JobId(number), reason, now())
    audit.record(settings.service.data, "withdraw", str(number))
    where = ", ".join(done.nodes) or "nobody"
    say(f"Job {number} is withdrawn. The note is job {done.job}, and goes to {where}.")
    for remark in done.remarks:
        say(remark)
    for each in done.cancelled:
        say(f"Delivery {each} was cancelled.")
