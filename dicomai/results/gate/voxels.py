"""The voxels of a SEG, decoded bit by bit and placed by the standard's formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.findings import Detection, Findings, Segment
from dicomai.imaging.geometry import OFF_GRID_MM, Grid
from dicomai.results.gate.error import refuse
from dicomai.results.gate.header import is_coded

TOLERANCE_MM: Final = 0.01
# What imaging allowed is allowed here too, rounding apart.
IRREGULAR_MM: Final = OFF_GRID_MM + 1e-6

# CID 7150, for a detection of which nobody says more.
_ABNORMAL: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_PIXELS: Final[dict[str, object]] = {
    "SegmentationType": "BINARY",
    "BitsAllocated": 1,
    "BitsStored": 1,
    "HighBit": 0,
    "PixelRepresentation": 0,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
}

_Corners = npt.NDArray[np.float64]


def check_voxels(
    seg: Dataset, findings: Findings, sources: Sequence[Dataset]
) -> dict[str, tuple[int, str]]:
    """Check each segment against its mask; return tracking id to (segment number, tracking UID)."""
    uid = str(seg.SOPInstanceUID)
    where = findings.where
    if not isinstance(where, Grid):
        refuse("geometry", uid, "it has voxels for a projection image, which has no place")
    if seg.FrameOfReferenceUID != where.frame_of_reference_uid:
        refuse("geometry", uid, "its frame of reference is not that of the findings")
    if any(source.FrameOfReferenceUID != seg.FrameOfReferenceUID for source in sources):
        refuse("geometry", uid, "its frame of reference is not that of every source image")
    for keyword, wanted in _PIXELS.items():
        if seg.get(keyword) != wanted:
            refuse("attributes", uid, f"{keyword} is {seg.get(keyword)}, not {wanted}")
    lossy = any(source.get("LossyImageCompression") == "01" for source in sources)
    if lossy and seg.LossyImageCompression != "01":
        refuse("attributes", uid, "it does not say that its images were compressed with loss")
    planes = _source_planes(uid, where, sources)
    frames = _frames(seg, uid, where.shape_kji)
    placed = _placed(seg, uid, planes, where)
    return _segments(seg, uid, findings, frames, placed)


def _corners(
    position: object, orientation: object, spacing: object, rows: int, columns: int
) -> _Corners:
    """Return where the centres of four corner pixels lie, (4, 3) LPS mm (PS3.3 C.7.6.2.1.1)."""
    origin = np.asarray(position, dtype=np.float64)
    cosines = np.asarray(orientation, dtype=np.float64)
    between_rows, between_columns = np.asarray(spacing, dtype=np.float64)
    along_row, along_column = cosines[:3] * between_columns, cosines[3:] * between_rows
    return np.array(
        [
            origin + column * along_row + row * along_column
            for row in (0, rows - 1)
            for column in (0, columns - 1)
        ]
    )


def _source_planes(uid: str, where: Grid, sources: Sequence[Dataset]) -> list[_Corners]:
    """Return the corners of each source image by k, having held them against the grid."""
    by_uid = {str(source.SOPInstanceUID): source for source in sources}
    depth, rows, columns = where.shape_kji
    if len(where.sop_instance_uids) != depth:
        refuse("geometry", uid, "the findings do not name the image of every slice")
    planes = []
    for k, sop in enumerate(where.sop_instance_uids):
        source = by_uid.get(sop)
        if source is None:
            refuse("references", uid, f"slice {k} lies on {sop}, which is no source image")
        if (source.Rows, source.Columns) != (rows, columns):
            refuse("geometry", uid, f"{sop} has another number of rows or columns than the masks")
        corners = _corners(
            source.ImagePositionPatient,
            source.ImageOrientationPatient,
            source.PixelSpacing,
            rows,
            columns,
        )
        expected = [
            where.index_to_lps[:3] @ (k, j, i, 1) for j in (0, rows - 1) for i in (0, columns - 1)
        ]
        if np.linalg.norm(corners - np.array(expected), axis=1).max() > IRREGULAR_MM:
            refuse("geometry", uid, f"the masks' grid does not lie on {sop} at slice {k}")
        planes.append(corners)
    return planes


def _frames(seg: Dataset, uid: str, shape_kji: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Return the frames, (F, J, I) bool: one bit a voxel, lowest first, no padding between."""
    _, rows, columns = shape_kji
    if (seg.Rows, seg.Columns) != (rows, columns):
        refuse("geometry", uid, "its frames have another number of rows or columns than the masks")
    count = int(seg.NumberOfFrames)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    size = count * rows * columns
    if bits.size < size or len(seg.PerFrameFunctionalGroupsSequence) != count:
        refuse("readable", uid, f"it does not hold the {count} frames that it announces")
    return bits[:size].reshape(count, rows, columns).astype(bool)


def _group(seg: Dataset, frame: Dataset, keyword: str) -> Dataset | None:
    holder = frame if keyword in frame else seg.SharedFunctionalGroupsSequence[0]
    items = holder.get(keyword)
    return items[0] if items else None


def _placed(
    seg: Dataset, uid: str, planes: list[_Corners], where: Grid
) -> dict[tuple[int, int], int]:
    """Return (segment number, k) to frame number from 0, each frame held against its image."""
    every = np.array(planes)
    placed: dict[tuple[int, int], int] = {}
    for number, frame in enumerate(seg.PerFrameFunctionalGroupsSequence):
        position = _group(seg, frame, "PlanePositionSequence")
        orientation = _group(seg, frame, "PlaneOrientationSequence")
        measures = _group(seg, frame, "PixelMeasuresSequence")
        segment = _group(seg, frame, "SegmentIdentificationSequence")
        if position is None or orientation is None or measures is None or segment is None:
            refuse("attributes", uid, f"frame {number + 1} does not say where it lies")
        corners = _corners(
            position.ImagePositionPatient,
            orientation.ImageOrientationPatient,
            measures.PixelSpacing,
            int(seg.Rows),
            int(seg.Columns),
        )
        between = measures.get("SpacingBetweenSlices")
        step = float(np.linalg.norm(where.index_to_lps[:3, 0]))
        if between is not None and abs(float(between) - step) > TOLERANCE_MM:
            refuse("geometry", uid, f"its slices are {step:.3f} mm apart, and it says {between}")
        away = np.linalg.norm(every - corners, axis=2).max(axis=1)
        k = int(away.argmin())
        if away[k] > TOLERANCE_MM:
            refuse("geometry", uid, f"frame {number + 1} lies {away[k]:.3f} mm off every image")
        sources = {
            str(each.ReferencedSOPInstanceUID)
            for derivation in frame.get("DerivationImageSequence") or ()
            for each in derivation.get("SourceImageSequence") or ()
        }
        if sources != {where.sop_instance_uids[k]}:
            refuse("references", uid, f"frame {number + 1} names another image than lies there")
        key = (int(segment.ReferencedSegmentNumber), k)
        if key in placed:
            refuse("geometry", uid, f"segment {key[0]} has two frames at slice {k}")
        placed[key] = number
    return placed


def _segments(
    seg: Dataset,
    uid: str,
    findings: Findings,
    frames: npt.NDArray[np.bool_],
    placed: dict[tuple[int, int], int],
) -> dict[str, tuple[int, str]]:
    all_found: tuple[Segment | Detection, ...] = (*findings.segments, *findings.detections)
    expected = {
        found.tracking_id: found
        for found in all_found
        if found.mask is not None and found.mask.any()
    }
    described = {str(item.TrackingID): item for item in seg.SegmentSequence}
    numbered = sorted(int(item.SegmentNumber) for item in seg.SegmentSequence)
    if numbered != list(range(1, len(numbered) + 1)):
        refuse("content", uid, f"its segments have the numbers {numbered}")
    if set(described) != set(expected) or len(seg.SegmentSequence) != len(expected):
        refuse("content", uid, f"its segments are {sorted(described)}, not {sorted(expected)}")
    numbers = {}
    for tracking_id, found in expected.items():
        item = described[tracking_id]
        number = int(item.SegmentNumber)
        _described(item, uid, found, findings)
        assert found.mask is not None
        for k, plane in enumerate(found.mask):
            frame = placed.pop((number, k), None)
            drawn = frames[frame] if frame is not None else np.zeros_like(plane)
            if not np.array_equal(drawn, plane):
                refuse(
                    "geometry",
                    uid,
                    f'segment "{item.SegmentLabel}" differs from its mask in '
                    f"{int((drawn != plane).sum())} voxels of slice {k}",
                )
        numbers[tracking_id] = (number, str(item.TrackingUID))
    if placed:
        refuse("content", uid, f"frames of segment {min(placed)[0]} belong to nothing found")
    return numbers


def _described(item: Dataset, uid: str, found: Segment | Detection, findings: Findings) -> None:
    if item.SegmentLabel != found.label[:64]:
        refuse("content", uid, f'segment "{item.SegmentLabel}" is not called {found.label}')
    if item.SegmentAlgorithmType != "AUTOMATIC":
        refuse("provenance", uid, f'segment "{item.SegmentLabel}" is not said to be automatic')
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    wanted = found.type if isinstance(found, Segment) else found.finding
    if not is_coded(kind, wanted):
        refuse("content", uid, f'segment "{item.SegmentLabel}" is not coded as {wanted.meaning}')
    category = found.category or _ABNORMAL
    if not is_coded(item.SegmentedPropertyCategoryCodeSequence[0], category):
        refuse("content", uid, f'segment "{item.SegmentLabel}" has another category')
    sides = kind.get("SegmentedPropertyTypeModifierCodeSequence") or ()
    laterality = (found.laterality,) if found.laterality else ()
    if len(sides) != len(laterality) or not all(map(is_coded, sides, laterality)):
        refuse("content", uid, f'segment "{item.SegmentLabel}" is not on the side that was found')
    who = item.SegmentationAlgorithmIdentificationSequence[0]
    algorithm = findings.algorithm
    if (who.AlgorithmName, who.AlgorithmVersion) != (algorithm.name, algorithm.version):
        refuse("provenance", uid, f'segment "{item.SegmentLabel}" names another algorithm')
    if algorithm.package_sha256 not in str(who.get("AlgorithmParameters", "")):
        refuse("provenance", uid, f'segment "{item.SegmentLabel}" lacks the digest of its package')
