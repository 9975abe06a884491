"""The frames of a result: what each says of itself, held against the image on which it lies."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicomai.findings import Findings
from dicomai.imaging.geometry import Grid, Plane
from dicomai.results.gate.elements import (
    Elements,
    inner,
    integer,
    items_in,
    items_of,
    numbers,
    octets,
    said,
)
from dicomai.results.gate.error import refuse
from dicomai.results.gate.planes import Corners, Slice, corners_of
from dicomai.results.gate.references import instances_listed

TOLERANCE_MM: Final = 0.01
_UNEVEN: Final = 0.01  # of a step
_SEGMENT: Final = Tag("SegmentIdentificationSequence")
_SEGMENT_NUMBER: Final = Tag("ReferencedSegmentNumber")
_DERIVATION: Final = Tag("DerivationImageSequence")
_SOURCE: Final = Tag("SourceImageSequence")
_CLASS: Final = Tag("ReferencedSOPClassUID")
_INSTANCE: Final = Tag("ReferencedSOPInstanceUID")
_FRAME_NUMBER: Final = Tag("ReferencedFrameNumber")
_WHY: Final = Tag("DerivationCodeSequence")
_PURPOSE: Final = Tag("PurposeOfReferenceCodeSequence")
_CODE: Final = Tag("CodeValue"), Tag("CodingSchemeDesignator"), Tag("CodeMeaning")
_CONTENT: Final = Tag("FrameContentSequence")
_INDEX: Final = Tag("DimensionIndexValues")
_POINTER: Final = Tag("DimensionIndexPointer")
_PLACE: Final = (
    Tag("PlanePositionSequence"),
    Tag("PlaneOrientationSequence"),
    Tag("PixelMeasuresSequence"),
)
_POSITION: Final = Tag("ImagePositionPatient")
_ORIENTATION: Final = Tag("ImageOrientationPatient")
_SPACING: Final = Tag("PixelSpacing")
_THICKNESS: Final = Tag("SliceThickness")
_BETWEEN: Final = Tag("SpacingBetweenSlices")
_SEGMENT_POINTER: Final = _SEGMENT_NUMBER.group, _SEGMENT_NUMBER.element
_POSITION_POINTER: Final = _POSITION.group, _POSITION.element

Place: TypeAlias = tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a frame says of itself, in its functional groups or in those of all frames.

    Attributes
    ----------
    segment
        The number of its segment; None where it does not say one.
    index
        Its Dimension Index Values.
    derivation
        Its Derivation Image Sequence, unread; empty where missing.
    place
        Plane Position, Plane Orientation and Pixel Measures, unread; empty where missing.
    """

    segment: int | None
    index: tuple[int, ...]
    derivation: bytes
    place: Place


def frames_of(result: Dataset) -> list[Frame]:
    """Return the frames of a multi-frame result."""
    shared = (items_of(result, "SharedFunctionalGroupsSequence") or [{}])[0]
    return [_frame(each, shared) for each in items_of(result, "PerFrameFunctionalGroupsSequence")]


def _frame(groups: Elements, shared: Elements) -> Frame:
    segment = _group(inner(groups if _SEGMENT in groups else shared, _SEGMENT))
    index = octets(_group(inner(groups, _CONTENT)), _INDEX, b"UL")
    return Frame(
        segment=integer(segment, _SEGMENT_NUMBER, b"US"),
        index=struct.unpack(f"<{len(index) // 4}L", index),
        derivation=octets(groups, _DERIVATION, b"SQ"),
        place=tuple(octets(groups if tag in groups else shared, tag, b"SQ") for tag in _PLACE),
    )


def _group(items: Sequence[Elements]) -> Elements:
    """Return what a functional group says; it has no more than one item (PS3.3 C.7.6.16.2)."""
    if len(items) > 1:
        raise ValueError(f"a functional group has {len(items)} items, not one")
    return items[0] if items else {}


def lying_on(
    result: Dataset, frames: Sequence[Frame], slices: Sequence[Slice], findings: Findings
) -> list[int]:
    """Return the slice on which each frame lies, from 0, by where it says that it lies.

    Raises
    ------
    GateError
        It lies on none, or is said to be derived from another image than the one there.
    """
    uid = str(result.SOPInstanceUID)
    rows_columns = int(result.Rows), int(result.Columns)
    thick = {each.thickness_mm for each in slices}
    listed = instances_listed(result)
    known: dict[Place, int] = {}
    derived: set[tuple[bytes, int]] = set()
    found = []
    for number, frame in enumerate(frames, start=1):
        if frame.place not in known:
            known[frame.place] = 0
            if isinstance(findings.where, Grid):
                corners = _corners(uid, number, frame.place, rows_columns, findings.where, thick)
                known[frame.place] = _nearest(uid, number, corners, slices)
        k = known[frame.place]
        if (frame.derivation, k) not in derived:
            _derived(uid, number, frame.derivation, slices[k], listed)
            derived.add((frame.derivation, k))
        found.append(k)
    return found


def _derived(uid: str, number: int, derivation: bytes, there: Slice, listed: set[str]) -> None:
    """Check that a frame is derived from the image where it lies (PS3.3 C.7.6.16.2.6)."""
    images = []
    for each in items_in(derivation):
        if not _coded(each, _WHY):
            refuse("attributes", uid, f"frame {number} does not say how it was derived")
        for image in inner(each, _SOURCE):
            if not _coded(image, _PURPOSE):
                refuse("attributes", uid, f"frame {number} does not say what its image was for")
            if said(image, _CLASS, b"UI") != str(there.source.SOPClassUID):
                refuse("references", uid, f"frame {number} says another class of its image")
            frame = integer(image, _FRAME_NUMBER, b"IS")
            if frame == 0:  # they count from 1, and what is missing is 0 in an Image
                refuse("references", uid, f"frame {number} names no frame of its image")
            images.append((said(image, _INSTANCE, b"UI"), frame or 0))
    if images != [there.image]:
        refuse("references", uid, f"frame {number} names another image than lies there")
    if there.image[0] not in listed:
        refuse("references", uid, f"its Referenced Series Sequence lacks {there.image[0]}")


def _coded(holder: Elements, tag: int) -> bool:
    items = inner(holder, tag)
    return bool(items) and all(each in items[0] and items[0][each].value for each in _CODE)


def check_dimensions(
    result: Dataset, frames: Sequence[Frame], found: Sequence[int], where: Grid | Plane
) -> None:
    """Check that frames are indexed by segment, and in the order of their slices (C.7.6.17).

    Parameters
    ----------
    found
        The slice on which each frame lies.
    where
        The slices of the findings.
    """
    uid = str(result.SOPInstanceUID)
    if result.get("DimensionOrganizationType") == "3D" and not _adjoining(found, where):
        refuse("geometry", uid, "it calls slices a volume that are none")
    pointers = [
        struct.unpack("<HH", octets(each, _POINTER, b"AT"))
        for each in items_of(result, "DimensionIndexSequence")
    ]
    upward = {k: rank for rank, k in enumerate(sorted(set(found)), start=1)}
    downward = {k: len(upward) + 1 - rank for k, rank in upward.items()}
    ranks: tuple[dict[int, int], ...] = (upward, downward)  # the direction is left open
    for number, (frame, k) in enumerate(zip(frames, found, strict=True), start=1):
        if not frame.index or len(frame.index) != len(pointers):
            refuse("attributes", uid, f"frame {number} lacks its place in the dimensions")
        for pointer, value in zip(pointers, frame.index, strict=True):
            if pointer == _POSITION_POINTER:
                ranks = tuple(each for each in ranks if each[k] == value)
            if not ranks or (pointer == _SEGMENT_POINTER and value != frame.segment):
                refuse("geometry", uid, f"frame {number} has another place in the dimensions")


def _adjoining(found: Sequence[int], where: Grid | Plane) -> bool:
    """Tell whether slices lie one step apart, as a volume's do (PS3.3 C.7.6.17)."""
    ks = sorted(set(found))
    if not isinstance(where, Grid):
        return False
    steps = np.diff(np.take(where.slice_steps, ks) if where.slice_steps else ks)
    return bool(np.allclose(steps, 1, rtol=0, atol=_UNEVEN))


def _corners(
    uid: str,
    number: int,
    place: Place,
    rows_columns: tuple[int, int],
    where: Grid,
    thick: Collection[float],
) -> Corners:
    """Return where a frame lies, (4, 3) LPS mm; its slice is as thick as an image's is."""
    position, orientation, measures = (_group(items_in(each)) for each in place)
    if not (position and orientation and measures):
        refuse("attributes", uid, f"frame {number} does not say where it lies")
    try:
        corners = corners_of(
            numbers(position, _POSITION, 3),
            numbers(orientation, _ORIENTATION, 6),
            numbers(measures, _SPACING, 2),
            *rows_columns,
        )
        between = numbers(measures, _BETWEEN, 1)[0] if _BETWEEN in measures else None
        (thickness,) = numbers(measures, _THICKNESS, 1)
    except ValueError as trouble:
        refuse("readable", uid, f"frame {number} says where it lies in no numbers ({trouble})")
    affine = where.index_to_lps
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    step = abs(float(affine[:3, 0] @ normal)) / float(np.linalg.norm(normal))
    if between is not None and where.slice_steps:
        refuse("geometry", uid, f"its slices are unevenly spaced, and it says {between} mm")
    if between is not None and not abs(between - step) <= TOLERANCE_MM:  # nor nan
        refuse("geometry", uid, f"its slices are {step:.3f} mm apart, and it says {between}")
    known = [each for each in thick if each > 0] or [step]
    if not min(abs(thickness - each) for each in (*known, step)) <= TOLERANCE_MM:
        refuse("geometry", uid, f"its slices are {known[0]} mm thick, and it says {thickness}")
    return corners


def _nearest(uid: str, number: int, corners: Corners, slices: Sequence[Slice]) -> int:
    every = np.array([each.corners for each in slices])
    away = np.linalg.norm(every - corners, axis=2).max(axis=1)
    k = int(away.argmin())
    if not away[k] <= TOLERANCE_MM:  # nor nan
        refuse("geometry", uid, f"frame {number} lies {away[k]:.3f} mm off every image")
    return k
