"""The archive: where the file of each copy lies, placed durably before its row is committed."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from sqlalchemy import Connection, select

from dicomai.dicom import uid
from dicomai.dicom.dates import Instant, Microseconds, seconds
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID, StudyInstanceUID
from dicomai.errors import InputError, TransientError
from dicomai.spool.folder import DAMAGED, make_folders, sync_folder
from dicomai.spool.names import Names
from dicomai.spool.part import PART_SUFFIX
from dicomai.store import schema

FOLDER: Final = "archive"
RESULTS: Final = ".results"
"""Folder in it of results that have no place yet."""
HOSTS: Final = ".hosts"
"""Folder in it where each host has left its name: who lacks that of another has another archive."""
SWEPT_AFTER: Final[Microseconds] = seconds(86400)
"""A file that no row names so long after it was written is looked at."""
_DIGITS: Final = 2
_CHUNK: Final = 500


def require(data: Path) -> None:
    """Raise a TransientError unless the archive is there; where it is to be mounted is nothing."""
    folder = data / FOLDER
    if not _has_studies(folder):
        raise TransientError(f"{folder} is not there. Is its disk mounted?", subject=str(folder))


def require_kept(connection: Connection, data: Path) -> None:
    """Raise as `require`, unless the catalogue names no file: then the archive may be new.

    What is written where its disk is to be mounted is hidden when that is back, and what is deleted
    meanwhile goes from the catalogue alone.
    """
    if lost := absence(connection, data):
        raise TransientError(lost, subject=str(data / FOLDER))


def absence(connection: Connection, data: Path) -> str:
    """Return a sentence where the catalogue names files and the archive is not there, else none."""
    folder = data / FOLDER
    if _has_studies(folder):
        return ""
    if connection.execute(select(schema.copies.c.path).limit(1)).first() is None:
        return ""
    return (
        f"{folder} is not there, or empty, and the catalogue names files in it: what comes waits "
        "in the spool, and analyses and deletions wait. Is its disk mounted? If all that it held "
        f"is lost for good: mkdir -p {folder}/00"
    )


def note_host(data: Path, name: str) -> None:
    """Leave a host's name, so that others see that it has the archive that they have."""
    folder = data / FOLDER / HOSTS
    make_folders(folder, data)
    (folder / name).touch()


def has_host(data: Path, name: str) -> bool:
    """Tell whether a host that has worked has this very archive."""
    return (data / FOLDER / HOSTS / name).exists()


def disk(data: Path) -> Path:
    """Return a folder on the disk of the archive, which may be another than the data folder's."""
    folder = data / FOLDER
    return folder if folder.is_dir() else data


def apart(data: Path) -> Path | None:
    """Return the archive's folder where its disk is another than the data folder's."""
    folder = data / FOLDER
    with suppress(OSError):  # as of a share whose handle is stale: then it is away
        if folder.is_dir() and folder.stat().st_dev != data.stat().st_dev:
            return folder
    return None


def _has_studies(folder: Path) -> bool:
    """Tell whether an archive ever had a study: the folders of two digits stay."""
    with suppress(OSError), os.scandir(folder) as found:
        return any(len(each.name) == _DIGITS for each in found)
    return False


def place(
    data: Path,
    source: Path,
    study: StudyInstanceUID,
    series: SeriesInstanceUID,
    sop: SOPInstanceUID,
    file_sha256: str,
    names: Names | None = None,
    received_at: Instant | None = None,
) -> PurePosixPath:
    """Give a durable file its place in the archive, durably; return it, relative to `data`.

    May be repeated: a file that lies there already is left, and its time of writing too.

    Parameters
    ----------
    data
        The data folder.
    source
        A file that is durable; it stays. Where a link can't reach, its bytes are copied.
    file_sha256
        Of all its bytes, lower-case hex.
    names
        Below `data`: the place is durable when they are settled. Without it, at once.
    received_at
        What its time of writing is to be: a rescan knows no other. Without it, the present.

    Raises
    ------
    InputError
        A UID is none, so that it may not become a path.
    DiskFull
        No room.
    """
    new = names or Names(data)
    for digits in (8, 64):
        path = path_of(study, series, sop, file_sha256, digits)
        target = data / path
        new.make_folders(target.parent)
        try:
            new.link(source, target)
            written_ns = time.time_ns() if received_at is None else received_at * 1000
        except FileExistsError:
            if not _is_file_of(target, file_sha256):
                continue
            new.note(target)
            written_ns = target.stat().st_mtime_ns
        if names is None:
            new.settle()
        _stamp(target, written_ns)  # a sweep that saw it as nobody's looks again
        return path
    raise InputError(
        f"{target} exists and can't be read, or has other bytes than its name says. Its disk is "
        "damaged or someone changed it: move it away and send the study again.",
        subject=str(target),
    )


def touch(data: Path, path: PurePosixPath) -> None:
    """Have a file count as placed again, so that no sweep looks at it for a day."""
    with suppress(FileNotFoundError):
        _stamp(data / path, (data / path).lstat().st_mtime_ns)


def note_received(data: Path, path: PurePosixPath, received_at: Instant) -> None:
    """Have a file count as received then: a rescan orders the versions of an object by that."""
    _stamp(data / path, received_at * 1000)


def _stamp(target: Path, written_ns: int) -> None:
    """Note when a file was written; the time of its status becomes the present by that."""
    with suppress(PermissionError):  # another user's, as one that was restored from a backup
        os.utime(target, ns=(written_ns, written_ns), follow_symlinks=False)


def _is_file_of(target: Path, file_sha256: str) -> bool:
    """Tell whether a file has these bytes; false where its disk does not give them."""
    try:
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == file_sha256
    except OSError as trouble:
        if trouble.errno not in DAMAGED:
            raise
        return False


def path_of(
    study: StudyInstanceUID,
    series: SeriesInstanceUID,
    sop: SOPInstanceUID,
    file_sha256: str,
    digits: int = 8,
) -> PurePosixPath:
    """Return the place of a copy, relative to the data folder."""
    if not file_sha256.isalnum() or len(file_sha256) != 64:
        raise ValueError(f"{file_sha256!a} is no SHA-256")
    # Without its padding: a NUL can be no part of a path.
    in_series = uid.validated(series, "SeriesInstanceUID")
    name = uid.validated(sop, "SOPInstanceUID")
    return folder_of(study) / in_series / f"{name}.{file_sha256[:digits]}.dcm"


def folder_of(study: StudyInstanceUID) -> PurePosixPath:
    """Return the folder of a study, relative to the data folder."""
    name = uid.validated(study, "StudyInstanceUID")
    return PurePosixPath(FOLDER, hashlib.sha256(name.encode()).hexdigest()[:_DIGITS], name)


def unlink(data: Path, path: PurePosixPath) -> None:
    """Remove a file of the archive, and its folders where they are empty; may be repeated."""
    target = data / path
    target.unlink(missing_ok=True)
    with suppress(OSError):
        for folder in (target.parent, target.parent.parent):
            folder.rmdir()


def sync_remains(folders: Collection[Path]) -> None:
    """Have it on the disk that what was unlinked in some folders is gone."""
    for folder in {_standing(each) for each in folders}:
        sync_folder(folder)


def _standing(folder: Path) -> Path:
    """Return the nearest folder above, or this one, that is there."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def listing(data: Path) -> Iterator[tuple[str, ...]]:
    """Yield what lies in the archive, relative to the data folder, in groups.

    Names alone: there may be millions of files, and rows name almost all of them. To look at each
    one on its disk, too, would be most of the work.
    """
    group: list[str] = []
    # A folder at a time.
    for folder, _, names in os.walk(data / FOLDER):
        inside = PurePosixPath(Path(folder).relative_to(data))
        for name in names:
            if is_text(path := f"{inside}/{name}"):
                group.append(path)
            if len(group) == _CHUNK:
                yield tuple(group)
                group = []
    if group:
        yield tuple(group)


def is_stale(data: Path, path: PurePosixPath, now: Instant) -> bool:
    """Tell whether a file is there and has been left alone for a day."""
    try:
        status = (data / path).lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and _touched_at(status) <= now - SWEPT_AFTER


def touched_at(data: Path, path: PurePosixPath) -> Instant:
    """Return when a file was last written, linked or placed again."""
    return _touched_at((data / path).lstat())


def _touched_at(status: os.stat_result) -> Instant:
    # A link keeps its file's time of writing; the time of its status is that of linking.
    return Instant(status.st_ctime_ns // 1000)


def is_leaving(path: PurePosixPath) -> bool:
    """Tell whether a file was never whole, or never had its place: nobody was told of it."""
    half = path.name.startswith(".") and path.suffix == PART_SUFFIX
    return half or path.parts[1] == RESULTS


def is_object(path: PurePosixPath) -> bool:
    """Tell whether a file lies where the object of a study does."""
    there = bool(study_of(path)) and is_text(path)
    return there and path.suffix == ".dcm" and not path.name.startswith(".")


def is_text(path: PurePosixPath | str) -> bool:
    """Tell whether a name is UTF-8; what a person gave need not be, and no catalogue holds it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def unnamed(
    connection: Connection, paths: Sequence[PurePosixPath] | Sequence[str]
) -> tuple[PurePosixPath, ...]:
    """Return those of some files that no row names, though one names their study.

    The files of a study that the catalogue does not know are no leavings of ours: it was lost, or
    an older copy of it was put in its place.
    """
    left = nameless(connection, paths)
    strange = _strange(connection, {study_of(path) for path in left} - {""})
    return tuple(path for path in left if study_of(path) not in strange)


def nameless(
    connection: Connection, paths: Sequence[PurePosixPath] | Sequence[str]
) -> tuple[PurePosixPath, ...]:
    """Return those of some files that no row names, whatever the catalogue knows of their study."""
    copies, texts = schema.copies, [str(path) for path in paths]
    named: set[str] = set()
    for at in range(0, len(texts), _CHUNK):
        some = texts[at : at + _CHUNK]
        named.update(
            connection.execute(select(copies.c.path).where(copies.c.path.in_(some))).scalars()
        )
    return tuple(PurePosixPath(text) for text in texts if text not in named)


def study_of(path: PurePosixPath) -> str:
    """Return the study that a file lies with; empty for what lies beside all studies."""
    return path.parts[2] if len(path.parts) > 3 and len(path.parts[1]) == _DIGITS else ""


def studies(data: Path) -> tuple[str, ...]:
    """Return the UIDs of the studies whose files lie in the archive."""
    return tuple(folder.name for folder in folders(data))


def folders(data: Path) -> tuple[PurePosixPath, ...]:
    """Return the folders of the studies in the archive, relative to the data folder."""
    found = (PurePosixPath(path.relative_to(data)) for path in (data / FOLDER).glob("??/*"))
    return tuple(path for path in found if is_text(path))


def unknown(connection: Connection, data: Path) -> int:
    """Return how many studies lie in the archive that the catalogue does not know."""
    there = studies(data)
    groups = (there[at : at + _CHUNK] for at in range(0, len(there), _CHUNK))
    return sum(len(_strange(connection, set(group))) for group in groups)


def unknown_sentence(data: Path, number: int) -> str:
    """Return the sentence on studies in the archive that the catalogue does not know."""
    lie = "1 study lies" if number == 1 else f"{number} studies lie"
    return f"{lie} in {data / FOLDER} that the catalogue does not know: was its database lost?"


def _strange(connection: Connection, uids: Collection[str]) -> set[str]:
    if not uids:
        return set()
    table = schema.studies
    known = connection.execute(
        select(table.c.study_instance_uid).where(table.c.study_instance_uid.in_(uids))
    ).scalars()
    return set(uids).difference(known)
