"""Values of a data set that must be right before anything is computed from them."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final

from pydicom import DataElement, Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.errors import BytesLengthException
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from dicomai.errors import InputError

_NAMES: Final = frozenset({"SOPInstanceUID", "ReferencedFrameNumber"})
"""What a sentence about an object is begun with."""
_silent_here = threading.local()


@contextmanager
def values_checked_here() -> Iterator[None]:
    """Silence pydicom's warnings about values; whoever uses this checks the values himself."""
    if getattr(_silent_here, "by", None) == warnings.filters:  # some values of many, say
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
        before = getattr(_silent_here, "by", None)
        _silent_here.by = list(warnings.filters)
        try:
            yield
        finally:
            _silent_here.by = before


def name_of(dataset: Dataset) -> str:
    """Return how a sentence calls an object, or a frame of one: by its SOP Instance UID."""
    uid = "".join(c if c.isprintable() else "?" for c in text(dataset, "SOPInstanceUID"))
    uid = uid or "without SOP Instance UID"
    frame = text(dataset, "ReferencedFrameNumber")
    return f"Frame {frame} of object {uid}" if frame else f"Object {uid}"


def sop_class_name(dataset: Dataset) -> str:
    """Return what kind of object it is, in words."""
    uid = text(dataset, "SOPClassUID")
    return UID(uid).name if uid else "without SOP Class"


def text(dataset: Dataset, keyword: str) -> str:
    """Return a value as text without padding, several joined as DICOM does; "" if absent.

    Raises
    ------
    InputError
        It can't be read, as a number of half its bytes.
    """
    value = value_of(dataset, keyword)
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip("\0 ")
    try:
        return "\\".join(str(part).strip("\0 ") for part in value)
    except TypeError:
        return str(value)


def whole(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """Return a whole number; raises InputError if it is absent (without default) or none."""
    (value,) = numbers(dataset, keyword, 1, None if default is None else (float(default),))
    if value != int(value):
        raise _wrong(dataset, keyword, "is not a whole number")
    return int(value)


def numbers(
    dataset: Dataset, keyword: str, count: int, default: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """Return the finite numbers of an attribute.

    Parameters
    ----------
    dataset, keyword
        Whose.
    count
        How many there must be.
    default
        What an absent or empty attribute means; without it absence is an error.

    Raises
    ------
    InputError
        Absent, of another count, no number, not finite; names the object and the attribute.
    """
    value = value_of(dataset, keyword)
    if value is None or value == "":
        if default is not None:
            return default
        raise _wrong(dataset, keyword, "is missing")
    parts = [value] if isinstance(value, str | int | float) else list(value)
    if len(parts) != count:
        raise _wrong(dataset, keyword, f"has {len(parts)} values where {count} belong")
    try:
        out = tuple(float(part) for part in parts)
    except (ValueError, TypeError):
        raise _wrong(dataset, keyword, f"is {value!r}, which is no number") from None
    if not all(math.isfinite(part) for part in out):
        raise _wrong(dataset, keyword, f"is {value!r}, which is not finite")
    return out


def items_of(dataset: Dataset, keyword: str, whole: Dataset | None = None) -> Sequence[Dataset]:
    """Return the items of a sequence, none if absent; raises InputError for what is no sequence.

    `whole` is the object, for the sentence, where `dataset` is an item of it.
    """
    value = value_of(dataset, keyword, whole)
    if value is None or value in ("", b""):
        return ()
    if not isinstance(value, Items):
        raise _wrong(dataset if whole is None else whole, keyword, "is no sequence")
    return value


def value_of(
    dataset: Dataset, keyword: str, whole: Dataset | None = None
) -> Any:  # pydicom gives what it likes
    """Return a value, or None; of those that are read already there is nothing to warn of.

    `whole` as of `items_of`.

    Raises
    ------
    InputError
        It can't be read.
    """
    tag = _tag(keyword)
    if tag is None:
        return None
    element: object = dataset.get_item(tag)
    if element is None:
        return None
    if isinstance(element, DataElement):
        return element.value
    try:
        with values_checked_here(), suppress(AttributeError):  # a VR that nobody can tell
            return dataset[tag].value
    except OSError:  # as pydicom says of items that end amid a tag
        raise _wrong(dataset if whole is None else whole, keyword, "can't be read") from None
    except (ValueError, OverflowError, BytesLengthException) as error:
        if keyword not in _NAMES:
            raise _wrong(
                dataset if whole is None else whole, keyword, f"can't be read: {error}"
            ) from None
    return None


@cache
def _tag(keyword: str) -> BaseTag | None:
    tag = tag_for_keyword(keyword)
    return None if tag is None else Tag(tag)


def _wrong(dataset: Dataset, keyword: str, what: str) -> InputError:
    return InputError(
        f"{name_of(dataset)}: {keyword} {what}. Have the modality or the PACS mend it and send the "
        "object again.",
        subject=text(dataset, "SOPInstanceUID"),
    )
