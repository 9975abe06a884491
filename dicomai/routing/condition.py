"""Conditions of routes and models: text in, data out; never evaluated as code.

`Modality = CT`, `BodyPartExamined in CHEST, THORAX`, `SliceThickness <= 3`, `PatientAge >= 18`,
`StudyDate >= 20260101`, `SeriesDescription ~ (?i)chest`, `ImageType contains AXIAL`,
`ContrastBolusAgent present`, `ContrastBolusAgent absent`, `Modality != MR`, `instances >= 20`,
`calling_node = CT1`.

Text is compared without regard to case. `=` and `in` compare the whole value (several values with
a backslash between them); `contains` looks for one of several values, or for a part of a single
one; `~` searches in each value. A comparison of numbers must hold for each value.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, get_args

from pydicom.datadict import (
    dictionary_VM,
    dictionary_VR,
    keyword_dict,
    tag_for_keyword,
)

from dicomai.dicom.header import Attributes
from dicomai.errors import ConfigError

Operator = Literal["=", "!=", "<=", ">=", "<", ">", "~", "in", "contains", "present", "absent"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)

INSTANCES: Final = "instances"
CALLING_NODE: Final = "calling_node"

MAX_SEARCHED: Final = 256
"""Characters of a value that a regular expression looks at."""
MAX_PATTERN: Final = 200

_NUMBERS: Final = frozenset(
    {"DS", "IS", "FL", "FD", "SL", "SS", "SV", "UL", "US", "UV", "US or SS"}
)
_ORDERED: Final[Mapping[str, Callable[[float, float], bool]]] = MappingProxyType(
    {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
)
_SHAPE: Final = re.compile(
    r"\s*(?P<subject>\w+)"
    r"(?:\s*(?P<sign>!=|<=|>=|=|<|>|~)\s*|\s+(?P<word>in|contains|present|absent)\b\s*)"
    r"(?P<value>.*?)\s*",
    re.ASCII | re.DOTALL,
)
# As other languages write them; after "=" or "~" it would be looked for as part of the value.
_NOT_OURS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "==": "=",
        "=>": ">=",
        "=<": "<=",
        "=~": "~",
        "~=": "~",
        "=!": "!=",
        "<>": "!=",
        "!==": "!=",
    }
)
_SIGNS: Final = re.compile(
    r"\s*(?P<subject>\w+)\s*(?P<signs>[=!<>~]+)\s*(?P<value>.*)", re.ASCII | re.DOTALL
)
_QUOTED: Final = re.compile(r"""["'“”„‘’](?P<bare>.*)["'“”„‘’]""", re.DOTALL)
_LISTED: Final = re.compile(r"\[[^][]*\]|\([^()]*\)")
# None of these stands in a code string (PS3.5 6.2), though makers write others that may not either.
_IN_NO_CODE: Final = re.compile(r"""^[\[({]|["'“”„‘’=<>~,;|]""")
_AGE: Final = re.compile(r"(\d{1,3})([DWMY]?)", re.ASCII)
_DAYS: Final = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What conditions are about: one image, the size of its series, and who sent it."""

    attributes: Attributes
    instances: int
    calling_node: str


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition.

    Attributes
    ----------
    subject
        A DICOM keyword, `instances` or `calling_node`.
    values
        What it is compared with, as written; empty for "present" and "absent".
    pattern
        The compiled regular expression of "~".
    """

    subject: str
    operator: Operator
    values: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.subject} {self.operator} {', '.join(self.values)}".rstrip()


def parse(text: str) -> Condition:
    """Return the condition that a text of the configuration says.

    Raises
    ------
    ConfigError
        It has no known form, no known keyword, or a value that the keyword can't have; the
        sentence suggests the nearest keyword.
    """
    match = _SHAPE.fullmatch(text)
    signs = _SIGNS.fullmatch(text)
    if signs is not None and (ours := _NOT_OURS.get(signs["signs"])) is not None:
        said = f"{signs['subject']} {ours} {signs['value']}".strip()
        raise ConfigError(
            f'"{text}": {signs["signs"]} is no operator. Write "{said}".',
            subject=text,
        )
    if match is None:
        raise ConfigError(
            f'"{text}" is no condition: write KEYWORD, one of {" ".join(OPERATORS)}, and a value.',
            subject=text,
        )
    subject, value = match["subject"], match["value"]
    sign = next(each for each in OPERATORS if each == (match["sign"] or match["word"]))
    check_subject(subject)
    if sign in ("present", "absent"):
        if value:
            raise ConfigError(f'"{text}": nothing may follow "{sign}".', subject=text)
        values: tuple[str, ...] = ()
    else:
        values = tuple(part.strip() for part in value.split(",")) if sign == "in" else (value,)
        if not all(values):
            raise ConfigError(f'"{text}" has no value after "{sign}".', subject=text)
    _check_values(text, subject, sign, values)
    pattern = _compiled(values[0]) if sign == "~" else None
    return Condition(subject, sign, values, pattern)


def check_subject(subject: str) -> None:
    """Raise a ConfigError unless a condition or an order can be about it."""
    if subject in (INSTANCES, CALLING_NODE) or tag_for_keyword(subject) is not None:
        return
    near = difflib.get_close_matches(subject, [INSTANCES, CALLING_NODE, *keyword_dict], 1, 0.7)
    hint = f'; "{near[0]}"?' if near else "."
    raise ConfigError(f'"{subject}" is no DICOM keyword{hint} See PS3.6.', subject=subject)


def holds(condition: Condition, seen: Seen) -> bool:
    """Tell whether an image fulfils it; an absent attribute only fulfils "absent" and "!="."""
    if condition.subject == INSTANCES:
        return _compare(condition, [float(seen.instances)], "IS")
    if condition.subject == CALLING_NODE:
        return _compare(condition, [seen.calling_node], "LO")
    values = values_of(seen.attributes, condition.subject)
    return _compare(condition, values, vr_of(condition.subject))


def values_of(attributes: Attributes, keyword: str) -> list[str | float]:
    """Return the values of an attribute, none where it is absent or empty."""
    value = attributes.get(keyword)
    if value is None or value == "":
        return []
    if isinstance(value, str | float | int):
        return [value]
    return [each for each in value if each != ""]


def number(value: str | float, vr: str) -> float | None:
    """Return a value as a number that can be ordered: ages in days, dates as YYYYMMDD."""
    if not isinstance(value, str):
        return float(value)
    if vr == "AS":
        age = _AGE.fullmatch(value.strip())
        return float(age[1]) * _DAYS[age[2] or "Y"] if age else None
    if vr == "DA":
        digits = value.strip().replace("-", "").replace(".", "")
        return float(digits) if len(digits) == 8 and digits.isascii() and digits.isdigit() else None
    try:
        return float(value)
    except ValueError:
        return None


def _compare(condition: Condition, values: list[str | float], vr: str) -> bool:
    sign = condition.operator
    if sign == "present" or sign == "absent":
        return bool(values) == (sign == "present")
    if sign == "!=":
        return not _equal(values, condition.values, vr)
    if not values:
        return False
    if sign == "=" or sign == "in":
        return _equal(values, condition.values, vr)
    if sign == "contains":
        return _contains(values, condition.values[0], condition.subject, vr)
    if sign == "~":
        assert condition.pattern is not None
        return any(condition.pattern.search(_text(each)[:MAX_SEARCHED]) for each in values)
    bound = number(condition.values[0], vr)
    numbers = [number(each, vr) for each in values]
    return bound is not None and all(
        each is not None and _ORDERED[sign](each, bound) for each in numbers
    )


def _equal(values: list[str | float], wanted: tuple[str, ...], vr: str) -> bool:
    return any(_same(values, each.split("\\"), vr) for each in wanted)


def _same(values: Sequence[str | float], wanted: Sequence[str], vr: str) -> bool:
    if len(values) != len(wanted):
        return False
    for value, other in zip(values, wanted, strict=True):
        if vr in _NUMBERS or vr in ("AS", "DA"):
            left, right = number(value, vr), number(other, vr)
            if left is None or left != right:
                return False
        elif _text(value).casefold() != other.strip().casefold():
            return False
    return True


def _contains(values: list[str | float], wanted: str, subject: str, vr: str) -> bool:
    tag = tag_for_keyword(subject)
    if tag is not None and dictionary_VM(tag) != "1":
        return any(_same([each], [wanted], vr) for each in values)
    return any(wanted.casefold() in _text(each).casefold() for each in values)


def _text(value: str | float) -> str:
    return value.strip() if isinstance(value, str) else f"{value:.12g}"


def vr_of(keyword: str) -> str:
    """Return the value representation of a keyword; LO for what is none."""
    tag = tag_for_keyword(keyword)
    return "LO" if tag is None else dictionary_VR(tag)


def _check_values(text: str, subject: str, sign: Operator, values: tuple[str, ...]) -> None:
    if subject == INSTANCES:
        if sign not in ("=", "!=", "in", *_ORDERED) or not all(each.isdigit() for each in values):
            raise ConfigError(f'"{text}": instances is compared with a whole number.', subject=text)
        return
    if subject == CALLING_NODE:
        if sign not in ("=", "!=", "in"):
            raise ConfigError(f'"{text}": calling_node takes =, != or in.', subject=text)
        return
    vr = vr_of(subject)
    if sign != "~":
        _check_bare(text, subject, sign, values, vr)
    if vr == "SQ" and sign not in ("present", "absent"):
        raise ConfigError(
            f'"{text}": {subject} is a sequence: only present and absent can be asked of it.',
            subject=text,
        )
    ordered = vr in _NUMBERS or vr in ("AS", "DA")
    if sign in _ORDERED and not ordered:
        raise ConfigError(
            f'"{text}": {subject} (VR {vr}) is no number, age or date, so {sign} can\'t order it.',
            subject=text,
        )
    if not ordered or sign not in ("=", "!=", "in", *_ORDERED):
        return
    for part in (part for each in values for part in each.split("\\")):
        if number(part, vr) is None:
            kind = {"AS": "age, as 18 or 018Y", "DA": "date, as 20260131"}.get(vr, "number")
            raise ConfigError(f'"{text}": {part!r} is no {kind}.', subject=text)


def _check_bare(text: str, subject: str, sign: Operator, values: tuple[str, ...], vr: str) -> None:
    """Refuse quotes and brackets, as other languages want, and what is two conditions in one.

    They would be looked for as part of the value, and the condition would never hold.
    """
    if sign == "in" and _LISTED.fullmatch(", ".join(values)):
        bare = ", ".join(values)[1:-1].strip() or "A, B"
        raise ConfigError(f'"{text}": write "{subject} in {bare}", without brackets.', subject=text)
    for value in values:
        quoted = _QUOTED.fullmatch(value)
        if quoted and not quoted["bare"].strip():
            asked = "present" if sign == "!=" else "absent"
            raise ConfigError(
                f'"{text}": no value is empty. Write "{subject} {asked}".', subject=text
            )
        if quoted:
            raise ConfigError(
                f'"{text}": write {quoted["bare"]} without quotes: they would be part of the '
                "value.",
                subject=text,
            )
        if vr == "CS" and (odd := _IN_NO_CODE.search(value)):
            raise ConfigError(
                f'"{text}": {subject} is a code, and none may hold {odd[0]} as "{value}" does. '
                f'For one of several write "{subject} in A, B"; each further condition is an entry '
                "of its own. A device that writes it all the same is found with ~.",
                subject=text,
            )


def _compiled(pattern: str) -> re.Pattern[str]:
    if len(pattern) > MAX_PATTERN:
        raise ConfigError(
            f"A regular expression has at most {MAX_PATTERN} characters: {pattern[:40]}…",
            subject=pattern,
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f'"{pattern}" is no regular expression: {error}.', subject=pattern
        ) from error
    if _explodes(pattern):
        raise ConfigError(
            f'"{pattern}" repeats a group that itself repeats or branches: such an expression can '
            "take hours on one value. Write it without the outer repetition.",
            subject=pattern,
        )
    return compiled


def _explodes(pattern: str) -> bool:
    """Tell whether an unbounded repetition holds a group with a repetition or a branch.

    Python's engine backtracks: (a+)+ and (a|a)* take time exponential in the value's length.
    """
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)
    bare = re.sub(r"\(\?[aiLmsux-]+\)", "", bare)
    bare = re.sub(r"\(\?(?:[aiLmsux-]*:|[=!>]|<[=!]|P<\w+>)", "(", bare)
    bare = re.sub(r"\{\d+\}", "", bare)
    restless = [False]
    for position, character in enumerate(bare):
        if character == "(":
            restless.append(False)
        elif character == ")" and len(restless) > 1:
            inner = restless.pop()
            if inner and re.match(r"[*+]|\{\d*,\d*\}", bare[position + 1 :]):
                return True
            restless[-1] = restless[-1] or inner
        elif character in "*+?|{":
            restless[-1] = True
    return False
