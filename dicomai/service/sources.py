"""From data sets to what a model sees: its first input, and what lies beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from pydicom import Dataset

from dicomai.errors import InputError
from dicomai.findings import SourceImage
from dicomai.imaging.alongside import laid_onto
from dicomai.imaging.attributes import text
from dicomai.imaging.image import image_of
from dicomai.imaging.volume import MakePlanes, SourceVolume, volume_of
from dicomai.inference.inputs import Source, inputs_of
from dicomai.models.input import Input
from dicomai.models.package import Package
from dicomai.service.one_patient import check_one_patient, check_same_patient


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
        check_one_patient(each, placeholder_ids)
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
            check_same_patient(package, source.headers[0], wanted, others, placeholder_ids)
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
