"""Writing an object in another transfer syntax, where a peer lacks the one that it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from dicomai.errors import InputError
from dicomai.imaging.attributes import values_checked_here
from dicomai.imaging.decoders import NATIVE, is_reversible
from dicomai.imaging.pixels import StoredPixels, in_parallel, stored_pixels

EXPLICIT: Final = ExplicitVRLittleEndian
IMPLICIT: Final = ImplicitVRLittleEndian
# Bytes of a word, which big endian turns round (PS3.5 7.3).
_WORDS: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_PIXELS: Final = Tag("PixelData")
_ICON: Final = Tag("IconImageSequence")
# They say where compressed frames begin (PS3.3 C.7.6.3.1.8), and how long they are.
_OF_COMPRESSED: Final = (
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "EncapsulatedPixelDataValueTotalLength",
)
_METHODS: Final[Mapping[UID, str]] = MappingProxyType(
    {
        JPEGBaseline8Bit: "ISO_10918_1",
        JPEGExtended12Bit: "ISO_10918_1",
        JPEGLSNearLossless: "ISO_14495_1",
        JPEG2000: "ISO_15444_1",
        HTJ2K: "ISO_15444_15",
    }
)
"""How transfer syntaxes with loss compress (PS3.3 C.7.6.1.1.5.1)."""
_EITHER: Final = frozenset({JPEG2000, HTJ2K})
"""Those that may be without loss; only the header tells."""


def transcoded(source: Path, target: Path, transfer_syntax: str) -> None:
    """Write an object in Explicit or Implicit VR Little Endian; its UID stays (PS3.4 B.4.1.1).

    Raises
    ------
    InputError
        Its pixels can't be decoded here.
    """
    try:
        with values_checked_here():  # they go on as they came
            data_set = dcmread(source)
            _make_native(data_set)
            data_set.file_meta.TransferSyntaxUID = UID(transfer_syntax)
            # Not `save_as`, which refuses to go from big to little endian: the words are turned.
            dcmwrite(
                target,
                data_set,
                implicit_vr=transfer_syntax == IMPLICIT,
                little_endian=True,
                enforce_file_format=True,
            )
    except (
        InvalidDicomError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as trouble:  # what pydicom raises
        reason = str(trouble).strip().splitlines() or [type(trouble).__name__]
        raise InputError(
            f"it can't be decoded ({reason[0].rstrip('.')}).", subject=str(source)
        ) from (trouble)


def _make_native(data_set: Dataset) -> None:
    """Bring what depends on the transfer syntax into the form of little endian ones."""
    syntax = data_set.file_meta.TransferSyntaxUID
    if syntax not in NATIVE:
        _decompress_icons(data_set)
        _say_what_was_lost(data_set, _decompress(data_set))
    elif not syntax.is_little_endian:
        data_set.walk(_turn_words)


def _decompress(data_set: Dataset) -> StoredPixels:
    """Put pixels that are not compressed in the place of compressed ones; return the latter."""
    pixels = stored_pixels(data_set)
    frames = in_parallel(pixels.native, range(pixels.count))
    samples = np.stack([frame for frame, _ in frames])
    if pixels.allocated == 1:
        octets = np.packbits(samples, bitorder="little").tobytes()
    else:
        octets = samples.astype(samples.dtype.newbyteorder("<"), copy=False).tobytes()
    padded = octets + bytes(len(octets) % 2)
    data_set[_PIXELS] = DataElement(_PIXELS, "OW" if pixels.allocated > 8 else "OB", padded)
    if pixels.samples > 1:
        data_set.PhotometricInterpretation = frames[0][1]
        data_set.PlanarConfiguration = 0
    for keyword in _OF_COMPRESSED:
        if keyword in data_set:
            del data_set[keyword]
    return pixels


def _decompress_icons(data_set: Dataset) -> None:
    """Decompress the pixels of sequences, or leave out an icon that can't be: it shows no more.

    There they may be compressed or not, each for itself (PS3.5 A.4).
    """
    for tag in list(data_set.keys()):
        # What is no sequence stays as it came: pydicom reads a value when it is asked for.
        if getattr(data_set.get_item(tag), "VR", None) != "SQ":
            continue
        for item in data_set[tag].value:
            item.file_meta = data_set.file_meta
            _decompress_icons(item)
            if _PIXELS not in item or not item[_PIXELS].is_undefined_length:
                continue
            try:
                _decompress(item)
            except InputError:
                if tag != _ICON:
                    raise
                del data_set[tag]
                break


def _say_what_was_lost(data_set: Dataset, pixels: StoredPixels) -> None:
    """Say that compression has lost something, which no longer shows (PS3.3 C.7.6.1.1.5)."""
    said = data_set.get("LossyImageCompression")
    if said == "01" or pixels.syntax not in _METHODS:
        return
    if all(map(pixels.is_lossless, range(pixels.count))):
        return
    frames = [bytes(frame) for frame in pixels.frames[: pixels.count]]
    if said == "00" and pixels.syntax in _EITHER and all(map(is_reversible, frames)):
        return
    ratio = len(data_set[_PIXELS].value) / sum(map(len, frames))
    data_set.LossyImageCompression = "01"
    data_set.LossyImageCompressionRatio = f"{ratio:.2f}"
    data_set.LossyImageCompressionMethod = _METHODS[pixels.syntax]


def _turn_words(data_set: Dataset, element: DataElement) -> None:
    width = _WORDS.get(element.VR)
    if width and isinstance(element.value, bytes):
        if element.tag == _PIXELS:  # as it is read: a sample of 32 bits is one word
            width = max(width, data_set.BitsAllocated // 8)
        element.value = np.frombuffer(element.value, f">u{width}").astype(f"<u{width}").tobytes()
