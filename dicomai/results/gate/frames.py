"""The frames of a result: what each says of itself, held against the image on which it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicomai.findings import Findings
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.elements import (
    Elements,
    inner,
    items_in,
    items_of,
    numbers,
    octets,
    said,
)
from dicomai.results.gate.error import refuse
from dicomai.results.gate.planes import Corners, Image, Slice, corners_of

TOLERANCE_MM: Final = 0.01
_SEGMENT: Final = Tag("SegmentIdentificationSequence")
_SEGMENT_NUMBER: Final = Tag("ReferencedSegmentNumber")
_DERIVATION: Final = Tag("DerivationImageSequence")
_SOURCE: Final = Tag("SourceImageSequence")
_INSTANCE: Final = Tag("ReferencedSOPInstanceUID")
_FRAME_NUMBER: Final = Tag("ReferencedFrameNumber")
_PLACE: Final = (
    Tag("PlanePositionSequence"),
    Tag("PlaneOrientationSequence"),
    Tag("PixelMeasuresSequence"),
)
_POSITION: Final = Tag("ImagePositionPatient")
_ORIENTATION: Final = Tag("ImageOrientationPatient")
_SPACING: Final = Tag("PixelSpacing")
_BETWEEN: Final = Tag("SpacingBetweenSlices")

Place: TypeAlias = tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a frame says of itself, in its functional groups or in those of all frames.

    Attributes
    ----------
    segment
        The number of its segment; None where it does not say one.
    images
        What it is said to be derived from.
    place
        Plane Position, Plane Orientation and Pixel Measures, unread; empty where missing.
    """

    segment: int | None
    images: frozenset[Image]
    place: Place


def frames_of(result: Dataset) -> list[Frame]:
    """Return the frames of a multi-frame result."""
    shared = (items_of(result, "SharedFunctionalGroupsSequence") or [{}])[0]
    return [_frame(each, shared) for each in items_of(result, "PerFrameFunctionalGroupsSequence")]


def _frame(groups: Elements, shared: Elements) -> Frame:
    segment = None
    for each in inner(groups if _SEGMENT in groups else shared, _SEGMENT)[:1]:
        if _SEGMENT_NUMBER in each:
            segment = int.from_bytes(each[_SEGMENT_NUMBER].value, "little")
    return Frame(
        segment=segment,
        images=frozenset(
            (said(image, _INSTANCE), int(said(image, _FRAME_NUMBER) or 0))
            for derivation in inner(groups, _DERIVATION)
            for image in inner(derivation, _SOURCE)
        ),
        place=tuple(octets(groups if tag in groups else shared, tag) for tag in _PLACE),
    )


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
    known: dict[Place, int] = {}
    found = []
    for number, frame in enumerate(frames, start=1):
        if frame.place not in known:
            known[frame.place] = 0
            if isinstance(findings.where, Grid):
                corners = _corners(uid, number, frame.place, rows_columns, findings.where)
                known[frame.place] = _nearest(uid, number, corners, slices)
        k = known[frame.place]
        if frame.images != {slices[k].image}:
            refuse("references", uid, f"frame {number} names another image than lies there")
        found.append(k)
    return found


def _corners(
    uid: str, number: int, place: Place, rows_columns: tuple[int, int], where: Grid
) -> Corners:
    """Return where a frame lies, (4, 3) LPS mm."""
    items = [items_in(each) for each in place]
    if not all(items):
        refuse("attributes", uid, f"frame {number} does not say where it lies")
    (position, *_), (orientation, *_), (measures, *_) = items
    try:
        corners = corners_of(
            numbers(position, _POSITION),
            numbers(orientation, _ORIENTATION),
            numbers(measures, _SPACING),
            *rows_columns,
        )
        between = numbers(measures, _BETWEEN)
    except ValueError:
        refuse("readable", uid, f"frame {number} says where it lies in no numbers")
    affine = where.index_to_lps
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    step = abs(float(affine[:3, 0] @ normal)) / float(np.linalg.norm(normal))
    if between and abs(between[0] - step) > TOLERANCE_MM:
        refuse("geometry", uid, f"its slices are {step:.3f} mm apart, and it says {between[0]}")
    return corners


def _nearest(uid: str, number: int, corners: Corners, slices: Sequence[Slice]) -> int:
    every = np.array([each.corners for each in slices])
    away = np.linalg.norm(every - corners, axis=2).max(axis=1)
    k = int(away.argmin())
    if away[k] > TOLERANCE_MM:
        refuse("geometry", uid, f"frame {number} lies {away[k]:.3f} mm off every image")
    return k
