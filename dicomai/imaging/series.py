"""Reads DICOM files and sorts them into series."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias, cast

from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

from dicomai.dicom.part10 import is_dicomdir
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID, validated
from dicomai.errors import InputError
from dicomai.imaging.attributes import text, values_checked_here

Octets: TypeAlias = bytes | mmap.mmap | memoryview
_LONG: Final = 1 << 16
_PIXELS: Final = Tag("PixelData")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """The objects of one series, in the order in which they were read."""

    study_instance_uid: StudyInstanceUID
    series_instance_uid: SeriesInstanceUID
    datasets: tuple[Dataset, ...]
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A file that is no DICOM object, with the sentence that says why."""

    path: Path
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """What lies in a folder."""

    series: tuple[Series, ...]
    unreadable: tuple[Unreadable, ...]


def read_object(
    path: Path, *, pixels: bool = True, octets: Octets | None = None, name: str = ""
) -> Dataset:
    """Return the data set of a Part 10 file.

    Parameters
    ----------
    path
        The file.
    pixels
        Whether to read the pixel data too.
    octets
        What it holds, where that is read already. Native pixel data are not copied from there, and
        it stays as long as they do.
    name
        What sentences call it; its path unless given.

    Raises
    ------
    InputError
        It is no DICOM file, is cut off, is not in the transfer syntax that it declares, or lacks
        a UID.
    """
    name = name or str(path)
    with values_checked_here():
        try:
            dataset: Dataset
            if octets is None:
                dataset = dcmread(path, stop_before_pixels=not pixels)
            else:
                dataset = _in_memory(octets, pixels=pixels)
            sop = text(dataset, "SOPInstanceUID")
        except InvalidDicomError:
            raise InputError(f"{name} is no DICOM file.", subject=str(path)) from None
        except OSError as error:
            raise InputError(f"{name} can't be read: {error.strerror or error}.") from None
        # A data set in another transfer syntax than declared fails in many ways.
        except Exception as error:  # noqa: BLE001  pydicom raises anything
            raise InputError(
                f"{name} is cut off or not in the transfer syntax that it declares: {error}. Send "
                "the object again.",
                subject=str(path),
            ) from None
    if not sop:
        raise InputError(
            f"{name} has no SOP Instance UID: it is damaged, or not in the transfer syntax that it "
            "declares. Send the object again.",
            subject=str(path),
        )
    return dataset


def _in_memory(octets: Octets, *, pixels: bool) -> Dataset:
    """Return the data set of a file that is read already."""
    file = cast("BinaryIO", _Memory(octets))  # it has what pydicom needs of one
    dataset = dcmread(file, stop_before_pixels=not pixels)
    # pydicom would keep the whole file for as long as there is a header of it.
    dataset.buffer = None
    last = list(dataset.keys())[-1:]
    element: object = dataset.get_item(last[0]) if last else None
    if isinstance(element, RawDataElement) and element.tag != _PIXELS:
        dataset[element.tag] = element._replace(value=bytes(element.value or b""))
    return dataset


class _Memory:
    """A file in memory; a long value that comes last is not copied from it."""

    def __init__(self, octets: Octets) -> None:
        self._octets = memoryview(octets)
        self._at = 0

    def read(self, size: int | None = -1) -> bytes | memoryview:
        """Return what comes next."""
        start, length = self._at, len(self._octets)
        end = length if size is None or size < 0 else min(start + size, length)
        self._at = max(start, end)
        value = self._octets[start:end]
        last = size is not None and size > _LONG and start + size == length
        return value if last else bytes(value)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go somewhere, as in any file."""
        self._at = offset + (0, self._at, len(self._octets))[whence]
        return self._at

    def tell(self) -> int:
        """Return where it is."""
        return self._at


def read_series(paths: Iterable[Path], *, pixels: bool = True) -> tuple[Series, ...]:
    """Return the series that some files hold, sorted by UID; raises as `read_object` does."""
    return _sorted_by_series((path, read_object(path, pixels=pixels)) for path in paths)


def scan(folder: Path, *, pixels: bool = False) -> Scan:
    """Return all series under a folder, and what there could not be read.

    A DICOMDIR and hidden files are passed over.
    """
    objects: list[tuple[Path, Dataset]] = []
    unreadable: list[Unreadable] = []
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        if is_dicomdir(path) or path.name.startswith("."):
            continue
        try:
            dataset = read_object(path, pixels=pixels)
            _uids(dataset)
        except InputError as error:
            unreadable.append(Unreadable(path=path, sentence=error.sentence))
        else:
            objects.append((path, dataset))
    return Scan(series=_sorted_by_series(objects), unreadable=tuple(unreadable))


def _uids(dataset: Dataset) -> tuple[StudyInstanceUID, SeriesInstanceUID]:
    return (
        StudyInstanceUID(validated(text(dataset, "StudyInstanceUID"), "StudyInstanceUID")),
        SeriesInstanceUID(validated(text(dataset, "SeriesInstanceUID"), "SeriesInstanceUID")),
    )


def _sorted_by_series(objects: Iterable[tuple[Path, Dataset]]) -> tuple[Series, ...]:
    found: dict[tuple[StudyInstanceUID, SeriesInstanceUID], list[tuple[Path, Dataset]]] = {}
    for path, dataset in objects:
        found.setdefault(_uids(dataset), []).append((path, dataset))
    return tuple(
        Series(
            study_instance_uid=study,
            series_instance_uid=series,
            datasets=tuple(dataset for _, dataset in members),
            paths=tuple(path for path, _ in members),
        )
        for (study, series), members in sorted(found.items())
    )
