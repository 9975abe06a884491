"""The steps of an analysis around the runner: read the input, encode, check, make durable.

Each takes values and files; claiming, beating and committing are the supervisor's.
"""

from __future__ import annotations

import shutil
import socket
import uuid
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import numpy.typing as npt
import structlog
from pydicom import Dataset

from dicomai.dicom.dates import Instant
from dicomai.dicom.uid import TransferSyntaxUID
from dicomai.errors import DicomaiError, IdentityError, InputError
from dicomai.findings import Findings
from dicomai.imaging.attributes import numbers
from dicomai.imaging.geometry import Plane
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.inputs import Source, inputs_of
from dicomai.inference.messages import Analyse
from dicomai.inference.shared_memory import SharedPlanes
from dicomai.models.package import Package
from dicomai.results import gate
from dicomai.results.context import PredecessorSR, ResultContext
from dicomai.results.encode import encode, written
from dicomai.results.objects import DEFAULT
from dicomai.results.uids import COMPREHENSIVE_3D_SR_STORAGE
from dicomai.routing.route import ResultObject
from dicomai.service import originals, received
from dicomai.service.received import Reading
from dicomai.service.sources import source_of
from dicomai.spool.entries import AssociationFacts, AssociationId
from dicomai.spool.folder import make_folders
from dicomai.spool.part import write_durably
from dicomai.spool.quarantine import put
from dicomai.store import archive
from dicomai.store.instances import Instance, InstanceRow
from dicomai.store.job import Job
from dicomai.store.lacking import missing_of
from dicomai.store.predecessors import Predecessor

log = structlog.get_logger()

_NOT_SHOWN: Final[frozenset[ResultObject]] = frozenset(
    {
        "SEG",
        "SEG:ALL-FRAMES",
        "SEG:FRACTIONAL",
        "SEG:LABELMAP",
        "SR",
        "SR:ENHANCED",
        "SR:TEXT",
        "KO",
        "PM",
        "RTSTRUCT",
        "NOT-ANALYSED",
    }
)
"""What shows no image, so that none has to be kept for it."""
_OF_PROBABILITIES: Final[frozenset[ResultObject]] = frozenset({"SEG:FRACTIONAL", "PM"})
ONLY_A_REPORT: Final[tuple[ResultObject, ...]] = ("SR",)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """The input of a job, and what goes to the runner of it."""

    source: Source
    request: Analyse


def load(
    job: Job,
    rows: Sequence[tuple[str, Instance]],
    package: Package,
    data: Path,
    on_read: Callable[[float], None],
    objects: Collection[ResultObject] = DEFAULT,
    left_out: tuple[str, ...] = (),
    placeholder_ids: Collection[str] = (),
) -> Loaded:
    """Return the input of a job, read from the archive.

    Parameters
    ----------
    job
        Whose input it is.
    rows
        The instances that the job took, of the versions that it took, each with its input's name.
    package
        What it is for.
    data
        The data folder.
    on_read
        Told the fraction that is read.
    objects
        The results that are wanted.
    left_out
        What a volume lacks of its series, one sentence each.
    placeholder_ids
        Patient IDs that stand for none.

    Raises
    ------
    InputError
        A file is not there any more or has changed, or the images are no input for the model.
    IdentityError
        An input, or an image of one, is another patient's.
    TransientError
        The archive is not there.
    """
    given: dict[str, list[Dataset]] = {}
    with closing(originals.each(tuple(row for _, row in rows), data)) as images:
        for number, ((name, _), image) in enumerate(zip(rows, images, strict=True), start=1):
            given.setdefault(name, []).append(image)
            on_read(number / len(rows))
    source, inputs = source_of(package, given, missing_of(job), SharedPlanes, placeholder_ids)
    if isinstance(source, SourceVolume):
        source = replace(source, warnings=(*source.warnings, *left_out))
        for each in (each for images in given.values() for each in images):
            each.pop("PixelData", None)  # they are in the volume, and would stay to the end
    return Loaded(
        source=source,
        request=Analyse(
            package_folder=str(package.folder),
            package_sha256=package.sha256,
            source=replace(source, headers=()),
            inputs=inputs,
            probabilities=not _OF_PROBABILITIES.isdisjoint(objects),
        ),
    )


def for_results(source: Source, objects: Collection[ResultObject]) -> Source:
    """Return an input as results need it: without its voxels where nothing shows them."""
    if isinstance(source, SourceVolume) and _NOT_SHOWN.issuperset(objects):
        return replace(source, voxels=np.empty((0, 0, 0), np.int16), beside=())
    return source


def check_answer(findings: Findings, request: Analyse) -> None:
    """Compare findings with what was asked for: a runner must not answer for another study.

    Raises
    ------
    IdentityError
        They are of other images, or of another model.
    """
    if (
        findings.inputs != request.inputs
        or findings.algorithm.package_sha256 != request.package_sha256
    ):
        others = sorted({each.study_instance_uid for each in findings.inputs})
        raise IdentityError(
            f"The runner answered for other images or another model than it was given: study "
            f"{', '.join(others)}. Nothing was written; report this.",
            subject=request.inputs[0].study_instance_uid,
        )


def context_of(
    job: Job, timezone: str, charset_default: str, predecessors: Sequence[PredecessorSR], route: str
) -> ResultContext:
    """Return who encodes the results of a job, and when: the same each time."""
    return ResultContext(
        created_at=job.created_at,
        software_version=version("dicomai"),
        charset_default=charset_default,
        timezone=timezone,
        predecessors=tuple(predecessors),
        route=route,
    )


def encoded(
    job: Job,
    findings: Findings,
    source: Source,
    *,
    timezone: str,
    charset_default: str,
    predecessors: Sequence[PredecessorSR],
    route: str = "",
    objects: Collection[ResultObject] = DEFAULT,
) -> tuple[bytes, ...]:
    """Return the results of a job as Part 10 files; the same job and findings, the same bytes."""
    context = context_of(job, timezone, charset_default, predecessors, route)
    image = image_of_source(source)
    shown = image if image.size else None  # see `for_results`
    made = encode(findings, source.headers, job.uuid, context, objects, shown)
    return tuple(written(each) for each in made)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Refusal:
    """A report that says why a model can't take an input, and what it was made of."""

    report: bytes
    findings: Findings
    headers: tuple[Dataset, ...]


def refusal(
    package: Package,
    headers: Sequence[Dataset],
    reason: str,
    unique: uuid.UUID,
    context: ResultContext,
) -> Refusal:
    """Return a report that says why a model can't take these images; it is not checked yet.

    Raises
    ------
    InputError
        Whose images they are can't be read, so there is nobody to write a report for.
    """
    first = headers[0]
    findings = Findings(
        algorithm=package.algorithm,
        where=Plane(
            shape_ji=(_count(first, "Rows"), _count(first, "Columns")),
            spacing_ji_mm=None,
            sop_instance_uid=str(first.SOPInstanceUID),
        ),
        inputs=inputs_of(headers),
        sought=package.manifest.sought,
        not_analysed=reason,
    )
    (report,) = encode(findings, headers, unique, context, ONLY_A_REPORT)
    return Refusal(report=written(report), findings=findings, headers=tuple(headers))


def _count(header: Dataset, keyword: str) -> int:
    """Return the rows or columns of an image, 0 where it does not say."""
    try:
        (value,) = numbers(header, keyword, 1)
    except InputError:
        return 0
    return int(value)


def image_of_source(source: Source) -> npt.NDArray[np.generic]:
    """Return the voxels or pixels that the model saw."""
    return source.voxels if isinstance(source, SourceVolume) else source.grey


def reports_of(predecessors: Sequence[Predecessor]) -> tuple[PredecessorSR, ...]:
    """Return the reports of earlier analyses, for the new one to name."""
    return tuple(
        PredecessorSR(
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            sop_class_uid=row.sop_class_uid,
            sop_instance_uid=row.sop_instance_uid,
        )
        for each in predecessors
        for row in each.results
        if row.sop_class_uid == COMPREHENSIVE_3D_SR_STORAGE
    )


def check(
    results: Sequence[bytes],
    findings: Findings,
    headers: Sequence[Dataset],
    reading: Reading,
    objects: Collection[ResultObject] = DEFAULT,
) -> None:
    """Hold the bytes of results against findings and images.

    Raises
    ------
    IdentityError
        A result names another patient or study than its images.
    GateError
        It breaks another rule.
    """
    dciodvfy = shutil.which("dciodvfy")
    try:
        with ThreadPoolExecutor(1, "dciodvfy") as beside:
            theirs = (
                beside.submit(gate.check_with_dciodvfy, results, dciodvfy) if dciodvfy else None
            )
            gate.check(
                results,
                findings,
                headers,
                charset_default=reading.charset_default,
                placeholder_ids=reading.placeholder_ids,
                wanted=objects,
            )
        for uid in theirs.result() if theirs else ():
            log.warning("dciodvfy took too long", result=uid)
    except gate.GateError as error:
        if error.rule == "identity":
            raise IdentityError(error.sentence, subject=error.subject) from error
        raise


def kept(
    job: Job, results: Sequence[bytes], error: DicomaiError, quarantine: Path, now: Instant
) -> DicomaiError:
    """Keep results that may not be sent in the quarantine, and return the error that says so.

    Parameters
    ----------
    job
        Whose results they are.
    results
        As they would have been sent.
    error
        What is wrong with them.
    quarantine
        The folder.
    now
        The present.
    """
    set_aside(job, results, quarantine, error.sentence, now)
    sentence = (
        f"{error.sentence} Nothing was sent; the results lie in the quarantine on "
        f"{socket.gethostname()} (dicomai status there): report this with them. After a fix of "
        f"dicomai, or of the model: dicomai retry {job.id}"
    )
    if isinstance(error, gate.GateError):
        return gate.GateError(sentence, subject=error.subject, rule=error.rule)
    return type(error)(sentence, subject=error.subject)


def set_aside(
    job: Job, results: Sequence[bytes], quarantine: Path, reason: str, now: Instant
) -> tuple[str, ...]:
    """Keep results that may not be sent in the quarantine, with the reason; return their names."""
    origin = AssociationFacts(
        id=AssociationId(f"job-{job.id}-{job.claim}"),
        calling_ae="",
        called_ae="",
        address="",
        node="",
        started_at=now,
    )
    names = []
    with TemporaryDirectory(dir=quarantine, prefix=".results-") as folder:
        for number, octets in enumerate(results):
            path = Path(folder) / f"{number}.dcm"
            write_durably(path, (octets,))
            names.append(put(quarantine, path, reason, now, origin))
    return tuple(names)


def placed(
    job: Job, results: Sequence[bytes], data: Path, reading: Reading, now: Instant
) -> tuple[InstanceRow, ...]:
    """Put results into the archive, durably, and return their rows; may be repeated.

    Parameters
    ----------
    job
        Whose results they are.
    results
        Checked Part 10 files.
    data
        The data folder.
    reading
        How the source's node is read, so that its patient's key comes out the same.
    now
        The present.

    Raises
    ------
    IdentityError
        A file names another patient than the job's.
    DiskFull
        No room.
    TransientError
        The archive is not there.
    """
    archive.require(data)
    folder = data / archive.FOLDER / archive.RESULTS / str(job.uuid)
    make_folders(folder, data)
    rows = []
    for number, octets in enumerate(results):
        path = folder / f"{number}.dcm"
        write_durably(path, (octets,))
        rows.append(_placed(job, path, data, reading, now))
        path.unlink()
    with suppress(OSError):  # a kill may have left a part there, which the sweep takes
        folder.rmdir()
    return tuple(rows)


def _placed(job: Job, path: Path, data: Path, reading: Reading, now: Instant) -> InstanceRow:
    found = received.read_object(path, reading)
    uids = found.identifiers
    if found.identity.key != job.patient_key or uids.study_instance_uid != job.study_instance_uid:
        raise IdentityError(
            f"The result {uids.sop_instance_uid} names another patient or study than the job was "
            "made for. It was not kept. Images that came after a person had corrected their study "
            "may be somebody else's: have the PACS send them as they should be. To try again: "
            f"dicomai retry {job.id}; to end it: dicomai cancel {job.id}",
            subject=job.study_instance_uid,
        )
    place = archive.place(
        data,
        path,
        uids.study_instance_uid,
        uids.series_instance_uid,
        uids.sop_instance_uid,
        found.file_sha256,
    )
    return InstanceRow(
        study_instance_uid=uids.study_instance_uid,
        series_instance_uid=uids.series_instance_uid,
        sop_instance_uid=uids.sop_instance_uid,
        sop_class_uid=uids.sop_class_uid,
        transfer_syntax_uid=TransferSyntaxUID(found.transfer_syntax_uid),
        header_digest=found.version.header,
        pixel_digest=found.version.pixels,
        file_sha256=found.file_sha256,
        origin="produced",
        node="",
        received_at=now,
        size_bytes=found.size_bytes,
        path=place,
        attributes=found.attributes,
        job_id=job.id,
    )
