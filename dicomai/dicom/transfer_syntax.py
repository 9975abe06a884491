"""How a data set is written, by its transfer syntax (PS3.5 annex A)."""

from __future__ import annotations

from typing import Final

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

GE_PRIVATE: Final = "1.2.840.113619.5.2"
"""Implicit VR little endian with big endian pixels; General Electric's own."""
BIG_ENDIAN: Final[str] = ExplicitVRBigEndian
IMPLICIT: Final[frozenset[str]] = frozenset(
    {
        ImplicitVRLittleEndian,
        "1.2.840.10008.1.20",  # Papyrus 3
        GE_PRIVATE,
    }
)
DEFLATED: Final[frozenset[str]] = frozenset(
    {
        DeflatedExplicitVRLittleEndian,
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    }
)
"""Explicit VR little endian, once inflated."""

LOSSY: Final[frozenset[str]] = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit})
"""Always lose something; near-lossless JPEG-LS and JPEG 2000 may."""

LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Those with a length of four bytes (PS3.5 7.1.2)."""
VRS: Final = LONG_VRS | frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()
)


def looks_implicit(first: bytes | memoryview) -> bool:
    """Tell whether a first element, of at least six bytes, has no value representation."""
    return bytes(first[4:6]) not in VRS


def is_implicit(syntax: str, first: bytes | memoryview) -> bool:
    """Tell whether a data set has no value representations.

    A private transfer syntax does not say; it may be either, and the first element shows it.
    """
    if syntax.startswith("1.2.840.10008.") or syntax in IMPLICIT:
        return syntax in IMPLICIT
    return looks_implicit(first)
