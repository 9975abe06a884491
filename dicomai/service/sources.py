"""From data sets to what a model sees: its first input, and what lies beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pydicom import Dataset
from pydicom.valuerep import STR_VR

from dicomai.dicom.identity import known_birth_date, known_patient_id
from dicomai.errors import IdentityError, InputError
from dicomai.findings import SourceImage
from dicomai.imaging.alongside import laid_onto
from dicomai.imaging.attributes import text
from dicomai.imaging.image import image_of
from dicomai.imaging.volume import MakePlanes, SourceVolume, volume_of
from dicomai.inference.inputs import Source, inputs_of
from dicomai.models.input import Input
from dicomai.models.package import Package

_WHOSE: Final = ("PatientID", "PatientBirthDate")
"""What must be equal in the images of all inputs, beside what the catalogue knows of them."""
_WHERE_KNOWN: Final = ("IssuerOfPatientID", "PatientBirthDate")
"""What must be equal in those images of one input that state it; all must have one Patient ID."""


def source_of(
    package: Package,
    given: Mapping[str, Sequence[Dataset]],
    missing: Mapping[str, str],
    planes: MakePlanes | None = None,
    placeholder_ids: Collection[str] = (),
) -> tuple[Source, tuple[SourceImage, ...]]:
    """Return what a model sees, and the images it is made of, as results name them.

    Parameters
    ----------
    package
        What it is for.
    given
        The images of each input, by its name in the manifest; the first input has some.
    missing
        Why others have none, where that is known; "" for all of them.
    planes
        As of `volume_of`, for the first input.
    placeholder_ids
        Patient IDs that stand for none.

    Raises
    ------
    InputError
        The images are no input for the model, or one that it needs is missing.
    IdentityError
        An input, or an image of one, is another patient's.
    """
    for each in given.values():
        _check_ids_are_texts(each)
        _check_one_patient(each, placeholder_ids)
    first, *further = package.manifest.input
    images = given.get(first.name, ())
    subject = text(images[0], "StudyInstanceUID") if images else ""
    if first.kind == "image":
        if len(images) != 1:
            raise InputError(
                f"{package.name} takes one image, and the job has {len(images)}.", subject=subject
            )
        image = image_of(images[0], package.manifest.intake)
        return image, inputs_of(image.headers)
    source = volume_of(images, package.manifest.intake, planes)
    named = inputs_of(source.headers)
    for wanted in further:
        others = given.get(wanted.name, ())
        if others:
            _check_same_patient(package, source.headers[0], wanted, others, placeholder_ids)
            source, seen = _beside(
                source, wanted, others, package.manifest.limits.uneven_spacing_mm
            )
            named += seen
            continue
        why = missing.get(wanted.name) or missing.get("") or "There is none."
        if not wanted.optional:
            raise InputError(
                f"{package.name} needs its input {wanted.name}, and that is missing. {why}",
                subject=subject,
            )
        told = f"The input {wanted.name} is missing, and the model ran without it. {why}"
        source = replace(source, beside=(*source.beside, None), warnings=(*source.warnings, told))
    return source, named


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


def _check_one_patient(images: Sequence[Dataset], placeholder_ids: Collection[str]) -> None:
    """Raise IdentityError for an image that names another patient than most of its input."""
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


def _stated(image: Dataset, keyword: str, placeholder_ids: Collection[str]) -> str:
    """Return what an image says of its patient, empty where that says nothing.

    So do 00000000 as a birth date, an ID that stands for none, and the issuer of such a one.
    """
    said = text(image, keyword).strip(" ")
    if keyword == "PatientBirthDate":
        return known_birth_date(said)
    known_id = known_patient_id(text(image, "PatientID"), placeholder_ids)
    return known_id if keyword == "PatientID" or not known_id else said


def _check_same_patient(
    package: Package,
    first: Dataset,
    wanted: Input,
    images: Sequence[Dataset],
    placeholder_ids: Collection[str],
) -> None:
    """Raise IdentityError for an image of a further input that is not the study's patient's."""
    for image in images:
        for keyword in _WHOSE:  # beside what the catalogue knows of them
            theirs, ours = (_stated(each, keyword, placeholder_ids) for each in (image, first))
            unknown = keyword == "PatientBirthDate" and not (theirs and ours)
            if theirs != ours and not unknown:
                raise IdentityError(
                    f"Image {text(image, 'SOPInstanceUID')} for input {wanted.name} of "
                    f"{package.name} has another {keyword} than the study. Nothing was analysed; "
                    "find out whose it is.",
                    subject=text(image, "StudyInstanceUID"),
                )


def _beside(
    source: SourceVolume, wanted: Input, images: Sequence[Dataset], uneven_spacing_mm: float
) -> tuple[SourceVolume, tuple[SourceImage, ...]]:
    """Return the volume with a further input on its grid, and the images of that."""
    other = volume_of(images, wanted.intake(uneven_spacing_mm))
    values = laid_onto(source.grid, other, wanted.align)
    how = (
        "by the coordinates of the patient"
        if wanted.align == "patient"
        else "centre on centre, and not registered"
    )
    told = (
        f"The input {wanted.name} is series {other.series_instance_uid} of the study of "
        f"{text(other.headers[0], 'StudyDate') or 'an unknown day'}, laid {how}."
    )
    return replace(
        source,
        beside=(*source.beside, values),
        warnings=(*source.warnings, *other.warnings, told),
    ), inputs_of(other.headers)
