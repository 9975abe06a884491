"""The order of the checks: each object by itself, then all of them together."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset

from dicomai.findings import Findings
from dicomai.results.gate.error import GateError, refuse
from dicomai.results.gate.header import check_header
from dicomai.results.gate.report import check_report
from dicomai.results.gate.voxels import check_voxels

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
SR = "1.2.840.10008.5.1.4.1.1.88.34"


def check(
    objects: Sequence[bytes | Path],
    findings: Findings,
    source_headers: Sequence[Dataset],
    *,
    charset_default: str = "",
) -> None:
    """Return when the results of one analysis say what was found, about whom, and where.

    Parameters
    ----------
    objects
        The files as they would be sent, all results of the analysis.
    findings
        What was found.
    source_headers
        The data sets of the source images.
    charset_default
        What undeclared bytes above 127 in the sources are in.

    Raises
    ------
    GateError
        Names the object and the rule that it breaks.
    """
    read = [_read(each) for each in objects]
    by_class = {str(each.SOPClassUID): each for each in read}
    wanted = {SR, SEG} if _has_voxels(findings) else {SR}
    if set(by_class) != wanted or len(read) != len(wanted):
        refuse(
            "content",
            str(read[0].SOPInstanceUID) if read else "the set of results",
            f"the findings give {len(wanted)} objects of classes {sorted(wanted)}, and there are "
            f"{len(read)} of {sorted(by_class)}",
        )
    for each in read:
        with _strict_text(each):
            others = [other for other in read if other is not each]
            check_header(each, others, findings, source_headers, charset_default)
    numbers: dict[str, tuple[int, str]] = {}
    seg = by_class.get(SEG)
    if seg is not None:
        with _strict_text(seg):
            numbers = check_voxels(seg, findings, source_headers)
    with _strict_text(by_class[SR]):
        check_report(by_class[SR], seg, numbers, findings, source_headers)


def _has_voxels(findings: Findings) -> bool:
    return any(each.mask.any() for each in findings.segments) or any(
        each.mask is not None and each.mask.any() for each in findings.detections
    )


def _read(source: bytes | Path) -> FileDataset:
    name = str(source) if isinstance(source, Path) else "the object"
    raw = source.read_bytes() if isinstance(source, Path) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = pydicom.dcmread(io.BytesIO(raw))
            name = str(read.SOPInstanceUID)
            if read.file_meta.MediaStorageSOPInstanceUID != read.SOPInstanceUID:
                refuse("readable", name, "its file meta information names another instance")
            if read.file_meta.MediaStorageSOPClassUID != read.SOPClassUID:
                refuse("readable", name, "its file meta information names another class")
    except GateError:
        raise
    except Exception as trouble:  # noqa: BLE001  # whatever pydicom says, it can't be read
        refuse("readable", name, f"it can't be read ({trouble})")
    return read


@contextmanager
def _strict_text(read: Dataset) -> Iterator[None]:
    """Turn pydicom's warnings about characters into the rule of text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for words in (".*encod", ".*replacement", ".*character set", ".*escape", ".*Unknown"):
                warnings.filterwarnings("error", message=words, category=UserWarning)
            yield
    except (UserWarning, UnicodeError) as trouble:
        refuse("text", str(read.SOPInstanceUID), f"a character can't be read back ({trouble})")
