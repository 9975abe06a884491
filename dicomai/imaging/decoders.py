"""Which library decodes which transfer syntax, and imagecodecs as a plugin of pydicom.

imagecodecs lets other threads run while it decodes, so greyscale goes to it first, and it is alone
in JPEG lossless and 12-bit JPEG. Colour goes first to the plugins that come with pydicom, which
know its colour spaces. No order is left to pydicom: it would take any plugin that is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
        RLELossless: Order((PLUGIN, "pylibjpeg"), ("pylibjpeg",)),
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
        # With loss, OpenJPH rounds otherwise than OpenJPEG, whose values the sample data hold.
        HTJ2K: Order(("pylibjpeg",), ("pylibjpeg",)),
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
LOSSLESS: Final = _JPEG_2000_LOSSLESS | {JPEGLossless, JPEGLosslessSV1, JPEGLSLossless}
"""Codestreams that say how many bits a sample has, and give each as it was."""

DECODER_DEPENDENCIES: Final = {
    syntax: ("numpy", PLUGIN)
    for syntax, order in DECODERS.items()
    if PLUGIN in order.grey + order.colour
}
"""What pydicom asks of the module of a plugin."""

_END: Final = b"\xff\xd9"
"""The marker that ends a JPEG, JPEG-LS or JPEG 2000 image, and stands nowhere within."""
_PADDING: Final = 16
"""How many bytes after the end are let pass."""
_STARTS_OF_FRAME: Final = (0xC3, 0xF7)
"""Second bytes of the markers of JPEG lossless (SOF3) and JPEG-LS (SOF55)."""
_START_OF_SCAN: Final = 0xDA

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
        HTJ2KLossless: imagecodecs.htj2k_decode,
        HTJ2KLosslessRPCL: imagecodecs.htj2k_decode,
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
        runner.set_option("planar_configuration", 0)
    if runner.transfer_syntax == RLELossless:
        return _unpacked(src, shape, np.dtype(f"u{allocated // 8}"))
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
        found: int | None = get_j2k_parameters(frame).get("precision")
        return found
    for marker, at in _segments(frame):
        if marker in _STARTS_OF_FRAME:
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


def _segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """Give the second byte of each marker of a JPEG or JPEG-LS header, and where its segment is."""
    at = 2
    while at + 4 < len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xFF:  # a marker may be filled up with 0xFF before it
            at += 1
            continue
        yield frame[at + 1], at + 2
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")


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
    octets = _unpacked(src, shape_ji, np.dtype(f"u{allocated // 8}"))
    return np.frombuffer(octets, f"<{'i' if signed else 'u'}{allocated // 8}").reshape(shape_ji)


def _unpacked(src: bytes, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    out = bytes(imagecodecs.dicomrle_decode(src, dtype))
    if len(out) != np.prod(shape) * dtype.itemsize:
        raise ValueError(f"the frame has {len(out)} bytes, and the header says {shape} {dtype}")
    return out


def _register() -> None:
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))


_register()
