"""What the catalogue says about a claimed analysis before its images are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from dicomai.dicom.header import Attributes
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID
from dicomai.errors import IdentityError
from dicomai.net.node import Node
from dicomai.routing.exclusion import kind_of, not_seen
from dicomai.routing.image import series_of
from dicomai.service.received import Reading
from dicomai.service.whole import image_of
from dicomai.settings import Settings
from dicomai.store import corrections, instances, jobs, lacking, predecessors, reissues
from dicomai.store.corrections import Corrections
from dicomai.store.engine import reading
from dicomai.store.instances import Instance
from dicomai.store.job import Job, JobRoute
from dicomai.store.predecessors import Predecessor


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the catalogue says about a claimed job.

    Attributes
    ----------
    inputs
        The versions that it takes, each with the name of its input.
    node
        Who sent them, if the configuration still knows.
    routes
        Who asked for it.
    corrections
        What a person said of the study when all images of it were here that it takes.
    patient
        The header of a result that names whose the job is; empty where none is here.
    left_out
        What shows the patient in the series of its first input and is none, one sentence each.
    """

    inputs: tuple[tuple[str, Instance], ...]
    node: Node | None
    predecessors: tuple[Predecessor, ...]
    routes: tuple[JobRoute, ...]
    corrections: Corrections
    patient: Attributes
    left_out: tuple[str, ...]

    @property
    def first(self) -> tuple[Instance, ...]:
        """The images of the first input."""
        return tuple(row for name, row in self.inputs if name == self.inputs[0][0])

    @property
    def volume_bytes(self) -> int:
        """What its voxels take as float32."""
        return sum(
            4 * _count(row, "Rows") * _count(row, "Columns") * (_count(row, "NumberOfFrames") or 1)
            for _, row in self.inputs
        )

    @property
    def route_names(self) -> str:
        """The routes that asked, as results name them."""
        return ", ".join(each.route for each in self.routes)

    @property
    def charset_default(self) -> str:
        """What its node's texts are in that do not say."""
        return self.node.charset_default if self.node else ""

    def reading(self, settings: Settings) -> Reading:
        """Return how the input was read, so that its patient's key comes out the same."""
        return Reading(
            issuer_of_patient_id=self.node.issuer_of_patient_id if self.node else "",
            charset_default=self.charset_default,
            placeholder_ids=settings.decide.placeholder_ids,
        )


def facts_of(engine: Engine, nodes: Sequence[Node], job: Job) -> Facts:
    """Return what is known of a job.

    Raises
    ------
    IdentityError
        It compares with a study that may be another patient's by now.
    """
    with reading(engine) as connection:
        inputs = instances.inputs_of(connection, job.id)
        stray = lacking.strayed(connection, job.id)
        before = predecessors.of_job(connection, job.id)
        routes = jobs.routes_of(connection, job.id)
        left_out = _left_out(connection, inputs)
        told = told_of(connection, job, inputs)
        last = reissues.last_of(connection, job.study_instance_uid, job.patient_key)
    if stray is not None:
        raise IdentityError(
            f"It compares with study {stray}, which may be another patient's. Find out whose that "
            f"is: dicomai study {stray}; then: dicomai retry {job.id}",
            subject=stray,
        )
    sender = inputs[0][1].node if inputs else ""
    return Facts(
        inputs=inputs,
        node=next((each for each in nodes if each.name == sender), None),
        predecessors=before,
        routes=routes,
        corrections=told,
        patient={} if last is None else last.attributes,
        left_out=left_out,
    )


def told_of(
    connection: Connection, job: Job, inputs: Sequence[tuple[str, Instance]]
) -> Corrections:
    """Return what a person corrected of a job's images: what came since may be somebody else's.

    A patient who was examined as another, by that one's order, is corrected. When that one comes
    for the same order, the modality may give the images the same study.
    """
    study = job.study_instance_uid
    told = corrections.of_study(connection, study)
    last = max((row.id for _, row in inputs if row.study_instance_uid == study), default=0)

    def was_here(said: IdentityKey | None = None) -> bool:
        first = reissues.first_of(connection, study, said)
        return first is not None and last < first

    return Corrections(
        keys={said: right for said, right in told.keys.items() if was_here(said)},
        accession_numbers=told.accession_numbers if was_here() else {},
    )


def _left_out(connection: Connection, inputs: Sequence[tuple[str, Instance]]) -> tuple[str, ...]:
    """Return what a job's first input lacks of its series, one sentence each.

    Where an image of some kind is among the inputs, a route allows that kind.
    """
    if not inputs:
        return ()
    first, chosen = inputs[0][1], {row.sop_instance_uid for _, row in inputs}
    rows = instances.of_series(
        connection,
        StudyInstanceUID(first.study_instance_uid),
        SeriesInstanceUID(first.series_instance_uid),
    )
    images = [image_of(row) for row in rows]
    kinds = {kind_of(each) for each in images if each.sop_instance_uid in chosen}
    allowed = [kind for kind in kinds if kind is not None and kind != "no image"]
    return tuple(told for each in series_of(images) for told in not_seen(each, allowed))


def _count(row: Instance, keyword: str) -> int:
    """Return a number of the catalogue, which is what the header said; 0 where it is none."""
    said = row.attributes.get(keyword, 0)
    try:
        return max(0, int(said)) if isinstance(said, str | float | int) else 0
    except (ValueError, OverflowError):
        return 0
