"""`dicomai archive rescan`: rows rebuilt from the files of the archive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dicomai.cli import audit
from dicomai.cli.catalogue import opened
from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import print_json, progress, say, table
from dicomai.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomai.service.rescan import Rebuilt

app = typer.Typer(help="The archive.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The archive."""


@app.command("rescan")
def rescan(
    node: Annotated[
        str,
        typer.Option(
            "--node",
            metavar="NODE",
            help="Who sent the objects: a name in the configuration, whose issuer and character "
            "set count.",
        ),
    ],
    studies: Annotated[
        list[str] | None,
        typer.Argument(metavar="STUDY", help="Only studies of these UIDs; else all."),
    ] = None,
    decide: Annotated[
        bool,
        typer.Option(
            "--decide", help="Routes look at what is taken in, as if it had just come; else none."
        ),
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Take what lies in the archive, and is not in the database, into it.

    For a database that was lost, or came back from a backup. The service must be stopped on all
    hosts. The exit code is 1 if any file or study was left out; it is named with the reason.
    """
    from dicomai.dicom.dates import now
    from dicomai.dicom.uid import StudyInstanceUID, validated
    from dicomai.service import rescan as rescans
    from dicomai.service.standstill import require_stopped
    from dicomai.store.engine import reading

    try:
        wanted = [StudyInstanceUID(validated(each, "STUDY")) for each in studies or ()]
    except InputError as wrong:
        raise typer.BadParameter(wrong.sentence) from wrong
    settings, engine = opened(config)
    plan = rescans.Rescan(
        folders=settings.folders,
        node=settings.node(node),
        placeholder_ids=settings.decide.placeholder_ids,
        reserve_bytes=settings.receiver.reserve_bytes,
        decide=decide,
    )
    folders = rescans.folders_of(settings.folders.data, wanted)
    with reading(engine) as connection:
        require_stopped(connection, now())
    action = "archive rescan --decide" if decide else "archive rescan"
    for subject in [f"{node} {uid}" for uid in wanted] or [node]:
        audit.record(settings.service.data, action, subject)
    done = []
    with progress() as display:
        studies_done = display.add_task("studies", total=len(folders))
        for each in rescans.rescan(engine, plan, folders, now):
            display.advance(studies_done)
            if each.objects or each.left_out or each.unfit:
                done.append(each)
    if json:
        print_json(_facts(done))
    else:
        _show(done, node, decide)
    if any(each.left_out or each.unfit for each in done):
        raise typer.Exit(1)


def _facts(done: Sequence[Rebuilt]) -> dict[str, object]:
    return {
        "studies": [
            {"study": each.study_instance_uid, "objects": each.objects, "held": each.held}
            for each in done
            if each.objects
        ],
        "left_out": [
            {"study": each.study_instance_uid, "sentence": each.left_out}
            for each in done
            if each.left_out
        ],
        "files": [
            {"file": str(file.path), "sentence": file.because}
            for each in done
            for file in each.unfit
        ],
    }


def _show(done: Sequence[Rebuilt], node: str, decide: bool) -> None:
    taken = [each for each in done if each.objects]
    objects = sum(each.objects for each in taken)
    if not objects:
        say("Nothing was taken in: the database knows all that could be.")
    else:
        what = "1 object" if objects == 1 else f"{objects} objects"
        of = "1 study" if len(taken) == 1 else f"{len(taken)} studies"
        looks = "routes look at them when the service runs" if decide else "no route looks at them"
        say(f"Taken in as sent by {node}: {what} of {of}; {looks}.")
    for each in done:
        if each.held:
            uid = each.study_instance_uid
            say(
                f"Study {uid} is held, for whose it is is not clear. If a person corrected its "
                f"patient before, audit.jsonl has the ID to accept. See: dicomai study {uid}"
            )
        if each.left_out:
            say(each.left_out)
    unfit = [file for each in done for file in each.unfit]
    table(["left where it lies", "why"], [(file.path, file.because) for file in unfit])
    if unfit:
        say(
            "Put whole files in their places from a backup and do this again; or move them away, "
            "and have their studies sent again."
        )
