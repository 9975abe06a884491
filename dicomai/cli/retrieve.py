"""`dicomai retrieve`: have studies fetched from a node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dicomai.cli import audit
from dicomai.cli.catalogue import opened
from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import print_json, say
from dicomai.errors import InputError, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomai.net.node import Node
    from dicomai.settings import Settings


def retrieve(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name in the configuration.")],
    study: Annotated[
        str, typer.Option("--study", metavar="UID", help="This study.", show_default=False)
    ] = "",
    series: Annotated[
        list[str] | None,
        typer.Option(
            "--series",
            metavar="UID",
            help="Only this series of --study; may be given several times.",
            show_default=False,
        ),
    ] = None,
    accession: Annotated[
        str,
        typer.Option(
            "--accession",
            metavar="NUMBER",
            help="The studies of this accession number.",
            show_default=False,
        ),
    ] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Fetch studies from a node, as jobs (C-GET or C-MOVE, see `retrieve` of [[nodes]])."""
    from dicomai.dicom.dates import now, seconds
    from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID, validated
    from dicomai.net.calling import require_address
    from dicomai.store import retrievals
    from dicomai.store.engine import writing
    from dicomai.store.retrievals import NewRetrieval

    if bool(study) == bool(accession):
        raise typer.BadParameter("Give --study or --accession.")
    if series and not study:
        raise typer.BadParameter("--series needs the --study that it is of.")
    settings, engine = opened(config)
    source = settings.node(node)
    require_address(source)
    try:
        uids: Sequence[str] = [validated(study, "--study")] if study else ()
        chosen = frozenset(SeriesInstanceUID(validated(each, "--series")) for each in series or ())
    except InputError as wrong:
        raise typer.BadParameter(wrong.sentence) from wrong
    added = []
    for uid in uids or _of_accession(settings, source, accession):
        wanted = NewRetrieval(
            node=node,
            study_instance_uid=StudyInstanceUID(uid),
            series=chosen,
            ageing=seconds(settings.worker.ageing_s),
        )
        with writing(engine) as connection:
            added.append((uid, retrievals.queue(connection, wanted, now())))
        audit.record(settings.service.data, "retrieve", f"{node} {uid}")
    if json:
        print_json(
            [{"job": each.job_id, "study": uid, "outcome": each.outcome} for uid, each in added]
        )
        return
    for uid, each in added:
        state = "is queued" if each.outcome == "queued" else "is under way already"
        say(f"Job {each.job_id} {state}: study {uid} from {node}. See: dicomai job {each.job_id}")


def _of_accession(settings: Settings, node: Node, accession: str) -> Sequence[str]:
    """Return the studies of an accession number at a node."""
    from dicomai.dicom.uid import validated
    from dicomai.net import find as finding

    if any(sign in accession for sign in "*?\\"):
        raise InputError("--accession takes one accession number, without wild cards.")
    asked = finding.query("study", {"AccessionNumber": accession})
    matches = finding.find(node, settings.receiver.ae_title, asked, settings.tls.files)
    found = sorted(
        {
            validated(match.text("StudyInstanceUID"), "StudyInstanceUID")
            for match in matches
            if match.text("AccessionNumber") in ("", accession)
        }
    )
    if not found:
        raise NotFound(
            f"{node.name} has no study with the accession number {accession!a}. See what it has: "
            f"dicomai find {node.name}",
            subject=accession,
        )
    return found
