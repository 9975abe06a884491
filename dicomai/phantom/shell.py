"""What stands around the pixels: whose study it is, and the identifiers of its objects."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://dicomai.org/phantom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """Patient and study around a phantom; what is left as it is looks like an ordinary study.

    Attributes
    ----------
    uid_seed
        The same text gives the same UIDs; None draws new ones for each call.
    study_instance_uid, frame_of_reference_uid
        Empty: derived like all other UIDs.
    character_set
        Specific Character Set; several values are joined by a backslash, as in the object.
    issuer
        Issuer of Patient ID; empty leaves the attribute out.
    """

    patient_name: str = "Phantom^Chest"
    patient_id: str = "PHANTOM-1"
    issuer: str = ""
    patient_birth_date: str = "19610314"
    patient_sex: str = "F"
    patient_age: str = "063Y"
    character_set: str = "ISO_IR 100"
    accession_number: str = "A20240611-17"
    study_date: str = "20240611"
    study_time: str = "101530"
    timezone: str = "+0200"
    study_id: str = "4711"
    study_description: str = ""
    institution: str = "Phantom Hospital"
    referring_physician: str = "Referrer^Rita"
    study_instance_uid: str = ""
    frame_of_reference_uid: str = ""
    uid_seed: str | None = None
    extra: tuple[tuple[str, object], ...] = field(default=())
    """Attributes by keyword that are set last, on each object."""


class UidSource:
    """UIDs for the objects of one call: random, or the same for the same seed."""

    def __init__(self, seed: str | None) -> None:
        self._root = uuid.uuid4() if seed is None else uuid.uuid5(_NAMESPACE, seed)

    def uid(self, name: str) -> str:
        """Return the UID of what has this name within the call."""
        return f"2.25.{uuid.uuid5(self._root, name).int}"


def study_of(shell: Shell, uids: UidSource) -> str:
    """Return the Study Instance UID."""
    return shell.study_instance_uid or uids.uid("study")


def patient_and_study(shell: Shell, uids: UidSource) -> Dataset:
    """Return the attributes of patient, study and equipment that CT and X-ray share."""
    ds = Dataset()
    sets = shell.character_set.split("\\")
    ds.SpecificCharacterSet = sets if len(sets) > 1 else sets[0]
    ds.PatientName = shell.patient_name
    ds.PatientID = shell.patient_id
    if shell.issuer:
        ds.IssuerOfPatientID = shell.issuer
    ds.PatientBirthDate = shell.patient_birth_date
    ds.PatientSex = shell.patient_sex
    ds.PatientAge = shell.patient_age
    ds.StudyInstanceUID = study_of(shell, uids)
    ds.StudyID = shell.study_id
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = shell.study_date
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = shell.study_time
    ds.TimezoneOffsetFromUTC = shell.timezone
    ds.AccessionNumber = shell.accession_number
    ds.ReferringPhysicianName = shell.referring_physician
    ds.InstitutionName = shell.institution
    ds.Manufacturer = "dicomai"
    ds.ManufacturerModelName = "Phantom"
    ds.DeviceSerialNumber = "1"
    ds.SoftwareVersions = "1"
    ds.StationName = "PHANTOM"
    ds.BodyPartExamined = "CHEST"
    return ds


def finished(ds: Dataset, shell: Shell) -> Dataset:
    """Add what the caller of the shell wants, and the file's meta information."""
    for keyword, value in shell.extra:
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(f"2.25.{uuid.uuid5(_NAMESPACE, 'writer').int}")
    return ds


def set_pixels(ds: Dataset, pixels: np.ndarray, bits_stored: int) -> None:
    """Add a greyscale image of int16 or uint16, (J, I)."""
    signed = pixels.dtype == np.int16
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = (int(each) for each in pixels.shape)
    ds.BitsAllocated = 16
    ds.BitsStored = bits_stored
    ds.HighBit = bits_stored - 1
    ds.PixelRepresentation = int(signed)
    ds.PixelData = pixels.astype("<i2" if signed else "<u2").tobytes()
