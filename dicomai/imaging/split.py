"""Tells the volumes of a series apart: stacks, kinds of image, times, echoes, b-values.

A series of several volumes repeats its positions. What parts it is the first attribute, in an order
from the most to the least telling, whose values each cover all positions; where positions still
repeat, the next one parts further. So an attribute that merely changes from slice to slice, as the
time of acquisition does, parts nothing.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Final, TypeAlias

import numpy as np
from pydicom import Dataset

from dicomai.imaging.attributes import text, value_of, values_checked_here
from dicomai.imaging.frame import Frame
from dicomai.imaging.stack import POSITION_TOLERANCE_MM

Value: TypeAlias = tuple[float | str, ...]
"""Of an attribute: numbers sort as numbers; empty where it is absent."""

_TEXT: Final = ""
_B_VALUES: Final = {
    (0x0019, 0x100C): _TEXT,  # Siemens
    (0x0043, 0x1039): _TEXT,  # GE
    (0x2001, 0x1003): "<f",  # Philips
    (0x0065, 0x1009): "<d",  # UIH
}
"""Where the diffusion b-value stands, or its first number is it; and how its bytes are packed."""
_SIEMENS_DIRECTION: Final = (0x0019, 0x100E)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """The frames of one volume, and what tells it from the others of its series.

    `label` is words for people, as "b-value 1000, time 2"; empty where the series is one volume.
    """

    frames: tuple[Frame, ...]
    label: str = ""

    @property
    def words(self) -> frozenset[str]:
        """What may name it: its label between commas, and all that its frames have in common."""
        common = {
            f"{mark.name} {_said(value)}"
            for mark in _MARKS
            for value in _only({mark.of(frame) for frame in self.frames})
        }
        return frozenset(common | words_of(self.label))


@dataclass(frozen=True, slots=True)
class _Mark:
    """Something that may tell volumes apart."""

    name: str
    of: Callable[[Frame], Value]


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """A frame with the number of its place: equal where frames lie at one position."""

    frame: Frame
    place: int


def words_of(label: str) -> set[str]:
    """Return what stands between the commas of a label."""
    return {word.strip() for word in label.split(",")}


def split(frames: Sequence[Frame]) -> tuple[Part, ...]:
    """Return the volumes of a series, in the order of what tells them apart.

    Where nothing tells them apart there is one part, whose positions repeat.
    """
    out: list[Part] = []
    stacks = _by(_STACK, _placed(frames))
    for stack_id, members in stacks:
        out += _split(members, f"stack {_said(stack_id)}" if len(stacks) > 1 else "", _MARKS)
    return tuple(out)


def _split(placed: Sequence[_Placed], label: str, marks: Sequence[_Mark]) -> list[Part]:
    places = Counter(each.place for each in placed)
    if max(places.values()) == 1 or len(places) == 1:
        return [_part(placed, label)]
    for at, mark in enumerate(marks):
        parts = _by(mark, placed)
        if len(parts) < 2 or any({each.place for each in part} != set(places) for _, part in parts):
            continue
        out: list[Part] = []
        for value, part in parts:
            told = f"{mark.name} {_said(value)}"
            out += _split(part, f"{label}, {told}" if label else told, marks[at + 1 :])
        return out
    return _by_turns(placed, label, places)


def _by_turns(placed: Sequence[_Placed], label: str, places: Counter[int]) -> list[Part]:
    """Part by Instance Number: each run through all positions is a volume, where it is one.

    A slice without a number of its own would stand in any run.
    """
    numbered = {
        number: each
        for each in placed
        if (number := _numbers(each.frame.header, "InstanceNumber"))
        and not isinstance(number[0], str)
    }
    ordered = [numbered[number] for number in sorted(numbered)]
    size = len(places)
    runs = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    if len(ordered) != len(placed) or any(len({e.place for e in run}) != size for run in runs):
        return [_part(placed, label)]
    prefix = f"{label}, " if label else ""
    return [_part(run, f"{prefix}turn {number}") for number, run in enumerate(runs, start=1)]


def _part(placed: Sequence[_Placed], label: str) -> Part:
    return Part(frames=tuple(each.frame for each in placed), label=label)


def _placed(frames: Sequence[Frame]) -> list[_Placed]:
    known = np.empty((0, 3))
    out = []
    for frame in frames:
        position = frame.place.position
        near = np.flatnonzero(np.linalg.norm(known - position, axis=1) < 2 * POSITION_TOLERANCE_MM)
        if near.size:
            out.append(_Placed(frame, int(near[0])))
        else:
            out.append(_Placed(frame, len(known)))
            known = np.concatenate((known, position[None]))
    return out


def _by(mark: _Mark, placed: Sequence[_Placed]) -> list[tuple[Value, list[_Placed]]]:
    """Return frames by the value of a mark, sorted by it."""
    found: dict[Value, list[_Placed]] = {}
    for each in placed:
        found.setdefault(mark.of(each.frame), []).append(each)
    # Numbers before words, so that a mixture sorts too.
    return sorted(
        found.items(), key=lambda item: [(isinstance(part, str), part) for part in item[0]]
    )


def _only(values: set[Value]) -> set[Value]:
    """Return the one value that is stated; nothing where there are several, or none."""
    return values - {()} if len(values) == 1 else set()


def _said(value: Value) -> str:
    return (
        "\\".join(part if isinstance(part, str) else f"{part:g}" for part in value) or "not stated"
    )


def _numbers(header: Dataset, keyword: str) -> Value:
    """Return the numbers of an attribute; a word where it holds none."""
    value = value_of(header, keyword)
    if value is None or value == "":
        return ()
    parts = [value] if isinstance(value, str | int | float) else value
    try:
        return tuple(round(float(part), 6) for part in parts)
    except (TypeError, ValueError):
        return (text(header, keyword),)


def _first(*keywords: str) -> Callable[[Frame], Value]:
    """Return a mark's value by the first of some attributes that is there."""

    def of(frame: Frame) -> Value:
        for keyword in keywords:
            if value := _numbers(frame.header, keyword):
                return value
        return ()

    return of


def _words(keyword: str) -> Callable[[Frame], Value]:
    return lambda frame: tuple(part for part in text(frame.header, keyword).split("\\") if part)


def _b_value(frame: Frame) -> Value:
    """Return the diffusion b-value, s/mm²; before it had an attribute, it was private."""
    if value := _numbers(frame.header, "DiffusionBValue"):
        return value
    for tag, packed in _B_VALUES.items():
        for first in _private(frame.header, tag, packed)[:1]:
            with suppress(TypeError, ValueError):
                number = float(first)
                if number >= 0 and isfinite(number):
                    return (round(number % 1e9, 6),)  # GE adds that, to say "one of several"
    return ()


def _direction(frame: Frame) -> Value:
    if value := _numbers(frame.header, "DiffusionGradientOrientation"):
        return value
    try:
        return tuple(round(float(part), 6) for part in _private(frame.header, _SIEMENS_DIRECTION))
    except ValueError:
        return ()


def _private(header: Dataset, tag: tuple[int, int], packed: str = _TEXT) -> list[str | float]:
    """Return the values of a private attribute.

    Its VR may be UN where the file is implicit; its bytes are text then, or a number as `packed`.
    """
    if tag not in header:
        return []
    with values_checked_here():
        value = header[tag].value
    if isinstance(value, bytes) and packed:
        return list(struct.unpack(packed, value)) if len(value) == struct.calcsize(packed) else []
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").strip("\0 ").split("\\")
    return [value] if isinstance(value, str | int | float) else list(value or ())


echo_time: Final = _first("EffectiveEchoTime", "EchoTime")
"""Of a frame, in ms."""
_STACK: Final = _Mark("stack", _words("StackID"))
_MARKS: Final = (
    _Mark("kind", _words("ImageType")),
    _Mark("component", _words("ComplexImageComponent")),
    _Mark("time", _first("TemporalPositionIndex", "TemporalPositionIdentifier")),
    _Mark("echo time", _first("EffectiveEchoTime", "EchoTime", "EchoNumbers")),
    _Mark("b-value", _b_value),
    _Mark("direction", _direction),
    _Mark(
        "heart phase",
        _first("NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime", "TriggerTime"),
    ),
    _Mark("acquisition", _first("FrameAcquisitionNumber", "AcquisitionNumber")),
    _Mark("frame time", _first("TemporalPositionTimeOffset", "FrameReferenceTime")),
    _Mark("acquisition time", _first("AcquisitionTime")),
    _Mark("dimension", lambda frame: frame.other_dimensions),
)
