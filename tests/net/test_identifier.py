"""What a query's keys say: read as they are meant, or refused; never passed over."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from pydicom.datadict import tag_for_keyword

from dicomai.errors import InputError
from dicomai.net.decoding import decoded
from dicomai.net.identifier import Asked, read

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0)


def element(keyword: str, value: bytes, vr: bytes = b"", order: str = "<") -> bytes:
    """Bytes of an element, with its VR where there is one."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    value += b" " * (len(value) % 2)
    if not vr:
        return head + struct.pack(f"{order}L", len(value)) + value
    return head + vr + struct.pack(f"{order}H", len(value)) + value


def asked(*elements: bytes, syntax: str = IMPLICIT, charset_default: str = "") -> Asked:
    return read(decoded(BytesIO(b"".join(elements)), syntax), "study", charset_default)


@pytest.mark.filterwarnings("ignore:Unknown encoding")
@pytest.mark.parametrize(
    ("charset", "keyword", "raw", "words"),
    [
        (b"", "PatientName", b"M\xfcller", "in ASCII: it declares no other."),
        (b"ISO_IR 192", "PatientName", b"M\xfcller", "in character set ISO_IR 192."),
        (b"ISO_IR 999", "PatientName", b"M\xfcller", "in character set ISO_IR 999."),
        (b"ISO_IR 100", "PatientName", b"M\x1b$Bx", "in character set ISO_IR 100."),
        (b"ISO_IR 100", "PatientBirthDate", b"1960\xdc", "in character set ISO_IR 100."),
        (b"", "PatientID", b"P\xdc1", "in ASCII: it declares no other."),
    ],
)
def test_text_that_its_character_set_does_not_explain_is_refused(
    charset: bytes, keyword: str, raw: bytes, words: str
) -> None:
    with pytest.raises(InputError) as refused:
        asked(
            element("SpecificCharacterSet", charset),
            element("QueryRetrieveLevel", b"STUDY"),
            element(keyword, raw),
        )
    assert refused.value.sentence == f"{keyword} can't be read {words}"


def test_what_is_undeclared_is_read_in_the_character_set_of_the_node() -> None:
    found = asked(
        element("QueryRetrieveLevel", b"STUDY"),
        element("PatientName", b"M\xfcller"),
        charset_default="ISO_IR 100",
    )
    assert found.keys == {"PatientName": "Müller"}
    assert not found.strange


def test_a_text_that_came_as_a_sequence_is_refused() -> None:
    patient_id = struct.pack("<HH2sHL", 0x0010, 0x0020, b"SQ", 0, 0xFFFFFFFF)
    ends = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    with pytest.raises(InputError, match="PatientID can't be read: it came as a sequence"):
        asked(
            element("QueryRetrieveLevel", b"STUDY", b"CS"),
            patient_id + ITEM + ends,
            syntax=EXPLICIT,
        )


def test_sequences_private_keys_and_tags_are_passed_over_and_said() -> None:
    level = element("QueryRetrieveLevel", b"STUDY")
    private = struct.pack("<HHL", 0x0009, 0x1001, 2) + b"\xff\xff"
    pointer = element("FrameIncrementPointer", b"\x18\x00\xff\x10")
    for strange in (element("RequestAttributesSequence", ITEM), private, pointer):
        found = asked(level, strange)
        assert (found.keys, found.strange) == ({}, True)


@pytest.mark.parametrize(
    ("keyword", "vr", "raw", "text"),
    [
        ("Rows", b"US", struct.pack("<H", 512), "512"),
        ("Rows", b"US", struct.pack("<2H", 255, 256), "255\\256"),
        ("Rows", b"US", b"", ""),
        ("LargestImagePixelValue", b"US", struct.pack("<H", 4095), "4095"),
        ("TubeAngle", b"FD", struct.pack("<d", 0.1), "0.1"),
    ],
)
def test_numbers_are_read_as_numbers(keyword: str, vr: bytes, raw: bytes, text: str) -> None:
    for syntax, of_level, of_key in ((IMPLICIT, b"", b""), (EXPLICIT, b"CS", vr)):
        found = asked(
            element("QueryRetrieveLevel", b"STUDY", of_level),
            element(keyword, raw, of_key),
            syntax=syntax,
        )
        assert (found.keys, found.strange) == ({keyword: text}, False)


def test_numbers_that_are_cut_are_refused() -> None:
    with pytest.raises(InputError, match="TubeAngle can't be read: 4 bytes are no FD"):
        asked(element("QueryRetrieveLevel", b"STUDY"), element("TubeAngle", bytes(4)))


def test_numbers_are_read_in_the_order_of_their_bytes() -> None:
    found = asked(
        element("QueryRetrieveLevel", b"STUDY", b"CS", ">"),
        element("Rows", struct.pack(">H", 512), b"US", ">"),
        syntax=BIG_ENDIAN,
    )
    assert found.keys == {"Rows": "512"}
