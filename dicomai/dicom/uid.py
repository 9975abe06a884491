"""UIDs: their types, the one validator, and those that we derive (PS3.5 chapter 9, Annex B.2)."""

from __future__ import annotations

import re
import uuid
from typing import Final, NewType

from dicomai.errors import InputError

StudyInstanceUID = NewType("StudyInstanceUID", str)
SeriesInstanceUID = NewType("SeriesInstanceUID", str)
SOPInstanceUID = NewType("SOPInstanceUID", str)
SOPClassUID = NewType("SOPClassUID", str)
TransferSyntaxUID = NewType("TransferSyntaxUID", str)
FrameOfReferenceUID = NewType("FrameOfReferenceUID", str)

_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)
_LEADING_ZERO: Final = re.compile(r"(?:^|\.)0[0-9]")
MAX_LENGTH: Final = 64

# Root of the UIDs that name this implementation; a name-based UUID, so that it never changes.
_PROJECT: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://dicomai.org/")


def of_uuid(value: uuid.UUID) -> str:
    """Return the UID of a UUID, under the root 2.25 (PS3.5 B.2)."""
    return f"2.25.{value.int}"


IMPLEMENTATION_CLASS_UID: Final = of_uuid(uuid.uuid5(_PROJECT, "implementation"))
IMPLEMENTATION_VERSION_NAME: Final = "DICOMAI_0_1"


def validated(value: str, keyword: str) -> str:
    """Return a UID without its padding, fit to be part of a path.

    A number in it may begin with 0, as in 1.2.840.0123.5, which PS3.5 9.1 forbids: devices send
    such UIDs, and DCMTK and Orthanc take and keep them. UIDs are compared as texts everywhere, so
    1.02 is another one than 1.2.

    Parameters
    ----------
    value
        As it stood in the data set: padded with a NUL or, wrongly, with spaces.
    keyword
        Whose value it is, for the sentence.

    Raises
    ------
    InputError
        Empty, over 64 characters, or anything but numbers between dots (PS3.5 9.1).
    """
    uid = value.rstrip("\0 ")
    if not uid:
        raise InputError(f"{keyword} is missing or empty.", subject=keyword)
    if len(uid) > MAX_LENGTH:
        raise InputError(
            f"{keyword} has {len(uid)} characters, and a UID has at most {MAX_LENGTH}.",
            subject=keyword,
        )
    if not _UID.fullmatch(uid):
        raise InputError(
            f"{keyword} is no UID: {uid!a} has something other than numbers between dots.",
            subject=keyword,
        )
    return uid


def has_leading_zero(value: str) -> bool:
    """Tell whether a number of a UID begins with 0 and is not 0 (PS3.5 9.1)."""
    return _LEADING_ZERO.search(value) is not None


def derived(root: uuid.UUID, *parts: str | int) -> str:
    """Return the UID of a part of something that has a UUID: the same parts, the same UID.

    The UIDs of a job's results come from the job's UUID, so that an encoding that is repeated
    after a crash gives the same objects.
    """
    return of_uuid(uuid.uuid5(root, "/".join(str(part) for part in parts)))
