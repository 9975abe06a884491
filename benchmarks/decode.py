"""How fast a series is decoded: on one processor, on all, and as pydicom does it unasked.

Each transfer syntax holds the same CT slice of 512×512 pixels with 16 bits (12-bit and 8-bit JPEG:
what is left of it). A series is that slice many times over. The three ways take turns within a
round; the table has medians over the rounds, and the ratio is the median of the ratios within a
round. Repeat it with the command that it prints.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import platform
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import HTJ2KLossless

from dicomai.imaging.pixels import StoredPixels, in_parallel, stored_pixels

FILES = {
    "Explicit VR Little Endian": "explicit-le",
    "RLE Lossless": "rle",
    "JPEG Baseline, 8 bits": "jpeg-baseline-50",
    "JPEG Extended, 12 bits": "jpeg-extended-51",
    "JPEG Lossless": "jpeg-lossless-57",
    "JPEG Lossless, first order": "jpeg-lossless-sv1-70",
    "JPEG-LS Lossless": "jpegls-lossless-80",
    "JPEG 2000 Lossless": "j2k-lossless-90",
    "HTJ2K Lossless": "",
}


def images(folder: Path) -> dict[str, Dataset]:
    """Return one data set for each transfer syntax."""
    out = {
        name: dcmread(folder / f"ct512_{file}.dcm") if file else _htj2k(folder)
        for name, file in FILES.items()
    }
    for dataset in out.values():
        _ = dataset.PixelData
    return out


def _htj2k(folder: Path) -> Dataset:
    dataset = dcmread(folder / "ct512_explicit-le.dcm")
    octets = bytes(imagecodecs.htj2k_encode(pixel_array(dataset, raw=True), reversible=True))
    out = copy.deepcopy(dataset)
    out.PixelData = encapsulate([octets])
    out["PixelData"].VR = "OB"
    out.file_meta.TransferSyntaxUID = HTJ2KLossless
    return out


def first(pixels: StoredPixels) -> int:
    """Decode; return something of it."""
    return int(pixels.frame(0)[0, 0])


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/transfer-syntaxes/ct512"))
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    processors = len(os.sched_getaffinity(0))
    print(f"Command: python benchmarks/decode.py {shlex.join(sys.argv[1:])}".rstrip())
    print(
        f"Machine: {platform.machine()}, {processors} processors, load {os.getloadavg()[0]:.1f}, "
        f"Python {sys.version.split()[0]}"
    )
    print(f"{given.slices} slices, {given.rounds} rounds; milliseconds for each slice\n")
    print(f"| transfer syntax | pydicom | one thread | {processors} threads | one : all |")
    print("| --- | ---: | ---: | ---: | ---: |")
    warnings.simplefilter("ignore")
    for name, dataset in images(given.data).items():
        print(_row(name, dataset, given.slices, given.rounds), flush=True)
    print(_control(given.slices, given.rounds))


def _control(slices: int, rounds: int) -> str:
    """Return the row of what surely runs at the same time: on a busy machine it gains as little."""
    octets = [bytes(1 << 22)] * slices

    def digest(each: bytes) -> bytes:
        return hashlib.sha256(each).digest()

    one, many = [], []
    for _ in range(rounds):
        one.append(seconds(lambda: [digest(each) for each in octets]))
        many.append(seconds(lambda: in_parallel(digest, octets)))
    ratio = statistics.median(a / b for a, b in zip(one, many, strict=True))
    scale = 1000 / slices
    return (
        f"| control: SHA-256 of 4 MiB | | {statistics.median(one) * scale:.2f} "
        f"| {statistics.median(many) * scale:.2f} | {ratio:.2f} |"
    )


def _row(name: str, dataset: Dataset, slices: int, rounds: int) -> str:
    series = [stored_pixels(dataset)] * slices
    try:
        alone = pixel_array(dataset, raw=True)
    except (RuntimeError, NotImplementedError, AttributeError):
        alone = None
    else:
        assert np.array_equal(alone, series[0].frame(0))
    plain, one, many = [], [], []
    for _ in range(rounds):
        if alone is not None:
            plain.append(seconds(lambda: [pixel_array(dataset, raw=True) for _ in series]))
        one.append(seconds(lambda: [first(each) for each in series]))
        many.append(seconds(lambda: in_parallel(first, series)))
    ratio = statistics.median(a / b for a, b in zip(one, many, strict=True))
    scale = 1000 / slices
    told = f"{statistics.median(plain) * scale:.2f}" if plain else "not decoded"
    return (
        f"| {name} | {told} | {statistics.median(one) * scale:.2f} "
        f"| {statistics.median(many) * scale:.2f} | {ratio:.2f} |"
    )


if __name__ == "__main__":
    main()
