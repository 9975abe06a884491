"""Small studies with findings of every kind, written from the standard's formula."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomai.dicom.codes import LEFT, MILLILITRE, MILLIMETRE, RIGHT, Code
from dicomai.dicom.dates import Instant
from dicomai.findings import (
    Algorithm,
    Box,
    Classification,
    Detection,
    Findings,
    Measurement,
    PixelBox,
    Segment,
    SourceImage,
    Sphere,
)
from dicomai.imaging.geometry import Grid, Plane
from dicomai.results import gate
from dicomai.results.context import ResultContext
from dicomai.results.encode import encode, written
from dicomai.results.objects import DEFAULT
from dicomai.routing.route import ResultObject

JOB = uuid.UUID("5b2c0c1e-97a5-4a52-8a5f-3a4f6c1d2e70")
LUNG = Code("39607008", "SCT", "Lung")
ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
NODULE = Code("427359005", "SCT", "Solitary nodule of lung")
VOLUME = Code("118565006", "SCT", "Volume")
DIAMETER = Code("81827009", "SCT", "Diameter")
BALL = Code("EQUIVALENT-BALL", "99DICOMAI", "Diameter of the ball of equal volume")
MEAN = Code("373098007", "SCT", "Mean")
SHAPE = (9, 28, 34)
SPACING = (3.0, 0.8, 0.7)
Cosines = tuple[float, float, float]
# Row cosine, column cosine: as scanners give them, and one that lies askew.
ORIENTATIONS = {
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    "prone": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "feet first": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "decubitus": ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
    "oblique": ((0.96, 0.28, 0.0), (-0.168, 0.576, -0.8)),
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """Headers of source images, the grid they lie on, and voxels that show where things are."""

    headers: list[Dataset]
    grid: Grid
    voxels: npt.NDArray[np.int16]
    made: dict[tuple[int, tuple[ResultObject, ...]], tuple[Findings, list[bytes]]] = field(
        default_factory=dict, init=False
    )
    found: dict[str, Findings] = field(default_factory=dict, init=False)
    context: ResultContext = field(
        default_factory=lambda: ResultContext(
            created_at=Instant(1_784_628_000_123_456),
            software_version="0.1.0",
            timezone="Europe/Berlin",
        )
    )

    def files(self, findings: Findings, objects: Collection[ResultObject] = DEFAULT) -> list[bytes]:
        """Return the results as they would be sent; those of the same findings are made once."""
        key = (id(findings), tuple(objects))
        if key not in self.made:
            self.made[key] = (findings, self.made_anew(findings, objects))
        return list(self.made[key][1])

    def made_anew(
        self, findings: Findings, objects: Collection[ResultObject] = DEFAULT
    ) -> list[bytes]:
        """Return the results as they would be sent, of another encoding than those of `files`."""
        made = encode(findings, self.headers, JOB, self.context, objects, self.voxels)
        return [written(each) for each in made]

    def by_modality(
        self, findings: Findings, objects: Collection[ResultObject]
    ) -> dict[str, list[bytes]]:
        """Return the results that a gate let pass, by their modality."""
        files = self.files(findings, objects)
        gate.check(files, findings, self.headers, wanted=objects)
        out: dict[str, list[bytes]] = {}
        for raw in files:
            out.setdefault(pydicom.dcmread(io.BytesIO(raw)).Modality, []).append(raw)
        return out

    @property
    def inputs(self) -> tuple[SourceImage, ...]:
        """What the model saw."""
        return tuple(
            SourceImage(
                study_instance_uid=each.StudyInstanceUID,
                series_instance_uid=each.SeriesInstanceUID,
                sop_class_uid=each.SOPClassUID,
                sop_instance_uid=each.SOPInstanceUID,
            )
            for each in self.headers
        )


def header(number: int) -> Dataset:
    """Return what every header of the sample patient says."""
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.10.99.1.{number}"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.10.99"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.10.99.1"
    dataset.FrameOfReferenceUID = "1.2.826.0.1.3680043.10.99.2"
    dataset.Modality = "CT"
    dataset.SeriesNumber = 3
    dataset.PatientName = "Muster^Erika"
    dataset.PatientID = "PID-0815"
    dataset.IssuerOfPatientID = "HOSPITAL"
    dataset.PatientBirthDate = "19600412"
    dataset.PatientSex = "F"
    dataset.StudyDate = "20260720"
    dataset.StudyTime = "101500"
    dataset.StudyID = "4711"
    dataset.AccessionNumber = "ACC-1"
    dataset.ReferringPhysicianName = "Arzt^Anna"
    dataset.StudyDescription = "CT chest"
    dataset.BodyPartExamined = "CHEST"
    dataset.Manufacturer = "ACME"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    request = Dataset()
    request.RequestedProcedureID = "RP-1"
    request.RequestedProcedureDescription = "CT chest, nodules"
    request.ScheduledProcedureStepID = "SPS-1"
    dataset.RequestAttributesSequence = [request]
    return dataset


def make_study(
    orientation: str | tuple[Cosines, Cosines] = "axial",
    shape: tuple[int, int, int] = SHAPE,
) -> Study:
    """Return a CT whose slices lie as named, or along these cosines of row and column."""
    cosines = ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation
    row, column = (np.array(each) for each in cosines)
    normal = np.cross(row, column)
    between_slices, between_rows, between_columns = SPACING
    origin = np.array([-61.25, -48.5, -200.0])
    headers = []
    for k in range(shape[0]):
        dataset = header(k + 1)
        dataset.Rows, dataset.Columns = shape[1:]
        dataset.PixelSpacing = [between_rows, between_columns]
        dataset.SliceThickness = between_slices
        dataset.ImageOrientationPatient = [*row.tolist(), *column.tolist()]
        dataset.ImagePositionPatient = (origin + k * between_slices * normal).tolist()
        headers.append(dataset)
    affine = np.eye(4)
    affine[:3, 0] = normal * between_slices
    affine[:3, 1] = column * between_rows
    affine[:3, 2] = row * between_columns
    affine[:3, 3] = origin
    grid = Grid(
        shape_kji=shape,
        index_to_lps=affine,
        frame_of_reference_uid=headers[0].FrameOfReferenceUID,
        sop_instance_uids=tuple(each.SOPInstanceUID for each in headers),
    )
    voxels = np.full(shape, -850, np.int16)
    voxels[:, 20:] = 40
    return Study(headers=headers, grid=grid, voxels=voxels)


def make_xray() -> Study:
    """Return a chest X-ray, which has no place in the patient."""
    dataset = header(1)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = SHAPE[1:]
    del dataset.FrameOfReferenceUID
    dataset.PatientOrientation = ["L", "F"]
    plane = Plane(
        shape_ji=SHAPE[1:],
        spacing_ji_mm=(0.4, 0.2),
        sop_instance_uid=dataset.SOPInstanceUID,
        runs_to=("L", "F"),
    )
    pixels = np.tile(np.arange(SHAPE[2], dtype=np.int16), (SHAPE[1], 1))
    return Study(headers=[dataset], grid=plane, voxels=pixels)


ALGORITHM = Algorithm(
    name="chest-ct-lungs",
    version="1.2.0",
    package_sha256="0f" * 32,
    manufacturer="dicomai",
    intended_use="Research: outlines lungs in chest CT of adults.",
    not_for="Not for diagnosis or therapy.",
    family=Code("123110", "DCM", "Artificial Intelligence"),
)


def nothing(study: Study) -> Findings:
    """Return the findings of a model that found nothing."""
    if "nothing" not in study.found:
        study.found["nothing"] = _nothing(study)
    return study.found["nothing"]


def _nothing(study: Study) -> Findings:
    return Findings(
        algorithm=ALGORITHM,
        where=study.grid,
        inputs=study.inputs,
        sought="nodules of 4 mm or more, certainty of at least 50 %",
    )


def ball(study: Study, name: str, centre_kji: tuple[float, float, float]) -> Detection:
    """Return a detection without a mask."""
    centre = study.grid.lps_mm(centre_kji)
    return Detection(
        label="Nodule",
        tracking_id=name,
        finding=NODULE,
        site=LUNG,
        laterality=LEFT,
        region=Sphere(centre_lps_mm=tuple(centre.tolist()), diameter_mm=6.0),
        probability=0.625,
        measurements=(
            Measurement(
                name=DIAMETER,
                value=6.0,
                unit=MILLIMETRE,
                method=BALL,
                derivation=MEAN,
                uncertainty=0.5,
            ),
        ),
    )


def everything(study: Study) -> Findings:
    """Return findings of every kind that a volume can have, of a study always the same."""
    if "everything" not in study.found:
        study.found["everything"] = _everything(study)
    return study.found["everything"]


def _everything(study: Study) -> Findings:
    right, left, nodule, empty = (np.zeros(study.grid.shape_kji, bool) for _ in range(4))
    right[1:6, 4:16, 3:12] = True
    right[2, 5, 4] = False
    left[3:8, 6:18, 18:31] = True
    nodule[4:6, 8:11, 20:23] = True  # inside the left lung: two segments share these voxels
    corner, opposite = study.grid.lps_mm([(2, 3, 4), (4, 8, 9)])
    with_mask = replace(ball(study, "nodule 1", (4.5, 9.0, 21.0)), mask=nodule, probability=0.9)
    box = Detection(
        label="Nodule",
        tracking_id="nodule 3",
        finding=NODULE,
        laterality=RIGHT,
        region=Box(corner_lps_mm=tuple(corner.tolist()), opposite_lps_mm=tuple(opposite.tolist())),
        probability=0.51,
    )
    return replace(
        nothing(study),
        segments=(
            _lung("Right lung", RIGHT, right, 2310.4567),
            _lung("Left lung", LEFT, left, 1980.0),
            _lung("Accessory lobe", LEFT, empty, 0.0),
        ),
        detections=(with_mask, ball(study, "nodule 2", (6.0, 12.0, 24.5)), box),
        classifications=(opacity(present=False),),
        deviations=("Computed in float32 where the package says bfloat16.",),
        warnings=("Slices are thicker than 2.5 mm.",),
    )


def little(study: Study) -> Findings:
    """Return a segment and a detection, which are enough where the images are what matters."""
    if "little" not in study.found:
        right = np.zeros(study.grid.shape_kji, bool)
        right[1:, 4:12, 3:10] = True
        study.found["little"] = replace(
            nothing(study),
            segments=(_lung("Right lung", RIGHT, right, 2310.4567),),
            detections=(ball(study, "nodule 2", (1.0, 8.0, 6.0)),),
        )
    return study.found["little"]


def _lung(label: str, side: Code, mask: npt.NDArray[np.bool_], millilitres: float) -> Segment:
    return Segment(
        label=label,
        tracking_id=label.lower(),
        category=ANATOMY,
        type=LUNG,
        laterality=side,
        mask=mask,
        measurements=(Measurement(name=VOLUME, value=millilitres, unit=MILLILITRE),),
    )


def opacity(*, present: bool) -> Classification:
    """Return a yes or a no."""
    return Classification(
        label="Nodule",
        tracking_id="nodule at all",
        finding=NODULE,
        present=present,
        probability=0.75 if present else 0.125,
        threshold=0.5,
    )


def on_xray(study: Study) -> Findings:
    """Return a box on an X-ray."""
    box = PixelBox(
        sop_instance_uid=study.headers[0].SOPInstanceUID, first_ji=(5.0, 8.0), last_ji=(9.0, 20.0)
    )
    found = Detection(
        label="Nodule", tracking_id="nodule 1", finding=NODULE, region=box, probability=0.8
    )
    return replace(nothing(study), detections=(found,))


@pytest.fixture(scope="session")
def study(study_lying: Callable[..., Study]) -> Study:
    """A small axial CT."""
    return study_lying("axial")


@pytest.fixture(scope="session")
def xray() -> Study:
    """A small chest X-ray."""
    return make_xray()


@pytest.fixture(scope="session")
def study_lying() -> Callable[..., Study]:
    """Give a small CT in an orientation, the same one each time where that has a name."""
    made: dict[tuple[str, tuple[int, int, int]], Study] = {}

    def lying(
        orientation: str | tuple[Cosines, Cosines], shape: tuple[int, int, int] = SHAPE
    ) -> Study:
        if not isinstance(orientation, str):
            return make_study(orientation, shape)
        if (orientation, shape) not in made:
            made[orientation, shape] = make_study(orientation, shape)
        return made[orientation, shape]

    return lying


@pytest.fixture(scope="session")
def study_of_shape() -> Callable[[tuple[int, int, int]], Study]:
    """Give an axial CT of a shape (K, J, I)."""
    return lambda shape: make_study(shape=shape)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Makers of findings."""

    everything: Callable[[Study], Findings] = everything
    little: Callable[[Study], Findings] = little
    nothing: Callable[[Study], Findings] = nothing
    on_xray: Callable[[Study], Findings] = on_xray
    ball: Callable[[Study, str, tuple[float, float, float]], Detection] = ball
    opacity: Callable[..., Classification] = opacity
    orientations: tuple[str, ...] = tuple(ORIENTATIONS)
    job: uuid.UUID = JOB


@pytest.fixture(scope="session")
def found() -> Found:
    """Makers of findings."""
    return Found()
