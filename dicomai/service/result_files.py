"""The files of results in a folder: their names, whole or not there, those that were refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydicom import Dataset

from dicomai.errors import DicomaiError
from dicomai.findings import Findings
from dicomai.results import gate
from dicomai.results.encode import written
from dicomai.results.objects import KINDS, kind_of
from dicomai.results.overlay import PICTURE_NAME
from dicomai.results.uids import Kind

REFUSED: Final = "refused"
"""The folder, beside where results would lie, of objects that broke a rule of the gate."""

_UNFINISHED: Final = "."
"""Stands before the name of a file until all of its result are written; such are no input."""


def put(files: Mapping[str, bytes], place: Path) -> tuple[Path, ...]:
    """Write files that belong together: none has its name before all are written."""
    place.mkdir(parents=True, exist_ok=True)
    for name, octets in files.items():
        (place / f"{_UNFINISHED}{name}").write_bytes(octets)
    return tuple((place / f"{_UNFINISHED}{name}").replace(place / name) for name in files)


def remove(model: str, place: Path) -> None:
    """Take away what a model wrote about one series, unfinished and refused files too."""
    for each in (*place.glob("*"), *(place / REFUSED).glob("*")):
        if each.is_file() and _is_of(model, each.name.removeprefix(_UNFINISHED)):
            each.unlink()


def set_aside(error: DicomaiError, made: Sequence[Dataset], findings: Findings, place: Path) -> str:
    """Keep objects that break a rule, apart from results; return what is to be said of them."""
    if not isinstance(error, gate.GateError):
        return error.sentence
    files = {file_name(each, findings): written(each) for each in made}
    put(files, place / REFUSED)
    return (
        f"{error.sentence} There is no result; its objects lie in {place / REFUSED} for a look: "
        "report this with them."
    )


def file_name(result: Dataset, findings: Findings) -> str:
    """Return the name of a result's file, by which its model finds it again."""
    kind = kind_of(result.SOPClassUID)
    number = f"-{result.InstanceNumber}" if kind in ("SC", "PR", "PM", "LABELMAP") else ""
    return f"{findings.algorithm.name}-{_in_names(kind)}{number}.dcm"


def _is_of(model: str, name: str) -> bool:
    """Tell whether `file_name` or `overlays` call a file of a model so."""
    kinds = "|".join(map(_in_names, KINDS))
    own = rf"{re.escape(model)}-(({kinds})(-\d+)?\.dcm|({PICTURE_NAME})\.png)"
    return re.fullmatch(own, name) is not None


def _in_names(kind: Kind) -> str:
    return kind.lower().replace(":", "-")
