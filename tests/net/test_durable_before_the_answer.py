"""What a power cut may take: nothing that was acknowledged. Proved by the order of system calls."""

from __future__ import annotations

import codecs
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dicomai.net.c_store import command_elements
from dicomai.net.reception import file_meta

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
Receiver = Any  # of conftest.py, which tests can't import
MakeReceiver = Callable[..., Receiver]
Scu = Any
WATCHED = "mkdir,openat,link,write,writev,sync_file_range,fsync,fdatasync,rename,sendto"
WAITS = "SYNC_FILE_RANGE_WAIT_BEFORE|SYNC_FILE_RANGE_WRITE|SYNC_FILE_RANGE_WAIT_AFTER"
OBJECTS, ASSOCIATIONS = 6, 5


@dataclass(frozen=True)
class Call:
    """A system call that succeeded, between two lines of the trace."""

    name: str
    arguments: str
    began: int
    ended: int


def calls(trace: str) -> Iterator[Call]:
    """The calls of all threads, those put together again that another's line had cut in two."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(trace.splitlines()):
        thread, _, text = line.partition(" ")
        began, text = number, text.strip()
        if text.endswith("<unfinished ...>"):
            begun[thread] = number, text.removesuffix("<unfinished ...>")
            continue
        if text.startswith("<... "):
            began, first = begun.pop(thread)
            text = first + text.partition(" resumed>")[2]
        if (call := re.fullmatch(r"(\w+)\((.*)\)\s+= \d+.*", text)) is not None:
            yield Call(name=call[1], arguments=call[2].strip(), began=began, ended=number)


def path_of(call: Call) -> Path:
    """The file that a call writes or syncs."""
    found = re.match(r"\d+<([^>]*)>", call.arguments)
    assert found is not None, call
    return Path(found[1])


def acknowledged(call: Call) -> str | None:
    """The SOP Instance UID that a call says has been stored."""
    found = re.match(r'\d+<[^>]*>, "((?:[^"\\]|\\.)*)"', call.arguments)
    assert found is not None, call
    sent = codecs.decode(found[1], "unicode_escape").encode("latin-1")
    elements = command_elements(sent[12:]) if sent[:1] == b"\4" else None
    if elements is None or elements[0x0100] != b"\x01\x80" or elements[0x0900] != b"\0\0":
        return None
    return elements[0x1000].rstrip(b"\0").decode()


def traced(peer: Callable[[str], str], trace: Path, *more: str) -> list[str]:
    options = ["-f", "--seccomp-bpf", "-y", "-s", "300", "-o", str(trace), "-e", f"trace={WATCHED}"]
    return [peer("strace"), *options, *more]


def test_data_name_and_folders_are_durable_before_every_success(
    make_receiver: MakeReceiver, scu: Scu, peer: Callable[[str], str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    receiver = make_receiver(prefix=traced(peer, trace))
    senders = []
    for each in range(ASSOCIATIONS):
        files = []
        for number in range(OBJECTS):
            uid = f"1.2.9.{each}.{number}"
            pixels = struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, 300_000) + bytes(300_000)
            files.append(tmp_path / f"{uid}.dcm")
            files[-1].write_bytes(
                file_meta(CT, uid, EXPLICIT) + scu.tiny(sop_instance=uid.encode(), tail=pixels)
            )
        command = [peer("storescu"), "-aet", "CT1", "-aec", "DICOMAI", "127.0.0.1"]
        senders.append(subprocess.Popen([*command, str(receiver.port), *map(str, files)]))
    assert [sender.wait(60) for sender in senders] == [0] * ASSOCIATIONS
    scu.eventually(lambda: len(receiver.lines()) == ASSOCIATIONS)

    kept = {scu.meta_of(path)[1]: path for path in receiver.spool.rglob("*.dcm")}
    made = list(calls(trace.read_text()))
    told = {uid: call for call in made if call.name == "sendto" and (uid := acknowledged(call))}
    assert set(told) == set(kept)
    assert len(kept) == OBJECTS * ASSOCIATIONS
    for uid, path in kept.items():
        assert_durable(path, receiver.spool, made, told[uid].began)


def assert_durable(path: Path, spool: Path, made: list[Call], told: int) -> None:
    """Everything that leads to an object was synced when the answer left, in the right order."""
    folder = path.parent

    def one(name: str, ending: str) -> Call:
        return next(call for call in made if call.name == name and call.arguments.endswith(ending))

    def is_synced(synced: Path, since: Call) -> bool:
        return any(since.ended < call.began and call.ended < told for call in syncs(made, synced))

    named = one("rename", f'"{path}"')
    part = Path(named.arguments.split('"')[1])
    written = [each for each in made if each.name.startswith("write") and path_of(each) == part]
    # On the disk before it has its name; name and data then synced as one, and the folder.
    sent = [each for each in made if each.name == "sync_file_range" and path_of(each) == part]
    assert written
    assert max(each.ended for each in written) < sent[-1].began
    assert sent[-1].arguments.endswith(WAITS)
    assert sent[-1].ended < named.began
    assert is_synced(path, since=named)
    assert is_synced(folder, since=named)
    # Who sends it is a name in that folder, and the folder one in the spool.
    (facts,) = (name.name for name in folder.iterdir() if name.name.startswith("from-"))
    assert is_synced(folder, since=next(each for each in made if facts in each.arguments))
    assert is_synced(spool, since=one("rename", f'"{folder}"'))


def syncs(made: list[Call], path: Path) -> list[Call]:
    return [call for call in made if call.name in ("fsync", "fdatasync") and path_of(call) == path]


@pytest.mark.parametrize(
    ("failing", "nth"), [("sync_file_range", 1), ("fsync", 1), ("fsync", 2), ("fsync", 3)]
)
def test_an_object_whose_sync_fails_is_refused_and_never_synced_again(
    make_receiver: MakeReceiver,
    scu: Scu,
    peer: Callable[[str], str],
    tmp_path: Path,
    failing: str,
    nth: int,
) -> None:
    trace = tmp_path / "trace"
    broken = f"inject={failing}:error=EIO:when={nth}"
    receiver = make_receiver(prefix=traced(peer, trace, "-e", broken))
    with scu.calling(receiver.port) as association:
        assert scu.send(association, scu.tiny()) == 0xA700
        assert receiver.data_sets() == []
        assert not list(receiver.spool.rglob("*.part"))
        second = scu.tiny(sop_instance=b"1.2.3.5")
        assert scu.send(association, second, sop_instance="1.2.3.5") == 0
    assert receiver.data_sets() == [second]
    scu.eventually(lambda: any("stored" in line for line in receiver.lines()))
    tried = [line for line in trace.read_text().splitlines() if f"{failing}(" in line]
    assert sum("INJECTED" in line for line in tried) == 1
    # What follows lies in a folder of its own, and is the first there.
    folder = re.search(r"/\d{16}-[0-9a-f]{8}/", tried[0])
    assert folder is not None
    assert sum(folder[0] in line and "000001-" in line for line in tried) == 1
