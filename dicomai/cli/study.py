"""`dicomai studies`, and `study`: the whole story of one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dicomai.cli import audit
from dicomai.cli import jobs as queue
from dicomai.cli.catalogue import opened
from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import clock, iso, moment, print_json, say, table, text
from dicomai.errors import DicomaiError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.text import Text

    from dicomai.dicom.dates import Instant
    from dicomai.dicom.uid import StudyInstanceUID
    from dicomai.service.story import StudyStory
    from dicomai.store.instances import Instance
    from dicomai.store.states import StudyStatus
    from dicomai.store.studies import Study

_VERSIONS_SHOWN: Final = 20
_NONE_YET: Final = "No study was received yet."
_STATES: Final[Mapping[StudyStatus, str]] = MappingProxyType(
    {"open": "arriving", "decided": "decided", "held": "held", "deleting": "deleting"}
)


def studies(
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state", metavar="STATE", help=f"{', '.join(_STATES.values())}; may be repeated."
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Only those of which something came since: 2026-01-31, or '2026-01-31 18:00', in "
            "this machine's local time.",
        ),
    ] = "",
    without_results: Annotated[
        bool,
        typer.Option("--without-results", help="Only those with images and no results of ours."),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 30,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List the studies that are here, those first that changed last."""
    from dicomai.store import studies as catalogue
    from dicomai.store.engine import reading

    wanted = [status for status, word in _STATES.items() if word in (state or ())]
    if len(wanted) != len(set(state or ())):
        raise typer.BadParameter(f"states are {', '.join(_STATES.values())}", param_hint="--state")
    began = _instant(since) if since else None
    _, engine = opened(config)
    with reading(engine) as connection:
        found = catalogue.listing(connection, limit, wanted, began, without_results=without_results)
    if json:
        print_json([facts(each) for each in found])
    else:
        asked = state or since or without_results
        show_studies(found, empty="There is no such study." if asked else _NONE_YET)


def _instant(value: str) -> Instant:
    """Return a local time as people write it."""
    from dicomai.dicom.dates import Instant, seconds

    for form in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"):
        with suppress(ValueError):
            at = datetime.strptime(value, form)  # noqa: DTZ007  local, as it is shown
            return Instant(seconds(at.timestamp()))
    raise typer.BadParameter(
        f"--since {value!a} is no time. Write it as 2026-01-31 or '2026-01-31 18:00'."
    )


def study(
    name: Annotated[
        str, typer.Argument(metavar="UID|ACCESSION", help="Study Instance UID or accession number.")
    ],
    accept: Annotated[
        str,
        typer.Option(
            "--accept", metavar="KEY", help="A held study belongs to this patient: let it go on."
        ),
    ] = "",
    patient: Annotated[
        str,
        typer.Option(
            "--patient",
            metavar="ID",
            help="Its images have a wrong Patient ID: reissue the results for this one.",
        ),
    ] = "",
    accession: Annotated[
        str,
        typer.Option(
            "--accession",
            metavar="NUMBER",
            help="Its images have a wrong accession number: reissue the results with this one.",
        ),
    ] = "",
    decide: Annotated[
        bool,
        typer.Option(
            "--decide",
            help="Have the routes look at it again, as after a change of the configuration.",
        ),
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Tell the whole story of a study.

    What came, from whom and when; what was decided and why; what ran; what went out. A UID may be
    written as tables shorten it, …323263405059. An accession number that several studies share
    lists them.
    """
    from dicomai.service import story
    from dicomai.store.engine import reading

    if sum((bool(accept), bool(patient or accession), decide)) > 1:
        raise typer.BadParameter(
            "--accept, --decide, and --patient with --accession, are done one after the other."
        )
    if accept:
        _accept(name, accept, config)
        return
    if patient or accession:
        _reissue(name, patient, accession, config)
        return
    if decide:
        _decide(name, config)
        return
    _, engine = opened(config)
    with reading(engine) as connection:
        found = story.find(connection, name)
        told = story.of_study(connection, found[0]) if len(found) == 1 else None
    if told is None:
        if json:
            print_json([facts(each) for each in found])
        else:
            say(f"{len(found)} studies go by {name}:")
            show_studies(found)
    elif json:
        print_json(_facts_of_story(told))
    else:
        _show(told)


def _accept(name: str, key: str, config: Path | None) -> None:
    from dicomai.dicom.dates import now
    from dicomai.dicom.identity import IdentityKey
    from dicomai.service import decide, story
    from dicomai.store.engine import reading

    settings, engine = opened(config)
    with reading(engine) as connection:
        uid = _only(name, story.find(connection, name))
    left = decide.accept(engine, uid, IdentityKey(key), now())
    audit.record(settings.service.data, "study --accept", f"{uid} {key}")
    say(f"Study {uid} belongs to {key} now, and is decided on anew.")
    for sentence in left:
        say(sentence)


def _decide(name: str, config: Path | None) -> None:
    from dicomai.dicom.dates import now
    from dicomai.service import decide, story
    from dicomai.store.engine import reading

    settings, engine = opened(config)
    with reading(engine) as connection:
        uid = _only(name, story.find(connection, name))
    decide.decide_again(engine, uid, now())
    audit.record(settings.service.data, "study --decide", uid)
    say(
        f"Study {uid} is open again: the service has its routes look at it when it runs. What they "
        f"make of it: dicomai study {uid}"
    )


def _reissue(name: str, patient: str, accession: str, config: Path | None) -> None:
    from dicomai.dicom.dates import now
    from dicomai.results.reissue import Correction
    from dicomai.service import reissue, story
    from dicomai.store.engine import reading

    settings, engine = opened(config)
    with reading(engine) as connection:
        uid = _only(name, story.find(connection, name))
    correction = Correction(patient_id=patient, accession_number=accession)
    made = reissue.reissue(settings, engine, uid, correction, now)
    for option, value in (("patient", patient), ("accession", accession)):
        if value:
            audit.record(settings.service.data, f"study --{option}", f"{uid} {value}")
    numbers = ", ".join(map(str, made))
    say(f"Study {uid}: its results are reissued and queued for delivery, as job {numbers}.")


def _only(name: str, found: Sequence[Study]) -> StudyInstanceUID:
    if len(found) > 1:
        raise DicomaiError(
            f"{len(found)} studies go by {name}. Give the Study Instance UID "
            f"of the one that is meant: dicomai study {name}",
            subject=name,
        )
    return found[0].study_instance_uid


def show_studies(found: Sequence[Study], empty: str = _NONE_YET) -> None:
    """Print studies as a table."""
    table(
        ["state", "objects#", "last object", "accession", "study"],
        [
            (
                status_of(each),
                each.instances,
                clock(each.last_object_at),
                each.accession_number,
                each.study_instance_uid,
            )
            for each in found
        ],
        empty=empty,
    )


def status_of(known: Study) -> Text:
    """Return a study's state in a word."""
    looks = {"held": "warn", "deleting": "quiet"}
    return text(_STATES[known.status], looks.get(known.status, ""))


def facts(known: Study) -> dict[str, object]:
    """Return a study as scripts read it."""
    return {
        "study": known.study_instance_uid,
        "status": known.status,
        "patient_key": known.patient_key,
        "accepted_key": known.accepted_key,
        "hold_reason": known.hold_reason,
        "accession_number": known.accession_number,
        "study_date": known.study_date,
        "nodes": list(known.nodes),
        "instances": known.instances,
        "first_object_at": iso(known.first_object_at),
        "last_object_at": iso(known.last_object_at),
        "quiet_until": iso(known.quiet_until),
        "decided_at": iso(known.decided_at),
        "decision": known.decision,
    }


def _facts_of_story(told: StudyStory) -> dict[str, object]:
    return facts(told.study) | {
        "identities": list(told.keys),
        "kept_until": iso(told.kept_until),
        "series": [
            {
                "series": each.series_instance_uid,
                "number": each.number,
                "modality": each.modality,
                "description": each.description,
                "instances": each.instances,
                "nodes": list(each.nodes),
                "produced": each.produced,
                "first_at": iso(each.first_at),
                "last_at": iso(each.last_at),
            }
            for each in told.series
        ],
        "versions": [
            {
                "sop_instance_uid": each.sop_instance_uid,
                "received_at": iso(each.received_at),
                "node": each.node,
                "file": str(each.path),
                "size_bytes": each.size_bytes,
                "used": each.newest,
            }
            for each in told.versions
        ],
        "jobs": [queue.facts_of_story(each) for each in told.jobs],
        "events": [queue.event_facts(each) for each in told.events],
    }


def _show(told: StudyStory) -> None:
    known = told.study
    keys = told.keys
    table(
        ["study", known.study_instance_uid],
        [
            ("patient", known.patient_key or ", ".join(keys) or "not known"),
            ("accession", known.accession_number or "none"),
            ("date", known.study_date or "none"),
            ("state", status_of(known)),
            ("why", known.hold_reason if known.status == "held" else known.decision),
            *([("kept until", moment(told.kept_until))] if told.kept_until else []),
        ],
    )
    if known.status == "held" and keys:
        say("To let it go on as one patient's: dicomai study UID --accept KEY. The keys are:")
        for key in keys:
            say(f"  {key}")
    table(
        ["series#", "kind", "description", "objects#", "from", "came"],
        [
            (
                "" if each.number is None else each.number,
                each.modality,
                each.description,
                each.instances,
                "dicomai" if each.produced else ", ".join(each.nodes),
                moment(each.last_at),
            )
            for each in told.series
        ],
    )
    _show_versions(told.versions)
    table(
        ["job#", "what", "routes", "state", "tries#", "took", "remark"],
        [
            (
                each.job.id,
                queue.what(each.job),
                ", ".join(route.route for route in each.routes),
                queue.state_of(each.job),
                each.job.attempts,
                queue.took(each.job),
                queue.remark(each.job, each.pause),
            )
            for each in told.jobs
        ],
        empty="No job was made for it.",
    )
    table(
        ["sent to", "object", "state", "answer"],
        [
            (
                each.job.node,
                f"…{one.sop_instance_uid[-12:]}",
                text(one.state, "good" if one.state in ("sent", "committed") else "bad"),
                one.sentence,
            )
            for each in told.jobs
            for one in each.objects
        ],
    )
    queue.show_events(told.events)


def _show_versions(versions: Sequence[Instance]) -> None:
    table(
        ["object that came changed", "came", "from", "bytes#", "file", "version"],
        [
            (
                f"…{each.sop_instance_uid[-12:]}",
                moment(each.received_at),
                each.node,
                each.size_bytes,
                each.file_sha256[:8],
                "used" if each.newest else "kept until retention",
            )
            for each in versions[:_VERSIONS_SHOWN]
        ],
    )
    if len(versions) > _VERSIONS_SHOWN:
        say(f"{len(versions) - _VERSIONS_SHOWN} more versions: dicomai study UID --json")
