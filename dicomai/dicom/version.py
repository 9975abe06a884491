"""The version of an object: which copies are the same, whatever their transfer syntax.

Two parts. The first covers identity, geometry and how pixels are to be read; the second the bytes
of native pixels, in little endian order. Copies are one version when the first parts are equal,
and the second ones too where both have one.

Of patient and order there counts what results repeat and people correct: name, sex, accession
number, date of the study. What systems add on the way, as a Study ID, does not count, nor does
another spelling of the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pydicom.datadict import tag_for_keyword

from dicomai.dicom.data_set import Element, Elements, known_vr
from dicomai.dicom.header import Attributes, values_of
from dicomai.dicom.identity import comparable_name
from dicomai.dicom.part10 import Part10

_IDENTITY: Final = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "PatientBirthDate", "FrameOfReferenceUID",
)  # fmt: skip
_GEOMETRY: Final = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "PatientOrientation",
    "PatientPosition", "ImageLaterality", "Laterality",
)  # fmt: skip
# Compression may change the colour model, the planar configuration and the bits allocated.
_PIXELS: Final = (
    "Rows", "Columns", "SamplesPerPixel", "BitsStored", "PixelRepresentation",
    "NumberOfFrames", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    "RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_TAGS: Final = tuple(
    (keyword, tag)
    for keyword in (*_IDENTITY, *_GEOMETRY, *_PIXELS)
    if (tag := tag_for_keyword(keyword)) is not None
)
_PHOTOMETRIC: Final = 0x00280004
_PLANAR: Final = 0x00280006
_CHUNK: Final = 2**20
_WORDS: Final[Mapping[int, int]] = {16: 2, 32: 4, 64: 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDigest:
    """SHA-256 in lower-case hex; `pixels` is None where pixels are compressed or absent.

    `header` is two of them with a dot between: of the object, and of patient and order.
    """

    header: str
    pixels: str | None

    def same_version(self, other: VersionDigest) -> bool:
        """Tell whether two copies are one version."""
        known = self.pixels is not None and other.pixels is not None
        return self.header == other.header and (not known or self.pixels == other.pixels)


def version_digest(part10: Part10, patient_key: str, attributes: Attributes) -> VersionDigest:
    """Return the digest of an object's version.

    Parameters
    ----------
    part10
        The object; its native pixels are read in pieces, and never decoded.
    patient_key
        Whose it is, see `dicomai.dicom.identity`.
    attributes
        Its short header.
    """
    header = hashlib.sha256()
    header.update(repr(("patient", patient_key)).encode())
    for keyword, tag in _TAGS:
        element = part10.elements.get(tag)
        if element is not None:
            header.update(repr((keyword, _canonical(element, part10.little_endian))).encode())
    header.update(repr(("photometric", _photometric_family(part10.elements))).encode())
    return VersionDigest(
        header=with_identity(header.hexdigest(), attributes), pixels=_pixel_digest(part10)
    )


def with_identity(header: str, attributes: Attributes) -> str:
    """Return the first part of a digest with what its object says of patient and order.

    Catalogues have digests from before that was part of them; one that has it stays as it is.
    """
    if "." in header:
        return header
    said = (
        comparable_name(_said(attributes, "PatientName")),
        _said(attributes, "PatientSex").upper(),
        _said(attributes, "AccessionNumber"),
        _said(attributes, "StudyDate").replace(".", ""),  # ACR-NEMA wrote 1993.08.22
    )
    return f"{header}.{hashlib.sha256(repr(said).encode()).hexdigest()}"


def _said(attributes: Attributes, keyword: str) -> str:
    value = attributes.get(keyword, "")
    values = [value] if isinstance(value, str | float | int) else value
    return "\\".join(str(each).strip(" ") for each in values)


def _canonical(element: Element, little: bool) -> object:
    """Return a value that is equal for equal content, whatever the VR and the byte order."""
    if element.items:
        return [_canonical_item(item, little) for item in element.items]
    values = values_of(element, (), little)
    if element.vr in ("US", "SS"):  # implicit VR does not say which of the two
        return [each % 65536 if isinstance(each, float) else each for each in values]
    if values or element.value is None:
        return values
    # Words of a lookup table, or something unknown: its bytes, in little endian order.
    vr = known_vr(element.tag) if element.vr == "UN" else element.vr
    raw = element.value.rstrip(b"\0 ") if vr != "OW" else b"".join(_words(element.value, 2, little))
    return hashlib.sha256(raw).hexdigest() if raw else []


def _canonical_item(item: Elements, little: bool) -> list[tuple[int, object]]:
    # Private elements lose their VR on the way through a PACS, group lengths come and go.
    return [
        (tag, _canonical(item[tag], little))
        for tag in sorted(item)
        if not tag >> 16 & 1 and tag & 0xFFFF
    ]


def _photometric_family(elements: Elements) -> str:
    said = _text(elements, _PHOTOMETRIC)
    return "COLOUR" if said == "RGB" or said.startswith("YBR_") else said


def _pixel_digest(part10: Part10) -> str | None:
    pixels = part10.pixels
    if pixels is None or pixels.native is None:
        return None
    allocated = _number(part10, 0x00280100)
    expected = _expected_bytes(part10, allocated)
    # What follows the last frame is padding, and differs from copy to copy.
    native = pixels.native[:expected] if 0 < expected <= pixels.length else pixels.native
    digest = hashlib.sha256()
    digest.update(f"{_text(part10.elements, _PHOTOMETRIC)} {_number(part10, _PLANAR)}".encode())
    word = _WORDS.get(allocated, 2 if pixels.vr == "OW" else 1)
    for piece in _words(native, word, part10.little_endian):
        digest.update(piece)
    return digest.hexdigest()


def _words(raw: memoryview | bytes, size: int, little: bool) -> Iterator[memoryview | bytes]:
    """Yield bytes in pieces, each word turned to little endian order."""
    for start in range(0, len(raw), _CHUNK):
        piece = raw[start : start + _CHUNK]
        if little or size == 1:
            yield piece
            continue
        whole = len(piece) // size * size
        turned = bytearray(whole)
        for byte in range(size):
            turned[byte::size] = piece[size - 1 - byte : whole : size]
        yield bytes(turned) + bytes(piece[whole:])


def _expected_bytes(part10: Part10, allocated: int) -> int:
    bits = allocated * (_number(part10, 0x00280008) or 1)
    for tag in (0x00280002, 0x00280010, 0x00280011):
        bits *= _number(part10, tag)
    return (bits + 7) // 8


def _number(part10: Part10, tag: int) -> int:
    element = part10.elements.get(tag)
    values = values_of(element, (), part10.little_endian) if element is not None else []
    return int(values[0]) if values and isinstance(values[0], float) else 0


def _text(elements: Elements, tag: int) -> str:
    element = elements.get(tag)
    raw = (element.value if element is not None else None) or b""
    return raw.decode("ascii", "replace").strip(" \0")
