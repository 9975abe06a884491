"""The frames of a Segmentation: which there are, and their voxels (PS3.3 C.7.6.16, C.8.20).

What a slice says is shared by the frames of all segments there. A hundred segments on hundreds of
slices take a fraction of highdicom's time so, and no array larger than what is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicomai.findings import Mask
from dicomai.imaging.mask import per_slice
from dicomai.results.functional_groups import Slice, frame_item

FRAMES: Final = Tag("PerFrameFunctionalGroupsSequence")
_Octets = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """What one segment has.

    `probability` is (n,) 0 to 1 for the voxels of the mask, in the order of their indices; None:
    the mask alone counts.
    """

    number: int
    mask: Mask
    probability: npt.NDArray[np.float32] | None = None


def lay_out(
    result: Dataset,
    planes: Sequence[Slice],
    layers: Sequence[Layer],
    *,
    fractional: bool,
    whole: bool,
) -> None:
    """Put the frames of all segments in place: segment by segment, in the order of the planes.

    What they say stays as the bytes that are written, until somebody reads it.

    Parameters
    ----------
    result
        The Segmentation, changed.
    planes
        Every slice, in the order of frames.
    layers
        The segments.
    fractional
        Bytes of 0 to 255, rather than bits.
    whole
        Empty frames too.
    """
    filled = {layer.number: _filled(layer.mask, whole=whole) for layer in layers}
    some = np.any(list(filled.values()), axis=0)
    kept = [plane for plane in planes if some[plane.k]]
    frames = [(layer, plane) for layer in layers for plane in kept if filled[layer.number][plane.k]]
    rank = {plane.k: number for number, plane in enumerate(kept, start=1)}
    several = len(layers) > 1
    groups = b"".join(
        frame_item(
            plane,
            (layer.number, rank[plane.k]) if plane.place else (layer.number,),
            layer.number if several else None,
        )
        for layer, plane in frames
    )
    result[FRAMES] = RawDataElement(FRAMES, "SQ", len(groups), groups, 0, False, True)
    result.NumberOfFrames = len(frames)
    pixels = _bytes(layers, kept, filled) if fractional else _bits(layers, kept, filled)
    pixels += bytes(len(pixels) % 2)
    result.PixelData = bytes(pixels)
    if not adjoining([each.k for each in kept]) and "DimensionOrganizationType" in result:
        del result.DimensionOrganizationType


def overlap(layers: Sequence[Layer]) -> bool:
    """Tell whether two segments share a voxel."""
    taken: list[_Octets | None] = [None] * len(layers[0].mask)
    for layer in layers:
        for k in np.flatnonzero(_filled(layer.mask, whole=False)):
            bits = np.packbits(layer.mask[k])
            before = taken[k]
            if before is not None and (before & bits).any():
                return True
            taken[k] = bits if before is None else before | bits
    return False


def _filled(mask: Mask, *, whole: bool) -> npt.NDArray[np.bool_]:
    """Return which slices get a frame, (K,) bool."""
    if whole:
        return np.ones(len(mask), np.bool_)
    flat = np.ascontiguousarray(mask).reshape(len(mask), -1)
    # Eight voxels at once, where they fit.
    words = flat.view(np.uint64) if flat.shape[1] % 8 == 0 else flat.view(np.uint8)
    return np.asarray(words.max(axis=1) > 0)


def adjoining(ks: Sequence[int]) -> bool:
    """Tell whether slices follow each other without a gap, so that they are a volume."""
    return len(ks) > 1 and set(np.abs(np.diff(ks)).tolist()) == {1}


def _bits(
    layers: Sequence[Layer], planes: Sequence[Slice], filled: dict[int, npt.NDArray[np.bool_]]
) -> bytearray:
    """Return the voxels, lowest bit first, with no padding between frames (PS3.5 8.1.1)."""
    out = bytearray()
    left = np.empty(0, np.bool_)
    for frame in _frames(layers, planes, filled):
        row = np.concatenate([left, frame]) if left.size else frame
        whole = row.size - row.size % 8
        out += np.packbits(row[:whole], bitorder="little").tobytes()
        left = row[whole:]
    out += np.packbits(left, bitorder="little").tobytes()
    return out


def _frames(
    layers: Sequence[Layer], planes: Sequence[Slice], filled: dict[int, npt.NDArray[np.bool_]]
) -> Iterator[npt.NDArray[np.bool_]]:
    for layer in layers:
        for plane in planes:
            if filled[layer.number][plane.k]:
                yield layer.mask[plane.k].ravel()


def _bytes(
    layers: Sequence[Layer], planes: Sequence[Slice], filled: dict[int, npt.NDArray[np.bool_]]
) -> bytearray:
    """Return probabilities, 255 for certain."""
    out = bytearray()
    for layer in layers:
        before = np.concatenate([[0], np.cumsum(per_slice(layer.mask))])
        for plane in planes:
            if not filled[layer.number][plane.k]:
                continue
            mask = layer.mask[plane.k]
            frame = mask.astype(np.uint8) * np.uint8(255)
            if layer.probability is not None:
                likely = layer.probability[before[plane.k] : before[plane.k + 1]]
                frame[mask] = np.around(np.clip(likely, 0, 1) * 255).astype(np.uint8)
            out += frame.tobytes()
    return out
