"""The voxels of Segmentations, in the bytes that would be sent, held against the masks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.findings import Detection, Findings, Segment
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.classes import LABELMAP, SEG
from dicomai.results.gate.codes import is_coded
from dicomai.results.gate.error import refuse
from dicomai.results.gate.frames import Frame, check_dimensions, frames_of, lying_on
from dicomai.results.gate.planes import Slice, slices_of
from dicomai.routing.route import ResultObject

# CID 7150, for a detection of which nobody says more.
_ABNORMAL: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_ALL: Final[dict[str, object]] = {
    "PixelRepresentation": 0,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
}
_DCT: Final = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_BYTES: Final[dict[str, object]] = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
_PIXELS: Final[dict[str, dict[str, object]]] = {
    "BINARY": {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0},
    "FRACTIONAL": {
        **_BYTES,
        "SegmentationFractionalType": "PROBABILITY",
        "MaximumFractionalValue": 255,
    },
    "LABELMAP": _BYTES,
}
_WORDS: Final[dict[str, object]] = {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bits:
    """Frames of one bit a voxel, unpacked one by one: all of a hundred segments are gigabytes."""

    octets: npt.NDArray[np.uint8]
    shape: tuple[int, int]

    def __getitem__(self, number: int) -> npt.NDArray[np.bool_]:
        size = self.shape[0] * self.shape[1]
        first, last = number * size // 8, -(-(number + 1) * size // 8)
        bits = np.unpackbits(self.octets[first:last], bitorder="little")
        start = number * size - 8 * first
        return bits[start : start + size].reshape(self.shape).view(np.bool_)


_Frames = _Bits | npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The segment of a finding: in which object, under which number, tracked as what.

    `frames` are those, from 1, that show it; `labels` says that they show others too.
    """

    seg_uid: str
    number: int
    tracking_uid: str
    frames: tuple[int, ...]
    labels: bool


def check_voxels(
    segs: Sequence[Dataset],
    findings: Findings,
    sources: Sequence[Dataset],
    wanted: Collection[ResultObject],
) -> dict[str, Place]:
    """Check each segment of objects of one class against its mask.

    Returns
    -------
    dict
        Tracking id to its place. Every mask that has a voxel has one.
    """
    kind, whole = _form(str(segs[0].SOPClassUID), wanted)
    all_found: tuple[Segment | Detection, ...] = (*findings.segments, *findings.detections)
    expected = {
        found.tracking_id: found
        for found in all_found
        if found.mask is not None and found.mask.any()
    }
    places: dict[str, Place] = {}
    for seg in segs:
        uid = str(seg.SOPInstanceUID)
        _header(seg, uid, findings, sources, kind)
        slices = slices_of(uid, findings, sources)
        said = frames_of(seg)
        frames = _frames(seg, uid, kind, slices, len(said))
        placed = _placed(seg, uid, said, slices, findings)
        here = _segments(seg, uid, findings, expected, (frames, placed), whole=whole)
        if twice := set(here) & set(places):
            refuse("content", uid, f"it has {min(twice)}, and so has another one")
        places |= here
    if set(places) != set(expected):
        uid = str(segs[0].SOPInstanceUID)
        refuse("content", uid, f"its segments are {sorted(places)}, not {sorted(expected)}")
    return places


def _form(sop_class: str, wanted: Collection[ResultObject]) -> tuple[str, bool]:
    """Return the type of segmentation that was asked for, and whether with all its frames."""
    if sop_class == LABELMAP:
        return "LABELMAP", False
    if "SEG" not in wanted and "SEG:ALL-FRAMES" in wanted:
        return "BINARY", True
    fractional = "SEG" not in wanted and "SEG:FRACTIONAL" in wanted
    return ("FRACTIONAL" if fractional else "BINARY"), False


def check_frame_of_reference(
    seg: Dataset, uid: str, findings: Findings, sources: Sequence[Dataset]
) -> None:
    """Check that an object lies in the frame of reference of the findings and of each image."""
    where = findings.where
    if isinstance(where, Grid):
        if seg.get("FrameOfReferenceUID") != where.frame_of_reference_uid:
            refuse("geometry", uid, "its frame of reference is not that of the findings")
        if any(source.FrameOfReferenceUID != seg.FrameOfReferenceUID for source in sources):
            refuse("geometry", uid, "its frame of reference is not that of every source image")
    elif "FrameOfReferenceUID" in seg:
        refuse("geometry", uid, "it has a frame of reference, and its image no place in one")


def _header(
    seg: Dataset, uid: str, findings: Findings, sources: Sequence[Dataset], kind: str
) -> None:
    check_frame_of_reference(seg, uid, findings, sources)
    if seg.SegmentationType != kind:
        refuse("attributes", uid, f"SegmentationType is {seg.SegmentationType}, not {kind}")
    pixels = {**_ALL, **_PIXELS[kind]}
    if kind == "LABELMAP" and len(seg.SegmentSequence) > 255:
        pixels |= _WORDS
    for keyword, value in pixels.items():
        if seg.get(keyword) != value:
            refuse("attributes", uid, f"{keyword} is {seg.get(keyword)}, not {value}")
    if any(map(_lost, sources)) and seg.LossyImageCompression != "01":
        refuse("attributes", uid, "it does not say that its images were compressed with loss")


def _lost(source: Dataset) -> bool:
    """Tell whether an image was compressed with loss: it says so, or came as DCT-based JPEG."""
    meta = getattr(source, "file_meta", None) or {}
    return source.get("LossyImageCompression") == "01" or meta.get("TransferSyntaxUID") in _DCT


def _frames(seg: Dataset, uid: str, kind: str, slices: Sequence[Slice], described: int) -> _Frames:
    """Return the frames, (F, J, I); one bit a voxel, lowest first, no padding between, or bytes."""
    rows, columns = int(slices[0].source.Rows), int(slices[0].source.Columns)
    if (seg.Rows, seg.Columns) != (rows, columns):
        refuse("geometry", uid, "its frames have another number of rows or columns than the masks")
    count = int(seg.NumberOfFrames)
    octets = np.frombuffer(seg.PixelData, np.uint8)
    values: npt.NDArray[np.unsignedinteger] = octets
    if seg.BitsAllocated == 16:
        values = octets.view("<u2")
    size = count * rows * columns
    needed = -(-size * int(seg.BitsAllocated) // 8)
    if octets.size != needed + needed % 2 or described != count:
        refuse("readable", uid, f"it does not hold the {count} frames that it announces")
    if kind == "BINARY":
        return _Bits(octets=octets, shape=(rows, columns))
    return values[:size].reshape(count, rows, columns)


def _placed(
    seg: Dataset,
    uid: str,
    frames: Sequence[Frame],
    slices: Sequence[Slice],
    findings: Findings,
) -> dict[tuple[int, int], int]:
    """Return (segment number, k) to frame number from 0, each frame held against its image.

    A label map's frames are of no single segment: 0 stands there.
    """
    for number, frame in enumerate(frames, start=1):
        if frame.segment is None and seg.SOPClassUID == SEG:
            refuse("attributes", uid, f"frame {number} does not say which segment it is of")
    placed: dict[tuple[int, int], int] = {}
    for number, k in enumerate(lying_on(seg, frames, slices, findings)):
        key = (frames[number].segment or 0, k)
        if key in placed:
            refuse("geometry", uid, f"segment {key[0]} has two frames at slice {k}")
        placed[key] = number
    check_dimensions(seg, frames, [k for _, k in placed], findings.where)
    return placed


def _segments(
    seg: Dataset,
    uid: str,
    findings: Findings,
    expected: dict[str, Segment | Detection],
    drawn: tuple[_Frames, dict[tuple[int, int], int]],
    *,
    whole: bool,
) -> dict[str, Place]:
    frames, placed = drawn
    labels = seg.SOPClassUID == LABELMAP
    items = [item for item in seg.SegmentSequence if item.SegmentNumber != 0 or not labels]
    described = {str(item.TrackingID): item for item in items}
    numbered = sorted(int(item.SegmentNumber) for item in items)
    if numbered != list(range(1, len(numbered) + 1)):
        refuse("content", uid, f"its segments have the numbers {numbered}")
    if not set(described) <= set(expected) or len(described) != len(items):
        refuse("content", uid, f"its segments are {sorted(described)}, not {sorted(expected)}")
    places = {}
    taken: dict[int, npt.NDArray[np.uint8]] = {}
    shared = False
    for tracking_id, item in described.items():
        number, found = int(item.SegmentNumber), expected[tracking_id]
        _described(item, uid, found, findings)
        shown = []
        assert found.mask is not None
        for k in range(len(found.mask)):
            frame = placed.get((0 if labels else number, k))
            if frame is None and whole:
                refuse("content", uid, f'segment "{item.SegmentLabel}" lacks slice {k}')
            shown += [frame + 1] if frame is not None else []
            wrong = _wrong(None if frame is None else frames[frame], seg, number, found, k)
            if wrong:
                refuse(
                    "geometry",
                    uid,
                    f'segment "{item.SegmentLabel}" differs from its mask in {wrong} voxels of '
                    f"slice {k}",
                )
            if frame is not None and not labels:
                shared = _take(taken, k, found.mask[k]) or shared
        places[tracking_id] = Place(
            seg_uid=uid,
            number=number,
            tracking_uid=str(item.TrackingUID),
            frames=tuple(shown),
            labels=labels,
        )
    if strange := {key[0] for key in placed} - ({0} if labels else set(numbered)):
        refuse("content", uid, f"frames of segment {min(strange)} belong to nothing found")
    if not isinstance(frames, _Bits) and labels and int(frames.max(initial=0)) > len(numbered):
        refuse("content", uid, "it has labels that belong to nothing found")
    if not labels and seg.get("SegmentsOverlap") not in ("YES" if shared else "NO", "UNDEFINED"):
        refuse("content", uid, "it does not say whether its segments share voxels")
    return places


def _take(taken: dict[int, npt.NDArray[np.uint8]], k: int, mask: npt.NDArray[np.bool_]) -> bool:
    """Tell whether a segment has voxels of a slice that others took, and take them."""
    bits = np.packbits(mask)
    before = taken.get(k)
    taken[k] = bits if before is None else before | bits
    return before is not None and bool((before & bits).any())


def _wrong(
    frame: npt.NDArray[np.bool_] | npt.NDArray[np.unsignedinteger] | None,
    seg: Dataset,
    number: int,
    found: Segment | Detection,
    k: int,
) -> int:
    """Return in how many voxels a frame is not what was found; no frame is an empty one."""
    assert found.mask is not None
    mask = found.mask[k]
    if seg.SegmentationType == "FRACTIONAL":
        probability = found.probability if isinstance(found, Segment) else None
        likely = mask.astype(np.float64)
        if probability is not None:
            before = int(np.count_nonzero(found.mask[:k]))
            np.place(likely, mask, probability[before : before + int(np.count_nonzero(mask))])
        said = np.zeros(mask.shape) if frame is None else frame.astype(np.float64)
        return int((np.abs(said - 255.0 * likely) > 1).sum())
    if frame is None:
        return int(np.count_nonzero(mask))
    drawn = frame if seg.SegmentationType == "BINARY" else frame == number
    return int(np.count_nonzero(drawn != mask))


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
