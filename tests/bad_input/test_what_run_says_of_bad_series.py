"""`dicomai run` gives one sentence for each series that makes no image a model can take.

The series are long enough for the model's own conditions, so that each reaches the geometry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from typer.testing import CliRunner

from dicomai.cli.main import app

STUDY, SERIES = "1.2.3", "1.2.3.1"
COUNT, STEP_MM = 24, 5.0


def _slice(number: int) -> Dataset:
    """An axial 16 by 16 CT; slice `number` (from 1) lies at 5 mm times it."""
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = f"{SERIES}.{number}"
    image.StudyInstanceUID, image.SeriesInstanceUID = STUDY, SERIES
    image.FrameOfReferenceUID = f"{STUDY}.9"
    image.PatientID, image.PatientName = "P1", "DOE^JANE"
    image.PatientBirthDate, image.PatientSex = "19600131", "F"
    image.StudyDate, image.StudyTime, image.StudyID = "20261120", "080000", "1"
    image.AccessionNumber, image.ReferringPhysicianName = "A1", ""
    image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, number
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SliceThickness = STEP_MM
    image.ImagePositionPatient = [-40.0, -40.0, STEP_MM * number]
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.PixelSpacing = [5.0, 5.0]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows = image.Columns = 16
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.PixelData = np.full((16, 16), 1000, "<i2").tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _missing(series: list[Dataset]) -> None:
    del series[9]


def _twice(series: list[Dataset]) -> None:
    again = _slice(10)
    again.SOPInstanceUID = f"{SERIES}.99"
    series.append(again)


def _two_orientations(series: list[Dataset]) -> None:
    for image in series[12:]:
        image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def _tilt(series: list[Dataset]) -> None:
    for image in series:
        shift = STEP_MM * image.InstanceNumber * math.tan(math.radians(40))
        image.ImagePositionPatient[1] += shift


def _four_dimensions(series: list[Dataset]) -> None:
    for number in range(1, COUNT + 1):
        later = _slice(number)
        later.SOPInstanceUID = f"{SERIES}.{number + 100}"
        later.InstanceNumber = number + 100
        series.append(later)


def _colour(series: list[Dataset]) -> None:
    for image in series:
        image.SamplesPerPixel, image.PhotometricInterpretation = 3, "RGB"
        image.PlanarConfiguration, image.PixelRepresentation = 0, 0
        image.BitsAllocated = image.BitsStored = 8
        image.HighBit = 7
        image.PixelData = bytes(16 * 16 * 3)


def _of_another_patient(series: list[Dataset]) -> None:
    series[6].PatientID = "P2"


def _born_on_another_day(series: list[Dataset]) -> None:
    series[6].PatientBirthDate = "19700131"


def _two_frames_of_reference(series: list[Dataset]) -> None:
    for image in series[12:]:
        image.FrameOfReferenceUID = f"{STUDY}.10"


def _cannot_be_decoded(series: list[Dataset]) -> None:
    series[4].PixelData = series[4].PixelData[:-8]


def _one_slice(series: list[Dataset]) -> None:
    del series[1:]


def _no_modality_of_the_model(series: list[Dataset]) -> None:
    for image in series:
        image.Modality = "MR"


def test_a_table_names_a_series_once_and_what_to_look_at(tmp_path: Path) -> None:
    image = _slice(1)
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.save_as(tmp_path / "1.dcm", enforce_file_format=True)
    answer = CliRunner().invoke(
        app, ["run", "chest-ct-lungs", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    assert answer.exit_code == 1
    assert answer.stdout.count(SERIES) == 1
    assert "What the model wants: dicomai models show chest-ct-lungs." in answer.stdout


def _says(folder: Path, series: list[Dataset]) -> str:
    """Run the model for lungs on a series, which is to fail, and return the one sentence."""
    folder.mkdir()
    for number, image in enumerate(series):
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    out = folder.parent / "out"
    arguments = ["run", "chest-ct-lungs", str(folder), "--out", str(out), "--device", "cpu"]
    answer = CliRunner().invoke(app, [*arguments, "--json"])
    assert answer.exit_code == 1, answer.output
    assert not list(out.rglob("*.dcm"))
    (outcome,) = json.loads(answer.stdout)
    assert SERIES in outcome["title"]
    sentence: str = outcome["because"]
    return sentence


@pytest.mark.parametrize(
    ("spoil", "names", "reason"),
    [
        (_missing, SERIES, "no slice at 50.0 mm, between 45.0 and 55.0 mm"),
        (_twice, SERIES, "2 slices at 50.0 mm"),
        (_two_orientations, SERIES, "in 2 orientations: 12 axial, 12 sagittal"),
        (_tilt, SERIES, "gantry tilt of 40.0°: each slice is shifted along its columns"),
        (_one_slice, "Does not fit", 'the model wants "instances >= 20", and it has 1'),
        (_four_dimensions, SERIES, "no single volume but 2"),
        (_colour, SERIES, "is a colour image (RGB)"),
        (_two_frames_of_reference, SERIES, "2 frames of reference"),
        (_cannot_be_decoded, f"{SERIES}.5", "pixel data can't be decoded"),
        (
            _of_another_patient,
            f"{SERIES}.7 has another PatientID than other images",
            "It is 6.dcm.",
        ),
        (_born_on_another_day, f"{SERIES}.7 has another PatientBirthDate", "It is 6.dcm."),
        (_no_modality_of_the_model, "Does not fit", '"Modality = CT", and it has MR'),
    ],
)
def test_a_bad_series_gets_one_sentence(
    spoil: Callable[[list[Dataset]], None], names: str, reason: str, tmp_path: Path
) -> None:
    series = [_slice(number) for number in range(1, COUNT + 1)]
    spoil(series)

    sentence = _says(tmp_path / "in", series)

    assert names in sentence
    assert reason in sentence
    assert sentence.endswith(".")
