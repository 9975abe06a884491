"""Files and names that outlive a power cut, or are not there at all."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dicomai.errors import DiskFull
from dicomai.spool import part as part_module
from dicomai.spool.folder import make_folders
from dicomai.spool.names import Names, link_durably
from dicomai.spool.part import Part, write_durably


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, (b"one", memoryview(b"two")))
    assert path.read_bytes() == b"onetwo"

    def fails() -> object:
        yield b"half"
        raise OSError(errno.EIO, "the source broke")

    with pytest.raises(OSError, match="the source broke"):
        write_durably(path, fails())
    assert path.read_bytes() == b"onetwo"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("killed", [False, True])
def test_who_writes_the_same_file_publishes_no_half_of_anothers(
    tmp_path: Path, killed: bool
) -> None:
    path = tmp_path / "file"

    def writes() -> Iterator[bytes]:
        yield b"one"
        other = os.fork()
        if other == 0:
            with suppress(BaseException):
                write_durably(path, half())
            os._exit(0)
        assert os.waitpid(other, 0)[1] == (signal.SIGKILL if killed else 0)
        yield b"two"

    def half() -> Iterator[bytes]:
        yield b"one"
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        yield b"two"

    write_durably(path, writes())
    assert path.read_bytes() == b"onetwo"


def test_a_disk_without_room_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DiskFull, match="Make room"):
            write_durably(tmp_path / "file", (bytes(600), bytes(600)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_sync_that_fails_is_not_repeated_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The first sync is the data's, the second the folder's: after both the name must be gone."""
    count = 0

    def fsync(_descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(tmp_path / "file", (b"data",))
    assert count == failing
    assert list(tmp_path.iterdir()) == []


def test_data_name_and_every_folder_are_synced_in_order(
    tmp_path: Path, peer: Callable[[str], str]
) -> None:
    script = (
        "from pathlib import Path; from dicomai.spool import folder, names, part\n"
        f"root = Path({str(tmp_path)!r})\n"
        "folder.make_folders(root / 'a' / 'b', root)\n"
        "part.write_durably(root / 'a' / 'b' / 'file', [b'data'])\n"
        "names.link_durably(root / 'a' / 'b' / 'file', root / 'a' / 'name')\n"
    )
    trace = tmp_path / "trace"
    watched = "mkdir,fsync,fdatasync,rename,link,linkat,write"
    command = [peer("strace"), "-f", "-y", "-e", f"trace={watched}", "-o", str(trace)]
    subprocess.run([*command, sys.executable, "-c", script], check=True)
    steps = [
        line for line in trace.read_text().splitlines() if str(tmp_path) in line and "= 0" in line
    ]
    told = [re.sub(r"^\d+ +|\s*= .*$", "", step).replace(str(tmp_path), "") for step in steps]
    told = [re.sub(r"\(\d+<(.*)>\)", r"(\1)", step) for step in told]
    told = [re.sub(r"[0-9a-f]{8}\.part", "T.part", step) for step in told]
    assert told == [
        'mkdir("/a", 0750)',
        "fsync()",
        'mkdir("/a/b", 0750)',
        "fsync(/a)",
        "fsync(/a/b/.file.T.part)",
        'rename("/a/b/.file.T.part", "/a/b/file")',
        "fsync(/a/b)",
        'link("/a/b/file", "/a/name")',
        "fsync(/a)",
    ]


def _named(root: Path, count: int) -> Names:
    """Give so many files a name each, in the same new folders."""
    names = Names(root)
    for number in range(count):
        source = root / f"source{number}"
        source.write_bytes(b"data")
        names.make_folders(root / "a" / "b")
        names.link(source, root / "a" / "b" / f"{number}")
    return names


def test_names_that_are_settled_together_sync_each_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("dicomai.spool.names.sync_folder", synced.append)
    names = _named(tmp_path, 3)
    assert synced == []
    names.settle()
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_names_whose_folder_cannot_be_synced_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    names = _named(tmp_path, 3)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        names.settle()
    assert not list((tmp_path / "a" / "b").iterdir())


def test_folders_that_a_killed_process_made_are_synced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    synced = []
    monkeypatch.setattr("dicomai.spool.folder.sync_folder", synced.append)
    make_folders(tmp_path / "a" / "b", tmp_path)
    assert synced == [tmp_path, tmp_path / "a"]


def test_a_link_is_a_second_name_and_may_be_made_again(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"data")
    link_durably(source, target)
    link_durably(source, target)
    assert target.samefile(source)
    (tmp_path / "other").write_bytes(b"data")
    with pytest.raises(FileExistsError):
        link_durably(tmp_path / "other", target)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_a_link_cannot_reach_it_is_a_durable_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(3 * 2**20 + 1))

    def refuses(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "hardlink_to", refuses)
    link_durably(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert not target.samefile(source)


def test_a_real_other_file_system_gets_a_copy(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    source, target = shm / f"dicomai-{os.getpid()}", tmp_path / "target"
    source.write_bytes(b"data")
    try:
        link_durably(source, target)
        assert target.read_bytes() == b"data"
    finally:
        source.unlink()


def refused(*_: object) -> int:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def refused_past_the_cache(descriptor: int, data: bytes | memoryview) -> int:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
        refused()
    return _WRITE(descriptor, data)


@pytest.mark.parametrize("whole", [0, 1])
def test_a_write_past_the_cache_that_stops_halfway_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    write, calls = os.write, 0

    def stops(descriptor: int, chunk: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == whole + 2:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, chunk[:8192] if calls == whole + 1 else chunk)

    monkeypatch.setattr(os, "write", stops)
    data = random.Random(1).randbytes(600_000)
    write_durably(tmp_path / "file", (data,))
    assert (tmp_path / "file").read_bytes() == data


def test_a_disk_that_fails_while_more_comes_refuses_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may tell of it once, and say success when all is synced."""
    failed = 0

    def fails(_descriptor: int, _how: int) -> None:
        nonlocal failed
        failed += 1
        if failed == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "fcntl", refused)  # so that bytes go through the page cache
    monkeypatch.setattr(part_module, "_to_disk", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(tmp_path / "file", (bytes(600_000),))
    assert list(tmp_path.iterdir()) == []


def test_a_part_without_memory_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(part_module, "_stages", [])
    monkeypatch.setattr(mmap, "mmap", refuses)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        Part(tmp_path / ".part")
    assert list(tmp_path.iterdir()) == []


_WRITE = os.write


@pytest.mark.parametrize("refusing", ["nothing", "the wish", "the write"])
@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 3 * 2**18 + 4097])
def test_bytes_arrive_as_they_were_past_the_page_cache_and_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, refusing: str
) -> None:
    if refusing == "the wish":  # as file systems answer that know no O_DIRECT
        monkeypatch.setattr(fcntl, "fcntl", refused)
    if refusing == "the write":  # as others do that only seem to know it
        monkeypatch.setattr(os, "write", refused_past_the_cache)
    data = random.Random(size).randbytes(size)
    names = tmp_path / ".part", tmp_path / "whole"
    with Part(names[0]) as part:
        for at in range(0, size, 100_003):
            part.write(memoryview(data)[at : at + 100_003])
        if size:
            with part.mapped() as written:
                assert written == data
        part.write(b"and more")
        part.settle(names[1], lambda: None)
    assert names[1].read_bytes() == data + b"and more"
    assert not names[0].exists()
