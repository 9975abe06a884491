"""What can't be ingested, objects and messages: kept with the reason beside it, for a person."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.part10 import media
from dicomai.errors import InputError
from dicomai.spool.entries import OBJECT, AssociationFacts, AssociationId
from dicomai.spool.folder import make_folders
from dicomai.spool.names import link_durably
from dicomai.spool.part import PART_SUFFIX, replace_durably

SWEPT_AFTER: Final = seconds(86400)
_REASON: Final = ".json"
_ASSOCIATION_CHARACTERS: Final = 26
"""Of an AssociationId and a hyphen, before the name that the file had in the spool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """One object or message that was set aside.

    Attributes
    ----------
    name
        Its file in the quarantine.
    reason
        Why, as a sentence.
    at
        When it was set aside.
    node
        Who sent it.
    """

    name: str
    reason: str
    at: Instant
    node: str


def put(folder: Path, path: Path, reason: str, now: Instant, facts: AssociationFacts) -> str:
    """Keep a file in the quarantine, durably; may be repeated. The file itself stays.

    Parameters
    ----------
    folder
        The quarantine.
    path
        The object.
    reason
        Why, as a sentence.
    now
        The present.
    facts
        Who sent it.

    Returns
    -------
    str
        Its name in the quarantine.
    """
    name = f"{facts.id}-{path.name}"
    make_folders(folder, folder.parent)
    # The reason first: an object without one would say nothing, a reason without one is harmless.
    replace_durably(
        folder / f"{name}{_REASON}",
        json.dumps(
            {
                "reason": reason,
                "at": now,
                "node": facts.node,
                "calling_ae": facts.calling_ae,
                "address": facts.address,
            },
            ensure_ascii=False,
        ).encode(),
    )
    with suppress(FileExistsError):  # a copy from before a kill, whole because it has its name
        link_durably(path, folder / name)
    return name


class Contents:
    """The bytes that lay in the quarantine at a moment; none is read before it must be.

    Parameters
    ----------
    folder
        The quarantine.
    but
        Its files that are not counted, by the id in the place of an association's.
    """

    def __init__(self, folder: Path, but: AssociationId) -> None:
        self._linked: dict[tuple[int, int], Path] = {}
        self._unread: dict[int, list[Path]] = {}
        self._read: dict[bytes, Path] = {}
        for file in _files(folder):
            if file.name.startswith(f"{but}-"):
                continue
            with suppress(FileNotFoundError):
                status = file.stat()
                self._linked[status.st_dev, status.st_ino] = file
                self._unread.setdefault(status.st_size, []).append(file)

    def name_of(self, file: Path) -> str | None:
        """Return the name by which a file's bytes are there, if they are, and are there still."""
        status = file.stat()
        kept = self._linked.get((status.st_dev, status.st_ino))
        if kept is None:  # on another disk it is a copy
            for each in self._unread.pop(status.st_size, ()):
                with suppress(OSError):
                    self._read[_sha256(each)] = each
            kept = self._read.get(_sha256(file)) if self._read else None
        return kept.name if kept is not None and kept.exists() else None


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def sweep(folder: Path, now: Instant) -> int:
    """Remove what kills left half-written for a day; return how many."""
    swept = 0
    for part in folder.glob(f".*{PART_SUFFIX}"):
        with suppress(FileNotFoundError):
            if part.stat().st_mtime_ns // 1000 <= now - SWEPT_AFTER:
                part.unlink()
                swept += 1
    return swept


def received(folder: Path) -> dict[str, Instant]:
    """Return when each object that is in the quarantine was received, by its SOP Instance UID."""
    found: dict[str, Instant] = {}
    for file in _files(folder):
        name = OBJECT.fullmatch(file.name[_ASSOCIATION_CHARACTERS:])
        if name is None or name[3] != "dcm":  # a message, or put there by someone
            continue
        with suppress(InputError, OSError):
            uid, at = media(file).sop_instance_uid, Instant(int(name[2]))
            found[uid] = max(at, found.get(uid, at))
    return found


def listing(folder: Path) -> tuple[Quarantined, ...]:
    """Return what is in the quarantine, oldest first."""
    found = []
    for file in _files(folder):
        try:
            said = json.loads((folder / f"{file.name}{_REASON}").read_bytes())
        except (FileNotFoundError, ValueError):
            # Nothing of ours leaves an object without its reason.
            said = {
                "reason": "Its reason is missing: someone put it here, or the disk is damaged.",
                "at": int(file.stat().st_mtime * 1_000_000),
                "node": "",
            }
        found.append(
            Quarantined(
                name=file.name, reason=said["reason"], at=Instant(said["at"]), node=said["node"]
            )
        )
    return tuple(sorted(found, key=lambda each: (each.at, each.name)))


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    kept = (each for each in folder.iterdir() if not each.name.startswith("."))
    return sorted(each for each in kept if each.suffix != _REASON)
