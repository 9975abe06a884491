"""The images of a job out of the archive, as they were received."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pydicom import Dataset

from dicomai.errors import InputError
from dicomai.imaging.attributes import values_checked_here
from dicomai.imaging.series import Octets, read_object
from dicomai.store import archive
from dicomai.store.instances import Instance

_READERS: Final = 2


def each(rows: Sequence[Instance], data: Path) -> Generator[Dataset, None, None]:
    """Give the data sets of instances, in order; the next files are read meanwhile.

    Parameters
    ----------
    rows
        The instances, of the versions that are wanted.
    data
        The data folder.

    Raises
    ------
    InputError
        A file is not there any more, has changed, or can't be read.
    TransientError
        The archive is not there.
    """
    pool = ThreadPoolExecutor(_READERS, "read")
    try:
        for row, octets in zip(rows, pool.map(lambda row: _octets(row, data), rows), strict=True):
            with values_checked_here():
                image = read_object(data / row.path, octets=octets, name=_name(row))
            yield image
    finally:
        pool.shutdown(cancel_futures=True)


def readable(rows: Sequence[Instance], data: Path) -> tuple[Dataset, ...]:
    """Return the data sets of the instances that can be read as they were received.

    Raises
    ------
    InputError
        None of them can.
    TransientError
        The archive is not there.
    """
    found = []
    for row in rows:
        try:
            octets = _octets(row, data)
            found.append(read_object(data / row.path, octets=octets, name=_name(row)))
        except InputError as error:
            trouble = error
    if not found:
        raise trouble
    return tuple(found)


def _name(row: Instance) -> str:
    """Return what sentences call it: reports repeat them, and where the archive is tells nobody."""
    return f"Image {row.sop_instance_uid} ({row.path})"


def _octets(row: Instance, data: Path) -> Octets:
    """Return a file as it was received; its memory goes back to the system when it is let go."""
    path = data / row.path
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            octets: Octets = b""
            if size:
                octets = mmap.mmap(-1, size)
                with memoryview(octets) as room:
                    at = 0
                    while at < size and (more := file.readinto(room[at:])):
                        at += more
    except FileNotFoundError:
        archive.require(data)
        raise InputError(
            f"{_name(row)} is missing from the archive. Send the study again.", subject=str(path)
        ) from None
    if hashlib.sha256(octets).hexdigest() != row.file_sha256:
        raise InputError(
            f"{_name(row)} has other bytes than those that were received. Its disk is damaged or "
            "someone changed it; send the study again.",
            subject=str(path),
        )
    return octets
