"""A receiver in a child process, an SCU that sends bytes as they are, and small objects."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from queue import Empty
from typing import TypeVar

import pytest
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContext

from dicomai.spool import reader

T = TypeVar("T")
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
MODALITY = {"name": "ct1", "ae_title": "CT1"}


def eventually(probe: Callable[[], T], seconds: float = 10.0) -> T:
    """Return what the probe gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline, f"{probe} is still {found!r} after {seconds} s"
        time.sleep(0.01)
    return found


@dataclass(kw_only=True)
class ReceiverProcess:
    """One that runs, and what it needs to be started again."""

    port: int
    spool: Path
    log: Path
    settings: dict[str, object]
    prefix: Sequence[str] = ()
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        program = Path(__file__).with_name("receiver_process.py")
        command = [*self.prefix, sys.executable, str(program), json.dumps(self.settings)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            self.kill()
            pytest.fail(self.log.read_text())

    def kill(self) -> None:
        # A tracer that is killed lets go of what it traced.
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        assert self.process.stdout is not None
        code = self.process.wait(timeout=30)
        self.process.stdout.close()
        return code

    def lines(self) -> list[dict[str, object]]:
        return [
            json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")
        ]

    def data_sets(self) -> list[bytes]:
        """The data sets in the spool, in order of receipt."""
        return [data_set_of(entry.path) for entry in reader.entries(self.spool)]


ReceiverMaker = Callable[..., ReceiverProcess]


@pytest.fixture
def make_receiver(tmp_path: Path, free_port: int) -> Iterator[ReceiverMaker]:
    """Start a receiver with other settings than the usual."""
    made = []

    def make(prefix: Sequence[str] = (), **settings: object) -> ReceiverProcess:
        spool = Path(str(settings.pop("spool", tmp_path / "spool")))
        spool.mkdir(exist_ok=True)
        usual = {
            "ae_title": "DICOMAI",
            "port": free_port,
            "nodes": [MODALITY],
            "spool": str(spool),
            "reserve_bytes": 0,
            "max_associations": 10,
        }
        receiver = ReceiverProcess(
            port=free_port,
            spool=spool,
            log=tmp_path / "receiver.log",
            settings=usual | settings,
            prefix=prefix,
        )
        receiver.start()
        made.append(receiver)
        return receiver

    yield make
    for receiver in made:
        if receiver.process.poll() is None:
            receiver.kill()


@pytest.fixture
def receiver(make_receiver: ReceiverMaker) -> ReceiverProcess:
    """A receiver that takes what CT1 sends."""
    return make_receiver()


@pytest.fixture
def small_disk(mounted: Callable[[str], Path]) -> Path:
    """A file system of 16 MiB."""
    return mounted("size=16m")


def data_set_of(path: Path) -> bytes:
    """Return the bytes of a file that follow its meta information."""
    return path.read_bytes()[data_set_offset(path) :]


def data_set_offset(path: Path) -> int:
    """Return where the data set begins, by the group length that every file here has."""
    with path.open("rb") as file:
        head = file.read(144)
    assert head[128:132] == b"DICM"
    assert head[132:140] == b"\x02\x00\x00\x00UL\x04\x00"
    return 144 + int.from_bytes(head[140:144], "little")


@contextmanager
def calling(
    port: int,
    contexts: Sequence[tuple[str, Sequence[str]]] = ((CT, (EXPLICIT,)),),
    *,
    calling_ae: str = "CT1",
    called_ae: str = "DICOMAI",
) -> Iterator[Association]:
    """Associate; release at the end if that is still possible."""
    entity = AE(calling_ae)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    requested = []
    for abstract_syntax, syntaxes in contexts:
        context = PresentationContext()
        context.abstract_syntax = UID(abstract_syntax)
        context.transfer_syntax = [UID(syntax) for syntax in syntaxes]
        requested.append(context)
    wires: list[socket.socket] = []
    association = entity.associate(
        "127.0.0.1",
        port,
        contexts=requested,
        ae_title=called_ae,
        evt_handlers=[(evt.EVT_CONN_OPEN, lambda event: wires.append(wire_of(event.assoc)))],
    )
    if not association.is_established and association.acceptor.primitive is None:
        # By the time that pynetdicom looks whether there is a connection, its peer may have
        # rejected the association and closed; then it overlooks that.
        with suppress(Empty):
            association.acceptor.primitive = association.dul.to_user_queue.get_nowait()
            association.is_rejected = True
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        for wire in wires:  # pynetdicom forgets to, where the peer closed first
            wire.close()


def wire_of(association: Association) -> socket.socket:
    """Return the socket beneath an association."""
    connection = association.dul.socket
    assert connection is not None
    assert isinstance(connection.socket, socket.socket)
    return connection.socket


def send(
    association: Association,
    data_set: bytes,
    *,
    sop_class: str = CT,
    sop_instance: str = "1.2.3.4",
    context_id: int | None = None,
) -> int | None:
    """Send bytes as a data set; return the status, None if there was no answer."""
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request.AffectedSOPClassUID = UID(sop_class)
    request.AffectedSOPInstanceUID = UID(sop_instance)
    request.DataSet = BytesIO(data_set)
    chosen = context_id or association.accepted_contexts[0].context_id
    assert chosen is not None
    association._reactor_checkpoint.clear()
    eventually(lambda: association._is_paused or not association.is_alive())
    association.dimse.send_msg(request, chosen)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return None if response is None else response.Status


def element(group: int, number: int, vr: str, value: bytes) -> bytes:
    """Encode an element of a short value representation in explicit little endian."""
    value += b"\0" * (len(value) % 2)
    head = group.to_bytes(2, "little") + number.to_bytes(2, "little") + vr.encode()
    return head + len(value).to_bytes(2, "little") + value


def tiny(
    *,
    sop_class: bytes = CT.encode(),
    sop_instance: bytes = b"1.2.3.4",
    study: bytes = b"1.2.3.1",
    series: bytes = b"1.2.3.2",
    tail: bytes = b"",
) -> bytes:
    """Encode the least that is an object; what is empty is left out."""
    parts = (
        (0x0008, 0x0016, sop_class),
        (0x0008, 0x0018, sop_instance),
        (0x0020, 0x000D, study),
        (0x0020, 0x000E, series),
    )
    return b"".join(element(g, n, "UI", value) for g, n, value in parts if value) + tail


def meta_of(path: Path) -> tuple[str, str, str]:
    """Return SOP class, SOP instance and transfer syntax of a file, by pydicom."""
    meta = read_file_meta_info(path)
    return (
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        str(meta.TransferSyntaxUID),
    )


@dataclass(frozen=True, kw_only=True)
class Scu:
    """What tests of the receiver send with: a client that sends bytes as they are."""

    calling = staticmethod(calling)
    wire_of = staticmethod(wire_of)
    send = staticmethod(send)
    tiny = staticmethod(tiny)
    element = staticmethod(element)
    eventually = staticmethod(eventually)
    data_set_of = staticmethod(data_set_of)
    meta_of = staticmethod(meta_of)


@pytest.fixture
def scu() -> Scu:
    """The hand-made client."""
    return Scu()
