"""A model on a folder of DICOM: no network, no database; results are checked before they count."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydicom import Dataset

from dicomai.dicom.dates import now
from dicomai.dicom.part10 import is_dicomdir
from dicomai.dicom.version import VersionDigest
from dicomai.errors import DicomaiError, InputError, ResourceError
from dicomai.findings import Findings
from dicomai.imaging.image import SourceImagePixels
from dicomai.imaging.series import read_object
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.pipeline import analyse
from dicomai.models.package import Package
from dicomai.models.runtimes.torch_runtime import LoadedModel
from dicomai.results import gate
from dicomai.results.context import ResultContext
from dicomai.results.encode import encode, written
from dicomai.results.objects import DEFAULT
from dicomai.results.overlay import overlays
from dicomai.results.summary import line
from dicomai.routing.exclusion import Excluded, exclude, not_seen
from dicomai.routing.image import Image, Series, series_of
from dicomai.routing.matching import beside, study_day
from dicomai.routing.route import Exclusion, ResultObject
from dicomai.routing.selection import InputSpec, choose
from dicomai.service.analyse import ONLY_A_REPORT, image_of_source, refusal
from dicomai.service.one_patient import check_somebodys, is_same_patient
from dicomai.service.received import Reading
from dicomai.service.received import read_object as read_received
from dicomai.service.result_files import file_name, put, remove, set_aside
from dicomai.service.sources import source_of
from dicomai.settings.tables import DecideSettings

Report = Callable[[str, float], None]
"""Takes the stage and the fraction of it that is done."""

# Lies beside DICOM without being meant as such.
_COMPANIONS: Final = frozenset({".json", ".txt", ".xml", ".csv", ".png", ".jpg", ".pdf", ".md"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a series, or of a file that is none.

    Attributes
    ----------
    title
        What it is, in words.
    found
        What the model found; empty where it gave nothing.
    because
        Why there is no result; empty where there is one.
    failed
        The model takes it, and there is no result all the same.
    objects, pictures
        The files that were written.
    """

    title: str
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    found: str = ""
    because: str = ""
    failed: bool = False
    stages_s: Mapping[str, float] = field(default_factory=dict)
    objects: tuple[Path, ...] = ()
    pictures: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What objects leave unsaid, and everybody knows where they were made.

    Attributes
    ----------
    timezone
        IANA name of the zone of the modalities.
    charset_default
        Specific Character Set of undeclared bytes above 127; empty: unknown.
    placeholder_ids
        Patient IDs that stand for none.
    """

    timezone: str = "UTC"
    charset_default: str = ""
    placeholder_ids: tuple[str, ...] = DecideSettings().placeholder_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """The DICOM objects under a path: what rules see of each, and its file."""

    images: Mapping[str, tuple[Image, Path]]
    """By SOP Instance UID."""
    unreadable: tuple[Outcome, ...]
    twice: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with objects that are there with different content, in a sentence each."""
    site: Site = Site()
    allow: tuple[Exclusion, ...] = ()
    """What is input of a model only because somebody says so, as of a route."""


def read_folder(
    path: Path,
    site: Site = Site(),  # it is frozen
    allow: tuple[Exclusion, ...] = (),
) -> Folder:
    """Return what lies under a path; a DICOMDIR and hidden files are passed over."""
    images: dict[str, tuple[Image, Path]] = {}
    twice: dict[str, str] = {}
    unreadable = []
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        if is_dicomdir(file) or file.name.startswith("."):
            continue
        try:
            image = _image(file, site)
        except InputError as error:
            if file.suffix.lower() not in _COMPANIONS:
                name = str(file.relative_to(path)) if path.is_dir() else file.name
                unreadable.append(Outcome(title=name, because=error.sentence))
        else:
            before, other = images.setdefault(image.sop_instance_uid, (image, file))
            if not _version(before).same_version(_version(image)):
                twice[image.sop_instance_uid] = (
                    f"{other.name} and {file.name} are the same object and differ. Leave the right "
                    "one in the folder."
                )
    return Folder(images=images, unreadable=tuple(unreadable), twice=twice, site=site, allow=allow)


def _version(image: Image) -> VersionDigest:
    return VersionDigest(header=image.header_digest, pixels=image.pixel_digest)


def _image(file: Path, site: Site) -> Image:
    read = read_received(file, Reading(charset_default=site.charset_default))
    return Image(
        series_instance_uid=read.identifiers.series_instance_uid,
        sop_instance_uid=read.identifiers.sop_instance_uid,
        sop_class_uid=read.identifiers.sop_class_uid,
        header_digest=read.version.header,
        pixel_digest=read.version.pixels,
        origin="received",
        node="",
        attributes=read.attributes,
    )


def takes(package: Package, folder: Folder) -> tuple[tuple[Series, ...], tuple[Outcome, ...]]:
    """Return the series (or the image of each) that a model takes, and why the others not."""
    spec = package.inputs[0]
    taken, others = [], []
    for series in series_of(image for image, _ in folder.images.values()):
        left, excluded = exclude(series, folder.allow)
        both = [folder.twice.get(image.sop_instance_uid, "") for image in series.images]
        if said := next(filter(None, both), ""):
            others.append(without(series, said, failed=True))
            continue
        if left is None:
            others.append(without(series, f"Left out: {_why(excluded)}."))
            continue
        choice = choose(spec, [left])
        if choice.chosen is None:
            reasons = "; ".join(dict.fromkeys(each.reason for each in choice.misfits))
            others.append(without(series, f"Does not fit: {reasons}."))
        else:
            taken.append(choice.chosen.series)
    return tuple(taken), tuple(others)


def _why(excluded: Sequence[Excluded]) -> str:
    reasons = [each.reason for each in excluded]
    if lifted := [each.kind for each in excluded if each.kind != "no image"]:
        reasons.append(f"--allow {','.join(lifted)} takes it")
    return "; ".join(reasons)


def without(series: Series, because: str, *, failed: bool = False) -> Outcome:
    """Return what became of a series that has no result."""
    attributes = series.images[0].attributes
    return Outcome(
        title=series.title,
        study_instance_uid=str(attributes.get("StudyInstanceUID", "")),
        series_instance_uid=series.series_instance_uid,
        because=because,
        failed=failed,
    )


def remove_earlier(package: Package, folder: Folder, out: Path) -> None:
    """Take away what earlier runs of a model wrote about the series of a folder.

    Else an old finding would stand beside a new report that there is none, or beside a refusal.
    What other models wrote stays, and so does what is not of dicomai.
    """
    for uid in {image.series_instance_uid for image, _ in folder.images.values()}:
        remove(package.name, out / uid)


def analysed(
    model: LoadedModel,
    series: Series,
    folder: Folder,
    out: Path,
    report: Report,
    objects: Collection[ResultObject] = DEFAULT,
) -> Outcome:
    """Run a model on a series that it takes, and write what it found.

    Parameters
    ----------
    model
        The package with its network.
    series
        Of `takes`.
    folder
        Where its files are.
    out
        Objects and pictures go to a folder in it that has the name of the series.
    report
        Told stage and fraction.
    objects
        The forms of the result.

    Returns
    -------
    Outcome
        An error that is expected is its `because`.
    """
    place = out / series.series_instance_uid
    try:
        outcome = _written_to(place, model, series, folder, report, objects)
    except BaseException as trouble:
        remove(model.package.name, place)  # a part of a result may say something else
        if isinstance(trouble, OSError) and trouble.errno in (errno.ENOSPC, errno.EDQUOT):
            trouble.filename = trouble.filename or str(place)  # a write that fails names none
        raise
    others = _other_images(series, folder)
    if outcome.objects:
        return replace(outcome, found=" ".join([outcome.found, *others]))
    return replace(outcome, because=" ".join([outcome.because, *others]))


def _written_to(
    place: Path,
    model: LoadedModel,
    series: Series,
    folder: Folder,
    report: Report,
    objects: Collection[ResultObject],
) -> Outcome:
    outcome = without(series, "")
    datasets: list[Dataset] = []
    try:
        datasets += _read(series, folder)
        given: dict[str, Sequence[Dataset]] = {model.package.inputs[0].name: datasets}
        others = _beside(model.package, series, folder)
        check_somebodys(
            (image for each in (series, *others.values()) for image in each.images),
            folder.site.placeholder_ids,
        )
        for name, other in others.items():
            given[name] = _read(other, folder)
        nothing = {"": "Nothing in the folder fits."}
        source, seen = source_of(
            model.package, given, nothing, placeholder_ids=folder.site.placeholder_ids
        )
        if isinstance(source, SourceVolume):
            left_out = not_seen(_whole(series, folder), folder.allow)
            source = replace(source, warnings=(*source.warnings, *left_out))
        findings = analyse(model, source, seen, report)
    except (InputError, ResourceError) as error:
        failed = replace(outcome, because=error.sentence, failed=True)
        told = "NOT-ANALYSED" in objects and datasets
        return _told(model.package, datasets, failed, folder.site, place) if told else failed
    except DicomaiError as error:
        because = f"{error.sentence}{_in_file(error.subject, folder)}"
        return replace(outcome, because=because, failed=True)
    report("encode", 0.0)
    made: tuple[Dataset, ...] = ()
    try:
        made = _encoded(findings, source, folder.site, objects)
        files = _checked(made, findings, source.headers, folder.site, objects)
    except DicomaiError as error:
        return replace(outcome, because=set_aside(error, made, findings, place), failed=True)
    return replace(
        outcome,
        found=" ".join([line(findings), *_left_out(series, folder)]),
        stages_s=findings.stages_s,
        objects=put(files, place),
        pictures=tuple(overlays(findings, image_of_source(source), place)),
    )


def _other_images(series: Series, folder: Folder) -> tuple[str, ...]:
    """Return which of several images a model of one image got, in a sentence."""
    left, _ = exclude(_whole(series, folder), folder.allow)
    if left is None or len(left.images) == len(series.images):
        return ()
    _, file = folder.images[series.images[0].sop_instance_uid]
    told = (
        f"Of the {len(left.images)} images of the series only {file.name} was looked at, as the "
        "model takes one. For another give its file as PATH, with an --out of its own."
    )
    return (told,)


def _left_out(series: Series, folder: Folder) -> tuple[str, ...]:
    """Return what was not looked at beside images that were, one sentence each."""
    return tuple(each.sentence for each in exclude(_whole(series, folder), folder.allow)[1])


def _whole(series: Series, folder: Folder) -> Series:
    """Return a series with all that the folder has of it."""
    uid = series.series_instance_uid
    images = [image for image, _ in folder.images.values() if image.series_instance_uid == uid]
    (whole,) = series_of(images)
    return whole


def _told(
    package: Package, headers: Sequence[Dataset], failed: Outcome, site: Site, place: Path
) -> Outcome:
    """Write a report that says why there is no result, where one can be written."""
    try:
        made = refusal(package, headers, failed.because, uuid.uuid4(), _context(site))
        gate.check(
            (made.report,),
            made.findings,
            made.headers,
            charset_default=site.charset_default,
            wanted=ONLY_A_REPORT,
        )
    except DicomaiError:
        return failed  # and its sentence stays: whose images these are can't be told
    name = f"{package.name}-sr.dcm"
    return replace(failed, found=line(made.findings), objects=put({name: made.report}, place))


def _in_file(subject: str, folder: Folder) -> str:
    """Return where the object lies that an error is about, as one is of another patient."""
    image = folder.images.get(subject)
    return f" It is {image[1].name}." if image else ""


def _read(series: Series, folder: Folder) -> list[Dataset]:
    return [read_object(folder.images[each.sop_instance_uid][1]) for each in series.images]


def _beside(package: Package, first: Series, folder: Folder) -> Mapping[str, Series]:
    """Return what the further inputs get: of the same study, or of an earlier one."""
    about = first.images[0].attributes
    day = study_day(about.get("StudyDate"))
    study: list[Series] = []
    earlier: dict[tuple[date, str], list[Series]] = {}
    for each in series_of(image for image, _ in folder.images.values()):
        left, _ = exclude(each, folder.allow)
        theirs = each.images[0].attributes
        uid, at = str(theirs.get("StudyInstanceUID", "")), study_day(theirs.get("StudyDate"))
        if left is None:
            continue
        if uid == about.get("StudyInstanceUID"):
            study.append(left)
        elif (day is not None and at is not None and at < day) and is_same_patient(
            theirs, about, folder.site.placeholder_ids
        ):
            earlier.setdefault((at, uid), []).append(left)

    def before(spec: InputSpec) -> Iterator[Sequence[Series]]:
        for at, uid in sorted(earlier, reverse=True):
            assert day is not None
            if spec.max_age_days is None or (day - at).days <= spec.max_age_days:
                yield earlier[at, uid]

    choices = beside(package.inputs[1:], first, study, before)
    return {each.input: each.chosen.series for each in choices if each.chosen is not None}


def _encoded(
    findings: Findings,
    source: SourceVolume | SourceImagePixels,
    site: Site,
    wanted: Collection[ResultObject],
) -> tuple[Dataset, ...]:
    image = image_of_source(source)
    return encode(findings, source.headers, uuid.uuid4(), _context(site), wanted, image)


def _checked(
    made: Sequence[Dataset],
    findings: Findings,
    headers: Sequence[Dataset],
    site: Site,
    wanted: Collection[ResultObject],
) -> dict[str, bytes]:
    """Return the checked objects by the names of their files."""
    files = {file_name(each, findings): written(each) for each in made}
    gate.check(
        list(files.values()),
        findings,
        headers,
        charset_default=site.charset_default,
        placeholder_ids=site.placeholder_ids,
        wanted=wanted,
    )
    return files


def _context(site: Site) -> ResultContext:
    return ResultContext(
        created_at=now(),
        software_version=version("dicomai"),
        charset_default=site.charset_default,
        timezone=site.timezone,
    )
