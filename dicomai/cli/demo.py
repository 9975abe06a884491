"""`dicomai demo`: the whole way of a study, on this machine, in a few minutes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dicomai.cli.options import must_exist, no_dicom
from dicomai.cli.terminal import remarks, say, span, table, text
from dicomai.errors import DicomaiError

if TYPE_CHECKING:
    from dicomai.cli.demo_site import Site
    from dicomai.cli.demo_studies import SentStudy
    from dicomai.service.story import JobStory, StudyStory

_FOLDERS: Final = ("sent", "service", "pacs", "pictures")
_MARK: Final = ".dicomai-demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one analysis.

    Attributes
    ----------
    found
        As the returned report tells it; or why there is nothing.
    returned
        The kinds of objects that the PACS has, as SEG and SR.
    right
        All of them came back, and passed the checks; or the images can't be analysed, and the
        reason is told.
    """

    study: str
    model: str
    found: str
    returned: tuple[str, ...]
    pictures: tuple[Path, ...]
    stages_s: dict[str, float]
    right: bool
    series: frozenset[str]


def demo(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]",
            help="A folder of DICOM; else phantoms are made.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where all goes; else a new folder."),
    ] = None,
) -> None:
    """Show the whole way of a study, on this machine.

    Sends studies through a real service with a stand-in PACS, shows each step, and ends with what
    was found, what came back, and where it lies. Nothing leaves this machine. The exit code is 0
    only if every expected object came back and passed its checks.
    """
    from dicomai.cli.demo_site import MODALITY_AE, site
    from dicomai.cli.demo_studies import make_phantoms, studies_in
    from dicomai.cli.demo_watch import shortened, watch
    from dicomai.net.scu import store_objects
    from dicomai.spool import quarantine

    if path is not None:
        must_exist(path)
    folder = _fresh(out)
    console = remarks()
    truth = ""
    if path is None:
        with console.status("making a chest CT and a chest X-ray"):
            truth = make_phantoms(folder / "sent")
    studies, unreadable = studies_in(path or folder / "sent")
    if not studies:
        raise DicomaiError(no_dicom(path or folder), subject=str(path))
    with console.status("starting the service") as status, site(folder) as running:
        console.print(
            text(
                f"dicomai serve listens on port {running.receiver.port}, a stand-in PACS on port "
                f"{running.pacs.port}."
            )
        )
        left_out = [(each.title, each.because) for each in unreadable]
        taken = []
        for study in studies:
            files = tuple(study.files.values())
            status.update(text(f"sending {study.title}"))
            outcomes = store_objects(running.receiver, MODALITY_AE, files, lambda _: None)
            refused = [each.sentence for each in outcomes if each.kind not in ("ok", "warning")]
            left_out += [(study.title, shortened(sentence)) for sentence in refused]
            there = len(files) - len(refused)
            console.print(text(f"{study.title}: sent {there} of {len(files)} objects by C-STORE."))
            if there:
                taken.append(study)
        status.stop()
        watch(running, taken)
        results: list[Result] = []
        for study in taken:
            story = _story(running, study)
            if story is not None:
                found = list(_results(running, study, story, folder / "pictures"))
                results += found
                left_out += _without(study, story, found)
        left_out += [
            (f"quarantine: {each.name}", each.reason)
            for each in quarantine.listing(running.settings.folders.quarantine)
        ]
    _show(results)
    if truth:
        say(f"{truth}\n")
    table(["no result for", "because"], left_out)
    _say_where(folder, results)
    complete = all(result.right for result in results) and (path is not None or len(results) == 3)
    if not complete:
        raise typer.Exit(1)


def _fresh(out: Path | None) -> Path:
    """Return an empty folder; what an earlier demonstration left in it is removed."""
    if out is None:
        return Path(tempfile.mkdtemp(prefix="dicomai-demo-"))
    out.mkdir(parents=True, exist_ok=True)
    if (out / _MARK).exists():
        for name in _FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
    elif any(out.iterdir()):
        raise DicomaiError(
            f"{out} is not empty, and holds no earlier demonstration. Give --out a new folder.",
            subject=str(out),
        )
    (out / _MARK).touch()
    return out.resolve()


def _story(running: Site, study: SentStudy) -> StudyStory | None:
    """Return the story of a study, None where nothing of it got into the catalogue."""
    from dicomai.dicom.uid import StudyInstanceUID
    from dicomai.service import story
    from dicomai.store import studies
    from dicomai.store.engine import open_engine, reading

    with reading(open_engine(running.settings.database.url)) as connection:
        row = studies.get(connection, StudyInstanceUID(study.study_instance_uid))
        return None if row is None else story.of_study(connection, row)


def _results(running: Site, study: SentStudy, told: StudyStory, pictures: Path) -> Iterator[Result]:
    """Give the result of each analysis of a study, held against what was sent."""
    from dicomai.store import instances
    from dicomai.store.engine import open_engine, reading

    for each in told.jobs:
        if each.job.kind != "analyse" or each.job.state == "cancelled":
            continue
        with reading(open_engine(running.settings.database.url)) as connection:
            inputs = [row for _, row in instances.inputs_of(connection, each.job.id)]
        place = pictures / f"{each.job.id}-{each.job.model}"
        series = frozenset(str(row.series_instance_uid) for row in inputs)
        try:
            found, returned, drawn = _came_back(
                running, each, [study.files[row.sop_instance_uid] for row in inputs], told, place
            )
            right = True
        except DicomaiError as error:
            found, returned, drawn = error.sentence, (), ()
            right = each.job.state == "failed" and each.job.error_kind == "input"
        yield Result(
            study=study.title,
            model=each.job.model,
            found=found,
            returned=returned,
            pictures=drawn,
            stages_s=dict(each.job.stages_s),
            right=right,
            series=series,
        )


def _came_back(
    running: Site, known: JobStory, sources: Sequence[Path], told: StudyStory, place: Path
) -> tuple[str, tuple[str, ...], tuple[Path, ...]]:
    """Return what the PACS got of an analysis, checked; raise what is wrong with it."""
    import pydicom

    from dicomai.cli.demo_returned import checked
    from dicomai.imaging.image import image_of
    from dicomai.imaging.series import read_object
    from dicomai.imaging.volume import volume_of
    from dicomai.models.registry import open_registry

    if known.job.state != "done":
        raise DicomaiError(known.job.error_sentence or f"The job is {known.job.state}.")
    there = running.pacs.files()
    objects = []
    for result in known.results:
        if result.sop_instance_uid not in there:
            deliveries = [each.job for each in told.jobs if each.job.result_of == known.job.id]
            why = " ".join(each.error_sentence for each in deliveries)
            raise DicomaiError(f"The PACS did not get {result.sop_instance_uid}. {why}".strip())
        objects.append(there[result.sop_instance_uid])
        kept = running.settings.folders.data / result.path
        if pydicom.dcmread(kept) != pydicom.dcmread(objects[-1]):
            raise DicomaiError(f"{result.sop_instance_uid} came to the PACS with other content.")
    package = open_registry(running.settings.folders.models).get(known.job.model)
    datasets = [read_object(path) for path in sources]
    volume = package.manifest.input[0].kind == "volume"
    source = volume_of(datasets) if volume else image_of(datasets[0])
    returned = checked(objects, source, package, place)
    kinds = tuple(sorted(str(each.attributes.get("Modality", "")) for each in known.results))
    return returned.found, kinds, returned.pictures


def _without(
    study: SentStudy, told: StudyStory, results: Sequence[Result]
) -> Iterator[tuple[str, str]]:
    """Give each series that no model saw, with the sentences of the story that say why."""
    from dicomai.cli.demo_watch import shortened

    seen = frozenset[str]().union(*(each.series for each in results))
    for series in study.series:
        uid = series.series_instance_uid
        if uid in seen:
            continue
        because = [
            event.sentence
            for event in told.events
            if event.kind in ("objects left out", "route unmatched", "series left out")
            and (event.data.get("series") == uid or uid in event.sentence)
        ]
        own = because or [told.study.hold_reason or told.study.decision]
        yield f"{study.title}: {series.title}", shortened("\n".join(own))


def _show(results: Sequence[Result]) -> None:
    from dicomai.service.supervise import STAGES

    table(
        ["study", "model", "found", "came back", "took"],
        [
            (
                each.study,
                each.model,
                text(each.found, "" if each.returned else "warn" if each.right else "bad"),
                " + ".join(each.returned) or text("nothing", "warn" if each.right else "bad"),
                span(sum(each.stages_s.values())) if each.stages_s else "",
            )
            for each in results
        ],
        empty="Nothing was analysed.",
    )
    done = [each for each in results if each.stages_s]
    stages = [stage for stage in STAGES if any(stage in each.stages_s for each in done)]
    table(
        ["seconds", *(f"{each.model}#" for each in done)],
        [(stage, *(f"{each.stages_s.get(stage, 0):.2f}" for each in done)) for stage in stages]
        if len(done) <= 4
        else (),
    )


def _say_where(folder: Path, results: Sequence[Result]) -> None:
    objects = sum(len(each.returned) for each in results)
    say(f"The PACS got {objects} objects, each checked against what was sent: {folder / 'pacs'}")
    for picture in (picture for each in results for picture in each.pictures):
        say(f"  {picture}")
    say(f"The service's data and log: {folder / 'service'}")
