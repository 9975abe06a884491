"""Results of images that still say what a person corrected: they are the corrected patient's.

What was here when a person said so is analysed anew: by a newer model, or since somebody asks. What
was said of those images stands for their new results too.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomai.dicom.header import Attributes
from dicomai.dicom.identity import patient_id_in
from dicomai.results.encode import written
from dicomai.results.gate.reissue import check_reissued
from dicomai.results.reissue import Correction, Person, known_of, reissued
from dicomai.service.received import Reading
from dicomai.service.reissue import key_of
from dicomai.store.corrections import Corrections
from dicomai.store.job import Job


def as_corrected(
    job: Job, results: Sequence[bytes], how: Reading, told: Corrections, patient: Attributes
) -> tuple[bytes, ...]:
    """Return checked results of a job as a person has corrected what its images say.

    They come back as they are where nobody corrected anything, or for another patient than the
    job's: who places them refuses those. The same results give the same bytes.

    Parameters
    ----------
    results
        Part 10 files, held against the images.
    how
        How the images were read.
    told
        What a person said of the images.
    patient
        The header of a result that names the job's patient; empty where none is here.

    Raises
    ------
    GateError
        What was made differs in more than the correction.
    InputError
        The Patient ID does not fit the results' character set.
    """
    header = dcmread(BytesIO(results[0]), stop_before_pixels=True)
    correction = _correction(job, header, how, told, patient)
    if not correction.attributes:
        return tuple(results)
    said = [dcmread(BytesIO(each)) for each in results]
    corrected = reissued(said, correction, job.uuid, job.created_at)
    octets = tuple(written(each) for each in corrected)
    check_reissued(octets, said, correction.attributes, known_of(correction.person))
    return octets


def _correction(
    job: Job, said: Dataset, how: Reading, told: Corrections, patient: Attributes
) -> Correction:
    number, patient_id = (
        str(said.get(keyword) or "").strip(" ") for keyword in ("AccessionNumber", "PatientID")
    )
    accession_number = told.accession_numbers.get(number, "")
    key = key_of(said, how)
    if key == job.patient_key or told.keys.get(key) != job.patient_key:
        return Correction(accession_number=accession_number)
    name, birth_date, sex, issuer = (
        str(patient.get(keyword) or "")
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID")
    )
    right_id = patient_id_in(job.patient_key)
    return Correction(
        patient_id=right_id,
        issuer_of_patient_id=issuer if patient_id == right_id else "",
        accession_number=accession_number,
        person=Person(name=name, birth_date=birth_date, sex=sex, issuer_of_patient_id=issuer),
    )
