"""Text in the character sets of DICOM (PS3.5 6.1, PS3.3 C.12.1.1.2), read strictly, never guessed.

pydicom reads leniently: it falls back to Latin-1 or to replacement characters, leaves the escape
sequences of ISO-IR 58 in names, and on the way out puts `?` for what does not fit. What goes into
a result is read here instead: bytes that the declared set does not explain are an error, and a
set is chosen for a result only after every text has made the round trip through it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Final, Literal

from pydicom.charset import convert_encodings, encode_string
from pydicom.valuerep import PersonName

from dicomai.errors import ConfigError, InputError

Terms = tuple[str, ...]
"""The values of Specific Character Set; empty: none declared."""

UTF8: Final[Terms] = ("ISO_IR 192",)
TEXT_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_ALONE: Final = MappingProxyType({"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"})

_Width = Literal[1, 2]


class UnreadableText(InputError):
    """Bytes that the declared character set does not explain."""


class UndeclaredText(ConfigError):
    """Bytes above 127 where no character set is declared and none is configured."""


# By registration number: escape sequences that designate it, the Python codec, bytes a character.
_HIGH: Final = MappingProxyType(
    {
        "13": (b")I", "shift_jis", 1),
        "58": (b"$)A", "gb2312", 2),
        "100": (b"-A", "iso8859_1", 1),
        "101": (b"-B", "iso8859_2", 1),
        "109": (b"-C", "iso8859_3", 1),
        "110": (b"-D", "iso8859_4", 1),
        "126": (b"-F", "iso8859_7", 1),
        "127": (b"-G", "iso8859_6", 1),
        "138": (b"-H", "iso8859_8", 1),
        "144": (b"-L", "iso8859_5", 1),
        "148": (b"-M", "iso8859_9", 1),
        "149": (b"$)C", "euc_kr", 2),
        "166": (b"-T", "iso8859_11", 1),
        "203": (b"-b", "iso8859_15", 1),
    }
)
_LOW: Final = MappingProxyType(
    {"6": (b"(B", 1), "13": (b"(J", 1), "87": (b"$B", 2), "159": (b"$(D", 2)}
)
_ESCAPE: Final = re.compile(rb"\x1b([\x20-\x2f]+[\x30-\x7e]|\$[\x40-\x7e])")
_RESETS: Final = frozenset(b"\t\n\f\r")


def known_terms() -> Terms:
    """Return the values of Specific Character Set in which text is read and written."""
    alone = (term for term in _ALONE if term.startswith("ISO"))
    single = (f"ISO_IR {number}" for number, (*_, width) in _HIGH.items() if width == 1)
    extended = (f"ISO 2022 IR {number}" for number in (*_LOW, *_HIGH))
    others = (term for term in _ALONE if not term.startswith("ISO"))
    return tuple(dict.fromkeys((*single, *alone, *others, *extended)))


def terms_of(declared: str | Sequence[str] | None) -> Terms:
    """Return the terms of Specific Character Set as the standard spells them.

    Padding goes, and so do the usual misspellings (`ISO-IR 100`, `ISO_2022_IR_87`): what they
    mean is not in doubt. A term that the standard does not know stays as it is.
    """
    if not declared:
        return ()
    values = [declared] if isinstance(declared, str) else list(declared)
    spelt = []
    for value in values:
        term = value.strip()
        if known := re.fullmatch(r"ISO[-_ ]IR[-_ ]?(\d+)", term, re.IGNORECASE):
            term = f"ISO_IR {known[1]}"
        elif known := re.fullmatch(r"ISO[-_ ]2022[-_ ]IR[-_ ]?(\d+)", term, re.IGNORECASE):
            term = f"ISO 2022 IR {known[1]}"
        spelt.append(term)
    if spelt[0] in _ALONE:  # these take no extension, whatever stands beside them
        return (spelt[0],)
    return tuple(spelt) if any(spelt) else ()


def decode(raw: bytes, terms: Terms, vr: str) -> str:
    """Return a text, decoded strictly.

    Parameters
    ----------
    raw
        The value as it stands in the file, several values between backslashes.
    terms
        The declared set, from `terms_of`.
    vr
        Its value representation, which says what resets a code extension (PS3.5 6.1.2.5.3).

    Raises
    ------
    UnicodeError
        Some byte has no meaning in the declared set.
    """
    if terms and terms[0] in _ALONE:
        text = raw.decode(_ALONE[terms[0]])
        if "\x1b" in text:
            raise UnicodeError(f"an escape sequence in {terms[0]}")
        return text
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    return _Iso2022(terms, vr).decode(raw)


class _Iso2022:
    """A decoder of ISO 2022 as DICOM uses it: G0 in the lower half, G1 in the upper."""

    def __init__(self, terms: Terms, vr: str) -> None:
        numbers = [_registration(term) for term in terms or ("",)]
        self._extended = len(terms) > 1 or any(term.startswith("ISO 2022") for term in terms)
        self._declared = {*numbers, "6"}
        self._first = numbers[0]
        self._resets = _RESETS
        if vr == "PN":
            self._resets |= frozenset(b"^=\\")
        elif vr in {"LO", "SH", "UC"}:
            self._resets |= frozenset(b"\\")
        self._reset()

    def _reset(self) -> None:
        self._low = "13" if self._first == "13" else "6"
        self._high = self._first if self._first in _HIGH else ""

    def decode(self, raw: bytes) -> str:
        text: list[str] = []
        at = 0
        while at < len(raw):
            byte = raw[at]
            if byte == 0x1B:
                at = self._designate(raw, at)
            elif byte >= 0x80:
                width: _Width = _HIGH[self._high][2] if self._high else 1  # type: ignore[assignment]  # the table holds 1 and 2 only
                text.append(self._high_character(raw[at : at + width], width))
                at += width
            elif _LOW[self._low][1] == 2 and byte > 0x20:
                text.append(self._low_character(raw[at : at + 2]))
                at += 2
            else:
                if byte in self._resets:
                    self._reset()
                text.append(chr(byte))
                at += 1
        return "".join(text)

    def _designate(self, raw: bytes, at: int) -> int:
        found = _ESCAPE.match(raw, at)
        if not self._extended or found is None:
            raise UnicodeError("an escape sequence that is not declared, or cut")
        for number, (sequence, _width) in _LOW.items():
            if found[1] == sequence and number in self._declared:
                self._low = number
                return found.end()
        for number, (sequence, _codec, _width) in _HIGH.items():
            if found[1] == sequence and number in self._declared:
                self._high = number
                return found.end()
        raise UnicodeError(f"escape sequence {found[1]!r} of a set that is not declared")

    def _high_character(self, piece: bytes, width: _Width) -> str:
        if not self._high or len(piece) != width or (width == 2 and piece[1] < 0xA1):
            raise UnicodeError(f"bytes {piece.hex()} have no meaning in the declared set")
        return piece.decode(_HIGH[self._high][1])

    def _low_character(self, piece: bytes) -> str:
        if len(piece) != 2 or not all(0x21 <= byte <= 0x7E for byte in piece):
            raise UnicodeError(f"bytes {piece.hex()} are no character of two bytes")
        raised = bytes(byte | 0x80 for byte in piece)
        return (b"\x8f" + raised if self._low == "159" else raised).decode("euc_jp")


def _registration(term: str) -> str:
    if term == "":
        return "6"
    number = term.rpartition(" ")[2]
    if number not in _LOW and number not in _HIGH:
        raise UnicodeError(f"character set {term!a} is unknown")
    return number


def fits(text: str, terms: Terms, vr: str) -> bool:
    """Tell whether a text comes back unchanged from the bytes that pydicom writes for it."""
    if text.isascii() and "\x1b" not in text:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns and puts `?`; the comparison sees that
            encodings = convert_encodings(list(terms))
            raw = (
                PersonName(text).encode(encodings) if vr == "PN" else encode_string(text, encodings)
            )
        back = decode(bytes(raw), terms, vr)
        return back == (text.rstrip("=") if vr == "PN" else text)
    except (UnicodeError, LookupError, ValueError):
        return False


def chosen_for(source: Terms, texts: Iterable[tuple[str, str]]) -> Terms:
    """Return the character set of a result: the source's if all text fits, else UTF-8.

    Parameters
    ----------
    source
        What the source declares, or the default that its text was read with.
    texts
        (value representation, text) of all that the result will hold, our own words included.
    """
    texts = tuple(texts)
    if not all(_known(term) for term in source):
        source = ()
    return source if all(fits(text, source, vr) for vr, text in texts) else UTF8


def _known(term: str) -> bool:
    number = term.rpartition(" ")[2]
    spelt = term in {"", *_ALONE, f"ISO_IR {number}", f"ISO 2022 IR {number}"}
    return spelt and (term == "" or term in _ALONE or number in _LOW or number in _HIGH)
