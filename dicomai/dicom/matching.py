"""Attribute matching as C-FIND has it (PS3.4 C.2.2.2): one value, lists, wild cards, ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from pydicom.datadict import dictionary_VR

Kind = Literal["universal", "values", "wild", "range"]

RANGES: Final = frozenset({"DA", "DT", "TM"})
# Where `*` and `?` are wild cards (PS3.4 C.2.2.2.4).
_WILD: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_ONE_VALUE: Final = frozenset({"LT", "ST", "UT", "UR"})
_DIGITS: Final = {"DA": 8, "TM": 12, "DT": 20}
_NOT_DIGITS: Final = re.compile(r"[.:]")
_STARS: Final = re.compile(r"\*+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What an attribute must be to match.

    Attributes
    ----------
    kind
        universal: anything; values: one of them; wild: a pattern of `*` and `?`, which `values`
        holds alone; range: between two of `values`, the ends included, an empty one being open.
    """

    keyword: str
    vr: str
    kind: Kind
    values: tuple[str, ...] = ()

    def matches(self, stored: Iterable[str]) -> bool:
        """Tell whether one of the values of an attribute matches."""
        if self.kind == "universal":
            return True
        return any(self._matches(form) for value in stored for form in forms(value, self.vr))

    def _matches(self, value: str) -> bool:
        if self.kind == "range":
            first, last = (span(each, self.vr) for each in self.values)
            return first[0] <= span(value, self.vr)[0] <= last[1] if value else False
        if self.kind == "wild":
            wild = self.values[0]
            if len(wild) - wild.count("*") > len(value):
                return False
            return _pattern(wild).fullmatch(value) is not None
        if self.vr in RANGES:
            return any(_within(value, each, self.vr) for each in self.values)
        return value in self.values


def key(keyword: str, value: str) -> Key:
    """Return the key that a value in a query is.

    Parameters
    ----------
    keyword
        Of an attribute that the dictionary knows.
    value
        As text; several values between backslashes.
    """
    vr = dictionary_VR(keyword)
    text = value.strip(" \0")
    parts = (text,) if vr in _ONE_VALUE else tuple(part.strip(" ") for part in text.split("\\"))
    if not any(parts) or (vr in _WILD and all(set(part) <= {"*"} for part in parts)):
        return Key(keyword=keyword, vr=vr, kind="universal")
    if vr in RANGES and len(parts) == 1 and (found := _range(text, vr)) is not None:
        return Key(keyword=keyword, vr=vr, kind="range", values=found)
    if vr == "PN":
        parts = tuple(folded(part) for part in parts)
    if vr in _WILD and len(parts) == 1 and ("*" in text or "?" in text):
        return Key(keyword=keyword, vr=vr, kind="wild", values=(_STARS.sub("*", parts[0]),))
    return Key(keyword=keyword, vr=vr, kind="values", values=tuple(part for part in parts if part))


def forms(value: str, vr: str) -> tuple[str, ...]:
    """Return the forms in which a stored value may match: of a name the whole and each script."""
    if vr != "PN":
        return (value.strip(" "),)
    whole = folded(value)
    return tuple(dict.fromkeys((whole, *(part.strip(" ^") for part in whole.split("=") if part))))


def folded(name: str) -> str:
    """Return a name without regard to case, and without empty components at its end."""
    return "=".join(part.rstrip(" ^") for part in name.casefold().split("=")).rstrip("=")


def span(value: str, vr: str) -> tuple[str, str]:
    """Return the first and the last moment that a date or time may mean, fit to be compared.

    An empty one is open: it means all of time.
    """
    digits = _NOT_DIGITS.sub("", value.strip(" "))
    width = _DIGITS[vr]
    return digits.ljust(width, "0"), digits.ljust(width, "9")


def _within(value: str, wanted: str, vr: str) -> bool:
    first, last = span(wanted, vr)
    return bool(value) and first <= span(value, vr)[0] <= last


def _range(text: str, vr: str) -> tuple[str, str] | None:
    # An offset from UTC has a sign too, and four digits after it (PS3.5 6.2, VR DT).
    if vr == "DT":
        found = re.fullmatch(r"(\d*\.?\d*)(?:[+-]\d{4})?-(\d*\.?\d*)(?:[+-]\d{4})?", text)
        alone = re.fullmatch(r"\d{4,14}(?:\.\d+)?-\d{4}", text)
        return (found[1], found[2]) if found and not (alone and len(text) > 13) else None
    first, between, last = text.partition("-")
    return (first.strip(" "), last.strip(" ")) if between else None


@lru_cache(maxsize=64)  # a query asks it of each value of the catalogue
def _pattern(wild: str) -> re.Pattern[str]:
    """Return a pattern that takes no longer for each `*` that a peer writes.

    Each text between two of them is sought once, as early as it comes (an atomic group): if what
    follows does not match from there on, it does not from anywhere later.
    """
    first, *rest = ("".join("." if c == "?" else re.escape(c) for c in p) for p in wild.split("*"))
    if not rest:
        return re.compile(first, re.DOTALL)
    between = "".join(f"(?>.*?{each})" for each in rest[:-1] if each)
    return re.compile(f"{first}{between}.*{rest[-1]}", re.DOTALL)
