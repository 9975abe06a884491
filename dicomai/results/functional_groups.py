"""What the frames of a Segmentation say of their slice (PS3.3 C.7.6.16), as it stands in the file.

highdicom says it of the first slice; of the others only image and place differ. Objects of pydicom
for each of hundreds of frames take longer than all else of a Segmentation with few segments.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import DS

from dicomai.imaging.attributes import numbers, whole
from dicomai.imaging.geometry import Grid, Plane
from dicomai.results.explicit_vr import item, sequence, short, written

_DERIVATION_IMAGE: Final = Tag("DerivationImageSequence")
_DERIVATION_CODE: Final = Tag("DerivationCodeSequence")
_SOURCE_IMAGE: Final = Tag("SourceImageSequence")
_SOP_CLASS: Final = Tag("ReferencedSOPClassUID")
_SOP_INSTANCE: Final = Tag("ReferencedSOPInstanceUID")
_FRAME_NUMBER: Final = Tag("ReferencedFrameNumber")
_FRAME_CONTENT: Final = Tag("FrameContentSequence")
_INDEX_VALUES: Final = Tag("DimensionIndexValues")
_PLANE_POSITION: Final = Tag("PlanePositionSequence")
_POSITION: Final = Tag("ImagePositionPatient")
_PLANE_ORIENTATION: Final = Tag("PlaneOrientationSequence")
_ORIENTATION: Final = Tag("ImageOrientationPatient")
_SEGMENT_IDENTIFICATION: Final = Tag("SegmentIdentificationSequence")
_SEGMENT_NUMBER: Final = Tag("ReferencedSegmentNumber")
PARALLEL_MM: Final = 0.001
"""How far apart a corner may lie in two orientations that are one, written otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A slice, with what every frame there says.

    Attributes
    ----------
    k
        Its index in the masks.
    derivation
        The Derivation Image Sequence, Explicit VR Little Endian.
    place
        The Plane Position Sequence, and the Plane Orientation Sequence where slices differ in it;
        empty on a projection image.
    """

    k: int
    derivation: bytes
    place: bytes


def slices_of(result: Dataset, images: Sequence[Dataset]) -> list[Slice]:
    """Return the slices in the order in which highdicom has frames.

    Parameters
    ----------
    result
        What highdicom made of the first images. Changed: whether frames are a volume is known from
        all of them only.
    images
        The header of each slice, by k.
    """
    (shared,) = result.SharedFunctionalGroupsSequence
    (template,) = result.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    derivations = _derivations(template, images)
    if "PlaneOrientationSequence" not in shared:
        return [Slice(k=k, derivation=each, place=b"") for k, each in enumerate(derivations)]
    directions = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    turned = are_turned(images)
    if turned:
        leave_orientation_to_frames(result)
    positions = np.array([each[_POSITION].value for each in images], dtype=np.float64)
    if len(images) > 1 and "DimensionOrganizationType" in result:
        steps, _ = hd.spatial.get_volume_positions(positions.tolist(), directions, sort=False)
        if steps is None:
            del result.DimensionOrganizationType
    normal = hd.spatial.get_normal_vector(directions, hd.spatial.VOLUME_INDEX_CONVENTION)
    return [
        Slice(k=int(k), derivation=derivations[k], place=_place(images[k], turned=turned))
        for k in np.argsort(positions @ normal, kind="stable")
    ]


def are_turned(images: Sequence[Dataset]) -> bool:
    """Tell whether slices are turned against the first by a hair, so that each says how it is."""
    said, *others = (each.get("ImageOrientationPatient") for each in images)
    if all(each == said for each in others):
        return False
    between_rows, between_columns = numbers(images[0], "PixelSpacing", 2)
    width = (whole(images[0], "Columns") - 1) * between_columns
    height = (whole(images[0], "Rows") - 1) * between_rows
    cosines = np.array([numbers(each, "ImageOrientationPatient", 6) for each in images])
    off = cosines - cosines[0]
    across, down = off[:, :3] * width, off[:, 3:] * height
    corners = np.linalg.norm([across, down, across + down], axis=2)
    return bool(corners.max() > PARALLEL_MM)


def leave_orientation_to_frames(result: Dataset) -> None:
    """Take from all frames what each says: a group stands in one place only (C.7.6.16)."""
    del result.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    # Planes of a volume are parallel (C.7.6.17).
    result.pop("DimensionOrganizationType", None)


def leave_out_uneven_spacing(result: Dataset, where: Grid | Plane) -> None:
    """Take away the one distance of slices where there is none (C.7.6.16.2.1).

    highdicom states it of the images that it is given, and of those that are a hundredth off.
    """
    if isinstance(where, Grid) and where.slice_steps:
        (measures,) = result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        measures.pop("SpacingBetweenSlices", None)


def orientation_of(image: Dataset) -> Dataset:
    """Return an item of Plane Orientation Sequence."""
    orientation = Dataset()
    orientation.ImageOrientationPatient = _spelled(_ORIENTATION, image)
    return orientation


def _derivations(template: Dataset, images: Sequence[Dataset]) -> list[bytes]:
    """Return the Derivation Image Sequence of each slice: the template's with another image."""
    assert set(template.keys()) == {_SOURCE_IMAGE, _DERIVATION_CODE}
    why = _part(template, (_DERIVATION_CODE,))
    (source,) = template.SourceImageSequence
    named = {_SOP_CLASS, _SOP_INSTANCE, _FRAME_NUMBER}
    how = _part(source, source.keys() - named)
    return [
        _one_item(_DERIVATION_IMAGE, _one_item(_SOURCE_IMAGE, _reference(each) + how) + why)
        for each in images
    ]


def _reference(image: Dataset) -> bytes:
    out = short(_SOP_CLASS, "UI", _padded(str(image.SOPClassUID), b"\0"))
    out += short(_SOP_INSTANCE, "UI", _padded(str(image.SOPInstanceUID), b"\0"))
    if "ReferencedFrameNumber" in image:
        out += short(_FRAME_NUMBER, "IS", _padded(str(image.ReferencedFrameNumber), b" "))
    return out


def _place(image: Dataset, *, turned: bool) -> bytes:
    place = _one_item(_PLANE_POSITION, _decimals(_POSITION, image))
    if turned:
        place += _one_item(_PLANE_ORIENTATION, _decimals(_ORIENTATION, image))
    return place


def _decimals(tag: int, image: Dataset) -> bytes:
    return short(tag, "DS", _padded("\\".join(_spelled(tag, image)), b" "))


def _spelled(tag: int, image: Dataset) -> list[str]:
    """Return numbers as the image spells them, but those that are too long for a DS."""
    return [str(DS(each, auto_format=True)) for each in image[tag].value]


def frame_item(where: Slice, index: Sequence[int], segment: int | None) -> bytes:
    """Return an item of the Per-Frame Functional Groups Sequence, Explicit VR Little Endian.

    Parameters
    ----------
    where
        Where the frame lies.
    index
        Its Dimension Index Values.
    segment
        Its segment; None where all frames are of one.
    """
    values = struct.pack(f"<{len(index)}L", *index)
    body = where.derivation + _one_item(_FRAME_CONTENT, short(_INDEX_VALUES, "UL", values))
    body += where.place
    if segment is not None:
        number = short(_SEGMENT_NUMBER, "US", struct.pack("<H", segment))
        body += _one_item(_SEGMENT_IDENTIFICATION, number)
    return item(body)


def _one_item(tag: int, body: bytes) -> bytes:
    return sequence(tag, item(body))


def _padded(text: str, filler: bytes) -> bytes:
    octets = text.encode("ascii")
    return octets + filler * (len(octets) % 2)


def _part(dataset: Dataset, tags: Collection[int]) -> bytes:
    part = Dataset()
    for tag in tags:
        part.add(dataset[tag])
    return written(part)
