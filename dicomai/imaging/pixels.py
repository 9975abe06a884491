"""The pixels of an object, decoded frame by frame as they are stored (PS3.3 C.7.6.3)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, RLELossless

from dicomai.errors import InputError
from dicomai.imaging.attributes import (
    name_of,
    sop_class_name,
    text,
    values_checked_here,
    whole,
)
from dicomai.imaging.decoders import (
    DECODERS,
    LOSSLESS,
    NATIVE,
    check_growth,
    check_size,
    is_cut_off,
    is_lossless,
    precision,
    rle_samples,
)

MOST_BYTES: Final = 1 << 33
"""Of the pixels of one frame, decoded; what says that it is larger is damaged or hostile."""

Keyword: TypeAlias = Literal["PixelData", "FloatPixelData", "DoubleFloatPixelData"]
Samples: TypeAlias = npt.NDArray[np.integer]
"""Stored values; floating point ones only for Float and Double Float Pixel Data."""
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredPixels:
    """The pixels of an object as they came, with all that decoding takes.

    It holds no data set, so that threads may decode its frames: a data set reads itself while it
    is read, and may warn.

    Attributes
    ----------
    frames
        The bytes of each frame; native ones lie all in the first.
    shape_ji
        Rows, columns.
    allocated, stored, shift
        Bits of a sample, those that count, and how far these lie from the lowest.
    """

    name: str
    subject: str
    syntax: UID
    keyword: Keyword
    vr: str
    frames: tuple[bytes | memoryview, ...]
    count: int
    shape_ji: tuple[int, int]
    samples: int
    planar: int
    photometric: str
    allocated: int
    stored: int
    shift: int
    signed: bool

    def frame(self, index: int) -> Samples:
        """Return the values of a frame, (J, I) or (J, I, 3), without what lies in unused bits.

        Colour is RGB, whatever it was stored as; a palette is not looked up.

        Raises
        ------
        InputError
            It can't be decoded or is too short; names the object and its transfer syntax.
        """
        return self.frame_and_words(index)[0]

    def frame_and_words(self, index: int) -> tuple[Samples, Samples]:
        """Return what `frame` does, and the same with what lies in the bits above, if anything."""
        pixels, photometric = self._whole(index, raw=False)
        if self.samples > 1 and photometric != "RGB":
            raise InputError(
                f"{self.name}: its colours are {photometric}, which dicomai does not read in "
                f"{self.syntax.name}. Have the modality send it in RGB.",
                subject=self.subject,
            )
        if self.keyword != "PixelData" or self.allocated == 1:
            return pixels, pixels
        if not self._is_coded_as_it_is and (self.samples > 1 or not self.is_lossless(index)):
            # With loss a value may lie a little beyond its range: no bit is free.
            return pixels, pixels
        shift = self.shift
        if not self._is_coded_as_it_is and self._coded(index) < self.stored + shift:
            shift = 0
        values = _without_unused_bits(pixels, self.stored, shift)
        return values, values if shift else pixels

    def native(self, index: int) -> tuple[Samples, str]:
        """Return a frame as it would stand there uncompressed, and its photometric interpretation.

        Samples are as wide as Bits Allocated says, and lie where High Bit says; those of one bit
        are not packed. What was compressed without loss keeps its unused bits, and YBR_FULL; other
        colour is RGB, by pixel.

        Raises
        ------
        InputError
            As `frame`; or it has values that Bits Stored has no room for.
        """
        lossless = self._is_coded_as_it_is or self.is_lossless(index)
        pixels, photometric = self._whole(
            index, raw=lossless and self.photometric == "YBR_FULL" and self.samples > 1
        )
        if self._is_coded_as_it_is or self.allocated == 1:
            return pixels, photometric
        if not lossless:
            return np.left_shift(self._within_range(pixels), self.shift), photometric
        if self.samples > 1:
            return pixels, photometric
        coded = self._coded(index)
        if coded >= self.stored + self.shift:
            return _without_unused_bits(pixels, coded, 0), photometric
        values = _without_unused_bits(pixels, self.stored, 0)
        return np.left_shift(values, self.shift), photometric

    def noted(self) -> tuple[str, ...]:
        """Return what a reader should know before it is decoded, one sentence each."""
        if self.syntax not in NATIVE:
            more = len(self.frames) - self.count
            told = f"{self.name} has {more} frames more than its header announces ({self.count})."
            return (told,) if more > 0 else ()
        bits = self.count * self.shape_ji[0] * self.shape_ji[1] * self.samples * self.allocated
        if self.photometric == "YBR_FULL_422":  # two pixels share their colour
            bits = bits * 2 // 3
        beyond = len(self.frames[0]) - (bits + 7) // 8
        if beyond < 2:  # one makes the length even
            return ()
        told = (
            f"{self.name} has {beyond} bytes more pixel data than its header announces "
            f"({self.count} × {self.shape_ji[0]} rows × {self.shape_ji[1]} columns); they were not "
            "read. Compare the image with what the modality shows."
        )
        return (told,)

    def is_lossless(self, index: int) -> bool:
        """Return whether a compressed frame gives each sample as it was."""
        return is_lossless(self.syntax, bytes(self.frames[index]))

    def _coded(self, index: int) -> int:
        """Return how many bits of a sample are coded.

        An encoder may take the words as they are, unused bits and all, or what they stand for.
        """
        return precision(self.syntax, bytes(self.frames[index])) or self.stored

    def _within_range(self, pixels: Samples) -> Samples:
        """Bring back what compression pushed beyond the range; uncompressed it would wrap round."""
        lowest = -(1 << self.stored - 1) if self.signed else 0
        highest = lowest + (1 << self.stored) - 1
        # Twice the range is more than ringing: the header is wrong, and cutting would hide it.
        if pixels.min() < 2 * lowest - highest or pixels.max() > 2 * highest - lowest:
            raise InputError(
                f"{self.name}: the pixel data has values from {pixels.min()} to {pixels.max()}, "
                f"and the header says {self.stored} bits stored. Have it mended where it was made.",
                subject=self.subject,
            )
        return np.clip(pixels, lowest, highest)

    def _whole(self, index: int, *, raw: bool) -> tuple[Samples, str]:
        """Return a frame with all its bits, and its photometric interpretation."""
        try:
            pixels, photometric = self._decoded(index, raw=raw)
        except MemoryError:
            raise
        # Decoders of five libraries raise what they like; whatever it was, this object is at fault.
        except Exception as error:  # noqa: BLE001  decoders raise anything
            raise self.undecodable(_in_short(error)) from None
        shape = self.shape_ji if self.samples == 1 else (*self.shape_ji, self.samples)
        if pixels.shape != shape:
            raise InputError(
                f"{self.name}: the pixel data decodes to {pixels.shape}, but the header says "
                f"{shape}. Send the object again.",
                subject=self.subject,
            )
        return pixels, photometric

    @property
    def _is_coded_as_it_is(self) -> bool:
        """Whether it is not compressed, or by RLE, which packs the bytes as they are."""
        return self.syntax in NATIVE or self.syntax == RLELossless

    def _decoded(self, index: int, *, raw: bool) -> tuple[Samples, str]:
        """Return a frame by the first plugin that takes it; `raw`: in the colour space it is in."""
        if self.syntax in NATIVE:
            plain = self._plain(index)
            if plain is not None:
                return plain, self.photometric
            return self._by(bytes(self.frames[0]), index, "", self._options(self.count, raw=raw))
        frame = bytes(self.frames[index])
        if is_cut_off(self.syntax, frame):
            raise ValueError("it is cut off")
        check_size(self.syntax, frame, (*self.shape_ji, self.samples))
        size = self.shape_ji[0] * self.shape_ji[1] * self.samples
        check_growth(frame, size * max(8, self.allocated) // 8)
        if self.syntax == RLELossless and self.samples == 1 and self.allocated in (8, 16):
            samples = rle_samples(frame, self.shape_ji, self.allocated, signed=self.signed)
            return samples, self.photometric
        octets = encapsulate([frame])
        order = DECODERS[self.syntax]
        said: Exception | None = None
        for plugin in order.grey if self.samples == 1 else order.colour:
            try:
                return self._by(octets, 0, plugin, self._options(1, raw=raw))
            except Exception as error:  # noqa: BLE001  # the next one may take it
                said = said or error
        assert said is not None
        raise said

    def _plain(self, index: int) -> Samples | None:
        """Return a frame of what stands as numbers do in memory; None where it is otherwise."""
        if (
            self.keyword != "PixelData"
            or self.samples != 1
            or self.allocated == 1
            or self.syntax == ExplicitVRBigEndian
        ):
            return None
        dtype = np.dtype(f"<{'i' if self.signed else 'u'}{self.allocated // 8}")
        size = self.shape_ji[0] * self.shape_ji[1]
        octets = self.frames[0]
        if len(octets) < self.count * size * dtype.itemsize:
            return None  # pydicom says how much is missing
        at = index * size * dtype.itemsize
        out: Samples = np.frombuffer(octets, dtype, size, at).reshape(self.shape_ji)
        return out

    def _by(
        self, octets: bytes, index: int, plugin: str, options: dict[str, Any]
    ) -> tuple[Samples, str]:
        decoder = get_decoder(self.syntax)
        out: Samples
        out, said = decoder.as_array(octets, index=index, decoding_plugin=plugin, **options)
        return out, str(said["photometric_interpretation"])

    # pydicom's annotations of these are wrong.
    def _options(self, count: int, *, raw: bool) -> dict[str, Any]:
        options: dict[str, Any] = {
            "raw": raw,
            "view_only": True,
            "rows": self.shape_ji[0],
            "columns": self.shape_ji[1],
            "number_of_frames": count,
            "samples_per_pixel": self.samples,
            "photometric_interpretation": self.photometric,
            "pixel_keyword": self.keyword,
            "pixel_vr": self.vr,
            "bits_allocated": self.allocated,
        }
        if self.samples > 1:
            options["planar_configuration"] = self.planar
        if self.keyword == "PixelData":
            options["bits_stored"] = self.stored
            options["pixel_representation"] = int(self.signed)
        if self._is_coded_as_it_is or (self.syntax in LOSSLESS and self.samples == 1):
            options["correct_unused_bits"] = False  # `frame` does, and knows High Bit
        return options

    def undecodable(self, why: str) -> InputError:
        """Return the sentence that says why."""
        return InputError(
            f"{self.name}: the pixel data can't be decoded as {self.syntax.name} ({self.syntax}): "
            f"{why}. Send the object again, uncompressed if it is in order.",
            subject=self.subject,
        )


def stored_pixels(dataset: Dataset) -> StoredPixels:
    """Return the pixels of an object, not yet decoded.

    Raises
    ------
    InputError
        There are none, they can't be as their attributes say, or no decoder is here for them.
    """
    name, subject = name_of(dataset), text(dataset, "SOPInstanceUID")
    syntax = _transfer_syntax(dataset)
    keyword = _keyword(dataset)
    allocated = whole(dataset, "BitsAllocated")
    stored, shift, signed = allocated, 0, False
    if keyword == "PixelData":
        stored = whole(dataset, "BitsStored")
        shift = whole(dataset, "HighBit", stored - 1) + 1 - stored
        signed = whole(dataset, "PixelRepresentation", 0) == 1
        if stored < 1 or allocated not in (1, 8, 16, 32) or not 0 <= shift <= allocated - stored:
            raise InputError(
                f"{name}: {stored} bits stored of {allocated} allocated, high bit "
                f"{stored - 1 + shift}, which can't be.",
                subject=subject,
            )
    count = whole(dataset, "NumberOfFrames", 1)
    samples = whole(dataset, "SamplesPerPixel", 1)
    shape_ji = (whole(dataset, "Rows"), whole(dataset, "Columns"))
    if min(*shape_ji, count, samples) < 1 or shape_ji[0] * shape_ji[1] * samples > MOST_BYTES:
        raise InputError(
            f"{name}: {count} frames of {shape_ji[0]}×{shape_ji[1]} pixels with {samples} samples "
            "can't be.",
            subject=subject,
        )
    pixels = StoredPixels(
        name=name,
        subject=subject,
        syntax=syntax,
        keyword=keyword,
        vr=dataset[keyword].VR,
        frames=(),
        count=count,
        shape_ji=shape_ji,
        samples=samples,
        planar=whole(dataset, "PlanarConfiguration", 0) if samples > 1 else 0,
        photometric=text(dataset, "PhotometricInterpretation") or "MONOCHROME2",
        allocated=allocated,
        stored=stored,
        shift=shift,
        signed=signed,
    )
    return replace(pixels, frames=_frames(pixels, dataset))


def _frames(pixels: StoredPixels, dataset: Dataset) -> tuple[bytes | memoryview, ...]:
    """Return native pixel data whole, encapsulated ones frame by frame."""
    octets: bytes | memoryview | None = dataset[pixels.keyword].value
    if not octets:
        raise pixels.undecodable("it is empty")
    if pixels.syntax not in NATIVE and pixels.syntax not in DECODERS:
        raise pixels.undecodable("no decoder for it is installed")
    if pixels.syntax in NATIVE:
        return (octets,)
    offsets = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    with values_checked_here():
        try:
            found = tuple(
                generate_frames(
                    bytes(octets), number_of_frames=pixels.count, extended_offsets=offsets
                )
            )
        except Exception as error:  # noqa: BLE001  # a hostile structure, however it fails
            raise pixels.undecodable(_in_short(error)) from None
    if len(found) < pixels.count:
        raise pixels.undecodable(f"it holds {len(found)} frames, and {pixels.count} belong")
    return found


def _keyword(dataset: Dataset) -> Keyword:
    keywords: tuple[Keyword, ...] = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    for keyword in keywords:
        if keyword in dataset:
            return keyword
    raise InputError(
        f"{name_of(dataset)} ({sop_class_name(dataset)}) has no pixel data, so it is no image.",
        subject=text(dataset, "SOPInstanceUID"),
    )


def stored_values(dataset: Dataset) -> Samples:
    """Return the values of an object's only frame; raises as `StoredPixels.frame` does."""
    pixels = stored_pixels(dataset)
    with values_checked_here():
        return pixels.frame(0)


def in_parallel(work: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
    """Return what `work` makes of each task, in their order, on all processors of this process.

    The libraries that decode let other threads run meanwhile. The first error ends it.
    """
    threads = min(len(tasks), len(os.sched_getaffinity(0)))
    # A part for each thread, and some more, so that none waits long for the last.
    size = max(1, len(tasks) // (4 * threads)) if threads else 1
    parts = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    # Warnings are silenced for the whole process: here once, for all threads.
    with values_checked_here():
        if threads < 2:
            return [work(task) for task in tasks]
        pool = ThreadPoolExecutor(threads, "decode")
        try:
            done = pool.map(lambda part: [work(task) for task in part], parts)
            return [result for part in done for result in part]
        finally:
            pool.shutdown(cancel_futures=True)


def _without_unused_bits(pixels: Samples, stored: int, shift: int) -> Samples:
    """Old modalities keep overlays in the bits that PS3.5 8.1.1 leaves unused."""
    unused = 8 * pixels.dtype.itemsize - stored
    if unused <= 0:  # a decoder may give fewer bits than are allocated
        return pixels
    # Up to the top and down again: an arithmetic shift extends the sign where there is one.
    raised = np.left_shift(pixels, unused - shift)
    out: Samples = np.right_shift(raised, unused)
    return out


def _in_short(error: Exception) -> str:
    """Return the reason of pydicom's many lines: its plugins are a programmer's matter."""
    said = str(error)
    if "all available plugins" in said:
        return "every decoder refuses it"
    return " ".join(said.split())[:200].rstrip(".:") or type(error).__name__


def _transfer_syntax(dataset: Dataset) -> UID:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        raise InputError(
            f"{name_of(dataset)} does not say its transfer syntax. Send it again.",
            subject=text(dataset, "SOPInstanceUID"),
        )
    return UID(syntax)
