"""Files that outlive a power cut: the one place that makes their bytes durable.

Bytes first, then the name, then the folder that holds the name; only then may anyone be told. Where
somebody waits (`Part.settle`), the disk takes the bytes first, and both are synced as one.

A sync that failed is never tried again: the kernel may have dropped the pages and say success the
second time, so what was being written is taken away and refused.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dicomai.errors import DiskFull
from dicomai.spool.folder import sync_folder, worded

Bytes = bytes | bytearray | memoryview

# Python has none. To the disk, which may still have it in its own cache: a sync it is not.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE
_WRITE_AND_WAIT: Final = 7  # and SYNC_FILE_RANGE_WAIT_BEFORE and _AFTER

# Memory in which a file's bytes are gathered: half a CT slice, and little enough to stay in the
# processor's cache. Those that are not in use are kept, for new memory is slow.
_STAGE_BYTES: Final = 2**18
_SPARE_STAGES: Final = 64
_stages: list[memoryview] = []
# The kernel keeps what one call writes in one piece of memory, and large pieces are seldom at hand:
# half a megabyte took 0.2 ms in calls of 64 KiB, over 1 ms in larger ones (benchmarks/receive.md).
_CALL_BYTES: Final = 2**16
FILE_MODE: Final = 0o640
PART_SUFFIX: Final = ".part"


class Part:
    """A file that is being written; when it is closed it has its name, or is gone.

    Its bytes are gathered in memory of our own. Whole fills of that go to the disk past the page
    cache, where the file system can: they need not be copied once more, and are on their way when
    the rest comes. Whoever reads the file reads it from the disk.

    Parameters
    ----------
    path
        Its name until then; must not exist. Its folder is where it stays.

    Raises
    ------
    DiskFull, OSError
        It can't be made.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        self._written = self._gathered = 0
        self._is_direct: bool | None = None
        try:
            self._stage = _stages.pop()
        except IndexError:
            self._stage = memoryview(mmap.mmap(-1, _STAGE_BYTES))
        try:
            self._descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE
            )
        except OSError as trouble:
            self._give_stage()
            raise worded(trouble, path) from trouble

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it away, unless it has its name."""
        if self._descriptor >= 0:
            self._let_go()
            with suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108  a text, not a path object

    def write(self, *chunks: Bytes) -> None:
        """Append bytes.

        Raises
        ------
        DiskFull, OSError
            Not all are there; what is left to do is to close it.
        """
        for chunk in chunks:
            rest = memoryview(chunk).cast("B")
            while rest:
                start = self._gathered
                piece = rest[: _STAGE_BYTES - start]
                self._gathered = start + len(piece)
                self._stage[start : self._gathered] = piece
                rest = rest[len(piece) :]
                if self._gathered == _STAGE_BYTES:
                    self._put_full()

    def put(self) -> None:
        """Write all that was appended; raises so. What comes after it goes through the cache."""
        self._go_past_the_cache(False)  # which takes whole blocks only
        if self._gathered:
            self._put(_CALL_BYTES)

    def _put_full(self) -> None:
        if self._is_direct is None:
            self._go_past_the_cache(True)
        if self._is_direct:
            try:
                self._put(_STAGE_BYTES)
            except OSError as trouble:
                if trouble.errno != errno.EINVAL:
                    raise
                # Its file system takes the wish and not the write.
                self._go_past_the_cache(False)
            else:
                return
            # It may have taken some of it before: where the file stands says how much.
            self._put(_CALL_BYTES, os.lseek(self._descriptor, 0, os.SEEK_CUR) - self._written)
        else:
            self._put(_CALL_BYTES)
        try:
            # The disk begins with these while the next ones come.
            _to_disk(self._descriptor, _WRITE)
        except OSError as trouble:
            raise worded(trouble, self._path) from trouble

    def _put(self, step: int, start: int = 0) -> None:
        """Write what is gathered, from a byte of it on, so many bytes in each call."""
        size = self._gathered
        try:
            for at in range(start, size, step):
                _write_all(self._descriptor, self._stage[at : min(size, at + step)])
        except OSError as trouble:
            raise worded(trouble, self._path) from trouble
        self._gathered = 0
        self._written += size

    def _go_past_the_cache(self, wanted: bool) -> None:
        """Have writes go past the page cache, where the file system can, or through it."""
        if wanted or self._is_direct:
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, os.O_DIRECT if wanted else 0)
            except OSError:  # it can't
                wanted = False
        self._is_direct = wanted

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
        self._give_stage()

    def _give_stage(self) -> None:
        if len(_stages) < _SPARE_STAGES:
            _stages.append(self._stage)

    @contextmanager
    def mapped(self) -> Iterator[memoryview]:
        """Give what was written."""
        self.put()
        with (
            mmap.mmap(self._descriptor, self._written, access=mmap.ACCESS_READ) as pages,
            memoryview(pages) as view,
        ):
            yield view

    def rename(self, path: str) -> None:
        """Give it another name in its folder, which is none for good; raises as `write`."""
        try:
            os.replace(self._path, path)  # noqa: PTH105  a text, not a path object
        except OSError as trouble:
            raise worded(trouble, path) from trouble
        self._path = path

    def settle(self, path: Path | str, sync_folders: Callable[[], None]) -> None:
        """Give it its name, and make bytes, name and folders durable, with one commit of a journal.

        Bytes, synced, and then the name, synced, are two commits, and a sender waits for each. So
        the disk takes the bytes, the name is given, and then both are synced. A journal flushes its
        disk before it commits, so it has no name whose bytes are not there; and no one is told of
        either before this returns.

        Parameters
        ----------
        path
            Its name from now on.
        sync_folders
            Makes its folder durable, and those above that are new.

        Raises
        ------
        DiskFull
            No room; nothing is left behind.
        OSError
            The disk failed; nothing is left behind.
        """
        self.put()
        try:
            _to_disk(self._descriptor, _WRITE_AND_WAIT)
            os.replace(self._path, path)  # noqa: PTH105  a text, not a path object
            self._path = str(path)  # closed now, it is taken away under this name
            os.fsync(self._descriptor)
        except OSError as trouble:
            raise worded(trouble, path) from trouble
        sync_folders()
        self._let_go()

    def become(self, path: Path) -> None:
        """Make the bytes, then the name, then the folder durable.

        Raises
        ------
        DiskFull
            No room; nothing is left behind.
        OSError
            The disk failed; nothing is left behind.
        """
        self.put()
        try:
            os.fsync(self._descriptor)
            self._let_go()
            os.replace(self._path, path)  # noqa: PTH105  a text, not a path object
        except OSError as trouble:
            with suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108  a text, not a path object
            raise worded(trouble, path) from trouble
        _name(path)


def write_durably(path: Path, chunks: Iterable[Bytes]) -> None:
    """Write a file that either is there whole and durable afterwards, or not at all.

    A kill leaves a part of it beside it, which the sweeps of archive and quarantine take.

    Parameters
    ----------
    path
        Its name; a file that has it is replaced.
    chunks
        Its bytes.

    Raises
    ------
    DiskFull
        No room; what was there before is untouched.
    OSError
        The disk failed. Whether a file that was there before has survived is for the disk to say.
    """
    # Its own: on shared storage two hosts may write the same file.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART_SUFFIX}")
    with Part(part) as file:
        for chunk in chunks:
            file.write(chunk)
        file.become(path)


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a small file whole."""
    write_durably(path, (data,))


def sync_bytes(path: Path) -> None:
    """Make the bytes of a file durable, whoever wrote them and was not done with it yet."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _name(path: Path) -> None:
    """Make a new name durable, or take it away: it must not look acknowledged."""
    try:
        sync_folder(path.parent)
    except (OSError, DiskFull):
        with suppress(OSError):
            path.unlink()
        raise


def _to_disk(descriptor: int, how: int) -> None:
    if _LIBC.sync_file_range(descriptor, 0, 0, how) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _write_all(descriptor: int, chunk: Bytes) -> None:
    view = memoryview(chunk).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]
