"""What dicom3tools' dciodvfy says of results, where it is installed: another's reading of PS3.3."""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pydicom

from dicomai.results.gate.classes import LABELMAP
from dicomai.results.gate.error import refuse

_ERROR: Final = re.compile(r"Error - (?:<(?P<path>[^>]*)> - )?(?P<said>.*)")
_TAG: Final = re.compile(r"\(([0-9a-f]{4}),([0-9a-f]{4})\)")
# Study, request and body part come from the images: a fault that they have is not the result's.
_CARRIED: Final = frozenset(
    {
        "0008,0020",
        "0008,0030",
        "0008,0050",
        "0008,0051",
        "0008,0090",
        "0008,1030",
        "0008,1032",
        "0018,0015",
        "0020,0010",
        "0020,0060",
        "0038,0010",
        "0040,0275",
        "0040,a370",
    }
)
# UIDs of study, frame of reference and images are theirs; the results' own are checked besides.
_LEADING_ZERO: Final = "Leading zeroes in embedded numeric component"
_TIME_S: Final = 120


def check_with_dciodvfy(
    objects: Sequence[bytes], program: str, time_s: float = _TIME_S
) -> tuple[str, ...]:
    """Return when dciodvfy finds no error that is the results' own.

    Label maps, and references to their segments, are left out: the one that Debian has does not
    know them.

    Parameters
    ----------
    objects
        The files as they would be sent, all results of an analysis.
    program
        Where dciodvfy lies.
    time_s
        How long it may take for an object: thousands of contours take it minutes.

    Returns
    -------
    tuple
        SOP Instance UIDs of the objects that it did not come to an end with.

    Raises
    ------
    GateError
        With its first error.
    """
    heads = [
        pydicom.dcmread(io.BytesIO(each), stop_before_pixels=True, specific_tags=["SOPClassUID"])
        for each in objects
    ]
    labels = any(head.SOPClassUID == LABELMAP for head in heads)
    unfinished = []
    with tempfile.TemporaryDirectory(prefix="dicomai-check-") as folder:
        for head, octets in zip(heads, objects, strict=True):
            if head.SOPClassUID == LABELMAP:
                continue
            uid = str(head.file_meta.MediaStorageSOPInstanceUID)
            path = Path(folder) / "result.dcm"
            path.write_bytes(octets)
            try:
                said = subprocess.run(
                    [program, "-new", path],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=time_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                unfinished.append(uid)
                continue
            for line in said.stderr.splitlines():
                if (error := _own(line, labels=labels)) is not None:
                    refuse("attributes", uid, f"dciodvfy says: {error}")
    return tuple(unfinished)


def _own(line: str, *, labels: bool) -> str | None:
    """Return an error that is the result's own; None where it is none, or the images'."""
    found = _ERROR.match(line)
    if found is None:
        return None
    tag = _TAG.search(found["path"] or "")
    if tag is not None and (tag[1] == "0010" or f"{tag[1]},{tag[2]}" in _CARRIED):
        return None
    if _LEADING_ZERO in found["said"]:
        return None
    if labels and "Referenced SOP Class that is not" in found["said"]:
        return None
    return line.removeprefix("Error - ")
