"""Which library decodes which transfer syntax, and imagecodecs as a plugin of pydicom.

imagecodecs lets other threads run while it decodes, so greyscale goes to it first, and it is alone
in RLE, JPEG lossless and 12-bit JPEG. Other colour goes first to the plugins that come with
pydicom, which know its colour spaces. No order is left to pydicom: it would take any plugin that is
installed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Final, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.utils import get_j2k_parameters
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

PLUGIN: Final = "imagecodecs"


class Order(NamedTuple):
    """Names of pydicom's plugins, the first choice first."""

    grey: tuple[str, ...]
    colour: tuple[str, ...]


_JPEG: Final = Order((PLUGIN, "pillow"), ("pillow",))
_JPEG_LOSSLESS: Final = Order((PLUGIN,), (PLUGIN,))
_JPEG_LS: Final = Order((PLUGIN, "pyjpegls"), ("pyjpegls",))
_JPEG_2000: Final = Order((PLUGIN, "pylibjpeg"), ("pylibjpeg",))

DECODERS: Final[Mapping[UID, Order]] = MappingProxyType(
    {
        RLELossless: Order((PLUGIN,), (PLUGIN,)),
        JPEGBaseline8Bit: _JPEG,
        JPEGExtended12Bit: _JPEG,
        JPEGLossless: _JPEG_LOSSLESS,
        JPEGLosslessSV1: _JPEG_LOSSLESS,
        JPEGLSLossless: _JPEG_LS,
        JPEGLSNearLossless: _JPEG_LS,
        JPEG2000Lossless: _JPEG_2000,
        JPEG2000: _JPEG_2000,
        HTJ2KLossless: _JPEG_2000,
        HTJ2KLosslessRPCL: _JPEG_2000,
        HTJ2K: _JPEG_2000,
    }
)
"""Every compressed transfer syntax that is read; what is neither here nor native is refused."""

NATIVE: Final = frozenset(
    {
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    }
)
"""Transfer syntaxes whose pixels are not compressed."""

_JPEG_2000_LOSSLESS: Final = frozenset({JPEG2000Lossless, HTJ2KLossless, HTJ2KLosslessRPCL})
_JPEG_2000_FAMILY: Final = _JPEG_2000_LOSSLESS | {JPEG2000, HTJ2K}
LOSSLESS: Final = _JPEG_2000_LOSSLESS | {JPEGLossless, JPEGLosslessSV1, JPEGLSLossless}
"""Codestreams that say how many bits a sample has, and give each as it was."""

DECODER_DEPENDENCIES: Final = {
    syntax: ("numpy", PLUGIN)
    for syntax, order in DECODERS.items()
    if PLUGIN in order.grey + order.colour
}
"""What pydicom asks of the module of a plugin."""

DECODED_AT_LEAST: Final = 2**28
DECODED_RATIO: Final = 1000
"""A compressed frame may grow to the larger of the two; a large film of nothing but zeros takes a
few hundred bytes."""

_END: Final = b"\xff\xd9"
"""The marker that ends a JPEG, JPEG-LS or JPEG 2000 image, and stands nowhere within."""
_PADDING: Final = 16
"""How many bytes after the end are let pass."""
_LOSSLESS_FRAMES: Final = (0xC3, 0xF7)
"""Second bytes of the markers of JPEG lossless (SOF3) and JPEG-LS (SOF55)."""
_STARTS_OF_FRAME: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_FRAME_HEADER: Final = struct.Struct(">3x2HB")
"""From its length on: precision, lines, samples in a line, components (ISO/IEC 10918-1, B.2.2)."""
_CODESTREAM: Final = b"\xff\x4f\xff\x51"
"""The markers that begin a JPEG 2000 codestream: SOC and SIZ."""
_SIZE: Final = struct.Struct(">8x4L16xH")
"""From there on: ends and origin of the image, and components (ISO/IEC 15444-1, A.5.1)."""
_MAIN_HEADER: Final = 64
"""Bytes of a codestream with which it says how many bits a sample has."""
_JP2_BOX: Final = b"jP  "
"""The type of the box that a JP2 file begins with; its length is before it."""
_JP2_FIRST: Final = 8
_CODESTREAM_BOX: Final = b"jp2c"
_BOX: Final = struct.Struct(">L4s")
_START_OF_SCAN: Final = 0xDA
_START_OF_TILE: Final = 0x90
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker that a length follows; many 0xFF may stand before it, and be none."""
_CODING_STYLE: Final = 0x52

_RLE_SEGMENTS: Final = 15
_RLE_HEADER: Final = struct.Struct(f"<{1 + _RLE_SEGMENTS}L")

_Codec = Callable[[bytes], npt.NDArray[np.generic]]

_CODECS: Final[Mapping[UID, _Codec]] = MappingProxyType(
    {
        JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
        JPEGExtended12Bit: imagecodecs.jpeg8_decode,
        JPEGLossless: imagecodecs.jpeg8_decode,
        JPEGLosslessSV1: imagecodecs.jpeg8_decode,
        JPEGLSLossless: imagecodecs.jpegls_decode,
        JPEGLSNearLossless: imagecodecs.jpegls_decode,
        JPEG2000Lossless: imagecodecs.jpeg2k_decode,
        JPEG2000: imagecodecs.jpeg2k_decode,
        # Not its own codec for them, OpenJPH: where a stream is broken that gives what it has, or
        # never comes back.
        HTJ2KLossless: imagecodecs.jpeg2k_decode,
        HTJ2KLosslessRPCL: imagecodecs.jpeg2k_decode,
        HTJ2K: imagecodecs.jpeg2k_decode,
    }
)


def is_available(uid: str) -> bool:
    """Return whether the plugin decodes a transfer syntax; pydicom asks it."""
    return uid in DECODER_DEPENDENCIES


def is_cut_off(syntax: UID, frame: bytes) -> bool:
    """Return whether the end of a compressed frame is missing.

    Some codecs paint what is missing grey and report success; one searches it for seconds.
    """
    return syntax != RLELossless and _END not in frame[-_PADDING:]


def check_size(syntax: UID, frame: bytes, shape: tuple[int, int, int]) -> None:
    """Raise ValueError where a codestream says to hold another image than the header does, or none.

    It is asked first: a decoder makes room for whatever the codestream says.

    Parameters
    ----------
    shape
        Rows, columns and samples a pixel.
    """
    found = _size_in(syntax, frame)
    if found is not None and found != shape:
        raise ValueError(f"the frame is {found}, and the header says {shape}")


def check_growth(frame: bytes, decoded_bytes: int) -> None:
    """Raise ValueError where a compressed frame would grow out of proportion, as no image does."""
    if decoded_bytes > max(DECODED_AT_LEAST, DECODED_RATIO * len(frame)):
        raise ValueError(
            f"{len(frame)} bytes would become {decoded_bytes}, which is more than an image does"
        )


def _size_in(syntax: UID, frame: bytes) -> tuple[int, int, int] | None:
    try:
        if syntax in _JPEG_2000_FAMILY:
            at = _codestream_in(frame)
            if at < 0:
                raise ValueError("it holds no JPEG 2000 codestream")
            right, bottom, left, top, samples = _SIZE.unpack_from(frame, at)
            return bottom - top, right - left, samples
        if syntax != RLELossless:
            for marker, at in _segments(frame):
                if marker in _STARTS_OF_FRAME:
                    rows, columns, samples = _FRAME_HEADER.unpack_from(frame, at)
                    return (rows, columns, samples) if rows else None  # the end may say it
    except struct.error:
        pass
    return None


def _codestream_in(frame: bytes) -> int:
    """Return where a JPEG 2000 codestream begins, -1 for nowhere.

    Some send it in the boxes of a JP2 file (ISO/IEC 15444-1, I.4). It is looked for where decoders
    do: what looks like one in another box is none.
    """
    at = 0
    while _JP2_BOX in frame[:_JP2_FIRST] and at + 8 <= len(frame):
        size, kind = _BOX.unpack_from(frame, at)
        head = 8
        if size == 1:  # the length follows, in eight bytes
            size, head = int.from_bytes(frame[at + 8 : at + 16], "big"), 16
        if kind == _CODESTREAM_BOX:
            return at + head if frame.startswith(_CODESTREAM, at + head) else -1
        if size < head:
            return -1
        at += size
    return 0 if frame.startswith(_CODESTREAM) else -1


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Return the samples of one frame, in as many bytes as Bits Allocated says; pydicom calls it.

    Raises
    ------
    ValueError
        The frame holds another number of pixels or larger ones than the data set says; what
        imagecodecs raises for broken data is one too.
    """
    allocated = 8 if runner.bits_allocated == 1 else runner.bits_allocated
    shape: tuple[int, ...] = (runner.rows, runner.columns)
    if runner.samples_per_pixel > 1:
        shape = (*shape, runner.samples_per_pixel)
        runner.set_option("planar_configuration", int(runner.transfer_syntax == RLELossless))
    if runner.transfer_syntax == RLELossless:
        dtype = np.dtype(f"u{allocated // 8}")
        return _unpacked(src, (runner.rows, runner.columns), runner.samples_per_pixel, dtype)
    if runner.samples_per_pixel > 1:
        # Colour is JPEG lossless here, and this codec leaves the colour space as it is.
        found = imagecodecs.jpegsof3_decode(src)
    else:
        found = _CODECS[runner.transfer_syntax](src)
    if found.shape != shape:
        raise ValueError(f"the frame is {found.shape}, and the header says {shape}")
    if 8 * found.dtype.itemsize > allocated:
        raise ValueError(f"the frame has {found.dtype} samples for {allocated} bits allocated")
    if runner.bits_allocated == 1:
        runner.set_option("bits_allocated", 8)
    return found.astype(f"{found.dtype.kind}{allocated // 8}", copy=False).tobytes()


def precision(syntax: UID, frame: bytes) -> int | None:
    """Return how many bits a sample of a lossless codestream has; None where it does not say."""
    if syntax in _JPEG_2000_LOSSLESS:
        start = max(0, _codestream_in(frame))
        found: int | None = get_j2k_parameters(frame[start : start + _MAIN_HEADER]).get("precision")
        return found
    for marker, at in _segments(frame):
        if marker in _LOSSLESS_FRAMES:
            return frame[at + 2]
    return None


def is_lossless(syntax: UID, frame: bytes) -> bool:
    """Return whether a codestream gives each sample as it was.

    Of a transfer syntax with loss only JPEG-LS says so. JPEG 2000 does not: one of reversible
    wavelets may be cut short, and samples then lie beyond their range.
    """
    if syntax == JPEGLSNearLossless:
        scan = next((at for marker, at in _segments(frame) if marker == _START_OF_SCAN), None)
        if scan is None:
            return False
        # NEAR stands behind two bytes for each component (ISO/IEC 14495-1, C.2.3).
        near = scan + 3 + 2 * frame[scan + 2]
        return frame[near : near + 1] == b"\0"
    return syntax in LOSSLESS


def is_reversible(frame: bytes) -> bool:
    """Return whether a JPEG 2000 codestream has reversible wavelets: it may be without loss."""
    start = _codestream_in(frame)
    if start < 0:
        return False
    header = _segments(frame, start)
    styles = next((at for marker, at in header if marker == _CODING_STYLE), None)
    if styles is None:
        return False
    # The transformation is the last of the values that always stand there (ISO/IEC 15444-1, A.6.1).
    wavelets = styles + 11
    return frame[wavelets : wavelets + 1] == b"\x01"


def _segments(frame: bytes, start: int = 0) -> Iterator[tuple[int, int]]:
    """Give the second byte of each marker of a codestream's header, and where its segment is.

    The last is the one that what is coded follows. They are found as decoders find them, which
    pass over what stands between two segments, and over markers that have no length.
    """
    found = _MARKER.search(frame, start + 2)
    while found is not None and found.end() < len(frame) - 2:
        marker, at = frame[found.end() - 1], found.end()
        yield marker, at
        if marker in (_START_OF_SCAN, _START_OF_TILE):
            return
        found = _MARKER.search(frame, at + int.from_bytes(frame[at : at + 2], "big"))


def rle_samples(
    src: bytes, shape_ji: tuple[int, int], allocated: int, *, signed: bool
) -> npt.NDArray[np.integer]:
    """Return the stored values of a greyscale RLE frame, (J, I), with all their bits.

    Without pydicom, whose own work would take longer than the decoder's, and no other thread runs
    meanwhile.

    Raises
    ------
    ValueError
        The frame is broken, or does not hold what the header says.
    """
    octets = _unpacked(src, shape_ji, 1, np.dtype(f"u{allocated // 8}"))
    return np.frombuffer(octets, f"<{'i' if signed else 'u'}{allocated // 8}").reshape(shape_ji)


def _unpacked(
    src: bytes, shape_ji: tuple[int, int], samples: int, dtype: np.dtype[np.generic]
) -> bytes:
    """Return the samples of an RLE frame, colour by colour.

    imagecodecs reads wherever a header points to, and takes a long segment for one that is short
    elsewhere: so the header is checked first, and each colour is unpacked by itself.
    """
    size = dtype.itemsize
    starts = _rle_segments(src)
    if len(starts) != samples * size + 1:
        raise ValueError(f"the frame has {len(starts) - 1} segments, not {samples * size}")
    wanted = shape_ji[0] * shape_ji[1] * size
    out = []
    for first in range(0, len(starts) - 1, size):
        some = starts[first : first + size + 1]
        offsets = [start - some[0] + _RLE_HEADER.size for start in some[:-1]]
        head = _RLE_HEADER.pack(size, *offsets, *[0] * (_RLE_SEGMENTS - size))
        try:
            octets = bytes(imagecodecs.dicomrle_decode(head + src[some[0] : some[-1]], dtype))
        except imagecodecs.DicomrleError:
            raise ValueError("an RLE segment is broken") from None
        if len(octets) != wanted:
            raise ValueError(
                f"the frame has {len(octets)} bytes, and the header says {shape_ji} {dtype}"
            )
        out.append(octets)
    return b"".join(out)


def _rle_segments(src: bytes) -> tuple[int, ...]:
    """Return where each segment of an RLE frame begins, and where the last one ends (PS3.5 G.5)."""
    if len(src) < _RLE_HEADER.size:
        raise ValueError("the frame is shorter than an RLE header")
    count, *offsets = _RLE_HEADER.unpack_from(src)
    if not 0 < count <= _RLE_SEGMENTS:
        raise ValueError(f"the RLE header says that there are {count} segments")
    starts = (*offsets[:count], len(src))
    if starts[0] != _RLE_HEADER.size or any(after <= each for each, after in pairwise(starts)):
        raise ValueError("the RLE header points to where no segment is")
    return starts


def _register() -> None:
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))


_register()
