"""What strangers' bytes reach, each as a function of bytes; whatever it raises is a finding.

A target lets through what its code may raise on bad input, and asserts what must hold. The tests
call them with hypothesis, `with_atheris.py` with libFuzzer.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from pynetdicom.pdu import A_ASSOCIATE_RQ

from dicomai.errors import InputError
from dicomai.net import association_request
from dicomai.net.c_store import command_elements, has_data_set, response, store_request
from dicomai.net.connection import AssociationServer
from dicomai.net.head import head_so_far, read_head
from dicomai.net.limits import Limits
from dicomai.net.node import Node
from dicomai.net.receiver import ReceiverConfig, _Receiver
from dicomai.service.received import Reading, read_object
from dicomai.spool import reader

SYNTAXES: Final = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.3.4",
)


def association_requests(data: bytes) -> None:
    """A request that has the shape of one is read, or refused, by pynetdicom."""
    try:
        association_request.check(memoryview(data))
    except association_request.Unshapely:
        return
    pdu = A_ASSOCIATE_RQ()
    # The upper layer takes whatever these raise for a malformed PDU.
    with suppress(Exception):
        pdu.decode(b"\x01\0" + len(data).to_bytes(4, "big") + data)
        pdu.to_primitive()


def command_sets(data: bytes) -> None:
    """A command set is read whole, or is none; what we answer can be read again."""
    elements = command_elements(data)
    if elements is None:
        return
    has_data_set(elements)
    assert sum(len(value) + 8 for value in elements.values()) <= len(data)
    if (request := store_request(elements)) is None:
        return
    assert has_data_set(elements)
    answer = command_elements(response(request, 0xC000, "No UID."))
    assert answer is not None
    assert answer[0x0120] == request.message_id.to_bytes(2, "little")


def heads(data: bytes) -> None:
    """A head is read, or refused, the same however much has come; and no UID is a path."""
    for syntax in SYNTAXES:
        try:
            head = read_head(memoryview(data), syntax)
        except InputError:
            head = None
        if head is not None:
            for uid in (head.study_instance_uid, head.series_instance_uid, head.sop_instance_uid):
                assert set(uid) <= set("0123456789.")
                assert len(uid) <= 64
                assert ".." not in uid
        for size in (len(data) // 2, len(data)):
            try:
                early = head_so_far(memoryview(data)[:size], syntax)
            except InputError:
                assert head is None
            else:
                assert early is None or early == head


def files(data: bytes) -> None:
    """A file is read to its last byte, or refused with a sentence."""
    path = _folder() / "file.dcm"
    path.write_bytes(data)
    try:
        said = read_object(path, Reading()).identifiers.sop_instance_uid
    except InputError as refused:
        said = refused.sentence
    assert said
    assert said.isprintable()


def connections(data: bytes) -> None:
    """A connection ends, whatever its peer sends, and leaves nothing behind."""
    receiver, server = _receiver()
    before = _open_files()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(20)
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        peer = ("127.0.0.1", 40000)
        assert server.verify_request(ours, peer)
        server.finish_request(ours, peer)
    receiver.close_dead()
    assert not receiver._receptions
    assert not receiver._places
    assert not server._waiting
    assert _open_files() == before
    spool = receiver._config.spool
    assert not list(spool.rglob(".0*.part"))
    for entry in reader.entries(spool):
        reader.remove(entry)


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    each.__name__: each for each in (association_requests, command_sets, heads, files, connections)
}


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dicomai-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _receiver() -> tuple[_Receiver, AssociationServer]:
    """Make a receiver that serves nobody but us."""
    spool = _folder() / "spool"
    spool.mkdir()
    receiver = _Receiver(
        ReceiverConfig(
            ae_title="DICOMAI",
            host="127.0.0.1",
            port=0,
            nodes=(Node(name="any", ae_title="*"),),
            spool=spool,
            reserve_bytes=0,
            max_associations=1,
            limits=Limits(object_bytes=2**20, request_s=5.0, silence_s=5.0),
        )
    )
    return receiver, next(receiver.listen())


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  the folder itself is not of interest
