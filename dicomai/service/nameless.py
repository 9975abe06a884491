"""Files of the archive that no row names, and whether each is what its name says."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sqlalchemy import Connection, Engine

from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import InputError
from dicomai.results.uids import rejection_uid, series_uid
from dicomai.service.leavings import maker_of
from dicomai.service.received import ReceivedObject
from dicomai.store import archive, instances, jobs
from dicomai.store.engine import reading
from dicomai.store.job import Job, JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class NamelessFile:
    """A file of an object, and when it was written."""

    path: PurePosixPath
    written_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """A file that is left where it lies, and why."""

    path: PurePosixPath
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nameless:
    """What no row names in the folder of a study.

    Attributes
    ----------
    files
        In the order in which they were written.
    taken_back
        Analyses whose results a note takes back, which the catalogue does not know: until a person
        repeats that, they count again.
    """

    files: tuple[NamelessFile, ...]
    unfit: tuple[Unfit, ...]
    taken_back: tuple[JobId, ...]


def nameless_in(engine: Engine, data: Path, folder: PurePosixPath) -> Nameless:
    """Return what no row names in the folder of a study.

    Files of a job that the catalogue knows are left to the sweep, as what never was whole is; a
    note that takes back what the job had found is told of.
    """
    uid = StudyInstanceUID(folder.name)
    unfit: list[Unfit] = []

    def note_unfit(trouble: OSError) -> None:
        path = PurePosixPath(Path(trouble.filename).relative_to(data))
        unfit.append(Unfit(path=path, because=unreadable(trouble)))

    found = []
    for inside, below, names in os.walk(data / folder, onerror=note_unfit):
        here = PurePosixPath(Path(inside).relative_to(data))
        found += [here / name for name in names]
        linked = [here / name for name in below if Path(inside, name).is_symlink()]
        because = "It is no folder, but leads elsewhere."
        unfit += [Unfit(path=each, because=because) for each in linked]
    for path in found:
        if not archive.is_text(path):
            named = PurePosixPath(str(path).encode(errors="backslashreplace").decode())
            unfit.append(Unfit(path=named, because="Its name is not UTF-8: give it another."))
    with reading(engine) as connection:
        known = jobs.of_study(connection, uid)
        nameless = archive.nameless(connection, [each for each in found if archive.is_object(each)])
        makers = {path: maker_of(path, known) for path in nameless}
        taken_back = {
            maker.id
            for path, maker in makers.items()
            if maker is not None and _takes_back(connection, path, maker)
        }
    files = []
    for path, maker in makers.items():
        if maker is not None:
            continue
        try:
            status = (data / path).lstat()
        except OSError as trouble:
            note_unfit(trouble)
            continue
        if stat.S_ISREG(status.st_mode):
            files.append(NamelessFile(path=path, written_ns=status.st_mtime_ns))
        else:
            unfit.append(Unfit(path=path, because="It is no file, but leads elsewhere."))
    return Nameless(
        files=tuple(sorted(files, key=lambda each: (each.written_ns, each.path))),
        unfit=tuple(unfit),
        taken_back=tuple(sorted(taken_back)),
    )


def _takes_back(connection: Connection, path: PurePosixPath, maker: Job) -> bool:
    """Tell whether a file withdraws a job's results, and the catalogue knows of no withdrawal."""
    if path.parent.name != series_uid(maker.uuid, "REJECTION"):
        return False
    note = rejection_uid(maker.uuid)
    return instances.newest(connection, maker.study_instance_uid, note) is None


def require_place(path: PurePosixPath, read: ReceivedObject) -> None:
    """Raise InputError where a file has other bytes than its name says, or other UIDs."""
    study, sop = read.identifiers.study_instance_uid, read.identifiers.sop_instance_uid
    in_series = read.identifiers.series_instance_uid
    places = [
        archive.path_of(study, in_series, sop, read.file_sha256, digits) for digits in (8, 64)
    ]
    if path in places:
        return
    if path.suffixes[-2:] not in [each.suffixes[-2:] for each in places]:
        raise InputError(
            "Its bytes are not those that its name has the digest of: its disk is damaged, or "
            "someone changed it."
        )
    raise InputError(
        f"It says that it is object {sop} of series {in_series} of study {study}, and lies where "
        "that one would not: someone moved it."
    )


def unreadable(trouble: OSError) -> str:
    """Return why a file is left that the disk does not give."""
    return f"It can't be read: {os.strerror(trouble.errno or 0).lower()}."
