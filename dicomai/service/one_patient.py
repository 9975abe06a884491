"""Whether the images that a model sees are one patient's, by what they say themselves.

This is asked when they are read, of a job as of a folder, whatever is known of their study.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from pydicom import Dataset
from pydicom.valuerep import STR_VR

from dicomai.dicom.header import Attributes
from dicomai.dicom.identity import (
    Agreed,
    Identity,
    has_patient_id,
    identity_of,
    judge,
    known_birth_date,
    known_patient_id,
)
from dicomai.errors import IdentityError
from dicomai.imaging.attributes import text
from dicomai.models.input import Input
from dicomai.models.package import Package
from dicomai.routing.image import Image

_WHERE_KNOWN: Final = ("IssuerOfPatientID", "PatientBirthDate")
"""What must be equal in those images that state it; all must have one Patient ID."""


def check_one_patient(images: Sequence[Dataset], placeholder_ids: Collection[str]) -> None:
    """Raise IdentityError for an image that names another patient than most of its input.

    Nobody can say whose one is that gives its ID as a number.
    """
    _check_ids_are_texts(images)
    for keyword in ("PatientID", *_WHERE_KNOWN):
        said = [(_stated(image, keyword, placeholder_ids), image) for image in images]
        counts = Counter(value for value, _ in said if value or keyword not in _WHERE_KNOWN)
        usual = max(counts, key=counts.__getitem__, default="")
        for value, image in said:
            if value == usual or value not in counts:
                continue
            uid = text(image, "SOPInstanceUID")
            raise IdentityError(
                f"Object {uid} has another {keyword} than other images of its series, so nobody "
                "can say whose they are. Nothing was analysed; find out whose it is, and correct "
                "it or take it out.",
                subject=uid,
            )


def check_same_patient(
    package: Package,
    first: Dataset,
    wanted: Input,
    images: Sequence[Dataset],
    placeholder_ids: Collection[str],
) -> None:
    """Raise IdentityError for an image of a further input that is not the study's patient's."""
    for image in images:
        for keyword in ("PatientID", *_WHERE_KNOWN):
            theirs, ours = (_stated(each, keyword, placeholder_ids) for each in (image, first))
            unknown = keyword in _WHERE_KNOWN and not (theirs and ours)
            if theirs != ours and not unknown:
                raise IdentityError(
                    f"Image {text(image, 'SOPInstanceUID')} for input {wanted.name} of "
                    f"{package.name} has another {keyword} than the study. Nothing was analysed; "
                    "find out whose it is.",
                    subject=text(image, "StudyInstanceUID"),
                )


def check_somebodys(images: Iterable[Image], placeholder_ids: Collection[str]) -> None:
    """Raise IdentityError for images without a Patient ID that may be of several patients."""
    nobody = {
        key: each.sop_instance_uid
        for each in images
        if (key := _whose(each.attributes, placeholder_ids).key) is not None
        and not has_patient_id(key)
    }
    if len(nobody) > 1:
        uid = min(nobody.values())
        raise IdentityError(
            f"Object {uid} and others of its series name no Patient ID, and not the same name, "
            "birth date and sex, so nobody can say whose they are. Nothing was analysed; find out "
            "whose they are, and correct them or take them out.",
            subject=uid,
        )


def is_same_patient(one: Attributes, other: Attributes, placeholder_ids: Collection[str]) -> bool:
    """Tell whether two images name one patient by an ID, and no two birth dates."""
    agreed = judge(_whose(each, placeholder_ids) for each in (one, other))
    return isinstance(agreed, Agreed) and has_patient_id(agreed.key)


def _whose(attributes: Attributes, placeholder_ids: Collection[str]) -> Identity:
    return identity_of(attributes, issuer_of_node="", placeholders=placeholder_ids)


def _check_ids_are_texts(images: Sequence[Dataset]) -> None:
    """Raise IdentityError for an image whose Patient ID is written as a number, or as bytes."""
    for image in images:
        vr = image.get_item("PatientID").VR if "PatientID" in image else None
        if vr in (None, "UN") or vr in STR_VR:
            continue
        uid = text(image, "SOPInstanceUID")
        raise IdentityError(
            f"Object {uid} gives its Patient ID as {vr}, where it is a text (LO), so nobody can "
            "say whose it is. Nothing was analysed; correct it at the modality or in the PACS, "
            "and send the study again.",
            subject=uid,
        )


def _stated(image: Dataset, keyword: str, placeholder_ids: Collection[str]) -> str:
    """Return what an image says of its patient, empty where that says nothing.

    So do 00000000 as a birth date, an ID that stands for none, and the issuer of such a one.
    """
    said = text(image, keyword).strip(" ")
    if keyword == "PatientBirthDate":
        return known_birth_date(said)
    known_id = known_patient_id(text(image, "PatientID"), placeholder_ids)
    return known_id if keyword == "PatientID" or not known_id else said
